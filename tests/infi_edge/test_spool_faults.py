"""A process killed at any moment, a damaged file, a full disk: no input is lost unseen."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from infi_edge.executors.spool import LOG_BYTES, SPARE_BYTES, Spool
from tests.conftest import ROOT
from tests.infi_edge.test_spool import AT, MIB, assert_adds_up, drained, opened, put, take

KILLS = int(os.environ.get("INFI_EDGE_KILLS", "20"))

PROGRAM = """
import os, random, sys, threading
from pathlib import Path
from infi_edge.executors.spool import Spool

path, log, order, index = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def note(what, number):
    os.write(file, f"{what} {number}\\n".encode())

spool = Spool(path, 200_000, order)
for cause in ("uncertain", "damaged"):
    note(cause, spool.counts[cause])
chance = random.Random(index)

def fill():
    global index
    while True:
        note("begun", index)
        evicted = spool.counts["evicted"]
        kept = spool.put(index, 0.0, "", "text", bytes(chance.randrange(12_000)), "")
        note("kept" if kept else "refused", index)
        index += 1

threading.Thread(target=fill, daemon=True).start()
while True:
    taken = spool.take()
    if taken is None:
        continue
    fate = chance.random()
    if fate < 0.1:
        spool.give_back(taken.key)
    elif fate < 0.2:
        spool.failed(taken.key)
    elif fate < 0.25:
        note("dropping", taken.index)
        spool.drop(taken.key)
    else:
        note("giving", taken.index)
        if spool.delivering(taken.key):
            note("answer", taken.index)
            spool.done(taken.key)
            note("done", taken.index)
