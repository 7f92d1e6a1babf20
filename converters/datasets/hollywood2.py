"""Hollywood2 (Marszalek et al., CVPR 2009): actions in films, and InFi's re-cuts of it.

ClipSets/ACTION_SPLIT.txt says for each clip of a split whether (1) or not (-1) it shows the
action; the clips are AVIClips/CLIP.avi. Re-cuts lie beside: frames/CLIP/*.jpg, audio/CLIP.wav,
subtitles/CLIP.txt or .srt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from converters.datasets.streams import Dataset, Stream
from converters.datasets.tables import find_root, list_files, need_file
from infi_edge.capture.replay import IMAGE_SUFFIXES
from infi_edge.capture.signals import read_lines
from infi_edge.errors import SourceError

_SPLITS = {"train", "test", "autotrain"}
_LISTS_OF_ALL = {"actions", "scenes"}
_MARKUP = re.compile(r"<[^>]*>|\{\\[^}]*\}")


@dataclass(slots=True)
class _Clip:
    """split: train, test or autotrain (labels made from scripts). actions: what it shows."""

    split: str
    named_by: Path
    actions: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        return " ".join(self.actions) or "none"


def load_clips(folder: Path) -> Dataset:
    """Hollywood2: film clips of 12 actions, as video. A clip of two actions has both as label."""
    root, clips = _listed(folder)
    streams = []
    for name, clip in clips.items():
        file = need_file(root / "AVIClips" / f"{name}.avi", str(clip.named_by))
        streams.append(Stream(name, name, (file,), (clip.label,), split=clip.split))
    return Dataset("hollywood2", "video", (), tuple(streams))


def load_frames(folder: Path) -> Dataset:
    """Hollywood2 re-cut: pictures, frames/CLIP/*.jpg."""
    root, clips = _listed(folder)
    streams = []
    for place in _entries(root / "frames", {""}):
        clip = _clip(clips, place)
        files = list_files(place, IMAGE_SUFFIXES)
        streams.append(Stream(place.name, place.name, files, (clip.label,), split=clip.split))
    return Dataset("hollywood2-frames", "image", (), tuple(streams))


def load_audio(folder: Path) -> Dataset:
    """Hollywood2 re-cut: sound, audio/CLIP.wav."""
    root, clips = _listed(folder)
    streams = []
    for file in _entries(root / "audio", {".wav"}):
        clip = _clip(clips, file)
        streams.append(Stream(file.stem, file.stem, (file,), (clip.label,), split=clip.split))
    return Dataset("hollywood2-audio", "audio", (), tuple(streams))


def load_subtitles(folder: Path) -> Dataset:
    """Hollywood2 re-cut: lines of text, subtitles/CLIP.txt or .srt; clips without words left out.

    A caption of an .srt is one line.
    """
    root, clips = _listed(folder)
    streams = []
    for file in _entries(root / "subtitles", {".txt", ".srt"}):
        clip = _clip(clips, file)
        lines = _captions(file) if file.suffix.lower() == ".srt" else read_lines(file)
        spoken = tuple(line.strip() for line in lines if line.strip())
        if spoken:
            streams.append(Stream(file.stem, file.stem, spoken, (clip.label,), split=clip.split))
    return Dataset("hollywood2-subtitles", "text", (), tuple(streams))


def _listed(folder: Path) -> tuple[Path, dict[str, _Clip]]:
    """Return the set's root and its clips by name, as all lists together describe them."""
    root = find_root(folder, "ClipSets", "Hollywood2")
    clips: dict[str, _Clip] = {}
    counts: dict[str, tuple[Path, int]] = {}
    for path in list_files(root / "ClipSets", {".txt"}):
        action, _, split = path.stem.rpartition("_")
        if split not in _SPLITS or action in _LISTS_OF_ALL:
            continue
        flags = _flags(path)
        other, count = counts.setdefault(split, (path, len(flags)))
        if count != len(flags):
            raise SourceError(
                f"{path} lists {len(flags)} clips, {other.name} {count}; copy the set again"
            )
        for name, shown in flags.items():
            clip = clips.setdefault(name, _Clip(split, path))
            if clip.split != split:
                raise SourceError(f"{path}: {name} is in {clip.named_by.name} too; remove one")
            if shown:
                clip.actions.append(action)
    if not clips:
        raise SourceError(f"{root / 'ClipSets'} holds no list such as AnswerPhone_train.txt")
    return root, clips


def _flags(path: Path) -> dict[str, bool]:
    flags: dict[str, bool] = {}
    for number, line in enumerate(read_lines(path), 1):
        cells = line.split()
        if not cells:
            continue
        if len(cells) != 2 or cells[1] not in {"1", "-1"} or Path(cells[0]).name != cells[0]:
            raise SourceError(
                f"{path}, line {number}: {line.strip()[:60]!r} is no clip and 1 or -1; mend it"
            )
        flags[cells[0]] = cells[1] == "1"
    return flags


def _entries(folder: Path, suffixes: set[str]) -> list[Path]:
    """A re-cut's files, or its folders ("" among the suffixes), by name."""
    if not folder.is_dir():
        raise SourceError(f"{folder} is not there; put the re-cut there, one entry a clip")
    entries = sorted(
        p
        for p in folder.iterdir()
        if (p.is_dir() if "" in suffixes else p.suffix.lower() in suffixes)
    )
    if not entries:
        raise SourceError(f"{folder} is empty; put the re-cut there, one entry a clip")
    return entries


def _clip(clips: dict[str, _Clip], path: Path) -> _Clip:
    name = path.name if path.is_dir() else path.stem
    if name not in clips:
        raise SourceError(f"{path}: no list in ClipSets names {name}; rename or remove it")
    return clips[name]


def _captions(path: Path) -> list[str]:
    captions: list[str] = []
    words: list[str] | None = None
    for line in [*read_lines(path), ""]:
        if "-->" in line:
            words = []
        elif words is not None and line.strip():
            words.append(_MARKUP.sub("", line).strip())
        elif words is not None:
            captions.append(" ".join(words))
            words = None
    if not captions and any(map(str.strip, read_lines(path))):
        raise SourceError(f"{path} holds no caption (00:00:01,000 --> 00:00:02,000); mend it")
    return captions
