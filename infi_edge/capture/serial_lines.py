"""Motion as lines of numbers: `serial:/dev/ttyUSB0@115200`, or a FIFO, `serial:/run/imu`."""

from __future__ import annotations

import errno
import importlib
import itertools
import math
import os
import re
import stat
import time
from collections import deque
from typing import Any

from infi_edge.capture.address import need_modality
from infi_edge.capture.line_buffer import LineBuffer
from infi_edge.capture.line_streams import DescriptorStream, Fifo, Stream, StreamEnd
from infi_edge.capture.motion_source import MotionDevice, MotionSource, Rows
from infi_edge.capture.number_lines import NumberLines, Row
from infi_edge.capture.sample_times import ArrivalTimes, SensorClock
from infi_edge.capture.source import Health, Source
from infi_edge.config import SourceConfig
from infi_edge.errors import ConfigError, SourceError
from infi_edge.preprocess import MotionSpec, Spec

DEFAULT_BAUD = 115200
MOST_BAUD = 20_000_000
MAX_LINE_BYTES = 4096
_QUIET_S = 0.3
_GATHER_S = 0.01


def open_source(name: str, config: SourceConfig, spec: Spec, must_open: bool = False) -> Source:
    """Return the lines as a source. Raises ConfigError for a file, or without pyserial."""
    need_modality(config, spec, (MotionSpec,))
    assert isinstance(spec, MotionSpec)
    path, baud = parse(config.address)
    mode = _mode(path)
    if stat.S_ISREG(mode):
        raise ConfigError(
            f"{config.address} is a file; to play it back, give its path without serial:"
        )
    serial = None if stat.S_ISFIFO(mode) else _serial(config.address)
    NumberLines(config.address, spec, config.imu, Health(name))  # says now what cannot be

    def open_device(health: Health) -> MotionDevice:
        if stat.S_ISFIFO(_mode(path)):
            return SerialLines(config, spec, health, Fifo(path), whole_from_start=True)
        port = Port(config.address, path, baud, serial or _serial(config.address))
        return SerialLines(config, spec, health, port, whole_from_start=False)

    return MotionSource(name, config, spec, open_device, must_open)


def parse(address: str) -> tuple[str, int]:
    """Return (path, baud). Raises ConfigError."""
    match = re.fullmatch(r"serial:(.+?)(?:@(\d+))?", address)
    if match is None or not 0 < int(match[2] or DEFAULT_BAUD) <= MOST_BAUD:
        raise ConfigError(f"{address} is no serial port; write serial:/dev/ttyUSB0@{DEFAULT_BAUD}")
    return match[1], int(match[2] or DEFAULT_BAUD)


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode
    except OSError:  # it is not there yet
        return 0


def _serial(address: str) -> Any:
    try:
        return importlib.import_module("serial")
    except ImportError as error:
        raise ConfigError(
            f"{address} needs the package pyserial: pip install 'infi-edge[serial]'"
        ) from error


class Port(DescriptorStream):
    """An open serial port."""

    def __init__(self, address: str, path: str, baud: int, serial: Any) -> None:
        try:
            self._port = serial.Serial(path, baud, timeout=0, exclusive=True)
        except ValueError as error:
            raise SourceError(f"{address}: {baud} baud is not possible: {error}") from error
        except OSError as error:  # SerialException is one
            raise _refused(address, path, error) from error
        super().__init__(address, self._port.fileno())

    def close(self) -> None:
        self._port.close()


def _refused(address: str, path: str, error: OSError) -> SourceError:
    if error.errno == errno.ENOENT:
        return SourceError(f"{address} is not there; check its plug, or use a name that stays: "
                           "/dev/serial/by-id/")  # fmt: skip
    if error.errno in (errno.EACCES, errno.EPERM):
        return SourceError(f"{address}: permission denied; add the user to group dialout")
    if error.errno in (errno.EAGAIN, errno.EBUSY):
        return SourceError(f"{address} is in use by another program; end it")
    reason = (error.strerror or str(error)).lower()
    return SourceError(f"{address}: {path} cannot be opened: {reason}; check that it is a port")


