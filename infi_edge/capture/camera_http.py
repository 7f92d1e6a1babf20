"""The reader of cameras at a URL: multipart MJPEG, whose JPEGs stay as they are."""

from __future__ import annotations

import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import IO, Any

from infi_edge.capture.camera_devices import FFMPEG_OPTIONS, read_ffmpeg
from infi_edge.capture.camera_protocol import JPEG, CaptureError, Newest, Picture, Settings

MAX_PART_BYTES = 32 << 20
_LINE_BYTES = 1 << 16


def read_http(settings: Settings, newest: Newest) -> None:
    """A URL: parts of MJPEG as they are; anything else is FFmpeg's."""
    with _request(settings) as response:
        kind = response.headers.get_content_type()
        # ffmpeg -f mpjpeg -listen does not say what it sends.
        if kind == "multipart/x-mixed-replace" or response.peek(2).startswith(b"--"):
            boundary = response.headers.get_boundary() or ""
            newest.opened()
            read_parts(response, boundary, lambda data: _offer_jpeg(newest, data))
            raise CaptureError("the stream has ended")
    if kind.startswith("image/"):
        raise CaptureError("there are single pictures, no stream; find the camera's MJPEG address")
    if settings.address.startswith("https:"):
        authorities = ssl.get_default_verify_paths().cafile or ""
        os.environ.setdefault(FFMPEG_OPTIONS, f"tls_verify;1|ca_file;{authorities}")
    read_ffmpeg(settings, newest)


def _request(settings: Settings) -> Any:
    parts = urllib.parse.urlsplit(settings.address)
    place = parts.netloc.rpartition("@")[2]
    url = urllib.parse.urlunsplit((parts.scheme, place, parts.path or "/", parts.query, ""))
    passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    if parts.username is not None:
        user, password = (urllib.parse.unquote(t or "") for t in (parts.username, parts.password))
        passwords.add_password(None, url, user, password)
    opener = urllib.request.build_opener(
        urllib.request.HTTPBasicAuthHandler(passwords),
        urllib.request.HTTPDigestAuthHandler(passwords),
    )
    try:
        return opener.open(url, timeout=settings.timeout_s)
    except urllib.error.HTTPError as error:
        advice = "; check user and password" if error.code in (401, 403) else ""
        raise CaptureError(f"the server answers {error.code} {error.reason}{advice}") from error
    except urllib.error.URLError as error:
        reason = getattr(error.reason, "strerror", None) or error.reason
        raise CaptureError(str(reason)) from error


def _offer_jpeg(newest: Newest, data: bytes) -> None:
    if data.startswith(b"\xff\xd8"):
        newest.put(Picture(JPEG, 0, 0, data))


def read_parts(stream: IO[bytes], boundary: str, take: Callable[[bytes], None]) -> None:
    """Give the content of each part of a multipart stream to `take`, until the stream ends.

    The last one may be cut short. Raises CaptureError if one is larger than MAX_PART_BYTES.
    """
    # Some servers count the dashes to the boundary, some do not.
    token = boundary.strip('"').lstrip("-").encode()

    def begins_part(line: bytes) -> bool:
        return line.startswith(b"--") and line.lstrip(b"-").startswith(token)

    line = stream.readline(_LINE_BYTES)
    while line:
        if not begins_part(line):
            line = stream.readline(_LINE_BYTES)
            continue
        length = _part_length(stream)
        if length:
            take(stream.read(length))
            line = stream.readline(_LINE_BYTES)
            continue
        data = bytearray()
        while (line := stream.readline(_LINE_BYTES)) and not begins_part(line):
            data += line
            _limit(len(data))
        take(bytes(data).rstrip(b"\r\n"))


def _part_length(stream: IO[bytes]) -> int:
    """Read a part's header fields; return its length, 0 if it has none."""
    length = 0
    while field := stream.readline(_LINE_BYTES).strip():
        name, _, value = field.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            length = int(value)
    _limit(length)
    return length


def _limit(length: int) -> None:
    if length > MAX_PART_BYTES:
        raise CaptureError(f"the server sends a picture of {length} bytes or more")
