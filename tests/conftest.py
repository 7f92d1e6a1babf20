"""A made-up stream with a known answer, and the real ones where they are."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("INFI_EDGE_DATA") or ROOT.parent / "shared" / "data")
MODELS = Path(os.environ.get("INFI_EDGE_MODELS") or ROOT.parent / "shared" / "models")

TOY_MODEL = '''
import time


def brightest(frame):
    """How much of the frame is the bright square."""
    return float((frame[..., 1] > 180).mean())


def slow(frame):
    time.sleep(0.02)
    return brightest(frame)


def broken(frame):
    raise RuntimeError("no power")


class Square:
    empty = False
    can_skip = True

    def __init__(self, labels):
        pass

    def read(self, decoded):
        return decoded > 0.01

    def is_redundant(self, value):
        return not value
'''


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with toy.avi (a square that comes and goes; 240 frames, 20 Hz) and toy_model.py."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy_model.py").write_text(TOY_MODEL)
    rng = np.random.default_rng(0)
    codec = cv2.VideoWriter_fourcc(*"MJPG")
    video = cv2.VideoWriter(str(folder / "toy.avi"), codec, 20, (320, 240))
    background = rng.integers(30, 90, (240, 320, 3), np.uint8)
    background = cv2.GaussianBlur(background, (15, 15), 5)
    for i in range(240):
        frame = background.copy()
        if (i // 15) % 2:
            x = 40 + (i * 5) % 200
            cv2.rectangle(frame, (x, 90), (x + 60, 150), (230, 230, 230), -1)
        noise = rng.normal(0, 3, frame.shape)
        video.write(np.clip(frame + noise, 0, 255).astype(np.uint8))
    video.release()
    return folder


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(toy: Path, tmp_path: Path) -> Command:
    """Run `infi-edge` or `infi-convert` for real, in the toy's folder, with a cache of its own."""

    def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        module = {"infi-edge": "infi_edge", "infi-convert": "converters"}[name]
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        environment["PYTHONPATH"] = str(ROOT)
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=toy,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    return run


WORKLOAD = ("--model", "toy_model:brightest", "--task", "toy_model:Square")


@pytest.fixture(scope="session")
def toy_bundle(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A light filter trained on the first half of the toy clip by the real command."""
    bundle = toy / "toy.infi"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    arguments = ["train", "toy.avi", *WORKLOAD, "--end", "0.5", "--kind", "light"]
    arguments += ["--target-accuracy", "0.9", "-o", str(bundle)]
    subprocess.run(
        [sys.executable, "-m", "converters", *arguments], cwd=toy, env=environment, check=True
    )
    return bundle


def need(path: Path) -> Path:
    """Return a path of real data, or skip the test with a clear message."""
    if not path.exists():
        pytest.skip(f"{path} is not here; set INFI_EDGE_DATA and INFI_EDGE_MODELS")
    return path
