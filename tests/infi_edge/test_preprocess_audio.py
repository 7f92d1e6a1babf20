"""Sound becomes levels in decibels: 255 is a full-scale sine, 0 is 100 dB below it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from infi_edge.preprocess import AudioSpec, Spec

RATES = (8000, 11025, 16000, 22050, 32000, 44100, 48000)
POWER = AudioSpec(transform="power")
SPECS = (AudioSpec(), POWER, AudioSpec(rate_hz=8000, window_ms=50, frame_ms=2, bands=256))


def sine(spec: AudioSpec, hz: float, level: float = 1.0) -> np.ndarray:
    """A window of a sine, float32."""
    return (level * np.sin(2 * np.pi * hz * np.arange(spec.window) / spec.rate_hz)).astype("f4")


def bin_hz(spec: AudioSpec, number: int) -> float:
    """The frequency of an FFT bin."""
    return number * spec.rate_hz / (spec.rate_hz * spec.frame_ms // 1000)


@pytest.mark.parametrize("rate_hz", RATES)
@pytest.mark.parametrize("transform", ["logmel", "power"])
def test_the_shape_follows_from_the_milliseconds(rate_hz: int, transform: str) -> None:
    spec = AudioSpec(rate_hz, window_ms=500, hop_ms=100, transform=transform)
    frame, step = rate_hz * 25 // 1000, rate_hz * 10 // 1000
    assert spec.problem() is None
    assert (spec.window, spec.hop) == (rate_hz // 2, rate_hz // 10)
    rows = len(range(0, spec.window - frame + 1, step))
    assert spec.shape == (rows, 40 if transform == "logmel" else frame // 2 + 1, 1)
    tensor = spec.tensor(sine(spec, 1000))
    assert tensor.shape == (1, *spec.shape)
    assert tensor.dtype == np.uint8


@pytest.mark.parametrize("rate_hz", RATES)
def test_a_full_scale_sine_is_255_in_its_bin_and_silence_is_0(rate_hz: int) -> None:
    spec = AudioSpec(rate_hz, transform="power")
    picture = spec.tensor(sine(spec, bin_hz(spec, 20)))[0, :, :, 0]
    assert (picture[:, 20] == 255).all()
    assert (picture.argmax(axis=1) == 20).all()
    assert picture[:, 25:].max() < 60
    assert not spec.tensor(np.zeros(spec.window, np.float32)).any()


@pytest.mark.parametrize("hz", [150, 440, 1000, 3000, 7000])
def test_a_tone_lights_the_mel_band_it_lies_in(hz: int) -> None:
    spec = AudioSpec()
    picture = spec.tensor(sine(spec, hz))[0, :, :, 0]
    mel = 2595 * np.log10(1 + np.array([hz, 8000]) / 700)
    expected = mel[0] / mel[1] * (spec.bands + 1) - 1
    assert (np.abs(picture.argmax(axis=1) - expected) <= 1.0).all()
    assert picture.max(axis=1).min() >= 248
    assert not spec.tensor(np.zeros(spec.window, np.float32)).any()


@pytest.mark.parametrize("decibels", [-6, -20, -40, -60, -90])
def test_levels_are_linear_in_decibels(decibels: int) -> None:
    picture = POWER.tensor(sine(POWER, bin_hz(POWER, 40), 10 ** (decibels / 20)))
    assert picture[0, :, 40, 0] == pytest.approx(255 * (1 + decibels / 100), abs=1)


def test_bands_narrower_than_a_bin_are_not_empty() -> None:
    spec = SPECS[2]
    mel = np.linspace(0, 2595 * np.log10(1 + 4000 / 700), spec.bands + 2)[1:-1]
    centres_hz = 700 * (10 ** (mel / 2595) - 1)
    for number in range(1, 8):
        hz = bin_hz(spec, number)
        nearest = np.abs(centres_hz - hz) < bin_hz(spec, 1) / 2
        levels = spec.tensor(sine(spec, hz))[0, :, :, 0]
        assert levels[:, nearest].min() >= 255 - 8  # half its power, 3 dB


@given(hnp.arrays(np.int16, AudioSpec().window, elements=st.integers(-32768, 32767)))
@settings(max_examples=15)
def test_int16_and_float_give_equal_levels(pcm: np.ndarray) -> None:
    spec = AudioSpec()
    levels = spec.tensor(pcm)
    for kind in (np.float32, np.float64):
        assert (spec.tensor((pcm / 32768).astype(kind)) == levels).all()


@given(st.data(), st.sampled_from(SPECS), st.sampled_from([np.int16, np.float32, np.float64]))
@settings(max_examples=60)
def test_any_finite_pcm_gives_levels_of_the_shape(
    data: st.DataObject, spec: AudioSpec, kind: type
) -> None:
    values = st.integers(-32768, 32767) if kind is np.int16 else st.floats(-4, 4, width=32)
    pcm = data.draw(hnp.arrays(kind, spec.window, elements=values))
    before = pcm.tobytes()
    with np.errstate(all="raise", under="ignore"):
        tensor = spec.tensor(pcm)
        features = spec.features(tensor)
    assert tensor.dtype == np.uint8
    assert tensor.shape == (1, *spec.shape)
    assert tensor.tobytes() == spec.tensor(pcm).tobytes()
    assert pcm.tobytes() == before
    assert features.shape == (spec.feature_count,)
    assert features.dtype == np.float32
    assert ((features >= 0) & (features <= 1)).all()


def test_one_channel_as_a_column_is_mono() -> None:
    pcm = sine(POWER, 440)
    assert (POWER.tensor(pcm[:, None]) == POWER.tensor(pcm)).all()
    assert (POWER.tensor(np.repeat(pcm, 2)[::2]) == POWER.tensor(pcm)).all()


def spoilt(value: float) -> np.ndarray:
    pcm = np.zeros(16000, np.float32)
    pcm[123] = value
    return pcm


@pytest.mark.parametrize(
    ("pcm", "words"),
    [
        (np.zeros(8000, np.float32), "16000 samples .1000 ms at 16000 Hz., not 8000"),
        (np.zeros(0, np.float32), "not 0"),
        (np.zeros((16000, 2), np.float32), "2 channels; give one"),
        (np.zeros(16000, np.int32), "float32 or int16 samples, not int32"),
        (np.zeros(16000, np.uint8), "not uint8"),
        (np.zeros(16000, bool), "not bool"),
        (spoilt(np.nan), "not a number"),
        (spoilt(np.inf), "not a number"),
        (spoilt(32767.0), "reaches 32767 where 1 is full scale"),
        ([0.0] * 16000, "not list"),
        (b"\0" * 32000, "not bytes"),
        (None, "not NoneType"),
    ],
)
def test_what_is_no_window_of_mono_pcm_is_a_value_error(pcm: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AudioSpec().tensor(pcm)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rate_hz": 7999}, "sample rate"),
        ({"rate_hz": 96000}, "8000..48000"),
        ({"window_ms": 5}, "window"),
        ({"window_ms": 1 << 40}, "window"),
        ({"hop_ms": 0}, "hop"),
        ({"frame_ms": 1}, "frames of 1 ms"),
        ({"frame_ms": 2000}, "frames of 2000 ms"),
        ({"step_ms": 0}, "every 0 ms"),
        ({"bands": 3}, "bands"),
        ({"bands": 1 << 40}, "bands"),
        ({"window_ms": 60_000, "frame_ms": 1000, "step_ms": 1}, "too many"),
        ({"low": 1.0}, "low must be below high"),
        ({"high": float("inf")}, "low must be below high"),
        ({"low": float("nan")}, "low must be below high"),
    ],
)
def test_impossible_fields_are_told(fields: dict[str, float], words: str) -> None:
    problem = AudioSpec(**fields).problem()  # type: ignore[arg-type]
    assert problem is not None
    assert words in problem


@given(
    st.builds(
        AudioSpec,
        st.integers(7000, 50_000),
        st.integers(5, 61_000),
        st.integers(0, 2000),
        st.integers(1, 1100),
        st.integers(0, 100),
        st.sampled_from(["logmel", "power"]),
        st.integers(-1, 300),
    )
)
def test_a_possible_specification_round_trips_and_has_a_bounded_tensor(spec: AudioSpec) -> None:
    if spec.problem() is not None:
        return
    assert msgspec.json.decode(msgspec.json.encode(spec), type=AudioSpec) == spec
    assert isinstance(spec, Spec)
    assert 0 < np.prod(spec.shape) <= 64 << 20
