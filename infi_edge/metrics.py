"""What is going on, for Prometheus: read from the status at each scrape, at no cost per input."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from infi_edge.capture.source import STATES
from infi_edge.errors import ConfigError
from infi_edge.learning.audit import Bounded
from infi_edge.status import Control, Histogram, LearningStatus, SourceStatus, Status

try:
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        InfoMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ConfigError(
        "web needs the package prometheus-client: pip install 'infi-edge[web]'"
    ) from error

ACTIONS = ("skip", "reuse", "infer", "local", "queued", "link_down")
MAX_CAUSES = 20
OTHER = "other"

Sources = Iterable[SourceStatus]

_COUNTERS: tuple[tuple[str, str, Callable[[SourceStatus], float]], ...] = (
    ("cache_hits", "Inputs answered from the cache.", lambda s: s.cache_hits),
    ("cache_evictions", "Entries that made room for others.", lambda s: s.cache_evictions),
    ("saved_bytes", "Bytes of inputs that were not sent off the device.", lambda s: s.bytes_saved),
    ("sent_bytes", "Bytes sent to a server for this source.", lambda s: s.bytes_sent),
    ("received_bytes", "Bytes received from a server for this source.", lambda s: s.bytes_received),
)

_GAUGES: tuple[tuple[str, str, Callable[[SourceStatus], float | None]], ...] = (
    ("cache_entries", "Entries in the cache.", lambda s: s.cache_entries),
    ("cache_bytes", "Memory of the cache's entries.", lambda s: s.cache_bytes),
    ("filtering_ratio", "Share of inputs not inferred.", lambda s: s.filtering_rate),
    ("model_saved_seconds", "Model time saved, at its mean so far.", lambda s: s.model_saved_s),
    ("queue_wait_p99_seconds", "P99 of the queue wait.", lambda s: s.queue_s.quantile(0.99)),
    ("enabled", "1 while the gate filters, 0 while it passes everything.", lambda s: s.enabled),
    ("degraded", "1 while the promise is suspended.", lambda s: bool(s.degraded)),
    ("bandwidth_saved_ratio", "Against sending every input alike.", lambda s: s.bandwidth_saved),
    (
        "bandwidth_saved_against_jpeg_ratio",
        "Against sending every input as the JPEG it came as.",
        lambda s: s.bandwidth_saved_against_jpeg,
    ),
    ("late_waiting", "Inputs kept until the server can be used again.", lambda s: s.waiting),
    ("scene_changing", "1 while the whole scene changes.", lambda s: s.scene_change),
    ("event_active", "1 while something wanted goes on.", lambda s: s.event_active),
    ("quiet_seconds", "Time since an input was inferred.", lambda s: s.quiet_s),
    ("longest_quiet_seconds", "The longest quiet of its data.", lambda s: s.longest_quiet_s),
    ("quiet_alarm", "1 if quiet for longer than its data ever was.", lambda s: s.quiet_alarm),
)

_HISTOGRAMS: tuple[tuple[str, str, Callable[[SourceStatus], Histogram]], ...] = (
    ("filter_duration_seconds", "Time of the filter per input.", lambda s: s.filter_s),
    ("model_duration_seconds", "Time of the model per inference.", lambda s: s.model_s),
    ("queue_wait_seconds", "Wait in the queue behind the gate.", lambda s: s.queue_s),
    ("frame_age_seconds", "Age of inputs when they were decided on.", lambda s: s.frame_age_s),
)

_LEARNED_COUNTERS: tuple[tuple[str, str, Callable[[LearningStatus], float]], ...] = (
    ("audits", "Filtered inputs that were inferred all the same.", lambda s: s.audited),
    ("audit_errors", "Audited inputs that would have been wrong.", lambda s: s.audit_errors),
    ("fits", "How often what is learned was fitted.", lambda s: s.fits),
    ("failed_open", "How often the gate has opened again.", lambda s: s.failed_open),
    ("learn_cpu_seconds", "CPU time of learning.", lambda s: s.cpu_s),
)

_LEARNED_GAUGES: tuple[tuple[str, str, Callable[[LearningStatus], float | None]], ...] = (
    ("gate_open", "1 while everything is inferred until the target holds.", lambda s: s.open),
    ("learning_frozen", "1 while nothing is learned: the machine is hot.", lambda s: s.frozen),
    ("remembered", "Inferred inputs that are learned from.", lambda s: s.remembered),
)

_LEARNED_BOUNDS: tuple[tuple[str, str, Callable[[LearningStatus], Bounded | None]], ...] = (
    ("live_accuracy", "Of what was delivered, by the audit.", lambda s: s.accuracy),
    ("live_recall", "Of the wanted inputs, by the audit.", lambda s: s.recall),
)


class Metrics:
    """The exposition of one daemon, with a registry of its own."""

    def __init__(self, control: Control) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(StatusCollector(control))

    def exposition(self, accept: str = "") -> tuple[str, bytes]:
        """Return (content type, text) in the format that an Accept header asks for."""
        encode, content_type = choose_encoder(accept)
        return content_type, encode(self._registry)


class StatusCollector(Collector):
    """Makes metrics of the status. Label values are configured names and short causes."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def collect(self) -> Iterator[Metric]:
        status = self._control.status()
        yield from _daemon(status)
        yield from _counted(status.sources)
        for name, text, read in _COUNTERS:
            counter = CounterMetricFamily(f"infi_edge_{name}", text, labels=["source"])
            for source in status.sources:
                counter.add_metric([source.name], read(source))
            yield counter
        for name, text, value in _GAUGES:
            gauge = GaugeMetricFamily(f"infi_edge_{name}", text, labels=["source"])
            for source in status.sources:
                _add(gauge, [source.name], value(source))
            yield gauge
        for name, text, histogram in _HISTOGRAMS:
            family = HistogramMetricFamily(f"infi_edge_{name}", text, labels=["source"])
            for source in status.sources:
                buckets, total_s = _buckets(histogram(source))
                family.add_metric([source.name], buckets, total_s)
            yield family
        yield from _targets(status.sources)
        yield from _learning(status.sources)
        yield from _sinks(status)
        yield from _links(status)


