"""From a labelled recording to a calibrated bundle: cross-fit, calibrate, choose, check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from converters import verify
from converters.calibrate import (
    Choice,
    Fold,
    Score,
    Target,
    best_choice,
    blocks_needed,
    choose,
)
from converters.crossfit import (
    Report,
    cross_fit,
    embed_stretch,
    parity_of,
    quiet,
    train_kind,
    uncalibrated,
)
from converters.recordings import TrainingData
from converters.search import search
from converters.table import (
    calibration_table,
    certify_on,
    learnable,
    monotone,
    standard_targets,
)
from converters.trained import (
    DeadFilterError,
    Kind,
    TrainedFilter,
    TrainSettings,
    versions,
)
from infi_edge.bundle import Bundle, WorkloadInfo
from infi_edge.errors import ConfigError
from infi_edge.replay import longest_quiet_s


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


def fit(
    data: TrainingData,
    targets: Sequence[Target],
    workload: WorkloadInfo,
    settings: TrainSettings,
    confidence: float,
    trained_on: dict[str, str | int | float],
    *,
    kinds: Sequence[Kind] = ("light", "net"),
    certifies: bool = True,
    allow_pass_through: bool = False,
    report: Report = quiet,
) -> Fitted:
    """Train, calibrate, choose and check. targets: the first is the user's own. certifies: try for
    a guarantee.

    Raises ConfigError if nothing can be learned, or only a gate that filters nothing holds the
    target (unless allow_pass_through).
    """
    mechanism, notes = learnable(data.truth, settings.mechanism)
    settings = replace(settings, mechanism=mechanism)
    table = list(dict.fromkeys([targets[0], *targets, *standard_targets(data.truth)]))
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
    choices = monotone({t: choose(candidate.scores, t, confidence) for t in table})
    proven = _prove(candidate, data, choice, confidence, report) if certifies else None
    if proven is not None:
        candidate, choices[targets[0]] = proven
        notes.append(f"the {candidate.kind} filter was trained on the first half and certified")
    return _assemble(data, choices, workload, settings, confidence, trained_on, candidate, notes)


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
    facts = candidate.trained.receipt | parity_of(trained, data, (half, count), settings)
    notes = candidate.trained.notes
    trained = replace(trained, receipt=facts, notes=notes, settings=settings)
    selection, test = (
        Fold(data.truth.cut(*s), embed_stretch(trained, data, *s))
        for s in ((half, quarter), (quarter, count))
    )
    scores = search([selection], [choice.target], settings.mechanism, confidence, report, what)
    certified = certify_on(test, scores, choice.target, confidence)
    return None if certified is None else (Candidate(candidate.kind, trained, scores), certified)


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
    plain = uncalibrated(candidate.trained, data)
    manifest = msgspec.structs.replace(
        plain.manifest,
        workload=workload,
        mechanism=settings.mechanism,
        calibration=calibration_table(choices, data.truth, confidence),
        trained_on=trained_on | {"longest_quiet_s": round(longest_quiet_s(data.truth), 3)},
        parity=candidate.trained.receipt | verify.operators(plain),
        versions=versions(),
        lowest_runtime=verify.check_runtimes(plain),
    )
    return Fitted(Bundle(manifest, plain.members, ""), next(iter(choices.values())), notes)
