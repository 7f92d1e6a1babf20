"""Snapshots of events: whole files, bounded, for their owner alone."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import stat
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from infi_edge.config import SnapshotSinkConfig
from infi_edge.errors import ConfigError
from infi_edge.events import Event
from infi_edge.sinks.outlet import Outlet
from infi_edge.sinks.snapshots import BLOCK_BYTES, LOOK_EVERY_S, Snapshots
from infi_edge.types import Sample

AT = "2024-05-01T12:03:05.250+00:00"
TODAY = datetime.now(timezone.utc)


def jpeg(grey: int = 100, size: int = 32) -> bytes:
    return cv2.imencode(".jpg", np.full((size, size, 3), grey, np.uint8))[1].tobytes()


def event_of(
    name: str, data: Any, before: tuple[Any, ...] = (), at: str = TODAY.isoformat()
) -> Event:
    inputs = tuple(Sample(d, float(i), i, "yard") for i, d in enumerate(before))
    sample = Sample(data, 9.0, 9, "yard")
    return Event("begun", f"yard-{name}", "yard", 1, at, at, 0.0, sample, inputs)


def sink_of(folder: Path, rates_hz: dict[str, float] | None = None, **config: Any) -> Snapshots:
    return Snapshots(
        SnapshotSinkConfig(folder=str(folder), **{"max_days": 1e6, **config}), rates_hz
    )


def names_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except OSError as error:
        pytest.skip(f"a small disk needs mount: {error}")
    if done.returncode:
        pytest.skip(f"a small disk needs the right to mount: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_an_event_leaves_its_picture_untouched_and_those_before(tmp_path: Path) -> None:
    sink = sink_of(tmp_path / "shots")
    picture, first, second = jpeg(1), jpeg(2), jpeg(3)
    sink.event(event_of("a", picture, (first, second), AT))
    day = tmp_path / "shots" / "2024-05-01"
    assert (day / "120305-yard-a.jpg").read_bytes() == picture
    assert (day / "120305-yard-a-0.jpg").read_bytes() == first
    assert (day / "120305-yard-a-1.jpg").read_bytes() == second
    assert len(list(day.iterdir())) == 3
    assert sink.counts["sent"] == 3
    sink.close()


def test_still_and_ended_leave_nothing(tmp_path: Path) -> None:
    sink = sink_of(tmp_path)
    sink.event(Event("ended", "e", "yard", 1, AT, AT, 1.0))
    assert names_in(tmp_path) == []


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    sink_of(tmp_path / "shots").event(event_of("a", jpeg()))
    for path in (tmp_path / "shots").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    assert stat.S_IMODE((tmp_path / "shots").stat().st_mode) == 0o700


def test_a_picture_in_memory_becomes_a_jpeg(tmp_path: Path) -> None:
    picture = np.full((24, 32, 3), (10, 100, 200), np.uint8)
    sink_of(tmp_path).event(event_of("a", picture))
    (path,) = tmp_path.rglob("*.jpg")
    read = cv2.imread(str(path))
    assert read.shape == picture.shape
    assert np.abs(read.astype(int) - picture).max() < 10


@pytest.mark.parametrize("as_array", [True, False])
def test_a_clip_leaves_its_pictures(tmp_path: Path, as_array: bool) -> None:
    frames = [np.full((16, 16, 3), grey, np.uint8) for grey in (0, 100, 200)]
    earlier = [np.full((16, 16, 3), 50, np.uint8)] * 2
    sink_of(tmp_path).event(event_of("a", np.array(frames) if as_array else frames, (earlier,), AT))
    day = tmp_path / "2024-05-01"
    greys = {p.name[len("120305-yard-a") : -4]: cv2.imread(str(p)).mean() for p in day.iterdir()}
    assert {name: round(grey / 50) * 50 for name, grey in greys.items()} == {
        "-0": 50,
        "-1": 0,
        "-2": 100,
        "": 200,
    }


def test_sound_becomes_a_wav_file(tmp_path: Path) -> None:
    window = np.array([0, 0.5, -0.5, 1, -1, 2], np.float32)
    sink_of(tmp_path, {"yard": 16000.0}).event(event_of("a", window))
    (path,) = tmp_path.rglob("*.wav")
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
        samples = np.frombuffer(file.readframes(6), "<i2")
    assert samples.tolist() == [0, 16383, -16383, 32767, -32767, 32767]


@pytest.mark.parametrize(
    ("data", "written"),
    [("a line", "a line"), (np.array([[1, 2.5]]), [[1, 2.5]]), (np.zeros(2), [0, 0])],
)
def test_other_inputs_become_json(tmp_path: Path, data: Any, written: Any) -> None:
    sink_of(tmp_path).event(event_of("a", data))
    (path,) = tmp_path.rglob("*.json")
    assert json.loads(path.read_text()) == {
        "source": "yard",
        "index": 9,
        "time_s": 9.0,
        "data": written,
    }


def test_a_name_stays_in_the_folder(tmp_path: Path) -> None:
    sink_of(tmp_path / "shots").event(event_of("../../../evil\n", jpeg(), at=AT))
    assert names_in(tmp_path) == ["shots/2024-05-01/120305-yard-evil.jpg"]


def test_the_oldest_make_room_within_the_bytes(tmp_path: Path) -> None:
    sink = sink_of(tmp_path, max_bytes=10 * BLOCK_BYTES)
    for number in range(40):
        at = datetime(2024, 5, 1 + number // 10, 10, 0, number, tzinfo=timezone.utc)
        sink.event(event_of(f"{number:02}", b"x" * (BLOCK_BYTES * (1 + number % 2)), at=str(at)))
        used = sum(-(-p.stat().st_size // BLOCK_BYTES) for p in tmp_path.rglob("*.jpg"))
        assert used <= 10
    kept = [re.search(r"yard-(\d\d)", name)[1] for name in names_in(tmp_path)]  # type: ignore[index]
    assert kept == [f"{n:02}" for n in range(40)][-len(kept) :]
    assert len(kept) >= 5
    assert [p.name for p in tmp_path.iterdir()] == ["2024-05-04"]


def test_the_bytes_of_an_earlier_run_count(tmp_path: Path) -> None:
    sink_of(tmp_path).event(event_of("a", b"x" * BLOCK_BYTES * 3, at="2024-05-01T10:00:00+00:00"))
    sink = sink_of(tmp_path, max_bytes=4 * BLOCK_BYTES)
    sink.event(event_of("b", b"x" * BLOCK_BYTES * 2, at="2024-05-02T10:00:00+00:00"))
    assert names_in(tmp_path) == ["2024-05-02/100000-yard-b.jpg"]


def test_one_that_is_larger_than_the_bound_is_not_written(tmp_path: Path) -> None:
    sink = sink_of(tmp_path, max_bytes=2 * BLOCK_BYTES)
    sink.event(event_of("a", b"x" * BLOCK_BYTES))
    sink.event(event_of("b", b"x" * BLOCK_BYTES * 3))
    assert len(names_in(tmp_path)) == 1
    assert sink.counts["dropped"] == 1


def test_what_is_too_old_is_deleted_with_and_without_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def days_ago(days: int) -> str:
        return (TODAY - timedelta(days=days)).isoformat()

    keeper = sink_of(tmp_path)
    for days in (20, 9, 2):
        keeper.event(event_of(f"{days}", jpeg(), at=days_ago(days)))
    sink = sink_of(tmp_path, max_days=10)
    sink.event(event_of("now", jpeg()))
    assert [name.split("yard-")[1] for name in names_in(tmp_path)] == ["9.jpg", "2.jpg", "now.jpg"]
    sink = sink_of(tmp_path, max_days=5)
    sink.flush()
    assert len(names_in(tmp_path)) == 3
    now_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s + LOOK_EVERY_S)
    sink.flush()
    assert [name.split("yard-")[1] for name in names_in(tmp_path)] == ["2.jpg", "now.jpg"]


def test_files_of_others_are_never_deleted(tmp_path: Path) -> None:
    day = tmp_path / "2001-01-01"
    (tmp_path / "2001-01-02x").mkdir()
    day.mkdir()
    others = [day / "holiday.jpg", tmp_path / "101010-yard-a.jpg", tmp_path / "2001-01-02x" / "a"]
    others.append(day / ".holiday.jpg.part")
    for other in others:
        other.write_bytes(b"x" * BLOCK_BYTES)
    (day / "101010-yard-a.jpg").write_bytes(b"ours")
    (day / ".101010-yard-b.jpg.part").write_bytes(b"half")
    sink = sink_of(tmp_path, max_days=10, max_bytes=BLOCK_BYTES)
    sink.event(event_of("a", jpeg(), (jpeg(),)))
    assert all(other.exists() for other in others)
    assert not (day / "101010-yard-a.jpg").exists()
    assert not (day / ".101010-yard-b.jpg.part").exists()


def test_a_full_disk_is_counted_and_leaves_no_part_of_a_file(small_disk: Path) -> None:
    sink = sink_of(small_disk)
    number = 0
    while not sink.sentence:
        sink.event(event_of(f"{number:03}", b"x" * 20_000))
        number += 1
    assert sink.sentence == f"{small_disk} cannot be written: No space left on device"
    assert sink.counts["failed"] == 1
    sink.event(event_of("still full", b"x" * 20_000))
    assert sink.counts["failed"] == 2
    files = [p for p in small_disk.rglob("*") if p.is_file()]
    assert len(files) == number - 1
    assert all(p.stat().st_size == 20_000 for p in files)
    files[0].unlink()
    sink.event(event_of("room", b"x" * 20_000))
    assert sink.sentence == ""
    assert len(list(small_disk.rglob("*room.jpg"))) == 1


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path, refuses: Callable[..., Any]) -> None:
    (tmp_path / "file").write_text("")
    with refuses(ConfigError, "snapshots cannot be kept in .*file"):
        sink_of(tmp_path / "file")


def test_behind_an_outlet_pictures_arrive_and_results_do_not(tmp_path: Path) -> None:
    outlet = Outlet("shots", sink_of(tmp_path), 10, 1.0)
    outlet.put_event(event_of("a", jpeg(7), (jpeg(8),)))
    assert outlet.drain(20)
    outlet.close()
    assert len(names_in(tmp_path)) == 2


KILLED = """
import sys
from infi_edge.config import SnapshotSinkConfig
from infi_edge.events import Event
from infi_edge.sinks.snapshots import Snapshots
from infi_edge.types import Sample
sink = Snapshots(SnapshotSinkConfig(folder=sys.argv[1], max_bytes=2_000_000))
print("ready", flush=True)
number = 0
while True:
    data = bytes([number % 251]) * 30_000 + b"end"
    number += 1
    sample = Sample(data, 0.0)
    sink.event(Event("begun", f"yard-{number}", "yard", 1, "", "", 0.0, sample, (sample,) * 3))
"""


def kill_at_random_moments(folder: Path, times: int) -> None:
    moments = random.Random(times)
    for _ in range(times):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(moments.uniform(0, 0.05))
            child.send_signal(signal.SIGKILL)
        whole = [p for p in folder.rglob("*.jpg") if not p.name.startswith(".")]
        for path in whole:
            data = path.read_bytes()
            assert len(data) == 30_003, path
            assert data[:-3] == data[:1] * 30_000
            assert data.endswith(b"end")
    assert whole
    assert sum(p.stat().st_size for p in whole) < 2_100_000
    sink_of(folder)
    assert not list(folder.rglob(".*"))


def test_kill_9_leaves_only_whole_files(tmp_path: Path) -> None:
    kill_at_random_moments(tmp_path / "shots", 3)


@pytest.mark.slow
@pytest.mark.parametrize("times", [int(os.environ.get("INFI_EDGE_KILLS", "20"))])
def test_kill_9_many_times_leaves_only_whole_files(tmp_path: Path, times: int) -> None:
    kill_at_random_moments(tmp_path / "shots", times)
