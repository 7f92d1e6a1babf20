"""What goes wrong with cameras, with real servers and processes: input comes again, all is told,
and nothing is left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from camera_servers import (
    PATIENCE_S,
    PICTURES,
    MjpegServer,
    children,
    collect,
    endless,
    jpeg,
    need,
    noisy,
    opened,
    part,
    rtsp_server,
    stand_in,
    state,
    take,
    wait_until,
)

from infi_edge.config import CameraConfig
from infi_edge.preprocess import VideoSpec
from infi_edge.types import Sample

Stream = Iterator[Sample | None]


@pytest.fixture(autouse=True)
def nothing_is_left_over() -> Iterator[None]:
    """No process, thread or descriptor remains after a test."""
    threads = threading.active_count()
    descriptors = len(os.listdir("/proc/self/fd"))
    yield
    assert wait_until(lambda: not children()), "a process is left over"
    assert wait_until(lambda: threading.active_count() <= threads), "a thread is left over"
    assert len(os.listdir("/proc/self/fd")) <= descriptors, "a descriptor is left over"


def idle_until(stream: Stream, condition: Callable[[], bool]) -> None:
    """Iterate until a condition holds; inputs are let go. Fails if that takes too long."""
    until_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until_s, "it did not happen"
        next(stream)


@pytest.fixture(autouse=True)
def opens_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A camera that gives no first picture need not be waited for so long here."""
    monkeypatch.setattr("infi_edge.capture.source.OPEN_S", 5.0)


def told(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.levelname == "WARNING" for record in caplog.records)


def test_a_process_that_hangs_is_killed_and_the_camera_opened_again(caplog):
    with MjpegServer(endless) as server, opened(server.url(), stall_s=1.0) as camera:
        stream = camera.samples()
        take(stream, 3)
        [child] = children()
        os.kill(child, signal.SIGSTOP)
        assert wait_until(lambda: state(child) == "T")
        idle_until(stream, lambda: camera.health.state == "failing")
        assert "no input for 1 s" in camera.health.sentence
        idle_until(stream, lambda: camera.health.state == "live")
        take(stream, 3)
        assert state(child) == ""
        assert camera.health.counts["stall"] == 1
        assert camera.health.counts["reconnects"] == 1
        assert told(caplog) == 1
        stream.close()


def test_a_read_that_never_returns_is_ended(tmp_path, monkeypatch):
    folder = stand_in("cv2", tmp_path, monkeypatch)
    with opened("camera:/dev/null", stall_s=0.6) as camera:
        stream = camera.samples()
        take(stream, 2)
        (folder / "hangs").touch()
        idle_until(stream, lambda: camera.health.counts["stall"] >= 1)
        (folder / "hangs").unlink()
        take(stream, 2)
        assert camera.health.state == "live"
        stream.close()


@pytest.mark.slow
def test_a_server_that_goes_silent_is_a_stall():
    def three_and_silence(send):
        for number in range(3):
            send(part(PICTURES[number]))
        while True:
            send(b"")
            time.sleep(0.05)
            if not server.open:
                return

    with MjpegServer(three_and_silence) as server, opened(server.url(), stall_s=0.6) as camera:
        stream = camera.samples()
        idle_until(stream, lambda: camera.health.counts["stall"] >= 1)
        take(stream, 1)
        assert server.connections >= 2
        stream.close()


def test_a_process_that_dies_is_started_again(caplog):
    with MjpegServer(endless) as server, opened(server.url()) as camera:
        stream = camera.samples()
        take(stream, 1)
        os.kill(children()[0], signal.SIGSEGV)
        idle_until(stream, lambda: camera.health.state == "failing")
        assert camera.health.sentence == f"{server.url()} stopped: its process ended by SIGSEGV"
        take(stream, 1)
        assert camera.health.counts["read"] == camera.health.counts["reconnects"] == 1
        assert told(caplog) == 1
        stream.close()


@pytest.mark.parametrize("errors_s", [1.5, pytest.param(30.0, marks=pytest.mark.slow)])
def test_a_camera_that_gives_errors_for_a_while_works_again(
    errors_s, tmp_path, monkeypatch, caplog
):
    folder = stand_in("cv2", tmp_path, monkeypatch)
    with opened("camera:/dev/null") as camera:
        stream = camera.samples()
        take(stream, 2)
        (folder / "broken").touch()
        until_s = time.monotonic() + errors_s
        idle_until(stream, lambda: camera.health.state == "failing")
        while time.monotonic() < until_s:
            assert next(stream) is None
        openings = len((folder / "opened").read_text().splitlines())
        assert openings <= 2 + errors_s / 0.3, "a tight loop"
        (folder / "broken").unlink()
        live_by_s = time.monotonic() + 2 * PATIENCE_S
        while camera.health.state != "live":
            assert time.monotonic() < live_by_s
            next(stream)
        assert camera.health.counts["read"] + camera.health.counts["open"] >= 2
        assert told(caplog) <= 2, "once that it stopped, once that it cannot be opened"
        stream.close()


