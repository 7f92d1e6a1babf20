"""The command line of a gate that learns: run, evaluate, inspect and export."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from infi_edge.bundle import read_bundle
from infi_edge.cli import cli
from infi_edge.errors import BundleError, ConfigError, ExecutorError, InfiEdgeError, SourceError
from infi_edge.learn_cli import default_state
from tests.conftest import WORKLOAD, Command

SQUARE = ("--source", "toy.avi", *WORKLOAD)
TARGET = ("--target-accuracy", "0.9")
TIMES = ("throughput_ratio", "predicted_throughput_ratio", "model_ms", "filter_ms", "decode_ms",
         "learn_cpu_s", "timed_filtering_rate")  # fmt: skip
SENSES = """
import numpy as np


def loud(data):
    return bool(np.abs(np.asarray(data, float)).max() > 0.1)


def shakes(data):
    return bool(np.abs(np.asarray(data, float)[:, 0]).mean() > 0.5)


def high(data):
    return bool(np.mean(data) > 0.5)


def alarm(line):
    return "alarm" in line


def bright(frames):
    return bool((frames[-1][..., 1] > 180).mean() > 0.01)


def broken(data):
    raise RuntimeError("no power")
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers of the models, for all tests here."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def there(toy: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be in the folder of the toy; return it."""
    monkeypatch.chdir(toy)
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.syspath_prepend(str(toy))
    (toy / "senses.py").write_text(SENSES)
    return toy


def invoke(*arguments: str) -> str:
    """Run a command here; return what it prints. Raises what it raises."""
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.stdout


