"""When samples were taken, on the monotonic clock: from the sensor's clock, or from arrivals."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

BUCKET_S = 10.0
SLEW = 0.01
JUMP_S = 0.5
"""Clocks that come apart by more have been set, not drifted."""

_GAIN = 0.1
_LEAST_GAP_S = 0.05
_ANCHOR_S = 0.2
_ANCHORS = 50


class SensorClock:
    """Maps the times that a sensor gives its samples to the monotonic clock, by the least delay.

    A sample arrives some unknown delay after it was taken: over the last 10 to 20 s the least
    difference between arrival and the sensor's time is the best guess of how the clocks stand.
    That follows a drift; the mapping moves by at most a hundredth of the time that passes,
    so times stay in order. A sensor clock that is set back (a restart, a counter that wraps) or
    jumps is mapped anew.
    """

    def __init__(self) -> None:
        self.resets = 0
        self._sensor_s: float | None = None
        self._begin(0.0, 0.0)

    def _begin(self, offset_s: float, arrival_s: float) -> None:
        self._offset_s = self._least_s = offset_s
        self._older_s = math.inf
        self._bucket_s = arrival_s

    def place(self, sensor_s: Sequence[float], arrival_s: float) -> list[float]:
        """Return the monotonic times of samples that were read together at arrival_s."""
        if self._sensor_s is None and sensor_s:
            self._begin(arrival_s - sensor_s[-1], arrival_s)
            self._sensor_s = sensor_s[0]
        return [self._place(each_s, arrival_s) for each_s in sensor_s]

    def _place(self, sensor_s: float, arrival_s: float) -> float:
        offset_s = arrival_s - sensor_s
        before_s, self._sensor_s = self._sensor_s or 0.0, sensor_s
        if arrival_s - self._bucket_s >= BUCKET_S:
            self._older_s, self._least_s, self._bucket_s = self._least_s, math.inf, arrival_s
        self._least_s = min(self._least_s, offset_s)
        error_s = min(self._least_s, self._older_s) - self._offset_s
        if sensor_s < before_s or abs(error_s) > JUMP_S:
            self.resets += 1
            self._begin(offset_s, arrival_s)
            return arrival_s
        most_s = SLEW * (sensor_s - before_s)
        self._offset_s += min(max(error_s, -most_s), most_s)
        return sensor_s + self._offset_s


class ArrivalTimes:
    """Gives times to samples that carry none: the sensor is steady, their arrival is not.

    Samples are evenly spaced by the rate at which they have come over the last 10 s, and slowly
    pulled to their arrivals; several that arrive at once (a buffer, a busy machine) are spread.
    If fewer came than the time since the last ones holds, by more than a gap, samples are missing
    and times begin anew at the arrival.
    """

    def __init__(self, rate_hz: float | None, gap_s: float | None = None) -> None:
        """rate_hz: about how many come a second; None: nobody knows. gap_s: None: five steps."""
        self._nominal = rate_hz is not None
        self._step_s = 1 / (rate_hz or 100.0)
        self._gap_s = gap_s
        self._arrival_s: float | None = None
        self._last_s = 0.0
        self._count = 0
        self._lost_s = 0.0
        self._learned = False
        self._anchors: deque[tuple[float, int]] = deque(maxlen=_ANCHORS)

    def place(self, arrival_s: float, count: int) -> list[float]:
        """Return the monotonic times of `count` samples that were there at arrival_s, the last of
        them new. arrival_s is taken before they are read, so that it is never too late."""
        first = self._arrival_s is None
        waited_s = arrival_s - (self._arrival_s or 0.0)
        self._arrival_s = arrival_s
        self._count += count
        missing_s = waited_s - count * self._step_s
        gap_s = self._gap_s or max(5 * self._step_s, _LEAST_GAP_S)
        if first or missing_s > gap_s:
            if self._learned:
                self._lost_s += missing_s
            self._learn(arrival_s)
            self._last_s = arrival_s
            return [arrival_s - back * self._step_s for back in range(count - 1, -1, -1)]
        self._learn(arrival_s)
        span_s = count * self._step_s
        error_s = arrival_s - (self._last_s + span_s)
        gain = _GAIN if abs(error_s) < gap_s else 1.0
        span_s += min(max(gain * error_s, -span_s / 2), span_s / 2)
        before_s = self._last_s
        self._last_s += span_s
        return [before_s + span_s * i / count for i in range(1, count + 1)]

    def _learn(self, arrival_s: float) -> None:
        now_s = arrival_s - self._lost_s
        if self._anchors:
            begun_s, begun = self._anchors[0]
            enough = now_s - begun_s >= 1.0 if self._nominal else True
            if enough and self._count - begun >= 8 and now_s > begun_s:
                self._step_s = (now_s - begun_s) / (self._count - begun)
                self._learned = True
        if not self._anchors or now_s - self._anchors[-1][0] >= _ANCHOR_S:
            self._anchors.append((now_s, self._count))
