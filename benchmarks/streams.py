"""Streams that drift, made of real recordings; the labels are the model's own on what it saw."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from benchmarks.workloads import BenchWorkload, data_folder, image_workloads
from converters.quiet import quiet_stderr
from infi_edge.archive import write_atomically
from infi_edge.capture.recordings import open_recording
from infi_edge.capture.replay import Recording
from infi_edge.capture.signals import read_mono
from infi_edge.interpreter import Network
from infi_edge.labels import cache_folder, label
from infi_edge.preprocess import AudioSpec, ImageSpec, Spec
from infi_edge.replay import Truth, make_truth
from infi_edge.types import Action, Result, Sample
from infi_edge.workload import Workload, WorkloadSpec, find_labels, model_identity

CHANGES_VERSION = 1
"""Raised when a change paints differently, so that labels of the old pictures die."""

Change = Callable[[np.ndarray, int], np.ndarray]
"""(BGR uint8 frame (H, W, 3), its index) -> the frame as the camera would give it then."""


@dataclass(frozen=True, slots=True)
class Stream:
    """tensors: (N, *spec.shape). truth: over the same N. changes: the first inputs after a change,
    in order; empty for a plain clip."""

    name: str
    truth: Truth
    tensors: np.ndarray
    spec: Spec
    changes: tuple[int, ...] = ()
    modality: str = "image"

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def duration_s(self) -> float:
        """Seconds that the stream takes."""
        times = self.truth.times_s
        return float(times[-1] - times[0]) * len(times) / max(len(times) - 1, 1)


@dataclass(frozen=True, slots=True)
class Planned:
    """A stream that is made when it is needed. files: what it is made of."""

    name: str
    files: tuple[Path, ...]
    build: Callable[[], Stream]

    @property
    def missing(self) -> str | None:
        """Which file is not here, or None."""
        return next((str(path) for path in self.files if not path.exists()), None)


def dusk(frame: np.ndarray, index: int) -> np.ndarray:
    """The light fades: gain 0.45, gamma 1.3."""
    levels = np.arange(256) / 255.0
    return cv2.LUT(frame, np.rint(255 * 0.45 * levels**1.3).astype(np.uint8))


def infrared(frame: np.ndarray, index: int) -> np.ndarray:
    """The camera switches to infrared: no colour, the picture lifted and flatter."""
    grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
    lifted = cv2.addWeighted(grey, 0.7, grey, 0.0, 60.0)
    return cv2.cvtColor(lifted, cv2.COLOR_GRAY2BGR)


def noise(frame: np.ndarray, index: int) -> np.ndarray:
    """The sensor's gain goes up: Gaussian noise of 20 grey levels, another one in every frame."""
    grains = np.random.default_rng(index).normal(0.0, 20.0, frame.shape)
    return np.clip(frame + grains, 0, 255).astype(np.uint8)


def framing(frame: np.ndarray, index: int) -> np.ndarray:
    """The camera is knocked: zoomed in by a quarter, shifted by a tenth of the width."""
    height, width = frame.shape[:2]
    move = np.array([[1.25, 0.0, -0.225 * width], [0.0, 1.25, -0.125 * height]])
    return cv2.warpAffine(frame, move, (width, height), borderMode=cv2.BORDER_REPLICATE)


CHANGES: dict[str, Change] = {
    "dusk": dusk,
    "infrared": infrared,
    "noise": noise,
    "framing": framing,
}


