"""The decision per input: one small family that contains every simpler gate as a corner."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import cv2
import msgspec
import numpy as np

from infi_edge.cache import Candidates, ReuseCache
from infi_edge.learn import ReuseHead, sigmoid
from infi_edge.tasks import SameRule, Value, vote
from infi_edge.types import Action, Decision

VOTE_TEMPERATURE = 2.0
MOST_IN_FLIGHT = 256
"""Inferences that are remembered, so that one that fails can be taken back."""


class Knobs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What calibration sets. The corners: every-Nth is A = N - 1 at reuse_threshold 1, `last`;
    plain InFi-Skip is skip_threshold alone; plain InFi-Reuse reuse_threshold alone.

    skip_threshold: SKIP at a score up to this; None: never.
    reuse_threshold: REUSE at p(changed) up to this; None: never.
    max_since_inference: A, REUSE only while fewer inputs have passed since the last inference.
    deliver: the last answer, the nearest entry's, or the weighted vote of the `votes` nearest.
    max_distance: no entry farther than this (uint8 L1 steps) answers, whatever p says.
    max_consecutive_filtered, heartbeat_s: infer after so many filtered inputs, so many seconds.
    prefer_last: with `nearest`, the last answer unless the nearest is likelier by this many nats.
    """

    skip_threshold: float | None = None
    reuse_threshold: float | None = None
    max_since_inference: int | None = None
    deliver: Literal["last", "nearest", "vote"] = "nearest"
    votes: int = 15
    max_distance: int | None = None
    max_consecutive_filtered: int | None = None
    heartbeat_s: float | None = None
    prefer_last: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the cache would answer with: p(changed), the entry's value, slot, distance and age."""

    p_changed: float
    value: Value
    slot: int
    distance: int
    age_s: float
    votes: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Inference:
    """One inference: how many inputs had been decided on, and when, in seconds of the stream."""

    number: int
    time_s: float


