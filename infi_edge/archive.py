"""A verified archive: a stored ZIP of `manifest.json` and members, each with its SHA-256.

The reader trusts nothing: sizes, names and hashes are checked before a byte is used, and nothing
is ever unpickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from infi_edge.errors import BundleError

MAX_MEMBERS = 64
MAX_MANIFEST_BYTES = 4 << 20
MAX_MEMBER_BYTES = 64 << 20
MAX_ARCHIVE_BYTES = 256 << 20
_DATE = (1980, 1, 1, 0, 0, 0)


def write_archive(path: str | Path, manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    """Write atomically; the same content gives the same bytes. Adds `members` to the manifest.

    Raises OSError if the folder cannot be written.
    """
    hashes = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        for name, data in sorted(members.items())
    }
    text = json.dumps({**manifest, "members": hashes}, indent=1, sort_keys=True, allow_nan=False)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in [("manifest.json", text.encode()), *sorted(members.items())]:
            info = zipfile.ZipInfo(name, _DATE)
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)
    write_atomically(path, buffer.getvalue())


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, through a power cut too."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_archive(path: str | Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return (manifest, members) of a verified archive. Raises BundleError and nothing else."""
    try:
        size = Path(path).stat().st_size
        if size > MAX_ARCHIVE_BYTES:
            raise BundleError(f"{path} is {size} bytes, more than the {MAX_ARCHIVE_BYTES} allowed")
        content = Path(path).read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read: {(error.strerror or str(error)).lower()}"
        ) from error
    except ValueError as error:
        raise BundleError(f"{path!r} is no file name") from error
    return parse_archive(content, str(path))


def parse_archive(content: bytes, name: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return (manifest, members) of an archive's bytes. Raises BundleError and nothing else."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = archive.infolist()
            _check_directory(infos, len(content), name)
            files = {info.filename: archive.read(info) for info in infos}
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        NotImplementedError,  # a compression method or ZIP version nobody knows
        RuntimeError,  # an encrypted member
        EOFError,
        OSError,
        ValueError,  # text that does not decode, offsets outside the file
        OverflowError,
    ) as error:
        raise BundleError(f"{name} is truncated or not a filter bundle; copy it again") from error
    manifest = _parse_manifest(files.pop("manifest.json"), name)
    declared = manifest.pop("members", None)
    if not isinstance(declared, dict) or set(declared) != set(files):
        raise BundleError(f"{name} is damaged: its members are not those its manifest lists")
    for member, data in files.items():
        entry = declared[member]
        if (
            not isinstance(entry, dict)
            or entry.get("size") != len(data)
            or entry.get("sha256") != hashlib.sha256(data).hexdigest()
        ):
            raise BundleError(f"{name} is damaged: {member} has a wrong hash; copy it again")
    return manifest, files


def _check_directory(infos: list[zipfile.ZipInfo], size: int, name: str) -> None:
    names = [info.filename for info in infos]
    if len(infos) > MAX_MEMBERS or len(set(names)) != len(names):
        raise BundleError(f"{name} is refused: too many or repeated members")
    if "manifest.json" not in names:
        raise BundleError(f"{name} is not a filter bundle: it has no manifest.json")
    for info in infos:
        member = info.filename
        safe = member and not set(member) & set('/\\:"\0') and not member.startswith(".")
        if not safe or len(member) > 100:
            raise BundleError(f"{name} is refused: member {member[:60]!r} is outside the archive")
        limit = MAX_MANIFEST_BYTES if member == "manifest.json" else MAX_MEMBER_BYTES
        if info.file_size > limit or info.file_size > size:
            raise BundleError(
                f"{name} is refused: member {member} declares {info.file_size} bytes, "
                "more than it may have"
            )
        if info.compress_type != zipfile.ZIP_STORED:
            raise BundleError(f"{name} is refused: member {member} is compressed")


def _parse_manifest(text: bytes, name: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        manifest = json.loads(text.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{name} is damaged: its manifest is not JSON") from error
    if not isinstance(manifest, dict):
        raise BundleError(f"{name} is damaged: its manifest is not a JSON object")
    return manifest


def array_bytes(array: np.ndarray) -> bytes:
    """Return a NumPy array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), (1, 0), allow_pickle=False)
    return buffer.getvalue()


def array_from_bytes(data: bytes, dtype: str, shape: tuple[int, ...], what: str) -> np.ndarray:
    """Return the array of a .npy member, which must have exactly this dtype and shape.

    The header is compared, not believed: nothing is allocated by what a file declares.
    Raises BundleError.
    """
    stream = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("version")
        header = np.lib.format.read_array_header_1_0(stream)
        found_shape, fortran, found_dtype = header
    except Exception as error:  # NumPy's header parser raises what Python's own parsers raise
        raise BundleError(f"{what} is not a NumPy array") from error
    body = data[stream.tell() :]
    wanted = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    if found_shape != shape or fortran or found_dtype != wanted:
        raise BundleError(f"{what} is {found_dtype} {found_shape}, not {wanted} {shape}")
    if len(body) != count * wanted.itemsize:
        raise BundleError(f"{what} is truncated")
    return np.frombuffer(body, wanted).reshape(shape).copy()
