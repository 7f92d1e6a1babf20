"""The sample that a learning gate keeps of what it infers, and a filter trained from it."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from converters.cli import cli as convert
from infi_edge.bundle import WorkloadInfo, read_bundle
from infi_edge.capture.mask import Mask
from infi_edge.capture.recorded import Recorded, encode_input, read_manifest
from infi_edge.capture.recordings import open_recording
from infi_edge.cli import cli
from infi_edge.errors import ConfigError, InfiEdgeError
from infi_edge.filter import load_filter
from infi_edge.gate import Gate
from infi_edge.learning.begin import blank_filter
from infi_edge.learning.sample import InputSample, find_sample, sample_manifest
from infi_edge.learning.settings import LearnSettings
from infi_edge.preprocess import (
    AudioSpec,
    FeaturesSpec,
    ImageSpec,
    MotionSpec,
    Spec,
    TextSpec,
    VideoSpec,
)
from infi_edge.record import Recorder
from infi_edge.types import Action
from tests.daemon_run import Tables, a_source, prepare, running, write_config

WAIT_S = 30.0
MB = 1 << 20
SPEC = FeaturesSpec(size=(6,))


def until(true: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def sample_of(
    folder: Path, spec: Spec = SPEC, modality: str = "features", max_bytes: int = MB, **more: Any
) -> InputSample:
    trained = blank_filter(
        len, task="value", target_accuracy=0.9, modality=modality, preprocess=spec
    )
    return InputSample(folder, sample_manifest(trained.manifest, **more), max_bytes)


def offer(sample: InputSample, spec: Spec, inputs: list[Any], step_s: float = 1.0) -> None:
    """Offer inputs, and wait for each."""
    for i, data in enumerate(inputs):
        before = sample.counts.total()
        sample.offer(100.0 + step_s * i, spec.tensor(data), data, i)
        until(lambda before=before: sample.counts.total() > before)


def numbers(count: int) -> list[np.ndarray]:
    return [np.full(6, i, np.float32) for i in range(count)]


def read(folder: Path) -> tuple[list[Any], list[float], list[Any]]:
    """Inputs, times and answers."""
    recorded = Recorded(folder)
    inputs = [sample.data for sample in recorded.samples()]
    return inputs, recorded.times_s(0, recorded.count).tolist(), recorded.answers(0, recorded.count)


# What is kept.


def picture(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 255, (240, 320, 3), np.uint8)


@pytest.mark.parametrize(
    ("modality", "spec", "make"),
    [
        ("image", ImageSpec(), picture),
        ("image", ImageSpec(40, 30, "BGR"), picture),
        ("image", ImageSpec(64, 48, "GREY"), picture),
        ("video", VideoSpec(frames=3), lambda rng: [picture(rng) for _ in range(3)]),
        (
            "audio",
            AudioSpec(rate_hz=8000),
            lambda rng: (rng.integers(-9999, 9999, AudioSpec(8000).window) / 32768).astype("f4"),
        ),
        ("motion", MotionSpec(("x", "y"), 20, 5, 50.0), lambda rng: rng.normal(size=(20, 2))),
        ("text", TextSpec(), lambda rng: f"line {rng.integers(99)} \u00fc"),
        ("features", FeaturesSpec(size=(4, 4, 2)), lambda rng: rng.random((4, 4, 2), np.float32)),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_training_sees_what_the_filter_saw_to_the_bit(
    tmp_path: Path, modality: str, spec: Spec, make: Callable[[np.random.Generator], Any]
) -> None:
    inputs = [make(np.random.default_rng(seed)) for seed in range(4)]
    sample = sample_of(tmp_path / "s", spec, modality)
    offer(sample, spec, inputs)
    sample.close()
    kept, times_s, answers = read(tmp_path / "s")
    assert (times_s, answers) == ([0.0, 1.0, 2.0, 3.0], [0, 1, 2, 3])
    assert sample.counts == {"kept": 4}
    for data, again in zip(inputs, kept, strict=True):
        np.testing.assert_array_equal(spec.tensor(data), spec.tensor(again))
    if modality == "image":  # never an original
        assert kept[0].shape == (spec.shape[0], spec.shape[1], 3)


def test_it_says_what_it_is_of(tmp_path: Path) -> None:
    masks = (((0.0, 0.0), (1.0, 0.0), (1.0, 1.0)),)
    info = WorkloadInfo(
        model="m", model_identity="abc", decoder="raw", task="value", same="exact", labels=[]
    )
    sample = sample_of(
        tmp_path / "s", ImageSpec(64, 48), "image",
        workload=info, source="camera:0", masks=masks,
    )  # fmt: skip
    offer(sample, ImageSpec(64, 48), [np.zeros((48, 64, 3), np.uint8)])
    sample.close()
    manifest = read_manifest(tmp_path / "s")
    assert manifest.inferred_only
    assert (manifest.workload, manifest.reduced, manifest.masks) == (info, (64, 48), masks)
    assert manifest.made["source"] == "camera:0"


def test_at_most_one_input_a_second_is_kept(tmp_path: Path) -> None:
    sample = sample_of(tmp_path / "s")
    for i in range(100):
        sample.offer(i / 10, SPEC.tensor(numbers(1)[0]), np.full(6, i, np.float32), i)
        if i % 10 == 0:
            until(lambda i=i: sample.counts["kept"] == i // 10 + 1)
    sample.close()
    assert read(tmp_path / "s")[2] == list(range(0, 100, 10))


def test_a_clock_that_jumps_stops_nothing_and_time_never_goes_back(tmp_path: Path) -> None:
    sample = sample_of(tmp_path / "s")
    data = numbers(1)[0]
    for number, time_s in enumerate((1e9, 1e9 + 5, 3.0, 4.0, float("nan"), 1e12, 1e12 + 2)):
        before = sample.counts.total()
        sample.offer(time_s, SPEC.tensor(data), data, number)
        if math.isfinite(time_s):
            until(lambda before=before: sample.counts.total() > before)
    sample.close()
    _, times_s, answers = read(tmp_path / "s")
    assert answers == [0, 1, 2, 3, 5, 6]
    assert times_s == [0, 5, 6, 7, 7 + 86400, 9 + 86400]


def test_what_the_caller_overwrites_is_kept_as_it_was(tmp_path: Path) -> None:
    sample, held = sample_of(tmp_path / "s"), threading.Event()
    first, buffer = sample._write, np.ones(6, np.float32)
    sample._write = lambda kept: (held.wait(WAIT_S), first(kept))[1]  # type: ignore[method-assign]
    sample.offer(0.0, SPEC.tensor(buffer), buffer, 1)
    buffer[:] = 9
    held.set()
    sample.close()
    np.testing.assert_array_equal(read(tmp_path / "s")[0][0], np.ones(6, np.float32))


@pytest.mark.slow
def test_the_oldest_go_and_the_bound_holds(tmp_path: Path) -> None:
    spec = FeaturesSpec(size=(1000,))
    sample = sample_of(tmp_path / "s", spec, max_bytes=100_000)
    inputs = [np.full(1000, i, np.float32) for i in range(60)]
    for i, data in enumerate(inputs):
        before = sample.counts.total()
        sample.offer(float(i), spec.tensor(data), data, i)
        until(lambda before=before: sample.counts.total() > before)
        assert sum(p.stat().st_size for p in (tmp_path / "s").iterdir()) <= 100_000
    sample.close()
    answers = read(tmp_path / "s")[2]
    assert answers == list(range(60 - len(answers), 60))
    assert 15 < len(answers) < 26


def test_the_next_one_goes_on(tmp_path: Path) -> None:
    for _ in range(2):
        sample = sample_of(tmp_path / "s")
        offer(sample, SPEC, numbers(3))
        sample.close()
    _, times_s, answers = read(tmp_path / "s")
    assert answers == [0, 1, 2] * 2
    assert times_s == sorted(times_s)


def test_without_an_input_nothing_is_made(tmp_path: Path) -> None:
    sample = sample_of(tmp_path / "s")
    sample.close()
    sample.offer(1.0, SPEC.tensor(numbers(1)[0]), numbers(1)[0], 1)
    assert list(tmp_path.iterdir()) == []


# What goes wrong.


def test_a_disk_that_hangs_delays_nobody_and_what_is_dropped_is_counted(tmp_path: Path) -> None:
    sample, free = sample_of(tmp_path / "s"), threading.Event()
    write = sample._write
    sample._write = lambda kept: (free.wait(WAIT_S), write(kept))[1]  # type: ignore[method-assign]
    data = numbers(1)[0]
    for i in range(20):  # returns each time: the disk is freed only afterwards
        sample.offer(float(i), SPEC.tensor(data), data, i)
    assert sample.counts["dropped"] >= 14
    free.set()
    sample.close()
    assert sample.counts["kept"] + sample.counts["dropped"] == 20
    assert len(read(tmp_path / "s")[2]) == sample.counts["kept"] > 0


def test_a_full_disk_is_told_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sample, write = sample_of(tmp_path / "s"), os.write
    data = numbers(9)
    offer(sample, SPEC, data[:2])

    def full(descriptor: int, content: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    for i in range(2, 6):
        sample.offer(200.0 + i, SPEC.tensor(data[i]), data[i], i)
        until(lambda i=i: sample.counts["failed"] == i - 1)
    monkeypatch.setattr(os, "write", write)
    sample.offer(300.0, SPEC.tensor(data[6]), data[6], 6)
    sample.close()
    told = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(told) == 1
    assert "learning goes on without" in told[0]
    assert "no space left on device" in told[0]
    assert read(tmp_path / "s")[2] == [0, 1, 6]


@pytest.mark.parametrize("there", ["a file", "other files", "another workload"])
def test_a_place_that_is_not_its_own_is_left_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, there: str
) -> None:
    folder = tmp_path / "s"
    if there == "a file":
        folder.write_text("mine")
    elif there == "other files":
        folder.mkdir()
        (folder / "mine.txt").write_text("mine")
    else:
        other = sample_of(folder, FeaturesSpec(size=(5,)))
        offer(other, FeaturesSpec(size=(5,)), [np.zeros(5, np.float32)])
        other.close()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    sample = sample_of(folder)
    offer(sample, SPEC, numbers(3))
    sample.close()
    assert sample.counts == {"failed": 3}
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1


def test_two_processes_do_not_write_into_one_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = sample_of(tmp_path / "s"), sample_of(tmp_path / "s")
    offer(first, SPEC, numbers(2))
    offer(second, SPEC, numbers(2))
    assert second.counts == {"failed": 2}
    assert "another process" in caplog.text
    first.close()
    second.offer(900.0, SPEC.tensor(numbers(1)[0]), numbers(1)[0], 7)
    second.close()
    assert read(tmp_path / "s")[2] == [0, 1, 7]


def test_an_answer_that_no_recording_can_hold_is_left_out(tmp_path: Path) -> None:
    sample = sample_of(tmp_path / "s")
    data = numbers(1)[0]
    for i, value in enumerate((1, object(), 3)):
        sample.offer(float(i), SPEC.tensor(data), data, value)
        until(lambda i=i: sample.counts.total() == i + 1)
    sample.offer(9.0, SPEC.tensor(data), data, float("nan"))
    sample.close()
    assert read(tmp_path / "s")[2] == [1, 3]


# Where it is.


def test_a_sample_is_found_in_its_state_folder(tmp_path: Path) -> None:
    assert find_sample(str(tmp_path / "nowhere")) == str(tmp_path / "nowhere")
    assert find_sample("x" * 5000) == "x" * 5000
    assert find_sample(str(tmp_path)) == str(tmp_path)
    for name in ("a.sample", "lib/sample", "b.sample"):
        sample = sample_of(tmp_path / name)
        offer(sample, SPEC, numbers(1))
        sample.close()
        if name == "a.sample":
            assert find_sample(str(tmp_path)) == str(tmp_path / name)
    (tmp_path / "a.learned").mkdir()
    assert find_sample(str(tmp_path / "a.learned")) == str(tmp_path / "a.sample")
    assert find_sample(str(tmp_path / "lib")) == str(tmp_path / "lib" / "sample")
    assert find_sample(str(tmp_path / "a.sample")) == str(tmp_path / "a.sample")
    with pytest.raises(ConfigError, match=r"several sources \(a\.sample, b\.sample\); name one"):
        find_sample(str(tmp_path))


# From a gate that learns to a filter that was trained.


def invoke(program: Any, *arguments: str) -> Any:
    """Run a command here. Raises what it raises."""
    result = CliRunner().invoke(program, arguments, catch_exceptions=False, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result


@pytest.fixture
def clip(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be in the folder of the toy; return a clip of 1,500 pictures, one a second, in each of which
    the square is there or not."""
    monkeypatch.chdir(toy)
    monkeypatch.syspath_prepend(str(toy))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    room = cv2.GaussianBlur(rng.integers(30, 90, (48, 64, 3), np.uint8), (9, 9), 3)
    video = cv2.VideoWriter(
        str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 1, (64, 48)
    )
    for i in range(1500):
        frame = np.clip(room + rng.normal(0, 3, room.shape), 0, 255).astype(np.uint8)
        if (i // 15) % 2:
            x = 5 + i % 15 * 2
            frame[16:32, x : x + 16] = 230
        video.write(frame)
    video.release()
    return tmp_path / "clip.avi"


def learning_gate(state: Path | None, **settings: Any) -> Gate:
    return Gate(
        infer="toy_model:brightest",
        task="toy_model:Square",
        target_accuracy=0.9,
        state=state,
        learn=LearnSettings(**{"sample_bytes": 8 * MB, "seed": 0, "cpu_share": 1.0, **settings}),
    )


@pytest.mark.slow
def test_a_filter_is_trained_from_what_a_gate_has_inferred(clip: Path, tmp_path: Path) -> None:
    state, bundle = tmp_path / "state", str(tmp_path / "yard.infi")
    inferred = []
    with learning_gate(state) as gate:
        assert gate.sample is not None
        for sample in open_recording(str(clip)).samples():
            result = gate(sample)
            if result.action is Action.INFER:
                inferred.append(result.value)
                until(gate.sample._waiting.empty)  # it comes faster than one a second
        assert gate.stats["reuse"] > 300
    recorded = Recorded(state / "sample")
    assert recorded.manifest.workload.model_identity == "toy_model:brightest@"
    answers = recorded.answers(0, recorded.count)
    assert answers == inferred
    assert (recorded.manifest.reduced, recorded.count) == ((128, 96), len(answers))

    said = invoke(
        convert, "train", str(state), "-o", bundle, "--target-accuracy", "0.9", "--kind", "light"
    )
    assert "a learning gate has inferred" in said.stderr
    assert "(estimate" in said.stdout
    manifest = read_bundle(bundle).manifest
    assert {point.kind for point in manifest.calibration.points} == {"estimate"}
    assert "rate_hz" not in manifest.trained_on  # what is in it is not the stream's
    assert manifest.workload.model_identity == "toy_model:brightest@"
    model = ("--model", "toy_model:brightest")
    report = json.loads(
        invoke(cli, "evaluate", bundle, "--source", str(clip), *model, "--json").stdout
    )
    assert report["filtering_rate"] > 0.3
    assert report["accuracy"] > 0.85
    # And it is what a gate can go on learning from.
    with Gate(load_filter(bundle), "toy_model:brightest", learn=True) as gate:
        assert gate.learner is not None
        assert gate.learner.opened_for is None


def recording_of(folder: Path, inferred_only: bool, seed: int, head_identity: str = "") -> str:
    """A recording of 400 rows that is easy enough for a guarantee."""
    info = WorkloadInfo(
        model="m", model_identity="m", decoder="raw", task="presence:person", same="exact",
        labels=["person"], head_identity=head_identity,
    )  # fmt: skip
    manifest = sample_manifest(
        blank_filter(
            len, task="value", target_accuracy=0.9, modality="features", preprocess=SPEC
        ).manifest,
        info,
    )
    recorder = Recorder(
        folder, msgspec.structs.replace(manifest, inferred_only=inferred_only), 8 * MB
    )
    rng = np.random.default_rng(seed)
    for i in range(400):
        there = i // 7 % 2 == 1
        row = (rng.normal(0, 0.1, 6) + there).astype(np.float32)
        recorder.append(float(i), *encode_input(row, "features"), there)
    recorder.close()
    return str(folder)


@pytest.mark.parametrize("inferred_only", [False, True])
def test_a_sample_gives_an_estimate_where_a_recording_gives_a_guarantee(
    tmp_path: Path, inferred_only: bool
) -> None:
    recordings = [recording_of(tmp_path / str(seed), inferred_only, seed) for seed in (0, 1)]
    options = ("--target-accuracy", "0.8", "--confidence", "0.8")
    bundle = str(tmp_path / "x.infi")
    kind = "estimate" if inferred_only else "guarantee"
    for said in (
        invoke(
            convert, "train", recordings[0], *options, "-o", bundle,
            "--kind", "light", "--mechanism", "skip",
        ),
        invoke(convert, "calibrate", bundle, "--source", recordings[1], *options),
    ):  # fmt: skip
        assert f"accuracy 0.8 ({kind}" in said.stdout
        assert ("a learning gate has inferred" in said.stderr) == inferred_only
        assert read_bundle(bundle).manifest.calibration.points[0].kind == kind


def test_a_filter_of_a_heads_features_says_which_head(tmp_path: Path) -> None:
    recording, bundle = recording_of(tmp_path / "s", True, 0, "a-head"), str(tmp_path / "x.infi")
    options = ("--target-accuracy", "0.8", "--kind", "light", "--mechanism", "skip")
    invoke(convert, "train", recording, *options, "-o", bundle)
    assert read_bundle(bundle).manifest.workload.head_identity == "a-head"


def test_without_sample_bytes_nothing_is_kept(clip: Path, tmp_path: Path) -> None:
    with learning_gate(tmp_path / "state", sample_bytes=0) as gate:
        for sample in open_recording(str(clip)).samples(0, 30):
            gate(sample)
        assert gate.sample is None
    assert not (tmp_path / "state" / "sample").exists()


def test_a_sample_needs_a_folder(clip: Path) -> None:
    with pytest.raises(ConfigError, match="name it with state="):
        learning_gate(None)


def test_what_is_masked_is_not_kept(clip: Path, tmp_path: Path) -> None:
    left = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))
    with Gate(
        infer=lambda frame: int(frame.max()),
        task="value",
        target_accuracy=0.9,
        mask=Mask([left]),
        state=tmp_path / "state",
        learn=LearnSettings(sample_bytes=MB),
    ) as gate:
        gate(np.full((96, 128, 3), 200, np.uint8), 1.0)
    kept = read(tmp_path / "state" / "sample")[0][0]
    assert kept[:, :63].max() == 0
    assert kept[:, 66:].min() == 200


