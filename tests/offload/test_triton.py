"""A real Triton on the CPU with .tflite files: `make test-triton`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from infi_edge.decoders import make_decoder, prepare
from infi_edge.executors.offload import quantized
from infi_edge.interpreter import Network
from infi_edge.workload import to_frame
from tests.conftest import need
from tests.offload.bare_client import Ask, Outputs, ask_grpc, declared, local, metadata, picture
from tests.offload.conftest import FACE, MOBILENET
from tests.offload.servers import Server, Triton, triton_folder

pytestmark = pytest.mark.triton

PIXELS = np.random.default_rng(0).integers(0, 255, (1, 128, 128, 3), np.uint8)
FLOATS = np.random.default_rng(0).uniform(-0.3, 2, (1, 128, 128, 3)).astype(np.float32)


def ask_binary(
    server: Server, model: str, outputs: list[str] | None = None, **inputs: Any
) -> Outputs:
    """Ask over HTTP with the binary tensor extension."""
    given = []
    for name, value in inputs.items():
        array = np.array([value], object) if isinstance(value, bytes) else value
        one = httpclient.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        one.set_data_from_numpy(array, binary_data=True)
        given.append(one)
    wanted = [httpclient.InferRequestedOutput(name) for name in outputs] if outputs else None
    client = httpclient.InferenceServerClient(server.http, network_timeout=60)
    with client:
        result = client.infer(model, given, outputs=wanted)
        return {o["name"]: result.as_numpy(o["name"]) for o in result.get_response()["outputs"]}


@pytest.fixture(params=[ask_grpc, ask_binary], ids=["grpc", "http"])
def ask(request: pytest.FixtureRequest) -> Ask:
    return request.param


def test_metadata_is_the_files_own(triton: Triton) -> None:
    told = metadata(triton, "mobilenet")
    assert declared(told["inputs"]) == [("input", "UINT8", [1, 128, 128, 3])]
    assert declared(told["outputs"]) == [("MobilenetV1/Predictions/Reshape_1", "FP32", [1, 1001])]
    assert told["platform"] == "tflite-sha256-" + hashlib.sha256(MOBILENET.read_bytes()).hexdigest()
    assert declared(metadata(triton, "face_jpeg")["inputs"]) == [("image", "BYTES", [1])]
    assert declared(metadata(triton, "face_features")["inputs"]) == [
        ("input", "INT8", [1, 128, 128, 3]),
        ("scale", "FP32", [2]),
    ]


def test_a_tensor_is_answered_as_the_interpreter_here_does(triton: Triton, ask: Ask) -> None:
    (scores,) = ask(triton, "mobilenet", input=PIXELS).values()
    np.testing.assert_array_equal(scores, local(MOBILENET, PIXELS)[0])
    answered = ask(triton, "face", input=FLOATS)
    names = [spec.name for spec in Network(FACE).outputs]
    for name, wanted in zip(names, local(FACE, FLOATS), strict=True):
        np.testing.assert_array_equal(answered[name], wanted)


def test_a_picture_is_prepared_as_here(triton: Triton, ask: Ask) -> None:
    # A PNG: the server's OpenCV is another version, and decoders of JPEG may differ by a step.
    content = picture(".png")
    spec = Network(FACE).inputs[0]
    prepared, fit = prepare(to_frame(content), spec, make_decoder("blazeface", [spec]))
    answered = ask(triton, "face_jpeg", image=content)
    names = [one.name for one in Network(FACE).outputs]
    for name, wanted in zip(names, local(FACE, prepared), strict=True):
        np.testing.assert_allclose(answered[name], wanted, rtol=1e-3, atol=1e-2)
    numbers = (fit.scale_x, fit.scale_y, fit.offset_x, fit.offset_y, 128, 128)
    np.testing.assert_array_equal(answered["fit"], np.array(numbers, np.float32))


def test_features_come_as_steps_with_their_scale(triton: Triton, ask: Ask) -> None:
    steps, step, zero = quantized(FLOATS)
    scale = np.array([step, zero], np.float32)
    answered = ask(triton, "face_features", input=steps, scale=scale)
    real = (steps.astype(np.float32) - np.float32(zero)) * np.float32(step)
    names = [spec.name for spec in Network(FACE).outputs]
    for name, wanted in zip(names, local(FACE, real), strict=True):
        np.testing.assert_array_equal(answered[name], wanted)


def test_only_the_outputs_asked_for_are_answered(triton: Triton, ask: Ask) -> None:
    assert list(ask(triton, "face_jpeg", ["fit"], image=picture())) == ["fit"]


@pytest.mark.parametrize(
    ("model", "inputs", "told"),
    [
        ("mobilenet", {"pixels": PIXELS}, "pixels"),
        ("mobilenet", {"input": FLOATS}, "UINT8"),
        ("face", {"input": np.full_like(FLOATS, np.nan)}, "not a number"),
        ("face_jpeg", {"image": b"no picture"}, "neither a JPEG nor a PNG"),
        ("face_jpeg", {"image": picture(".png", 1104, 1000)}, "1104x1000; at most"),
        ("face_features", {"input": FLOATS.astype(np.int8)}, "scale|expected 2 inputs"),
        (
            "face_features",
            {"input": FLOATS.astype(np.int8), "scale": np.zeros(2, np.float32)},
            "scale is",
        ),
    ],
)
def test_a_bad_request_is_refused_with_a_sentence(
    triton: Triton, ask: Ask, model: str, inputs: Any, told: str
) -> None:
    with pytest.raises(InferenceServerException, match=told) as error:
        ask(triton, model, **inputs)
    assert error.value.status() in ("StatusCode.INVALID_ARGUMENT", "400")
    assert ask(triton, "mobilenet", input=PIXELS)


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"input": "jpeg"}, '"decoder" goes with "input": "jpeg"'),
        ({"thread": "2"}, "unknown field `thread`"),
        ({"file": "none.tflite"}, "none.tflite cannot be read"),
    ],
)
def test_a_model_that_makes_no_sense_is_told_at_the_start(
    tmp_path: Path, parameters: Any, told: str
) -> None:
    server = Triton(triton_folder(tmp_path / "models", "bad", need(MOBILENET), **parameters))
    with pytest.raises(AssertionError, match="does not serve"), server:
        pass
    assert told in server.log


def test_another_file_than_its_platform_says_is_not_served(tmp_path: Path) -> None:
    folder = triton_folder(tmp_path / "models", "face", need(MOBILENET), file=str(need(FACE)))
    server = Triton(folder)
    with pytest.raises(AssertionError, match="does not serve"), server:
        pass
    assert "another file than config.pbtxt says" in server.log


def test_the_harness_kills_and_restarts_and_leaves_nothing(tmp_path: Path) -> None:
    with Triton(triton_folder(tmp_path / "models", "mobilenet", need(MOBILENET))) as server:
        server.kill()
        assert not server.is_ready()
        server.restart()
        assert ask_grpc(server, "mobilenet", input=PIXELS)
        shared = list(Path("/dev/shm").glob(f"{server.shared}*"))
        assert shared
    assert not any(path.exists() for path in shared)
