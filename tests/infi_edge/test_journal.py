"""The append-only store: what is written is read, whatever happens to the files between."""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infi_edge.capture import journal
from infi_edge.capture.journal import JournalWriter, last_record, read_records, segments
from infi_edge.errors import ConfigError, SourceError

HEADER = 12
fresh = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(folder: Path, contents: list[bytes], max_bytes: int = 1 << 20) -> JournalWriter:
    folder.mkdir(exist_ok=True)
    writer = JournalWriter(folder, max_bytes)
    for content in contents:
        writer.append(content)
    writer.close()
    return writer


def read(folder: Path) -> list[bytes]:
    return [content for file in segments(folder) for _, content in read_records(file)]


def contents(count: int, size: int = 50) -> list[bytes]:
    """Records that differ, with no byte twice in a row."""
    return [bytes((i + k) % 251 for k in range(size)) for i in range(count)]


def test_what_is_written_is_read_in_order(tmp_path: Path) -> None:
    wanted = contents(40)
    writer = write(tmp_path, wanted)
    assert read(tmp_path) == wanted
    assert writer.written == writer.total == 40 * (50 + HEADER)
    assert writer.removed == 0
    assert last_record(tmp_path)[0] == wanted[-1]


def test_a_journal_is_continued_in_a_new_segment(tmp_path: Path) -> None:
    wanted = contents(10)
    write(tmp_path, wanted[:4])
    before = segments(tmp_path)[0].read_bytes()
    write(tmp_path, wanted[4:])
    assert [p.name for p in segments(tmp_path)] == ["00000001.seg", "00000002.seg"]
    assert segments(tmp_path)[0].read_bytes() == before
    assert read(tmp_path) == wanted


def test_a_writer_that_writes_nothing_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path, [])
    assert list(tmp_path.iterdir()) == []
    assert last_record(tmp_path) is None


