"""Motion: a window of sensor channels in their own units; gravity is kept, gaps are filled."""

from __future__ import annotations

import itertools
import math
from typing import Any

import msgspec
import numpy as np

from infi_edge.preprocess.spec import MAX_TENSOR_BYTES, Spec, register

OCTAVES = 8
LIMIT, RAW_LIMIT = 8.0, 1e6
FARTHEST = 1e30
STILL = 1e-7
"""A channel whose deviation is this little beside its mean is constant (float32 has no more)."""


@register
class MotionSpec(Spec, frozen=True, forbid_unknown_fields=True, tag="motion"):
    """Windows of `window` samples of named channels, a new one every `hop` samples.

    rate_hz: samples a second; None where nobody knows. offset, scale: per channel, learned from
    the training part: the network reads (x - offset) / scale, within -8..8.
    """

    channels: tuple[str, ...] = ("x",)
    window: int = 100
    hop: int = 25
    rate_hz: float | None = None
    offset: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.window, len(self.channels))

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    @property
    def feature_count(self) -> int:
        return len(self.channels) * (5 + OCTAVES)

    def problem(self) -> str | None:
        count = len(self.channels)
        if not 1 <= count <= 1024 or not 1 <= self.window <= 1 << 20 or self.hop < 1:
            return f"window: {self.window} samples of {count} channels, hop {self.hop}"
        if self.window * count * 4 > MAX_TENSOR_BYTES:
            return "window: too large"
        if len(self.offset) != len(self.scale) or len(self.scale) not in (0, count):
            return "scale: offset and scale have one number a channel"
        if (
            not all(math.isfinite(x) for x in (*self.offset, *self.scale))
            or min(self.scale, default=1.0) <= 0
        ):
            return "scale"
        return None if self.rate_hz is None or 0 < self.rate_hz < math.inf else "rate"

    def tensor(self, data: np.ndarray) -> np.ndarray:
        """data: float (window, channels); NaN is a missing value, filled in from its neighbours
        in time, or with the channel's usual value where the whole window misses it."""
        if not isinstance(data, np.ndarray) or data.dtype.kind not in "iuf":
            raise ValueError("motion is an array of numbers")
        if data.ndim == 1 and len(self.channels) == 1:
            data = data[:, None]
        if data.shape != self.shape:
            raise ValueError(f"a window is {self.shape} here (samples, channels), not {data.shape}")
        values = data.astype(np.float64)
        if np.isinf(values).any():
            raise ValueError("motion with an infinite value")
        if self.scale:
            with np.errstate(over="ignore"):
                values = (values - np.array(self.offset)) / np.array(self.scale)
            values = np.clip(values, -FARTHEST, FARTHEST)  # between infinities is no number
        if np.isnan(values).any():
            values = _filled(values)
        limit = LIMIT if self.scale else RAW_LIMIT  # its own units may be large ones
        return np.clip(values, -limit, limit).astype(np.float32)[None]

    def features(self, tensor: np.ndarray) -> np.ndarray:
        """Per channel: mean, deviation, lowest, highest, mean step, and a spectrum in octaves."""
        x = tensor[0].astype(np.float64)
        mean = x.mean(axis=0)
        steps = np.abs(np.diff(x, axis=0)).mean(axis=0) if len(x) > 1 else np.zeros(x.shape[1])
        spectrum = np.abs(np.fft.rfft(x - mean, axis=0)) / len(x)
        bands = np.zeros((OCTAVES, x.shape[1]))
        edges = [1, 2, 3, 5, 9, 17, 33, 65, len(spectrum) + 65]
        for i, (first, last) in enumerate(itertools.pairwise(edges)):
            bands[i] = np.sqrt(np.square(spectrum[first:last]).sum(axis=0))
        rows = [mean, x.std(axis=0), x.min(axis=0), x.max(axis=0), steps, *bands]
        return np.concatenate(rows).astype(np.float32) / np.float32(4)

    def fitted(self, windows: list[Any]) -> MotionSpec:
        """Set offset and scale to the channels' mean and deviation over these windows.

        Raises ValueError if every channel is constant or empty, or a value is infinite.
        """
        if self.scale:
            return self
        wide = [np.asarray(w, np.float64).reshape(-1, len(self.channels)) for w in windows]
        values = np.concatenate(wide)
        there = ~np.isnan(values)
        if (np.abs(values) > np.finfo(np.float32).max).any():
            raise ValueError("motion with an infinite value")
        count = np.maximum(there.sum(axis=0), 1)
        known = np.where(there, values, 0.0)
        mean = known.sum(axis=0) / count
        spread = np.sqrt(np.where(there, np.square(values - mean), 0.0).sum(axis=0) / count)
        moving = spread > STILL * np.abs(mean)
        if not moving.any():
            raise ValueError("every channel is constant or empty: there is nothing to tell apart")
        usable = np.where(moving, spread, 1.0)
        return msgspec.structs.replace(
            self, offset=tuple(mean.tolist()), scale=tuple(usable.tolist())
        )


def _filled(values: np.ndarray) -> np.ndarray:
    """Interpolate each column over its NaN; a column of nothing else becomes zero."""
    times = np.arange(len(values))
    filled = values.copy()
    for column in range(values.shape[1]):
        there = np.flatnonzero(~np.isnan(values[:, column]))
        known = values[there, column] if len(there) else np.zeros(1)
        filled[:, column] = np.interp(times, there if len(there) else [0], known)
    return filled
