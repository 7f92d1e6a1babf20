"""A scan of an IIO buffer: which numbers it holds, and how they are stored."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TIMESTAMP = "timestamp"

_TYPE = re.compile(r"(be|le):([suf])(\d+)/(8|16|32|64)(?:X(\d+))?>>(\d+)")


@dataclass(frozen=True, slots=True)
class Element:
    """A channel in the buffer, as in_*_type has it. bits are meant after the shift."""

    name: str
    index: int
    order: str
    kind: str
    bits: int
    storage_bits: int
    repeat: int
    shift: int

    @property
    def storage(self) -> np.dtype[Any]:
        """The type of one number in the buffer."""
        letter = self.kind if self.kind == "f" else "i" if self.kind == "s" else "u"
        return np.dtype(f"{'>' if self.order == 'be' else '<'}{letter}{self.storage_bits // 8}")

    def numbers(self, stored: np.ndarray) -> np.ndarray:
        """Return float64 from what is stored, shifted and with its sign."""
        if self.kind == "f":
            return stored.astype(np.float64)
        if self.kind == "u":
            mask = np.uint64((1 << self.bits) - 1)
            return ((stored.astype(np.uint64) >> np.uint64(self.shift)) & mask).astype(np.float64)
        unused = np.int64(64 - self.bits)
        wide = stored.astype(np.int64) >> np.int64(self.shift)
        return ((wide << unused) >> unused).astype(np.float64)


def layout(elements: Sequence[Element]) -> np.dtype[Any]:
    """Return one scan of the buffer: elements by index, each aligned to its own size, all padded
    to the largest (iio_compute_scan_bytes)."""
    names, formats, offsets, size, largest = [], [], [], 0, 1
    for element in sorted(elements, key=lambda e: e.index):
        bytes_ = element.storage.itemsize * element.repeat
        offset = -(-size // bytes_) * bytes_
        names.append(element.name)
        formats.append(
            (element.storage, (element.repeat,)) if element.repeat > 1 else element.storage
        )
        offsets.append(offset)
        size, largest = offset + bytes_, max(largest, bytes_)
    size = -(-size // largest) * largest
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})


def parse_element(name: str, index: str, text: str) -> Element | None:
    """Return the element that in_NAME_type (`le:s12/16>>4`) and in_NAME_index describe, or None."""
    match = _TYPE.fullmatch(text)
    if match is None or not index.isdigit():
        return None
    order, kind, bits, storage_bits, repeat, shift = match.groups()
    if not 1 <= int(bits) <= int(storage_bits):
        return None
    return Element(
        name, int(index), order, kind, int(bits), int(storage_bits), int(repeat or 1), int(shift)
    )
