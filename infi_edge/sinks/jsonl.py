"""JSON lines: one object a line, to a file that is rotated by size, a pipe, or an open stream."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Protocol, TextIO

import msgspec

from infi_edge.errors import ConfigError
from infi_edge.events import Event
from infi_edge.sinks.outlet import NotNow
from infi_edge.sinks.sink import event_record, result_record
from infi_edge.types import Result, Sample

BUFFER_BYTES = 64 << 10
"""So much waits for `flush` at most."""

KEPT_BYTES = 1 << 20
"""So much is kept for later when the disk is full; then the outlet's queue fills."""

RETRY_S = 1.0


def error_record(source: str, sample: Sample, message: str) -> dict[str, Any]:
    """Return the error of one input as a JSON object."""
    return {
        "index": sample.index,
        "time_s": round(sample.time_s, 4),
        "source": source,
        "error": message,
    }


class JsonLines:
    """The sink. A disk that is full is told in `sentence`, and lines wait until there is room."""

    kind = "jsonl"

    def __init__(
        self,
        target: str | Path | TextIO,
        max_bytes: int = 10 << 20,
        keep: int = 3,
        results: bool = True,
        events: bool = True,
    ) -> None:
        """target: a path (appended to), `-` for standard output, or an open stream.

        max_bytes: of a file before it is rotated. keep: rotated files, NAME.1 the newest.
        Raises ConfigError if it cannot be opened.
        """
        self.counts: Counter[str] = Counter(sent=0, dropped=0, failed=0)
        self.sentence = ""
        self.broken = False
        self.wants_results, self.wants_events = results, events
        self._waiting = bytearray()
        self._place = open_place(target, max_bytes, keep)

    def write(self, result: Result, sample: Sample) -> None:
        self._line(result_record(result))

    def event(self, event: Event) -> None:
        self._line(event_record(event))

    def error(self, source: str, sample: Sample, message: str) -> None:
        self._line(error_record(source, sample, message))

    def _line(self, record: dict[str, Any]) -> None:
        if self.broken:
            self.counts["dropped"] += 1
            return
        if self.sentence and len(self._waiting) >= KEPT_BYTES:
            self.flush()
            if self.sentence:
                raise NotNow(RETRY_S)
        self._waiting += msgspec.json.encode(record) + b"\n"
        if self._place.each_line or (len(self._waiting) >= BUFFER_BYTES and not self.sentence):
            self.flush()

    def flush(self) -> None:
        """Write what waits. What does not fit is kept, and is never half a line in the file."""
        if not self._waiting or self.broken:
            return
        try:
            while self._waiting:
                written = self._place.append(self._waiting)
                self.counts["sent"] += self._waiting.count(b"\n", 0, written)
                del self._waiting[:written]
            self.sentence = ""
        except BrokenPipeError:
            self.broken = True
            self._drop()
        except OSError as error:
            self.counts["failed"] += 1
            self.sentence = f"{self._place.name} cannot be written: {error.strerror}; lines wait"

    def close(self) -> None:
        self.flush()
        self._drop()
        self._place.close()

    def _drop(self) -> None:
        self.counts["dropped"] += self._waiting.count(b"\n")
        self._waiting.clear()


class Place(Protocol):
    """Where lines end up. each_line: somebody reads along, so nothing is held back."""

    name: str
    each_line: bool

    def append(self, lines: bytearray) -> int:
        """Write from the beginning of `lines`, to a file only whole ones; return how many bytes.

        Raises OSError if nothing could be written; then no part of a line is left in a file.
        """

    def close(self) -> None:
        """Let go of it."""


def open_place(target: str | Path | TextIO, max_bytes: int, keep: int) -> Place:
    """Open what a target names. Raises ConfigError."""
    if not isinstance(target, (str, Path)):
        return _Stream(target)
    if str(target) == "-":
        try:
            sys.stdout.flush()
            return _Descriptor("standard output", os.dup(sys.stdout.fileno()))
        except (OSError, ValueError):  # a stream in the place of standard output, as in tests
            return _Stream(sys.stdout)
    try:
        return _Rotated(Path(target), max_bytes, keep)
    except OSError as error:
        raise ConfigError(f"results cannot be written to {target}: {error.strerror}") from error


class _Stream:
    """A text stream that somebody else opened and closes."""

    each_line = True

    def __init__(self, stream: TextIO) -> None:
        self.name = str(getattr(stream, "name", "the stream"))
        self._stream = stream

    def append(self, lines: bytearray) -> int:
        self._stream.write(lines.decode())
        self._stream.flush()
        return len(lines)

    def close(self) -> None:
        pass


class _Descriptor:
    """An open file descriptor: a terminal, a pipe, or a file that is not ours to rotate."""

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self._fd = fd
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self.each_line = not self._is_file

    def append(self, lines: bytearray) -> int:
        written = 0
        try:
            while written < len(lines):
                with memoryview(lines) as view:
                    written += os.write(self._fd, view[written:])
        except OSError:
            whole = lines.rfind(b"\n", 0, written) + 1 if self._is_file else written
            if written > whole:
                end = os.lseek(self._fd, 0, os.SEEK_CUR) - (written - whole)
                os.ftruncate(self._fd, end)
                os.lseek(self._fd, end, os.SEEK_SET)
            if not whole:
                raise
            return whole
        return written

    def close(self) -> None:
        os.close(self._fd)


class _Rotated:
    """A file by its path: NAME grows up to max_bytes, then it is NAME.1, and so on up to `keep`.

    One that was moved or deleted meanwhile is made anew.
    """

    each_line = False

    def __init__(self, path: Path, max_bytes: int, keep: int) -> None:
        self.name = str(path)
        self._path, self._max_bytes, self._keep = path, max_bytes, keep
        self._open_file: _Descriptor | None = None
        self._identity = (0, 0)
        self._size = 0
        self._rotates = True
        self._is_cut = False
        try:
            self._open()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise

    def append(self, lines: bytearray) -> int:
        file = self._current()
        if self._is_cut:  # a power loss has cut the last line
            self._size += file.append(bytearray(b"\n"))
            self._is_cut = False
        room = self._max_bytes - self._size
        if self._size and room < lines.index(b"\n") + 1 and self._rotates:
            self._rotate()
            file, room = self._current(), self._max_bytes
        end = len(lines)
        if self._rotates and room < end:
            end = lines.rfind(b"\n", 0, max(room, 0)) + 1 or lines.index(b"\n") + 1
        written = file.append(lines[:end])
        self._size += written
        return written

    def close(self) -> None:
        if self._open_file is not None:
            self._open_file.close()
            self._open_file = None

    def _current(self) -> _Descriptor:
        if self._open_file is not None and self._rotates and not self._is_there():
            self.close()
        return self._open_file or self._open()

    def _is_there(self) -> bool:
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == self._identity

    def _open(self) -> _Descriptor:
        fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        state = os.fstat(fd)
        self._rotates = stat.S_ISREG(state.st_mode)
        self._identity = (state.st_dev, state.st_ino)
        self._size = state.st_size if self._rotates else 0
        self._is_cut = self._size > 0 and os.pread(fd, 1, self._size - 1) != b"\n"
        self._open_file = _Descriptor(self.name, fd)
        self.each_line = self._open_file.each_line
        return self._open_file

    def _rotate(self) -> None:
        self.close()
        if not self._keep:
            self._path.unlink()
            return
        for number in range(self._keep - 1, 0, -1):
            older = Path(f"{self._path}.{number}")
            if older.exists():
                older.replace(f"{self._path}.{number + 1}")
        self._path.replace(f"{self._path}.1")
