"""A recording as a partitioned model's head sees it: feature maps instead of pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from infi_edge.capture.replay import Recording
from infi_edge.executors.head import Head
from infi_edge.labels import stream_times
from infi_edge.types import Sample


class Headed:
    """Every input of `recording`, through the head. One reader at a time."""

    def __init__(self, recording: Recording, head: Head) -> None:
        self.recording, self.head = recording, head
        self.name, self.rate_hz, self.count = recording.name, recording.rate_hz, recording.count

    def samples(self, first: int = 0, last: int | None = None) -> Iterator[Sample]:
        """Yield inputs first..last-1 as feature maps."""
        for sample in self.recording.samples(first, last):
            yield replace(sample, data=self.head(sample.data))

    def content_hash(self) -> str:
        """What tells these inputs apart from others."""
        parts = f"{self.recording.content_hash()}\0{self.head.identity}"
        return hashlib.sha256(parts.encode()).hexdigest()

    def times_s(self, first: int, last: int) -> np.ndarray:
        """When inputs first..last-1 came, float64 seconds."""
        return stream_times(self.recording, first, last)
