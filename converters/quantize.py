"""From Keras to TFLite: int8 with per-channel weights, float16 or float32."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from converters.augment import in_units
from converters.opversions import OLDEST_RUNTIME, too_new
from converters.quiet import quiet_stderr
from converters.trained import Precision
from infi_edge.errors import ConfigError
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
        # Weights as constants: Keras 3 keeps them in objects the converter cannot follow.
        frozen = convert_variables_to_constants_v2(run.get_concrete_function())
        loops = {node.op for node in frozen.graph.as_graph_def().node} & {"While", "StatelessWhile"}
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
            reason = str(error).strip().splitlines()[-1][:200] if str(error).strip() else ""
            raise ConfigError(
                f"the network cannot be converted to {precision}: {reason}; "
                "try --precision float16 or --network small"
            ) from error
    return content


def _calibration(samples: list[list[np.ndarray]]) -> Iterator[list[np.ndarray]]:
    yield from samples
