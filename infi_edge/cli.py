"""The command `infi-edge`."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import cv2

from infi_edge import __version__, daemon, doctor, evaluate, learn_cli
from infi_edge.bandwidth import Bandwidth
from infi_edge.bundle import Bundle, Manifest, OperatingPoint, operating_point, read_bundle
from infi_edge.capture.address import GRAMMAR, public_address, scheme_of
from infi_edge.capture.recordings import open_recording
from infi_edge.capture.replay import Recording, part
from infi_edge.config import (
    Config,
    JsonlSinkConfig,
    ModelConfig,
    SourceConfig,
    check_config,
    load_config,
)
from infi_edge.errors import ConfigError, InfiEdgeError
from infi_edge.executors.head import Head
from infi_edge.executors.headed import Headed
from infi_edge.executors.offload import workload_identity
from infi_edge.filter import InputFilter
from infi_edge.gate import head_for, workload_for
from infi_edge.options import (
    chosen_model,
    executor_options,
    learn_option,
    parse_offload,
    part_options,
    preprocess_options,
    target_options,
    workload_options,
)
from infi_edge.plugins import load_plugin
from infi_edge.record_cli import record
from infi_edge.replay import SKIPPED, Outcome
from infi_edge.service_cli import service
from infi_edge.setups import trained_rate_hz
from infi_edge.status import SourceStatus
from infi_edge.workload import Workload, find_labels

F = TypeVar("F", bound=Callable[..., Any])

log = logging.getLogger("infi_edge")


def plugin_option(command: F) -> F:
    """Add --plugin, before the command: modules of one's own that register modalities."""

    def load(context: click.Context, parameter: click.Parameter, plugins: tuple[str, ...]) -> None:
        for plugin in plugins:
            load_plugin(plugin)

    return click.option(
        "--plugin",
        multiple=True,
        expose_value=False,
        callback=load,
        help="A module or .py file of your own that registers a modality.",
    )(command)