class Changed:
    """A recording of which every picture is changed."""

    def __init__(self, base: Recording, name: str, change: Change) -> None:
        self.name, self.rate_hz = f"{base.name} ({name})", base.rate_hz
        self._base, self._key, self._change = base, f"{name} {CHANGES_VERSION}", change

    @property
    def count(self) -> int:
        """As many as the recording has."""
        return self._base.count

    def samples(self, first: int = 0, last: int | None = None) -> Iterator[Sample]:
        """Yield inputs first..last-1."""
        for sample in self._base.samples(first, last):
            yield replace(sample, data=self._change(sample.data, sample.index))

    def content_hash(self) -> str:
        """Of the recording and the change."""
        return hashlib.sha256(f"{self._base.content_hash()} {self._key}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Part:
    """Inputs first..last-1 of a recording."""

    recording: Recording
    first: int
    last: int


def join(
    name: str, bench: BenchWorkload, parts: Sequence[Part], changes: tuple[int, ...] = ()
) -> Stream:
    """Put parts after one another in one stream; the model labels each once (`labels.label`)."""
    spec = ImageSpec()
    labels = find_labels(str(bench.model), None)
    workload = Workload(str(bench.model), bench.spec(labels))
    identity = model_identity(str(bench.model))
    values, times, tensors = [], [], []
    now_s = 0.0
    for part in parts:
        values += label(part.recording, workload, identity, part.first, part.last)
        count, step_s = part.last - part.first, 1.0 / part.recording.rate_hz
        times.append(now_s + np.arange(count) * step_s)
        now_s += count * step_s
        samples = part.recording.samples(part.first, part.last)
        tensors.append(np.concatenate([spec.tensor(sample.data) for sample in samples]))
    truth = make_truth(values, np.concatenate(times), workload.task, workload.same)
    return Stream(name, truth, np.concatenate(tensors), spec, changes)


def clip_stream(bench: BenchWorkload) -> Stream:
    """A clip as it is."""
    recording = open_recording(str(bench.clip))
    return join(bench.name, bench, [Part(recording, 0, recording.count)])


def changed_stream(bench: BenchWorkload, name: str) -> Stream:
    """A clip of which the second half is changed."""
    base = open_recording(str(bench.clip))
    half = base.count // 2
    changed = Changed(base, name, CHANGES[name])
    parts = [Part(base, 0, half), Part(changed, half, base.count)]
    return join(f"{bench.name}, then {name}", bench, parts, (half,))


def joined_stream(bench: BenchWorkload, clips: Sequence[Path], name: str) -> Stream:
    """A clip, then others; the model and the task of the first on all of them."""
    recordings = [open_recording(str(path)) for path in (bench.clip, *clips)]
    parts = [Part(recording, 0, recording.count) for recording in recordings]
    return join(name, bench, parts, (recordings[0].count,))


def drift_streams() -> list[Planned]:
    """Every stream of the section, unmade."""
    clips = {bench.name: bench for bench in image_workloads()}
    person, crossing, highway = clips["person"], clips["intersection"], clips["highway"]
    planned = [
        Planned(
            f"{bench.name}, then {name}",
            (bench.clip, bench.model),
            lambda bench=bench, name=name: changed_stream(bench, name),  # type: ignore[misc]
        )
        for bench, name in itertools.product((person, crossing), CHANGES)
    ]
    signs = sorted((data_folder() / "signs").glob("*.mkv")) or [data_folder() / "signs"]
    for bench, then, others in (
        (crossing, "highway", [highway.clip]),
        (highway, "intersection", [crossing.clip]),
        (person, "signs", signs),
    ):
        name = f"{bench.name}, then {then}"
        planned.append(
            Planned(
                name,
                (bench.clip, *others, bench.model),
                lambda bench=bench, others=others, name=name: joined_stream(  # type: ignore[misc]
                    bench, others, name
                ),
            )
        )
    planned.append(Planned("speakers", (spoken_digits(),), speaker_stream))
    return planned


SPEAKERS = ("george", "jackson", "lucas", "theo")
COMMANDS = dict(zip("012345", ("zero", "one", "two", "three", "four", "five"), strict=True))
LEARNED_TAKES, HEARD_TAKES = range(5, 25), range(25, 50)
"""Takes that the keyword model is trained on, and those of the stream."""
UTTERANCES = 60
"""That a speaker says before the next one has the word."""
HEARING = AudioSpec(rate_hz=8000, window_ms=1000, hop_ms=500)
MODEL_HEARING = AudioSpec(rate_hz=8000, window_ms=1000, step_ms=15, bands=48)
ROOM = 0.002
"""The room's noise, of full scale."""


def spoken_digits() -> Path:
    """The recordings DIGIT_SPEAKER_TAKE.wav (Free Spoken Digit Dataset)."""
    return data_folder() / "spoken-digits" / "recordings"


def _says(digit: str, speaker: str, take: int) -> np.ndarray:
    return read_mono(spoken_digits() / f"{digit}_{speaker}_{take}.wav", HEARING.rate_hz)


def speaker_stream() -> Stream:
    """Four people take turns to say digits, with pauses, two rounds; a keyword model listens."""
    pcm, turns = _conversation()
    windows = np.lib.stride_tricks.sliding_window_view(pcm, HEARING.window)[:: HEARING.hop]
    workload = Workload(
        _keyword_model(), WorkloadSpec("value:" + ",".join(COMMANDS.values()), modality="audio")
    )
    values = [workload(np.array(window)) for window in windows]
    times_s = np.arange(len(windows)) * HEARING.hop / HEARING.rate_hz
    truth = make_truth(values, times_s, workload.task, workload.same)
    tensors = np.concatenate([HEARING.tensor(np.array(window)) for window in windows])
    changes = tuple(place // HEARING.hop for place in turns)
    return Stream("speakers", truth, tensors, HEARING, changes, "audio")


def _conversation() -> tuple[np.ndarray, list[int]]:
    """The sound, float32, and the samples at which another one begins to speak."""
    rng = np.random.default_rng(0)
    takes = {s: rng.permutation([(d, t) for d in range(10) for t in HEARD_TAKES]) for s in SPEAKERS}
    pieces: list[np.ndarray] = []
    turns: list[int] = []
    length = 0
    for turn, speaker in enumerate(SPEAKERS * 2):
        turns.append(length)
        first = turn // len(SPEAKERS) * UTTERANCES
        for digit, take in takes[speaker][first : first + UTTERANCES]:
            pause = np.zeros(int(rng.exponential(0.6) * HEARING.rate_hz), np.float32)
            pieces += [pause, _says(str(digit), speaker, int(take))]
            length += len(pieces[-2]) + len(pieces[-1])
    sound = np.concatenate(pieces)
    heard: np.ndarray = (sound + rng.normal(0, ROOM, len(sound))).astype(np.float32)
    return np.clip(heard, -1.0, 1.0), turns[1:]


def _keyword_model() -> Callable[[np.ndarray], str]:
    """A small convolutional network over a log-mel picture, trained once on other takes and kept:
    PCM float32 (8000,) -> a command, or "" for another word, a part of one, or silence."""
    key = hashlib.sha256(repr((MODEL_HEARING, COMMANDS, LEARNED_TAKES, 1)).encode()).hexdigest()
    path = cache_folder() / "models" / f"keywords-{key[:16]}.tflite"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _train_keywords(*_spoken_examples()))
    network, answers = Network(path), ["", *COMMANDS.values()]

    def listen(pcm: np.ndarray) -> str:
        levels = MODEL_HEARING.tensor(pcm).astype(np.float32) / np.float32(255)
        return answers[int(network.run(levels)[0].argmax())]

    return listen


def _spoken_examples() -> tuple[np.ndarray, np.ndarray]:
    """Log-mel pictures of words anywhere in their window, and which answer each should get."""
    rng = np.random.default_rng(1)
    order, pictures, classes = list(COMMANDS), [], []
    for digit, speaker, take in itertools.product("0123456789", SPEAKERS, LEARNED_TAKES):
        word = _says(digit, speaker, take)
        for _ in range(6 if digit in COMMANDS else 2):
            window = rng.normal(0, ROOM, HEARING.window).astype(np.float32)
            place = int(rng.integers(-len(word), HEARING.window))
            first, last = max(place, 0), min(place + len(word), HEARING.window)
            window[first:last] += word[first - place : last - place] * rng.uniform(0.6, 1.4)
            whole = (last - first) > 0.75 * len(word)
            pictures.append(MODEL_HEARING.tensor(np.clip(window, -1, 1)))
            classes.append(order.index(digit) + 1 if whole and digit in COMMANDS else 0)
    return np.concatenate(pictures).astype(np.float32) / np.float32(255), np.array(classes)


def _train_keywords(pictures: np.ndarray, classes: np.ndarray) -> bytes:
    """Return the .tflite (float16)."""
    with quiet_stderr():
        import keras
        from keras import layers

        from converters.quantize import to_tflite

    keras.utils.set_random_seed(0)
    inputs = layers.Input(pictures.shape[1:])
    hidden = inputs
    for filters in (16, 32, 64):
        hidden = layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False)(hidden)
        hidden = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(hidden))
    hidden = layers.Dropout(0.3)(layers.GlobalMaxPooling2D()(hidden))
    model = keras.Model(inputs, layers.Dense(len(COMMANDS) + 1, "softmax")(hidden))
    model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy")
    model.fit(pictures, classes, batch_size=64, epochs=12, verbose=0)
    return to_tflite(model, "float16", [])