def _daemon(status: Status) -> Iterator[Metric]:
    version = {"version": status.version}
    yield InfoMetricFamily("infi_edge_build", "The version that runs.", value=version)
    gauges: tuple[tuple[str, str, float | None], ...] = (
        ("uptime_seconds", "Time since the daemon began.", status.uptime_s),
        ("cpu_cores", "Cores used by the daemon's processes.", status.cpu),
        ("memory_bytes", "RSS of the daemon's processes together.", status.memory_bytes),
        ("temperature_celsius", "Of the processor.", status.temperature_c),
        ("throttled", "1 while the processor is slowed down.", status.throttled),
        ("under_voltage", "1 while the supply is too weak.", status.under_voltage),
        ("over_budget", "1 while the budget is exceeded.", bool(status.budget)),
    )
    for name, text, value in gauges:
        gauge = GaugeMetricFamily(f"infi_edge_{name}", text, labels=[])
        _add(gauge, [], value)
        yield gauge
    reloads = CounterMetricFamily(
        "infi_edge_reloads", "Configurations read again.", labels=["outcome"]
    )
    for outcome in dict.fromkeys(("done", "refused", *status.reloads.copy())):
        reloads.add_metric([outcome], status.reloads[outcome])
    yield reloads


def _counted(sources: Sources) -> Iterator[Metric]:
    inputs = CounterMetricFamily(
        "infi_edge_inputs", "Inputs by what became of them.", labels=["source", "action"]
    )
    incidents = CounterMetricFamily(
        "infi_edge_incidents", "What else happened to inputs.", labels=["source", "kind"]
    )
    errors = CounterMetricFamily(
        "infi_edge_errors", "Inputs that failed, by cause.", labels=["source", "cause"]
    )
    faults = CounterMetricFamily(
        "infi_edge_source_faults",
        "Drops, overflows, stalls, reconnects, ... of the source.",
        labels=["source", "cause"],
    )
    state = GaugeMetricFamily(
        "infi_edge_source_state", "1 for the state it is in.", labels=["source", "state"]
    )
    for source in sources:
        counts = source.counts.copy()
        for action in ACTIONS:
            inputs.add_metric([source.name, action], counts.pop(action, 0))
        for family, causes in (
            (incidents, counts),
            (errors, source.errors),
            (faults, source.faults),
        ):
            for cause, count in bounded(causes).items():
                family.add_metric([source.name, cause], count)
        for name in STATES:
            state.add_metric([source.name, name], float(source.state == name))
    yield from (inputs, incidents, errors, faults, state)


