"""Windows from live samples: like a recording's, on true times, never over a gap."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infi_edge.capture import motion_source
from infi_edge.capture import source as source_module
from infi_edge.capture.live_motion import MotionWindows, pick_channels
from infi_edge.capture.motion_source import MotionSource, Rows
from infi_edge.capture.recordings import open_recording
from infi_edge.capture.sample_times import ArrivalTimes, SensorClock
from infi_edge.capture.source import Health
from infi_edge.config import ImuConfig, SourceConfig
from infi_edge.errors import ConfigError, SourceError
from infi_edge.preprocess import MotionSpec
from infi_edge.types import Sample

SPEC = MotionSpec(channels=("accel_x", "accel_y"), window=20, hop=5, rate_hz=100.0)


@pytest.fixture(autouse=True)
def _short_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a silent source give None sooner, and open again sooner: the tests wait less."""
    monkeypatch.setattr(source_module, "TICK_S", 0.1)
    monkeypatch.setattr(motion_source, "TICK_S", 0.1)
    monkeypatch.setattr(source_module.Backoff.__init__, "__defaults__", (0.1, 30.0))


def feed(
    windows: MotionWindows, times_s: np.ndarray, values: np.ndarray | None = None
) -> list[Sample]:
    """All windows of these samples; without values, each sample holds its own time twice."""
    values = np.stack([times_s, times_s], axis=1) if values is None else values
    return [s for t, v in zip(times_s, values, strict=True) for s in windows.feed(float(t), v)]


def windows_for(spec: MotionSpec, gap_s: float | None = None) -> tuple[MotionWindows, Health]:
    health = Health("imu")
    return MotionWindows("imu", spec, health, gap_s), health


@pytest.mark.parametrize(("window", "hop"), [(20, 5), (20, 20), (10, 25), (1, 1), (20, 1)])
def test_a_steady_sensor_gives_the_windows_of_its_recording(
    tmp_path: Path, window: int, hop: int
) -> None:
    spec = MotionSpec(channels=("accel_x", "accel_y"), window=window, hop=hop, rate_hz=100.0)
    values = np.random.default_rng(0).normal(size=(203, 2)).astype(np.float32)
    rows = [f"{i / 100:.2f},{x:.9g},{y:.9g}" for i, (x, y) in enumerate(values)]
    path = tmp_path / "walk.csv"
    path.write_text("time_s,accel_x,accel_y\n" + "\n".join(rows) + "\n")
    recorded = list(open_recording(str(path), None, spec).samples())

    live, health = windows_for(spec)
    samples = feed(live, 1e6 + np.arange(203) / 100, values)

    assert [s.index for s in samples] == [s.index for s in recorded]
    for mine, its in zip(samples, recorded, strict=True):
        assert mine.data.dtype == np.float32
        np.testing.assert_allclose(mine.data, its.data, atol=1e-4)
    assert not health.counts


def test_a_window_carries_the_time_of_its_end() -> None:
    live, _ = windows_for(SPEC)
    first = feed(live, 50 + np.arange(20) / 100)[0]
    assert first.time_s == pytest.approx(50.19)
    assert first.source == "imu"


