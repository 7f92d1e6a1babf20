"""Motion keeps its units: what the network reads can be turned back into them."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from infi_edge.preprocess import MotionSpec

NAMES = ("ax", "ay", "az")
PLAIN = MotionSpec(NAMES, window=20, hop=5)
SPEC = MotionSpec(NAMES, 20, 5, 50.0, (0.0, 0.0, 9.81), (2.0, 0.5, 1.0))
NAN = float("nan")


def walk(count: int = 20, seed: int = 0) -> np.ndarray:
    """An accelerometer that is carried: (count, 3) in m/s2, gravity on z."""
    noise = np.random.default_rng(seed).normal(0, 0.3, (count, 3))
    noise[:, 2] += 9.81 + 2 * np.sin(np.arange(count))
    return noise


@pytest.mark.parametrize("channels", [1, 3, 6, 9, 52])
def test_any_number_of_channels(channels: int) -> None:
    spec = MotionSpec(tuple(map(str, range(channels))), window=7, hop=2)
    assert spec.problem() is None
    tensor = spec.tensor(np.ones((7, channels), np.float32))
    assert tensor.shape == (1, 7, channels)
    assert tensor.dtype == np.float32
    assert spec.features(tensor).shape == (spec.feature_count,)


def test_one_channel_may_come_without_its_axis() -> None:
    spec = MotionSpec(("x",), window=4, hop=1)
    flat = np.array([1.0, 2.0, 3.0, 4.0])
    assert (spec.tensor(flat) == spec.tensor(flat[:, None])).all()
    assert spec.fitted([flat]) == spec.fitted([flat[:, None]])


@given(hnp.arrays(np.float32, (20, 3), elements=st.floats(-16, 16, width=32)))
def test_units_and_gravity_come_back_from_the_tensor(window: np.ndarray) -> None:
    tensor = SPEC.tensor(window)[0]
    back = tensor.astype(np.float64) * SPEC.scale + SPEC.offset
    inside = np.abs((window - np.array(SPEC.offset)) / SPEC.scale) < 8
    assert back[inside] == pytest.approx(window[inside], abs=1e-4)
    assert (np.abs(tensor) <= 8).all()
    assert (np.abs(tensor[~inside]) == 8).all()


def test_fitting_records_each_channels_mean_and_deviation() -> None:
    windows = [walk(seed=i) for i in range(50)]
    values = np.concatenate(windows)
    spec = PLAIN.fitted(windows)
    assert spec.offset == pytest.approx(values.mean(axis=0))
    assert spec.scale == pytest.approx(values.std(axis=0))
    assert spec.problem() is None
    tensors = np.concatenate([spec.tensor(window) for window in windows])
    assert tensors.mean(axis=(0, 1)) == pytest.approx(0, abs=1e-6)
    assert tensors.std(axis=(0, 1)) == pytest.approx(1, abs=1e-5)
    assert spec.fitted([window * 7 for window in windows]) is spec


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e6])
def test_a_channel_in_tiny_or_huge_units_is_not_taken_for_constant(unit: float) -> None:
    windows = [walk(seed=i) * unit for i in range(5)]
    tensors = [PLAIN.fitted(windows).tensor(window) for window in windows]
    plain = [walk(seed=i) for i in range(5)]
    expected = [PLAIN.fitted(plain).tensor(window) for window in plain]
    assert np.concatenate(tensors) == pytest.approx(np.concatenate(expected), abs=1e-4)


@pytest.mark.parametrize("level", [0.0, 0.1, 9.81, 101325.0, 1e8])
def test_a_constant_channel_stays_finite_and_reads_zero(level: float) -> None:
    windows = [walk(seed=i).astype(np.float32) for i in range(30)]
    for window in windows:
        window[:, 1] = level
    spec = PLAIN.fitted(windows)
    assert spec.scale[1] == 1.0
    assert spec.tensor(windows[0])[0, :, 1] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("value", [3.3, NAN])
def test_nothing_is_fitted_to_channels_that_are_all_constant_or_empty(value: float) -> None:
    with pytest.raises(ValueError, match="every channel is constant or empty"):
        PLAIN.fitted([np.full((20, 3), value)] * 3)


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e300])
def test_nothing_is_fitted_to_infinite_values(value: float) -> None:
    windows = [walk(), walk()]
    windows[1][3, 1] = value
    with pytest.raises(ValueError, match="infinite"):
        PLAIN.fitted(windows)


def test_missing_values_lie_on_the_line_between_their_neighbours() -> None:
    spec = MotionSpec(("x",), window=7, hop=1)
    window = np.array([NAN, 1.0, NAN, NAN, 4.0, 2.0, NAN])
    assert spec.tensor(window)[0, :, 0].tolist() == [1.0, 1.0, 2.0, 3.0, 4.0, 2.0, 2.0]


def test_values_beyond_the_range_are_interpolated_before_they_are_cut_off() -> None:
    spec = MotionSpec(("x",), 3, 1, offset=(0.0,), scale=(1.0,))
    assert spec.tensor(np.array([10.0, NAN, 0.0]))[0, :, 0].tolist() == [8.0, 5.0, 0.0]


def test_a_channel_that_misses_a_whole_window_reads_its_usual_value() -> None:
    window = walk()
    window[:, 2] = NAN
    tensor = SPEC.tensor(window)
    assert (tensor[0, :, 2] == 0).all()
    assert (tensor[0, :, :2] == SPEC.tensor(walk())[0, :, :2]).all()


def test_fitting_passes_over_missing_values() -> None:
    windows = [walk(seed=i) for i in range(10)]
    holed = [window.copy() for window in windows]
    for window in holed:
        window[::2, 0] = NAN
    values = np.concatenate([window[1::2, 0] for window in windows])
    spec = PLAIN.fitted(holed)
    assert spec.offset[0] == pytest.approx(values.mean())
    assert spec.scale[0] == pytest.approx(values.std())


VALUES = st.floats(allow_infinity=False) | st.just(NAN)


@given(
    hnp.arrays(np.float64, (6, 2), elements=VALUES),
    st.sampled_from([((), ()), ((0.0, 5.0), (1.0, 1e-9)), ((1e300, 0.0), (1e-300, 1e300))]),
)
@example(np.array([[0, 1e308], [0, NAN], [0, -1e308]] * 2), ((0.0, 0.0), (1.0, 1e-9)))
@settings(max_examples=200)
def test_any_window_without_infinities_gives_a_finite_tensor(
    window: np.ndarray, scales: tuple[tuple[float, ...], tuple[float, ...]]
) -> None:
    spec = MotionSpec(("a", "b"), 6, 1, None, *scales)
    assert spec.problem() is None
    before = window.tobytes()
    with np.errstate(divide="raise", invalid="raise"):
        tensor = spec.tensor(window)
        features = spec.features(tensor)
    assert tensor.dtype == np.float32
    assert (np.abs(tensor) <= (8 if spec.scale else 1e6)).all()
    assert np.isfinite(features).all()
    assert window.tobytes() == before
    assert tensor.tobytes() == spec.tensor(window).tobytes()


@pytest.mark.parametrize("window", [1, 2, 3, 17, 200])
def test_features_of_any_window(window: int) -> None:
    spec = MotionSpec(NAMES, window, 1)
    features = spec.features(spec.tensor(walk(window)))
    assert features.shape == (3 * 13,)
    assert np.isfinite(features).all()


def test_the_spectrum_shows_how_fast_it_moves() -> None:
    spec = MotionSpec(("x",), 128, 1)
    octaves = []
    for cycles in (1, 2, 4, 8, 16, 32, 60):
        wave = np.sin(2 * np.pi * cycles * np.arange(128) / 128)
        octaves.append(int(spec.features(spec.tensor(wave))[5:].argmax()))
    assert octaves == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("window", "words"),
    [
        (np.zeros((19, 3)), r"\(20, 3\) here .samples, channels., not \(19, 3\)"),
        (np.zeros((20, 4)), r"not \(20, 4\)"),
        (np.zeros((1, 20, 3)), r"not \(1, 20, 3\)"),
        (np.zeros(60), r"not \(60,\)"),
        (np.full((20, 3), np.inf), "infinite"),
        (np.full((20, 3), -np.inf), "infinite"),
        (np.zeros((20, 3), complex), "array of numbers"),
        (np.zeros((20, 3), bool), "array of numbers"),
        (np.full((20, 3), "1"), "array of numbers"),
        (np.full((20, 3), None), "array of numbers"),
        ([[0.0] * 3] * 20, "array of numbers"),
        (None, "array of numbers"),
    ],
)
def test_what_is_no_window_is_a_value_error(window: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SPEC.tensor(window)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"channels": ()}, "window"),
        ({"channels": tuple(map(str, range(1025)))}, "1025 channels"),
        ({"window": 0}, "window"),
        ({"window": 1 << 20, "channels": tuple(map(str, range(900)))}, "too large"),
        ({"hop": 0}, "hop 0"),
        ({"offset": (1.0,)}, "one number a channel"),
        ({"scale": (1.0, 1.0)}, "one number a channel"),
        ({"scale": (1.0, 0.0, 1.0), "offset": (0.0,) * 3}, "scale"),
        ({"scale": (1.0, NAN, 1.0), "offset": (0.0,) * 3}, "scale"),
        ({"scale": (1.0,) * 3, "offset": (0.0, np.inf, 0.0)}, "scale"),
        ({"scale": (1.0,) * 3}, "one number a channel"),
        ({"offset": (1.0,) * 3}, "one number a channel"),
        ({"rate_hz": 0.0}, "rate"),
        ({"rate_hz": np.inf}, "rate"),
        ({"rate_hz": NAN}, "rate"),
    ],
)
def test_impossible_fields_are_told(fields: dict[str, object], words: str) -> None:
    problem = msgspec.structs.replace(PLAIN, **fields).problem()
    assert problem is not None
    assert words in problem


def test_a_fitted_specification_round_trips_to_the_last_bit() -> None:
    spec = PLAIN.fitted([walk(seed=i) for i in range(9)])
    again = msgspec.json.decode(msgspec.json.encode(spec), type=MotionSpec)
    assert again == spec
    assert again.tensor(walk()).tobytes() == spec.tensor(walk()).tobytes()
