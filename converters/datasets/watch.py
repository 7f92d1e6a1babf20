"""The watch set inside the registry package seglearn (Burns et al., arXiv 1802.01489)."""

from __future__ import annotations

import hashlib
import importlib.util
import io
from pathlib import Path

import numpy as np

from converters.datasets.streams import Dataset, Stream
from infi_edge.errors import SourceError

FILE = "watch_dataset.npy"
SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
CHANNELS = ("ax", "ay", "az", "wx", "wy", "wz")
_SIDES = ("left", "right")


def package_folder(package: str = "seglearn") -> Path:
    """Return the folder of data in an installed package, which is not imported.

    Raises SourceError if the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SourceError(
            f"the package {package}, which holds this set, is not installed; "
            f"pip install --no-deps {package}"
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def load(folder: Path) -> Dataset:
    """Watch: shoulder exercises at 50 Hz, 140 series (T, 6) of 7 exercises and 10 subjects.

    The file is a pickle, which could run anything, so only the one with the known hash is opened.
    Raises SourceError.
    """
    path = folder / FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise SourceError(
            f"{path} is not the file this loader knows, and a pickle is not opened otherwise; "
            "pip install --no-deps --force-reinstall seglearn"
        )
    table = np.load(io.BytesIO(content), allow_pickle=True).item()
    streams = []
    for series, exercise, subject, side in zip(
        table["X"], table["y"], table["subject"], table["side"], strict=True
    ):
        group, label = f"subject{int(subject):02d}", table["y_labels"][int(exercise)]
        name = f"{group}-{label}-{_SIDES[int(side)]}"
        streams.append(Stream(name, group, series.astype(np.float32), (label,), rate_hz=50.0))
    return Dataset("watch", "motion", CHANNELS, tuple(streams))
