"""A change of the whole scene is noticed; weather, noise and people are none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest

from infi_edge.capture.replay import VideoFile
from infi_edge.preprocess import ImageSpec, TextSpec
from infi_edge.scene import PASSES_PER_INPUT, SETTLE_S, SceneWatch, watch_for
from tests.conftest import DATA, need

HZ = 10
BEFORE = 100
SPEC = ImageSpec(96, 72)
LUMA = np.array([0.299, 0.587, 0.114])


def view(seed: int, contrast: float = 25, mean: float = 110, colour: float = 25) -> np.ndarray:
    """A made-up scene, float (72, 96, 3)."""
    rng = np.random.default_rng(seed)

    def smooth(channels: int) -> np.ndarray:
        coarse = rng.normal(0, 1, (9, 12, channels))
        fine = cv2.resize(coarse, (96, 72), interpolation=cv2.INTER_CUBIC)
        return fine.reshape(72, 96, channels)

    return mean + contrast * smooth(1) + colour * smooth(3)


VIEWS = {
    "ordinary": view(0),
    "flat": view(1, contrast=10),
    "hard": view(2, contrast=50),
    "night": view(3, contrast=8, mean=35, colour=8),
    "snow": view(4, contrast=20, mean=200),
}


def shots(scenes: Iterable[np.ndarray], noise: float = 4, seed: int = 0) -> list[np.ndarray]:
    """What a camera makes of scenes: filter inputs, uint8 (1, 72, 96, 3)."""
    rng = np.random.default_rng(seed)
    return [
        np.clip(scene + rng.normal(0, noise, scene.shape), 0, 255).astype(np.uint8)[None]
        for scene in scenes
    ]


def passes(frames: list[np.ndarray], hz: float = HZ) -> tuple[list[float], SceneWatch]:
    """The times, from the end of the steady part, at which inputs pass."""
    watch = SceneWatch()
    found = [i for i, frame in enumerate(frames) if watch.changing(frame, i / hz)]
    return [(i - BEFORE) / hz for i in found], watch


def after(scene: np.ndarray, then: Iterable[np.ndarray], noise: float = 4) -> list[np.ndarray]:
    return shots([*[scene] * BEFORE, *then], noise)


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize(
    "change",
    [
        lambda scene: scene / 5,
        lambda scene: np.full_like(scene, 3.0),
        lambda scene: scene * 1.6 + 10,
        lambda scene: np.roll(scene, 24, axis=1),
        lambda scene: np.roll(scene, 20, axis=0),
    ],
    ids=["lights off", "lens covered", "lights on", "turned", "tilted"],
)
def test_a_change_of_the_whole_scene_passes_inputs_for_two_seconds(name, change):
    scene = VIEWS[name]
    times_s, watch = passes(after(scene, [change(scene)] * 100))
    assert times_s == [i / HZ for i in range(int(SETTLE_S * HZ))]
    assert watch.changes == 1


@pytest.mark.parametrize("name", ["ordinary", "flat", "hard", "snow"])
@pytest.mark.parametrize(("gain", "offset"), [(1, 0), (0.7, 40), (1.3, 10), (0.5, 20), (0.8, 0)])
def test_an_infrared_switch_is_seen_both_ways_however_bright(name, gain, offset):
    scene = VIEWS[name]
    grey = np.repeat((scene @ LUMA)[..., None], 3, axis=2) * gain + offset
    for before, then in ((scene, grey), (grey, scene)):
        times_s, watch = passes(after(before, [then] * 50))
        assert times_s[:1] == [0.0]
        assert watch.changes == 1


@pytest.mark.parametrize("seconds", [1, 3])
@pytest.mark.parametrize("name", VIEWS)
def test_a_light_that_fades_is_seen_while_it_fades(name, seconds):
    scene, count = VIEWS[name], seconds * HZ
    fade = [scene * (1 - 0.9 * i / count) for i in range(count)]
    times_s, watch = passes(after(scene, fade + [scene * 0.1] * 50))
    assert 0 <= times_s[0] < 0.7 * seconds
    assert times_s[-1] < seconds + SETTLE_S
    assert watch.changes == 1


@pytest.mark.parametrize("name", ["ordinary", "hard", "snow"])
@pytest.mark.parametrize(("first", "last"), [(0.1, 1.0), (1.0, 0.1)])
def test_a_dawn_and_a_dusk_are_no_change(name, first, last):
    scene, count = VIEWS[name], 600 * HZ // 5
    day = [scene * (first + (last - first) * i / count) for i in range(count)]
    times_s, watch = passes(shots(day), HZ / 5)
    assert (times_s, watch.changes) == ([], 0)


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("noise", [0, 4, 25])
def test_noise_is_no_change(name, noise):
    assert passes(shots([VIEWS[name]] * 300, noise))[0] == []


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("level", [0, 120, 255])
def test_a_person_of_a_fifth_of_the_picture_is_no_change(name, level):
    def with_person(step: int) -> np.ndarray:
        scene = VIEWS[name].copy()
        left = (step * 3) % 77
        scene[8:, left : left + 22] = level
        return scene

    walk = [with_person(i) for i in range(100)]
    times_s, watch = passes(after(VIEWS[name], [*walk, *[walk[-1]] * 100, *[VIEWS[name]] * 100]))
    assert (times_s, watch.changes) == ([], 0)


def test_a_flash_and_the_dark_after_it_are_two_sights_and_one_change():
    scene = VIEWS["ordinary"]
    times_s, watch = passes(after(scene, [scene + 100, *[scene] * 60]))
    assert times_s[0] == 0.0
    assert times_s[-1] < 0.2 + SETTLE_S
    assert watch.changes == 1


def test_after_a_change_the_new_scene_is_the_usual_one():
    scene, other = VIEWS["ordinary"], VIEWS["hard"]
    times_s, watch = passes(after(scene, [*[other] * 100, *[scene] * 100]))
    assert watch.changes == 2
    assert len(times_s) == 2 * SETTLE_S * HZ


def test_a_stream_that_always_changes_passes_one_input_in_twenty():
    scenes = [view(seed) for seed in range(40)]
    frames = shots([scenes[i % 40] for i in range(1000)])
    watch = SceneWatch()
    passed = [watch.changing(frames[i % 1000], i / HZ) for i in range(6000)]
    late = passed[2000:]
    assert sum(late) == pytest.approx(PASSES_PER_INPUT * len(late), rel=0.05)


def test_a_gap_in_the_stream_is_compared_with_what_was_before_it():
    watch, scene = SceneWatch(), VIEWS["ordinary"]
    before, same, other = shots([scene, scene, scene / 5])
    assert not watch.changing(before, 0.0)
    assert not watch.changing(same, 3600.0)
    assert watch.changing(other, 7200.0)


def test_a_time_that_runs_back_is_no_error():
    watch, scene = SceneWatch(), VIEWS["ordinary"]
    frames = shots([scene] * 3)
    assert not any(watch.changing(f, t) for f, t in zip(frames, (10.0, 5.0, 6.0), strict=True))


@pytest.mark.parametrize("spec", [ImageSpec(20, 15, "GREY"), ImageSpec(1, 1), ImageSpec(224, 224)])
def test_every_filter_input_can_be_watched(spec):
    rng = np.random.default_rng(0)
    watch = watch_for(spec)
    assert watch is not None
    frame = rng.integers(60, 200, (48, 64, 3), np.uint8)
    seen = [
        watch.changing(spec.tensor(f), float(t)) for t, f in enumerate((frame, frame, frame // 9))
    ]
    assert seen == [False, False, True]


def test_what_is_no_picture_is_not_watched():
    assert watch_for(TextSpec()) is None


@pytest.mark.parametrize(
    ("clip", "every"),
    [
        ("person/one-by-one-person.mp4", 1),
        ("traffic/highway-15fps.avi", 1),
        ("traffic/intersection-60fps.avi", 3),
    ],
)
def test_real_streams_are_no_change_until_their_lights_go_out(clip, every):
    watch, spec = SceneWatch(), ImageSpec(128, 96)
    path: Path = need(DATA / clip)
    now_s, last = 0.0, None
    for sample in VideoFile(path).samples():
        if sample.index % every:
            continue
        now_s, last = sample.time_s, sample.data
        assert not watch.changing(spec.tensor(last), now_s), f"at {now_s:.1f} s"
    assert last is not None
    assert watch.changing(spec.tensor(last // 3), now_s + 0.1)
