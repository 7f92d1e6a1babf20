"""Bytes as a link counts them, beside what a relay between it and the server has seen."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from benchmarks.netdelay import DelayProxy
from infi_edge.executors import http_connection, sockets
from infi_edge.executors.credentials import Credentials
from infi_edge.executors.endpoint import Endpoint
from infi_edge.executors.grpc_link import GrpcLink
from infi_edge.executors.http_link import HttpLink
from infi_edge.executors.link import Link, LinkError
from infi_edge.executors.traffic import Traffic
from tests.daemon_run import until
from tests.offload.misbehaving import (
    Certificates,
    GrpcServer,
    HttpServer,
    X,
    abort,
    certificates,
    response,
)

SLACK = 200
"""Bytes that a connection's end may hide: pings, window updates, TLS alerts."""

Maker = Callable[[str, Traffic], Link]
"""Makes a link to HOST:PORT."""


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(params=["grpc", "grpcs", "http", "https"])
def served(request: pytest.FixtureRequest, signed: Certificates) -> Iterator[tuple[Any, Maker]]:
    """A server, and what makes links to it through an address of its relay."""
    scheme = request.param
    secure = scheme in ("grpcs", "https")
    credentials = Credentials(ca_file=signed.cert("ca")) if secure else Credentials()
    server: Any
    if scheme.startswith("grpc"):
        server, kind = GrpcServer(signed.grpc("server") if secure else None), GrpcLink
    else:
        server, kind = HttpServer(tls=signed.http("server") if secure else None), HttpLink

    def make(address: str, traffic: Traffic) -> Link:
        host, port = address.split(":")
        return kind(Endpoint(scheme, host, int(port), "echo"), credentials, traffic)

    with server:
        yield server, make


def agree(traffic: Traffic, relay: DelayProxy, slack: int = SLACK) -> None:
    """The relay may still have bytes under way; wait for them."""
    sent, received = (sum(counts.values()) for counts in traffic.totals())
    until_s = time.monotonic() + 5
    while time.monotonic() < until_s and abs(relay.received - received) > slack:
        time.sleep(0.02)
    print(f"sent {sent} of {relay.sent}, received {received} of {relay.received}")
    assert traffic.exact
    assert abs(relay.sent - sent) <= slack
    assert abs(relay.received - received) <= slack


def send(link: Link, count: int, cause: Any = "infer") -> None:
    x = np.random.default_rng(count).random(count, np.float32)
    np.testing.assert_array_equal(link.infer([(X, x)], ["y"], 10, cause)[0], x)


def claimed(address: str) -> list[sockets.Connection]:
    """Connections to the port of HOST:PORT that are looked at."""
    port = int(address.split(":")[1])
    return [c for c in sockets._claimed if c.ends[1][1] == port]  # type: ignore[index]


def test_totals_are_what_passed_the_relay(served: tuple[Any, Maker]) -> None:
    server, make = served
    traffic = Traffic()
    with DelayProxy(f"127.0.0.1:{server.port}", 0.0) as relay:
        link = make(relay.address, traffic)
        link.metadata(10)
        link.ready(10)
        for count in (1, 1000, 150_000):
            send(link, count)
        send(link, 5000, "retry")
        link.close()
        agree(traffic, relay)
        assert traffic.sent["infer"] > 600_000
        assert 20_000 < traffic.sent["retry"] < 25_000
        assert 0 < traffic.sent["probe"] < 500
        assert 0 < traffic.sent["metadata"] < 4000


def test_a_new_connection_is_counted_on_top(served: tuple[Any, Maker]) -> None:
    server, make = served
    traffic = Traffic()
    with DelayProxy(f"127.0.0.1:{server.port}", 0.0) as relay:
        link = make(relay.address, traffic)
        for _ in range(5):
            send(link, 1000)
            relay.reset()
            time.sleep(0.05)  # until the reset has come here
        for _ in range(3):
            send(link, 1000)
        link.close()
        assert relay.connections >= 6
        until(lambda: not claimed(relay.address))
        agree(traffic, relay, 6 * SLACK)


def test_failures_are_counted_too(served: tuple[Any, Maker]) -> None:
    server, make = served
    traffic = Traffic()
    server.answers["ModelInfer"] = abort(grpc.StatusCode.INTERNAL, "bug")
    server.answers["/v2/models/echo/infer"] = response(b"bug", "500 Bug")
    with DelayProxy(f"127.0.0.1:{server.port}", 0.0) as relay:
        link = make(relay.address, traffic)
        for _ in range(3):
            with pytest.raises(LinkError):
                link.infer([(X, np.zeros(10_000, np.float32))], ["y"], 10, "retry")
        link.close()
        agree(traffic, relay)
        assert traffic.sent["retry"] > 120_000


def test_bytes_of_a_call_that_was_given_up_are_counted(served: tuple[Any, Maker]) -> None:
    server, make = served
    traffic = Traffic()
    with DelayProxy(f"127.0.0.1:{server.port}", 0.0) as relay:
        link = make(relay.address, traffic)
        send(link, 10)
        relay.blackhole()
        with pytest.raises(LinkError):
            link.infer([(X, np.zeros(10_000, np.float32))], ["y"], 0.5)
        link.close()
        assert traffic.sent["infer"] > 40_000
        agree(traffic, relay, 2 * SLACK)


def test_each_link_counts_its_own(served: tuple[Any, Maker]) -> None:
    server, make = served
    total = Traffic()
    parts = [Traffic(total) for _ in range(4)]
    links = [make(f"127.0.0.1:{server.port}", part) for part in parts]
    counts = [1000, 2000, 4000, 8000]

    def work(index: int) -> None:
        for _ in range(10):
            send(links[index], counts[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for link in links:
        link.close()
    for part, count in zip(parts, counts, strict=True):
        assert part.exact
        assert count * 40 < part.sent["infer"] < count * 40 + 20_000
    assert total.sent["infer"] == sum(part.sent["infer"] for part in parts)


def test_counting_keeps_no_connection_open(served: tuple[Any, Maker]) -> None:
    server, make = served
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        link = make(f"127.0.0.1:{server.port}", Traffic())
        send(link, 10)
        link.close()
    until_s = time.monotonic() + 10
    while time.monotonic() < until_s and sockets._connections(server.port):
        time.sleep(0.02)
    assert not sockets._connections(server.port)
    until(lambda: not claimed(f"127.0.0.1:{server.port}"))
    assert len(os.listdir("/proc/self/fd")) < before + 12  # gRPC keeps some of its own


def test_a_kernel_that_does_not_tell_is_said_and_what_was_sent_is_counted(
    served: tuple[Any, Maker], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, make = served
    monkeypatch.setattr(sockets, "moved", lambda end: None)
    monkeypatch.setattr(http_connection, "moved", lambda end: None)
    total = Traffic()
    traffic = Traffic(total)
    link = make(f"127.0.0.1:{server.port}", traffic)
    send(link, 10_000)
    link.close()
    assert not traffic.exact
    assert not total.exact
    assert 40_000 <= traffic.sent["infer"] < 42_000
    assert 40_000 <= traffic.received["infer"] < 42_000


def test_a_descriptor_that_became_anothers_is_not_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        first = socket.create_connection(("127.0.0.1", port))
        connection = sockets.claim(port)
        assert connection is not None
        assert connection.moved() == (0, 0)
        assert sockets.claim(port) is None
        fd = first.fileno()
        first.close()
        assert connection.moved() is None
        with socket.create_connection(("127.0.0.1", port)) as second:
            assert second.fileno() == fd
            assert connection.moved() is None
        sockets.release(connection)
