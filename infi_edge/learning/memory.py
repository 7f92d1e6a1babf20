"""What a learning gate remembers: its last inferred inputs, which are its reuse cache, too."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from infi_edge.cache import ENTRY_OVERHEAD_BYTES, ReuseCache
from infi_edge.learning.metric import Embedding, Sample
from infi_edge.tasks import Value


class Memory:
    """A bounded ring of (features, time, value, probability), the oldest going first.

    It keeps the cheap features, never the input, so that a new metric embeds all of it anew:
    embeddings of two metrics never meet in one cache.
    """

    def __init__(self, features: int, entries: int, max_bytes: int) -> None:
        """features: numbers of an input. max_bytes: of features and values together."""
        self._max_bytes = max_bytes
        self.capacity = max(min(entries, max_bytes // (4 * features)), 2)
        self._features = np.zeros((self.capacity, features), np.float32)
        self._times_s = np.zeros(self.capacity)
        self._probabilities = np.ones(self.capacity)
        self._shadow = np.ones(self.capacity, bool)
        self._values: list[Value] = []
        self._bytes: list[int] = []
        self._first = 0
        self._overhead = 4 * features + ENTRY_OVERHEAD_BYTES

    def __len__(self) -> int:
        return len(self._values)

    def add(
        self,
        features: np.ndarray,
        time_s: float,
        value: Value,
        probability: float,
        in_shadow: bool = True,
    ) -> None:
        """Remember an inferred input, unless it is larger than all may be. features: float32 (F,).

        probability: with which it was inferred. in_shadow: whether a gate that is not open would
        have inferred it.
        """
        size = _size(value) + self._overhead
        if size > self._max_bytes:
            return
        while self._values and (
            len(self) >= self.capacity or sum(self._bytes) + size > self._max_bytes
        ):
            self._values.pop(0)
            self._bytes.pop(0)
            self._first = (self._first + 1) % self.capacity
        slot = (self._first + len(self)) % self.capacity
        self._features[slot] = features
        self._times_s[slot], self._probabilities[slot] = time_s, probability
        self._shadow[slot] = in_shadow
        self._values.append(value)
        self._bytes.append(size)

    def sample(self) -> Sample:
        """Copies of all of it, in order."""
        order = self._order()
        return Sample(
            self._features[order],
            self._times_s[order],
            self._values.copy(),
            self._probabilities[order],
        )

    def all_in_shadow(self) -> None:
        """From here on a shadow's cache has everything."""
        self._shadow[:] = True

    def cache(
        self, embedding: Embedding, max_age_s: float | None = None, shadow: bool = False
    ) -> ReuseCache:
        """Return a new cache with all of it, or with the shadow's part, embedded."""
        cache = ReuseCache(len(embedding.used), self.capacity, self._max_bytes, max_age_s)
        order = self._order()
        places = np.flatnonzero(self._shadow[order]) if shadow else np.arange(len(order))
        if len(places):
            slots = order[places]
            values = [self._values[place] for place in places.tolist()]
            sizes = np.array(self._bytes, np.int64)[places] - self._overhead
            cache.fill(embedding(self._features[slots]), values, self._times_s[slots], sizes)
        return cache

    def _order(self) -> np.ndarray:
        return (self._first + np.arange(len(self))) % self.capacity


def _size(value: Value) -> int:
    return len(json.dumps(value)) if isinstance(value, (list, dict, str)) else 8


def is_learnable(value: Any) -> bool:
    """Whether an answer has no NaN in it: such a one is never the same as another."""
    if isinstance(value, float):
        return not math.isnan(value)
    if isinstance(value, dict):
        return all(is_learnable(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return all(is_learnable(v) for v in value)
    return True