@pytest.mark.slow
def test_a_camera_that_is_not_there_yet_is_waited_for(tmp_path, monkeypatch):
    stand_in("cv2", tmp_path, monkeypatch)
    link = tmp_path / "by-id"
    with opened(f"camera:{link}") as camera:
        stream = camera.samples()
        idle_until(stream, lambda: camera.health.counts["open"] >= 2)
        assert "there is no" in camera.health.sentence
        link.symlink_to("/dev/null")
        take(stream, 1)
        assert camera.health.state == "live"
        stream.close()


def test_a_replugged_camera_is_found_by_its_stable_name(tmp_path, monkeypatch):
    """The kernel gave it another number."""
    folder = stand_in("cv2", tmp_path, monkeypatch)
    link = tmp_path / "by-id"
    link.symlink_to("/dev/null")
    with opened(f"camera:{link}") as camera:
        stream = camera.samples()
        take(stream, 1)
        link.unlink()
        link.symlink_to("/dev/zero")
        (folder / "broken").touch()
        idle_until(stream, lambda: camera.health.state == "failing")
        (folder / "broken").unlink()
        take(stream, 1)
        assert (folder / "opened").read_text().splitlines() == ["/dev/null", "/dev/zero"]
        stream.close()


def decodes(data: bytes) -> bool:
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return picture is not None and jpeg(picture) != b"" and data in PICTURES


