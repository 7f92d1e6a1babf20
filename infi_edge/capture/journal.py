"""An append-only store that survives a power cut: segments of checked records, oldest first out.

FOLDER/NNNNNNNN.seg, in the order of their numbers. A record is the mark, the length and the CRC-32
of its content, and the content. What a cut or a bad block has spoilt is left out when reading, and
reading goes on at the next mark; nothing a file declares is believed before it is checked.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from infi_edge.errors import ConfigError, SourceError

log = logging.getLogger("infi_edge")

MAX_RECORD_BYTES = 64 << 20
MAX_SEGMENT_BYTES = 64 << 20
SYNC_S = 1.0
"""How often what was written is forced to the disk: a power cut takes no more than that."""

_SEGMENT = re.compile(r"\d{8}\.seg")
_MARK = b"\xb7\x0eIR"
_HEADER = struct.Struct("<4sII")
_CHUNK = 1 << 20
_MOST_BAD = 16
"""So many bad places end the reading of a segment: a hostile one must not take hours."""


def segments(folder: Path) -> list[Path]:
    """Return the segments of a folder, the oldest first. Raises OSError."""
    return sorted(path for path in folder.iterdir() if _SEGMENT.fullmatch(path.name))


def read_records(segment: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, content) of the whole records of a segment, one at a time.

    What cannot be read is left out and told once, with its size. Raises SourceError if the file
    cannot be read at all.
    """
    lost = bad = 0
    try:
        with segment.open("rb") as file:
            offset, size = 0, os.fstat(file.fileno()).st_size
            while offset < size:
                content = _record_at(file, offset, size)
                if content is not None:
                    yield offset + _HEADER.size, content
                    offset += _HEADER.size + len(content)
                    continue
                bad += 1
                following = _next_mark(file, offset + 1) if bad < _MOST_BAD else None
                lost += (size if following is None else following) - offset
                offset = size if following is None else following
    except OSError as error:
        raise SourceError(f"{segment} cannot be read: {error.strerror}") from error
    if lost:
        log.warning(
            "%s: %d bytes are left out, cut short by a power cut or damaged (places: %d)",
            segment, lost, bad,
        )  # fmt: skip


def _record_at(file: BinaryIO, offset: int, size: int) -> bytes | None:
    file.seek(offset)
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    mark, length, checksum = _HEADER.unpack(header)
    fits = 0 < length <= min(MAX_RECORD_BYTES, size - offset - _HEADER.size)
    if mark != _MARK or not fits:
        return None
    content = file.read(length)
    return content if len(content) == length and _checksum(content) == checksum else None


def _checksum(content: bytes) -> int:
    return zlib.crc32(content, len(content))


def _next_mark(file: BinaryIO, offset: int) -> int | None:
    """The place of the next mark at or after an offset."""
    while True:
        file.seek(offset)
        chunk = file.read(_CHUNK)
        if (found := chunk.find(_MARK)) >= 0:
            return offset + found
        if len(chunk) < len(_MARK):
            return None
        offset += max(len(chunk) - len(_MARK) + 1, 1)


def count_records(segment: Path) -> int:
    """Return how many records a segment has, by their headers alone. Raises OSError."""
    count = offset = 0
    with segment.open("rb") as file:
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            mark, length, _ = _HEADER.unpack(header)
            if mark != _MARK:
                break
            count += 1
            offset += _HEADER.size + length
            file.seek(offset)
    return count


