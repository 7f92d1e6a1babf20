"""The command `infi-edge record`, and the options it shares with `infi-convert`."""

from __future__ import annotations

import logging
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from infi_edge import __version__
from infi_edge.bundle import WorkloadInfo
from infi_edge.capture.address import GRAMMAR, open_source, public_address
from infi_edge.capture.mask import Mask
from infi_edge.capture.recorded import FORMAT_VERSION, RecordingManifest
from infi_edge.capture.recordings import draft_source
from infi_edge.config import Polygon, SourceConfig
from infi_edge.errors import ConfigError
from infi_edge.executors.endpoint import is_endpoint, parse_endpoint
from infi_edge.executors.head import Head
from infi_edge.executors.offload import open_workload, workload_identity
from infi_edge.labels import DECODING_VERSION
from infi_edge.options import (
    chosen_model,
    executor_options,
    parse_offload,
    parse_settings,
    preprocess_options,
    workload_options,
)
from infi_edge.preprocess import Spec, change_spec
from infi_edge.record import Preparation, Recorder, Totals, record_stream
from infi_edge.tasks import Value
from infi_edge.workload import Workload, WorkloadSpec, find_labels

F = TypeVar("F", bound=Callable[..., Any])

MIN_BYTES = 1_000_000
REDUCED = "128x96"
PICTURES = ("image", "video")
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
          "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}  # fmt: skip


def parse_bytes(text: str) -> int:
    """Return bytes of `500MB`, `2GB`, `1.5 GiB` or a number. Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?b?)", text.strip().lower())
    unit = match and (match[2] if match[2].endswith("b") or not match[2] else f"{match[2]}b")
    if match is None or unit not in _UNITS:
        raise ConfigError(f"--max-bytes {text}: write a size, as in 500MB or 2GB")
    size = int(float(match[1]) * _UNITS[unit])
    if size < MIN_BYTES:
        raise ConfigError(f"--max-bytes {text} is too little for a recording; give 1MB or more")
    return size


def parse_polygon(text: str) -> Polygon:
    """Return the corners of `0,0 0.5,0 0.5,1`. Raises ConfigError."""
    try:
        corners = tuple((float(x), float(y)) for x, y in (p.split(",") for p in text.split()))
    except ValueError:
        corners = ()
    if len(corners) < 3 or not all(0 <= c <= 1 for corner in corners for c in corner):
        raise ConfigError(
            f'--mask "{text}": write three or more corners as fractions of the picture, as in '
            '"0,0 0.5,0 0.5,1"'
        )
    return corners


def parse_size(text: str) -> tuple[int, int]:
    """Return (width, height) of `128x96`. Raises ConfigError."""
    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text.strip().lower())
    if match is None or not all(1 <= int(side) <= 1024 for side in match.groups()):
        raise ConfigError(f"--reduced {text}: write WIDTHxHEIGHT, as in {REDUCED}")
    return int(match[1]), int(match[2])


@click.command("record", epilog="\b\nSources:\n" + GRAMMAR)
@click.option("--source", required=True, help="Where inputs come from; see below.")
@workload_options
@executor_options
@preprocess_options
@click.option(
    "--rate-hz",
    type=click.FloatRange(0.0, min_open=True),
    help="Pictures a second at most; samples a second of a sensor; inputs of what has no times.",
)
@click.option("-o", "--output", required=True, metavar="DIR", help="A new folder, or a recording "
              "of the same workload, which is continued.")  # fmt: skip
@click.option("--hours", type=click.FloatRange(0.0, min_open=True), help="End after so long.")
@click.option(
    "--max-bytes",
    default="1GB",
    show_default=True,
    metavar="SIZE",
    help="Of the folder (500MB, 2GB): the oldest inputs are removed to stay below.",
)
@click.option("--every", default=1, type=click.IntRange(1), help="Keep and infer every Nth input.")
@click.option("--fast", is_flag=True, help="A file as fast as the model, not as it was recorded.")
@click.option(
    "--reduced",
    is_flag=False,
    flag_value=REDUCED,
    metavar="WIDTHxHEIGHT",
    help=f"Keep only pictures so small (default {REDUCED}), no originals.",
)
@click.option("--mask", "masks", multiple=True, metavar="'X,Y X,Y X,Y'",
              help="Blank this polygon (fractions of the picture) before anything "
              "sees it.")  # fmt: skip
def record(
    source: str,
    modality: str | None,
    preprocess: tuple[str, ...],
    rate_hz: float | None,
    output: str,
    hours: float | None,
    max_bytes: str,
    every: int,
    fast: bool,
    reduced: str | None,
    masks: tuple[str, ...],
    head: str | None,
    **options: Any,
) -> None:
    """Run the model on everything and keep inputs and answers, to train a filter from.

    DIR is what `infi-convert train DIR` reads; it needs no --model then. Frames that are no JPEGs
    are kept as JPEGs of quality 95, and the model sees those. A window of sound or motion and a
    clip are kept whole each, also where they overlap. Ctrl-C ends it.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    most_bytes, settings = parse_bytes(max_bytes), parse_settings(preprocess)
    polygons = tuple(map(parse_polygon, masks))
    size = None if reduced is None else parse_size(reduced)
    modality, spec = _draft(source, modality, settings, rate_hz, size)
    if polygons and modality not in PICTURES:
        raise ConfigError(f"--mask is for pictures, not for {modality}")
    workload, info = _workload(options, modality, head)
    config = SourceConfig(address=source, filter="", model="", rate_hz=rate_hz, fast=fast)
    opened = open_source(public_address(source), config, spec, must_open=True)
    manifest = RecordingManifest(
        format_version=FORMAT_VERSION,
        modality=modality,
        preprocess=msgspec.to_builtins(spec),
        workload=info,
        decoding_version=DECODING_VERSION,
        reduced=size,
        masks=polygons,
        made={
            "source": public_address(source),
            "begun": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "infi-edge": __version__,
        },
    )
    recorder, totals = Recorder(Path(output), manifest, most_bytes), Totals()
    try:
        with _stop_signals() as stopping:
            record_stream(
                opened,
                workload,
                recorder,
                Preparation(modality, Mask(polygons), size),
                totals,
                every=every,
                most_s=None if hours is None else hours * 3600,
                stopping=stopping,
                tell=lambda: click.echo(_sums(output, totals, recorder), err=True),
            )
    finally:
        try:
            recorder.close()
        finally:
            click.echo(_sums(output, totals, recorder), err=True)
    if totals.inputs and totals.failed == totals.inputs:
        sys.exit(1)


