"""Download a file that must be whole: resumed where it broke off, checked, then renamed.

Until it is checked it is NAME.part; beside it, NAME.part.json says of which version of which
address it is a part, so that parts of two versions are never joined (RFC 9110, If-Range).
"""

from __future__ import annotations

import http.client
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from infi_edge import __version__
from infi_edge.capture.replay import file_hash
from infi_edge.errors import ConfigError, SourceError
from infi_edge.labels import Progress

ATTEMPTS = 5
"""So many in a row that bring nothing new, then it gives up."""

_TIMEOUT_S = 30.0
_LONGEST_PAUSE_S = 30.0
_CHUNK = 1 << 16
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_RANGE_NOT_THERE = 416


def download(
    url: str,
    path: str | Path,
    sha256: str | None,
    progress: Progress | None = None,
    *,
    backoff_s: float = 1.0,
) -> Path:
    """Return the path once the whole file is there; what an earlier call began is gone on with.

    url: http, https or file. sha256: of the content, in hexadecimal; None takes anything.
    progress: called with bytes (done, total) where the total is known. backoff_s: the first pause
    after a broken connection; it doubles. A file that is there already is kept if it is the one.
    Raises ConfigError for an impossible address or hash; SourceError if the address cannot be
    reached, has no such file, keeps breaking off, the disk is full, or the content is another:
    then nothing is left under the name, nor the part.
    """
    _check(url, sha256)
    path = Path(path)
    if path.exists():
        return _kept(path, sha256)
    part = _Part(path, url)
    part.prepare(any_version=sha256 is not None)
    _fill(part, progress, backoff_s)
    if sha256 is not None:
        found = file_hash(part.file)
        if found != sha256.lower():
            part.remove()
            raise SourceError(
                f"{url} gave a file with SHA-256 {found}, not {sha256.lower()}; it was removed: "
                "try again, or find out whether the publisher has changed it"
            )
    part.finish(path)
    return path


def _check(url: str, sha256: str | None) -> None:
    try:
        scheme = urllib.parse.urlsplit(url).scheme
    except ValueError:
        scheme = ""
    plain = url.isascii() and not re.search(r"[\0-\x20\x7f]", url)
    if scheme not in {"http", "https", "file"} or not plain:
        raise ConfigError(f"{url} is no address to download from; give http, https or file")
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ConfigError(f"{sha256[:80]} is no SHA-256; it has 64 hexadecimal digits")


def _kept(path: Path, sha256: str | None) -> Path:
    if path.is_dir():
        raise SourceError(f"{path} is a folder; name a file in it")
    if sha256 is not None and file_hash(path) != sha256.lower():
        raise SourceError(f"{path} is there already with another content; move it away")
    return path


class _BrokenOff(Exception):
    """The connection ended before the file did."""


class _Part:
    """The part of a file that is here, and of which version of the file it is."""

    def __init__(self, path: Path, url: str) -> None:
        self.file = path.with_name(path.name + ".part")
        self._about = path.with_name(path.name + ".part.json")
        self.url = url
        self.validator: str | None = None
        self._any_version = False

    def prepare(self, any_version: bool) -> None:
        """Keep what an earlier call left if it can be gone on with, else begin anew.

        any_version: the end will be checked by a hash, so a version need not be known.
        """
        self._any_version = any_version
        try:
            about = json.loads(self._about.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            about = None
        validator = about.get("validator") if isinstance(about, dict) else None
        if about == {"url": self.url, "validator": validator} and (
            validator is None or (isinstance(validator, str) and validator.isprintable())
        ):
            self.validator = validator
        elif self.size() > 0:
            self.begin(None)

    def size(self) -> int:
        try:
            return self.file.stat().st_size
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise self._unwritable(error) from error

    def resumable(self) -> bool:
        return self.size() > 0 and (self.validator is not None or self._any_version)

    def begin(self, validator: str | None) -> None:
        """Forget what is here, and remember of which version the part will be."""
        self.validator = validator
        try:
            self.file.write_bytes(b"")
            about = {"url": self.url, "validator": validator}
            self._about.write_text(json.dumps(about), encoding="utf-8")
        except OSError as error:
            raise self._unwritable(error) from error

    def append(self, data: bytes) -> None:
        try:
            # Unbuffered: what is written counts, and closing has nothing left that could fail.
            with self.file.open("ab", buffering=0) as file:
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) :]
        except OSError as error:
            raise self._unwritable(error) from error

    def finish(self, path: Path) -> None:
        """Give the file its name, so that it is whole through a power cut too."""
        try:
            with self.file.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(self.file, path)
            self._about.unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def remove(self) -> None:
        self.file.unlink(missing_ok=True)
        self._about.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> SourceError:
        reason = (error.strerror or str(error)).lower()
        return SourceError(
            f"{self.file} cannot be written: {reason}; "
            "make room or choose another folder, and run it again: it goes on from there"
        )


