"""The gate: filter, policy, cache and executor around an expensive model."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from infi_edge.bundle import Manifest, operating_point
from infi_edge.cache import Eviction, ReuseCache
from infi_edge.errors import ConfigError
from infi_edge.filter import InputFilter
from infi_edge.policy import Knobs, Policy
from infi_edge.tasks import Value
from infi_edge.types import Action, Decision, Result, Sample
from infi_edge.workload import Workload, WorkloadSpec, model_identity


def workload_for(
    manifest: Manifest,
    model: str | Path | Callable[[Any], Any],
    *,
    model_version: str = "",
    allow_other_model: bool = False,
    threads: int = 1,
) -> Workload:
    """Return the workload of a bundle around `model`.

    A bundle without a task (not calibrated yet) gives what the model returns, as it is.
    Raises ConfigError if `model` is named and not the one the bundle was trained for (a function
    object has no name to check), unless allow_other_model.
    """
    info = manifest.workload
    if not info.task:
        return Workload(model, WorkloadSpec("value", "raw", modality=manifest.modality), threads)
    if not callable(model) and not allow_other_model:
        identity = model_identity(str(model), model_version)
        if identity != info.model_identity:
            raise ConfigError(
                f"the bundle was trained for another model ({info.model}), not for {model}; "
                "train a filter for this one, or allow it with --allow-other-model"
            )
    spec = WorkloadSpec(info.task, info.decoder, info.same, tuple(info.labels), manifest.modality)
    return Workload(model, spec, threads)


class Gate:
    """Decides per input whether to SKIP it, REUSE an answer, or INFER.

        gate = Gate(load_filter("person.infi"), infer="model.tflite")
        result = gate(frame)              # .value .action .score .age_s

    Whatever goes wrong in the filter, the input is inferred and counted in `stats`.
    """

    def __init__(
        self,
        input_filter: InputFilter,
        infer: str | Path | Callable[[Any], Any] | Workload,
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
    ) -> None:
        """infer: a .tflite path, or a callable input -> outputs (the bundle decodes them).

        target_accuracy, target_recall: another row of the bundle's table than its own choice.
        knobs: instead of a row. enabled False: everything is inferred.
        Raises ConfigError or ExecutorError if the parts do not fit.
        """
        manifest = input_filter.manifest
        self._filter = input_filter
        self._workload = (
            infer
            if isinstance(infer, Workload)
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
        self.enabled = enabled
        self.stats: Counter[str] = Counter()
        self._count = 0

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
        decision, embedding = self._decide(sample)
        value = decision.value
        if decision.action is Action.INFER:
            value = self._infer(sample, embedding)
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
        )

    def warm_up(self, data: Any) -> None:
        """Run the filter once and forget it: a first pass is slow and must not count."""
        self._filter(data)

    def _decide(self, sample: Sample) -> tuple[Decision, np.ndarray | None]:
        if not self.enabled:
            return Decision(Action.INFER, "the gate is disabled"), None
        try:
            score, embedding = self._filter(sample.data)
            if score is not None and not math.isfinite(score):
                raise ValueError("the filter's score is not a number")
            return self.policy.decide(score, embedding, sample.time_s), embedding
        except Exception as error:  # fail open: whatever a filter does, the input is inferred
            self.stats["filter_error"] += 1
            return Decision(Action.INFER, f"filter error: {error}"), None

    def _infer(self, sample: Sample, embedding: np.ndarray | None) -> Value:
        value = self._workload(sample.data)
        if embedding is None:
            self.policy.inferred(sample.time_s)
        else:
            self.policy.observe(embedding, value, sample.time_s)
        return value
