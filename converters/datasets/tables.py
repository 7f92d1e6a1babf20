"""Files and tables of published data sets; whatever is wrong names the file, and the line."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from infi_edge.capture.signals import read_lines
from infi_edge.errors import SourceError

Row = tuple[int, dict[str, str]]
"""A row of a table: its line in the file, counted from 1, and its cells by column."""


def find_root(folder: Path, marker: str, what: str) -> Path:
    """Return the folder, or the folder directly in it, that holds `marker`.

    An archive that was unpacked often puts one folder around everything. Raises SourceError.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder} is no folder; give the folder of {what}")
    for root in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        if (root / marker).exists():
            return root
    raise SourceError(f"{folder} holds no {marker}; give the folder of {what}")


def list_files(folder: Path, suffixes: Collection[str]) -> tuple[Path, ...]:
    """Return the files of a folder with these suffixes, `frame2` before `frame10`.

    Raises SourceError if the folder is not there or has none.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder} is no folder that can be read; check its name")
    files = [p for p in folder.iterdir() if p.suffix.lower() in suffixes and p.is_file()]
    if not files:
        raise SourceError(f"{folder} holds no {', '.join(sorted(suffixes))} files")
    return tuple(sorted(files, key=_in_time))


def _in_time(path: Path) -> tuple[list[tuple[int, str]], str]:
    parts = re.findall(r"\d+|\D+", path.name)
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in parts], path.name


def need_file(path: Path, named_by: str) -> Path:
    """Return a file that must be there. Raises SourceError saying what asks for it."""
    if not path.is_file():
        raise SourceError(f"{path} is not there, though {named_by} names it; copy the set again")
    return path


def read_matrix(path: Path, columns: int) -> np.ndarray:
    """Return numbers written with spaces between them, one row a line: float32 (N, columns).

    Raises SourceError naming the file, and the line that is short, long or no finite number.
    """
    lines = read_lines(path)
    if not lines:
        raise SourceError(f"{path} is empty; copy the set again")
    try:
        values = np.loadtxt(lines, np.float32, comments=None, ndmin=2)
    except ValueError:
        values = np.empty((0, 0), np.float32)
    if values.shape == (len(lines), columns) and np.isfinite(values).all():
        return values
    for number, line in enumerate(lines, 1):
        cells = line.split()
        if len(cells) != columns:
            raise SourceError(
                f"{path}, line {number}: {len(cells)} numbers where {columns} are needed; "
                "copy the set again"
            )
        for cell in cells:
            if not _finite(cell):
                raise SourceError(
                    f"{path}, line {number}: {cell[:40]!r} is not a number; copy the set again"
                )
    raise SourceError(f"{path} holds numbers that cannot be read; copy the set again")


def _finite(cell: str) -> bool:
    try:
        return bool(np.isfinite(np.float32(cell)))
    except ValueError:
        return False


def read_integers(path: Path) -> list[int]:
    """Return one whole number a line. Raises SourceError naming file and line."""
    numbers = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            numbers.append(int(line))
        except ValueError:
            raise SourceError(
                f"{path}, line {number}: {line.strip()[:40]!r} is not a whole number; "
                "copy the set again"
            ) from None
    return numbers


def read_table(path: Path, columns: Sequence[str]) -> list[Row]:
    """Return the rows of a CSV file whose header has at least these columns.

    Raises SourceError naming the file, a column that is missing, a row that is short or long.
    """
    reader = csv.reader(read_lines(path), strict=True)
    rows: list[Row] = []
    try:
        header = [cell.strip() for cell in next(reader, [])]
        missing = [column for column in columns if column not in header]
        if missing:
            raise SourceError(f"{path} has no column {missing[0]}; give the file as published")
        for cells in reader:
            if len(cells) != len(header):
                raise SourceError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells where {len(header)} "
                    "are needed; copy the set again"
                )
            rows.append((reader.line_num, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise SourceError(f"{path}, line {reader.line_num} is not CSV: {error}") from error
    if not rows:
        raise SourceError(f"{path} holds a header and no row; copy the set again")
    return rows
