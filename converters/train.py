"""Train the siamese network, for SKIP, REUSE or both.

One mechanism (InFi, MobiCom 2022, 4.1): embeddings e >= 0, REUSE reads sum |e(a) - e(b)|, SKIP
reads the distance to the empty input, sum e(x). The pair's age is an input of the REUSE head.
"""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from converters.augment import augment_pairs, in_units
from converters.aware import AwareModel
from converters.networks import classifier_network, feature_network
from converters.quantize import filter_to_tflite, to_tflite
from converters.recordings import Stretches, TrainingData
from converters.trained import DeadFilterError, TrainedFilter, TrainSettings, indices
from infi_edge.bundle import FilterSpec, ReuseSpec, SkipSpec
from infi_edge.errors import ConfigError
from infi_edge.filter import CLASSIFIER_ROWS
from infi_edge.interpreter import Network
from infi_edge.labels import Progress
from infi_edge.learn import changed, sample_pairs
from infi_edge.preprocess import Spec


def train_network(
    data: TrainingData,
    stretches: Stretches,
    settings: TrainSettings,
    progress: Progress | None = None,
) -> TrainedFilter:
    """Train the siamese network and convert it. Raises DeadFilterError if its embedding died."""
    keras.utils.set_random_seed(settings.seed)
    try:
        network = feature_network(data.spec, settings.network)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    siamese = _Siamese(network, settings)
    rng = np.random.default_rng(settings.seed)
    _train(
        siamese, data, stretches, settings, settings.steps, settings.learning_rate, rng, progress
    )
    if settings.aware:
        siamese.round_from_now_on()
        steps, rate = max(settings.steps // 2, 1), settings.learning_rate / 4
        _train(siamese, data, stretches, settings, steps, rate, rng, progress)
    return convert(siamese, data.tensors[indices(stretches)], data.spec, settings)


def _train(
    siamese: _Siamese,
    data: TrainingData,
    stretches: Stretches,
    settings: TrainSettings,
    steps: int,
    learning_rate: float,
    rng: np.random.Generator,
    progress: Progress | None,
) -> None:
    numbers = _numbers(data.truth.values)
    for step in range(steps):
        a, b = sample_pairs(stretches, settings.pairs, rng)
        swap = rng.random(len(a)) < 0.5
        a, b = np.where(swap, b, a), np.where(swap, a, b)
        truth, both = data.truth, np.concatenate([a, b])
        inputs = augment_pairs(data.tensors[a], data.tensors[b], data.spec, rng)
        siamese.step(
            [tf.constant(part) for part in data.spec.parts(inputs)],
            tf.constant(np.abs(truth.times_s[a] - truth.times_s[b]).astype(np.float32)),
            tf.constant(changed(truth.values, a, b, truth.same)),
            tf.constant((~truth.redundant[both]).astype(np.float32)),
            tf.constant(numbers[both]),
            tf.constant(learning_rate * 0.5 * (1 + np.cos(np.pi * step / steps)), tf.float32),
        )
        if progress is not None:
            progress(step + 1, steps)


def _numbers(values: list[object]) -> np.ndarray:
    """The auxiliary target: values as standardized numbers, zeros where they are none."""
    if not all(isinstance(value, (int, float)) for value in values):
        return np.zeros(len(values), np.float32)
    numbers = np.array(values, np.float32)
    return (numbers - numbers.mean()) / max(float(numbers.std()), 1e-3)


class _Siamese(tf.Module):  # type: ignore[misc]
    """The network with its heads; weights are softplus of free variables, so never negative."""

    def __init__(self, model: keras.Model, settings: TrainSettings) -> None:
        super().__init__()
        self.model = model
        # A head's few numbers must travel far in few steps: they are learned at a tenth.
        self.heads = tf.Variable([-0.3, -0.2, -0.2, -0.3])  # distance, log age, age, skip
        self.biases = tf.Variable([-0.3, -0.25])
        dim = model.output_shape[-1]
        self.number = tf.Variable(tf.random.normal((dim, 1), stddev=0.05))
        self.classifier = classifier_network(dim) if settings.classifier == "mlp" else None
        self.number_bias = tf.Variable([0.0])
        self._mechanism = settings.mechanism
        self._variables = [
            *model.trainable_variables,
            self.heads,
            self.biases,
            self.number,
            self.number_bias,
            *(self.classifier.trainable_variables if self.classifier else []),
        ]
        self._optimizer = keras.optimizers.Adam(settings.learning_rate)
        self._optimizer.build(self._variables)
        self._aware: AwareModel | None = None
        self.step = tf.function(self._step)

    def round_from_now_on(self) -> None:
        """Train on as int8 will compute."""
        self._aware = AwareModel(self.model)
        self.step = tf.function(self._step)

    def _embed(self, parts: list[tf.Tensor]) -> tf.Tensor:
        inputs = parts if len(parts) > 1 else parts[0]
        if self._aware is not None:
            return self._aware(inputs)
        return self.model(inputs, training=True)

    def _step(
        self,
        parts: list[tf.Tensor],
        age_s: tf.Tensor,
        differs: tf.Tensor,
        wanted: tf.Tensor,
        numbers: tf.Tensor,
        rate: tf.Tensor,
    ) -> tf.Tensor:
        """One step of Adam on the cross-entropies of the heads and a small auxiliary loss."""
        cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits
        with tf.GradientTape() as tape:
            embeddings = self._embed(parts)
            pairs = tf.shape(age_s)[0]
            weights, biases = tf.nn.softplus(10.0 * self.heads), 10.0 * self.biases
            loss = tf.constant(0.0)
            if self._mechanism != "skip":
                distance = self._read(tf.abs(embeddings[:pairs] - embeddings[pairs:]))
                logits = weights[0] * distance + biases[0]
                logits += weights[1] * tf.math.log1p(age_s) + 0.1 * weights[2] * age_s
                loss += tf.reduce_mean(cross_entropy(differs, logits))
            if self._mechanism != "reuse":
                logits = weights[3] * self._read(embeddings) + biases[1]
                loss += tf.reduce_mean(cross_entropy(wanted, logits))
            guess = tf.squeeze(embeddings @ self.number, 1) + self.number_bias
            loss += 0.1 * tf.reduce_mean(tf.square(guess - numbers))
        gradients = tape.gradient(loss, self._variables)
        self._optimizer.learning_rate.assign(rate)
        self._optimizer.apply_gradients(
            (g, v) for g, v in zip(gradients, self._variables, strict=True) if g is not None
        )
        return loss

    def _read(self, differences: tf.Tensor) -> tf.Tensor:
        """The distance (batch,) that |differences| (batch, D) stand for."""
        if self.classifier is None:
            return tf.reduce_sum(differences, axis=1)
        return tf.squeeze(self.classifier(differences, training=True), 1)


def float_embeddings(model: keras.Model, tensors: np.ndarray, spec: Spec) -> np.ndarray:
    """Return the float network's embeddings (N, D) of filter tensors (N, *spec.shape)."""
    found = []
    for i in range(0, len(tensors), 64):
        parts = spec.parts(in_units(tensors[i : i + 64], spec))
        found.append(model(list(parts) if len(parts) > 1 else parts[0], training=False).numpy())
    return np.concatenate(found)


def convert(
    siamese: Any, tensors: np.ndarray, spec: Spec, settings: TrainSettings
) -> TrainedFilter:
    """Convert a trained siamese network at the settings' precision, calibrated on `tensors`."""
    sample = tensors[np.linspace(0, len(tensors) - 1, min(200, len(tensors))).astype(int)]
    largest = float(float_embeddings(siamese.model, sample, spec).max())
    if not np.isfinite(largest) or largest <= 1e-6:
        raise DeadFilterError("the network's embedding died in training (all zero); try --seed")
    content = filter_to_tflite(siamese.model, spec, settings.precision, sample)
    network = Network(content)
    output = network.outputs[0]
    if settings.precision == "int8" and output.zero_point != 0:
        raise DeadFilterError("the quantized embedding does not start at zero; try --seed")
    step = output.scale if settings.precision == "int8" else largest / 255
    members = {"filter.tflite": content}
    unit = step
    if siamese.classifier is not None:
        members["classifier.tflite"] = to_tflite(siamese.classifier, "float32", [], CLASSIFIER_ROWS)
        unit = 1.0  # the classifier reads real differences
    weights = np.log1p(np.exp(10.0 * siamese.heads.numpy().astype(np.float64)))
    biases = 10.0 * siamese.biases.numpy().astype(np.float64)
    skip = reuse = None
    if settings.mechanism != "reuse":
        skip = SkipSpec(weight=float(weights[3] * unit), bias=float(biases[1]))
    if settings.mechanism != "skip":
        reuse = ReuseSpec(
            distance=float(weights[0] * unit),
            log_age=float(weights[1]),
            age=float(0.1 * weights[2]),
            bias=float(biases[0]),
        )
    order = input_order(network)
    filter_spec = FilterSpec(
        kind="net",
        dim=output.shape[1],
        scale=step,
        parameters=int(siamese.model.count_params()),
        classifier=settings.classifier,
        input_order=order if order != tuple(range(len(order))) else (),
    )
    return TrainedFilter(filter_spec, skip, reuse, members, siamese)


def input_order(network: Network) -> tuple[int, ...]:
    """Return which part each input takes; TFLite may order inputs anew, but keeps their names."""
    found = [re.search(r"part_(\d+)", spec.name) for spec in network.inputs]
    return tuple(int(match[1]) if match else i for i, match in enumerate(found))
