"""The commands and options of what is learned in service."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from infi_edge.bundle import (
    Bundle,
    Manifest,
    WorkloadInfo,
    operating_point,
    read_bundle,
    write_bundle,
)
from infi_edge.capture.address import public_address, scheme_of
from infi_edge.capture.recordings import draft_spec, open_recording
from infi_edge.capture.replay import Recording
from infi_edge.errors import ConfigError
from infi_edge.executors.endpoint import is_endpoint, parse_endpoint
from infi_edge.executors.offload import open_workload, workload_identity
from infi_edge.learning.bundle import blank_bundle
from infi_edge.learning.export import export_bundle
from infi_edge.learning.inspect import as_text, find_state, is_state, summary
from infi_edge.options import chosen_model, parse_offload, parse_settings
from infi_edge.workload import Workload, WorkloadSpec, find_labels


def needed_target(options: Mapping[str, Any]) -> float:
    """Return the target accuracy of what is learned from nothing.

    Raises ConfigError if the options do not say what to learn and how well.
    """
    if options["task"] is None:
        raise ConfigError(
            "without a filter one is learned: say what the model's outputs mean with --task, "
            "or give the filter"
        )
    if options["target_recall"] is not None:
        raise ConfigError("what learns holds an accuracy: give --target-accuracy, no recall")
    if options["target_accuracy"] is None:
        raise ConfigError(
            "without a filter one is learned: say how well with --target-accuracy, "
            "or give the filter"
        )
    if options["head"] is not None:
        raise ConfigError(
            "--head needs a filter that reads its features; give one, or leave it out"
        )
    return float(options["target_accuracy"])


def kept_target(manifest: Manifest, options: Mapping[str, Any]) -> float:
    """Return the target accuracy of what goes on learning from a bundle. Raises ConfigError."""
    if options["target_recall"] is not None:
        raise ConfigError("what learns holds an accuracy: give --target-accuracy, no recall")
    target: float | None = options["target_accuracy"]
    point = operating_point(manifest, target)
    if point.measure != "accuracy":
        raise ConfigError("what learns holds an accuracy: say which with --target-accuracy")
    return point.target if target is None else target


def source_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the settings of a source without a filter say of its workload and inputs.

    Raises ConfigError or ExecutorError if the model is one that cannot be run so.
    """
    needed_target(options)
    spec = _workload_spec(options, options["modality"] or "image")
    if options["model"]:
        Workload(options["model"], spec)
    return {
        "task": spec.task,
        "decoder": spec.decoder or "",
        "same": spec.same,
        "labels": spec.labels,
        "modality": options["modality"],
        "preprocess": parse_settings(options["preprocess"]),
    }


def default_state(name: str, address: str, model: str, task: str) -> Path:
    """Return the folder where what a source learns is kept unless one is named.

    It goes by the source's name, and by its address, the model and the task: another of them is
    another folder. A password is not part of the address.
    """
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    parts = [public_address(_place(address)), _place(model), task]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return Path(base) / "infi-edge" / f"{name}-{digest[:8]}"


def _place(text: str) -> str:
    """A file by its whole path; anything else as it is."""
    there = not scheme_of(text) and not is_endpoint(text) and Path(text).exists()
    return str(Path(text).resolve()) if there else text


def open_blank(source: str, options: Mapping[str, Any]) -> tuple[Bundle, Recording, Workload, str]:
    """Return (a bundle that has learned nothing, the recording, the workload, its identity).

    Raises InfiEdgeError.
    """
    target, model = needed_target(options), chosen_model(options)
    if model is None:
        raise ConfigError("give the model with --model or --executor")
    settings, rate_hz = parse_settings(options["preprocess"]), options["rate_hz"]
    modality, spec = draft_spec(options["modality"], source, settings, rate_hz)
    recording = open_recording(source, rate_hz, spec)
    offload = parse_offload(options["offload"])
    workload = open_workload(model, _workload_spec(options, modality), offload=offload)
    identity = workload_identity(workload, model, options["model_version"] or "")
    info = WorkloadInfo(
        model=parse_endpoint(model).model if is_endpoint(model) else Path(model).name,
        model_identity=identity,
        decoder=workload.spec.decoder or "raw",
        task=workload.spec.task,
        same=workload.spec.same,
        labels=list(workload.spec.labels),
    )
    return blank_bundle(modality, spec, info, target), recording, workload, identity


