"""What gRPC's errors mean for the one who asked; it hides most of it in texts."""

from __future__ import annotations

from typing import Any

from infi_edge.executors.credentials import quoted
from infi_edge.executors.endpoint import Endpoint
from infi_edge.executors.link import Fault, LinkError

_FAULTS: dict[str, Fault] = {
    "UNAUTHENTICATED": "denied",
    "PERMISSION_DENIED": "denied",
    "NOT_FOUND": "missing",
    "UNIMPLEMENTED": "missing",
    "INTERNAL": "failed",
    "UNKNOWN": "failed",
    "DATA_LOSS": "failed",
    "INVALID_ARGUMENT": "answer",
    "OUT_OF_RANGE": "answer",
    "FAILED_PRECONDITION": "answer",
    "ALREADY_EXISTS": "answer",
}
"""By status code; the others are the link's."""

_UNKNOWN_MODEL = ("unknown model", "not found", "not ready", "no version")
_BROKEN = (
    ("onnection refused", "nothing answers there (connection refused); start the server, or check "
     "host and port"),
    ("errors resolving", "the host's name is not known; check it"),
    ("DNS resolution failed", "the host's name is not known; check it"),
    ("o route to host", "there is no way there (no route to host); check the network"),
    ("etwork is unreachable", "there is no way there (network is unreachable); check the network"),
    ("reset by peer", "the connection broke"),
    ("ocket closed", "the connection broke"),
    ("http1.x", "it speaks HTTP and not gRPC there; use http:// or another port"),
)  # fmt: skip


def link_error(error: Any, endpoint: Endpoint, token: str | None, most: int) -> LinkError:
    """Return what to raise for tritonclient's InferenceServerException."""
    message = str(error.message() or "")
    code = str(error.status() or "").rpartition(".")[2]
    where, told = str(endpoint), quoted(message, token) or "no reason given"
    if code == "RESOURCE_EXHAUSTED" and "larger than max" in message:
        return LinkError("answer", f"{where} answered more than {most} bytes")
    if "deserializing response" in message:
        return LinkError("answer", f"{where} answered what cannot be read")
    if code == "DEADLINE_EXCEEDED":
        return LinkError("link", f"{where} gave no answer in time")
    fault = _FAULTS.get(code, "link")
    unknown = endpoint.model in message and any(text in message for text in _UNKNOWN_MODEL)
    broken = code == "UNAVAILABLE" and any(text in message for text, _ in _BROKEN)
    if unknown and not broken and fault != "denied":
        fault = "missing"
    if fault == "missing":
        return LinkError(fault, f"{where}: the server has no such model or version: {told}")
    if fault == "denied":
        return LinkError(fault, f"{where} refuses us ({code}); set token_file or token_env")
    if fault == "failed":
        return LinkError(fault, f"{where}: the server failed: {told}")
    if fault == "answer":
        return LinkError(fault, f"{where}: the server refused this: {told}")
    if code == "UNAVAILABLE":
        return _unavailable(message, endpoint, told)
    return LinkError("link", f"{where} cannot answer now ({code or 'no status'}): {told}")


def _unavailable(message: str, endpoint: Endpoint, told: str) -> LinkError:
    for text, meaning in _BROKEN:
        if text in message:
            return LinkError("link", f"{endpoint}: {meaning}")
    return LinkError("link", f"{endpoint} cannot answer now: {told}")
