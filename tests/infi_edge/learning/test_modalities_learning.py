"""Every modality learns from its own cheap features, on streams with some structure in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest

from infi_edge.gate import Gate
from infi_edge.learning.learner import Learner
from infi_edge.learning.settings import LearnSettings
from infi_edge.learning.start import from_nothing
from infi_edge.learning.worker import AtOnce
from infi_edge.preprocess import (
    AudioSpec,
    FeaturesSpec,
    ImageSpec,
    MotionSpec,
    Spec,
    TextSpec,
    VideoSpec,
)
from infi_edge.tasks import make_task, same_exact
from infi_edge.types import Action

SPECS: dict[str, Spec] = {
    "image": ImageSpec(64, 48),
    "video": VideoSpec(frames=4, hop=2, width=48, height=36),
    "audio": AudioSpec(rate_hz=8000, window_ms=500, hop_ms=250),
    "text": TextSpec(length=16),
    "motion": MotionSpec(channels=("x", "y", "z"), window=50, hop=25, rate_hz=50.0),
    "features": FeaturesSpec(size=(8, 8, 4)),
}
Stream = Iterator[tuple[Any, Any]]


def spells(rng: np.random.Generator, count: int, states: int, length: int) -> Iterator[int]:
    """States that hold for about `length` inputs."""
    state = 0
    for _ in range(count):
        if rng.random() < 1 / length:
            state = int(rng.integers(0, states))
        yield state


def room(rng: np.random.Generator, height: int = 60, width: int = 80) -> np.ndarray:
    background = rng.integers(40, 120, (height, width, 3)).astype(np.uint8)
    return cv2.GaussianBlur(background, (9, 9), 3)


def seen(rng: np.random.Generator, background: np.ndarray, x: int | None) -> np.ndarray:
    frame = background.astype(np.float64)
    if x is not None:
        frame[20:45, x : x + 15] = 210
    return np.clip(frame + rng.normal(0, 3, frame.shape), 0, 255).astype(np.uint8)


def image(rng: np.random.Generator, count: int) -> Stream:
    """Somebody comes and goes, and walks about while there; is there anybody?"""
    background, x = room(rng), 30
    for state in spells(rng, count, 2, 50):
        x = int(np.clip(x + rng.integers(-3, 4), 5, 60))
        yield seen(rng, background, x if state else None), bool(state)


def video(rng: np.random.Generator, count: int) -> Stream:
    """Somebody stands still or walks."""
    background, x = room(rng), 20
    for state in spells(rng, count, 2, 50):
        frames = []
        for _ in range(4):
            x = (x + 4) % 60 if state else x
            frames.append(seen(rng, background, x))
        yield frames, "walks" if state else "stands"


def audio(rng: np.random.Generator, count: int) -> Stream:
    """Silence, a low tone, a high one."""
    times_s = np.arange(4000) / 8000
    for state in spells(rng, count, 3, 40):
        sound = rng.normal(0, 0.003, 4000)
        if state:
            hertz = (0, 440, 2200)[state] * rng.uniform(0.97, 1.03)
            sound += 0.3 * np.sin(2 * np.pi * hertz * times_s + rng.uniform(0, 6))
        yield sound.astype(np.float32), ("", "low", "high")[state]


def text(rng: np.random.Generator, count: int) -> Stream:
    """A log that says much the same for a while."""
    lines = (
        "door of room {n} is closed, all quiet",
        "temperature {n} over limit, pump started",
        "login failed for user number {n}",
    )
    for state in spells(rng, count, 3, 30):
        yield lines[state].format(n=int(rng.integers(0, 9))), ("quiet", "hot", "attack")[state]


def motion(rng: np.random.Generator, count: int) -> Stream:
    """Sitting and walking."""
    times_s = np.arange(50) / 50
    for state in spells(rng, count, 2, 40):
        window = rng.normal(0, 0.05, (50, 3))
        window[:, 2] += 1.0
        if state:
            window[:, 0] += np.sin(2 * np.pi * 2 * times_s + rng.uniform(0, 6))
        yield window, "walking" if state else "sitting"


def features(rng: np.random.Generator, count: int) -> Stream:
    """A map of which one channel lights up in one corner."""
    for state in spells(rng, count, 3, 40):
        found = rng.normal(0, 0.1, (8, 8, 4))
        if state:
            found[:4, :4, state] += 1.0
        yield found.astype(np.float32), state


STREAMS = {
    "image": image,
    "video": video,
    "audio": audio,
    "text": text,
    "motion": motion,
    "features": features,
}


def gate_for(modality: str, target: float, seed: int, answer: list[Any]) -> Gate:
    spec = SPECS[modality]
    learner = Learner(
        from_nothing(spec),
        make_task("value", ()),
        same_exact,
        target,
        AtOnce(),
        LearnSettings(seed=seed),
    )
    return Gate(
        infer=lambda data: answer[0],
        task="value",
        target_accuracy=target,
        modality=modality,
        preprocess=spec,
        learn=learner,
    )


@pytest.mark.slow
@pytest.mark.parametrize("modality", STREAMS)
@pytest.mark.parametrize(("target", "least"), [(0.9, 0.6), (0.95, 0.5)])
def test_it_filters_most_of_a_stream_with_structure_at_its_target(
    modality: str, target: float, least: float
) -> None:
    for seed in range(2):
        answer: list[Any] = [None]
        gate = gate_for(modality, target, seed, answer)
        right, inferred = [], []
        for i, (data, value) in enumerate(STREAMS[modality](np.random.default_rng(seed), 800)):
            answer[0] = value
            result = gate(data, i / 4)
            right.append(result.value == value)
            inferred.append(result.action is Action.INFER)
        assert gate.stats["filter_error"] == gate.stats["learn_error"] == 0
        assert np.mean(right) >= target, seed
        assert 1 - np.mean(inferred[200:]) >= least, seed


@pytest.mark.parametrize("modality", STREAMS)
def test_a_few_inputs_are_enough_to_begin(modality: str) -> None:
    answer: list[Any] = [None]
    gate = gate_for(modality, 0.9, 0, answer)
    stream = list(STREAMS[modality](np.random.default_rng(3), 8))
    for i in range(80):
        data, _ = stream[i % 8]
        answer[0] = "the same"
        assert gate(data, i / 4).value == "the same"
    assert gate.stats["reuse"] > 10
    assert gate.learner is not None
    assert gate.learner.memory.sample().features.shape[1] == SPECS[modality].feature_count


@pytest.mark.slow
@pytest.mark.parametrize("modality", STREAMS)
def test_with_no_structure_it_hardly_filters_and_holds_its_target(modality: str) -> None:
    """The answer is another with each input, whatever is seen."""
    answer: list[Any] = [0]
    gate = gate_for(modality, 0.9, 0, answer)
    right = []
    for i, (data, _) in enumerate(STREAMS[modality](np.random.default_rng(1), 150)):
        answer[0] = i
        right.append(gate(data, i / 4).value == i)
    assert np.mean(right) >= 0.9
