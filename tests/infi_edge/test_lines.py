"""Lines of text from real pipes, files, FIFOs and sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infi_edge.capture import line_streams
from infi_edge.capture import source as source_module
from infi_edge.capture.address import open_source
from infi_edge.capture.line_buffer import LineBuffer
from infi_edge.capture.source import Source
from infi_edge.config import SourceConfig
from infi_edge.errors import ConfigError, SourceError
from infi_edge.preprocess import MotionSpec, TextSpec
from infi_edge.types import Sample


@pytest.fixture(autouse=True)
def _short_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a silent source give None sooner, and open again sooner: the tests wait less."""
    monkeypatch.setattr(source_module, "TICK_S", 0.1)
    monkeypatch.setattr(source_module.Backoff.__init__, "__defaults__", (0.1, 30.0))


def lines_of(place: object, must_open: bool = False) -> Source:
    config = SourceConfig(address=f"lines:{place}", filter="f", model="m")
    return open_source("log", config, TextSpec(), must_open)


def take(samples: Iterator[Sample | None], count: int) -> list[str]:
    found: list[str] = []
    deadline_s = time.monotonic() + 30
    while len(found) < count:
        sample = next(samples)
        assert sample is not None or time.monotonic() < deadline_s
        if sample is not None:
            found.append(sample.data)
    return found


def until(source: Source, samples: Iterator[Sample | None], cause: str) -> None:
    deadline_s = time.monotonic() + 30
    while not source.health.counts[cause]:
        assert time.monotonic() < deadline_s
        assert next(samples) is None


def test_a_file_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes("eins\r\n\nzwei äöü\ndrei".encode())
    source = lines_of(path)
    samples = [s for s in source.samples() if s is not None]
    assert [s.data for s in samples] == ["eins", "", "zwei äöü", "drei"]
    assert [s.index for s in samples] == [0, 1, 2, 3]
    assert {s.source for s in samples} == {"log"}
    assert abs(samples[0].time_s - source.now_s()) < 10
    assert source.health.state == "ended"
    assert not source.health.counts


def test_lines_that_are_not_utf8_or_too_long_are_left_out_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log.txt"
    long = b"x" * 65537
    path.write_bytes(b"a\n\xff\n" + long + b"\n" + long * 3 + b"\n" + long[1:] + b"\n\xfe\nb\n")
    source = lines_of(path)
    found = [s.data for s in source.samples() if s is not None]
    assert [len(line) for line in found] == [1, 65536, 1]
    assert source.health.counts == {"not_utf8": 2, "too_long": 2}
    assert len(caplog.records) == 2


def test_a_line_buffer_gives_what_splitting_the_whole_gives() -> None:
    content = b"one\r\ntwo\n\nthree" + b"y" * 50 + b"\nlast"
    for size in range(1, 30):
        buffer = LineBuffer(20)
        found = [
            line
            for start in range(0, len(content), size)
            for line in buffer.feed(content[start : start + size])
        ]
        assert found + buffer.rest() == [b"one", b"two", b"", b"last"]
        assert buffer.too_long == 1


def test_a_followed_file_gives_what_is_added_across_rotation_and_truncation(tmp_path: Path) -> None:
    path = tmp_path / "syslog"
    path.write_text("old\n")
    source = lines_of(f"{path}?follow")
    samples = source.samples()
    assert next(samples) is None
    with path.open("a") as file:
        file.write("one\ntw")
        file.flush()
        assert take(samples, 1) == ["one"]
        file.write("o\n")
    assert take(samples, 1) == ["two"]
    path.rename(tmp_path / "syslog.1")
    with (tmp_path / "syslog.1").open("a") as file:
        file.write("three\n")
    path.write_text("four\n")
    assert take(samples, 2) == ["three", "four"]
    path.write_text("5\n")
    assert take(samples, 1) == ["5"]
    source.close()
    assert not [s for s in samples if s is not None]