@fresh
@given(
    st.lists(st.lists(st.integers(1, 400), max_size=40), min_size=1, max_size=4),
    st.integers(412, 3000),
)
def test_the_newest_stay_and_the_bound_holds(
    tmp_path_factory: pytest.TempPathFactory, sessions: list[list[int]], max_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    written: list[bytes] = []
    for sizes in sessions:
        writer = JournalWriter(folder, max_bytes)
        removed_before = len(written) - len(read(folder))
        for size in sizes:
            written.append(
                struct.pack("<I", len(written))[: min(size, 4)] + bytes(max(size - 4, 0))
            )
            writer.append(written[-1])
            assert sum(p.stat().st_size for p in segments(folder)) == writer.total <= max_bytes
        writer.close()
        left = read(folder)
        assert left == written[len(written) - len(left) :]
        assert writer.removed == len(written) - len(left) - removed_before
    if written:
        assert left


def test_nothing_but_its_own_segments_is_ever_removed(tmp_path: Path) -> None:
    names = ["notes.txt", "1.seg", "00000001.seg.bak", "recording.json"]
    for name in names:
        (tmp_path / name).write_text("mine")
    write(tmp_path, contents(200), 2000)
    assert len(segments(tmp_path)) > 2
    assert all((tmp_path / name).read_text() == "mine" for name in names)


def test_a_segment_that_somebody_removed_does_not_stop_it(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, 2000)
    for content in contents(60):
        writer.append(content)
        for old in segments(tmp_path)[:-2]:
            old.unlink()
    writer.close()
    assert read(tmp_path) == contents(60)[-len(read(tmp_path)) :]


def test_a_tail_cut_at_any_byte_costs_the_last_record_alone(tmp_path: Path, caplog) -> None:
    wanted = contents(5)
    write(tmp_path, wanted)
    file = segments(tmp_path)[0]
    whole = file.read_bytes()
    for cut in range(len(whole) - 50 - HEADER + 1, len(whole)):
        file.write_bytes(whole[:cut])
        caplog.clear()
        assert read(tmp_path) == wanted[:4]
        assert len(caplog.records) == 1
        assert "00000001.seg" in caplog.text


def test_blocks_of_zeros_after_a_power_cut_are_no_records(tmp_path: Path) -> None:
    wanted = contents(5)
    write(tmp_path, wanted)
    file = segments(tmp_path)[0]
    file.write_bytes(file.read_bytes() + bytes(4096))
    assert read(tmp_path) == wanted
    file.write_bytes(bytes(4096))
    assert read(tmp_path) == []


@fresh
@given(st.data())
def test_a_flipped_bit_costs_its_own_record_alone(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    wanted = contents(9)
    write(folder, wanted)
    file = segments(folder)[0]
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    hit = place // (50 + HEADER)
    assert read(folder) == wanted[:hit] + wanted[hit + 1 :]


def test_a_damaged_segment_does_not_touch_the_others(tmp_path: Path, caplog) -> None:
    wanted = contents(60)
    write(tmp_path, wanted, 5000)
    files = segments(tmp_path)
    lost = [content for _, content in read_records(files[1])]
    files[1].write_bytes(os.urandom(500))
    assert read(tmp_path) == [c for c in wanted if c not in lost]
    assert len(caplog.records) == 1


def test_a_declared_length_is_not_believed(tmp_path: Path, monkeypatch) -> None:
    wanted = contents(3)
    write(tmp_path, wanted)
    file = segments(tmp_path)[0]
    whole = file.read_bytes()
    for length in (0, 51, 200, 1 << 20, (1 << 32) - 1):
        file.write_bytes(whole[:4] + struct.pack("<I", length) + whole[8:])
        assert read(tmp_path) == wanted[1:]
    monkeypatch.setattr(journal, "MAX_RECORD_BYTES", 49)
    file.write_bytes(whole)
    assert read(tmp_path) == []


def test_reading_a_segment_made_of_marks_ends(tmp_path: Path) -> None:
    write(tmp_path, contents(1))
    file = segments(tmp_path)[0]
    mark = file.read_bytes()[:4]
    file.write_bytes((mark + struct.pack("<II", 1 << 20, 0)) * 200_000)
    assert read(tmp_path) == []


def test_one_folder_has_one_writer(tmp_path: Path, refuses) -> None:
    first = JournalWriter(tmp_path, 1000)
    with refuses(ConfigError, "being written by another process"):
        JournalWriter(tmp_path, 1000)
    first.close()
    JournalWriter(tmp_path, 1000).close()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path, refuses) -> None:
    (tmp_path / "file").touch()
    for name in ("file", "absent"):
        with refuses(ConfigError, f"{name} cannot be written: no"):
            JournalWriter(tmp_path / name, 1000)


def test_an_input_too_large_is_refused_and_the_rest_goes_on(tmp_path: Path, refuses) -> None:
    writer = JournalWriter(tmp_path, 1000)
    writer.append(b"before")
    for content in (bytes(989), b""):
        with refuses(SourceError, "can be kept"):
            writer.append(content)
    writer.append(bytes(988))
    writer.close()
    assert read(tmp_path) == [bytes(988)]


def test_what_is_written_is_on_the_disk_soon_without_a_further_input(
    tmp_path: Path, monkeypatch
) -> None:
    synced = threading.Event()
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".seg"):
            synced.set()

    writer = JournalWriter(tmp_path, 1000, sync_s=0.05)
    monkeypatch.setattr(os, "fsync", watched)
    writer.append(b"one")
    assert synced.wait(30)
    writer.close()


def test_a_disk_that_fails_is_told_at_the_next_input(tmp_path: Path, monkeypatch, refuses) -> None:
    failed = threading.Event()

    def broken(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".seg"):
            failed.set()
            raise OSError(5, "Input/output error")

    writer = JournalWriter(tmp_path, 1000, sync_s=0.05)
    monkeypatch.setattr(os, "fsync", broken)
    writer.append(b"one")
    assert failed.wait(30)
    with refuses(ConfigError, "cannot be written: input/output error"):
        for _ in range(100_000):
            writer.append(b"two")
    with refuses(ConfigError, "input/output error"):
        writer.close()
    assert read(tmp_path)[0] == b"one"


def test_closing_leaves_no_thread_and_no_descriptor(tmp_path: Path) -> None:
    before = (threading.active_count(), len(os.listdir("/proc/self/fd")))
    for _ in range(20):
        writer = write(tmp_path, contents(30), 1500)
        writer.close()  # twice does no harm
        read(tmp_path)
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before
