"""`mlserver start` with .tflite files: what it declares and answers, over both protocols."""

from __future__ import annotations

import base64
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from infi_edge.decoders import make_decoder, prepare
from infi_edge.executors.offload import quantized
from infi_edge.interpreter import Network
from infi_edge.workload import to_frame
from tests.conftest import need
from tests.offload.bare_client import (
    Ask,
    ask_grpc,
    ask_http,
    declared,
    local,
    metadata,
    picture,
    post,
    tensor,
)
from tests.offload.conftest import FACE, MOBILENET
from tests.offload.servers import MLServer, tflite_folder


@pytest.fixture(params=[ask_grpc, ask_http], ids=["grpc", "http"])
def ask(request: pytest.FixtureRequest) -> Ask:
    return request.param


def test_metadata_is_the_files_own(mlserver: MLServer) -> None:
    told = metadata(mlserver, "mobilenet")
    assert declared(told["inputs"]) == [("input", "UINT8", [1, 128, 128, 3])]
    assert declared(told["outputs"]) == [("MobilenetV1/Predictions/Reshape_1", "FP32", [1, 1001])]
    assert told["platform"] == "tflite-sha256-" + hashlib.sha256(MOBILENET.read_bytes()).hexdigest()
    raw = metadata(mlserver, "mobilenet_raw")
    assert declared(raw["outputs"]) == [("MobilenetV1/Predictions/Reshape_1", "UINT8", [1, 1001])]


def test_metadata_of_the_other_inputs(mlserver: MLServer) -> None:
    told = metadata(mlserver, "face_jpeg")
    assert declared(told["inputs"]) == [("image", "BYTES", [1])]
    assert told["inputs"][0]["parameters"]["content_type"] == "base64"
    assert declared(told["outputs"])[-1] == ("fit", "FP32", [6])
    assert declared(metadata(mlserver, "face_features")["inputs"]) == [
        ("input", "INT8", [1, 128, 128, 3]),
        ("scale", "FP32", [2]),
    ]
    floats, tail = metadata(mlserver, "face_floats"), metadata(mlserver, "mobilenet_features")
    assert declared(floats["inputs"]) == [("input", "FP32", [1, 128, 128, 3])]
    assert declared(tail["inputs"]) == [("input", "UINT8", [1, 128, 128, 3])]


def test_metadata_over_grpc_is_the_same(mlserver: MLServer) -> None:
    with grpcclient.InferenceServerClient(mlserver.grpc) as client:
        told = client.get_model_metadata("face_jpeg")
    assert told.platform == metadata(mlserver, "face_jpeg")["platform"]
    assert [(t.name, t.datatype, list(t.shape)) for t in told.inputs] == [("image", "BYTES", [1])]


