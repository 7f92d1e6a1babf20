"""The gate: filter, policy, cache and executor around an expensive model."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from infi_edge.budget import Allowance, OverBudget
from infi_edge.bundle import Manifest, operating_point
from infi_edge.cache import Eviction, ReuseCache
from infi_edge.capture.mask import Mask
from infi_edge.errors import ConfigError, SourceError
from infi_edge.filter import InputFilter
from infi_edge.policy import Knobs, Policy
from infi_edge.preprocess import ImageSpec, Spec
from infi_edge.preprocess.image import reduced_frame
from infi_edge.scene import watch_for
from infi_edge.tasks import Task, Value
from infi_edge.types import Action, Decision, Result, Sample
from infi_edge.workload import Infer, Workload, WorkloadSpec, model_identity, to_frame

SCENE_CHANGES = "the scene changes"


def check_model(manifest: Manifest, model: str, version: str = "", allow: bool = False) -> None:
    """Raise ConfigError unless `model` is the one the bundle was trained for, or `allow`."""
    info = manifest.workload
    if info.task and not allow and model_identity(model, version) != info.model_identity:
        raise ConfigError(
            f"the bundle was trained for another model ({info.model}), not for {model}; "
            "train a filter for this one, or allow it with --allow-other-model "
            "(allow_other = true in a configuration)"
        )


def workload_spec(manifest: Manifest) -> WorkloadSpec:
    """Return the bundle's workload as text.

    A bundle without a task (not calibrated yet) gives what the model returns, as it is.
    """
    info = manifest.workload
    if not info.task:
        return WorkloadSpec("value", "raw", modality=manifest.modality)
    return WorkloadSpec(info.task, info.decoder, info.same, tuple(info.labels), manifest.modality)


def workload_for(
    manifest: Manifest,
    model: str | Path | Callable[[Any], Any],
    *,
    model_version: str = "",
    allow_other_model: bool = False,
    threads: int = 1,
) -> Workload:
    """Return the workload of a bundle around `model`.

    Raises ConfigError if `model` is named and not the one the bundle was trained for (a function
    object has no name to check), unless allow_other_model.
    """
    if not callable(model):
        check_model(manifest, str(model), model_version, allow_other_model)
    return Workload(model, workload_spec(manifest), threads)


class Gate:
    """Decides per input whether to SKIP it, REUSE an answer, or INFER.

        gate = Gate(load_filter("person.infi"), infer="model.tflite")
        result = gate(frame)              # .value .action .score .age_s

    Whatever goes wrong in the filter, the input is inferred and counted in `stats`.
    """

    def __init__(
        self,
        input_filter: InputFilter,
        infer: str | Path | Callable[[Any], Any] | Infer,
        *,
        target_accuracy: float | None = None,
        target_recall: float | None = None,
        knobs: Knobs | None = None,
        enabled: bool = True,
        cache_entries: int = 4096,
        cache_bytes: int = 8 << 20,
        cache_age_s: float | None = None,
        eviction: Eviction = "oldest",
        allow_other_model: bool = False,
        threads: int = 1,
        mask: Mask | None = None,
        scene_change: bool = False,
        allowance: Allowance | None = None,
    ) -> None:
        """infer: a .tflite path, or a callable input -> outputs (the bundle decodes them).

        target_accuracy, target_recall: another row of the bundle's table than its own choice.
        knobs: instead of a row. enabled False: everything is inferred. mask: of pictures, for
        filter and model alike. scene_change: pass inputs through while the whole picture changes.
        allowance: of inferences; over it the last answer is given again, then OverBudget raised.
        Raises ConfigError or ExecutorError if the parts do not fit.
        """
        manifest = input_filter.manifest
        self._filter = input_filter
        self._workload = (
            infer
            if isinstance(infer, Infer)
            else workload_for(manifest, infer, allow_other_model=allow_other_model, threads=threads)
        )
        if knobs is None:
            knobs = operating_point(manifest, target_accuracy, target_recall).knobs
        self.cache = ReuseCache(
            manifest.filter.dim, cache_entries, cache_bytes, cache_age_s, eviction
        )
        self.policy = Policy(
            knobs, input_filter.head, self.cache, self._workload.same, self._workload.task.empty
        )
        if mask and not isinstance(input_filter.spec, ImageSpec):
            raise ConfigError(f"masks are for single pictures, not for {manifest.modality}")
        self.enabled = enabled
        self.stats: Counter[str] = Counter()
        self.scene = watch_for(input_filter.spec) if scene_change else None
        self.filter_s = self.infer_s = 0.0
        self._mask = mask or None
        self._allowance = allowance
        self._answered: tuple[Value, float] | None = None
        self._count = 0

    @property
    def task(self) -> Task:
        """What reads the model's outputs."""
        return self._workload.task

    @property
    def spec(self) -> Spec:
        """What the filter's inputs are."""
        return self._filter.spec

    def __call__(self, data: Any, time_s: float | None = None) -> Result:
        """Answer one input.

        data: an input of the bundle's modality (see `types.Sample`), or a Sample. time_s: seconds
        of the stream, monotonic; default: the monotonic clock. Raises ExecutorError if the model
        fails and SourceError if the input cannot be decoded; nothing is cached from an error.
        """
        if isinstance(data, Sample):
            sample = data
        else:
            now_s = time.monotonic() if time_s is None else time_s
            sample = Sample(data, now_s, self._count)
        self._count += 1
        begun_s = time.perf_counter()
        decision, embedding = self._decide(sample)
        decided_s = time.perf_counter()
        self.filter_s, self.infer_s = decided_s - begun_s, 0.0
        scene_change, degraded = decision.why == SCENE_CHANGES, False
        value = decision.value
        if decision.action is Action.INFER:
            if self._allowance is None or self._allowance.take():
                value = self._infer(sample, embedding)
                self.infer_s = time.perf_counter() - decided_s
            else:
                decision, degraded = self._last_answer(sample, decision), True
                value = decision.value
        self.stats[decision.action.value] += 1
        return Result(
            value,
            decision.action,
            decision.why,
            sample.index,
            sample.time_s,
            sample.source,
            decision.score,
            decision.p_changed,
            decision.age_s,
            decision.distance,
            decision.votes,
            scene_change=scene_change,
            degraded=degraded,
        )

    def take_over(self, other: Gate) -> None:
        """Go on where a gate of the same bundle, model and source stands: its answers are kept,
        as far as the bounds of this gate's cache let them."""
        if self.cache.bounds == other.cache.bounds:
            self.cache = self.policy.cache = other.cache
        else:
            self.cache.adopt(other.cache)
        self.policy.follow(other.policy)
        self._answered = other._answered
        if self.scene is not None and other.scene is not None:
            self.scene = other.scene

    def warm_up(self, data: Any) -> None:
        """Run the filter once and forget it: a first pass is slow and must not count."""
        self._filter(data)

    def _decide(self, sample: Sample) -> tuple[Decision, np.ndarray | None]:
        if not self.enabled:
            return Decision(Action.INFER, "the gate is disabled"), None
        try:
            tensor = self._filter.spec.tensor(self._seen(sample.data))
            score, embedding = self._filter.embed_tensor(tensor)
            if score is not None and not math.isfinite(score):
                raise ValueError("the filter's score is not a number")
            if self.scene is not None and self.scene.changing(tensor, sample.time_s):
                return Decision(Action.INFER, SCENE_CHANGES, score=score), embedding
            return self.policy.decide(score, embedding, sample.time_s), embedding
        except Exception as error:  # fail open: whatever a filter does, the input is inferred
            self.stats["filter_error"] += 1
            return Decision(Action.INFER, f"filter error: {error}"), None

    def masked(self, data: Any) -> Any:
        """Return an input as the model sees it.

        Raises SourceError if there is a mask and it cannot be laid on what is no picture.
        """
        return data if self._mask is None else self._mask(_picture(to_frame(data)))

    def _seen(self, data: Any) -> Any:
        """What the filter sees of an input."""
        spec = self._filter.spec
        if self._mask is None or not isinstance(spec, ImageSpec):
            return data
        return self._mask(_picture(reduced_frame(data, spec) if isinstance(data, bytes) else data))

    def _last_answer(self, sample: Sample, decision: Decision) -> Decision:
        """Over budget: the model's last answer, while it is not too old. Raises OverBudget."""
        assert self._allowance is not None
        if self._answered is None:
            raise OverBudget("over budget, and there is no answer to give again")
        value, answered_s = self._answered
        age_s = max(sample.time_s - answered_s, 0.0)
        if age_s > self._allowance.max_stale_s:
            raise OverBudget("over budget, and the last answer is too old to give again")
        why = f"over budget: {decision.why}"
        score, p_changed = decision.score, decision.p_changed
        return Decision(Action.REUSE, why, value, score, p_changed, age_s, votes=1)

    def _infer(self, sample: Sample, embedding: np.ndarray | None) -> Value:
        value = self._workload(self.masked(sample.data))
        self._answered = (value, sample.time_s)
        if embedding is None:
            self.policy.inferred(sample.time_s)
        else:
            self.policy.observe(embedding, value, sample.time_s)
        return value


def _picture(frame: Any) -> np.ndarray:
    """Return a frame that a mask can be laid on. Raises SourceError."""
    if isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim in (2, 3):
        if frame.size:
            return frame
        raise SourceError("a picture without pixels")
    kind = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
    raise SourceError(f"a mask needs a picture, uint8 (H, W, 3), not {kind}")