def _workload_spec(options: Mapping[str, Any], modality: str) -> WorkloadSpec:
    labels = find_labels(options["model"] or "", options["labels"])
    same = options["same"] or "exact"
    return WorkloadSpec(options["task"], options["decoder"], same, labels, modality)


@click.command()
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="All of it on stdout.")
def inspect(path: str, as_json: bool) -> None:
    """What a bundle is, what it promises, how it was made; or what a gate has learned so far.

    PATH is a bundle NAME.infi, or the state folder of a gate that learns, which may be running.
    """
    if is_state(path):
        found = summary(*find_state(path))
        click.echo(json.dumps(found.as_dict(), indent=1) if as_json else as_text(found))
        return
    manifest = read_bundle(path).manifest
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(manifest), indent=1))
        return
    click.echo(_bundle_text(path, manifest))


def _bundle_text(path: str, manifest: Manifest) -> str:
    info, spec, table = manifest.workload, manifest.filter, manifest.calibration
    fields = msgspec.to_builtins(manifest.preprocess)
    preprocess = ", ".join(f"{k} {v}" for k, v in fields.items())
    calibrated = f"on {table.blocks} blocks of {table.block_inputs} inputs"
    lines = [
        f"{path}: {manifest.modality} filter, {manifest.mechanism}, format "
        f"{manifest.format_version}",
        f"filter      {spec.kind}, {spec.parameters} parameters, embedding of {spec.dim}, "
        f"classifier {spec.classifier}",
        f"input       {preprocess}",
        f"workload    {info.model}, decoder {info.decoder}, task {info.task}, same {info.same}",
        f"model       {info.model_identity}",
        f"calibrated  {calibrated if table.blocks else 'by its audits in service'}, "
        f"confidence {table.confidence:g}",
        "",
        "target           filtering rate  accuracy  recall  bound   kind",
    ]
    for number, point in enumerate(table.points):
        recall = "  -  " if point.recall is None else f"{point.recall:.3f}"
        mark = "  <- default" if number == table.chosen else ""
        lines.append(
            f"{point.measure} {point.target:<7g} {point.filtering_rate:>14.3f}  "
            f"{point.accuracy:>8.3f}  {recall:>6}  {point.bound:.3f}   {point.kind}{mark}"
        )
    chosen = msgspec.to_builtins(table.points[table.chosen].knobs)
    lines += ["", "knobs       " + ", ".join(f"{k}={v}" for k, v in chosen.items())]
    for title, facts in (
        ("trained on", manifest.trained_on),
        ("parity", manifest.parity),
        ("made by", manifest.versions),
    ):
        lines.append(f"{title:<11} " + ", ".join(f"{k} {v}" for k, v in facts.items()))
    lines.append(f"checked on  {manifest.lowest_runtime}")
    return "\n".join(lines)


@click.command("export")
@click.argument("state")
@click.option("-o", "--output", required=True, metavar="NAME.infi", help="The bundle to write.")
def export(state: str, output: str) -> None:
    """Make a bundle of what a gate has learned, from its folder STATE.

    It decides as the gate would now, but no longer audits itself, steers its thresholds or fails
    open: see what it does with `infi-edge evaluate`, or let it go on with `infi-edge run --learn`.
    """
    path, saved = find_state(state)
    bundle, found = export_bundle(path, saved), summary(path, saved)
    if Path(output).is_dir():
        raise ConfigError(f"{output} is a folder; name a file in it")
    if not Path(output).absolute().parent.is_dir():
        raise ConfigError(f"{output} cannot be written: its folder does not exist")
    write_bundle(output, bundle.manifest, bundle.members)
    click.echo(
        f"{output}: {found.weights} weights, learned from {found.inferred} inferences on "
        f"{found.inputs} inputs; live accuracy {found.live_accuracy:.3f}, at least "
        f"{found.live_bound:.3f}",
        err=True,
    )
    if found.open:
        click.echo(f"the gate is open ({found.opened_for}): what it knows does not hold the target "
                   "now", err=True)  # fmt: skip
    if found.skip_threshold is not None:
        click.echo("the SKIP of the filter it began with is not in it", err=True)
