"""Feature maps from the middle of a model, and any other tensor a network takes as it is."""

from __future__ import annotations

import math
from typing import Any, Literal

import cv2
import msgspec
import numpy as np

from infi_edge.preprocess.spec import MAX_TENSOR_BYTES, Spec, register

SIDE, GROUPS = 4, 32
FLAT = 512
_KINDS = {"float32": "fiu", "int8": "iu", "uint8": "biu", "int32": "iu"}


@register
class FeaturesSpec(Spec, frozen=True, forbid_unknown_fields=True, tag="features"):
    """A tensor of this shape (without the batch) and type.

    offset, scale: what the network reads of numbers is (x - offset) / scale; int8 maps are numbers
    in their own steps, ids (int32, 0..ids-1) are never scaled. pool: the filter reads the means of
    so many by so many cells of a map (H, W, C), the last ones of fewer.
    """

    size: tuple[int, ...] = (1,)
    type: Literal["float32", "int8", "uint8", "int32"] = "float32"
    offset: float = 0.0
    scale: float = 1.0
    ids: int = 4096
    pool: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        if self.pool == 1:
            return self.size
        rows, columns, channels = self.size
        return -(-rows // self.pool), -(-columns // self.pool), channels

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.int32 if self.type == "int32" else np.float32)

    @property
    def feature_count(self) -> int:
        if self.type == "int32":
            return FLAT
        if len(self.size) == 3:
            return SIDE * SIDE * min(self.size[2], GROUPS)
        return min(math.prod(self.size), FLAT)

    def problem(self) -> str | None:
        whole = 1 <= len(self.size) <= 6 and all(1 <= n <= 1 << 20 for n in self.size)
        if not whole or 4 * math.prod(self.size) > MAX_TENSOR_BYTES:
            return f"tensor shape: {self.size}"
        if not 2 <= self.ids <= 1 << 24:
            return f"number of ids: {self.ids}"
        if not 1 <= self.pool <= 1024:
            return f"pool: {self.pool}"
        if self.pool > 1 and (len(self.size) != 3 or self.type == "int32"):
            return f"pool of {self.pool}: only numbers of shape (H, W, C) can be pooled"
        fits = math.isfinite(self.offset) and math.isfinite(self.scale) and self.scale > 0
        return None if fits else "scale"

    def tensor(self, data: np.ndarray) -> np.ndarray:
        """data: an array of the size and type, with or without a batch of one. NaN is refused."""
        array = np.asarray(data)
        if array.shape == (1, *self.size):
            array = array[0]
        if array.shape != self.size:
            raise ValueError(f"a feature map is {self.size} here, not {array.shape}")
        if array.dtype.kind not in _KINDS[self.type]:
            raise ValueError(f"a feature map is {self.type} here, not {array.dtype}")
        if self.type == "int32":
            wrong = array[(array < 0) | (array >= self.ids)]
            if wrong.size:
                raise ValueError(
                    f"ids are 0..{self.ids - 1} here, not {wrong[0]}; numbers need type=float32"
                )
            return array.astype(np.int32)[None]
        if self.pool > 1:
            array = _pooled(array, self.pool)
        with np.errstate(over="ignore", invalid="ignore"):
            numbers = (array.astype(np.float32) - np.float32(self.offset)) / np.float32(self.scale)
        if not np.isfinite(numbers).all():
            raise ValueError("a feature map with a value that is not a number")
        return numbers[None]

    def features(self, tensor: np.ndarray) -> np.ndarray:
        """A map (H, W, C): means on a 4x4 grid of up to 32 groups of channels; else up to 512
        means of neighbours, each squashed to -1..1. Ids: how often each of 512 bins occurs."""
        if self.type == "int32":
            counts = np.bincount(tensor.ravel() % FLAT, minlength=FLAT)
            return (np.minimum(counts, 4) / 4).astype(np.float32)
        values = tensor[0].astype(np.float32)
        if values.ndim == 3:
            values = _grouped(values, min(values.shape[2], GROUPS))
            rows, columns = values.shape[:2]
            planes = [
                cv2.resize(
                    np.ascontiguousarray(values[..., i]),
                    (SIDE, SIDE),
                    interpolation=cv2.INTER_AREA if min(rows, columns) > SIDE else cv2.INTER_LINEAR,
                ).ravel()
                for i in range(values.shape[2])
            ]
            flat = np.concatenate(planes)
        else:
            flat = _grouped(values.ravel(), self.feature_count)
        return np.tanh(flat * np.float32(0.25)).astype(np.float32)

    def fitted(self, windows: list[Any]) -> FeaturesSpec:
        """Set offset and scale to the mean and deviation over these inputs."""
        if self.type == "int32" or (self.offset, self.scale) != (0.0, 1.0):
            return self
        maps = [np.asarray(w, np.float32).reshape(self.size) for w in windows]
        if self.pool > 1:
            maps = [_pooled(one, self.pool) for one in maps]
        values = np.stack(maps).astype(np.float64)
        spread = float(values.std())
        if not math.isfinite(spread):
            raise ValueError("a feature map with a value that is not a number")
        if spread <= 1e-7 * abs(float(values.mean())):
            raise ValueError("every feature map is the same: there is nothing to tell apart")
        return msgspec.structs.replace(self, offset=float(values.mean()), scale=spread)


def _pooled(values: np.ndarray, side: int) -> np.ndarray:
    """Means over cells of side x side of a map (H, W, C), float32."""
    rows, columns, channels = values.shape
    flat = np.ascontiguousarray(values, np.float32).reshape(rows, columns * channels)
    edges = np.arange(0, rows, side)
    sums = np.add.reduceat(flat, edges, axis=0).reshape(len(edges), columns, channels)
    across = np.arange(0, columns, side)
    sums = np.add.reduceat(sums, across, axis=1)
    high = np.diff(np.append(edges, rows)).astype(np.float32)
    wide = np.diff(np.append(across, columns)).astype(np.float32)
    means: np.ndarray = sums / (high[:, None] * wide[None])[..., None]
    return means


def _grouped(values: np.ndarray, groups: int) -> np.ndarray:
    """Means of `groups` runs of neighbours along the last axis."""
    edges = np.linspace(0, values.shape[-1], groups + 1).astype(int)
    sums = np.add.reduceat(values, edges[:-1], axis=-1)
    means: np.ndarray = sums / np.diff(edges).astype(np.float32)
    return means
