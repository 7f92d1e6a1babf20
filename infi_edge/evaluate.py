"""What would a filter save here? Replay it over a recording beside the model's own answers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from infi_edge.bandwidth import Bandwidth, bandwidth, jpeg_sizes, request_sizes
from infi_edge.bundle import Bundle, OperatingPoint
from infi_edge.capture.replay import Recording
from infi_edge.errors import SourceError
from infi_edge.executors.offload import OffloadWorkload
from infi_edge.filter import InputFilter
from infi_edge.gate import Gate
from infi_edge.labels import Progress, label, stream_times
from infi_edge.learning.begin import is_blank
from infi_edge.learning.replay import Learned, replay_learning
from infi_edge.learning.settings import LearnSettings
from infi_edge.preprocess import Spec
from infi_edge.replay import (
    INFERRED,
    REUSED,
    SKIPPED,
    Embedded,
    Outcome,
    Truth,
    every_nth_filtering_rate,
    make_truth,
    replay,
)
from infi_edge.types import Action, Sample
from infi_edge.workload import Workload

OVERHEAD_REQUESTS = 5


@dataclass(frozen=True, slots=True)
class Timing:
    """A timed run of the loop. Milliseconds are means per input.

    throughput_ratio: measured, the model on every input against the gated loop, decode in both.
    predicted_throughput_ratio: (decode + model) / (decode + filter + (1 - r) * model), the
    paper's cost formula (InFi, MobiCom 2022, 2.2) with decoding on both sides.
    """

    throughput_ratio: float
    predicted_throughput_ratio: float
    model_ms: float
    filter_ms: float
    decode_ms: float
    timed_inputs: int
    timed_filtering_rate: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures of one filter over one stretch; recall None where the task has no redundant value.

    ideal_skip_filtering_rate: of a SKIP that filters all redundant inputs and errs as often as an
    accuracy target allows (InFi, MobiCom 2022, 6.2); None without redundant values.
    bandwidth: where the model is on a server.
    """

    inputs: int
    inferred: int
    skipped: int
    reused: int
    filtering_rate: float
    accuracy: float
    recall: float | None
    throughput_ratio: float
    predicted_throughput_ratio: float
    model_ms: float
    filter_ms: float
    decode_ms: float
    timed_inputs: int
    target_accuracy: float | None
    target_recall: float | None
    every_nth_filtering_rate: float
    ideal_skip_filtering_rate: float | None
    bandwidth: Bandwidth | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningEvaluation(Evaluation):
    """The same of a gate that learns meanwhile: warm-up and audits count as inferred.

    audited: inputs inferred for the audit alone. warm_up: inputs until the first was filtered.
    live_accuracy, live_recall: what the gate itself makes of its audits; live_bound: accuracy is
    at least this, at confidence 0.95. fits, learn_cpu_s: what learning took. failed_open: times it
    went back to inferring everything. timed_filtering_rate: of the timed inputs, which are the
    first: there it has learned least.
    """

    audited: int
    warm_up: int
    live_accuracy: float
    live_bound: float
    live_high: float
    live_recall: float | None
    live_recall_bound: float | None
    fits: int
    failed_open: int
    learn_cpu_s: float
    timed_filtering_rate: float


def embed(input_filter: InputFilter, samples: Iterable[Sample]) -> Embedded:
    """Run a filter over samples. An input it fails on would be inferred; here it raises."""
    scores, embeddings = [], []
    for sample in samples:
        score, embedding = input_filter(sample.data)
        scores.append(score)
        embeddings.append(embedding)
    has_scores = bool(scores) and scores[0] is not None
    return Embedded(
        np.stack(embeddings), np.array(scores) if has_scores else None, input_filter.head
    )


def labelled(
    recording: Recording,
    workload: Workload,
    identity: str,
    first: int,
    last: int,
    progress: Progress | None = None,
) -> Truth:
    """Return what the model says on a part of a recording, with the task's rules."""
    values = label(recording, workload, identity, first, last, progress)
    times_s = stream_times(recording, first, last)
    return make_truth(values, times_s, workload.task, workload.same)


class Opened:
    """Samples whose source is open and at its place: what a timed loop may start from."""

    def __init__(self, recording: Recording, first: int, last: int) -> None:
        self._rest = recording.samples(first, last)
        self.first = next(self._rest)

    def __iter__(self) -> Iterator[Sample]:
        return itertools.chain([self.first], self._rest)