class Bar:
    """A progress bar on standard error that grows when its total becomes known."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._shown = -1

    def __call__(self, done: int, total: int) -> None:
        percent = 100 * done // max(total, 1)
        if percent == self._shown:
            return
        if sys.stderr.isatty():
            filled = "#" * (percent // 4)
            click.echo(f"\r{self._title:<28} [{filled:<25}] {percent:3d} %", err=True, nl=False)
            if percent == 100:
                click.echo(err=True)
        elif percent // 25 > self._shown // 25:
            click.echo(f"{self._title}: {percent} %", err=True)
        self._shown = percent


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="infi-edge")
@plugin_option
def cli() -> None:
    """A learned input filter in front of an expensive model: SKIP, REUSE or INFER."""


def _check_overrides(manifest: Manifest, options: dict[str, Any]) -> None:
    """Raise ConfigError for an option that says otherwise than the bundle."""
    if options["modality"] or options["preprocess"]:
        raise ConfigError("--modality and --preprocess are the filter's own; leave them out")
    info = manifest.workload
    for name in ("decoder", "task", "same"):
        given = options[name]
        if given is not None and given != getattr(info, name):
            raise ConfigError(
                f"--{name} {given} is not the filter's {getattr(info, name)}; leave it out, "
                "or train a filter for it"
            )
    labels = options["labels"]
    if labels is not None and list(find_labels(options["model"] or "", labels)) != info.labels:
        raise ConfigError("--labels are not those the filter was trained with; leave it out")


def _manifest_workload(
    manifest: Manifest, options: dict[str, Any], allow_other: bool, head: Head | None
) -> tuple[Workload, str]:
    """Return (workload, model identity) of a bundle, with what the user overrides."""
    model = chosen_model(options)
    if model is None:
        raise ConfigError(
            "give the model with --model or --executor (the filter was trained for "
            f"{manifest.workload.model})"
        )
    _check_overrides(manifest, options)
    version = options["model_version"] or ""
    workload = workload_for(
        manifest,
        model,
        model_version=version,
        allow_other_model=allow_other,
        offload=parse_offload(options["offload"]),
        head=head,
    )
    return workload, workload_identity(workload, model, version)


@cli.command(epilog="\b\nSources:\n" + GRAMMAR)
@click.argument("config", required=False)
@click.option("--source", help="Where inputs come from; see below.")
@click.option("--filter", "bundle", help="The bundle NAME.infi; without it one is learned.")
@learn_option
@click.option("--state", metavar="DIR", help="Where what is learned is kept, and a queue; default: "
              "below $XDG_STATE_HOME/infi-edge.")  # fmt: skip
@workload_options
@executor_options
@preprocess_options
@target_options
@part_options
@click.option("--fast", is_flag=True, help="A recording as fast as possible, not as recorded.")
@click.option("--allow-other-model", is_flag=True, help="Run a model the filter does not know.")
@click.option(
    "--output", default="-", show_default=True, help="JSON lines file, appended to; - for stdout."
)
def run(
    config: str | None,
    source: str | None,
    bundle: str | None,
    learn: bool,
    state: str | None,
    output: str,
    **options: Any,
) -> None:
    """Run the daemon: of CONFIG (TOML), or of --source, --filter and --model or --executor.

    Without --filter, --task and --target-accuracy say what to learn while it serves, and how well.
    """
    log_to_stderr()
    if config is not None:
        if source or bundle or learn or state or options["model"] or options["executor"]:
            raise ConfigError("give a configuration file, or --source --filter --model, not both")
        loop = daemon.Daemon(load_config(config), Path(config))
    else:
        settings = _run_config(source, bundle, learn, state, output, options)
        loop = daemon.Daemon(check_config(settings), must_open=True)
    signal.signal(signal.SIGTERM, lambda *_: loop.stop())
    signal.signal(signal.SIGINT, lambda *_: loop.stop())
    signal.signal(signal.SIGHUP, lambda *_: loop.request_reload())
    code = 2
    try:
        loop.run()
        code = int(_say_what_was_done([*loop.status().sources, *loop.left]))
    except InfiEdgeError as error:
        if not loop.stuck:
            raise
        click.echo(f"infi-edge: {error}", err=True)
    if loop.stuck:  # a model that cannot be interrupted: a normal exit would wait for it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    for sink in loop.status().sinks if config is None else ():
        if lost := sink.counts["abandoned"] + sink.counts["dropped"]:
            raise ConfigError(f"{lost} results are lost: {sink.sentence or 'too late to write'}")
    if code:
        raise click.exceptions.Exit(code)


def _run_config(
    source: str | None,
    bundle: str | None,
    learn: bool,
    state: str | None,
    output: str,
    options: dict[str, Any],
) -> Config:
    """Return the settings of a run without a configuration file. Raises InfiEdgeError."""
    model = chosen_model(options)
    if source is None or model is None:
        raise ConfigError(
            "give a configuration file, or --source, --filter and --model (or --executor)"
        )
    if bundle is None:
        workload = learn_cli.source_settings(options)
        task = options["task"]
    else:
        manifest = _check_bundle(bundle, model, learn, options)
        workload, task = {"filter": bundle}, manifest.workload.task
    name = source_name(source)
    if learn := learn or bundle is None:
        state = state or str(learn_cli.default_state(name, source, model, task))
        log.info("what is learned is kept in %s", state)
    return Config(
        sources={
            name: SourceConfig(
                address=source,
                model="model",
                learn=learn,
                head=options["head"],
                target_accuracy=options["target_accuracy"],
                target_recall=options["target_recall"],
                start=options["start"],
                end=options["end"],
                rate_hz=options["rate_hz"],
                fast=options["fast"],
                **workload,
            )
        },
        models={
            "model": ModelConfig(
                path=options["model"] or "",
                executor=options["executor"] or "",
                version=options["model_version"] or "",
                allow_other=options["allow_other_model"],
                offload=parse_offload(options["offload"]),
            )
        },
        sinks={"results": JsonlSinkConfig(path=output, events=False)},
        flush_s=0.0,
        state=state or "state",
    )


def _check_targets(options: dict[str, Any]) -> None:
    if options["target_accuracy"] is not None and options["target_recall"] is not None:
        raise ConfigError("give --target-accuracy or --target-recall, not both")


def _check_bundle(bundle: str, model: str, learn: bool, options: dict[str, Any]) -> Manifest:
    """Return its manifest if the options are not against it. Raises InfiEdgeError."""
    manifest = read_bundle(bundle).manifest
    _check_overrides(manifest, options)
    if learn:
        learn_cli.kept_target(manifest, options)
    if options["model"]:
        allow = options["allow_other_model"]
        head_for(manifest, options["head"], allow)
        version = options["model_version"] or ""
        workload_for(manifest, model, model_version=version, allow_other_model=allow)
    return manifest


def _say_what_was_done(sources: list[SourceStatus]) -> bool:
    """Print the summary; return whether every input failed."""
    counts: Counter[str] = Counter()
    for source in sources:
        counts += source.counts
    names = {
        "error": "errors",
        "filter_error": "filter errors",
        "over_budget": "dropped over budget",
        "local": "answered by the local model",
        "queued": "queued",
        "late": "answered late",
        "late_error": "failed late",
        "late_abandoned": "queued ones abandoned",
        "spool_evicted": "evicted from the queue",
        "spool_uncertain": "queued ones uncertain",
        "spool_damaged": "lost with a damaged queue",
        "link_down": "dropped as the server was away",
        "abandoned": "abandoned",
    }
    ends = ("infer", "skip", "reuse", "local", "queued", "error", "over_budget", "link_down")
    total = sum(counts[end] for end in (*ends, "abandoned"))
    more = "".join(f", {counts[key]} {text}" for key, text in names.items() if counts[key])
    click.echo(
        f"{total} inputs: {counts['infer']} inferred, {counts['skip']} skipped, "
        f"{counts['reuse']} reused{more}",
        err=True,
    )
    return bool(total) and counts["error"] + counts["link_down"] == total


def source_name(address: str) -> str:
    """Return a name for a source that has only an address: `yard` for clips/yard.mp4."""
    text = address if scheme_of(address) else Path(address).stem
    return re.sub(r"[^A-Za-z0-9]+", "-", public_address(text)).strip("-")[:40] or "source"


class _JournalFormatter(logging.Formatter):
    """Lines as journald takes them: `<4>` is a warning; it knows the time itself."""

    _PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))

    def format(self, record: logging.LogRecord) -> str:
        priority = next((p for level, p in self._PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def log_to_stderr() -> None:
    """Log to standard error, for a terminal or, where systemd reads it, for journald."""
    handler = logging.StreamHandler(sys.stderr)
    journal = "JOURNAL_STREAM" in os.environ
    handler.setFormatter(
        _JournalFormatter("%(message)s")
        if journal
        else logging.Formatter("%(levelname)s %(message)s")
    )
    handler.addFilter(_without_credentials)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _without_credentials(record: logging.LogRecord) -> bool:
    """Whatever a model, a plugin or a library puts into a message: no line shows a password."""
    record.msg, record.args = public_address(record.getMessage()), ()
    return True


@cli.command("check")
@click.argument("config")
def check_command(config: str) -> None:
    """Is CONFIG (TOML) right? Its keys, files, bundles, models and addresses; nothing runs."""
    daemon.check(config)
    click.echo(f"{config} is right")


@cli.command("evaluate")
@click.argument("bundle", required=False)
@click.option("--source", required=True, help="A recording: a file or a folder.")
@learn_option
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Of the audits of a gate that learns.",
)
@workload_options
@executor_options
@preprocess_options
@target_options
@part_options
@click.option("--allow-other-model", is_flag=True, help="Run a model the filter does not know.")
@click.option("--timed-inputs", default=200, show_default=True, type=click.IntRange(1))
@click.option("--misses", type=click.Path(file_okay=False), help="Save wrong inputs here.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def evaluate_command(
    bundle: str | None,
    source: str,
    learn: bool,
    seed: int,
    timed_inputs: int,
    misses: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """What would BUNDLE save here? Replays it beside the model's own answers.

    Without BUNDLE: a gate that learns while it serves, from the first input on.
    """
    if bundle is None:
        begun, recording, workload, identity = learn_cli.open_blank(source, options)
    else:
        begun, recording, workload, identity = _open_with(bundle, source, options)
    first, last = part(recording, options["start"], options["end"])
    bar = Bar("the model on every input")
    report: evaluate.Evaluation
    outcome: Outcome
    if learn or bundle is None:
        target = learn_cli.kept_target(begun.manifest, options)
        report, truth, outcome = evaluate.evaluate_learning(
            recording, begun, target, workload, identity, first, last,
            seed=seed, timed_inputs=timed_inputs, progress=bar,
        )  # fmt: skip
    else:
        point = _point(begun.manifest, options)
        report, truth, outcome = evaluate.evaluate(
            recording, InputFilter(begun), point, workload, identity, first, last,
            timed_inputs=timed_inputs, progress=bar,
        )  # fmt: skip
    click.echo(json.dumps(report.as_dict()) if as_json else _evaluation_text(report))
    if misses is not None:
        count = evaluate.save_misses(
            recording,
            truth,
            outcome,
            first,
            Path(misses),
            lambda i: f"{'skipped' if outcome.actions[i] == SKIPPED else 'reused'}",
        )
        click.echo(f"{count} inputs with a wrong answer saved in {misses}", err=True)


def _open_with(
    bundle: str, source: str, options: dict[str, Any]
) -> tuple[Bundle, Recording, Workload, str]:
    """Return (the bundle, the recording, the workload, its identity). Raises InfiEdgeError."""
    begun = read_bundle(bundle)
    manifest, allow = begun.manifest, options["allow_other_model"]
    _check_targets(options)
    rate_hz = options["rate_hz"] or trained_rate_hz(manifest)
    front = head_for(manifest, options["head"], allow)
    spec = None if front else manifest.preprocess
    recording: Recording = open_recording(source, rate_hz, spec)
    if front is not None:
        recording = Headed(recording, front)
    workload, identity = _manifest_workload(manifest, options, allow, front)
    return begun, recording, workload, identity


def _point(manifest: Manifest, options: dict[str, Any]) -> OperatingPoint:
    """Return the bundle's row for what is asked, and say so if it is a stricter one."""
    wanted = options["target_accuracy"] or options["target_recall"]
    point = operating_point(manifest, options["target_accuracy"], options["target_recall"])
    if wanted is not None and point.target != wanted:
        click.echo(f"the bundle's row for {point.measure} {point.target:g} is used", err=True)
    return point


