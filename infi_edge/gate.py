"""The gate: filter, policy, cache and executor around an expensive model."""

from __future__ import annotations

import logging
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infi_edge.budget import Allowance, OverBudget
from infi_edge.bundle import Manifest, operating_point
from infi_edge.cache import Eviction, ReuseCache
from infi_edge.capture.mask import Mask
from infi_edge.config import OffloadConfig
from infi_edge.errors import ConfigError, SourceError
from infi_edge.executors.endpoint import is_endpoint
from infi_edge.executors.head import Head
from infi_edge.executors.offload import open_workload
from infi_edge.executors.remote import RemoteModel
from infi_edge.filter import InputFilter
from infi_edge.learning.begin import blank_filter, make_learner
from infi_edge.learning.learner import Asked, Learner
from infi_edge.learning.sample import NAME, InputSample, sample_manifest
from infi_edge.learning.settings import LearnSettings
from infi_edge.policy import Inference, Knobs, Policy
from infi_edge.preprocess import ImageSpec, Spec
from infi_edge.preprocess.image import reduced_frame
from infi_edge.scene import watch_for
from infi_edge.tasks import Task, Value
from infi_edge.types import Action, Decision, Result, Sample
from infi_edge.workload import Infer, Workload, WorkloadSpec, model_identity, to_frame

log = logging.getLogger("infi_edge")

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


def check_remote(manifest: Manifest, remote: RemoteModel, allow: bool = False) -> None:
    """Raise ConfigError if a served model is known to be another than the bundle's, unless
    `allow`. A server that does not tell what file it serves is believed, and the log says so."""
    info, identity = manifest.workload, remote.identity
    if not info.task or allow or identity == info.model_identity:
        return
    if re.fullmatch("[0-9a-f]{64}", identity):
        other = re.fullmatch("[0-9a-f]{64}", info.model_identity) is not None
    else:  # of a server only the name is known; it may have moved since
        other = "://" in info.model_identity and info.model != remote.endpoint.model
    if other:
        raise ConfigError(
            f"the bundle was trained for another model ({info.model}) than {remote.endpoint} "
            "serves; serve that one, train a filter for this one, or allow it with "
            "--allow-other-model (allow_other = true in a configuration)"
        )
    log.info(
        "%s does not say which file it serves; the filter was trained for %s",
        remote.endpoint, info.model,
    )  # fmt: skip


def head_for(manifest: Manifest, path: str | None, allow: bool = False) -> Head | None:
    """Return the head that a bundle's filter reads, or None if it reads inputs as they are.

    Raises ConfigError if it is missing, another one (unless `allow`), or not wanted.
    """
    info = manifest.workload
    if path is None:
        if info.head_identity:
            raise ConfigError(
                "the filter reads the features of a partitioned model; give its head with --head "
                "(head = in a configuration, head= of a Gate)"
            )
        return None
    if manifest.modality != "features":
        raise ConfigError(f"the filter reads {manifest.modality}, not features; leave out {path}")
    head = Head(path, info.decoder)
    if info.head_identity and head.identity != info.head_identity and not allow:
        raise ConfigError(f"the bundle was trained for another head than {path}; give that one")
    return head


def workload_for(
    manifest: Manifest,
    model: str | Path | Callable[[Any], Any],
    *,
    model_version: str = "",
    allow_other_model: bool = False,
    threads: int = 1,
    offload: OffloadConfig | None = None,
    head: Head | None = None,
) -> Workload:
    """Return the workload of a bundle around `model`: a file, a function, or a served model's
    address. offload: of a served one. head: of a partitioned model, whose tail `model` is.

    Raises ConfigError if `model` is named and not the one the bundle was trained for (a function
    object has no name to check), unless allow_other_model.
    """

    def check(remote: RemoteModel) -> None:
        check_remote(manifest, remote, allow_other_model)

    model = str(model) if isinstance(model, Path) else model
    if isinstance(model, str) and not is_endpoint(model):
        check_model(manifest, model, model_version, allow_other_model)
    return open_workload(
        model,
        workload_spec(manifest),
        offload=offload,
        check=check,
        whole_input=None if head is None else head.input,
        threads=threads,
    )


