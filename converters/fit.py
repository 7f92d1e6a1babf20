"""From a labelled recording to a calibrated bundle: cross-fit, calibrate, choose, check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np

from converters import verify
from converters.calibrate import (
    Choice,
    Fold,
    Score,
    Target,
    best_choice,
    blocks_needed,
    certify,
    choose,
    gate_method,
    score,
)
from converters.crossfit import Report, cross_fit, embed_stretch, quiet, train_kind, uncalibrated
from converters.recordings import TrainingData
from converters.search import search
from converters.trained import (
    DeadFilterError,
    Kind,
    Mechanism,
    TrainedFilter,
    TrainSettings,
    versions,
)
from infi_edge.bundle import (
    Bundle,
    Calibration,
    OperatingPoint,
    WorkloadInfo,
)
from infi_edge.errors import ConfigError
from infi_edge.learn import changed, sample_pairs
from infi_edge.policy import Knobs

MIN_INPUTS = 80
MIN_OF_A_KIND = 8
ACCURACIES = (0.8, 0.85, 0.9, 0.95, 0.98, 0.99)
RECALLS = (0.8, 0.9, 0.95, 0.98)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A kind of filter: trained on everything, and its cross-fitted scores."""

    kind: Kind
    trained: TrainedFilter
    scores: list[Score]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A bundle and how it came about. notes: what a user should be told."""

    bundle: Bundle
    choice: Choice
    notes: list[str]


def check_length(inputs: int) -> None:
    """Raise ConfigError if a recording is too short to split."""
    if inputs < MIN_INPUTS:
        raise ConfigError(
            f"{inputs} inputs are too few to train and calibrate on; give at least {MIN_INPUTS}"
        )


def learnable(data: TrainingData, mechanism: Mechanism) -> tuple[Mechanism, list[str]]:
    """Return the mechanism that can be learned here, and a sentence for each that cannot.

    Raises ConfigError if none of what was asked for can be.
    """
    truth = data.truth
    redundant = int(truth.redundant.sum())
    check_length(len(data))
    notes = {}
    if min(redundant, len(data) - redundant) < MIN_OF_A_KIND:
        which = "redundant" if redundant < MIN_OF_A_KIND else "wanted"
        notes["skip"] = f"SKIP cannot be learned: hardly any input is {which}"
    # Pairs, not the first answer with the rest: `within` and `iou` are not transitive.
    a, b = sample_pairs([(0, len(data))], 4000, np.random.default_rng(0))
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


def fit(
    data: TrainingData,
    targets: Sequence[Target],
    workload: WorkloadInfo,
    settings: TrainSettings,
    confidence: float,
    trained_on: dict[str, str | int | float],
    *,
    kinds: Sequence[Kind] = ("light", "net"),
    allow_pass_through: bool = False,
    report: Report = quiet,
) -> Fitted:
    """Train, calibrate, choose and check. targets: the first is the user's own.

    Raises ConfigError if nothing can be learned, or only a gate that filters nothing holds the
    target (unless allow_pass_through).
    """
    mechanism, notes = learnable(data, settings.mechanism)
    settings = replace(settings, mechanism=mechanism)
    table = list(dict.fromkeys([targets[0], *targets, *_standard_targets(data)]))
    best: tuple[Choice, Candidate] | None = None
    for kind in kinds:
        try:
            trained, folds = cross_fit(kind, data, settings, report)
        except DeadFilterError as error:
            notes.append(f"no {kind} filter: {error}")
            continue
        notes.extend(trained.notes)
        scores = search(folds, table, mechanism, confidence, report, f"calibrating {kind}")
        if not scores:
            notes.append(f"the {kind} filter holds no target at all")
            continue
        candidate = Candidate(kind, trained, scores)
        choice = choose(scores, targets[0], confidence)
        rate = choice.score.filtering_rate if choice.score else 0.0
        notes.append(f"{kind} filter: filtering rate {rate:.3f} expected")
        if best is None or best_choice([best[0], choice]) is choice:
            best = (choice, candidate)
    if best is None:
        raise ConfigError("no filter could be trained: " + "; ".join(notes))
    choice, candidate = best
    if choice.score is None and not allow_pass_through:
        raise ConfigError(
            f"only a gate that filters nothing holds {targets[0].measure} {targets[0].value:g} at "
            f"confidence {confidence:g} on this recording; record more, lower the target or the "
            "confidence, or write that bundle with --allow-pass-through"
        )
    choices = _monotone({t: choose(candidate.scores, t, confidence) for t in table})
    proven = _prove(candidate, data, choice, confidence, report)
    if proven is not None:
        candidate, choices[targets[0]] = proven
        notes.append(f"the {candidate.kind} filter was trained on the first half and certified")
    return _assemble(data, choices, workload, settings, confidence, trained_on, candidate, notes)


def _monotone(choices: dict[Target, Choice]) -> dict[Target, Choice]:
    """Let a laxer target take a stricter one's row where that is the better gate."""
    rows = dict(choices)
    for target, choice in choices.items():
        stricter = [
            c for t, c in choices.items() if t.measure == target.measure and t.value >= target.value
        ]
        rows[target] = replace(best_choice(stricter) or choice, target=target)
    return rows


