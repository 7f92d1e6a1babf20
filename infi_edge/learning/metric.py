"""The light metric of a learning gate: fitted to a few hundred inferred inputs, refitted warm."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from infi_edge.filter import quantize_embedding
from infi_edge.learn import ReuseHead, non_negative_logistic
from infi_edge.tasks import SameRule, Value

PAIRS = 4000
PENALTY = 1e-3
FIRST_STEPS, WARM_STEPS = 300, 60
HEAVIEST = 20.0
"""A pair counts for 1 / probability that it was seen, at most for this many."""
HEADROOM = 1.0
"""Room in the embedding below and above what was seen, in ranges of it."""
PAIRS_AT_ONCE = 50
OLDEST_S = 3600.0
"""Ages over an hour are all alike to a fit: a clock that jumps must not be what it is about."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """What a metric is fitted to: inferred inputs in their order.

    features: float32 (N, F). times_s: (N,). values: the model's answers. probabilities: (N,), of
    having been inferred: 1 for what needed it, less for what was audited.
    """

    features: np.ndarray
    times_s: np.ndarray
    values: list[Value]
    probabilities: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """logit p(changed) = bias + sum w_i |f_i(a) - f_i(b)| + log_age log(1 + age) + age * age_s.

    weights: float32 (F,), not negative.
    """

    weights: np.ndarray
    log_age: float
    age: float
    bias: float


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """A metric as the cache reads it: uint8 steps of weight times feature.

    used: int32 (D,). gains, shift: float32 (D,), steps = features[used] * gains + shift.
    step: embedding units per uint8 step.
    """

    metric: Metric
    used: np.ndarray
    gains: np.ndarray
    shift: np.ndarray
    step: float

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Return uint8 (D,) of features float32 (F,), or (N, D) of (N, F).

        Raises ValueError on a NaN.
        """
        return quantize_embedding(features[..., self.used] * self.gains + self.shift)

    def head(self, slope: float = 1.0, offset: float = 0.0) -> ReuseHead:
        """Return p(changed | uint8 distance, age), its logit recalibrated: slope * z + offset."""
        m = self.metric
        return ReuseHead(
            slope * self.step, slope * m.log_age, slope * m.age, slope * m.bias + offset
        )


def embedding_of(metric: Metric, features: np.ndarray) -> Embedding:
    """Choose the steps of an embedding by the features float32 (N, F) that were seen."""
    used = np.flatnonzero(metric.weights > 0).astype(np.int32)
    if len(used) == 0:  # one label so far: nothing tells answers apart
        used = np.zeros(1, np.int32)
    seen, weights = features[:, used], metric.weights[used]
    low, high = seen.min(axis=0), seen.max(axis=0)
    room = HEADROOM * (high - low) + 1e-6
    low, high = low - room, high + room
    largest = float(((high - low) * weights).max())
    step = largest / 255 if largest > 0 else 1.0
    gains = (weights / step).astype(np.float32)
    return Embedding(metric, used, gains, (-low * gains).astype(np.float32), step)


def fit_metric(
    sample: Sample,
    same: SameRule,
    start: Metric | None,
    rng: np.random.Generator,
    pause: Callable[[], None] = lambda: None,
) -> Metric:
    """Fit to pairs of inferred inputs, each weighted by 1 / probability that its second was seen.

    Which inputs are inferred depends on the metric itself: unweighted, those it finds easy would
    be missing (labels missing not at random; inverse propensity weights, Horvitz and Thompson
    1952). start: a metric to go on from. pause: called now and then, where other threads may run.
    """
    first, second, shares = _pairs(len(sample.values), sample.probabilities, rng)
    y = _changed(sample.values, first, second, same, pause)
    age_s = np.clip(sample.times_s[second] - sample.times_s[first], 0.0, OLDEST_S)
    age_s = age_s.astype(np.float32)
    difference = np.abs(sample.features[first] - sample.features[second])
    pause()
    columns = np.concatenate([difference, np.log1p(age_s)[:, None], age_s[:, None]], axis=1)
    middle = np.einsum("pc,p->c", columns, shares)
    square = np.einsum("pc,pc,p->c", columns, columns, shares)
    spread = np.sqrt(np.maximum(square - np.square(middle), 0.0)) + np.float32(1e-6)
    cost = np.full(columns.shape[1], PENALTY, np.float32)
    cost[-2:] = 0.0
    steps, begin = FIRST_STEPS, None
    if start is not None:
        steps = WARM_STEPS
        begin = np.append(start.weights, [start.log_age, start.age]) * spread, start.bias
    pause()
    w, bias = non_negative_logistic(columns / spread, y, cost, steps, shares, begin)
    w[w < 1e-6 * w.max(initial=0.0)] = 0.0
    w = (w / spread).astype(np.float32)
    if not (np.isfinite(w).all() and math.isfinite(bias)):
        raise ValueError("the fit is not a number")
    return Metric(w[:-2], float(w[-2]), float(w[-1]), bias)


def _pairs(
    count: int, probabilities: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (earlier, later), lags log-uniform, and each one's share float32: all of them, or a
    draw of as many as PAIRS."""
    if count * (count - 1) // 2 <= PAIRS:
        second, first = np.tril_indices(count, -1)
        weights = 1.0 / (second - first)
    else:
        second = rng.integers(1, count, 2 * PAIRS)
        lag = np.floor(np.exp(rng.uniform(0.0, math.log(count), 2 * PAIRS))).astype(np.int64)
        inside = lag <= second
        first, second = (second - lag)[inside][:PAIRS], second[inside][:PAIRS]
        weights = np.ones(len(first))
    weights = weights * np.minimum(1.0 / probabilities[second], HEAVIEST)
    return first, second, (weights / weights.sum()).astype(np.float32)


def _changed(
    values: list[Value],
    first: np.ndarray,
    second: np.ndarray,
    same: SameRule,
    pause: Callable[[], None],
) -> np.ndarray:
    y = np.zeros(len(first), np.float32)
    for k, (i, j) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        y[k] = not same(values[i], values[j])
        if k % PAIRS_AT_ONCE == 0:
            pause()
    return y


def saved_metric(
    state: Mapping[str, Any], arrays: Mapping[str, np.ndarray], count: int
) -> Metric | None:
    """The metric of a `Learner.snapshot`, None before the first fit.

    count: features of an input. Raises ValueError, KeyError or TypeError on nonsense.
    """
    if state["metric"] is None:
        return None
    weights = arrays["weights"]
    log_age, age, bias = (float(n) for n in state["metric"])
    if weights.shape != (count,) or weights.dtype != np.float32 or not (weights >= 0).all():
        raise ValueError("impossible weights")
    if not (log_age >= 0 and age >= 0 and np.isfinite([log_age, age, bias]).all()):
        raise ValueError("impossible weights of age")
    if not np.isfinite(weights).all():
        raise ValueError("weights that are no numbers")
    return Metric(weights, log_age, age, bias)
