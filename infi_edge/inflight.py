"""Inputs under way: several wait for a model at a time, and all are answered in their order."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from infi_edge.errors import InfiEdgeError
from infi_edge.gate import Look, Step
from infi_edge.served import Job
from infi_edge.types import Sample

log = logging.getLogger("infi_edge")

MOST = 256
"""Inputs that wait behind one that is inferred, at most."""


@dataclass(slots=True)
class Arrival:
    """An input on its way. age_s: its age when it came; at_s: unix seconds; filter_s: time of the
    filter. look: None where it failed. step: None likewise. error: what it failed with."""

    sample: Sample
    at_s: float
    age_s: float
    filter_s: float = 0.0
    look: Look | None = None
    step: Step | None = None
    job: Job | None = None
    error: InfiEdgeError | None = None

    def forget(self) -> None:
        """Let go of everything: an error keeps the frames it came through, and those this."""
        self.look = self.step = self.job = self.error = None


class InFlight:
    """Keeps arrivals in order; those that have their answer are finished by a thread of its own.

    turn: held while arrivals are decided on and finished; released while waiting.
    """

    def __init__(
        self, turn: threading.Condition, window: int, finish: Callable[[Arrival], None]
    ) -> None:
        """window: inferences under way at a time. finish: called with `turn` held, in order."""
        self._turn, self.window, self._finish = turn, window, finish
        self._arrivals: deque[Arrival] = deque()
        self._closing = False
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._arrivals)

    def steps(self) -> list[Step]:
        """The steps whose answers have not been taken, the newest first; `turn` is held."""
        return [a.step for a in reversed(self._arrivals) if a.job is not None and a.step]

    def add(self, arrival: Arrival, alive: Callable[[], None]) -> None:
        """Let an arrival wait for its turn; waits while the window is full. `turn` is held.

        alive: called now and then while waiting; it may raise.
        """
        if not self._arrivals and arrival.job is None:
            self._finish(arrival)
            return
        self._arrivals.append(arrival)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="in flight", daemon=True)
            self._thread.start()
        self._turn.notify_all()
        self._wait(lambda: len(self.steps()) < self.window and len(self) < MOST, alive)

    def wait_for_next(self, alive: Callable[[], None]) -> None:
        """Wait until the oldest arrival is finished. `turn` is held."""
        oldest = self._arrivals[0] if self._arrivals else None
        self._wait(lambda: not self._arrivals or self._arrivals[0] is not oldest, alive)

    def drain(self, alive: Callable[[], None]) -> None:
        """Wait until all are finished. `turn` is held."""
        self._wait(lambda: not self._arrivals, alive)

    def close(self, most_s: float = 2.0) -> None:
        """End the thread, once the arrivals are finished or given up; waits so long for that.

        The next `add` begins a new one.
        """
        with self._turn:
            self._closing = True
            self._turn.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(most_s)

    def _wait(self, good: Callable[[], bool], alive: Callable[[], None]) -> None:
        while not self._turn.wait_for(good, 0.5):
            alive()

    def _run(self) -> None:
        while True:
            with self._turn:
                while not self._arrivals:
                    if self._closing:
                        self._thread = None
                        return
                    self._turn.wait()
                oldest = self._arrivals[0]
                done = None if oldest.job is None else oldest.job.done
            if done is not None:
                done.wait()
            with self._turn:
                try:
                    self._finish(oldest)
                except Exception:  # a defect must not end what finishes the others
                    log.exception("unexpected error at the end of an input")
                finally:
                    self._arrivals.popleft()
                    self._turn.notify_all()
                    del oldest
