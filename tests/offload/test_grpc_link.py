"""The gRPC link against a real gRPC server that does and says what a test wants."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from benchmarks.netdelay import DelayProxy
from infi_edge.executors import grpc_link, sockets
from infi_edge.executors.credentials import Credentials
from infi_edge.executors.endpoint import Endpoint
from infi_edge.executors.grpc_link import GrpcLink
from infi_edge.executors.link import LinkError, RemoteTensor
from infi_edge.executors.sockets import connecting
from infi_edge.executors.traffic import Traffic
from tests.offload.misbehaving import (
    Certificates,
    GrpcServer,
    HttpServer,
    TcpServer,
    X,
    abort,
    always,
    certificates,
    infer_response,
)

FLOATS = np.arange(4, dtype=np.float32)
TOKEN = "s3cret-token"


@pytest.fixture
def server() -> Iterator[GrpcServer]:
    with GrpcServer() as server:
        yield server


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("certificates"))


def open_link(endpoint: Endpoint, credentials: Credentials | None = None, **more: Any) -> GrpcLink:
    return GrpcLink(endpoint, credentials or Credentials(), Traffic(), **more)


def fails(link: GrpcLink, fault: str, within_s: float = 5.0) -> str:
    """What an inference says that must fail in this way."""
    start_s = time.monotonic()
    with pytest.raises(LinkError) as error:
        link.infer([(X, FLOATS)], ["y"], within_s)
    assert time.monotonic() - start_s < within_s + 20
    assert error.value.fault == fault, str(error.value)
    return str(error.value)


def test_a_model_is_asked_what_it_is_and_run(server: GrpcServer) -> None:
    link = open_link(server.endpoint())
    metadata = link.metadata(5)
    assert metadata.inputs == (X,)
    assert metadata.outputs == (RemoteTensor("y", "FP32", (-1,)),)
    assert link.ready(5)
    (output,) = link.infer([(X, FLOATS)], ["y"], 5)
    link.close()
    np.testing.assert_array_equal(output, FLOATS)  # it lives longer than the link


@pytest.mark.parametrize(
    ("datatype", "array"),
    [
        ("FP16", np.array([0.5, 2], np.float16)), ("UINT8", np.array([0, 255], np.uint8)),
        ("INT64", np.array([-(2**62)], np.int64)), ("BOOL", np.array([True, False])),
        ("BYTES", np.array([b"\xff\xd8jpeg", b""], object)),
    ],
)  # fmt: skip
def test_every_kind_of_tensor_comes_back(
    server: GrpcServer, datatype: str, array: np.ndarray
) -> None:
    def echo(request: bytes, context: grpc.ServicerContext) -> bytes:
        asked = service_pb2.ModelInferRequest.FromString(request)
        assert [output.name for output in asked.outputs] == ["y"]
        given = asked.inputs[0]
        answer = infer_response(
            asked.raw_input_contents[0], datatype=given.datatype, shape=given.shape
        )
        return answer.SerializeToString()

    server.answers["ModelInfer"] = echo
    link = open_link(server.endpoint())
    tensor = RemoteTensor("x", datatype, (-1,))
    (output,) = link.infer([(tensor, array)], ["y"], 5)
    assert output.dtype == array.dtype
    assert output.tolist() == array.tolist()


def test_contents_that_are_not_raw_are_read(server: GrpcServer) -> None:
    answer = service_pb2.ModelInferResponse()
    output = answer.outputs.add(name="y", datatype="INT8", shape=[2])
    output.contents.int_contents.extend([-1, 127])
    server.answers["ModelInfer"] = always(answer.SerializeToString())
    (array,) = open_link(server.endpoint()).infer([(X, FLOATS)], ["y"], 5)
    assert array.dtype == np.int8
    assert array.tolist() == [-1, 127]


@pytest.mark.parametrize(
    ("code", "words", "fault"),
    [
        ("UNAVAILABLE", "overloaded", "link"), ("RESOURCE_EXHAUSTED", "queue full", "link"),
        ("DEADLINE_EXCEEDED", "slow", "link"), ("CANCELLED", "stopping", "link"),
        ("ABORTED", "conflict", "link"), ("UNAUTHENTICATED", "who?", "denied"),
        ("PERMISSION_DENIED", "no", "denied"), ("NOT_FOUND", "no such", "missing"),
        ("UNIMPLEMENTED", "no such", "missing"), ("INTERNAL", "bug", "failed"),
        ("UNKNOWN", "bug", "failed"), ("DATA_LOSS", "bug", "failed"),
        ("INVALID_ARGUMENT", "wrong shape", "answer"), ("OUT_OF_RANGE", "far", "answer"),
        ("FAILED_PRECONDITION", "off", "answer"), ("ALREADY_EXISTS", "twice", "answer"),
        ("UNAVAILABLE", "Request for unknown model: 'echo' is not found", "missing"),
        ("INVALID_ARGUMENT", "Request for unknown model: 'echo' is not found", "missing"),
    ],
)  # fmt: skip
def test_each_status_is_the_fault_it_means(
    server: GrpcServer, code: str, words: str, fault: str
) -> None:
    server.answers["ModelInfer"] = abort(grpc.StatusCode[code], words)
    link = open_link(server.endpoint())
    assert str(server.endpoint()) in fails(link, fault)
    server.answers.clear()
    np.testing.assert_array_equal(link.infer([(X, FLOATS)], ["y"], 5)[0], FLOATS)


def test_a_failure_says_the_servers_words_short_and_printable(server: GrpcServer) -> None:
    server.answers["ModelInfer"] = abort(grpc.StatusCode.INTERNAL, "tensor\n\x1b[2J " + "x" * 5000)
    sentence = fails(open_link(server.endpoint()), "failed")
    assert "tensor" in sentence
    assert sentence.isprintable()
    assert len(sentence) < 400


def test_a_wrong_model_is_told_with_those_that_are_there(server: GrpcServer) -> None:
    link = open_link(server.endpoint("yolo"))
    with pytest.raises(LinkError, match=r"no such model or version: .*it has echo") as error:
        link.metadata(5)
    assert error.value.fault == "missing"


@pytest.mark.parametrize("code", ["NOT_FOUND", "UNAVAILABLE", "INTERNAL"])
def test_a_model_that_is_not_loaded_is_not_ready(server: GrpcServer, code: str) -> None:
    server.answers["ModelReady"] = abort(grpc.StatusCode[code], "model 'echo' is not found")
    assert not open_link(server.endpoint()).ready(5)


def test_nothing_that_listens_is_one_sentence_and_the_link_works_later(server: GrpcServer) -> None:
    link = open_link(server.endpoint())
    link.metadata(5)
    server.stop()
    assert "connection refused" in fails(link, "link")
    with pytest.raises(LinkError):
        link.ready(5)
    server.start()
    until_s = time.monotonic() + 10
    while time.monotonic() < until_s:
        try:
            link.infer([(X, FLOATS)], ["y"], 5)
            return
        except LinkError:
            time.sleep(0.05)
    raise AssertionError("the link never came back")


def test_a_server_that_never_answers_costs_the_deadline_and_no_more(server: GrpcServer) -> None:
    release = threading.Event()

    def never(request: bytes, context: grpc.ServicerContext) -> bytes:
        release.wait(30)
        return b""

    link = open_link(server.endpoint())
    link.metadata(5)
    server.answers["ModelInfer"] = never
    try:
        assert "no answer in time" in fails(link, "link", within_s=0.3)
    finally:
        release.set()


def test_a_port_that_takes_connections_and_is_silent_costs_the_deadline() -> None:
    with TcpServer() as silent:
        links = [open_link(Endpoint("grpc", "127.0.0.1", silent.port, "echo")) for _ in range(3)]
        start_s = time.monotonic()
        threads = [threading.Thread(target=fails, args=(link, "link", 0.5)) for link in links]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - start_s < 20
        for link in links:
            link.close()


def test_waiting_for_others_that_connect_costs_the_deadline(server: GrpcServer) -> None:
    with connecting(server.port, time.monotonic() + 5):
        fails(open_link(server.endpoint()), "link", within_s=0.3)
    assert open_link(server.endpoint()).ready(5)


def test_a_link_in_which_bytes_vanish_ends_in_time(server: GrpcServer) -> None:
    with DelayProxy(f"127.0.0.1:{server.port}", 0.0) as relay:
        host, port = relay.address.split(":")
        link = open_link(Endpoint("grpc", host, int(port), "echo"))
        link.metadata(5)
        relay.blackhole()
        fails(link, "link", within_s=0.5)
        link.close()


def test_a_server_of_http_is_named_as_such() -> None:
    with HttpServer() as http:
        link = open_link(Endpoint("grpc", "127.0.0.1", http.port, "echo"))
        assert "speaks HTTP" in fails(link, "link")


def test_an_answer_over_the_limit_is_refused(server: GrpcServer) -> None:
    server.answers["ModelInfer"] = always(infer_response(bytes(100_000)).SerializeToString())
    link = open_link(server.endpoint(), max_response_bytes=50_000)
    assert "more than 50000 bytes" in fails(link, "answer")


def test_a_close_by_another_thread_ends_a_call(server: GrpcServer) -> None:
    asked, release = threading.Event(), threading.Event()

    def slow(request: bytes, context: grpc.ServicerContext) -> bytes:
        asked.set()
        release.wait(30)
        return b""

    server.answers["ModelInfer"] = slow
    link = open_link(server.endpoint())
    closer = threading.Thread(target=lambda: (asked.wait(20), link.close()))
    closer.start()
    try:
        fails(link, "link", within_s=25)
    finally:
        release.set()
        closer.join()


def test_a_closed_link_stays_closed(server: GrpcServer) -> None:
    link = open_link(server.endpoint())
    link.metadata(5)
    link.close()
    assert "the link is closed" in fails(link, "link")
    with pytest.raises(LinkError):
        link.metadata(5)
    assert link._client is None


def test_a_close_while_it_connects_leaves_no_connection(
    server: GrpcServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = open_link(server.endpoint())

    def closing(port: int) -> sockets.Connection | None:
        found = sockets.claim(port)
        assert found is not None
        link.close()
        return found

    monkeypatch.setattr(grpc_link, "claim", closing)
    fails(link, "link")
    assert link._client is None
    assert not [c for c in sockets._claimed if c.ends[1][1] == server.port]  # type: ignore[index]


def test_a_host_that_nobody_knows_is_named_whatever_the_model_is_called() -> None:
    link = open_link(Endpoint("grpc", "echo.invalid", 1, "echo"))
    assert "name is not known" in fails(link, "link")


def test_a_proxy_of_the_environment_is_not_used(
    server: GrpcServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("grpc_proxy", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    open_link(server.endpoint()).metadata(5)


def test_an_input_that_is_not_of_its_tensor_is_refused_before_it_is_sent(
    server: GrpcServer,
) -> None:
    with pytest.raises(LinkError) as error:
        open_link(server.endpoint()).infer([(X, np.zeros(3, np.int8))], ["y"], 5)
    assert error.value.fault == "answer"
    assert server.methods == []


# Credentials.


def test_the_token_of_the_moment_is_shown_and_never_said(
    server: GrpcServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    link = open_link(server.endpoint(), Credentials(token_file=str(file)))
    link.metadata(5)
    assert server.metadata[-1]["authorization"] == f"Bearer {TOKEN}"
    file.write_text("another")
    link.metadata(5)
    assert server.metadata[-1]["authorization"] == "Bearer another"
    file.write_text(TOKEN)
    for code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND):
        server.answers["ModelInfer"] = abort(code, f"I saw Bearer {TOKEN}")
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
    with GrpcServer(signed.grpc(name)) as server:
        link = open_link(server.endpoint(), Credentials(ca_file=signed.cert("ca")))
        if name == "other":
            link = open_link(
                server.endpoint(host="localhost"), Credentials(ca_file=signed.cert("ca"))
            )
        assert words in fails(link, "denied")


def test_a_certificate_of_an_unknown_authority_is_named(signed: Certificates) -> None:
    with GrpcServer(signed.grpc("server")) as server:
        assert "set ca_file" in fails(open_link(server.endpoint()), "denied")


def test_a_demanded_client_certificate_is_named_and_shown(signed: Certificates) -> None:
    ca, cert, key = signed.cert("ca"), signed.cert("client"), signed.key("client")
    with GrpcServer(signed.grpc("server", demand_client=True)) as server:
        assert "client certificate" in fails(
            open_link(server.endpoint(), Credentials(ca_file=ca)), "denied"
        )
        link = open_link(server.endpoint(), Credentials(ca, cert, key))
        np.testing.assert_array_equal(link.infer([(X, FLOATS)], ["y"], 5)[0], FLOATS)


def test_a_server_without_tls_is_named(server: GrpcServer) -> None:
    link = open_link(Endpoint("grpcs", "127.0.0.1", server.port, "echo"))
    assert "does not speak TLS there; use grpc://" in fails(link, "denied")


# Answers that are wrong.


@pytest.mark.parametrize(
    "change",
    [
        {"name": "z"}, {"datatype": "FP64"}, {"datatype": "FP33"}, {"shape": [3]},
        {"shape": [-1]}, {"shape": [2**40]}, {"shape": [2**62, 4]}, {"shape": [0]}, {"shape": []},
        {"datatype": "BYTES"}, {"datatype": ""},
    ],
)  # fmt: skip
def test_an_answer_that_does_not_fit_is_refused(server: GrpcServer, change: dict[str, Any]) -> None:
    link = open_link(server.endpoint())
    link.metadata(5)
    content = FLOATS.tobytes()
    server.answers["ModelInfer"] = always(infer_response(content, **change).SerializeToString())
    fails(link, "answer")


def test_an_answer_of_another_rank_than_declared_is_refused(server: GrpcServer) -> None:
    link = open_link(server.endpoint())
    link.metadata(5)
    answer = infer_response(FLOATS.tobytes(), shape=[2, 2]).SerializeToString()
    server.answers["ModelInfer"] = always(answer)
    assert "declares" in fails(link, "answer")


def test_an_output_twice_or_without_content_is_refused(server: GrpcServer) -> None:
    twice = infer_response(FLOATS.tobytes())
    twice.outputs.append(twice.outputs[0])
    bare = infer_response(FLOATS.tobytes())
    del bare.raw_output_contents[:]
    both = infer_response(FLOATS.tobytes())
    both.outputs.append(both.outputs[0])
    both.raw_output_contents.append(FLOATS.tobytes())
    link = open_link(server.endpoint())
    for answer in (twice, bare, both):
        server.answers["ModelInfer"] = always(answer.SerializeToString())
        fails(link, "answer")


def test_nan_is_left_to_who_asked(server: GrpcServer) -> None:
    nans = np.full(4, np.nan, np.float32)
    assert np.isnan(open_link(server.endpoint()).infer([(X, nans)], ["y"], 5)[0]).all()


def test_an_answer_that_is_no_message_is_refused_without_a_traceback_in_the_log(
    server: GrpcServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers["ModelInfer"] = always(b"\xff" * 30)
    assert "cannot be read" in fails(open_link(server.endpoint()), "answer")
    assert not caplog.records