def _draft(
    source: str,
    modality: str | None,
    settings: dict[str, Any],
    rate_hz: float | None,
    reduced: tuple[int, int] | None,
) -> tuple[str, Spec]:
    modality, spec = draft_source(modality, source, settings, rate_hz)
    if reduced is None:
        return modality, spec
    if modality not in PICTURES:
        raise ConfigError(f"--reduced is for pictures, not for {modality}")
    size = {"width": reduced[0], "height": reduced[1]}
    return modality, change_spec(spec, {k: v for k, v in size.items() if k not in settings})


def _workload(
    options: dict[str, Any], modality: str, head: str | None
) -> tuple[Callable[[Any], Value], WorkloadInfo]:
    """Return what answers inputs, and what the recording says of it."""
    model, task = chosen_model(options), options["task"]
    if model is None or task is None:
        raise ConfigError(
            "give --model and --task, or --executor and --task: what to run, and what its outputs "
            "mean"
        )
    version, decoder = options["model_version"] or "", options["decoder"]
    labels = find_labels(options["model"] or "", options["labels"])
    seen = modality if head is None else "features"
    spec = WorkloadSpec(task, decoder, options["same"] or "exact", labels, seen)
    front = None if head is None else Head(head, decoder or "raw")
    workload = open_workload(
        model,
        spec,
        offload=parse_offload(options["offload"]),
        whole_input=None if front is None else front.input,
    )
    infer = workload if front is None else _after(front, workload)
    return infer, WorkloadInfo(
        model=parse_endpoint(model).model if is_endpoint(model) else Path(model).name,
        model_identity=workload_identity(workload, model, version),
        decoder=workload.spec.decoder or "raw",
        task=workload.spec.task,
        same=workload.spec.same,
        labels=list(workload.spec.labels),
        head_identity="" if front is None else front.identity,
    )


def _after(head: Head, tail: Workload) -> Callable[[Any], Value]:
    return lambda data: tail(head(data))


def _sums(output: str, totals: Totals, recorder: Recorder) -> str:
    failed = f", {totals.failed} errors" if totals.failed else ""
    removed = f", the oldest {recorder.removed} removed" if recorder.removed else ""
    return f"{output}: {totals.inputs} inputs, {recorder.written / 1e6:.1f} MB{failed}{removed}"


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Yield a question: has SIGTERM or Ctrl-C come? A second one ends the program as usual."""
    asked = False
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in kept.items():
            signal.signal(number, handler)

    def stop(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        restore()

    for number in kept:
        signal.signal(number, stop)
    try:
        yield lambda: asked
    finally:
        restore()
