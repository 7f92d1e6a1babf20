"""Whether a picture is whole, black, or the same as long ago; without decoding it in full."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

import cv2
import numpy as np

from infi_edge.capture.source import Backoff, Health
from infi_edge.types import Image

ACCUSTOMED = 25
"""So many torn pictures in a row are the camera's way; they are passed on then."""

CHECK_S = 1.0
"""How often a picture is looked at for black and frozen; more often if freeze_s is short."""

TORN = "a picture was torn and is left out; check cable and network"
BLACK = "the picture is black; is the lens covered, or the light off?"

_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
# In a scan, FF is followed by 00 or a restart marker; anything else ends it.
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


class FrozenPicture(Exception):
    """The picture has not changed at all for too long; the camera is to be opened again.

    wait_s: before that; longer each time the picture is still the same one.
    """

    def __init__(self, wait_s: float) -> None:
        super().__init__("frozen")
        self.wait_s = wait_s


class PictureHealth:
    """Watches the pictures of one camera, through all its openings.

    A scene that stands still is not frozen, as a sensor's noise changes some bytes; a synthetic
    source without noise may need a larger freeze_s.
    """

    def __init__(self, health: Health, freeze_s: float) -> None:
        """freeze_s: seconds that every picture may be the same, byte for byte."""
        self._health, self._freeze_s = health, freeze_s
        self._check_s = min(CHECK_S, freeze_s / 4)
        self._checked_s = -float("inf")
        self._torn_in_a_row = 0
        self._black = False
        self._digest: int | None = None
        self._since_s: float | None = None
        self._frozen: int | None = None
        self._waits: Iterator[float] = Backoff().waits()

    def opened(self) -> None:
        """Note that the camera was opened (again): freeze_s begins anew."""
        self._since_s = None
        self._checked_s = -float("inf")

    def accept(self, image: Image) -> bool:
        """Whether a picture may be passed on; a torn one is counted and may not."""
        if not isinstance(image, bytes):
            whole = frame_is_whole(image)
        elif image.startswith(b"\xff\xd8"):
            whole = jpeg_is_whole(image)
        else:
            self._health.notice("torn", "what the camera gives is no JPEG")
            return False
        if whole:
            self._torn_in_a_row = 0
            return True
        self._torn_in_a_row += 1
        if self._torn_in_a_row == ACCUSTOMED:
            self._health.notice("torn", "all pictures look torn; they are passed on")
        elif self._torn_in_a_row < ACCUSTOMED:
            self._health.notice("torn", TORN)
        return self._torn_in_a_row >= ACCUSTOMED

    def watch(self, image: Image, time_s: float) -> None:
        """Look for black and frozen pictures. time_s: monotonic, of the picture.

        Raises FrozenPicture, which is in the health then.
        """
        if time_s - self._checked_s < self._check_s:
            return
        self._checked_s = time_s
        self._watch_black(image)
        digest = zlib.crc32(image if isinstance(image, bytes) else image[::4].tobytes())
        if digest != self._digest or self._since_s is None:
            self._digest, self._since_s = digest, time_s
        elif time_s - self._since_s >= self._freeze_s:
            self._freeze(digest)

    def _freeze(self, digest: int) -> None:
        sentence = f"the same picture for {self._freeze_s:g} s; the camera is opened again"
        if digest == self._frozen:  # opening it again did not help: told, but not every time
            self._health.notice("frozen", sentence)
        else:
            self._health.fail("frozen", sentence)
            self._frozen, self._waits = digest, Backoff().waits()
        raise FrozenPicture(next(self._waits))

    def _watch_black(self, image: Image) -> None:
        black = is_black(image)
        if black and not self._black:
            self._health.notice("black", BLACK)
        elif self._black and not black and self._health.sentence == BLACK:
            self._health.sentence = ""
        self._black = black


def jpeg_is_whole(data: bytes) -> bool:
    """Whether JPEG bytes run from their start to an end marker, with no second start between.

    What follows the end (padding) does not matter, nor what is in the headers (a thumbnail).
    """
    at, size = 2, len(data)
    while at + 4 <= size:
        if data[at] != 0xFF:
            return False
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in (_START, _END):
            return False
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker != _SCAN:
            continue
        found = _AFTER_SCAN.search(data, at)
        if found is None:
            return False
        at = found.start()
        if data[at + 1] == _END:
            return True
    return False


def frame_is_whole(frame: np.ndarray) -> bool:
    """Whether a decoded frame, uint8 (H, W, 3), has been decoded to its last row.

    A decoder fills what it misses with the last row it had, or with grey: the lowest tenth is one
    repeated row, and what is above is not. A floor of one colour still has the sensor's noise;
    the bars of a letterbox are one colour, but not that grey.
    """
    rows = len(frame)
    first, last = rows - rows // 10, frame[-1]
    if rows < 32 or not np.array_equal(frame[first], last):  # the usual way out
        return True
    if not (frame[first:] == last).all():
        return True
    colour = last[0].astype(int)
    if (last == last[0]).all() and (abs(colour - 129) > 4).any():  # 128, and 130 after YUV
        return True
    return bool((frame[: first : rows // 16] == last).all())


def is_black(image: Image) -> bool:
    """Whether a picture is dark all over: nothing to see, not merely a night scene."""
    if isinstance(image, bytes):
        try:
            small = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8)
        except cv2.error:  # a header that declares an absurd size
            return False
        if small is None:
            return False
    else:
        small = image[::8, ::8]
    return float(small.mean()) < 12 and float(small.std()) < 3
