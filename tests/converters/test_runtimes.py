"""The same bundle says the same in both TFLite runtimes, and as its float network did."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from converters.crossfit import uncalibrated
from converters.train import float_embeddings, train_network
from converters.trained import TrainSettings
from infi_edge.bundle import write_bundle
from infi_edge.filter import InputFilter, load_filter
from tests.conftest import ROOT
from tests.converters.test_properties import SPECS, stream

OTHER = ROOT / ".venv-tflite" / "bin" / "python"

RUN = """
import sys, numpy as np
from infi_edge import load_filter
from infi_edge.interpreter import found_runtimes
for name in sys.argv[2:]:
    loaded = load_filter(f"{sys.argv[1]}/{name}.infi")
    tensors = np.load(f"{sys.argv[1]}/{name}.npy")
    results = [loaded.embed_tensor(tensor[None]) for tensor in tensors]
    np.savez(
        f"{sys.argv[1]}/{name}-other.npz",
        scores=[score for score, _ in results],
        embeddings=[embedding for _, embedding in results],
    )
print(*found_runtimes())
"""


@pytest.mark.slow
def test_both_runtimes_and_the_float_network_agree(tmp_path: Path) -> None:
    if not OTHER.exists():
        pytest.skip("no tflite-runtime here; 'make test-tflite' installs it")
    kept = {}
    for name, spec in SPECS.items():
        data = replace(stream(spec, 120), modality=str(type(spec).__struct_config__.tag))
        settings = TrainSettings("both", steps=60, pairs=16)
        trained = train_network(data, [(0, 120)], settings)
        bundle = uncalibrated(trained, data)
        write_bundle(tmp_path / f"{name}.infi", bundle.manifest, bundle.members)
        np.save(tmp_path / f"{name}.npy", data.tensors)
        kept[name] = (data, trained, load_filter(tmp_path / f"{name}.infi"))
    done = subprocess.run(
        [str(OTHER), "-c", RUN, str(tmp_path), *kept],
        env={**os.environ, "PYTHONPATH": str(ROOT), "INFI_EDGE_RUNTIME": "tflite_runtime"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "tflite_runtime" in done.stdout
    for name, (data, trained, here) in kept.items():
        check(name, data.tensors, trained, here, np.load(tmp_path / f"{name}-other.npz"))


def check(
    name: str, tensors: np.ndarray, trained: object, here: InputFilter, there: object
) -> None:
    results = [here.embed_tensor(tensor[None]) for tensor in tensors]
    embeddings = np.stack([embedding for _, embedding in results]).astype(int)
    scores = np.array([score for score, _ in results])
    other, other_scores = there["embeddings"].astype(int), there["scores"]
    # Rounding may fall to either side, and spreads from layer to layer by a step or two.
    assert np.abs(embeddings - other).mean() < 1.0, name
    assert ((scores > 0.5) == (other_scores > 0.5)).mean() >= 0.99, name
    floats = float_embeddings(trained.siamese.model, tensors, here.spec)
    steps = floats / here.manifest.filter.scale
    correlation = np.corrcoef(steps.sum(axis=1), embeddings.sum(axis=1))[0, 1]
    assert correlation > 0.98, name
