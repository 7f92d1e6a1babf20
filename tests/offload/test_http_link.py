"""The HTTP link against a server on a real socket that does and says what a test wants."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infi_edge.executors.credentials import Credentials
from infi_edge.executors.endpoint import Endpoint
from infi_edge.executors.http_link import MAX_JSON_VALUES, HttpLink
from infi_edge.executors.link import LinkError, RemoteTensor
from infi_edge.executors.traffic import Traffic
from tests.offload.misbehaving import (
    Certificates,
    HttpServer,
    Request,
    TcpServer,
    X,
    binary_output,
    certificates,
    ok,
    response,
)

FLOATS = np.arange(4, dtype=np.float32)
TOKEN = "s3cret-token"
INFER = "/v2/models/echo/infer"


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with HttpServer() as server:
        yield server


@pytest.fixture
def json_server() -> Iterator[HttpServer]:
    with HttpServer(binary=False) as server:
        yield server


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("certificates"))


def open_link(endpoint: Endpoint, credentials: Credentials | None = None, **more: Any) -> HttpLink:
    return HttpLink(endpoint, credentials or Credentials(), Traffic(), **more)


def fails(link: HttpLink, fault: str, within_s: float = 5.0) -> str:
    """What an inference says that must fail in this way."""
    start_s = time.monotonic()
    with pytest.raises(LinkError) as error:
        link.infer([(X, FLOATS)], ["y"], within_s)
    assert time.monotonic() - start_s < within_s + 20
    assert error.value.fault == fault, str(error.value)
    return str(error.value)


def infer(link: HttpLink) -> None:
    np.testing.assert_array_equal(link.infer([(X, FLOATS)], ["y"], 5)[0], FLOATS)


@pytest.mark.parametrize("binary", [True, False])
def test_a_model_is_asked_what_it_is_and_run_on_one_connection(binary: bool) -> None:
    with HttpServer(binary=binary) as server:
        link = open_link(server.endpoint())
        metadata = link.metadata(5)
        assert metadata.inputs == (X,)
        assert metadata.outputs == (RemoteTensor("y", "FP32", (-1,)),)
        assert link.ready(5)
        (output,) = link.infer([(X, FLOATS)], ["y"], 5)
        link.close()
        np.testing.assert_array_equal(output, FLOATS)
        assert server.accepted == 1
        is_binary = "inference-header-content-length" in server.requests[-1].headers
        assert is_binary == binary


def test_only_the_named_outputs_are_asked_for(json_server: HttpServer) -> None:
    infer(open_link(json_server.endpoint()))
    assert json.loads(json_server.requests[-1].body)["outputs"] == [{"name": "y"}]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(
    ("datatype", "array"),
    [
        ("FP16", np.array([0.5, 2], np.float16)), ("UINT8", np.array([0, 255], np.uint8)),
        ("INT64", np.array([-(2**62)], np.int64)), ("BOOL", np.array([True, False])),
        ("BYTES", np.array([b"\xff\xd8jpeg", b""], object)),
    ],
)  # fmt: skip
def test_every_kind_of_tensor_comes_back(binary: bool, datatype: str, array: np.ndarray) -> None:
    def echo(request: Request) -> bytes:
        if not binary:
            return ok({"outputs": [{**json.loads(request.body)["inputs"][0], "name": "y"}]})
        content = request.body[int(request.headers["inference-header-content-length"]) :]
        return binary_output(content, datatype=datatype, shape=[len(array)])

    with HttpServer(binary=binary) as server:
        link = open_link(server.endpoint())
        link.ready(5)
        link.metadata(5)
        answer = server.answer
        server.answer = lambda r: echo(r) if r.path == INFER else answer(r)  # type: ignore[method-assign]
        tensor = RemoteTensor("x", datatype, (-1,))
        link._declared = {}
        (output,) = link.infer([(tensor, array)], ["y"], 5)
        assert output.dtype == array.dtype
        assert output.tolist() == array.tolist()


def test_pictures_go_as_base64_where_only_json_is_taken(json_server: HttpServer) -> None:
    link = open_link(json_server.endpoint())
    tensor = RemoteTensor("x", "BYTES", (1,))
    link.infer([(tensor, np.array([b"\xff\xd8"], object))], ["y"], 5)
    sent = json.loads(json_server.requests[-1].body)["inputs"][0]
    assert sent["parameters"] == {"content_type": "base64"}
    assert base64.b64decode(sent["data"][0]) == b"\xff\xd8"


def test_what_json_cannot_carry_is_refused_before_it_is_sent(json_server: HttpServer) -> None:
    link = open_link(json_server.endpoint())
    link.metadata(5)
    before = len(json_server.requests)
    for bad in (np.nan, np.inf):
        with pytest.raises(LinkError, match="no NaN and no infinity"):
            link.infer([(X, np.array([bad], np.float32))], ["y"], 5)
    assert len(json_server.requests) == before


def test_a_server_without_metadata_of_its_own_gets_json(json_server: HttpServer) -> None:
    json_server.answers["/v2"] = response(b"", "404 Not Found")
    infer(open_link(json_server.endpoint()))


def test_prefix_version_and_host_are_right(server: HttpServer) -> None:
    path = "/a%20b/v2/models/echo/versions/3"
    server.answers["/a%20b/v2"] = ok({"extensions": []})
    server.answers[path] = ok({"name": "echo", "inputs": [], "outputs": []})
    link = open_link(Endpoint("http", "localhost", server.port, "echo", "3", "/a b"))
    link.metadata(5)
    assert server.requests[-1].path == path
    assert server.requests[-1].headers["host"] == f"localhost:{server.port}"


def test_a_proxy_of_the_environment_is_not_used(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    infer(open_link(server.endpoint()))


@pytest.mark.parametrize(
    ("status", "fault"),
    [
        ("400 Bad", "answer"), ("401 Who", "denied"), ("403 No", "denied"), ("404 None", "missing"),
        ("408 Slow", "link"), ("413 Big", "answer"), ("422 Odd", "answer"), ("429 Many", "link"),
        ("500 Bug", "failed"), ("501 Not", "failed"), ("502 Bad", "link"), ("503 Off", "link"),
        ("504 Slow", "link"), ("302 Found", "missing"), ("304 Same", "missing"),
        ("999 ?", "failed"),
    ],
)  # fmt: skip
def test_each_status_is_the_fault_it_means(server: HttpServer, status: str, fault: str) -> None:
    link = open_link(server.endpoint())
    server.answers[INFER] = response(b'{"error": "words of it"}', status, "Location: /elsewhere")
    sentence = fails(link, fault)
    assert str(server.endpoint()) in sentence
    assert "words of it" in sentence or fault == "denied" or status.startswith("3")
    assert all(request.path != "/elsewhere" for request in server.requests)
    server.answers.clear()
    infer(link)


def test_tritons_unknown_model_is_a_missing_one(server: HttpServer) -> None:
    server.answers[INFER] = response(
        b'{"error": "Request for unknown model: \'echo\' is not found"}', "400 Bad Request"
    )
    assert "it has echo" in fails(open_link(server.endpoint()), "missing")


def test_a_failure_says_the_servers_words_short_and_printable(server: HttpServer) -> None:
    for words in ("tensor\n\x1b[2J " + "x" * 5000, "tensor" + "y" * 300_000):
        for body in (words.encode(), json.dumps({"error": words}).encode()):
            server.answers[INFER] = response(body, "500 Bug")
            sentence = fails(open_link(server.endpoint()), "failed")
            assert "tensor" in sentence
            assert sentence.isprintable()
            assert len(sentence) < 400


def test_a_model_that_is_not_loaded_is_not_ready(server: HttpServer) -> None:
    link = open_link(server.endpoint())
    for status in ("400 Bad", "404 None", "500 Bug"):
        server.answers["/v2/models/echo/ready"] = response(b"", status)
        assert not link.ready(5)
    server.answers["/v2/models/echo/ready"] = response(b"", "401 Who")
    with pytest.raises(LinkError):
        link.ready(5)


# The connection.


def test_a_connection_that_the_server_has_closed_is_no_error(server: HttpServer) -> None:
    link = open_link(server.endpoint())
    infer(link)
    server.drop()
    infer(link)
    server.close_after_answer = True  # at the next one it is closed without an announcement
    for _ in range(20):
        infer(link)
    assert server.accepted > 3


def test_a_request_that_is_never_answered_is_sent_once_more_and_not_again(
    server: HttpServer,
) -> None:
    link = open_link(server.endpoint())
    infer(link)
    server.answers[INFER] = None
    before = len(server.requests)
    fails(link, "link")
    assert len(server.requests) - before == 2  # on the kept connection, and on a new one
    fails(link, "link")
    assert len(server.requests) - before == 3


def test_an_answer_that_came_unasked_is_nobodys(server: HttpServer) -> None:
    def two() -> Iterator[bytes]:
        yield binary_output(FLOATS.tobytes())
        yield binary_output((FLOATS + 1).tobytes())

    link = open_link(server.endpoint())
    link.metadata(5)
    server.answers[INFER] = two()
    infer(link)
    server.answers.clear()
    time.sleep(0.1)  # the second one is here by now
    infer(link)


def test_a_silent_list_of_models_costs_the_deadline_and_no_more(server: HttpServer) -> None:
    def silent() -> Iterator[bytes]:
        release.wait(30)
        yield b""

    release = threading.Event()
    server.answers["/v2/repository/index"] = silent()
    server.answers[INFER] = response(b"", "404 None")
    link = open_link(server.endpoint())
    link.metadata(5)
    try:
        fails(link, "missing", within_s=0.3)
        assert not release.is_set()
    finally:
        release.set()


def test_an_announced_close_is_kept_to(server: HttpServer) -> None:
    server.close_after_answer = True
    output = binary_output(FLOATS.tobytes()).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    server.answers[INFER] = output
    link = open_link(server.endpoint())
    for _ in range(3):
        infer(link)


def test_nothing_that_listens_is_one_sentence(server: HttpServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    link = open_link(Endpoint("http", "127.0.0.1", port, "echo"))
    assert "connection refused" in fails(link, "link")
    with pytest.raises(LinkError):
        link.ready(5)


def test_a_name_server_that_is_silent_costs_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    release, look_up = threading.Event(), socket.getaddrinfo

    def silent(*args: Any, flags: int = 0, **kwargs: Any) -> Any:
        if not flags:
            release.wait(30)
        return look_up(*args, flags=flags, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    try:
        fails(open_link(Endpoint("http", "edge.invalid", 80, "echo")), "link", within_s=0.3)
    finally:
        release.set()


def test_a_host_that_nobody_knows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "name is not known" in fails(open_link(Endpoint("http", "edge", 80, "echo")), "link")


@pytest.mark.parametrize("secure", [False, True])
def test_a_port_that_takes_connections_and_is_silent_costs_the_deadline(secure: bool) -> None:
    with TcpServer() as silent:
        scheme: Any = "https" if secure else "http"
        fails(open_link(Endpoint(scheme, "127.0.0.1", silent.port, "echo")), "link", within_s=0.3)


def test_a_trickle_of_bytes_costs_the_deadline(server: HttpServer) -> None:
    def trickle(content: bytes) -> Iterator[bytes]:
        for byte in content:
            yield bytes([byte])
            time.sleep(0.1)

    whole, head = binary_output(bytes(400)), b"HTTP/1.1 200 OK\r\nX-A: b\r\n"
    link = open_link(server.endpoint())
    link.metadata(5)
    for start, slow in ((b"", whole), (head, b"X-C: d\r\n" * 99), (whole[:-50], whole[-50:])):
        server.answers[INFER] = (piece for part in ([start], trickle(slow)) for piece in part)
        assert "in time" in fails(link, "link", within_s=0.4)


def test_a_server_that_does_not_read_costs_the_deadline() -> None:
    class Deaf(HttpServer):
        def serve(self, end: socket.socket) -> None:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            for path in ("/v2", "/v2/models/echo"):
                assert end.recv(4096)
                end.sendall(self.answer(Request("GET", path, {}, b"")))  # type: ignore[arg-type]
            done.wait(30)

    done = threading.Event()
    with Deaf() as server:
        link = open_link(server.endpoint())
        try:
            link.metadata(25)
            start_s = time.monotonic()
            with pytest.raises(LinkError) as error:
                link.infer([(X, np.zeros(4 << 20, np.float32))], ["y"], 0.5)
            assert time.monotonic() - start_s < 10
        finally:
            done.set()
        assert error.value.fault == "link"


def test_a_close_by_another_thread_ends_a_call(server: HttpServer) -> None:
    asked, release = threading.Event(), threading.Event()

    def slow() -> Iterator[bytes]:
        asked.set()
        release.wait(30)
        yield b""

    link = open_link(server.endpoint())
    link.metadata(5)
    server.answers[INFER] = slow()
    closer = threading.Thread(target=lambda: (asked.wait(20), link.close()))
    closer.start()
    try:
        start_s = time.monotonic()
        assert "closed" in fails(link, "link", within_s=25)
        assert time.monotonic() - start_s < 20
    finally:
        release.set()
        closer.join()


def test_a_closed_link_stays_closed(server: HttpServer) -> None:
    link = open_link(server.endpoint())
    link.metadata(5)
    link.close()
    assert "the link is closed" in fails(link, "link")
    with pytest.raises(LinkError):
        link.metadata(5)
    assert server.accepted == 1


def test_a_close_while_it_connects_leaves_no_connection(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = open_link(server.endpoint(host="localhost"))
    look_up = socket.getaddrinfo

    def closing(*args: Any, **kwargs: Any) -> Any:
        link.close()
        return look_up(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", closing)
    with suppress(LinkError):
        link.infer([(X, FLOATS)], ["y"], 5)
    assert link._connection.sock is None


def test_a_name_of_other_letters_is_asked_for(server: HttpServer) -> None:
    server.answers["/v2/models/mod%C3%A8le"] = ok({"name": "", "inputs": [], "outputs": []})
    open_link(server.endpoint("mod\u00e8le")).metadata(5)


def test_what_can_be_no_host_is_told_as_one_that_nobody_knows() -> None:
    assert "name is not known" in fails(open_link(Endpoint("http", "a..b", 80, "echo")), "link")


# Answers that are wrong.


def test_an_answer_over_the_limit_is_refused_in_every_form(server: HttpServer) -> None:
    def endless(head: bytes, piece: bytes) -> Iterator[bytes]:
        yield head
        while True:
            yield piece

    link = open_link(server.endpoint(), max_response_bytes=10_000)
    link.metadata(5)
    head = b"HTTP/1.1 200 OK\r\n"
    for answer in (
        response(bytes(20_000)),
        head + b"Content-Length: 999999999999999\r\n\r\n",
        endless(head + b"\r\n", bytes(1000)),
        endless(head + b"Transfer-Encoding: chunked\r\n\r\n", b"a\r\n0123456789\r\n"),
        head + b"Transfer-Encoding: chunked\r\n\r\nffffffffff\r\n" + bytes(20_000),
    ):
        server.answers[INFER] = answer
        assert "more than 10000 bytes" in fails(link, "answer")


def test_what_was_compressed_unasked_is_refused(server: HttpServer) -> None:
    bomb = gzip.compress(bytes(1 << 20))
    server.answers[INFER] = response(bomb, "200 OK", "Content-Encoding: gzip")
    link = open_link(server.endpoint())
    assert "compressed" in fails(link, "answer")
    assert server.requests[-1].headers["accept-encoding"] == "identity"


def test_a_cut_answer_is_the_links_fault(server: HttpServer) -> None:
    whole = binary_output(FLOATS.tobytes())
    server.close_after_answer = True
    for cut in (
        whole[:-1],
        whole[: whole.index(b"\r\n\r\n") + 4],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n",
    ):
        server.answers[INFER] = cut
        fails(open_link(server.endpoint()), "link")


@pytest.mark.parametrize(
    "change",
    [
        {"name": "z"}, {"datatype": "FP64"}, {"datatype": "FP33"}, {"shape": [3]}, {"shape": [-1]},
        {"shape": [2**40]}, {"shape": [2**62, 4]}, {"shape": None}, {"shape": "4"}, {"name": None},
        {"parameters": {"binary_data_size": -1}}, {"parameters": {"binary_data_size": 10**9}},
        {"parameters": {"binary_data_size": "16"}}, {"parameters": None}, {"shape": [2, 2]},
    ],
)  # fmt: skip
def test_an_answer_that_does_not_fit_is_refused(server: HttpServer, change: dict[str, Any]) -> None:
    link = open_link(server.endpoint())
    link.metadata(5)
    server.answers[INFER] = binary_output(FLOATS.tobytes(), **change)
    fails(link, "answer")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b"1", b'{"outputs": null}', b'{"outputs": {}}', b'"outputs"',
        b'{"outputs": []}', b'{"outputs": [null]}', b'{"outputs": [{}]}', b"[" * 100_000,
        b'{"outputs": ' + b"[" * 100_000, b"\xff\xfe", b'{"outputs": [{"name": "y"}]}',
        b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [1e999, 2]}]}',
        b'{"outputs": [{"name": "y", "datatype": "INT8", "shape": [1], "data": [' + b"9" * 5000,
        b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [1099511627776], "data": [1]}]}',
        b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": "x"}]}',
    ],
)  # fmt: skip
def test_json_that_says_nothing_is_refused(json_server: HttpServer, body: bytes) -> None:
    link = open_link(json_server.endpoint())
    link.metadata(5)
    json_server.answers[INFER] = response(body)
    fails(link, "answer")
    json_server.answers.clear()
    json_server.answers["/v2/models/echo"] = response(body)
    with suppress(LinkError):
        assert not open_link(json_server.endpoint()).metadata(5).inputs


@pytest.mark.parametrize("piece", [b"[],", b"{},", b"1,"])
def test_json_that_would_fill_the_memory_is_refused(json_server: HttpServer, piece: bytes) -> None:
    body = b'{"outputs": [' + piece * MAX_JSON_VALUES + b"0]}"
    json_server.answers[INFER] = response(body)
    assert "more values as JSON" in fails(open_link(json_server.endpoint()), "answer")


def test_an_output_twice_is_refused(json_server: HttpServer) -> None:
    output = {"name": "y", "datatype": "FP32", "shape": [1], "data": [1]}
    json_server.answers[INFER] = ok({"outputs": [output, output]})
    assert "twice" in fails(open_link(json_server.endpoint()), "answer")


def test_nan_is_left_to_who_asked(json_server: HttpServer) -> None:
    link = open_link(json_server.endpoint())
    for nan in (b"NaN", b"null"):
        body = b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [%s]}]}' % nan
        json_server.answers[INFER] = response(body)
        assert np.isnan(link.infer([(X, FLOATS)], ["y"], 5)[0]).all()


# Credentials.


def test_the_token_of_the_moment_is_shown_and_never_said(
    server: HttpServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    link = open_link(server.endpoint(), Credentials(token_file=str(file)))
    infer(link)
    assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {TOKEN}"}
    file.write_text("another")
    infer(link)
    assert server.requests[-1].headers["authorization"] == "Bearer another"
    file.write_text(TOKEN)
    for answer in (
        response(f'{{"error": "I saw Bearer {TOKEN}"}}'.encode(), "500 Bug"),
        response(f"I saw Bearer {TOKEN}".encode(), "400 Bad"),
        f"I saw Bearer {TOKEN}\r\n\r\n".encode(),
    ):
        server.answers[INFER] = answer
        with pytest.raises(LinkError) as error:
            link.infer([(X, FLOATS)], ["y"], 5)
        assert TOKEN not in str(error.value)
    assert TOKEN not in repr(link) + caplog.text
    file.unlink()
    assert "token_file" in fails(link, "denied")


@pytest.mark.parametrize(
    ("name", "words"), [("other", "Hostname mismatch"), ("expired", "certificate has expired")]
)
def test_a_certificate_that_is_wrong_is_named(signed: Certificates, name: str, words: str) -> None:
    with HttpServer(tls=signed.http(name)) as server:
        link = open_link(server.endpoint(host="localhost"), Credentials(ca_file=signed.cert("ca")))
        assert words in fails(link, "denied")


def test_an_authority_made_with_plain_openssl_will_do(
    signed: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = ssl.create_default_context

    def strict(*args: Any, **kwargs: Any) -> ssl.SSLContext:
        context = make(*args, **kwargs)
        context.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python 3.13 does
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)
    with HttpServer(tls=signed.http("server")) as server:
        infer(open_link(server.endpoint(), Credentials(ca_file=signed.cert("ca"))))


def test_a_certificate_of_an_unknown_authority_is_named(signed: Certificates) -> None:
    with HttpServer(tls=signed.http("server")) as server:
        assert "set ca_file" in fails(open_link(server.endpoint()), "denied")


def test_a_demanded_client_certificate_is_named_and_shown(signed: Certificates) -> None:
    ca, cert, key = signed.cert("ca"), signed.cert("client"), signed.key("client")
    with HttpServer(tls=signed.http("server", demand_client=True)) as server:
        for _ in range(10):
            link = open_link(server.endpoint(), Credentials(ca_file=ca))
            assert "set cert_file" in fails(link, "denied")
        infer(open_link(server.endpoint(), Credentials(ca, cert, key)))


def test_a_server_without_tls_is_named() -> None:
    class Plain(TcpServer):
        def serve(self, end: socket.socket) -> None:
            end.recv(1 << 16)
            end.sendall(response(b"", "400 Bad Request"))

    with Plain() as server:
        link = open_link(Endpoint("https", "127.0.0.1", server.port, "echo"))
        assert "does not speak TLS there; use http://" in fails(link, "denied")


def test_a_secured_connection_is_kept_and_renewed(signed: Certificates) -> None:
    with HttpServer(tls=signed.http("server")) as server:
        link = open_link(server.endpoint(), Credentials(ca_file=signed.cert("ca")))
        for _ in range(3):
            infer(link)
        assert server.accepted == 1
        server.drop()
        infer(link)
        server.close_after_answer = True
        for _ in range(10):
            infer(link)
