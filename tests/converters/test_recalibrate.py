"""Thresholds for a filter as it is: an imported one, a new target, a new camera."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from infi_edge import load_filter
from infi_edge.bundle import read_bundle
from infi_edge.capture.recordings import open_recording
from tests.conftest import WORKLOAD, Command
from tests.test_bad_input import refused

TARGET = ("--target-accuracy", "0.9")


def frames(toy: Path) -> tuple[np.ndarray, np.ndarray]:
    """The first half of the toy clip as a Keras user has it: RGB 0..1, and who shows a square."""
    pictures = [
        cv2.cvtColor(cv2.resize(s.data, (32, 24), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)
        for s in open_recording(str(toy / "toy.avi")).samples(0, 120)
    ]
    there = np.array([(i // 15) % 2 for i in range(120)], np.float32)
    return np.stack(pictures).astype(np.float32) / 255, there


@pytest.fixture(scope="module")
def imported(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Keras filters trained by hand on the first half of the toy clip, and saved: skip, reuse."""
    keras = pytest.importorskip("keras")
    folder = tmp_path_factory.mktemp("keras")
    keras.utils.set_random_seed(0)
    layers = keras.layers
    x, there = frames(toy)

    def network() -> list[object]:
        return [layers.Conv2D(8, 3, 2, activation="relu"), layers.Flatten()]

    skip = keras.Sequential([layers.Input((24, 32, 3)), *network(), layers.Dense(1, "sigmoid")])
    skip.compile(keras.optimizers.Adam(0.003), "binary_crossentropy")
    skip.fit(x, there, epochs=15, verbose=0)
    skip.save(folder / "skip.keras")

    shared = keras.Sequential([layers.Input((24, 32, 3)), *network(), layers.Dense(16, "relu")])
    a, b = layers.Input((24, 32, 3)), layers.Input((24, 32, 3))
    difference = keras.ops.abs(shared(a) - shared(b))
    reuse = keras.Model([a, b], layers.Dense(1, "sigmoid")(difference))
    reuse.compile(keras.optimizers.Adam(0.003), "binary_crossentropy")
    one, other = np.random.default_rng(0).integers(0, 120, (2, 600))
    reuse.fit([x[one], x[other]], there[one] != there[other], epochs=10, verbose=0)
    reuse.save(folder / "reuse.keras")
    return {"skip": folder / "skip.keras", "reuse": folder / "reuse.keras"}


@pytest.mark.parametrize(("mechanism", "quantized"), [("skip", True), ("reuse", False)])
def test_an_imported_filter_passes_everything_until_it_is_calibrated(
    command: Command,
    toy: Path,
    tmp_path: Path,
    imported: dict[str, Path],
    mechanism: str,
    quantized: bool,
) -> None:
    bundle = tmp_path / "mine.infi"
    data = ("--calibration-data", "toy.avi") if quantized else ()
    done = command(
        "infi-convert",
        *("keras", str(imported[mechanism]), "--modality", "image", "-o", str(bundle), *data),
    )
    assert done.returncode == 0, done.stderr
    run = ("--source", "toy.avi", "--model", "toy_model:brightest", "--start", "0.5")
    done = command("infi-edge", "run", "--fast", *run, "--filter", str(bundle), "--end", "0.6")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["action"] for line in lines} == {"infer"}
    assert len(lines) == 24
    assert all(isinstance(line["value"], float) for line in lines)  # the model's own answer

    calibrate = ("calibrate", str(bundle), "--source", "toy.avi", *WORKLOAD, "--end", "0.5")
    done = command("infi-convert", *calibrate, *TARGET)
    assert done.returncode == 0, done.stderr
    manifest = read_bundle(bundle).manifest
    assert manifest.workload.task == "toy_model:Square"
    assert manifest.calibration.points[0].filtering_rate > 0.2
    assert float(manifest.parity[f"{mechanism}_auc"]) > 0.9

    done = command("infi-edge", "evaluate", str(bundle), *run, "--json")
    report = json.loads(done.stdout)
    assert report["accuracy"] >= 0.9
    assert report["filtering_rate"] > 0.2


