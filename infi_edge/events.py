"""Events from results: begun, still, ended, with hysteresis, so that nothing flaps."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from infi_edge.config import EventsConfig
from infi_edge.tasks import SameRule, Value
from infi_edge.types import Action, Result, Sample

EventKind = Literal["begun", "still", "ended"]

LEAST_SILENCE_S = 10.0
"""No input at all for less than this ends nothing, however short end_s is: a slow model or a
stutter is no end. Nor do two of the pauses that a slow source makes anyway."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something wanted that begins, goes on or has ended.

    id: the same for the three of one event, and of no other. value: the latest wanted one.
    at, begun_at: wall time of this and of its first input, ISO 8601 in UTC. duration_s: stream
    seconds from the first wanted input to now, or to the last wanted one if it has ended.
    sample: the first wanted input, of a `begun`. before: the inputs from before it (the pre-roll).
    """

    kind: EventKind
    id: str
    source: str
    value: Value
    at: str
    begun_at: str
    duration_s: float
    sample: Sample | None = field(default=None, repr=False)
    before: tuple[Sample, ...] = field(default=(), repr=False)


@dataclass(slots=True)
class _Stretch:
    """Wanted values in a row. value: the first. told_s: when `begun` or `still` was last told."""

    id: str
    value: Value
    latest: Value
    at: str
    since_s: float
    last_s: float
    told_s: float
    sample: Sample | None
    before: tuple[Sample, ...]


class EventTracker:
    """Turns one source's results into events. All its times are the stream's (`Result.time_s`)."""

    def __init__(
        self,
        source: str,
        config: EventsConfig,
        is_wanted: Callable[[Value], bool],
        same: SameRule | None = None,
    ) -> None:
        """is_wanted: whether a value is one that somebody wants (the task: not redundant).

        same: for a task that wants every value (`label` without names): then an event is a
        stretch of values that are the same as its first, and each change is a new event.
        """
        self._source, self._config = source, config
        self._is_wanted, self._same = is_wanted, same
        self._current: _Stretch | None = None
        self._next: _Stretch | None = None
        self._ended_s: float | None = None
        self._input_s: float | None = None
        self._pause_s = 0.0

    @property
    def active(self) -> bool:
        """Whether an event goes on."""
        return self._current is not None

    def result(self, result: Result, sample: Sample) -> list[Event]:
        """Take one result; return what it ends, begins or goes on with, in this order."""
        now_s = result.time_s
        events = self.tick(now_s, result.at)
        if self._input_s is not None:
            self._pause_s = now_s - self._input_s
        self._input_s = now_s
        wanted = result.action is not Action.SKIP and self._is_wanted(result.value)
        current = self._current
        if wanted and current is not None and self._belongs(result.value, current):
            self._next = None
            return events + self._still(current, result)
        self._next = self._waiting(result, sample) if wanted else None
        if current is not None and self._is_over(current, now_s):
            events.append(self._end(current, now_s, result.at))
        if self._current is None and self._next is not None:
            events += self._begin(self._next, now_s, result.at)
        return events

    def tick(self, now_s: float, at: str) -> list[Event]:
        """Let time pass: an event ends when nothing wanted came for end_s, or nothing at all.

        now_s: the stream's time. at: wall time, for the event.
        """
        if self._next is not None and self._is_over(self._next, now_s):
            self._next = None
        if self._current is None or not self._is_over(self._current, now_s):
            return []
        return [self._end(self._current, now_s, at)]

    def finish(self, at: str) -> list[Event]:
        """End what goes on: the source has ended, or its task changes."""
        self._next = None
        if self._current is None:
            return []
        return [self._end(self._current, self._current.last_s, at)]

    def _is_over(self, stretch: _Stretch, now_s: float) -> bool:
        end_s = self._config.end_s
        if stretch.last_s == self._input_s:
            end_s = max(end_s, LEAST_SILENCE_S, 2 * self._pause_s)
        return now_s - stretch.last_s >= end_s

    def _belongs(self, value: Value, stretch: _Stretch) -> bool:
        return self._same is None or self._same(value, stretch.value)

    def _waiting(self, result: Result, sample: Sample) -> _Stretch:
        """The stretch that this value begins or goes on with, before it counts as an event."""
        stretch = self._next
        now_s, value = result.time_s, result.value
        if stretch is None or not self._belongs(value, stretch):
            name = f"{self._source}-{secrets.token_hex(6)}"
            return _Stretch(
                name, value, value, result.at, now_s, now_s, now_s, sample, result.before
            )
        stretch.latest, stretch.last_s = value, now_s
        return stretch

    def _begin(self, stretch: _Stretch, now_s: float, at: str) -> list[Event]:
        config = self._config
        if now_s - stretch.since_s < config.begin_s:
            return []
        if self._ended_s is not None and now_s - self._ended_s < config.cool_down_s:
            return []
        self._current, self._next = stretch, None
        stretch.told_s = now_s
        event = self._event("begun", stretch, now_s, at, stretch.sample, stretch.before)
        stretch.sample, stretch.before = None, ()
        return [event]

    def _still(self, stretch: _Stretch, result: Result) -> list[Event]:
        now_s = stretch.last_s = result.time_s
        stretch.latest = result.value
        if not self._config.still_s or now_s - stretch.told_s < self._config.still_s:
            return []
        stretch.told_s = now_s
        return [self._event("still", stretch, now_s, result.at)]

    def _end(self, stretch: _Stretch, now_s: float, at: str) -> Event:
        self._current, self._ended_s = None, now_s
        return self._event("ended", stretch, stretch.last_s, at)

    def _event(
        self,
        kind: EventKind,
        stretch: _Stretch,
        now_s: float,
        at: str,
        sample: Sample | None = None,
        before: tuple[Sample, ...] = (),
    ) -> Event:
        return Event(
            kind,
            stretch.id,
            self._source,
            stretch.latest,
            at,
            begun_at=stretch.at,
            duration_s=now_s - stretch.since_s,
            sample=sample,
            before=before,
        )
