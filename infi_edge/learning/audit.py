"""The statistics of an audit: how right the delivered answers are, and an alarm when too few are.

An input is either needed (inferred for its own sake: its answer is right by definition), or the
policy would filter it. Then a coin whose probability was chosen before decides: audited (inferred
all the same, so we see whether the answer it would have got was wrong) or filtered (we see
nothing). Whether an input is wrong may depend on everything before, earlier coins included, but
not on its own coin.

The bound. Of the inputs that would be filtered with audit probability p, take those that are
wrong. Their coins are independent of each other whatever the stream does, so the likelihood ratio
of "these coins fall with probability q" against p, (q/p)^K ((1-q)/(1-p))^D with K audited and D
delivered, is a martingale of mean 1; so is its mixture over q ~ Beta(a, b), which is closed:

    M(K, D) = B(K+a, D+b) / B(a, b) / (p^K (1-p)^D)

and so is the product of it over several probabilities. By Ville's inequality (1939) the product
exceeds 1/alpha at any time with probability alpha at most. K is seen, D is not: the D with
M <= 1/alpha are a set that holds the true one at all times at once. (Robbins' beta mixture;
confidence sequences for sampling without knowing when one stops: Waudby-Smith and Ramdas, JRSS-B
2024; in election audits: Waudby-Smith, Stark and Ramdas, RiLACS, 2021.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

PRIOR_HITS = 0.5  # `a` of the mixture; with mean p its `b` is a (1-p) / p
MAX_LEVELS = 32
MAX_COUNT = 10**12  # a thousand years of 30 inputs a second
LOG_SLOPES = (-30.0, 4.5)  # of log M: at the first it is flat, at the second D is at its end
HALVINGS = 32
RISES = (2.0, 4.0, 10.0)  # times the allowed error rate that the alarm looks for


@dataclass(frozen=True, slots=True)
class Bounded:
    """An estimate and its anytime-valid bounds, low <= estimate <= high."""

    estimate: float
    low: float
    high: float


@dataclass(slots=True)
class _Level:
    """What is counted of the inputs that were filtered or audited at one probability."""

    probability: float
    filtered: int = 0
    audited: int = 0
    wrong: int = 0
    wanted_wrong: int = 0
    wanted_right: int = 0


@dataclass(frozen=True, slots=True)
class _Coins:
    """The inputs of one kind (the wrong ones, say) at one probability.

    hits: how many of them were audited. filtered: all inputs that were filtered, of any kind.
    """

    probability: float
    hits: int
    filtered: int

    @property
    def expected(self) -> float:
        """The unbiased number of filtered ones (Horvitz-Thompson); it is where M is least."""
        return self.hits * (1 - self.probability) / self.probability


class LiveAccuracy:
    """Accuracy and recall of what was delivered so far, from a random audit.

    confidence: the chance that an interval holds the true value at all times at once, for any
    stream, also one whose errors answer to the audit, and any rule that picks the probabilities
    before the coins. Accuracy and recall each have it; both together have 2 * confidence - 1.
    Raises ValueError if confidence or a probability is not between 0 and 1 (what is always
    inferred is needed), or if there are more than 32 different probabilities.
    """

    def __init__(self, confidence: float = 0.95) -> None:
        if not 0.0 < confidence < 1.0:
            raise ValueError(f"confidence must be between 0 and 1, not {confidence!r}")
        self.confidence = confidence
        self._needed = 0
        self._wanted = 0
        self._knows_wanted = True
        self._levels: dict[float, _Level] = {}

    def needed(self, wanted: bool | None) -> None:
        """Count an input that was inferred for its own sake. wanted: None if nobody can tell."""
        self._needed += 1
        self._count_wanted(wanted)

    def filtered(self, probability: float) -> None:
        """Count an input that was filtered, and would have been audited with this probability."""
        level = self._levels.get(probability) or self._add(probability)
        level.filtered += 1

    def audited(self, probability: float, wrong: bool, wanted: bool | None) -> None:
        """Count an input that was audited. wrong: the answer that it would have got was."""
        level = self._levels.get(probability) or self._add(probability)
        level.audited += 1
        level.wrong += bool(wrong)
        level.wanted_wrong += bool(wanted and wrong)
        level.wanted_right += bool(wanted and not wrong)
        self._count_wanted(wanted)

    def _count_wanted(self, wanted: bool | None) -> None:
        if wanted is None:
            self._knows_wanted = False
        elif wanted:
            self._wanted += 1

    def _add(self, probability: float) -> _Level:
        _check_probability(probability)
        if len(self._levels) == MAX_LEVELS:
            raise ValueError(f"more than {MAX_LEVELS} different audit probabilities")
        level = _Level(probability)
        self._levels = {**self._levels, probability: level}  # another thread may be reading
        return level

    @property
    def inputs(self) -> int:
        """All inputs so far."""
        return self._needed + self.audits + self._filtered

    @property
    def audits(self) -> int:
        """Inputs that were audited."""
        return sum(level.audited for level in self._levels.values())

    @property
    def audit_errors(self) -> int:
        """Audited inputs whose answer would have been wrong."""
        return sum(level.wrong for level in self._levels.values())

    @property
    def _filtered(self) -> int:
        return sum(level.filtered for level in self._levels.values())

    def accuracy(self) -> Bounded:
        """Return the share of all inputs so far whose delivered answer is right.

        The estimate is unbiased: an audited error stands for (1 - p) / p filtered ones. (It is
        clipped to the bounds; that only acts when a level's errors outnumber its inputs.)
        Before the first input it is 1, between 0 and 1.
        """
        inputs = self.inputs
        if not inputs:
            return Bounded(1.0, 0.0, 1.0)
        wrong = _filtered_ones(self._coins(lambda level: level.wrong), 1 - self.confidence)
        return Bounded(1 - wrong.estimate / inputs, 1 - wrong.high / inputs, 1 - wrong.low / inputs)

    def recall(self) -> Bounded | None:
        """Return the share of the wanted inputs so far whose delivered answer is right.

        None if nobody can tell what is wanted, or nothing wanted was seen yet. The filtered wanted
        inputs are of two kinds, wrong and right; each is bounded with half of the error chance,
        and the ratio is taken at the worst corner. The estimate is a ratio of unbiased numbers.
        """
        if not self._knows_wanted or not self._wanted:
            return None
        half = (1 - self.confidence) / 2
        wrong = _filtered_ones(self._coins(lambda level: level.wanted_wrong), half)
        right = _filtered_ones(self._coins(lambda level: level.wanted_right), half)
        low = self._share(right.low, wrong.high)
        high = self._share(right.high, wrong.low)
        estimate = self._share(right.estimate, wrong.estimate)
        return Bounded(min(max(estimate, low), high), low, high)

    def _share(self, right: float, wrong: float) -> float:
        """The recall if so many filtered wanted inputs were right and wrong."""
        return (self._wanted + right) / (self._wanted + right + wrong)

    def _coins(self, hits: Callable[[_Level], int]) -> list[_Coins]:
        return [
            _Coins(level.probability, hits(level), level.filtered)
            for level in self._levels.values()
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain JSON values."""
        return {
            "confidence": self.confidence,
            "needed": self._needed,
            "wanted": self._wanted,
            "knows_wanted": self._knows_wanted,
            "levels": [asdict(level) for level in self._levels.values()],
        }

    @classmethod
    def from_dict(cls, raw: object) -> LiveAccuracy:
        """Return what `as_dict` was called on. Raises ValueError if raw cannot come from it."""
        live = cls(_number(raw, "confidence"))
        live._needed = _count(raw, "needed")
        live._wanted = _count(raw, "wanted")
        live._knows_wanted = _entry(raw, "knows_wanted", bool)
        for one in _entry(raw, "levels", list):
            probability = _number(one, "probability")
            if probability in live._levels:
                raise ValueError(f"audit counts name the probability {probability!r} twice")
            live._read_level(live._add(probability), one)
        audited_wanted = sum(x.wanted_wrong + x.wanted_right for x in live._levels.values())
        if not audited_wanted <= live._wanted <= audited_wanted + live._needed:
            raise ValueError("audit counts do not add up: 'wanted'")
        return live

    @staticmethod
    def _read_level(level: _Level, raw: object) -> None:
        for field in fields(_Level)[1:]:
            setattr(level, field.name, _count(raw, field.name))
        right = level.audited - level.wrong
        if level.wanted_wrong > level.wrong or level.wanted_right > right:
            raise ValueError(f"audit counts do not add up: 'levels' at {level.probability!r}")


def _filtered_ones(coins: list[_Coins], alpha: float) -> Bounded:
    """Bound how many inputs of one kind were filtered, all probabilities together.

    The set is {D : sum_j log M_j(D_j) <= log(1/alpha), 0 <= D_j <= filtered_j}.
    """
    estimate = sum(one.expected for one in coins)
    limit = -math.log(alpha)
    low, high = _end(coins, limit, -1.0), _end(coins, limit, 1.0)
    return Bounded(min(max(estimate, low), high), low, high)


def _end(coins: list[_Coins], limit: float, side: float) -> float:
    """Return the least (side -1) or greatest (side 1) sum of D over the set, or just beyond it.

    log M_j is convex in D_j, so the sum is extreme where all log M_j have one slope; that is found
    by halving. The first slope whose D are outside the set bounds the set by duality.
    """
    total, evidence = _at_slope(coins, 0.0)
    if evidence >= limit:  # no D is left: one of alpha's cases
        return total
    inside, outside = LOG_SLOPES
    total, evidence = _at_slope(coins, side * math.exp(outside))
    if evidence <= limit:
        return total
    for _ in range(HALVINGS):
        middle = (inside + outside) / 2
        there, evidence = _at_slope(coins, side * math.exp(middle))
        if evidence <= limit:
            inside = middle
        else:
            outside, total = middle, there
    return total


def _at_slope(coins: list[_Coins], slope: float) -> tuple[float, float]:
    """Return the sums of D_j and of log M_j(D_j), each D_j where log M_j begins to rise faster.

    From D to D + 1 log M rises by log((D+b) / (D+K+a+b)) - log(1-p).
    """
    total = evidence = 0.0
    for one in coins:
        ratio = (1 - one.probability) * math.exp(slope)
        misses = _prior_misses(one.probability)
        rest = one.hits + PRIOR_HITS + misses
        count = float(one.filtered)
        if ratio < 1.0:
            count = min(max(math.floor((ratio * rest - misses) / (1 - ratio)) + 1.0, 0.0), count)
        total += count
        evidence += _log_mixture(one.probability, one.hits, count)
    return total, evidence


def _log_mixture(probability: float, hits: int, missed: float) -> float:
    """Return log M(hits, missed); see the top of this file."""
    a, b = PRIOR_HITS, _prior_misses(probability)
    return (
        _log_beta(hits + a, missed + b)
        - _log_beta(a, b)
        - hits * math.log(probability)
        - missed * math.log1p(-probability)
    )


def _prior_misses(probability: float) -> float:
    return PRIOR_HITS * (1 - probability) / probability


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


class ErrorAlarm:
    """Tells when the error rate has risen over what is allowed: an e-detector.

    For each of three factors r a sum R is kept that every input multiplies: R = (R + 1) * x / m,
    x = r at an audited error and else 1, m = 1 + p * allowed * (r - 1). While an input is wrong
    with at most the allowed chance given all before it, R minus the number of inputs does not grow
    on average. So when the mean of the three R reaching `false_alarm_inputs` raises the alarm, the
    mean time to a false alarm is at least that many inputs (Shiryaev-Roberts e-detector: Shin,
    Ramdas and Rinaldo, 2023; its older kin: CUSUM, Page 1954).

    allowed: share of all inputs, needed ones included, whose answer may be wrong before audits.
    Once raised it stays so until `reset`. An input costs one comparison and one addition; only
    audited errors compute. Raises ValueError for numbers that make no sense.
    """

    def __init__(self, allowed: float, false_alarm_inputs: float = 1e5) -> None:
        if not 0.0 < allowed < 1.0:
            raise ValueError(f"the allowed error rate must be between 0 and 1, not {allowed!r}")
        if not 1.0 <= false_alarm_inputs < math.inf:
            raise ValueError(f"false_alarm_inputs must be at least 1, not {false_alarm_inputs!r}")
        self._allowed = allowed
        self._limit = false_alarm_inputs
        self._probability: float | None = None
        self.reset()

    @property
    def raised(self) -> bool:
        """Whether the error rate has risen over what is allowed."""
        return self._raised

    def reset(self) -> None:
        """Start anew, as after the gate was refitted."""
        self._sums = [0.0 for _ in RISES]
        self._quiet = 0
        self._raised = False

    def needed(self) -> None:
        """Count an input that was inferred for its own sake: it is right."""
        self._quiet += 1

    def filtered(self, probability: float) -> None:
        """Count an input that was filtered, and would have been audited with this probability."""
        if probability != self._probability:
            self._change(probability)
        self._quiet += 1

    def audited(self, probability: float, wrong: bool) -> None:
        """Count an input that was audited. wrong: the answer that it would have got was."""
        if probability != self._probability:
            self._change(probability)
        self._quiet += 1
        if wrong and not self._raised:
            self._catch_up()
            self._sums = [one * rise for one, rise in zip(self._sums, RISES, strict=True)]
            self._raised = sum(self._sums) >= self._limit * len(RISES)

    def _change(self, probability: float) -> None:
        _check_probability(probability)
        self._catch_up()
        self._probability = probability

    def _catch_up(self) -> None:
        """Account for the inputs since the last time."""
        probability = self._probability or 0.0
        rates = [probability * self._allowed * (rise - 1) for rise in RISES]
        both = zip(self._sums, rates, strict=True)
        self._sums = [_decayed(one, rate, self._quiet) for one, rate in both]
        self._quiet = 0


def _decayed(start: float, rate: float, times: int) -> float:
    """Apply R = (R + 1) / (1 + rate) so many times."""
    if rate == 0.0:
        return start + times
    log_kept = -times * math.log1p(rate)
    return start * math.exp(log_kept) - math.expm1(log_kept) / rate


def _check_probability(probability: float) -> None:
    if not 0.0 < probability < 1.0:
        raise ValueError(f"an audit probability is between 0 and 1, not {probability!r}")


def _entry(raw: object, key: str, kind: type) -> Any:
    if not isinstance(raw, dict) or not isinstance(raw.get(key), kind):
        raise ValueError(f"audit counts lack a sound {key!r}")
    return raw[key]


def _count(raw: object, key: str) -> int:
    value: int = _entry(raw, key, int)
    if isinstance(value, bool) or not 0 <= value <= MAX_COUNT:
        raise ValueError(f"audit counts lack a sound {key!r}")
    return value


def _number(raw: object, key: str) -> float:
    return float(_entry(raw, key, float))
