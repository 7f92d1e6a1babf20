"""Replay a gate over a recorded stream, in order, closed loop, with its cache; and score it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from infi_edge.cache import Eviction, ReuseCache
from infi_edge.learn import ReuseHead
from infi_edge.policy import Knobs, Policy
from infi_edge.tasks import SameRule, Task, Value
from infi_edge.types import Action

INFERRED, SKIPPED, REUSED = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Truth:
    """What the model says on a stretch of stream: times_s (N,), values, redundant bool (N,)."""

    times_s: np.ndarray
    values: list[Value]
    redundant: np.ndarray
    same: SameRule
    empty: Value
    can_skip: bool = True

    def __len__(self) -> int:
        return len(self.values)

    def cut(self, first: int, last: int) -> Truth:
        """The inputs first..last-1 alone."""
        return Truth(
            self.times_s[first:last],
            self.values[first:last],
            self.redundant[first:last],
            self.same,
            self.empty,
            self.can_skip,
        )


def make_truth(values: list[Value], times_s: np.ndarray, task: Task, same: SameRule) -> Truth:
    """Put the model's answers and the task's rules together."""
    redundant = np.array([task.is_redundant(value) for value in values], bool)
    return Truth(times_s, values, redundant, same, task.empty, task.can_skip)


def longest_quiet_s(truth: Truth) -> float:
    """The longest time in which no answer was wanted and none changed, in seconds of the stream."""
    values, times_s = truth.values, truth.times_s
    changed = [not truth.same(a, b) for a, b in itertools.pairwise(values)]
    lively = np.array([True, *changed], bool) | (~truth.redundant if truth.can_skip else False)
    moments = np.append(times_s[lively], times_s[-1])
    return float(np.diff(moments).max(initial=0.0))


@dataclass(frozen=True, slots=True)
class Embedded:
    """What a filter says on a stretch: embeddings uint8 (N, D), scores (N,) or None, its head."""

    embeddings: np.ndarray
    scores: np.ndarray | None
    head: ReuseHead | None

    def cut(self, first: int, last: int) -> Embedded:
        """The inputs first..last-1 alone."""
        scores = None if self.scores is None else self.scores[first:last]
        return Embedded(self.embeddings[first:last], scores, self.head)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a gate did: actions uint8 (N,) (INFERRED, SKIPPED, REUSED), right bool (N,).

    A SKIP is right only when the model's own value is redundant, a REUSE when the delivered value
    is `same` as the model's (InFi, MobiCom 2022, 2.2, kept apart by action).
    """

    actions: np.ndarray
    right: np.ndarray

    @property
    def filtering_rate(self) -> float:
        """Share of inputs not inferred."""
        return float((self.actions != INFERRED).mean())

    @property
    def accuracy(self) -> float:
        """Share of inputs whose delivered value agrees with the model's."""
        return float(self.right.mean())

    def recall(self, truth: Truth) -> float | None:
        """Share of wanted inputs with the right value; None where the task knows no
        redundant value, or nothing was wanted."""
        wanted = ~truth.redundant
        if not truth.can_skip or not wanted.any():
            return None
        return float(self.right[wanted].mean())


def replay(
    knobs: Knobs,
    truth: Truth,
    embedded: Embedded,
    cache_entries: int = 4096,
    eviction: Eviction = "oldest",
) -> Outcome:
    """Run the gate's own policy and cache over a stretch, from a cold start."""
    cache = ReuseCache(embedded.embeddings.shape[1], cache_entries, eviction=eviction)
    policy = Policy(knobs, embedded.head, cache, truth.same, truth.empty)
    actions = np.zeros(len(truth), np.uint8)
    right = np.ones(len(truth), bool)
    times = truth.times_s.tolist()
    scores = [None] * len(truth) if embedded.scores is None else embedded.scores.tolist()
    for i, (now_s, score, embedding, value) in enumerate(
        zip(times, scores, embedded.embeddings, truth.values, strict=True)
    ):
        decision = policy.decide(score, embedding, now_s)
        if decision.action is Action.INFER:
            policy.observe(embedding, value, now_s)
        elif decision.action is Action.SKIP:
            actions[i], right[i] = SKIPPED, truth.redundant[i]
        else:
            actions[i], right[i] = REUSED, truth.same(decision.value, value)
    return Outcome(actions, right)


def every_nth_accuracies(truth: Truth, wanted_only: bool = False) -> Iterator[float]:
    """Yield the accuracy of inferring every Nth input, for N = 1, 2, ..., over all N phases.

    Between inferences the last answer is given; the first input is always inferred.
    wanted_only: over the wanted inputs (recall) instead of all.
    """
    count = len(truth)
    counted = ~truth.redundant if wanted_only else np.ones(count, bool)
    index = np.arange(count)
    first = _agree(truth, np.zeros(count, np.int64))
    agreeing = np.zeros(count)
    for n in range(1, count + 1):
        lag = n - 1
        reaches = index >= lag
        agreeing[reaches] += _agree(truth, np.maximum(index - lag, 0))[reaches]
        # Phases that have not begun yet still give the answer to the first input.
        early = np.maximum(lag - index, 0) * first
        yield float((agreeing + early)[counted].sum() / (n * max(int(counted.sum()), 1)))


def _agree(truth: Truth, answered_by: np.ndarray) -> np.ndarray:
    values, same = truth.values, truth.same
    return np.array([same(values[j], v) for j, v in zip(answered_by.tolist(), values, strict=True)])


def every_nth_filtering_rate(truth: Truth, target: float, wanted_only: bool = False) -> float:
    """1 - 1/N for the largest N such that it and every smaller one hold the target: the best that
    every-Nth can do on this very stretch."""
    best = 1
    for n, accuracy in enumerate(every_nth_accuracies(truth, wanted_only), 1):
        if accuracy < target:
            break
        best = n
    return 1.0 - 1.0 / best
