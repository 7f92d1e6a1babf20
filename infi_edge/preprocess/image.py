"""Images: a frame becomes a small uint8 picture."""

from __future__ import annotations

import io
import math
from typing import Any, Literal

import cv2
import imagesize
import numpy as np

from infi_edge.preprocess.spec import Spec, register
from infi_edge.types import Image

MAX_SIDE = 1024
GRID = (16, 12)
CELLS = GRID[0] * GRID[1]
_ORDERS = {"RGB": cv2.COLOR_BGR2RGB, "BGR": None, "GREY": cv2.COLOR_BGR2GRAY}


@register
class ImageSpec(Spec, frozen=True, forbid_unknown_fields=True, tag="image"):
    """The filter's image input: uint8 pixels; the frame is stretched to it.

    low, high: what the pixel values 0 and 255 are to a network with a float input.
    """

    width: int = 128
    height: int = 96
    order: Literal["RGB", "BGR", "GREY"] = "RGB"
    low: float = 0.0
    high: float = 255.0

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.height, self.width, 1 if self.order == "GREY" else 3)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8)

    @property
    def span(self) -> tuple[float, float]:  # type: ignore[override]
        return (self.low, self.high)

    @property
    def feature_count(self) -> int:
        return 2 * CELLS

    def problem(self) -> str | None:
        if not (1 <= self.width <= MAX_SIDE and 1 <= self.height <= MAX_SIDE):
            return f"input size: {self.width}x{self.height} is not within 1..{MAX_SIDE}"
        fits = -math.inf < self.low < self.high < math.inf
        return None if fits else "range: low must be below high"

    def tensor(self, data: Image) -> np.ndarray:
        return image_tensor(data, self)

    def features(self, tensor: np.ndarray) -> np.ndarray:
        return image_features(grey(tensor[0], self.order))


def image_tensor(data: Image, spec: ImageSpec) -> np.ndarray:
    """Return the filter's input, uint8 of shape (1, height, width, 3 or 1).

    data: BGR or grey uint8 array, or JPEG bytes, of which only as much is decoded as is needed
    (a JPEG decodes at 1/2, 1/4 or 1/8 of its size for a fraction of the cost).
    Raises ValueError if it is neither.
    """
    frame = reduced_frame(data, spec) if isinstance(data, bytes) else data
    if not isinstance(frame, np.ndarray):
        raise ValueError(f"an image is uint8 (H, W, 3), not {type(frame).__name__}")
    channels = frame.shape[2] if frame.ndim == 3 else 1
    if frame.dtype != np.uint8 or frame.ndim not in (2, 3) or channels not in (1, 3):
        raise ValueError(f"an image is uint8 (H, W, 3), not {frame.dtype} {frame.shape}")
    if frame.size == 0:
        raise ValueError(f"an image is uint8 (H, W, 3), not {frame.dtype} {frame.shape}")
    # INTER_AREA costs by the pixel (6 ms from 1080p); bilinear to twice the size first does not.
    twice = (2 * spec.width, 2 * spec.height)
    if frame.shape[1] > twice[0] and frame.shape[0] > twice[1]:
        # EXACT: on Arm, plain INTER_LINEAR is another implementation, up to 4 grey levels off.
        frame = cv2.resize(frame, twice, interpolation=cv2.INTER_LINEAR_EXACT)
    small = cv2.resize(frame, (spec.width, spec.height), interpolation=cv2.INTER_AREA)
    if small.ndim == 2 or small.shape[2] == 1:
        small = small if spec.order == "GREY" else cv2.cvtColor(small, cv2.COLOR_GRAY2BGR)
    elif (code := _ORDERS[spec.order]) is not None:
        small = cv2.cvtColor(small, code)
    return small.reshape(1, *spec.shape)


_REDUCED = (
    (8, cv2.IMREAD_REDUCED_COLOR_8),
    (4, cv2.IMREAD_REDUCED_COLOR_4),
    (2, cv2.IMREAD_REDUCED_COLOR_2),
)


def reduced_frame(data: bytes, spec: ImageSpec) -> np.ndarray:
    """Decode a JPEG, uint8 (H, W, 3), at the smallest of its scales that the filter can use.

    Raises ValueError if it is none.
    """
    width, height = imagesize.get(io.BytesIO(data))
    flag = cv2.IMREAD_COLOR
    for factor, reduced in _REDUCED:
        if width >= factor * spec.width and height >= factor * spec.height:
            flag = reduced
            break
    try:
        frame = cv2.imdecode(np.frombuffer(data, np.uint8), flag) if data else None
    except cv2.error:  # a header that declares an absurd size
        frame = None
    if frame is None:
        raise ValueError("bytes that are no image")
    return frame


def grey(picture: np.ndarray, order: str) -> np.ndarray:
    """Return uint8 (H, W) grey levels of a picture (H, W, 3 or 1)."""
    if order == "GREY":
        return picture[..., 0]
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY if order == "RGB" else cv2.COLOR_BGR2GRAY)


def image_features(levels: np.ndarray) -> np.ndarray:
    """Return blurred grey levels and gradients (|dx| + |dy|) on a 16x12 grid, each about 0..1.

    levels: grey uint8 (H, W). Returns float32 (384,): 192 grey levels, then 192 gradients.
    """
    levels = cv2.GaussianBlur(levels, (3, 3), 0)
    # |dx| + |dy| in integers, not a square root: the same bits on every run, whatever SIMD does.
    across = cv2.Sobel(levels, cv2.CV_16S, 1, 0)
    down = cv2.Sobel(levels, cv2.CV_16S, 0, 1)
    gradient = np.abs(across) + np.abs(down)
    planes = cv2.merge([levels.astype(np.float32), gradient.astype(np.float32)])
    cells = cv2.resize(planes, GRID, interpolation=cv2.INTER_AREA)
    cells = cv2.GaussianBlur(cells, (3, 3), 0)
    return np.concatenate([cells[..., 0].ravel(), cells[..., 1].ravel()]) * np.float32(1 / 255)
