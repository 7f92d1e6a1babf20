"""One grammar of source names: `camera:0`, `rtsp://...`, `microphone:NAME`, a file, ..."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable

from infi_edge.capture.source import Source
from infi_edge.config import SourceConfig
from infi_edge.errors import ConfigError
from infi_edge.preprocess import Spec

Opener = Callable[[str, SourceConfig, Spec, bool], Source]
"""(name, settings, the filter's input, must_open) -> Source. It does not open the device yet:
`samples` does, so that a device that is away does not hold up the others."""

GRAMMAR = """\
camera:0                      the camera /dev/video0
camera:/dev/v4l/by-id/NAME    a camera by its stable name
rtsp://, http://, https://    a network camera
gst:PIPELINE                  a GStreamer pipeline up to raw video, run by gst-launch-1.0
picamera2:0                   a Raspberry Pi camera through picamera2
microphone:NAME               a microphone by name or number; microphone: is the default one
iio:NAME                      a sensor of Linux IIO, by name or number
i2c:mpu6050@0x68              a sensor on the I2C bus (extra i2c); i2c:3:mpu9250@0x69 is on bus 3
serial:/dev/ttyUSB0@115200    lines of numbers from a serial port (extra serial)
lines:-                       lines of text from standard input; lines:PATH, lines:tcp://HOST:PORT
a file or a folder            a recording, played back"""

_MODULES = {
    "camera": "infi_edge.capture.camera",
    "rtsp": "infi_edge.capture.camera",
    "rtsps": "infi_edge.capture.camera",
    "http": "infi_edge.capture.camera",
    "https": "infi_edge.capture.camera",
    "gst": "infi_edge.capture.camera",
    "picamera2": "infi_edge.capture.camera",
    "microphone": "infi_edge.capture.microphone",
    "iio": "infi_edge.capture.iio",
    "i2c": "infi_edge.capture.i2c",
    "serial": "infi_edge.capture.serial_lines",
    "lines": "infi_edge.capture.lines",
}
_NETWORK = ("rtsp", "rtsps", "http", "https")
_OPENERS: dict[str, Opener] = {}


def register_source(scheme: str, opener: Opener) -> None:
    """Make `SCHEME:...` known; a plugin's source does just this."""
    _OPENERS[scheme] = opener


def scheme_of(address: str) -> str | None:
    """Return the scheme of a live source's address, or None for a recording's path."""
    match = re.match(r"([a-z][a-z0-9]*):", address)
    if match is None or not (match[1] in _MODULES or match[1] in _OPENERS):
        return None
    return match[1]


def open_source(name: str, config: SourceConfig, spec: Spec, must_open: bool = False) -> Source:
    """Return the source behind an address, giving inputs of the kind `spec` describes.

    must_open: `samples` raises SourceError if the device cannot be opened the first time; else it
    is tried for ever. Raises ConfigError for an address that makes no sense, or gives inputs of
    another kind; SourceError for a recording that is not there.
    """
    scheme = scheme_of(config.address)
    if scheme is None:
        from infi_edge.capture.playback import open_playback

        return open_playback(name, config, spec, must_open)
    if scheme in _NETWORK and re.search(r"\s", config.address):
        raise ConfigError(f"the address of {name} has a blank in it; write it as %20")
    opener = _OPENERS.get(scheme)
    if opener is None:
        module = importlib.import_module(_MODULES[scheme])
        opener = module.open_source
    return opener(name, config, spec, must_open)


def public_address(text: str) -> str:
    """Return an address, or a sentence that names some, without credentials.

    User and password go, the values of a query, and what a GStreamer pipeline calls a password.
    A password that should have been percent-encoded is not shown either, at the price of hiding
    more than is needed where an @ stands in a path or query.
    """
    return _SECRET.sub(r"\1***", _URL.sub(lambda found: _public_url(found[0]), text))


_URL = re.compile(r"(?ia)(?:[a-z][a-z0-9+.-]*://|(?:rtsps?|https?):)\S+")
_SECRET = re.compile(
    r"""(?ix) (?<![a-z0-9])
    ((?: user-id | user-pw | pass(?:word|wd|phrase)? | pw | pwd | token | secret ) \s*=\s*)
    (?: "[^"]*" | '[^']*' | \S+ )"""
)


def _public_url(url: str) -> str:
    found = re.match(r"[^:]*:/*", url)
    assert found is not None
    scheme, rest = found[0], url[found.end() :]
    credentials, at, place = rest.rpartition("@")
    if at:
        # A ? before the @: a password with one, or an @ in a query. Neither end is shown then.
        place = "***@" + ("***" if re.search("[?#]", credentials) else place)
    mark = re.search("[?#]", place)
    if mark is None:
        return scheme + place
    parts = (part.partition("=") for part in re.split("[?&#;]", place[mark.end() :]))
    query = "&".join(f"{key}=***" if equals else "***" for key, equals, _ in parts)
    return scheme + place[: mark.end()] + query


def need_modality(config: SourceConfig, spec: Spec, kinds: tuple[type[Spec], ...]) -> None:
    """Raise ConfigError unless the filter reads what this source gives."""
    if not isinstance(spec, kinds):
        tag = type(spec).__struct_config__.tag
        raise ConfigError(
            f"{public_address(config.address)} gives other inputs than the filter reads ({tag})"
        )
