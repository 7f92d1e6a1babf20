"""JSON lines: whole lines whatever happens to the disk, bounded files, a pipe that may close."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infi_edge.errors import ConfigError
from infi_edge.events import Event
from infi_edge.sinks.jsonl import KEPT_BYTES, JsonLines
from infi_edge.sinks.outlet import NotNow
from infi_edge.types import Action, Result, Sample

SAMPLE = Sample(None, 1.5, 7, "yard")


def result_of(index: int, value: Any = 1) -> Result:
    return Result(value, Action.INFER, "why", index, float(index), "yard")


def lines_of(*paths: Path) -> list[dict[str, Any]]:
    text = "".join(path.read_text() for path in paths)
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def files_of(path: Path) -> list[Path]:
    """All of a rotated file, oldest first."""
    return [*sorted(path.parent.glob(f"{path.name}.*"), key=lambda p: -int(p.suffix[1:])), path]


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


def test_results_events_and_errors_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    sink = JsonLines(path)
    sink.write(result_of(3, {"a": [1, None]}), SAMPLE)
    sink.event(Event("begun", "e", "yard", "ä", "", "", 0.25))
    sink.error("yard", SAMPLE, "the model raised")
    assert path.read_text() == ""
    sink.flush()
    result, event, error = lines_of(path)
    assert (result["index"], result["value"]) == (3, {"a": [1, None]})
    assert (event["event"], event["value"], event["duration_s"]) == ("begun", "ä", 0.25)
    assert error == {"index": 7, "time_s": 1.5, "source": "yard", "error": "the model raised"}
    assert sink.counts["sent"] == 3
    sink.close()


def test_what_a_gate_that_learns_knows_of_a_result_is_written_and_else_left_out(
    tmp_path: Path,
) -> None:
    path = tmp_path / "out.jsonl"
    sink = JsonLines(path)
    sink.write(result_of(1), SAMPLE)
    learned = {"audited": True, "live_accuracy": 0.97126, "live_bound": 0.9}
    sink.write(replace(result_of(2), **learned), SAMPLE)
    sink.close()
    usual, of_learner = lines_of(path)
    assert not usual.keys() & learned.keys()
    assert {k: of_learner[k] for k in learned} == {**learned, "live_accuracy": 0.9713}


def test_a_number_that_is_none_is_null(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "out.jsonl")
    sink.write(result_of(1, float("nan")), SAMPLE)
    sink.close()
    assert lines_of(tmp_path / "out.jsonl")[0]["value"] is None


def test_a_stream_gets_each_line_at_once() -> None:
    stream = io.StringIO()
    sink = JsonLines(stream)
    sink.write(result_of(1), SAMPLE)
    assert json.loads(stream.getvalue())["index"] == 1
    sink.close()
    assert not stream.closed


def test_closing_writes_what_waits_and_goes_on_in_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    for index in range(3):
        sink = JsonLines(path)
        sink.write(result_of(index), SAMPLE)
        sink.close()
    assert [line["index"] for line in lines_of(path)] == [0, 1, 2]


def test_a_file_is_rotated_by_size_and_the_newest_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    sink = JsonLines(path, max_bytes=1000, keep=2)
    for index in range(100):
        sink.write(result_of(index), SAMPLE)
        if index % 3 == 0:
            sink.flush()
    sink.close()
    files = files_of(path)
    assert [file.name for file in files] == ["out.jsonl.2", "out.jsonl.1", "out.jsonl"]
    assert all(file.stat().st_size <= 1000 for file in files)
    kept = [line["index"] for line in lines_of(*files)]
    assert kept == list(range(kept[0], 100))
    assert sink.counts["sent"] == 100


def test_with_keep_0_the_file_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    sink = JsonLines(path, max_bytes=1000, keep=0)
    for index in range(100):
        sink.write(result_of(index), SAMPLE)
    sink.close()
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_size <= 1000
    assert lines_of(path)[-1]["index"] == 99


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 600), st.booleans()), max_size=40), st.integers(200, 2000))
def test_rotation_loses_no_line_and_exceeds_no_bound(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, bool]], max_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("rotated") / "out.jsonl"
    sink = JsonLines(path, max_bytes=max_bytes, keep=1000)
    for index, (length, flushed) in enumerate(writes):
        sink.write(result_of(index, "x" * length), SAMPLE)
        if flushed:
            sink.flush()
    sink.close()
    files = files_of(path)
    assert [line["index"] for line in lines_of(*files)] == list(range(len(writes)))
    for file in files:
        assert file.stat().st_size <= max_bytes or len(lines_of(file)) == 1


def test_a_line_that_a_power_loss_has_cut_stays_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text('{"index": 1}\n{"ind')
    sink = JsonLines(path)
    sink.write(result_of(2), SAMPLE)
    sink.close()
    whole, cut, after = path.read_text().splitlines()
    assert (whole, cut) == ('{"index": 1}', '{"ind')
    assert json.loads(after)["index"] == 2


def test_a_file_that_was_moved_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    sink = JsonLines(path)
    sink.write(result_of(1), SAMPLE)
    sink.flush()
    path.rename(tmp_path / "elsewhere")
    sink.write(result_of(2), SAMPLE)
    sink.close()
    assert [line["index"] for line in lines_of(path)] == [2]
    assert [line["index"] for line in lines_of(tmp_path / "elsewhere")] == [1]


def test_a_place_that_is_not_there_is_refused(tmp_path: Path, refuses: Callable[..., Any]) -> None:
    with refuses(ConfigError, "cannot be written to .*nowhere.*No such file"):
        JsonLines(tmp_path / "nowhere" / "out.jsonl")


def test_a_folder_that_vanishes_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    sink = JsonLines(folder / "out.jsonl")
    (folder / "out.jsonl").unlink()
    folder.rmdir()
    sink.write(result_of(1), SAMPLE)
    sink.flush()
    sink.flush()
    assert "cannot be written: No such file" in sink.sentence
    assert sink.counts["failed"] == 2
    folder.mkdir()
    sink.flush()
    assert sink.sentence == ""
    assert [line["index"] for line in lines_of(folder / "out.jsonl")] == [1]
    sink.close()


def test_a_full_disk_keeps_whole_lines_and_goes_on_when_there_is_room(small_disk: Path) -> None:
    filling = small_disk / "filling"
    filling.write_bytes(b"x" * (200 << 10))
    path = small_disk / "out.jsonl"
    sink = JsonLines(path)
    index = 0
    while not sink.sentence:
        sink.write(result_of(index, "x" * 999), SAMPLE)
        index += 1
        sink.flush()
    assert sink.sentence.endswith("cannot be written: No space left on device; lines wait")
    assert sink.counts["failed"] == 1
    assert len(lines_of(path)) in (index - 1, index - 2)
    for _ in range(20):
        sink.write(result_of(index, "x" * 999), SAMPLE)
        index += 1
        sink.flush()
    before = len(lines_of(path))
    assert before < index
    filling.unlink()
    sink.flush()
    assert sink.sentence == ""
    assert [line["index"] for line in lines_of(path)] == list(range(index))
    assert sink.counts["sent"] == index
    sink.close()


def test_a_disk_that_is_full_from_the_beginning_is_no_reason_not_to_start(
    small_disk: Path,
) -> None:
    filling = small_disk / "filling"
    with filling.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096) == 4096 and shutil.disk_usage(small_disk).free:
            pass
    path = small_disk / "out.jsonl"
    sink = JsonLines(path)
    sink.write(result_of(1), SAMPLE)
    sink.flush()
    assert "No space left" in sink.sentence
    filling.unlink()
    sink.close()
    assert [line["index"] for line in lines_of(path)] == [1]


def test_what_waits_for_a_full_disk_is_bounded(small_disk: Path) -> None:
    (small_disk / "filling").write_bytes(b"x" * (240 << 10))
    sink = JsonLines(small_disk / "out.jsonl")
    taken = 0
    with suppress(NotNow):
        while taken < 2 * KEPT_BYTES // 1000:
            sink.write(result_of(taken, "x" * 999), SAMPLE)
            taken += 1
            if taken % 100 == 0:
                sink.flush()
    assert 0.8 * KEPT_BYTES // 1000 < taken < 1.1 * KEPT_BYTES // 1000
    sink.close()
    assert sink.counts["sent"] == len(lines_of(small_disk / "out.jsonl"))
    assert sink.counts["sent"] + sink.counts["dropped"] == taken


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    sink = JsonLines(tmp_path / "out.jsonl", max_bytes=500, keep=1)
    for index in range(50):
        sink.write(result_of(index), SAMPLE)
        sink.flush()
    sink.close()
    assert len(os.listdir("/proc/self/fd")) == before


WRITER = """
import sys
from infi_edge.sinks.jsonl import JsonLines
from infi_edge.types import Action, Result, Sample
sink = JsonLines("-")
for index in range(100_000):
    sink.write(Result(1, Action.INFER, "why", index, 0.0), Sample(None, 0.0))
    if sink.broken:
        print("ends quietly", file=sys.stderr)
        break
