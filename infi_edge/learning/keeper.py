"""Keeps a learner's state in its folder: now and then, in a thread of its own, and at the end."""

from __future__ import annotations

import logging
import math
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infi_edge.learning.state import StateFolder

if TYPE_CHECKING:
    from infi_edge.learning.learner import Learner

log = logging.getLogger("infi_edge")

EVERY_S, IDLE_EVERY_S = 60.0, 600.0
"""Between saves, where there were fits and where there were none: cards wear."""
UNKNOWN_PAUSE_S = 86_400.0


class Keeper:
    """Loads a state at the start, and saves it every minute in which something was learned."""

    def __init__(
        self, folder: Path, identity: str, facts: dict[str, Any], learner: Learner
    ) -> None:
        """facts: what the state belongs to, for `inspect`. Raises ConfigError if another process
        has the folder."""
        self._folder = StateFolder(folder, identity)
        self._facts, self._learner = facts, learner
        self._saved_s = -math.inf  # the first fit is kept at once
        self._saved_fits = 0
        self._thread: threading.Thread | None = None
        self.path = folder
        self.restored = False

    def restore(self, now_s: float) -> None:
        """Go on where the saved state stands, if there is a usable one. now_s: stream time."""
        for load in (self._folder.load, self._folder.load_good):
            saved = load()
            if saved is None:
                continue
            # A clock behind that of the save (no battery, no network yet) says nothing of the age.
            pause_s = time.time() - saved.saved_at_unix_s
            pause_s = UNKNOWN_PAUSE_S if pause_s < 0 else pause_s
            try:
                self._learner.restore(saved.manifest["state"], saved.arrays, now_s - pause_s)
            except Exception as error:  # whatever a file holds, the gate goes on
                log.warning("%s cannot be gone on from (%r); it is learned anew", self.path, error)
                continue
            self.restored = True
            self._saved_fits = self._learner.counts["fits"]
            return

    def tick(self, now_s: float) -> None:
        """Save if it is time to; returns at once. now_s: stream time."""
        fits = self._learner.counts["fits"]
        if fits == 0:
            return
        every_s = IDLE_EVERY_S if fits == self._saved_fits else EVERY_S
        if time.monotonic() - self._saved_s < every_s:
            return
        if self._thread is not None and self._thread.is_alive():
            return
        self._saved_s, self._saved_fits = time.monotonic(), fits
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
