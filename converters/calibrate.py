"""Set a gate's knobs by replaying held-out stream, in order, closed loop, with the cache.

A `Method` is a family of settings and a way to replay one of them; baselines are methods too, so
everything is calibrated by the same few lines. What is asked of a setting is not its accuracy but
a lower bound of it over blocks of time: neighbouring inputs err together, so inputs do not count.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from infi_edge.policy import Knobs
from infi_edge.replay import Embedded, Outcome, Truth, replay

Measure = Literal["accuracy", "recall"]


@dataclass(frozen=True, slots=True)
class Target:
    """accuracy or recall of at least `value`."""

    measure: Measure
    value: float


@dataclass(frozen=True, slots=True)
class Fold:
    """A held-out stretch with what a filter that never saw it says on it."""

    truth: Truth
    embedded: Embedded | None


Replay = Callable[[Any, Fold], Outcome]


@dataclass(frozen=True, slots=True)
class Method:
    """A family of gates. settings: from strict to loose is not required. run: replays one.

    period: how many inputs a setting's own cycle spans (it is replayed from several starts), or 1.
    blind: whether a setting does not look at its inputs at all.
    """

    name: str
    settings: Sequence[Any]
    run: Replay
    period: Callable[[Any], int] = lambda setting: 1
    blind: Callable[[Any], bool] = lambda setting: False


@dataclass(frozen=True, slots=True)
class Score:
    """A setting's cross-fitted figures over all folds, in stream order.

    errors, filtered: float (N,), the share of replays in which an input was wrong, was filtered.
    period: inputs in the setting's own cycle; a block of time spans at least one.
    """

    setting: Any
    errors: np.ndarray
    filtered: np.ndarray
    wanted: np.ndarray
    period: int
    blind: bool = False

    @property
    def filtering_rate(self) -> float:
        """Share of inputs not inferred."""
        return float(self.filtered.mean())

    @property
    def accuracy(self) -> float:
        """Share of inputs with the right value."""
        return 1.0 - float(self.errors.mean())

    @property
    def recall(self) -> float:
        """Share of wanted inputs with the right value (1 if none is wanted)."""
        return 1.0 - float(self.errors[self.wanted].mean()) if self.wanted.any() else 1.0

    @property
    def block_inputs(self) -> int:
        """Inputs in a block of time long enough to be nearly independent of the next one."""
        longest = max(len(self.errors) // 8, 1)
        return max(block_length(self.errors, longest), min(self.period, longest))

    def losses(self, measure: Measure, block: int) -> np.ndarray:
        """The loss of each block of time: its error share (over wanted inputs for recall).

        For recall, blocks are weighted to the mean number of wanted inputs a block has.
        """
        count = max(len(self.errors) // block, 1)
        edges = np.linspace(0, len(self.errors), count + 1).astype(int)
        counted = self.wanted if measure == "recall" else np.ones(len(self.errors), bool)
        wrong = np.add.reduceat(self.errors * counted, edges[:-1])
        return wrong / max(counted.sum() / count, 1e-9)


def score(method: Method, setting: Any, folds: Sequence[Fold], starts: int = 3) -> Score:
    """Replay a setting over every fold; from up to `starts` starts within its period."""
    errors, filtered = [], []
    for fold in folds:
        count = len(fold.truth)
        period = min(method.period(setting), count // 2)
        offsets = sorted({period * k // starts for k in range(starts)}) if period > 2 else [0]
        wrong, passed, runs = np.zeros(count), np.zeros(count), np.zeros(count)
        for offset in offsets:
            cut = (
                fold
                if offset == 0
                else Fold(
                    fold.truth.cut(offset, count),
                    fold.embedded and fold.embedded.cut(offset, count),
                )
            )
            outcome = method.run(setting, cut)
            wrong[offset:] += ~outcome.right
            passed[offset:] += outcome.actions != 0
            runs[offset:] += 1
        errors.append(wrong / runs)
        filtered.append(passed / runs)
    wanted = np.concatenate([~fold.truth.redundant for fold in folds])
    return Score(
        setting,
        np.concatenate(errors),
        np.concatenate(filtered),
        wanted,
        method.period(setting),
        method.blind(setting),
    )


def block_length(errors: np.ndarray, longest: int) -> int:
    """Return how many inputs make a block whose errors are nearly independent of the next one's.

    Twice the integrated autocorrelation time of the error sequence (Geyer's initial positive
    sequence), at most `longest`, at least 1.
    """
    centred = errors - errors.mean()
    variance = float(centred @ centred)
    if variance <= 0:
        return max(longest // 2, 1)
    total = 0.5
    for lag in range(1, longest):
        correlation = float(centred[:-lag] @ centred[lag:]) / variance
        if correlation <= 0.05:
            break
        total += correlation
    return int(np.clip(math.ceil(2 * 2 * total), 1, longest))


def lower_bound(losses: np.ndarray, confidence: float) -> float:
    """Return a lower bound of 1 - E[loss] from independent block losses: an estimate.

    Student's t over the blocks and one more that went wrong like the wrong ones did (half wrong if
    none did), so that some blocks without an error do not promise perfection: the rule of three.
    """
    if len(losses) < 2:
        return 0.0
    wrong = losses[losses > 0]
    unlucky = float(wrong.mean()) if len(wrong) else 0.5
    seen = np.append(losses, unlucky)
    error = float(seen.std(ddof=1)) / math.sqrt(len(seen))
    return 1.0 - float(seen.mean()) - t_quantile(confidence, len(losses) - 1) * error


def t_quantile(confidence: float, freedom: int) -> float:
    """Student's t quantile from the normal one (Cornish-Fisher, Abramowitz and Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(confidence)
    n = freedom
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def p_value(losses: np.ndarray, limit: float) -> float:
    """Hoeffding-Bentkus p-value of "the mean loss exceeds `limit`" for losses in 0..1.

    Learn then Test (Angelopoulos et al. 2021), section 3.1.
    """
    count, mean = len(losses), float(np.minimum(losses, 1.0).mean())
    if mean >= limit:
        return 1.0
    divergence = _binary_divergence(mean, limit)
    hoeffding = math.exp(-count * divergence)
    wrong = math.ceil(count * mean)
    bentkus = math.e * sum(
        math.comb(count, k) * limit**k * (1 - limit) ** (count - k) for k in range(wrong + 1)
    )
    return min(hoeffding, bentkus, 1.0)


