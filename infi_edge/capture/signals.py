"""Recorded signals and lines from files: WAV, CSV and plain text, with NumPy alone.

Whatever is wrong with a file is one SourceError that names it, and the line where there is one.
"""

from __future__ import annotations

import csv
import math
import re
import struct
from pathlib import Path

import numpy as np

from infi_edge.errors import SourceError

MAX_BYTES = 1 << 30
"""A larger file is refused before it is read: it would not fit a small device's memory."""

TIME_COLUMNS = {"time", "time_s", "timestamp"}
_TIME_LIKE = re.compile(r"(time(stamp)?|date|ts|t)($|[^a-z])", re.IGNORECASE)
_MISSING = {"", "?", "nan"}
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_UNKNOWN_SIZE = 0x7FFF0000
"""Such a size or more is what recorders declare that write to a pipe (ffmpeg, sox, arecord)."""
_LOUDEST_FLOAT = 4.0


def read_wav(path: str | Path) -> tuple[np.ndarray, int]:
    """Return (samples, rate_hz) of a WAV file.

    samples: float32 in -1..1, shape (N,) for mono, (N, channels) otherwise. Read are PCM of 8, 16,
    24 and 32 bits and 32-bit float; float peaks a little over full scale are clipped.
    Raises SourceError naming the file: damaged, truncated (declared and found size), no sample,
    NaN or Inf, another encoding.
    """
    content = _read(path)
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise SourceError(
            f"{path} is not a WAV file; give a RIFF/WAVE file of PCM or float samples"
        )
    tag, channels, rate_hz, bits, body = _wav_chunks(content, path)
    if channels < 1 or rate_hz < 1:
        raise SourceError(f"{path} is damaged: it declares {channels} channels at {rate_hz} Hz")
    frame_bytes = channels * bits // 8
    if (tag, bits) not in {(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32)}:
        raise SourceError(
            f"{path} holds WAV encoding {tag} of {bits} bits; convert it to 16-bit PCM"
        )
    if len(body) % frame_bytes:
        raise SourceError(
            f"{path} is damaged: {len(body)} bytes of samples are no multiple of the "
            f"{frame_bytes} that one sample of its {channels} channels takes"
        )
    if not body:
        raise SourceError(f"{path} holds no sample; record it again")
    samples = _float_samples(body, path) if tag == _FLOAT else _pcm_samples(body, bits)
    return (samples if channels == 1 else samples.reshape(-1, channels)), rate_hz


def read_mono(path: str | Path, rate_hz: int) -> np.ndarray:
    """Return the samples of a mono WAV at this rate: float32 (N,) in -1..1.

    Raises SourceError if the file is stereo or sampled at another rate, besides read_wav's.
    """
    samples, found_hz = read_wav(path)
    if samples.ndim != 1:
        raise SourceError(
            f"{path} has {samples.shape[1]} channels where one is needed; mix it down to mono"
        )
    if found_hz != rate_hz:
        raise SourceError(
            f"{path} is sampled at {found_hz} Hz where {rate_hz} Hz is needed; resample it"
        )
    return samples


def _wav_chunks(content: bytes, path: str | Path) -> tuple[int, int, int, int, bytes]:
    """Return (encoding tag, channels, rate_hz, bits, sample bytes)."""
    position, form = 12, None
    while position + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, position)
        start = position + 8
        if name == b"data":
            if form is None:
                raise SourceError(f"{path} is damaged: its samples come before their format")
            found = len(content) - start
            if size >= _UNKNOWN_SIZE:  # the samples reach the end of the file
                size = found
            if found < size:
                raise SourceError(
                    f"{path} is truncated: it declares {size} bytes of samples and holds {found}; "
                    "copy it again"
                )
            return (*form, content[start : start + size])
        if start + size > len(content):
            raise SourceError(
                f"{path} is truncated: a part of it declares {size} bytes and "
                f"{len(content) - start} are left; copy it again"
            )
        if name == b"fmt ":
            form = _wav_format(content[start : start + size], path)
        position = start + size + size % 2
    raise SourceError(f"{path} is truncated: it holds no samples; copy it again")


