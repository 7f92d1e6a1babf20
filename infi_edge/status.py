"""What is going on, as plain numbers: read by the metrics, the page and MQTT; and what can be
changed from outside."""

from __future__ import annotations

import bisect
from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

from infi_edge.bundle import OperatingPoint
from infi_edge.learning.audit import Bounded
from infi_edge.learning.learner import Change, Learner
from infi_edge.tasks import Value
from infi_edge.types import Image

LATENCY_BOUNDS_S = (
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
    10.0, 30.0, 60.0,
)  # fmt: skip


class Histogram:
    """Counts of seconds in fixed buckets; one writer."""

    __slots__ = ("bounds_s", "count", "counts", "total_s")

    def __init__(self, bounds_s: tuple[float, ...] = LATENCY_BOUNDS_S) -> None:
        self.bounds_s = bounds_s
        self.counts = [0] * (len(bounds_s) + 1)
        self.count = 0
        self.total_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect.bisect_left(self.bounds_s, seconds)] += 1
        self.count += 1
        self.total_s += seconds

    def quantile(self, share: float) -> float | None:
        """The upper bound of the bucket where `share` of the counts is reached; None if empty."""
        wanted, seen = share * self.count, 0
        for bound_s, count in zip((*self.bounds_s, float("inf")), self.counts, strict=True):
            seen += count
            if count and seen >= wanted:
                return bound_s
        return None


@dataclass(slots=True)
class Minute:
    """One minute of a source, for the page's plots. at_s: unix seconds of its beginning.

    filtered: skipped and reused. wanted: inputs whose value was wanted. model_s: spent in it.
    """

    at_s: float
    inputs: int = 0
    filtered: int = 0
    wanted: int = 0
    errors: int = 0
    model_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LearningStatus:
    """What a source has learned in service, since it first began.

    open: whether everything is inferred, and opened_for: why, or empty. frozen: nothing is fitted,
    the machine is hot. inputs: all; remembered: inferred ones that it learns from.
    audited: filtered inputs that were inferred all the same; audit_errors: those whose answer would
    have been wrong. failed_open: how often it has opened after it had closed.
    accuracy, recall: of what was delivered, live, with their bounds at `confidence`; None before
    the first audit, and recall where nobody can tell what is wanted.
    cpu_s: of all fits since the start of the daemon.
    sentence: why it is not kept on the disk, or empty. changes: the last ones, the oldest first.
    """

    target: float
    confidence: float
    open: bool
    opened_for: str
    frozen: bool
    inputs: int
    remembered: int
    fits: int
    audited: int
    audit_errors: int
    failed_open: int
    accuracy: Bounded | None
    recall: Bounded | None
    cpu_s: float
    sentence: str
    changes: tuple[Change, ...]


def learning_status(learner: Learner, frozen: bool, sentence: str) -> LearningStatus:
    """Look at a learner, from any thread. sentence: why its state is not kept, or empty."""
    counts = learner.counts
    return LearningStatus(
        target=learner.target_accuracy,
        confidence=learner.settings.confidence,
        open=learner.opened_for is not None,
        opened_for=learner.opened_for or "",
        frozen=frozen,
        inputs=counts["inputs"],
        remembered=len(learner.memory),
        fits=counts["fits"],
        audited=counts["audited"],
        audit_errors=counts["audit_wrong"],
        failed_open=counts["failed_open"],
        accuracy=learner.live_bounds,
        recall=learner.recall if counts["audited"] else None,
        cpu_s=learner.learn_cpu_s,
        sentence=sentence,
        changes=tuple(learner.changes),
    )