def _binary_divergence(a: float, b: float) -> float:
    low = 0.0 if a == 0 else a * math.log(a / b)
    return low + (1 - a) * math.log((1 - a) / (1 - b))


@dataclass(frozen=True, slots=True)
class Choice:
    """The setting chosen for a target. score None: only inferring everything holds it."""

    target: Target
    score: Score | None
    bound: float
    kind: Literal["guarantee", "estimate"]
    blocks: int
    block_inputs: int


def choose(
    scores: Sequence[Score],
    target: Target,
    confidence: float,
) -> Choice:
    """Return the setting of the highest filtering rate whose bound holds the target: an estimate.

    Among settings that infer within 10 % as often the safest wins (`best_choice`).
    """
    holding = []
    for candidate in scores:
        if candidate.filtering_rate <= 0:
            continue
        losses = candidate.losses(target.measure, candidate.block_inputs)
        bound = lower_bound(losses, confidence)
        if bound >= target.value:
            block = candidate.block_inputs
            holding.append(Choice(target, candidate, bound, "estimate", len(losses), block))
    return best_choice(holding) or Choice(target, None, 1.0, "estimate", 0, 0)


def best_choice(choices: Sequence[Choice]) -> Choice | None:
    """Return the choice that infers least; of those that infer within 10 % as often, the safest.

    Safest is what looks at its inputs: it notices a scene that changes faster than the recording
    did. Among those, what has the highest bound. None if nothing filters.
    """
    rated = [(c.score.filtering_rate, c) for c in choices if c.score is not None]
    if not rated:
        return None
    least = 1.0 - max(rate for rate, _ in rated)
    near = [c for rate, c in rated if 1.0 - rate <= 1.1 * least]
    return max(near, key=lambda c: (c.score is not None and not c.score.blind, c.bound))


