"""One MLServer for every test that needs no server of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MODELS, need
from tests.offload.servers import MLServer, Triton, tflite_folder, triton_folder

MOBILENET = MODELS / "coral/mobilenet_v1_0.25_128_quant.tflite"
FACE = MODELS / "face/face_detection_front.tflite"


@pytest.fixture(scope="session")
def mlserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLServer]:
    """Serves mobilenet (uint8), mobilenet_raw, mobilenet_jpeg, face (float), face_jpeg and
    face_features. Do not kill or pause it: others use it too."""
    folder = tmp_path_factory.mktemp("mlserver") / "models"
    add_models(folder)
    with MLServer(folder) as server:
        yield server


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """Serves mobilenet, face, face_jpeg and face_features. Do not kill or pause it."""
    folder = tmp_path_factory.mktemp("triton") / "models"
    mobilenet, face = need(MOBILENET), need(FACE)
    triton_folder(folder, "mobilenet", mobilenet)
    triton_folder(folder, "face", face)
    triton_folder(
        folder, "face_jpeg", face, input="jpeg", decoder="blazeface", max_pixels="1000000"
    )
    triton_folder(folder, "face_features", face, input="features")
    with Triton(folder) as server:
        yield server


def add_models(folder: Path) -> Path:
    """Make the folders of the models that `mlserver` serves."""
    mobilenet, face = need(MOBILENET), need(FACE)
    tflite_folder(folder, "mobilenet", mobilenet)
    tflite_folder(folder, "mobilenet_raw", mobilenet, raw_outputs=True)
    tflite_folder(folder, "mobilenet_jpeg", mobilenet, input="jpeg", decoder="classification")
    tflite_folder(folder, "mobilenet_features", mobilenet, input="features")
    tflite_folder(folder, "face", face)
    tflite_folder(folder, "face_jpeg", face, input="jpeg", decoder="blazeface", max_pixels=10**6)
    tflite_folder(folder, "face_features", face, input="features")
    return tflite_folder(folder, "face_floats", face, input="features", features="float32")
