"""What is unlike all before is noticed once, and what alternates is no novelty."""

from __future__ import annotations

import numpy as np

from infi_edge.learning.novelty import IN_A_ROW, STEADY, Novelty


def news(stream: np.ndarray) -> list[int]:
    watch = Novelty()
    return [i for i, features in enumerate(stream) if watch.is_new(features.astype(np.float32))]


def noisy(level: float, count: int, seed: int = 0) -> np.ndarray:
    return level + 0.02 * np.random.default_rng(seed).standard_normal((count, 50))


def test_a_stream_that_stays_as_it_is_has_no_news() -> None:
    assert news(noisy(0.5, 3000)) == []


def test_another_level_is_news_after_three_inputs_and_only_then() -> None:
    assert news(np.concatenate([noisy(0.2, 300), noisy(0.8, 600, 1)])) == [300 + IN_A_ROW - 1]


def test_one_odd_input_is_no_news() -> None:
    stream = noisy(0.2, 300)
    stream[200] = 1.0
    assert news(stream) == []


def test_a_few_features_that_change_are_no_news() -> None:
    stream = noisy(0.2, 600)
    stream[300:, :5] += 0.3
    assert news(stream) == []


def test_regimes_that_alternate_are_news_only_at_first() -> None:
    parts = [noisy(0.2 if k % 2 else 0.8, 60, k) for k in range(20)]
    found = news(np.concatenate(parts))
    assert 1 <= len(found) <= 3
    assert max(found) < 400


def test_there_is_nothing_to_compare_with_at_first() -> None:
    assert news(np.concatenate([noisy(0.2, STEADY // 2), noisy(0.9, 10, 1)])) == []
