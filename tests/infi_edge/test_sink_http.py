"""HTTP POST: what the server gets, and what waits while it is away."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from infi_edge.capture.source import Backoff
from infi_edge.config import HttpSinkConfig
from infi_edge.errors import ConfigError
from infi_edge.events import Event
from infi_edge.sinks.http import MOST_TRIES, HttpPost
from infi_edge.sinks.outlet import NotNow, Outlet
from infi_edge.types import Action, Result, Sample

PATIENCE_S = 30.0
SOON = Backoff(0.01, 0.05)


class Server:
    """A server in this process that answers with the statuses it is told, then with 200."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.statuses: list[int] = []
        self.answer = b"thanks"
        self.connections = 0
        self.hang = threading.Event()
        self.hang.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                outer.connections += 1
                super().setup()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.hang.wait(PATIENCE_S)
                status = outer.statuses.pop(0) if outer.statuses else 200
                outer.paths.append(self.path)
                outer.headers.append(dict(self.headers))
                if status == 200:
                    outer.bodies.append(json.loads(body))
                self.send_response(status)
                self.send_header("Content-Length", str(len(outer.answer)))
                self.end_headers()
                self.wfile.write(outer.answer)

            def log_message(self, *args: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self.hang.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def sink_of(port: int, path: str = "/", backoff: Backoff = SOON, **config: Any) -> HttpPost:
    return HttpPost(HttpSinkConfig(url=f"http://127.0.0.1:{port}{path}", **config), backoff)


def event_of(name: str) -> Event:
    return Event("begun", name, "yard", 1, "", "", 0.0)


def until(condition: Callable[[], Any]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, "it did not happen"
        time.sleep(0.005)


def test_results_events_and_errors_are_posted_over_one_connection(server: Server) -> None:
    sink = sink_of(server.port, "/hook?source=a", results=True)
    sample = Sample(None, 1.0, 5, "yard")
    sink.write(Result(2, Action.INFER, "why", 5, 1.0, "yard"), sample)
    sink.event(event_of("e"))
    sink.error("yard", sample, "wrong")
    sink.close()
    result, event, error = server.bodies
    assert (result["value"], event["id"], error["error"]) == (2, "e", "wrong")
    assert server.paths == ["/hook?source=a"] * 3
    assert server.headers[0]["Content-Type"] == "application/json"
    assert "Authorization" not in server.headers[0]
    assert server.connections == 1
    assert sink.counts["sent"] == 3


@pytest.mark.parametrize("answer", [b"", b"x" * (1 << 20)], ids=["empty", "huge"])
def test_answers_of_any_length_are_fine(server: Server, answer: bytes) -> None:
    server.answer = answer
    sink = sink_of(server.port)
    for name in "abc":
        sink.event(event_of(name))
    sink.close()
    assert [body["id"] for body in server.bodies] == ["a", "b", "c"]
    assert server.connections == (1 if not answer else 3)


def test_the_token_is_read_at_each_use(server: Server, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    sink = sink_of(server.port, token_file=str(token))
    sink.event(event_of("a"))
    token.write_text("second\n")
    sink.event(event_of("b"))
    sink.close()
    assert [h["Authorization"] for h in server.headers] == ["Bearer first", "Bearer second"]


def test_a_password_in_the_url_is_sent_as_a_header_and_never_told(server: Server) -> None:
    url = f"http://me:se%20cret@127.0.0.1:{server.port}/"
    sink = HttpPost(HttpSinkConfig(url=url), SOON)
    sink.event(event_of("a"))
    assert server.headers[0]["Authorization"] == "Basic bWU6c2UgY3JldA=="
    server.statuses = [403]
    sink.event(event_of("b"))
    assert "cret" not in sink.sentence
    sink.close()


@pytest.mark.parametrize("status", [301, 400, 401, 404])
def test_an_answer_that_refuses_a_message_is_counted_and_not_tried_again(
    server: Server, status: int
) -> None:
    server.statuses = [status]
    sink = sink_of(server.port)
    sink.event(event_of("a"))
    assert f"answers {status}" in sink.sentence
    sink.event(event_of("b"))
    assert sink.sentence == ""
    assert [body["id"] for body in server.bodies] == ["b"]
    assert (sink.counts["failed"], sink.counts["sent"]) == (1, 1)
    sink.close()


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_server_in_trouble_gets_the_message_again(server: Server, status: int) -> None:
    server.statuses = [status, status]
    outlet = Outlet("web", sink_of(server.port), 10, 0.0)
    outlet.put_event(event_of("a"))
    outlet.put_event(event_of("b"))
    assert outlet.drain(PATIENCE_S)
    status_now = outlet.status()
    outlet.close()
    assert [body["id"] for body in server.bodies] == ["a", "b"]
    assert status_now.counts["retried"] == 2
    assert status_now.counts["failed"] == 0


def test_a_message_that_breaks_the_server_does_not_hold_up_the_others(server: Server) -> None:
    server.statuses = [500] * MOST_TRIES
    outlet = Outlet("web", sink_of(server.port), 10, 0.0)
    outlet.put_event(event_of("poison"))
    outlet.put_event(event_of("b"))
    assert outlet.drain(PATIENCE_S)
    assert outlet.status().counts["failed"] == 1
    outlet.close()
    assert [body["id"] for body in server.bodies] == ["b"]


SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open(sys.argv[2], "ab") as file:
            file.write(body + b"\\n")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *args):
        pass
server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


def start_server(port: int, got: Path) -> tuple[subprocess.Popen[str], int]:
    child = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port), str(got)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    return child, int(child.stdout.readline())


def test_a_server_that_is_killed_and_comes_back_gets_all_events_in_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    got = tmp_path / "got"
    child, port = start_server(0, got)
    outlet = Outlet("web", sink_of(port, timeout_s=PATIENCE_S), 100, 0.0)
    try:
        for index in range(5):
            outlet.put_event(event_of(f"before {index}"))
        assert outlet.drain(PATIENCE_S)
        child.kill()
        child.wait()
        for index in range(50):
            outlet.put_event(event_of(f"while {index}"))
        until(lambda: outlet.status().counts["retried"] > 2)
        assert outlet.status().queued == 50
        child.stdout.close()  # type: ignore[union-attr]
        child, _ = start_server(port, got)
        assert outlet.drain(PATIENCE_S)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()  # type: ignore[union-attr]
    status = outlet.status()
    outlet.close()
    names = [json.loads(line)["id"] for line in got.read_text().splitlines()]
    assert names == [f"before {i}" for i in range(5)] + [f"while {i}" for i in range(50)]
    assert status.counts["dropped"] == status.counts["failed"] == 0
    assert caplog.text.count("cannot be reached") == 1
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert threading.active_count() == threads


def test_a_server_that_does_not_answer_holds_up_nobody_at_the_end(server: Server) -> None:
    server.hang.clear()
    outlet = Outlet("web", sink_of(server.port, timeout_s=PATIENCE_S), 10, 0.0)
    outlet.put_event(event_of("a"))
    outlet.put_event(event_of("b"))
    until(lambda: server.connections == 1)
    began_s = time.monotonic()
    outlet.close(1.0)
    outlet._thread.join(PATIENCE_S / 2)
    assert not outlet._thread.is_alive()
    assert time.monotonic() - began_s < PATIENCE_S / 2
    assert outlet.counts["abandoned"] == 2


def test_a_server_that_is_too_slow_is_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        sink = sink_of(deaf.getsockname()[1], timeout_s=0.05)
        with pytest.raises(NotNow):
            sink.event(event_of("a"))
        assert "timed out" in sink.sentence
        sink.close()


def test_a_token_that_is_gone_is_told_and_waited_for(server: Server, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    sink = sink_of(server.port, token_file=str(token))
    for content in (None, b"", b"two words secret", b"secret\r\nX-Evil: 1", b"\xff secret"):
        token.unlink(missing_ok=True)
        if content is not None:
            token.write_bytes(content)
        with pytest.raises(NotNow):
            sink.event(event_of("a"))
        assert str(token) in sink.sentence
        assert "secret" not in sink.sentence
    token.write_text("secret")
    sink.event(event_of("a"))
    assert (sink.sentence, len(server.bodies)) == ("", 1)
    sink.close()


@pytest.mark.parametrize(
    "url",
    [
        "example.org/hook",
        "ftp://host/",
        "http://",
        "http://host:port/",
        "http://[::1",
        "http://h/a b",
    ],
)
def test_a_url_that_is_none_is_refused(url: str, refuses: Callable[..., Any]) -> None:
    with refuses(ConfigError, "the url is no http"):
        HttpPost(HttpSinkConfig(url=url))


def test_https_asks_for_a_certificate_that_it_knows(tmp_path: Path) -> None:
    """A server whose certificate nobody vouches for gets nothing; with ca_file it does."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs openssl: apt install openssl")
    import ssl

    server = Server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server._server.socket = context.wrap_socket(server._server.socket, server_side=True)
    url = f"https://localhost:{server.port}/"
    try:
        stranger = HttpPost(HttpSinkConfig(url=url), SOON)
        with pytest.raises(NotNow):
            stranger.event(event_of("a"))
        assert "certificate verify failed" in stranger.sentence
        stranger.close()
        known = HttpPost(HttpSinkConfig(url=url, ca_file=str(certificate)), SOON)
        known.event(event_of("b"))
        known.close()
    finally:
        server.close()
    assert [body["id"] for body in server.bodies] == ["b"]


def test_a_certificate_file_that_is_none_is_refused(
    tmp_path: Path, refuses: Callable[..., Any]
) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with refuses(ConfigError, "ca_file .*ca.pem cannot be used"):
        HttpPost(HttpSinkConfig(url="https://host/", ca_file=str(tmp_path / "ca.pem")))
