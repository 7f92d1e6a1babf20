"""The metrics: what Prometheus reads of the status."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter

import pytest
from prometheus_client import REGISTRY
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families

from infi_edge.metrics import MAX_CAUSES, Metrics, bounded
from infi_edge.status import SourceStatus
from tests.pretend_control import PretendControl, learning


def scraped(control: PretendControl) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return all samples of one scrape by name and labels."""
    _, text = Metrics(control).exposition()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(control: PretendControl, name: str, **labels: str) -> float | None:
    return scraped(control).get((f"infi_edge_{name}", frozenset(labels.items())))


@pytest.fixture
def control() -> PretendControl:
    return PretendControl()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("live_accuracy", 0.971),
        ("live_accuracy_low", 0.962),
        ("live_accuracy_high", 0.979),
        ("live_recall", 0.934),
        ("live_recall_low", 0.901),
        ("live_recall_high", 0.958),
        ("audits_total", 3_950),
        ("audit_errors_total", 118),
        ("fits_total", 61),
        ("failed_open_total", 1),
        ("learn_cpu_seconds_total", 12.4),
        ("gate_open", 0),
        ("learning_frozen", 0),
        ("remembered", 400),
    ],
)
def test_what_is_learned_is_told_of_the_sources_that_learn(
    control: PretendControl, name: str, expected: float
) -> None:
    control.current.sources[0].learning = learning()
    assert value(control, name, source="yard") == expected
    assert value(control, name, source="hum") is None


def test_what_is_not_known_yet_of_what_is_learned_is_left_out(control: PretendControl) -> None:
    unknown = learning(accuracy=None, recall=None, open=True)
    control.current.sources[0].points, control.current.sources[0].learning = [], unknown
    assert value(control, "live_accuracy", source="yard") is None
    assert value(control, "live_recall_low", source="yard") is None
    assert value(control, "gate_open", source="yard") == 1
    assert value(control, "target_ratio", source="yard", measure="accuracy") == 0.95
    assert value(control, "expected_filtering_ratio", source="yard") is None


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("inputs_total", {"source": "yard", "action": "skip"}, 310_250),
        ("inputs_total", {"source": "yard", "action": "reuse"}, 42_120),
        ("inputs_total", {"source": "yard", "action": "infer"}, 61_330),
        ("errors_total", {"source": "yard", "cause": "RuntimeError"}, 2),
        ("incidents_total", {"source": "yard", "kind": "over_budget"}, 3),
        ("source_faults_total", {"source": "gate", "cause": "stall"}, 13),
        ("source_faults_total", {"source": "yard", "cause": "dropped"}, 214),
        ("source_state", {"source": "gate", "state": "failing"}, 1),
        ("source_state", {"source": "gate", "state": "live"}, 0),
        ("filter_duration_seconds_count", {"source": "yard"}, 100),
        ("model_duration_seconds_count", {"source": "yard"}, 61),
        ("frame_age_seconds_count", {"source": "yard"}, 100),
        ("queue_wait_seconds_bucket", {"source": "yard", "le": "0.002"}, 60),
        ("queue_wait_seconds_bucket", {"source": "yard", "le": "+Inf"}, 61),
        ("queue_wait_p99_seconds", {"source": "yard"}, 0.1),
        ("cache_entries", {"source": "yard"}, 1730),
        ("cache_bytes", {"source": "yard"}, 221_440),
        ("cache_hits_total", {"source": "yard"}, 42_120),
        ("cache_evictions_total", {"source": "yard"}, 118),
        ("saved_bytes_total", {"source": "yard"}, 31_200_000_000),
        ("quiet_alarm", {"source": "hum"}, 1),
        ("quiet_alarm", {"source": "yard"}, 0),
        ("target_ratio", {"source": "yard", "measure": "accuracy"}, 0.9),
        ("expected_filtering_ratio", {"source": "yard"}, 0.83),
        ("temperature_celsius", {}, 61.2),
        ("throttled", {}, 0),
        ("under_voltage", {}, 1),
        ("reloads_total", {"outcome": "done"}, 3),
        ("reloads_total", {"outcome": "refused"}, 0),
        ("sink_messages_total", {"sink": "home", "outcome": "dropped"}, 3),
        ("sink_messages_total", {"sink": "log", "outcome": "failed"}, 0),
        ("sink_queued", {"sink": "home"}, 17),
        ("build_info", {"version": "0.9.1"}, 1),
    ],
)
def test_every_number_of_the_status_is_a_metric(
    control: PretendControl, name: str, labels: dict[str, str], expected: float
) -> None:
    assert value(control, name, **labels) == pytest.approx(expected)