class Adversary:
    """A world that changes exactly when nobody looks: its own model.

    The answer to an input differs from the one before if and only if the gate filtered the one
    before. It is fixed before the gate sees the input, so a random audit can find it out; the
    pictures (uint8 (24, 32, 3), a still scene with a little noise) say nothing about it.
    """

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._scene = self._rng.integers(40, 200, (24, 32, 3))
        self.value = 0

    def __call__(self, picture: np.ndarray) -> int:
        """What the model answers."""
        return self.value

    def picture(self) -> np.ndarray:
        """The next input."""
        grains = self._rng.normal(0.0, 2.0, self._scene.shape)
        return np.clip(self._scene + grains, 0, 255).astype(np.uint8)

    def seen(self, result: Result) -> None:
        """Take notice of what the gate did with it."""
        self.value += result.action is not Action.INFER


def play(
    adversary: Adversary,
    gate: Callable[[np.ndarray, float], Result],
    count: int,
    pause_s: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Run `count` inputs, by their times ten a second, through a live gate around the adversary.

    pause_s: real time between them.
    Returns filtered, right: bool (count,).
    """
    filtered, right = np.zeros(count, bool), np.zeros(count, bool)
    for i in range(count):
        result = gate(adversary.picture(), i / 10.0)
        filtered[i] = result.action is not Action.INFER
        right[i] = result.value == adversary.value
        adversary.seen(result)
        time.sleep(pause_s)
    return filtered, right
