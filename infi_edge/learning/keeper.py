"""Keeps a learner's state in its folder: now and then, in a thread of its own, and at the end."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infi_edge.learning.state import StateFolder

if TYPE_CHECKING:
    from infi_edge.learning.learner import Learner

log = logging.getLogger("infi_edge")

EVERY_S = 60.0


class Keeper:
    """Loads a state at the start and saves it every minute, if something was learned."""

    def __init__(
        self, folder: Path, identity: str, facts: dict[str, Any], learner: Learner
    ) -> None:
        """facts: what the state belongs to, for `inspect`. Raises ConfigError if another process
        has the folder."""
        self._folder = StateFolder(folder, identity)
        self._facts, self._learner = facts, learner
        self._saved_s = time.monotonic()
        self._saved_inputs = 0
        self._thread: threading.Thread | None = None
        self.path = folder
        self.restored = False

    def restore(self, now_s: float) -> None:
        """Go on where the saved state stands, if there is a usable one. now_s: stream time."""
        saved = self._folder.load()
        if saved is None:
            return
        pause_s = max(time.time() - saved.saved_at_unix_s, 0.0)
        try:
            self._learner.restore(saved.manifest["state"], saved.arrays, now_s - pause_s)
            self.restored = True
        except (ValueError, KeyError, TypeError, IndexError) as error:
            log.warning(
                "%s cannot be gone on from (%s: %s); it is learned anew",
                self.path, type(error).__name__, error,
            )  # fmt: skip

    def tick(self, now_s: float) -> None:
        """Save if it is time to; returns at once. now_s: stream time."""
        if time.monotonic() - self._saved_s < EVERY_S:
            return
        if self._thread is not None and self._thread.is_alive():
            return
        self._saved_s = time.monotonic()
        state, arrays, good = self._snapshot(now_s)
        self._thread = threading.Thread(
            target=self._write, args=(state, arrays, good), name="keep", daemon=True
        )
        self._thread.start()

    def close(self, now_s: float | None) -> None:
        """Save and let go of the folder. now_s: stream time; None: there was no input."""
        if self._thread is not None:
            self._thread.join()
        if now_s is not None:
            self._write(*self._snapshot(now_s))
        self._folder.close()

    def _snapshot(self, now_s: float) -> tuple[dict[str, Any], dict[str, np.ndarray], bool]:
        state, arrays = self._learner.snapshot(now_s)
        return state, arrays, self._learner.holds

    def _write(self, state: dict[str, Any], arrays: dict[str, np.ndarray], good: bool) -> None:
        self._folder.save({"facts": self._facts, "state": state}, arrays, good=good)