def test_writers_of_a_fifo_come_and_go(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    source = lines_of(fifo)
    samples = source.samples()
    assert next(samples) is None
    for number in range(20):
        with fifo.open("w") as writer:  # some leave their last line without an end
            writer.write(f"begin {number}\nend {number}" + "\n" * (number % 2))
        assert take(samples, 2) == [f"begin {number}", f"end {number}"]
    assert not source.health.counts
    begun_s, cpu_s = time.monotonic(), time.process_time()
    for _ in range(10):
        assert next(samples) is None
    assert time.monotonic() - begun_s > 0.2
    assert time.process_time() - cpu_s < 0.3  # it waits, it does not spin
    source.close()


def test_a_slow_gate_slows_the_writer_and_no_line_is_lost(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    source = lines_of(fifo)
    samples = source.samples()
    written = 0

    def write() -> None:
        nonlocal written
        with fifo.open("w") as writer:
            for number in range(3000):
                writer.write(f"{number} " + "x" * 200 + "\n")
                writer.flush()
                written = number + 1

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    first = take(samples, 1)
    before = -1
    while before != written:  # until the writer waits
        before = written
        time.sleep(0.3)
    assert written < 1000
    rest = take(samples, 2999)
    assert [int(line.split()[0]) for line in first + rest] == list(range(3000))
    thread.join(20)
    source.close()


class Server:
    """Sends bytes to whoever connects; ends the connection when told."""

    def __init__(self, family: int, address: object) -> None:
        self.listener = socket.socket(family, socket.SOCK_STREAM)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(address)  # type: ignore[arg-type]
        self.listener.listen()

    def accept(self) -> socket.socket:
        self.listener.settimeout(30)
        return self.listener.accept()[0]


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_connection_that_ends_is_made_again_and_nothing_leaks(tmp_path: Path, kind: str) -> None:
    process = psutil.Process()
    threads, descriptors = threading.active_count(), process.num_fds()
    if kind == "tcp":
        server = Server(socket.AF_INET, ("127.0.0.1", 0))
        address = server.listener.getsockname()
        place = f"tcp://127.0.0.1:{address[1]}"
    else:
        address = str(tmp_path / "socket")
        server = Server(socket.AF_UNIX, address)
        place = f"unix:{address}"
    source = lines_of(place)
    samples = source.samples()
    assert next(samples) is None
    with server.accept() as connection:
        connection.sendall("grüß\n".encode()[:3])
        connection.sendall("grüß\n".encode()[3:] + b"no end")
        assert take(samples, 1) == ["grüß"]
    assert take(samples, 1) == ["no end"]
    until(source, samples, "read")
    assert "has ended the connection" in source.health.sentence
    server.listener.close()
    if kind == "unix":
        os.unlink(address)
        until(source, samples, "open")
    server = Server(server.listener.family, address)
    asking = threading.Thread(target=lambda: server.accept().sendall(b"again\n"), daemon=True)
    asking.start()
    assert take(samples, 1) == ["again"]
    asking.join()
    assert source.health.counts["reconnects"] >= 1
    source.close()
    assert not [s for s in samples if s is not None]
    server.listener.close()
    deadline_s = time.monotonic() + 20
    while threading.active_count() > threads and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert threading.active_count() <= threads
    assert process.num_fds() <= descriptors


def test_a_server_that_is_not_there_is_told_of_and_must_open_refuses() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        source = lines_of(place)
        samples = source.samples()
        until(source, samples, "open")
        assert "cannot be reached: connection refused" in source.health.sentence
        source.close()
        with pytest.raises(SourceError, match="cannot be reached"):
            list(lines_of(place, must_open=True).samples())


def test_a_name_server_that_takes_its_time_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = threading.Event()

    def slow(*arguments: object) -> socket.socket:
        asked.wait(60)
        raise OSError("name or service not known")

    monkeypatch.setattr(line_streams.socket, "create_connection", slow)
    source = lines_of("tcp://far.example:9")
    samples = source.samples()
    begun_s = time.monotonic()
    assert next(samples) is None
    source.close()
    assert not list(samples)
    assert time.monotonic() - begun_s < 30
    asked.set()


def test_a_file_that_is_not_there_is_waited_for_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "later"
    source = lines_of(path)
    samples = source.samples()
    until(source, samples, "open")
    assert "no such file" in source.health.sentence
    with pytest.raises(SourceError, match="no such file"):
        list(lines_of(path, must_open=True).samples())
    path.write_text("here\n")
    assert take(samples, 1) == ["here"]
    with pytest.raises(SourceError, match="is a folder"):
        list(lines_of(tmp_path, must_open=True).samples())


READ_STDIN = textwrap.dedent(
    """
    import sys, threading
    from infi_edge.capture.address import open_source
    from infi_edge.config import SourceConfig
    from infi_edge.preprocess import TextSpec

    source = open_source("log", SourceConfig(address="lines:-", filter="f", model="m"), TextSpec())
    nothing = 0
    for sample in source.samples():
        nothing += sample is None
        if sample is not None:
            print(sample.data, flush=True)
        if nothing == 3 and "close" in sys.argv:
            source.close()
    print(source.health.state, dict(source.health.counts))
    """
)


def reader(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", READ_STDIN, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_standard_input_is_read_to_its_end() -> None:
    with reader() as process:
        output, _ = process.communicate("one\ntwo", timeout=60)
    assert output.splitlines() == ["one", "two", "ended {}"]


def test_a_silent_standard_input_gives_none_and_closes() -> None:
    with reader("close") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.read() == "ended {}\n"  # though nobody has closed the pipe
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("", "write lines:PATH"),
        ("/a?folow", r"lines:PATH\?follow"),
        ("tcp://host", "needs HOST:PORT"),
        ("tcp://u:secret@host:1", "needs HOST:PORT"),
    ],
)
def test_addresses_that_make_no_sense_are_refused_without_secrets(place: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        lines_of(place)
    assert "secret" not in str(caught.value)


def test_only_a_text_filter_fits(tmp_path: Path) -> None:
    config = SourceConfig(address="lines:-", filter="f", model="m")
    with pytest.raises(ConfigError, match="other inputs"):
        open_source("log", config, MotionSpec())
