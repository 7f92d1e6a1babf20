"""Blocks of live sound become windows: never over a gap, with steady times."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi_edge.capture.live_audio import AudioWindows, Block
from infi_edge.capture.source import Health
from infi_edge.errors import SourceError

RATE_HZ = 1000
Window = tuple[np.ndarray, float]


def ramp(first: int, count: int) -> np.ndarray:
    """Samples that tell their own number, modulo 65536."""
    return (np.arange(first, first + count) & 0xFFFF).astype(np.uint16).view(np.int16)


def numbers(window: np.ndarray) -> np.ndarray:
    return np.rint(window * 32768).astype(np.int64) & 0xFFFF


def opened(window: int, hop: int, from_hz: int = RATE_HZ, rate_hz: int = RATE_HZ) -> AudioWindows:
    windows = AudioWindows(window, hop, rate_hz, Health("mic"))
    windows.open(from_hz)
    return windows


def push_all(windows: AudioWindows, blocks: Sequence[Block]) -> list[Window]:
    return [window for block in blocks for window in windows.push(block)]


def steady(
    sound: np.ndarray, size: int, rate_hz: int = RATE_HZ, start_s: float = 0.0
) -> list[Block]:
    """The blocks of a device that loses nothing and has an exact clock."""
    places = range(0, len(sound), size)
    return [Block(sound[i : i + size], i, start_s + i / rate_hz) for i in places]


steps = st.lists(
    st.tuples(
        st.sampled_from(["goes on", "goes on", "goes on", "lost", "overflow", "opened"]),
        st.integers(1, 60),
    ),
    max_size=40,
)


@given(st.integers(1, 50), st.integers(1, 80), steps)
def test_windows_are_the_slices_of_what_is_whole_and_never_span_a_gap(
    window: int, hop: int, steps: list[tuple[str, int]]
) -> None:
    health = Health("mic")
    windows = AudioWindows(window, hop, RATE_HZ, health)
    windows.open(RATE_HZ)
    made: list[np.ndarray] = []
    stretches: list[list[int]] = [[]]
    number = first = sound = 0
    overflows = gaps = 0
    for what, count in steps:
        if what == "lost":
            number += count
        if what == "opened":
            windows.open(RATE_HZ)
            number, first = 0, sound
        broken = what != "goes on" and (what != "opened" or stretches != [[]])
        gaps += broken
        overflows += broken and what != "opened"
        if broken:
            stretches.append([])
        stretches[-1] += range(sound, sound + count)
        block = Block(ramp(sound, count), number, (number + first) / RATE_HZ, what == "overflow")
        made += [data for data, _ in windows.push(block)]
        number, sound = number + count, sound + count
    wanted = [
        stretch[i : i + window]
        for stretch in stretches
        for i in range(0, len(stretch) - window + 1, hop)
    ]
    assert [numbers(data).tolist() for data in made] == wanted
    assert (health.counts["gap"], health.counts["overflow"]) == (gaps, overflows)


def test_windows_do_not_share_memory() -> None:
    (first, _), (second, _) = push_all(opened(100, 50), steady(ramp(0, 150), 30))
    first[:] = 0
    np.testing.assert_array_equal(numbers(second), np.arange(50, 150))
    assert second.dtype == np.float32


def test_the_time_is_that_of_the_last_sample_and_hops_are_even() -> None:
    made = push_all(opened(100, 50), steady(ramp(0, 1000), 37, start_s=20.0))
    np.testing.assert_allclose([t for _, t in made], 20.1 + 0.05 * np.arange(19), atol=1e-9)


def test_times_are_steady_though_blocks_come_with_jitter() -> None:
    rng = np.random.default_rng(0)
    blocks = [
        Block(b.samples, b.number, b.start_s + rng.uniform(-0.02, 0.02))
        for b in steady(ramp(0, 30_000), 50)
    ]
    times_s = np.array([t for _, t in push_all(opened(100, 100), blocks)])
    assert np.abs(np.diff(times_s) - 0.1).max() < 0.002


def test_times_do_not_drift_away_from_the_clock() -> None:
    # An hour of a device that is slow by one in 2,000: 1.8 s in the end.
    blocks = [Block(ramp(0, 1000), i * 1000, i * 1.0005) for i in range(3600)]
    *_, (_, time_s) = push_all(opened(1000, 1000), blocks)
    assert time_s == pytest.approx(3600 * 1.0005, abs=0.02)


def test_sound_that_comes_too_late_for_its_number_is_a_gap() -> None:
    windows = opened(100, 100)
    before = push_all(windows, steady(ramp(0, 150), 50))
    late = [Block(ramp(i, 50), i, i / RATE_HZ + 3.0) for i in range(150, 300, 50)]
    after = push_all(windows, late)
    assert [numbers(d)[0] for d, _ in before + after] == [0, 150]
    assert after[0][1] == pytest.approx(3.25)
    assert windows._health.counts == {"gap": 1, "missing": 1}
    assert "3.0 s of sound are missing" in windows._health.sentence


def test_times_never_go_back() -> None:
    blocks = [Block(ramp(i, 50), i, start_s) for i, start_s in [(0, 9.0), (50, 1.0), (100, 1.05)]]
    windows = opened(50, 50)
    times_s = [t for _, t in push_all(windows, blocks)]
    assert len(times_s) == 3
    assert times_s == sorted(times_s)
    assert not windows._health.counts


def test_silence_is_told_once_and_again_after_sound() -> None:
    windows = opened(100, 100)
    zeros, sound = np.zeros(15_000, np.int16), ramp(1, 1000)
    push_all(windows, steady(np.concatenate([zeros, zeros]), 50))
    assert windows._health.counts == {"silent": 1}
    assert "muted" in windows._health.sentence
    later = steady(np.concatenate([sound, zeros[:9000], sound, zeros]), 50, start_s=30.0)
    shifted = [Block(b.samples, b.number + 30_000, b.start_s) for b in later]
    push_all(windows, shifted[:20])
    assert windows._health.sentence == ""
    push_all(windows, shifted[20:])
    assert windows._health.counts == {"silent": 2}


@pytest.mark.parametrize(("from_hz", "size"), [(48_000, 2400), (44_100, 333), (8000, 1000)])
def test_sound_of_another_rate_is_resampled_in_place(from_hz: int, size: int) -> None:
    pytest.importorskip("soxr")
    tone = np.sin(2 * np.pi * 440 * np.arange(from_hz * 2) / from_hz)
    blocks = steady(np.rint(tone * 16384).astype(np.int16), size, from_hz, start_s=5.0)
    made = push_all(opened(4000, 2000, from_hz, 16_000), blocks)
    assert len(made) >= 13
    for data, time_s in made[1:]:  # at its very beginning there is a ripple
        at_s = time_s - 5.0 + np.arange(-4000, 0) / 16_000
        np.testing.assert_allclose(data, np.sin(2 * np.pi * 440 * at_s) / 2, atol=2e-3)


def test_no_sound_from_before_a_gap_is_resampled_into_what_is_after() -> None:
    pytest.importorskip("soxr")
    windows = opened(1600, 1600, 48_000, 16_000)
    noise = np.random.default_rng(0).integers(-9000, 9000, 48_000).astype(np.int16)
    before = push_all(windows, steady(noise, 2400, 48_000))
    silence = [Block(np.zeros(2400, np.int16), 60_000 + i, 2.0) for i in range(0, 48_000, 2400)]
    after = push_all(windows, silence)
    assert all(data.any() for data, _ in before)
    assert after
    assert not any(data.any() for data, _ in after)


def test_a_missing_resampler_is_named_with_both_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(SourceError, match=r"44100 Hz .* 16000 Hz.* pip install .*microphone"):
        opened(100, 100, 44_100, 16_000)
