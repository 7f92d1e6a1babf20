"""What a loader returns: a data set is named streams, each with who or what it comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from infi_edge.errors import ConfigError, SourceError

Kind = Literal["signal", "windows", "lines", "files"]
_NAMED_AT_MOST = 12


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """One piece of a data set whose inputs follow each other.

    name: unique in its set. group: the subject, speaker, camera or source; streams that must not
    be on both sides of a split share it. inputs: a signal, float32 (T, C) with NaN where a value
    is missing; windows (N, samples, C); lines of text; or files. labels: one for the whole stream,
    one per input, or none. rate_hz: samples (of a signal, of windows) or images a second; None
    where nobody knows, or where the files themselves say so. split: as published, `train`, `test`,
    ...; else empty.
    Raises SourceError if there is no input, or labels and inputs do not match.
    """

    name: str
    group: str
    inputs: np.ndarray | tuple[str, ...] | tuple[Path, ...]
    labels: tuple[str, ...] = ()
    rate_hz: float | None = None
    split: str = ""

    def __post_init__(self) -> None:
        count = len(self.inputs)
        if count == 0:
            raise SourceError(f"{self.name} holds no input; remove it or complete it")
        allowed = {0, 1} if self.kind == "signal" else {0, 1, count}
        if len(self.labels) not in allowed:
            raise SourceError(
                f"{self.name}: {len(self.labels)} labels for {count} inputs; "
                "give one for all, or one each"
            )

    @property
    def kind(self) -> Kind:
        """What the inputs are."""
        if isinstance(self.inputs, np.ndarray):
            return "signal" if self.inputs.ndim == 2 else "windows"
        return "files" if isinstance(self.inputs[0], Path) else "lines"

    def label(self, index: int) -> str:
        """The label of an input; empty if there is none."""
        if not self.labels:
            return ""
        return self.labels[index if len(self.labels) > 1 else 0]


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """modality: image, video, audio, text or motion. channels: names of a signal's columns.

    hop: of windows, the samples from the start of one to the next; None where nobody knows.
    Raises SourceError without a stream, or with two of the same name.
    """

    name: str
    modality: str
    channels: tuple[str, ...]
    streams: tuple[Stream, ...]
    hop: int | None = None

    def __post_init__(self) -> None:
        names = [stream.name for stream in self.streams]
        if not names:
            raise SourceError(f"{self.name}: nothing to read was found")
        twice, times = Counter(names).most_common(1)[0]
        if times > 1:
            raise SourceError(f"{self.name}: {times} streams are named {twice}; rename them")

    def part(self, groups: Collection[str] = (), split: str | None = None) -> Dataset:
        """Return the streams of these groups (default: all) and of this split alone.

        Raises ConfigError naming what there is if a group or split is unknown, or nothing is left.
        """
        known = {stream.group for stream in self.streams}
        splits = {stream.split for stream in self.streams} - {""}
        for group in groups:
            if group not in known:
                raise ConfigError(f"--group {group}: {self.name} has {_named(known)}")
        if split is not None and split not in splits:
            has = _named(splits) if splits else "none"
            raise ConfigError(f"--split {split}: the splits that {self.name} has: {has}")
        streams = tuple(
            stream
            for stream in self.streams
            if (not groups or stream.group in groups) and split in (None, stream.split)
        )
        if not streams:
            raise ConfigError(
                f"{self.name} has no {split} split of {_named(groups)}; take other groups"
            )
        return replace(self, streams=streams)


def _named(names: Collection[str]) -> str:
    shown = sorted(names)[:_NAMED_AT_MOST]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
