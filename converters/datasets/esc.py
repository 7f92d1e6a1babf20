"""ESC-50 and ESC-10 (Piczak, MM 2015): environmental sounds of five seconds."""

from __future__ import annotations

import re
from pathlib import Path

from converters.datasets.streams import Dataset, Stream
from converters.datasets.tables import find_root, list_files, need_file, read_table
from infi_edge.errors import SourceError

Clip = tuple[str, Path, str]
"""Fold, file, label."""

_OLD_FOLDER = re.compile(r"\d{3} - (.+)")
_OLD_FILE = re.compile(r"(\d+)-.+")


def load_esc50(folder: Path) -> Dataset:
    """ESC-50: 2,000 sounds of 50 classes in 5 folds; no recording is in two folds."""
    return _dataset("esc-50", _published(folder, only_esc10=False))


def load_esc10(folder: Path) -> Dataset:
    """ESC-10: the 400 sounds of 10 classes of ESC-50; or the older release, converted to WAV."""
    if _old_folders(folder):
        return _dataset("esc-10", _older(folder))
    return _dataset("esc-10", _published(folder, only_esc10=True))


def _published(folder: Path, only_esc10: bool) -> list[Clip]:
    if _old_folders(folder):
        raise SourceError(
            f"{folder} is the older release of ESC-50; download the one with meta/esc50.csv"
        )
    root = find_root(folder, "meta/esc50.csv", "ESC-50")
    table = root / "meta" / "esc50.csv"
    clips = []
    for line, row in read_table(table, ("filename", "fold", "category", "esc10")):
        if only_esc10 and row["esc10"].strip().lower() != "true":
            continue
        name = row["filename"]
        if Path(name).name != name or not name.lower().endswith(".wav"):
            raise SourceError(f"{table}, line {line}: {name[:60]!r} is no name of a WAV file")
        file = need_file(root / "audio" / name, f"{table}, line {line},")
        clips.append((row["fold"], file, row["category"]))
    if not clips:
        raise SourceError(f"{table} marks no sound as esc10; give the file as published")
    return clips


def _old_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and _OLD_FOLDER.fullmatch(p.name))


def _older(folder: Path) -> list[Clip]:
    """The release of 2015: `001 - Dog bark/1-30226-A.ogg`; a file's first number is its fold."""
    clips = []
    for place in _old_folders(folder):
        matched = _OLD_FOLDER.fullmatch(place.name)
        assert matched is not None
        if any(place.glob("*.ogg")) and not any(place.glob("*.wav")):
            raise SourceError(
                f"{place} holds .ogg files, and WAV is needed; convert them "
                "(ffmpeg -i x.ogg x.wav), or use the ESC-50 release, which has them"
            )
        for file in list_files(place, {".wav"}):
            fold = _OLD_FILE.fullmatch(file.name)
            if fold is None:
                raise SourceError(f"{file} is not named FOLD-SOURCE-TAKE.wav; rename it")
            clips.append((fold[1], file, matched[1]))
    return clips


def _dataset(name: str, clips: list[Clip]) -> Dataset:
    streams = []
    for fold in sorted({clip[0] for clip in clips}):
        files = tuple(clip[1] for clip in clips if clip[0] == fold)
        labels = tuple(clip[2] for clip in clips if clip[0] == fold)
        streams.append(Stream(f"fold{fold}", f"fold{fold}", files, labels))
    return Dataset(name, "audio", (), tuple(streams))
