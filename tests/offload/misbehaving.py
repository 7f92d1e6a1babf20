"""Servers of the protocol that answer whatever a test wants, on real sockets, with or without TLS.

Their one model is `echo`: x FP32 [-1] comes back as y. A test replaces one answer by another.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from infi_edge.executors.endpoint import Endpoint
from infi_edge.executors.link import RemoteTensor

X = RemoteTensor("x", "FP32", (-1,))
SERVICE = "inference.GRPCInferenceService"


class TcpServer:
    """Listens on loopback; each connection has a thread, and all end with the `with` block."""

    scheme = "tcp"

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.open: set[socket.socket] = set()
        self.accepted = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Any:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        self.drop()

    def endpoint(self, model: str = "echo", host: str = "127.0.0.1", prefix: str = "") -> Endpoint:
        scheme: Any = self.scheme if self._tls is None else f"{self.scheme}s"
        return Endpoint(scheme, host, self.port, model, prefix=prefix)

    def drop(self) -> None:
        """Close every connection."""
        with self._lock:
            ends = list(self.open)
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve(self, end: socket.socket) -> None:
        """Hold the connection until the client lets go, without a word."""
        while end.recv(1 << 16):
            pass

    def _accept(self) -> None:
        while True:
            try:
                end, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._serve, args=(end,), daemon=True).start()

    def _serve(self, end: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            try:
                if self._tls is not None:
                    end = self._tls.wrap_socket(end, server_side=True)
                with self._lock:
                    self.open.add(end)
                self.serve(end)
            finally:
                with self._lock:
                    self.open.discard(end)
                end.close()


@dataclass
class Request:
    """One HTTP request as it came; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


HttpAnswer = bytes | Iterable[bytes] | None
"""All bytes of a response; or pieces; or None: close without a word."""


class HttpServer(TcpServer):
    """`answer` says what each request gets; `answers` overrides it by path."""

    scheme = "http"

    def __init__(
        self, answers: dict[str, HttpAnswer] | None = None, *,
        binary: bool = True, tls: ssl.SSLContext | None = None,
    ) -> None:  # fmt: skip
        super().__init__(tls)
        self.answers: dict[str, HttpAnswer] = answers or {}
        self.binary = binary
        self.requests: list[Request] = []
        self.close_after_answer = False

    def serve(self, end: socket.socket) -> None:
        with end.makefile("rb") as stream:
            while (request := _request(stream)) is not None:
                self.requests.append(request)
                answer = self.answer(request)
                if answer is None:
                    return
                for piece in [answer] if isinstance(answer, bytes) else answer:
                    end.sendall(piece)
                if self.close_after_answer:
                    return

    def answer(self, request: Request) -> HttpAnswer:
        if request.path in self.answers:
            return self.answers[request.path]
        if request.path == "/v2":
            return ok({"name": "test", "extensions": ["binary_tensor_data"] * self.binary})
        if request.path == "/v2/models/echo":
            return ok(ECHO)
        if request.path == "/v2/models/echo/ready":
            return response(b"")
        if request.path == "/v2/models/echo/infer":
            return echo(request)
        if request.path == "/v2/repository/index":
            return ok([{"name": "echo"}])
        return response(json.dumps({"error": f"{request.path} not found"}).encode(), "404 No")


ECHO: dict[str, Any] = {
    "name": "echo", "versions": ["1"], "platform": "test",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}],
}  # fmt: skip


def response(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    """A whole HTTP response."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode() + body


def ok(told: Any, *headers: str) -> bytes:
    return response(json.dumps(told).encode(), "200 OK", *headers)


def binary_output(content: bytes, **changes: Any) -> bytes:
    """A response with the output y as a binary tensor."""
    output = {
        "name": "y", "datatype": "FP32", "shape": [len(content) // 4],
        "parameters": {"binary_data_size": len(content)}, **changes,
    }  # fmt: skip
    head = json.dumps({"model_name": "echo", "outputs": [output]}).encode()
    return response(head + content, "200 OK", f"Inference-Header-Content-Length: {len(head)}")


def echo(request: Request) -> bytes:
    """The answer in the form of the request."""
    length = request.headers.get("inference-header-content-length")
    if length is not None:
        return binary_output(request.body[int(length) :])
    given = json.loads(request.body)["inputs"][0]
    return ok({"model_name": "echo", "outputs": [{**given, "name": "y"}]})


def _request(stream: Any) -> Request | None:
    first = stream.readline(1 << 16).decode("latin-1").split()
    if len(first) < 2:
        return None
    headers = {}
    while (line := stream.readline(1 << 16).strip()) != b"":
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    body = stream.read(int(headers.get("content-length", "0")))
    return Request(first[0], first[1], headers, body)


GrpcAnswer = Callable[[bytes, grpc.ServicerContext], bytes]


class GrpcServer:
    """A real gRPC server; `answers` says, by method, which bytes a request's bytes get."""

    def __init__(self, tls: grpc.ServerCredentials | None = None) -> None:
        self.answers: dict[str, GrpcAnswer] = {}
        self.metadata: list[dict[str, str]] = []
        self.methods: list[str] = []
        self._tls = tls
        self._pool = ThreadPoolExecutor(8)
        self.port = 0
        self._server: Any = None

    def __enter__(self) -> GrpcServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def start(self) -> None:
        """Listen, on the same port as before if there was one."""
        self._server = grpc.server(
            self._pool,
            handlers=[_Methods(self)],
            options=[("grpc.so_reuseport", 0), ("grpc.max_send_message_length", -1)],
        )
        address = f"127.0.0.1:{self.port}"
        if self._tls is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, self._tls)
        self._server.start()

    def stop(self) -> None:
        """End it at once, with what it is doing."""
        self._server.stop(0).wait(10)

    def endpoint(self, model: str = "echo", host: str = "127.0.0.1") -> Endpoint:
        return Endpoint("grpc" if self._tls is None else "grpcs", host, self.port, model)

    def called(self, method: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.methods.append(method)
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})
        return (self.answers.get(method) or WELL[method])(request, context)