"""


def logged(log: Path) -> dict[str, list[int]]:
    notes: dict[str, list[int]] = {}
    for line in log.read_text().splitlines():
        what, number = line.split()
        notes.setdefault(what, []).append(int(number))
    return notes


def kill_often(folder: Path, order: str, kills: int) -> dict[str, list[int]]:
    """Kill PROGRAM so many times; what it has noted."""
    chance = random.Random(3)
    index = 0
    log = folder / "log"
    for _ in range(kills):
        wanted = log.stat().st_size if log.exists() else 0
        arguments = [str(folder / "s"), str(log), order, str(index)]
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT)
        try:
            deadline_s = time.monotonic() + 60
            wanted += chance.randrange(1, 2000)
            while not log.exists() or log.stat().st_size < wanted:
                assert process.poll() is None
                assert time.monotonic() < deadline_s
                time.sleep(0.005)
            time.sleep(chance.uniform(0.0, 0.03))
        finally:
            process.kill()
            process.wait()
        index = max(logged(log).get("begun", [-1])) + 1
    return logged(log)


def check_kills(folder: Path, kills: int) -> None:
    """`oldest`: nothing is evicted, so every input has a fate that the notes tell."""
    notes = kill_often(folder, "oldest", kills)
    with opened(folder / "s", 200_000, identity="") as spool:
        last_uncertain = spool.counts["uncertain"]
        assert (spool.sentence, spool.counts["damaged"]) == ("", 0)
        waited = drained(spool)
    assert sum(notes["damaged"]) == 0
    uncertain = sum(notes["uncertain"]) + last_uncertain
    answers = Counter([*notes["answer"], *waited])
    assert set(answers.values()) == {1}, "answered twice"
    assert not set(answers) & set(notes.get("refused", [])), "refused, and answered all the same"
    unseen = set(notes["kept"]) - set(answers) - set(notes.get("dropping", []))
    given_out = set(notes["giving"]) - set(notes["done"])
    assert unseen <= given_out, "lost although no answer was being given out"
    assert len(unseen) <= uncertain <= kills
    assert len(notes["done"]) > kills


def test_a_killed_process_answers_no_input_twice_and_loses_none_unseen(tmp_path: Path) -> None:
    check_kills(tmp_path, 3)


@pytest.mark.slow
def test_a_process_killed_many_times(tmp_path: Path) -> None:
    check_kills(tmp_path, KILLS)


@pytest.mark.slow
def test_a_process_that_evicts_is_killed_many_times(tmp_path: Path) -> None:
    notes = kill_often(tmp_path, "newest", KILLS)
    with opened(tmp_path / "s", 200_000, "newest", "") as spool:
        waited = drained(spool)
        assert spool.counts["damaged"] == 0
    answers = Counter([*notes["answer"], *waited])
    assert set(answers.values()) == {1}
    assert set(answers) <= set(notes["begun"])


# A card that damages files.


def filled(path: Path, count: int = 12, size: int = 5000, checkpointed: bool = True) -> None:
    """Leave a file with inputs in it; not checkpointed: as a power cut leaves it, with a log."""
    spool = Spool(path, 8 * MIB, identity="a")
    for index in range(count):
        assert put(spool, index, size)
    if checkpointed:
        spool.close()
        return
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    shutil.copy(f"{path}-wal", f"{copy}-wal")
    spool.close()
    copy.replace(path)
    Path(f"{copy}-wal").replace(f"{path}-wal")


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def test_a_log_that_a_power_cut_left_is_read(tmp_path: Path) -> None:
    filled(tmp_path / "s", checkpointed=False)
    assert Path(f"{tmp_path / 's'}-wal").stat().st_size > 0
    with opened(tmp_path / "s") as spool:
        assert spool.sentence == ""
        assert drained(spool) == list(range(12))


@pytest.mark.parametrize("content", [b"no database at all" * 500, bytes(20_000), b"SQLite"])
def test_a_file_that_is_no_queue_is_put_aside(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(content)
    with opened(tmp_path / "s") as spool:
        assert spool.sentence.endswith("is kept as s.damaged-0, a new queue begins")
        assert spool.counts["damaged"] == 1
        assert put(spool, 0)
        assert drained(spool) == [0]
        assert_adds_up(spool)
    assert (tmp_path / "s.damaged-0").read_bytes() == content


def test_a_database_of_something_else_is_put_aside(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "s")) as db:
        db.execute("CREATE TABLE inputs (name TEXT)")
    with opened(tmp_path / "s") as spool:
        assert "no queue" in spool.sentence
        assert put(spool, 0)


def test_an_input_whose_bytes_have_changed_is_counted_and_the_others_are_answered(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s"
    filled(path)
    overwrite(path, path.read_bytes().find(bytes([5]) * 3000) + 1000, b"damage")
    with opened(path) as spool:
        assert drained(spool) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
        assert spool.counts["damaged"] == 1
        assert len(spool) == spool.size_bytes == 0
        assert_adds_up(spool)


def test_what_can_be_read_of_a_truncated_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "s"
    filled(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size * 2 // 3)
    with opened(path) as spool:
        assert "is damaged" in spool.sentence
        assert "could be read" in spool.sentence
        kept = drained(spool)
        assert kept[:4] == [0, 1, 2, 3]
        assert 1 <= spool.counts["damaged"] <= 12 - len(kept)
        assert_adds_up(spool)


def test_a_file_that_a_power_cut_emptied_is_damaged_if_its_log_is_there(tmp_path: Path) -> None:
    filled(tmp_path / "s", checkpointed=False)
    os.truncate(tmp_path / "s", 0)
    with opened(tmp_path / "s") as spool:
        assert spool.counts["damaged"] == 1
        assert put(spool, 0)


def test_a_file_damaged_in_use_is_put_aside_and_what_is_out_comes_to_its_end(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s"
    filled(path, 200, 30_000)
    with opened(path, 16 * MIB) as spool:
        out = [take(spool) for _ in range(4)]
        assert spool.delivering(out[0].key)
        spool.put(200, 0.0, AT, "text", b"x" * LOG_BYTES, "")  # so that the log is written back
        overwrite(path, 4096, random.Random(1).randbytes(path.stat().st_size - 4096))
        answered = drained(spool)
        assert "is damaged" in spool.sentence
        assert put(spool, 201)
        spool.done(out[0].key)
        assert spool.failed(out[1].key) == 1
        spool.give_back(out[2].key)
        spool.drop(out[3].key)
        assert_adds_up(spool)
        assert spool.counts["damaged"] > 100
        again = drained(spool)
        assert sorted(again) == [1, 2, 201]
        assert not set(again) & set(answered)
        assert len(spool) == spool.size_bytes == 0
        assert_adds_up(spool)


def test_of_damaged_files_the_last_three_are_kept(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / "s").write_bytes(b"%d" % number * 5000)
        with opened(tmp_path / "s") as spool:
            assert spool.counts["damaged"] == 1
        os.utime(
            next(f for f in tmp_path.glob("s.damaged-*") if f.read_bytes()[:1] == b"%d" % number),
            (number, number),
        )
    kept = {file.read_bytes()[:1] for file in tmp_path.glob("s.damaged-*")}
    assert kept == {b"2", b"3", b"4"}


MEMORY_DISK = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where a test waits for no disk."""

