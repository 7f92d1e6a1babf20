"""From Keras to TFLite: int8 with per-channel weights, float16 or float32."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from converters.augment import in_units
from converters.opversions import OLDEST_RUNTIME, too_new
from converters.quiet import quiet_stderr
from converters.trained import Precision
from infi_edge.errors import ConfigError, ExecutorError
from infi_edge.interpreter import Network
from infi_edge.preprocess import Spec

CALIBRATION_INPUTS = 200


def filter_to_tflite(
    model: keras.Model, spec: Spec, precision: Precision, tensors: np.ndarray
) -> bytes:
    """Return the .tflite of a feature network.

    int8: 8-bit levels (or ids) in, uint8 embedding out, calibrated on `tensors` (N, *spec.shape),
    real ones. float16, float32: float in and out.
    """
    samples = [[in_units(part, spec) for part in spec.parts(t)] for t in _chosen(tensors, spec)]
    return to_tflite(model, precision, samples)


def _chosen(tensors: np.ndarray, spec: Spec) -> list[np.ndarray]:
    count = min(CALIBRATION_INPUTS, len(tensors))
    chosen = [tensors[i : i + 1] for i in np.linspace(0, len(tensors) - 1, count).astype(int)]
    if spec.dtype == np.uint8:
        # One input spread over all levels: else a scene brighter than the recording is clipped.
        first = chosen[0].astype(np.float32)
        low, high = float(first.min()), float(first.max())
        spread = (first - low) * (255.0 / max(high - low, 1.0))
        chosen.append(np.rint(spread).astype(np.uint8))
    return chosen


def to_tflite(
    model: keras.Model,
    precision: Precision,
    samples: list[list[np.ndarray]],
    batch: int = 1,
) -> bytes:
    """Return the .tflite of a model with a fixed batch (recurrent layers need one: no Flex ops).

    samples: inputs in the model's order, for int8 calibration; their types are the inputs' types.
    The TFLite inputs are named `part_00`, `part_01`, ... in the model's order.
    Raises ConfigError if the converter cannot, with its reason.
    """
    signature = [
        tf.TensorSpec((batch, *tensor.shape[1:]), tensor.dtype, name=f"part_{i:02d}")
        for i, tensor in enumerate(model.inputs)
    ]

    content = _converted(model, precision, samples, signature, plain_dense=False)
    if too_new(content):  # per-channel dense layers are what only new runtimes know
        content = _converted(model, precision, samples, signature, plain_dense=True)
    if unknown := too_new(content):
        raise ConfigError(
            f"the network needs {', '.join(unknown)}, which {OLDEST_RUNTIME} does not know; "
            "replace that layer or use another --precision"
        )
    try:
        Network(content)
    except ExecutorError as error:
        raise ConfigError(
            f"the network was converted to {precision}, but does not run: {error}"
        ) from error
    return content


def _converted(
    model: Any,
    precision: Precision,
    samples: list[list[np.ndarray]],
    signature: list[Any],
    plain_dense: bool,
) -> bytes:
    @tf.function(input_signature=signature)  # type: ignore[untyped-decorator]
    def run(*parts: Any) -> Any:
        return model(list(parts) if len(parts) > 1 else parts[0], training=False)

    with quiet_stderr(), contextlib.redirect_stdout(io.StringIO()):
        frozen = _frozen(run, model, precision)
        graph = frozen.graph.as_graph_def().node
        loops = {node.op for node in graph} & {"While", "StatelessWhile", "LoopCond"}
        if precision == "int8" and loops:  # its quantizer would end the process
            raise ConfigError("a network with a loop cannot be quantized to int8; use float16")
        converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
        converter._experimental_disable_per_channel_quantization_for_dense_layers = plain_dense
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if precision == "int8":
            converter.representative_dataset = lambda: _calibration(samples)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            if signature[0].dtype != tf.int32:
                converter.inference_input_type = tf.uint8
            converter.inference_output_type = tf.uint8
        try:
            content: bytes = converter.convert()
        except Exception as error:  # the converter raises whatever its C++ half had to say
            raise _refusal(model, precision, error, graph) from error
    return content


def _frozen(run: Any, model: Any, precision: Precision) -> Any:
    """Weights as constants: Keras 3 keeps them in objects the converter cannot follow."""
    try:
        return convert_variables_to_constants_v2(run.get_concrete_function())
    except Exception as error:  # a model's own code, called with fixed sizes
        raise _refusal(model, precision, error) from error


def _refusal(
    model: Any, precision: Precision, error: Exception, nodes: Sequence[Any] = ()
) -> ConfigError:
    """What the converter has to say, with the layer that it is about. nodes: of the graph."""
    text = str(error).strip() or repr(error)
    refused = re.search(r"'tf\.(\w+)' op is neither a custom op nor a flex op", text)
    if refused is not None:
        paths = [node.name for node in nodes if node.op == refused[1]]
        reason = f"TFLite has no operator for {refused[1]}"
    else:
        paths, reason = [text], text.splitlines()[-1].strip()[:200]
    names = sorted((str(layer.name) for layer in flat_layers(model)), key=len, reverse=True)
    found = next((n for n in names if any(re.search(rf"\b{re.escape(n)}\b", p) for p in paths)), "")
    return ConfigError(
        f"{f'layer {found!r}' if found else 'the network'} cannot be converted to {precision}: "
        f"{reason}; replace it by what TFLite knows, or try --precision float16"
    )


def flat_layers(model: Any) -> Iterator[Any]:
    """Yield the layers of a model and of the models in it."""
    for layer in getattr(model, "layers", []):
        if getattr(layer, "layers", None):
            yield from flat_layers(layer)
        else:
            yield layer


def _calibration(samples: list[list[np.ndarray]]) -> Iterator[list[np.ndarray]]:
    yield from samples
