"""A live camera through OpenCV: the newest frame, never a queue of old ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import cv2
import numpy as np

from infi_edge.errors import SourceError
from infi_edge.types import Sample


class Camera:
    """A camera by number, device path or URL. `dropped` counts frames nobody had time for."""

    def __init__(self, address: str, timeout_s: float = 10.0) -> None:
        """address: "0", "/dev/video0", "rtsp://...". Raises SourceError if it cannot be opened."""
        self.name = f"camera:{address}"
        self._timeout_s = timeout_s
        if address.isdigit():
            self._capture = cv2.VideoCapture(int(address))
        elif "://" in address:
            milliseconds = int(timeout_s * 1000)
            self._capture = cv2.VideoCapture(
                address,
                cv2.CAP_FFMPEG,
                [
                    cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
                    milliseconds,
                    cv2.CAP_PROP_READ_TIMEOUT_MSEC,
                    milliseconds,
                ],
            )
        else:
            self._capture = cv2.VideoCapture(address)
        if not self._capture.isOpened():
            raise SourceError(
                f"{self.name} cannot be opened; see 'infi-edge doctor' for the cameras found here"
            )
        self.dropped = 0
        self._frame: np.ndarray | None = None
        self._taken_s = 0.0
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, name=self.name, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            ok, frame = self._capture.read()
            now_s = time.monotonic()
            with self._changed:
                if self._ended or not ok:
                    self._ended = True
                    self._changed.notify()
                    return
                self.dropped += self._frame is not None
                self._frame, self._taken_s = frame, now_s
                self._changed.notify()

    def samples(self) -> Iterator[Sample]:
        """Yield the newest frame each time. Raises SourceError when the camera stops."""
        index = 0
        while True:
            with self._changed:
                arrived = self._changed.wait_for(
                    lambda: self._frame is not None or self._ended, self._timeout_s
                )
                frame, taken_s, self._frame = self._frame, self._taken_s, None
            if frame is None:
                why = "has ended" if arrived else f"gave no frame for {self._timeout_s:g} s"
                raise SourceError(f"{self.name} {why}; check its cable or address")
            yield Sample(frame, taken_s, index, self.name)
            index += 1

    def close(self) -> None:
        """Stop reading."""
        with self._changed:
            self._ended = True
        self._thread.join(self._timeout_s)
        self._capture.release()
