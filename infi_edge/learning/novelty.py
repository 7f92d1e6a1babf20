"""A change of all that an input is made of: what is remembered may not hold in it.

For every modality, by the features alone: noise, light, another microphone, another camera place.
"""

from __future__ import annotations

import numpy as np

STEADY = 40
"""Inputs before there is something to compare with."""
FOLLOW, AFTER = 1 / 200, 10
"""The rate of the running mean; after a change it is that of so many inputs, and growing."""
FLOOR = 0.01
"""Least spread of a feature: features are about 0..1."""
FAR, IN_A_ROW = 4.0, 3
"""Spreads by which the mean feature is off, in so many inputs one after another."""


class Novelty:
    """Compares the features of each input with their running mean and mean deviation."""

    def __init__(self) -> None:
        self._mean: np.ndarray | None = None
        self._spread: np.ndarray | None = None
        self._seen = self._far = 0

    def is_new(self, features: np.ndarray) -> bool:
        """Whether the third input in a row is unlike what there was. features: float32 (F,)."""
        if self._mean is None or self._spread is None:
            self._mean, self._spread = features.copy(), np.zeros_like(features)
        off = np.abs(features - self._mean)
        self._seen += 1
        far = self._seen > STEADY and float((off / (self._spread + FLOOR)).mean()) > FAR
        self._far = self._far + 1 if far else 0
        new = self._far >= IN_A_ROW
        if new:  # both are usual from here on: what alternates is new only once
            self._seen, self._far = AFTER, 0
        rate = np.float32(max(FOLLOW, 1 / self._seen))
        self._mean += rate * (features - self._mean)
        self._spread += rate * (off - self._spread)
        return new
