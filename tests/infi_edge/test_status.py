"""The numbers behind metrics and page: histograms, rates, what was saved."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi_edge.status import LATENCY_BOUNDS_S, Histogram, SourceStatus

SECONDS = st.lists(st.floats(0, 100), min_size=1, max_size=200)


def filled(seconds: list[float]) -> Histogram:
    histogram = Histogram()
    for one in seconds:
        histogram.observe(one)
    return histogram


@given(SECONDS)
def test_every_second_is_in_one_bucket_whose_bound_it_does_not_exceed(seconds):
    histogram = filled(seconds)
    assert histogram.count == sum(histogram.counts) == len(seconds)
    assert histogram.total_s == pytest.approx(math.fsum(seconds))
    below = 0
    for bound_s, count in zip(LATENCY_BOUNDS_S, histogram.counts, strict=False):
        below += count
        assert below == sum(s <= bound_s for s in seconds)


@given(SECONDS, st.floats(0.01, 1))
def test_a_quantile_is_a_bound_that_so_many_do_not_exceed(seconds, share):
    bound_s = filled(seconds).quantile(share)
    assert bound_s is not None
    assert sum(s <= bound_s for s in seconds) >= share * len(seconds) - 1e-9
    lower = [b for b in LATENCY_BOUNDS_S if b < bound_s]
    if lower:
        assert sum(s <= lower[-1] for s in seconds) < share * len(seconds) + 1e-9


def test_an_empty_histogram_has_no_quantile():
    assert Histogram().quantile(0.99) is None
    assert filled([1e9]).quantile(0.5) == math.inf


def test_rates_and_savings_of_a_source():
    status = SourceStatus("yard")
    assert (status.inputs, status.filtering_rate, status.model_saved_s) == (0, None, 0.0)
    status.counts.update(skip=6, reuse=2, infer=2, error=5, over_budget=3)
    for seconds in (0.1, 0.3):
        status.model_s.observe(seconds)
    assert status.inputs == 10
    assert status.filtering_rate == pytest.approx(0.8)
    assert status.model_saved_s == pytest.approx(8 * 0.2)


def test_asking_for_a_count_adds_none():
    status = SourceStatus("yard")
    assert status.filtering_rate is None
    assert status.counts == {}


def test_two_sources_share_nothing():
    one, other = SourceStatus("a"), SourceStatus("b")
    one.counts["skip"] += 1
    one.filter_s.observe(0.1)
    one.errors["model"] += 1
    assert other.counts == other.errors == {}
    assert other.filter_s.count == 0
