"""Options that several commands share, and that mean the same in each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args, get_type_hints

import click
import msgspec

from infi_edge.config import OffloadConfig
from infi_edge.errors import ConfigError
from infi_edge.executors.endpoint import is_endpoint, parse_endpoint

F = TypeVar("F", bound=Callable[..., Any])


def workload_options(command: F) -> F:
    """Add --model, --decoder, --task, --same, --labels: the same meaning in every command."""
    for option in reversed(
        (
            click.option("--model", help="A .tflite file, or package.module:function."),
            click.option("--model-version", default="", help="Of a callable; part of its name."),
            click.option("--decoder", help="ssd, yolov5, blazeface, movenet, classification, raw."),
            click.option("--task", help="count:car,bus, presence:person, label, pose, value, ..."),
            click.option("--same", help="exact (default), within:1, iou:0.5."),
            click.option("--labels", help="File of class names; else the model's own."),
        )
    ):
        command = option(command)
    return command


def executor_options(command: F) -> F:
    """Add --executor, --offload and --head: a model on a server, or half of one."""
    for option in reversed(
        (
            click.option(
                "--executor",
                metavar="URL",
                help="Instead of --model, one on a server: grpc://HOST:8001/MODEL or "
                "http(s)://HOST/v2/models/MODEL.",
            ),
            click.option(
                "--offload",
                multiple=True,
                metavar="KEY=VALUE",
                help="Of the server: deadline_s, retries, window, send, when_down, token_file, "
                "ca_file, ...; as in [models.NAME.offload].",
            ),
            head_option,
        )
    ):
        command = option(command)
    return command


def head_option(command: F) -> F:
    """Add --head, of a partitioned model."""
    return click.option(
        "--head",
        metavar="FILE",
        help="The device's half of a partitioned model; the filter reads its features, and the "
        "model is its tail.",
    )(command)


def parse_offload(texts: tuple[str, ...]) -> OffloadConfig:
    """Return the settings of KEY=VALUE texts. Raises ConfigError."""
    settings: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"--offload {text}: write KEY=VALUE")
        settings[key] = value
    try:
        return msgspec.convert(settings, OffloadConfig, strict=False)
    except msgspec.ValidationError as error:
        key = str(error).rpartition("$.")[2].rstrip("`")
        hints = get_args(get_type_hints(OffloadConfig).get(key))
        known = hints if hints and isinstance(hints[0], str) else OffloadConfig.__struct_fields__
        what = f"{key} is one of" if known is hints else "the keys are"
        raise ConfigError(f"--offload: {error}; {what} {', '.join(known)}") from error


def chosen_model(options: Mapping[str, Any]) -> str | None:
    """Return the model of --model or --executor. Raises ConfigError if both are given, or an
    address that is none."""
    model, executor = options["model"], options["executor"]
    if model is not None and executor is not None:
        raise ConfigError("give --model or --executor, not both")
    if executor is not None:
        parse_endpoint(executor)
    elif model is not None and is_endpoint(model):
        raise ConfigError(f"{model} is a model on a server; give it with --executor")
    return model if executor is None else executor


def target_options(command: F) -> F:
    """Add --target-accuracy and --target-recall, between 0 and 1."""
    between = click.FloatRange(0.0, 1.0, min_open=True, max_open=True)
    command = click.option("--target-recall", type=between, help="Of wanted inputs.")(command)
    return click.option("--target-accuracy", type=between, help="Agreement with the model.")(
        command
    )


def part_options(command: F) -> F:
    """Add --start and --end, the part of a recording as fractions, and --rate-hz."""
    positive = click.FloatRange(0.0, min_open=True)
    rate = click.option(
        "--rate-hz",
        type=positive,
        help="Of what has no times: images, lines; or samples a second of a signal.",
    )
    command = rate(command)
    command = click.option("--end", default=1.0, show_default=True, help="Fraction.")(command)
    return click.option("--start", default=0.0, show_default=True, help="Fraction.")(command)


def learn_option(command: F) -> F:
    """Add --learn."""
    return click.option(
        "--learn", is_flag=True, help="Go on learning from the filter; without one it always does."
    )(command)


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
