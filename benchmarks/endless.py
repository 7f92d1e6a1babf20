"""A source for the soak: numbers that wander, as fast as the gate takes them (a plugin)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from infi_edge.capture.address import register_source
from infi_edge.capture.source import Health
from infi_edge.config import SourceConfig
from infi_edge.preprocess import Spec
from infi_edge.types import Sample

RATE_HZ = 100.0


class Walk:
    """`walk:COUNT`: a random walk of eight numbers."""

    def __init__(self, name: str, count: int) -> None:
        self.name, self.health = name, Health(name)
        self._count, self._index, self._closed = count, 0, False

    def samples(self) -> Iterator[Sample | None]:
        """Yield all of them."""
        rng = np.random.default_rng(0)
        place = np.zeros(8, np.float32)
        self.health.live()
        while self._index < self._count and not self._closed:
            place = (place + rng.normal(0, 0.02, 8).astype(np.float32)) % np.float32(1.0)
            yield Sample(place, self.now_s(), self._index, self.name)
            self._index += 1

    def now_s(self) -> float:
        """The time of the stream: a hundred inputs a second."""
        return self._index / RATE_HZ

    def close(self) -> None:
        """Stop."""
        self._closed = True


def open_walk(name: str, config: SourceConfig, spec: Spec, must_open: bool) -> Walk:
    """The source behind walk:COUNT."""
    return Walk(name, int(config.address.partition(":")[2]))


register_source("walk", open_walk)