def _wav_format(chunk: bytes, path: str | Path) -> tuple[int, int, int, int]:
    if len(chunk) < 16:
        raise SourceError(f"{path} is damaged: its format takes {len(chunk)} bytes, not 16 or more")
    tag, channels, rate_hz, _, frame_bytes, bits = struct.unpack_from("<HHIIHH", chunk)
    if frame_bytes != channels * bits // 8:
        raise SourceError(
            f"{path} declares {frame_bytes} bytes for {channels} samples of {bits} bits; "
            "convert it to 16-bit PCM"
        )
    if tag == _EXTENSIBLE and len(chunk) >= 26:
        (tag,) = struct.unpack_from("<H", chunk, 24)
    return tag, channels, rate_hz, bits


def _pcm_samples(body: bytes, bits: int) -> np.ndarray:
    if bits == 8:  # the one unsigned form
        return (np.frombuffer(body, np.uint8).astype(np.float32) - 128.0) / 128.0
    if bits == 24:
        parts = np.frombuffer(body, np.uint8).reshape(-1, 3)
        whole = np.zeros((len(parts), 4), np.uint8)
        whole[:, 1:] = parts
        return (whole.view("<i4")[:, 0] / 2.0**31).astype(np.float32)
    integers = np.frombuffer(body, "<i2" if bits == 16 else "<i4")
    return (integers / 2.0 ** (bits - 1)).astype(np.float32)


def _float_samples(body: bytes, path: str | Path) -> np.ndarray:
    samples = np.frombuffer(body, "<f4")
    bad = np.flatnonzero(~np.isfinite(samples))
    if len(bad):
        raise SourceError(f"{path} holds {samples[bad[0]]} at value {bad[0]}; record it again")
    peak = float(np.abs(samples).max())
    if peak > _LOUDEST_FLOAT:
        raise SourceError(f"{path} reaches {peak:g} where -1 to 1 is full scale; scale it down")
    return np.clip(samples, -1.0, 1.0).astype(np.float32)


def read_csv_signal(
    path: str | Path,
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray | None]:
    """Return (signal, channel names, times_s) of a table of numbers.

    signal: float32 (T, C), NaN for a cell that is empty, `?` or `nan`. times_s: float64 (T,), the
    first column when it is named time, time_s or timestamp (seconds, increasing), else None.
    A first row without any number is the header; without one channels are column_1, column_2, ...
    Cells are split by semicolon, else by comma, else by tab, whichever the first row has.
    Raises SourceError naming file, line and column of a bad cell, an Inf, a row of another length,
    times that do not increase, text that is not UTF-8.
    """
    rows, numbers = _csv_rows(path)
    first = rows[0]
    has_header = not any(_number(cell) is not None for cell in first) and any(
        cell not in _MISSING for cell in map(_plain, first)
    )
    names = [_name(cell) for cell in first] if has_header else []
    names = names or [f"column_{i}" for i in range(1, len(first) + 1)]
    if len(set(names)) != len(names):
        raise SourceError(f"{path}, line {numbers[0]}: two columns have the same name; rename one")
    if has_header:
        rows, numbers = rows[1:], numbers[1:]
    if not rows:
        raise SourceError(f"{path} holds a header and no row; record it again")
    table = np.empty((len(rows), len(names)))
    for index, (row, line) in enumerate(zip(rows, numbers, strict=True)):
        if len(row) != len(names):
            raise SourceError(
                f"{path}, line {line}: {len(row)} cells where {len(names)} are needed; "
                "complete or remove the line"
            )
        table[index] = _values(row, names, f"{path}, line {line}")
    _refuse_infinite(table, names, numbers, path)
    late = [name for name in names[1:] if name.lower() in TIME_COLUMNS]
    if late:
        raise SourceError(f"{path}: column {late[0]} holds times; make it the first column")
    if names[0].lower() not in TIME_COLUMNS and _TIME_LIKE.match(names[0]):
        raise SourceError(
            f"{path}: column {names[0][:40]} looks like times; name it time_s and give seconds, or "
            "leave it out and set --rate-hz"
        )
    if names[0].lower() not in TIME_COLUMNS:
        return table.astype(np.float32), tuple(names), None
    if len(names) == 1:
        raise SourceError(f"{path} holds times and no channel; add a column of values")
    _check_times(table[:, 0], numbers, path)
    return table[:, 1:].astype(np.float32), tuple(names[1:]), table[:, 0].copy()


