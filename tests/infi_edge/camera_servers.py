"""Cameras for the tests: real servers on this machine, and modules that stand in for hardware."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np
import pytest

from infi_edge.capture.address import open_source
from infi_edge.capture.camera import Camera
from infi_edge.config import CameraConfig, SourceConfig
from infi_edge.preprocess import ImageSpec, Spec
from infi_edge.types import Sample

PATIENCE_S = 30.0
BOUNDARY = "frontier"


def noisy(number: int, height: int = 120, width: int = 160) -> np.ndarray:
    """A picture with a sensor's noise, another one for each number."""
    noise = np.random.default_rng(number).integers(0, 30, (height, width, 3))
    slope = np.linspace(40, 200, width).astype(int)[None, :, None]
    return (noise + slope).astype(np.uint8)


def jpeg(frame: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", frame)[1].tobytes()


def part(data: bytes, with_length: bool = True) -> bytes:
    """One part of an MJPEG stream."""
    length = f"Content-Length: {len(data)}\r\n" if with_length else ""
    head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\n{length}\r\n"
    return head.encode() + data + b"\r\n"


PICTURES = [jpeg(noisy(number)) for number in range(20)]


class MjpegServer:
    """A camera's web server. `script(send)` writes one stream; it ends with the connection.

    Used as a context; `port` stays the same when it is stopped and started again.
    """

    def __init__(
        self,
        script: Callable[[Callable[[bytes], None]], None],
        user: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """user: "name:password" that is asked for. tls: speak https."""
        self._tls = tls
        self._script, self._user = script, user
        self.connections = 0
        self.status = "200 OK"  # empty: the script writes the whole answer
        self.content_type = f"multipart/x-mixed-replace; boundary={BOUNDARY}"
        self.port = 0
        self.open = False
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def url(self, credentials: str = "") -> str:
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://{credentials}127.0.0.1:{self.port}/stream"

    def __enter__(self) -> MjpegServer:
        self._server = socket.create_server(("127.0.0.1", self.port))
        self.port = self._server.getsockname()[1]
        self.open = True
        self._threads = [threading.Thread(target=self._accept, args=(self._server,))]
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.open = False
        self.drop(self._server)
        while self._connections:
            self.drop(self._connections.pop())
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    @staticmethod
    def drop(connection: socket.socket) -> None:
        """Break it off, also under a thread that uses it."""
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            self.connections += 1
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._connections.append(connection)
            request = b""
            while b"\r\n\r\n" not in request:
                received = connection.recv(4096)
                if not received:
                    return
                request += received
            allowed = base64.b64encode(self._user.encode())
            if self._user and b"Basic " + allowed not in request:
                connection.sendall(
                    b'HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm="camera"\r\n'
                    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
                )
                return
            if self.status:
                head = f"HTTP/1.1 {self.status}\r\nContent-Type: {self.content_type}\r\n\r\n"
                connection.sendall(head.encode())
            self._script(connection.sendall)
        except OSError:
            return
        finally:
            self.drop(connection)


def endless(send: Callable[[bytes], None]) -> None:
    """A healthy camera of 50 pictures a second."""
    number = 0
    while True:
        send(part(PICTURES[number % len(PICTURES)]))
        number += 1
        time.sleep(0.02)


@contextmanager
def opened(
    address: str,
    spec: Spec | None = None,
    *,
    must_open: bool = False,
    camera: CameraConfig | None = None,
    **settings: object,
) -> Iterator[Camera]:
    """A camera source that is closed at the end, all its processes gone."""
    config = SourceConfig(
        address=address,
        filter="x.infi",
        model="x",
        camera=camera or CameraConfig(),
        **settings,  # type: ignore[arg-type]
    )
    source = open_source("yard", config, spec or ImageSpec(), must_open)
    assert isinstance(source, Camera)
    try:
        yield source
    finally:
        source.close()


def collect(
    stream: Iterator[Sample | None], enough: Callable[[list[Sample]], bool]
) -> list[Sample]:
    """Take inputs until there are enough. Fails if that takes too long."""
    samples: list[Sample] = []
    until_s = time.monotonic() + PATIENCE_S
    while not enough(samples):
        assert time.monotonic() < until_s, f"only {len(samples)} inputs"
        sample = next(stream)
        if sample is not None:
            samples.append(sample)
    return samples


def take(stream: Iterator[Sample | None], count: int) -> list[Sample]:
    """Take so many inputs."""
    return collect(stream, lambda samples: len(samples) >= count)


def children(process: int | None = None) -> list[int]:
    """Process ids of all children and their children, those that have ended left out."""
    found, waiting = [], [process or os.getpid()]
    while waiting:
        parent = waiting.pop()
        for tasks in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                waiting += (ids := [int(word) for word in tasks.read_text().split()])
            except OSError:
                continue
            found += [child for child in ids if state(child) not in ("Z", "")]
    return found


def state(process: int) -> str:
    """The kernel's letter for a process (T stopped, Z ended), or "" if there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def wait_until(condition: Callable[[], bool]) -> bool:
    """Wait for a condition; return whether it came true."""
    until_s = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > until_s:
            return False
        time.sleep(0.02)
    return True


SYSTEM_PYTHON = "/usr/bin/python3"
_RTSP = """
import sys
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,width=%s,height=%s,framerate=25/1 "
    "! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=5 ! rtph264pay name=pay0 )"
    % (sys.argv[2], sys.argv[3])
)
factory.set_shared(True)
server.get_mount_points().add_factory("/yard", factory)
assert server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""


@contextmanager
def rtsp_server(
    port: int = 0, width: int = 320, height: int = 240
) -> Iterator[tuple[int, Callable[[], None]]]:
    """GStreamer's RTSP server with a moving ball at /yard; yields its port and what kills it."""
    probe = "import gi; gi.require_version('GstRtspServer', '1.0')"
    if subprocess.run([SYSTEM_PYTHON, "-c", probe], capture_output=True, check=False).returncode:
        pytest.skip("needs gir1.2-gst-rtsp-server-1.0 and python3-gi")
    arguments = [str(port), str(width), str(height)]
    with subprocess.Popen(
        [SYSTEM_PYTHON, "-c", _RTSP, *arguments], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            yield port, server.kill
        finally:
            server.kill()


def need(tool: str) -> None:
    """Skip the test where a tool of Debian is missing."""
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool}")


STANDS_IN = {
    "cv2": """
import os, time
import numpy as np
HERE = os.path.dirname(__file__)
CAP_V4L2, CAP_PROP_FOURCC, CAP_PROP_CONVERT_RGB = 200, 6, 16
CAP_PROP_FRAME_WIDTH, CAP_PROP_FRAME_HEIGHT, CAP_PROP_FPS = 3, 4, 5
def setNumThreads(number): pass
def here(name): return os.path.exists(os.path.join(HERE, name))
class VideoWriter:
    @staticmethod
    def fourcc(*letters): return sum(ord(letter) << 8 * i for i, letter in enumerate(letters))
class VideoCapture:
    def __init__(self, path, api):
        assert api == CAP_V4L2
        self.values, self.number = {CAP_PROP_CONVERT_RGB: 1}, 0
        with open(os.path.join(HERE, "opened"), "a") as file:
            file.write(path + "\\n")
    def isOpened(self): return not here("busy")
    def set(self, key, value):
        if key == CAP_PROP_FOURCC and here("no-mjpg"):
            return False
        self.values[key] = value
        return True
    def get(self, key): return self.values.get(key, 0)
    def grab(self):
        time.sleep(0.02)
        while here("hangs"):
            time.sleep(0.1)
        self.number += 1
        return not here("broken")
    def retrieve(self, image=None):
        if not self.values[CAP_PROP_CONVERT_RGB]:
            with open(os.path.join(HERE, f"{self.number % 2}.jpg"), "rb") as file:
                return True, np.frombuffer(file.read() + bytes(1000), np.uint8)[None]
        size = (int(self.values.get(4, 48)), int(self.values.get(3, 64)), 3)
        return True, np.random.default_rng(self.number).integers(50, 90, size).astype(np.uint8)
""",
    "picamera2": """
import time
import numpy as np
class Picamera2:
    def __init__(self, number): assert number == 1
    def create_video_configuration(self, main, controls):
        assert main == {"format": "RGB888", "size": (64, 48)} and controls == {"FrameRate": 50.0}
        return main
    def configure(self, configuration): self.size = configuration["size"]
    def start(self): self.number = 0
    def capture_array(self, name):
        time.sleep(0.02)
        self.number += 1
        frame = np.zeros((self.size[1], self.size[0] + 8, 3), np.uint8)
        frame[:] = (10, 60, 200)
        frame[::2, self.number % 32] += 5
        return frame[:, : self.size[0]]
""",
}


def stand_in(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a module in place of a camera's library, for the capture process; return its folder."""
    (folder / f"{name}.py").write_text(STANDS_IN[name])
    for number in range(2):
        (folder / f"{number}.jpg").write_bytes(PICTURES[number])
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder
