"""A bare client of the inference protocol, and pictures for it."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import np_to_triton_dtype

from infi_edge.decoders import dequantize
from infi_edge.interpreter import Network
from tests.offload.servers import Server

Outputs = dict[str, np.ndarray]
Ask = Callable[..., Outputs]


def ask_grpc(
    server: Server, model: str, outputs: list[str] | None = None, **inputs: Any
) -> Outputs:
    """Ask with a bare client; inputs: arrays, or bytes."""
    given = []
    for name, value in inputs.items():
        array = np.array([value], object) if isinstance(value, bytes) else value
        one = grpcclient.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        one.set_data_from_numpy(array)
        given.append(one)
    wanted = [grpcclient.InferRequestedOutput(name) for name in outputs] if outputs else None
    with grpcclient.InferenceServerClient(server.grpc) as client:
        result = client.infer(model, given, outputs=wanted, client_timeout=60)
        return {o.name: result.as_numpy(o.name) for o in result.get_response().outputs}


def post(server: Server, model: str, body: Any) -> tuple[int, Any]:
    """Return (status, decoded JSON) of an inference request."""
    request = urllib.request.Request(
        f"http://{server.http}/v2/models/{model}/infer",
        body if isinstance(body, bytes) else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def tensor(name: str, array: Any) -> dict[str, Any]:
    """An input as JSON; bytes as base64."""
    if isinstance(array, bytes):
        data = [base64.b64encode(array).decode()]
        return {"name": name, "shape": [1], "datatype": "BYTES", "data": data}
    datatype = np_to_triton_dtype(array.dtype)
    return {
        "name": name, "shape": list(array.shape), "datatype": datatype, "data": array.tolist()
    }  # fmt: skip


def ask_http(
    server: Server, model: str, outputs: list[str] | None = None, **inputs: Any
) -> Outputs:
    """Ask with bare JSON."""
    body: dict[str, Any] = {"inputs": [tensor(name, value) for name, value in inputs.items()]}
    if outputs:
        body["outputs"] = [{"name": name} for name in outputs]
    status, answer = post(server, model, body)
    assert status == 200, answer
    dtypes = {"FP32": np.float32, "UINT8": np.uint8}
    return {
        o["name"]: np.array(o["data"], dtypes[o["datatype"]]).reshape(o["shape"])
        for o in answer["outputs"]
    }


def metadata(server: Server, model: str) -> Any:
    with urllib.request.urlopen(f"http://{server.http}/v2/models/{model}", timeout=60) as answer:
        return json.load(answer)


def declared(tensors: Any) -> list[tuple[str, str, list[int]]]:
    return [(t["name"], t["datatype"], t["shape"]) for t in tensors]


def picture(suffix: str = ".jpg", width: int = 320, height: int = 200) -> bytes:
    frame = np.random.default_rng(1).integers(0, 255, (height // 8, width // 8, 3), np.uint8)
    frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(suffix, frame)[1].tobytes()


def local(path: Path, *tensors: np.ndarray) -> list[np.ndarray]:
    """What the interpreter here says, as real numbers."""
    network = Network(path)
    return dequantize(network.run(*tensors), network.outputs)
