"""Keeps a sample of what a learning gate has inferred, as a recording that a filter can be trained
from: `infi-convert train`."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from infi_edge.bundle import Manifest, WorkloadInfo
from infi_edge.capture.recorded import (
    FORMAT_VERSION,
    Encoding,
    RecordingManifest,
    encode_input,
    encode_picture,
    is_recorded,
)
from infi_edge.config import Polygon
from infi_edge.errors import ConfigError, InfiEdgeError
from infi_edge.labels import DECODING_VERSION
from infi_edge.learning.memory import is_learnable
from infi_edge.preprocess import ImageSpec, VideoSpec
from infi_edge.record import LONGEST_PAUSE_S, Recorder
from infi_edge.tasks import Value

log = logging.getLogger("infi_edge")

NAME, SUFFIX, LEARNED = "sample", ".sample", ".learned"
"""DIR/sample of a gate with state=DIR; STATE/SOURCE.sample of a daemon, beside SOURCE.learned."""
EVERY_S = 1.0
"""Between two inputs that are kept: a card wears, and neighbours hardly differ."""
QUEUED = 4
CLOSE_S = 2.0
"""A disk that hangs is not waited for: the thread ends with the process."""


def sample_manifest(
    trained: Manifest,
    workload: WorkloadInfo | None = None,
    source: str = "",
    masks: Sequence[Polygon] = (),
) -> RecordingManifest:
    """Return what a sample says of itself: inputs and workload of the filter that has it.

    Pictures are kept as small as the filter reads them. workload: instead of the filter's own.
    source: for people.
    """
    spec = trained.preprocess
    reduced = (spec.width, spec.height) if isinstance(spec, (ImageSpec, VideoSpec)) else None
    return RecordingManifest(
        format_version=FORMAT_VERSION,
        modality=trained.modality,
        preprocess=msgspec.to_builtins(spec),
        workload=workload or trained.workload,
        decoding_version=DECODING_VERSION,
        reduced=reduced,
        masks=tuple(masks),
        inferred_only=True,
        made={
            "source": source,
            "begun": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "by": "a gate that learns",
        },
    )


@dataclass(frozen=True, slots=True)
class _Kept:
    """time_s: on a clock of the sample's own, which never goes back."""

    time_s: float
    data: Any
    value: Value


class InputSample:
    """Writes at most one inferred input in EVERY_S, in a thread; the oldest go.

    `offer` and `close` never raise: where nothing can be kept, the log says so once per kind of
    error, and each input tries again. counts: kept, failed, dropped (the disk is slower than the
    inputs).
    """

    def __init__(self, folder: Path, manifest: RecordingManifest, max_bytes: int) -> None:
        """max_bytes: of the folder. It is made, and its owner found out, with the first input."""
        self.folder = folder
        self.counts: Counter[str] = Counter()
        self._manifest, self._max_bytes = manifest, max_bytes
        self._is_picture = manifest.reduced is not None
        self._order = str(manifest.preprocess.get("order", "RGB"))
        self._seen_s: float | None = None
        self._clock_s = 0.0
        self._recorder: Recorder | None = None
        self._told: set[type[Exception]] = set()
        self._waiting: queue.Queue[_Kept | None] = queue.Queue(QUEUED)
        self._thread: threading.Thread | None = None
        self._closed = False

    def offer(self, time_s: float, tensor: np.ndarray, data: Any, value: Value) -> None:
        """Keep an input with the model's answer if it is time for one; returns at once.

        time_s: of the stream. tensor: the filter's own input, (1, ...), which is what is kept of
        pictures; data: what the model got, kept of all else.
        """
        if self._closed or not is_learnable(value) or not self._is_due(time_s):
            return
        seen = tensor if self._is_picture else data
        # What is the caller's own may be overwritten before the thread comes to it.
        own = seen.copy() if isinstance(seen, np.ndarray) else seen
        try:
            self._waiting.put_nowait(_Kept(self._clock_s, own, value))
        except queue.Full:
            self.counts["dropped"] += 1
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="sample", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Write what waits, and let go of the folder."""
        if self._closed:
            return
        self._closed = True
        if self._thread is None:
            return
        try:
            self._waiting.put(None, timeout=CLOSE_S)
        except queue.Full:
            return
        self._thread.join(CLOSE_S)

    def _is_due(self, time_s: float) -> bool:
        """Whether an input is EVERY_S from the last one kept, before it or after it."""
        if not math.isfinite(time_s):
            return False
        step_s = EVERY_S if self._seen_s is None else time_s - self._seen_s
        if abs(step_s) < EVERY_S:
            return False
        self._seen_s = time_s
        self._clock_s += min(step_s, LONGEST_PAUSE_S) if step_s > 0 else EVERY_S
        return True

    # The thread.

    def _run(self) -> None:
        while (kept := self._waiting.get()) is not None:
            try:
                self._write(kept)
                self.counts["kept"] += 1
            except Exception as error:  # whatever an input is, the next one may be kept
                self._failed(error)
        if self._recorder is not None:
            try:
                self._recorder.close()
            except ConfigError as error:
                self._failed(error)

    def _write(self, kept: _Kept) -> None:
        encoding, data = self._encoded(kept.data)
        if self._recorder is None:
            self._recorder = Recorder(self.folder, self._manifest, self._max_bytes)
        self._recorder.append(kept.time_s, encoding, data, kept.value)

    def _encoded(self, data: Any) -> tuple[Encoding, bytes | list[bytes]]:
        if not self._is_picture:
            return encode_input(data, self._manifest.modality)
        pictures = data[..., ::-1] if self._order == "RGB" else data
        if data.ndim == 5:  # a clip
            return "png", [encode_picture(frame.copy(), lossless=True) for frame in pictures[0]]
        return "png", encode_picture(pictures[0].copy(), lossless=True)

    def _failed(self, error: Exception) -> None:
        self.counts["failed"] += 1
        if type(error) in self._told:
            return
        self._told.add(type(error))
        why = str(error) if isinstance(error, InfiEdgeError) else repr(error)
        log.warning("%s: an input is not kept, learning goes on without: %s", self.folder, why)


def find_sample(path: str) -> str:
    """Return the sample that the state folder of a gate or of a daemon has; else the path itself.

    Raises ConfigError if a daemon's folder has those of several sources.
    """
    folder = Path(path)
    try:
        if not folder.is_dir() or is_recorded(folder):
            return path
        beside = folder.with_suffix(SUFFIX) if folder.suffix == LEARNED else folder / NAME
        found = sorted(p for p in (beside, *folder.glob(f"*{SUFFIX}")) if is_recorded(p))
    except (OSError, ValueError):
        return path
    if len(found) > 1:
        names = ", ".join(sample.name for sample in found)
        raise ConfigError(f"{path} has the samples of several sources ({names}); name one")
    return str(found[0]) if found else path
