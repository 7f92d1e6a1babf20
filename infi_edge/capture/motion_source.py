"""A motion sensor as a source: read by a thread of its own, so that a busy gate loses nothing."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from infi_edge.capture.live_motion import MotionWindows
from infi_edge.capture.source import TICK_S, Device, Health, keep_open
from infi_edge.config import SourceConfig
from infi_edge.errors import ConfigError, SourceError
from infi_edge.preprocess import MotionSpec
from infi_edge.types import Sample

_WAITING_WITHOUT_RATE = 64


@dataclass(frozen=True, slots=True)
class Rows:
    """Samples as they were read. times_s: monotonic. values: (n, C), the filter's channels in its
    order and in SI units. after_gap: samples are missing before these."""

    times_s: Sequence[float]
    values: Sequence[Sequence[float]] | np.ndarray
    after_gap: bool = False


class MotionDevice(Device[Rows], Protocol):
    """A sensor that is open now."""

    @property
    def rate_hz(self) -> float | None:
        """Samples a second it is set to; None: nobody knows."""


class MotionSource:
    """Windows of a sensor that is kept open.

    While the gate is busy, windows of the last imu.buffer_s seconds wait. What is older is
    dropped and counted (`overflow`); a jump of `Sample.index` shows where.
    """

    def __init__(
        self,
        name: str,
        config: SourceConfig,
        spec: MotionSpec,
        open_device: Callable[[Health], MotionDevice],
        must_open: bool,
    ) -> None:
        """open_device: called with the source's health; raises SourceError or ConfigError."""
        self.name, self.health = name, Health(name)
        self._open_device, self._must_open, self._stall_s = open_device, must_open, config.stall_s
        self._windows = MotionWindows(name, spec, self.health, config.imu.gap_s)
        hop_s = spec.hop / spec.rate_hz if spec.rate_hz else None
        kept = math.ceil(config.imu.buffer_s / hop_s) if hop_s else _WAITING_WITHOUT_RATE
        self._waiting: deque[Sample] = deque(maxlen=max(kept, 2))
        self._ready = threading.Condition()
        self._closing = threading.Event()
        self._refused = False
        self._done = False
        self._error: Exception | None = None

    def samples(self) -> Iterator[Sample | None]:
        """See Source. Raises ConfigError if the sensor lacks a channel of the filter's."""
        reader = threading.Thread(target=self._read, name=f"{self.name} reader", daemon=True)
        reader.start()
        try:
            while not self._closing.is_set():
                with self._ready:
                    if not self._waiting and not self._done:
                        self._ready.wait(TICK_S)
                    sample = self._waiting.popleft() if self._waiting else None
                if sample is None and self._done:
                    break
                yield sample
            if self._error is not None:
                raise self._error
        finally:
            self.close()
            reader.join(1.0)
            self.health.end()

    def now_s(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        self._closing.set()
        with self._ready:
            self._ready.notify_all()

    def _read(self) -> None:
        try:
            kept_open = keep_open(
                self._open,
                self.health,
                self._closing,
                stall_s=self._stall_s,
                must_open=self._must_open,
            )
            for rows in kept_open:
                if rows is not None:
                    self._feed(rows)
        except Exception as error:  # raised again where it can be acted on: in `samples`
            self._error = error
        with self._ready:
            self._done = True
            self._ready.notify_all()

    def _open(self) -> Device[Rows]:
        try:
            device = self._open_device(self.health)
        except ConfigError as error:
            # A sensor that is just plugged in may not show all of its channels yet.
            if self._refused or self._must_open:
                raise
            self._refused = True
            raise SourceError(str(error)) from error
        self._refused = False
        self._windows.begin(device.rate_hz)
        return device

    def _feed(self, rows: Rows) -> None:
        if rows.after_gap:
            self._windows.restart()
        for time_s, values in zip(rows.times_s, rows.values, strict=True):
            for sample in self._windows.feed(time_s, values):
                self._put(sample)

    def _put(self, sample: Sample) -> None:
        with self._ready:
            if len(self._waiting) == self._waiting.maxlen:
                self.health.notice("overflow", "the gate is too slow; the oldest window is lost")
            self._waiting.append(sample)
            self._ready.notify()
