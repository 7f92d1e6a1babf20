"""A seventh modality is one file outside the package: `examples/radio_iq.py`, by its commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from converters.recordings import load_training_data
from infi_edge import Action, Gate, load_filter
from infi_edge.bundle import read_bundle
from infi_edge.capture.recordings import draft_spec, open_recording
from infi_edge.errors import ConfigError
from infi_edge.evaluate import labelled
from infi_edge.plugins import load_plugin
from infi_edge.preprocess import change_spec
from infi_edge.workload import Workload, WorkloadSpec
from tests.conftest import ROOT

PLUGIN = ("--plugin", "examples/radio_iq.py")
MODEL = ("--model", "radio_iq:classify")
TASK = ("--task", "value:bpsk,qpsk")
TRAIN = ("train", "radio.npz", "--modality", "radio", *MODEL, *TASK, "--target-accuracy", "0.9")


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `python FILE`, `infi-edge` or `infi-convert` for real, labels cached in the folder."""
    modules = {"infi-edge": ("-m", "infi_edge"), "infi-convert": ("-m", "converters")}
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *modules.get(words[0], ()), *words[1:]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example, what its `make` writes, and a light filter of the first half."""
    folder = tmp_path_factory.mktemp("radio")
    (folder / "examples").mkdir()
    shutil.copy(ROOT / "examples" / "radio_iq.py", folder / "examples")
    done = run(folder, "python", "examples/radio_iq.py", "make", "radio.npz", "--windows", "1200")
    assert done.returncode == 0, done.stderr
    assert "made by this program" in done.stdout
    done = run(
        folder,
        *("infi-convert", *PLUGIN, *TRAIN, "--end", "0.5", "--kind", "light"),
        *("-o", "radio.infi"),
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def radio() -> ModuleType:
    """The example, loaded as --plugin loads it."""
    load_plugin(str(ROOT / "examples" / "radio_iq.py"))
    return sys.modules["radio_iq"]


def test_the_workload_tells_modulations_apart(radio: ModuleType) -> None:
    windows, sent = radio.stream(500, seed=1)
    said = [radio.classify(window) for window in windows]
    for kind in ("noise", *radio.POINTS):
        right = [said[i] == kind for i, true in enumerate(sent) if true == kind]
        assert np.mean(right) > 0.85, kind
    phase = np.exp(0.3j)
    turned = [radio.classify((w[:, 0] + 1j * w[:, 1]) * phase * 1e-6) for w in windows[:100]]
    assert np.mean([a == b for a, b in zip(turned, said, strict=False)]) > 0.95


def test_make_writes_the_seeded_stream_and_refuses_what_it_cannot_write(
    radio: ModuleType, fresh: Path
) -> None:
    with np.load(fresh / "radio.npz") as loaded:
        assert np.array_equal(loaded["inputs"], radio.stream(1200)[0])
        assert (loaded["inputs"].shape, loaded["inputs"].dtype) == ((1200, 256, 2), np.float32)
    for path in ("nowhere/radio.npz", "radio.wav"):
        done = run(fresh, "python", "examples/radio_iq.py", "make", path)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_the_filter_holds_its_target_on_the_half_it_never_saw(fresh: Path) -> None:
    done = run(
        fresh,
        *("infi-edge", *PLUGIN, "evaluate", "radio.infi", "--source", "radio.npz", *MODEL),
        *("--start", "0.5", "--json"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["inputs"] == 600
    assert report["filtering_rate"] > 0.3
    assert report["accuracy"] >= 0.9 - 0.05


def test_run_writes_one_json_line_an_input(fresh: Path) -> None:
    done = run(
        fresh,
        *(
            "infi-edge",
            *PLUGIN,
            "run",
            "--fast",
            "--source",
            "radio.npz",
            "--filter",
            "radio.infi",
            *MODEL,
        ),
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["index"] for line in lines] == list(range(1200))
    assert {line["value"] for line in lines} == {None, "bpsk", "qpsk"}
    assert "filter errors" not in done.stderr


def test_a_configuration_names_the_plugin_beside_it(fresh: Path, tmp_path: Path) -> None:
    shutil.copy(fresh / "examples" / "radio_iq.py", fresh)
    (fresh / "radio.toml").write_text(
        'plugins = ["radio_iq.py"]\n'
        '[models.modulation]\npath = "radio_iq:classify"\n'
        '[sources.radio]\naddress = "radio.npz"\nend = 0.1\nfast = true\n'
        'filter = "radio.infi"\nmodel = "modulation"\n'
        '[sinks.out]\nkind = "jsonl"\nevents = false\n'
    )
    plain = run(tmp_path, "infi-edge", "run", str(fresh / "radio.toml"))
    assert plain.returncode == 0, plain.stderr
    assert len(plain.stdout.splitlines()) == 120
    same = ("--plugin", str(fresh / "radio_iq.py"))
    twice = run(tmp_path, "infi-edge", *same, "run", str(fresh / "radio.toml"))
    assert twice.returncode == 0, twice.stderr
    assert results(twice.stdout) == results(plain.stdout)


def results(text: str) -> list[dict[str, object]]:
    """Results but for the wall time."""
    return [{k: v for k, v in json.loads(r).items() if k != "at"} for r in text.splitlines()]


def test_without_the_plugin_one_sentence_says_what_is_missing(fresh: Path) -> None:
    done = run(fresh, "infi-edge", "inspect", "radio.infi")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    for words in ("radio.infi", "modality 'radio' is unknown", "--plugin"):
        assert words in done.stderr
    done = run(fresh, "infi-edge", *PLUGIN, "inspect", "radio.infi")
    assert done.returncode == 0
    assert "window 256, rate_hz 1000000.0" in done.stdout


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("window=128", "input 0: a window is (128, 2) here"),
        ("window=8", "impossible window"),
        ("rate_hz=nan", "impossible rate"),
        ("rate_hz=900000", "7.2 samples a symbol"),
    ],
)
def test_train_refuses_what_does_not_fit(fresh: Path, setting: str, words: str) -> None:
    done = run(
        fresh,
        *("infi-convert", *PLUGIN, *TRAIN, "--end", "0.5", "--kind", "light"),
        *("--preprocess", setting, "-o", "never.infi"),
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (fresh / "never.infi").exists()


def test_the_gate_infers_what_the_filter_cannot_read(radio: ModuleType, fresh: Path) -> None:
    gate = Gate(load_filter(fresh / "radio.infi"), infer=radio.classify)
    windows, sent = radio.stream(300, seed=2)
    good = next(
        w for w, kind in zip(windows, sent, strict=True) if kind == radio.classify(w) == "bpsk"
    )
    lost = good.copy()
    lost[7, 0] = np.nan
    for count, (bad, why) in enumerate([(lost, "not a number"), (good[:200], "a window is")], 1):
        result = gate(bad)
        assert result.action is Action.INFER
        assert "filter error" in result.why
        assert why in result.why
        assert result.value == "bpsk"
        assert gate.stats["filter_error"] == count
    assert len(gate.cache) == 0
    gate(good)
    assert gate.stats["filter_error"] == 2


def test_training_and_the_device_read_the_same_bits(
    radio: ModuleType, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh / "cache"))
    text = str(fresh / "radio.npz")
    _, spec = draft_spec("radio", text, {})
    recording = open_recording(text, spec=spec)
    workload = Workload(radio.classify, WorkloadSpec("value", modality="radio"))
    truth = labelled(recording, workload, "test", 0, 100)
    data = load_training_data(recording, truth, 0, 100, spec, modality="radio")
    device = load_filter(fresh / "radio.infi")
    for i, sample in enumerate(recording.samples(0, 100)):
        tensor = device.spec.tensor(sample.data)
        assert tensor.tobytes() == data.tensors[i].tobytes()
        assert device.spec.features(tensor).tobytes() == data.features[i].tobytes()
        score, embedding = device(sample.data)
        again, same = device.embed_tensor(data.tensors[i][None])
        assert score == again
        assert np.array_equal(embedding, same)


def test_a_tensor_has_unit_power_whatever_the_gain_and_the_type(radio: ModuleType) -> None:
    spec = radio.RadioSpec()
    pairs = np.rint(radio.stream(1)[0][0] * 1000).astype(np.int16)
    tensor = spec.tensor(pairs)
    assert (tensor.shape, tensor.dtype) == ((1, 256, 2), np.float32)
    assert np.square(tensor).sum(axis=2).mean() == pytest.approx(1, abs=1e-5)
    for same in (pairs.astype(np.float32), pairs * 1e-200, pairs * 1e300, pairs @ [1, 1j]):
        assert np.allclose(spec.tensor(same), tensor, atol=1e-6)
    assert not spec.tensor(np.zeros((256, 2))).any()
    for each in (tensor, np.zeros_like(tensor)):
        features = spec.features(each)
        assert features.shape == (spec.feature_count,)
        assert np.isfinite(features).all()


def test_a_tensor_refuses_what_is_no_window(radio: ModuleType) -> None:
    spec = radio.RadioSpec()
    good = np.ones((256, 2), np.float32)
    infinite = good.copy()
    infinite[0, 0] = np.inf
    for bad in (good[:255], good[:, :1], infinite, good > 0, "IQ", good.tolist()):
        with pytest.raises(ValueError, match=r"window|not a number|array"):
            spec.tensor(bad)
    assert change_spec(spec, {"window": "128"}).shape == (128, 2)


@pytest.mark.slow
def test_a_network_is_trained_on_it(fresh: Path) -> None:
    pytest.importorskip("tensorflow")
    done = run(
        fresh,
        *("infi-convert", *PLUGIN, *TRAIN, "--end", "0.5", "--kind", "net", "--steps", "60"),
        *("--allow-pass-through", "-o", "net.infi"),
    )
    assert done.returncode == 0, done.stderr
    load_plugin(str(ROOT / "examples" / "radio_iq.py"))
    manifest = read_bundle(fresh / "net.infi").manifest
    assert (manifest.modality, manifest.filter.kind) == ("radio", "net")
    assert float(manifest.parity["reuse_agreement"]) > 0.9
    evaluated = run(
        fresh,
        *("infi-edge", *PLUGIN, "evaluate", "net.infi", "--source", "radio.npz", *MODEL),
        *("--start", "0.5", "--json"),
    )
    assert json.loads(evaluated.stdout)["accuracy"] >= 0.9 - 0.05


def test_a_plugin_is_loaded_once_and_never_over_another_module(tmp_path: Path) -> None:
    file = ROOT / "examples" / "radio_iq.py"
    load_plugin(str(file))
    module = sys.modules["radio_iq"]
    load_plugin(os.path.relpath(file))
    assert sys.modules["radio_iq"] is module
    for name in ("radio_iq", "wave", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit")
        with pytest.raises(ConfigError, match=f"another module '{name}'; rename"):
            load_plugin(str(tmp_path / f"{name}.py"))
    with pytest.raises(ConfigError, match=r"none\.py is no file"):
        load_plugin(str(tmp_path / "none.py"))


def test_a_plugin_that_fails_leaves_nothing_half_imported(tmp_path: Path) -> None:
    file = tmp_path / "half_a_plugin.py"
    file.write_text("there = 1\nraise RuntimeError('no antenna')\n")
    for _ in range(2):
        with pytest.raises(ConfigError, match="no antenna"):
            load_plugin(str(file))
        assert "half_a_plugin" not in sys.modules
