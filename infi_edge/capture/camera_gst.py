"""The reader of GStreamer pipelines: gst-launch-1.0, as OpenCV from PyPI has no GStreamer."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import subprocess
import threading
from typing import IO

from infi_edge.capture.camera_protocol import (
    I420,
    CaptureError,
    Newest,
    Picture,
    Settings,
    die_with_parent,
    i420_bytes,
)

_LINE_BYTES = 1 << 16
_FRAME = b"FRAME\n"
_TAIL = (
    "! queue leaky=downstream max-size-buffers=2 max-size-bytes=0 max-size-time=0 "
    "! videoconvert ! video/x-raw,format=I420,colorimetry=bt601 ! y4menc ! fdsink sync=false"
)


def read_gst(settings: Settings, newest: Newest) -> None:
    """A GStreamer pipeline: gst-launch-1.0 writes its pictures into a pipe, as YUV4MPEG2."""
    pipe, theirs = os.pipe()
    command = ["gst-launch-1.0", "-q", *settings.pipeline, *_TAIL.split(), f"fd={theirs}"]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # nvarguscamerasrc prints there
            stderr=subprocess.PIPE,
            pass_fds=(theirs,),
            preexec_fn=die_with_parent,  # noqa: PLW1509 - there is no second thread yet
        )
    except FileNotFoundError as error:
        raise CaptureError(
            "there is no gst-launch-1.0: sudo apt install gstreamer1.0-tools"
        ) from error
    os.close(theirs)
    with contextlib.suppress(OSError):  # a smaller one is only slower
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 20)
    assert process.stderr is not None
    errors = _Errors(process.stderr)
    with open(pipe, "rb") as stream:
        read_y4m(stream, newest)
    process.kill()
    raise CaptureError(errors.first() or "the pipeline has ended")


class _Errors:
    """What gst-launch-1.0 complains of."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._first = stream, ""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while raw := self._stream.readline(_LINE_BYTES):
            line = raw.decode(errors="replace").strip()
            if not self._first and line.startswith(("ERROR: ", "WARNING: erroneous")):
                self._first = line.partition(": ")[2]

    def first(self) -> str:
        """Return the first, once it has ended; the others only follow from it. Or nothing."""
        self._thread.join(1.0)
        return self._first


def read_y4m(stream: IO[bytes], newest: Newest) -> None:
    """Offer the pictures of a YUV4MPEG2 stream, 4:2:0, until it ends.

    Raises CaptureError if the size of its pictures changes (y4menc writes no new header then).
    """
    header = stream.readline(_LINE_BYTES)
    if not header:
        return
    fields = {field[:1]: field[1:] for field in header.split()[1:]}
    width, height = int(fields[b"W"]), int(fields[b"H"])
    newest.opened()
    size = _picture_bytes(stream, width, height)
    # Two: one is filled while the other waits to be given.
    for pixels in itertools.cycle((bytearray(size), bytearray(size))):
        if stream.readinto(pixels) < size:  # type: ignore[attr-defined]
            return
        newest.put(Picture(I420, height, width, pixels))
        if stream.readline(_LINE_BYTES) not in (_FRAME, b""):
            raise CaptureError("the size of its pictures changed")


def _picture_bytes(stream: IO[bytes], width: int, height: int) -> int:
    """Return the size of a picture; the next one begins where the stream stands then.

    y4menc has rows padded as in GStreamer's memory, unlike what the format says; a version that
    packs them is told by the place of the second picture's mark.
    """
    packed, padded = i420_bytes(width, height)
    stream.readline(_LINE_BYTES)
    if packed == padded:
        return packed
    start = stream.read(padded + len(_FRAME))
    if start[packed:].startswith(_FRAME):
        stream.read(2 * packed - padded)
        stream.readline(_LINE_BYTES)
        return packed
    return padded
