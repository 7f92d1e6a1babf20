"""Live motion: the timed samples of a sensor become windows at the filter's rate."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

import numpy as np

from infi_edge.capture.source import Health
from infi_edge.config import ImuConfig
from infi_edge.errors import ConfigError
from infi_edge.preprocess import MotionSpec
from infi_edge.types import Sample

GAP_STEPS = 5
"""A pause of so many usual sample times is a gap."""

_STEPS = 31
_ANONYMOUS = ("column_1", "channel 0")
"""The first channel of a recording without a header, of one without names (see recordings.py)."""


class MotionWindows:
    """Turns samples, as they come, into windows like those of a recording.

    A window is float32 (window, C), a new one every `hop` samples at spec.rate_hz, interpolated
    linearly on the samples' true times: a sensor whose rate is another, jitters or drifts neither
    stretches a window nor gets late. Of a sensor that is at least twice as fast, neighbours are
    averaged first, so that what the filter's rate cannot hold is damped instead of folded.
    Without spec.rate_hz samples are taken as they come.

    No window spans a gap: it is counted as `gap`, and the next window begins after it.
    `Sample.time_s` is the time of a window's end.
    """

    def __init__(
        self, name: str, spec: MotionSpec, health: Health, gap_s: float | None = None
    ) -> None:
        """gap_s: a pause that is a gap; None: five usual sample times."""
        self._name, self._spec, self._health, self._gap_s = name, spec, health, gap_s
        self._window, self._hop = spec.window, spec.hop
        self._rate = spec.rate_hz or 1.0  # without a rate, samples are their own measure of time
        self._index = 0
        self.begin()

    def begin(self, rate_hz: float | None = None) -> None:
        """Begin anew: the sensor was opened. rate_hz: samples a second it is set to, if known."""
        nominal_hz = rate_hz or self._spec.rate_hz
        self._nominal_s = 1 / nominal_hz if nominal_hz else None
        self._steps_s: deque[float] = deque(maxlen=_STEPS)
        self._group = 1
        self._learn()
        self._last_s: float | None = None
        self.restart()

    def restart(self) -> None:
        """Begin a window anew: samples are missing here."""
        self._summed: list[Sequence[float]] = []
        self._summed_s = 0.0
        self._places: list[float] = []
        self._rows: list[Sequence[float]] = []
        self._made = 0
        self._count = 0
        self._first = self._due = 0.0
        self._before: np.ndarray | None = None

    def feed(self, time_s: float, values: Sequence[float]) -> list[Sample]:
        """Take one sample; return the windows it completes.

        time_s: monotonic. values: C numbers in the filter's order, NaN where one is missing.
        A sample that is not later than the one before it is left out, and counted as `disorder`.
        """
        if self._last_s is not None:
            step_s = time_s - self._last_s
            if -self._limit_s < step_s <= 0:
                self._health.count("disorder")
                return []
            self._steps_s.append(abs(step_s))
            if abs(step_s) > self._limit_s and self._is_gap(abs(step_s)):
                self._health.notice("gap", f"no sample for {step_s:.3g} s; the window begins anew")
                self.restart()
        self._last_s = time_s
        if self._group == 1:
            return self._take(time_s, values)
        self._summed.append(values)
        self._summed_s += time_s
        if len(self._summed) < self._group:
            return []
        time_s, mean = self._summed_s / self._group, np.mean(self._summed, axis=0)
        self._summed, self._summed_s = [], 0.0
        return self._take(time_s, mean)

    def _take(self, time_s: float, values: Sequence[float]) -> list[Sample]:
        place = time_s if self._spec.rate_hz else float(self._count)
        if self._count == 0:
            self._first = place
            self._due = self._end_of(0)
        self._count += 1
        self._places.append(place)
        self._rows.append(values)
        made = []
        while place >= self._due:
            made.append(self._make(time_s))
        return made

    def _end_of(self, number: int) -> float:
        """Where a window is complete; a thousandth of a step early, for rounding."""
        return self._first + (number * self._hop + self._window - 1.001) / self._rate

    def _fresh(self, number: int) -> int:
        """The first point of a window that no window before it has."""
        start = number * self._hop
        return start if number == 0 else max(start, start - self._hop + self._window)

    def _make(self, time_s: float) -> Sample:
        start = self._made * self._hop
        points = np.arange(self._fresh(self._made), start + self._window)
        places = self._first + points / self._rate
        known = np.array(self._rows, dtype=np.float64)
        data = np.empty(self._spec.shape, np.float32)
        kept = self._window - len(points)
        if kept and self._before is not None:
            data[:kept] = self._before[self._window - kept :]
        for channel in range(data.shape[1]):
            data[kept:, channel] = np.interp(places, self._places, known[:, channel])
        self._before = data.copy()  # a model may write into its input
        sample = Sample(
            data, float(places[-1]) if self._spec.rate_hz else time_s, self._index, self._name
        )
        self._index += 1
        self._made += 1
        self._due = self._end_of(self._made)
        needed = self._first + self._fresh(self._made) / self._rate
        passed = max(bisect_right(self._places, needed) - 1, 0)
        del self._places[:passed], self._rows[:passed]
        self._learn()
        return sample

    def _learn(self) -> None:
        usual_s = self._usual_s()
        self._limit_s = self._gap_s or self._usual_limit_s()
        if usual_s and self._spec.rate_hz:
            self._group = max(int(1 / (usual_s * self._spec.rate_hz) + 0.1), 1)

    def _is_gap(self, step_s: float) -> bool:
        return self._gap_s is not None or step_s > self._usual_limit_s()

    def _usual_limit_s(self) -> float:
        """Five usual sample times, of the sensor or the filter, whichever are longer."""
        least_s = 1 / self._spec.rate_hz if self._spec.rate_hz else 0.0
        return GAP_STEPS * max(self._usual_s(), least_s)

    def _usual_s(self) -> float:
        """The median of the last sample times; as told as long as there are few; 0: unknown."""
        if self._nominal_s is not None and len(self._steps_s) < 3:
            return self._nominal_s
        steps_s = sorted(self._steps_s)
        return steps_s[(len(steps_s) - 1) // 2] if steps_s else 0.0


Pick = tuple[int, float]
"""Which of the device's channels one of the filter's is, and the factor its values are taken by."""


def pick_channels(
    address: str, spec: MotionSpec, imu: ImuConfig, names: Sequence[str], wanted: Sequence[str] = ()
) -> list[Pick]:
    """Return where each of the filter's channels is among a device's, with imu.scale's factor.

    names: the device's channels. wanted: the names the filter's channels have there, in its order;
    default: the filter's own, or all in their order if it was made from a recording without names.
    Raises ConfigError, which says what the device has.
    """
    unknown = [name for name in imu.scale if name not in names]
    if unknown:
        raise ConfigError(
            f"imu.scale names {unknown[0]!r}, which {address} does not have ({', '.join(names)})"
        )
    if wanted and len(wanted) != len(spec.channels):
        raise ConfigError(
            f"imu.channels names {len(wanted)} channels of {address}, the filter reads "
            f"{len(spec.channels)} ({', '.join(spec.channels)})"
        )
    nameless = spec.channels[0] in _ANONYMOUS and len(names) == len(spec.channels)
    wanted = wanted or (names if nameless else spec.channels)
    missing = [name for name in wanted if name not in names]
    if missing:
        raise ConfigError(
            f"{address} has no channel {missing[0]}; it has {', '.join(names) or 'none'}: say "
            f"with imu.channels which of them the filter's are ({', '.join(spec.channels)})"
        )
    return [(names.index(name), imu.scale.get(name, 1.0)) for name in wanted]
