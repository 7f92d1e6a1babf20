"""Feature networks for images: small, strided, depthwise, made to quantize well.

Not InFi's reference net (LayerNorm, 32 filters at 224x224: 20-30 ms on an x86 core), but the same
place in the design: input -> embedding >= 0, with the classifier's weights folded in.
"""

from __future__ import annotations

import keras
from keras import layers

from infi_edge.preprocess import ImageSpec

EMBEDDING = 64


def image_network(spec: ImageSpec, dim: int = EMBEDDING) -> keras.Model:
    """Build float RGB 0..255 (batch, height, width, 3) -> embedding >= 0 (batch, dim).

    Four stride-2 stages (BatchNorm folds into the convolutions at conversion), then a dense layer
    over the 1/16 grid, so that the embedding keeps where things are.
    """
    inputs = keras.Input((spec.height, spec.width, 3), name="image")
    x = layers.Rescaling(1 / 127.5, -1.0)(inputs)
    x = _normalized(layers.Conv2D(16, 3, 2, "same", use_bias=False)(x))
    for filters in (32, 48, 64):
        x = _normalized(layers.DepthwiseConv2D(3, 2, "same", use_bias=False)(x))
        x = _normalized(layers.Conv2D(filters, 1, use_bias=False)(x))
    x = layers.ReLU(6.0)(layers.Conv2D(16, 1)(x))
    x = layers.Dropout(0.2)(layers.Flatten()(x))
    # A bias above zero: an embedding unit that starts dead never wakes.
    x = layers.Dense(dim, bias_initializer=keras.initializers.Constant(0.3))(x)
    return keras.Model(inputs, layers.ReLU(name="embedding")(x))


def _normalized(x: keras.KerasTensor) -> keras.KerasTensor:
    return layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.9)(x))
