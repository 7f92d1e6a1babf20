"""A data set as recordings that `infi-convert train` reads, with its labels beside them.

OUT/recording holds signals as CSV, links to sounds, videos and images, or lines of text;
OUT/recording.npz holds windows. OUT/labels.csv has a row for each file, line or window, in the
order in which the recording yields them.
"""

from __future__ import annotations

import csv
import itertools
import os
import random
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.datasets.streams import Dataset, Stream
from infi_edge.capture.replay import IMAGE_SUFFIXES
from infi_edge.errors import ConfigError, SourceError

COLUMNS = ("input_or_file", "label", "group", "split")


@dataclass(frozen=True, slots=True)
class Written:
    """recordings: what `infi-convert train` is given, each by itself. rows: of the labels.

    options: of `infi-convert train`, what the recordings themselves cannot tell.
    """

    recordings: tuple[Path, ...]
    labels: Path
    rows: int
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Run:
    """Inputs first..last-1 of a stream, which stay together."""

    stream: Stream
    first: int
    last: int

    def row(self, name: str, index: int) -> tuple[str, str, str, str]:
        stream = self.stream
        return name, stream.label(index), stream.group, stream.split


def write_recordings(dataset: Dataset, output: str | Path, seed: int | None = None) -> Written:
    """Write a data set as recordings into a new folder, which is there whole or not at all.

    seed: shuffle with it, for sets whose files are sorted by label: files, lines and series one
    by one; windows and images in runs of one label, as time goes on within those.
    Raises ConfigError if the folder has something in it or cannot be made, or the streams do not
    go together (SourceError: windows of other shapes); OSError if the disk is full.
    """
    folder = Path(output)
    output = folder.absolute()
    _check_free(output)
    runs = _runs(dataset)
    if seed is not None:
        random.Random(seed).shuffle(runs)
    temporary = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    try:
        rows = _write(dataset, runs, temporary)
        with (temporary / "labels.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            table.writerows(rows)
        temporary.chmod(0o755)
        os.replace(temporary, output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    recordings = _recordings(folder, dataset.modality)
    return Written(recordings, folder / "labels.csv", len(rows), _options(dataset))


def _options(dataset: Dataset) -> tuple[str, ...]:
    options = ["--modality", dataset.modality]
    rates = {stream.rate_hz for stream in dataset.streams if stream.kind != "signal"} - {None}
    if len(rates) == 1:
        options += ["--rate-hz", f"{rates.pop():g}"]
    if dataset.hop is not None:
        options += ["--preprocess", f"hop={dataset.hop}"]
    return tuple(options)


def _check_free(output: Path) -> None:
    if output.is_dir():
        if any(output.iterdir()):
            raise ConfigError(f"{output} is not empty; give a new folder or empty it")
    elif output.exists():
        raise ConfigError(f"{output} is a file; give a new folder")
    elif not output.parent.is_dir():
        raise ConfigError(f"{output} cannot be written: its folder does not exist")


def _runs(dataset: Dataset) -> list[_Run]:
    runs = []
    for stream in dataset.streams:
        count = len(stream.inputs)
        if stream.kind == "signal":
            edges = [0, count]
        elif stream.kind == "windows" or dataset.modality == "image":
            changes = (i for i in range(1, count) if stream.label(i) != stream.label(i - 1))
            edges = [0, *changes, count]
        else:
            edges = list(range(count + 1))
        runs += [_Run(stream, first, last) for first, last in itertools.pairwise(edges)]
    return runs


def _write(dataset: Dataset, runs: Sequence[_Run], folder: Path) -> list[tuple[str, str, str, str]]:
    kinds = {run.stream.kind for run in runs}
    if len(kinds) > 1:
        raise ConfigError(f"{dataset.name} mixes {' and '.join(sorted(kinds))}; write them apart")
    kind = kinds.pop()
    if kind == "windows":
        return _write_windows(runs, folder / "recording.npz")
    (folder / "recording").mkdir()
    if kind == "signal":
        return _write_signals(runs, dataset.channels, folder / "recording")
    if kind == "lines":
        return _write_lines(runs, folder / "recording" / "lines.txt")
    return _link_files(runs, folder / "recording")


def _write_windows(runs: Sequence[_Run], path: Path) -> list[tuple[str, str, str, str]]:
    shapes = {np.asarray(run.stream.inputs).shape[1:]: None for run in runs}
    if len(shapes) > 1:
        found = " and of ".join(" x ".join(map(str, shape)) for shape in shapes)
        raise SourceError(f"windows of {found} cannot be one recording; write them apart")
    inputs = np.concatenate([np.asarray(run.stream.inputs[run.first : run.last]) for run in runs])
    np.savez(path, inputs=inputs)
    places = [(run, i) for run in runs for i in range(run.first, run.last)]
    return [run.row(str(number), i) for number, (run, i) in enumerate(places)]


def _write_signals(
    runs: Sequence[_Run], channels: tuple[str, ...], folder: Path
) -> list[tuple[str, str, str, str]]:
    rows = []
    for number, run in enumerate(runs):
        stream = run.stream
        values, names = np.asarray(stream.inputs, np.float64), list(channels)
        formats = ["%.9g"] * len(names)
        if stream.rate_hz is not None:
            times_s = np.arange(len(values)) / stream.rate_hz
            values = np.column_stack((times_s, values))
            names, formats = ["time_s", *names], ["%.6f", *formats]
        plain = re.sub(r"[^\w.-]", "_", stream.name)
        name = f"{_number(number, len(runs))}-{plain}.csv"
        header = ",".join(names)
        np.savetxt(folder / name, values, formats, ",", header=header, comments="")
        rows.append(run.row(name, 0))
    return rows


def _write_lines(runs: Sequence[_Run], path: Path) -> list[tuple[str, str, str, str]]:
    rows = []
    with path.open("w", encoding="utf-8", newline="") as file:
        for number, run in enumerate(runs):
            text = str(run.stream.inputs[run.first])
            file.write(text.replace("\r", " ").replace("\n", " ") + "\n")
            rows.append(run.row(str(number), run.first))
    return rows


def _link_files(runs: Sequence[_Run], folder: Path) -> list[tuple[str, str, str, str]]:
    """Link files under names that sort in their order; copy where links cannot be made."""
    places = [(run, i) for run in runs for i in range(run.first, run.last)]
    rows = []
    for number, (run, i) in enumerate(places):
        file = Path(str(run.stream.inputs[i]))
        name = f"{_number(number, len(places))}-{file.name}"
        try:
            (folder / name).symlink_to(file.resolve())
        except OSError:
            shutil.copyfile(file, folder / name)
        rows.append(run.row(name, i))
    return rows


def _number(number: int, count: int) -> str:
    return str(number).zfill(len(str(count - 1)))


def _recordings(output: Path, modality: str) -> tuple[Path, ...]:
    """The folder or array file; video files that single pictures are read from, one by one."""
    if (output / "recording.npz").exists():
        return (output / "recording.npz",)
    folder = output / "recording"
    if modality != "image":
        return (folder,)
    files = sorted(folder.iterdir())
    videos = tuple(file for file in files if file.suffix.lower() not in IMAGE_SUFFIXES)
    return videos if len(videos) == len(files) else (folder, *videos)
