"""Bytes as they come become lines."""

from __future__ import annotations


class LineBuffer:
    """Cuts a stream at LF or CR LF; a line of more than max_bytes is left out and counted."""

    def __init__(self, max_bytes: int) -> None:
        self.too_long = 0
        self._max_bytes = max_bytes
        self._begun = b""
        self._skipping = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that are whole now, without their ends."""
        *lines, self._begun = (self._begun + chunk).split(b"\n")
        if self._skipping and lines:
            del lines[0]
            self._skipping = False
        if self._skipping:
            self._begun = b""
        elif len(self._begun) > self._max_bytes:
            self.too_long += 1
            self._skipping, self._begun = True, b""
        return [line.removesuffix(b"\r") for line in lines if self._fits(line)]

    def rest(self) -> list[bytes]:
        """Return the last line, if it has no end: the stream is over."""
        line, self._begun, self._skipping = self._begun, b"", False
        return [line.removesuffix(b"\r")] if line else []

    def _fits(self, line: bytes) -> bool:
        self.too_long += len(line) > self._max_bytes
        return len(line) <= self._max_bytes
