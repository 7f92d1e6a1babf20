"""A camera that is open: a child process that reads it, and can be killed whatever it does."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from infi_edge.capture import camera_protocol as protocol
from infi_edge.capture.address import public_address
from infi_edge.capture.camera_protocol import Settings
from infi_edge.errors import SourceError
from infi_edge.types import Image

_CHILD = Path(__file__).with_name("camera_child.py")
_TICK_S = 0.1
_KILL_S = 0.8
_FEW_THREADS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "OPENCV_FFMPEG_LOGLEVEL": "-8",
}


@dataclass(frozen=True, slots=True)
class CameraPicture:
    """time_s: monotonic, at capture. dropped: pictures before it that nobody had time for."""

    image: Image
    time_s: float
    dropped: int


class CameraProcess:
    """The child and what it shares with this process: two pipes and a piece of memory."""

    def __init__(self, shown: str, settings: Settings, rate_hz: float | None = None) -> None:
        """Start to open the camera; `read` gives None until it is.

        shown: its name in errors, without credentials. rate_hz: at most so many pictures a second.
        """
        self._shown = shown
        self._interval_s = 1 / rate_hz if rate_hz else 0.0
        self._due_s = -math.inf
        self._late = math.inf
        self._asked = self._open = False
        self._seen = 0
        self._received = b""
        self._planes = np.empty(0, np.uint8)
        self._memory = os.memfd_create("infi-edge-picture")
        self._replies, theirs = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, str(_CHILD), str(theirs), str(self._memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                pass_fds=(theirs, self._memory),
                start_new_session=True,  # its own children are killed with it
                env={**os.environ, **_FEW_THREADS},
            )
        except OSError as error:
            os.close(self._memory)
            os.close(self._replies)
            raise SourceError(f"{shown} cannot be opened: {error.strerror}") from error
        finally:
            os.close(theirs)
        self._poll = select.poll()
        self._poll.register(self._replies, select.POLLIN)
        self._send(json.dumps(settings._asdict()).encode() + b"\n")

    def read(self, timeout_s: float) -> CameraPicture | None:
        """Return the newest picture that has not been read, or None if there is none in time.

        Raises SourceError when the camera fails or its process ends.
        """
        until_s = time.monotonic() + timeout_s
        if not self._asked:
            wait_s = min(max(self._due_s - time.monotonic(), 0.0), timeout_s)
            if wait_s:
                time.sleep(wait_s)
            if (now_s := time.monotonic()) < self._due_s:
                return None
            self._late = (now_s - self._due_s) / self._interval_s if self._interval_s else math.inf
            self._due_s += self._interval_s
            if self._due_s <= now_s:
                self._due_s = now_s + self._interval_s
            self._send(b"n")
            self._asked = True
        header = self._receive(max(until_s - time.monotonic(), 0.0))
        if header is None:
            return None
        kind, height, width, size, time_s, seen = header
        self._asked = False
        # With rate_hz, what came between two times it asks was not wanted, unless it asked late.
        dropped = int(min(seen - self._seen - 1, self._late))
        self._seen = seen
        return CameraPicture(self._image(kind, height, width, size), time_s, dropped)

    def close(self) -> None:
        """Kill the child, whatever it does, and its children."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        # One that hangs in a driver ends when that lets go of it.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILL_S)
        assert self._process.stdin is not None
        self._process.stdin.close()
        os.close(self._replies)
        os.close(self._memory)

    def _send(self, request: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # why it ended is among the replies
            self._process.stdin.write(request)

    def _receive(self, timeout_s: float) -> tuple[bytes, int, int, int, float, int] | None:
        """Return the header of a picture, or None. Raises SourceError with what the child says."""
        size = protocol.HEADER.size
        if len(self._received) < size:
            if not self._poll.poll(timeout_s * 1000):
                return None
            chunk = os.read(self._replies, 1 << 16)
            if not chunk:
                raise SourceError(self._sentence(f"its process ended{self._exit()}"))
            self._received += chunk
        header = protocol.HEADER.unpack_from(self._received)
        self._received = self._received[size:]
        if header[0] == protocol.OPEN:
            self._open = True
            return None
        if header[0] == protocol.ERROR:
            words = self._received[: header[3]].decode(errors="replace")
            raise SourceError(self._sentence(public_address(words)))
        return header

    def _sentence(self, why: str) -> str:
        what = "stopped" if self._open else "cannot be opened"
        return f"{self._shown} {what}: {why}"

    def _exit(self) -> str:
        try:
            code = self._process.wait(_KILL_S)
        except subprocess.TimeoutExpired:
            return ""
        return f" by {signal.Signals(-code).name}" if code < 0 else f" with code {code}"

    def _image(self, kind: bytes, height: int, width: int, size: int) -> Image:
        if kind == protocol.JPEG:
            return os.pread(self._memory, size, 0)
        if kind == protocol.BGR:
            frame = np.empty((height, width, 3), np.uint8)
            os.preadv(self._memory, [frame.data], 0)
            return frame
        if self._planes.size != size:
            self._planes = np.empty(size, np.uint8)
        os.preadv(self._memory, [self._planes.data], 0)
        return bgr_of_i420(self._planes, height, width)


def bgr_of_i420(planes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return BGR (H, W, 3) of I420 planes, packed or padded as GStreamer does."""
    rows, columns = (height + 1) // 2 * 2, (width + 1) // 2 * 2
    stride, luma_rows, chroma_stride = protocol.i420_strides(width, height, planes.size)
    if (stride, luma_rows, 2 * chroma_stride) != (columns, rows, columns):
        # OpenCV takes even sizes without padding.
        luma = planes[: stride * luma_rows].reshape(luma_rows, stride)
        chroma = planes[stride * luma_rows :].reshape(rows, chroma_stride)
        planes = np.zeros(rows * columns * 3 // 2, np.uint8)
        planes[: rows * columns].reshape(rows, columns)[:height, :width] = luma[:height, :width]
        planes[rows * columns :].reshape(rows, columns // 2)[:] = chroma[:, : columns // 2]
    frame = cv2.cvtColor(planes.reshape(rows * 3 // 2, columns), cv2.COLOR_YUV2BGR_I420)
    return np.ascontiguousarray(frame[:height, :width])