def _evaluation_text(report: evaluate.Evaluation) -> str:
    by_recall = report.target_accuracy is None
    target = report.target_recall if by_recall else report.target_accuracy
    recall = "-" if report.recall is None else f"{report.recall:.3f}"
    skip = report.ideal_skip_filtering_rate
    ideal = "-" if skip is None else f"{skip:.3f}"
    return "\n".join(
        (
            f"target              {'recall' if by_recall else 'accuracy'} {target:g}",
            f"inputs              {report.inputs}: {report.inferred} inferred, "
            f"{report.skipped} skipped, {report.reused} reused",
            f"filtering rate      {report.filtering_rate:.3f}   "
            f"(every-Nth at its best: {report.every_nth_filtering_rate:.3f}; ideal SKIP: {ideal})",
            f"accuracy            {report.accuracy:.3f}",
            f"recall of wanted    {recall}",
            *_learning_text(report),
            f"throughput ratio    {report.throughput_ratio:.1f}   "
            f"(predicted {report.predicted_throughput_ratio:.1f}; "
            f"{report.timed_inputs} inputs timed)",
            f"per input           model {report.model_ms:.2f} ms, filter {report.filter_ms:.3f} ms,"
            f" decode {report.decode_ms:.2f} ms",
            *_bandwidth_text(report.bandwidth),
        )
    )


