"""Audio: a window of PCM becomes a picture of its spectrum in decibels, one byte a cell.

The spectrum is computed here in NumPy and never inside a network: the small TFLite runtimes have
no FFT, and one set of constants serves training and the device.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

import cv2
import numpy as np

from infi_edge.preprocess.spec import MAX_TENSOR_BYTES, Spec, register

MIN_RATE_HZ, MAX_RATE_HZ = 8000, 48000
FLOOR_DB = -100.0
LOUDEST = 4.0
"""A float sample beyond it is no PCM of full scale 1 (16-bit numbers as floats, most likely)."""
BANDS, TIMES = 16, 4


@register
class AudioSpec(Spec, frozen=True, forbid_unknown_fields=True, tag="audio"):
    """Windows of mono PCM of `rate_hz`, as levels of `bands` log-mel bands or of FFT bins.

    window_ms, hop_ms: of the windows. frame_ms, step_ms: of the short-time spectrum.
    transform: `logmel`, or `power` (every FFT bin, in decibels as well). 255 is a full-scale
    sine, 0 is 100 dB below. low, high: what 0 and 255 are to a network with a float input.
    """

    rate_hz: int = 16000
    window_ms: int = 1000
    hop_ms: int = 500
    frame_ms: int = 25
    step_ms: int = 10
    transform: Literal["logmel", "power"] = "logmel"
    bands: int = 40
    low: float = 0.0
    high: float = 1.0

    @property
    def window(self) -> int:
        """Samples in a window."""
        return self.rate_hz * self.window_ms // 1000

    @property
    def hop(self) -> int:
        """Samples from one window to the next."""
        return max(self.rate_hz * self.hop_ms // 1000, 1)

    @property
    def _frame(self) -> int:
        return self.rate_hz * self.frame_ms // 1000

    @property
    def _step(self) -> int:
        return max(self.rate_hz * self.step_ms // 1000, 1)

    @property
    def shape(self) -> tuple[int, ...]:
        rows = (self.window - self._frame) // self._step + 1
        return (rows, self.bands if self.transform == "logmel" else self._frame // 2 + 1, 1)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8)

    @property
    def span(self) -> tuple[float, float]:  # type: ignore[override]
        return (self.low, self.high)

    @property
    def feature_count(self) -> int:
        return 3 * BANDS + TIMES * BANDS

    def problem(self) -> str | None:
        if not MIN_RATE_HZ <= self.rate_hz <= MAX_RATE_HZ:
            return f"sample rate: {self.rate_hz} Hz is not within {MIN_RATE_HZ}..{MAX_RATE_HZ}"
        if not 10 <= self.window_ms <= 60_000 or self.hop_ms < 1:
            return f"window: {self.window_ms} ms, hop {self.hop_ms} ms"
        if self.step_ms < 1 or not 2 <= self.frame_ms <= min(self.window_ms, 1000):
            return f"spectrum: frames of {self.frame_ms} ms every {self.step_ms} ms"
        if not 4 <= self.bands <= 256:
            return f"number of bands: {self.bands} is not within 4..256"
        if 8 * self.shape[0] * max(self.shape[1], self._frame) > MAX_TENSOR_BYTES:
            return f"spectrum: {self.shape[0]} frames of {self.frame_ms} ms are too many"
        fits = -math.inf < self.low < self.high < math.inf
        return None if fits else "range: low must be below high"

    def tensor(self, data: np.ndarray) -> np.ndarray:
        """data: PCM (window,), float -1..1 or int16. A NaN, an infinite sample or one far beyond
        full scale is refused."""
        if not isinstance(data, np.ndarray) or data.dtype not in (np.float32, np.float64, np.int16):
            found = getattr(data, "dtype", type(data).__name__)
            raise ValueError(f"sound is float32 or int16 samples, not {found}")
        if data.ndim == 2 and data.shape[1] != 1:
            raise ValueError(f"sound of {data.shape[1]} channels; give one channel")
        if data.size != self.window:
            raise ValueError(
                f"a window is {self.window} samples ({self.window_ms} ms at {self.rate_hz} Hz), "
                f"not {data.size}"
            )
        pcm = data.ravel().astype(np.float64)
        if data.dtype == np.int16:
            pcm /= 32768.0
        if not np.isfinite(pcm).all():
            raise ValueError("sound with a sample that is not a number")
        peak = float(np.abs(pcm).max())
        if peak > LOUDEST:
            raise ValueError(f"sound that reaches {peak:g} where 1 is full scale; scale it down")
        return _levels(pcm, self).reshape(1, *self.shape)

    def features(self, tensor: np.ndarray) -> np.ndarray:
        """Mean, deviation and maximum over time of 16 bands, and a grid of 4 times x 16 bands."""
        picture = tensor[0, :, :, 0].astype(np.float32) / np.float32(255)
        rows = len(picture)
        narrow = cv2.resize(picture, (BANDS, rows), interpolation=cv2.INTER_AREA)
        grid = cv2.resize(narrow, (BANDS, TIMES), interpolation=cv2.INTER_AREA)
        return np.concatenate(
            [narrow.mean(axis=0), narrow.std(axis=0), narrow.max(axis=0), grid.ravel()]
        ).astype(np.float32)


def _levels(pcm: np.ndarray, spec: AudioSpec) -> np.ndarray:
    window, bank = _constants(spec)
    frame, step = spec._frame, spec._step
    frames = np.lib.stride_tricks.sliding_window_view(pcm, frame)[::step]
    power = np.square(np.abs(np.fft.rfft(frames * window, axis=1)))
    if bank is not None:
        power = power @ bank
    decibels = 10.0 * np.log10(power + 1e-12)
    levels = np.rint((decibels - FLOOR_DB) * (255.0 / -FLOOR_DB))
    clipped: np.ndarray = np.clip(levels, 0.0, 255.0).astype(np.uint8)
    return clipped


@functools.lru_cache(maxsize=8)
def _constants(spec: AudioSpec) -> tuple[np.ndarray, np.ndarray | None]:
    """The Hann window, scaled so that a full-scale sine has power 1, and the mel filter bank."""
    frame = spec._frame
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(frame) / frame)
    hann *= 2.0 / hann.sum()
    if spec.transform == "power":
        return hann, None
    bins = np.fft.rfftfreq(frame, 1.0 / spec.rate_hz)
    top = 2595.0 * np.log10(1.0 + spec.rate_hz / 2 / 700.0)
    edges = 700.0 * (10.0 ** (np.linspace(0.0, top, spec.bands + 2) / 2595.0) - 1.0)
    # Bands narrower than an FFT bin would be empty: each reaches at least its nearest bin.
    gap = bins[1]
    lower = np.minimum(edges[:-2], edges[1:-1] - gap)[None]
    upper = np.maximum(edges[2:], edges[1:-1] + gap)[None]
    centre = edges[1:-1][None]
    rising = (bins[:, None] - lower) / (centre - lower)
    falling = (upper - bins[:, None]) / (upper - centre)
    return hann, np.maximum(np.minimum(rising, falling), 0.0)