sink.close()
"""


def test_a_reader_that_closes_the_pipe_is_noticed_and_nothing_is_said() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stderr is not None
        assert json.loads(writer.stdout.readline())["index"] == 0
        writer.stdout.close()
        said = writer.stderr.read()
        assert writer.wait(20) == 0
    assert said == "ends quietly\n"


def test_a_pipe_gets_each_line_at_once_and_a_file_when_flushed(tmp_path: Path) -> None:
    script = (
        "import sys; from infi_edge.sinks.jsonl import JsonLines;"
        "from infi_edge.types import *; sink = JsonLines('-');"
        "sink.write(Result(1, Action.INFER, '', 5, 0.0), Sample(None, 0.0));"
        "print('written', file=sys.stderr, flush=True); sys.stdin.read(); sink.close()"
    )
    command = [sys.executable, "-c", script]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, stdout=subprocess.PIPE, **pipes) as writer:
        assert writer.stdout is not None
        assert json.loads(writer.stdout.readline())["index"] == 5
    with (
        (tmp_path / "out").open("wb") as file,
        subprocess.Popen(command, stdout=file, **pipes) as writer,
    ):
        assert writer.stderr is not None
        assert writer.stderr.readline() == "written\n"
        assert (tmp_path / "out").read_bytes() == b""
    assert lines_of(tmp_path / "out")[0]["index"] == 5


def test_a_slow_reader_holds_up_only_the_writer() -> None:
    """A pipe that is full and does not block (its other end made it so) loses no byte."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    kept, threads = os.dup(1), []
    got = bytearray()
    try:
        os.dup2(writing, 1)
        os.close(writing)
        sys_stdout, sys.stdout = sys.stdout, open(1, "w", closefd=False)  # noqa: SIM115
        try:
            sink = JsonLines("-")
        finally:
            sys.stdout = sys_stdout
        for index in range(600):
            sink.write(result_of(index, "x" * 500), SAMPLE)
        assert "cannot be written" in sink.sentence

        def read() -> None:
            while part := os.read(reading, 1 << 16):
                got.extend(part)

        threads.append(threading.Thread(target=read, daemon=True))
        threads[0].start()
        while sink._waiting:
            sink.flush()
        sink.close()
    finally:
        os.dup2(kept, 1)
        os.close(kept)
    threads[0].join(20)
    os.close(reading)
    assert [json.loads(line)["index"] for line in got.splitlines()] == list(range(600))
