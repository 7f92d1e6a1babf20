"""What a learning gate begins with: nothing but a modality, or a trained filter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from msgspec.structs import replace

from infi_edge.filter import InputFilter, LightEmbedder
from infi_edge.learning.control import LARGEST_CAP, LOOSEST
from infi_edge.learning.metric import Metric
from infi_edge.policy import Knobs
from infi_edge.preprocess import FeaturesSpec, Spec

NO_REACH = np.zeros((1, 1), np.float32)
UNCALIBRATED_CAP = 20.0
SPREAD_OF_LEVELS = 32.0


class Features(Protocol):
    """Cheap features of an input, and the SKIP score where a filter has one."""

    def __call__(self, tensor: np.ndarray) -> tuple[float | None, np.ndarray]:
        """tensor: (1, *spec.shape). Returns (score or None, float32 (F,))."""


@dataclass(frozen=True, slots=True)
class Start:
    """features: of an input. metric: to begin with; None: there is none. threshold, cap,
    skip_threshold: the knobs beside it. reach: float32 (N, F), features as they may come."""

    features: Features
    feature_count: int
    metric: Metric | None = None
    threshold: float = 0.0
    cap: float = 1.0
    skip_threshold: float | None = None
    reach: np.ndarray = field(default_factory=lambda: NO_REACH)


def for_learning(spec: Spec) -> Spec:
    """Return a specification that can be learned from at once: maps of 8 bits get a scale."""
    if not isinstance(spec, FeaturesSpec) or (spec.offset, spec.scale) != (0.0, 1.0):
        return spec
    middle = {"uint8": 128.0, "int8": 0.0}.get(spec.type)
    return spec if middle is None else replace(spec, offset=middle, scale=SPREAD_OF_LEVELS)


def from_nothing(spec: Spec) -> Start:
    """Begin with the modality's fixed features alone."""

    def features(tensor: np.ndarray) -> tuple[float | None, np.ndarray]:
        return None, spec.features(tensor)

    return Start(features, spec.feature_count)


def from_filter(trained: InputFilter, knobs: Knobs) -> Start:
    """Begin with a trained filter, and learn its last layer.

    A light filter's weights are the metric's. A net's embedding comes before the modality's
    features, which weigh nothing yet: where the net does not fit the stream, they can.
    """
    head, embedder, spec = trained.head, trained.embedder, trained.spec
    if isinstance(embedder, LightEmbedder):
        used, gains, offsets = embedder.scale
        count = spec.feature_count
        light = np.zeros(count, np.float32)
        reach = np.zeros((2, count), np.float32)
        if head is not None:
            light[used] = gains * np.float32(head.distance)
        reach[0, used] = offsets
        reach[1, used] = offsets + 255 / np.maximum(gains, 1e-9)
        weights = light

        def features(tensor: np.ndarray) -> tuple[float | None, np.ndarray]:
            numbers = spec.features(tensor)
            return embedder.score(numbers), numbers
    else:
        dim = trained.manifest.filter.dim if head is not None else 0
        count = dim + spec.feature_count
        weights = np.zeros(count, np.float32)
        if head is not None:
            weights[:dim] = head.distance
        reach = np.zeros((2, count), np.float32)
        reach[1, :dim] = 255.0

        def features(tensor: np.ndarray) -> tuple[float | None, np.ndarray]:
            score, embedding = trained.embed_tensor(tensor)
            own = embedding[:dim].astype(np.float32)
            return score, np.concatenate([own, spec.features(tensor)])

    metric = None
    if head is not None and head.rescore is None and weights.any():
        metric = Metric(weights, head.log_age, head.age, head.bias)
    threshold = 0.0 if knobs.reuse_threshold is None else min(knobs.reuse_threshold, LOOSEST)
    most = knobs.max_since_inference
    cap = UNCALIBRATED_CAP if most is None else float(min(max(most, 1), LARGEST_CAP))
    return Start(features, count, metric, threshold, cap, knobs.skip_threshold, reach)
