"""Clips of a live camera: the last n pictures, a new clip every so many."""

from __future__ import annotations

import statistics
from collections import deque

import numpy as np

from infi_edge.types import Image

GAP_INTERVALS = 5
"""A pause of so many usual intervals between two pictures is a gap."""


class LiveClips:
    """Clips of `frames` pictures, a new one every `hop`; none spans a gap.

    Clips share their pictures, so arrays are made read-only: a model must not draw on one.
    """

    def __init__(self, frames: int, hop: int) -> None:
        self._frames, self._hop = frames, hop
        self._recent: deque[Image] = deque(maxlen=frames)
        self._intervals: deque[float] = deque(maxlen=15)
        self._last_s: float | None = None
        self._until_next = frames

    def restart(self) -> None:
        """Begin anew: the camera was opened again."""
        self._recent.clear()
        self._until_next = self._frames
        self._last_s = None

    def add(self, image: Image, time_s: float) -> list[Image] | None:
        """Take a picture and its monotonic time; return the clip that it completes, or None."""
        if self._last_s is not None:
            interval_s = time_s - self._last_s
            if self._is_gap(interval_s):
                self.restart()
            self._intervals.append(interval_s)
        self._last_s = time_s
        if isinstance(image, np.ndarray):
            image.flags.writeable = False
        self._recent.append(image)
        self._until_next -= 1
        if self._until_next > 0:
            return None
        self._until_next = self._hop
        return list(self._recent)

    def _is_gap(self, interval_s: float) -> bool:
        if len(self._intervals) < 3:
            return False
        return interval_s > GAP_INTERVALS * statistics.median(self._intervals)
