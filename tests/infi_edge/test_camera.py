"""Live cameras: addresses, network MJPEG, devices, GStreamer, RTSP; what is given, and when."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from camera_servers import (
    BOUNDARY,
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
    take,
)

from infi_edge.capture import camera_http
from infi_edge.capture.address import open_source
from infi_edge.capture.camera import parse_address
from infi_edge.capture.camera_gst import read_y4m
from infi_edge.capture.camera_http import read_parts
from infi_edge.capture.camera_process import bgr_of_i420
from infi_edge.capture.camera_protocol import CaptureError
from infi_edge.config import CameraConfig, SourceConfig
from infi_edge.errors import ConfigError, SourceError
from infi_edge.preprocess import AudioSpec, VideoSpec


def config(address: str) -> SourceConfig:
    return SourceConfig(address=address, filter="x.infi", model="x")


@pytest.mark.parametrize(
    ("address", "kind", "place"),
    [
        ("camera:0", "v4l2", "/dev/video0"),
        ("camera:12", "v4l2", "/dev/video12"),
        ("camera:/dev/v4l/by-id/usb-x-index0", "v4l2", "/dev/v4l/by-id/usb-x-index0"),
        ("rtsp://h:554/a", "rtsp", "rtsp://h:554/a"),
        ("rtsps://h/a", "rtsp", "rtsps://h/a"),
        ("camera:rtsp://h/a", "rtsp", "rtsp://h/a"),
        ("http://h/a", "http", "http://h/a"),
        ("https://h/a", "http", "https://h/a"),
        ("camera:rtmp://h/a", "stream", "rtmp://h/a"),
        ("picamera2:", "picamera2", "0"),
        ("picamera2:1", "picamera2", "1"),
    ],
)
def test_an_address_names_a_camera(address, kind, place):
    shown, settings = parse_address(config(address))
    assert (settings.kind, settings.address) == (kind, place)
    assert shown == address


@pytest.mark.parametrize(
    "address", ["camera:", "camera:front", "camera:-1", "picamera2:x", "rtsp:x", "gst:", "gst:a 'b"]
)
def test_an_address_that_is_no_camera_is_refused(address):
    with pytest.raises(ConfigError):
        open_source("yard", config(address), VideoSpec())


def test_a_filter_of_sound_gets_no_camera():
    with pytest.raises(ConfigError, match="audio"):
        open_source("yard", config("camera:0"), AudioSpec())


@pytest.mark.parametrize(
    "address", ["rtsp://me:secret@h/a", "http://h/a?user=me&password=secret", "gst:x pw=secret ! y"]
)
def test_the_shown_name_holds_no_credentials(address):
    shown, _ = parse_address(config(address))
    assert "secret" not in shown


def test_a_pipeline_written_for_opencv_loses_its_sink():
    _, settings = parse_address(config("gst:a ! video/x-raw(memory:NVMM) ! b ! appsink drop=true"))
    assert settings.pipeline == ("a", "!", "video/x-raw(memory:NVMM)", "!", "b")


def test_jpegs_of_the_network_come_as_they_are():
    with MjpegServer(endless) as server, opened(server.url()) as camera:
        stream = camera.samples()
        samples = take(stream, 5)
        assert all(sample.data in PICTURES for sample in samples)
        assert [sample.index for sample in samples] == [0, 1, 2, 3, 4]
        assert all(sample.source == "yard" for sample in samples)
        times_s = [sample.time_s for sample in samples]
        assert times_s == sorted(set(times_s))
        assert times_s[-1] <= camera.now_s()
        assert camera.health.state == "live"


@pytest.mark.parametrize(
    ("content_type", "with_length"),
    [
        (f"multipart/x-mixed-replace; boundary={BOUNDARY}", False),
        (f"multipart/x-mixed-replace;boundary=--{BOUNDARY}", True),
        (f'multipart/x-mixed-replace; boundary="{BOUNDARY}"', False),
    ],
)
def test_the_ways_servers_mark_their_parts_are_understood(content_type, with_length):
    def script(send):
        for number in range(10_000):
            send(part(PICTURES[number % 20], with_length))
            time.sleep(0.02)

    with MjpegServer(script) as server, opened(server.url()) as camera:
        server.content_type = content_type
        assert all(sample.data in PICTURES for sample in take(camera.samples(), 5))
        assert camera.health.counts["torn"] == 0


@pytest.mark.parametrize("with_length", [True, False])
def test_a_part_without_end_is_given_up(with_length, monkeypatch, tmp_path):
    path = tmp_path / "stream"
    path.write_bytes(part(b"x\n" * 1000, with_length))
    monkeypatch.setattr(camera_http, "MAX_PART_BYTES", 1999)
    with path.open("rb") as stream, pytest.raises(CaptureError, match="of 2000 bytes"):
        read_parts(stream, BOUNDARY, lambda data: None)


def test_pictures_are_decoded_where_jpegs_are_not_kept():
    decode = CameraConfig(keep_jpeg=False)
    with MjpegServer(endless) as server, opened(server.url(), camera=decode) as camera:
        [sample] = take(camera.samples(), 1)
        assert sample.data.shape == (120, 160, 3)


def test_a_password_opens_the_camera_and_shows_nowhere(caplog):
    caplog.set_level("DEBUG")
    with MjpegServer(endless, user="me:se:cret/1") as server:
        with opened(server.url("me:se%3Acret%2F1@")) as camera:
            stream = camera.samples()
            take(stream, 1)
            [child] = children()
            for name in ("cmdline", "environ"):
                assert b"cret" not in Path(f"/proc/{child}/{name}").read_bytes()
        with opened(server.url("me:wrongcret@"), must_open=True) as camera:
            with pytest.raises(SourceError, match="401") as error:
                next(camera.samples())
            assert "user and password" in str(error.value)
            assert "cret" not in str(error.value)
    assert "cret" not in caplog.text


def test_a_certificate_that_nobody_signed_is_refused(tmp_path, monkeypatch):
    need("openssl")
    names = "-subj /CN=camera -addext subjectAltName=IP:127.0.0.1"
    make = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out certificate {names}"
    subprocess.run(make.split(), cwd=tmp_path, capture_output=True, check=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    with MjpegServer(endless, tls=tls) as server:
        with (
            opened(server.url(), must_open=True) as camera,
            pytest.raises(SourceError, match="certificate"),
        ):
            next(camera.samples())
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate"))
        with opened(server.url()) as camera:
            assert take(camera.samples(), 1)[0].data in PICTURES


def test_other_video_of_a_web_server_is_ffmpegs(tmp_path):
    need("ffmpeg")
    video = "-v error -f lavfi -i testsrc2=size=160x120:rate=25 -t 4 -c:v mpeg2video video.ts"
    subprocess.run(["ffmpeg", *video.split()], cwd=tmp_path, check=True)

    def video_file(send):
        send((tmp_path / "video.ts").read_bytes())

    with MjpegServer(video_file) as server, opened(server.url()) as camera:
        server.content_type = "video/mp2t"
        assert take(camera.samples(), 1)[0].data.shape == (120, 160, 3)


@pytest.mark.parametrize(
    ("status", "content_type", "words"),
    [
        ("404 Not Found", "text/html", "404 Not Found"),
        ("200 OK", "image/jpeg", "single pictures"),
        ("200 OK", "text/html", "no video"),
    ],
)
def test_what_is_no_stream_is_told_in_a_sentence(status, content_type, words):
    def page(send):
        send(b"<html>" + bytes(2000))

    with MjpegServer(page) as server:
        server.status, server.content_type = status, content_type
        with opened(server.url(), must_open=True) as camera:
            with pytest.raises(SourceError, match=words) as error:
                next(camera.samples())
            assert str(error.value).startswith(f"http://127.0.0.1:{server.port}/stream cannot be")


def test_a_slow_gate_gets_the_newest_picture_and_knows_what_it_missed():
    sent = [jpeg(noisy(number)) for number in range(500)]
    place = {data: number for number, data in enumerate(sent)}

    def numbered(send):
        for data in sent:
            send(part(data))
            time.sleep(0.02)

    with MjpegServer(numbered) as server, opened(server.url()) as camera:
        stream = camera.samples()
        [before] = take(stream, 1)
        take(stream, 3)
        dropped, newest = camera.health.counts["dropped"], 0
        for _ in range(3):
            time.sleep(0.3)
            [sample] = take(stream, 1)
            assert place[sample.data] > newest
            newest = place[sample.data]
        assert camera.health.counts["dropped"] > dropped + 10
        assert camera.health.counts["dropped"] + sample.index == newest
        assert place[before.data] < newest


def test_no_more_pictures_come_than_were_asked_for():
    with MjpegServer(endless) as server, opened(server.url(), rate_hz=10.0) as camera:
        samples = take(camera.samples(), 6)
        assert samples[-1].time_s - samples[0].time_s >= 0.4


def test_a_pause_that_was_asked_for_is_no_stall():
    seldom = {"rate_hz": 0.8, "stall_s": 1.0}
    with MjpegServer(endless) as server, opened(server.url(), **seldom) as camera:
        take(camera.samples(), 2)
        assert camera.health.counts["stall"] == 0


def test_clips_of_a_live_camera_overlap():
    clips = VideoSpec(frames=4, hop=2)
    with MjpegServer(endless) as server, opened(server.url(), clips) as camera:
        first, second = take(camera.samples(), 2)
        assert len(first.data) == len(second.data) == 4
        assert first.data[2:] == second.data[:2]
        assert second.time_s > first.time_s


@pytest.mark.parametrize(
    "size", [(160, 90), (161, 91), (162, 90), (163, 93), (164, 90), (165, 90), (166, 91), (167, 90)]
)
def test_gstreamer_pictures_of_any_size_are_as_gstreamer_makes_them(size):
    need("gst-launch-1.0")
    width, height = size
    caps = f"video/x-raw,width={width},height={height + 40},format=BGR"
    live = f"videotestsrc is-live=true pattern=smpte75 ! {caps} ! videocrop bottom=40"
    with opened(f"gst:{live}") as camera:
        [sample] = take(camera.samples(), 1)
    assert sample.data.shape == (height, width, 3)
    pipeline = f"videotestsrc num-buffers=1 pattern=smpte75 ! {caps} ! fdsink"
    plain = subprocess.run(
        ["gst-launch-1.0", "-q", *pipeline.split()], capture_output=True, check=True
    ).stdout
    rows = np.frombuffer(plain, np.uint8).reshape(height + 40, -1)[:height]
    wanted = rows[:, : width * 3].reshape(height, width, 3)  # its rows are padded to 4 bytes
    difference = abs(sample.data.astype(int) - wanted)
    assert np.percentile(difference, 90) <= 4, "all but the edges of the bars"


@pytest.mark.parametrize(
    ("pipeline", "words"),
    [
        ("videotestsrc ! nonsense", 'no element "nonsense"'),
        ("filesrc location=/nowhere.y4m ! y4mdec", "GstFileSrc:filesrc0: Resource not found"),
    ],
)
def test_what_gstreamer_says_reaches_the_user(pipeline, words):
    need("gst-launch-1.0")
    with (
        opened(f"gst:{pipeline}", must_open=True) as camera,
        pytest.raises(SourceError, match=words),
    ):
        next(camera.samples())


@pytest.mark.parametrize("size", [(8, 8), (6, 4), (5, 3), (161, 91), (166, 90)])
@pytest.mark.parametrize("padded", [True, False])
def test_pictures_come_out_of_packed_and_of_padded_y4m(size, padded, tmp_path):
    width, height = size
    rows, chroma = (height + 1) // 2, (width + 1) // 2
    stride = (width + 3) // 4 * 4 if padded else width
    chroma_stride = (chroma + 3) // 4 * 4 if padded else chroma
    luma = np.zeros((2 * rows if padded else height, stride), np.uint8)
    luma[:height, :width] = 180
    colours = np.zeros((2, rows, chroma_stride), np.uint8)
    colours[0, :, :chroma], colours[1, :, :chroma] = 90, 140
    picture = b"FRAME\n" + luma.tobytes() + colours.tobytes()
    path = tmp_path / "y4m"
    path.write_bytes(f"YUV4MPEG2 C420 W{width} H{height} F30:1\n".encode() + 4 * picture)
    given = []

    class Taker:
        def opened(self):
            pass

        def put(self, picture):
            given.append(bgr_of_i420(np.array(picture.pixels), height, width))

    with path.open("rb") as stream:
        read_y4m(stream, Taker())
    wanted = cv2.cvtColor(np.array([[[180, 140, 90]]], np.uint8), cv2.COLOR_YCrCb2BGR)
    assert len(given) in (2, 3, 4)
    for frame in given:
        assert frame.shape == (height, width, 3)
        assert (frame == frame[0, 0]).all()
        assert frame[0, 0].argmax() == wanted[0, 0].argmax()


def test_an_absent_gstreamer_is_named_with_its_package(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        opened("gst:videotestsrc", must_open=True) as camera,
        pytest.raises(SourceError, match=r"apt install gstreamer1.0-tools"),
    ):
        next(camera.samples())


def test_rtsp_gives_frames():
    with rtsp_server() as (port, _), opened(f"rtsp://127.0.0.1:{port}/yard") as camera:
        for sample in take(camera.samples(), 3):
            assert sample.data.shape == (240, 320, 3)


def test_a_device_gives_its_jpegs_untouched(tmp_path, monkeypatch):
    stand_in("cv2", tmp_path, monkeypatch)
    link = tmp_path / "by-id"
    link.symlink_to("/dev/null")  # some device
    with opened(f"camera:{link}") as camera:
        assert {sample.data for sample in take(camera.samples(), 4)} <= set(PICTURES[:2])
    assert (tmp_path / "opened").read_text() == "/dev/null\n"


def test_a_device_without_mjpeg_gives_frames_of_the_size_asked_for(tmp_path, monkeypatch):
    stand_in("cv2", tmp_path, monkeypatch)
    (tmp_path / "no-mjpg").touch()
    with opened("camera:/dev/null", camera=CameraConfig(width=40, height=36)) as camera:
        assert take(camera.samples(), 1)[0].data.shape == (36, 40, 3)


def test_a_missing_device_is_told_with_what_to_do():
    with opened("camera:77", must_open=True) as camera, pytest.raises(SourceError) as error:
        next(camera.samples())
    assert str(error.value) == (
        "camera:77 cannot be opened: there is no /dev/video77; "
        "see 'infi-edge doctor' for the cameras found here"
    )


def test_a_device_that_others_use_is_told(tmp_path, monkeypatch):
    stand_in("cv2", tmp_path, monkeypatch)
    (tmp_path / "busy").touch()
    with (
        opened("camera:/dev/null", must_open=True) as camera,
        pytest.raises(SourceError, match="another program"),
    ):
        next(camera.samples())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_a_device_that_may_not_be_read_says_which_group_to_join():
    program = (
        "import os, sys; sys.argv[0] = 'x'\n"
        "from infi_edge.capture.camera_devices import CaptureError, _check_device\n"
        "os.chdir('/'); os.setuid(65534)\n"
        "try:\n    _check_device('x', sys.argv[1])\n"
        "except CaptureError as error:\n    print(error)"
    )
    with tempfile.NamedTemporaryFile(dir="/tmp") as device:
        command = [sys.executable, "-c", program, device.name]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "add the user to group video" in said.stdout, said.stderr


def test_a_recording_is_no_device(tmp_path):
    path = tmp_path / "clip.avi"
    path.touch()
    with opened(f"camera:{path}", must_open=True) as camera, pytest.raises(SourceError) as error:
        next(camera.samples())
    assert "a recording is given by its path alone" in str(error.value)


def test_picamera2_gives_frames_in_opencvs_order(tmp_path, monkeypatch):
    stand_in("picamera2", tmp_path, monkeypatch)
    asked = CameraConfig(width=64, height=48, fps=50.0)
    with opened("picamera2:1", camera=asked) as camera:
        for sample in take(camera.samples(), 2):
            assert sample.data.shape == (48, 64, 3)
            assert sample.data[1, 1].tolist() == [10, 60, 200]


def test_an_absent_picamera2_is_named_with_its_package():
    with opened("picamera2:0", must_open=True) as camera, pytest.raises(SourceError) as error:
        next(camera.samples())
    assert "apt install python3-picamera2" in str(error.value)
    assert "--system-site-packages" in str(error.value)


def test_ffmpegs_mjpeg_server_is_understood():
    need("ffmpeg")
    with MjpegServer(endless) as server:  # for a port that is free now
        port = server.port
    url = f"http://127.0.0.1:{port}/"
    make = "-v error -re -f lavfi -i testsrc2=size=160x120:rate=25 -vf noise=alls=20:allf=t"
    with subprocess.Popen(["ffmpeg", *make.split(), *f"-f mpjpeg -listen 1 {url}".split()]) as peer:
        try:
            with opened(url) as camera:
                samples = collect(camera.samples(), lambda samples: len(samples) >= 3)
                for sample in samples:
                    frame = cv2.imdecode(np.frombuffer(sample.data, np.uint8), cv2.IMREAD_COLOR)
                    assert frame.shape == (120, 160, 3)
        finally:
            peer.kill()