class Policy:
    """Decides per input; holds the cache and what has passed since the last inference.

    The same object runs in the gate and in calibration's replays.
    """

    def __init__(
        self,
        knobs: Knobs,
        head: ReuseHead | None,
        cache: ReuseCache,
        same: SameRule,
        empty: Value = None,
    ) -> None:
        """head: None where the filter has no REUSE. same: the REUSE rule. empty: SKIP's value."""
        self.knobs, self.head, self.cache, self.same, self.empty = knobs, head, cache, same, empty
        self._decided = 0
        self._inferences: deque[Inference] = deque(maxlen=MOST_IN_FLIGHT)

    @property
    def since_inference(self) -> int:
        """Inputs decided on since the last inference, or since the beginning."""
        return self._decided - (self._inferences[-1].number if self._inferences else 0)

    @property
    def _inferred_at_s(self) -> float | None:
        return self._inferences[-1].time_s if self._inferences else None

    def decide(self, score: float | None, embedding: np.ndarray, now_s: float) -> Decision:
        """Decide on one input; after INFER the caller reports the answer to `observe`.

        score: SKIP head's probability that inference is needed, or None. embedding: uint8 (D,).
        """
        decision = self._decide(score, embedding, now_s)
        self.count()
        return decision

    def preview(
        self,
        score: float | None,
        embedding: np.ndarray,
        now_s: float,
        asked: Sequence[tuple[np.ndarray, float]] = (),
    ) -> Decision | None:
        """The decision as of now, not yet counted: whoever acts on it calls `count`.

        asked: (embedding, age in seconds of the stream) of inputs whose answers are still to come,
        the newest first. None: one of those would be reused; ask again when it is here.
        """
        decision = self._decide(score, embedding, now_s)
        if not asked:
            return decision
        if self._awaits(decision, embedding, asked):
            return None
        if self.knobs.deliver == "last" and decision.action is Action.REUSE:
            # The last answer is still to come, and is not for this one.
            return Decision(Action.INFER, "may have changed", score=score)
        return decision

    def count(self) -> None:
        """Count one input that was decided on."""
        self._decided += 1

    def observe(self, embedding: np.ndarray, value: Value, now_s: float) -> None:
        """Store what the model answered to an input that was inferred."""
        self.inferred(now_s)
        self.store(embedding, value, now_s)

    def store(self, embedding: np.ndarray, value: Value, now_s: float) -> None:
        """Store an answer; that its input was inferred is noted already."""
        if self.head is not None:
            self.cache.insert(embedding, value, now_s)

    def inferred(self, now_s: float) -> Inference:
        """Note an inference whose answer is not to be reused, or has not come yet."""
        inference = Inference(self._decided, now_s)
        self._inferences.append(inference)
        return inference

    def not_inferred(self, inference: Inference) -> None:
        """Take back an inference that has failed."""
        with suppress(ValueError):
            self._inferences.remove(inference)

    def _awaits(
        self, decision: Decision, embedding: np.ndarray, asked: Sequence[tuple[np.ndarray, float]]
    ) -> bool:
        """Whether an answer that is still to come would be reused instead of this decision."""
        knobs = self.knobs
        if decision.action is Action.SKIP or self.head is None or knobs.reuse_threshold is None:
            return False
        if knobs.max_since_inference == 0 or knobs.max_consecutive_filtered == 0:
            return False
        if knobs.deliver == "vote":  # every answer to come has a voice
            return True
        candidates = asked[:1] if knobs.deliver == "last" else asked
        p = min(self._p_awaited(embedding, *one) for one in candidates)
        if not p <= knobs.reuse_threshold:
            return False
        if decision.action is Action.INFER or knobs.deliver != "nearest":
            return True
        return decision.p_changed is None or p <= decision.p_changed

    def follow(self, other: Policy) -> None:
        """Count on from where another policy stands."""
        self._decided, self._inferences = other._decided, other._inferences.copy()

    def _p_awaited(self, embedding: np.ndarray, asked: np.ndarray, age_s: float) -> float:
        difference = cv2.absdiff(asked, embedding).ravel()
        distance = int(difference.sum(dtype=np.int32))
        if self.knobs.max_distance is not None and distance > self.knobs.max_distance:
            return math.inf
        return self._p(difference[None], float(distance), age_s)

    def _decide(self, score: float | None, embedding: np.ndarray, now_s: float) -> Decision:
        knobs = self.knobs
        limit = knobs.max_consecutive_filtered
        if limit is not None and self.since_inference >= limit:
            return Decision(Action.INFER, "too many filtered in a row", score=score)
        if knobs.heartbeat_s is not None and (
            self._inferred_at_s is None or now_s - self._inferred_at_s >= knobs.heartbeat_s
        ):
            return Decision(Action.INFER, "heartbeat", score=score)
        if knobs.skip_threshold is not None and score is not None and score <= knobs.skip_threshold:
            return Decision(Action.SKIP, "not needed", self.empty, score)
        if knobs.reuse_threshold is None or self.head is None:
            return Decision(Action.INFER, "needed", score=score)
        if (
            knobs.max_since_inference is not None
            and self.since_inference >= knobs.max_since_inference
        ):
            return Decision(Action.INFER, "last inference too long ago", score=score)
        self.cache.expire(now_s)
        if len(self.cache) == 0:
            return Decision(Action.INFER, "cache empty", score=score)
        return self._reuse(score, embedding, now_s)

    def _reuse(self, score: float | None, embedding: np.ndarray, now_s: float) -> Decision:
        knobs = self.knobs
        assert knobs.reuse_threshold is not None
        found = self.look_up(embedding, now_s)
        p, distance = found.p_changed, found.distance
        if knobs.max_distance is not None and distance > knobs.max_distance:
            return Decision(Action.INFER, "unlike anything answered", score=score, p_changed=p)
        if not p <= knobs.reuse_threshold:  # a NaN is no licence to reuse
            return Decision(Action.INFER, "may have changed", score=score, p_changed=p)
        self.cache.touch(found.slot)
        return Decision(
            Action.REUSE,
            "answered before",
            found.value,
            score,
            p,
            found.age_s,
            distance,
            found.votes,
        )

    def look_up(self, embedding: np.ndarray, now_s: float) -> Answer:
        """What would be reused, whatever the thresholds say; the cache must not be empty."""
        knobs, cache = self.knobs, self.cache
        if knobs.deliver == "last":
            slot = cache.newest
            distance, age_s = cache.distance(slot, embedding), cache.age_s(slot, now_s)
            p = self._p_changed(slot, embedding, distance, age_s)
            return Answer(p, cache.value(slot), slot, distance, age_s)
        near = cache.candidates(embedding, now_s)
        logits = self._logits(near, embedding)
        best = int(logits.argmin())
        if knobs.prefer_last and knobs.deliver == "nearest":
            last = int(np.flatnonzero(near.slots == cache.newest)[0])
            best = last if logits[best] > logits[last] - knobs.prefer_last else best
        slot = int(near.slots[best])
        p, value, votes = sigmoid(float(logits[best])), cache.value(slot), 1
        if knobs.deliver == "vote":
            p, value, votes = self._vote(near, logits, p)
        return Answer(p, value, slot, int(near.distances[best]), float(near.ages_s[best]), votes)

    def _p_changed(self, slot: int, embedding: np.ndarray, distance: int, age_s: float) -> float:
        differences = self.cache.differences(np.array([slot]), embedding)
        return self._p(differences, float(distance), age_s)

    def _p(self, differences: np.ndarray, z: float, age_s: float) -> float:
        """p(changed) of one pair. differences: uint8 (1, D). z: their sum."""
        head = self.head
        assert head is not None
        if head.rescore is not None:
            z = float(head.rescore(differences)[0])
        return sigmoid(
            head.bias + head.distance * z + head.log_age * math.log1p(age_s) + head.age * age_s
        )

    def _logits(self, near: Candidates, embedding: np.ndarray) -> np.ndarray:
        head, z = self.head, near.distances
        assert head is not None
        if head.rescore is not None:
            z = head.rescore(self.cache.differences(near.slots, embedding))
        logits: np.ndarray = head.distance * z + head.bias
        if head.log_age or head.age:
            logits += head.log_age * np.log1p(near.ages_s) + head.age * near.ages_s
        return logits

    def _vote(
        self, near: Candidates, logits: np.ndarray, p_nearest: float
    ) -> tuple[float, Value, int]:
        """Weigh the nearest by their odds of being right, softened; the nearest's p is one voter.

        Homogenized KNN (FoggyCache, MobiCom 2018) with weights; confidence
        (share * n_eff + p_same) / (n_eff + 1), n_eff the effective number of voters.
        """
        if self.knobs.max_distance is not None:
            logits = np.where(near.distances <= self.knobs.max_distance, logits, np.inf)
        count = min(self.knobs.votes, int(np.isfinite(logits).sum()))
        if count == 0:
            return math.nan, None, 0
        chosen = np.argpartition(logits, count - 1)[:count] if count < len(logits) else ...
        weights = np.exp(-(logits[chosen] - logits.min()) / VOTE_TEMPERATURE)
        values = [self.cache.value(slot) for slot in near.slots[chosen].tolist()]
        value, share = vote(values, weights, self.same)
        n_eff = float(weights.sum()) ** 2 / float(np.square(weights).sum())
        confidence = (share * n_eff + 1.0 - p_nearest) / (n_eff + 1.0)
        return 1.0 - confidence, value, count