def time_loop(
    recording: Recording, first: int, last: int, gate: Gate, workload: Workload
) -> Timing:
    """Time the model on every input, then the gated loop, over the same inputs, cold cache."""
    spent = {"decode": 0.0, "model": 0.0}

    def timed(samples: Iterator[Sample]) -> Iterator[Sample]:
        while True:
            began = time.perf_counter()
            sample = next(samples, None)
            spent["decode"] += time.perf_counter() - began
            if sample is None:
                return
            yield sample

    samples = Opened(recording, first, last)
    workload(samples.first.data)
    gate.warm_up(samples.first.data)
    count = 0
    began = time.perf_counter()
    for sample in timed(iter(samples)):
        started = time.perf_counter()
        workload(sample.data)
        spent["model"] += time.perf_counter() - started
        count += 1
    plain_s = time.perf_counter() - began

    inferred = 0
    filter_s: list[float] = []
    samples = Opened(recording, first, last)
    began = time.perf_counter()
    for sample in samples:
        started = time.perf_counter()
        infers = gate(sample).action is Action.INFER
        inferred += infers
        if not infers:
            filter_s.append(time.perf_counter() - started)
    gated_s = time.perf_counter() - began

    decode_s, model_s = spent["decode"] / count, spent["model"] / count
    gate_s = float(np.mean(filter_s)) if filter_s else gated_s / count - model_s - decode_s
    predicted = (decode_s + model_s) / (decode_s + gate_s + inferred / count * model_s)
    return Timing(
        plain_s / gated_s,
        predicted,
        model_s * 1e3,
        gate_s * 1e3,
        decode_s * 1e3,
        count,
        1.0 - inferred / count,
    )


def evaluate(
    recording: Recording,
    input_filter: InputFilter,
    point: OperatingPoint,
    workload: Workload,
    identity: str,
    first: int,
    last: int,
    *,
    timed_inputs: int = 200,
    progress: Progress | None = None,
) -> tuple[Evaluation, Truth, Outcome]:
    """Replay a filter at an operating point over inputs first..last-1, and time the real loop.

    identity: of the model, for the label cache. Raises InfiEdgeError.
    """
    truth = labelled(recording, workload, identity, first, last, progress)
    embedded = embed(input_filter, recording.samples(first, last))
    outcome = replay(point.knobs, truth, embedded)
    gate = Gate(input_filter, workload, knobs=point.knobs)
    timing = time_loop(recording, first, min(last, first + timed_inputs), gate, workload)
    by_recall = point.measure == "recall"
    report = _report(recording, workload, first, truth, outcome, timing, point.target, by_recall)
    return report, truth, outcome


def evaluate_learning(
    recording: Recording,
    start: Bundle,
    target_accuracy: float,
    workload: Workload,
    identity: str,
    first: int,
    last: int,
    *,
    seed: int = 0,
    timed_inputs: int = 200,
    progress: Progress | None = None,
) -> tuple[LearningEvaluation, Truth, Learned]:
    """Replay a gate that learns over inputs first..last-1, from the first one on, and time a real
    one over the first of them.

    start: what it begins with; a blank bundle: with nothing. seed: of the audit's coin. Raises
    InfiEdgeError.
    """
    trained = InputFilter(start)
    _check_first(recording, first, trained.spec)
    truth = labelled(recording, workload, identity, first, last, progress)
    learned = replay_learning(
        truth,
        _Tensors(recording, trained.spec, first, last),
        trained.spec,
        target_accuracy=target_accuracy,
        seed=seed,
        bundle=None if is_blank(start.manifest) else start,
    )
    settings = LearnSettings(seed=seed)
    with Gate(trained, workload, target_accuracy=target_accuracy, learn=settings) as gate:
        timing = time_loop(recording, first, min(last, first + timed_inputs), gate, workload)
    report = _report(
        recording, workload, first, truth, learned, timing, target_accuracy, by_recall=False
    )
    learner = learned.learner
    bounds, recall = learner.live.accuracy(), learner.recall
    more = LearningEvaluation(
        **{field.name: getattr(report, field.name) for field in fields(report)},
        audited=int(learned.audited.sum()),
        warm_up=learned.warm_up,
        live_accuracy=bounds.estimate,
        live_bound=bounds.low,
        live_high=bounds.high,
        live_recall=None if recall is None else recall.estimate,
        live_recall_bound=None if recall is None else recall.low,
        fits=learned.refits,
        failed_open=learner.counts["failed_open"],
        learn_cpu_s=learned.learn_cpu_s,
        timed_filtering_rate=timing.timed_filtering_rate,
    )
    return more, truth, learned


