"""The relay that stands for a slow or failing link."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.offload.servers import DelayProxy


@pytest.fixture
def echo() -> Iterator[str]:
    """A server that sends back what it gets: HOST:PORT."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer(end: socket.socket) -> None:
        with end, contextlib.suppress(OSError):
            while chunk := end.recv(65536):
                end.sendall(chunk)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"127.0.0.1:{server.getsockname()[1]}"
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def connect(proxy: DelayProxy) -> socket.socket:
    host, port = proxy.address.split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def read(end: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count and (chunk := end.recv(count - len(got))):
        got += chunk
    return got


def test_what_passes_is_delayed_and_counted(echo: str) -> None:
    with DelayProxy(echo, 0.1) as proxy, connect(proxy) as end:
        start = time.monotonic()
        end.sendall(b"hello")
        assert read(end, 5) == b"hello"
        assert time.monotonic() - start >= 0.2
        assert (proxy.sent, proxy.received, proxy.connections) == (5, 5, 1)


def test_many_messages_are_under_way_at_once(echo: str) -> None:
    with DelayProxy(echo, 0.2) as proxy, connect(proxy) as end:
        start = time.monotonic()
        for _ in range(50):
            end.sendall(b"0123456789")
            time.sleep(0.002)
        assert read(end, 500) == b"0123456789" * 50
        assert time.monotonic() - start < 50 * 0.4 / 2  # one at a time takes 20 s


def test_large_messages_pass_whole(echo: str) -> None:
    content = bytes(range(256)) * 20000
    with DelayProxy(echo, 0.01) as proxy, connect(proxy) as end:
        sender = threading.Thread(target=end.sendall, args=(content,))
        sender.start()
        assert read(end, len(content)) == content
        sender.join(30)
        end.shutdown(socket.SHUT_WR)
        assert end.recv(1) == b""


def test_a_cut_link_resets_and_refuses_until_it_is_healed(echo: str) -> None:
    with DelayProxy(echo, 0.0) as proxy:
        with connect(proxy) as end:
            end.sendall(b"a")
            assert read(end, 1) == b"a"
            proxy.cut()
            with pytest.raises(ConnectionResetError):
                end.recv(1)
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        proxy.heal()
        with connect(proxy) as end:
            end.sendall(b"b")
            assert read(end, 1) == b"b"


def test_a_black_hole_swallows_and_gives_back_when_healed(echo: str) -> None:
    with DelayProxy(echo, 0.0) as proxy, connect(proxy) as old:
        old.sendall(b"a")
        assert read(old, 1) == b"a"
        proxy.blackhole()
        with connect(proxy) as new:
            old.sendall(b"b")
            new.sendall(b"c")
            for end in (old, new):
                end.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    end.recv(1)
            proxy.heal()
            for end, wanted in ((old, b"b"), (new, b"c")):
                end.settimeout(30)
                assert read(end, 1) == wanted


def test_a_limit_cuts_an_answer_in_its_middle(echo: str) -> None:
    with DelayProxy(echo, 0.0) as proxy:
        proxy.limit(3)
        with connect(proxy) as end:
            end.sendall(b"abcdef")
            assert read(end, 3) == b"abc"
            with pytest.raises(ConnectionResetError):
                end.recv(1)
        proxy.heal()
        with connect(proxy) as end:
            end.sendall(b"abcdef")
            assert read(end, 6) == b"abcdef"


def test_no_server_behind_it_is_a_reset(echo: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        target = f"127.0.0.1:{gone.getsockname()[1]}"
    with DelayProxy(target) as proxy, pytest.raises(ConnectionResetError), connect(proxy) as end:
        end.recv(1)
