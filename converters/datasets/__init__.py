"""Published data sets, read where the user's files are, as streams of inputs with labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from converters.datasets import (
    cameras,
    esc,
    hollywood2,
    postures,
    spoken_digits,
    uci_har,
    watch,
    wnut17,
)
from converters.datasets.streams import Dataset, Stream
from infi_edge.errors import ConfigError

__all__ = ["LOADERS", "PACKAGED", "Dataset", "Stream", "load_dataset"]

LOADERS: dict[str, Callable[[Path], Dataset]] = {
    "uci-har": uci_har.load,
    "watch": watch.load,
    "postures": postures.load,
    "esc-50": esc.load_esc50,
    "esc-10": esc.load_esc10,
    "spoken-digits": spoken_digits.load,
    "wnut17": wnut17.load,
    "hollywood2": hollywood2.load_clips,
    "hollywood2-frames": hollywood2.load_frames,
    "hollywood2-audio": hollywood2.load_audio,
    "hollywood2-subtitles": hollywood2.load_subtitles,
    "city-traffic": cameras.load_city_traffic,
    "traffic": cameras.load_traffic,
    "person": cameras.load_person,
    "signs": cameras.load_signs,
}
"""What reads each data set: the folder in, a Dataset out. A further set is one more entry."""

PACKAGED: dict[str, Callable[[], Path]] = {"watch": watch.package_folder}
"""Sets that come inside an installed package, and where that has them."""


def load_dataset(name: str, folder: str | Path | None = None) -> Dataset:
    """Return a data set by its name. folder: where its files are, as published.

    Raises ConfigError if there is no such set or a folder is needed, SourceError if its files are
    missing, damaged or do not fit together.
    """
    loader = LOADERS.get(name)
    if loader is None:
        raise ConfigError(f"data set {name!r} is unknown; it is one of {', '.join(LOADERS)}")
    if folder is None:
        if name not in PACKAGED:
            raise ConfigError(f"{name}: give the folder where its files are")
        return loader(PACKAGED[name]())
    return loader(Path(folder))
