"""Bad sound, motion, text, clips and arrays get one clear sentence, exit code 2, no file."""

from __future__ import annotations

import subprocess
import wave
from pathlib import Path

import cv2
import numpy as np
import pytest

from infi_edge.bundle import read_bundle
from tests.conftest import Command
from tests.test_bad_input import refused

MODELS = """
import numpy as np


def loud(window):
    return bool(np.abs(np.asarray(window, float)).mean() > 0.05)


def moves(window):
    return bool(np.nanstd(np.asarray(window, float)[:, 0]) > 0.5)


def angry(line):
    return "!" in line


def high(array):
    return bool(np.nanmean(np.asarray(array, float)) > 0)


def never(data):
    return False


def fails(data):
    raise RuntimeError("no power")


def odd(data):
    return {1, 2}
"""

TASK = ("--task", "value", "--target-accuracy", "0.8", "--kind", "light")
MOTION = ("--preprocess", "window=20", "--preprocess", "hop=10")


def write_wav(path: Path, seconds: float = 60.0, rate_hz: int = 8000, channels: int = 1) -> Path:
    """Noise that is loud in every other stretch of five seconds."""
    i = np.arange(int(seconds * rate_hz))
    level = np.where(i // (5 * rate_hz) % 2 == 1, 6000, 200)
    noise = np.random.default_rng(0).normal(0, 1, (len(i), channels)) * level[:, None]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(np.clip(noise, -32768, 32767).astype("<i2").tobytes())
    return path


def write_float_wav(path: Path, bad: float) -> None:
    samples = np.zeros(9000, "<f4")
    samples[4321] = bad
    body = samples.tobytes()
    form = np.array([3, 1], "<u2").tobytes() + np.array([8000, 32000], "<u4").tobytes()
    form += np.array([4, 32], "<u2").tobytes()
    chunks = b"fmt " + np.uint32(16).tobytes() + form + b"data" + np.uint32(len(body)).tobytes()
    size = np.uint32(4 + len(chunks) + len(body)).tobytes()
    path.write_bytes(b"RIFF" + size + b"WAVE" + chunks + body)


def walk(count: int = 1500) -> np.ndarray:
    """Two channels; the first moves in every other stretch of 150 samples."""
    i = np.arange(count)
    rng = np.random.default_rng(0)
    x = rng.normal(0, 0.1, count) + (i // 150 % 2) * 2 * np.sin(i / 2)
    return np.column_stack([x, rng.normal(9.8, 0.1, count)])


def write_csv(path: Path, table: np.ndarray, header: str = "x,y") -> Path:
    np.savetxt(path, table, "%.5f", ",", header=header, comments="")
    return path


@pytest.fixture(scope="module")
def bad(toy: Path) -> Path:
    """A folder, beside the commands' own, of recordings with something wrong in each."""
    folder = toy / "bad"
    folder.mkdir()
    (toy / "bad_models.py").write_text(MODELS)
    write_wav(folder / "stereo.wav", channels=2)
    write_wav(folder / "fast.wav", 1.0, 96000)
    write_wav(folder / "short.wav", 5.0)
    good = write_wav(folder / "good.wav").read_bytes()
    (folder / "cut.wav").write_bytes(good[: len(good) // 2])
    (folder / "noise.wav").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "empty.wav").write_bytes(good[:40] + b"\0\0\0\0")
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        write_float_wav(folder / f"{name}.wav", value)
        table = walk()
        table[700, 1] = value
        np.save(folder / f"{name}.npy", table.reshape(-1, 10, 2))
        write_csv(folder / f"{name}.csv", table)
    (folder / "mixed").mkdir()
    write_wav(folder / "mixed" / "a.wav", 9.0)
    write_wav(folder / "mixed" / "b.wav", 9.0, 16000)
    write_csv(folder / "good.csv", walk())
    write_csv(folder / "still.csv", walk() * [0, 0])
    write_csv(folder / "single.csv", walk() * [1, 0])
    lines = (folder / "good.csv").read_text().splitlines()
    lines[41] = lines[41].replace(",", ",~")
    (folder / "cell.csv").write_text("\n".join(lines))
    lines[41] = "1"
    (folder / "row.csv").write_text("\n".join(lines))
    (folder / "latin.txt").write_bytes(b"fine\nfine!\nGr\xfc\xdfe\n" * 40)
    (folder / "lines.txt").write_text("fine\nno!\n" * 100)
    (folder / "void.txt").write_text("")
    np.savez(folder / "pickled.npz", inputs=np.array([{"a": 1}], object))
    np.savez(folder / "many.npz", a=np.zeros(3), b=np.zeros(3))
    np.save(folder / "words.npy", np.array(["a", "b"]))
    np.save(folder / "same.npy", np.ones((200, 4, 4), np.float32))
    np.save(folder / "ids.npy", np.arange(4500).reshape(-1, 10))
    codec = cv2.VideoWriter_fourcc(*"MJPG")
    video = cv2.VideoWriter(str(folder / "brief.avi"), codec, 10, (64, 48))
    for _ in range(5):
        video.write(np.zeros((48, 64, 3), np.uint8))
    video.release()
    return toy


@pytest.mark.parametrize(
    ("recording", "model", "options", "words"),
    [
        ("stereo.wav", "loud", (), ("stereo.wav", "2 channels", "mono")),
        ("fast.wav", "loud", (), ("fast.wav", "96000 Hz", "resample")),
        ("good.wav", "loud", ("--preprocess", "rate_hz=16000"), ("good.wav", "8000", "16000")),
        ("mixed", "loud", (), ("b.wav", "16000 Hz", "8000 Hz")),
        ("short.wav", "loud", (), ("too few",)),
        ("cut.wav", "loud", (), ("cut.wav", "truncated", "copy it again")),
        ("noise.wav", "loud", (), ("noise.wav", "not a WAV")),
        ("empty.wav", "loud", (), ("empty.wav", "no sample")),
        ("nan.wav", "loud", (), ("nan.wav", "nan", "4321")),
        ("inf.wav", "loud", (), ("inf.wav", "inf", "4321")),
        ("good.wav", "never", (), ("hardly ever changes", "record")),
        ("good.wav", "loud", ("--preprocess", "bands=3"), ("bands: 3",)),
        ("good.wav", "loud", ("--preprocess", "transform=mfcc"), ("mfcc", "logmel")),
        ("good.wav", "loud", ("--modality", "motion"), ("good.wav", "UTF-8")),
        ("inf.csv", "moves", MOTION, ("inf.csv, line 702", "column y")),
        ("cell.csv", "moves", MOTION, ("cell.csv, line 42", "column y", "decimal number")),
        ("row.csv", "moves", MOTION, ("row.csv, line 42", "1 cells", "2 are needed")),
        ("still.csv", "moves", MOTION, ("still.csv", "constant")),
        ("good.csv", "never", MOTION, ("hardly any", "hardly ever changes")),
        ("good.csv", "moves", ("--preprocess", "window_ms=200"), ("window_ms", "--rate-hz")),
        ("good.csv", "moves", ("--preprocess", "window=99999"), ("shorter", "99999")),
        ("good.csv", "loud", ("--modality", "audio"), ("good.csv", "not a WAV")),
        ("good.csv", "moves", (*MOTION, "--task", "label:walking"), ("label", "--labels")),
        ("good.csv", "moves", (*MOTION, "--task", "label"), ("label", "--task")),
        ("good.csv", "moves", (*MOTION, "--labels", "bad/none.txt"), ("none.txt",)),
        ("good.csv", "moves", (*MOTION, "--labels", "bad/latin.txt"), ("latin.txt",)),
        ("good.csv", "fails", MOTION, ("the model failed", "no power")),
        ("good.csv", "odd", MOTION, ("JSON value", "set")),
        ("inf.npy", "moves", ("--modality", "motion"), ("inf.npy", "infinite")),
        ("latin.txt", "angry", (), ("latin.txt, line 3", "UTF-8", "0xfc")),
        ("void.txt", "angry", (), ("void.txt", "empty")),
        ("lines.txt", "never", (), ("hardly ever changes",)),
        ("pickled.npz", "high", (), ("pickled.npz", "never loaded")),
        ("many.npz", "high", (), ("many.npz", "2 arrays", "inputs")),
        ("words.npy", "high", (), ("words.npy", "numbers")),
        ("nan.npy", "high", (), ("nan.npy", "not a number")),
        ("same.npy", "high", (), ("same.npy", "every feature map is the same")),
        ("ids.npy", "high", (), ("ids.npy, input 409", "0..4095")),
        ("brief.avi", "high", ("--modality", "video"), ("brief.avi", "shorter", "8 frames")),
        ("good.wav", "high", ("--modality", "video"), ("good.wav", "video")),
        ("good.wav", "high", ("--modality", "features"), ("good.wav", ".npy")),
    ],
)
def test_train_refuses(
    command: Command,
    bad: Path,
    tmp_path: Path,
    recording: str,
    model: str,
    options: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    done = command(
        "infi-convert",
        *("train", f"bad/{recording}", "--model", f"bad_models:{model}", *TASK, *options),
        *("-o", str(tmp_path / "never.infi"), "--report", str(tmp_path / "never.json")),
    )
    refused(done, *words)
    assert not [p for p in tmp_path.iterdir() if p.name != "cache"]
    assert not [p for p in bad.glob("**/*never*") if p.suffix != ".pyc"]


def trained(
    command: Command, bundle: Path, recording: str, model: str, *options: str
) -> subprocess.CompletedProcess[str]:
    done = command(
        "infi-convert",
        *("train", f"bad/{recording}", "--model", f"bad_models:{model}", *TASK, *options),
        *("--mechanism", "skip", "--allow-pass-through", "-o", str(bundle)),
    )
    assert done.returncode == 0, done.stderr
    return done


def test_a_constant_channel_is_named_in_one_sentence_and_trained_around(
    command: Command, bad: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "single.infi"
    done = trained(command, bundle, "single.csv", "moves", *MOTION)
    told = [line for line in done.stderr.splitlines() if "never changes" in line]
    assert len(told) == 1
    assert "bad/single.csv" in told[0]
    assert "from y, which" in told[0]
    assert read_bundle(bundle).manifest.preprocess.scale[1] == 1.0
    missing = trained(command, bundle, "nan.csv", "moves", *MOTION)
    assert "never changes" not in missing.stderr


def test_another_signal_than_the_filters_is_refused_by_evaluate_and_run(
    command: Command, bad: Path, tmp_path: Path
) -> None:
    sound, motion, text = (str(tmp_path / f"{name}.infi") for name in ("sound", "motion", "text"))
    trained(command, Path(sound), "good.wav", "loud")
    trained(command, Path(motion), "good.csv", "moves", *MOTION)
    trained(command, Path(text), "lines.txt", "angry")
    write_wav(bad / "bad" / "rate.wav", 3.0, 16000)
    write_csv(bad / "bad" / "other.csv", walk(), "x,z")
    for bundle, model, source, words in (
        (sound, "loud", "stereo.wav", ("stereo.wav", "mono")),
        (sound, "loud", "rate.wav", ("rate.wav", "16000 Hz", "8000 Hz")),
        (sound, "loud", "nan.wav", ("nan.wav", "4321")),
        (motion, "moves", "cell.csv", ("cell.csv, line 42", "column y")),
        (motion, "moves", "other.csv", ("other.csv", "x, z", "x, y")),
        (text, "angry", "latin.txt", ("latin.txt, line 3", "UTF-8")),
        (text, "angry", "good.wav", ("good.wav", "UTF-8")),
        (text, "angry", "none.txt", ("none.txt", "does not exist")),
    ):
        model_and_source = ("--model", f"bad_models:{model}", "--source", f"bad/{source}")
        refused(command("infi-edge", "evaluate", bundle, *model_and_source), *words)
        refused(command("infi-edge", "run", "--filter", bundle, *model_and_source), *words)
    camera = ("--source", "camera:0", "--model", "bad_models:loud")
    refused(command("infi-edge", "run", "--filter", sound, *camera), "camera:0", "audio")


def test_a_bad_array_among_good_ones_is_inferred_and_counted(
    command: Command, bad: Path, tmp_path: Path
) -> None:
    maps = np.random.default_rng(0).normal(0, 1, (200, 4, 4)).astype(np.float32)
    maps[np.arange(200) // 9 % 2 == 1] += 2
    np.save(bad / "bad" / "maps.npy", maps)
    bundle = tmp_path / "maps.infi"
    trained(command, bundle, "maps.npy", "high")
    maps[3, 0, 0] = np.nan
    np.save(bad / "bad" / "maps.npy", maps)
    done = command(
        "infi-edge",
        *(
            "run",
            "--fast",
            "--filter",
            str(bundle),
            "--source",
            "bad/maps.npy",
            "--model",
            "bad_models:high",
        ),
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 200
    assert "1 filter errors" in done.stderr
    assert '"infer"' in lines[3]
    assert "not a number" in lines[3]
