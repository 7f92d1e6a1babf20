"""The capture process: reads one camera and gives its newest picture when asked. Run as a script.

It imports only what the camera at hand needs, so that it is small and quick to start, and it can
be killed at any moment. See camera_protocol.py.
"""

from __future__ import annotations

import os
import sys
import types

if __name__ == "__main__":
    # A script's folder comes first on the path; a neighbour must not hide a standard module.
    _HERE = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [place for place in sys.path if place != _HERE]
    # Without infi_edge/__init__.py, which would bring everything.
    _PACKAGE = types.ModuleType("infi_edge")
    _PACKAGE.__path__ = [os.path.dirname(_HERE)]
    sys.modules["infi_edge"] = _PACKAGE

import importlib
import json

from infi_edge.capture.camera_protocol import CaptureError, Newest, Settings, die_with_parent

READERS = {
    "v4l2": "camera_devices:read_v4l2",
    "rtsp": "camera_devices:read_ffmpeg",
    "stream": "camera_devices:read_ffmpeg",
    "http": "camera_http:read_http",
    "gst": "camera_gst:read_gst",
    "picamera2": "camera_devices:read_picamera2",
}
"""Module and function (Settings, Newest) of each kind; it returns never, or raises."""


def main() -> None:
    """Read the camera of the settings on standard input until it fails or the parent ends."""
    replies, memory = int(sys.argv[1]), int(sys.argv[2])
    with open(0, "rb", buffering=0, closefd=False) as standard_input:
        settings = Settings(**json.loads(standard_input.readline()))
    die_with_parent()
    if os.getppid() != settings.parent:
        return  # it ended before it could be noticed
    newest = Newest(replies, memory, settings.eager)
    try:
        module, function = READERS[settings.kind].split(":")
        getattr(importlib.import_module(f"infi_edge.capture.{module}"), function)(settings, newest)
    except CaptureError as error:
        newest.fail(str(error))
    except TimeoutError:
        newest.fail(f"no data for {settings.timeout_s:g} s")
    except Exception as error:  # of a driver or a server: the sentence is all that can be done
        newest.fail(f"{type(error).__name__}: {error}")
    os._exit(1)  # not waiting for whatever hangs


if __name__ == "__main__":
    main()