class _Methods(grpc.GenericRpcHandler):
    def __init__(self, server: GrpcServer) -> None:
        self._server = server

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = details.method.rpartition("/")[2]
        if method not in WELL and method not in self._server.answers:
            return None

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            return self._server.called(method, request, context)

        return grpc.unary_unary_rpc_method_handler(answer)


def infer_response(content: bytes = b"", **changes: Any) -> service_pb2.ModelInferResponse:
    """A ModelInferResponse with y as raw bytes."""
    fields = {"name": "y", "datatype": "FP32", "shape": [len(content) // 4], **changes}
    answer = service_pb2.ModelInferResponse(model_name="echo")
    answer.outputs.add(**fields)
    answer.raw_output_contents.append(content)
    return answer


def abort(code: grpc.StatusCode, words: str) -> GrpcAnswer:
    """An answer that is a status."""

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(code, words)

    return answer


def always(content: bytes) -> GrpcAnswer:
    """An answer that is the same for all."""
    return lambda request, context: content


def grpc_metadata() -> service_pb2.ModelMetadataResponse:
    answer = service_pb2.ModelMetadataResponse(name="echo", versions=["1"], platform="test")
    answer.inputs.add(name="x", datatype="FP32", shape=[-1])
    answer.outputs.add(name="y", datatype="FP32", shape=[-1])
    return answer


def _infer(request: bytes, context: grpc.ServicerContext) -> bytes:
    asked = service_pb2.ModelInferRequest.FromString(request)
    if asked.model_name != "echo":
        context.abort(grpc.StatusCode.NOT_FOUND, f"Model {asked.model_name} not found")
    return infer_response(asked.raw_input_contents[0]).SerializeToString()


def _metadata(request: bytes, context: grpc.ServicerContext) -> bytes:
    asked = service_pb2.ModelMetadataRequest.FromString(request)
    if asked.name != "echo":
        context.abort(grpc.StatusCode.NOT_FOUND, f"Model {asked.name} not found")
    return grpc_metadata().SerializeToString()


def _index(request: bytes, context: grpc.ServicerContext) -> bytes:
    answer = service_pb2.RepositoryIndexResponse()
    answer.models.add(name="echo")
    return answer.SerializeToString()


WELL: dict[str, GrpcAnswer] = {
    "ServerLive": always(service_pb2.ServerLiveResponse(live=True).SerializeToString()),
    "ModelReady": always(service_pb2.ModelReadyResponse(ready=True).SerializeToString()),
    "ModelMetadata": _metadata,
    "ModelInfer": _infer,
    "RepositoryIndex": _index,
}


@dataclass
class Certificates:
    """A CA and what it has signed, as PEM files made by openssl."""

    folder: Path
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", "/CN=test CA", "-days", "2", "-keyout", self.key("ca"),
            "-out", self.cert("ca"),
        )  # fmt: skip

    def cert(self, name: str) -> str:
        return str(self.folder / f"{name}.pem")

    def key(self, name: str) -> str:
        return str(self.folder / f"{name}.key")

    def sign(self, name: str, hosts: str = "DNS:localhost,IP:127.0.0.1", days: int = 2) -> None:
        """Make name.pem and name.key. days: below 0: expired."""
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={hosts}\n")
        self._openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", f"/CN={name}", "-keyout", self.key(name), "-out", f"{self.cert(name)}.csr",
        )  # fmt: skip
        self._openssl(
            "x509", "-req", "-in", f"{self.cert(name)}.csr", "-CA", self.cert("ca"),
            "-CAkey", self.key("ca"), "-CAcreateserial", "-days", str(days),
            "-extfile", str(extensions), "-out", self.cert(name),
        )  # fmt: skip

    def http(self, name: str, demand_client: bool = False) -> ssl.SSLContext:
        """What an HTTP server with a certificate speaks."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert(name), self.key(name))
        if demand_client:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.cert("ca"))
        return context

    def grpc(self, name: str, demand_client: bool = False) -> grpc.ServerCredentials:
        """What a gRPC server with a certificate speaks."""
        pair = Path(self.key(name)).read_bytes(), Path(self.cert(name)).read_bytes()
        roots = Path(self.cert("ca")).read_bytes() if demand_client else None
        return grpc.ssl_server_credentials([pair], roots, demand_client)

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30)


def certificates(folder: Path) -> Certificates:
    """server, other (another host), expired, client, stranger (a CA that nobody trusts)."""
    made = Certificates(folder)
    made.sign("server")
    made.sign("other", "DNS:elsewhere.example")
    made.sign("expired", days=-1)
    made.sign("client")
    return made
