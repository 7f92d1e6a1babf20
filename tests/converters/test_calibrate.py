"""Calibration: what it promises holds, and it never does worse than the corners it contains."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters import baselines
from converters.calibrate import (
    Fold,
    Method,
    Score,
    Target,
    block_length,
    blocks_needed,
    certify,
    choose,
    every_nth_knobs,
    gate_method,
    lower_bound,
    p_value,
    score,
)
from infi_edge.learn import ReuseHead
from infi_edge.policy import Knobs
from infi_edge.replay import Embedded, Outcome, Truth, replay
from infi_edge.tasks import same_exact


def stream(values: list[int], rate_hz: float = 10.0) -> Truth:
    times_s = np.arange(len(values)) / rate_hz
    return Truth(times_s, list(values), np.array(values) == 0, same_exact, 0)


def blank(count: int) -> Embedded:
    return Embedded(np.zeros((count, 1), np.uint8), None, ReuseHead(0.0, 0.0, 0.0, 0.0))


def slow_values(count: int, seed: int, stay: float = 0.95) -> list[int]:
    rng = np.random.default_rng(seed)
    values, now = [], 0
    for _ in range(count):
        if rng.random() > stay:
            now = int(rng.integers(0, 4))
        values.append(now)
    return values


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=5, max_size=80), st.integers(2, 12))
def test_every_nth_is_a_corner_of_the_family(values: list[int], n: int) -> None:
    truth = stream(values)
    knobs = Knobs(reuse_threshold=1.0, max_since_inference=n - 1, deliver="last")
    ours = replay(knobs, truth, blank(len(values)))
    theirs = baselines.every_nth().run(n, Fold(truth, None))
    assert (ours.actions == theirs.actions).all()
    assert (ours.right == theirs.right).all()


def test_the_family_has_every_n_of_the_baseline() -> None:
    ages = {knobs.max_since_inference for knobs in every_nth_knobs()}
    assert {n - 1 for n in baselines.PERIODS} <= ages


def test_calibration_never_filters_less_than_the_corner_it_contains() -> None:
    values = slow_values(400, 0)
    folds = [Fold(stream(values[a : a + 100]), blank(100)) for a in range(0, 400, 100)]
    family = gate_method("ours", [*every_nth_knobs(), Knobs(reuse_threshold=0.1)])
    nth = baselines.every_nth()
    for target in (Target("accuracy", 0.8), Target("accuracy", 0.9)):
        ours = choose([score(family, s, folds) for s in family.settings], target, 0.95)
        theirs = choose([score(nth, s, folds) for s in nth.settings], target, 0.95)
        assert theirs.score is not None
        assert ours.score is not None
        assert ours.score.filtering_rate >= theirs.score.filtering_rate - 0.01


def test_nth_median_answers_with_the_median_of_three() -> None:
    truth = stream([5, 5, 1, 1, 5, 5, 5, 5])
    outcome = baselines.nth_median().run(2, Fold(truth, None))
    # Inferred: 5, 1, 5, 5; the medians then: 5, 1 (the lower of two), 5, 5.
    assert outcome.right.tolist() == [True, True, True, True, True, True, True, True]
    assert outcome.filtering_rate == 0.5


def test_motion_infers_when_something_moves() -> None:
    tensors = np.full((40, 96, 128, 3), 60, np.uint8)
    tensors[20:, 30:60, 40:80] = 220
    shares = baselines.motion_scores(tensors)
    assert shares[:20].max() == 0.0
    assert shares[20] > 0.05
    truth = stream([0] * 20 + [1] * 20)
    fold = baselines.with_scores(Fold(truth, None), shares)
    outcome = baselines.motion(shares).run(0.01, fold)
    assert outcome.accuracy == 1.0
    assert 0 < outcome.filtering_rate < 1


def scored(rate: float, filtered: float, count: int, seed: int) -> Score:
    rng = np.random.default_rng(seed)
    errors = (rng.random(count) < rate).astype(float)
    return Score(rate, errors, np.full(count, filtered), np.ones(count, bool), 10)


def test_a_long_stream_of_independent_blocks_is_certified() -> None:
    selected = [scored(0.005, 0.5, 4000, 0), scored(0.2, 0.9, 4000, 1)]
    tested = {s.setting: scored(s.setting, s.filtering_rate, 4000, 2) for s in selected}
    choice = certify(selected, tested.__getitem__, Target("accuracy", 0.95), 0.95)
    assert choice is not None
    assert choice.kind == "guarantee"
    assert choice.score is tested[0.005]
    assert choose(selected, Target("accuracy", 0.95), 0.95).kind == "estimate"


def test_too_few_blocks_certify_nothing() -> None:
    selected = [scored(0.0, 0.5, 200, 0)]
    test = scored(0.0, 0.5, 200, 1)
    assert certify(selected, lambda _: test, Target("accuracy", 0.95), 0.95) is None


def test_a_guarantee_fails_no_more_often_than_its_confidence() -> None:
    limit, confidence, failures, certified = 0.1, 0.9, 0, 0
    rates = np.linspace(0.04, 0.16, 7)
    for seed in range(200):
        selected = [scored(rate, rate, 3000, 10 * seed + k) for k, rate in enumerate(rates)]
        choice = certify(
            selected,
            lambda rate, seed=seed: scored(
                rate, rate, 3000, 100_000 + 999 * seed + int(1e4 * rate)
            ),
            Target("accuracy", 1 - limit),
            confidence,
        )
        certified += choice is not None
        failures += choice is not None and float(choice.score.setting) > limit
    assert certified > 150
    assert failures <= 200 * (1 - confidence) * 1.5


@pytest.mark.parametrize(("blocks", "target"), [(29, 0.9), (59, 0.95), (149, 0.98)])
def test_certifying_without_an_error_needs_this_many_blocks(blocks: int, target: float) -> None:
    limit = 1 - target
    assert blocks_needed(Target("accuracy", target), 0.95) == blocks
    assert p_value(np.zeros(blocks), limit) <= 0.05
    assert p_value(np.zeros(blocks - 1), limit) > 0.05


def test_the_bound_is_below_the_mean_and_rises_with_blocks() -> None:
    few = lower_bound(np.tile([0.0, 0.04], 3), 0.95)
    many = lower_bound(np.tile([0.0, 0.04], 50), 0.95)
    assert few < many < 0.98
    assert lower_bound(np.zeros(5), 0.95) < 1.0
    assert lower_bound(np.array([0.0]), 0.95) == 0.0


def test_blocks_are_longer_where_errors_come_in_runs() -> None:
    rng = np.random.default_rng(0)
    alone = (rng.random(2000) < 0.1).astype(float)
    runs = np.repeat((rng.random(100) < 0.1).astype(float), 20)
    assert block_length(alone, 200) < 5
    assert block_length(runs, 200) >= 20


def test_a_setting_with_a_long_cycle_is_judged_by_longer_blocks() -> None:
    truth = stream(slow_values(400, 1))
    method = baselines.every_nth()
    assert score(method, 2, [Fold(truth, None)]).block_inputs < 50
    assert score(method, 50, [Fold(truth, None)]).block_inputs == 50


def test_recall_counts_only_wanted_inputs() -> None:
    def never(setting: None, fold: Fold) -> Outcome:
        wanted = ~fold.truth.redundant
        return Outcome(np.ones(len(fold.truth), np.uint8), ~wanted)

    truth = stream([0, 0, 0, 1])
    scored = score(Method("never", [None], never), None, [Fold(truth, None)])
    assert scored.accuracy == 0.75
    assert scored.recall == 0.0