def _learning_text(report: evaluate.Evaluation) -> list[str]:
    if not isinstance(report, evaluate.LearningEvaluation):
        return []
    recall = (
        "-"
        if report.live_recall is None
        else f"{report.live_recall:.3f}, at least {report.live_recall_bound:.3f}"
    )
    return [
        f"by its {report.audited} audits".ljust(20)
        + f"accuracy {report.live_accuracy:.3f}, at least {report.live_bound:.3f}, at most "
        f"{report.live_high:.3f}; recall {recall}",
        f"learning            {report.warm_up} inputs until the first was filtered, "
        f"{report.audited} audited, {report.fits} fits in {report.learn_cpu_s:.2f} s of CPU; "
        f"failed open {report.failed_open} times",
        f"timed part          its first inputs, warm-up included: filtering rate "
        f"{report.timed_filtering_rate:.3f}",
    ]


def _bandwidth_text(bandwidth: Bandwidth | None) -> list[str]:
    if bandwidth is None:
        return []
    others = {"every input as JPEG": bandwidth.saved_against_jpeg,
              "every-Nth at its best": bandwidth.saved_against_every_nth}  # fmt: skip
    told = ", ".join(f"than {k}: {v:.3f}" for k, v in others.items() if v is not None)
    return [
        f"bandwidth saved     {bandwidth.saved:.3f}   (less {told})",
        f"bytes               {bandwidth.bytes_sent / 1e6:.2f} MB sent instead of "
        f"{bandwidth.bytes_of_all / 1e6:.2f} MB, {bandwidth.bytes_per_input / 1e3:.1f} kB an input",
    ]


@cli.command("doctor")
def doctor_command() -> None:
    """What is on this machine, and what to do about each problem. Exit code 1 if there is one."""
    problems = 0
    for finding in doctor.examine():
        problems += finding.level == "problem"
        advice = f"\n          -> {finding.advice}" if finding.advice else ""
        click.echo(f"{finding.level:<8}  {finding.what}{advice}")
    raise click.exceptions.Exit(1 if problems else 0)


for added in (learn_cli.inspect, learn_cli.export, record, service):
    cli.add_command(added)


def run_command(command: click.Group, name: str) -> None:
    """Run a command group; what a user can act on becomes one sentence and exit code 2."""
    cv2.setNumThreads(1)  # the filter's images are tiny: OpenCV's threads only cost
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    if hasattr(cv2, "setLogLevel"):  # OpenCV 5
        cv2.setLogLevel(0)
    else:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        sys.exit(command(standalone_mode=False) or 0)
    except InfiEdgeError as error:
        click.echo(f"{name}: {error}", err=True)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:  # a full disk, a folder without permission
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"{name}: {where}{error.strerror or error}; write elsewhere", err=True)
        sys.exit(2)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        click.echo(f"{name}: {error.format_message()}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo(f"{name}: stopped", err=True)
        sys.exit(130)


def main() -> None:
    """Entry point."""
    run_command(cli, "infi-edge")