class SerialLines:
    """An open port that gives rows of numbers, as they come.

    Rows with a time column have the times of the sensor's clock, mapped by least delay; others
    their arrival, smoothed by the rate. What is no row is counted (`bad_line`).
    """

    def __init__(
        self,
        config: SourceConfig,
        spec: MotionSpec,
        health: Health,
        stream: Stream,
        whole_from_start: bool,
    ) -> None:
        """The stream is its own from here on. whole_from_start: it begins with a whole line."""
        self.rate_hz = config.imu.rate_hz
        self._address, self._health, self._stream = config.address, health, stream
        self._lines = LineBuffer(MAX_LINE_BYTES)
        self._rows = NumberLines(config.address, spec, config.imu, health)
        self._clock = SensorClock()
        self._arrivals = ArrivalTimes(config.imu.rate_hz or spec.rate_hz, config.imu.gap_s)
        self._sensor_s = -math.inf
        self._waiting: deque[Rows] = deque()
        self._opened_s: float | None = time.monotonic()
        self._partial = not whole_from_start

    def read(self, timeout_s: float) -> Rows | None:
        if self._waiting:
            return self._waiting.popleft()
        until_s = time.monotonic() + timeout_s
        while (left_s := until_s - time.monotonic()) > 0:
            lines = self._chunk(left_s)
            arrival_s = time.monotonic()
            if lines:
                time.sleep(_GATHER_S)  # some lines at once cost less than one by one
                later_s = time.monotonic()
                more = self._chunk(0.0)
                lines, arrival_s = lines + more, later_s if more else arrival_s
            self._waiting.extend(self._placed(arrival_s, [n for n in lines if n.strip()]))
            if self._waiting:
                return self._waiting.popleft()
        return None

    def _chunk(self, timeout_s: float) -> list[bytes]:
        try:
            chunk = self._stream.read(timeout_s)
        except StreamEnd as end:
            if not end.goes_on:
                raise SourceError(f"{self._address} is gone; check its plug") from end
            return self._lines.rest()
        return self._cut(time.monotonic(), chunk) if chunk else []

    def _cut(self, arrival_s: float, chunk: bytes) -> list[bytes]:
        if self._opened_s is not None:
            # Who starts speaking after a pause (an Arduino that opening resets) starts a line.
            self._partial = self._partial and arrival_s - self._opened_s < _QUIET_S
            self._opened_s = None
        too_long = self._lines.too_long
        lines = self._lines.feed(chunk)
        if self._lines.too_long > too_long:
            self._health.notice(
                "bad_line", f"a line has more than {MAX_LINE_BYTES} bytes; check the baud rate"
            )
        if self._partial and lines:
            del lines[0]
            self._partial = False
        return lines

    def _placed(self, arrival_s: float, lines: list[bytes]) -> list[Rows]:
        """Return the rows with their times. A bad line has taken its time as well."""
        rows = [self._rows.row(line) for line in lines]
        good = [row for row in rows if row is not None]
        if self._rows.timed:
            return [self._timed(arrival_s, run) for run in self._runs(good)]
        places = self._arrivals.place(arrival_s, len(rows)) if rows else []
        times_s = [t for t, row in zip(places, rows, strict=True) if row is not None]
        return [Rows(times_s, [row.values for row in good])] if good else []

    def _runs(self, rows: list[Row]) -> list[list[Row]]:
        """Cut rows where the sensor's clock goes back."""
        starts = [i for i in range(1, len(rows)) if rows[i].time_s < rows[i - 1].time_s]
        edges = [0, *starts, len(rows)]
        return [rows[a:b] for a, b in itertools.pairwise(edges) if a < b]

    def _timed(self, arrival_s: float, run: list[Row]) -> Rows:
        set_back = run[0].time_s < self._sensor_s
        self._sensor_s = run[-1].time_s
        resets = self._clock.resets
        times_s = self._clock.place([row.time_s for row in run], arrival_s)
        if self._clock.resets > resets:
            self._health.count("clock_reset")
        return Rows(times_s, [row.values for row in run], after_gap=set_back)

    def close(self) -> None:
        self._stream.close()
