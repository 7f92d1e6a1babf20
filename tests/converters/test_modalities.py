"""Each modality from a recording to a gate, by the commands as a user types them.

A filter is trained on the first part of a made-up recording and judged on the rest.
"""

from __future__ import annotations

import itertools
import json
import wave
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from infi_edge.bundle import read_bundle
from infi_edge.capture.recordings import open_recording
from infi_edge.filter import load_filter
from tests.conftest import Command

COUNT, EPISODE = 240, 12
TRAINED = 0.6
UNSEEN = COUNT - round(TRAINED * COUNT)

MODELS = '''
import numpy as np


def square(frame):
    """Whether the bright square is there."""
    return bool((frame[..., 1] > 180).mean() > 0.01)


def moving(clip):
    """Whether the square moves."""
    return bool(np.abs(clip[-1].astype(int) - clip[0]).mean() > 4)


def tone(window):
    """Whether there is a tone in the noise."""
    spectrum = np.abs(np.fft.rfft(window))
    return bool(spectrum.max() > 12 * np.median(spectrum))


def gait(window):
    return "walking" if float(np.nanstd(window[:, 2])) > 1.0 else "resting"


def kind(line):
    return "alarm" if "fail" in line.lower() else "info"


def bump(feature_map):
    """Whether three channels have a bump in the middle."""
    return bool(feature_map[2:6, 2:6, 3:6].mean() > 0.5)
'''


@dataclass(frozen=True)
class Stream:
    """A recording, its model and task, and how the filter reads it."""

    recording: str
    model: str
    task: str
    preprocess: tuple[str, ...]


STREAMS = {
    "image": Stream("square.avi", "square", "value", ("width=32", "height=24")),
    "video": Stream("clip.avi", "moving", "value", ("frames=4", "hop=2", "width=32", "height=24")),
    "audio": Stream("tone.wav", "tone", "value", ("window_ms=200", "hop_ms=100")),
    "motion": Stream("walk.csv", "gait", "value:walking", ("window_ms=500", "hop_ms=200")),
    "text": Stream("log.txt", "kind", "value:alarm", ("length=16", "buckets=512")),
    "features": Stream("maps.npy", "bump", "value", ()),
}


def happens(input_: np.ndarray | int) -> np.ndarray:
    """Whether what the model looks for is in an input, by its number."""
    return np.asarray(input_) // EPISODE % 2 == 1


