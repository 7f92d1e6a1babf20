"""Bad input gets one clear sentence, exit code 2, and nothing half written."""

from __future__ import annotations

import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.conftest import WORKLOAD, Command

TRAIN = ("--target-accuracy", "0.9", "--kind", "light", "-o", "never.infi")


def refused(done: object, *words: str) -> None:
    """One sentence on stderr with these words, exit code 2."""
    text = done.stderr  # type: ignore[attr-defined]
    lines = [s for s in text.splitlines() if s and not s.startswith("INFO") and s[-1] != "%"]
    assert done.returncode == 2, text  # type: ignore[attr-defined]
    assert "Traceback" not in text
    assert len(lines) == 1, text
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("missing.mp4", *WORKLOAD), ("missing.mp4", "does not exist")),
        (("toy_model.py", *WORKLOAD), ("toy_model.py", "video")),
        (("empty", *WORKLOAD), ("empty", "no images")),
        (
            ("toy.avi", "--model", "toy_model.py", "--task", "label", "--decoder", "yolov5"),
            ("TFL",),
        ),
        (("toy.avi", "--model", "none.tflite", "--task", "label", "--decoder", "raw"), ("none",)),
        (("toy.avi", "--model", "toy_model:none", "--task", "toy_model:Square"), ("none",)),
        (("toy.avi", "--model", "toy_model:brightest", "--task", "juggle"), ("juggle",)),
        (("toy.avi", "--model", "toy_model:brightest", "--task", "count:cat"), ("labels",)),
        (("toy.avi", *WORKLOAD, "--decoder", "yolov5"), ("yolov5", "needs")),
        (("toy.avi", *WORKLOAD, "--same", "about"), ("about",)),
        (("toy.avi", *WORKLOAD, "--labels", "none.txt"), ("none.txt",)),
        (("toy.avi", *WORKLOAD, "--start", "0.9", "--end", "0.2"), ("start",)),
        (("toy.avi", *WORKLOAD, "--end", "0.1"), ("too few",)),
        (("toy.avi", *WORKLOAD, "--target-recall", "0.9"), ("target",)),
        (("toy.avi", *WORKLOAD, "--preprocess", "width=big"), ("--preprocess", "width")),
        (("toy.avi", *WORKLOAD, "--preprocess", "depth=3"), ("depth", "height")),
        (("toy.avi", *WORKLOAD, "--preprocess", "wide"), ("KEY=VALUE",)),
        (("toy.avi", *WORKLOAD, "--modality", "smell"), ("smell", "audio")),
        (("toy.avi", *WORKLOAD, "--mechanism", "magic"), ("magic",)),
        (("toy.avi", *WORKLOAD, "--end", "0.06"), ("too few",)),
    ],
)
def test_train_refuses(
    command: Command, toy: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    (toy / "empty").mkdir(exist_ok=True)
    refused(command("infi-convert", "train", *arguments, *TRAIN), *words)
    assert not list(toy.glob("*never*"))


@pytest.mark.slow
def test_train_says_when_only_filtering_nothing_holds_the_target(
    command: Command, toy: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    video = cv2.VideoWriter(
        str(tmp_path / "noise.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48)
    )
    (toy / "coin_model.py").write_text(
        "def toss(frame):\n    return bool(int(frame[::7, ::5].astype(int).sum()) % 2)\n"
    )
    for _ in range(100):
        video.write(rng.integers(0, 255, (48, 64, 3), np.uint8))
    video.release()
    coin = (
        "train",
        str(tmp_path / "noise.avi"),
        *("--model", "coin_model:toss", "--task", "coin_task:Coin", "--target-accuracy", "0.99"),
        *("--kind", "light"),
    )
    (toy / "coin_task.py").write_text(
        "class Coin:\n    empty = False\n    can_skip = True\n"
        "    def __init__(self, labels):\n        pass\n"
        "    def read(self, decoded):\n        return decoded\n"
        "    def is_redundant(self, value):\n        return not value\n"
    )
    bundle = tmp_path / "coin.infi"
    refused(command("infi-convert", *coin, "-o", str(bundle)), "filters nothing", "pass-through")
    assert not bundle.exists()
    done = command("infi-convert", *coin, "-o", str(bundle), "--allow-pass-through")
    assert done.returncode == 0, done.stderr
    assert bundle.exists()


def test_damaged_bundles_are_refused(command: Command, toy_bundle: Path, tmp_path: Path) -> None:
    content = toy_bundle.read_bytes()
    bad = tmp_path / "bad.infi"
    bad.write_bytes(content[: len(content) // 2])
    refused(command("infi-edge", "inspect", str(bad)), "bad.infi")
    place = content.index(b"gains.npy") + 200
    bad.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    refused(command("infi-edge", "inspect", str(bad)), "bad.infi")
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("manifest.json", "{}")
        archive.writestr("../x", "y")
    refused(command("infi-edge", "inspect", str(bad)), "../x")
    refused(command("infi-edge", "inspect", str(tmp_path / "none.infi")), "none.infi")


def test_another_model_is_refused_unless_allowed(command: Command, toy_bundle: Path) -> None:
    run = ("run", "--fast", "--source", "toy.avi", "--filter", str(toy_bundle), "--end", "0.05")
    refused(command("infi-edge", *run, "--model", "toy_model:slow"), "another model")
    refused(
        command("infi-edge", *run, "--model", "toy_model:brightest", "--task", "label"), "--task"
    )
    allowed = command("infi-edge", *run, "--model", "toy_model:slow", "--allow-other-model")
    assert allowed.returncode == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("speed = 3\n", ("speed",)),
        (
            '[sources.a]\naddress = 3\nfilter="z"\nmodel="m"\n[models.m]\npath="x:y"\n',
            ("a.address", "str"),
        ),
        ("[sources\n", ("TOML",)),
        (
            '[sources.a]\naddress="camera:0"\nmodel="m"\nfilter="none.infi"\n[models.m]\npath="x:y"\n',
            ("line 4", "none.infi"),
        ),
    ],
)
def test_run_refuses_a_wrong_configuration(
    command: Command, tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    config = tmp_path / "bad.toml"
    config.write_text(text)
    refused(command("infi-edge", "run", str(config)), *words)


def test_run_refuses_what_is_not_there(command: Command, toy_bundle: Path) -> None:
    model = ("--filter", str(toy_bundle), "--model", "toy_model:brightest")
    refused(command("infi-edge", "run", "--source", "none.mp4", *model), "none.mp4")
    refused(command("infi-edge", "run", "--source", "camera:77", *model), "camera:77", "doctor")
    refused(command("infi-edge", "run", "--source", "toy.avi"), "--filter")
    refused(command("infi-edge", "evaluate", str(toy_bundle), "--source", "toy.avi"), "--model")


def test_a_target_the_bundle_does_not_promise_is_refused(
    command: Command, toy_bundle: Path
) -> None:
    done = command(
        "infi-edge",
        *("evaluate", str(toy_bundle), "--source", "toy.avi", "--model", "toy_model:brightest"),
        *("--target-accuracy", "0.9999"),
    )
    refused(done, "0.9999", "train")


def test_what_cannot_be_written_is_refused(
    command: Command, toy: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    train = ("train", "toy.avi", *WORKLOAD, "--kind", "light", "--target-accuracy", "0.9", "-o")
    refused(command("infi-convert", *train, str(tmp_path)), "folder")
    refused(command("infi-convert", *train, str(tmp_path / "none" / "x.infi")), "folder")
    model = ("--source", "toy.avi", "--model", "toy_model:brightest", "--end", "0.1")
    done = command(
        "infi-edge", "evaluate", str(toy_bundle), *model, "--misses", str(tmp_path / "file" / "x")
    )
    assert done.returncode == 2
    assert "accuracy" in done.stdout
    assert "Traceback" not in done.stderr
    run = ("run", "--fast", "--filter", str(toy_bundle), *model, "--output", "/dev/full")
    done = command("infi-edge", *run)
    assert done.returncode == 2
    assert "No space left" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_two_targets_are_refused(command: Command, toy_bundle: Path) -> None:
    both = ("--target-accuracy", "0.9", "--target-recall", "0.9")
    model = ("--source", "toy.avi", "--model", "toy_model:brightest")
    refused(command("infi-edge", "evaluate", str(toy_bundle), *model, *both), "not both")


def test_a_damaged_image_is_named(command: Command, toy_bundle: Path, toy: Path) -> None:
    folder = toy / "damaged"
    folder.mkdir()
    frame = np.full((48, 64, 3), 90, np.uint8)
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}.jpg"), frame)
    (folder / "1.jpg").write_bytes(b"no image")
    model = ("--source", "damaged", "--model", "toy_model:brightest")
    refused(command("infi-edge", "evaluate", str(toy_bundle), *model), "1.jpg", "remove")
    done = command("infi-edge", "run", "--fast", "--filter", str(toy_bundle), *model)
    assert done.returncode == 0
    assert done.stdout.count("error") == 1
