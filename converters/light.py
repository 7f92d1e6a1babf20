"""Train the light filter: fixed features, a convex metric, no TensorFlow."""

from __future__ import annotations

import numpy as np

from converters.recordings import Stretches, TrainingData
from converters.trained import DeadFilterError, TrainedFilter, TrainSettings, indices
from infi_edge.archive import array_bytes
from infi_edge.bundle import FilterSpec, ReuseSpec, SkipSpec
from infi_edge.learn import fit_reuse, fit_skip

HEADROOM = 0.25


def train_light(
    data: TrainingData,
    stretches: Stretches,
    settings: TrainSettings,
    *,
    pairs: int = 20_000,
    steps: int = 300,
) -> TrainedFilter:
    """Fit the light filter (NumPy, seconds). Raises DeadFilterError if nothing is learned."""
    truth, members = data.truth, {}
    weights = np.zeros(data.features.shape[1], np.float32)
    reuse = None
    if settings.mechanism != "skip":
        metric = fit_reuse(
            data.features,
            truth.values,
            truth.times_s,
            truth.same,
            stretches,
            pairs=pairs,
            steps=steps,
            seed=settings.seed,
        )
        weights = metric.weights
    used = np.flatnonzero(weights > 0).astype(np.int32)
    if len(used) == 0:
        if settings.mechanism != "skip":
            raise DeadFilterError("the light filter found no feature that tells answers apart")
        used = np.zeros(1, np.int32)
    step, offsets = _scale(data.features[:, used], weights[used])
    if settings.mechanism != "skip":
        head = metric.head
        reuse = ReuseSpec(distance=step, log_age=head.log_age, age=head.age, bias=head.bias)
    members["features.npy"] = array_bytes(used)
    members["gains.npy"] = array_bytes((weights[used] / step).astype(np.float32))
    members["offsets.npy"] = array_bytes(offsets)
    skip = None
    if settings.mechanism != "reuse":
        chosen = indices(stretches)
        members["skip.npy"] = array_bytes(fit_skip(data.features[chosen], truth.redundant[chosen]))
        skip = SkipSpec(weight=1.0, bias=0.0)
    parameters = len(used) + (0 if skip is None else data.features.shape[1] + 1)
    spec = FilterSpec(kind="light", dim=len(used), scale=step, parameters=parameters)
    return TrainedFilter(spec, skip, reuse, members)


def _scale(features: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """Return (embedding units per uint8 step, what each feature's zero step stands for).

    Features that are never negative start at 0; the others get a quarter of their range as
    headroom at either end, for what training has not seen.
    """
    low, high = features.min(axis=0), features.max(axis=0)
    signed = low < 0
    room = HEADROOM * (high - low)
    offsets = np.where(signed, low - room, 0.0).astype(np.float32)
    reach = (np.where(signed, high + room, high) - offsets) * weights
    largest = float(reach.max())
    return (largest / 255 if largest > 0 else 1.0), offsets
