"""Thresholds for a filter as it is: a new target, camera or model, without training.

The network stays. What is learned on the recording is four numbers, p(changed | distance, age),
each block of time judged by numbers fitted on the others; and, for an imported float network, how
far its embedding reaches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
import numpy as np

from converters import verify
from converters.calibrate import Choice, Fold, Target, blocks_needed, choose
from converters.crossfit import Report, fold_stretches, others, quiet
from converters.recordings import Stretches, TrainingData
from converters.scores import fit_steps, readings
from converters.search import search
from converters.table import (
    calibration_table,
    certify_on,
    learnable,
    monotone,
    standard_targets,
)
from converters.trained import Mechanism, versions
from infi_edge.bundle import Bundle, ReuseSpec, WorkloadInfo
from infi_edge.errors import ConfigError
from infi_edge.filter import InputFilter
from infi_edge.learn import ReuseHead, changed, fit_head, sample_pairs
from infi_edge.replay import Embedded, Truth

PAIRS = 20_000


@dataclass(frozen=True, slots=True)
class Recalibrated:
    """A bundle with a table for this workload. notes: what a user should be told."""

    bundle: Bundle
    choice: Choice
    notes: tuple[str, ...]


def recalibrate(
    bundle: Bundle,
    data: TrainingData,
    target: Target,
    workload: WorkloadInfo,
    confidence: float,
    trained_on: dict[str, str | int | float],
    *,
    certifies: bool = True,
    allow_pass_through: bool = False,
    report: Report = quiet,
) -> Recalibrated:
    """Set the table of a bundle on a recording that its filter was not trained on. certifies: try
    for a guarantee.

    Raises ConfigError if the recording is too short, or only a gate that filters nothing holds the
    target (unless allow_pass_through).
    """
    mechanism, told = learnable(data.truth, bundle.manifest.mechanism)
    notes = list(told)
    bundle = fit_steps(bundle, data.tensors)
    embedded = _embed(bundle, data)
    folds, final = _cross_fit_heads(embedded, data.truth, mechanism)
    table = list(dict.fromkeys([target, *standard_targets(data.truth)]))
    scores = search(folds, table, mechanism, confidence, report, "calibrating")
    choices = monotone({t: choose(scores, t, confidence) for t in table})
    proven = None
    if certifies:
        proven = _prove(embedded, data.truth, choices[target], mechanism, confidence)
    if proven is not None:
        choices[target], final = proven
        notes.append("ordered on the first half of the recording and certified on the second")
    choice = choices[target]
    if choice.score is None and not allow_pass_through:
        raise ConfigError(
            f"with this filter only a gate that filters nothing holds {target.measure} "
            f"{target.value:g} at confidence {confidence:g} on this recording; record more, lower "
            "the target or the confidence, or write that bundle with --allow-pass-through"
        )
    manifest = bundle.manifest
    if final is not None:
        manifest = msgspec.structs.replace(
            manifest,
            reuse=ReuseSpec(
                distance=final.distance, log_age=final.log_age, age=final.age, bias=final.bias
            ),
        )
    manifest = msgspec.structs.replace(
        manifest,
        workload=workload,
        calibration=calibration_table(choices, data.truth, confidence),
        trained_on=manifest.trained_on | {f"calibrated_{k}": v for k, v in trained_on.items()},
        parity={k: v for k, v in manifest.parity.items() if k != "on"}
        | _ranking(embedded, data.truth),
        versions=versions(),
    )
    return Recalibrated(Bundle(manifest, bundle.members, bundle.name), choice, tuple(notes))


def _embed(bundle: Bundle, data: TrainingData) -> Embedded:
    input_filter = InputFilter(bundle)
    results = [input_filter.embed_tensor(tensor[None]) for tensor in data.tensors]
    scores = None
    if bundle.manifest.skip is not None:
        scores = np.array([score for score, _ in results])
    return Embedded(np.stack([e for _, e in results]), scores, input_filter.head)


def _cross_fit_heads(
    embedded: Embedded, truth: Truth, mechanism: Mechanism
) -> tuple[list[Fold], ReuseHead | None]:
    """Return (folds, each with a REUSE head that never saw it; the head fitted on everything)."""
    count, folds = len(truth), []
    for stretch in fold_stretches(count):
        head = _head(embedded, truth, others(stretch, count), mechanism)
        folds.append(Fold(truth.cut(*stretch), replace(embedded.cut(*stretch), head=head)))
    return folds, _head(embedded, truth, [(0, count)], mechanism)


def _head(
    embedded: Embedded, truth: Truth, stretches: Stretches, mechanism: Mechanism
) -> ReuseHead | None:
    head = embedded.head
    if head is None or mechanism == "skip":
        return None
    a, b = sample_pairs(stretches, min(PAIRS, 20 * len(truth)), np.random.default_rng(0))
    y = changed(truth.values, a, b, truth.same)
    if not 0 < y.mean() < 1:
        return head
    ages = np.abs(truth.times_s[a] - truth.times_s[b])
    return replace(
        fit_head(readings(embedded.head, embedded.embeddings[a], embedded.embeddings[b]), ages, y),
        rescore=head.rescore,
    )


def _prove(
    embedded: Embedded, truth: Truth, choice: Choice, mechanism: Mechanism, confidence: float
) -> tuple[Choice, ReuseHead | None] | None:
    """Try for a guarantee: head and order of settings from the first half, tests on the second."""
    count = len(truth)
    half = count // 2
    needed = blocks_needed(choice.target, confidence)
    if choice.score is None or (count - half) // choice.block_inputs < needed:
        return None
    head = _head(embedded, truth, [(0, half)], mechanism)
    first, second = (
        Fold(truth.cut(*s), replace(embedded.cut(*s), head=head))
        for s in ((0, half), (half, count))
    )
    scores = search([first], [choice.target], mechanism, confidence)
    certified = certify_on(second, scores, choice.target, confidence)
    return None if certified is None else (certified, head)


def _ranking(embedded: Embedded, truth: Truth) -> verify.Receipt:
    """How well the filter ranks this recording: AUC of wanted inputs, and of changed pairs."""
    facts: verify.Receipt = {}
    if embedded.scores is not None and truth.can_skip:
        facts["skip_auc"] = round(verify.auc(embedded.scores, ~truth.redundant), 4)
    if embedded.head is not None:
        a, b = sample_pairs([(0, len(truth))], 4000, np.random.default_rng(1))
        differs = changed(truth.values, a, b, truth.same) > 0.5
        facts["reuse_auc"] = round(
            verify.auc(
                readings(embedded.head, embedded.embeddings[a], embedded.embeddings[b]), differs
            ),
            4,
        )
    return facts


def check_unseen(bundle: Bundle, content_sha256: str, first: int, last: int) -> None:
    """Raise ConfigError if the filter was trained on these inputs first..last-1."""
    facts = bundle.manifest.trained_on
    if facts.get("content_sha256") != content_sha256:
        return
    begin, end = int(facts.get("first_input", 0)), int(facts.get("last_input", -1))
    if first <= end and last > begin:
        raise ConfigError(
            f"the filter was trained on inputs {begin} to {end} of this recording, and thresholds "
            "set there promise too much; take another part with --start and --end"
        )
