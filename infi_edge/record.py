"""Record: every input through the model, and both onto the disk, for `infi-convert`."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from infi_edge.archive import write_atomically
from infi_edge.capture.journal import JournalWriter, last_record, segments
from infi_edge.capture.mask import Mask
from infi_edge.capture.recorded import (
    NAME,
    Encoding,
    Head,
    RecordingManifest,
    StoredInput,
    decode_input,
    encode_input,
    encode_picture,
    is_recorded,
    read_head,
    read_manifest,
)
from infi_edge.capture.source import Source
from infi_edge.errors import ConfigError, ExecutorError, InfiEdgeError, SourceError
from infi_edge.preprocess import ImageSpec
from infi_edge.tasks import Value
from infi_edge.types import Sample
from infi_edge.workload import to_frame

log = logging.getLogger("infi_edge")

TELL_S = 10.0
LONGEST_PAUSE_S = 86_400.0
_MOST_CAUSES = 100
_OWN = re.compile(rf"\.{re.escape(NAME)}\..*")
"""What a kill leaves behind while recording.json is written."""


class Recorder:
    """Writes a recording folder; one that is there is continued, also after a crash.

    Its times go on from the last one by the pause between, as far as the wall clock knows it (a
    second to a day): after a reboot the monotonic clock has another zero.
    """

    def __init__(self, folder: Path, manifest: RecordingManifest, max_bytes: int) -> None:
        """max_bytes: of all files in the folder that are the recording's.

        Raises ConfigError if something else is in the folder, or it cannot be written.
        """
        # As the file has it, so that one that is there compares equal.
        content = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
        manifest = msgspec.json.decode(content, type=RecordingManifest)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_folder(folder, manifest)
            self._journal = JournalWriter(folder, max(max_bytes - len(content), 1))
        except OSError as error:
            raise _unwritable(folder, error) from error
        try:
            if not is_recorded(folder) or last_record(folder) is None:
                for left in [p for p in folder.iterdir() if _OWN.fullmatch(p.name)]:
                    left.unlink()
                write_atomically(folder / NAME, content)
            newest = last_record(folder)
            last = Head(-1, 0.0, None) if newest is None else read_head(newest[0])
        except BaseException as error:
            self._journal.close()
            if isinstance(error, OSError):
                raise _unwritable(folder, error) from error
            raise
        self._index, self._time_s = last.index + 1, last.time_s
        self._written_at_s = None if newest is None else newest[1]
        self._shift_s: float | None = None

    @property
    def written(self) -> int:
        """Bytes written."""
        return self._journal.written

    @property
    def removed(self) -> int:
        """Inputs removed, the oldest ones, to stay within max_bytes."""
        return self._journal.removed

    def append(
        self,
        time_s: float,
        encoding: Encoding,
        data: bytes | list[bytes],
        value: Value,
        error: str | None = None,
    ) -> None:
        """Keep one input with its answer, or with why there is none.

        Raises ConfigError if the disk is full, SourceError if the input is too large to be kept,
        ExecutorError if the value is none that JSON has.
        """
        if self._shift_s is None:
            pause_s = 0.0
            if self._written_at_s is not None:
                pause_s = min(max(time.time() - self._written_at_s, 1.0), LONGEST_PAUSE_S)
            self._shift_s = self._time_s + pause_s - time_s
        time_s = max(time_s + self._shift_s, self._time_s)
        try:
            content = msgspec.msgpack.encode(
                StoredInput(self._index, time_s, error, value, encoding, data)
            )
        except (TypeError, ValueError, OverflowError, RecursionError) as wrong:
            raise ExecutorError(f"the task's value is no JSON value: {wrong}") from wrong
        self._journal.append(content)
        self._time_s = time_s
        self._index += 1

    def close(self) -> None:
        """Force everything to the disk. Raises ConfigError if that fails."""
        self._journal.close()


def _unwritable(folder: Path, error: OSError) -> ConfigError:
    why = (error.strerror or str(error)).lower()
    return ConfigError(f"{folder} cannot be written: {why}; record elsewhere")


def _check_folder(folder: Path, manifest: RecordingManifest) -> None:
    if is_recorded(folder) and last_record(folder) is not None:
        there = read_manifest(folder)
        if not there.same_workload(manifest):
            raise ConfigError(
                f"{folder} is a recording of another workload or form ({there.workload.model}, "
                f"task {there.workload.task}); give another folder"
            )
        return
    own = {NAME} if is_recorded(folder) else set()
    empty = set(segments(folder)) if own else set()
    there_is = (p for p in folder.iterdir() if p not in empty and p.name not in own)
    foreign = sorted(p.name for p in there_is if not _OWN.fullmatch(p.name))
    if foreign:
        raise ConfigError(f"{folder} holds other files ({foreign[0]}); give a new folder")


@dataclass(frozen=True, slots=True)
class Preparation:
    """From an input to what is kept of it and what the model sees.

    mask: blanked before either. reduced: only pictures of this (width, height) are kept, and the
    model sees the whole one; else the model sees what is kept, encoded and decoded.
    """

    modality: str
    mask: Mask = field(default_factory=Mask)
    reduced: tuple[int, int] | None = None

    def __call__(self, data: Any) -> tuple[Encoding, bytes | list[bytes], Any]:
        """Return (encoding, what is kept, what the model sees). Raises SourceError."""
        if self.mask:
            data = self._each(data, lambda frame: self.mask(to_frame(frame)))
        if self.reduced is None:
            encoding, kept = encode_input(data, self.modality)
            return encoding, kept, decode_input(encoding, kept)
        # What the filter's own preprocessing makes of it, so that training sees just that.
        spec = ImageSpec(*self.reduced, order="BGR")
        try:
            kept = self._each(data, lambda f: encode_picture(spec.tensor(f)[0], lossless=True))
        except ValueError as error:
            raise SourceError(str(error)) from error
        return "png", kept, data

    def _each(self, data: Any, change: Callable[[Any], Any]) -> Any:
        return [change(frame) for frame in data] if self.modality == "video" else change(data)


@dataclass(slots=True)
class Totals:
    """inputs: that are done. errors: of them, by cause."""

    inputs: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        """How many have no answer."""
        return sum(self.errors.values())

    def note(self, index: int, error: InfiEdgeError) -> None:
        """Count an error; the log has each cause once."""
        message = str(error)
        if message not in self.errors and len(self.errors) >= _MOST_CAUSES:
            message = "further causes"
        elif message not in self.errors:
            log.error("input %d: %s", index, message)
        self.errors[message] += 1


def record_stream(
    source: Source,
    infer: Callable[[Any], Value],
    recorder: Recorder,
    prepare: Preparation,
    totals: Totals,
    *,
    every: int = 1,
    most_s: float | None = None,
    stopping: Callable[[], bool] = lambda: False,
    tell: Callable[[], None] = lambda: None,
) -> None:
    """Keep every `every`th input with its answer, until the source ends or `stopping` says so.

    most_s: end after so many seconds. tell: called every TELL_S. An input that the model fails on
    is kept with the error, and the loop goes on. Raises SourceError if the source breaks,
    ConfigError if the disk is full, or the task cannot read what the model gives at all.
    """
    begun_s = told_s = time.monotonic()
    seen = 0
    samples = source.samples()
    try:
        for sample in samples:
            now_s = time.monotonic()
            if stopping() or (most_s is not None and now_s - begun_s >= most_s):
                break
            if now_s - told_s >= TELL_S:
                told_s = now_s
                tell()
            if sample is None:
                continue
            if seen % every == 0:
                _keep(sample, infer, recorder, prepare, totals)
                totals.inputs += 1
            seen += 1
    finally:
        source.close()
        if isinstance(samples, Generator):
            samples.close()


def _keep(
    sample: Sample,
    infer: Callable[[Any], Value],
    recorder: Recorder,
    prepare: Preparation,
    totals: Totals,
) -> None:
    try:
        encoding, kept, seen = prepare(sample.data)
    except SourceError as error:
        totals.note(sample.index, error)
        return
    value, failure = None, None
    try:
        value = infer(seen)
    except InfiEdgeError as error:
        if isinstance(error, ConfigError) and totals.failed == totals.inputs:
            raise  # task and model do not fit: no input will ever have an answer
        totals.note(sample.index, error)
        failure = str(error)
    try:
        recorder.append(sample.time_s, encoding, kept, value, failure)
    except (SourceError, ExecutorError) as error:
        if failure is None:
            totals.note(sample.index, error)