def test_a_scrape_reads_the_counters_as_they_are_then(control: PretendControl) -> None:
    metrics = Metrics(control)
    before = metrics.exposition()[1]
    control.current.sources[0].counts["infer"] += 1
    control.current.sources[0].model_s.observe(0.04)
    after = metrics.exposition()[1]
    assert b'infi_edge_inputs_total{action="infer",source="yard"} 61330.0' in before
    assert b'infi_edge_inputs_total{action="infer",source="yard"} 61331.0' in after
    assert b'infi_edge_model_duration_seconds_count{source="yard"} 62.0' in after


def test_what_the_machine_does_not_say_is_left_out(control: PretendControl) -> None:
    control.current.temperature_c = control.current.throttled = None
    names = {name for name, _ in scraped(control)}
    assert "infi_edge_temperature_celsius" not in names
    assert "infi_edge_throttled" not in names
    assert "infi_edge_under_voltage" in names


def test_a_source_without_an_input_yet_has_its_series(control: PretendControl) -> None:
    control.current.sources = [SourceStatus(name="new")]
    assert value(control, "inputs_total", source="new", action="infer") == 0
    assert value(control, "queue_wait_p99_seconds", source="new") is None
    assert value(control, "filter_duration_seconds_count", source="new") == 0
    assert value(control, "target_ratio", source="new", measure="accuracy") is None


def test_the_histograms_buckets_add_up(control: PretendControl) -> None:
    buckets = [
        count
        for (name, labels), count in scraped(control).items()
        if name == "infi_edge_model_duration_seconds_bucket" and ("source", "yard") in labels
    ]
    assert sorted(buckets) == buckets
    assert buckets[-1] == 61


def test_causes_are_bounded_and_none_runs_backwards() -> None:
    causes = Counter({f"cause{i}": 100 - i for i in range(30)})
    first = bounded(causes)
    causes.update(cause29=1000, another=5)
    second = bounded(causes)
    assert len(first) == MAX_CAUSES + 1
    assert second.keys() == first.keys()
    assert all(second[cause] >= count for cause, count in first.items())
    assert sum(second.values()) == sum(causes.values())


def test_a_cause_that_is_a_message_does_not_become_a_label(control: PretendControl) -> None:
    control.current.sources[0].errors = Counter(
        {"rtsp://user:secret@host/ gone": 2, "x" * 500: 1, "ValueError": 3}
    )
    _, text = Metrics(control).exposition()
    assert b"secret" not in text
    assert value(control, "errors_total", source="yard", cause="other") == 3
    assert value(control, "errors_total", source="yard", cause="ValueError") == 3


def test_two_daemons_in_one_process_do_not_mix(control: PretendControl) -> None:
    other = PretendControl()
    other.current.version = "2.0"
    assert value(control, "build_info", version="2.0") is None
    assert value(other, "build_info", version="2.0") == 1
    assert not [family for family in REGISTRY.collect() if "infi_edge" in family.name]


def test_openmetrics_is_given_to_who_asks_for_it(control: PretendControl) -> None:
    accept = "application/openmetrics-text;version=1.0.0"
    content_type, text = Metrics(control).exposition(accept)
    assert content_type.startswith("application/openmetrics-text")
    names = {family.name for family in parse_open(text.decode())}
    assert {"infi_edge_inputs", "infi_edge_frame_age_seconds"} <= names


def test_promtool_finds_nothing_wrong(control: PretendControl) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not here; apt-get install prometheus")
    _, text = Metrics(control).exposition()
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, check=False, timeout=60
    )
    assert checked.returncode == 0
    assert checked.stdout + checked.stderr == b""