@dataclass(slots=True)
class SourceStatus:
    """One source now. The daemon's own object, written by the source's thread, read by any.

    counts: skip, reuse, infer, error, filter_error, over_budget, snapshot_error, scene_change, ...
    faults: of the source, by cause (health.counts). state: starting, live, failing, ended.
    sentence: what is wrong with it now. frame_age_s: of inputs when their decision was made.
    promise: what the thresholds hold, or why they are suspended. bundle: its file's name.
    points: the bundle's table; chosen: the row in force; confidence: of the rows' bounds.
    learning: of a source that learns, which has no table to choose from.
    longest_quiet_s: see `quiet_alarm`.
    model_saved_s: what the filtered inputs would have cost at the model's mean.
    bytes_saved: of inputs not sent off the device.
    bytes_sent, bytes_received: to and from a server, at the socket; sent: inputs that went there.
    jpegs, jpeg_bytes: inputs that came as JPEGs, and their bytes.
    waiting: inputs kept until the server can be used again. link: what is wrong with it, or empty.
    """

    name: str
    address: str = ""
    modality: str = ""
    model: str = ""
    bundle: str = ""
    task: str = ""
    state: str = "starting"
    sentence: str = ""
    enabled: bool = True
    degraded: str = ""
    scene_change: bool = False
    promise: str = ""
    points: list[OperatingPoint] = field(default_factory=list)
    chosen: int = 0
    confidence: float | None = None
    learning: LearningStatus | None = None
    counts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    filter_s: Histogram = field(default_factory=Histogram)
    model_s: Histogram = field(default_factory=Histogram)
    queue_s: Histogram = field(default_factory=Histogram)
    frame_age_s: Histogram = field(default_factory=Histogram)
    cache_entries: int = 0
    cache_bytes: int = 0
    cache_hits: int = 0
    cache_evictions: int = 0
    bytes_saved: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    sent: int = 0
    jpegs: int = 0
    jpeg_bytes: int = 0
    waiting: int = 0
    link: str = ""
    last_value: Value = None
    last_action: str = ""
    last_why: str = ""
    last_at: str = ""
    last_score: float | None = None
    last_p_changed: float | None = None
    event_active: bool = False
    quiet_s: float = 0.0
    longest_quiet_s: float = 0.0
    quiet_alarm: bool = False
    history: list[Minute] = field(default_factory=list)

    @property
    def inputs(self) -> int:
        """How many inputs were answered, one way or another."""
        return sum(self.counts[action] for action in ("skip", "reuse", "infer"))

    @property
    def filtering_rate(self) -> float | None:
        """Share of inputs that were not inferred."""
        inputs = self.inputs
        return 1.0 - self.counts["infer"] / inputs if inputs else None

    @property
    def target(self) -> tuple[str, float] | None:
        """The measure and the target in force, if there is one."""
        if self.learning is not None:
            return "accuracy", self.learning.target
        if not 0 <= self.chosen < len(self.points):
            return None
        point = self.points[self.chosen]
        return point.measure, point.target

    def note_jpeg(self, data: object) -> None:
        """Count an input that a filter or a server has answered, if it is a JPEG."""
        if isinstance(data, bytes):
            self.jpegs += 1
            self.jpeg_bytes += len(data)

    @property
    def _answered(self) -> int:
        """Inputs that a filter or a server has answered: what an outage did is no saving."""
        return self.sent + self.counts["skip"] + self.counts["reuse"] - self.counts["stale"]

    @property
    def bandwidth_saved(self) -> float | None:
        """Share of the bytes that sending every input the same way would have cost, at the mean of
        those that were sent; None where nothing goes to a server."""
        return 1.0 - self.sent / self._answered if self.sent else None

    @property
    def bandwidth_saved_against_jpeg(self) -> float | None:
        """The same against sending every input as the JPEG it came as; negative: it costs more.
        None where inputs are no JPEGs, or nothing goes to a server."""
        if not self.sent or self.jpegs < self._answered or not self.jpeg_bytes:
            return None
        return 1.0 - self.bytes_sent / self.jpeg_bytes

    @property
    def model_saved_s(self) -> float:
        """Seconds of the model that filtering has saved, at its mean so far."""
        model = self.model_s
        filtered = self.counts["skip"] + self.counts["reuse"]
        return filtered * model.total_s / model.count if model.count else 0.0


@dataclass(slots=True)
class LinkStatus:
    """One model on a server now. sentence: what is wrong with it, or empty.

    counts: retries, opened (the breaker), faults by kind. sent, received: bytes at the sockets, by
    cause (infer, retry, metadata, probe). exact: whether the kernel has told all of it.
    """

    name: str
    address: str
    is_up: bool = True
    sentence: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    received: Counter[str] = field(default_factory=Counter)
    exact: bool = True


@dataclass(slots=True)
class SinkStatus:
    """One sink now. counts: sent, dropped, failed, ... queued: messages that wait."""

    name: str
    kind: str
    sentence: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    queued: int = 0


@dataclass(slots=True)
class Status:
    """The whole daemon now. cpu: cores used. memory_bytes: RSS of its processes together.

    temperature_c, throttled, under_voltage: None where the machine does not say.
    reloads: counts of `done` and `refused`. budget: what is over, or empty.
    """

    version: str
    started_at: str = ""
    uptime_s: float = 0.0
    cpu: float = 0.0
    memory_bytes: int = 0
    temperature_c: float | None = None
    throttled: bool | None = None
    under_voltage: bool | None = None
    budget: str = ""
    reloads: Counter[str] = field(default_factory=Counter)
    reload_sentence: str = ""
    sources: list[SourceStatus] = field(default_factory=list)
    sinks: list[SinkStatus] = field(default_factory=list)
    links: list[LinkStatus] = field(default_factory=list)


class Control(Protocol):
    """What may be asked and changed from outside; every method from any thread."""

    def status(self) -> Status:
        """Return what is going on. The counters in it are live, not copies."""

    def set_enabled(self, source: str, enabled: bool) -> None:
        """Let the gate filter, or pass everything. Raises ConfigError for an unknown source."""

    def set_target(self, source: str, measure: str, target: float) -> OperatingPoint:
        """Choose the row of the bundle's table for `accuracy` or `recall`; return it.

        Raises ConfigError for an unknown source, one that learns, or if the table has no such row.
        """

    def picture(self, source: str) -> Image | None:
        """The last input of a source as a picture, or None if it has none."""
