"""The Open Inference Protocol over gRPC, by tritonclient."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np

# Its C part writes to stderr what we raise anyway, once per attempt; it reads this when loaded.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from infi_edge.errors import ConfigError
from infi_edge.executors.credentials import Credentials
from infi_edge.executors.endpoint import Endpoint
from infi_edge.executors.grpc_faults import link_error
from infi_edge.executors.http_connection import tls_error
from infi_edge.executors.http_faults import tls_denial
from infi_edge.executors.link import LinkError, RemoteMetadata, RemoteTensor, Tensors
from infi_edge.executors.sockets import Connection, claim, connecting, release
from infi_edge.executors.tensors import check_declared, from_bytes, from_numbers, remote_metadata
from infi_edge.executors.traffic import Cause, Traffic

# The Python part logs an answer that it cannot read with a traceback; we raise that as well.
logging.getLogger("grpc._common").setLevel(logging.CRITICAL)

T = TypeVar("T")

CONNECT_S = 3.0
LISTEN_S = NAMES_S = 1.0
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # how long an attempt may take, despite its name
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.enable_http_proxy", 0),
)
_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents",
    "INT32": "int_contents", "INT64": "int64_contents", "UINT8": "uint_contents",
    "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


class GrpcLink:
    """One gRPC channel with a connection of its own."""

    def __init__(
        self,
        endpoint: Endpoint,
        credentials: Credentials,
        traffic: Traffic,
        max_response_bytes: int = 64 << 20,
    ) -> None:
        """Nothing is sent yet. Raises ConfigError for files that cannot be read or used."""
        credentials.check(endpoint)
        self._endpoint, self._credentials, self._traffic = endpoint, credentials, traffic
        self._options = [*_OPTIONS, ("grpc.max_receive_message_length", max_response_bytes)]
        self._max_bytes = max_response_bytes
        self._context = self._tls = None
        if endpoint.is_secure:
            self._context = credentials.context()
            self._context.set_alpn_protocols(["h2"])
            self._tls = grpc.ssl_channel_credentials(*credentials.pem())
        self._client: InferenceServerClient | None = None
        self._connection: Connection | None = None
        self._counted = (0, 0)
        self._declared: dict[str, RemoteTensor] = {}
        self._unseen = False
        self._closed = False

    def metadata(self, timeout_s: float) -> RemoteMetadata:
        """Ask what the model is. Raises LinkError."""
        endpoint = self._endpoint
        told = self._call(
            lambda client, headers, left_s: client.get_model_metadata(
                endpoint.model, endpoint.version, headers, client_timeout=left_s
            ),
            timeout_s,
            "metadata",
        )
        found = remote_metadata(
            told.name,
            list(told.versions),
            told.platform,
            [(t.name, t.datatype, list(t.shape)) for t in told.inputs],
            [(t.name, t.datatype, list(t.shape)) for t in told.outputs],
            str(endpoint),
        )
        self._declared = {tensor.name: tensor for tensor in found.outputs}
        return found

    def ready(self, timeout_s: float) -> bool:
        """Ask whether the model can be used now. Raises LinkError if nothing answers."""
        endpoint = self._endpoint
        try:
            return bool(
                self._call(
                    lambda client, headers, left_s: client.is_model_ready(
                        endpoint.model, endpoint.version, headers, client_timeout=left_s
                    ),
                    timeout_s,
                    "probe",
                )
            )
        except LinkError as error:
            if error.fault in ("answer", "failed", "missing"):
                return False
            raise

    def infer(
        self, inputs: Tensors, outputs: Sequence[str], timeout_s: float, cause: Cause = "infer"
    ) -> list[np.ndarray]:
        """Run the model once. Raises LinkError."""
        endpoint, given = self._endpoint, self._given(inputs)
        wanted = [InferRequestedOutput(name) for name in outputs]
        result = self._call(
            lambda client, headers, left_s: client.infer(
                endpoint.model,
                given,
                endpoint.version,
                wanted,
                headers=headers,
                client_timeout=left_s,
            ),
            timeout_s,
            cause,
        )
        response = result.get_response()
        if self._unseen:
            sent = sum(array.nbytes for _, array in inputs)
            self._traffic.add(cause, sent, response.ByteSize(), exact=False)
        return self._outputs(response, outputs)

    def close(self) -> None:
        """Let go of the connection; what runs in another thread ends with a LinkError."""
        self._closed = True
        self._drop("infer")

    def _given(self, inputs: Tensors) -> list[InferInput]:
        given = []
        try:
            for tensor, array in inputs:
                one = InferInput(tensor.name, list(array.shape), tensor.datatype)
                one.set_data_from_numpy(array)
                given.append(one)
        except InferenceServerException as error:
            raise LinkError("answer", f"{self._endpoint}: {error.message()}") from error
        return given

    def _outputs(self, response: Any, names: Sequence[str]) -> list[np.ndarray]:
        where, raw = str(self._endpoint), response.raw_output_contents
        if raw and len(raw) != len(response.outputs):
            raise LinkError("answer", f"{where} answered {len(raw)} contents of other outputs")
        found: dict[str, np.ndarray] = {}
        for index, output in enumerate(response.outputs):
            name, shape = output.name, list(output.shape)
            if name in found:
                raise LinkError("answer", f"{where} answered {name[:100]} twice")
            if raw:
                array = from_bytes(raw[index], output.datatype, shape, name, where)
            else:
                field = _CONTENTS.get(output.datatype)
                data = list(getattr(output.contents, field)) if field else None
                array = from_numbers(data, output.datatype, shape, name, where)
            found[name] = check_declared(array, self._declared.get(name), where)
        missing = [name for name in names if name not in found]
        if missing:
            raise LinkError("answer", f"{where} did not answer {missing[0]}")
        return [found[name] for name in names]

    def _call(
        self,
        ask: Callable[[InferenceServerClient, dict[str, str] | None, float], T],
        timeout_s: float,
        cause: Cause,
    ) -> T:
        until_s = time.monotonic() + timeout_s
        try:
            token = self._credentials.token()
        except ConfigError as error:
            raise LinkError("denied", str(error)) from error
        headers = None if token is None else {"authorization": f"Bearer {token}"}
        try:
            if self._closed:
                raise ValueError("closed")
            client = self._connected(headers, until_s)
            return ask(client, headers, max(until_s - time.monotonic(), 0.001))
        except InferenceServerException as error:
            raise self._fault(error, token, headers, until_s) from error
        except TimeoutError as error:
            raise LinkError("link", f"{self._endpoint} gave no answer in time") from error
        except ValueError as error:
            if self._closed:
                raise LinkError("link", f"{self._endpoint}: the link is closed") from error
            raise LinkError("answer", f"{self._endpoint} cannot be asked this: {error}") from error
        finally:
            self._count(cause)
            if self._closed:
                self._drop(cause)

    def _fault(
        self,
        error: InferenceServerException,
        token: str | None,
        headers: dict[str, str] | None,
        until_s: float,
    ) -> LinkError:
        endpoint = self._endpoint
        fault = link_error(error, endpoint, token, self._max_bytes)
        if fault.fault == "missing":
            return LinkError("missing", f"{fault}{self._names(headers, until_s)}")
        if self._context is not None and error.status() == "StatusCode.UNAVAILABLE":
            # gRPC hides what TLS has said.
            until_s = min(until_s, time.monotonic() + LISTEN_S)
            told = tls_error(endpoint.host, endpoint.port, self._context, until_s)
            return tls_denial(told, endpoint) or fault
        return fault

    def _names(self, headers: dict[str, str] | None, until_s: float) -> str:
        """What else the server has, where it tells."""
        client = self._client
        if client is None:  # closed by another thread
            return ""
        with suppress(InferenceServerException, ValueError, AttributeError):
            left_s = max(min(until_s - time.monotonic(), NAMES_S), 0.001)
            index = client.get_model_repository_index(headers, client_timeout=left_s)
            names = sorted({model.name[:100] for model in index.models})[:5]
            return f"; it has {', '.join(names)}" if names else ""
        return ""

    # The connection.

    def _connected(self, headers: dict[str, str] | None, until_s: float) -> InferenceServerClient:
        client, connection = self._client, self._connection
        seen = connection is not None and connection.moved() is not None
        if client is not None and (seen or self._unseen):
            return client
        if client is None:
            client = self._client = InferenceServerClient(
                self._endpoint.authority, creds=self._tls, channel_args=self._options
            )
        release(connection)
        with connecting(self._endpoint.port, until_s):
            reached = _connect(client, headers, min(until_s - time.monotonic(), CONNECT_S))
            self._connection, self._counted = claim(self._endpoint.port), (0, 0)
        self._unseen = reached and self._connection is None
        return client

    def _drop(self, cause: Cause) -> None:
        self._count(cause)
        client, self._client = self._client, None
        connection, self._connection = self._connection, None
        release(connection)
        if client is not None:
            client.close()

    def _count(self, cause: Cause) -> None:
        connection = self._connection
        now = None if connection is None else connection.moved()
        if now is not None:
            before, self._counted = self._counted, now
            self._traffic.add(cause, now[0] - before[0], now[1] - before[1])


def _connect(client: InferenceServerClient, headers: dict[str, str] | None, most_s: float) -> bool:
    """Connect by a small call, as any call does; what it says does not matter."""
    try:
        client.is_server_live(headers, client_timeout=max(most_s, 0.001))
    except InferenceServerException:
        return False
    return True
