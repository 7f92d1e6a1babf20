"""Labels made by the model itself: its answer to every input of a recording, kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TextIO, runtime_checkable

import numpy as np

from infi_edge.capture.recorded import Recorded, RecordingManifest
from infi_edge.capture.replay import Recording
from infi_edge.errors import ConfigError, SourceError
from infi_edge.tasks import Value
from infi_edge.workload import Workload, WorkloadSpec

DECODING_VERSION = 1
"""Raised when a decoder or task reads the same outputs differently, so that old labels die."""


@runtime_checkable
class Timed(Protocol):
    """A recording that knows when its inputs came."""

    def times_s(self, first: int, last: int) -> np.ndarray:
        """Return the times of inputs first..last-1, float64 seconds."""


Progress = Callable[[int, int], None]
"""Called with (done, total) after each input."""


def cache_folder() -> Path:
    """Return $XDG_CACHE_HOME/infi-edge (default ~/.cache/infi-edge)."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "infi-edge"


def label(
    recording: Recording,
    workload: Workload,
    identity: str,
    first: int,
    last: int,
    progress: Progress | None = None,
) -> list[Value]:
    """Return the model's value for inputs first..last-1, running it only where it has not yet.

    identity: of the model (`workload.model_identity`). Kept by the content of recording and model,
    decoder, task and labels; an interrupted run goes on where it stopped. What `infi-edge record`
    has written of the same workload has the answers in it, and nothing is run.
    Raises SourceError if the recording ends early, ConfigError if nothing can be kept.
    """
    spec = workload.spec
    if isinstance(recording, Recorded):
        if answers_fit(recording.manifest, identity, spec):
            return recording.answers(first, last)
        if recording.manifest.reduced is not None:
            raise ConfigError(
                f"{recording.name} holds reduced pictures, on which no other workload than its own "
                f"({recording.manifest.workload.model}) can be run; record it for this one"
            )
    key = json.dumps(
        [
            recording.content_hash(),
            identity,
            spec.decoder,
            spec.task,
            list(spec.labels),
            DECODING_VERSION,
        ]
    )
    path = cache_folder() / "labels" / f"{hashlib.sha256(key.encode()).hexdigest()}.jsonl"
    known = _read(path)
    missing = [index for index in range(first, last) if index not in known]
    if missing:
        with _open(path) as file:
            for sample in recording.samples(missing[0], missing[-1] + 1):
                if sample.index not in known:
                    try:
                        value = workload(sample.data)
                    except SourceError as error:
                        where = f"{sample.source}, input {sample.index}"
                        raise SourceError(f"{where}: {error}; remove or replace it") from error
                    known[sample.index] = value
                    file.write(json.dumps([sample.index, value]) + "\n")
                    file.flush()
                if progress is not None:
                    progress(sample.index - first + 1, last - first)
    gone = next((i for i in range(first, last) if i not in known), None)
    if gone is not None:
        raise SourceError(
            f"{recording.name} ends at input {gone}, though it declares {recording.count}; "
            f"use --end {max(gone / recording.count - 0.005, 0):.2f} or repair it"
        )
    return [known[index] for index in range(first, last)]


def answers_fit(manifest: RecordingManifest, identity: str, spec: WorkloadSpec) -> bool:
    """Whether a recording's answers are those of this model, decoder, task and labels."""
    info = manifest.workload
    return manifest.decoding_version == DECODING_VERSION and (
        info.model_identity, info.decoder, info.task, info.labels
    ) == (identity, spec.decoder, spec.task, list(spec.labels))  # fmt: skip


def stream_times(recording: Recording, first: int, last: int) -> np.ndarray:
    """Return when inputs first..last-1 came, float64 seconds: as recorded where that is known,
    else evenly at the recording's rate."""
    if isinstance(recording, Timed):
        return recording.times_s(first, last)
    return np.arange(first, last) / recording.rate_hz


def _read(path: Path) -> dict[int, Value]:
    known: dict[int, Value] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return known
    for line in lines:
        try:
            index, value = json.loads(line)
        except (ValueError, TypeError):
            continue  # a line cut short by a kill; its input is run again
        known[int(index)] = value
    return known


@contextmanager
def _open(path: Path) -> Iterator[TextIO]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            if file.tell():
                file.write("\n")  # ends a line that a kill may have cut short
            yield file
    except OSError as error:
        raise ConfigError(
            f"labels cannot be kept in {path.parent}: {error.strerror}; "
            "make room there or set XDG_CACHE_HOME"
        ) from error
