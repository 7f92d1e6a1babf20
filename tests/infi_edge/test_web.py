"""The page's server: what it answers, and what can be changed through it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from infi_edge.config import WebConfig
from infi_edge.web.server import WebServer
from tests.pretend_control import PretendControl
from tests.web_client import JSON, ask, post


@pytest.fixture
def control() -> PretendControl:
    return PretendControl()


@pytest.fixture
def site(control: PretendControl) -> Iterator[WebServer]:
    """The server, open to all of this machine, with pictures."""
    server = WebServer(control, WebConfig(bind="127.0.0.1:0", pictures=True))
    server.start()
    yield server
    server.close()


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/", "text/html"),
        ("/page.js", "text/javascript"),
        ("/source.js", "text/javascript"),
        ("/learned.js", "text/javascript"),
        ("/plot.js", "text/javascript"),
        ("/format.js", "text/javascript"),
        ("/page.css", "text/css"),
        ("/icon.svg", "image/svg+xml"),
        ("/api/status", "application/json"),
        ("/api/history", "application/json"),
        ("/metrics", "text/plain"),
        ("/api/source/yard/picture", "image/jpeg"),
    ],
)
def test_everything_is_served_with_its_type_and_the_guards(
    site: WebServer, path: str, content_type: str
) -> None:
    got = ask(site, path)
    assert got.status == 200
    assert got.body
    assert got.headers["Content-Type"].startswith(content_type)
    policy = got.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert got.headers["X-Content-Type-Options"] == "nosniff"
    assert got.headers["Referrer-Policy"] == "no-referrer"
    assert got.headers["Cache-Control"] == "no-store"
    assert "Server" not in got.headers
    assert "Access-Control-Allow-Origin" not in got.headers


def test_the_status_has_what_the_page_needs(site: WebServer) -> None:
    status = ask(site, "/api/status").json
    yard, gate, _ = status["sources"]  # type: ignore[misc]
    assert yard["inputs"] == 413_700
    assert yard["filtering_rate"] == pytest.approx(0.85175, abs=1e-4)
    assert yard["model_saved_s"] == pytest.approx(15307.9, abs=0.1)
    assert yard["filter_s"]["count"] == 100
    assert yard["filter_s"]["p99_s"] == 0.0005
    assert yard["points"][0]["filtering_rate"] == 0.83
    assert yard["last_value"] is True
    assert gate["sentence"].startswith("rtsp://***@")
    assert status["sinks"][1]["queued"] == 17  # type: ignore[index]
    assert status["pictures"] is True
    assert "history" not in yard


def test_the_history_is_of_every_source(site: WebServer) -> None:
    history = ask(site, "/api/history").json
    assert list(history) == ["yard", "gate", "hum"]
    minute = history["hum"][-1]  # type: ignore[index]
    assert minute.keys() == {"at_s", "inputs", "filtered", "wanted", "errors", "model_s"}


def test_credentials_in_the_status_do_not_come_out(
    site: WebServer, control: PretendControl
) -> None:
    for source in control.current.sources:
        source.address = "rtsp://root:hunter2@10.0.0.7/s?token=hunter2"
        source.sentence = "rtsp://root:hunter2@10.0.0.7/s?token=hunter2 is gone"
    control.current.sinks[0].sentence = "http://u:hunter2@host/ answers 500"
    for path in ("/api/status", "/api/history", "/metrics", "/"):
        assert b"hunter2" not in ask(site, path).body


def test_values_that_json_does_not_know_are_still_told(
    site: WebServer, control: PretendControl
) -> None:
    source = control.current.sources[0]
    source.last_value = {"count": np.int64(3), "share": float("nan")}
    source.model_s.observe(1000.0)
    yard = ask(site, "/api/status").json["sources"][0]  # type: ignore[index]
    assert yard["last_value"] == {"count": "3", "share": None}
    assert yard["model_s"]["p99_s"] is None


def test_the_status_can_be_read_while_everything_changes(
    site: WebServer, control: PretendControl
) -> None:
    done = threading.Event()

    def work() -> None:
        source, i = control.current.sources[0], 0
        while not done.is_set():
            i += 1
            source.errors[f"cause{i % 5000}"] += 1
            source.model_s.observe(0.01)
            source.history.append(source.history.pop(0))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(15):
            assert ask(site, "/api/status").status == 200
            assert ask(site, "/api/history").status == 200
            assert ask(site, "/metrics").status == 200
    finally:
        done.set()
        thread.join()


def test_a_picture_is_made_small(site: WebServer, control: PretendControl) -> None:
    def served() -> tuple[int, int]:
        data = np.frombuffer(ask(site, "/api/source/yard/picture").body, np.uint8)
        height, width = cv2.imdecode(data, cv2.IMREAD_COLOR).shape[:2]
        return width, height

    assert served() == (640, 360)
    control.frames["yard"] = np.zeros((120, 160), np.uint8)
    assert served() == (160, 120)
    done, jpeg = cv2.imencode(".jpg", np.full((1080, 1920, 3), 90, np.uint8))
    assert done
    control.frames["yard"] = jpeg.tobytes()
    assert served() == (480, 270)


@pytest.mark.parametrize("frame", [None, b"", b"\xff\xd8\xff torn", b"<svg onload=alert(1)>"])
def test_no_picture_is_no_error(
    site: WebServer, control: PretendControl, frame: bytes | None
) -> None:
    control.frames["yard"] = frame
    got = ask(site, "/api/source/yard/picture")
    assert (got.status, got.body) == (204, b"")


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/page.html/", "/../page.py", "/%2e%2e/app.py", "/api/source/no/picture"],
)
def test_unknown_paths_are_404(site: WebServer, path: str) -> None:
    got = ask(site, path)
    assert got.status == 404
    assert got.json.keys() == {"error"}


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/", "GET, HEAD"),
        ("DELETE", "/api/status", "GET, HEAD"),
        ("POST", "/metrics", "GET, HEAD"),
        ("PUT", "/api/source/yard/picture", "GET, HEAD"),
        ("GET", "/api/source/yard/enabled", "POST"),
        ("GET", "/api/source/yard/target?measure=accuracy&target=0.95", "POST"),
        ("HEAD", "/api/source/yard/enabled", "POST"),
    ],
)
def test_a_wrong_method_changes_nothing(
    site: WebServer, control: PretendControl, method: str, path: str, allow: str
) -> None:
    got = ask(site, path, method)
    assert got.status == 405
    assert got.headers["Allow"] == allow
    assert control.changed == []


def test_head_is_get_without_a_body(site: WebServer) -> None:
    got = ask(site, "/api/status", "HEAD")
    assert (got.status, got.body) == (200, b"")


def test_the_filter_is_switched_by_post(site: WebServer, control: PretendControl) -> None:
    got = post(site, "/api/source/yard/enabled", {"enabled": False})
    assert (got.status, got.json) == (200, {"enabled": False})
    assert control.changed == [("yard", False)]
    assert not control.current.sources[0].enabled


def test_the_target_is_set_by_post(site: WebServer, control: PretendControl) -> None:
    got = post(site, "/api/source/yard/target", {"measure": "accuracy", "target": 0.95})
    assert got.status == 200
    assert got.json["filtering_rate"] == 0.74
    assert control.changed == [("yard", "accuracy", 0.95)]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("enabled", "", 400, "body is wrong"),
        ("enabled", "{", 400, "body is wrong"),
        ("enabled", "\x00\xff", 400, "body is wrong"),
        ("enabled", "[" * 2000, 400, "body is wrong"),
        ("enabled", '{"enabled": 1}', 400, "bool"),
        ("enabled", '{"enabled": true, "more": 1}', 400, "more"),
        ("target", '{"measure": "accuracy", "target": 2}', 400, "share"),
        ("target", '{"measure": "accuracy", "target": NaN}', 400, "body is wrong"),
        ("target", '{"measure": "speed", "target": 0.9}', 400, "measure"),
        ("target", '{"measure": "accuracy", "target": 0.123}', 400, "no row"),
        ("target", '{"measure": "accuracy", "target": ' + "9" * 5000 + "}", 413, ""),
    ],
)
def test_a_bad_body_is_refused_in_one_sentence(
    site: WebServer, control: PretendControl, path: str, body: str, status: int, words: str
) -> None:
    got = ask(site, f"/api/source/yard/{path}", "POST", body.encode("latin-1"), JSON)
    assert got.status == status
    if status != 413:  # waitress answers that before the application is asked
        assert words in str(got.json["error"])
    assert control.changed == []


def test_a_source_that_is_not_there_is_404(site: WebServer, control: PretendControl) -> None:
    assert post(site, "/api/source/attic/enabled", {"enabled": False}).status == 404
    assert control.changed == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({**JSON, "Origin": "http://evil.example"}, 403),
        ({**JSON, "Origin": "null"}, 403),
        ({**JSON, "Sec-Fetch-Site": "cross-site"}, 403),
        ({**JSON, "Sec-Fetch-Site": "same-site"}, 403),
        ({**JSON, "Sec-Fetch-Site": "none"}, 403),
        ({**JSON, "Origin": "http://localhost:1", "Host": "localhost:2"}, 403),
    ],
)
def test_another_sites_page_cannot_change_anything(
    site: WebServer, control: PretendControl, headers: dict[str, str], status: int
) -> None:
    got = ask(site, "/api/source/yard/enabled", "POST", '{"enabled": false}', headers)
    assert got.status == status
    assert control.changed == []


def test_its_own_page_can(site: WebServer, control: PretendControl) -> None:
    path, body = "/api/source/yard/enabled", {"enabled": False}
    assert post(site, path, body, Origin=site.address).status == 200
    assert post(site, path, body, Sec_Fetch_Site="same-origin").status == 200
    assert len(control.changed) == 2
