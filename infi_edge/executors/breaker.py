"""A circuit breaker: after repeated failures nothing is tried until a probe has succeeded."""

from __future__ import annotations

import threading
from typing import Literal

State = Literal["closed", "open", "half-open"]


class Breaker:
    """Closed: everything passes. Open: nothing. Half-open: one trial at a time, whose outcome
    closes or opens it. Who opens the door again (`probed`) is not the breaker's business."""

    def __init__(self, failures: int = 3) -> None:
        """failures: in a row, before it opens."""
        self._most = failures
        self._in_a_row = 0
        self._state: State = "closed"
        self._trial = False
        self._lock = threading.Lock()
        self.opened = 0

    @property
    def state(self) -> State:
        """Its state now."""
        return self._state

    def enter(self) -> bool:
        """Whether a request may be made now; in half-open state one caller is let through."""
        with self._lock:
            if self._state == "closed":
                return True
            if self._state == "open" or self._trial:
                return False
            self._trial = True
            return True

    def succeeded(self) -> None:
        """Note that a request was answered."""
        with self._lock:
            self._state, self._in_a_row, self._trial = "closed", 0, False

    def failed(self) -> bool:
        """Note that one was not; return whether this has opened the breaker."""
        with self._lock:
            self._in_a_row += 1
            self._trial = False
            if self._state == "open":
                return False
            if self._state == "closed" and self._in_a_row < self._most:
                return False
            self._state = "open"
            self.opened += 1
            return True

    def cancelled(self) -> None:
        """Note that a request has neither succeeded nor failed: another may be the trial."""
        with self._lock:
            self._trial = False

    def probed(self) -> None:
        """Note that the server answers again: the next request is a trial."""
        with self._lock:
            if self._state == "open":
                self._state, self._trial = "half-open", False
