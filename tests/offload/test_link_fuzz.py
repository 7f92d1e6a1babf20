"""Whatever a server answers: in time, either arrays that are what was asked for, or a LinkError."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from infi_edge.executors.credentials import Credentials
from infi_edge.executors.grpc_link import GrpcLink
from infi_edge.executors.http_link import HttpLink
from infi_edge.executors.link import Link, LinkError
from infi_edge.executors.traffic import Traffic
from tests.offload.misbehaving import (
    ECHO,
    GrpcServer,
    HttpServer,
    X,
    abort,
    always,
    binary_output,
    grpc_metadata,
    infer_response,
    ok,
    response,
)

FLOATS = np.arange(4, dtype=np.float32)
INFER, MODEL = "/v2/models/echo/infer", "/v2/models/echo"
DEADLINE_S, SLACK_S = 5.0, 20.0
MOST_BYTES = 1 << 20

fuzz = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def http() -> Iterator[HttpServer]:
    with HttpServer() as server:
        server.close_after_answer = True
        yield server


@pytest.fixture(scope="module")
def rpc() -> Iterator[GrpcServer]:
    with GrpcServer() as server:
        yield server


def law(link: Link) -> LinkError | None:
    """Hold a link to the law; returns what it raised."""
    start_s, raised = time.monotonic(), None
    try:
        link.metadata(DEADLINE_S)
        outputs = link.infer([(X, FLOATS)], ["y"], DEADLINE_S)
        assert len(outputs) == 1
        for output in outputs:
            assert isinstance(output, np.ndarray)
            assert output.ndim <= 16
            assert output.nbytes <= 16 * MOST_BYTES
            output.tobytes()  # every element is there to be read
    except LinkError as error:
        raised = error
    assert time.monotonic() - start_s < 2 * DEADLINE_S + SLACK_S
    assert len(str(raised)) < 1000
    assert str(raised).isprintable()
    link.close()
    return raised


def http_law(server: HttpServer, path: str, answer: Any) -> LinkError | None:
    server.answers = {path: answer}
    return law(HttpLink(server.endpoint(), Credentials(), Traffic(), MOST_BYTES))


def rpc_law(server: GrpcServer, method: str, answer: Any) -> LinkError | None:
    server.answers = {method: answer}
    return law(GrpcLink(server.endpoint(), Credentials(), Traffic(), MOST_BYTES))


def mutated(whole: bytes) -> st.SearchStrategy[bytes]:
    """Bytes with some changed, taken out, put in or repeated."""

    def change(edits: list[tuple[int, int, bytes]]) -> bytes:
        content = whole
        for at, count, put in edits:
            start = at % (len(content) + 1)
            content = content[:start] + put + content[start + count :]
        return content

    edit = st.tuples(st.integers(0, 10_000), st.integers(0, 20), st.binary(max_size=8))
    return st.lists(edit, min_size=1, max_size=4).map(change)


JSON_OUTPUT = {"name": "y", "datatype": "FP32", "shape": [4], "data": [0.0, 1.0, 2.0, 3.0]}
PARTS = (b'{"outputs": [', json.dumps(JSON_OUTPUT).encode(), b"]}")
WHOLE = {
    "binary": (INFER, binary_output(FLOATS.tobytes())),
    "json": (INFER, ok({"model_name": "echo", "outputs": [JSON_OUTPUT]})),
    "metadata": (MODEL, ok(ECHO)),
    "chunked": (
        INFER,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in PARTS)
        + b"0\r\n\r\n",
    ),
    "extensions": ("/v2", ok({"extensions": ["binary_tensor_data"]})),
    "refusal": (INFER, response(b'{"error": "no"}', "400 Bad Request")),
}


@pytest.mark.parametrize("kind", WHOLE)
@given(data=st.data())
@fuzz
def test_a_changed_http_answer(http: HttpServer, kind: str, data: st.DataObject) -> None:
    path, whole = WHOLE[kind]
    http_law(http, path, data.draw(mutated(whole)))


@pytest.mark.parametrize("kind", ["binary", "json", "metadata", "chunked"])
def test_an_http_answer_that_ends_anywhere(http: HttpServer, kind: str) -> None:
    path, whole = WHOLE[kind]
    body = whole.index(b"\r\n\r\n") + 4
    for end in range(len(whole)):
        error = http_law(http, path, whole[:end])
        if body <= end < len(whole) - len(b"\r\n\r\n"):
            assert error is not None
            assert error.fault == "link"


@pytest.mark.parametrize(
    "header",
    [
        "Content-Length: 1", "Content-Length: -1", "Content-Length: x", "Content-Length: 99999999",
        "Content-Length: " + "9" * 5000, "Transfer-Encoding: chunked", "Transfer-Encoding: gzip",
        "Inference-Header-Content-Length: -1", "Inference-Header-Content-Length: 999999",
        "Inference-Header-Content-Length: " + "9" * 5000, "Inference-Header-Content-Length: \xb2",
        "Content-Encoding: br", "X: " + "y" * 70_000, "no colon", ": no name", "X:\x00", "é: ü",
        "Content-Type: multipart/mixed; boundary=a", " folded", "Upgrade: websocket",
        *(["\r\n".join(f"X{i}: y" for i in range(200))]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("first", [True, False])
def test_a_header_that_contradicts(http: HttpServer, header: str, first: bool) -> None:
    head, _, body = binary_output(FLOATS.tobytes()).partition(b"\r\n\r\n")
    status, _, rest = head.partition(b"\r\n")
    line = header.encode()
    lines = [status, line, rest] if first else [status, rest, line]
    http_law(http, INFER, b"\r\n".join([*lines, b"", body]))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["FP32", "INT8", "BYTES", "y", "x", [4], [-1], 2**40]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["name", "datatype", "shape", "data", "parameters", "binary_data_size"]
            ),
            inner,
        )
    ),
    max_leaves=15,
)
FIELDS = ("name", "datatype", "shape", "data", "parameters")


@given(JSON, st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3))
@fuzz
def test_json_of_any_shape(http: HttpServer, outputs: Any, changes: dict[str, Any]) -> None:
    http_law(http, INFER, ok({"outputs": outputs}))
    http_law(http, INFER, ok({"outputs": [{**JSON_OUTPUT, **changes}]}))
    http_law(http, MODEL, ok({**ECHO, "outputs": outputs, "versions": changes}))
    http_law(http, "/v2", ok(outputs))
    http_law(http, INFER, response(json.dumps(outputs).encode(), "500 Bug"))


METADATA = grpc_metadata().SerializeToString()
CONTENTS = service_pb2.ModelInferResponse()
CONTENTS.outputs.add(name="y", datatype="FP32", shape=[4]).contents.fp32_contents.extend(FLOATS)
MESSAGES = {
    "raw": ("ModelInfer", infer_response(FLOATS.tobytes()).SerializeToString()),
    "contents": ("ModelInfer", CONTENTS.SerializeToString()),
    "metadata": ("ModelMetadata", METADATA),
    "live": ("ServerLive", b"\x08\x01"),
}


@pytest.mark.parametrize("kind", MESSAGES)
@given(data=st.data())
@fuzz
def test_a_changed_grpc_answer(rpc: GrpcServer, kind: str, data: st.DataObject) -> None:
    method, whole = MESSAGES[kind]
    rpc_law(rpc, method, always(data.draw(mutated(whole))))


@pytest.mark.parametrize("kind", ["raw", "contents", "metadata"])
def test_a_grpc_message_that_ends_anywhere(rpc: GrpcServer, kind: str) -> None:
    method, whole = MESSAGES[kind]
    for end in range(len(whole)):
        rpc_law(rpc, method, always(whole[:end]))


@given(
    st.text(max_size=5),
    st.sampled_from(["FP32", "INT8", "BYTES", "BOOL", "BF16", "UINT64", "", "FP33"]),
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 4), max_size=4),
    st.lists(st.binary(max_size=20), max_size=3),
)
@fuzz
def test_a_grpc_answer_of_any_shape(
    rpc: GrpcServer, name: str, datatype: str, shape: list[int], contents: list[bytes]
) -> None:
    answer = service_pb2.ModelInferResponse(raw_output_contents=contents)
    for one in (name, "y"):
        answer.outputs.add(name=one, datatype=datatype, shape=shape)
    rpc_law(rpc, "ModelInfer", always(answer.SerializeToString()))
    del answer.outputs[0]
    rpc_law(rpc, "ModelInfer", always(answer.SerializeToString()))
    told = service_pb2.ModelMetadataResponse(name="echo")
    told.outputs.add(name="y", datatype=datatype, shape=shape)
    rpc_law(rpc, "ModelMetadata", always(told.SerializeToString()))


@pytest.mark.parametrize("method", ["ServerLive", "ModelMetadata", "ModelInfer"])
@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c is not grpc.StatusCode.OK])
def test_every_status_at_every_step(rpc: GrpcServer, method: str, code: grpc.StatusCode) -> None:
    error = rpc_law(rpc, method, abort(code, "words\n" * 100))
    assert (error is None) == (method == "ServerLive")  # what that says does not matter


def test_an_answer_that_claims_to_be_huge_takes_no_memory(
    http: HttpServer, rpc: GrpcServer
) -> None:
    rpc_law(rpc, "ModelInfer", always(infer_response(bytes(2 * MOST_BYTES)).SerializeToString()))
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for shape in ([2**40], [2**31, 2**31], [2**62, 4, 0]):
        rpc_law(rpc, "ModelInfer", always(infer_response(b"1234", shape=shape).SerializeToString()))
        http_law(http, INFER, binary_output(b"1234", shape=shape))
        http_law(http, INFER, ok({"outputs": [{**JSON_OUTPUT, "shape": shape}]}))
    head = b"HTTP/1.1 200 OK\r\n"
    http_law(http, INFER, head + b"Content-Length: 99999999999\r\n\r\n")
    http_law(http, INFER, head + b"Transfer-Encoding: chunked\r\n\r\nfffffffffff\r\n")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 50_000