@pytest.mark.parametrize("with_length", [True, False])
def test_a_stream_cut_in_the_middle_of_a_picture_goes_on_with_whole_ones(with_length, caplog):
    def cut_short(send):
        for number in range(4):
            send(part(PICTURES[number], with_length))
            time.sleep(0.05)
        whole = part(PICTURES[4], with_length)
        send(whole[: len(whole) // 2])

    with MjpegServer(cut_short) as server, opened(server.url()) as camera:
        samples: list[Sample] = []
        stream = camera.samples()
        while camera.health.counts["reconnects"] < 1:
            samples += take(stream, 1)
        assert all(decodes(sample.data) for sample in samples)
        assert server.connections >= 2
        assert camera.health.counts["read"] >= 1
        assert told(caplog) <= 2  # torn and ended, once each
        stream.close()


def test_torn_pictures_in_a_stream_are_counted_and_left_out(caplog):
    def every_third_torn(send):
        for number in range(100_000):
            data = PICTURES[number % 20]
            send(part(data[: len(data) // 2] if number % 3 == 2 else data))
            time.sleep(0.03)

    with MjpegServer(every_third_torn) as server, opened(server.url()) as camera:
        stream = camera.samples()
        samples = collect(stream, lambda _: camera.health.counts["torn"] >= 3)
        assert all(decodes(sample.data) for sample in samples)
        assert camera.health.state == "live"
        assert told(caplog) == 1
        stream.close()


def test_an_http_server_that_is_restarted_is_found_again(caplog):
    server = MjpegServer(endless)
    with server:
        url = server.url()
        with opened(url) as camera:
            stream = camera.samples()
            take(stream, 3)
            server.__exit__()
            idle_until(stream, lambda: camera.health.counts["open"] >= 1)
            assert "Connection refused" in camera.health.sentence
            server.__enter__()
            take(stream, 3)
            assert camera.health.state == "live"
            assert camera.health.counts["reconnects"] >= 1
            assert told(caplog) <= 2
            stream.close()


def test_an_rtsp_server_that_is_killed_and_restarted_is_found_again():
    with (
        rtsp_server() as (port, kill),
        opened(f"rtsp://127.0.0.1:{port}/yard", stall_s=5.0) as camera,
    ):
        stream = camera.samples()
        take(stream, 3)
        kill()
        idle_until(stream, lambda: camera.health.state == "failing")
        with rtsp_server(port):
            take(stream, 3)
            assert camera.health.state == "live"
        stream.close()


def test_a_frozen_picture_is_noticed_and_the_camera_opened_again(caplog):
    def frozen(send):
        while True:
            send(part(PICTURES[0]))
            time.sleep(0.02)

    camera_config = CameraConfig(freeze_s=0.4)
    with MjpegServer(frozen) as server, opened(server.url(), camera=camera_config) as camera:
        stream = camera.samples()
        begun_s = time.monotonic()
        samples = collect(stream, lambda _: server.connections >= 3)
        assert samples, "input goes on: an unchanging picture is still one"
        frozen_count = camera.health.counts["frozen"]
        assert frozen_count >= 2
        assert frozen_count <= (time.monotonic() - begun_s) / 0.4, "freeze_s passes each time"
        assert camera.health.counts["reconnects"] == frozen_count
        assert told(caplog) <= 2
        stream.close()


@pytest.mark.slow
def test_clips_never_span_a_reopening():
    connection = 0

    def marked(send):
        nonlocal connection
        connection += 1
        for number in range(7):
            send(part(jpeg(noisy(100 * connection + number))))
            time.sleep(0.04)

    clips = VideoSpec(frames=3, hop=1)
    with MjpegServer(marked) as server, opened(server.url(), clips) as camera:
        stream = camera.samples()
        samples = collect(stream, lambda _: camera.health.counts["reconnects"] >= 2)
        stream.close()
    origin = {jpeg(noisy(100 * c + n)): c for c in range(1, connection + 1) for n in range(7)}
    assert samples
    for sample in samples:
        assert len({origin[data] for data in sample.data}) == 1


@pytest.mark.slow
def test_a_gstreamer_pipeline_that_ends_or_dies_is_started_again():
    need("gst-launch-1.0")
    with opened("gst:videotestsrc is-live=true pattern=snow num-buffers=20") as camera:
        stream = camera.samples()
        take(stream, 1)
        idle_until(stream, lambda: camera.health.state == "failing")
        assert camera.health.sentence == "gst:videotestsrc stopped: the pipeline has ended"
        take(stream, 1)
        launcher = next(p for p in children() if "gst-launch" in name_of(p))
        os.kill(launcher, signal.SIGKILL)
        idle_until(stream, lambda: camera.health.state == "failing")
        take(stream, 1)
        stream.close()


@pytest.mark.slow
def test_a_pipeline_whose_pictures_change_their_size_is_started_again(tmp_path):
    need("gst-launch-1.0")
    for number in range(9):
        frame = noisy(number, 90, 160 if number < 6 else 128)
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(frame))
    pictures = f"multifilesrc location={tmp_path}/%d.jpg stop-index=8 caps=image/jpeg,framerate=5/1"
    with opened(f"gst:{pictures} ! jpegdec ! identity sync=true") as camera:
        stream = camera.samples()
        idle_until(stream, lambda: "size of its pictures changed" in camera.health.sentence)
        assert take(stream, 1)[0].data.shape == (90, 160, 3)
        stream.close()


def name_of(process: int) -> str:
    return Path(f"/proc/{process}/comm").read_text()


@pytest.mark.slow
def test_a_hung_pipeline_is_killed_with_its_launcher():
    need("gst-launch-1.0")
    with opened("gst:videotestsrc is-live=true pattern=snow", stall_s=1.0) as camera:
        stream = camera.samples()
        take(stream, 1)
        before = children()
        assert len(before) == 2
        for process in before:
            os.kill(process, signal.SIGSTOP)
        idle_until(stream, lambda: camera.health.counts["stall"] == 1)
        take(stream, 1)
        assert wait_until(lambda: all(state(process) in ("", "Z") for process in before))
        stream.close()


def test_closing_from_another_thread_ends_the_inputs():
    with MjpegServer(endless) as server, opened(server.url()) as camera:
        closer = threading.Timer(0.3, camera.close)
        closer.start()
        for _ in camera.samples():
            pass
        closer.join()
        assert camera.health.state == "ended"
        assert children() == []


def test_closing_while_a_camera_does_not_open_ends_the_inputs():
    def says_nothing(send):
        while server.open:
            time.sleep(0.05)

    with MjpegServer(says_nothing) as server, opened(server.url()) as camera:
        server.status = ""
        closer = threading.Timer(0.5, camera.close)
        closer.start()
        for _ in camera.samples():
            pass
        closer.join()
        assert camera.health.state == "ended"


@pytest.mark.parametrize("address", ["http", "gst:videotestsrc is-live=true pattern=snow"])
def test_capture_processes_die_with_their_parent(address):
    need("gst-launch-1.0")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from camera_servers import opened, take\n"
        "with opened(sys.argv[2]) as camera:\n"
        "    stream = camera.samples()\n"
        "    take(stream, 1)\n"
        "    print('open', flush=True)\n"
        "    for _ in stream: pass\n"
    )
    here = str(Path(__file__).parent)
    with MjpegServer(endless) as server:
        place = server.url() if address == "http" else address
        with subprocess.Popen(
            [sys.executable, "-c", program, here, place], stdout=subprocess.PIPE, text=True
        ) as parent:
            assert parent.stdout is not None
            assert parent.stdout.readline() == "open\n"
            captures = children(parent.pid)
            assert captures
            parent.kill()
        assert wait_until(lambda: all(state(process) in ("", "Z") for process in captures))
