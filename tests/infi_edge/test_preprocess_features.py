"""A feature map is any tensor from the middle of a model; and what all specifications share."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from infi_edge.errors import BundleError, ConfigError
from infi_edge.preprocess import (
    AudioSpec,
    FeaturesSpec,
    ImageSpec,
    MotionSpec,
    Spec,
    TextSpec,
    VideoSpec,
    change_spec,
    parse_spec,
    spec_class,
)

MAP = FeaturesSpec((8, 8, 16))
SIZES = [(1,), (600,), (7, 5), (1, 1, 1), (3, 3, 40), (8, 8, 16), (40, 30, 64), (2, 3, 4, 5)]
EVERY = {
    "image": ImageSpec(40, 30, "BGR", -1.0, 1.0),
    "video": VideoSpec(5, 2, 40, 30),
    "audio": AudioSpec(8000, 500, 100, transform="power"),
    "text": TextSpec(32, 999, "chars", 2),
    "motion": MotionSpec(("a", "é\n"), 9, 3, 12.5, (0.1, -1e-30), (1e30, 1 / 3)),
    "features": FeaturesSpec((8, 8, 16), "int8", 0.25, 1 / 7),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["float32", "int8", "uint8", "int32"])
def test_any_tensor_with_or_without_the_batch(size: tuple[int, ...], kind: str) -> None:
    spec = FeaturesSpec(size, kind)  # type: ignore[arg-type]
    assert spec.problem() is None
    data = np.random.default_rng(0).integers(0, 100, size).astype(kind)
    tensor = spec.tensor(data)
    assert tensor.shape == (1, *size)
    assert tensor.dtype == spec.dtype == (np.int32 if kind == "int32" else np.float32)
    assert (tensor[0] == data).all()
    assert (spec.tensor(data[None]) == tensor).all()
    features = spec.features(tensor)
    assert features.shape == (spec.feature_count,)
    assert features.dtype == np.float32
    assert (np.abs(features) <= 1).all()


@given(hnp.arrays(np.float32, (8, 8, 16), elements=st.floats(width=32)))
@settings(max_examples=30)
def test_a_map_gives_a_finite_tensor_or_a_value_error(data: np.ndarray) -> None:
    before = data.tobytes()
    spec = FeaturesSpec((8, 8, 16), offset=3.0, scale=1e-3)
    if not np.isfinite(data).all() or np.abs(data).max() > 3e35:
        with pytest.raises(ValueError, match="not a number"):
            spec.tensor(data)
        return
    tensor = spec.tensor(data)
    assert np.isfinite(tensor).all()
    assert tensor.tobytes() == spec.tensor(data).tobytes()
    assert data.tobytes() == before
    assert np.isfinite(spec.features(tensor)).all()


def test_doubles_and_halves_are_floats_and_bools_are_levels() -> None:
    data = np.arange(4.0)
    for kind in (np.float64, np.float16, np.int64):
        assert (FeaturesSpec((4,)).tensor(data.astype(kind)) == data).all()
    assert FeaturesSpec((4,), "uint8").tensor(data > 1).tolist() == [[0, 0, 1, 1]]


def test_fitting_records_mean_and_deviation_and_scales_by_them() -> None:
    rng = np.random.default_rng(0)
    maps = [rng.normal(5, 3, (8, 8, 16)).astype(np.float32) for _ in range(20)]
    spec = MAP.fitted(maps)
    assert (spec.offset, spec.scale) == pytest.approx((5, 3), rel=0.02)
    tensors = np.concatenate([spec.tensor(m) for m in maps])
    assert (tensors.mean(), tensors.std()) == pytest.approx((0, 1), abs=1e-4)
    back = tensors[3] * np.float32(spec.scale) + np.float32(spec.offset)
    assert back == pytest.approx(maps[3], abs=1e-4)
    assert spec.fitted(maps[:1]) is spec
    ids = FeaturesSpec((4,), "int32")
    assert ids.fitted([np.arange(4)]) is ids


@pytest.mark.parametrize("level", [0.0, 1e-20, 7.7, 1e20])
def test_nothing_is_fitted_to_maps_that_are_all_one_value(level: float) -> None:
    with pytest.raises(ValueError, match="nothing to tell apart"):
        MAP.fitted([np.full((8, 8, 16), level)] * 2)


def test_maps_of_tiny_numbers_can_be_told_apart() -> None:
    maps = [np.full((8, 8, 16), i * 1e-15) for i in range(4)]
    assert np.ptp([MAP.fitted(maps).tensor(m) for m in maps]) > 2


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_is_fitted_to_what_is_no_number(value: float) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match="not a number"):
        MAP.fitted([np.full((8, 8, 16), value)])


def test_a_bump_shows_in_the_cell_and_channels_it_is_in() -> None:
    data = np.zeros((8, 8, 16), np.float32)
    data[6:, :2, 3] = 4.0
    grid = MAP.features(MAP.tensor(data)).reshape(16, 4, 4)
    assert grid[3, 3, 0] == pytest.approx(np.tanh(1.0), abs=1e-6)
    assert (np.argwhere(grid) == [[3, 3, 0]]).all()


def test_what_is_no_map_shows_in_means_of_neighbours_in_their_order() -> None:
    spec = FeaturesSpec((2, 768))
    data = np.zeros((2, 768), np.float32)
    data[0, :6] = 4.0
    found = spec.features(spec.tensor(data))
    assert found[:2] == pytest.approx(np.tanh(1.0), abs=1e-6)
    assert not found[2:].any()


def test_ids_are_counted() -> None:
    spec = FeaturesSpec((6,), "int32")
    features = spec.features(spec.tensor(np.array([5, 5, 9, 5, 5, 5])))
    assert (features[5], features[9], features.sum()) == (1.0, 0.25, 1.25)


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        ("float32", np.zeros((8, 8)), r"a feature map is \(8, 8, 16\) here, not \(8, 8\)"),
        ("float32", np.zeros((2, 8, 8, 16)), r"not \(2, 8, 8, 16\)"),
        ("float32", np.zeros((16, 8, 8)), r"not \(16, 8, 8\)"),
        ("float32", None, r"not \(\)"),
        ("float32", np.full((8, 8, 16), np.nan), "not a number"),
        ("float32", np.full((8, 8, 16), np.inf), "not a number"),
        ("float32", np.full((8, 8, 16), 1e300), "not a number"),
        ("float32", np.full((8, 8, 16), "x"), "is float32 here, not <U1"),
        ("float32", np.full((8, 8, 16), None), "not object"),
        ("float32", np.zeros((8, 8, 16), complex), "not complex"),
        ("int8", np.zeros((8, 8, 16), np.float32), "is int8 here, not float32"),
        ("int32", np.zeros((8, 8, 16), np.float32), "is int32 here, not float32"),
        ("int32", np.full((8, 8, 16), -1), "ids are 0..4095 here, not -1"),
        ("int32", np.full((8, 8, 16), 1 << 40), "not 1099511627776"),
    ],
)
def test_another_tensor_is_a_value_error(kind: Any, data: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FeaturesSpec((8, 8, 16), kind).tensor(data)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"size": ()}, "shape"),
        ({"size": (0,)}, "shape"),
        ({"size": (-4, 4)}, "shape"),
        ({"size": (1,) * 7}, "shape"),
        ({"size": (1 << 20, 1 << 20)}, "shape"),
        ({"scale": 0.0}, "scale"),
        ({"scale": np.inf}, "scale"),
        ({"offset": np.nan}, "scale"),
    ],
)
def test_impossible_fields_are_told(fields: dict[str, Any], words: str) -> None:
    assert words in (msgspec.structs.replace(MAP, **fields).problem() or "")


@pytest.mark.parametrize("modality", EVERY)
def test_a_specification_goes_through_the_manifest_unchanged(modality: str) -> None:
    spec = EVERY[modality]
    assert spec.problem() is None
    text = msgspec.json.encode(msgspec.to_builtins(spec))
    again = parse_spec(msgspec.json.decode(text), modality, "a.infi")
    assert again == spec
    assert type(again) is type(spec) is spec_class(modality)
    assert hash(again) == hash(spec)


@pytest.mark.parametrize("modality", EVERY)
def test_tensors_as_they_are_go_with_any_modality(modality: str) -> None:
    raw = msgspec.to_builtins(EVERY["features"])
    assert parse_spec(raw, modality, "a.infi") == EVERY["features"]


@pytest.mark.parametrize(
    ("raw", "modality", "words"),
    [
        (None, "audio", "wrong"),
        ([], "audio", "wrong"),
        ({"kind": "audio", "smell": 1}, "audio", "smell"),
        ({"kind": "audio", "bands": "many"}, "audio", "bands"),
        ({"kind": "audio", "bands": 1}, "audio", "impossible number of bands"),
        ({"kind": "audio", "bands": 10**30}, "audio", ""),
        ({"kind": "motion", "scale": [1]}, "motion", "impossible scale"),
        ({"kind": "text"}, "audio", ""),
        ({"kind": ["features"]}, "audio", ""),
        ({"kind": "smell"}, "smell", "unknown"),
        ({"kind": "features", "size": [1 << 40]}, "text", "impossible tensor shape"),
    ],
)
def test_a_damaged_specification_is_one_clear_sentence(
    refuses, raw: Any, modality: str, words: str
) -> None:
    with refuses(BundleError, words):
        parse_spec(raw, modality, "a.infi")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@given(st.sampled_from(list(EVERY)), st.data())
@settings(max_examples=300)
def test_any_manifest_gives_a_possible_specification_or_a_bundle_error(
    modality: str, data: st.DataObject
) -> None:
    raw = msgspec.to_builtins(EVERY[modality])
    for key in data.draw(st.lists(st.sampled_from([*raw, "new"]), max_size=2)):
        numbers = st.integers(-2, 1 << 62) | st.floats() | st.sampled_from([1 << 20, 8000])
        raw[key] = data.draw(numbers | JSON)
    try:
        spec: Spec = parse_spec(raw, modality, "a.infi")
    except BundleError:
        return
    assert spec.problem() is None
    assert 1 <= np.prod(spec.shape) * spec.dtype.itemsize <= 64 << 20
    assert spec.feature_count >= 1


def test_fields_are_set_from_text() -> None:
    spec = change_spec(MAP, {"size": ["4", "4"], "type": "int8", "scale": "0.5"})
    assert spec == FeaturesSpec((4, 4), "int8", 0.0, 0.5)
    assert change_spec(AudioSpec(), {"bands": "20", "transform": "power"}).bands == 20  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("spec", "settings_", "words"),
    [
        (AudioSpec(), {"band": "3"}, "band: unknown here; it is one of rate_hz"),
        (AudioSpec(), {"kind": "text"}, "kind: unknown"),
        (AudioSpec(), {"bands": "many"}, "bands"),
        (AudioSpec(), {"bands": ["1", "2"]}, "bands"),
        (AudioSpec(), {"bands": "3"}, "impossible number of bands: 3"),
        (AudioSpec(), {"transform": "mfcc"}, "transform=mfcc: it is one of logmel, power"),
        (TextSpec(), {"unit": ["words", "chars"]}, "unit=.*: it is one of words, chars"),
        (MotionSpec(), {"scale": ["1", "x"]}, "scale"),
        (TextSpec(), {"length": "nan"}, "length"),
        (VideoSpec(), {"low": "nan"}, "low must be below high"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    refuses, spec: Spec, settings_: dict[str, Any], words: str
) -> None:
    with refuses(ConfigError, words):
        change_spec(spec, settings_)


def test_a_pooled_map_is_the_mean_of_its_cells():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(7, 10, 3)).astype(np.float32)
    spec = FeaturesSpec((7, 10, 3), pool=4)
    tensor = spec.tensor(values)
    assert tensor.shape == (1, *spec.shape) == (1, 2, 3, 3)
    assert np.allclose(tensor[0, 0, 0], values[:4, :4].mean(axis=(0, 1)), atol=1e-6)
    assert np.allclose(tensor[0, 1, 2], values[4:, 8:].mean(axis=(0, 1)), atol=1e-6)


def test_a_pooled_map_is_scaled_by_what_is_left_of_it():
    rng = np.random.default_rng(0)
    maps = [rng.normal(5.0, 2.0, (8, 8, 4)).astype(np.float32) for _ in range(20)]
    fitted = FeaturesSpec((8, 8, 4), pool=4).fitted(maps)
    tensors = np.concatenate([fitted.tensor(m) for m in maps])
    assert abs(float(tensors.mean())) < 1e-5
    assert abs(float(tensors.std()) - 1.0) < 1e-5


@pytest.mark.parametrize(
    ("size", "kind", "pool"),
    [((10,), "float32", 2), ((4, 4, 2), "int32", 2), ((4, 4, 2), "int8", 0)],
)
def test_what_cannot_be_pooled_is_told(size, kind, pool):
    assert "pool" in FeaturesSpec(size, kind, pool=pool).problem()
