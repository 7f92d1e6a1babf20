"""Make a gate's learner: from nothing or from a filter, with or without a folder for its state."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from infi_edge.bundle import Manifest, WorkloadInfo
from infi_edge.errors import ConfigError
from infi_edge.filter import InputFilter
from infi_edge.learning.bundle import blank_bundle
from infi_edge.learning.keeper import Keeper
from infi_edge.learning.learner import Learner
from infi_edge.learning.metric import Metric
from infi_edge.learning.settings import LearnSettings
from infi_edge.learning.start import for_learning, from_filter, from_nothing
from infi_edge.learning.worker import AtOnce, Background, Worker
from infi_edge.policy import Knobs
from infi_edge.preprocess import ImageSpec, Spec, TextSpec, VideoSpec
from infi_edge.preprocess.spec import spec_class
from infi_edge.tasks import SameRule, Task
from infi_edge.workload import find_labels, is_callable_name, model_identity

USUAL: dict[str, Callable[[], Spec]] = {"image": ImageSpec, "video": VideoSpec, "text": TextSpec}
"""What is learned from where nothing is said: only where inputs need no description."""


def blank_filter(
    infer: Any,
    *,
    task: str | None,
    target_accuracy: float | None,
    decoder: str | None = None,
    same: str = "exact",
    labels: Sequence[str] = (),
    modality: str = "image",
    preprocess: Spec | None = None,
) -> InputFilter:
    """Return a filter that has learned nothing, of a workload given as text. Raises ConfigError."""
    if task is None or target_accuracy is None:
        raise ConfigError(
            "a gate without a filter learns one: say what of and how well with task= and "
            "target_accuracy=, or give a filter"
        )
    check_target(target_accuracy)
    if preprocess is None:
        if modality not in USUAL:
            raise ConfigError(
                f"inputs of {modality} must be described with preprocess= (rate, window, shape: "
                "AudioSpec, MotionSpec or FeaturesSpec of infi_edge.preprocess)"
            )
        preprocess = USUAL[modality]()
    if not isinstance(preprocess, spec_class(modality)):
        raise ConfigError(f"preprocess= is {type(preprocess).__name__}, which is not of {modality}")
    preprocess = for_learning(preprocess)
    problem = preprocess.problem()
    if problem is not None:
        raise ConfigError(f"preprocess= has an impossible {problem}")
    name, identity = "", ""
    if isinstance(infer, (str, Path)) and "://" not in str(infer):
        name, identity = Path(infer).name, model_identity(str(infer))
        labels = labels or find_labels(str(infer), None)
    if decoder is None and (name == "" or is_callable_name(str(infer))):
        decoder = "raw"
    if decoder is None:
        raise ConfigError(f"model {infer} needs decoder=: what its outputs mean (yolov5, ...)")
    info = WorkloadInfo(
        model=name or "a function",
        model_identity=identity,
        decoder=decoder,
        task=task,
        same=same,
        labels=list(labels),
    )
    return InputFilter(blank_bundle(modality, preprocess, info, target_accuracy))


def check_target(target_accuracy: float) -> None:
    """Raise ConfigError if a target is no accuracy that can be held by filtering."""
    if not 0.0 < target_accuracy < 1.0:
        raise ConfigError(f"a target accuracy of {target_accuracy:g} is not between 0 and 1")


def is_blank(manifest: Manifest) -> bool:
    """Whether a filter has learned nothing: there is nothing to begin with but its modality."""
    point = manifest.calibration.points[manifest.calibration.chosen]
    return point.knobs.reuse_threshold is None and point.knobs.skip_threshold is None


def make_learner(
    trained: InputFilter,
    task: Task,
    same: SameRule,
    target_accuracy: float,
    knobs: Knobs,
    settings: LearnSettings | None = None,
    cache_age_s: float | None = None,
    folder: Path | None = None,
    source: str = "",
    at_once: bool = False,
) -> Learner:
    """Return a learner that fits in a thread of its own; or at once, for a recording that is not
    played at its pace.

    knobs: of the filter's table; their caps hold. folder: where its state is kept; source: what
    it belongs to, beside the filter's workload. Raises ConfigError.
    """
    settings = settings or LearnSettings()
    problem = settings.problem()
    if problem is not None:
        raise ConfigError(f"learn: {problem}")
    check_target(target_accuracy)
    manifest = trained.manifest
    start = from_nothing(trained.spec) if is_blank(manifest) else from_filter(trained, knobs)
    worker: Worker[Metric] = AtOnce() if at_once else Background(settings.cpu_share)
    caps = Knobs(
        max_consecutive_filtered=knobs.max_consecutive_filtered, heartbeat_s=knobs.heartbeat_s
    )
    learner = Learner(start, task, same, target_accuracy, worker, settings, caps, cache_age_s)
    if folder is not None:
        facts = state_facts(manifest, source)
        learner.keeper = Keeper(folder, identity_of(facts), facts, learner)
    return learner


def state_facts(manifest: Manifest, source: str) -> dict[str, Any]:
    """What a learned state belongs to, as JSON: modality, inputs, workload and source."""
    blank = is_blank(manifest)
    return {
        "modality": manifest.modality,
        "preprocess": msgspec.to_builtins(manifest.preprocess),
        "workload": msgspec.to_builtins(manifest.workload),
        "source": source,
        "from_filter": None if blank else msgspec.to_builtins(manifest.filter),
        "filter_hash": "" if blank else identity_of(msgspec.to_builtins(manifest)),
    }


def identity_of(facts: object) -> str:
    """Return what tells facts (JSON) apart."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
