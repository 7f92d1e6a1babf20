"""A gate that learns while it serves: audit, fail open, fit, threshold.

One state machine. *Open*: everything is inferred, and a shadow of the gate decides beside it, to
see whether it would hold the target. *Closed*: the policy decides, and a share of what it would
filter is inferred all the same. It begins open.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np

from infi_edge.cache import ReuseCache
from infi_edge.learning.audit import Bounded, ErrorAlarm, LiveAccuracy
from infi_edge.learning.control import Control
from infi_edge.learning.keeper import Keeper
from infi_edge.learning.memory import Memory, is_learnable
from infi_edge.learning.metric import (
    Embedding,
    Metric,
    embedding_of,
    fit_metric,
    saved_metric,
)
from infi_edge.learning.novelty import Novelty
from infi_edge.learning.settings import LearnSettings
from infi_edge.learning.start import Start
from infi_edge.learning.worker import Worker
from infi_edge.policy import Answer, Knobs, Policy
from infi_edge.tasks import SameRule, Task, Value
from infi_edge.types import Action, Decision

log = logging.getLogger("infi_edge")

PREFER_LAST = 1.0
"""Nats by which an older answer must be likelier than the last one."""
FIRST_TRIAL, TRIAL, LONGEST_TRIAL = 8, 20, 1280
"""Inputs of a shadow in which the target must hold before the gate closes: at first, after it has
failed open, and after it has done so again and again."""
SURPRISED = 2
"""Inferences after which a wrong answer brings a fit at once."""
REFIT_SHARE, SURPRISED_SHARE = 16, 64
"""The more is known, the less one answer adds: a fit waits for this part of what is known."""
HUNTED, HUNTED_OF = 8, 10
"""Wrong ones of so many inputs at the cap."""
SCENE_PASSES, MOST_SCENE_PASSES = 0.1, 300.0
"""Inputs that pass for a change of the scene: one in ten in the long run, so many at a time."""
HELD = 1000
"""Inputs in which the target held, after which past failures are forgotten."""
TELL_AGAIN_S = 60.0
CHANGES_KEPT = 20
LEARNING = "learning"
UNLIKE = "inputs are unlike all before"
MISSED, ANSWERS_TO_IT = "below the target", "answers change as soon as they are reused"
Kind = Literal["open", "need", "cap", "audit"]


@dataclass(frozen=True, slots=True)
class Asked:
    """Why an input is inferred, and what it would have got: value, at p_changed (None: a SKIP, or
    nothing). probability: with which it was inferred."""

    kind: Kind
    probability: float = 1.0
    value: Value = None
    p_changed: float | None = None
    skip: bool = False

    @property
    def is_graded(self) -> bool:
        """Whether there was something to be right or wrong."""
        return self.skip or self.p_changed is not None


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that has happened to what is learned: after how many inputs, and what."""

    inputs: int
    what: str


