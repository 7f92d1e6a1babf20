"""Readers of cameras through OpenCV (V4L2, FFmpeg) and picamera2, for the capture process."""

from __future__ import annotations

import os
import stat
from typing import Any

from infi_edge.capture.camera_protocol import BGR, JPEG, CaptureError, Newest, Picture, Settings

FFMPEG_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"


def read_v4l2(settings: Settings, newest: Newest) -> None:
    """A V4L2 device: its JPEGs as they are if it makes any, else BGR."""
    path = os.path.realpath(settings.address)  # a stable name, after the camera came back
    _check_device(settings.address, path)
    cv2 = _opencv()
    capture = cv2.VideoCapture(path, cv2.CAP_V4L2)
    if not capture.isOpened():
        raise CaptureError(f"{path} gives no pictures; is another program using it?")
    mjpg = cv2.VideoWriter.fourcc(*"MJPG")
    for key, value in (
        (cv2.CAP_PROP_FOURCC, mjpg),
        (cv2.CAP_PROP_FRAME_WIDTH, settings.width),
        (cv2.CAP_PROP_FRAME_HEIGHT, settings.height),
        (cv2.CAP_PROP_FPS, settings.fps),
    ):
        if value is not None:
            capture.set(key, value)
    raw = int(capture.get(cv2.CAP_PROP_FOURCC)) == mjpg
    raw = raw and bool(capture.set(cv2.CAP_PROP_CONVERT_RGB, 0))
    _read_opencv(capture, newest, raw, "the camera gives no picture; is it still plugged in?")


def _check_device(name: str, path: str) -> None:
    if not os.path.exists(path):
        raise CaptureError(f"there is no {name}; see 'infi-edge doctor' for the cameras found here")
    if not os.access(path, os.R_OK | os.W_OK):
        raise CaptureError("permission denied; add the user to group video")
    if not stat.S_ISCHR(os.stat(path).st_mode):
        raise CaptureError("it is no camera; a recording is given by its path alone")


def read_ffmpeg(settings: Settings, newest: Newest) -> None:
    """A stream through OpenCV's FFmpeg."""
    if settings.kind == "rtsp":
        os.environ.setdefault(FFMPEG_OPTIONS, "rtsp_transport;tcp")
    # Each thread of a decoder holds pictures, and is late by one.
    os.environ.setdefault("OPENCV_FFMPEG_THREADS", "2")
    cv2 = _opencv()
    milliseconds = int(settings.timeout_s * 1000)
    limits = (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, cv2.CAP_PROP_READ_TIMEOUT_MSEC)
    parameters = [number for limit in limits for number in (limit, milliseconds)]
    capture = cv2.VideoCapture(settings.address, cv2.CAP_FFMPEG, parameters)
    if not capture.isOpened():
        raise CaptureError("there is no video; check the address, the user and the password")
    _read_opencv(capture, newest, False, "the stream has ended or broken off")


def _opencv() -> Any:
    import cv2

    cv2.setNumThreads(1)
    return cv2


def _read_opencv(capture: Any, newest: Newest, raw: bool, end: str) -> None:
    frame = None

    def load() -> Picture | None:
        nonlocal frame
        good, frame = capture.retrieve(frame)
        if not good:
            return None
        if raw:
            return Picture(JPEG, 0, 0, frame.tobytes().rstrip(b"\0"))
        return Picture(BGR, frame.shape[0], frame.shape[1], frame)

    newest.opened()
    while capture.grab():
        newest.offer(load)
    raise CaptureError(end)


def read_picamera2(settings: Settings, newest: Newest) -> None:
    """A Raspberry Pi camera through picamera2."""
    try:
        from picamera2 import Picamera2  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise CaptureError(
            "it needs picamera2: sudo apt install python3-picamera2, and a virtual environment "
            f"made with --system-site-packages ({error})"
        ) from error
    camera = Picamera2(int(settings.address))
    # What picamera2 calls RGB888 lies in memory as B, G, R.
    main: dict[str, Any] = {"format": "RGB888"}
    if settings.width is not None and settings.height is not None:
        main["size"] = (settings.width, settings.height)
    controls = {} if settings.fps is None else {"FrameRate": settings.fps}
    camera.configure(camera.create_video_configuration(main=main, controls=controls))
    camera.start()
    newest.opened()
    while True:
        frame = camera.capture_array("main")
        if not frame.flags.c_contiguous:
            frame = frame.copy()
        newest.put(Picture(BGR, frame.shape[0], frame.shape[1], frame))
