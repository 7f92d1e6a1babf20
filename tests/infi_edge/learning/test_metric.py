"""The metric of a learning gate: what tells answers apart, fitted to what was inferred."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi_edge.learning import metric as module
from infi_edge.learning.metric import Embedding, Metric, Sample, embedding_of, fit_metric
from infi_edge.tasks import same_exact

F = 24
MATTERS = (3, 17)


def stream(count: int, seed: int = 0, noise: float = 0.02) -> Sample:
    """Features of which two decide the answer; the rest wander or are noise."""
    rng = np.random.default_rng(seed)
    features = rng.normal(0.0, noise, (count, F)).astype(np.float32)
    features[:, 5:10] += np.cumsum(rng.normal(0.0, 0.05, (count, 5)), axis=0).astype(np.float32)
    states = rng.integers(0, 3, count // 8 + 1).repeat(8)[:count]
    for place, column in enumerate(MATTERS):
        features[:, column] += (states > place).astype(np.float32)
    times_s = np.arange(count) / 10.0
    return Sample(features, times_s, states.tolist(), np.ones(count))


def fit(sample: Sample, start: Metric | None = None, seed: int = 0) -> Metric:
    return fit_metric(sample, same_exact, start, np.random.default_rng(seed))


def p_changed(metric: Metric, a: np.ndarray, b: np.ndarray, age_s: np.ndarray) -> np.ndarray:
    """a, b: (P, F). Returns (P,)."""
    logits = metric.bias + np.abs(a - b) @ metric.weights.astype(np.float64)
    logits = logits + metric.log_age * np.log1p(age_s) + metric.age * age_s
    return 1 / (1 + np.exp(-np.clip(logits, -60, 60)))


def pairs(sample: Sample, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    first, second = np.sort(rng.integers(0, len(sample.values), (2, count)), axis=0)
    return first[first < second], second[first < second]


def loss(metric: Metric, sample: Sample) -> float:
    """Mean log loss over pairs."""
    a, b = pairs(sample, 4000, 1)
    age_s = sample.times_s[b] - sample.times_s[a]
    p = p_changed(metric, sample.features[a], sample.features[b], age_s)
    y = np.array([sample.values[i] != sample.values[j] for i, j in zip(a, b, strict=True)])
    return float(-np.log(np.where(y, p, 1 - p) + 1e-9).mean())


@pytest.mark.parametrize("count", [60, 400])
def test_it_finds_the_features_that_matter(count: int) -> None:
    """60 inputs: every pair is used; 400: a draw of them."""
    metric = fit(stream(count))
    weight = metric.weights
    rest = np.delete(weight, MATTERS)
    assert weight[list(MATTERS)].min() > 5 * rest[:3].max(initial=0.0)
    assert weight[list(MATTERS)].min() > rest.max()
    other = stream(400, seed=9)
    a, b = pairs(other, 2000, 2)
    y = np.array([other.values[i] != other.values[j] for i, j in zip(a, b, strict=True)])
    p = p_changed(metric, other.features[a], other.features[b], other.times_s[b] - other.times_s[a])
    assert p[y].min() > p[~y].mean()
    assert ((p > 0.5) == y).mean() > (0.97 if count == 400 else 0.9)


@given(st.integers(2, 40), st.integers(0, 1000), st.floats(0.0, 5.0))
def test_no_weight_is_negative_whatever_was_seen(count: int, seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(0.0, spread, (count, 5)).astype(np.float32)
    values = rng.integers(0, 3, count).tolist()
    probabilities = rng.choice([0.01, 0.05, 1.0], count)
    times_s = np.cumsum(rng.exponential(1.0, count))
    metric = fit(Sample(features, times_s, values, probabilities))
    assert metric.weights.dtype == np.float32
    assert (metric.weights >= 0).all()
    assert metric.log_age >= 0
    assert metric.age >= 0
    assert np.isfinite([metric.log_age, metric.age, metric.bias, *metric.weights]).all()


def test_a_refit_from_a_good_start_stays_good_and_takes_fewer_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps: list[int] = []
    learn = module.non_negative_logistic

    def counted(x, y, cost, count, *rest):
        steps.append(count)
        return learn(x, y, cost, count, *rest)

    monkeypatch.setattr(module, "non_negative_logistic", counted)
    sample, later = stream(200), stream(400, seed=5)
    cold = fit(sample)
    warm = fit(sample, cold, seed=1)
    assert steps[1] <= steps[0] / 2
    assert loss(warm, later) <= loss(cold, later) + 0.02
    weights = warm.weights
    for _ in range(10):
        warm = fit(sample, warm, seed=2)
    assert loss(warm, later) <= loss(cold, later) + 0.02
    assert np.argsort(warm.weights)[-2:].tolist() == np.argsort(weights)[-2:].tolist()


def test_a_refit_learns_what_has_changed() -> None:
    """Other features decide from here on; a few refits find them."""
    old, moved = stream(200), stream(200, seed=3)
    features = np.roll(moved.features, 4, axis=1)
    moved = Sample(features, moved.times_s, moved.values, moved.probabilities)
    metric = fit(old)
    before = loss(metric, moved)
    for seed in range(8):
        metric = fit(moved, metric, seed)
    assert loss(metric, moved) < before / 2
    assert sorted(np.argsort(metric.weights)[-2:]) == sorted((m + 4) % F for m in MATTERS)


def test_the_same_sample_and_seed_give_the_same_metric() -> None:
    one, two = fit(stream(300)), fit(stream(300))
    assert np.array_equal(one.weights, two.weights)
    assert (one.bias, one.log_age, one.age) == (two.bias, two.log_age, two.age)


def test_an_answer_that_ages_is_trusted_less() -> None:
    """No feature says anything; the answer changes every 20 inputs or so."""
    rng = np.random.default_rng(0)
    values = np.cumsum(rng.random(400) < 0.05).tolist()
    features = rng.normal(0.0, 1.0, (400, 4)).astype(np.float32)
    metric = fit(Sample(features, np.arange(400) / 10.0, values, np.ones(400)))
    still = np.zeros((3, 4), np.float32)
    young, middle, old = p_changed(metric, still, still, np.array([0.1, 2.0, 30.0])).tolist()
    assert young < 0.35 < middle < old
    assert old > 0.8


def selected(count: int, seed: int, chance: float) -> tuple[Sample, Sample, np.ndarray]:
    """A stream, and the part of it that a gate would infer.

    The answer to a hard input is a coin, that to an easy one nearly always the same. Hard ones are
    always inferred, easy ones with `chance`. No feature tells them apart.
    """
    rng = np.random.default_rng(seed)
    hard = rng.random(count) < 0.2
    features = rng.normal(0.0, 1.0, (count, 3)).astype(np.float32)
    values = np.where(hard, rng.random(count) < 0.5, rng.random(count) < 0.02).astype(int)
    probabilities = np.where(hard, 1.0, chance)
    times_s = np.arange(count) / 10.0
    seen = rng.random(count) < probabilities
    whole = Sample(features, times_s, values.tolist(), np.ones(count))
    part = Sample(features[seen], times_s[seen], values[seen].tolist(), probabilities[seen])
    return whole, part, seen


def rates(metric: Metric, whole: Sample, part: Sample) -> tuple[float, float]:
    """Mean p(changed), and how often it has changed, over pairs of an inferred input (which is
    what a cache has) and any later one of the stream: what the gate decides on."""
    rng = np.random.default_rng(7)
    entries = rng.integers(0, len(part.values), 6000)
    inputs = rng.integers(0, len(whole.values), 6000)
    later = whole.times_s[inputs] > part.times_s[entries]
    a, b = entries[later], inputs[later]
    age_s = whole.times_s[b] - part.times_s[a]
    p = p_changed(metric, part.features[a], whole.features[b], age_s)
    y = [part.values[i] != whole.values[j] for i, j in zip(a, b, strict=True)]
    return float(p.mean()), float(np.mean(y))


def test_ignoring_which_inputs_were_seen_would_bias_p_and_weighting_does_not() -> None:
    """Labels missing not at random: hard inputs are over-represented among the inferred ones.

    Over seeds, the weighted fit's mean p is the share that has changed on the whole stream; the
    fit that ignores the probabilities finds the stream far harder than it is.
    """
    weighted, ignoring, truth = [], [], []
    for seed in range(6):
        whole, part, _ = selected(8000, seed, chance=0.1)
        as_if_all = Sample(part.features, part.times_s, part.values, np.ones(len(part.values)))
        p, share = rates(fit(part, seed=seed), whole, part)
        weighted.append(p)
        truth.append(share)
        ignoring.append(rates(fit(as_if_all, seed=seed), whole, part)[0])
    assert np.mean(weighted) == pytest.approx(np.mean(truth), abs=0.03)
    assert np.mean(ignoring) > np.mean(truth) + 0.06
    assert all(a < b for a, b in zip(weighted, ignoring, strict=True))


def test_one_pair_cannot_outweigh_all_others() -> None:
    """A probability of one in a million is a weight of HEAVIEST, not of a million."""
    sample = stream(100)
    probabilities = np.ones(100)
    probabilities[50] = 1e-6
    rare = Sample(sample.features, sample.times_s, sample.values, probabilities)
    assert loss(fit(rare), stream(400, seed=5)) < 0.2


@pytest.mark.parametrize("count", [2, 12, 200])
def test_one_answer_to_everything_is_never_thought_to_change(count: int) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(0.0, 1.0, (count, 6)).astype(np.float32)
    metric = fit(Sample(features, np.arange(count) / 10.0, ["calm"] * count, np.ones(count)))
    p = p_changed(metric, features[:-1], features[1:], np.full(count - 1, 0.1))
    assert (p < 0.2).all()
    embedding = embedding_of(metric, features)
    assert embedding(features).shape == (count, len(embedding.used))
    assert len(embedding.used) >= 1


def test_inputs_that_never_change_tell_nothing_apart() -> None:
    """The answer flickers on a constant picture: p is how often it does."""
    rng = np.random.default_rng(0)
    features = np.full((300, 6), 0.5, np.float32)
    values = (rng.random(300) < 0.5).tolist()
    metric = fit(Sample(features, np.arange(300) / 10.0, values, np.ones(300)))
    assert np.isfinite(metric.weights).all()
    p = p_changed(metric, features[:50], features[50:100], np.full(50, 1.0))
    assert p == pytest.approx(np.full(50, 0.5), abs=0.1)
    embedding = embedding_of(metric, features)
    assert len(set(map(bytes, embedding(features)))) == 1


def test_a_clock_that_runs_backwards_makes_no_negative_age() -> None:
    sample = stream(200)
    times_s = sample.times_s.copy()
    times_s[100:] -= 3600.0
    metric = fit(Sample(sample.features, times_s, sample.values, sample.probabilities))
    assert np.isfinite([metric.log_age, metric.age, metric.bias]).all()
    assert loss(metric, stream(400, seed=5)) < 0.2


def test_features_that_are_no_numbers_are_refused() -> None:
    sample = stream(50)
    sample.features[10, 4] = np.nan
    with pytest.raises(ValueError, match="not a number"):
        fit(sample)
    embedding = embedding_of(fit(stream(400)), stream(400).features)
    broken = stream(1).features[0]
    broken[MATTERS[0]] = np.nan
    with pytest.raises(ValueError, match="not a number"):
        embedding(broken)


@given(
    st.lists(st.floats(0.0, 30.0), min_size=4, max_size=4).filter(lambda w: max(w) > 0.01),
    st.integers(0, 10_000),
)
def test_the_distance_of_embeddings_is_the_metrics_within_rounding(
    weights: list[float], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    metric = Metric(np.array(weights, np.float32), 0.3, 0.01, -2.0)
    seen = rng.normal(0.0, 1.0, (30, 4)).astype(np.float32)
    embedding = embedding_of(metric, seen)
    a, b = seen[:15], seen[15:]
    steps = np.abs(embedding(a).astype(int) - embedding(b).astype(int)).sum(axis=1)
    exact = np.abs(a - b) @ np.array(weights)
    # Half a step at either end of each number, and float32.
    assert (
        np.abs(steps * embedding.step - exact).max() <= embedding.step * len(embedding.used) * 1.02
    )


def test_new_features_within_the_headroom_are_not_clipped() -> None:
    metric = Metric(np.array([1.0, 4.0], np.float32), 0.0, 0.0, 0.0)
    seen = np.array([[0.0, 0.0], [1.0, 1.0]], np.float32)
    embedding = embedding_of(metric, seen)
    below, above = np.array([-0.9, -0.9], np.float32), np.array([1.9, 1.9], np.float32)
    distance = int(np.abs(embedding(below).astype(int) - embedding(above)).sum())
    assert distance * embedding.step == pytest.approx(2.8 * 5.0, rel=0.03)


@given(st.floats(0.1, 3.0), st.floats(-3.0, 3.0), st.floats(0.0, 1e4))
def test_the_head_reads_what_the_metric_says_recalibrated(
    slope: float, offset: float, age_s: float
) -> None:
    metric = Metric(np.array([2.0, 0.0, 1.0], np.float32), 0.4, 0.02, -1.5)
    embedding = embedding_of(metric, np.array([[0, 0, 0], [1, 1, 1]], np.float32))
    head = embedding.head(slope, offset)
    found = head.bias + head.distance * 10 + head.log_age * math.log1p(age_s) + head.age * age_s
    z = -1.5 + 10 * embedding.step + 0.4 * math.log1p(age_s) + 0.02 * age_s
    assert found == pytest.approx(slope * z + offset, rel=1e-6, abs=1e-6)


def test_features_that_weigh_nothing_are_not_in_the_embedding() -> None:
    metric = Metric(np.array([0.0, 2.0, 0.0, 1.0], np.float32), 0.0, 0.0, 0.0)
    embedding: Embedding = embedding_of(metric, np.eye(4, dtype=np.float32))
    assert embedding.used.tolist() == [1, 3]
    assert embedding(np.zeros(4, np.float32)).shape == (2,)
    assert embedding(np.zeros((7, 4), np.float32)).shape == (7, 2)


@pytest.mark.parametrize("count", [60, 400])
def test_a_fit_pauses_often_enough_for_an_input_to_come_between(count: int) -> None:
    """A slow rule of the user's own must not hold the interpreter for many pairs on end."""
    asked: list[int] = []
    since = [0]

    def same(a: object, b: object) -> bool:
        since[0] += 1
        return a == b

    def pause() -> None:
        asked.append(since[0])
        since[0] = 0

    fit_metric(stream(count), same, None, np.random.default_rng(0), pause)
    assert len(asked) >= 10
    assert max(asked) <= 200


def test_a_rule_that_raises_ends_the_fit_with_its_error() -> None:
    def same(a: object, b: object) -> bool:
        raise KeyError("box")

    failing: Callable[[object, object], bool] = same
    with pytest.raises(KeyError, match="box"):
        fit_metric(stream(50), failing, None, np.random.default_rng(0))
