"""What the commands of `infi-convert` have in common."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from converters.calibrate import Target
from infi_edge.bundle import WorkloadInfo
from infi_edge.errors import ConfigError
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


def workload_info(
    options: dict[str, str | None], workload: Workload, identity: str
) -> WorkloadInfo:
    """What the bundle says of its workload."""
    return WorkloadInfo(
        model=Path(str(options["model"])).name,
        model_identity=identity,
        decoder=workload.spec.decoder or "raw",
        task=workload.spec.task,
        same=workload.spec.same,
        labels=list(workload.spec.labels),
    )


def make_target(
    target_accuracy: float | None, target_recall: float | None, workload: Workload
) -> Target:
    """The target of the command line. Raises ConfigError if there is not just one that fits."""
    if (target_accuracy is None) == (target_recall is None):
        raise ConfigError("give either --target-accuracy or --target-recall")
    if target_accuracy is not None:
        return Target("accuracy", target_accuracy)
    if not workload.task.can_skip:
        raise ConfigError(
            f"task {workload.spec.task} has no redundant value; use --target-accuracy"
        )
    return Target("recall", target_recall or 0.0)


def need_tensorflow(what: str) -> None:
    """Raise ConfigError if TensorFlow is not installed. what: to do instead."""
    if importlib.util.find_spec("tensorflow") is None:
        raise ConfigError(f"TensorFlow is not installed; run 'make convert-env'{what}")