def test_a_full_disk_does_not_stop_the_gate(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with learning_gate(tmp_path / "state") as gate:
        assert gate.sample is not None
        monkeypatch.setattr(os, "write", full)
        for sample in open_recording(str(clip)).samples(0, 200):
            gate(sample)
        until(lambda: gate.sample and gate.sample.counts["failed"] > 0)
        monkeypatch.setattr(os, "write", write)
        assert gate.sample.counts["kept"] == 0
        assert gate.stats["learn_error"] == gate.stats["filter_error"] == 0
        assert gate.stats["infer"] + gate.stats["reuse"] == 200
        assert gate.learner is not None
        assert gate.learner.counts["inputs"] == 200


# In a daemon.

OFTEN = """
import infi_edge.learning.sample
infi_edge.learning.sample.EVERY_S = 0.02
"""


@pytest.fixture
def yard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tables:
    """A source that learns from rows of eight numbers and keeps a sample."""
    tables = prepare(tmp_path)
    (tmp_path / "often.py").write_text(OFTEN)
    tables["plugins"] += ["often.py"]
    tables["sources"] = {
        "yard": {
            "address": "ticks:500",
            "model": "m",
            "learn": True,
            "task": "value",
            "target_accuracy": 0.9,
            "modality": "features",
            "preprocess": {"size": [8]},
            "learning": {"seed": 1, "cpu_share": 1.0, "sample_bytes": MB},
        }
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tables


def count(folder: Path) -> int:
    """How many inputs a sample has; it may be being written."""
    try:
        return Recorded(folder).count
    except (InfiEdgeError, OSError):
        return 0


@pytest.mark.slow
def test_a_killed_daemon_leaves_a_sample_to_train_from(tmp_path: Path, yard: Tables) -> None:
    place = tmp_path / "state" / "yard.sample"
    with running(tmp_path, yard) as daemon:
        daemon.until(lambda: count(place) >= 150)
        daemon.process.kill()
        daemon.process.wait()
        before = count(place)
    recorded = Recorded(place)
    assert recorded.manifest.workload.model == "daemon_models:level"
    assert recorded.manifest.made["source"] == "ticks:500"
    levels = [round(float(sample.data[0])) for sample in recorded.samples()]
    assert levels == recorded.answers(0, recorded.count)
    with running(tmp_path, yard) as daemon:
        daemon.until(lambda: count(place) >= before + 30)
        # A setting that has nothing to do with learning: the sample goes on.
        yard["sources"]["yard"]["pre_roll_s"] = 0.1
        write_config(tmp_path, yard)
        daemon.until_log("is in force")
        now = count(place)
        daemon.until(lambda: count(place) >= now + 30)
        assert "is not kept" not in daemon.log
    said = invoke(
        convert, "train", "state", "-o", "yard.infi", "--target-accuracy", "0.9", "--kind", "light"
    )
    assert "(estimate" in said.stdout
    tables = {**yard, "sources": {"yard": a_source("ticks:200") | {"filter": "yard.infi"}}}
    with running(tmp_path, tables) as daemon:  # it fits the model it was sampled from
        daemon.until(lambda: daemon.metric("inputs_total", source="yard", action="reuse") > 40)


def test_a_sample_of_another_source_is_left_alone_and_the_daemon_serves(
    tmp_path: Path, yard: Tables
) -> None:
    place = tmp_path / "state" / "yard.sample"
    place.mkdir(parents=True)
    (place / "mine.txt").write_text("mine")
    with running(tmp_path, yard) as daemon:
        daemon.until_log("an input is not kept, learning goes on without")
        daemon.until(lambda: daemon.answered("yard") > 100)
        assert daemon.log.count("an input is not kept") == 1
    assert [p.name for p in place.iterdir()] == ["mine.txt"]
