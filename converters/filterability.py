"""Will a filter pay here? Measured on a recording in a minute or two, before any long training.

The light filter is cross-fitted over blocks of time at several training sizes. Each block is
filtered by a filter that was not trained on it, at a setting that was not chosen on it, so rate
and accuracy are what a new stretch would have shown. What it must beat are the gates that need no
skill: inferring every Nth input, or inputs at random, or a mixture of two of these.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import numpy as np

from converters.calibrate import (
    Fold,
    Score,
    Target,
    block_length,
    quick_grid,
    t_quantile,
)
from converters.crossfit import Report, embed_stretch, fold_stretches, others, quiet
from converters.light import train_light
from converters.recordings import Stretches, TrainingData
from converters.search import search
from converters.table import MIN_INPUTS, learnable
from converters.trained import DeadFilterError, TrainSettings
from infi_edge.errors import ConfigError
from infi_edge.replay import Truth, every_nth_accuracies, every_nth_filtering_rate

Verdict = Literal["pays", "does not pay", "not enough data"]
FRACTIONS = (0.25, 0.5, 1.0)
CONFIDENCE = 0.95
WORTH = 0.1
"""A filter that saves less than this share of what a gate without skill still infers is not worth
having, however sure it is."""

NEARLY_ALL = 0.99
MOST_LAGS = 400


@dataclass(frozen=True, slots=True)
class Redundancy:
    """How redundant a stretch is. redundant: share of inputs whose value nobody wants, or None.

    repeats: share of inputs with the same answer as the one before. runs: inputs between two
    changes of the answer: the median, the mean, and the longest.
    """

    redundant: float | None
    repeats: float
    runs: tuple[float, float, int]


@dataclass(frozen=True, slots=True)
class Point:
    """A point of the learning curve: inputs learned from, and what that gave on unseen blocks.

    low, high: 95 % confidence bounds of the filtering rate, over blocks of time.
    """

    trained_on: int
    filtering_rate: float
    low: float
    high: float
    accuracy: float
    recall: float | None


@dataclass(frozen=True, slots=True)
class Cost:
    """Milliseconds of one pass of the filter, of one look into the cache, of the model."""

    filter_ms: float
    reuse_ms: float
    model_ms: float

    @property
    def break_even(self) -> float:
        """The filtering rate above which a filter costs less than it saves (InFi, 2.2); 1: none."""
        saved = self.model_ms - self.reuse_ms
        return min(self.filter_ms / saved, 1.0) if saved > 0 else 1.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured.

    at: the accuracy (or recall) the gates without skill were held to: the target, or what the
    filter delivered where that is less. every_nth, random, without_skill: their filtering rates,
    the last of the best of them or of two in turns.
    """

    target: Target
    redundancy: Redundancy
    curve: tuple[Point, ...]
    cost: Cost
    at: float
    every_nth: float
    random: float
    without_skill: float
    verdict: Verdict
    why: str


def redundancy(truth: Truth) -> Redundancy:
    """Count what repeats in a stretch (N >= 2)."""
    same = np.array(
        [truth.same(a, b) for a, b in zip(truth.values, truth.values[1:], strict=False)], bool
    )
    edges = np.concatenate([[0], np.flatnonzero(~same) + 1, [len(truth)]])
    runs = np.diff(edges)
    return Redundancy(
        float(truth.redundant.mean()) if truth.can_skip else None,
        float(same.mean()),
        (float(np.median(runs)), float(runs.mean()), int(runs.max())),
    )


