"""The command `infi-convert`."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from converters import fit
from converters.calibrate import Target
from converters.recordings import fit_spec, load_training_data
from converters.trained import TrainSettings
from infi_edge import __version__
from infi_edge.bundle import WorkloadInfo, write_bundle
from infi_edge.capture.recordings import draft_spec, open_recording
from infi_edge.capture.replay import part
from infi_edge.cli import (
    Bar,
    part_options,
    plugin_option,
    run_command,
    target_options,
    workload_options,
)
from infi_edge.errors import ConfigError
from infi_edge.evaluate import labelled
from infi_edge.workload import Workload, WorkloadSpec, find_labels, model_identity

F = TypeVar("F", bound=Callable[..., Any])


def preprocess_options(command: F) -> F:
    """Add --modality and --preprocess."""
    command = click.option(
        "--preprocess",
        multiple=True,
        metavar="KEY=VALUE",
        help="Of the filter's input: width, height; frames, hop; window_ms, hop_ms, bands; ...",
    )(command)
    return click.option(
        "--modality",
        help="image, video, audio, text, motion, features; default: by the recording's suffix.",
    )(command)


def parse_settings(texts: tuple[str, ...]) -> dict[str, Any]:
    """Return {key: value} of KEY=VALUE texts; a value with commas is a list.

    Raises ConfigError.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"--preprocess {text}: write KEY=VALUE")
        settings[key] = value.split(",") if "," in value else value
    return settings


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="infi-convert")
@plugin_option
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
@preprocess_options
@click.option(
    "--classifier",
    type=click.Choice(["l1", "mlp"]),
    default="l1",
    show_default=True,
    help="What reads differences: their sum, or a perceptron (InFi's own), which costs more.",
)
@click.option(
    "--network",
    type=click.Choice(["small", "recurrent", "infi"]),
    default="small",
    show_default=True,
    help="recurrent: an LSTM, for series and text. infi: the paper's, for comparison.",
)
@click.option(
    "--precision",
    type=click.Choice(["int8", "float16", "float32"]),
    default="int8",
    show_default=True,
)
@click.option(
    "--fraction",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.0, 1.0, min_open=True),
    help="Use this share of the part alone, its beginning.",
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
    modality: str | None,
    preprocess: tuple[str, ...],
    classifier: Any,
    network: Any,
    fraction: float,
    precision: Any,
    steps: int,
    rate_hz: float | None,
    allow_pass_through: bool,
    output: str,
    report: str | None,
    **options: str | None,
) -> None:
    """Train on RECORDING (a file or a folder), calibrate, quantize, check, write."""
    if (target_accuracy is None) == (target_recall is None):
        raise ConfigError("give either --target-accuracy or --target-recall")
    for path in (output, report):
        if path is not None:
            check_output(path)
    modality, spec = draft_spec(modality, recording, parse_settings(preprocess), rate_hz)
    workload, identity = make_workload(options, modality)
    clip = open_recording(recording, rate_hz, spec)
    first, last = part(clip, start, start + fraction * (end - start))
    fit.check_length(last - first)
    spec = fit_spec(clip, first, last, spec)
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
    data = load_training_data(
        clip, truth, first, last, spec, Bar("reading the recording"), modality
    )
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
        TrainSettings(
            mechanism,
            steps=steps,
            precision=precision,
            seed=seed,
            classifier=classifier,
            network=network,
        ),
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


def make_workload(options: dict[str, str | None], modality: str) -> tuple[Workload, str]:
    """Return (workload, model identity) of the command line. Raises InfiEdgeError."""
    model, task = options["model"], options["task"]
    if model is None or task is None:
        raise ConfigError("give --model and --task: what to run, and what its outputs mean")
    identity = model_identity(model, options["model_version"] or "")
    labels = find_labels(model, options["labels"])
    spec = WorkloadSpec(task, options["decoder"], options["same"] or "exact", labels, modality)
    return Workload(model, spec), identity


def check_output(path: str) -> None:
    """Raise ConfigError if a file cannot be written there."""
    if Path(path).is_dir():
        raise ConfigError(f"{path} is a folder; name a file in it")
    if not Path(path).absolute().parent.is_dir():
        raise ConfigError(f"{path} cannot be written: its folder does not exist")


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
