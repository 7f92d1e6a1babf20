"""Feature networks, small and made to quantize well; and InFi's own, for comparison.

Every network maps an input in its own units to an embedding >= 0, with the classifier's weights
folded in. Which one follows from the tensor alone: ids, a series, a picture, frames of pictures,
so that a modality of one's own needs none.
"""

from __future__ import annotations

from typing import Any, Literal

import keras
import numpy as np
from keras import layers

from infi_edge.preprocess import Spec, TextSpec, VideoSpec

EMBEDDING = 64
INFI_EMBEDDING = 200
Network = Literal["small", "recurrent", "infi"]


def feature_network(spec: Spec, style: Network = "small") -> keras.Model:
    """Build the network of a specification: its parts -> embedding (batch, 64; InFi's: 200).

    small: strided depthwise convolutions (BatchNorm folds into them at conversion). recurrent: an
    LSTM, for series and text. infi: the paper's (MobiCom 2022, 5.1 and 6.1).
    Raises ValueError for a recurrent network over pictures.
    """
    shapes = [part.shape[1:] for part in spec.parts(np.zeros((1, *spec.shape), np.uint8))]
    kind = "int32" if spec.dtype == np.int32 else "float32"
    inputs = [
        keras.Input(shape, name=f"part_{i:02d}", dtype=kind) for i, shape in enumerate(shapes)
    ]
    parts = [_centred(x, spec) for x in inputs]
    if isinstance(spec, TextSpec):
        parts = [layers.Embedding(spec.buckets, 32)(inputs[0])]
    elif kind == "int32":
        parts = [layers.Embedding(getattr(spec, "ids", 4096), 32)(inputs[0])]
    if style == "infi":
        x = _infi(parts, isinstance(spec, VideoSpec))
    elif style == "recurrent":
        if parts[0].ndim != 3:
            raise ValueError("a recurrent network reads a series or text; use --network small")
        x = _recurrent(parts[0])
    else:
        x = _small(parts)
    x = layers.Dropout(0.5 if style == "infi" else 0.2)(x)
    # A bias above zero: an embedding unit that starts dead never wakes.
    bias = keras.initializers.Constant(0.3)
    x = layers.Dense(INFI_EMBEDDING if style == "infi" else EMBEDDING, bias_initializer=bias)(x)
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], layers.ReLU()(x))


def _centred(x: Any, spec: Spec) -> Any:
    if spec.dtype != np.uint8:
        return x
    low, high = spec.span
    return layers.Rescaling(2 / (high - low), -1.0 - 2 * low / (high - low))(x)


def _small(parts: list[Any]) -> Any:
    rank = parts[0].ndim - 1
    if rank == 1:
        return layers.Dense(128, "relu")(parts[0])
    if rank == 2:
        return _series(parts[0])
    if rank != 3:
        return layers.Dense(128, "relu")(layers.Flatten()(parts[0]))
    if len(parts) > 1:
        first = layers.Conv2D(8, 3, 2, "same", use_bias=False)
        x = layers.Concatenate()([_normalized(first(part)) for part in parts])
    else:
        x = _normalized(layers.Conv2D(16, 3, _stride(parts[0]), "same", use_bias=False)(parts[0]))
    for filters in (32, 48, 64):
        depthwise = layers.DepthwiseConv2D(3, _stride(x), "same", use_bias=False)
        x = _normalized(depthwise(x))
        x = _normalized(layers.Conv2D(filters, 1, use_bias=False)(x))
    # A dense layer over the grid, so that the embedding keeps where things are.
    return layers.Flatten()(layers.ReLU(6.0)(layers.Conv2D(16, 1)(x)))


def _stride(x: Any) -> int:
    return 2 if min(x.shape[1], x.shape[2]) > 4 else 1


def _series(x: Any) -> Any:
    """(batch, time, channels): strided convolutions over time, then its mean and its maximum."""
    steps, channels = x.shape[1:]
    x = layers.Reshape((steps, 1, channels))(x)
    for filters in (32, 48, 64):
        stride = (2 if x.shape[1] > 8 else 1, 1)
        x = _normalized(layers.Conv2D(filters, (5, 1), stride, "same", use_bias=False)(x))
    pools = [layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)]
    return layers.Concatenate()(pools)


def _recurrent(x: Any) -> Any:
    """(batch, time, channels): halved in time to at most 32 steps, then an LSTM, unrolled: a loop
    could not be quantized."""
    steps, channels = x.shape[1:]
    x = layers.Reshape((steps, 1, channels))(x)
    while x.shape[1] > 32:
        x = _normalized(layers.Conv2D(32, (3, 1), (2, 1), "same", use_bias=False)(x))
    return layers.LSTM(32, unroll=True)(layers.Reshape((x.shape[1], x.shape[3]))(x))


def _normalized(x: Any) -> Any:
    return layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.9)(x))


def _infi(parts: list[Any], clip: bool) -> Any:
    rank = parts[0].ndim - 1
    if rank == 3 and parts[0].shape[1] >= 4 and parts[0].shape[2] >= 4:
        x = (
            layers.Concatenate()([_residual(part, 32) for part in parts])
            if clip
            else _residual(parts[0], 32)
        )
        return layers.GlobalMaxPooling2D()(_residual(x, 64))
    if rank == 2 and parts[0].shape[2] == 32:  # a word embedding
        return layers.GlobalAveragePooling1D()(parts[0])
    return layers.Dense(128)(layers.Flatten()(parts[0]))


def _residual(x: Any, filters: int) -> Any:
    deep = _step(_step(x, filters, 3), filters, 3)
    deep = layers.MaxPooling2D(3, 2, "same")(deep)
    return layers.Add()([deep, _step(x, filters, 1, 2)])


def _step(x: Any, filters: int, size: int, stride: int = 1) -> Any:
    x = layers.SeparableConv2D(filters, size, stride, "same")(layers.ReLU()(x))
    return layers.LayerNormalization()(x)


def classifier_network(dim: int) -> keras.Model:
    """A multi-layer perceptron on |differences|: (batch, dim) -> logit (batch, 1) (InFi, 5.2)."""
    inputs = keras.Input((dim,), name="difference")
    x = layers.Dense(32, "relu")(inputs)
    return keras.Model(inputs, layers.Dense(1)(x))
