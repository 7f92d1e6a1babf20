"""WNUT-17, emerging entities (Derczynski et al., 2017): short texts of the web, CoNLL form."""

from __future__ import annotations

import re
from pathlib import Path

from converters.datasets.streams import Dataset, Stream
from infi_edge.capture.signals import read_lines
from infi_edge.errors import SourceError

FILES = {
    "wnut17train.conll": "train",
    "emerging.dev.conll": "dev",
    "emerging.test.annotated": "test",
}
_TAG = re.compile(r"O|[BI]-(\S+)")


def load(folder: Path) -> Dataset:
    """WNUT-17: a line of text a sentence; its label names the entities in it, `O` if none.

    Two kinds of entity are both named, in alphabetical order: `location person`.
    """
    streams = []
    for name, split in FILES.items():
        if (folder / name).is_file():
            texts, labels = _sentences(folder / name)
            streams.append(Stream(Path(name).stem, split, texts, labels, split=split))
    if not streams:
        raise SourceError(f"{folder} holds none of {', '.join(FILES)}; give the folder of WNUT-17")
    return Dataset("wnut17", "text", (), tuple(streams))


def _sentences(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (texts, labels) of a file of `token TAB tag` with a blank line after a sentence."""
    texts, labels = [], []
    tokens: list[str] = []
    kinds: set[str] = set()
    for number, line in enumerate([*read_lines(path), ""], 1):
        if line.strip():
            token, _, tag = line.partition("\t")
            matched = _TAG.fullmatch(tag.strip())
            if matched is None or not token.strip():
                raise SourceError(
                    f"{path}, line {number}: {line[:60]!r} is no token, tab and tag; mend it"
                )
            tokens.append(token.strip())
            kinds |= {matched[1]} - {None}
        elif tokens:
            texts.append(" ".join(tokens))
            labels.append(" ".join(sorted(kinds)) or "O")
            tokens, kinds = [], set()
    if not texts:
        raise SourceError(f"{path} is empty; copy the set again")
    return tuple(texts), tuple(labels)
