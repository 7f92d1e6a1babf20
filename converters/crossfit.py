"""Train filters so that each block of time is judged by one that never saw it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from converters.calibrate import Fold
from converters.light import train_light
from converters.quiet import quiet_stderr
from converters.recordings import Stretches, TrainingData
from converters.trained import Kind, TrainedFilter, TrainSettings
from converters.verify import Receipt, faithful, merged, parity
from infi_edge.bundle import (
    FORMAT_VERSION,
    Bundle,
    Calibration,
    FilterSpec,
    Manifest,
    OperatingPoint,
    ReuseSpec,
    SkipSpec,
    WorkloadInfo,
)
from infi_edge.errors import ConfigError
from infi_edge.filter import InputFilter
from infi_edge.policy import Knobs
from infi_edge.preprocess import Spec
from infi_edge.replay import Embedded

FOLDS = 4

Report = Callable[[str, int, int], None]
"""Called with (what is being done, done, total)."""


def quiet(what: str, done: int, total: int) -> None:
    """A Report that says nothing."""


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

    Each fold carries what a filter that never saw it says on it, and adds to the receipt of its
    quantization. Where int8 does not do what the first fold's float network does, the network is
    tuned to it, and where that fails it becomes float16. Raises DeadFilterError.
    """
    folds: list[Fold] = []
    receipts: list[Receipt] = []
    notes: tuple[str, ...] = ()
    for number, stretch in enumerate(fold_stretches(len(data)), 1):
        rest = others(stretch, len(data))
        what = f"{kind} filter {number}/{FOLDS + 1}"
        if number == 1 and kind == "net":
            settings, trained, notes = _faithful(data, rest, stretch, settings, report, what)
        else:
            trained = train_kind(kind, data, rest, settings, report, what)
        receipts.append(parity_of(trained, data, stretch, settings))
        folds.append(Fold(data.truth.cut(*stretch), embed_stretch(trained, data, *stretch)))
    what = f"{kind} filter {FOLDS + 1}/{FOLDS + 1}"
    trained = train_kind(kind, data, [(0, len(data))], settings, report, what)
    receipt = merged(receipts)
    if kind == "net":
        receipt["precision"] = settings.precision + (" (tuned to it)" if settings.aware else "")
    return replace(trained, receipt=receipt, notes=notes, settings=settings), folds


def _faithful(
    data: TrainingData,
    rest: Stretches,
    held_out: tuple[int, int],
    settings: TrainSettings,
    report: Report,
    what: str,
) -> tuple[TrainSettings, TrainedFilter, tuple[str, ...]]:
    """Return the first settings under which the quantized network does what the float one does."""
    notes: tuple[str, ...] = ()
    tries = [settings]
    if settings.precision == "int8":
        tries += [replace(settings, aware=True), replace(settings, precision="float16")]
    for chosen in tries:
        try:
            trained = train_kind("net", data, rest, chosen, report, what)
        except ConfigError as error:
            if chosen is tries[-1]:
                raise
            notes += (f"{error}; another precision is tried",)
            continue
        if chosen.precision != "int8":
            break
        receipt = parity_of(trained, data, held_out, chosen)
        if faithful(receipt):
            break
        worst = min(float(v) for k, v in receipt.items() if k.endswith("agreement"))
        then = "float16 is taken" if chosen.aware else "tuning the network to int8"
        notes += (f"int8 agrees with the float network on {worst:.4f} of decisions: {then}",)
    return chosen, trained, notes


def parity_of(
    trained: TrainedFilter, data: TrainingData, stretch: tuple[int, int], settings: TrainSettings
) -> Receipt:
    """The receipt of a filter's quantization on a stretch it never saw."""
    return parity(trained, InputFilter(uncalibrated(trained, data)), data, stretch, settings.seed)


def uncalibrated(trained: TrainedFilter, data: TrainingData) -> Bundle:
    """A filter as a bundle whose only row infers everything."""
    manifest = pass_through(data.modality, data.spec, trained.spec, trained.skip, trained.reuse)
    return Bundle(manifest, trained.members, "filter")


def pass_through(
    modality: str,
    preprocess: Spec,
    filter_spec: FilterSpec,
    skip: SkipSpec | None,
    reuse: ReuseSpec | None,
) -> Manifest:
    """The manifest of a filter that has no task yet and lets everything through."""
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
    return Manifest(
        format_version=FORMAT_VERSION,
        modality=modality,
        mechanism="both" if skip and reuse else ("skip" if skip else "reuse"),
        preprocess=preprocess,
        filter=filter_spec,
        skip=skip,
        reuse=reuse,
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
