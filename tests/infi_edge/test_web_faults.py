"""The page's server: what clients cannot do to it."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from infi_edge.config import WebConfig
from infi_edge.web import server as server_module
from infi_edge.web.server import MAX_CONNECTIONS, WebServer
from tests.pretend_control import PretendControl
from tests.web_client import ask, dial, until


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
    "request_bytes",
    [
        b"\r\n\r\n\r\n\r\n",
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /%ff%fe%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_malformed_requests_harm_nobody(site: WebServer, request_bytes: bytes) -> None:
    with dial(site) as client:
        client.sendall(request_bytes)
        client.shutdown(socket.SHUT_WR)
        try:
            answer = client.recv(65536)
        except ConnectionResetError:
            answer = b""
    assert b" 200 " not in answer[:20]
    assert b"Traceback" not in answer
    assert ask(site, "/api/status").status == 200


@pytest.mark.parametrize(
    ("head", "rest", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", b"y" * 100_000, b"431"),
        (b"GET /", b"y" * 100_000, b"431"),
        (b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n", b"", b"413"),
        (
            b"POST /login HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"2000\r\n" + b"y" * 8192 + b"\r\n",
            b"413",
        ),
    ],
)
def test_oversize_requests_are_refused(
    site: WebServer, head: bytes, rest: bytes, status: bytes
) -> None:
    with dial(site) as client:
        client.sendall(head)
        try:
            client.sendall(rest)
            answer = client.recv(65536)
        except (ConnectionResetError, BrokenPipeError):  # it hung up before all was sent
            answer = b"HTTP/1.1 " + status
    assert answer.startswith(b"HTTP/1.1 " + status) or answer.startswith(b"HTTP/1.0 " + status)
    assert ask(site, "/api/status").status == 200


def test_a_client_that_sends_a_byte_now_and_then_is_cut_off(
    site: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "CONNECTION_S", 2.0)
    with ExitStack() as stack:
        slow = [stack.enter_context(dial(site)) for _ in range(20)]
        open_ones = set(slow)
        served = 0
        end_s = time.monotonic() + 30
        while open_ones and time.monotonic() < end_s:
            for client in list(open_ones):
                try:
                    client.send(b"G")
                    client.setblocking(False)
                    if client.recv(1) == b"":
                        open_ones.discard(client)
                except BlockingIOError:
                    client.setblocking(True)
                except OSError:
                    open_ones.discard(client)
            served += ask(site, "/api/status").status == 200
            time.sleep(0.2)
        assert not open_ones
        assert served > 1


def test_idle_connections_do_not_keep_others_out(site: WebServer) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(dial(site)) for _ in range(MAX_CONNECTIONS + 100)]
        assert ask(site, "/api/status").status == 200
        assert len(idle) == 164


def test_a_client_that_takes_no_answer_holds_nothing_up(
    site: WebServer, control: PretendControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "CONNECTION_S", 2.0)
    request = b"GET /api/history HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(8):  # twice as many as there are threads
            client = stack.enter_context(dial(site))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(request * 300)
        assert ask(site, "/api/status").status == 200
        assert until(lambda: not channels(site))


def channels(site: WebServer) -> int:
    return len(site._server.active_channels)


def test_a_connection_ends_after_one_answer(site: WebServer) -> None:
    with dial(site) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)
        answers = b""
        while more := client.recv(65536):
            answers += more
    assert answers.count(b"HTTP/1.1 200 OK") == 1
    assert answers.endswith(b"0\r\n\r\n")


def test_clients_that_vanish_are_forgotten(site: WebServer) -> None:
    for _ in range(30):
        client = dial(site)
        client.sendall(b"GET /api/history HTTP/1.1\r\nHost: localhost\r\n\r\n")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    assert ask(site, "/api/status").status == 200
    assert until(lambda: not channels(site))


def test_an_error_inside_is_told_to_nobody(
    site: WebServer, control: PretendControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("secret inside")

    monkeypatch.setattr(control, "status", broken)
    got = ask(site, "/api/status")
    assert got.status == 500
    assert b"secret" not in got.body
    monkeypatch.undo()
    assert ask(site, "/api/status").status == 200


def test_close_takes_a_second_and_leaves_nothing(control: PretendControl) -> None:
    def left() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    before = left()
    for _ in range(3):
        server = WebServer(control, WebConfig(bind="127.0.0.1:0"))
        server.start()
        with ExitStack() as stack:
            for i in range(40):
                client = stack.enter_context(dial(server))
                client.sendall(b"GET /api/history HTTP/1.1\r\nHost: loc"[: i * 2])
            ask(server, "/api/status")
            began_s = time.monotonic()
            server.close()
            assert time.monotonic() - began_s < 1.5
        with pytest.raises(ConnectionRefusedError):
            dial(server)
    assert until(lambda: left() == before), (before, left())


def test_closing_twice_or_before_the_start_is_no_error(control: PretendControl) -> None:
    server = WebServer(control, WebConfig(bind="127.0.0.1:0"))
    server.close()
    server.start()
    server.close()
    server.close()


def test_its_port_can_be_had_again_at_once(control: PretendControl) -> None:
    first = WebServer(control, WebConfig(bind="127.0.0.1:0"))
    first.start()
    ask(first, "/")
    first.close()
    second = WebServer(control, WebConfig(bind=urlsplit(first.address).netloc))
    second.start()
    assert ask(second, "/").status == 200
    second.close()
