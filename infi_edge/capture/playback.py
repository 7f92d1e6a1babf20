"""A recording as a source: at its recorded speed, or as fast as the gate takes it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from infi_edge.capture.recordings import open_recording
from infi_edge.capture.replay import Recording, part
from infi_edge.capture.source import TICK_S, Health
from infi_edge.config import SourceConfig
from infi_edge.preprocess import Spec
from infi_edge.types import Sample


class Playback:
    """Plays a recording once; the stream's time is the recording's.

    At recorded speed a gate that is slower than that gets late (`now_s` runs on), nothing is
    left out.
    """

    def __init__(
        self, name: str, recording: Recording, fast: bool, first: int = 0, last: int | None = None
    ) -> None:
        """fast: without waiting. first, last: the inputs to play, half open."""
        self.name, self.health = name, Health(name)
        self._recording, self._fast, self._range = recording, fast, (first, last)
        self._closing = threading.Event()
        self._time_s = 0.0
        self._begun_s: float | None = None

    def samples(self) -> Iterator[Sample | None]:
        for sample in self._recording.samples(*self._range):
            if not self._fast:
                yield from self._wait_for(sample.time_s)
            if self._closing.is_set():
                break
            self._time_s = sample.time_s
            self.health.live()
            yield Sample(sample.data, sample.time_s, sample.index, self.name)
        self.health.end()

    def _wait_for(self, time_s: float) -> Iterator[None]:
        if self._begun_s is None:
            self._begun_s = time.monotonic() - time_s
        while (early_s := time_s - self.now_s()) > 0 and not self._closing.is_set():
            self._closing.wait(min(early_s, TICK_S))
            if early_s > TICK_S:
                yield None

    def now_s(self) -> float:
        if self._begun_s is None:
            return self._time_s
        return time.monotonic() - self._begun_s

    def close(self) -> None:
        self._closing.set()


def open_playback(name: str, config: SourceConfig, spec: Spec, must_open: bool = False) -> Playback:
    """Open the recording at config.address. Raises SourceError or ConfigError."""
    recording = open_recording(config.address, config.rate_hz, spec)
    whole = (config.start, config.end) == (0.0, 1.0)
    first, last = (0, None) if whole else part(recording, config.start, config.end)
    return Playback(name, recording, config.fast, first, last)
