"""Live sound, block by block, becomes windows; none spans a gap."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from infi_edge.capture.source import Health
from infi_edge.errors import SourceError

SILENT_S = 10.0
JUMP_S = 0.5
"""Sound that comes so much later than its number says: some was lost, and nobody said so."""
SETTLE_S = 10.0
"""The times of the samples follow the clock of the computer with this time constant, so that they
neither jitter with each block nor drift away in days."""


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of sound as it came.

    samples: int16 (n,). number: of the first, since the device was opened. start_s: when that was
    captured, monotonic. overflow: sound was lost before it.
    """

    samples: np.ndarray
    number: int
    start_s: float
    overflow: bool = False


class AudioWindows:
    """Cuts sound into windows of `window` samples at `rate_hz`, a new one every `hop`.

    After a gap windows start anew; what was before it and fills no window is left out. Counted
    in health: `gap` (of every cause), `overflow`, `missing` (unsaid), `silent`.
    """

    def __init__(self, window: int, hop: int, rate_hz: int, health: Health) -> None:
        self._window, self._hop, self._rate_hz, self._health = window, hop, rate_hz, health
        self._buffer = np.zeros(window, np.float32)
        self._from_hz = rate_hz
        self._resampler: Any = None
        self._next_number: int | None = None
        self._filled = self._skip = 0
        self._taken = self._made = 0  # samples since the last gap: from the device, at rate_hz
        self._end_s = 0.0  # when the last one taken was captured
        self._told_s = -math.inf
        self._quiet_s = 0.0

    def open(self, from_hz: int) -> None:
        """Begin with a device just opened that gives from_hz samples a second.

        Raises SourceError if they have to be resampled and the package for it is missing.
        """
        if self._next_number is not None:
            self._health.count("gap")
        self._next_number = None
        self._resampler = None
        self._from_hz = from_hz
        if from_hz != self._rate_hz:
            self._resampler = _resampler(from_hz, self._rate_hz)

    def push(self, block: Block) -> Iterator[tuple[np.ndarray, float]]:
        """Yield (window, time_s) of each window that the block completes.

        window: float32 (window,) in -1..1, a copy. time_s: when its last sample was captured,
        monotonic, never before the last one's. To be iterated to its end.
        """
        if not self._continues(block):
            self._begin(block.start_s)
        self._next_number = block.number + len(block.samples)
        self._listen(block)
        length_s = len(block.samples) / self._from_hz
        late_s = block.start_s - self._end_s
        self._end_s += late_s * min(length_s / SETTLE_S, 1.0) + length_s
        self._taken += len(block.samples)
        sound = block.samples.astype(np.float32)
        sound /= 32768.0
        if self._resampler is not None:
            sound = self._resampler.resample_chunk(sound)
        yield from self._cut(sound)

    def _continues(self, block: Block) -> bool:
        """Say whether a block goes on where the last one ended; tell and count it if not."""
        opened = self._next_number is None
        lost = block.number - (self._next_number or 0)
        late_s = 0.0 if opened else block.start_s - self._end_s
        if lost:
            lost_s = lost / self._from_hz
            sentence = f"{lost_s:.1f} s of sound were lost: what reads it was busy for too long"
            self._health.notice("overflow", sentence)
        elif block.overflow:
            sentence = "sound was lost: the computer was too busy to fetch it from the device"
            self._health.notice("overflow", sentence)
        elif late_s > JUMP_S:
            sentence = f"{late_s:.1f} s of sound are missing, and the device did not say so"
            self._health.notice("missing", sentence)
        else:
            if late_s < -JUMP_S:  # the device's times were wrong before; the sound is whole
                self._end_s = block.start_s
            return not opened
        self._health.count("gap")
        return False

    def _begin(self, start_s: float) -> None:
        self._filled = self._skip = self._taken = self._made = 0
        self._end_s = start_s
        if self._resampler is not None:
            self._resampler.clear()

    def _cut(self, sound: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
        place = 0
        while place < len(sound):
            left = len(sound) - place
            if self._skip:
                step = min(self._skip, left)
                self._skip -= step
            else:
                step = min(self._window - self._filled, left)
                self._buffer[self._filled : self._filled + step] = sound[place : place + step]
                self._filled += step
            place += step
            if self._filled == self._window:
                yield self._buffer.copy(), self._time_s(self._made + place)
                self._advance()
        self._made += place

    def _advance(self) -> None:
        kept = max(self._window - self._hop, 0)
        self._buffer[:kept] = self._buffer[self._window - kept :]
        self._filled, self._skip = kept, max(self._hop - self._window, 0)

    def _time_s(self, made: int) -> float:
        """When the sample that ends `made` samples at rate_hz was captured."""
        time_s = self._end_s - self._taken / self._from_hz + made / self._rate_hz
        self._told_s = max(time_s, self._told_s)
        return self._told_s

    def _listen(self, block: Block) -> None:
        if block.samples.any():
            if self._quiet_s >= SILENT_S:
                self._health.sentence = ""
            self._quiet_s = 0.0
            return
        before_s = self._quiet_s
        self._quiet_s += len(block.samples) / self._from_hz
        if before_s < SILENT_S <= self._quiet_s:
            sentence = f"nothing but zeros for {SILENT_S:g} s; see whether it is muted"
            self._health.notice("silent", sentence)


def _resampler(from_hz: int, rate_hz: int) -> Any:
    try:
        soxr = importlib.import_module("soxr")
    except ImportError as error:
        raise SourceError(
            f"it records at {from_hz} Hz and the filter reads {rate_hz} Hz, which needs the "
            "package soxr: pip install 'infi-edge[microphone]'"
        ) from error
    return soxr.ResampleStream(from_hz, rate_hz, 1, dtype="float32")
