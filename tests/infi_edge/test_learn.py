"""What the light filter learns; and replays, which must do what the gate does."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infi_edge.bundle import Bundle
from infi_edge.filter import InputFilter
from infi_edge.gate import Gate
from infi_edge.learn import LightMetric, changed, fit_reuse, fit_skip, sample_pairs
from infi_edge.policy import Knobs
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
from infi_edge.tasks import make_same, make_task, same_exact
from infi_edge.types import Action

TELLING = 3


def stream(
    seed: int = 0, noise: float = 0.05, count: int = 600
) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Features of which one tells the state, states that hold for 20 inputs, times at 10 Hz."""
    rng = np.random.default_rng(seed)
    states = np.repeat(rng.integers(0, 2, count // 20 + 1), 20)[:count]
    features = rng.random((count, 8)).astype(np.float32)
    features[:, TELLING] = 0.2 + 0.6 * states + noise * rng.standard_normal(count)
    return features, states.tolist(), np.arange(count) / 10


def fitted(seed: int = 0, noise: float = 0.05, **options) -> LightMetric:
    features, values, times_s = stream(noise=noise)
    return fit_reuse(
        features, values, times_s, same_exact, [(0, 600)], pairs=2000, seed=seed, **options
    )


def p_changed(metric: LightMetric, a: np.ndarray, b: np.ndarray, age_s: float) -> float:
    head = metric.head
    z = head.bias + head.distance * float(metric.weights @ np.abs(a - b))
    return 1 / (1 + np.exp(-(z + head.log_age * np.log1p(age_s) + head.age * age_s)))


def test_reuse_finds_the_feature_that_tells_answers_apart():
    metric = fitted()
    assert metric.weights.dtype == np.float32
    assert metric.weights.shape == (8,)
    assert int(metric.weights.argmax()) == TELLING
    assert metric.weights[TELLING] > 5 * np.delete(metric.weights, TELLING).max()
    assert metric.head.distance == 1.0


@given(st.integers(0, 1000), st.sampled_from([0.05, 0.4, 2.0]))
@settings(max_examples=20)
def test_reuse_weighs_nothing_below_zero(seed, noise):
    metric = fitted(seed, noise)
    assert (metric.weights >= 0).all()
    assert metric.head.log_age >= 0
    assert metric.head.age >= 0


def test_a_penalty_leaves_few_weights():
    free, few = (fitted(noise=0.4, penalty=penalty).weights for penalty in (0.0, 0.02))
    assert np.count_nonzero(free) > 3
    assert np.flatnonzero(few).tolist() == [TELLING]


def test_what_reuse_learned_holds_for_inputs_it_has_not_seen():
    metric = fitted()
    features, values, times_s = stream(seed=1)
    rng = np.random.default_rng(2)
    pairs = rng.integers(0, 600, (300, 2))
    right = [
        (p_changed(metric, features[i], features[j], abs(times_s[i] - times_s[j])) > 0.5)
        == (values[i] != values[j])
        for i, j in pairs
    ]
    assert np.mean(right) > 0.95


def test_reuse_goes_by_age_where_the_features_say_nothing():
    rng = np.random.default_rng(0)
    features = rng.random((600, 4)).astype(np.float32)
    values = (np.arange(600) // 30).tolist()  # a new answer every 3 s, never the old one again
    times_s = np.arange(600) / 10
    metric = fit_reuse(features, values, times_s, same_exact, [(0, 600)], pairs=2000)
    young, old = (p_changed(metric, features[0], features[0], age_s) for age_s in (0.1, 30.0))
    assert young < 0.5 < old


def test_the_same_seed_learns_the_same_bytes():
    first, second, other = fitted(), fitted(), fitted(seed=1)
    assert first.weights.tobytes() == second.weights.tobytes()
    assert first.head == second.head
    assert first.weights.tobytes() != other.weights.tobytes()


@given(st.integers(0, 100))
def test_pairs_are_in_order_and_inside_the_stretches(seed):
    stretches = [(10, 60), (100, 400)]
    a, b = sample_pairs(stretches, 500, np.random.default_rng(seed))
    assert len(a) == len(b) == 500
    assert (a < b).all()
    for index in (a, b):
        assert (((index >= 10) & (index < 60)) | ((index >= 100) & (index < 400))).all()
    assert (b - a == 1).any()
    assert (b - a > 100).any()


def test_changed_is_where_answers_differ():
    y = changed([1, 2, 5], np.array([0, 0]), np.array([1, 2]), make_same("within:1", "count:car"))
    assert y.tolist() == [0.0, 1.0]
    assert y.dtype == np.float32


def test_skip_separates_what_is_wanted_from_what_is_not():
    features, values, _ = stream()
    weights = fit_skip(features, np.array(values) == 0)
    assert weights.dtype == np.float32
    assert weights.shape == (9,)
    again = fit_skip(features, np.array(values) == 0)
    assert weights.tobytes() == again.tobytes()
    new_features, new_values, _ = stream(seed=1)
    wanted = new_features @ weights[:-1] + weights[-1] > 0
    assert (wanted == (np.array(new_values) == 1)).mean() > 0.98


def test_skip_of_features_that_never_change_is_still_a_number():
    weights = fit_skip(np.ones((50, 4), np.float32), np.arange(50) < 10)
    assert np.isfinite(weights).all()


@pytest.fixture(scope="module")
def light(manifest, members) -> InputFilter:
    """The light filter, of a workload in which darkness is redundant."""
    workload = msgspec.structs.replace(manifest.workload, task="label:bright")
    return InputFilter(
        Bundle(msgspec.structs.replace(manifest, workload=workload), members, "yard")
    )


def model(frame: np.ndarray) -> np.ndarray:
    return np.array([1.0, 0.0] if frame.mean() < 110 else [0.0, 1.0])


@pytest.mark.parametrize(
    "knobs",
    [
        Knobs(),
        Knobs(skip_threshold=0.6),
        Knobs(reuse_threshold=1.0, deliver="last", max_since_inference=4),
        Knobs(reuse_threshold=0.3, deliver="last"),
        Knobs(reuse_threshold=0.2, deliver="nearest", max_distance=100),
        Knobs(reuse_threshold=0.3, deliver="vote", votes=5, max_since_inference=20),
        Knobs(0.3, 0.3, 30, "nearest", max_consecutive_filtered=8, heartbeat_s=1.7),
    ],
    ids=str,
)
@pytest.mark.parametrize("entries", [5, 4096])
def test_a_replay_does_what_the_gate_does(light, knobs, entries):
    rng = np.random.default_rng(0)
    levels = np.clip(110 + np.cumsum(rng.normal(0, 9, 300)), 20, 200)
    frames = [
        np.clip(level + rng.normal(0, 5, (48, 64, 3)), 0, 255).astype(np.uint8) for level in levels
    ]
    times_s = np.arange(300) / 10
    gate = Gate(light, model, knobs=knobs, cache_entries=entries)
    task = make_task("label:bright", ["dark", "bright"])
    truth = make_truth(
        ["bright" if frame.mean() >= 110 else None for frame in frames], times_s, task, same_exact
    )
    scores, embeddings = zip(*(light(frame) for frame in frames), strict=True)

    outcome = replay(
        knobs, truth, Embedded(np.stack(embeddings), np.array(scores), light.head), entries
    )
    results = [gate(frame, t) for frame, t in zip(frames, times_s.tolist(), strict=True)]

    names = {Action.INFER: INFERRED, Action.SKIP: SKIPPED, Action.REUSE: REUSED}
    assert outcome.actions.tolist() == [names[r.action] for r in results]
    right = [r.value == value for r, value in zip(results, truth.values, strict=True)]
    assert outcome.right.tolist() == right
    filters = knobs != Knobs()
    assert (0.1 < outcome.filtering_rate < 1.0) == filters
    assert (outcome.accuracy < 1.0) == filters
    assert gate.stats["filter_error"] == 0


def test_an_outcome_counts_rate_accuracy_and_recall():
    truth = Truth(np.arange(4.0), [0, 1, 1, 0], np.array([1, 0, 0, 1], bool), same_exact, 0)
    outcome = Outcome(
        np.array([SKIPPED, SKIPPED, INFERRED, REUSED]), np.array([True, False, True, True])
    )
    assert outcome.filtering_rate == 0.75
    assert outcome.accuracy == 0.75
    assert outcome.recall(truth) == 0.5
    assert outcome.recall(Truth(truth.times_s, [0] * 4, ~truth.redundant, same_exact, 0)) == 1.0
    never = Truth(truth.times_s, truth.values, truth.redundant, same_exact, 0, can_skip=False)
    assert outcome.recall(never) is None


def every_nth_by_hand(truth: Truth, n: int, counted: list[int]) -> float:
    """The accuracy of inferring the first input and every nth, by running each phase."""
    right = 0
    for phase in range(n):
        answer = truth.values[0]
        for i, value in enumerate(truth.values):
            if i % n == phase:
                answer = value
            right += i in counted and truth.same(answer, value)
    return right / (n * max(len(counted), 1))


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=24),
    st.sampled_from(["exact", "within:1"]),
    st.sampled_from([0.3, 0.5, 0.75, 0.9, 1.0]),
    st.booleans(),
)
def test_the_best_every_nth_agrees_with_running_every_phase(values, rule, target, wanted_only):
    same = make_same(rule, "count:car")
    redundant = np.array([v == 0 for v in values])
    truth = Truth(np.arange(float(len(values))), values, redundant, same, 0)
    counted = [i for i, v in enumerate(values) if v != 0 or not wanted_only]
    best = 1
    for n in range(1, len(values) + 1):
        if every_nth_by_hand(truth, n, counted) < target:
            break
        best = n
    assert every_nth_filtering_rate(truth, target, wanted_only) == 1 - 1 / best
