"""What a gate has learned, on disk: it survives a kill and a power cut, and belongs to one source.

A folder holds the newest state, the one before it, and the last that held its target. Each is an
archive (`infi_edge.archive`) that is written aside and renamed, so it is there whole or not at all.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import re
import stat
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infi_edge.archive import (
    MAX_ARCHIVE_BYTES,
    MAX_MEMBER_BYTES,
    MAX_MEMBERS,
    array_bytes,
    array_from_bytes,
    parse_archive,
    write_archive,
    write_atomically,
)
from infi_edge.errors import BundleError, ConfigError

KIND = "learned-state"
FORMAT = 1
KEPT_ASIDE = 3
"""Damaged states that stay for a person to look at, and as many of another model or source."""
DTYPES = ("float32", "float64", "uint8", "int32", "int64", "bool")

_LEARNED = "state.learned"
_PREVIOUS = "state.previous"
_GOOD = "state.good"
_NEW = "state.new"
_NEW_GOOD = "state.new.good"
_TEMPORARY = ("state.new*", ".state.*")
_CONTENT = "content.json"
_ARRAY_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", re.ASCII)
_MOST_DIMENSIONS = 8
_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))
_STEP = 4096
"""Pieces of JSON between two pauses: about a millisecond."""
_PAUSE_S = 0.0005
_UNPACKING = (KeyError, TypeError, ValueError, OverflowError, RecursionError, MemoryError)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
"""What file systems without hard links answer (FAT: EPERM)."""

log = logging.getLogger("infi_edge")


@dataclass(frozen=True, slots=True)
class Saved:
    """A state as it was saved. manifest: the learner's own. saved_at_unix_s: by the wall clock.
    identity: what it belongs to. sequence: grows by at least one with each save in a folder."""

    manifest: dict[str, Any]
    arrays: dict[str, np.ndarray]
    saved_at_unix_s: float
    identity: str = ""
    sequence: int = 0


class _OtherError(BundleError):
    """Whole, but not of this version, model, task or source."""


class StateFolder:
    """The folder of one source's learned state; one process at a time, any of its threads.

    A disk that is full, read-only or gone is a warning, once per cause; each save tries again.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        """Make the folder (0700) if it is missing, and lock it; the kernel unlocks it at a kill.

        identity: SHA-256 text of model, task, source and what else the state belongs to.
        Raises ConfigError if another process, or another StateFolder of this one, has the folder.
        """
        self.folder = folder
        self._identity = identity
        self._lock = threading.Lock()
        self._lock_file = -1
        self._sequence: int | None = None
        self._troubles: set[str] = set()
        self._was_here = False
        self._closed = False
        try:
            self._claim()
        except BlockingIOError:
            raise ConfigError(
                f"{folder} is in use by another process; "
                "give each source of each process a state folder of its own"
            ) from None
        except OSError as error:
            self._failed(_reason(error))

    def load(self) -> Saved | None:
        """Return the newest state that is usable, or None.

        What is damaged or belongs to something else is renamed, with one warning. Never raises.
        """
        with self._lock:
            return self._load() if self._has_folder() else None

    def load_good(self) -> Saved | None:
        """Return the last state that was saved with good=True (for a rollback), or None."""
        with self._lock:
            return self._usable((_GOOD,)).get(_GOOD) if self._has_folder() else None

    def save(
        self, manifest: dict[str, Any], arrays: Mapping[str, np.ndarray], *, good: bool
    ) -> bool:
        """Save atomically; return whether all of it is on the disk. Never raises.

        manifest: what JSON can say; keys are text, no NaN. arrays: of DTYPES, at most 62, each
        under 64 MB; a name is of letters, digits and `_.-`. Neither may change meanwhile: give
        copies. good: it held its target, and load_good returns it from now on. What is on the disk
        stays usable whatever fails. Two syncs of the disk: no input should wait for this thread.
        """
        with self._lock:
            if self._closed:
                return False
            try:
                specs, members = _packed(manifest, arrays)
            except (TypeError, ValueError, RuntimeError) as error:
                return self._failed(f"it is no valid state ({error})")
            except MemoryError as error:
                return self._failed(_reason(error))
            if not self._has_folder():
                return False
            if self._sequence is None:
                self._load()
            try:
                self._write(specs, members, good)
            except (OSError, MemoryError) as error:
                self._remove_temporary()
                return self._failed(_reason(error))
            if self._troubles:
                log.info("%s: what is learned is saved again", self.folder)
                self._troubles.clear()
            return True

    def close(self) -> None:
        """Let another process have the folder; waits for a save that is under way."""
        with self._lock:
            self._closed = True
            self._release()

    # The lock.

    def _has_folder(self) -> bool:
        """Whether the folder is still the one that was locked, or can be locked anew."""
        if self._closed:
            return False
        try:
            if self._lock_file < 0 or not _is_at(self._lock_file, self.folder / "lock"):
                self._release()
                self._claim()
        except OSError as error:
            return self._failed(_reason(error))
        return True

    def _claim(self) -> None:
        if not self._was_here:  # else a disk was taken out: nothing is written in its place
            _make(self.folder)
        flags = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        file = os.open(self.folder / "lock", flags, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            if isinstance(error, BlockingIOError):
                raise BlockingIOError(error.errno, "another process uses the folder") from None
            raise
        self._lock_file = file
        self._was_here = True
        self._sequence = None
        self._remove_temporary()

    def _release(self) -> None:
        file, self._lock_file = self._lock_file, -1
        if file >= 0:
            os.close(file)

    # Reading.

    def _load(self) -> Saved | None:
        found = self._usable((_LEARNED, _PREVIOUS, _GOOD))
        self._sequence = max((saved.sequence for saved in found.values()), default=0)
        found.pop(_GOOD, None)
        return max(found.values(), key=lambda saved: saved.sequence, default=None)

    def _usable(self, names: tuple[str, ...]) -> dict[str, Saved]:
        """Read these files; put aside, with one warning, what is none of this folder's states."""
        found: dict[str, Saved] = {}
        faults = []
        for name in names:
            path = self.folder / name
            if not os.path.lexists(path):
                continue
            try:
                saved = _read(path)
                if saved.identity != self._identity:
                    raise _OtherError(f"{path} belongs to another model, task or source")
                found[name] = saved
            except BundleError as error:
                kind = "other" if isinstance(error, _OtherError) else "damaged"
                faults.append(f"{error} and {self._put_aside(path, kind)}")
        if faults:
            log.warning("%s; usable: %s", "; ".join(faults), ", ".join(found) or "none")
        return found

    def _put_aside(self, path: Path, kind: str) -> str:
        """Rename a file, and remove the oldest such by its number; return what was done."""
        try:
            numbers = _numbers(self.folder, f"state.{kind}-")
            aside = self.folder / f"state.{kind}-{max(numbers, default=0) + 1}"
            path.rename(aside)
        except OSError as error:
            return f"cannot be renamed: {_reason(error)}"
        for number in sorted(numbers)[: max(len(numbers) + 1 - KEPT_ASIDE, 0)]:
            with suppress(OSError):
                (self.folder / f"state.{kind}-{number}").unlink()
        return f"is kept as {aside.name}"

    # Writing.

    def _write(self, specs: dict[str, Any], members: dict[str, bytes], good: bool) -> None:
        self._sequence = (self._sequence or 0) + 1
        manifest = {
            "kind": KIND,
            "format_version": FORMAT,
            "identity": self._identity,
            "sequence": self._sequence,
            "saved_at_unix_s": time.time(),
            "arrays": specs,
        }
        new, learned = self.folder / _NEW, self.folder / _LEARNED
        write_archive(new, manifest, members)
        os.chmod(new, 0o600)
        with suppress(FileNotFoundError):
            os.replace(learned, self.folder / _PREVIOUS)
        os.replace(new, learned)
        if good:
            self._keep_good(learned)
        _sync(self.folder)

    def _keep_good(self, learned: Path) -> None:
        new = self.folder / _NEW_GOOD
        new.unlink(missing_ok=True)
        try:
            os.link(learned, new)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            write_atomically(new, learned.read_bytes())
            os.chmod(new, 0o600)
        os.replace(new, self.folder / _GOOD)

    def _remove_temporary(self) -> None:
        for pattern in _TEMPORARY:
            for path in _found(self.folder, pattern):
                with suppress(OSError):
                    path.unlink()

    def _failed(self, cause: str) -> bool:
        """Warn, the first time; return False."""
        if cause not in self._troubles:
            self._troubles.add(cause)
            log.warning(
                "%s: what is learned cannot be kept on the disk: %s; "
                "the gate goes on without, and each save tries again",
                self.folder,
                cause,
            )
        return False


def read_state(path: Path) -> Saved:
    """Return the state in a file, or the newest in a folder, without a lock and changing nothing.

    Raises BundleError.
    """
    try:
        path = path.resolve()
        names = (_LEARNED, _PREVIOUS, _GOOD) if path.is_dir() else ("",)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise BundleError(f"{path} cannot be read: {error}") from error
    faults = []
    for name in names:
        try:
            return _read(path / name)
        except BundleError as error:
            faults.append(error)
    raise BundleError(f"{faults[0]}; give the folder of a gate that has learned") from faults[0]


def _packed(
    manifest: dict[str, Any], arrays: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return each array's dtype and shape, and the archive's members.

    Raises ValueError or TypeError for what could not be read again.
    """
    if not isinstance(manifest, dict):
        raise TypeError("the manifest is no dict")
    if len(arrays) > MAX_MEMBERS - 2:
        raise ValueError(f"{len(arrays)} arrays are more than {MAX_MEMBERS - 2}")
    specs, members = {}, {_CONTENT: _json(manifest)}
    for name, given in arrays.items():
        array = np.asarray(given)
        dtype = array.dtype.name
        if not _ARRAY_NAME.fullmatch(name) or dtype not in DTYPES or array.ndim > _MOST_DIMENSIONS:
            raise ValueError(f"array {name!r} of {dtype} {array.shape} cannot be saved")
        specs[name] = {"dtype": dtype, "shape": list(array.shape)}
        members[f"{name}.npy"] = array_bytes(array.astype(dtype, copy=False))  # native order
    sizes = [len(data) for data in members.values()]
    if max(sizes) > MAX_MEMBER_BYTES or sum(sizes) > MAX_ARCHIVE_BYTES - (1 << 20):
        raise ValueError(f"{sum(sizes)} bytes are more than a state may have")
    return specs, members


def _json(content: dict[str, Any]) -> bytes:
    """Encode in steps with pauses: at one go it would keep an input waiting for the interpreter's
    lock (50 ms for the boxes of 4,096 pictures)."""
    parts = []
    for number, part in enumerate(_ENCODER.iterencode(content), 1):
        parts.append(part)
        if number % _STEP == 0:
            time.sleep(_PAUSE_S)
    return "".join(parts).encode()


def _read(path: Path) -> Saved:
    """Return a state of any identity; never through a link. Raises BundleError."""
    content = _bytes(path)
    try:
        manifest, members = parse_archive(content, str(path))
    except (BundleError, MemoryError) as error:
        raise BundleError(f"{path} is damaged") from error
    if manifest.get("kind") != KIND or manifest.get("format_version") != FORMAT:
        raise _OtherError(f"{path} is no learned state of the version that is known here")
    try:
        return _unpacked(manifest, members)
    except (BundleError, *_UNPACKING) as error:
        raise BundleError(f"{path} is damaged") from error


def _bytes(path: Path) -> bytes:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe would block
    try:
        file = os.open(path, flags)
        try:
            about = os.fstat(file)
            if not stat.S_ISREG(about.st_mode) or about.st_size > MAX_ARCHIVE_BYTES:
                raise BundleError(f"{path} is no file that a gate has saved")
            with open(file, "rb", closefd=False) as stream:
                return stream.read(MAX_ARCHIVE_BYTES)
        finally:
            os.close(file)
    except (OSError, MemoryError) as error:
        raise BundleError(f"{path} cannot be read: {_reason(error)}") from error


def _unpacked(manifest: dict[str, Any], members: dict[str, bytes]) -> Saved:
    """Return what the members hold. Raises BundleError or one of _UNPACKING."""
    content = json.loads(members.pop(_CONTENT), parse_constant=_finite, parse_float=_finite)
    identity, sequence, specs = (manifest[key] for key in ("identity", "sequence", "arrays"))
    saved_at = _finite(manifest["saved_at_unix_s"])
    if not (isinstance(content, dict) and isinstance(specs, dict) and isinstance(identity, str)):
        raise TypeError("content, arrays, identity")
    if type(sequence) is not int or sequence < 0:
        raise ValueError("sequence")
    if set(members) != {f"{name}.npy" for name in specs}:
        raise ValueError("arrays")
    arrays = {name: _array(members[f"{name}.npy"], **spec) for name, spec in specs.items()}
    return Saved(content, arrays, saved_at, identity, sequence)


def _array(data: bytes, dtype: object, shape: object) -> np.ndarray:
    if not isinstance(dtype, str) or dtype not in DTYPES or not isinstance(shape, list):
        raise TypeError("dtype, shape")
    if len(shape) > _MOST_DIMENSIONS or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError("shape")
    if max(*shape, math.prod(shape), 0) > MAX_MEMBER_BYTES:
        raise ValueError("shape")
    # NumPy makes a number an array of one when it is written.
    return array_from_bytes(data, dtype, tuple(shape) or (1,), "an array").reshape(shape)


def _finite(number: Any) -> float:
    """Return a number; also JSON's, whose 1e999 would be infinite. Raises ValueError."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError("not finite")
    return value


def _make(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot
            raise
    finally:
        os.close(file)


def _is_at(file: int, path: Path) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.fstat(file), path.lstat())
    return False


def _numbers(folder: Path, prefix: str) -> list[int]:
    ends = [path.name.removeprefix(prefix) for path in _found(folder, f"{prefix}*")]
    return [int(end) for end in ends if end.isascii() and end.isdecimal() and len(end) < 10]


def _found(folder: Path, pattern: str) -> list[Path]:
    with suppress(OSError):
        return list(folder.glob(pattern))
    return []


def _reason(error: OSError | MemoryError) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory"
    return (error.strerror or str(error)).lower()