@dataclass(slots=True)
class Look:
    """One input as the filter sees it. features: the head's, of a partitioned model.

    decision: where there is nothing to decide (disabled, a filter error, the scene changes).
    cheap: the features a gate learns from, of the `version` of its metric the embedding is of;
    tensor: the filter's own input there.
    """

    sample: Sample
    features: Any = None
    decision: Decision | None = None
    embedding: np.ndarray | None = None
    score: float | None = None
    cheap: np.ndarray | None = None
    version: int = 0
    tensor: np.ndarray | None = None


@dataclass(slots=True)
class Step:
    """One input that was decided on; result: None: it is to be inferred.

    inference: what the policy has noted of it. asked: what a gate that learns has.
    """

    look: Look
    decision: Decision
    result: Result | None = None
    inference: Inference | None = None
    asked: Asked | None = None


class Gate:
    """Decides per input whether to SKIP it, REUSE an answer, or INFER.

        gate = Gate(load_filter("person.infi"), infer="model.tflite")
        result = gate(frame)              # .value .action .score .age_s

    Without a filter it learns one while it serves, and holds the accuracy that is asked for:

        gate = Gate(infer=my_model, task="presence:person", target_accuracy=0.95)

    Whatever goes wrong in the filter, the input is inferred and counted in `stats`.
    """

    def __init__(
        self,
        input_filter: InputFilter | None = None,
        infer: str | Path | Callable[[Any], Any] | Infer | None = None,
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
        scene_change: bool | None = None,
        allowance: Allowance | None = None,
        head: Head | str | Path | None = None,
        task: str | None = None,
        decoder: str | None = None,
        same: str = "exact",
        labels: Sequence[str] = (),
        modality: str = "image",
        preprocess: Spec | None = None,
        learn: bool | LearnSettings | Learner = False,
        state: str | Path | None = None,
    ) -> None:
        """infer: a .tflite path, a served model's address (grpc://HOST:8001/MODEL), or a callable
        input -> outputs (the bundle decodes them).

        target_accuracy, target_recall: another row of the bundle's table than its own choice.
        knobs: instead of a row. enabled False: everything is inferred. mask: of pictures, for
        filter and model alike. scene_change: pass inputs through while the whole picture
        changes (default: where the gate learns).
        allowance: of inferences; over it the last answer is given again, then OverBudget raised.
        head: of a partitioned model, or its file: inputs are its own, and filter and `infer` get
        its features.
        task, decoder, same, labels, modality: the workload as text, where no filter knows it;
        preprocess: what is learned from (default: the modality's own). learn: go on learning with
        the filter that is given; settings of learning, or a learner. state: a folder where what
        is learned is kept, else it is gone with the process.
        Raises ConfigError or ExecutorError if the parts do not fit.
        """
        if infer is None:
            raise ConfigError("a gate needs a model: give it with infer=")
        learns = learn is not False or input_filter is None
        if input_filter is None:
            input_filter = blank_filter(
                infer,
                task=task,
                target_accuracy=target_accuracy,
                decoder=decoder,
                same=same,
                labels=labels,
                modality=modality,
                preprocess=preprocess,
            )
            allow_other_model = True
        manifest = input_filter.manifest
        # Whoever brings a workload may bring features, too: a replay runs the head beforehand.
        if not isinstance(head, Head) and not (head is None and isinstance(infer, Infer)):
            head = head_for(manifest, None if head is None else str(head), allow_other_model)
        self._filter = input_filter
        self._workload = (
            infer
            if isinstance(infer, Infer)
            else workload_for(
                manifest, infer, allow_other_model=allow_other_model, threads=threads, head=head
            )
        )
        point = operating_point(manifest, target_accuracy, target_recall)
        if knobs is None:
            knobs = point.knobs
        self.cache = ReuseCache(
            manifest.filter.dim, cache_entries, cache_bytes, cache_age_s, eviction
        )
        self.policy = Policy(
            knobs, input_filter.head, self.cache, self._workload.same, self._workload.task.empty
        )
        self.learner: Learner | None = None
        self.sample: InputSample | None = None
        if mask and head is None and not isinstance(input_filter.spec, ImageSpec):
            raise ConfigError(f"masks are for single pictures, not for {manifest.modality}")
        self.enabled = enabled
        self.stats: Counter[str] = Counter()
        self.scene = watch_for(input_filter.spec) if scene_change else None
        self.filter_s = self.infer_s = 0.0
        self._mask = mask or None
        self._head = head
        self._allowance = allowance
        self._answered: tuple[Value, float] | None = None
        self._count = 0
        self._seen_s: float | None = None
        if isinstance(learn, Learner):
            self.learner = learn
        elif learns:
            if target_accuracy is None and point.measure != "accuracy":
                raise ConfigError("what learns holds an accuracy: say which with target_accuracy=")
            settings = learn if isinstance(learn, LearnSettings) else LearnSettings()
            if settings.sample_bytes and state is None:
                raise ConfigError("a sample is kept in a folder: name it with state=")
            self.learner = make_learner(
                input_filter,
                self._workload.task,
                self._workload.same,
                target_accuracy or point.target,
                knobs,
                settings,
                cache_age_s,
                None if state is None else Path(state),
            )
            if state is not None and settings.sample_bytes:
                about = sample_manifest(manifest)
                self.sample = InputSample(Path(state) / NAME, about, settings.sample_bytes)
        if self.learner is not None and scene_change is None:
            self.scene = watch_for(input_filter.spec)

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Keep what was learned, and end the thread it was learned in. Gates that do not learn
        have nothing to close."""
        if self.learner is not None:
            self.learner.close(self._seen_s)
        if self.sample is not None:
            self.sample.close()

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
        step = self.decide(self.look(data, time_s))
        assert step is not None  # nothing is in flight
        if step.result is not None:
            return step.result
        begun_s = time.perf_counter()
        try:
            value = self._workload(self.inferred_data(step))
        except BaseException:
            self.fail(step)
            raise
        self.infer_s = time.perf_counter() - begun_s
        return self.answer(step, value)

    def look(self, data: Any, time_s: float | None = None) -> Look:
        """Take one input and run the filter on it. Arguments and errors as for the gate itself."""
        if isinstance(data, Sample):
            sample = data
        else:
            now_s = time.monotonic() if time_s is None else time_s
            sample = Sample(data, now_s, self._count)
        self._count += 1
        begun_s = time.perf_counter()
        features = None if self._head is None else self._head(self.masked(sample.data))
        look = self._look(sample, features)
        self.filter_s, self.infer_s = time.perf_counter() - begun_s, 0.0
        return look

    def decide(self, look: Look, in_flight: Iterable[Step] = ()) -> Step | None:
        """Decide on an input: a step with its result, or one to be inferred.

        in_flight: earlier steps whose answers have not come, the newest first. None: an answer
        among them would be reused; decide again when it is here. Raises OverBudget.
        """
        begun_s = time.perf_counter()
        asked = None
        if look.decision is not None:
            decision: Decision | None = look.decision
        elif self.learner is None:
            decision = self._decide(look, in_flight)
        else:
            decision, asked = self._decide_and_learn(self.learner, look, in_flight)
        self.filter_s += time.perf_counter() - begun_s
        if decision is None:
            return None
        sample = look.sample
        if decision.action is not Action.INFER:
            self.stats[decision.action.value] += 1
            return Step(look, decision, self._result(sample, decision))
        if self._allowance is not None and not self._allowance.take():
            if self.learner is not None and asked is not None:
                self.learner.fail(asked)
            result = self.last_answer(look, decision, "over budget", self._allowance.max_stale_s)
            if result is None:
                lacks = "there is no answer" if self._answered is None else "the last is too old"
                raise OverBudget(f"over budget, and {lacks} to give again")
            return Step(look, decision, result)
        return Step(look, decision, None, self.policy.inferred(sample.time_s), asked)

    def inferred_data(self, step: Step) -> Any:
        """What the model gets of a step: the input, masked; or the head's features.

        Raises SourceError if a mask cannot be laid on it.
        """
        look = step.look
        return self.masked(look.sample.data) if look.features is None else look.features

    def answer(self, step: Step, value: Value) -> Result:
        """Take the model's answer to a step; in the order of the inputs."""
        look = step.look
        self._answered = (value, look.sample.time_s)
        if self.learner is not None:
            self._learn(self.learner, step, value)
        elif look.embedding is not None:
            self.policy.store(look.embedding, value, look.sample.time_s)
        self.stats[Action.INFER.value] += 1
        if self.sample is not None and look.tensor is not None:
            data = look.sample.data if look.features is None else look.features
            self.sample.offer(look.sample.time_s, look.tensor, data, value)
        audited = step.asked is not None and step.asked.kind == "audit"
        return self._result(look.sample, step.decision, value, audited=audited)

    def fail(self, step: Step) -> None:
        """Note that a step has no answer: the next input is decided as if it had not been asked."""
        if step.inference is not None:
            self.policy.not_inferred(step.inference)
        if self.learner is not None and step.asked is not None:
            self.learner.fail(step.asked)

    def last_answer(
        self, look: Look, decision: Decision, why: str, max_stale_s: float
    ) -> Result | None:
        """The model's last answer, degraded, instead of an inference; None without one that young.

        why: what hinders the inference.
        """
        if self._answered is None:
            return None
        value, answered_s = self._answered
        age_s = max(look.sample.time_s - answered_s, 0.0)
        if age_s > max_stale_s:
            return None
        score, p_changed = decision.score, decision.p_changed
        stale = Decision(
            Action.REUSE, f"{why}: {decision.why}", value, score, p_changed, age_s, votes=1
        )
        self.stats[Action.REUSE.value] += 1
        return self._result(look.sample, stale, degraded=True)

    def take_over(self, other: Gate) -> None:
        """Go on where a gate of the same bundle, model and source stands: its answers are kept,
        as far as the bounds of this gate's cache let them."""
        if self.learner is not None and other.learner is not None:
            self.learner.close()
            self.learner, self._seen_s = other.learner, other._seen_s
            self.sample = other.sample
            self._go_on(self.learner)
            self._answered, self.scene = other._answered, other.scene
            return
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
        if self.learner is not None:
            self.learner.look(self._filter.spec.tensor(data))

    def _look(self, sample: Sample, features: Any) -> Look:
        if not self.enabled:
            return Look(sample, features, Decision(Action.INFER, "the gate is disabled"))
        try:
            seen = self._seen(sample.data) if features is None else features
            tensor = self._filter.spec.tensor(seen)
            if self.learner is not None:
                return self._look_and_learn(self.learner, sample, features, tensor)
            score, embedding = self._filter.embed_tensor(tensor)
            if score is not None and not math.isfinite(score):
                raise ValueError("the filter's score is not a number")
            if self.scene is not None and self.scene.changing(tensor, sample.time_s):
                decision = Decision(Action.INFER, SCENE_CHANGES, score=score)
                return Look(sample, features, decision, embedding, score)
        except Exception as error:
            return Look(sample, features, self._filter_failed(error))
        return Look(sample, features, None, embedding, score)

    def _look_and_learn(
        self, learner: Learner, sample: Sample, features: Any, tensor: np.ndarray
    ) -> Look:
        if self._seen_s is None and learner.keeper is not None:
            learner.keeper.restore(sample.time_s)
        self._seen_s = sample.time_s
        if self.scene is not None and self.scene.changing(tensor, sample.time_s):
            learner.scene_changed(SCENE_CHANGES)
        score, cheap, embedding = learner.look(tensor)
        self._go_on(learner)
        return Look(sample, features, None, embedding, score, cheap, learner.version, tensor)

    def _go_on(self, learner: Learner) -> None:
        """Take what the learner has in force now."""
        self.policy, self.cache = learner.policy, learner.policy.cache

    def _decide(self, look: Look, in_flight: Iterable[Step]) -> Decision | None:
        embedding, now_s = look.embedding, look.sample.time_s
        assert embedding is not None
        try:
            asked = list(_asked(in_flight, now_s))
            decision = self.policy.preview(look.score, embedding, now_s, asked)
        except Exception as error:
            look.embedding = None
            look.decision = self._filter_failed(error)
            return look.decision
        if decision is not None:
            self.policy.count()
        return decision

    def _decide_and_learn(
        self, learner: Learner, look: Look, in_flight: Iterable[Step]
    ) -> tuple[Decision | None, Asked | None]:
        now_s = look.sample.time_s
        try:
            self._renew(learner, look)
            asked = list(_asked(self._renewed(learner, in_flight), now_s))
            assert look.embedding is not None
            decided = learner.decide(look.score, look.embedding, now_s, asked)
        except Exception as error:
            look.embedding = look.cheap = None
            look.decision = self._filter_failed(error)
            return look.decision, None
        if decided is None:
            return None, None
        self.policy.count()
        return decided

    def _renew(self, learner: Learner, look: Look) -> None:
        """Embed an input anew if the metric has changed since: two versions never mix."""
        if look.cheap is not None and look.version != learner.version:
            look.embedding, look.version = learner.embed(look.cheap), learner.version
        self._go_on(learner)

    def _renewed(self, learner: Learner, steps: Iterable[Step]) -> Iterator[Step]:
        for step in steps:
            self._renew(learner, step.look)
            yield step

    def _learn(self, learner: Learner, step: Step, value: Value) -> None:
        look = step.look
        if step.asked is None or look.cheap is None:
            return
        try:
            learner.answered(look.score, look.cheap, look.sample.time_s, value, step.asked)
        except Exception as error:  # a user's own `same` or task; the answer itself is good
            self.stats["learn_error"] += 1
            if self.stats["learn_error"] == 1:
                log.warning("nothing was learned of an input: %r", error)
        self._go_on(learner)

    def _result(
        self,
        sample: Sample,
        decision: Decision,
        value: Value = None,
        degraded: bool = False,
        audited: bool = False,
    ) -> Result:
        live = None if self.learner is None else self.learner.live_bounds
        recall = None if self.learner is None or live is None else self.learner.recall_bounds
        return Result(
            value if decision.action is Action.INFER else decision.value,
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
            scene_change=decision.why.endswith(SCENE_CHANGES),
            degraded=degraded,
            audited=audited,
            live_accuracy=None if live is None else live.estimate,
            live_bound=None if live is None else live.low,
            live_recall=None if recall is None else recall.estimate,
            live_recall_bound=None if recall is None else recall.low,
        )

    def _filter_failed(self, error: Exception) -> Decision:
        """Fail open: whatever a filter does, the input is inferred."""
        self.stats["filter_error"] += 1
        return Decision(Action.INFER, f"filter error: {error}")

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


def _asked(steps: Iterable[Step], now_s: float) -> Iterator[tuple[np.ndarray, float]]:
    """Embedding and age of what is in flight."""
    for step in steps:
        if step.look.embedding is not None:
            yield step.look.embedding, max(now_s - step.look.sample.time_s, 0.0)


def _picture(frame: Any) -> np.ndarray:
    """Return a frame that a mask can be laid on. Raises SourceError."""
    if isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim in (2, 3):
        if frame.size:
            return frame
        raise SourceError("a picture without pixels")
    kind = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
    raise SourceError(f"a mask needs a picture, uint8 (H, W, 3), not {kind}")