class _Tensors(Sequence[np.ndarray]):
    """A recording's inputs as the filter's tensors, each made when it is asked for, in order."""

    def __init__(self, recording: Recording, spec: Spec, first: int, last: int) -> None:
        self._count, self._spec = last - first, spec
        self._rest = enumerate(recording.samples(first, last))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        place, sample = next(self._rest)
        if place != index:
            raise IndexError(f"input {index} is asked for, input {place} is next")
        return _tensor(self._spec, sample)[0]


def _tensor(spec: Spec, sample: Sample) -> np.ndarray:
    try:
        return spec.tensor(sample.data)
    except ValueError as error:
        raise SourceError(f"{sample.source}, input {sample.index}: {error}") from error


def _check_first(recording: Recording, first: int, spec: Spec) -> None:
    """Raise SourceError if the first input is of another kind, before a model runs on them all."""
    for sample in recording.samples(first, first + 1):
        _tensor(spec, sample)


def _report(
    recording: Recording,
    workload: Workload,
    first: int,
    truth: Truth,
    outcome: Outcome,
    timing: Timing,
    target: float,
    by_recall: bool,
) -> Evaluation:
    every_nth = every_nth_filtering_rate(truth, target, by_recall)
    moved = None
    if isinstance(workload, OffloadWorkload):
        last = first + len(truth)
        sizes = request_sizes(recording, workload, first, last)
        jpegs = jpeg_sizes(recording, workload.remote.config.jpeg_quality, first, last)
        overhead = _overhead(workload, recording, first, float(sizes[0]))
        moved = bandwidth(sizes, jpegs, outcome.actions == INFERRED, overhead, every_nth)
    return Evaluation(
        inputs=len(truth),
        inferred=int((outcome.actions == INFERRED).sum()),
        skipped=int((outcome.actions == SKIPPED).sum()),
        reused=int((outcome.actions == REUSED).sum()),
        filtering_rate=outcome.filtering_rate,
        accuracy=outcome.accuracy,
        recall=outcome.recall(truth),
        throughput_ratio=timing.throughput_ratio,
        predicted_throughput_ratio=timing.predicted_throughput_ratio,
        model_ms=timing.model_ms,
        filter_ms=timing.filter_ms,
        decode_ms=timing.decode_ms,
        timed_inputs=timing.timed_inputs,
        target_accuracy=None if by_recall else target,
        target_recall=target if by_recall else None,
        every_nth_filtering_rate=every_nth,
        ideal_skip_filtering_rate=_ideal_skip(truth, target, by_recall),
        bandwidth=moved,
    )


def _overhead(workload: OffloadWorkload, recording: Recording, first: int, size: float) -> float:
    """Bytes that one request of `size` bytes of tensors costs more than those, at the socket."""
    sample = next(iter(recording.samples(first, first + 1)))
    before = workload.remote.traffic.sent["infer"]
    for _ in range(OVERHEAD_REQUESTS):
        workload(sample.data)
    sent = workload.remote.traffic.sent["infer"] - before
    return max(sent / OVERHEAD_REQUESTS - size, 0.0)


def _ideal_skip(truth: Truth, target: float, by_recall: bool) -> float | None:
    if not truth.can_skip:
        return None
    wanted = 1.0 - float(truth.redundant.mean())
    allowed = (1.0 - target) * (wanted if by_recall else 1.0)
    return min(1.0 - wanted + allowed, 1.0)


def save_misses(
    recording: Recording,
    truth: Truth,
    outcome: Outcome,
    first: int,
    folder: Path,
    describe: Callable[[int], str],
) -> int:
    """Write the inputs whose answer was wrong (JPEG, .txt or .npy); return how many.

    describe: index within the stretch -> text for the file name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wrong = np.flatnonzero(~outcome.right)
    left = set(wrong.tolist())
    for offset, sample in enumerate(itertools.islice(recording.samples(first), len(truth))):
        if offset in left:
            name = f"{sample.index:07d}-{describe(offset)}"
            _save_input(folder, name, sample.data)
    return len(wrong)


def _save_input(folder: Path, name: str, data: Any) -> None:
    if isinstance(data, str):
        (folder / f"{name}.txt").write_text(data, encoding="utf-8", errors="surrogatepass")
    elif isinstance(data, bytes):
        (folder / f"{name}.jpg").write_bytes(data)
    elif isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 3:
        (folder / f"{name}.jpg").write_bytes(bytes(cv2.imencode(".jpg", data)[1]))
    elif isinstance(data, list):
        for number, frame in enumerate(data):
            _save_input(folder, f"{name}-{number:02d}", frame)
    else:
        np.save(folder / f"{name}.npy", data)
