"""Streams that drift: what changes, where, and whose labels they carry."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import streams
from benchmarks.workloads import BenchWorkload
from infi_edge.types import Action, Result
from tests.conftest import DATA, need


@pytest.fixture
def bench(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BenchWorkload:
    """The toy clip with its model: is there a square brighter than 180?"""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(toy))
    model = Path("toy_model:brightest")
    return BenchWorkload("toy", toy / "toy.avi", model, "raw", "toy_model:Square", "exact")


def test_a_changed_half_has_the_models_own_answers_to_the_changed_pictures(
    bench: BenchWorkload,
) -> None:
    plain, dark = streams.clip_stream(bench), streams.changed_stream(bench, "dusk")
    half = dark.changes[0]
    assert half == len(plain) // 2
    assert dark.truth.values[:half] == plain.truth.values[:half]
    assert True in plain.truth.values[half:]
    assert True not in dark.truth.values[half:]  # nothing is brighter than 0.45 * 255
    assert np.array_equal(dark.tensors[:half], plain.tensors[:half])
    assert dark.tensors[half:].mean() < 0.6 * plain.tensors[half:].mean()
    assert np.allclose(dark.truth.times_s, plain.truth.times_s)


def test_the_model_runs_once_per_picture_and_change(
    bench: BenchWorkload, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = streams.changed_stream(bench, "infrared")

    def gone(frame: np.ndarray) -> float:
        raise RuntimeError("asked again")

    monkeypatch.setattr(sys.modules["toy_model"], "brightest", gone)
    assert streams.changed_stream(bench, "infrared").truth.values == first.truth.values
    with pytest.raises(Exception, match="asked again"):
        streams.changed_stream(bench, "framing")


@pytest.mark.parametrize("name", streams.CHANGES)
def test_a_change_paints_the_same_picture_the_same_way_every_time(name: str) -> None:
    change = streams.CHANGES[name]
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    before = frame.copy()
    painted = change(frame, 7)
    assert painted.shape == frame.shape
    assert painted.dtype == np.uint8
    assert np.array_equal(painted, change(frame, 7))
    assert np.array_equal(frame, before)
    assert np.abs(painted.astype(int) - frame).mean() > 5


def test_noise_differs_from_frame_to_frame_and_infrared_has_no_colour() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    assert not np.array_equal(streams.noise(frame, 1), streams.noise(frame, 2))
    blue, green, red = np.moveaxis(streams.infrared(frame, 0), 2, 0)
    assert np.array_equal(blue, green)
    assert np.array_equal(green, red)


def test_framing_moves_the_scene_and_leaves_no_empty_border() -> None:
    frame = np.full((100, 200, 3), 90, np.uint8)
    frame[45:55, 95:105] = 250
    rows, columns = np.nonzero(streams.framing(frame, 0)[..., 0] > 170)
    assert abs(columns.mean() - (100 * 1.25 - 45)) < 2
    assert abs(rows.mean() - (50 * 1.25 - 12.5)) < 2
    assert streams.framing(frame, 0).min() == 90


def test_joined_clips_are_one_stream_whose_time_goes_on(bench: BenchWorkload) -> None:
    stream = streams.joined_stream(bench, [bench.clip], "twice")
    count = stream.changes[0]
    assert len(stream) == len(stream.truth) == 2 * count
    assert stream.truth.values[:count] == stream.truth.values[count:]
    assert np.allclose(np.diff(stream.truth.times_s), 1 / 20)
    assert stream.duration_s == pytest.approx(2 * count / 20)


def test_a_stream_without_its_data_says_which_file_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFI_EDGE_DATA", str(tmp_path))
    planned = streams.drift_streams()
    assert len(planned) == 12
    assert all(str(tmp_path) in (stream.missing or "") for stream in planned)


def _result(value: int, action: Action) -> Result:
    return Result(value, action, "", 0, 0.0)


def test_the_adversarys_answer_changes_after_a_filtered_input_and_only_then() -> None:
    adversary = streams.Adversary()
    answers = []
    for action in (Action.INFER, Action.INFER, Action.REUSE, Action.INFER, Action.SKIP):
        answers.append(adversary(adversary.picture()))
        adversary.seen(_result(answers[-1], action))
    assert [*answers, adversary.value] == [0, 0, 0, 1, 1, 2]


def test_playing_against_the_adversary_judges_what_was_delivered() -> None:
    adversary = streams.Adversary()
    last = [0]

    def every_third(picture: np.ndarray, time_s: float) -> Result:
        if round(time_s * 10) % 3 == 0:
            last[0] = adversary(picture)
            return _result(last[0], Action.INFER)
        return _result(last[0], Action.REUSE)

    filtered, right = streams.play(adversary, every_third, 9)
    assert filtered.tolist() == [False, True, True] * 3
    assert right.tolist() == [True, True, False] * 3  # the world moves after the first of a run


def test_the_adversarys_pictures_say_nothing_and_repeat_with_the_seed() -> None:
    one, same, other = (streams.Adversary(seed) for seed in (0, 0, 1))
    first = one.picture()
    assert np.array_equal(first, same.picture())
    assert not np.array_equal(first, other.picture())
    one.seen(_result(0, Action.REUSE))
    moved = one.picture().astype(int)
    assert 0 < np.abs(moved - first).mean() < 5


@pytest.mark.slow
def test_the_speakers_take_turns_and_the_model_hears_their_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(DATA / "spoken-digits" / "recordings")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    stream = streams.speaker_stream()
    assert len(stream.changes) == 7
    assert list(stream.changes) == sorted(stream.changes)
    assert stream.tensors.shape[1:] == stream.spec.shape
    edges = [0, *stream.changes, len(stream)]
    for first, last in itertools.pairwise(edges):
        heard = set(stream.truth.values[first:last])
        assert None in heard
        assert len(heard & set(streams.COMMANDS.values())) >= 4
    assert 0.5 < stream.truth.redundant.mean() < 0.9
