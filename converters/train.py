"""Train the siamese network, for SKIP, REUSE or both.

One mechanism (InFi, MobiCom 2022, 4.1): embeddings e >= 0, REUSE reads sum |e(a) - e(b)|, SKIP
reads the distance to the empty input, sum e(x). The pair's age is an input of the REUSE head.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from converters.networks import EMBEDDING, image_network
from converters.quantize import to_tflite
from converters.recordings import Stretches, TrainingData
from converters.trained import DeadFilterError, TrainedFilter, TrainSettings, indices
from infi_edge.bundle import FilterSpec, ReuseSpec, SkipSpec
from infi_edge.interpreter import Network
from infi_edge.labels import Progress
from infi_edge.learn import changed, sample_pairs


def train_network(
    data: TrainingData,
    stretches: Stretches,
    settings: TrainSettings,
    progress: Progress | None = None,
) -> TrainedFilter:
    """Train the siamese network and convert it. Raises DeadFilterError if its embedding died."""
    keras.utils.set_random_seed(settings.seed)
    siamese = _Siamese(image_network(data.spec), settings)
    rng = np.random.default_rng(settings.seed)
    numbers = _numbers(data.truth.values)
    for step in range(settings.steps):
        a, b = sample_pairs(stretches, settings.pairs, rng)
        swap = rng.random(len(a)) < 0.5
        a, b = np.where(swap, b, a), np.where(swap, a, b)
        truth, both = data.truth, np.concatenate([a, b])
        siamese.step(
            tf.constant(_augment(data.tensors[a], data.tensors[b], rng)),
            tf.constant(np.abs(truth.times_s[a] - truth.times_s[b]).astype(np.float32)),
            tf.constant(changed(truth.values, a, b, truth.same)),
            tf.constant((~truth.redundant[both]).astype(np.float32)),
            tf.constant(numbers[both]),
            tf.constant(
                settings.learning_rate * 0.5 * (1 + np.cos(np.pi * step / settings.steps)),
                tf.float32,
            ),
        )
        if progress is not None:
            progress(step + 1, settings.steps)
    chosen = indices(stretches)
    return _convert(siamese, data.tensors[chosen], settings)


def _numbers(values: list[object]) -> np.ndarray:
    """The auxiliary target: values as standardized numbers, zeros where they are none."""
    if not all(isinstance(value, (int, float)) for value in values):
        return np.zeros(len(values), np.float32)
    numbers = np.array(values, np.float32)
    return (numbers - numbers.mean()) / max(float(numbers.std()), 1e-3)


def _augment(a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return float32 (2P, H, W, 3): pairs under a shared flip, light and shift, own light noise."""
    count = len(a)
    pair = np.stack([a, b]).astype(np.float32)
    flip = rng.random(count) < 0.5
    pair[:, flip] = pair[:, flip, :, ::-1]
    gain = rng.uniform(0.85, 1.15, (1, count, 1, 1, 1)).astype(np.float32)
    offset = rng.uniform(-15, 15, (1, count, 1, 1, 1)) + rng.normal(0, 3, (2, count, 1, 1, 1))
    pair *= gain
    pair += offset.astype(np.float32)
    np.clip(pair, 0, 255, out=pair)
    return pair.reshape(2 * count, *a.shape[1:])


class _Siamese(tf.Module):  # type: ignore[misc]
    """The network with its heads; weights are softplus of free variables, so never negative."""

    def __init__(self, model: keras.Model, settings: TrainSettings) -> None:
        super().__init__()
        self.model = model
        # A head's few numbers must travel far in few steps: they are learned at a tenth.
        self.heads = tf.Variable([-0.3, -0.2, -0.2, -0.3])  # distance, log age, age, skip
        self.biases = tf.Variable([-0.3, -0.25])
        self.number = tf.Variable(tf.random.normal((EMBEDDING, 1), stddev=0.05))
        self.number_bias = tf.Variable([0.0])
        self._mechanism = settings.mechanism
        self._variables = [
            *model.trainable_variables,
            self.heads,
            self.biases,
            self.number,
            self.number_bias,
        ]
        self._optimizer = keras.optimizers.Adam(settings.learning_rate)
        self._optimizer.build(self._variables)

    @tf.function  # type: ignore[untyped-decorator]
    def step(
        self,
        images: tf.Tensor,
        age_s: tf.Tensor,
        differs: tf.Tensor,
        wanted: tf.Tensor,
        numbers: tf.Tensor,
        rate: tf.Tensor,
    ) -> tf.Tensor:
        """One step of Adam on the cross-entropies of the heads and a small auxiliary loss."""
        cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits
        with tf.GradientTape() as tape:
            embeddings = self.model(images, training=True)
            pairs = tf.shape(age_s)[0]
            weights, biases = tf.nn.softplus(10.0 * self.heads), 10.0 * self.biases
            loss = tf.constant(0.0)
            if self._mechanism != "skip":
                distance = tf.reduce_sum(tf.abs(embeddings[:pairs] - embeddings[pairs:]), axis=1)
                logits = weights[0] * distance + biases[0]
                logits += weights[1] * tf.math.log1p(age_s) + 0.1 * weights[2] * age_s
                loss += tf.reduce_mean(cross_entropy(differs, logits))
            if self._mechanism != "reuse":
                logits = weights[3] * tf.reduce_sum(embeddings, axis=1) + biases[1]
                loss += tf.reduce_mean(cross_entropy(wanted, logits))
            guess = tf.squeeze(embeddings @ self.number, 1) + self.number_bias
            loss += 0.1 * tf.reduce_mean(tf.square(guess - numbers))
        gradients = tape.gradient(loss, self._variables)
        self._optimizer.learning_rate.assign(rate)
        self._optimizer.apply_gradients(
            (g, v) for g, v in zip(gradients, self._variables, strict=True) if g is not None
        )
        return loss


def float_embeddings(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Return the float network's embeddings (N, D) of uint8 images (N, H, W, 3)."""
    parts = [
        model(images[i : i + 64].astype(np.float32), training=False).numpy()
        for i in range(0, len(images), 64)
    ]
    return np.concatenate(parts)


def _convert(siamese: _Siamese, inputs: np.ndarray, settings: TrainSettings) -> TrainedFilter:
    sample = inputs[np.linspace(0, len(inputs) - 1, min(200, len(inputs))).astype(int)]
    largest = float(float_embeddings(siamese.model, sample).max())
    if not np.isfinite(largest) or largest <= 1e-6:
        raise DeadFilterError("the network's embedding died in training (all zero); try --seed")
    content = to_tflite(siamese.model, settings.precision, sample)
    output = Network(content).outputs[0]
    if settings.precision == "int8" and output.zero_point != 0:
        raise DeadFilterError("the quantized embedding does not start at zero; try --seed")
    step = output.scale if settings.precision == "int8" else largest / 255
    weights = np.log1p(np.exp(10.0 * siamese.heads.numpy().astype(np.float64)))
    biases = 10.0 * siamese.biases.numpy().astype(np.float64)
    skip = reuse = None
    if settings.mechanism != "reuse":
        skip = SkipSpec(weight=float(weights[3] * step), bias=float(biases[1]))
    if settings.mechanism != "skip":
        reuse = ReuseSpec(
            distance=float(weights[0] * step),
            log_age=float(weights[1]),
            age=float(0.1 * weights[2]),
            bias=float(biases[0]),
        )
    spec = FilterSpec(
        kind="net", dim=EMBEDDING, scale=step, parameters=int(siamese.model.count_params())
    )
    return TrainedFilter(spec, skip, reuse, {"filter.tflite": content}, siamese.model)
