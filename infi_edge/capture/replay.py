"""Recordings of pictures as sources: a video file, or a folder of images."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import cv2

from infi_edge.errors import ConfigError, SourceError
from infi_edge.types import Sample

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


class Recording(Protocol):
    """A stream that can be read again: `count` inputs at `rate_hz`."""

    name: str
    rate_hz: float

    @property
    def count(self) -> int:
        """How many inputs there are."""

    def samples(self, first: int = 0, last: int | None = None) -> Iterator[Sample]:
        """Yield inputs first..last-1 with their stream time; raise SourceError if one is bad."""

    def content_hash(self) -> str:
        """SHA-256 of the content."""


def file_hash(path: Path) -> str:
    """SHA-256 of a file, read in pieces. Raises SourceError."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def files_hash(files: Sequence[Path], settings: str = "") -> str:
    """SHA-256 of files' names and contents, and of how they are read."""
    digest = hashlib.sha256(settings.encode())
    for file in files:
        digest.update(f"{file.name}\0".encode())
        digest.update(bytes.fromhex(file_hash(file)))
    return digest.hexdigest()


class VideoFile:
    """A video file, decoded by OpenCV."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        capture = self._open()
        self.rate_hz = float(capture.get(cv2.CAP_PROP_FPS))
        if not math.isfinite(self.rate_hz) or self.rate_hz <= 0:
            self.rate_hz = 25.0
        capture.release()

    @functools.cached_property
    def count(self) -> int:
        """Frames that can be decoded, by decoding them: what a file declares is often wrong."""
        capture, count = self._open(), 0
        while capture.grab():
            count += 1
        capture.release()
        if count == 0:
            raise SourceError(f"{self.name} holds no frame that can be decoded")
        return count

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(self.name)
        if not capture.isOpened():
            raise SourceError(f"{self.name} cannot be read as a video; give a video file or folder")
        return capture

    def samples(self, first: int = 0, last: int | None = None) -> Iterator[Sample]:
        capture = self._open()
        try:
            for _ in range(first):
                if not capture.grab():
                    return
            for index in itertools.count(first) if last is None else range(first, last):
                ok, frame = capture.read()
                if not ok:
                    if index == 0:
                        raise SourceError(f"{self.name} holds no frame that can be decoded")
                    return
                yield Sample(frame, index / self.rate_hz, index, self.name)
        finally:
            capture.release()

    def content_hash(self) -> str:
        return file_hash(self._path)


class ImageFolder:
    """A folder of images in the order of their names; JPEGs are passed on as they are."""

    def __init__(self, path: Path, rate_hz: float = 1.0) -> None:
        """rate_hz: images a second of the stream they were taken from."""
        self.name, self.rate_hz = str(path), rate_hz
        self._files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not self._files:
            raise SourceError(
                f"{path} holds no images; give a folder of .jpg, .png, .bmp or .webp files"
            )
        self.count = len(self._files)

    def samples(self, first: int = 0, last: int | None = None) -> Iterator[Sample]:
        for index, file in enumerate(self._files[first:last], first):
            try:
                data: object = file.read_bytes()
            except OSError as error:
                raise SourceError(f"{file} cannot be read: {error.strerror}") from error
            if file.suffix.lower() not in {".jpg", ".jpeg"}:
                data = cv2.imread(str(file), cv2.IMREAD_COLOR)
                if data is None:
                    raise SourceError(f"{file} is not an image that can be decoded")
            yield Sample(data, index / self.rate_hz, index, str(file))

    def content_hash(self) -> str:
        return files_hash(self._files)


def part(recording: Recording, start: float, end: float) -> tuple[int, int]:
    """Return the inputs (first, last) of a part given as fractions. Raises ConfigError."""
    if not 0.0 <= start < end <= 1.0:
        raise ConfigError(f"--start {start:g} --end {end:g}: use 0 <= start < end <= 1")
    first, last = math.floor(start * recording.count), math.floor(end * recording.count)
    if last - first < 1:
        raise ConfigError(f"{recording.name}: no input between {start:g} and {end:g} of it")
    return first, last
