"""The Open Inference Protocol over HTTP: tritonclient's messages on a connection of our own.

tritonclient's HTTP client has deadlines per read only, reads responses of any size, and hides its
sockets.
"""

from __future__ import annotations

import base64
import http.client
import json
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from infi_edge.errors import ConfigError
from infi_edge.executors.credentials import Credentials
from infi_edge.executors.endpoint import Endpoint
from infi_edge.executors.http_connection import HttpConnection, tls_error
from infi_edge.executors.http_faults import STALE, broken, refused, tls_denial
from infi_edge.executors.link import LinkError, RemoteMetadata, RemoteTensor, Tensors
from infi_edge.executors.tensors import check_declared, from_bytes, from_numbers, remote_metadata
from infi_edge.executors.traffic import Cause, Traffic

CHUNK = 64 << 10
MAX_METADATA_BYTES = 1 << 20
MAX_REFUSAL_BYTES = 64 << 10
MAX_JSON_VALUES = 4 << 20
LISTEN_S = NAMES_S = 1.0
_HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True)
class _Answer:
    """status: of HTTP. json_length: of the JSON part of a body that has more; else None."""

    status: int
    content: bytes | bytearray
    json_length: str | None


class HttpLink:
    """One keep-alive HTTP connection."""

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
        self._max_bytes = max_response_bytes
        self._root = f"{quote(endpoint.prefix)}/v2"
        self._path = f"{self._root}/models/{quote(endpoint.model)}"
        if endpoint.version:
            self._path += f"/versions/{endpoint.version}"
        self._binary: bool | None = None
        self._declared: dict[str, RemoteTensor] = {}
        self._tls = credentials.context() if endpoint.is_secure else None
        self._connection = HttpConnection(endpoint.host, endpoint.port, self._tls)
        self._counted = (0, 0)
        self._in_use = threading.Lock()
        self._closed = False

    def metadata(self, timeout_s: float) -> RemoteMetadata:
        """Ask what the model is. Raises LinkError."""
        until_s = time.monotonic() + timeout_s
        self._ask_extensions(until_s)
        told = self._json(self._get(self._path, until_s, "metadata"))
        found = remote_metadata(
            told.get("name"),
            told.get("versions"),
            told.get("platform", ""),
            _declared(told.get("inputs")),
            _declared(told.get("outputs")),
            str(self._endpoint),
        )
        self._declared = {tensor.name: tensor for tensor in found.outputs}
        return found

    def ready(self, timeout_s: float) -> bool:
        """Ask whether the model can be used now. Raises LinkError if nothing answers."""
        try:
            self._get(f"{self._path}/ready", time.monotonic() + timeout_s, "probe")
        except LinkError as error:
            if error.fault in ("answer", "failed", "missing"):
                return False
            raise
        return True

    def infer(
        self, inputs: Tensors, outputs: Sequence[str], timeout_s: float, cause: Cause = "infer"
    ) -> list[np.ndarray]:
        """Run the model once. Raises LinkError."""
        until_s = time.monotonic() + timeout_s
        if self._binary is None:
            self._ask_extensions(until_s)
        headers = {"Content-Type": "application/json"}
        if self._binary:
            body, length = self._binary_body(inputs, outputs)
            headers = {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(length)}
        else:
            body = self._json_body(inputs, outputs)
        answer = self._request(
            "POST", f"{self._path}/infer", until_s, cause, self._max_bytes, body, headers
        )
        return self._outputs(answer, outputs)

    def close(self) -> None:
        """Let go of the connection; what runs in another thread ends with a LinkError."""
        self._closed = True
        self._connection.wake()
        if self._in_use.acquire(blocking=False):
            self._count("infer")
            self._connection.close()
            self._in_use.release()

    # What is asked.

    def _ask_extensions(self, until_s: float) -> None:
        """Notice whether the server takes binary tensors."""
        try:
            extensions = self._json(self._get(self._root, until_s, "metadata")).get("extensions")
        except LinkError as error:
            if error.fault != "missing":
                raise
            extensions = None  # some serve the models' paths alone
        self._binary = isinstance(extensions, list) and "binary_tensor_data" in extensions

    def _get(self, path: str, until_s: float, cause: Cause) -> _Answer:
        return self._request("GET", path, until_s, cause, MAX_METADATA_BYTES)

    def _binary_body(self, inputs: Tensors, outputs: Sequence[str]) -> tuple[bytes, int]:
        given = []
        try:
            for tensor, array in inputs:
                one = InferInput(tensor.name, list(array.shape), tensor.datatype)
                one.set_data_from_numpy(array, binary_data=True)
                given.append(one)
        except InferenceServerException as error:
            raise LinkError("answer", f"{self._endpoint}: {error.message()}") from error
        wanted = [InferRequestedOutput(name, binary_data=True) for name in outputs]
        body, length = InferenceServerClient.generate_request_body(given, outputs=wanted)
        return body, len(body) if length is None else length

    def _json_body(self, inputs: Tensors, outputs: Sequence[str]) -> bytes:
        tensors = []
        for tensor, array in inputs:
            one: dict[str, Any] = {
                "name": tensor.name, "shape": list(array.shape), "datatype": tensor.datatype
            }  # fmt: skip
            if array.dtype == object:
                one["parameters"] = {"content_type": "base64"}
                one["data"] = [base64.b64encode(b).decode("ascii") for b in array.ravel()]
            else:
                one["data"] = array.ravel().tolist()
            tensors.append(one)
        request = {"inputs": tensors, "outputs": [{"name": name} for name in outputs]}
        try:
            return json.dumps(request, allow_nan=False, separators=(",", ":")).encode()
        except ValueError as error:
            raise LinkError(
                "answer", f"{self._endpoint} takes JSON, which has no NaN and no infinity"
            ) from error

    # What is answered.

    def _unreadable(self) -> LinkError:
        return LinkError("answer", f"{self._endpoint} answered what cannot be read")

    def _json(self, answer: _Answer, length: int | None = None) -> dict[str, Any]:
        content = answer.content if length is None else answer.content[:length]
        if sum(map(content.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
            # Two bytes each on the way may be seventy here.
            raise LinkError(
                "answer", f"{self._endpoint} answered more values as JSON than can be read"
            )
        try:
            told = json.loads(content)
        except (ValueError, RecursionError) as error:
            if bytes(content[:64]).lstrip()[:1] == b"<":
                raise LinkError(
                    "link", f"{self._endpoint} answered a web page; is there a login page or a "
                    "proxy on the way?"
                ) from error  # fmt: skip
            raise self._unreadable() from error
        if not isinstance(told, dict):
            raise self._unreadable()
        return told

    def _outputs(self, answer: _Answer, names: Sequence[str]) -> list[np.ndarray]:
        at = self._json_length(answer)
        told, content = self._json(answer, at).get("outputs"), memoryview(answer.content)
        if not isinstance(told, list):
            raise self._unreadable()
        found: dict[str, np.ndarray] = {}
        for output in told:
            if not isinstance(output, dict) or not isinstance(output.get("name"), str):
                raise self._unreadable()
            name = output["name"]
            if name in found:
                raise LinkError("answer", f"{self._endpoint} answered {name[:100]} twice")
            size = _parameters(output).get("binary_data_size", 0)
            if type(size) is not int or not 0 <= size <= len(content) - at:
                raise self._unreadable()
            found[name] = self._array(output, content[at : at + size])
            at += size
        missing = [name for name in names if name not in found]
        if missing:
            raise LinkError("answer", f"{self._endpoint} did not answer {missing[0]}")
        return [found[name] for name in names]

    def _array(self, output: dict[str, Any], content: memoryview) -> np.ndarray:
        name, where = output["name"], str(self._endpoint)
        datatype, shape, parameters = (
            output.get("datatype"),
            output.get("shape"),
            _parameters(output),
        )
        if "binary_data_size" in parameters:
            array = from_bytes(content, datatype, shape, name, where)
        else:
            kind = parameters.get("content_type")
            array = from_numbers(output.get("data"), datatype, shape, name, where, kind)
        return check_declared(array, self._declared.get(name), where)

    def _json_length(self, answer: _Answer) -> int:
        told = answer.json_length
        if told is None:
            return len(answer.content)
        good = told.isascii() and told.isdigit() and len(told) < 19
        if not good or int(told) > len(answer.content):
            raise self._unreadable()
        return int(told)

    # The connection.

    def _request(
        self,
        method: str,
        path: str,
        until_s: float,
        cause: Cause,
        most: int,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> _Answer:
        """Return an answer with a status of success. Raises LinkError."""
        try:
            token = self._credentials.token()
        except ConfigError as error:
            raise LinkError("denied", str(error)) from error
        headers = {"Accept-Encoding": "identity", **(headers or {})}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        with self._in_use:
            try:
                if self._closed:
                    raise ValueError("closed")
                answer = self._exchanged(method, path, body, headers, until_s, cause, most)
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise self._fault(error, token, until_s) from error
            finally:
                if self._closed:
                    self._connection.close()
        if 200 <= answer.status < 300:
            return answer
        refusal = refused(answer.status, bytes(answer.content), self._endpoint, token)
        if refusal.fault == "missing" and path != f"{self._root}/repository/index":
            refusal = LinkError("missing", f"{refusal}{self._names(until_s)}")
        raise refusal

    def _fault(self, error: Exception, token: str | None, until_s: float) -> LinkError:
        endpoint = self._endpoint
        if self._closed:
            return LinkError("link", f"{endpoint}: the link is closed")
        if self._tls is not None and isinstance(error, STALE):
            until_s = min(until_s, time.monotonic() + LISTEN_S)
            told = tls_error(endpoint.host, endpoint.port, self._tls, until_s)
            return tls_denial(told, endpoint) or broken(error, endpoint, token)
        return broken(error, endpoint, token)

    def _names(self, until_s: float) -> str:
        """What else the server has, where it tells."""
        path = f"{self._root}/repository/index"
        until_s = min(until_s, time.monotonic() + NAMES_S)
        with suppress(LinkError, ValueError, TypeError, RecursionError):
            answer = self._request("POST", path, until_s, "metadata", MAX_METADATA_BYTES, b"{}")
            models = [m for m in json.loads(answer.content) if isinstance(m, dict)]
            names = sorted({str(model.get("name"))[:100] for model in models})[:5]
            return f"; it has {', '.join(names)}" if names else ""
        return ""

    def _exchanged(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str],
        until_s: float,
        cause: Cause,
        most: int,
    ) -> _Answer:
        """Ask on the kept connection if there is one, else or if it proves stale on a new one."""
        connection = self._connection
        connection.until_s = until_s
        sent, received = len(body or b""), 0
        for kept in (connection.is_kept(), False):
            try:
                if not kept:
                    self._counted = (0, 0)
                    connection.connect()
                connection.request(method, path, body, headers)
                answer = self._read(connection.getresponse(), most)
                received = len(answer.content)
                return answer
            except STALE:
                connection.close()
                # The server closes idle connections; one that is new has no such excuse.
                if not kept or self._closed:
                    raise
            except BaseException:
                connection.close()
                raise
            finally:
                self._count(cause, sent, received)
        raise AssertionError("not reached")

    def _read(self, response: http.client.HTTPResponse, most: int) -> _Answer:
        with response:
            if not 200 <= response.status < 300:
                content: bytes | bytearray = response.read(MAX_REFUSAL_BYTES)
                if not response.isclosed():
                    self._connection.close()
                return _Answer(response.status, content, None)
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise LinkError("answer", f"{self._endpoint} answered compressed, unasked")
            too_much = LinkError("answer", f"{self._endpoint} answered more than {most} bytes")
            if response.length is None:
                parts, size = [], 0
                while part := response.read(min(CHUNK, most + 1 - size)):
                    parts.append(part)
                    size += len(part)
                    if size > most:
                        raise too_much
                content = b"".join(parts)
            elif response.length > most:
                raise too_much
            else:
                content = bytearray(response.length)
                if response.readinto(content) != len(content):
                    raise http.client.IncompleteRead(b"")
            return _Answer(response.status, content, response.headers.get(_HEADER_LENGTH))

    def _count(self, cause: Cause, sent: int = 0, received: int = 0) -> None:
        """sent, received: bytes of content, for a kernel that does not tell all."""
        end = self._connection.end
        now = None if end is None else end.moved()
        if now is not None:
            before, self._counted = self._counted, now
            self._traffic.add(cause, now[0] - before[0], now[1] - before[1])
        elif end is not None:
            self._traffic.add(cause, sent, received, exact=False)


def _parameters(output: dict[str, Any]) -> dict[str, Any]:
    parameters = output.get("parameters")
    return parameters if isinstance(parameters, dict) else {}


def _declared(tensors: Any) -> list[tuple[Any, Any, Any]]:
    if not isinstance(tensors, list):
        return []
    rows = [t if isinstance(t, dict) else {} for t in tensors]
    return [(t.get("name"), t.get("datatype"), t.get("shape")) for t in rows]
