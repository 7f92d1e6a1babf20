"""The reuse cache against a plain model of it; its search against brute force; its snapshots."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi_edge.archive import array_bytes, read_archive, write_archive
from infi_edge.cache import CANDIDATES, ReuseCache
from infi_edge.errors import BundleError

DIM = 8
FAR = np.full(DIM, 255, np.uint8)


@dataclass
class Entry:
    """What the model of a cache knows of an entry."""

    name: str
    time_s: float
    inserted: int
    used: int
    hits: int = 0


def filled(count: int, seed: int = 0, **bounds) -> tuple[ReuseCache, np.ndarray]:
    """A cache of random embeddings, value i and time i, and the embeddings."""
    embeddings = np.random.default_rng(seed).integers(0, 256, (count, DIM), np.uint8)
    cache = ReuseCache(DIM, **bounds)
    for i, embedding in enumerate(embeddings):
        cache.insert(embedding, i, float(i))
    return cache, embeddings


def values(cache: ReuseCache) -> list:
    return [cache.value(slot) for slot in range(len(cache))]


def victim(entries: list[Entry], eviction: str) -> Entry:
    """The entry that has to go."""
    keys = {
        "oldest": lambda e: e.inserted,
        "lru": lambda e: e.used,
        "least-hit": lambda e: (e.hits, e.inserted),
    }
    return min(entries, key=keys[eviction])


@given(
    st.sampled_from(["oldest", "lru", "least-hit"]),
    st.integers(1, 6),
    st.lists(
        st.tuples(st.sampled_from("iiithw"), st.integers(0, 60), st.integers(0, 5)), max_size=60
    ),
)
def test_any_sequence_keeps_the_bounds_and_evicts_the_right_entry(eviction, capacity, steps):
    """Steps: insert, touch, look up (drops what is over 20 s), wait. Bytes for 4 small entries."""
    max_bytes, max_age_s = 4 * (DIM + 100), 20.0
    cache = ReuseCache(DIM, capacity, max_bytes, max_age_s, eviction)
    model: list[Entry] = []
    now_s, event = 0.0, 0
    for step, (kind, length, wait) in enumerate(steps):
        if kind == "i":
            event += 1
            name = f"{step}" + "x" * length
            size = DIM + len(json.dumps(name)) + 96
            cache.insert(np.full(DIM, step, np.uint8), name, now_s)
            while len(model) >= capacity or (
                sum(DIM + len(e.name) + 2 + 96 for e in model) + size > max_bytes
            ):
                model.remove(victim(model, eviction))
            model.append(Entry(name, now_s, event, event))
        elif kind == "t" and model:
            event += 1
            chosen = model[length % len(model)]
            cache.touch(values(cache).index(chosen.name))
            chosen.used, chosen.hits = event, chosen.hits + 1
        elif kind == "h" and model:
            near = cache.candidates(FAR, now_s)
            model = [e for e in model if now_s - e.time_s <= max_age_s]
            assert sorted(near.ages_s) == sorted(now_s - e.time_s for e in model)
        else:
            now_s += wait
        assert sorted(values(cache)) == sorted(e.name for e in model)
        assert len(cache) <= capacity
        assert cache.size_bytes <= max_bytes
        if model:
            assert cache.value(cache.newest) == max(model, key=lambda e: e.inserted).name


@given(st.integers(65, 400), st.integers(0, 1000), st.integers(1, 300))
def test_candidates_are_the_nearest_of_brute_force_and_the_most_recent(count, seed, capacity):
    cache, embeddings = filled(count, seed, capacity=capacity)
    kept = np.arange(count)[-capacity:]
    query = np.random.default_rng(seed + 1).integers(0, 256, DIM, np.uint8)
    distances = np.abs(embeddings.astype(int) - query).sum(axis=1)

    near = cache.candidates(query, float(count))

    found = [cache.value(slot) for slot in near.slots]
    assert len(found) == len(set(found))
    assert near.distances.tolist() == distances[found].tolist()
    assert near.ages_s.tolist() == [count - i for i in found]
    assert set(kept[-CANDIDATES:]) <= set(found)
    nearest = np.sort(distances[kept])[:CANDIDATES]
    assert np.sort(near.distances)[: len(nearest)].tolist() == nearest.tolist()


def test_one_distance_agrees_with_brute_force():
    cache, embeddings = filled(10)
    assert [cache.distance(i, FAR) for i in range(10)] == (255 - embeddings.astype(int)).sum(
        axis=1
    ).tolist()


@pytest.mark.parametrize("count", [1, 3, 64])
def test_a_cache_smaller_than_the_search_gives_all_it_has(count):
    cache, _ = filled(count)
    assert sorted(cache.value(s) for s in cache.candidates(FAR, 0.0).slots) == list(range(count))


def test_an_empty_cache_has_no_candidates():
    cache = ReuseCache(DIM)
    assert len(cache.candidates(FAR, 0.0).slots) == 0
    cache.insert(FAR, 1, 0.0)
    cache.clear()
    assert len(cache) == 0
    assert len(cache.candidates(FAR, 0.0).slots) == 0


def test_a_cache_whose_entries_have_all_expired_has_no_candidates():
    cache, _ = filled(5, max_age_s=10.0)
    near = cache.candidates(FAR, 1000.0)
    assert len(near.slots) == len(near.distances) == len(near.ages_s) == 0
    assert len(cache) == 0


def test_only_entries_over_their_age_expire():
    cache, _ = filled(100, max_age_s=10.0)
    cache.candidates(FAR, 99.0)
    assert sorted(values(cache)) == list(range(89, 100))
    assert cache.value(cache.newest) == 99


def test_the_newest_and_the_most_recent_are_right_after_evictions():
    cache, _ = filled(250, capacity=100)
    cache.candidates(FAR, 0.0)
    assert cache.value(cache.newest) == 249
    found = [cache.value(slot) for slot in cache.candidates(FAR, 250.0).slots]
    assert set(range(250 - CANDIDATES, 250)) <= set(found)
    assert min(found) >= 150


def test_least_hit_takes_the_first_inserted_of_equals_and_forgets_hits_of_the_evicted():
    cache = ReuseCache(DIM, 2, eviction="least-hit")
    for name in "ab":
        cache.insert(FAR, name, 0.0)
    for name in "ba":
        cache.touch(values(cache).index(name))
    for name in "cd":
        cache.insert(FAR, name, 0.0)
    assert sorted(values(cache)) == ["b", "d"]


def test_an_answer_larger_than_all_the_bytes_is_not_stored():
    cache = ReuseCache(DIM, max_bytes=500)
    cache.insert(FAR, "small", 0.0)
    cache.insert(FAR, "x" * 500, 1.0)
    assert values(cache) == ["small"]


def test_a_stored_embedding_does_not_change_with_the_callers():
    cache, mine = ReuseCache(DIM), FAR.copy()
    cache.insert(mine, 1, 0.0)
    mine[:] = 0
    assert cache.distance(0, FAR) == 0


@pytest.mark.parametrize("wrong", [np.zeros(DIM + 1, np.uint8), np.zeros(DIM, np.float32)])
def test_an_embedding_of_another_shape_or_type_is_refused(wrong):
    with pytest.raises(ValueError, match="not uint8"):
        ReuseCache(DIM).insert(wrong, 1, 0.0)


@pytest.mark.parametrize("bounds", [{"capacity": 0}, {"max_bytes": 0}])
def test_a_cache_without_room_is_refused(bounds):
    with pytest.raises(ValueError, match="at least 1"):
        ReuseCache(DIM, **bounds)


def test_a_snapshot_brings_back_answers_order_and_age(tmp_path):
    cache, embeddings = filled(150, capacity=100)
    cache.touch(3)
    cache.save(tmp_path / "snapshot", "yard", 150.0)
    again = ReuseCache(DIM, 100)

    assert again.load(tmp_path / "snapshot", "yard", 1000.0) == 100

    assert values(again) == list(range(50, 150))
    assert again.value(again.newest) == 149
    for slot in range(100):
        age_s = 150.0 - again.value(slot)
        assert age_s <= again.age_s(slot, 1000.0) < age_s + 60  # the time between counts too
        assert again.distance(slot, embeddings[again.value(slot)]) == 0


@pytest.mark.parametrize("value", [None, True, 3, 0.5, "ünï", [], [["car", 0.1]], {"a": [1]}])
def test_any_json_value_survives_a_snapshot(tmp_path, value):
    cache = ReuseCache(DIM)
    cache.insert(FAR, value, 0.0)
    cache.save(tmp_path / "snapshot", "yard", 0.0)
    again = ReuseCache(DIM)
    again.load(tmp_path / "snapshot", "yard", 0.0)
    assert values(again) == [value]


def test_a_smaller_cache_keeps_the_newest_of_a_snapshot(tmp_path):
    filled(50)[0].save(tmp_path / "snapshot", "yard", 50.0)
    small = ReuseCache(DIM, 5)
    assert small.load(tmp_path / "snapshot", "yard", 50.0) == 5
    assert sorted(values(small)) == [45, 46, 47, 48, 49]


def test_time_away_counts_as_age_and_never_as_youth(tmp_path):
    path = tmp_path / "snapshot"
    filled(1)[0].save(path, "yard", 5.0)
    manifest, members = read_archive(path)
    for away_s, least in ((3600.0, 3605.0), (-3600.0, 5.0)):
        saved = manifest["saved_at_unix_s"] - away_s
        write_archive(path, {**manifest, "saved_at_unix_s": saved}, members)
        again = ReuseCache(DIM)
        again.load(path, "yard", 0.0)
        assert least <= again.age_s(0, 0.0) < least + 60


def test_the_snapshot_of_something_else_is_refused(tmp_path, refuses):
    path = tmp_path / "snapshot"
    filled(3)[0].save(path, "yard", 0.0)
    with refuses(BundleError, "another source"):
        ReuseCache(DIM).load(path, "street", 0.0)
    with refuses(BundleError, "another source"):
        ReuseCache(DIM + 1).load(path, "yard", 0.0)
    with refuses(BundleError, "cannot be read"):
        ReuseCache(DIM).load(tmp_path / "absent", "yard", 0.0)


def test_a_bundle_is_no_snapshot(tmp_path, refuses):
    write_archive(tmp_path / "other", {"format_version": 1}, {})
    with refuses(BundleError, "no cache snapshot"):
        ReuseCache(DIM).load(tmp_path / "other", "yard", 0.0)


def rewritten(path, manifest=None, **members: bytes) -> None:
    """Change a snapshot's content; its hashes stay right."""
    old_manifest, old_members = read_archive(path)
    write_archive(path, old_manifest | (manifest or {}), old_members | members)


