"""Score a gate's settings where it matters: a coarse pass over all, a finer one over the best."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from converters.calibrate import (
    Fold,
    Score,
    Target,
    gate_method,
    lower_bound,
    reuse_grid,
    score,
    skip_grid,
)
from converters.crossfit import Report, quiet
from converters.trained import Mechanism
from infi_edge.policy import Knobs


def search(
    folds: Sequence[Fold],
    targets: Sequence[Target],
    mechanism: Mechanism,
    confidence: float,
    report: Report = quiet,
    what: str = "calibrating",
    grid: Sequence[Knobs] | None = None,
    starts: int = 3,
) -> list[Score]:
    """Score the family where it matters: every REUSE and SKIP setting once, then the promising
    ones, alone and together, from several starts. Returns the scores of the latter.

    grid: the REUSE settings to look at; default: the whole family."""
    reuse: Sequence[Knobs] = ()
    if mechanism != "skip":
        longest = min(len(f.truth) for f in folds)
        reuse = reuse_grid(longest, _max_distance(folds)) if grid is None else grid
    scores = [f.embedded.scores for f in folds if f.embedded and f.embedded.scores is not None]
    skips = skip_grid(np.concatenate(scores)) if mechanism != "reuse" and scores else []
    coarse_settings = [*reuse, *(Knobs(skip_threshold=t) for t in skips)]
    method = gate_method("infi-edge", coarse_settings)
    coarse = []
    for done, setting in enumerate(coarse_settings, 1):
        coarse.append(score(method, setting, folds, starts=1))
        report(what, done, len(coarse_settings))
    finer: dict[Knobs, None] = {}
    for target in targets:
        reuses = _promising(
            [s for s in coarse if s.setting.skip_threshold is None], target, confidence
        )
        alone = [s for s in coarse if s.setting.skip_threshold is not None]
        finer.update(
            dict.fromkeys(s.setting for s in [*reuses, *_promising(alone, target, confidence)])
        )
        for threshold in _skip_levels(alone, target):
            for candidate in reuses:
                together = msgspec.structs.replace(candidate.setting, skip_threshold=threshold)
                finer[together] = None
    fine = []
    for done, setting in enumerate(finer, 1):
        fine.append(score(method, setting, folds, starts))
        report(f"{what} (finer)", done, len(finer))
    return fine


def _promising(
    scores: Sequence[Score], target: Target, confidence: float, most: int = 12
) -> list[Score]:
    """The settings of the highest rates among those whose bound comes near the target, and among
    those whose bound holds it with room to spare."""
    if not scores:
        return []
    ranked = sorted(scores, key=lambda s: -s.filtering_rate)
    bounds = [lower_bound(s.losses(target.measure, s.block_inputs), confidence) for s in ranked]
    chosen: dict[int, Score] = {}
    for margin in (-0.02, 0.0, 0.01):
        fitting = [i for i, b in enumerate(bounds) if b >= target.value + margin]
        chosen.update({i: ranked[i] for i in fitting[:most]})
    return list(chosen.values())


def _skip_levels(alone: Sequence[Score], target: Target) -> list[float]:
    """SKIP thresholds that use none, a quarter and a half of the errors a target allows."""
    levels = []
    for share in (0.0, 0.25, 0.5):
        allowed = share * (1.0 - target.value)
        error = [1.0 - (s.recall if target.measure == "recall" else s.accuracy) for s in alone]
        fitting = [
            s.setting.skip_threshold for s, e in zip(alone, error, strict=True) if e <= allowed
        ]
        if fitting:
            levels.append(max(fitting))
    return sorted(set(levels))


def _max_distance(folds: Sequence[Fold]) -> int | None:
    """The 99.5th percentile of the distance from an input to the nearest one before it.

    The vote cannot notice novelty by itself (all voters may agree and be far); this can.
    """
    nearest = []
    for fold in folds:
        assert fold.embedded is not None
        embeddings = fold.embedded.embeddings.astype(np.int32)
        for i in range(1, len(embeddings), max(len(embeddings) // 200, 1)):
            nearest.append(int(np.abs(embeddings[:i] - embeddings[i]).sum(axis=1).min()))
    return int(np.quantile(nearest, 0.995)) if nearest else None
