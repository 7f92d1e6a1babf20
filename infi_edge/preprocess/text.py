"""Text: words, or n-grams of characters, become ids by a hash that is the same everywhere."""

from __future__ import annotations

import itertools
import re
import unicodedata
import zlib
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from infi_edge.preprocess.spec import Spec, register

BINS = 512
CHARACTERS_PER_ID = 16
SHRINKS = 5
"""NFKC leaves at least a quarter of a text's characters: five times as many are enough."""
# Scripts written without spaces are read character by character: Thai to Khmer, kana, Han.
_LONE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003134f"
)
# Vowel signs and other marks belong to their word (to `re` they are no letters): Latin to Hebrew,
# Arabic, the Indic scripts but for their full stops, Tibetan.
_MARK = (
    "[\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf-\u05c7\u0610-\u061a\u064b-\u065f\u0670"
    "\u06d6-\u06ed\u0711-\u074a\u07a6-\u07b0\u0900-\u0963\u0971-\u0dff\u0f71-\u0fbc]"
)
_LETTERS = rf"(?:[^\W\d_{_LONE}]+|(?!\d){_MARK})+"
_WORD = re.compile(rf"[{_LONE}]|{_LETTERS}(?:['\u2019]{_LETTERS})*|\d+|[^\w\s]")


@register
class TextSpec(Spec, frozen=True, forbid_unknown_fields=True, tag="text"):
    """The first `length` ids of a text; 0 fills up. Ids are 1..buckets-1.

    unit: `words` (each word folded to small letters, and, where it is not written small, its
    shape: `Xx`, `X`, `9`), or `chars` (n-grams of `ngram` characters, for noisy text).
    """

    length: int = 64
    buckets: int = 4096
    unit: Literal["words", "chars"] = "words"
    ngram: int = 3

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.int32)

    @property
    def feature_count(self) -> int:
        return BINS + 1

    def problem(self) -> str | None:
        if not 1 <= self.length <= 65536:
            return f"length: {self.length} ids"
        if not 2 <= self.buckets <= 1 << 20:
            return f"number of buckets: {self.buckets}"
        return None if 1 <= self.ngram <= 16 else f"n-gram: {self.ngram} characters"

    def tensor(self, data: str) -> np.ndarray:
        """data: a str of any language and length; what a long one has past `length` is not read."""
        if not isinstance(data, str):
            raise ValueError(f"a text is str, not {type(data).__name__}")
        # Cut before as well: NFKC takes quadratic time over a run of combining characters.
        read = CHARACTERS_PER_ID * self.length
        text = unicodedata.normalize("NFKC", data[: SHRINKS * read])[:read]
        units = _words(text) if self.unit == "words" else _ngrams(text, self.ngram)
        ids = np.zeros((1, self.length), np.int32)
        for i, unit in enumerate(itertools.islice(units, self.length)):
            # "surrogatepass": a lone surrogate (os.fsdecode) is no error of the text's reader.
            hashed = zlib.crc32(unit.encode("utf-8", "surrogatepass"))
            ids[0, i] = 1 + hashed % (self.buckets - 1)
        return ids

    def features(self, tensor: np.ndarray) -> np.ndarray:
        """How often each of 512 bins of ids occurs (up to 4 times), and how long the text is."""
        ids = tensor[0][tensor[0] > 0]
        counts = np.bincount(ids % BINS, minlength=BINS)
        length = np.float32(len(ids) / self.length)
        return np.append(np.minimum(counts, 4) / 4, length).astype(np.float32)


def _words(text: str) -> Iterator[str]:
    for match in _WORD.finditer(text):
        word = match[0]
        folded = word.casefold()
        yield folded
        if folded != word or word.isdigit():
            yield "\0" + _shape(word)


def _shape(word: str) -> str:
    kinds = ("9" if c.isdigit() else "X" if c.isupper() else "x" for c in word)
    return "".join(kind for kind, _ in itertools.groupby(kinds))


def _ngrams(text: str, size: int) -> Iterator[str]:
    folded = " ".join(text.casefold().split())
    return (folded[i : i + size] for i in range(max(len(folded) - size + 1, bool(folded))))
