"""Triton's Python backend serves the .tflite file that config.pbtxt names.

Its platform, if it says `tflite-sha256-...`, must be the file's; clients tell models by it.
Parameters: `file` (from this folder; model.tflite if it is left out) and the fields of
`infi_edge.serving.model.ServingOptions`, as texts. Needs the package infi-edge in the backend's
Python.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# ruff: noqa: E402
# Some builds of the backend start Python isolated: it does not read this itself.
sys.path[:0] = [folder for folder in os.environ.get("PYTHONPATH", "").split(":") if folder]

import numpy as np
import triton_python_backend_utils as pb_utils

from infi_edge.errors import ConfigError, InfiEdgeError
from infi_edge.executors.link import PLATFORM, RemoteTensor
from infi_edge.serving.model import ServedModel, serving_options
from infi_edge.serving.request import Given, RequestError


class TritonPythonModel:
    """One served .tflite file."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Tell Triton the inputs and outputs, so that config.pbtxt need not."""
        model = _load(config.as_dict())
        for tensor in model.inputs:
            config.add_input(_declared(tensor))
        for tensor in model.outputs:
            config.add_output(_declared(tensor))
        config.set_max_batch_size(0)
        return config

    def initialize(self, args: dict[str, str]) -> None:
        """Load the file."""
        self._model = _load(json.loads(args["model_config"]))
        self._datatypes = {tensor.name: tensor.datatype for tensor in self._model.inputs}

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests, each by itself: one that does not fit does not spoil the others."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        code = pb_utils.TritonError
        given = [self._given(tensor) for tensor in request.inputs()]
        try:
            outputs = self._model.infer(given, request.requested_output_names() or None)
        except RequestError as error:
            return pb_utils.InferenceResponse(error=code(str(error), code.INVALID_ARG))
        except InfiEdgeError as error:
            return pb_utils.InferenceResponse(error=code(str(error), code.INTERNAL))
        tensors = [
            pb_utils.Tensor(tensor.name, np.ascontiguousarray(array)) for tensor, array in outputs
        ]
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def _given(self, tensor: Any) -> Given:
        # Triton has checked names, types and shapes against the declared ones.
        array = tensor.as_numpy()
        return Given(tensor.name(), self._datatypes.get(tensor.name(), ""), array.shape, array)


def _load(config: dict[str, Any]) -> ServedModel:
    texts = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
    path = Path(__file__).parent / texts.pop("file", "model.tflite")
    model = ServedModel(path, serving_options(texts, strict=False))
    told = config.get("platform", "")
    if told.startswith(PLATFORM) and told != model.platform:
        raise ConfigError(f"{path} is another file than config.pbtxt says; it is {model.platform}")
    return model


def _declared(tensor: RemoteTensor) -> dict[str, Any]:
    datatype = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    return {"name": tensor.name, "data_type": f"TYPE_{datatype}", "dims": list(tensor.shape)}
