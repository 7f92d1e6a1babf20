"""Learn a light filter in NumPy: a convex non-negative logistic metric on fixed features.

The logit of "these two inputs get different answers" is
    bias + sum_i w_i |f_i(a) - f_i(b)| + w_log log(1 + age) + w_age age,   all w >= 0,
so weight times feature is an embedding whose L1 distance the reuse cache can search. A small L1
penalty leaves few weights. It is the convex relative of InFi's classifier (MobiCom 2022, 5.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from infi_edge.tasks import SameRule, Value


def sigmoid(x: float) -> float:
    """Return 1 / (1 + exp(-x)) without overflow; NaN stays NaN."""
    return 0.0 if x < -700 else 1.0 / (1.0 + math.exp(-x))


@dataclass(frozen=True, slots=True)
class ReuseHead:
    """p(changed) = sigmoid(bias + distance * z + log_age * log(1 + age_s) + age * age_s).

    z: the uint8 L1 distance, or what `rescore` makes of uint8 |differences| (C, D): floats (C,).
    """

    distance: float
    log_age: float
    age: float
    bias: float
    rescore: Callable[[np.ndarray], np.ndarray] | None = None


@dataclass(frozen=True, slots=True)
class LightMetric:
    """weights: float32 (F,), non-negative; the distance of its head is 1 (it is in the weights)."""

    weights: np.ndarray
    head: ReuseHead


def sample_pairs(
    stretches: list[tuple[int, int]], count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw index pairs (a, b), a before b, lags log-uniform from one input to the whole recording.

    stretches: half-open index ranges that may be used, in stream order. Short lags decide how
    long an answer lives, long ones whether an old entry still answers; uniform pairs would show
    hardly any of the first kind.
    """
    allowed = np.concatenate([np.arange(first, last) for first, last in stretches])
    member = np.zeros(int(allowed[-1]) + 1, bool)
    member[allowed] = True
    longest = max(int(allowed[-1] - allowed[0]), 1)
    a = np.empty(0, np.int64)
    b = np.empty(0, np.int64)
    while len(a) < count:
        first = rng.choice(allowed, 2 * count)
        lag = np.floor(np.exp(rng.uniform(0, np.log(longest + 1), 2 * count))).astype(np.int64)
        second = first + lag
        inside = second <= allowed[-1]
        inside[inside] = member[second[inside]]
        a, b = np.append(a, first[inside]), np.append(b, second[inside])
    return a[:count], b[:count]


def changed(values: list[Value], a: np.ndarray, b: np.ndarray, same: SameRule) -> np.ndarray:
    """Return float32 (P,): 1 where the answers of a pair are not the same."""
    pairs = zip(a.tolist(), b.tolist(), strict=True)
    return np.array([not same(values[i], values[j]) for i, j in pairs], np.float32)


def fit_reuse(
    features: np.ndarray,
    values: list[Value],
    times_s: np.ndarray,
    same: SameRule,
    stretches: list[tuple[int, int]],
    *,
    pairs: int = 20_000,
    penalty: float = 2e-4,
    steps: int = 300,
    seed: int = 0,
) -> LightMetric:
    """Fit the metric by accelerated projected gradient (FISTA, Beck and Teboulle 2009).

    features: float32 (N, F). times_s: (N,). penalty: L1, per unit of a feature's spread.
    """
    rng = np.random.default_rng(seed)
    a, b = sample_pairs(stretches, pairs, rng)
    y = changed(values, a, b, same)
    age = np.abs(times_s[b] - times_s[a])
    wide = features.astype(np.float64)
    columns = np.concatenate(
        [np.abs(wide[a] - wide[b]), np.log1p(age)[:, None], age[:, None]], axis=1
    )
    spread = columns.std(axis=0) + 1e-6
    cost = np.full(columns.shape[1], penalty)
    cost[-2:] = 0.0
    w, bias = non_negative_logistic(columns / spread, y.astype(np.float64), cost, steps)
    w[w < 1e-6 * w.max(initial=0.0)] = 0.0
    w = settled(w / spread)
    head = ReuseHead(1.0, float(w[-2]), float(w[-1]), float(settled(np.array(bias))))
    return LightMetric(w[:-2].astype(np.float32), head)


