"""The picture or sound of each event's beginning, in a folder that is bounded by bytes and days."""

from __future__ import annotations

import os
import re
import time
import wave
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np

from infi_edge.config import SnapshotSinkConfig
from infi_edge.errors import ConfigError
from infi_edge.events import Event
from infi_edge.types import Image, Result, Sample

BLOCK_BYTES = 4096
"""What a file takes on disk is a multiple of this."""

LOOK_EVERY_S = 3600.0
"""So often files that are too old are looked for, though nothing is written."""

_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_OURS = re.compile(r"\d{6}-[\w-]+\.(jpg|wav|json)")
_TEMPORARY = re.compile(r"\.\d{6}-[\w-]+\.(jpg|wav|json)\.part")


class Snapshots:
    """The sink: FOLDER/YYYY-MM-DD/HHMMSS-EVENT.jpg, and EVENT-0.jpg, -1, ... from before it.

    Dates and times are UTC. Sound is a .wav file, other inputs are .json. JPEG bytes are written as
    they came. Files appear whole or not at all. Only files that have such names are ever deleted.
    """

    kind = "snapshots"
    wants_results = False
    wants_samples = True

    def __init__(
        self, config: SnapshotSinkConfig, rates_hz: Mapping[str, float] | None = None
    ) -> None:
        """rates_hz: of the sources whose inputs are sound. Raises ConfigError if the folder cannot
        be made or read."""
        self.counts: Counter[str] = Counter(sent=0, dropped=0, failed=0, deleted=0)
        self.sentence = ""
        self._config = config
        self._folder = Path(config.folder)
        self._rates_hz = dict(rates_hz or {})
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._sizes = self._look()
        except OSError as error:
            raise ConfigError(
                f"snapshots cannot be kept in {config.folder}: {error.strerror}"
            ) from error

    def write(self, result: Result, sample: Sample) -> None:
        pass

    def error(self, source: str, sample: Sample, message: str) -> None:
        pass

    def event(self, event: Event) -> None:
        if event.sample is None:
            return
        try:
            self._delete_old()
            day, begin = _stamp(event.begun_at)
            stem = f"{begin}-{re.sub(r'[^A-Za-z0-9_-]', '', event.id)}"
            with Whole(self._folder / day) as whole:
                for name, content in self._files(event, stem):
                    self._keep(whole, day, name, content)
            self.sentence = ""
        except OSError as error:
            self.counts["failed"] += 1
            self.sentence = f"{self._folder} cannot be written: {error.strerror}"

    def flush(self) -> None:
        if time.monotonic() - self._looked_s < LOOK_EVERY_S:
            return
        try:
            self._sizes = self._look()
            self._delete_old()
        except OSError as error:
            self.sentence = f"{self._folder} cannot be cleared: {error.strerror}"

    def close(self) -> None:
        pass

    def _files(self, event: Event, stem: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """Names and contents: first the event's own input, then those from before it in order."""
        assert event.sample is not None
        rate_hz = self._rates_hz.get(event.source)
        *clip, last = _parts(event.sample)
        ending, content = _encoded(event.sample, last, rate_hz)
        yield f"{stem}.{ending}", content
        before = [(sample, _parts(sample)[-1]) for sample in event.before]
        before += [(event.sample, frame) for frame in clip]
        for number, (sample, data) in enumerate(before):
            ending, content = _encoded(sample, data, rate_hz)
            yield f"{stem}-{number}.{ending}", content

    def _keep(self, whole: Whole, day: str, name: str, content: Callable[[], bytes]) -> None:
        data = content()
        size = _on_disk(len(data))
        if size > self._config.max_bytes:
            self.counts["dropped"] += 1
            return
        self._make_room(size)
        whole.add(name, data)
        self._sizes[day] = self._sizes.get(day, 0) + size
        self.counts["sent"] += 1

    def _look(self) -> dict[str, int]:
        """Return the bytes of each day, after a look at the disk."""
        self._looked_s = time.monotonic()
        days = (p for p in self._folder.iterdir() if _DAY.fullmatch(p.name) and p.is_dir())
        return {day.name: _cleaned_size(day) for day in days}

    def _make_room(self, size: int) -> None:
        while sum(self._sizes.values()) + size > self._config.max_bytes:
            oldest = min(self._sizes)
            self._delete(oldest, sum(self._sizes.values()) + size - self._config.max_bytes)

    def _delete_old(self) -> None:
        try:
            oldest = datetime.now(timezone.utc) - timedelta(days=self._config.max_days)
        except OverflowError:
            return
        for day in [day for day in self._sizes if day < f"{oldest:%Y-%m-%d}"]:
            self._delete(day, self._sizes[day] + 1)

    def _delete(self, day: str, size: int) -> None:
        """Delete at least so many bytes of a day, oldest first; the folder too if it is empty."""
        folder = self._folder / day
        for path in sorted(p for p in _listed(folder) if _OURS.fullmatch(p.name)):
            if size <= 0:
                return
            freed = _on_disk(path.stat().st_size)
            path.unlink()
            self.counts["deleted"] += 1
            self._sizes[day] -= freed
            size -= freed
        del self._sizes[day]
        with suppress(OSError):  # something else lies in it
            folder.rmdir()


class Whole:
    """Files of one folder, for their owner alone, that are there whole or not at all, power loss
    included: they are written beside, brought to the disk at once, and renamed at the end.

    Raises OSError; then nothing is left behind.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts: list[tuple[Path, Path]] = []

    def __enter__(self) -> Whole:
        return self

    def add(self, name: str, data: bytes) -> None:
        """Write one file's bytes; it gets its name later."""
        # At each event: somebody may have deleted them.
        self._folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._folder / name
        part = path.with_name(f".{name}.part")
        self._parts.append((part, path))
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None and self._parts:
                os.sync()  # once for all of them: a pre-roll is dozens of pictures
                for part, path in self._parts:
                    part.replace(path)
                os.sync()
        finally:
            for part, _ in self._parts:
                part.unlink(missing_ok=True)


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _cleaned_size(day: Path) -> int:
    """Delete what was being written when the power failed; return the bytes of the others."""
    size = 0
    for path in _listed(day):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink()
        elif _OURS.fullmatch(path.name):
            size += _on_disk(path.stat().st_size)
    return size


def _on_disk(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def _stamp(at: str) -> tuple[str, str]:
    """Return the day and the time of day of an ISO 8601 time; outside the daemon, of now."""
    moment = datetime.fromisoformat(at) if at else datetime.now(timezone.utc)
    moment = moment.astimezone(timezone.utc)
    return f"{moment:%Y-%m-%d}", f"{moment:%H%M%S}"


def _is_image(data: Any) -> bool:
    if isinstance(data, np.ndarray):
        return data.dtype == np.uint8 and data.ndim == 3 and data.shape[2] == 3
    return isinstance(data, bytes)


def _parts(sample: Sample) -> list[Any]:
    """The pictures of a clip, or the one input."""
    data = sample.data
    is_clip = isinstance(data, list) or (isinstance(data, np.ndarray) and data.ndim == 4)
    return list(data) if is_clip and len(data) and all(map(_is_image, data)) else [data]


def _encoded(sample: Sample, data: Any, rate_hz: float | None) -> tuple[str, Callable[[], bytes]]:
    """Return the file's ending, and what makes its content."""
    if _is_image(data):
        return "jpg", lambda: _jpeg(data)
    if rate_hz is not None and isinstance(data, np.ndarray) and data.ndim == 1:
        return "wav", lambda: _wav(data, rate_hz)
    return "json", lambda: msgspec.json.encode(
        {
            "source": sample.source,
            "index": sample.index,
            "time_s": sample.time_s,
            "data": data.tolist() if isinstance(data, np.ndarray) else data,
        }
    )


def _jpeg(image: Image) -> bytes:
    if isinstance(image, bytes):
        return image
    return cv2.imencode(".jpg", image)[1].tobytes()


def _wav(samples: np.ndarray, rate_hz: float) -> bytes:
    """samples: mono float, shape (window,), -1..1. Returns 16-bit PCM."""
    file = BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(round(rate_hz))
        out.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return file.getvalue()