class JournalWriter:
    """Appends records; removes the oldest segments rather than exceed max_bytes.

    Each record is handed to the kernel at once, so that a killed process loses none but the one it
    was writing; a thread forces it to the disk SYNC_S later at the latest. A journal is always
    continued in a new segment. total: bytes of all segments. written, removed: bytes and records
    of this writer.
    """

    def __init__(self, folder: Path, max_bytes: int, sync_s: float = SYNC_S) -> None:
        """max_bytes: of all segments together. Raises ConfigError if the folder cannot be written,
        or is being written by another process."""
        self._folder, self._max_bytes, self._sync_s = folder, max_bytes, sync_s
        self._segment_bytes = min(max(max_bytes // 16, 1), MAX_SEGMENT_BYTES)
        self.written = self.removed = 0
        self._file = -1
        self._size = 0
        self._lock = threading.Lock()
        self._dirty = False
        self._fault: OSError | None = None
        self._closing = threading.Event()
        try:
            self._directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise self._sentence(error) from error
        try:
            fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._old = [(path, path.stat().st_size) for path in segments(folder)]
        except BlockingIOError:
            os.close(self._directory)
            raise ConfigError(f"{folder} is being written by another process; end it") from None
        except OSError as error:
            os.close(self._directory)
            raise self._sentence(error) from error
        self.total = sum(size for _, size in self._old)
        self._number = int(self._old[-1][0].stem) if self._old else 0
        self._thread = threading.Thread(target=self._keep_synced, name="journal", daemon=True)
        self._thread.start()

    def append(self, content: bytes) -> None:
        """Write one record.

        Raises SourceError if it is too large to be kept, and ConfigError if the disk is full or
        fails; all records up to this one can be read even then.
        """
        size = _HEADER.size + len(content)
        if not 0 < len(content) <= MAX_RECORD_BYTES or size > self._max_bytes:
            most = min(MAX_RECORD_BYTES, self._max_bytes)
            raise SourceError(f"an input of {len(content)} bytes; {most} can be kept")
        try:
            if self._fault is not None:
                raise self._fault
            if self._file < 0 or self._size + size > self._segment_bytes:
                self._begin_segment()
            self._make_room(size)
            self._write(_HEADER.pack(_MARK, len(content), _checksum(content)) + content)
        except OSError as error:
            raise self._sentence(error) from error

    def _begin_segment(self) -> None:
        self._end_segment()
        self._number += 1
        path = self._folder / f"{self._number:08d}.seg"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        os.fsync(self._directory)
        with self._lock:
            self._file = file

    def _end_segment(self) -> None:
        """Sync and close the segment at hand, if there is one."""
        with self._lock:
            file, self._file, self._dirty = self._file, -1, False
        if file < 0:
            return
        self._old.append((self._folder / f"{self._number:08d}.seg", self._size))
        self._size = 0
        try:
            os.fsync(file)
        finally:
            os.close(file)

    def _make_room(self, size: int) -> None:
        while self._old and self.total + size > self._max_bytes:
            path, gone = self._old.pop(0)
            self.total -= gone
            with contextlib.suppress(FileNotFoundError):  # somebody else has removed it
                self.removed += count_records(path)
                path.unlink()

    def _write(self, record: bytes) -> None:
        done = 0
        try:
            while done < len(record):
                done += os.write(self._file, memoryview(record)[done:])
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += done
        self.total += done
        self.written += done
        self._dirty = True

    def _keep_synced(self) -> None:
        while not self._closing.wait(self._sync_s):
            with self._lock:  # a descriptor of its own: the segment may be closed meanwhile
                file = os.dup(self._file) if self._dirty and self._file >= 0 else -1
                self._dirty = False
            if file < 0:
                continue
            try:
                os.fsync(file)
            except OSError as error:
                self._fault = error
            finally:
                os.close(file)

    def _sentence(self, error: OSError) -> ConfigError:
        why = (error.strerror or str(error)).lower()
        return ConfigError(
            f"{self._folder} cannot be written: {why}; what is in it stays readable; make room, "
            "or record elsewhere"
        )

    def close(self) -> None:
        """Force everything to the disk. Raises ConfigError if that fails."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._thread.join()
        try:
            self._end_segment()
            if self._fault is not None:
                raise self._fault
        except OSError as error:
            raise self._sentence(error) from error
        finally:
            os.close(self._directory)


def last_record(folder: Path) -> tuple[bytes, float] | None:
    """Return (content, wall time it was written) of the newest whole record, or None."""
    for segment in reversed(segments(folder)):
        content = None
        for _, content in read_records(segment):  # noqa: B007
            pass
        if content is not None:
            return content, segment.stat().st_mtime
    return None
