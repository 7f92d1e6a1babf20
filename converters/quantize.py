"""From Keras to TFLite: int8 with per-channel weights, float16 or float32."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from converters.quiet import quiet_stderr
from converters.trained import Precision


def to_tflite(model: keras.Model, precision: Precision, inputs: np.ndarray) -> bytes:
    """Return the .tflite of a feature network.

    int8: uint8 image in, uint8 embedding out, calibrated on `inputs` (uint8 (N, H, W, 3), real
    ones). float16, float32: float in and out.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        quiet_stderr(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        model.export(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if precision == "int8":
            converter.representative_dataset = lambda: _calibration(inputs)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = tf.uint8
            converter.inference_output_type = tf.uint8
        content: bytes = converter.convert()
    return content


def _calibration(inputs: np.ndarray, count: int = 200) -> Iterator[list[np.ndarray]]:
    for index in np.linspace(0, len(inputs) - 1, min(count, len(inputs))).astype(int):
        yield [inputs[index : index + 1].astype(np.float32)]
