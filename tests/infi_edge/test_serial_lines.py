"""Lines of numbers over a real pseudo-terminal and a real FIFO."""

from __future__ import annotations

import itertools
import math
import os
import sys
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from infi_edge.capture import motion_source, serial_lines
from infi_edge.capture import source as source_module
from infi_edge.capture.address import open_source
from infi_edge.capture.number_lines import NumberLines
from infi_edge.capture.serial_lines import Port, SerialLines, parse
from infi_edge.capture.source import Health, Source
from infi_edge.config import ImuConfig, SourceConfig
from infi_edge.errors import ConfigError
from infi_edge.preprocess import MotionSpec, TextSpec
from infi_edge.types import Sample

SPEC = MotionSpec(channels=("ax", "ay"), window=10, hop=5, rate_hz=100.0)


@pytest.fixture(autouse=True)
def _short_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a silent source give None sooner, and open again sooner: the tests wait less."""
    monkeypatch.setattr(source_module, "TICK_S", 0.1)
    monkeypatch.setattr(motion_source, "TICK_S", 0.1)
    monkeypatch.setattr(source_module.Backoff.__init__, "__defaults__", (0.1, 30.0))


class Board:
    """A microcontroller at a port that is a name, as udev gives it (/dev/serial/by-id/...)."""

    def __init__(self, link: Path) -> None:
        self.link = link
        self.plug()

    def plug(self) -> None:
        self.master, self._slave = os.openpty()
        tty.setraw(self._slave)
        self.link.symlink_to(os.ttyname(self._slave))
        self._unplugging, self._speaking = threading.Event(), threading.Thread()

    def unplug(self) -> None:
        self._unplugging.set()
        if self._speaking.ident is not None:
            self._speaking.join()
        self.link.unlink()
        os.close(self._slave)
        os.close(self.master)

    def say(self, *lines: str) -> None:
        os.write(self.master, "".join(f"{line}\r\n" for line in lines).encode())

    def speak(self, row: Callable[[int], str]) -> None:
        """Say a row every 10 ms until it is unplugged."""

        def run() -> None:
            for number in itertools.count():
                if self._unplugging.wait(0.01):
                    break
                self.say(row(number))

        self._speaking = threading.Thread(target=run, daemon=True)
        self._speaking.start()


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    pytest.importorskip("serial")
    board = Board(tmp_path / "imu")
    yield board
    board.unplug()


def config(address: object, **imu: object) -> SourceConfig:
    return SourceConfig(address=f"serial:{address}", filter="f", model="m", imu=ImuConfig(**imu))  # type: ignore[arg-type]


def started(source: Source, board: Board) -> Iterator[Sample | None]:
    """Samples of a source that has its port open: it has heard the board."""
    samples = source.samples()
    next(samples)
    heard(source, board)
    return samples


def heard(source: Source, board: Board) -> None:
    before = source.health.counts["bad_line"]
    deadline_s = time.monotonic() + 30
    while source.health.counts["bad_line"] == before:
        assert time.monotonic() < deadline_s
        board.say("Hello")
        time.sleep(0.02)
    time.sleep(0.2)
    source.health.counts.clear()


def next_sample(samples: Iterator[Sample | None]) -> Sample:
    deadline_s = time.monotonic() + 30
    for sample in samples:
        if sample is not None:
            return sample
        assert time.monotonic() < deadline_s
    raise AssertionError("the source has ended")


def test_lines_without_header_are_the_filters_channels_in_order(board: Board) -> None:
    source = open_source("imu", config(board.link), SPEC)
    samples = started(source, board)
    board.speak(lambda n: f"{n}, {-n}")
    window = next_sample(samples)
    assert window.data.shape == (10, 2)
    np.testing.assert_allclose(window.data[:, 0], -window.data[:, 1])
    assert window.data[-1, 0] > window.data[0, 0]
    assert abs(window.time_s - source.now_s()) < 5
    source.close()


def test_a_header_names_columns_and_times_are_the_sensors(board: Board) -> None:
    source = open_source("imu", config(board.link, scale={"ay": 9.81}), SPEC)
    samples = started(source, board)
    board.say("t_ms;temp;ay;ax")
    board.speak(lambda n: f"{1000 + 10 * n};21.5;{n};{2 * n}")
    windows = [next_sample(samples) for _ in range(5)]
    for number, window in enumerate(windows):
        # However they arrive: rows are 10 ms apart (the clocks are joined at one percent).
        np.testing.assert_allclose(
            window.data[:, 0], 2 * (5 * number + np.arange(10)), rtol=0.011, atol=1e-3
        )
        np.testing.assert_allclose(window.data[:, 1], 4.905 * window.data[:, 0], rtol=1e-5)
    assert windows[1].time_s - windows[0].time_s == pytest.approx(0.05)
    assert not source.health.counts["bad_line"]
    source.close()


def test_bad_lines_are_counted_told_once_and_stop_nothing(
    board: Board, caplog: pytest.LogCaptureFixture
) -> None:
    source = open_source("imu", config(board.link, gap_s=30.0), SPEC)
    samples = started(source, board)
    bad = {3: "1.0,2.x", 5: "1,2,3", 7: "inf,0", 11: "Booting...", 13: "\xff\xfe"}
    board.speak(lambda n: bad.get(n, "1,2"))
    for _ in range(5):
        np.testing.assert_array_equal(next_sample(samples).data, [[1, 2]] * 10)
    source.close()
    assert source.health.counts["bad_line"] == len(bad)
    assert sum("a line" in record.message for record in caplog.records) == 1


def test_garbage_without_line_ends_is_told_of_and_input_goes_on(
    board: Board, caplog: pytest.LogCaptureFixture
) -> None:
    source = open_source("imu", config(board.link), SPEC)
    samples = source.samples()
    assert next(samples) is None
    for _ in range(9):
        os.write(board.master, b"\x80" * 1000)
        time.sleep(0.05)
    board.say("")
    board.speak(lambda n: "1 2")
    assert (next_sample(samples).data == [1, 2]).all()
    assert source.health.counts["bad_line"] >= 1
    assert "check the baud rate" in caplog.text
    source.close()


@pytest.mark.parametrize(("quiet_s", "rows"), [(60.0, 2), (0.0, 3)])
def test_the_fragment_of_a_line_that_was_under_way_is_no_row(
    board: Board, monkeypatch: pytest.MonkeyPatch, quiet_s: float, rows: int
) -> None:
    monkeypatch.setattr(serial_lines, "_QUIET_S", quiet_s)
    settings = config(board.link)
    port = Port(settings.address, str(board.link), 115200, pytest.importorskip("serial"))
    device = SerialLines(settings, SPEC, Health("imu"), port, whole_from_start=False)
    board.say("2,2", "1,1", "1,1")  # the first may have been 22,2
    found = device.read(20)
    assert found is not None
    assert len(found.times_s) == rows
    device.close()


@pytest.mark.slow
def test_an_unplugged_port_is_opened_again_and_nothing_leaks(board: Board) -> None:
    process = psutil.Process()
    threads, descriptors = threading.active_count(), process.num_fds()
    source = open_source("imu", config(board.link), SPEC)
    samples = started(source, board)
    board.speak(lambda n: "1,2")
    next_sample(samples)
    board.unplug()
    deadline_s = time.monotonic() + 30
    while source.health.state != "failing" and time.monotonic() < deadline_s:
        next(samples)
    assert source.health.counts["read"] == 1
    assert str(board.link) in source.health.sentence
    board.plug()
    while source.health.counts["reconnects"] == 0 and time.monotonic() < deadline_s:
        next(samples)
    board.speak(lambda n: "3,4")
    again = next(s for s in samples if s is not None and s.data[0, 0] == 3)
    assert (again.data == [3, 4]).all()
    source.close()
    assert not [s for s in samples if s is not None]
    board.unplug()
    assert threading.active_count() <= threads
    assert process.num_fds() <= descriptors - 2
    board.plug()


def test_a_port_that_is_not_there_says_so_and_is_waited_for(tmp_path: Path) -> None:
    pytest.importorskip("serial")
    source = open_source("imu", config(tmp_path / "ttyUSB7"), SPEC)
    samples = source.samples()
    deadline_s = time.monotonic() + 20
    while source.health.counts["open"] == 0 and time.monotonic() < deadline_s:
        assert next(samples) is None
    assert "is not there; check its plug" in source.health.sentence
    source.close()


def test_a_fifo_needs_no_pyserial_and_its_writers_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "serial", None)
    fifo = tmp_path / "imu"
    os.mkfifo(fifo)
    source = open_source("imu", config(fifo), SPEC)
    samples = source.samples()
    assert next(samples) is None
    for value in (1, 2):
        with fifo.open("w") as writer:
            writer.write("time_s,ax,ay\n")
            for number in range(12):
                writer.write(f"{number / 100:.2f},{value},0\n")
        window = next_sample(samples)
        assert (window.data[:, 0] == value).all()
    assert source.health.counts["clock_reset"] == 1
    assert not source.health.counts["read"]
    source.close()


def test_without_pyserial_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "serial", None)
    with pytest.raises(ConfigError, match=r"pyserial: pip install 'infi-edge\[serial\]'"):
        open_source("imu", config("/dev/ttyUSB0"), SPEC)


def test_a_file_is_not_a_port(tmp_path: Path) -> None:
    (tmp_path / "walk.csv").write_text("1,2\n")
    with pytest.raises(ConfigError, match="give its path without serial:"):
        open_source("imu", config(tmp_path / "walk.csv"), SPEC)
    with pytest.raises(ConfigError, match="other inputs"):
        open_source("imu", config("/dev/ttyUSB0"), TextSpec())


def test_addresses_are_read() -> None:
    assert parse("serial:/dev/ttyUSB0@9600") == ("/dev/ttyUSB0", 9600)
    assert parse("serial:/dev/serial/by-id/a@b") == ("/dev/serial/by-id/a@b", 115200)
    for address in ("serial:", "serial:/dev/ttyUSB0@0", "serial:/dev/ttyUSB0@99999999999"):
        with pytest.raises(ConfigError, match="no serial port"):
            parse(address)


def rows(
    lines: list[str], spec: MotionSpec = SPEC, **imu: object
) -> tuple[list[list[float]], Health]:
    health = Health("imu")
    reader = NumberLines("serial:x", spec, ImuConfig(**imu), health)  # type: ignore[arg-type]
    found = [reader.row(line.encode()) for line in lines]
    return [[row.time_s, *row.values] for row in found if row is not None], health


@pytest.mark.parametrize(
    "line", ["1.5;-2", "1.5,-2", "1.5\t-2", " 1.5  -2 ", "1.5,-2,", "+1.5,-2e0"]
)
def test_cells_are_split_by_what_the_line_has(line: str) -> None:
    assert rows([line])[0] == [[0, 1.5, -2]]


def test_a_missing_value_is_missing_and_not_a_bad_line() -> None:
    found, health = rows(["1,", "1,nan", "?,2"])
    assert math.isnan(found[0][2])
    assert math.isnan(found[1][2])
    assert math.isnan(found[2][1])
    assert not health.counts


@pytest.mark.parametrize(
    ("name", "factor"),
    [("time_s", 1), ("t_ms", 1e-3), ("Time", 1), ("timestamp_us", 1e-6), ("millis", 1e-3)],
)
def test_time_columns_are_known_by_their_names(name: str, factor: float) -> None:
    found, _ = rows([f"ax,{name},ay", "1,5000,2"])
    assert found == [[pytest.approx(5000 * factor), 1, 2]]


def test_named_columns_may_be_more_than_the_filter_reads() -> None:
    found, _ = rows(["ay,temp,ax", "1,20,3"], channels=("ay", "temp", "ax"))
    assert found == [[0, 3, 1]]


def test_a_header_that_lacks_a_channel_is_refused_but_greetings_are_not() -> None:
    with pytest.raises(ConfigError, match=r"has no channel ax; it has gx, gy"):
        rows(["gx,gy", "1,2"])
    with pytest.raises(ConfigError, match=r"has no channel ax"):
        rows([], channels=("gx", "gy"))
    found, health = rows(["Hello world", "Ready.", "MPU6050, please wait a while, OK", "1,2"])
    assert found == [[0, 1, 2]]
    assert health.counts["bad_line"] >= 2


def test_too_many_numbers_without_names_say_how_to_name_them() -> None:
    found, health = rows(["1,2,3"])
    assert not found
    assert "name the columns by imu.channels" in health.sentence
