"""The seam between the executor and a transport of the Open Inference Protocol (v2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from infi_edge.errors import ExecutorError
from infi_edge.executors.traffic import Cause


@dataclass(frozen=True, slots=True)
class RemoteTensor:
    """A tensor as the served model declares it. datatype: FP32, UINT8, BYTES, ... shape: -1 any."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RemoteMetadata:
    """What a server says of a model; versions and platform are its own words."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[RemoteTensor, ...]
    outputs: tuple[RemoteTensor, ...]


DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
}
"""What NumPy has of the protocol's datatypes."""

PLATFORM = "tflite-sha256-"
"""A server's `platform` that begins so goes on with the SHA-256 of the file it serves."""

FIT, SCALE = "fit", "scale"
"""An output that says where a picture lay in the input; an input, the scale of int8 features."""

Tensors = Sequence[tuple[RemoteTensor, np.ndarray]]
"""Inputs by what they fill. BYTES: an object array of bytes; else an array of the datatype."""

Fault = Literal["link", "denied", "missing", "failed", "answer"]


class LinkError(ExecutorError):
    """A request without a usable answer.

    fault: `link`: not reached, timed out, cut off, overloaded (502, 503, 504, 429): again soon.
    `denied`: certificate, 401, 403. `missing`: no such server path, model or version (404).
    `failed`: the server failed on this request (500, INTERNAL). `answer`: it refused what was
    asked (400), or what it answered cannot be read: truncated, oversize, wrong names or shapes.
    """

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault: Fault = fault


class Link(Protocol):
    """One connection to one served model, for one thread; it connects when it is first used.

    Every call ends within timeout_s, whatever the server does, and raises LinkError with one
    sentence that names the server without credentials. After an error the link may be used again
    (it reconnects), or closed.
    """

    def metadata(self, timeout_s: float) -> RemoteMetadata:
        """Ask what the model is. Raises LinkError."""

    def ready(self, timeout_s: float) -> bool:
        """Ask whether the model can be used now. Raises LinkError if the server is not reached."""

    def infer(
        self, inputs: Tensors, outputs: Sequence[str], timeout_s: float, cause: Cause = "infer"
    ) -> list[np.ndarray]:
        """Run the model once; return the named outputs in their order, shape as answered.

        Raises LinkError.
        """

    def close(self) -> None:
        """Let go of the connection; the bytes that went are counted."""