def without_skill(truth: Truth, target: Target) -> tuple[float, float, float]:
    """Return the best filtering rates of gates that do not look at their inputs, on this stretch.

    (every-Nth, at random, the best of all). At random: a constant answer (SKIP's own, or the
    commonest) is wrong on the inputs that want another, a repeated one as often as answers so far
    apart differ. The best may also switch between two gates, at random, so that it just holds the
    target: one over every second input and one over every third filter between a half and two
    thirds.
    """
    by_recall = target.measure == "recall"
    counted = ~truth.redundant if by_recall else np.ones(len(truth), bool)
    if not counted.any():
        return 1.0, 1.0, 1.0
    accuracies = list(islice(every_nth_accuracies(truth, by_recall), MOST_LAGS))
    nth = [(1.0 - 1.0 / n, accuracy) for n, accuracy in enumerate(accuracies, 1)]
    right = max(_constant_answers(truth, counted))
    if truth.can_skip:
        right = max(right, float(truth.redundant[counted].mean()))
    constant = [(0.0, 1.0), (1.0, right)]
    random = max(_mixed(constant, target.value), _random_repeat(truth, target, counted))
    best = max(random, _mixed([*nth, *constant], target.value))
    return every_nth_filtering_rate(truth, target.value, by_recall), random, best


def _mixed(gates: Sequence[tuple[float, float]], target: float) -> float:
    """The highest rate of two (rate, accuracy) gates taken in turns that hold the target."""
    holding = [g for g in gates if g[1] >= target]
    failing = [g for g in gates if g[1] < target]
    best = max((rate for rate, _ in holding), default=0.0)
    for rate, accuracy in holding:
        for bolder, worse in failing:
            share = (accuracy - target) / (accuracy - worse)
            best = max(best, rate + share * (bolder - rate))
    return best


def _constant_answers(truth: Truth, counted: np.ndarray) -> list[float]:
    """How often each of the commonest answers is right."""
    values = [truth.values[i] for i in np.flatnonzero(counted)]
    texts = Counter(map(repr, values)).most_common(20)
    common = [next(v for v in values if repr(v) == text) for text, _ in texts]
    return [float(np.mean([truth.same(c, v) for v in values])) for c in common]


def _random_repeat(truth: Truth, measure: Target, counted: np.ndarray) -> float:
    lags = min(len(truth), MOST_LAGS)
    agree = np.zeros(lags)
    for lag in range(lags):
        pairs = [
            truth.same(truth.values[i - lag], truth.values[i])
            for i in range(lag, len(truth))
            if counted[i]
        ]
        agree[lag] = np.mean(pairs) if pairs else agree[lag - 1]
    best = 0.0
    for rate in np.linspace(0.0, 0.995, 400):
        weights = (1 - rate) * rate ** np.arange(lags)
        weights[-1] += rate**lags
        if float(weights @ agree) >= measure.value:
            best = float(rate)
    return best


def measure(
    data: TrainingData,
    target: Target,
    cost: Cost,
    fractions: Sequence[float] = FRACTIONS,
    report: Report = quiet,
) -> Measurement:
    """Measure a labelled recording and say whether a filter pays there."""
    truth = data.truth
    found = redundancy(truth)
    curve: list[Point] = []
    told = ""
    if len(data) < MIN_INPUTS:
        told = f"{len(data)} inputs are fewer than {MIN_INPUTS}"
    else:
        try:
            mechanism, _ = learnable(truth, "both")
            settings = TrainSettings(mechanism)
            for number, fraction in enumerate(sorted(fractions), 1):
                what = f"learning curve {number}/{len(fractions)}"
                curve.append(_point(data, target, settings, fraction, report, what))
        except (ConfigError, DeadFilterError) as error:
            told = str(error)
    delivered = 1.0
    if curve:
        last = curve[-1]
        delivered = last.accuracy if target.measure == "accuracy" else last.recall or 0.0
    at = Target(target.measure, min(target.value, delivered))
    nth, random, best = without_skill(truth, at)
    verdict: Verdict = "not enough data"
    why = told
    if not told:
        verdict, why = judge(curve[-1], best, cost.break_even)
    elif best >= NEARLY_ALL:
        verdict, why = "does not pay", f"{told}; a gate without skill filters nearly everything"
    return Measurement(target, found, tuple(curve), cost, at.value, nth, random, best, verdict, why)