def certify(
    selected: Sequence[Score],
    test: Callable[[Any], Score],
    target: Target,
    confidence: float,
) -> Choice | None:
    """Return the boldest setting that is certified, or None: a guarantee (Learn then Test, 2.3).

    selected: settings scored on one stretch, which orders them from the safest to the boldest of
    the Pareto front. test: scores a setting on another stretch; neither was seen in training.
    Fixed-sequence testing: settings are tested in that order until the first one fails.
    """
    limit, rate = 1.0 - target.value, 0.0
    best: Choice | None = None
    safest_first = sorted(
        (s for s in selected if s.filtering_rate > 0),
        key=lambda s: (float(s.losses(target.measure, s.block_inputs).mean()), -s.filtering_rate),
    )
    for candidate in safest_first:
        if candidate.filtering_rate <= rate:
            continue
        tested = test(candidate.setting)
        losses = tested.losses(target.measure, candidate.block_inputs)
        if p_value(losses, limit) > 1.0 - confidence:
            break
        rate = candidate.filtering_rate
        best = Choice(
            target, tested, target.value, "guarantee", len(losses), candidate.block_inputs
        )
    return best


def blocks_needed(target: Target, confidence: float) -> int:
    """How many blocks without an error certify a target: 29, 59, 149 for 0.90, 0.95, 0.98."""
    return math.ceil(math.log(1.0 - confidence) / math.log(target.value))


PERIODS = (*range(2, 41), *range(41, 101, 3), *range(101, 402, 20))
"""N of every-Nth, as a corner of the family and as a baseline."""
AGES = (1, 2, 3, 4, 6, 8, 11, 15, 20, 28, 40, 60, 90, 130, 200, 300)
THRESHOLDS = (0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7)
VOTE_AGES = (1, 2, 3, 4, 6, 8, 11, 15, 20, 30)
VOTERS = 15


def every_nth_knobs() -> list[Knobs]:
    """Every-Nth as the corner of the family that it is: A = N - 1, whatever the distance."""
    return [Knobs(reuse_threshold=1.0, max_since_inference=n - 1, deliver="last") for n in PERIODS]


def reuse_grid(longest: int, max_distance: int | None = None) -> list[Knobs]:
    """The REUSE family: thresholds times A times what is delivered; every-Nth is its corner.

    longest: inputs in the shortest held-out stretch. A stays below three quarters of it: what a
    stretch does not hold one cycle of cannot be judged on it, and an answer must not live forever.
    For the same reason a vote needs a stretch in which its voters come together.
    """
    grid = every_nth_knobs()
    grid += [
        Knobs(reuse_threshold=threshold, max_since_inference=age, deliver=deliver)
        for deliver in ("last", "nearest")
        for age, threshold in itertools.product(AGES, THRESHOLDS)
    ]
    grid += [
        Knobs(
            reuse_threshold=threshold,
            max_since_inference=age,
            deliver="vote",
            votes=VOTERS,
            max_distance=max_distance,
        )
        for age, threshold in itertools.product(VOTE_AGES, THRESHOLDS[1:])
        if (age + 1) * VOTERS <= longest
    ]
    return [k for k in grid if k.max_since_inference and k.max_since_inference <= 0.75 * longest]


def quick_grid(longest: int) -> list[Knobs]:
    """A part of the REUSE family, for a first look: half of the thresholds, no vote."""
    grid = [
        Knobs(reuse_threshold=threshold, max_since_inference=age, deliver=deliver)
        for deliver in ("last", "nearest")
        for age, threshold in itertools.product(AGES, THRESHOLDS[1::2])
    ]
    return [k for k in grid if k.max_since_inference and k.max_since_inference <= 0.75 * longest]


def skip_grid(scores: np.ndarray | None) -> list[float]:
    """SKIP thresholds worth trying: quantiles of the scores."""
    if scores is None:
        return []
    quantiles = np.quantile(scores, np.linspace(0.02, 0.98, 33))
    return sorted({float(np.round(q, 6)) for q in quantiles})


def run_policy(setting: Knobs, fold: Fold) -> Outcome:
    """Replay the gate's own policy."""
    assert fold.embedded is not None
    return replay(setting, fold.truth, fold.embedded)


def knob_period(setting: Knobs) -> int:
    """The length of a gate's own cycle: A + 1; without A a history never repeats."""
    limit = setting.max_since_inference
    if setting.reuse_threshold is None:
        return 1
    return 1 << 30 if limit is None else limit + 1


def knob_blind(setting: Knobs) -> bool:
    """Whether these knobs answer whatever the input shows: every-Nth."""
    return setting.reuse_threshold == 1.0 and setting.max_distance is None


def gate_method(name: str, settings: Sequence[Knobs]) -> Method:
    """The learned gate over these knobs as a method."""
    return Method(name, settings, run_policy, knob_period, knob_blind)
