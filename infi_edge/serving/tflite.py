"""An MLServer runtime for .tflite files.

In model-settings.json, `implementation` is `infi_edge.serving.tflite.TFLiteRuntime`,
`parameters.uri` the file, and `parameters.extra` has the fields of
`infi_edge.serving.model.ServingOptions`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from infi_edge.errors import ConfigError, InfiEdgeError
from infi_edge.executors.link import RemoteTensor
from infi_edge.serving.model import ServedModel, serving_options
from infi_edge.serving.request import Given, RequestError

try:
    from mlserver import MLModel, types
    from mlserver.errors import InferenceError, MLServerError
    from mlserver.utils import get_model_uri
except ImportError as error:
    raise ConfigError(
        f"this runtime needs {error.name}; install it with pip install 'infi-edge[server]'"
    ) from error


class TFLiteRuntime(MLModel):  # type: ignore[misc]
    """One served .tflite file."""

    async def load(self) -> bool:
        """Load the file; what it takes and answers becomes the model's metadata."""
        parameters = self.settings.parameters
        options = serving_options((parameters.extra if parameters else None) or {})
        self._model = await asyncio.to_thread(
            ServedModel, await get_model_uri(self.settings), options
        )
        self.inputs = [_declared(tensor) for tensor in self._model.inputs]
        self.outputs = [_declared(tensor) for tensor in self._model.outputs]
        self.settings.platform = self._model.platform
        return True

    async def predict(self, payload: types.InferenceRequest) -> types.InferenceResponse:
        """Answer one request; the event loop lives on meanwhile."""
        given = [_given(one) for one in payload.inputs]
        wanted = [output.name for output in payload.outputs] if payload.outputs else None
        try:
            outputs = await asyncio.to_thread(self._answer, given, wanted)
        except RequestError as error:
            raise InferenceError(str(error)) from error
        except InfiEdgeError as error:
            raise MLServerError(str(error), 500) from error
        return types.InferenceResponse.model_construct(
            model_name=self.name, model_version=self.version, outputs=outputs
        )

    def _answer(self, given: list[Given], wanted: list[str] | None) -> list[Any]:
        return [_output(tensor, array) for tensor, array in self._model.infer(given, wanted)]


def _given(one: types.RequestInput) -> Given:
    data = getattr(one.data, "root", one.data)
    datatype = getattr(one.datatype, "value", one.datatype)
    return Given(one.name, str(datatype), tuple(one.shape), data)


def _declared(tensor: RemoteTensor) -> Any:
    # MLServer's own clients go by this; a JSON request cannot have bytes otherwise.
    parameters = types.Parameters(content_type="base64") if tensor.datatype == "BYTES" else None
    return types.MetadataTensor(
        name=tensor.name,
        datatype=tensor.datatype,
        shape=list(tensor.shape),
        parameters=parameters,
    )


def _output(tensor: RemoteTensor, array: np.ndarray) -> Any:
    # Unvalidated: a validation of every number costs more than many a network.
    return types.ResponseOutput.model_construct(
        name=tensor.name,
        datatype=tensor.datatype,
        shape=list(array.shape),
        data=types.TensorData.model_construct(root=array.ravel().tolist()),
    )