def _csv_rows(path: str | Path) -> tuple[list[list[str]], list[int]]:
    """Return the rows that are not blank and their line numbers, counted from 1."""
    lines = read_lines(path)
    start = next((line for line in lines if line.strip()), "")
    delimiter = next((mark for mark in ";,\t" if mark in start), ",")
    rows, numbers = [], []
    for number, line in enumerate(lines, 1):
        row = line.split(delimiter) if line else []
        odd = any(mark in line for mark in '"\0\r') or len(line) > csv.field_size_limit()
        if odd:  # quoted cells hold delimiters, no line breaks
            try:
                row = next(csv.reader([line], delimiter=delimiter, strict=True))
            except csv.Error as error:
                raise SourceError(
                    f"{path}, line {number} is not CSV: {error}; repair or remove the line"
                ) from error
        # An empty line is none; `""` alone is how a lone missing value is written.
        if any(map(str.strip, row)) or len(row) > 1 or (line and row == [""]):
            rows.append(row)
            numbers.append(number)
    if not rows:
        raise SourceError(f"{path} is empty; give a table of numbers, one row a sample")
    return rows, numbers


def _values(row: list[str], names: list[str], where: str) -> list[float]:
    values = []
    for cell, name in zip(row, names, strict=True):
        value = _number(cell)
        if value is None:
            if _plain(cell) not in _MISSING:
                raise SourceError(
                    f"{where}: {cell.strip()[:40]!r} is not a number in column {name[:40]}; "
                    "write a decimal number, or leave the cell empty where a value is missing"
                )
            value = math.nan
        values.append(value)
    return values


def _number(cell: str) -> float | None:
    """A number, Inf included; None for anything else, NaN included."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return None if math.isnan(value) or "_" in cell else value


def _name(cell: str) -> str:
    """A channel's name, fit to be printed."""
    return "".join(mark if mark.isprintable() else "?" for mark in cell.strip())


def _plain(cell: str) -> str:
    return cell.strip().lower()


def _refuse_infinite(
    table: np.ndarray, names: list[str], numbers: list[int], path: str | Path
) -> None:
    # A number that float32 cannot hold would come out as Inf.
    bad = np.argwhere(np.abs(table) > np.finfo(np.float32).max)
    if len(bad):
        row, column = bad[0]
        raise SourceError(
            f"{path}, line {numbers[row]}: {table[row, column]:g} in column {names[column][:40]} "
            "is no measurement; leave the cell empty where a value is missing"
        )


def _check_times(times_s: np.ndarray, numbers: list[int], path: str | Path) -> None:
    missing = np.flatnonzero(np.isnan(times_s))
    if len(missing):
        raise SourceError(f"{path}, line {numbers[missing[0]]}: the time is missing; fill it in")
    back = np.flatnonzero(np.diff(times_s) <= 0)
    if len(back):
        row = back[0] + 1
        raise SourceError(
            f"{path}, line {numbers[row]}: time {times_s[row]:.9g} does not come after "
            f"{times_s[row - 1]:.9g}; sort the rows by time and remove repeated ones"
        )


def constant_channels(signal: np.ndarray, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the channels of a (T, C) signal that never change, or are all missing.

    A sensor that is unplugged looks like this; nothing can be learned from such a channel.
    """
    present = ~np.isnan(signal)
    high = np.where(present, signal, -np.inf).max(axis=0, initial=-np.inf)
    low = np.where(present, signal, np.inf).min(axis=0, initial=np.inf)
    return tuple(name for name, still in zip(names, high <= low, strict=True) if still)


def read_lines(path: str | Path) -> list[str]:
    """Return the lines of a UTF-8 text file, empty ones included, without their ends.

    A line ends at LF or CR LF and nowhere else; a byte order mark is dropped.
    Raises SourceError naming the file, and the line that is not UTF-8.
    """
    content = _read(path).removeprefix(b"\xef\xbb\xbf")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SourceError(
            f"{path}, line {line} is not UTF-8: byte 0x{content[error.start]:02x}; "
            "save the file as UTF-8"
        ) from error
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _read(path: str | Path) -> bytes:
    try:
        size = Path(path).stat().st_size
        if size > MAX_BYTES:
            raise SourceError(
                f"{path} is {size} bytes, more than the {MAX_BYTES} allowed; cut it into parts"
            )
        return Path(path).read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SourceError(f"{path} cannot be read: {reason}") from error
    except ValueError as error:
        raise SourceError(f"{str(path)!r} is no file name") from error
