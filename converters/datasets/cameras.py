"""Sets of camera streams: a folder of frames, or a video file, per camera."""

from __future__ import annotations

from pathlib import Path

from converters.datasets.streams import Dataset, Stream
from converters.datasets.tables import list_files
from infi_edge.capture.recordings import SUFFIXES
from infi_edge.capture.replay import IMAGE_SUFFIXES
from infi_edge.errors import SourceError

VIDEO_SUFFIXES = SUFFIXES["video"]


def load_city_traffic(folder: Path) -> Dataset:
    """City Traffic (InFi): per camera a folder of frames in time order, or a video; 1 a second."""
    if not folder.is_dir():
        raise SourceError(f"{folder} is no folder; give the one that holds a folder per camera")
    streams = []
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            frames = list_files(entry, IMAGE_SUFFIXES)
            streams.append(Stream(entry.name, entry.name, frames, rate_hz=1.0))
        elif entry.suffix.lower() in VIDEO_SUFFIXES:
            streams.append(Stream(entry.stem, entry.stem, (entry,)))
    if not streams:
        raise SourceError(f"{folder} holds no camera: no folder of images and no video file")
    return Dataset("city-traffic", "image", (), tuple(streams))


def load_traffic(folder: Path) -> Dataset:
    """Video files of roads, each a camera of its own; any folder of videos will do."""
    return _videos("traffic", folder)


def load_person(folder: Path) -> Dataset:
    """Video files of people coming and going, each a camera of its own; any folder will do."""
    return _videos("person", folder)


def _videos(name: str, folder: Path) -> Dataset:
    files = list_files(folder, VIDEO_SUFFIXES)
    return Dataset(name, "image", (), tuple(Stream(f.stem, f.stem, (f,)) for f in files))


def load_signs(folder: Path) -> Dataset:
    """Signs: clips of one person signing; a file's name is the word."""
    files = list_files(folder, VIDEO_SUFFIXES)
    streams = tuple(Stream(f.stem, f.stem, (f,), (f.stem,)) for f in files)
    return Dataset("signs", "video", (), streams)
