"""A change of the whole scene: lights, an infrared switch, a camera that was moved.

What the filter learned may not hold in it, so inputs pass until it is steady again.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from infi_edge.preprocess import ImageSpec, Spec
from infi_edge.preprocess.image import CELLS, GRID

LEVELS = 6.0
CONTRAST = 0.3
"""A cell has changed if it differs by more than LEVELS grey levels and CONTRAST deviations of the
picture's cells. A camera's own exposure, when somebody comes near, moves them by 0.25."""
SHARE = 0.7
"""Of the cells: a lamp changes all of them, a moved camera most; somebody near by up to 0.65."""
LAYOUT_SHARE, CORRELATION = 0.4, 0.4
"""So many changed, and the rest no longer where it was: the camera was moved, or is covered."""
COLOURED, COLOURLESS = 6.0, 2.0
"""Spread of the channels in the median cell, where there is colour and where there is none: a
camera that has gone over to infrared light."""
FOLLOW_PER_S = 1.0
"""Grey levels by which the memory follows: a dawn is slower, a lamp that fades is faster, and
somebody who walks through leaves no trace."""
SHORTEST_S = 0.05
"""Inputs that come faster, as of a recording that is not played at its pace, count for so long."""
SETTLE_S = 2.0
PASSES_PER_INPUT = 0.05
MOST_PASSES = 100.0


class SceneWatch:
    """Compares each picture, as 16x12 cells, with what it usually looks like of late.

    Gradual changes (a light that fades over frames) count, a dawn does not. A stream that always
    changes (a camera in a car) is no scene that changes: in the long run at most one input in
    twenty passes for this.
    """

    def __init__(self) -> None:
        self._reference: np.ndarray | None = None
        self._seen_s = 0.0
        self._until_s = -np.inf
        self._passes = MOST_PASSES
        self.changes = 0

    def changing(self, tensor: np.ndarray, now_s: float) -> bool:
        """Whether the scene changes, or has in the last two seconds.

        tensor: the filter's input, uint8 (1, H, W, C). now_s: stream time.
        """
        small = cv2.resize(tensor[0], GRID, interpolation=cv2.INTER_AREA)
        cells = small.reshape(CELLS, -1).astype(np.float32)
        reference = self._reference
        if reference is None:
            self._reference, self._seen_s = cells, now_s
            return False
        self._passes = min(self._passes + PASSES_PER_INPUT, MOST_PASSES)
        if _is_other(cells, reference):
            self.changes += now_s >= self._until_s
            self._until_s = now_s + SETTLE_S
            self._reference = cells
        else:
            step = np.float32(FOLLOW_PER_S * max(now_s - self._seen_s, SHORTEST_S))
            reference += np.maximum(np.minimum(cells - reference, step), -step)
        self._seen_s = now_s
        self._until_s = min(self._until_s, now_s + SETTLE_S)  # a clock may jump back
        if now_s >= self._until_s or self._passes < 1.0:
            return False
        self._passes -= 1.0
        return True


def _is_other(cells: np.ndarray, reference: np.ndarray) -> bool:
    """cells, reference: float32 (192, channels)."""
    share = np.full(cells.shape[1], 1 / cells.shape[1], np.float32)
    now, before = cells @ share, reference @ share
    a, b = now - now.mean(), before - before.mean()
    least = max(LEVELS, CONTRAST * math.sqrt(float(b @ b) / CELLS))
    changed = np.count_nonzero(np.abs(now - before) > least) / CELLS
    if changed > SHARE:
        return True
    alike = CORRELATION * math.sqrt(float(a @ a) * float(b @ b))
    if changed > LAYOUT_SHARE and float(a @ b) < alike:
        return True
    less, more = sorted((_colour(cells), _colour(reference)))
    return less < COLOURLESS and more > COLOURED


def _colour(cells: np.ndarray) -> float:
    """The channels' spread in the median cell."""
    if cells.shape[1] == 1:
        return 0.0
    spread = cells.max(axis=1) - cells.min(axis=1)
    spread.partition(CELLS // 2)
    return float(spread[CELLS // 2])


def watch_for(spec: Spec) -> SceneWatch | None:
    """Return a watch for pictures; other modalities have none."""
    return SceneWatch() if isinstance(spec, ImageSpec) else None