def test_a_tensor_is_answered_as_the_interpreter_here_does(mlserver: MLServer, ask: Ask) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (1, 128, 128, 3), np.uint8)
    (scores,) = ask(mlserver, "mobilenet", input=pixels).values()
    np.testing.assert_array_equal(scores, local(MOBILENET, pixels)[0])
    floats = np.random.default_rng(0).uniform(-1, 1, (1, 128, 128, 3)).astype(np.float32)
    for model in ("face", "face_floats"):
        answered = ask(mlserver, model, input=floats)
        for got, wanted in zip(answered.values(), local(FACE, floats), strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_raw_outputs_are_the_networks_own_steps(mlserver: MLServer, ask: Ask) -> None:
    pixels = np.full((1, 128, 128, 3), 99, np.uint8)
    (steps,) = ask(mlserver, "mobilenet_raw", input=pixels).values()
    np.testing.assert_array_equal(steps, Network(MOBILENET).run(pixels)[0])


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_picture_is_prepared_as_here(mlserver: MLServer, ask: Ask, suffix: str) -> None:
    content = picture(suffix)
    for model, path, name in (
        ("face_jpeg", FACE, "blazeface"),
        ("mobilenet_jpeg", MOBILENET, "classification"),
    ):
        spec = Network(path).inputs[0]
        prepared, fit = prepare(to_frame(content), spec, make_decoder(name, [spec]))
        *answered, told = ask(mlserver, model, image=content).values()
        for got, wanted in zip(answered, local(path, prepared), strict=True):
            np.testing.assert_array_equal(got, wanted)
        numbers = (fit.scale_x, fit.scale_y, fit.offset_x, fit.offset_y, 128, 128)
        np.testing.assert_array_equal(told, np.array(numbers, np.float32))


def test_features_come_as_steps_with_their_scale(mlserver: MLServer, ask: Ask) -> None:
    floats = np.random.default_rng(0).uniform(-0.3, 2, (1, 128, 128, 3)).astype(np.float32)
    steps, step, zero = quantized(floats)
    scale = np.array([step, zero], np.float32)
    answered = ask(mlserver, "face_features", input=steps, scale=scale)
    real = (steps.astype(np.float32) - np.float32(zero)) * np.float32(step)
    for got, wanted in zip(answered.values(), local(FACE, real), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_only_the_outputs_asked_for_are_answered(mlserver: MLServer, ask: Ask) -> None:
    content = picture()
    assert set(ask(mlserver, "face_jpeg", image=content)) == {
        "regressors", "classificators", "fit"
    }  # fmt: skip
    assert list(ask(mlserver, "face_jpeg", ["fit"], image=content)) == ["fit"]


PIXELS = np.zeros((1, 128, 128, 3), np.uint8)
FLOATS = np.zeros((1, 128, 128, 3), np.float32)
HUGE = cv2.imencode(".png", np.zeros((1001, 1000), np.uint8))[1].tobytes()
BAD = [
    ("mobilenet", {"inputs": []}, "gives nothing"),
    ("mobilenet", {"inputs": [tensor("pixels", PIXELS)]}, "gives pixels"),
    ("mobilenet", {"inputs": [tensor("input", PIXELS)] * 2}, "gives input, input"),
    ("mobilenet", {"inputs": [tensor("input", FLOATS)]}, "not FP32"),
    ("mobilenet", {"inputs": [tensor("input", PIXELS[0])]}, "not UINT8 [128, 128, 3]"),
    ("mobilenet", {"inputs": [{**tensor("input", PIXELS), "data": [1, 2]}]}, "2 elements"),
    ("mobilenet", {"inputs": [{**tensor("input", PIXELS), "data": [256]}]}, "no UINT8"),
    ("mobilenet", {"inputs": [{**tensor("input", PIXELS), "data": ["a"]}]}, "no UINT8"),
    ("mobilenet", {"inputs": [{**tensor("input", PIXELS), "data": [{}]}]}, "no UINT8"),
    ("mobilenet", {"inputs": [tensor("input", PIXELS)], "outputs": [{"name": "x"}]}, "output 'x'"),
    ("face", {"inputs": [{**tensor("input", FLOATS), "data": [None] * 49152}]}, "no FP32"),
    ("face_jpeg", {"inputs": [tensor("image", b"no picture")]}, "neither a JPEG nor a PNG"),
    ("face_jpeg", {"inputs": [tensor("image", b"\xff\xd8\xff")]}, "neither a JPEG nor a PNG"),
    ("face_jpeg", {"inputs": [tensor("image", picture()[:500])]}, "image"),
    ("face_jpeg", {"inputs": [{**tensor("image", b""), "data": ["%%"]}]}, "neither"),
    ("face_jpeg", {"inputs": [{**tensor("image", b""), "data": [7]}]}, "neither"),
    ("face_jpeg", {"inputs": [{**tensor("image", b""), "data": []}]}, "one encoded picture"),
    ("face_jpeg", {"inputs": [tensor("image", PIXELS)]}, "one encoded picture"),
    ("face_jpeg", {"inputs": [tensor("image", HUGE)]}, "1000x1001; at most 1000000 pixels"),
]


@pytest.mark.parametrize(("model", "body", "told"), BAD)
def test_a_bad_request_is_refused_with_a_sentence(
    mlserver: MLServer, model: str, body: Any, told: str
) -> None:
    status, answer = post(mlserver, model, body)
    assert status == 400, answer
    assert told in answer["error"]
    assert "\n" not in answer["error"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b"[]", b'{"inputs": 3}', b'{"inputs": [NaN]}']
)
def test_what_is_no_request_is_refused(mlserver: MLServer, body: bytes) -> None:
    status, answer = post(mlserver, "mobilenet", body)
    assert 400 <= status < 500, answer


@pytest.mark.parametrize(
    ("model", "inputs", "told"),
    [
        ("mobilenet", {"pixels": PIXELS}, "gives pixels"),
        ("mobilenet", {"input": FLOATS}, "not FP32"),
        ("face", {"input": np.full_like(FLOATS, np.nan)}, "not a number"),
        ("face_jpeg", {"image": b"no picture"}, "neither a JPEG nor a PNG"),
        ("face_features", {"input": FLOATS.astype(np.int8)}, "takes input INT8"),
    ],
)
def test_a_bad_request_over_grpc_is_an_invalid_argument(
    mlserver: MLServer, model: str, inputs: Any, told: str
) -> None:
    with pytest.raises(InferenceServerException, match=told) as error:
        ask_grpc(mlserver, model, **inputs)
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize("scale", [[0, 0], [-1, 0], [np.inf, 0], [1, -np.inf]])
def test_an_impossible_scale_is_refused(mlserver: MLServer, scale: list[float]) -> None:
    with pytest.raises(InferenceServerException, match="scale is"):
        ask_grpc(
            mlserver,
            "face_features",
            input=FLOATS.astype(np.int8),
            scale=np.array(scale, np.float32),
        )


def test_base64_over_grpc_is_a_picture_too(mlserver: MLServer) -> None:
    content = picture()
    plain = ask_grpc(mlserver, "face_jpeg", image=content)
    encoded = ask_grpc(mlserver, "face_jpeg", image=base64.b64encode(content))
    np.testing.assert_array_equal(plain["regressors"], encoded["regressors"])


def test_the_server_answers_after_all_that(mlserver: MLServer, ask: Ask) -> None:
    (scores,) = ask(mlserver, "mobilenet", input=PIXELS).values()
    np.testing.assert_array_equal(scores, local(MOBILENET, PIXELS)[0])


def test_a_raw_tensor_cut_short_does_no_harm(mlserver: MLServer) -> None:
    one = grpcclient.InferInput("input", [1, 128, 128, 3], "UINT8")
    one.set_data_from_numpy(PIXELS)
    one._raw_content = one._raw_content[:1000]
    client = grpcclient.InferenceServerClient(mlserver.grpc)
    with client, pytest.raises(InferenceServerException):
        client.infer("mobilenet", [one], client_timeout=60)
    assert ask_grpc(mlserver, "mobilenet", input=PIXELS)


def test_many_clients_at_once_get_their_own_answers(mlserver: MLServer) -> None:
    pixels = [np.full((1, 128, 128, 3), 12 * i, np.uint8) for i in range(20)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda x: ask_grpc(mlserver, "mobilenet", input=x), pixels))
    for x, answer in zip(pixels, answers, strict=True):
        np.testing.assert_array_equal(*answer.values(), local(MOBILENET, x)[0])


def test_a_model_that_makes_no_sense_is_told_at_the_start(tmp_path: Path) -> None:
    server = MLServer(tflite_folder(tmp_path / "models", "bad", need(MOBILENET), input="jpeg"))
    with pytest.raises(AssertionError, match="does not serve"), server:
        pass
    assert '"decoder" goes with "input": "jpeg"' in server.log


def test_the_harness_kills_pauses_and_restarts(tmp_path: Path) -> None:
    folder = tflite_folder(tmp_path / "models", "mobilenet", need(MOBILENET))
    with MLServer(folder) as server:
        server.pause()
        client = grpcclient.InferenceServerClient(server.grpc)
        with client, pytest.raises(InferenceServerException, match="Deadline"):
            client.is_server_ready(client_timeout=0.5)
        server.resume()
        assert ask_grpc(server, "mobilenet", input=PIXELS)
        server.kill()
        assert not server.is_ready()
        server.restart()
        assert ask_grpc(server, "mobilenet", input=PIXELS)
        pid = server.pid
    assert not Path(f"/proc/{pid}").exists()