def test_a_new_target_and_a_new_model_need_no_training(
    command: Command, toy: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "other.infi"
    other = ("--model", "toy_model:slow", "--target-recall", "0.85", "--start", "0.5")
    done = command(
        "infi-convert",
        *("calibrate", str(toy_bundle), "--source", "toy.avi", *other, "-o", str(bundle)),
    )
    assert done.returncode == 0, done.stderr
    before, after = read_bundle(toy_bundle), read_bundle(bundle)
    assert after.members == before.members  # nothing was trained
    point = after.manifest.calibration.points[0]
    assert (point.measure, point.target) == ("recall", 0.85)
    assert after.manifest.workload.model == "toy_model:slow"
    assert after.manifest.workload.task == before.manifest.workload.task
    assert after.manifest.trained_on["calibrated_first_input"] == 120


def test_thresholds_are_not_set_on_what_the_filter_was_trained_on(
    command: Command, toy_bundle: Path
) -> None:
    content = toy_bundle.read_bytes()
    calibrate = ("calibrate", str(toy_bundle), "--source", "toy.avi", *WORKLOAD, *TARGET)
    refused(command("infi-convert", *calibrate), "trained on inputs 0 to 119", "--start")
    assert toy_bundle.read_bytes() == content


def test_what_cannot_be_calibrated_is_refused(
    command: Command, toy_bundle: Path, tmp_path: Path
) -> None:
    start = ("calibrate", str(toy_bundle), "--source", "toy.avi")
    later = ("--start", "0.5")
    refused(command("infi-convert", *start, *later, *TARGET), "--model")
    refused(command("infi-convert", *start, *WORKLOAD, *later), "--target-accuracy")
    refused(command("infi-convert", *start, *WORKLOAD, *TARGET, "--start", "0.9"), "too few")
    refused(
        command("infi-convert", "calibrate", "none.infi", *start[2:], *WORKLOAD, *TARGET), "none"
    )
    refused(command("infi-convert", *start[:2], "--source", "none.avi", *WORKLOAD, *TARGET), "none")


def test_stored_inputs_of_another_kind_are_refused(
    command: Command, toy_bundle: Path, tmp_path: Path
) -> None:
    stored = tmp_path / "x.npz"
    score = ("score", str(toy_bundle), str(stored))
    refused(command("infi-convert", *score), "x.npz")
    stored.write_bytes(b"no archive")
    refused(command("infi-convert", *score), "x.npz")
    np.savez(stored, a=np.zeros(3), b=np.zeros(4))
    refused(command("infi-convert", *score), "x.npz", "first axis")
    np.savez(stored, a=np.array([print], object))
    refused(command("infi-convert", *score), "x.npz")
    np.savez(stored, a=np.full((2, 96, 128, 3), np.nan, np.float32))
    refused(command("infi-convert", *score), "x.npz", "input 0", "not a number")
    np.savez(stored, a=np.zeros((2, 5, 5), np.float32))
    refused(command("infi-convert", *score), "x.npz, input 0")


def test_scores_are_those_of_the_gate(command: Command, toy: Path, toy_bundle: Path) -> None:
    pictures = [s.data for s in open_recording(str(toy / "toy.avi")).samples(120, 130)]
    np.savez(toy / "pictures.npz", np.stack(pictures)[..., ::-1])
    done = command("infi-convert", "score", str(toy_bundle), "pictures.npz")
    assert done.returncode == 0, done.stderr
    gate_filter = load_filter(toy_bundle)
    expected = [gate_filter(picture)[0] for picture in pictures]
    assert [float(line) for line in done.stdout.split()] == pytest.approx(expected, abs=1e-6)
