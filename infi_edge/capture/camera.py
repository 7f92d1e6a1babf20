"""Cameras: V4L2, network, GStreamer, picamera2. The newest picture, never a queue of old ones."""

from __future__ import annotations

import os
import re
import shlex
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import cv2
import numpy as np

from infi_edge.capture.address import need_modality, public_address
from infi_edge.capture.camera_process import CameraPicture, CameraProcess
from infi_edge.capture.camera_protocol import Settings
from infi_edge.capture.clips import LiveClips
from infi_edge.capture.picture_health import FrozenPicture, PictureHealth
from infi_edge.capture.source import OPEN_S, Health, keep_open, wait
from infi_edge.config import SourceConfig
from infi_edge.errors import ConfigError
from infi_edge.preprocess import ImageSpec, Spec, VideoSpec
from infi_edge.types import Image, Sample

_KINDS = {"rtsp": "rtsp", "rtsps": "rtsp", "http": "http", "https": "http"}


class Camera:
    """A live camera, kept open for ever; samples are pictures (JPEG bytes or BGR) or clips.

    `health` counts `open`, `read`, `stall`, `frozen`, `reconnects`, `black`, `torn`, and `dropped`
    pictures, which nobody had time for.
    """

    def __init__(self, name: str, config: SourceConfig, spec: Spec, must_open: bool) -> None:
        """See `open_source`."""
        self.name, self.health = name, Health(name)
        self._config, self._must_open = config, must_open
        self._shown, self._settings = parse_address(config)
        self._clips = LiveClips(spec.frames, spec.hop) if isinstance(spec, VideoSpec) else None
        self._pictures = PictureHealth(self.health, config.camera.freeze_s)
        self._closing = threading.Event()
        self._index = 0

    def samples(self) -> Iterator[Sample | None]:
        must_open, rate_hz = self._must_open, self._config.rate_hz
        # Where few pictures are asked for, the pause between two is no stall.
        stall_s = self._config.stall_s + (1 / rate_hz if rate_hz else 0.0)
        while not self._closing.is_set():
            try:
                for picture in keep_open(
                    self._open, self.health, self._closing, stall_s=stall_s, must_open=must_open
                ):
                    yield None if picture is None else self._sample(picture)
            except FrozenPicture as frozen:
                must_open = False
                yield from wait(frozen.wait_s, self._closing)
                self.health.count("reconnects")
        self.health.end()

    def now_s(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        self._closing.set()

    def _open(self) -> _WholePictures:
        self._pictures.opened()
        if self._clips is not None:
            self._clips.restart()
        timeout_s = max(OPEN_S, self._config.stall_s)
        settings = self._settings._replace(parent=os.getpid(), timeout_s=timeout_s)
        process = CameraProcess(self._shown, settings, self._config.rate_hz)
        keep_jpeg = self._config.camera.keep_jpeg
        return _WholePictures(process, self._pictures, self.health, keep_jpeg)

    def _sample(self, picture: CameraPicture) -> Sample | None:
        data: Image | list[Image] | None = picture.image
        if self._clips is not None:
            data = self._clips.add(picture.image, picture.time_s)
        if data is None:
            return None
        self._index += 1
        return Sample(data, picture.time_s, self._index - 1, self.name)


class _WholePictures:
    """The device: what of a camera's pictures may be passed on."""

    def __init__(
        self, process: CameraProcess, pictures: PictureHealth, health: Health, keep_jpeg: bool
    ) -> None:
        self._process, self._pictures, self._health = process, pictures, health
        self._keep_jpeg = keep_jpeg

    def read(self, timeout_s: float) -> CameraPicture | None:
        """Return the newest picture, or None. Raises SourceError and FrozenPicture."""
        picture = self._process.read(timeout_s)
        if picture is None:
            return None
        if picture.dropped:
            self._health.count("dropped", picture.dropped)
        if not self._pictures.accept(picture.image):
            return None
        self._pictures.watch(picture.image, picture.time_s)
        if self._keep_jpeg or not isinstance(picture.image, bytes):
            return picture
        frame = _decoded(picture.image)
        if frame is None:
            self._health.notice("torn", "a picture cannot be decoded and is left out")
            return None
        return replace(picture, image=frame)

    def close(self) -> None:
        self._process.close()


def _decoded(data: bytes) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # a header that declares an absurd size
        return None


def parse_address(config: SourceConfig) -> tuple[str, Settings]:
    """Return a camera's name for messages, without credentials, and what its process is told.

    Raises ConfigError for what is no camera's address.
    """
    address, camera = config.address, config.camera
    settings = Settings(
        kind="",
        address=address,
        eager=config.rate_hz is None,
        width=camera.width,
        height=camera.height,
        fps=camera.fps,
    )
    scheme, _, rest = address.partition(":")
    if scheme == "gst":
        return _gst(rest, settings)
    if scheme == "picamera2" and re.fullmatch(r"[0-9]*", rest):
        return address, settings._replace(kind="picamera2", address=rest or "0")
    shown = public_address(address)
    url = rest if scheme == "camera" else address
    if match := re.match(r"([a-z0-9]+)://.", url):
        return shown, settings._replace(kind=_KINDS.get(match[1], "stream"), address=url)
    if scheme == "camera" and rest.isdecimal():
        return shown, settings._replace(kind="v4l2", address=f"/dev/video{rest}")
    if scheme == "camera" and rest.startswith("/"):
        return shown, settings._replace(kind="v4l2", address=rest)
    raise ConfigError(
        f"{shown} is no camera; give camera:0, camera:/dev/v4l/by-id/NAME, a URL, gst:PIPELINE "
        "or picamera2:0"
    )


def _gst(pipeline: str, settings: Settings) -> tuple[str, Settings]:
    try:
        words = shlex.split(pipeline)
    except ValueError as error:
        raise ConfigError(f"gst: has a quotation mark that is not closed ({error})") from error
    # Written for OpenCV, a pipeline ends in a sink of its own.
    marks = [i for i, word in enumerate(words) if word == "!"]
    if marks and words[marks[-1] + 1 : marks[-1] + 2] == ["appsink"]:
        words = words[: marks[-1]]
    if not words:
        raise ConfigError("gst: is followed by a pipeline, as in gst:v4l2src ! video/x-raw")
    # The rest of it may hold a password.
    return f"gst:{words[0]}", settings._replace(kind="gst", address="", pipeline=tuple(words))


def open_source(name: str, config: SourceConfig, spec: Spec, must_open: bool = False) -> Camera:
    """Return the camera behind config.address, for a filter of pictures or of clips.

    must_open: `samples` raises SourceError if it cannot be opened the first time.
    Raises ConfigError for an address that is no camera, or a filter of other inputs.
    """
    need_modality(config, spec, (ImageSpec, VideoSpec))
    return Camera(name, config, spec, must_open)
