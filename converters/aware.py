"""Quantization-aware fine-tuning: train on with the rounding that int8 will do.

The same layers are called again with 8-bit rounding after each of them, and with kernels rounded
per channel; gradients pass straight through (Jacob et al., CVPR 2018). BatchNorm is frozen: its
statistics fold into the kernels, and a per-channel scale commutes with folding.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


class Rounded(keras.layers.Layer):  # type: ignore[misc]
    """Rounds a tensor to 256 levels between its own batch's minimum and maximum."""

    def call(self, x: Any) -> Any:
        low = tf.minimum(tf.stop_gradient(tf.reduce_min(x)), 0.0)
        high = tf.maximum(tf.stop_gradient(tf.reduce_max(x)), low + 1e-6)
        return tf.quantization.fake_quant_with_min_max_vars(x, low, high, num_bits=8)


class AwareModel:
    """A model called as int8 would compute it; shares its weights."""

    def __init__(self, model: keras.Model) -> None:
        self._model = keras.models.clone_model(
            model, clone_function=lambda layer: layer, call_function=_call_rounded
        )

    def __call__(self, parts: Any) -> Any:
        """parts: what the model takes. Returns its output, gradients straight through."""
        variables = self._model.trainable_variables
        rounded = [_rounded_kernel(v) if len(v.shape) > 1 else v.value for v in variables]
        fixed = [v.value for v in self._model.non_trainable_variables]
        outputs, _ = self._model.stateless_call(rounded, fixed, parts, training=False)
        return outputs


def _call_rounded(layer: Any, *arguments: Any, **keywords: Any) -> Any:
    outputs = layer(*arguments, **keywords)
    if isinstance(layer, (keras.layers.ReLU, keras.layers.Add, keras.layers.Rescaling)):
        return Rounded()(outputs)
    return outputs


def _rounded_kernel(variable: Any) -> Any:
    """Symmetric, 127 levels a side, per output channel (the last axis; a depthwise one's third)."""
    kernel = tf.convert_to_tensor(variable.value)
    channel = {kernel.shape.rank - 1}
    if "depthwise" in variable.path:
        channel = {kernel.shape.rank - 2, kernel.shape.rank - 1}
    axes = [i for i in range(kernel.shape.rank) if i not in channel]
    scale = tf.maximum(tf.reduce_max(tf.abs(kernel), axis=axes, keepdims=True), 1e-9) / 127.0
    return kernel + tf.stop_gradient(tf.round(kernel / scale) * scale - kernel)