def _write_videos(folder: Path, rng: np.random.Generator) -> None:
    background = cv2.GaussianBlur(rng.integers(30, 90, (120, 160, 3), np.uint8), (15, 15), 5)
    for name, frames in (("square", 1), ("clip", 2)):
        codec = cv2.VideoWriter_fourcc(*"MJPG")
        video = cv2.VideoWriter(str(folder / f"{name}.avi"), codec, 20, (160, 120))
        x = 40
        for i in range(frames * COUNT + 2 * (frames - 1)):
            frame = background.copy()
            if happens(i // frames):
                x = 20 + (x + 5) % 100
            if name == "clip" or happens(i):
                cv2.rectangle(frame, (x, 45), (x + 30, 75), (230, 230, 230), -1)
            noisy = frame + rng.normal(0, 3, frame.shape)
            video.write(np.clip(noisy, 0, 255).astype(np.uint8))
        video.release()


def _write_tone(folder: Path, rng: np.random.Generator) -> None:
    i = np.arange((COUNT + 1) * 800)
    pcm = rng.normal(0, 0.02, len(i)) + happens(i // 800) * 0.2 * np.sin(2 * np.pi * 0.075 * i)
    with wave.open(str(folder / "tone.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes((np.clip(pcm, -1, 1) * 32767).astype("<i2").tobytes())


def _write_walk(folder: Path, rng: np.random.Generator) -> None:
    i = np.arange(COUNT * 10 + 15)
    time_s, walks = i / 50, happens(i // 10)
    signal = rng.normal(0, 0.15, (len(i), 3))
    signal[:, 2] += 9.81 + walks * 3 * np.sin(2 * np.pi * 2 * time_s)
    signal[:, 0] += walks * 1.5 * np.sin(2 * np.pi * time_s + 0.7)
    signal[rng.random(len(i)) < 0.02, 1] = np.nan
    table = np.column_stack([time_s, signal])
    np.savetxt(folder / "walk.csv", table, "%.4f", ",", header="time_s,ax,ay,az", comments="")


def _write_lines(folder: Path, rng: np.random.Generator) -> None:
    bad = ("disk {} failed on rack {}", "supply {} reports a failure", "backup of {} fails again")
    good = ("user {} logged in from {}", "backup of {} took {} minutes", "disk {} is {} % full")
    lines = (
        str(rng.choice(bad if happens(i) else good)).format(*rng.integers(0, 99, 2))
        for i in range(COUNT)
    )
    (folder / "log.txt").write_text("\n".join(lines) + "\n")


def _write_maps(folder: Path, rng: np.random.Generator) -> None:
    maps = rng.normal(0, 1, (COUNT, 8, 8, 16)).astype(np.float32)
    maps[happens(np.arange(COUNT)), 2:6, 2:6, 3:6] += 1.5
    np.save(folder / "maps.npy", maps)


@pytest.fixture(scope="session")
def streams(toy: Path) -> Path:
    """Recordings of 240 inputs each, in the folder that the commands run in, and their models."""
    rng = np.random.default_rng(0)
    (toy / "modal_models.py").write_text(MODELS)
    for write in (_write_videos, _write_tone, _write_walk, _write_lines, _write_maps):
        write(toy, rng)
    return toy


def train(command: Command, modality: str, bundle: Path, *options: str) -> str:
    """Train on the first part by the real command; return what it told."""
    stream = STREAMS[modality]
    settings = [word for text in stream.preprocess for word in ("--preprocess", text)]
    done = command(
        "infi-convert",
        *("train", stream.recording, "--modality", modality, *settings),
        *("--model", f"modal_models:{stream.model}", "--task", stream.task),
        *("--end", str(TRAINED), "--target-accuracy", "0.8", "-o", str(bundle), *options),
    )
    assert done.returncode == 0, done.stderr
    return done.stderr + done.stdout


def on_the_rest(modality: str) -> tuple[str, ...]:
    stream = STREAMS[modality]
    place = ("--source", stream.recording, "--start", str(TRAINED))
    return (*place, "--model", f"modal_models:{stream.model}")


def evaluated(command: Command, modality: str, bundle: Path) -> dict[str, float]:
    """What the real command says the filter saves on the part it never saw."""
    arguments = ("evaluate", str(bundle), *on_the_rest(modality), "--json", "--timed-inputs", "20")
    done = command("infi-edge", *arguments)
    assert done.returncode == 0, done.stderr
    report: dict[str, float] = json.loads(done.stdout)
    assert report["inputs"] == UNSEEN
    return report


LIGHTS = [
    ("image", "skip"),
    ("video", "reuse"),
    ("audio", "both"),
    ("motion", "both"),
    ("text", "skip"),
    ("features", "reuse"),
]
"""Each modality once; every other combination is as slow, and run with the slow tests."""


@pytest.mark.parametrize(
    ("modality", "mechanism"),
    [
        pytest.param(*pair, marks=() if pair in LIGHTS else pytest.mark.slow)
        for pair in itertools.product(STREAMS, ("skip", "reuse", "both"))
    ],
)
def test_a_light_filter_saves_inferences_on_a_part_it_never_saw(
    command: Command, streams: Path, tmp_path: Path, modality: str, mechanism: str
) -> None:
    bundle = tmp_path / "light.infi"
    train(command, modality, bundle, "--kind", "light", "--mechanism", mechanism)
    manifest = read_bundle(bundle).manifest
    assert (manifest.modality, manifest.mechanism) == (modality, mechanism)
    report = evaluated(command, modality, bundle)
    assert report["accuracy"] >= 0.8
    assert report["filtering_rate"] > 0.2
    did = {name for name in ("skipped", "reused") if report[name]}
    assert did <= {"skip": {"skipped"}, "reuse": {"reused"}}.get(mechanism, {"skipped", "reused"})


def check_network(command: Command, modality: str, bundle_path: Path, *options: str) -> None:
    """Train a network; check that its bundle loads, runs, and carries its receipt."""
    opversions = pytest.importorskip("converters.opversions", exc_type=ImportError)
    train(command, modality, bundle_path, "--kind", "net", "--allow-pass-through", *options)
    bundle = read_bundle(bundle_path)
    manifest = bundle.manifest
    networks = {name: c for name, c in bundle.members.items() if name.endswith(".tflite")}
    assert set(networks) == set(bundle.members) >= {"filter.tflite"}
    assert [op for content in networks.values() for op in opversions.too_new(content)] == []
    for head in ("skip", "reuse"):
        if manifest.mechanism in (head, "both"):
            assert float(manifest.parity[f"{head}_agreement"]) > 0.9
    done = command(
        "infi-edge", "run", "--fast", "--filter", str(bundle_path), *on_the_rest(modality)
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["index"] for line in lines] == list(range(COUNT - UNSEEN, COUNT))
    assert "filter error" not in done.stderr
    right = np.mean([bool(line["value"]) == happens(line["index"]) for line in lines])
    assert right > 0.7  # a window on the edge of an episode is either
    input_filter = load_filter(bundle_path)
    stream = open_recording(str(STREAMS[modality].recording), None, input_filter.spec)
    score, embedding = input_filter(next(stream.samples()).data)
    assert embedding.dtype == np.uint8
    assert (score is None) == (manifest.mechanism == "reuse")
    assert "FULLY_CONNECTED" in str(manifest.parity["operators"])


@pytest.fixture
def here(streams: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process in the folder of the recordings, as the commands are."""
    monkeypatch.chdir(streams)


NETS = [
    ("image", "--mechanism", "both"),
    ("motion", "--mechanism", "both"),
    ("text", "--mechanism", "both", "--network", "recurrent"),
    ("features", "--mechanism", "both", "--classifier", "mlp", "--precision", "float32"),
]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("choice", NETS, ids=lambda choice: "-".join(choice[::2]))
def test_a_network_is_trained_quantized_and_run(
    command: Command, tmp_path: Path, choice: tuple[str, ...]
) -> None:
    modality, *options = choice
    check_network(command, modality, tmp_path / "net.infi", "--steps", "60", *options)


@pytest.mark.slow
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "choice",
    [
        ("image", "--network", "infi", "--precision", "float16", "--preprocess", "width=24"),
        ("text", "--network", "small", "--mechanism", "skip"),
        ("video", "--mechanism", "both"),
        ("audio", "--mechanism", "both", "--precision", "float16"),
        ("motion", "--mechanism", "reuse", "--network", "recurrent"),
    ],
    ids=lambda choice: "-".join(choice[::2]),
)
def test_more_networks_are_trained_quantized_and_run(
    command: Command, tmp_path: Path, choice: tuple[str, ...]
) -> None:
    modality, *options = choice
    check_network(command, modality, tmp_path / "net.infi", "--steps", "40", *options)
