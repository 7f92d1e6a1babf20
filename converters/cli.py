"""The command `infi-convert`."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import click

from converters import fit
from converters.calibrate import Target
from converters.recordings import load_training_data
from converters.trained import TrainSettings
from infi_edge import __version__
from infi_edge.bundle import WorkloadInfo, write_bundle
from infi_edge.capture.replay import open_recording, part
from infi_edge.cli import Bar, part_options, run_command, target_options, workload_options
from infi_edge.errors import ConfigError
from infi_edge.evaluate import labelled
from infi_edge.preprocess import ImageSpec
from infi_edge.workload import Workload, WorkloadSpec, find_labels, model_identity


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="infi-convert")
def cli() -> None:
    """Learn an input filter from a recording and a model's own answers."""


@cli.command("train")
@click.argument("recording")
@workload_options
@target_options
@part_options
@click.option(
    "--mechanism",
    type=click.Choice(["both", "skip", "reuse"]),
    default="both",
    show_default=True,
)
@click.option("--confidence", default=0.95, show_default=True, type=click.FloatRange(0.5, 0.999))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**31 - 1))
@click.option(
    "--kind",
    type=click.Choice(["best", "net", "light"]),
    default="best",
    show_default=True,
    help="best: whichever holds the target at the higher filtering rate.",
)
@click.option("--size", default="128x96", show_default=True, help="The filter's input, WxH.")
@click.option(
    "--precision",
    type=click.Choice(["int8", "float16", "float32"]),
    default="int8",
    show_default=True,
)
@click.option("--steps", default=400, show_default=True, type=click.IntRange(1))
@click.option("--allow-pass-through", is_flag=True, help="Write a gate that filters nothing.")
@click.option("-o", "--output", required=True, help="The bundle, NAME.infi.")
@click.option("--report", help="Write what was done and expected as JSON.")
def train_command(
    recording: str,
    target_accuracy: float | None,
    target_recall: float | None,
    start: float,
    end: float,
    mechanism: Any,
    confidence: float,
    seed: int,
    kind: str,
    size: str,
    precision: Any,
    steps: int,
    rate_hz: float | None,
    allow_pass_through: bool,
    output: str,
    report: str | None,
    **options: str | None,
) -> None:
    """Train on RECORDING (a clip or a folder of images), calibrate, quantize, check, write."""
    if (target_accuracy is None) == (target_recall is None):
        raise ConfigError("give either --target-accuracy or --target-recall")
    spec = _image_spec(size)
    for path in (output, report):
        if path is not None and Path(path).is_dir():
            raise ConfigError(f"{path} is a folder; name a file in it")
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise ConfigError(f"{path} cannot be written: its folder does not exist")
    workload, identity = make_workload(options)
    clip = open_recording(recording, rate_hz)
    first, last = part(clip, start, end)
    fit.check_length(last - first)
    truth = labelled(clip, workload, identity, first, last, Bar("the model on every input"))
    if importlib.util.find_spec("tensorflow") is None and kind != "light":
        raise ConfigError("TensorFlow is not installed; run 'make convert-env' or use --kind light")

    target = (
        Target("accuracy", target_accuracy)
        if target_accuracy is not None
        else Target("recall", target_recall or 0.0)
    )
    if target.measure == "recall" and not workload.task.can_skip:
        raise ConfigError(
            f"task {workload.spec.task} has no redundant value; use --target-accuracy"
        )
    data = load_training_data(clip, truth, first, last, spec, Bar("reading the recording"))
    bars: dict[str, Bar] = {}
    fitted = fit.fit(
        data,
        [target],
        WorkloadInfo(
            model=Path(str(options["model"])).name,
            model_identity=identity,
            decoder=workload.spec.decoder or "raw",
            task=workload.spec.task,
            same=workload.spec.same,
            labels=list(workload.spec.labels),
        ),
        TrainSettings(mechanism, steps=steps, precision=precision, seed=seed),
        confidence,
        {
            "recording": Path(recording).name,
            "content_sha256": clip.content_hash(),
            "first_input": first,
            "last_input": last - 1,
            "rate_hz": clip.rate_hz,
            "seed": seed,
        },
        kinds=("light", "net") if kind == "best" else (kind,),  # type: ignore[arg-type]
        allow_pass_through=allow_pass_through,
        report=lambda what, done, total: bars.setdefault(what, Bar(what))(done, total),
    )
    write_bundle(output, fitted.bundle.manifest, fitted.bundle.members)
    if report is not None:
        _write_report(report, fitted)
    for note in fitted.notes:
        click.echo(note, err=True)
    point = fitted.bundle.manifest.calibration.points[0]
    if point.filtering_rate == 0:
        click.echo("this gate filters nothing: no filter holds the target here", err=True)
    click.echo(
        f"{output}: {fitted.bundle.manifest.mechanism}, {fitted.bundle.manifest.filter.kind} "
        f"filter; {point.measure} {point.target:g} ({point.kind}, bound {point.bound:.3f} from "
        f"{fitted.choice.blocks} blocks) at a filtering rate of {point.filtering_rate:.3f}"
    )


def make_workload(options: dict[str, str | None]) -> tuple[Workload, str]:
    """Return (workload, model identity) of the command line. Raises InfiEdgeError."""
    model, task = options["model"], options["task"]
    if model is None or task is None:
        raise ConfigError("give --model and --task: what to run, and what its outputs mean")
    identity = model_identity(model, options["model_version"] or "")
    labels = find_labels(model, options["labels"])
    spec = WorkloadSpec(task, options["decoder"], options["same"] or "exact", labels)
    return Workload(model, spec), identity


def _image_spec(size: str) -> ImageSpec:
    match = re.fullmatch(r"(\d+)x(\d+)", size)
    width, height = (int(match[1]), int(match[2])) if match else (0, 0)
    if not (32 <= width <= 512 and 32 <= height <= 512):
        raise ConfigError(f"--size {size}: use WIDTHxHEIGHT between 32x32 and 512x512")
    return ImageSpec(width, height)


def _write_report(path: str, fitted: Any) -> None:
    import msgspec

    from infi_edge.archive import write_atomically

    report = {
        "manifest": msgspec.to_builtins(fitted.bundle.manifest),
        "notes": fitted.notes,
    }
    write_atomically(path, json.dumps(report, indent=1).encode())


def main() -> None:
    """Entry point."""
    run_command(cli, "infi-convert")
