"""What a learning gate remembers: bounded, in order, and embedded anew by every metric."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi_edge.cache import ENTRY_OVERHEAD_BYTES
from infi_edge.learning.memory import Memory, is_learnable
from infi_edge.learning.metric import Embedding, Metric, embedding_of

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=300),
    st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=60),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=5),
)


def point(number: float, features: int = 3) -> np.ndarray:
    return np.full(features, number, np.float32)


def embedding(weights: list[float], reach: float = 10.0) -> Embedding:
    metric = Metric(np.array(weights, np.float32), 0.0, 0.0, -3.0)
    return embedding_of(metric, np.stack([point(0.0, len(weights)), point(reach, len(weights))]))


def filled(count: int, entries: int = 100, **kinds: object) -> Memory:
    memory = Memory(3, entries, 1 << 20)
    for i in range(count):
        memory.add(point(i), float(i), i, 1.0)
    return memory


@given(
    st.integers(1, 12),
    st.integers(2, 30),
    st.integers(200, 6000),
    st.lists(st.tuples(VALUES, st.floats(0.01, 1.0)), max_size=80),
)
def test_it_stays_in_its_bounds_and_keeps_the_newest_in_order(
    features: int, entries: int, max_bytes: int, added: list[tuple[object, float]]
) -> None:
    memory = Memory(features, entries, max_bytes)
    fitting: list[int] = []
    for i, (value, probability) in enumerate(added):
        memory.add(point(i, features), float(i), value, probability)
        size = len(json.dumps(value)) if isinstance(value, (str, list, dict)) else 8
        if size + 4 * features + ENTRY_OVERHEAD_BYTES <= max_bytes:
            fitting.append(i)
        sample = memory.sample()
        kept = len(memory)
        assert kept == len(sample.values) == len(sample.features)
        assert kept <= max(entries, 2)
        content = sum(
            4 * features + ENTRY_OVERHEAD_BYTES + len(json.dumps(v))
            if isinstance(v, (str, list, dict))
            else 4 * features + ENTRY_OVERHEAD_BYTES
            for v in sample.values
        )
        assert content <= max_bytes
        newest = fitting[len(fitting) - kept :]
        assert sample.values == [added[j][0] for j in newest]
        assert sample.times_s.tolist() == [float(j) for j in newest]
        assert sample.probabilities.tolist() == [added[j][1] for j in newest]
        assert [row.tolist() for row in sample.features] == [
            point(j, features).tolist() for j in newest
        ]
        assert kept >= min(len(fitting), 1)


def test_it_is_filled_to_its_bound_before_anything_is_dropped() -> None:
    memory = filled(100, entries=100)
    assert len(memory) == 100
    memory.add(point(100), 100.0, 100, 1.0)
    assert memory.sample().values == list(range(1, 101))


def test_one_large_answer_drives_out_as_many_small_ones_as_it_must() -> None:
    memory = Memory(1, 100, 4000)
    for i in range(30):
        memory.add(point(i, 1), float(i), i, 1.0)
    before = len(memory)
    memory.add(point(99, 1), 99.0, "x" * 2000, 1.0)
    values = memory.sample().values
    assert values[-1] == "x" * 2000
    assert 1 < len(memory) < before
    assert values[:-1] == list(range(30 - len(values) + 1, 30))


def test_a_sample_is_a_copy() -> None:
    memory = filled(5)
    sample = memory.sample()
    memory.add(point(9), 9.0, 9, 0.5)
    sample.features[:] = -1
    sample.values.append("more")
    assert memory.sample().values == [0, 1, 2, 3, 4, 9]
    assert memory.sample().features[0, 0] == 0
    assert len(sample.values) == 6


def test_another_metric_embeds_all_of_it_anew() -> None:
    memory = filled(8)
    first, second = embedding([1.0, 0.0, 0.0]), embedding([0.0, 2.0, 1.0])
    for one in (first, second):
        cache = memory.cache(one)
        assert len(cache) == 8
        assert cache.dim == len(one.used)
        for number in range(8):
            own = one(point(number))
            near = cache.candidates(own, 8.0)
            slot = int(near.slots[near.distances.argmin()])
            assert near.distances.min() == 0
            assert cache.value(slot) == number
            assert cache.age_s(slot, 8.0) == 8.0 - number
    assert len(first.used) != len(second.used)


def test_the_last_answer_is_the_caches_newest_also_after_the_ring_has_wrapped() -> None:
    memory = Memory(3, 10, 1 << 20)
    for i in range(37):
        memory.add(point(i % 5), float(i), i, 1.0)
    cache = memory.cache(embedding([1.0, 1.0, 1.0]))
    assert cache.value(cache.newest) == 36
    assert sorted(cache.value(slot) for slot in range(len(cache))) == list(range(27, 37))


def test_a_shadow_has_only_what_a_gate_that_filters_would_have_inferred() -> None:
    memory = Memory(3, 100, 1 << 20)
    for i in range(20):
        memory.add(point(i), float(i), i, 1.0, in_shadow=i % 4 == 0)
    one = embedding([1.0, 1.0, 1.0])
    shadow = memory.cache(one, shadow=True)
    assert sorted(shadow.value(slot) for slot in range(len(shadow))) == [0, 4, 8, 12, 16]
    assert len(memory.cache(one)) == 20
    memory.all_in_shadow()
    assert len(memory.cache(one, shadow=True)) == 20


def test_what_is_added_after_a_wrap_has_its_own_part_in_the_shadow() -> None:
    memory = Memory(3, 4, 1 << 20)
    for i in range(4):
        memory.add(point(i), float(i), i, 1.0, in_shadow=False)
    for i in range(4, 6):
        memory.add(point(i), float(i), i, 1.0, in_shadow=True)
    shadow = memory.cache(embedding([1.0, 1.0, 1.0]), shadow=True)
    assert sorted(shadow.value(slot) for slot in range(len(shadow))) == [4, 5]


def test_the_caches_age_limit_holds_for_what_is_remembered() -> None:
    cache = filled(10).cache(embedding([1.0, 0.0, 0.0]), max_age_s=3.0)
    cache.expire(10.0)
    assert sorted(cache.value(slot) for slot in range(len(cache))) == [7, 8, 9]


def test_nothing_remembered_is_an_empty_cache() -> None:
    memory = Memory(3, 10, 1 << 20)
    assert len(memory) == 0
    assert memory.sample().features.shape == (0, 3)
    assert len(memory.cache(embedding([1.0, 0.0, 0.0]))) == 0


NAN = float("nan")


@pytest.mark.parametrize(
    "value", [NAN, [1, NAN], [["car", 0.1, NAN]], {"a": {"b": [NAN]}}, (1.0, NAN), np.float64(NAN)]
)
def test_an_answer_with_a_nan_anywhere_teaches_nothing(value: object) -> None:
    assert not is_learnable(value)


@pytest.mark.parametrize(
    "value", [None, True, 0, 1.5, "", "nan", [], [["car", 0.1]], {}, {"a": [1, None]}, (1, 2)]
)
def test_any_other_answer_does(value: object) -> None:
    assert is_learnable(value)


def test_an_answer_larger_than_all_may_be_drives_nothing_out() -> None:
    memory = Memory(3, 100, 10_000)
    for i in range(5):
        memory.add(point(i), float(i), i, 1.0)
    memory.add(point(9), 9.0, "x" * 20_000, 1.0)
    assert memory.sample().values == [0, 1, 2, 3, 4]
