"""Masks and regions: what nobody shall look at is black, for filter and model alike."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from infi_edge.config import Polygon

_SHIFT = 4  # OpenCV's sub-pixel bits
FINE = 1024
"""Small pictures are masked as if they were about so many pixels wide."""


class Mask:
    """Blanks the inside of `masks` and the outside of `regions`."""

    def __init__(self, masks: Sequence[Polygon] = (), regions: Sequence[Polygon] = ()) -> None:
        """Corners are fractions (x, y) of the picture. Without regions the whole picture counts."""
        self._masks, self._regions = tuple(masks), tuple(regions)
        self._kept: dict[tuple[int, int], np.ndarray] = {}

    def __bool__(self) -> bool:
        return bool(self._masks or self._regions)

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Return a copy of a frame, uint8 (H, W) or (H, W, C), with what is masked at 0."""
        return cv2.bitwise_and(frame, frame, mask=self.kept(frame.shape[0], frame.shape[1]))

    def kept(self, height: int, width: int) -> np.ndarray:
        """Return uint8 (H, W): 255 where the picture is kept, else 0.

        A pixel that is masked in part is masked: the filter reads small decodes, whose pixels
        are averages.
        """
        kept = self._kept.get((height, width))
        if kept is None:
            finer = max(1, FINE // max(height, width))
            drawn = self._drawn(height * finer, width * finer)
            kept = drawn.reshape(height, finer, width, finer).min(axis=(1, 3))
            if len(self._kept) > 8:  # a camera has one size, the filter's decode another
                self._kept.clear()
            self._kept[height, width] = kept
        return kept

    def _drawn(self, height: int, width: int) -> np.ndarray:
        kept = np.full((height, width), 0 if self._regions else 255, np.uint8)
        for polygons, level in ((self._regions, 255), (self._masks, 0)):
            for polygon in polygons:
                corners = np.array(polygon, np.float64) * (width, height) * (1 << _SHIFT)
                points = np.rint(corners).astype(np.int32)[:, None]
                cv2.fillPoly(kept, [points], level, lineType=cv2.LINE_8, shift=_SHIFT)
        return kept
