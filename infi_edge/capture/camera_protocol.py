"""What passes between a camera's process and its parent; this side of it is the child's.

Standard input of the child: one line of JSON (`Settings`; it may hold a password, so it is no
argument), then one byte for each picture asked for. Arguments: the descriptors of the replies and
of the shared memory. Replies: HEADER, after an ERROR the sentence. A picture's pixels are in the
shared memory until the next one is asked for.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

HEADER = struct.Struct("<cIIIdQ")
"""Kind, height, width, bytes, monotonic seconds at capture, pictures seen so far."""

_PR_SET_PDEATHSIG = 1
OPEN, ERROR, JPEG, BGR, I420 = b"O", b"E", b"J", b"B", b"Y"


class CaptureError(Exception):
    """Why there are no pictures: a sentence without its subject."""


class Settings(NamedTuple):
    """kind: a name in READERS. address: a path, URL, or number.

    pipeline: the arguments of gst-launch-1.0. width, height, fps: asked of the device.
    timeout_s: of opening and of one read. eager: keep each picture ready, not only the next after
    one was asked for. parent: the process that must live.
    """

    kind: str
    address: str
    eager: bool
    parent: int = 0
    timeout_s: float = 10.0
    pipeline: tuple[str, ...] = ()
    width: int | None = None
    height: int | None = None
    fps: float | None = None


class Picture(NamedTuple):
    """pixels: of `kind` JPEG the file, BGR (H, W, 3), I420 the planes, see `i420_strides`."""

    kind: bytes
    height: int
    width: int
    pixels: Any


class Newest:
    """The newest picture, until it is given; the reader and the parent's requests meet here."""

    def __init__(self, replies: int, memory: int, eager: bool) -> None:
        self._replies, self._memory, self._eager = replies, memory, eager
        self._lock = threading.Lock()
        self._picture: Picture | None = None
        self._time_s = 0.0
        self._seen = 0
        self._wanted = False

    def opened(self) -> None:
        """Tell the parent that the camera is open, and take its requests from now on."""
        self._reply(OPEN)
        threading.Thread(target=self._take_requests, daemon=True).start()

    def offer(self, load: Callable[[], Picture | None]) -> None:
        """Note that there is a picture; `load` is called only if it may be wanted.

        What it returns may be overwritten at the next call of `load`.
        """
        time_s = time.monotonic()
        with self._lock:
            self._seen += 1
            if self._eager or self._wanted:
                self._picture, self._time_s = load(), time_s
                self._give()

    def put(self, picture: Picture) -> None:
        """Offer a picture that lies ready."""
        self.offer(lambda: picture)

    def fail(self, sentence: str) -> None:
        """Tell the parent why there is nothing more."""
        self._reply(ERROR, " ".join(sentence.split()).encode()[:2000])

    def _take_requests(self) -> None:
        while os.read(0, 64):
            with self._lock:
                self._wanted = True
                self._give()
        os._exit(0)  # the parent is gone; the reader may hang

    def _give(self) -> None:
        picture = self._picture
        if picture is None or not self._wanted:
            return
        self._picture, self._wanted = None, False
        size = os.pwrite(self._memory, picture.pixels, 0)
        os.write(
            self._replies,
            HEADER.pack(
                picture.kind, picture.height, picture.width, size, self._time_s, self._seen
            ),
        )

    def _reply(self, kind: bytes, text: bytes = b"") -> None:
        os.write(self._replies, HEADER.pack(kind, 0, 0, len(text), 0.0, self._seen) + text)


def i420_bytes(width: int, height: int) -> tuple[int, int]:
    """Return the size of an I420 picture, packed, and with rows padded as GStreamer does."""
    rows, chroma = (height + 1) // 2 * 2, (width + 1) // 2
    return width * height + chroma * rows, (_fours(width) + _fours(chroma)) * rows


def i420_strides(width: int, height: int, size: int) -> tuple[int, int, int]:
    """Return luma stride, luma rows, chroma stride of an I420 picture of `size` bytes.

    U and V have half as many rows, rounded up.
    """
    rows, chroma = (height + 1) // 2 * 2, (width + 1) // 2
    if size == i420_bytes(width, height)[0]:
        return width, height, chroma
    return _fours(width), rows, _fours(chroma)


def _fours(number: int) -> int:
    return (number + 3) // 4 * 4


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