DAMAGE = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=40)), max_size=6)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a queue and its log, as a power cut leaves them."""
    folder = tmp_path_factory.mktemp("whole")
    filled(folder / "s", 30, 900, checkpointed=False)
    with opened(folder / "s", 8 * MIB) as spool:
        spool.failed(take(spool).key)
    filled_more = Spool(folder / "s", 8 * MIB, identity="a")
    for index in range(30, 40):
        put(filled_more, index, 9000)
    for name in ("s", "s-wal"):
        shutil.copy(folder / name, folder / f"{name}.kept")
    filled_more.close()
    return folder


@settings(max_examples=int(os.environ.get("INFI_EDGE_FUZZ", "150")), deadline=None)
@given(
    damage=DAMAGE,
    low=DAMAGE,
    log_damage=DAMAGE,
    length=st.one_of(st.just(1.0), st.floats(0, 1)),
    log_length=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_no_damage_of_the_files_ends_the_queue(
    damage: list[tuple[float, bytes]],
    low: list[tuple[float, bytes]],
    log_damage: list[tuple[float, bytes]],
    length: float,
    log_length: float,
    whole: Path,
) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY_DISK) as name:
        path = Path(name) / "s"
        content = bytearray((whole / "s.kept").read_bytes())
        log = bytearray((whole / "s-wal.kept").read_bytes())
        for target, places, reach in (
            (content, damage, len(content)),
            (content, low, 8192),
            (log, log_damage, len(log)),
        ):
            for place, spoilt in places:
                offset = int(place * (reach - len(spoilt)))
                target[offset : offset + len(spoilt)] = spoilt
        path.write_bytes(content[: int(length * len(content))])
        Path(f"{path}-wal").write_bytes(log[: int(log_length * len(log))])
        with opened(path, 8 * MIB) as spool:
            answers = []
            assert put(spool, 1000)
            while (taken := spool.take()) is not None:
                assert taken.data == bytes([taken.index % 251]) * len(taken.data)
                assert spool.delivering(taken.key)
                answers.append(taken.index)
                spool.done(taken.key)
                assert_adds_up(spool)
            assert 1000 in answers
            assert len(set(answers)) == len(answers)
            assert len(spool) == spool.size_bytes == 0
            assert_adds_up(spool)


# A disk that is full, or cannot be written.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no `mount` here")
    if done.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_disk(folder: Path) -> Path:
    """Leave no room; the file to remove for it."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


@pytest.mark.parametrize("order", ["oldest", "newest"])
def test_a_queue_larger_than_the_disk_leaves_room_to_be_drained(
    order: Literal["oldest", "newest"], small_disk: Path
) -> None:
    with opened(small_disk / "s", 64 * MIB, order) as spool:
        kept = [put(spool, index, 60_000) for index in range(100)]
        assert "the disk is full" in spool.sentence
        assert shutil.disk_usage(small_disk).free > SPARE_BYTES // 2
        assert len(drained(spool)) == sum(kept) > 20
        assert put(spool, 101, 60_000), "there is room again"
        assert_adds_up(spool)


@pytest.mark.parametrize("written", [0, 5, 20])
def test_a_disk_filled_by_others_loses_nothing(written: int, small_disk: Path) -> None:
    with opened(small_disk / "s", 64 * MIB) as spool:
        for index in range(written):
            assert put(spool, index, 60_000)
        out = [spool.take(), spool.take(), spool.take(), spool.take()]
        filler = fill_disk(small_disk)
        assert not put(spool, 100, 60_000)
        assert "full" in spool.sentence
        given = [spool.delivering(taken.key) for taken in out if taken is not None]
        assert all(given) or not any(given)
        for taken, end in zip(
            out, (spool.done, spool.drop, spool.failed, spool.give_back), strict=True
        ):
            if taken is not None:
                end(taken.key)
        assert len(spool) == max(written - 2, 0)
        assert_adds_up(spool)
        filler.unlink()
        assert put(spool, 101)
        wanted = [3, 4, *range(5, written), 101, 2] if written else [101]
        assert sorted(drained(spool)) == sorted(wanted)
        assert_adds_up(spool)
    with opened(small_disk / "s", 64 * MIB) as spool:
        assert len(spool) == spool.counts["found"] == 0


def test_a_disk_that_is_full_at_the_start_is_used_when_there_is_room(small_disk: Path) -> None:
    filler = fill_disk(small_disk)
    with opened(small_disk / "state" / "s") as spool:
        assert spool.sentence
        assert not put(spool, 0)
        assert spool.take() is None
        filler.unlink()
        assert put(spool, 1)
        assert drained(spool) == [1]
        assert_adds_up(spool)


def test_inputs_found_when_the_folder_can_be_written_again_are_counted(small_disk: Path) -> None:
    filled(small_disk / "s", 5)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with opened(small_disk / "s") as spool:
        assert "cannot be written: read-only file system" in spool.sentence
        assert not put(spool, 100)
        assert spool.take() is None
        assert_adds_up(spool)
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
        assert put(spool, 101)
        assert spool.counts["damaged"] == 0
        assert drained(spool) == [0, 1, 2, 3, 4, 101]
        assert_adds_up(spool)


def test_a_folder_in_the_place_of_the_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with opened(tmp_path / "s") as spool:
        assert "is a directory" in spool.sentence
        assert not put(spool, 0)
        assert_adds_up(spool)
    assert (tmp_path / "s").is_dir()