def evaluated(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(invoke("evaluate", *arguments, "--json"))
    return found


def test_evaluate_replays_a_gate_that_learns_from_its_first_input(there: Path, tmp_path: Path):
    misses = tmp_path / "misses"
    report = evaluated(*SQUARE, *TARGET, "--misses", str(misses))
    keys = "inputs inferred skipped reused filtering_rate accuracy recall throughput_ratio "
    keys += "predicted_throughput_ratio model_ms filter_ms decode_ms timed_inputs target_accuracy "
    keys += "target_recall every_nth_filtering_rate ideal_skip_filtering_rate bandwidth "
    keys += "audited warm_up live_accuracy live_bound live_recall fits failed_open learn_cpu_s"
    assert set(keys.split()) <= set(report)
    assert report["inputs"] == report["inferred"] + report["reused"] == 240
    assert report["filtering_rate"] == pytest.approx(report["reused"] / 240)
    assert report["accuracy"] >= 0.9
    assert 12 <= report["warm_up"] < 120
    assert 0 < report["audited"] < report["inferred"]
    assert report["fits"] > 1
    assert report["live_bound"] <= report["accuracy"]
    assert report["live_bound"] <= report["live_accuracy"] <= 1.0
    assert report["timed_inputs"] == 200
    wrong = round((1 - report["accuracy"]) * 240)
    assert len(list(misses.iterdir())) == wrong


def test_evaluate_is_the_same_for_the_same_seed(there: Path):
    def figures(seed: str) -> dict[str, Any]:
        report = evaluated(*SQUARE, *TARGET, "--seed", seed, "--timed-inputs", "5")
        return {key: value for key, value in report.items() if key not in TIMES}

    first = figures("0")
    assert figures("0") == first
    assert {key: value for key, value in evaluated(*SQUARE, *TARGET).items() if key in first} == {
        **first,
        "timed_inputs": 200,
    }
    assert any(figures(seed) != first for seed in ("1", "2", "3"))


@pytest.mark.slow
def test_evaluate_goes_on_learning_from_a_bundle(there: Path, toy_bundle: Path):
    frozen = evaluated(str(toy_bundle), "--source", "toy.avi", *WORKLOAD[:2])
    report = evaluated(str(toy_bundle), "--source", "toy.avi", *WORKLOAD[:2], "--learn")
    assert "audited" not in frozen
    assert report["target_accuracy"] == frozen["target_accuracy"] == 0.9
    assert report["accuracy"] >= 0.9
    assert report["warm_up"] < 12  # from nothing, it has not even been fitted by then


def test_the_text_of_evaluate_shows_what_was_learned(there: Path):
    report = evaluated(*SQUARE, *TARGET)
    text = invoke("evaluate", *SQUARE, *TARGET)
    assert "target              accuracy 0.9" in text
    assert f"at least {report['live_bound']:.3f}" in text
    assert f"learning            {report['warm_up']} inputs until" in text
    assert f"{report['audited']} audited, {report['fits']} fits" in text


def recordings(folder: Path) -> dict[str, tuple[str, ...]]:
    """A recording of each modality on which the answer changes every now and then."""
    rng = np.random.default_rng(0)
    on = (np.arange(1 << 12) // 20) % 2
    with wave.open(str(folder / "sound.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        tone = 12_000 * np.sin(np.arange(16_000 * 80) / 7) * np.repeat(on[:8], 160_000)
        file.writeframes(tone.astype("<i2").tobytes())
    rows = [f"{i / 50:.2f},{on[i // 25] * (-1) ** i * 2 + rng.normal(0, 0.02):.3f}"
            for i in range(50 * 80)]  # fmt: skip
    (folder / "wrist.csv").write_text("\n".join(["time,x", *rows]) + "\n")
    texts = [f"{'alarm at the gate' if on[i] else 'all quiet here'} {i % 3}" for i in range(160)]
    (folder / "log.txt").write_text("\n".join(texts) + "\n")
    np.save(folder / "maps.npy", (on[:200, None] + rng.normal(0, 0.05, (200, 8))).astype("f4"))
    return {
        "audio": ("sound.wav", "senses:loud"),
        "motion": ("wrist.csv", "senses:shakes"),
        "text": ("log.txt", "senses:alarm"),
        "features": ("maps.npy", "senses:high"),
        "video": ("toy.avi", "senses:bright", "--modality", "video", "--preprocess", "hop=2"),
        "image": ("toy.avi", "toy_model:brightest", "--task", "toy_model:Square"),
    }


@pytest.mark.parametrize("modality", ["audio", "motion", "text", "features", "video", "image"])
def test_evaluate_learns_of_every_modality(there: Path, modality: str):
    source, model, *more = recordings(there)[modality]
    report = evaluated("--source", source, "--model", model, "--task", "value", *TARGET, *more)
    assert report["inputs"] > 100
    assert report["accuracy"] >= 0.88
    assert report["filtering_rate"] > 0.2
    assert report["fits"] > 1


def test_an_input_of_another_kind_is_named(there: Path, refuses):
    maps = np.zeros((80, 8), np.float32)
    maps[50, 3] = np.nan
    np.save(there / "holes.npy", maps)
    with refuses(SourceError, "holes.npy.*input 50: .*not a number"):
        evaluated("--source", "holes.npy", "--model", "senses:high", "--task", "value", *TARGET)


NOTHING = ("--source", "toy.avi", "--model", "toy_model:brightest")
REFUSED = {
    "no task": ((*NOTHING, *TARGET), ConfigError, "--task"),
    "no target": (SQUARE, ConfigError, "--target-accuracy"),
    "a recall": ((*SQUARE, "--target-recall", "0.9"), ConfigError, "no recall"),
    "both": ((*SQUARE, *TARGET, "--target-recall", "0.9"), ConfigError, "no recall"),
    "a head": ((*SQUARE, *TARGET, "--head", "x"), ConfigError, "--head needs a filter"),
    "no model": (("--source", "toy.avi", "--task", "value", *TARGET), ConfigError, "--model"),
    "unknown task": ((*NOTHING, "--task", "what", *TARGET), ConfigError, "what"),
    "no such model": (
        ("--source", "toy.avi", "--model", "x.tflite", "--decoder", "raw", "--task", "value",
         *TARGET), ExecutorError, "x.tflite",
    ),
    "preprocess": ((*SQUARE, *TARGET, "--preprocess", "wide"), ConfigError, "KEY=VALUE"),
}  # fmt: skip


@pytest.mark.parametrize("command_name", ["run", "evaluate"])
@pytest.mark.parametrize(("arguments", "kind", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_learned_is_refused(
    there: Path, tmp_path: Path, refuses, command_name: str, arguments, kind: Any, words: str
):
    with refuses(kind, words):
        invoke(command_name, *arguments)
    assert not (tmp_path / "state").exists()


FROM_BUNDLE = {
    "a recall": (("--learn", "--target-recall", "0.9"), "no recall"),
    "modality": (("--modality", "text"), "leave them out"),
    "preprocess": (("--learn", "--preprocess", "width=64"), "leave them out"),
    "another task": (("--learn", "--task", "value"), "--task value is not the filter's"),
    "a higher target": (("--learn", "--target-accuracy", "0.999"), "no accuracy of 0.999"),
}


@pytest.mark.parametrize("command_name", ["run", "evaluate"])
@pytest.mark.parametrize(("arguments", "words"), FROM_BUNDLE.values(), ids=FROM_BUNDLE)
def test_what_a_filter_cannot_go_on_with_is_refused(
    there: Path,
    toy_bundle: Path,
    refuses,
    command_name: str,
    arguments: tuple[str, ...],
    words: str,
):
    bundle = (str(toy_bundle),) if command_name == "evaluate" else ("--filter", str(toy_bundle))
    with refuses(ConfigError, words):
        invoke(command_name, *bundle, *NOTHING, *arguments)


def test_a_configuration_says_itself_what_learns(there: Path, refuses):
    for more in (("--learn",), ("--state", "x")):
        with refuses(ConfigError, "not both"):
            invoke("run", "yard.toml", *more)


def test_the_state_goes_by_source_model_and_task(
    there: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    usual = default_state("toy", "toy.avi", "m:f", "label")
    assert usual.parent == tmp_path / "state" / "infi-edge"
    assert usual.name.startswith("toy-")
    assert len(usual.name) == len("toy-") + 8
    assert default_state("toy", str(there / "toy.avi"), "m:f", "label") == usual
    others = [
        default_state("toy", "toy_model.py", "m:f", "label"),
        default_state("toy", "toy.avi", "m:g", "label"),
        default_state("toy", "toy.avi", "m:f", "value"),
    ]
    assert len({usual, *others}) == 4
    one, two = (default_state("x", f"rtsp://me:{p}@yard/1", "m:f", "t") for p in ("old", "new"))
    assert one == two
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    local = default_state("toy", "toy.avi", "m:f", "label")
    assert local == tmp_path / ".local" / "state" / "infi-edge" / usual.name


def only_folder(base: Path) -> Path:
    (folder,) = base.iterdir()
    return folder


SLOW = ("--source", "toy.avi", "--model", "toy_model:slow", "--task", "toy_model:Square")
"""A model that leaves time to learn in, however fast the recording is."""


@pytest.mark.slow
def test_run_learns_goes_on_and_its_bundle_runs(
    command: Command, there: Path, tmp_path: Path, refuses
):
    first = command("infi-edge", "run", "--fast", *SLOW, *TARGET)
    assert first.returncode == 0, first.stderr
    lines = [json.loads(line) for line in first.stdout.splitlines()]
    assert len(lines) == 240
    assert "240 inputs" in first.stderr
    state = only_folder(tmp_path / "state" / "infi-edge")
    assert f"what is learned is kept in {state}" in first.stderr
    assert state.name.startswith("toy-")

    again = command("infi-edge", "run", "--fast", *SLOW, *TARGET)
    assert again.returncode == 0, again.stderr
    assert {json.loads(line)["action"] for line in again.stdout.splitlines()} == {"infer", "reuse"}
    found = json.loads(invoke("inspect", str(state), "--json"))
    assert found["inputs"] == 480
    assert (found["workload"]["task"], found["source"]) == ("toy_model:Square", "toy.avi")
    assert "toy_model:slow" in invoke("inspect", str(state))

    bundle = tmp_path / "yard.infi"
    invoke("export", str(state), "-o", str(bundle))
    told = invoke("inspect", str(bundle))
    assert "by its audits in service" in told
    assert read_bundle(bundle).manifest.trained_on["inputs"] == 480
    report = evaluated(str(bundle), *SLOW[:4])
    assert report["filtering_rate"] > 0
    other = command("infi-edge", "evaluate", str(bundle), "--source", "toy.avi",
                    "--model", "toy_model:brightest")  # fmt: skip
    assert other.returncode == 2
    assert "trained for another model" in other.stderr

    on = command("infi-edge", "run", "--fast", "--filter", str(bundle), "--learn", *SLOW[:4],
                 "--state", str(tmp_path / "mine"))  # fmt: skip
    assert on.returncode == 0, on.stderr
    assert json.loads(invoke("inspect", str(tmp_path / "mine"), "--json"))["from_filter"] == "light"


def test_export_refuses_what_it_cannot_read_or_write(there: Path, tmp_path: Path, refuses):
    output = str(tmp_path / "x.infi")
    cases: list[tuple[str, str, type[InfiEdgeError], str]] = [
        (str(tmp_path / "none"), output, BundleError, "give the folder of a gate"),
        ("toy.avi", output, BundleError, "give the folder of a gate"),
        (str(tmp_path), output, BundleError, "give the folder of a gate"),
    ]
    for state, place, kind, words in cases:
        with refuses(kind, words):
            invoke("export", state, "-o", place)
    assert not Path(output).exists()


def test_inspect_refuses_what_is_neither(there: Path, tmp_path: Path, refuses):
    for path in ("toy.avi", str(tmp_path / "none"), str(tmp_path)):
        with refuses(BundleError):
            invoke("inspect", path)
