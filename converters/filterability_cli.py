"""The command `infi-convert filterability`: will a filter pay here?"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click
import numpy as np

from converters.calibrate import Target
from converters.crossfit import uncalibrated
from converters.families import reuse_says, skip_family
from converters.filterability import Cost, Measurement, measure
from converters.light import train_light
from converters.options import check_output, make_workload
from converters.recordings import TrainingData, check_first, fit_spec, load_training_data
from converters.trained import DeadFilterError, TrainSettings
from infi_edge.archive import write_atomically
from infi_edge.cache import ReuseCache
from infi_edge.capture.recorded import recorded_manifest
from infi_edge.capture.recordings import draft_spec, open_recording
from infi_edge.capture.replay import Recording, part
from infi_edge.cli import Bar
from infi_edge.errors import ConfigError
from infi_edge.evaluate import labelled
from infi_edge.filter import InputFilter
from infi_edge.options import (
    parse_settings,
    part_options,
    preprocess_options,
    target_options,
    workload_options,
)
from infi_edge.replay import make_truth
from infi_edge.workload import Workload

DEFAULT_TARGET = 0.9
TIMED = 8


@click.command("filterability")
@click.argument("recording")
@workload_options
@target_options
@part_options
@preprocess_options
@click.option(
    "--shuffle-labels",
    type=click.IntRange(0, 2**31 - 1),
    metavar="SEED",
    help="A control: the same inputs with their answers shuffled. It must not pay.",
)
@click.option("--report", help="Write the numbers as JSON.")
def filterability_command(
    recording: str,
    target_accuracy: float | None,
    target_recall: float | None,
    start: float,
    end: float,
    rate_hz: float | None,
    modality: str | None,
    preprocess: tuple[str, ...],
    shuffle_labels: int | None,
    report: str | None,
    **options: str | None,
) -> None:
    """Will a filter pay on RECORDING? Theory, measurement and a verdict, in a minute or two.

    The last line is `VERDICT: pays`, `VERDICT: does not pay` or `VERDICT: not enough data`.
    """
    if target_accuracy is not None and target_recall is not None:
        raise ConfigError("give --target-accuracy or --target-recall, not both")
    if report is not None:
        check_output(report)
    modality, spec = draft_spec(modality, recording, parse_settings(preprocess), rate_hz)
    recorded = recorded_manifest(recording)
    if recorded is not None and options["model"] is None:
        raise ConfigError(
            f"give the model with --model ({recorded.workload.model}): its time is measured here"
        )
    workload, identity = make_workload(options, modality, recorded)
    if target_recall is None:
        target = Target("accuracy", target_accuracy or DEFAULT_TARGET)
    elif workload.task.can_skip:
        target = Target("recall", target_recall)
    else:
        raise ConfigError(f"task {workload.spec.task} has no redundant value; no --target-recall")
    opened = open_recording(recording, rate_hz, spec)
    first, last = part(opened, start, end)
    spec = fit_spec(opened, first, last, spec)
    check_first(opened, first, spec)
    truth = labelled(opened, workload, identity, first, last, Bar("the model on every input"))
    began = time.perf_counter()
    if shuffle_labels is not None:
        values = list(truth.values)
        np.random.default_rng(shuffle_labels).shuffle(values)
        truth = make_truth(values, truth.times_s, workload.task, workload.same)
    data = load_training_data(
        opened, truth, first, last, spec, Bar("reading the recording"), modality
    )
    cost = time_parts(data, opened, workload, first, last)
    bars: dict[str, Bar] = {}
    found = measure(
        data,
        target,
        cost,
        report=lambda what, done, total: bars.setdefault(what, Bar(what))(done, total),
    )
    lines = [*theory_lines(workload), "", *measured_lines(found, len(data))]
    lines += ["", f"took {time.perf_counter() - began:.0f} s, without labelling"]
    click.echo("\n".join(lines))
    if report is not None:
        facts = asdict(found) | {"inputs": len(data), "break_even": cost.break_even}
        write_atomically(report, json.dumps(facts, indent=1).encode())
    click.echo(f"VERDICT: {found.verdict}")


def time_parts(
    data: TrainingData, recording: Recording, workload: Workload, first: int, last: int
) -> Cost:
    """Time the model on a few inputs of the recording, the light filter and a look into a cache."""
    every = max((last - first) // TIMED, 1)
    samples = [s.data for s in recording.samples(first, last) if (s.index - first) % every == 0]
    workload(samples[0])
    model = [_milliseconds(lambda data=data: workload(data)) for data in samples]
    try:
        trained = train_light(data, [(0, len(data))], TrainSettings("reuse"), pairs=1000, steps=20)
    except (DeadFilterError, ZeroDivisionError, ValueError):
        return Cost(0.0, 0.0, float(np.median(model)))
    light = InputFilter(uncalibrated(trained, data))
    light(samples[0])
    passes = [_milliseconds(lambda data=data: light(data)) for data in samples]
    cache = ReuseCache(light.manifest.filter.dim)
    embedding = light(samples[0])[1]
    for i in range(1000):
        cache.insert(embedding, i, float(i))
    looks = [_milliseconds(lambda: cache.candidates(embedding, 1000.0)) for _ in range(20)]
    return Cost(*(float(np.median(times)) for times in (passes, looks, model)))


def _milliseconds(call: Any) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3


def theory_lines(workload: Workload) -> Iterator[str]:
    """What the theory says of this task (docs/filterability.md)."""
    spec = workload.spec
    family = skip_family(spec, workload.task.can_skip)
    yield f"task         {spec.task}, same {spec.same}"
    yield f"SKIP family  redundant when: {family.name}"
    yield f"             {family.says}"
    yield f"REUSE        {reuse_says(spec)}"
    yield "             (docs/filterability.md; it orders how much data learning needs, no more)"


def measured_lines(found: Measurement, inputs: int) -> Iterator[str]:
    """The numbers, a line each."""
    redundancy, cost, target = found.redundancy, found.cost, found.target
    redundant = "-" if redundancy.redundant is None else f"{redundancy.redundant:.3f}"
    median, mean, longest = redundancy.runs
    yield f"inputs       {inputs}; target {target.measure} {target.value:g}"
    yield (
        f"redundant    {redundant} of the inputs (SKIP); {redundancy.repeats:.3f} have the answer "
        "of the one before (REUSE)"
    )
    yield f"runs         of the same answer: median {median:g}, mean {mean:.1f}, longest {longest}"
    yield (
        f"cost         filter {cost.filter_ms:.3f} ms, cache {cost.reuse_ms:.3f} ms, model "
        f"{cost.model_ms:.2f} ms: breaks even at a filtering rate of {cost.break_even:.3f}"
    )
    if found.curve:
        yield "learned from   filtering rate (95 % interval)   accuracy   recall   (unseen blocks)"
    for point in found.curve:
        recall = "-" if point.recall is None else f"{point.recall:.3f}"
        yield (
            f"{point.trained_on:>12}   {point.filtering_rate:.3f} ({point.low:.3f} to "
            f"{point.high:.3f})           {point.accuracy:>9.3f}   {recall:>6}"
        )
    yield (
        f"no skill     every-Nth {found.every_nth:.3f}, at random {found.random:.3f}, the best two "
        f"in turns {found.without_skill:.3f}, at {target.measure} {found.at:.3f}"
    )
    yield f"so           {found.why} (by the light filter; a network may reach more)"
