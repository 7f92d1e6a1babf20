"""UCI Human Activity Recognition (Anguita et al., ESANN 2013): a phone at the waist."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from converters.datasets.streams import Dataset, Stream
from converters.datasets.tables import find_root, read_integers, read_matrix
from infi_edge.capture.signals import read_lines
from infi_edge.errors import SourceError

WINDOW, HOP = 128, 64
SAMPLES_HZ = 50.0
CHANNELS = tuple(
    f"{sensor}_{axis}" for sensor in ("body_acc", "body_gyro", "total_acc") for axis in "xyz"
)


def load(folder: Path) -> Dataset:
    """UCI HAR: windows of 128 x 9 at 50 Hz, half overlapping; six activities of 30 subjects.

    One stream a subject, its windows in the order of the files. Raises SourceError.
    """
    root = find_root(folder, "activity_labels.txt", "the UCI HAR Dataset")
    names = _activities(root / "activity_labels.txt")
    splits = [split for split in ("train", "test") if (root / split).is_dir()]
    if not splits:
        raise SourceError(f"{root} holds neither train nor test; unpack the whole archive")
    streams = [stream for split in splits for stream in _split(root, split, names)]
    return Dataset("uci-har", "motion", CHANNELS, tuple(streams), HOP)


def _activities(path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for number, line in enumerate(read_lines(path), 1):
        key, _, name = line.strip().partition(" ")
        if not key.isdecimal() or not name:
            raise SourceError(f"{path}, line {number} is no number and name; copy the set again")
        names[int(key)] = name.strip()
    return names


def _split(root: Path, split: str, names: dict[int, str]) -> list[Stream]:
    label_file = root / split / f"y_{split}.txt"
    subject_file = root / split / f"subject_{split}.txt"
    labels, subjects = read_integers(label_file), np.array(read_integers(subject_file))
    windows = np.empty((len(labels), WINDOW, len(CHANNELS)), np.float32)
    for column, channel in enumerate(CHANNELS):
        file = root / split / "Inertial Signals" / f"{channel}_{split}.txt"
        values = read_matrix(file, WINDOW)
        _same_length(file, len(values), label_file, len(labels))
        windows[:, :, column] = values
    _same_length(subject_file, len(subjects), label_file, len(labels))
    unknown = next((i for i, label in enumerate(labels) if label not in names), None)
    if unknown is not None:
        raise SourceError(
            f"{label_file}, line {unknown + 1}: activity {labels[unknown]} is not in "
            "activity_labels.txt; copy the set again"
        )
    streams = []
    for subject in dict.fromkeys(subjects.tolist()):
        rows = np.flatnonzero(subjects == subject)
        name = f"subject{subject:02d}"
        activities = tuple(names[labels[row]] for row in rows)
        streams.append(Stream(name, name, windows[rows], activities, SAMPLES_HZ, split))
    return streams


def _same_length(file: Path, count: int, other: Path, other_count: int) -> None:
    if count != other_count:
        raise SourceError(
            f"{file} has {count} lines, {other.name} {other_count}; copy the set again"
        )