def _targets(sources: Sources) -> Iterator[Metric]:
    target = GaugeMetricFamily(
        "infi_edge_target_ratio", "The target in force.", labels=["source", "measure"]
    )
    expected = GaugeMetricFamily(
        "infi_edge_expected_filtering_ratio",
        "The filtering rate that the bundle's table expects.",
        labels=["source"],
    )
    for source in sources:
        if source.target is not None:
            measure, share = source.target
            target.add_metric([source.name, measure], share)
        points, chosen = source.points, source.chosen
        if 0 <= chosen < len(points):
            expected.add_metric([source.name], points[chosen].filtering_rate)
    yield from (target, expected)


def _learning(sources: Sources) -> Iterator[Metric]:
    """What is learned in service, of the sources that learn."""
    learning = [(s.name, s.learning) for s in sources if s.learning is not None]
    for name, text, count in _LEARNED_COUNTERS:
        counter = CounterMetricFamily(f"infi_edge_{name}", text, labels=["source"])
        for source, learned in learning:
            counter.add_metric([source], count(learned))
        yield counter
    for name, text, value in _LEARNED_GAUGES:
        gauge = GaugeMetricFamily(f"infi_edge_{name}", text, labels=["source"])
        for source, learned in learning:
            _add(gauge, [source], value(learned))
        yield gauge
    for name, text, bounds in _LEARNED_BOUNDS:
        for suffix, which in (("", "estimate"), ("_low", "low"), ("_high", "high")):
            gauge = GaugeMetricFamily(f"infi_edge_{name}{suffix}", text, labels=["source"])
            for source, learned in learning:
                found = bounds(learned)
                _add(gauge, [source], None if found is None else getattr(found, which))
            yield gauge


def _sinks(status: Status) -> Iterator[Metric]:
    messages = CounterMetricFamily(
        "infi_edge_sink_messages", "Messages by what became of them.", labels=["sink", "outcome"]
    )
    queued = GaugeMetricFamily("infi_edge_sink_queued", "Messages that wait.", labels=["sink"])
    for sink in status.sinks:
        outcomes = {"sent": 0, "dropped": 0, "failed": 0, **bounded(sink.counts)}
        for outcome, count in outcomes.items():
            messages.add_metric([sink.name, outcome], count)
        queued.add_metric([sink.name], sink.queued)
    yield from (messages, queued)


def _links(status: Status) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        "infi_edge_link_up", "1 while the server of a model can be used.", labels=["model"]
    )
    moved = CounterMetricFamily(
        "infi_edge_link_bytes", "Bytes at the sockets.", labels=["model", "direction", "cause"]
    )
    incidents = CounterMetricFamily(
        "infi_edge_link_incidents", "Retries, faults, ...", labels=["model", "kind"]
    )
    for link in status.links:
        up.add_metric([link.name], float(link.is_up))
        for direction, causes in (("sent", link.sent), ("received", link.received)):
            for cause, count in bounded(causes).items():
                moved.add_metric([link.name, direction, cause], count)
        for kind, count in bounded(link.counts).items():
            incidents.add_metric([link.name, kind], count)
    yield from (up, moved, incidents)


def bounded(causes: Mapping[str, int]) -> dict[str, int]:
    """Return the counts of the first MAX_CAUSES short causes; all others together as `other`.

    The first ones, not the largest: a series that moved in and out of `other` would run backwards.
    """
    result: dict[str, int] = {}
    for cause, count in dict(causes).items():
        short = re.fullmatch(r"[\w .-]{1,40}", cause) is not None
        label = cause if short and len(result.keys() - {OTHER}) < MAX_CAUSES else OTHER
        result[label] = result.get(label, 0) + count
    return result


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    # Counts are taken from the buckets alone: the writer goes on meanwhile.
    counts = itertools.accumulate(list(histogram.counts))
    bounds = [*map(str, histogram.bounds_s), "+Inf"]
    return list(zip(bounds, counts, strict=True)), histogram.total_s


def _add(gauge: GaugeMetricFamily, labels: list[str], value: float | None) -> None:
    if value is not None:
        gauge.add_metric(labels, float(value))
