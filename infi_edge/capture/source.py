"""What every live source is: a device that may fail, kept open; its health, told once per cause."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from infi_edge.errors import SourceError
from infi_edge.types import Sample

log = logging.getLogger("infi_edge")

TICK_S = 0.5
"""A source yields at least this often: None when there is no input yet."""

OPEN_S = 10.0
"""The first reading may take so long, even where stall_s is less: cameras are slow to open."""

TOLD_AGAIN_S = 600.0
STEADY_S = 60.0
"""A source that gives inputs for so long works again; its next fault is a new one."""

STATES = ("starting", "live", "failing", "ended")

R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")


class Health:
    """What has happened to a source: its state, its counters by cause, the last fault's sentence.

    One thread writes, any may read. `sentence` never holds credentials: sources name themselves
    by `public_address`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = "starting"
        self.sentence = ""
        self.counts: Counter[str] = Counter()
        self._told: dict[str, float] = {}
        self._told_failures: dict[str, float] = {}
        self._failing_since_s: float | None = None
        self._live_since_s: float | None = None

    def count(self, cause: str, number: int = 1) -> None:
        """Count something that is no fault by itself (`dropped`)."""
        self.counts[cause] += number

    def notice(self, cause: str, sentence: str) -> None:
        """Count a fault that input goes on after (`overflow`, `torn`), and tell of it.

        The log has it once per cause in ten minutes.
        """
        self.counts[cause] += 1
        self.sentence = sentence
        now_s = time.monotonic()
        if now_s - self._told.get(cause, -TOLD_AGAIN_S) >= TOLD_AGAIN_S:
            self._told[cause] = now_s
            log.warning("%s: %s", self.name, sentence)

    def fail(self, cause: str, sentence: str) -> None:
        """Count a fault that stops the input, and tell of it: the state is `failing` until `live`.

        cause: `open`, `read`, `stall`, ... The log has it once until inputs come again; and once
        in ten minutes where they only come for moments.
        """
        self.counts[cause] += 1
        self.sentence = sentence
        now_s = time.monotonic()
        if self._failing_since_s is None:
            self._failing_since_s = now_s
            if self._live_since_s is not None and now_s - self._live_since_s >= STEADY_S:
                self._told_failures.clear()
        self.state = "failing"
        told_s = self._told_failures.get(cause)
        if told_s is None or (told_s < self._failing_since_s and now_s - told_s >= TOLD_AGAIN_S):
            self._told_failures[cause] = now_s
            log.warning("%s: %s", self.name, sentence)

    def live(self) -> None:
        """Note that there is input."""
        if self.state == "live":
            return
        now_s = time.monotonic()
        failing_s = self._failing_since_s
        if failing_s is not None and any(t >= failing_s for t in self._told_failures.values()):
            log.info("%s: inputs again after %.0f s", self.name, now_s - failing_s)
        self._failing_since_s, self._live_since_s = None, now_s
        self.state, self.sentence = "live", ""

    def end(self) -> None:
        """Note that there will be no more input."""
        self.state = "ended"


class Source(Protocol):
    """The seam: where inputs come from. `samples` is iterated by one thread, once."""

    name: str
    health: Health

    def samples(self) -> Iterator[Sample | None]:
        """Yield inputs as they come, and None at least every TICK_S while there is none.

        Returns when there are no more (a recording's end, `close`). Raises SourceError only for
        what will not mend by itself; a device that fails is opened again.
        """

    def now_s(self) -> float:
        """The stream's time now, on the clock of `Sample.time_s`."""

    def close(self) -> None:
        """End `samples` within a second; from any thread."""


class Device(Protocol[R_co]):
    """A camera, microphone or sensor that is open now."""

    def read(self, timeout_s: float) -> R_co | None:
        """Return the next reading, or None if there is none in time. Raises SourceError."""

    def close(self) -> None:
        """Let go of it within a second, whatever it does (a child process is killed)."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits between attempts: first_s, doubled up to most_s, each shortened by up to a third."""

    first_s: float = 0.5
    most_s: float = 30.0

    def waits(self) -> Iterator[float]:
        """Yield seconds, without end."""
        wait_s = self.first_s
        while True:
            yield wait_s * random.uniform(2 / 3, 1)
            wait_s = min(2 * wait_s, self.most_s)


def keep_open(
    open_device: Callable[[], Device[T]],
    health: Health,
    closing: threading.Event,
    *,
    stall_s: float,
    backoff: Backoff | None = None,
    must_open: bool = False,
) -> Generator[T | None, None, None]:
    """Yield a device's readings, None at least every TICK_S, until `closing` is set.

    A device that cannot be opened, raises SourceError, or gives nothing for stall_s (OPEN_S at
    least for the first reading) is closed and opened again with backoff; counted in health as
    `open` (an error before its first reading), `read`, `stall`, and `reconnects`.
    The backoff begins anew once a device has worked for as long as was waited for it.
    must_open: raise SourceError if the very first opening fails.
    """
    backoff = backoff or Backoff()
    waits = backoff.waits()
    tried = worked = False
    wait_s = 0.0
    while not closing.is_set():
        device: Device[T] | None = None
        has_read, opened_s = False, time.monotonic()
        try:
            device = open_device()
            for reading in _read(device, closing, stall_s):
                if reading is not None:
                    if not has_read and worked:
                        health.count("reconnects")
                    has_read = worked = True
                    health.live()
                    if wait_s and time.monotonic() - opened_s >= wait_s:
                        waits, wait_s = backoff.waits(), 0.0
                yield reading
        except _Stall as stall:
            health.fail("stall", f"{stall}; it is opened again")
            if must_open and not tried and not has_read:
                raise SourceError(f"{health.name}: {stall}; see 'infi-edge doctor'") from None
        except SourceError as error:
            if must_open and not tried and not has_read:
                raise
            health.fail("read" if has_read else "open", str(error))
        finally:
            if device is not None:
                device.close()
        tried = True
        wait_s = next(waits)
        yield from wait(wait_s, closing)


class _Stall(Exception):
    """No reading for too long."""


def _read(
    device: Device[T], closing: threading.Event, stall_s: float
) -> Generator[T | None, None, None]:
    last_s, most_s = time.monotonic(), max(stall_s, OPEN_S)
    while not closing.is_set():
        reading = device.read(min(TICK_S, stall_s))
        now_s = time.monotonic()
        if reading is not None:
            last_s, most_s = now_s, stall_s
        elif now_s - last_s >= most_s:
            raise _Stall(f"no input for {most_s:g} s")
        yield reading
        last_s += time.monotonic() - now_s  # a slow gate is no stall


def wait(wait_s: float, closing: threading.Event) -> Iterator[None]:
    """Yield None every TICK_S until so many seconds have passed, or `closing`."""
    until_s = time.monotonic() + wait_s
    while (left_s := until_s - time.monotonic()) > 0 and not closing.is_set():
        closing.wait(min(left_s, TICK_S))
        yield None
