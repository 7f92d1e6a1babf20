"""The commands for filters that were trained elsewhere: keras, score, calibrate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from converters.options import (
    check_output,
    make_target,
    make_workload,
    need_tensorflow,
    workload_info,
)
from converters.quiet import quiet_stderr
from converters.recordings import SAMPLED, load_training_data
from converters.scores import fit_steps, pair_scores
from converters.stored import calibration_tensors, read_sides, stored_tensors
from infi_edge.bundle import read_bundle, write_bundle
from infi_edge.capture.recorded import recorded_manifest
from infi_edge.capture.recordings import open_recording
from infi_edge.capture.replay import part
from infi_edge.cli import Bar
from infi_edge.errors import ConfigError
from infi_edge.evaluate import labelled
from infi_edge.executors.headed import Headed
from infi_edge.filter import InputFilter
from infi_edge.gate import head_for
from infi_edge.learning.sample import find_sample
from infi_edge.options import (
    head_option,
    parse_settings,
    part_options,
    preprocess_options,
    target_options,
    workload_options,
)
from infi_edge.setups import trained_rate_hz


@click.command("keras")
@click.argument("model")
@preprocess_options
@click.option(
    "--calibration-data",
    type=click.Path(),
    help="Inputs for int8: a recording, or a .npz as for `score`; without: float16.",
)
@click.option(
    "--precision",
    type=click.Choice(["int8", "float16", "float32"]),
    help="Default: int8 with --calibration-data, else float16.",
)
@click.option(
    "--invert",
    is_flag=True,
    help="Its score means the opposite: the input is redundant, the two answers are the same.",
)
@click.option("--allow-code", is_flag=True, help="Run Python code that lies in the model file.")
@click.option("-o", "--output", required=True, help="The bundle, NAME.infi.")
def keras_command(
    model: str,
    modality: str | None,
    preprocess: tuple[str, ...],
    calibration_data: str | None,
    precision: Any,
    invert: bool,
    allow_code: bool,
    output: str,
) -> None:
    """Make a bundle of a Keras filter MODEL (.keras, .h5, SavedModel; Keras 2 or 3).

    A model of one input (of a clip: one a frame) gives the probability that the model is needed
    (SKIP); a siamese model of two inputs the probability that their answers differ (REUSE). The
    bundle lets everything through until `infi-convert calibrate` sets its thresholds.
    """
    if modality is None:
        raise ConfigError("give --modality: image, video, audio, text, motion or features")
    check_output(output)
    need_tensorflow("")
    with quiet_stderr():
        from converters.from_keras import import_keras
        from converters.keras_filter import KerasFilter
        from converters.modelfile import load_model
    path = Path(model)
    keras_filter = KerasFilter(
        load_model(path, allow_code), path, modality, parse_settings(preprocess), invert
    )
    tensors = None
    if calibration_data is not None:
        tensors = calibration_tensors(Path(calibration_data), keras_filter.spec)
    imported = import_keras(keras_filter, path, modality, precision, tensors)
    write_bundle(output, imported.bundle.manifest, imported.bundle.members)
    for note in imported.notes:
        click.echo(note, err=True)
    manifest = imported.bundle.manifest
    facts = manifest.parity
    click.echo(
        f"{output}: {manifest.mechanism}, {facts['precision']}, {facts['size_bytes']} bytes, "
        f"agrees on {facts['agreement']} of {facts['decisions']} decisions with {path.name}"
        f"{' (on made-up inputs)' if 'on' in facts else ''}; "
        "it lets everything through until 'infi-convert calibrate' sets its thresholds"
    )


@click.command("score")
@click.argument("bundle")
@click.argument("inputs")
def score_command(bundle: str, inputs: str) -> None:
    """Print the scores that BUNDLE gives to stored INPUTS (.npz or .npy), one a line.

    One array: the probability that each input needs inference (SKIP). Two arrays: the probability
    that the answers to the inputs of each pair differ (REUSE), at age 0. Inputs are what the Keras
    model takes: float arrays of its shape in its own units, or uint8 pictures in its own order of
    colours.
    """
    loaded = read_bundle(bundle)
    input_filter = InputFilter(loaded)
    pairs = input_filter.manifest.skip is None
    spec, path = input_filter.spec, Path(inputs)
    if loaded.manifest.parity.get("on") == "made-up inputs" and pairs:
        both = [stored_tensors(array, spec, inputs) for array in read_sides(path, spec, pairs)]
        input_filter = InputFilter(fit_steps(loaded, np.concatenate(both)))
        click.echo(
            "the embedding's range was guessed (no --calibration-data): it is fitted to these "
            "inputs, as 'infi-convert calibrate' will do to the recording",
            err=True,
        )
    sides = [stored_tensors(array, spec, inputs) for array in read_sides(path, spec, pairs)]
    results = [[input_filter.embed_tensor(t[None]) for t in side] for side in sides]
    if pairs:
        a, b = (np.stack([embedding for _, embedding in side]) for side in results)
        scores = pair_scores(input_filter, a, b)
    else:
        scores = np.array([score for score, _ in results[0]])
    click.echo("\n".join(f"{score:.6f}" for score in scores))


@click.command("calibrate")
@click.argument("bundle")
@click.option("--source", required=True, help="A recording: a file or a folder.")
@workload_options
@head_option
@target_options
@part_options
@click.option("--confidence", default=0.95, show_default=True, type=click.FloatRange(0.5, 0.999))
@click.option("--allow-pass-through", is_flag=True, help="Write a gate that filters nothing.")
@click.option("-o", "--output", help="The bundle to write; default: BUNDLE itself.")
def calibrate_command(
    bundle: str,
    source: str,
    target_accuracy: float | None,
    target_recall: float | None,
    start: float,
    end: float,
    rate_hz: float | None,
    confidence: float,
    allow_pass_through: bool,
    output: str | None,
    head: str | None,
    **options: str | None,
) -> None:
    """Set BUNDLE's thresholds on a recording: a new target, camera or model, without training."""
    with quiet_stderr():
        from converters.recalibrate import check_unseen, recalibrate
    output = output or bundle
    check_output(output)
    loaded = read_bundle(bundle)
    manifest, spec = loaded.manifest, loaded.manifest.preprocess
    info = manifest.workload
    for name in ("decoder", "task", "same"):  # a bundle that has a workload keeps what is not said
        if options[name] is None and info.task:
            options[name] = getattr(info, name)
    rate_hz, source = rate_hz or trained_rate_hz(manifest), find_sample(source)
    recorded = recorded_manifest(source)
    sampled = recorded is not None and recorded.inferred_only
    front = head_for(manifest, head, allow=True)
    if front is None:
        workload, identity = make_workload(options, manifest.modality, recorded)
        recording = open_recording(source, rate_hz, spec)
    else:
        workload, identity = make_workload(options, "features", whole_input=front.input)
        recording = Headed(open_recording(source, rate_hz), front)
    target = make_target(target_accuracy, target_recall, workload)
    first, last = part(recording, start, end)
    check_unseen(loaded, recording.content_hash(), first, last)
    truth = labelled(recording, workload, identity, first, last, Bar("the model on every input"))
    data = load_training_data(
        recording, truth, first, last, spec, Bar("reading the recording"), manifest.modality
    )
    bars: dict[str, Bar] = {}
    done = recalibrate(
        loaded,
        data,
        target,
        workload_info(options, workload, identity, front),
        confidence,
        {"on": Path(source).name, "first_input": first, "last_input": last - 1},
        certifies=not sampled,
        allow_pass_through=allow_pass_through,
        report=lambda what, count, total: bars.setdefault(what, Bar(what))(count, total),
    )
    write_bundle(output, done.bundle.manifest, done.bundle.members)
    for note in [SAMPLED, *done.notes] if sampled else done.notes:
        click.echo(note, err=True)
    point = done.bundle.manifest.calibration.points[0]
    if point.filtering_rate == 0:
        click.echo("this gate filters nothing: it does not hold the target here", err=True)
    click.echo(
        f"{output}: {point.measure} {point.target:g} ({point.kind}, bound {point.bound:.3f} from "
        f"{done.choice.blocks} blocks) at a filtering rate of {point.filtering_rate:.3f}"
    )
