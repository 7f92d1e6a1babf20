"""Replay a learning gate over a recorded stream from its first input on; and score it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from infi_edge.bundle import Bundle, operating_point
from infi_edge.filter import InputFilter
from infi_edge.learning.learner import Learner
from infi_edge.learning.metric import Metric
from infi_edge.learning.settings import LearnSettings
from infi_edge.learning.start import from_filter, from_nothing
from infi_edge.learning.worker import AtOnce
from infi_edge.preprocess import Spec
from infi_edge.replay import INFERRED, REUSED, SKIPPED, Outcome, Truth
from infi_edge.scene import watch_for
from infi_edge.tasks import Value
from infi_edge.types import Action

SCENE_CHANGES = "the scene changes"


@dataclass(frozen=True, slots=True)
class Learned(Outcome):
    """What a learning gate did, beside `Outcome`'s actions and right.

    audited, open: bool (N,): inferred for the audit alone; inferred as all was. lows, highs:
    float (N,), the live bounds of accuracy since the beginning, after each input.
    """

    audited: np.ndarray
    open: np.ndarray
    lows: np.ndarray
    highs: np.ndarray
    learn_cpu_s: float
    refits: int
    learner: Learner

    @property
    def warm_up(self) -> int:
        """Inputs until it first filtered one, or all of them."""
        filtered = np.flatnonzero(self.actions != INFERRED)
        return int(filtered[0]) if len(filtered) else len(self.actions)


class _Told:
    """A task whose answers are known: of the input at hand, whether its value is redundant."""

    def __init__(self, truth: Truth) -> None:
        self.empty, self.can_skip, self.redundant = truth.empty, truth.can_skip, False

    def read(self, decoded: Any) -> Value:
        return decoded

    def is_redundant(self, value: Value) -> bool:
        return self.redundant


def replay_learning(
    truth: Truth,
    tensors: Sequence[np.ndarray] | np.ndarray,
    spec: Spec,
    *,
    target_accuracy: float,
    seed: int = 0,
    bundle: Bundle | None = None,
    scene_change: bool = True,
    settings: LearnSettings | None = None,
) -> Learned:
    """Run a learning gate over a stretch, from its first input on, fits at once.

    tensors: (N, *spec.shape), as `spec.tensor` makes them. bundle: to begin with.
    """
    start = from_nothing(spec)
    if bundle is not None:
        point = operating_point(bundle.manifest, target_accuracy)
        start = from_filter(InputFilter(bundle), point.knobs)
    worker: AtOnce[Metric] = AtOnce()
    settings = msgspec.structs.replace(settings or LearnSettings(), seed=seed)
    task = _Told(truth)
    learner = Learner(start, task, truth.same, target_accuracy, worker, settings)
    watch = watch_for(spec) if scene_change else None
    count = len(truth)
    actions, right = np.zeros(count, np.uint8), np.ones(count, bool)
    audited, is_open = np.zeros(count, bool), np.zeros(count, bool)
    lows, highs = np.zeros(count), np.ones(count)
    for i, (now_s, value) in enumerate(zip(truth.times_s.tolist(), truth.values, strict=True)):
        tensor, task.redundant = tensors[i][None], bool(truth.redundant[i])
        if watch is not None and watch.changing(tensor, now_s):
            learner.scene_changed(SCENE_CHANGES)
        score, features, embedding = learner.look(tensor)
        decided = learner.decide(score, embedding, now_s)
        assert decided is not None  # nothing is in flight
        decision, asked = decided
        learner.policy.count()
        if asked is None:
            skips = decision.action is Action.SKIP
            actions[i] = SKIPPED if skips else REUSED
            right[i] = truth.redundant[i] if skips else truth.same(decision.value, value)
        else:
            audited[i], is_open[i] = asked.kind == "audit", asked.kind == "open"
            learner.policy.inferred(now_s)
            learner.answered(score, features, now_s, value, asked)
        bounds = learner.live.accuracy()
        lows[i], highs[i] = bounds.low, bounds.high
    return Learned(
        actions, right, audited, is_open, lows, highs, worker.cpu_s, learner.counts["fits"], learner
    )
