"""One grammar of source names; no secret of an address is ever shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi_edge.capture import address
from infi_edge.capture.address import (
    GRAMMAR,
    need_modality,
    open_source,
    public_address,
    register_source,
    scheme_of,
)
from infi_edge.capture.playback import Playback
from infi_edge.config import SourceConfig
from infi_edge.errors import ConfigError, SourceError
from infi_edge.preprocess import ImageSpec, TextSpec

SPEC = ImageSpec(32, 24)


def config(text: str, **more: Any) -> SourceConfig:
    return SourceConfig(address=text, filter="f.infi", model="m", **more)


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("camera:0", "camera"),
        ("camera:/dev/v4l/by-id/usb-046d_C270-video-index0", "camera"),
        ("rtsp://10.0.0.7:554/h264", "rtsp"),
        ("rtsps://10.0.0.7/h264", "rtsps"),
        ("http://cam/mjpg", "http"),
        ("https://[fe80::1]:8443/mjpg", "https"),
        ("gst:videotestsrc ! video/x-raw,width=320", "gst"),
        ("picamera2:0", "picamera2"),
        ("microphone:", "microphone"),
        ("microphone:USB Audio: hw:1,0", "microphone"),
        ("iio:lsm6ds3", "iio"),
        ("i2c:3:mpu9250@0x69", "i2c"),
        ("serial:/dev/ttyUSB0@115200", "serial"),
        ("lines:-", "lines"),
        ("lines:tcp://127.0.0.1:9000", "lines"),
        ("clips/yard.mp4", None),
        ("/data/yard:1.mp4", None),
        ("C:\\clips\\yard.mp4", None),
        ("c:/clips/yard.mp4", None),
        ("./camera:0", None),
        ("camera", None),
        ("camera.mp4", None),
        ("ftp://cam/yard.mp4", None),
        ("", None),
    ],
)
def test_the_scheme_of_an_address(text, scheme):
    assert scheme_of(text) == scheme


def test_every_scheme_is_in_the_grammar_that_help_shows():
    for scheme in address._MODULES:
        assert f"{scheme}:" in GRAMMAR or scheme == "rtsps"


def test_a_file_is_played_back(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((24, 32, 3), np.uint8))
    source = open_source("yard", config(str(tmp_path), fast=True), SPEC)
    assert isinstance(source, Playback)
    assert [sample.source for sample in source.samples() if sample is not None] == ["yard"]


def test_a_file_named_like_a_camera_is_meant_by_its_path(tmp_path, monkeypatch):
    folder = tmp_path / "camera:0"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), np.zeros((24, 32, 3), np.uint8))
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_source("yard", config("./camera:0"), SPEC), Playback)


@pytest.mark.parametrize("text", ["absent.mp4", "C:\\absent.mp4", "camra:0", "n" * 5000, "a\0b"])
def test_a_recording_that_is_not_there_is_refused(text, refuses):
    with refuses(SourceError, "does not exist; give a recording"):
        open_source("yard", config(text), SPEC)


def test_a_network_address_with_a_blank_is_refused_and_not_shown():
    with pytest.raises(ConfigError, match="%20") as caught:
        open_source("yard", config("rtsp://user:pass word@cam/1"), SPEC)
    assert "word" not in str(caught.value)


def test_a_source_of_ones_own_needs_one_registration(monkeypatch):
    monkeypatch.setattr(address, "_OPENERS", {})
    assert scheme_of("radio:433") is None
    register_source("radio", lambda name, *rest: (name, *rest))
    assert scheme_of("radio:433") == "radio"
    settings = config("radio:433")
    assert open_source("roof", settings, SPEC, True) == ("roof", settings, SPEC, True)


def test_a_source_that_gives_something_else_is_refused(refuses):
    need_modality(config("camera:0"), SPEC, (ImageSpec,))
    with refuses(ConfigError, r"rtsp://\*\*\*@cam/1 gives other inputs .*\(text\)"):
        need_modality(config("rtsp://user:secret@cam/1"), TextSpec(), (ImageSpec,))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://cam:554/h264", "rtsp://cam:554/h264"),
        ("rtsp://user:pw@cam/1", "rtsp://***@cam/1"),
        ("RTSP://user:pw@cam/1", "RTSP://***@cam/1"),
        ("http://user@cam/", "http://***@cam/"),
        ("https://user:p%40ss@[fe80::1]:8443/mjpg", "https://***@[fe80::1]:8443/mjpg"),
        ("rtsp://user:p@ss@cam/1", "rtsp://***@cam/1"),
        ("rtsp://user:pa/ss@cam/1", "rtsp://***@cam/1"),
        ("rtsp://user:p?x=y@cam/1", "rtsp://***@***"),
        ("rtsp://user:p#x@cam/1", "rtsp://***@***"),
        ("rtsp:/user:pw@cam/1", "rtsp:/***@cam/1"),
        ("http://cam/snap?user=me&pwd=secret", "http://cam/snap?user=***&pwd=***"),
        ("http://cam/snap?secret", "http://cam/snap?***"),
        ("http://cam/snap?secret;x=1", "http://cam/snap?***&x=***"),
        ("http://cam/snap#secret", "http://cam/snap#***"),
        ("http://cam/snap?mail=me@home.net", "http://***@***"),
        (
            "gst:rtspsrc location=rtsp://u:p@cam/1 ! decodebin",
            "gst:rtspsrc location=rtsp://***@cam/1 ! decodebin",
        ),
        (
            "gst:rtspsrc location=rtsp://cam user-id=u user-pw=p ! x",
            "gst:rtspsrc location=rtsp://cam user-id=*** user-pw=*** ! x",
        ),
        ('gst:rtspsrc user-pw="p w" ! x', "gst:rtspsrc user-pw=*** ! x"),
        ("i2c:mpu6050@0x68", "i2c:mpu6050@0x68"),
        ("serial:/dev/ttyUSB0@115200", "serial:/dev/ttyUSB0@115200"),
        ("camera:/dev/v4l/by-id/a@b?c=d", "camera:/dev/v4l/by-id/a@b?c=d"),
        ("clips/yard.mp4", "clips/yard.mp4"),
        ("rtsp://cam/user=me_password=geheim_channel=1", "rtsp://cam/user=me_password=***"),
    ],
)
def test_what_is_shown_of_an_address(text, shown):
    assert public_address(text) == shown


def test_a_sentence_keeps_its_words():
    text = "rtsp://user:pw@cam/1 cannot be opened: [rtsp @ 0x55d] 401 at http://cam/?key=abc now"
    assert public_address(text) == (
        "rtsp://***@cam/1 cannot be opened: [rtsp @ 0x55d] 401 at http://cam/?key=*** now"
    )


SECRETS = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=1, max_size=12)
PLACES = st.sampled_from(["cam", "10.0.0.7:554", "[fe80::1]", "[2001:db8::7]:8554", "a.b.example"])
PATHS = st.sampled_from(["", "/", "/1", "/live/main", "/a?channel=1", "/a?b=1&c=2#d"])
SCHEMES = st.sampled_from(["rtsp", "rtsps", "http", "https"])


def mark(secret: str) -> str:
    """A secret that cannot be in the rest of an address by chance."""
    return f"Q7{secret}7Q"


@given(SCHEMES, SECRETS, SECRETS, PLACES, PATHS, st.booleans())
def test_no_password_is_ever_shown(scheme, user, password, place, path, encoded):
    words = [mark(user), mark(password)]
    given_words = [quote(word, safe="") for word in words] if encoded else words
    shown = public_address(f"{scheme}://{given_words[0]}:{given_words[1]}@{place}{path}")
    assert "Q7" not in shown
    assert "7Q" not in shown
    assert shown.startswith(f"{scheme}://")
    if encoded and "?" not in path:
        assert shown == f"{scheme}://***@{place}{path}"


@given(SCHEMES, PLACES, st.lists(st.tuples(st.sampled_from("abc"), SECRETS), min_size=1))
def test_no_value_of_a_query_is_ever_shown(scheme, place, query):
    text = "&".join(f"{key}={quote(mark(value), safe='')}" for key, value in query)
    shown = public_address(f"{scheme}://{place}/snap?{text}")
    assert "Q7" not in shown
    assert "7Q" not in shown
    assert place in shown


@given(SCHEMES, SECRETS, PLACES, PATHS)
def test_hiding_twice_changes_nothing(scheme, secret, place, path):
    once = public_address(f"{scheme}://u:{secret}@{place}{path} failed")
    assert public_address(once) == once


def test_every_opener_exists_or_says_what_it_needs():
    for module in set(address._MODULES.values()):
        path = Path(address.__file__).parent / f"{module.rsplit('.', 1)[1]}.py"
        assert path.exists(), path
