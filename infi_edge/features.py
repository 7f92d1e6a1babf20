"""Cheap fixed features, one function per modality: the light filter's input."""

from __future__ import annotations

import cv2
import numpy as np

GRID = (16, 12)
IMAGE_FEATURES = 2 * GRID[0] * GRID[1]


def image_features(tensor: np.ndarray) -> np.ndarray:
    """Return blurred grey levels and gradients (|dx| + |dy|) on a 16x12 grid, each about 0..1.

    tensor: RGB uint8 of shape (1, H, W, 3), as `preprocess.image_tensor` makes it.
    Returns float32 of shape (384,): 192 grey levels, then 192 gradients, row by row.
    """
    grey = cv2.GaussianBlur(cv2.cvtColor(tensor[0], cv2.COLOR_RGB2GRAY), (3, 3), 0)
    # |dx| + |dy| in integers, not a square root: the same bits on every run, whatever SIMD does.
    across = cv2.Sobel(grey, cv2.CV_16S, 1, 0)
    down = cv2.Sobel(grey, cv2.CV_16S, 0, 1)
    gradient = np.abs(across) + np.abs(down)
    planes = cv2.merge([grey.astype(np.float32), gradient.astype(np.float32)])
    cells = cv2.resize(planes, GRID, interpolation=cv2.INTER_AREA)
    cells = cv2.GaussianBlur(cells, (3, 3), 0)
    return np.concatenate([cells[..., 0].ravel(), cells[..., 1].ravel()]) * np.float32(1 / 255)