def _fill(part: _Part, progress: Progress | None, backoff_s: float) -> None:
    """Request until the part is whole. Raises SourceError."""
    longest, fruitless, reached = part.size(), 0, False
    while True:
        try:
            with _request(part) as response:
                reached = True
                if _receive(response, part, progress):
                    return
                continue  # the part was of another version, and is gone: at once from the start
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == _RANGE_NOT_THERE and part.resumable():
                if _total(error.headers) == part.size():
                    return
                part.begin(None)
                continue
            reason = f"{error.code} {error.reason}"
            if error.code not in _PASSING:
                raise SourceError(f"{part.url} answered {reason}; check the address") from error
            reached = True
        except http.client.InvalidURL as error:
            raise SourceError(f"{part.url} is no address: {error}") from error
        except ValueError as error:
            raise SourceError(f"{part.url} leads to an impossible address: {error}") from error
        except (_BrokenOff, http.client.HTTPException, OSError) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
            if _hopeless(cause, reached):
                raise SourceError(
                    f"{part.url} cannot be reached: {reason}; check the address and the network"
                ) from error
        fruitless = 0 if part.size() > longest else fruitless + 1
        longest = max(longest, part.size())
        if fruitless >= ATTEMPTS:
            raise SourceError(
                f"{part.url} failed {ATTEMPTS} times in a row at byte {part.size()}: {reason}; "
                "run it again later: it goes on from there"
            )
        time.sleep(min(backoff_s * 2.0**fruitless, _LONGEST_PAUSE_S))


def _hopeless(cause: Any, reached: bool) -> bool:
    """Whether to give up at once: a wrong address, no network. Not when it has worked before."""
    if isinstance(cause, (str, ssl.SSLCertVerificationError)):
        return True
    passing = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
    return isinstance(cause, OSError) and not isinstance(cause, passing) and not reached


def _opener() -> urllib.request.OpenerDirector:
    """Open http, https and file, and nothing else that urllib could."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.FileHandler,
    ):
        opener.add_handler(handler())
    opener.addheaders = [("User-Agent", f"infi-edge/{__version__}")]
    return opener


def _request(part: _Part) -> Any:
    request = urllib.request.Request(part.url)
    if part.resumable():
        request.add_header("Range", f"bytes={part.size()}-")
        if part.validator is not None:
            request.add_header("If-Range", part.validator)
    return _opener().open(request, timeout=_TIMEOUT_S)


def _receive(response: Any, part: _Part, progress: Progress | None) -> bool:
    """Write what comes. Returns False if it does not fit the part, which is then emptied.

    Raises _BrokenOff if it ends early, and what http.client raises.
    """
    version = _validator(response.headers)
    if getattr(response, "status", None) == http.HTTPStatus.PARTIAL_CONTENT:
        start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        changed = None not in (version, part.validator) and version != part.validator
        if start is None or int(start[1]) != part.size() or changed:
            if not part.resumable():
                raise _BrokenOff("it sent a part that nobody asked for")
            part.begin(None)
            return False
        total = _total(response.headers)
    else:
        part.begin(version)
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
    done = part.size()
    while chunk := response.read1(_CHUNK):
        part.append(chunk)
        done += len(chunk)
        if progress is not None and total:
            progress(done, total)
    if total is not None and done < total:
        raise _BrokenOff(f"the connection ended at byte {done} of {total}")
    return True


def _total(headers: Any) -> int | None:
    """The file's size, of Content-Range: bytes 5-9/10."""
    found = re.fullmatch(r"bytes .*/(\d+)", headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _validator(headers: Any) -> str | None:
    """What If-Range may hold: a strong ETag, else the date of the last change."""
    tag = headers.get("ETag")
    if tag is not None and tag.startswith('"'):
        return str(tag)
    date = headers.get("Last-Modified")
    return None if date is None or tag is not None else str(date)
