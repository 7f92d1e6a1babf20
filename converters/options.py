"""What the commands of `infi-convert` have in common."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from converters.calibrate import Target
from infi_edge.bundle import WorkloadInfo
from infi_edge.capture.recorded import RecordingManifest
from infi_edge.errors import ConfigError, ExecutorError
from infi_edge.executors.head import Head
from infi_edge.interpreter import TensorSpec
from infi_edge.labels import answers_fit
from infi_edge.preprocess import FeaturesSpec, Spec, change_spec
from infi_edge.workload import Workload, WorkloadSpec, find_labels, model_identity

MAP_SIDE = 24


def make_workload(
    options: dict[str, str | None],
    modality: str,
    recorded: RecordingManifest | None = None,
    whole_input: TensorSpec | None = None,
) -> tuple[Workload, str]:
    """Return (workload, model identity) of the command line. Raises InfiEdgeError.

    recorded: of the recording, whose workload then fills in what is not said, in `options` too.
    Without --model its answers serve, and the workload cannot be run. whole_input: of the tail of
    a partitioned model.
    """
    if recorded is not None:
        for name in ("decoder", "task", "same"):
            options[name] = options[name] or getattr(recorded.workload, name)
    model, task = options["model"], options["task"]
    if model is None and recorded is not None:
        return _answered(options, modality, recorded)
    if model is None or task is None:
        raise ConfigError("give --model and --task: what to run, and what its outputs mean")
    identity = model_identity(model, options["model_version"] or "")
    if recorded is not None and options["labels"] is None:
        labels = tuple(recorded.workload.labels)
    else:
        labels = find_labels(model, options["labels"])
    spec = WorkloadSpec(task, options["decoder"], options["same"] or "exact", labels, modality)
    return Workload(model, spec, whole_input=whole_input), identity


def _answered(
    options: dict[str, str | None], modality: str, recorded: RecordingManifest
) -> tuple[Workload, str]:
    """The workload of a recording whose answers are in it, without the model."""
    info = recorded.workload
    labels = tuple(info.labels)
    if options["labels"] is not None:
        labels = find_labels("", options["labels"])
    spec = WorkloadSpec(
        str(options["task"]), options["decoder"], str(options["same"]), labels, modality
    )
    if not answers_fit(recorded, info.model_identity, spec):
        raise ConfigError(
            f"the answers in the recording are to decoder {info.decoder}, task {info.task} and its "
            f"own labels; leave out what differs, or run the model anew: --model {info.model}"
        )

    def absent(data: Any) -> Any:
        raise ExecutorError(f"give the model with --model ({info.model})")

    options["model"] = info.model
    return Workload(absent, spec), info.model_identity


def check_output(path: str) -> None:
    """Raise ConfigError if a file cannot be written there."""
    if Path(path).is_dir():
        raise ConfigError(f"{path} is a folder; name a file in it")
    if not Path(path).absolute().parent.is_dir():
        raise ConfigError(f"{path} cannot be written: its folder does not exist")


def workload_info(
    options: dict[str, str | None],
    workload: Workload,
    identity: str,
    head: Head | None = None,
    recorded: RecordingManifest | None = None,
) -> WorkloadInfo:
    """What the bundle says of its workload. recorded: of a recording, which may be of features."""
    head_identity = "" if head is None else head.identity
    if head is None and recorded is not None and recorded.modality == "features":
        head_identity = recorded.workload.head_identity
    return WorkloadInfo(
        model=Path(str(options["model"])).name,
        model_identity=identity,
        decoder=workload.spec.decoder or "raw",
        task=workload.spec.task,
        same=workload.spec.same,
        labels=list(workload.spec.labels),
        head_identity=head_identity,
    )


def open_head(
    path: str | None, options: dict[str, str | None], modality: str | None, settings: dict[str, Any]
) -> tuple[Head | None, Spec | None]:
    """Return (head, what its features are to a filter) of --head, or (None, None).

    Large maps are pooled to at most MAP_SIDE cells a side unless the settings say how.
    Raises ConfigError or ExecutorError.
    """
    if path is None:
        return None, None
    if modality not in (None, "features"):
        raise ConfigError(f"--head gives features, not {modality}; leave out --modality")
    head = Head(path, options["decoder"] or "raw")
    shape, kind = head.output.shape[1:], head.output.dtype.name
    if kind not in ("float32", "int8", "uint8", "int32"):
        raise ConfigError(f"{path} gives {kind}; a filter reads float32, int8, uint8 or int32")
    found: dict[str, Any] = {"size": shape, "type": kind}
    if len(shape) == 3 and kind != "int32":
        found["pool"] = -(-max(shape[:2]) // MAP_SIDE)
    return head, change_spec(FeaturesSpec(), {**found, **settings})


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
