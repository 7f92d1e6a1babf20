"""Video clips: the last n frames of a stream, each a small uint8 picture."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from infi_edge.preprocess.image import CELLS, GRID, ImageSpec, grey, image_features, image_tensor
from infi_edge.preprocess.spec import MAX_TENSOR_BYTES, Spec, register
from infi_edge.types import Image

MAX_FRAMES = 64


@register
class VideoSpec(Spec, frozen=True, forbid_unknown_fields=True, tag="video"):
    """A clip of `frames` frames, a new one every `hop` frames; each is stretched to the size."""

    frames: int = 8
    hop: int = 4
    width: int = 96
    height: int = 72
    low: float = 0.0
    high: float = 255.0

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.frames, self.height, self.width, 3)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8)

    @property
    def span(self) -> tuple[float, float]:  # type: ignore[override]
        return (self.low, self.high)

    @property
    def feature_count(self) -> int:
        return 3 * CELLS

    @property
    def _picture(self) -> ImageSpec:
        return ImageSpec(self.width, self.height)

    def problem(self) -> str | None:
        if not 1 <= self.frames <= MAX_FRAMES or self.hop < 1:
            return f"clip: {self.frames} frames, hop {self.hop}"
        problem = ImageSpec(self.width, self.height, low=self.low, high=self.high).problem()
        if problem is None and math.prod(self.shape) > MAX_TENSOR_BYTES:
            return f"clip: {self.frames} frames of {self.width}x{self.height} are too large"
        return problem

    def tensor(self, data: Sequence[Image] | np.ndarray) -> np.ndarray:
        """data: `frames` frames, each BGR uint8 (H, W, 3) or JPEG bytes, the oldest first."""
        many = isinstance(data, np.ndarray) and data.ndim in (3, 4)
        if not many and not isinstance(data, (list, tuple, deque)):
            raise ValueError(f"a clip is {self.frames} frames here, not one {type(data).__name__}")
        if len(data) != self.frames:
            raise ValueError(f"a clip is {self.frames} frames here, not {len(data)}")
        picture = self._picture
        return np.concatenate([image_tensor(frame, picture) for frame in data])[None]

    def features(self, tensor: np.ndarray) -> np.ndarray:
        """The last frame's features, then how much each cell of the grid moves through the clip."""
        levels = [grey(frame, "RGB") for frame in tensor[0]]
        moves = np.zeros(levels[0].shape, np.float32)
        for before, after in itertools.pairwise(levels):
            moves += cv2.absdiff(before, after)
        cells = cv2.resize(moves, GRID, interpolation=cv2.INTER_AREA)
        scale = np.float32(1 / (32 * max(len(levels) - 1, 1)))
        return np.concatenate([image_features(levels[-1]), cells.ravel() * scale])

    def parts(self, tensor: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(tensor[:, i] for i in range(self.frames))
