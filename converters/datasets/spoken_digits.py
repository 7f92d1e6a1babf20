"""Free Spoken Digit Dataset: digits 0 to 9 at 8 kHz, `recordings/{digit}_{speaker}_{index}.wav`."""

from __future__ import annotations

import re
from pathlib import Path

from converters.datasets.streams import Dataset, Stream
from converters.datasets.tables import find_root, list_files
from infi_edge.errors import SourceError

_NAME = re.compile(r"(\d)_(.+)_(\d+)\.wav", re.IGNORECASE)
_TESTED = 5
"""Takes 0 to 4 of each digit and speaker are the published test split."""


def load(folder: Path) -> Dataset:
    """Spoken digits: one WAV a digit; takes 0 to 4 of each speaker are the test split."""
    files = list_files(_recordings(folder), {".wav"})
    found: dict[tuple[str, str], list[tuple[Path, str]]] = {}
    for file in files:
        name = _NAME.fullmatch(file.name)
        if name is None:
            raise SourceError(f"{file} is not named DIGIT_SPEAKER_INDEX.wav; rename or remove it")
        split = "test" if int(name[3]) < _TESTED else "train"
        found.setdefault((name[2], split), []).append((file, name[1]))
    streams = []
    for (speaker, split), takes in sorted(found.items()):
        paths, digits = tuple(t[0] for t in takes), tuple(t[1] for t in takes)
        streams.append(Stream(f"{speaker}-{split}", speaker, paths, digits, split=split))
    return Dataset("spoken-digits", "audio", (), tuple(streams))


def _recordings(folder: Path) -> Path:
    if folder.is_dir() and any(folder.glob("*.wav")):
        return folder
    return find_root(folder, "recordings", "the spoken digits") / "recordings"