def test_a_snapshot_with_a_value_that_is_no_json_is_refused(tmp_path, refuses):
    path = tmp_path / "snapshot"
    filled(1)[0].save(path, "yard", 0.0)
    rewritten(path, **{"values.json": b"[NaN]"})
    with refuses(BundleError, "damaged cache snapshot"):
        ReuseCache(DIM).load(path, "yard", 0.0)


@pytest.mark.parametrize(
    ("saved_at", "age_s"),
    [(10**400, 0.0), (-(10**400), 0.0), (-1.7e308, 1.7e308), (0.0, np.nan)],
    ids=["future", "past", "overflow", "nan"],
)
def test_a_snapshot_of_an_impossible_time_is_refused(tmp_path, refuses, saved_at, age_s):
    path = tmp_path / "snapshot"
    filled(1)[0].save(path, "yard", 0.0)
    ages = array_bytes(np.array([age_s]))
    rewritten(path, {"saved_at_unix_s": saved_at}, **{"ages_s.npy": ages})
    with refuses(BundleError, "damaged cache snapshot"):
        ReuseCache(DIM).load(path, "yard", 0.0)


@pytest.mark.parametrize("capacity", [3, 10])
@pytest.mark.parametrize("max_bytes", [400, 1 << 20])
def test_filling_at_once_leaves_what_inserting_one_by_one_does(capacity, max_bytes):
    rng = np.random.default_rng(0)
    embeddings = rng.integers(0, 255, (6, 4)).astype(np.uint8)
    values, times_s = ["a", "bcd", 1, None, "e", 2], np.arange(6.0)
    sizes = np.array([len(json.dumps(v)) if isinstance(v, str) else 0 for v in values])
    at_once, one_by_one = (ReuseCache(4, capacity, max_bytes) for _ in range(2))
    at_once.fill(embeddings, values, times_s, sizes)
    for embedding, value, time_s in zip(embeddings, values, times_s, strict=True):
        one_by_one.insert(embedding, value, float(time_s))
    assert len(at_once) == len(one_by_one)
    assert at_once.size_bytes == one_by_one.size_bytes
    for cache in (at_once, one_by_one):
        cache.insert(embeddings[0], "new", 9.0)
    probe = embeddings[3]
    found = [c.candidates(probe, 10.0) for c in (at_once, one_by_one)]
    seen = [
        sorted(
            (str(cache.value(int(slot))), int(distance), float(age_s))
            for slot, distance, age_s in zip(near.slots, near.distances, near.ages_s, strict=True)
        )
        for cache, near in zip((at_once, one_by_one), found, strict=True)
    ]
    assert seen[0] == seen[1]
    assert at_once.value(at_once.newest) == one_by_one.value(one_by_one.newest) == "new"