def fit_head(readings: np.ndarray, ages_s: np.ndarray, y: np.ndarray) -> ReuseHead:
    """Fit p(changed | reading, age) alone: four numbers, the weights not negative.

    readings: (P,), of pairs, what a filter's classifier says (a distance, a logit). ages_s: (P,).
    y: (P,), 1 where the answers differ.
    """
    columns = np.stack([readings, np.log1p(ages_s), ages_s], axis=1).astype(np.float64)
    middle, spread = columns.mean(axis=0), columns.std(axis=0) + 1e-6
    x = (columns - middle) / spread
    w, bias = non_negative_logistic(x, y.astype(np.float64), np.zeros(3), 500)
    w = w / spread
    numbers = settled(np.append(w, bias - float(w @ middle))).tolist()
    return ReuseHead(*numbers)


def settled(numbers: np.ndarray) -> np.ndarray:
    """Round to six significant digits.

    Sums in float64 differ in their last digits with the threads and the memory they ran on; what
    is left is the same on every run.
    """
    with np.errstate(divide="ignore"):
        digits = 5 - np.floor(np.log10(np.abs(numbers)))
    factor = 10.0 ** np.where(np.isfinite(digits), digits, 0.0)
    rounded: np.ndarray = np.round(numbers * factor) / factor
    return rounded


def fit_skip(
    features: np.ndarray, redundant: np.ndarray, *, penalty: float = 1e-3, steps: int = 300
) -> np.ndarray:
    """Fit "needs inference" by ridge logistic regression. Returns float32 (F + 1,), bias last.

    features: float32 (N, F). redundant: bool (N,). penalty: L2, per unit of a feature's spread.
    """
    wide = features.astype(np.float64)
    mean, spread = wide.mean(axis=0), wide.std(axis=0) + 1e-3
    x = (wide - mean) / spread
    y = (~redundant).astype(np.float64)
    w, bias, before = np.zeros(x.shape[1]), 0.0, np.zeros(x.shape[1])
    step = 4.0 / (float(np.linalg.norm(x, 2)) ** 2 / len(x) + 1.0)
    for k in range(steps):
        point = w + k / (k + 3) * (w - before)
        z = np.clip(x @ point + bias, -30, 30)
        residual = (1 / (1 + np.exp(-z)) - y) / len(x)
        before, w = w, point - step * (x.T @ residual + penalty * point)
        bias -= step * float(residual.sum())
    w = w / spread
    return settled(np.append(w, bias - float(w @ mean))).astype(np.float32)


def non_negative_logistic(
    x: np.ndarray,
    y: np.ndarray,
    cost: np.ndarray,
    steps: int,
    shares: np.ndarray | None = None,
    start: tuple[np.ndarray, float] | None = None,
) -> tuple[np.ndarray, float]:
    """Return weights (C,) >= 0 and the bias of p(y = 1 | x), by accelerated projected gradient.

    x: (P, C), float32 or float64, in which all is computed. y: (P,). cost: (C,), the L1 penalty.
    shares: (P,), what each row counts for, summing to 1; None: all alike. start: weights and bias
    to begin with.
    """
    rows, columns = x.shape
    kind = x.dtype
    if shares is None:
        shares = np.full(rows, 1 / rows, kind)
    if start is None:
        rate = float(np.clip(shares @ y, 0.01, 0.99))
        start = np.zeros(columns, kind), math.log(rate / (1 - rate))
    w, bias = start[0].astype(kind), start[1]
    # The Lipschitz constant of the gradient, by power iteration (the bias column included).
    v = np.full(columns, 1 / np.sqrt(columns), kind)
    for _ in range(20):
        v = _rows(x, shares * _columns(x, v))
        v /= np.sqrt(np.square(v).sum()) + np.finfo(kind).tiny
    step = kind.type(4.0 / (float((shares * np.square(_columns(x, v))).sum()) + 1.0))
    point, point_bias, momentum = w, bias, 1.0
    for _ in range(steps):
        z = np.clip(_columns(x, point) + kind.type(point_bias), -30, 30)
        residual = shares * (1 / (1 + np.exp(-z)) - y)
        next_w = np.maximum(point - step * (_rows(x, residual) + cost), 0.0)
        next_bias = point_bias - step * float(residual.sum())
        next_momentum = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        glide = (momentum - 1) / next_momentum
        point = next_w + kind.type(glide) * (next_w - w)
        point_bias = next_bias + glide * (next_bias - bias)
        w, bias, momentum = next_w, next_bias, next_momentum
    return w, float(bias)


# Not BLAS: its threads fight for the cores with the model, and sum in another order on each run.
def _columns(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x @ w."""
    return np.einsum("pc,c->p", x, w)


def _rows(x: np.ndarray, r: np.ndarray) -> np.ndarray:
    """r @ x."""
    return np.einsum("pc,p->c", x, r)