@settings(max_examples=40)
@given(
    true_hz=st.floats(55, 140),
    jitter=st.floats(0, 0.9),
    seed=st.integers(0, 99),
)
def test_another_rate_and_jitter_neither_stretch_nor_shift_a_window(
    true_hz: float, jitter: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    steps = (1 + jitter * rng.uniform(-1, 1, 1500)) / true_hz
    times = 1000 + np.cumsum(steps)
    live, health = windows_for(SPEC)
    samples = feed(live, times)
    assert len(samples) > 50
    for sample in samples:
        # Each sample holds its time, so a window must hold an even ladder of times.
        grid = sample.time_s - np.arange(19, -1, -1) / 100
        np.testing.assert_allclose(sample.data[:, 0], grid.astype(np.float32), atol=2e-4)
    assert samples[-1].time_s > times[-1] - 0.1
    assert not health.counts


def test_no_window_spans_a_gap_and_the_gap_is_counted() -> None:
    live, health = windows_for(SPEC)
    before, after = np.arange(33) / 100, 0.5 + np.arange(30) / 100
    samples = feed(live, np.concatenate([before, after]))
    for sample in samples:
        assert (np.abs(np.diff(sample.data[:, 0]) - 0.01) < 1e-6).all()
    begun = [round(float(s.data[0, 0]), 2) for s in samples]
    assert begun == [0.0, 0.05, 0.1, 0.5, 0.55, 0.6]
    assert [s.index for s in samples] == list(range(6))
    assert health.counts["gap"] == 1
    assert "0.18 s" in health.sentence


def test_a_pause_of_less_than_five_sample_times_is_bridged() -> None:
    live, health = windows_for(SPEC)
    times = np.delete(np.arange(60) / 100, [30, 31, 32])
    assert len(feed(live, times)) == 9
    assert not health.counts


def test_gap_s_decides_what_a_gap_is() -> None:
    live, health = windows_for(SPEC, gap_s=0.015)
    feed(live, np.delete(np.arange(60) / 100, 30))
    assert health.counts["gap"] == 1


def test_a_slow_sensor_is_no_gap_at_every_sample() -> None:
    live, health = windows_for(SPEC)
    assert len(feed(live, np.arange(100) / 10)) > 150
    assert health.counts["gap"] <= 2  # until its rate is known


def test_samples_out_of_order_are_counted_and_left_out() -> None:
    live, health = windows_for(SPEC)
    times = np.arange(40) / 100
    samples = feed(live, np.insert(times, 20, [0.155, 0.19]))
    assert health.counts["disorder"] == 2
    assert all((np.diff(s.data[:, 0]) > 0).all() for s in samples)


def test_a_sensor_set_back_begins_anew() -> None:
    live, health = windows_for(SPEC)
    samples = feed(live, np.concatenate([500 + np.arange(25) / 100, np.arange(25) / 100]))
    assert health.counts["gap"] == 1
    assert [round(s.time_s, 2) for s in samples] == [500.19, 500.24, 0.19, 0.24]


@pytest.mark.parametrize("told_hz", [1000.0, None, 100.0])
def test_a_much_faster_sensor_is_averaged_instead_of_folded(told_hz: float | None) -> None:
    live, _ = windows_for(SPEC)
    live.begin(told_hz)
    times = 5 + np.arange(2000) / 1000
    hum = np.sin(2 * math.pi * 102 * times)  # would be seen as 2 Hz at 100 Hz
    sway = np.sin(2 * math.pi * 2 * times)
    samples = feed(live, times, np.stack([hum, sway], axis=1))
    inside = np.concatenate([s.data for s in samples[4:-2:4]])
    assert np.abs(inside[:, 0]).max() < 0.1
    assert np.abs(inside[:, 1]).max() > 0.95


def test_without_a_rate_samples_are_taken_as_they_come() -> None:
    spec = MotionSpec(channels=("a",), window=4, hop=2)
    live, health = windows_for(spec)
    times = np.array([0.0, 0.9, 2.1, 3.0, 4.2, 5.0, 30.0, 31.0, 32.0, 33.0])
    samples = feed(live, times, np.arange(10.0)[:, None])
    assert [s.data[:, 0].tolist() for s in samples] == [[0, 1, 2, 3], [2, 3, 4, 5], [6, 7, 8, 9]]
    assert [s.time_s for s in samples] == [3.0, 5.0, 33.0]
    assert health.counts["gap"] == 1


def test_a_missing_value_stays_missing_and_alone() -> None:
    live, _ = windows_for(SPEC)
    values = np.ones((20, 2))
    values[7, 1] = math.nan
    window = feed(live, np.arange(20) / 100, values)[0].data
    assert np.isfinite(window[:, 0]).all()
    assert 1 <= np.isnan(window[:, 1]).sum() <= 3
    assert np.isfinite(SPEC.tensor(window)).all()


def test_a_model_that_writes_into_a_window_does_not_change_the_next() -> None:
    live, _ = windows_for(SPEC)
    for number in range(40):
        for sample in live.feed(number / 100, (1.0, 1.0)):
            assert (sample.data == 1).all()
            sample.data[:] = 7


def test_memory_is_bounded_when_windows_are_far_apart() -> None:
    live, _ = windows_for(MotionSpec(channels=("a",), window=10, hop=300, rate_hz=100.0))
    for number in range(5000):
        live.feed(number / 100, (0.0,))
        assert len(live._rows) <= 312


def test_channels_are_picked_by_name_with_their_factors() -> None:
    names = ("temp", "accel_y", "accel_x")
    picks = pick_channels("iio:imu", SPEC, ImuConfig(scale={"accel_y": 9.81}), names)
    assert picks == [(2, 1.0), (1, 9.81)]


def test_a_missing_channel_is_refused_and_the_devices_are_named() -> None:
    with pytest.raises(ConfigError, match=r"iio:imu has no channel accel_y; it has accel_x, temp"):
        pick_channels("iio:imu", SPEC, ImuConfig(), ("accel_x", "temp"))
    with pytest.raises(ConfigError, match=r"imu\.scale names 'acel_x'"):
        pick_channels("iio:imu", SPEC, ImuConfig(scale={"acel_x": 2.0}), ("accel_x", "accel_y"))


def test_a_filter_without_names_takes_channels_in_their_order_or_as_told() -> None:
    nameless = MotionSpec(channels=("column_1", "column_2"))
    assert pick_channels("i", nameless, ImuConfig(), ("a", "b")) == [(0, 1.0), (1, 1.0)]
    told = pick_channels("i", nameless, ImuConfig(), ("a", "b", "c"), ("c", "a"))
    assert told == [(2, 1.0), (0, 1.0)]
    with pytest.raises(ConfigError, match="no channel column_1"):
        pick_channels("i", nameless, ImuConfig(), ("a", "b", "c"))
    with pytest.raises(ConfigError, match="names 1 channels"):
        pick_channels("i", nameless, ImuConfig(), ("a", "b", "c"), ("a",))


def test_a_sensor_clock_that_drifts_is_followed_without_end() -> None:
    clock, rng = SensorClock(), np.random.default_rng(1)
    true_s = 100 + np.arange(60_000) / 50  # 20 minutes
    sensor_s = 7 + (true_s - 100) * (1 + 200e-6)  # in the end it is 0.24 s ahead
    delays = rng.exponential(0.01, len(true_s))
    mapped = [
        t for s, a in zip(sensor_s, true_s + delays, strict=True) for t in clock.place([s], a)
    ]
    error = np.array(mapped)[1000:] - true_s[1000:]
    assert np.abs(error).max() < 0.01
    assert (np.diff(mapped) > 0).all()
    assert clock.resets == 0


@pytest.mark.parametrize("jump_s", [-50.0, 3600.0])
def test_a_sensor_clock_that_is_set_is_mapped_anew(jump_s: float) -> None:
    clock = SensorClock()
    times = 100 + np.arange(200) / 50
    sensor = np.where(np.arange(200) < 100, 60 + times, 60 + times + jump_s)
    mapped = [m for s, t in zip(sensor, times, strict=True) for m in clock.place([s], t)]
    np.testing.assert_allclose(mapped, times, atol=1e-6)
    assert clock.resets == 1


def arrivals(rate_hz: float, seconds: float, chunk_s: float) -> Iterator[tuple[float, int]]:
    """(arrival, count) of a steady sensor that is read every chunk_s, more or less."""
    rng, read, at_s = np.random.default_rng(2), 0, 10.0
    while at_s < 10 + seconds:
        at_s += chunk_s * rng.uniform(0.2, 1.8)
        there = int((at_s - 10) * rate_hz)
        if there > read:
            yield at_s, there - read
            read = there


@pytest.mark.parametrize(
    ("nominal_hz", "chunk_s"), [(100.0, 0.016), (98.0, 0.05), (50.0, 0.016), (None, 0.05)]
)
def test_arrivals_become_even_times(nominal_hz: float | None, chunk_s: float) -> None:
    places, true_hz = ArrivalTimes(nominal_hz), 101.3
    times = [t for at, n in arrivals(true_hz, 40, chunk_s) for t in places.place(at, n)]
    late = np.array(times[-2000:]) - (10 + np.arange(len(times) - 1999, len(times) + 1) / true_hz)
    assert (np.diff(times[1000:]) > 0).all()
    assert np.abs(late - late.mean()).max() < 0.01
    assert 0 <= late.mean() < chunk_s + 1 / true_hz


def test_a_busy_reader_is_no_gap_but_missing_samples_are() -> None:
    places = ArrivalTimes(100.0)
    for number in range(1, 301):
        places.place(number / 100, 1)
    busy = places.place(3.4, 40)  # nothing was read for 0.4 s, nothing is missing
    np.testing.assert_allclose(busy, 3 + np.arange(1, 41) / 100, atol=1e-3)
    missing = places.place(4.0, 2)
    np.testing.assert_allclose(missing, [3.99, 4.0], atol=1e-3)
    after = places.place(4.01, 1)
    np.testing.assert_allclose(after, [4.01], atol=1e-3)


class Clockwork:
    """A device that gives ten samples a turn, and fails when told so."""

    rate_hz = 100.0

    def __init__(self) -> None:
        self.time_s, self.closed, self.fault = 0.0, 0, ""
        self.turns = threading.Semaphore(0)

    def read(self, timeout_s: float) -> Rows | None:
        if self.fault:
            raise SourceError(self.fault)
        if not self.turns.acquire(timeout=timeout_s):
            return None
        times = [self.time_s + i / 100 for i in range(10)]
        self.time_s += 0.1
        return Rows(times, [[t, t] for t in times])

    def close(self) -> None:
        self.closed += 1


def source_of(device: Clockwork, **settings: object) -> MotionSource:
    config = SourceConfig(address="iio:x", filter="f", model="m", **settings)  # type: ignore[arg-type]
    return MotionSource("imu", config, SPEC, lambda health: device, False)


def test_a_busy_gate_loses_the_oldest_windows_and_they_are_counted() -> None:
    device = Clockwork()
    source = source_of(device, imu=ImuConfig(buffer_s=1.0))  # twenty windows
    samples = source.samples()
    device.turns.release(2)
    assert next(s for s in samples if s is not None).index == 0
    device.turns.release(20)  # forty windows
    deadline_s = time.monotonic() + 20
    while source.health.counts["overflow"] < 20 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    kept = [next(samples) for _ in range(20)]
    assert source.health.counts["overflow"] == 20
    assert [s.index for s in kept if s is not None] == list(range(21, 41))
    assert "too slow" in source.health.sentence
    samples.close()


def test_a_silent_sensor_gives_none_and_closes_at_once() -> None:
    device = Clockwork()
    source = source_of(device)
    samples = source.samples()
    assert next(samples) is None
    assert next(samples) is None
    threads = threading.active_count()
    begun_s = time.monotonic()
    threading.Timer(0.1, source.close).start()
    assert not [s for s in samples if s is not None]
    assert time.monotonic() - begun_s < 5
    assert device.closed == 1
    assert threading.active_count() < threads
    assert source.health.state == "ended"


def test_a_device_that_fails_is_opened_again_and_the_window_begins_anew() -> None:
    device = Clockwork()
    source = source_of(device)
    samples = source.samples()
    device.turns.release(3)
    next(s for s in samples if s is not None)
    device.fault = "iio:x is gone; check its plug"
    while source.health.counts["read"] == 0:
        next(samples)
    assert source.health.state == "failing"
    device.fault, device.time_s = "", 1000.0
    device.turns.release(3)
    after = next(s for s in samples if s is not None and s.time_s > 999)
    assert after.data[0, 0] == pytest.approx(1000.0)
    assert source.health.counts["gap"] == 0
    samples.close()
    assert device.closed >= source.health.counts["reconnects"] + 1  # it may have failed twice


def test_a_sensor_without_the_filters_channels_is_refused_by_samples() -> None:
    tries = 0

    def refuse(health: Health) -> Clockwork:
        nonlocal tries
        tries += 1
        raise ConfigError("iio:x has no channel accel_x")

    config = SourceConfig(address="iio:x", filter="f", model="m")
    source = MotionSource("imu", config, SPEC, refuse, False)
    with pytest.raises(ConfigError, match="no channel"):
        list(source.samples())
    assert tries == 2  # just after it was plugged in it may not show all


def test_must_open_tells_that_the_sensor_is_not_there() -> None:
    def absent(health: Health) -> Clockwork:
        raise SourceError("iio:x is not there")

    config = SourceConfig(address="iio:x", filter="f", model="m")
    with pytest.raises(SourceError, match="not there"):
        list(MotionSource("imu", config, SPEC, absent, True).samples())