def judge(point: Point, without_skill: float, break_even: float) -> tuple[Verdict, str]:
    """Return (verdict, why) from the reachable rate's bounds and what it must exceed."""
    bar = max(without_skill, break_even)
    name = "the best gate without skill" if without_skill >= break_even else "the break-even rate"
    low, high = f"{point.low:.3f}", f"{point.high:.3f}"
    if point.low > bar:
        return "pays", f"at least {low} can be filtered, more than {name} ({bar:.3f})"
    if break_even >= 1.0:
        return "does not pay", "a filter costs as much as the model: there is no break-even rate"
    if bar >= 1.0:
        return "does not pay", f"{name} filters everything"
    if 1.0 - point.high > (1.0 - WORTH) * (1.0 - bar):
        return (
            "does not pay",
            f"at most {high} can be filtered, and {name} is {bar:.3f}: less than a tenth of what "
            "that still infers would be saved; take that gate instead",
        )
    return (
        "not enough data",
        f"between {low} and {high} can be filtered, and {name} is {bar:.3f}: record more",
    )


def _point(
    data: TrainingData,
    target: Target,
    settings: TrainSettings,
    fraction: float,
    report: Report,
    what: str,
) -> Point:
    """One training size: a light filter per block of time, each judged on its own block."""
    folds, sizes = [], []
    for stretch in fold_stretches(len(data)):
        used = _beginnings(others(stretch, len(data)), fraction)
        trained = train_light(data, used, settings, pairs=8000, steps=200)
        sizes.append(sum(last - first for first, last in used))
        folds.append(Fold(data.truth.cut(*stretch), embed_stretch(trained, data, *stretch)))
    grid = quick_grid(min(len(fold.truth) for fold in folds))
    scores = search(folds, [target], settings.mechanism, CONFIDENCE, report, what, grid, starts=1)
    ends = np.cumsum([len(fold.truth) for fold in folds])
    errors, filtered = _unseen([s for s in scores if not s.blind], ends, target)
    wanted = ~data.truth.redundant
    rate, half = float(filtered.mean()), _half_width(errors, filtered)
    recall = None
    if data.truth.can_skip and wanted.any():
        recall = 1.0 - float(errors[wanted].mean())
    return Point(
        int(np.mean(sizes)),
        rate,
        max(rate - half, 0.0),
        min(rate + half, 1.0),
        1.0 - float(errors.mean()),
        recall,
    )


def _beginnings(stretches: Stretches, fraction: float) -> Stretches:
    """The first `fraction` of each stretch."""
    cut = [(first, first + max(round(fraction * (last - first)), 1)) for first, last in stretches]
    return [(first, last) for first, last in cut if last > first]


def _unseen(
    scores: Sequence[Score], ends: np.ndarray, target: Target
) -> tuple[np.ndarray, np.ndarray]:
    """Return (errors, filtered), both (N,), each block at a setting chosen on the others: the one
    that filtered most there while it held the target, without a margin, as those without skill."""
    count = int(ends[-1])
    errors, filtered = np.zeros(count), np.zeros(count)
    first = 0
    for last in ends.tolist():
        kept = np.ones(count, bool)
        kept[first:last] = False
        rest = [
            replace(s, errors=s.errors[kept], filtered=s.filtered[kept], wanted=s.wanted[kept])
            for s in scores
        ]
        reached = [s.recall if target.measure == "recall" else s.accuracy for s in rest]
        holding = [i for i, value in enumerate(reached) if value >= target.value]
        if holding:
            best = scores[max(holding, key=lambda i: rest[i].filtering_rate)]
            errors[first:last] = best.errors[first:last]
            filtered[first:last] = best.filtered[first:last]
        first = last
    return errors, filtered


def _half_width(errors: np.ndarray, filtered: np.ndarray) -> float:
    """Half of the 95 % confidence interval of the mean of `filtered`, over blocks of time."""
    longest = max(len(filtered) // 8, 1)
    block = max(block_length(filtered, longest), block_length(errors, longest))
    count = max(len(filtered) // block, 2)
    edges = np.linspace(0, len(filtered), count + 1).astype(int)
    means = np.add.reduceat(filtered, edges[:-1]) / np.diff(edges)
    return t_quantile(0.975, count - 1) * float(means.std(ddof=1)) / math.sqrt(count)
