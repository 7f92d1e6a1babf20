"""Recordings of anything but single pictures: clips, windows of a signal, lines, arrays."""

from __future__ import annotations

import bisect
import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infi_edge.capture.replay import VideoFile, files_hash
from infi_edge.errors import SourceError
from infi_edge.types import Sample


@dataclass(frozen=True, slots=True)
class Stretch:
    """A continuous piece of signal: length in samples, and how to read it, (T,) or (T, C)."""

    name: str
    length: int
    load: Callable[[], np.ndarray]


class SignalWindows:
    """Windows of `window` samples, a new one every `hop`; none spans two stretches.

    A stretch shorter than a window is one window filled up with zeros when `pad`, else none.
    """

    def __init__(
        self,
        name: str,
        stretches: Sequence[Stretch],
        window: int,
        hop: int,
        rate_hz: float,
        identity: Callable[[], str],
        pad: bool = False,
    ) -> None:
        """rate_hz: samples a second. identity: the content's hash, asked for when needed."""
        self.name, self._stretches, self._window, self._hop = name, list(stretches), window, hop
        self.rate_hz = rate_hz / hop
        self._pad, self._identity = pad, identity
        counts = [self._count(stretch.length) for stretch in self._stretches]
        self._ends = list(itertools.accumulate(counts))
        self.count = self._ends[-1] if self._ends else 0
        if self.count == 0:
            raise SourceError(f"{name} is shorter than one window of {window} samples")

    def _count(self, length: int) -> int:
        if length < self._window:
            return 1 if self._pad and length > 0 else 0
        return (length - self._window) // self._hop + 1

    def samples(self, first: int = 0, last: int | None = None) -> Iterator[Sample]:
        last = self.count if last is None else min(last, self.count)
        index = first
        while index < last:
            number = bisect.bisect_right(self._ends, index)
            stretch = self._stretches[number]
            before = self._ends[number - 1] if number else 0
            signal = stretch.load()
            for place in range(index - before, min(self._ends[number], last) - before):
                # A copy: windows overlap, and a model may write into its input.
                data = np.array(signal[place * self._hop : place * self._hop + self._window])
                if len(data) < self._window:
                    missing = self._window - len(data)
                    data = np.pad(data, [(0, missing)] + [(0, 0)] * (data.ndim - 1))
                yield Sample(data, index / self.rate_hz, index, stretch.name)
                index += 1

    def content_hash(self) -> str:
        return self._identity()


class Clips:
    """Clips of `frames` frames over video files, a new one every `hop`; none spans two files."""

    def __init__(self, name: str, files: Sequence[Path], frames: int, hop: int) -> None:
        self.name, self._frames, self._hop, self._files = name, frames, hop, list(files)
        self._videos = [VideoFile(file) for file in self._files]
        self.rate_hz = self._videos[0].rate_hz / hop

    @functools.cached_property
    def _ends(self) -> list[int]:
        counts = (max((v.count - self._frames) // self._hop + 1, 0) for v in self._videos)
        return list(itertools.accumulate(counts))

    @functools.cached_property
    def count(self) -> int:
        """How many clips there are."""
        if self._ends[-1] == 0:
            raise SourceError(f"{self.name} is shorter than one clip of {self._frames} frames")
        return self._ends[-1]

    def samples(self, first: int = 0, last: int | None = None) -> Iterator[Sample]:
        last = self.count if last is None else min(last, self.count)
        for number, video in enumerate(self._videos):
            before = self._ends[number - 1] if number else 0
            start, stop = max(first, before), min(last, self._ends[number])
            if start < stop:
                yield from self._clips(video, start, stop, before)

    def _clips(self, video: VideoFile, start: int, stop: int, before: int) -> Iterator[Sample]:
        begin = (start - before) * self._hop
        end = (stop - before - 1) * self._hop + self._frames
        recent: deque[np.ndarray] = deque(maxlen=self._frames)
        index = start
        for frame in video.samples(begin, end):
            frame.data.flags.writeable = False  # clips share frames: a model must not draw on one
            recent.append(frame.data)
            if frame.index == (index - before) * self._hop + self._frames - 1:
                yield Sample(list(recent), index / self.rate_hz, index, video.name)
                index += 1

    def content_hash(self) -> str:
        return files_hash(self._files, f"clips of {self._frames}, hop {self._hop}")


class Rows:
    """Inputs that lie ready, one after the other: lines of text, tensors of an array file."""

    def __init__(
        self,
        name: str,
        rows: Sequence[object] | np.ndarray,
        rate_hz: float,
        identity: Callable[[], str],
    ) -> None:
        self.name, self._rows, self.rate_hz, self._identity = name, rows, rate_hz, identity
        self.count = len(rows)
        if self.count == 0:
            raise SourceError(f"{name} is empty")

    def samples(self, first: int = 0, last: int | None = None) -> Iterator[Sample]:
        last = self.count if last is None else min(last, self.count)
        for index in range(first, last):
            row = self._rows[index]
            data = np.array(row) if isinstance(self._rows, np.ndarray) else row
            yield Sample(data, index / self.rate_hz, index, self.name)

    def content_hash(self) -> str:
        return self._identity()


def read_arrays(path: Path) -> np.ndarray:
    """Return the inputs (N, ...) of a .npy file, or of `inputs` (else the only array) of a .npz.

    Nothing is unpickled. Raises SourceError.
    """
    arrays = load_arrays(path)
    if "inputs" not in arrays and len(arrays) != 1:
        raise SourceError(f"{path} holds {len(arrays)} arrays, none of them 'inputs'")
    array = arrays.get("inputs", next(iter(arrays.values())))
    other = {name: len(a) for name, a in arrays.items() if a is not array and a.ndim}
    if "labels" in other and array.ndim and other["labels"] != len(array):
        raise SourceError(
            f"{path} holds {len(array)} inputs and {other['labels']} labels; labels are not used "
            "here (the model makes them), but the file is not whole"
        )
    if array.ndim == 0 or array.dtype.kind not in "biuf":
        raise SourceError(f"{path} holds {array.dtype} of shape {array.shape}; inputs are numbers")
    return array


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a .npz by name, or that of a .npy as `inputs`, mapped to memory.

    Nothing is unpickled. Raises SourceError.
    """
    if not path.is_file():
        raise SourceError(f"{path} does not exist; give a .npy or .npz file")
    try:
        loaded = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"inputs": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        if "pickle" in str(error) or "Python object" in str(error):
            raise SourceError(
                f"{path} is no array file of numbers; Python objects in it are never loaded"
            ) from error
        raise SourceError(f"{path} is no array file that can be read: {error}") from error
    except Exception as error:  # zipfile.BadZipFile, zlib.error and what NumPy's header parser has
        reason = str(error).splitlines() or [repr(error)]
        raise SourceError(f"{path} is no array file that can be read: {reason[0]}") from error
