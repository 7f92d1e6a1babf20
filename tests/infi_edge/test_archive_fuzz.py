"""Whatever the bytes of a bundle or snapshot are: it is read, or refused in one sentence."""

from __future__ import annotations

import json
import math
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infi_edge.archive import (
    array_bytes,
    array_from_bytes,
    parse_archive,
    write_archive,
    write_atomically,
)
from infi_edge.bundle import read_bundle, write_bundle
from infi_edge.cache import ReuseCache
from infi_edge.errors import BundleError
from infi_edge.filter import load_filter

pytestmark = pytest.mark.filterwarnings("ignore")  # NumPy's, about odd headers

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 1 << 63, 1e308, -1e308, 0, 1])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(), max_size=8),  # lone surrogates and line ends too
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(), max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
HEADER_TEXT = st.text(
    "{}[]()'\",: \\\n01x-<>|=OfiuVSbadescrshapefortran_orderTrueFalseNone", max_size=80
)
HEADER_VALUES = st.recursive(
    st.sampled_from(
        ["<i4", "<f4", "|O", "|V9", "i4,f4", (), 3, -1, 1 << 62, True, False, None, b""]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="session")
def bundle_bytes(folder, manifest, members) -> bytes:
    write_bundle(folder / "valid.infi", manifest, members)
    return (folder / "valid.infi").read_bytes()


@pytest.fixture(scope="session")
def snapshot(folder) -> Path:
    cache = ReuseCache(4)
    for i in range(5):
        cache.insert(np.full(4, i, np.uint8), ["car", i], float(i))
    cache.save(folder / "valid.snapshot", "yard", 5.0)
    return folder / "valid.snapshot"


def read_or_refused(read: Callable[[], Any]) -> Any:
    """What `read` returns, or None if it refused in one sentence; anything else fails."""
    try:
        return read()
    except BundleError as error:
        message = str(error)
    assert message.isprintable(), repr(message)
    assert "Traceback" not in message
    return None


def npy(header: str) -> bytes:
    """A .npy file of any header and 12 bytes of data."""
    text = header.encode("latin1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(12)


@given(st.binary(max_size=200), st.sampled_from([b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(18)]))
def test_random_bytes_are_refused(content, start):
    assert read_or_refused(lambda: parse_archive(start + content, "noise")) is None


@given(st.data())
def test_a_flipped_bit_is_refused_or_changes_nothing(bundle_bytes, data):
    damaged = bytearray(bundle_bytes)
    for bit in data.draw(st.sets(st.integers(0, 8 * len(damaged) - 1), min_size=1, max_size=3)):
        damaged[bit // 8] ^= 1 << bit % 8
    found = read_or_refused(lambda: parse_archive(bytes(damaged), "damaged"))
    assert found is None or found == parse_archive(bundle_bytes, "valid")


@given(st.data())
def test_a_flipped_bit_of_the_directory_is_refused_or_changes_nothing(bundle_bytes, data):
    start = bundle_bytes.index(b"PK\x01\x02")
    damaged = bytearray(bundle_bytes)
    bit = data.draw(st.integers(8 * start, 8 * len(damaged) - 1))
    damaged[bit // 8] ^= 1 << bit % 8
    found = read_or_refused(lambda: parse_archive(bytes(damaged), "damaged"))
    assert found is None or found == parse_archive(bundle_bytes, "valid")


@given(st.data())
def test_a_bundle_cut_anywhere_is_refused(bundle_bytes, data):
    cut = data.draw(st.integers(0, len(bundle_bytes) - 1))
    assert read_or_refused(lambda: parse_archive(bundle_bytes[:cut], "cut")) is None


@given(st.dictionaries(st.text(st.characters(), max_size=8), JSON, max_size=5), st.booleans())
def test_a_manifest_of_any_json_is_refused(folder, members, raw, versioned):
    if versioned:
        raw = {**raw, "format_version": 1}
    write_archive(folder / "any.infi", raw, members)
    assert read_or_refused(lambda: read_bundle(folder / "any.infi")) is None


@settings(max_examples=400)
@given(st.data())
def test_any_json_anywhere_in_a_manifest_is_read_or_refused(folder, manifest, members, data):
    raw = msgspec.to_builtins(manifest)
    place: Any = raw
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys)) if keys else None
        if key is None or not isinstance(place[key], (dict, list)) or data.draw(st.booleans()):
            break
        place = place[key]
    if isinstance(place, dict) and (key is None or data.draw(st.integers(0, 3)) == 0):
        key = data.draw(st.text(st.characters(), max_size=8))
    if key is not None:
        place[key] = data.draw(JSON)
    write_archive(folder / "any.infi", raw, members)
    read_or_refused(lambda: load_filter(folder / "any.infi"))


@settings(max_examples=300)
@given(
    st.sampled_from(["features.npy", "gains.npy", "offsets.npy", "skip.npy"]),
    st.binary(max_size=60)
    | HEADER_TEXT.map(npy)
    | st.fixed_dictionaries(
        {"descr": HEADER_VALUES, "fortran_order": HEADER_VALUES, "shape": HEADER_VALUES}
    ).map(lambda header: npy(repr(header)))
    | st.lists(st.floats(width=32), min_size=3, max_size=3).map(
        lambda values: array_bytes(np.array(values, np.float32))
    )
    | st.lists(st.integers(-400, 400), min_size=3, max_size=3).map(
        lambda values: array_bytes(np.array(values, np.int32))
    ),
)
def test_any_member_of_a_light_filter_is_refused_or_fails_open(
    folder, manifest, members, name, content
):
    write_bundle(folder / "any.infi", manifest, {**members, name: content})
    loaded = read_or_refused(lambda: load_filter(folder / "any.infi"))
    if loaded is None:
        return
    try:
        score, embedding = loaded(np.full((60, 80, 3), 90, np.uint8))
    except ValueError:
        return  # the gate infers such an input
    assert 0.0 <= score <= 1.0 or math.isnan(score)  # the gate infers at a NaN
    assert embedding.dtype == np.uint8
    assert embedding.shape == (3,)


@given(st.data())
def test_a_snapshot_of_flipped_bits_is_refused_or_loads_the_same(folder, snapshot, data):
    damaged = bytearray(snapshot.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(damaged) - 1))
    damaged[bit // 8] ^= 1 << bit % 8
    (folder / "damaged.snapshot").write_bytes(damaged)
    cache = ReuseCache(4)
    read_or_refused(lambda: cache.load(folder / "damaged.snapshot", "yard", 0.0))
    assert [cache.value(i) for i in range(len(cache))] == [["car", i] for i in range(len(cache))]


@settings(max_examples=300)
@given(st.data())
def test_any_content_of_a_snapshot_is_read_or_refused(folder, snapshot, data):
    manifest, members = parse_archive(snapshot.read_bytes(), "valid")
    part = data.draw(st.sampled_from(["count", "dim", "saved_at_unix_s", *members]))
    if part == "values.json":
        values = data.draw(st.lists(JSON, min_size=5, max_size=5) | JSON)
        members[part] = data.draw(st.just(json.dumps(values).encode()) | st.binary(max_size=40))
    elif part == "ages_s.npy":
        ages = st.floats(), st.sampled_from([1e308, -1e308])
        numbers = data.draw(st.lists(st.one_of(*ages), min_size=5, max_size=5))
        members[part] = data.draw(st.just(array_bytes(np.array(numbers))) | HEADER_TEXT.map(npy))
    elif part == "embeddings.npy":
        members[part] = data.draw(st.binary(max_size=60) | HEADER_TEXT.map(npy))
    else:
        manifest[part] = data.draw(JSON)
    write_archive(folder / "any.snapshot", manifest, members)
    cache = ReuseCache(4, capacity=3)
    read_or_refused(lambda: cache.load(folder / "any.snapshot", "yard", 0.0))
    near = cache.candidates(np.zeros(4, np.uint8), 0.0)
    assert len(near.slots) == len(cache) <= 3
    assert np.isfinite(near.ages_s).all()
    assert (near.ages_s >= 0).all()


def test_an_array_of_another_type_shape_or_length_is_refused(refuses):
    data = array_bytes(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert array_from_bytes(data, "float32", (2, 3), "gains").tolist() == [[0, 1, 2], [3, 4, 5]]
    with refuses(BundleError, r"float32 \(2, 3\), not int32 \(2, 3\)"):
        array_from_bytes(data, "int32", (2, 3), "gains")
    with refuses(BundleError, r"not float32 \(3, 2\)"):
        array_from_bytes(data, "float32", (3, 2), "gains")
    for body in (data[:-1], data + b"\0"):
        with refuses(BundleError, "truncated"):
            array_from_bytes(body, "float32", (2, 3), "gains")


def test_a_write_that_fails_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "cache.snapshot"
    write_atomically(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, limits[1]))  # as good as a full disk
    try:
        with pytest.raises(OSError, match="too large"):
            write_atomically(path, bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_cannot_replace_its_target_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomically(tmp_path / "folder", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