def _prove(
    candidate: Candidate,
    data: TrainingData,
    choice: Choice,
    confidence: float,
    report: Report,
) -> tuple[Candidate, Choice] | None:
    """Try for a guarantee where the recording is long enough.

    A filter trained on the first half alone; the third quarter orders the settings, the fourth
    tests them. Cross-fitted scores prove nothing: they are of other filters than the one shipped.
    """
    count = len(data)
    half, quarter = count // 2, 3 * count // 4
    if choice.score is None or (count - quarter) // choice.block_inputs < blocks_needed(
        choice.target, confidence
    ):
        return None
    what = f"{candidate.kind} filter to certify"
    settings = candidate.trained.settings
    trained = train_kind(candidate.kind, data, [(0, half)], settings, report, what)
    selection, test = (
        Fold(data.truth.cut(*s), embed_stretch(trained, data, *s))
        for s in ((half, quarter), (quarter, count))
    )
    scores = search([selection], [choice.target], settings.mechanism, confidence, report, what)
    method = gate_method("infi-edge", [])
    certified = certify(
        scores, lambda setting: score(method, setting, [test], 1), choice.target, confidence
    )
    if certified is None:
        return None
    return Candidate(candidate.kind, trained, scores), certified


def _standard_targets(data: TrainingData) -> list[Target]:
    targets = [Target("accuracy", value) for value in ACCURACIES]
    if data.truth.can_skip and data.truth.redundant.any():
        targets += [Target("recall", value) for value in RECALLS]
    return targets


def _assemble(
    data: TrainingData,
    choices: dict[Target, Choice],
    workload: WorkloadInfo,
    settings: TrainSettings,
    confidence: float,
    trained_on: dict[str, str | int | float],
    candidate: Candidate,
    notes: list[str],
) -> Fitted:
    first = next(iter(choices.values()))
    points = [
        _point(choice, data)
        for choice in choices.values()
        if choice.score is not None or choice is first
    ]
    plain = uncalibrated(candidate.trained, data)
    manifest = msgspec.structs.replace(
        plain.manifest,
        workload=workload,
        mechanism=settings.mechanism,
        calibration=Calibration(
            confidence=confidence,
            blocks=first.blocks,
            block_inputs=first.block_inputs,
            chosen=0,
            points=points,
        ),
        trained_on=trained_on,
        parity=candidate.trained.receipt | verify.operators(plain),
        versions=versions(),
        lowest_runtime=verify.check_runtimes(plain),
    )
    return Fitted(Bundle(manifest, plain.members, ""), first, notes)


def _point(choice: Choice, data: TrainingData) -> OperatingPoint:
    chosen = choice.score
    knobs: Any = chosen.setting if chosen else Knobs()
    knows = data.truth.can_skip and data.truth.redundant.any()
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
