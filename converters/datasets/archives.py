"""Unpack a downloaded archive, trusting nothing in it."""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from infi_edge.errors import SourceError

ENDINGS = (".zip", ".tar.gz", ".tgz")
_NO_DATA = "__MACOSX"
"""A folder that a Mac adds to the archives it makes."""


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .zip or .tar.gz into a folder; what is there under the same name is kept.

    Archives in the archive are unpacked too, one level deep. Nothing is seen in the folder before
    it is whole. Raises SourceError if it is damaged, or would write outside the folder; OSError if
    the disk is full.
    """
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".unpacking."))
    try:
        _extract(archive, temporary)
        for inner in sorted(p for p in temporary.iterdir() if p.name.endswith(ENDINGS)):
            _extract(inner, temporary)
            inner.unlink()
        for entry in sorted(temporary.iterdir()):
            if not (folder / entry.name).exists():
                os.replace(entry, folder / entry.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _extract(archive: Path, folder: Path) -> None:
    members = _zip_members if archive.name.endswith(".zip") else _tar_members
    try:
        for name, content in members(archive):
            place = PurePosixPath(name)
            if place.is_absolute() or ".." in place.parts or set(name) & set("\\:\0"):
                raise SourceError(f"{archive} is refused: {name[:60]!r} would be outside of it")
            if place.parts and place.parts[0] != _NO_DATA:
                path = folder / place
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        gzip.BadGzipFile,
        zlib.error,
        EOFError,
        RuntimeError,  # an encrypted member
        NotImplementedError,  # a compression nobody knows
        IsADirectoryError,  # a file and a folder of the same name
        NotADirectoryError,
        FileExistsError,
    ) as error:
        raise SourceError(
            f"{archive} is damaged or no archive: {error}; remove it and download it again"
        ) from error


def _zip_members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                with archive.open(info) as content:
                    yield info.filename, content


def _tar_members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isreg() else None
            if content is not None:
                with content:
                    yield member.name, content
