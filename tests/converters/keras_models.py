"""Filters in the shapes that InFi's reference code builds, in Keras 2 and in Keras 3."""

from __future__ import annotations

from typing import Any

import numpy as np

SHAPES: dict[str, list[tuple[int, ...]]] = {
    "image": [(32, 32, 3)],
    "video": [(24, 24, 3)] * 3,
    "audio": [(40, 33, 1)],
    "text": [(12,)],
    "vector": [(90,)],
}
WORDS = 100


def keras_of(generation: int) -> Any:
    """Keras 2 (tf-keras) or Keras 3."""
    if generation == 2:
        import tf_keras

        return tf_keras
    import keras

    return keras


def absolute(generation: int) -> Any:
    """What |a - b| was written with: an op layer in Keras 2, an operation in Keras 3."""
    if generation == 2:
        import tensorflow as tf

        return tf.math.abs
    import keras

    return keras.ops.abs


def feature_network(keras: Any, kind: str, units: int = 20) -> Any:
    """The reference network of a modality, ending in its dense layer."""
    layers = keras.layers
    inputs = [layers.Input(shape) for shape in SHAPES[kind]]

    def step(x: Any, filters: int, size: int, stride: int = 1) -> Any:
        x = layers.SeparableConv2D(filters, size, stride, padding="same")(layers.ReLU()(x))
        return layers.LayerNormalization()(x)

    def residual(x: Any, filters: int) -> Any:
        deep = layers.MaxPooling2D(3, 2, "same")(step(step(x, filters, 3), filters, 3))
        return layers.Add()([deep, step(x, filters, 1, 2)])

    if kind == "text":
        x = layers.GlobalMaxPool1D()(layers.Embedding(WORDS, 32)(inputs[0]))
    elif kind == "vector":
        x = layers.Dense(32)(layers.Flatten()(inputs[0]))
    else:
        parts = [residual(x, 8) for x in inputs]
        x = parts[0] if len(parts) == 1 else layers.Concatenate()(parts)
        x = layers.GlobalMaxPool2D()(residual(x, 16))
    x = layers.Dropout(0.5)(layers.Dense(units, "relu")(x))
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], x)


def skip_model(generation: int, kind: str) -> Any:
    """One input (of a clip: one a frame) -> the probability that the model is needed."""
    keras = keras_of(generation)
    network = feature_network(keras, kind)
    return keras.Model(network.inputs, keras.layers.Dense(1, "sigmoid")(network.outputs[0]))


def reuse_model(generation: int, kind: str, head: Any = None) -> Any:
    """Two inputs, `input-1` and `input-2` -> the probability that the answers differ."""
    keras = keras_of(generation)
    layers = keras.layers
    network = feature_network(keras, kind)
    sides = [
        [
            layers.Input(shape, name=f"input-{side}" + (f"-{i}" if i else ""))
            for i, shape in enumerate(SHAPES[kind])
        ]
        for side in (1, 2)
    ]
    a, b = (network(side if len(side) > 1 else side[0]) for side in sides)
    difference = absolute(generation)(a - b)
    score = (head or (lambda layers, x: layers.Dense(1, "sigmoid")(x)))(layers, difference)
    return keras.Model([*sides[0], *sides[1]], score)


def inputs_of(kind: str, count: int, seed: int) -> list[np.ndarray]:
    """Made-up inputs, one array for each of the network's inputs."""
    rng = np.random.default_rng(seed)
    if kind == "text":
        return [rng.integers(0, WORDS, (count, *SHAPES[kind][0])).astype(np.float32)]
    if kind == "vector":
        return [rng.normal(0, 1, (count, *SHAPES[kind][0])).astype(np.float32)]
    return [rng.random((count, *shape)).astype(np.float32) for shape in SHAPES[kind]]


def fit(model: Any, parts: list[np.ndarray], generation: int) -> None:
    """A few steps with a loss of one's own, so that the file has optimizer state and custom code
    that is not in it."""

    def contrastive_loss(wanted: Any, found: Any) -> Any:
        return (wanted - found) ** 2

    model.compile("rmsprop", loss=contrastive_loss)
    # What tells the inputs apart: their mean against the others'.
    level = sum(part.reshape(len(part), -1).mean(axis=1) for part in parts)
    wanted = (level > np.median(level)).astype(np.float32)[:, None]
    model.fit(parts if len(parts) > 1 else parts[0], wanted, epochs=3, verbose=0)