class Learner:
    """Learns a reuse metric and its threshold from what is inferred. Used by one thread."""

    def __init__(
        self,
        start: Start,
        task: Task,
        same: SameRule,
        target_accuracy: float,
        worker: Worker[Metric],
        settings: LearnSettings | None = None,
        caps: Knobs | None = None,
        cache_age_s: float | None = None,
    ) -> None:
        """start: what it begins with, and the features of its inputs. caps: of a configuration
        (max_consecutive_filtered, heartbeat_s)."""
        settings = settings or LearnSettings()
        self.settings, self.target_accuracy = settings, target_accuracy
        self.allowed = 1.0 - target_accuracy
        self.counts: Counter[str] = Counter()
        self.changes: deque[Change] = deque(maxlen=CHANGES_KEPT)
        self.live = LiveAccuracy(settings.confidence)
        self.recent = LiveAccuracy(settings.confidence)
        self._refresh_bounds()
        self.control = Control(self.allowed)
        self.memory = Memory(start.feature_count, settings.entries, settings.max_bytes)
        self.metric: Metric | None = None
        self.embedding: Embedding | None = None
        self.opened_for: str | None = LEARNING
        self.version = 0
        self.keeper: Keeper | None = None
        self._good: Metric | None = None
        self._start, self._task = start, task
        self._same = same = self._forgiving(same)
        self._caps = caps or Knobs()
        self._cache_age_s = cache_age_s
        self._alarm = ErrorAlarm(self.allowed)
        self._random = np.random.default_rng(settings.seed)
        self._worker = worker
        self._since_fit = self._fits_since_open = self._since_closed = 0
        self._surprised = False
        self._skip_most = self._skip_threshold = start.skip_threshold
        self._trial_length = FIRST_TRIAL
        self._trial: deque[bool] = deque(maxlen=LONGEST_TRIAL)
        self._restored = False
        self._at_cap: deque[bool] = deque(maxlen=HUNTED_OF)
        self._told_why, self._told_s = "", 0.0
        self._novelty = Novelty()
        self._scene_passes, self._heeds_scenes = MOST_SCENE_PASSES, True
        self.policy = Policy(Knobs(), None, ReuseCache(1, 1), same, task.empty)
        self._shadow: Policy | None = None
        if start.metric is not None:
            self.control.begin(start.threshold, start.cap)
            self._adopt(start.metric)
            self.opened_for = None
        elif start.skip_threshold is not None:  # a filter that skips: it can begin at once
            self.policy.knobs = msgspec.structs.replace(
                self._caps, skip_threshold=start.skip_threshold
            )
            self.opened_for = None

    # What the gate asks.

    def look(self, tensor: np.ndarray) -> tuple[float | None, np.ndarray, np.ndarray]:
        """Return (SKIP score or None, features float32 (F,), embedding uint8 (D,)).

        Raises ValueError on a NaN.
        """
        self._collect()
        score, features = self._start.features(tensor)
        if not np.isfinite(features).all() or not (score is None or math.isfinite(score)):
            raise ValueError("the filter's features are not numbers")
        if self._novelty.is_new(features):
            self.scene_changed(UNLIKE)
        return score, features, self.embed(features)

    def embed(self, features: np.ndarray) -> np.ndarray:
        """Return the embedding, uint8 (D,), of features as of now."""
        if self.embedding is None:
            return np.zeros(1, np.uint8)
        return self.embedding(features)

    def decide(
        self,
        score: float | None,
        embedding: np.ndarray,
        now_s: float,
        asked: Sequence[tuple[np.ndarray, float]] = (),
    ) -> tuple[Decision, Asked | None] | None:
        """Decide on an input; None: an answer to come would be reused (`Policy.preview`)."""
        if self.opened_for is not None:
            return Decision(Action.INFER, self.opened_for, score=score), Asked("open")
        if self._restored:
            self._restored = False
            first = Decision(Action.INFER, "the first input after a start", score=score)
            return first, self._needed(embedding, now_s)
        decision = self.policy.preview(score, embedding, now_s, asked)
        if decision is None:
            return None
        if decision.action is Action.INFER:
            return decision, self._needed(embedding, now_s)
        if decision.p_changed is not None:
            self.control.see(decision.p_changed)
        probability = self.audit_probability
        if self._random.random() >= probability:
            self._count()
            self.live.filtered(probability)
            self.recent.filtered(probability)
            self._alarm.filtered(probability)
            return decision, None
        skip = decision.action is Action.SKIP
        value, p = decision.value, decision.p_changed
        why = Decision(Action.INFER, "audit", score=score, p_changed=p)
        return why, Asked("audit", probability, value, p, skip)

    def answered(
        self,
        score: float | None,
        features: np.ndarray,
        now_s: float,
        value: Value,
        asked: Asked,
    ) -> None:
        """Take the model's answer to an input that was inferred, in the order of the inputs."""
        self._count()
        wanted = not self._task.is_redundant(value) if self._task.can_skip else None
        if not is_learnable(value):
            self.counts["not_a_number"] += 1
            self._not_a_number(asked, wanted)
            return
        embedding = self.embed(features)
        in_shadow = True
        if asked.kind == "open":
            self._needed_one(wanted)
            in_shadow = self._try_shadow(score, embedding, now_s, value)
        else:
            self._grade(asked, value, wanted)
        self.memory.add(features, now_s, value, asked.probability, in_shadow)
        if self.embedding is not None:
            self.policy.cache.insert(embedding, value, now_s)
        self._since_fit += 1
        self._fit_if_due()
        self._close_if_held()
        self._refresh_bounds()
        if self.keeper is not None:
            self.keeper.tick(now_s)

    def _not_a_number(self, asked: Asked, wanted: bool | None) -> None:
        """Nothing is like a NaN: what would have been given instead of it was wrong."""
        if asked.kind == "open":
            self._needed_one(wanted)
            self._trial.append(False)
            return
        self._count_answer(asked, asked.is_graded, wanted)
        if asked.kind == "audit":
            self._open_if_missed()
        self._refresh_bounds()

    def fail(self, asked: Asked) -> None:
        """An input that was to be inferred has no answer, or an old one (over budget).

        The live bounds take an audit that is lost for an error: else those that find something
        could be the ones that get lost.
        """
        self.counts["inputs"] += 1
        self.counts["failed"] += 1
        if asked.kind == "audit":
            self.counts["audit_lost"] += 1
            self.live.audited(asked.probability, True, True if self._task.can_skip else None)
            self._refresh_bounds()

    def freeze(self, frozen: bool) -> None:
        """Fit nothing while the machine is hot; what was learned goes on to decide."""
        self._worker.paused = frozen

    def scene_changed(self, why: str) -> None:
        """The whole scene changes: everything passes until the target holds in the new one."""
        if self._scene_passes < TRIAL:  # it always changes: that is what this stream is like
            self._heeds_scenes = False
        elif self._scene_passes >= MOST_SCENE_PASSES / 2:
            self._heeds_scenes = True
        if not self._heeds_scenes:
            return
        if self.opened_for in (None, LEARNING):
            self._scene_passes -= TRIAL
            self._open(why, log_it=self.opened_for is None)
        else:  # it goes on changing: what has passed since says nothing of what will be
            self._scene_passes -= 1
            self._trial.clear()

    @property
    def audit_probability(self) -> float:
        """With which an input that could be filtered is inferred all the same."""
        settled = self._since_closed >= self.settings.settle
        return self.settings.audit_settled if settled else self.settings.audit

    @property
    def live_bounds(self) -> Bounded | None:
        """Live accuracy as of the last inference; None before there was an audit."""
        return self.bounds if self.counts["audited"] else None

    @property
    def recall(self) -> Bounded | None:
        """Live recall of wanted inputs, since the beginning."""
        return self.live.recall()

    @property
    def learn_cpu_s(self) -> float:
        """CPU seconds of all fits."""
        return self._worker.cpu_s

    @property
    def holds(self) -> bool:
        """Whether what it knows has held the target for a while."""
        return self.opened_for is None and self._since_closed >= TRIAL and not self._alarm.raised

    def close(self, now_s: float | None = None) -> None:
        """Keep what was learned, and end the thread it learns in. now_s: stream time."""
        if self.keeper is not None:
            self.keeper.close(now_s)
        self._worker.close()

    def snapshot(self, now_s: float) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return all of it as JSON and arrays, copies. now_s: stream time; ages count from it."""
        sample, metric = self.memory.sample(), self.metric
        state: dict[str, Any] = {
            "target_accuracy": self.target_accuracy,
            "metric": None if metric is None else [metric.log_age, metric.age, metric.bias],
            "control": self.control.as_dict(),
            "live": self.live.as_dict(),
            "recent": self.recent.as_dict(),
            "opened_for": self.opened_for,
            "skip_threshold": self._skip_threshold,
            "since_closed": self._since_closed,
            "trial_length": self._trial_length,
            "counts": dict(self.counts),
            "changes": [[c.inputs, c.what] for c in self.changes],
            "values": sample.values,
        }
        arrays = {
            "features": sample.features,
            "ages_s": np.maximum(now_s - sample.times_s, 0.0),
            "probabilities": sample.probabilities,
        }
        if metric is not None:
            arrays["weights"] = metric.weights
        return state, arrays

    def restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray], now_s: float) -> None:
        """Go on from a `snapshot`. now_s: stream time of its making.

        Raises ValueError on nonsense, and then nothing has changed.
        """
        try:
            self._restore(state, arrays, now_s)
        except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            raise ValueError(f"{type(error).__name__}: {error}"[:200]) from error

    def _restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray], now_s: float) -> None:
        features, count = arrays["features"], len(state["values"])
        ages_s, probabilities = arrays["ages_s"], arrays["probabilities"]
        if features.shape != (count, self._start.feature_count):
            raise ValueError("features of another shape")
        if ages_s.shape != (count,) or probabilities.shape != (count,):
            raise ValueError("ages or probabilities of another shape")
        numbers = (features, ages_s, probabilities)
        if not all(np.isfinite(n).all() for n in numbers) or (probabilities <= 0).any():
            raise ValueError("impossible numbers")
        metric = saved_metric(state, arrays, self._start.feature_count)
        control = Control(self.allowed)
        control.restore(state["control"])
        live, recent = (
            LiveAccuracy.from_dict(state["live"]),
            LiveAccuracy.from_dict(state["recent"]),
        )
        if not isinstance(state["counts"], dict):
            raise ValueError("counts")
        counts = Counter({str(k): int(v) for k, v in state["counts"].items()})
        changes = [Change(int(n), str(what)) for n, what in state["changes"]]
        opened_for = state["opened_for"]
        if opened_for is not None and not isinstance(opened_for, str):
            raise ValueError("opened_for")
        skip = state["skip_threshold"]
        skip = None if skip is None else float(skip)
        if skip is not None and not 0.0 <= skip <= 1.0:
            raise ValueError("skip_threshold")
        since_closed, trial = int(state["since_closed"]), int(state["trial_length"])
        if since_closed < 0 or not FIRST_TRIAL <= trial <= LONGEST_TRIAL:
            raise ValueError("an impossible trial")
        if not 0.0 < state["target_accuracy"] < 1.0:
            raise ValueError("target_accuracy")
        if state["target_accuracy"] != self.target_accuracy:
            control.restart()  # what was right for another target is only where to begin
            control.threshold = min(control.threshold, self.allowed)
            recent, since_closed = LiveAccuracy(self.settings.confidence), 0
        live.confidence = recent.confidence = self.settings.confidence
        self._restored = True
        self.control, self.live, self.recent, self.counts = control, live, recent, counts
        self.changes.extend(changes)
        self._since_closed, self._trial_length = since_closed, trial
        if self._skip_most is not None and skip is not None:
            self._skip_threshold = min(skip, self._skip_most)
        for place in range(count):
            self.memory.add(
                features[place],
                now_s - float(ages_s[place]),
                state["values"][place],
                float(probabilities[place]),
            )
        self._refresh_bounds()
        knows = metric is not None or self._skip_most is not None
        self.opened_for = opened_for if knows else LEARNING
        if metric is not None:
            self._adopt(metric)

    # Closed.

    def _needed(self, embedding: np.ndarray, now_s: float) -> Asked:
        """What an input that is inferred would have got from the cache."""
        found = self._look_up(self.policy, embedding, now_s)
        if found is None:
            return Asked("need")
        self.control.see(found.p_changed)
        kind: Kind = "cap" if found.p_changed <= self.control.threshold else "need"
        return Asked(kind, 1.0, found.value, found.p_changed)

    def _forgiving(self, same: SameRule) -> SameRule:
        """A user's own rule may fail: what cannot be compared is not the same."""

        def safe(a: Value, b: Value) -> bool:
            try:
                return same(a, b)
            except Exception as error:
                self.counts["rule_error"] += 1
                if self.counts["rule_error"] == 1:
                    log.warning("two answers cannot be compared (%r); they count as changed", error)
                return False

        return safe

    def _look_up(self, policy: Policy, embedding: np.ndarray, now_s: float) -> Answer | None:
        if policy.head is None or not len(policy.cache):
            return None
        return policy.look_up(embedding, now_s)

    def _grade(self, asked: Asked, value: Value, wanted: bool | None) -> None:
        wrong = asked.is_graded and self._is_wrong(asked.skip, asked.value, value)
        self._count_answer(asked, wrong, wanted)
        self._steer(asked, wrong)
        self._surprised |= wrong
        if asked.kind == "audit" and wrong:
            self._open_if_missed()
        elif asked.kind == "cap":
            self._open_if_hunted(wrong)

    def _count_answer(self, asked: Asked, wrong: bool, wanted: bool | None) -> None:
        if asked.kind == "audit":
            self.live.audited(asked.probability, wrong, wanted)
            self.recent.audited(asked.probability, wrong, wanted)
            self._alarm.audited(asked.probability, wrong)
            self.counts["audited"] += 1
            self.counts["audit_wrong"] += wrong
        else:
            self._needed_one(wanted)

    def _is_wrong(self, skip: bool, would: Value, value: Value) -> bool:
        return not (self._task.is_redundant(value) if skip else self._same(would, value))

    def _steer(self, asked: Asked, wrong: bool) -> None:
        """Move the thresholds by what one answer tells."""
        control = self.control
        if asked.skip:
            self._move_skip(wrong)
        elif asked.p_changed is not None:
            control.learn(asked.p_changed, wrong, asked.probability)
            if asked.kind == "cap":
                control.at_cap(wrong)
            elif asked.kind == "audit" and wrong:
                control.missed()
        control.settle()
        self._set_knobs()

    def _move_skip(self, wrong: bool) -> None:
        """Adaptive conformal inference on the logit of the SKIP threshold, at most the bundle's."""
        old, most = self._skip_threshold, self._skip_most
        if old is None or most is None:
            return
        p = min(max(old, 1e-6), 1 - 1e-6)
        logit = math.log(p / (1 - p)) + (self.allowed - wrong)
        self._skip_threshold = min(1 / (1 + math.exp(-logit)), most)

    def _open_if_missed(self) -> None:
        if self.opened_for is not None:  # an answer to what was asked before it opened
            return
        recent = self.recent.accuracy()
        if self._alarm.raised or recent.high < self.target_accuracy:
            self._trial_length = min(max(self._trial_length, TRIAL) * 2, LONGEST_TRIAL)
            if self._good is not None and self._good is not self.metric:
                self._adopt(self._good)
                self.counts["rolled_back"] += 1
            self._open(MISSED, log_it=True)

    def _open_if_hunted(self, wrong: bool) -> None:
        """Open if answers are wrong as soon as they are reused at all. A random audit cannot see
        a stream that answers to the gate itself: an audited input is not filtered."""
        self._at_cap.append(wrong)
        if (
            self.opened_for is None
            and len(self._at_cap) == HUNTED_OF
            and sum(self._at_cap) >= HUNTED
        ):
            self._trial_length = min(max(self._trial_length, TRIAL) * 2, LONGEST_TRIAL)
            self._open(ANSWERS_TO_IT, log_it=True)

    # Open.

    def _open(self, why: str, log_it: bool) -> None:
        if log_it:
            self.counts["failed_open"] += 1
            now_s = time.monotonic()
            if why != self._told_why or now_s - self._told_s > TELL_AGAIN_S:
                self._told_why, self._told_s = why, now_s
                log.warning(
                    "the gate opens: %s; everything is inferred until the target holds", why
                )
        self._note(f"opened: {why}")
        self.opened_for, self._shadow = why, None
        self._trial.clear()
        self._at_cap.clear()
        self._alarm.reset()
        self._fits_since_open = 0
        self.memory.all_in_shadow()
        self._start_shadow()

    def _start_shadow(self) -> None:
        if self.embedding is None:
            return
        self.control.restart()
        self._shadow = self._make_policy(self.embedding, shadow=True)

    def _make_policy(self, embedding: Embedding, shadow: bool = False) -> Policy:
        """A policy over all that is remembered, or over the shadow's part of it."""
        cache = self.memory.cache(embedding, self._cache_age_s, shadow)
        return Policy(self._knobs(), self._head(), cache, self._same, self._task.empty)

    def _try_shadow(
        self, score: float | None, embedding: np.ndarray, now_s: float, value: Value
    ) -> bool:
        """Let the shadow decide; return whether it would have inferred the input."""
        shadow = self._shadow
        if shadow is None:
            return True
        found = self._look_up(shadow, embedding, now_s)
        decision = shadow.decide(score, embedding, now_s)
        skip, wrong = decision.action is Action.SKIP, False
        infers = decision.action is Action.INFER
        if found is not None:
            self.control.see(found.p_changed)
            would = decision.value if skip else found.value
            wrong = self._is_wrong(skip, would, value)
            at_cap = infers and found.p_changed <= self.control.threshold
            asked = Asked("cap" if at_cap else "need", 1.0, would, found.p_changed, skip)
            self._steer(asked, wrong)
            self._surprised |= wrong
        elif skip:
            wrong = self._is_wrong(True, None, value)
        if infers:
            shadow.observe(embedding, value, now_s)
        self._trial.append(infers or not wrong)
        return infers

    def _close_if_held(self) -> None:
        if self.opened_for is None or self._shadow is None:
            return
        missed = self.opened_for in (MISSED, ANSWERS_TO_IT)
        if missed and self._fits_since_open == 0 and not self._worker.paused:
            return
        need = self._trial_length
        if self.opened_for != LEARNING:
            need = max(need, TRIAL, math.ceil(1 / max(self.allowed, 1e-3)))
        trial = list(self._trial)[-need:]
        if len(trial) < need or trial.count(False) > self.allowed * need:
            return
        self._note(f"closed after {self.opened_for}")
        self.opened_for, self._shadow = None, None
        self.memory.all_in_shadow()
        self.recent = LiveAccuracy(self.settings.confidence)
        self._alarm.reset()
        self._since_closed = 0
        self._set_knobs()

    # Fits.

    def _fit_if_due(self) -> None:
        first = self.metric is None
        known = len(self.memory)
        due = max(self.settings.refit_every, known // REFIT_SHARE)
        if first:
            due = self.settings.warm_up
        elif self._surprised:
            due = max(SURPRISED, known // SURPRISED_SHARE)
        if self._since_fit < due or known < 2 or not self._worker.ready:
            return
        sample, metric, random = self.memory.sample(), self.metric, self._random.spawn(1)[0]
        same = self._same
        if self._worker.start(lambda pause: fit_metric(sample, same, metric, random, pause)):
            self._since_fit, self._surprised = 0, False
            self._collect()

    def _collect(self) -> None:
        found = self._worker.result()
        if found is None:
            return
        if isinstance(found, Exception):
            self.counts["fit_error"] += 1
            if self.counts["fit_error"] == 1:
                log.warning("a fit failed (%r); the gate goes on with what it knew", found)
            return
        self.counts["fits"] += 1
        self._fits_since_open += 1
        if self._since_closed >= TRIAL and self.opened_for is None:
            self._good = self.metric
        self._adopt(found)

    def _adopt(self, metric: Metric) -> None:
        """Go over to a metric: all that is remembered is embedded anew."""
        self.metric, self.version = metric, self.version + 1
        self.embedding = embedding_of(metric, self._spread())
        policy = self._make_policy(self.embedding)
        policy.follow(self.policy)
        self.policy = policy
        if self.opened_for is None:
            return
        if self._shadow is None:
            self._start_shadow()
            return
        shadow = self._make_policy(self.embedding, shadow=True)
        shadow.follow(self._shadow)
        self._shadow = shadow

    def _spread(self) -> np.ndarray:
        """Features that say how far an embedding must reach, (N, F)."""
        if len(self.memory) > 1:
            return self.memory.sample().features
        return self._start.reach

    def _head(self) -> Any:
        assert self.embedding is not None
        return self.embedding.head(self.control.slope, self.control.offset)

    def _knobs(self) -> Knobs:
        return msgspec.structs.replace(
            self._caps,
            skip_threshold=self._skip_threshold,
            reuse_threshold=self.control.threshold,
            max_since_inference=self.control.max_since_inference,
            deliver="nearest",
            prefer_last=PREFER_LAST,
        )

    def _set_knobs(self) -> None:
        for policy in (self.policy, self._shadow):
            if policy is not None and self.embedding is not None:
                policy.knobs, policy.head = self._knobs(), self._head()

    def _needed_one(self, wanted: bool | None) -> None:
        self.live.needed(wanted)
        self.recent.needed(wanted)
        self._alarm.needed()

    def _refresh_bounds(self) -> None:
        self.bounds, self.recall_bounds = self.live.accuracy(), self.live.recall()

    def _count(self) -> None:
        self.counts["inputs"] += 1
        self._since_closed += self.opened_for is None
        self._scene_passes = min(self._scene_passes + SCENE_PASSES, MOST_SCENE_PASSES)
        if self.opened_for is None and self._since_closed % HELD == 0:
            self._trial_length = TRIAL
            self.control.widen()

    def _note(self, what: str) -> None:
        self.changes.append(Change(self.counts["inputs"], what))
