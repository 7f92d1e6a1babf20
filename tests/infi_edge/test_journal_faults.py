"""A disk that fills up, a process killed at any moment: what was recorded opens."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from infi_edge.capture.journal import read_records, segments
from infi_edge.capture.recorded import Recorded, StoredInput, decode_input
from infi_edge.errors import SourceError
from infi_edge.workload import to_frame
from tests.conftest import ROOT, WORKLOAD

KILLS = int(os.environ.get("INFI_EDGE_KILLS", "20"))
MAX_BYTES = 1_000_000

APPENDER = """
import sys
from pathlib import Path
from infi_edge.capture.journal import JournalWriter, last_record

folder = Path(sys.argv[1])
newest = last_record(folder)
number = int.from_bytes(newest[0][:8], "big") + 1 if newest else 0
writer = JournalWriter(folder, int(sys.argv[2]))
print("ready", flush=True)
while True:
    writer.append(number.to_bytes(8, "big") + bytes(number * 7919 % 9000))
    number += 1
"""


@contextlib.contextmanager
def started(*arguments: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_killed_writer_loses_at_most_the_record_at_hand(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    folder.mkdir()
    chance = random.Random(1)
    newest = -1
    for _ in range(5):
        with started("-c", APPENDER, str(folder), str(MAX_BYTES), cwd=tmp_path) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0.0, 0.2))
        contents = [content for file in segments(folder) for _, content in read_records(file)]
        numbers = [int.from_bytes(content[:8], "big") for content in contents]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert all(len(c) == 8 + n * 7919 % 9000 for n, c in zip(numbers, contents, strict=True))
        assert numbers[-1] >= newest
        newest = numbers[-1]
        assert sum(file.stat().st_size for file in segments(folder)) <= MAX_BYTES
    assert newest > 100


@pytest.mark.slow
def test_a_recording_killed_at_random_moments_opens(toy: Path, tmp_path: Path) -> None:
    yard = tmp_path / "yard"
    chance = random.Random(2)
    newest = -1
    arguments = ["-m", "infi_edge", "record", "--source", "toy.avi", *WORKLOAD, "-o", str(yard)]
    arguments += ["--fast", "--max-bytes", "1MB", "--model", "toy_model:slow"]
    for _ in range(KILLS):
        with started(*arguments, cwd=toy):
            time.sleep(chance.uniform(0.1, 1.5))
        if not (yard / "recording.json").exists():
            assert not list(yard.glob("*.seg"))
            continue
        contents = [content for file in segments(yard) for _, content in read_records(file)]
        inputs = [msgspec.msgpack.decode(content, type=StoredInput) for content in contents]
        if not inputs:
            with pytest.raises(SourceError, match="holds no input"):
                Recorded(yard)
            continue
        indices = [stored.index for stored in inputs]
        assert indices == list(range(indices[0], indices[0] + len(indices)))
        assert indices[-1] >= newest
        newest = indices[-1]
        for stored in inputs:
            assert to_frame(decode_input(stored.encoding, stored.data)).shape == (240, 320, 3)
            assert isinstance(stored.value, bool)
        recording = Recorded(yard)
        assert recording.count == len(list(recording.samples())) == len(inputs)
        assert sum(file.stat().st_size for file in yard.iterdir()) <= MAX_BYTES
    assert newest >= KILLS


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 500 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no `mount` here")
    if done.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def record(toy: Path, yard: Path) -> subprocess.CompletedProcess[str]:
    arguments = ["record", "--source", "toy.avi", *WORKLOAD, "-o", str(yard), "--fast"]
    return subprocess.run(
        [sys.executable, "-m", "infi_edge", *arguments],
        cwd=toy,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_full_disk_ends_the_recording_and_everything_up_to_there_opens(
    toy: Path, small_disk: Path
) -> None:
    yard = small_disk / "yard"
    counts = []
    for _ in range(2):  # the second has no room at all
        done = record(toy, yard)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        last = done.stderr.strip().splitlines()[-1]
        assert "yard cannot be written: no space left on device; what is in it" in last
        recording = Recorded(yard)
        counts.append(recording.count)
        assert recording.count == len(list(recording.samples()))
        whole = [len(c) + 12 for file in segments(yard) for _, c in read_records(file)]
        assert sum(whole) == sum(file.stat().st_size for file in segments(yard))
    assert counts[1] >= counts[0] > 30


def test_a_disk_full_from_the_start_is_one_sentence(toy: Path, small_disk: Path) -> None:
    with contextlib.suppress(OSError), (small_disk / "big").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    done = record(toy, small_disk / "yard")
    assert done.returncode == 2
    assert "yard cannot be written: no space left on device" in done.stderr
    assert "Traceback" not in done.stderr
