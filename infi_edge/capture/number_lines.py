"""Rows of numbers from lines of text, with or without a header, with or without times."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from infi_edge.capture.live_motion import Pick, pick_channels
from infi_edge.capture.source import Health
from infi_edge.config import ImuConfig
from infi_edge.errors import ConfigError
from infi_edge.preprocess import MotionSpec

_MISSING = {"", "?", "nan"}
_TIME = re.compile(r"(?:t|time|timestamp)(?:_(s|ms|us))?|(millis)|(micros)", re.IGNORECASE)
_UNIT_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_NAME = re.compile(r"[^\W\d][\w .:/()\[\]^-]*")


@dataclass(frozen=True, slots=True)
class Row:
    """time_s: on the sensor's clock, 0 without one. values: the filter's channels."""

    time_s: float
    values: list[float]


class NumberLines:
    """Reads rows of one stream.

    Cells are split by semicolon, comma, tab or blanks, whichever the line has in this order.
    Columns have the names of imu.channels, else of a header line; a row without either must have
    exactly the filter's channels, in its order. A column `time`, `time_s`, `t_ms`, `time_us`,
    `timestamp`, `millis`, ... holds times.
    What is no row is noticed as `bad_line`, told once, and left out.
    """

    def __init__(self, address: str, spec: MotionSpec, imu: ImuConfig, health: Health) -> None:
        """Raises ConfigError if imu.channels lacks a channel."""
        self._address, self._spec, self._imu, self._health = address, spec, imu, health
        self._header: tuple[str, ...] | None = None
        self._time: tuple[int, float] | None = None
        self._picks: list[Pick] = []
        self._width = 0
        if imu.channels:
            self._name(imu.channels)

    @property
    def timed(self) -> bool:
        """Whether rows have times."""
        return self._time is not None

    def row(self, line: bytes) -> Row | None:
        """Return the row a line holds, or None.

        Raises ConfigError if a header lacks a channel of the filter's.
        """
        text = line.decode("utf-8", "replace").strip()
        if not text:
            return None
        cells = [cell.strip() for cell in text.split(_mark(text))]
        if not cells[-1] and len(cells) != (self._width or len(self._spec.channels)):
            del cells[-1]  # a separator ends the line
        numbers = [_number(cell) for cell in cells]
        if None in numbers:
            self._no_row(text, cells)
            return None
        header, self._header = self._header, None
        if header is not None and len(header) == len(cells):
            self._name(header)
        if not self._width and len(cells) == len(self._spec.channels):
            self._name(self._spec.channels)
        if len(cells) != self._width:
            self._tell(text, f"has {len(cells)} numbers, not {self._wanted()}")
            return None
        return self._row(text, [number for number in numbers if number is not None])

    def _row(self, text: str, numbers: list[float]) -> Row | None:
        time_s = 0.0
        if self._time is not None:
            place, unit_s = self._time
            time_s = numbers[place] * unit_s
            if math.isnan(time_s):
                self._tell(text, "lacks its time")
                return None
        return Row(time_s, [numbers[place] * factor for place, factor in self._picks])

    def _no_row(self, text: str, cells: list[str]) -> None:
        # A header names the filter's channels, or is at least followed by as many numbers before
        # there were any; the greetings of a device are none.
        names = tuple(cells)
        if names == self._imu.channels:
            return
        complete = set(self._spec.channels) <= set(names)
        telling = not self._width and len(names) > 1 and bool(_mark(text))
        if not self._imu.channels and (complete or (telling and all(map(_NAME.fullmatch, names)))):
            self._header = names
        else:
            self._tell(text, "is no row of numbers")

    def _name(self, names: tuple[str, ...]) -> None:
        self._time = None
        for place, name in enumerate(names):
            match = _TIME.fullmatch(name)
            if match is not None and name not in self._spec.channels:
                unit = match[1] or ("ms" if match[2] else "us" if match[3] else "s")
                self._time = place, _UNIT_S[unit.lower()]
                break
        time_place = self._time[0] if self._time else None
        places = [place for place in range(len(names)) if place != time_place]
        channels = [names[place] for place in places]
        if len(set(channels)) != len(channels):
            raise ConfigError(f"{self._address} has two columns of one name: {', '.join(channels)}")
        picks = pick_channels(self._address, self._spec, self._imu, channels)
        self._picks = [(places[place], factor) for place, factor in picks]
        self._width = len(names)

    def _wanted(self) -> str:
        if self._width:
            return str(self._width)
        return f"{len(self._spec.channels)} as the filter reads; name the columns by imu.channels"

    def _tell(self, text: str, what: str) -> None:
        self._health.notice("bad_line", f"a line {what}: {text[:40]!r}")


def _mark(text: str) -> str | None:
    return next((mark for mark in ";,\t" if mark in text), None)


def _number(cell: str) -> float | None:
    """A number; NaN for a missing one; None for anything else, infinity included."""
    if cell.lower() in _MISSING:
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in cell else None
