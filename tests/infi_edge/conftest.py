"""What the tests of the runtime share: a valid light bundle, refusals of one sentence, models."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from infi_edge.archive import array_bytes
from infi_edge.bundle import (
    Calibration,
    FilterSpec,
    Manifest,
    OperatingPoint,
    ReuseSpec,
    SkipSpec,
    WorkloadInfo,
)
from infi_edge.errors import InfiEdgeError
from infi_edge.policy import Knobs
from infi_edge.preprocess import ImageSpec
from infi_edge.preprocess.image import CELLS

ROOT = Path(__file__).resolve().parents[2]

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


def _point(target: float, threshold: float) -> OperatingPoint:
    return OperatingPoint(
        measure="accuracy",
        target=target,
        knobs=Knobs(reuse_threshold=threshold),
        accuracy=target,
        recall=None,
        filtering_rate=0.5,
        bound=target,
        kind="estimate",
    )


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    """The manifest of a light filter with SKIP and REUSE; targets 0.9 (chosen) and 0.95."""
    return Manifest(
        format_version=2,
        modality="image",
        mechanism="both",
        preprocess=ImageSpec(64, 48),
        filter=FilterSpec(kind="light", dim=3, scale=1.0, parameters=388),
        skip=SkipSpec(weight=1.0, bias=0.0),
        reuse=ReuseSpec(distance=0.05, log_age=0.1, age=0.0, bias=-3.0),
        workload=WorkloadInfo(
            model="tiny.tflite",
            model_identity="0" * 64,
            decoder="classification",
            task="label",
            same="exact",
            labels=["dark", "bright"],
        ),
        calibration=Calibration(
            confidence=0.9,
            blocks=8,
            block_inputs=100,
            chosen=0,
            points=[_point(0.9, 0.3), _point(0.95, 0.1)],
        ),
        trained_on={"source": "yard", "inputs": 800},
        parity={},
        versions={"infi-edge": "0.1.0"},
        lowest_runtime="none",
    )


@pytest.fixture(scope="session")
def members() -> dict[str, bytes]:
    """The members of that filter: three grey levels, and a SKIP head on the first of them."""
    skip = np.zeros((2 * CELLS) + 1, np.float32)
    skip[0], skip[-1] = 8.0, -4.0
    return {
        "features.npy": array_bytes(np.array([0, 100, 191], np.int32)),
        "gains.npy": array_bytes(np.array([255, 128, 64], np.float32)),
        "offsets.npy": array_bytes(np.zeros(3, np.float32)),
        "skip.npy": array_bytes(skip),
    }


Refuses = Callable[..., AbstractContextManager[None]]


@pytest.fixture(scope="session")
def refuses() -> Refuses:
    """`with refuses(Kind, "words"):` expects exactly this error, in one printable line."""

    @contextmanager
    def expect(kind: type[InfiEdgeError], words: str = "") -> Iterator[None]:
        with pytest.raises(InfiEdgeError) as caught:
            yield
        message = str(caught.value)
        assert type(caught.value) is kind
        assert message.isprintable(), repr(message)
        assert "Traceback" not in message
        assert re.search(words, message), message

    return expect


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder of real models; the test is skipped where there is none."""
    folder = Path(os.environ.get("INFI_EDGE_MODELS", ROOT / "../shared/models"))
    if not folder.is_dir():
        pytest.skip(f"no models in {folder}; set INFI_EDGE_MODELS to the folder that has them")
    return folder
