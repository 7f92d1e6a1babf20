"""From a labelled recording to a calibrated bundle: cross-fit, calibrate, choose, check."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
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
    better,
    blocks_needed,
    certify,
    choose,
    gate_method,
    lower_bound,
    reuse_grid,
    score,
    skip_grid,
)
from converters.light import train_light
from converters.quiet import quiet_stderr
from converters.recordings import Stretches, TrainingData
from converters.trained import (
    DeadFilterError,
    Kind,
    Mechanism,
    TrainedFilter,
    TrainSettings,
    versions,
)
from infi_edge.bundle import (
    FORMAT_VERSION,
    Bundle,
    Calibration,
    Manifest,
    OperatingPoint,
    WorkloadInfo,
)
from infi_edge.errors import ConfigError
from infi_edge.filter import InputFilter
from infi_edge.policy import Knobs
from infi_edge.replay import Embedded

FOLDS = 4
MIN_INPUTS = 80
MIN_OF_A_KIND = 8
ACCURACIES = (0.8, 0.85, 0.9, 0.95, 0.98, 0.99)
RECALLS = (0.8, 0.9, 0.95, 0.98)

Report = Callable[[str, int, int], None]
"""Called with (what is being done, done, total)."""


def quiet(what: str, done: int, total: int) -> None:
    """A Report that says nothing."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A kind of filter: trained on everything, and its cross-fitted folds and scores."""

    kind: Kind
    trained: TrainedFilter
    folds: list[Fold]
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
    first = truth.values[0]
    if all(truth.same(first, value) for value in truth.values):
        notes["reuse"] = "REUSE cannot be learned: the answer never changes"
    neighbours = [truth.same(a, b) for a, b in zip(truth.values, truth.values[1:], strict=False)]
    if not any(neighbours):
        notes["reuse"] = "REUSE cannot be learned: no two answers are the same; try --same within:1"
    wanted = ["skip", "reuse"] if mechanism == "both" else [mechanism]
    left = [m for m in wanted if m not in notes]
    told = [notes[m] for m in wanted if m in notes]
    if not left:
        raise ConfigError("; ".join(told) + "; record a stretch that shows both")
    chosen: Mechanism = "both" if len(left) == 2 else ("skip" if left == ["skip"] else "reuse")
    return chosen, told


def fold_stretches(count: int) -> list[tuple[int, int]]:
    """Cut 0..count into FOLDS blocks of time."""
    edges = np.linspace(0, count, FOLDS + 1).astype(int).tolist()
    return list(itertools.pairwise(edges))


def others(stretch: tuple[int, int], count: int) -> Stretches:
    """What is left of 0..count without a stretch."""
    around = [(0, stretch[0]), (stretch[1], count)]
    return [(first, last) for first, last in around if last > first]


def train_kind(
    kind: Kind,
    data: TrainingData,
    stretches: Stretches,
    settings: TrainSettings,
    report: Report,
    what: str,
) -> TrainedFilter:
    """Train one filter of a kind. Raises DeadFilterError."""
    if kind == "light":
        return train_light(data, stretches, settings)
    with quiet_stderr():
        from converters.train import train_network
    return train_network(data, stretches, settings, lambda done, total: report(what, done, total))


def embed_stretch(trained: TrainedFilter, data: TrainingData, first: int, last: int) -> Embedded:
    """Run a trained filter, as the device will, over part of the data."""
    input_filter = InputFilter(uncalibrated(trained, data))
    results = [input_filter.embed_tensor(data.tensors[i][None]) for i in range(first, last)]
    scores = None if trained.skip is None else np.array([score for score, _ in results])
    return Embedded(np.stack([e for _, e in results]), scores, input_filter.head)


def cross_fit(
    kind: Kind, data: TrainingData, settings: TrainSettings, report: Report = quiet
) -> tuple[TrainedFilter, list[Fold]]:
    """Train one filter per left-out block of time, and the final one on everything.

    Each fold carries what a filter that never saw it says on it. Raises DeadFilterError.
    """
    folds = []
    stretches = fold_stretches(len(data))
    for number, stretch in enumerate(stretches, 1):
        rest = others(stretch, len(data))
        what = f"{kind} filter {number}/{FOLDS + 1}"
        trained = train_kind(kind, data, rest, settings, report, what)
        folds.append(Fold(data.truth.cut(*stretch), embed_stretch(trained, data, *stretch)))
    what = f"{kind} filter {FOLDS + 1}/{FOLDS + 1}"
    return train_kind(kind, data, [(0, len(data))], settings, report, what), folds


def search(
    folds: Sequence[Fold],
    targets: Sequence[Target],
    mechanism: Mechanism,
    confidence: float,
    report: Report = quiet,
    what: str = "calibrating",
) -> list[Score]:
    """Score the family where it matters: every REUSE and SKIP setting once, then the promising
    ones, alone and together, from several starts. Returns the scores of the latter."""
    reuse = (
        reuse_grid(min(len(f.truth) for f in folds), _max_distance(folds))
        if mechanism != "skip"
        else []
    )
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
        fine.append(score(method, setting, folds))
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
        scores = search(folds, table, mechanism, confidence, report, f"calibrating {kind}")
        if not scores:
            notes.append(f"the {kind} filter holds no target at all")
            continue
        candidate = Candidate(kind, trained, folds, scores)
        choice = choose(scores, targets[0], confidence)
        rate = choice.score.filtering_rate if choice.score else 0.0
        notes.append(f"{kind} filter: filtering rate {rate:.3f} expected")
        if best is None or better(choice, best[0]):
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
    choices = {t: choose(candidate.scores, t, confidence) for t in table}
    proven = _prove(candidate, data, choice, settings, confidence, report)
    if proven is not None:
        candidate, choices[targets[0]] = proven
        notes.append(f"the {candidate.kind} filter was trained on the first half and certified")
    return _assemble(data, choices, workload, settings, confidence, trained_on, candidate, notes)


def _prove(
    candidate: Candidate,
    data: TrainingData,
    choice: Choice,
    settings: TrainSettings,
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
    return Candidate(candidate.kind, trained, [selection, test], scores), certified


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
    input_filter = InputFilter(plain)
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
        parity=verify.parity(
            candidate.trained, input_filter, data, [(0, len(data))], settings.seed
        ),
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


def uncalibrated(trained: TrainedFilter, data: TrainingData) -> Bundle:
    """A filter as a bundle whose only row infers everything."""
    everything = OperatingPoint(
        measure="accuracy",
        target=1.0,
        knobs=Knobs(),
        accuracy=1.0,
        recall=None,
        filtering_rate=0.0,
        bound=1.0,
        kind="estimate",
    )
    mechanism: Mechanism = (
        "both" if trained.skip and trained.reuse else ("skip" if trained.skip else "reuse")
    )
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        modality="image",
        mechanism=mechanism,
        preprocess=data.spec,
        filter=trained.spec,
        skip=trained.skip,
        reuse=trained.reuse,
        workload=WorkloadInfo(
            model="", model_identity="", decoder="raw", task="", same="exact", labels=[]
        ),
        calibration=Calibration(
            confidence=0.0, blocks=0, block_inputs=0, chosen=0, points=[everything]
        ),
        trained_on={},
        parity={},
        versions={},
        lowest_runtime="",
    )
    return Bundle(manifest, trained.members, "filter")
