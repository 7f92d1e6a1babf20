"""The command `infi-convert`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from converters import fit
from converters.dataset_cli import dataset_command
from converters.filterability_cli import filterability_command
from converters.import_cli import calibrate_command, keras_command, score_command
from converters.options import (
    check_output,
    make_target,
    make_workload,
    need_tensorflow,
    open_head,
    workload_info,
)
from converters.partition_cli import split_command
from converters.recordings import SAMPLED, check_first, fit_spec, load_training_data
from converters.table import check_length
from converters.trained import TrainSettings
from infi_edge import __version__
from infi_edge.bundle import write_bundle
from infi_edge.capture.recorded import recorded_manifest
from infi_edge.capture.recordings import draft_spec, open_recording
from infi_edge.capture.replay import part
from infi_edge.cli import Bar, plugin_option, run_command
from infi_edge.errors import ConfigError
from infi_edge.evaluate import labelled
from infi_edge.executors.headed import Headed
from infi_edge.learning.sample import find_sample
from infi_edge.options import (
    head_option,
    parse_settings,
    part_options,
    preprocess_options,
    target_options,
    workload_options,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="infi-convert")
@plugin_option
def cli() -> None:
    """Learn an input filter from a recording and a model's own answers."""


@cli.command("train")
@click.argument("recording")
@workload_options
@head_option
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
    head: str | None,
    **options: str | None,
) -> None:
    """Train on RECORDING (a file or a folder), calibrate, quantize, check, write.

    What `infi-edge record` has written knows its workload and has the answers: it needs no --model.
    Nor does the sample of a gate that learns (sample_bytes): its state folder will do.
    """
    if kind == "light" and (classifier, network) != ("l1", "small"):
        raise ConfigError("--classifier and --network are of a network; leave out --kind light")
    for path in (output, report):
        if path is not None:
            check_output(path)
    settings, recording = parse_settings(preprocess), find_sample(recording)
    recorded = recorded_manifest(recording)
    sampled = recorded is not None and recorded.inferred_only
    front, features = open_head(head, options, modality, settings)
    if front is None or features is None:
        modality, spec = draft_spec(modality, recording, settings, rate_hz)
        workload, identity = make_workload(options, modality, recorded)
        clip = open_recording(recording, rate_hz, spec)
    else:
        modality, spec = "features", features
        workload, identity = make_workload(options, modality, whole_input=front.input)
        clip = Headed(open_recording(recording, rate_hz), front)
    target = make_target(target_accuracy, target_recall, workload)
    first, last = part(clip, start, start + fraction * (end - start))
    check_length(last - first)
    spec = fit_spec(clip, first, last, spec)
    check_first(clip, first, spec)
    truth = labelled(clip, workload, identity, first, last, Bar("the model on every input"))
    if kind != "light":
        need_tensorflow(" or use --kind light")
    data = load_training_data(
        clip, truth, first, last, spec, Bar("reading the recording"), modality
    )
    facts: dict[str, str | int | float] = {
        "recording": Path(recording).name,
        "content_sha256": clip.content_hash(),
        "first_input": first,
        "last_input": last - 1,
    }
    if not sampled:  # the stream's own
        facts["rate_hz"] = clip.rate_hz
    facts["seed"] = seed
    bars: dict[str, Bar] = {}
    fitted = fit.fit(
        data,
        [target],
        workload_info(options, workload, identity, front, recorded),
        TrainSettings(
            mechanism,
            steps=steps,
            precision=precision,
            seed=seed,
            classifier=classifier,
            network=network,
        ),
        confidence,
        facts,
        kinds=("light", "net") if kind == "best" else (kind,),  # type: ignore[arg-type]
        certifies=not sampled,
        allow_pass_through=allow_pass_through,
        report=lambda what, done, total: bars.setdefault(what, Bar(what))(done, total),
    )
    write_bundle(output, fitted.bundle.manifest, fitted.bundle.members)
    if report is not None:
        _write_report(report, fitted)
    for note in [SAMPLED, *fitted.notes] if sampled else fitted.notes:
        click.echo(note, err=True)
    point = fitted.bundle.manifest.calibration.points[0]
    if point.filtering_rate == 0:
        click.echo("this gate filters nothing: no filter holds the target here", err=True)
    click.echo(
        f"{output}: {fitted.bundle.manifest.mechanism}, {fitted.bundle.manifest.filter.kind} "
        f"filter; {point.measure} {point.target:g} ({point.kind}, bound {point.bound:.3f} from "
        f"{fitted.choice.blocks} blocks) at a filtering rate of {point.filtering_rate:.3f}"
    )


def _write_report(path: str, fitted: Any) -> None:
    import msgspec

    from infi_edge.archive import write_atomically

    report = {
        "manifest": msgspec.to_builtins(fitted.bundle.manifest),
        "notes": fitted.notes,
    }
    write_atomically(path, json.dumps(report, indent=1).encode())


for _command in (
    keras_command,
    score_command,
    calibrate_command,
    filterability_command,
    dataset_command,
    split_command,
):
    cli.add_command(_command)


def main() -> None:
    """Entry point."""
    run_command(cli, "infi-convert")
