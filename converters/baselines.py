"""The alternatives a filter must beat, as methods for the same calibrator."""

from __future__ import annotations

import cv2
import numpy as np

from converters.calibrate import PERIODS, Fold, Method, gate_method, run_policy
from infi_edge.policy import Knobs
from infi_edge.replay import INFERRED, REUSED, Embedded, Outcome
from infi_edge.tasks import Value, vote


def every_nth() -> Method:
    """Run the model on every Nth input, answer with the last result. Setting: N."""
    return Method("every-nth", PERIODS, _every_nth, lambda n: n)


def nth_median() -> Method:
    """Every Nth, answered with the median (or majority) of the last three results. Setting: N."""
    return Method("nth-median", PERIODS, _nth_median, lambda n: n)


def _every_nth(n: int, fold: Fold) -> Outcome:
    return _periodic(n, fold, 1)


def _nth_median(n: int, fold: Fold) -> Outcome:
    return _periodic(n, fold, 3)


def _periodic(n: int, fold: Fold, remembered: int) -> Outcome:
    truth = fold.truth
    actions = np.full(len(truth), REUSED, np.uint8)
    right = np.ones(len(truth), bool)
    recent: list[Value] = []
    answer: Value = None
    for i, value in enumerate(truth.values):
        if i % n == 0:
            actions[i] = INFERRED
            recent = [value, *recent][:remembered]
            answer, _ = vote(recent, np.ones(len(recent)), truth.same)
        else:
            right[i] = truth.same(answer, value)
    return Outcome(actions, right)


def motion_scores(tensors: np.ndarray) -> np.ndarray:
    """Return the moving share of each frame, as video recorders measure it.

    tensors: RGB uint8 (N, H, W, 3), the filter's own input. Grey, blurred, against a running
    average background; a pixel moves when it differs by more than 25 grey levels.
    """
    background: np.ndarray | None = None
    shares = np.zeros(len(tensors))
    for i, tensor in enumerate(tensors):
        grey = cv2.GaussianBlur(cv2.cvtColor(tensor, cv2.COLOR_RGB2GRAY), (5, 5), 0)
        if background is None:
            background = grey.astype(np.float32)
        shares[i] = float((np.abs(grey - background) > 25).mean())
        cv2.accumulateWeighted(grey, background, 0.05)
    return shares


def motion(folds_scores: np.ndarray) -> Method:
    """Infer when something moves, else answer with the last result. Setting: the moving share.

    Its folds carry `motion_scores` as scores (`with_scores`).
    """
    levels = sorted({float(q) for q in np.quantile(folds_scores, np.linspace(0.01, 0.99, 60))})
    return Method("motion", levels, _motion)


def with_scores(fold: Fold, scores: np.ndarray) -> Fold:
    """The fold with other scores and no embedding."""
    return Fold(fold.truth, Embedded(np.zeros((len(scores), 1), np.uint8), scores, None))


def _motion(level: float, fold: Fold) -> Outcome:
    truth = fold.truth
    assert fold.embedded is not None
    assert fold.embedded.scores is not None
    moving = fold.embedded.scores > level
    actions = np.full(len(truth), REUSED, np.uint8)
    right = np.ones(len(truth), bool)
    answer: Value = None
    for i, value in enumerate(truth.values):
        if i == 0 or moving[i]:
            actions[i], answer = INFERRED, value
        else:
            right[i] = truth.same(answer, value)
    return Outcome(actions, right)


def plain_skip(scores: np.ndarray) -> Method:
    """InFi-Skip: a threshold on the SKIP score alone."""
    levels = sorted({float(q) for q in np.quantile(scores, np.linspace(0.01, 0.99, 60))})
    return gate_method("plain-skip", [Knobs(skip_threshold=level) for level in levels])


def plain_reuse(distances: np.ndarray) -> Method:
    """InFi-Reuse: a threshold on the distance to the nearest entry alone; no age, no A.

    distances: uint8 L1 distances between inputs, for the range of the threshold.
    """
    levels = sorted({int(q) for q in np.quantile(distances, np.linspace(0.005, 0.9, 60))})
    settings = [Knobs(reuse_threshold=1.0, max_distance=level) for level in levels]
    return Method("plain-reuse", settings, run_policy)
