"""A bundle's calibration table: which targets, what can be promised for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from converters.calibrate import (
    Choice,
    Fold,
    Score,
    Target,
    best_choice,
    certify,
    gate_method,
    score,
)
from converters.trained import Mechanism
from infi_edge.bundle import Calibration, OperatingPoint
from infi_edge.errors import ConfigError
from infi_edge.learn import changed, sample_pairs
from infi_edge.policy import Knobs
from infi_edge.replay import Truth

MIN_INPUTS = 80
MIN_OF_A_KIND = 8
ACCURACIES = (0.8, 0.85, 0.9, 0.95, 0.98, 0.99)
RECALLS = (0.8, 0.9, 0.95, 0.98)


def check_length(inputs: int) -> None:
    """Raise ConfigError if a recording is too short to split."""
    if inputs < MIN_INPUTS:
        raise ConfigError(
            f"{inputs} inputs are too few to train and calibrate on; give at least {MIN_INPUTS}"
        )


def learnable(truth: Truth, mechanism: Mechanism) -> tuple[Mechanism, list[str]]:
    """Return the mechanism that can be learned here, and a sentence for each that cannot.

    Raises ConfigError if none of what was asked for can be.
    """
    redundant = int(truth.redundant.sum())
    check_length(len(truth))
    notes = {}
    if min(redundant, len(truth) - redundant) < MIN_OF_A_KIND:
        which = "redundant" if redundant < MIN_OF_A_KIND else "wanted"
        notes["skip"] = f"SKIP cannot be learned: hardly any input is {which}"
    # Pairs, not the first answer with the rest: `within` and `iou` are not transitive.
    a, b = sample_pairs([(0, len(truth))], 4000, np.random.default_rng(0))
    changes = int(changed(truth.values, a, b, truth.same).sum())
    if changes < MIN_OF_A_KIND:
        notes["reuse"] = "REUSE cannot be learned: the answer hardly ever changes"
    if len(a) - changes < MIN_OF_A_KIND:
        notes["reuse"] = (
            "REUSE cannot be learned: hardly two answers are the same; try --same within:1"
        )
    wanted = ["skip", "reuse"] if mechanism == "both" else [mechanism]
    left = [m for m in wanted if m not in notes]
    told = [notes[m] for m in wanted if m in notes]
    if not left:
        raise ConfigError("; ".join(told) + "; record a stretch that shows both")
    chosen: Mechanism = "both" if len(left) == 2 else ("skip" if left == ["skip"] else "reuse")
    return chosen, told


def monotone(choices: dict[Target, Choice]) -> dict[Target, Choice]:
    """Let a laxer target take a stricter one's row where that is the better gate."""
    rows = dict(choices)
    for target, choice in choices.items():
        stricter = [
            c for t, c in choices.items() if t.measure == target.measure and t.value >= target.value
        ]
        rows[target] = replace(best_choice(stricter) or choice, target=target)
    return rows


def standard_targets(truth: Truth) -> list[Target]:
    """The rows that every table has beside the user's own."""
    targets = [Target("accuracy", value) for value in ACCURACIES]
    if truth.can_skip and truth.redundant.any():
        targets += [Target("recall", value) for value in RECALLS]
    return targets


def certify_on(
    test: Fold, scores: Sequence[Score], target: Target, confidence: float
) -> Choice | None:
    """Return the boldest of the scored settings that is certified on `test`, or None."""
    method = gate_method("infi-edge", [])
    return certify(scores, lambda setting: score(method, setting, [test], 1), target, confidence)


def calibration_table(
    choices: dict[Target, Choice], truth: Truth, confidence: float
) -> Calibration:
    """The table of these choices; the first is the bundle's own."""
    first = next(iter(choices.values()))
    points = [
        _point(choice, truth)
        for choice in choices.values()
        if choice.score is not None or choice is first
    ]
    return Calibration(
        confidence=confidence,
        blocks=first.blocks,
        block_inputs=first.block_inputs,
        chosen=0,
        points=points,
    )


def _point(choice: Choice, truth: Truth) -> OperatingPoint:
    chosen = choice.score
    knobs: Any = chosen.setting if chosen else Knobs()
    knows = truth.can_skip and truth.redundant.any()
    return OperatingPoint(
        measure=choice.target.measure,
        target=choice.target.value,
        knobs=knobs,
        accuracy=chosen.accuracy if chosen else 1.0,
        recall=(chosen.recall if chosen else 1.0) if knows else None,
        filtering_rate=chosen.filtering_rate if chosen else 0.0,
        bound=choice.bound,
        kind=choice.kind,
    )
