"""UCI MoCap Hand Postures (id 405): markers on a glove, seen by motion capture cameras."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from converters.datasets.streams import Dataset, Stream
from converters.datasets.tables import find_root
from infi_edge.capture.signals import read_csv_signal
from infi_edge.errors import SourceError

CHANNELS = tuple(f"{axis}{marker}" for marker in range(12) for axis in "XYZ")
POSTURES = {1: "fist", 2: "stop", 3: "point1", 4: "point2", 5: "grab"}


def load(folder: Path) -> Dataset:
    """MoCap Hand Postures: 36 coordinates (mm) a record, missing ones NaN; 5 postures.

    One stream a user, windows of one record, (N, 1, 36). Raises SourceError.
    """
    path = find_root(folder, "Postures.csv", "MoCap Hand Postures") / "Postures.csv"
    table, names, _ = read_csv_signal(path)
    if names != ("Class", "User", *CHANNELS):
        raise SourceError(f"{path} has not the columns Class, User, X0 to Z11; give the UCI file")
    first = 1 if _is_dummy(table[0]) else 0
    table = table[first:]
    known = np.isin(table[:, 0], list(POSTURES)) & (table[:, 1] == np.floor(table[:, 1]))
    if not known.all():
        record = int(np.argmin(known))
        raise SourceError(
            f"{path}, record {first + record + 1}: Class {table[record, 0]:g} of User "
            f"{table[record, 1]:g} is no posture 1 to 5 of a numbered user; remove the record"
        )
    streams = []
    for user in np.unique(table[:, 1]):
        rows = table[table[:, 1] == user]
        labels = tuple(POSTURES[int(posture)] for posture in rows[:, 0])
        name = f"user{int(user):02d}"
        streams.append(Stream(name, name, rows[:, None, 2:], labels))
    return Dataset("postures", "motion", CHANNELS, tuple(streams))


def _is_dummy(row: np.ndarray) -> bool:
    """The file that UCI gives out begins with a record of zeros that nobody made."""
    return bool(np.isin(row[~np.isnan(row)], (0.0, 1.0)).all())
