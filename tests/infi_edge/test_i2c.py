"""MPU-6050 and its family: a bus is simulated down to registers and FIFO, the rest is real."""

from __future__ import annotations

import errno
import math
import struct
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from infi_edge.capture import i2c, motion_source, mpu
from infi_edge.capture import source as source_module
from infi_edge.capture.address import open_source
from infi_edge.capture.i2c import open_bus, parse
from infi_edge.capture.mpu import CHANNELS, Mpu, Settings
from infi_edge.capture.source import Health
from infi_edge.config import ImuConfig, SourceConfig
from infi_edge.errors import ConfigError, SourceError
from infi_edge.preprocess import MotionSpec, TextSpec

SPEC = MotionSpec(channels=CHANNELS, window=10, hop=5, rate_hz=100.0)
PICKS = [(i, 1.0) for i in range(6)]
GRAVITY = 9.80665


@pytest.fixture(autouse=True)
def _short_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a silent source give None sooner, and open again sooner: the tests wait less."""
    monkeypatch.setattr(source_module, "TICK_S", 0.1)
    monkeypatch.setattr(motion_source, "TICK_S", 0.1)
    monkeypatch.setattr(source_module.Backoff.__init__, "__defaults__", (0.1, 30.0))


class FakeBus:
    """An MPU on a bus, with the methods of smbus2.SMBus that are used.

    Sample n holds (n, -n, 8192, 100, -100, n), so that a lost or shifted byte shows.
    """

    def __init__(self, who_am_i: int = 0x68, fifo_bytes: int = 1024, at: int = 0x68) -> None:
        self.registers = {mpu.WHO_AM_I: who_am_i, mpu.PWR_MGMT_1: 0x40}
        self.at, self.fifo_bytes, self.closed = at, fifo_bytes, 0
        self.fifo = b""
        self.overflowed = False
        self.samples, self.began_s = 0, 0.0
        self.running = False
        self.faults: dict[str, list[int]] = {}
        self.eaten = 0

    def _at(self, address: int, kind: str) -> None:
        assert not self.closed, "the bus is closed"
        if address != self.at:
            raise OSError(errno.EREMOTEIO, "Remote I/O error")
        if self.faults.get(kind):
            raise OSError(self.faults[kind].pop(0), "Remote I/O error")

    @property
    def rate_hz(self) -> float:
        return 1000 / (1 + self.registers.get(mpu.SMPLRT_DIV, 0))

    def _sample(self) -> None:
        if not self.running:
            return
        due = int((time.monotonic() - self.began_s) * self.rate_hz)
        while self.samples < due:
            n = self.samples % 30000
            self.fifo += struct.pack(">6h", n, -n, 8192, 100, -100, n)
            self.samples += 1
        if len(self.fifo) > self.fifo_bytes:
            self.overflowed, self.fifo = True, self.fifo[-self.fifo_bytes :]

    def write_byte_data(self, address: int, register: int, value: int) -> None:
        self._at(address, "write")
        self.registers[register] = value
        if register == mpu.USER_CTRL and value & 0x04:
            self.fifo, self.overflowed = b"", False
        woken = not self.registers[mpu.PWR_MGMT_1] & 0xC0
        enabled = self.registers.get(mpu.USER_CTRL, 0) & 0x40 and woken
        if enabled and not self.running:
            self.began_s, self.samples = time.monotonic(), 0
        self.running = bool(enabled)

    def read_byte_data(self, address: int, register: int) -> int:
        self._at(address, "read")
        self._sample()
        if register == mpu.INT_STATUS:
            status, self.overflowed = 0x10 if self.overflowed else 0, False
            return status
        return self.registers.get(register, 0)

    def read_i2c_block_data(self, address: int, register: int, length: int) -> list[int]:
        assert length <= 32
        if register == mpu.FIFO_COUNT:
            self._at(address, "count")
            self._sample()
            return list(struct.pack(">H", len(self.fifo)))
        if self.faults.get("fifo"):
            self.fifo, self.eaten = self.fifo[self.eaten :], 0
        self._at(address, "fifo")
        block, self.fifo = self.fifo[:length], self.fifo[length:]
        assert len(block) == length
        return list(block)

    def close(self) -> None:
        self.closed += 1


def open_mpu(bus: FakeBus, **settings: float) -> tuple[Mpu, Health]:
    health = Health("imu")
    device = Mpu(
        "i2c:mpu6050@0x68", bus, 0x68, Settings(**{"rate_hz": 100, **settings}), PICKS, health
    )  # type: ignore[arg-type]
    return device, health


def read(device: Mpu, seconds: float = 20.0) -> tuple[list[float], np.ndarray, bool]:
    rows = device.read(seconds)
    assert rows is not None
    return list(rows.times_s), np.asarray(rows.values), rows.after_gap


def test_values_are_si_units_in_the_order_of_linux() -> None:
    device, _ = open_mpu(FakeBus(), accel_g=4, gyro_dps=500)
    _, values, _ = read(device)
    assert values[0, 2] == pytest.approx(GRAVITY)  # 8192 of 32768 is a quarter of 4 g
    assert values[0, 3] == pytest.approx(math.radians(500) * 100 / 32768)
    assert values[0, 4] == -values[0, 3]
    device.close()


def test_the_chip_is_reset_woken_and_set_up() -> None:
    bus = FakeBus(who_am_i=0x71, fifo_bytes=512)
    device, _ = open_mpu(bus, rate_hz=40, accel_g=16, gyro_dps=2000)
    assert device.rate_hz == 40
    assert bus.registers[mpu.PWR_MGMT_1] == 0x01
    assert bus.registers[mpu.SMPLRT_DIV] == 24
    assert bus.registers[mpu.CONFIG] == bus.registers[mpu.ACCEL_CONFIG_2] == 4  # 20 Hz
    assert bus.registers[mpu.ACCEL_CONFIG] == 3 << 3
    assert bus.registers[mpu.GYRO_CONFIG] == 3 << 3
    assert bus.registers[mpu.FIFO_EN] == 0x78
    device.close()
    assert bus.registers[mpu.PWR_MGMT_1] == 0x40  # asleep
    assert bus.closed == 1


def test_samples_are_complete_and_evenly_timed() -> None:
    device, health = open_mpu(FakeBus(), rate_hz=50)
    times: list[float] = []
    numbers: list[float] = []
    while len(times) < 30:
        more, values, after_gap = read(device)
        times += more
        numbers += values[:, 0].tolist()
        assert not after_gap
    counts = np.array(numbers) * 32768 / (4 * GRAVITY)
    np.testing.assert_allclose(np.diff(counts), 1, atol=1e-6)
    assert (np.diff(times) > 0).all()
    assert not health.counts
    device.close()


@pytest.mark.parametrize("answer", [0x00, 0xFF, 0x12])
def test_another_chip_is_refused_and_the_bus_closed(answer: int) -> None:
    bus = FakeBus(who_am_i=answer)
    with pytest.raises(SourceError, match=f"calls itself {answer:#x}.*check wiring"):
        open_mpu(bus)
    assert bus.closed == 1


def test_a_chip_that_does_not_answer_is_refused_and_the_bus_closed() -> None:
    bus = FakeBus(at=0x69)
    with pytest.raises(SourceError, match=r"does not answer: remote i/o error; check its wiring"):
        open_mpu(bus)
    assert bus.closed == 1


def test_a_chip_that_the_kernel_uses_is_named_as_such() -> None:
    bus = FakeBus()
    bus.faults["read"] = [errno.EBUSY]
    with pytest.raises(SourceError, match="belongs to a kernel driver; use it as iio:NAME"):
        open_mpu(bus)


def test_a_motor_that_disturbs_the_bus_loses_no_sample() -> None:
    bus = FakeBus()
    device, health = open_mpu(bus, rate_hz=50)
    numbers: list[float] = []
    for kind in ("fifo", "count", "read", "fifo", "none"):
        bus.faults[kind] = [errno.EREMOTEIO, errno.EREMOTEIO]
        _, values, after_gap = read(device)
        numbers += values[:, 0].tolist()
        assert not after_gap
    counts = np.array(numbers) * 32768 / (4 * GRAVITY)
    np.testing.assert_allclose(np.diff(counts), 1, atol=1e-6)
    assert health.counts["bus"] == 8
    assert "remote i/o error" in health.sentence
    device.close()


def test_a_bus_that_stays_dead_is_a_fault() -> None:
    bus = FakeBus()
    device, _ = open_mpu(bus)
    bus.faults["count"] = [errno.EREMOTEIO] * 99
    with pytest.raises(SourceError, match="does not answer"):
        device.read(20)
    bus.faults["write"] = [errno.EREMOTEIO]
    device.close()
    assert bus.closed == 1


def test_a_transfer_that_took_bytes_with_it_empties_the_fifo_and_marks_the_gap() -> None:
    bus = FakeBus()
    device, health = open_mpu(bus)
    read(device)
    bus.faults["fifo"], bus.eaten = [errno.EREMOTEIO], 7
    _, values, after_gap = read(device)
    assert after_gap
    assert (values[:, 2] == values[0, 2]).all()  # still in step
    assert values[0, 2] == pytest.approx(GRAVITY)
    assert health.counts["misaligned"] == 1
    assert not read(device)[2]
    device.close()


def test_a_fifo_that_overflows_is_emptied_counted_and_the_gap_marked() -> None:
    bus = FakeBus()
    device, health = open_mpu(bus)
    before, _, _ = read(device)
    bus.began_s -= 2.0  # nobody has read for two seconds
    after, values, after_gap = read(device)
    assert after_gap
    assert values[0, 2] == pytest.approx(GRAVITY)
    assert health.counts["overflow"] == 1
    assert "read too late" in health.sentence
    assert after[0] > before[-1]
    device.close()


def test_a_chip_that_lost_its_power_is_a_fault() -> None:
    bus = FakeBus()
    device, _ = open_mpu(bus)
    read(device)
    bus.write_byte_data(0x68, mpu.PWR_MGMT_1, 0x40)
    device.read(0.2)  # what was left
    with pytest.raises(SourceError, match="gives no more samples"):
        device.read(30)
    device.close()


@pytest.fixture
def buses(monkeypatch: pytest.MonkeyPatch) -> list[FakeBus]:
    """Every bus that is opened from here on."""
    opened: list[FakeBus] = []

    def opener(smbus: Callable[[int], mpu.Bus], address: str, number: int) -> FakeBus:
        opened.append(FakeBus())
        return opened[-1]

    monkeypatch.setattr(i2c, "open_bus", opener)
    return opened


def test_a_source_gives_windows_survives_a_reset_and_closes(buses: list[FakeBus]) -> None:
    pytest.importorskip("smbus2")
    threads = threading.active_count()
    spec = MotionSpec(channels=("anglvel_z", "accel_z"), window=10, hop=5, rate_hz=100.0)
    config = SourceConfig(
        address="i2c:mpu6050@0x68", filter="f", model="m", imu=ImuConfig(scale={"accel_z": 2.0})
    )
    source = open_source("imu", config, spec)
    samples = source.samples()
    first = next(s for s in samples if s is not None)
    assert first.data.shape == (10, 2)
    np.testing.assert_allclose(first.data[:, 1], 2 * GRAVITY, rtol=1e-6)
    assert abs(first.time_s - source.now_s()) < 5

    buses[0].faults["count"] = [errno.EREMOTEIO] * 9
    deadline_s = time.monotonic() + 20
    while source.health.counts["reconnects"] == 0 and time.monotonic() < deadline_s:
        next(samples)
    assert next(s for s in samples if s is not None).data.shape == (10, 2)
    assert source.health.counts["read"] == 1
    source.close()
    assert not [s for s in samples if s is not None]
    assert [bus.closed for bus in buses] == [1, 1]
    assert threading.active_count() <= threads


def test_addresses_are_read() -> None:
    assert parse("i2c:mpu6050@0x68", 50.0) == (1, 0x68, Settings(50.0, 4, 500))
    assert parse("i2c:3:mpu9250@0x69?g=16&dps=2000", None) == (3, 0x69, Settings(100.0, 16, 2000))
    assert parse("i2c:mpu6500", None)[1] == 0x68


@pytest.mark.parametrize(
    ("address", "rate_hz", "message"),
    [
        ("i2c:bmi160@0x68", None, "KIND one of mpu6050"),
        ("i2c:mpu6050@68", None, "write i2c:KIND@0x68"),
        ("i2c:mpu6050@0x68?g=3", None, "g=2/4/8/16"),
        ("i2c:mpu6050@0x68?foo=3", None, "dps=250/500/1000/2000"),
        ("i2c:mpu6050@0x68", 2000.0, "4 to 1000 samples a second, not 2000"),
    ],
)
def test_what_cannot_be_is_refused(address: str, rate_hz: float | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(address, rate_hz)


def test_a_channel_it_does_not_have_is_refused_before_the_bus_is_opened() -> None:
    config = SourceConfig(address="i2c:mpu6050@0x68", filter="f", model="m")
    with pytest.raises(ConfigError, match="no channel magn_x; it has accel_x, accel_y"):
        open_source("imu", config, MotionSpec(channels=("magn_x",), rate_hz=100.0))
    with pytest.raises(ConfigError, match="other inputs"):
        open_source("imu", config, TextSpec())


def test_without_smbus2_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "smbus2", None)
    config = SourceConfig(address="i2c:mpu6050@0x68", filter="f", model="m")
    with pytest.raises(
        ConfigError, match=r"needs the package smbus2: pip install 'infi-edge\[i2c\]'"
    ):
        open_source("imu", config, SPEC)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError(2, "No such file"), "there is no /dev/i2c-7; switch I2C on"),
        (PermissionError(13, "Permission denied"), "add the user to group i2c"),
        (OSError(5, "Input/output error"), "input/output error"),
    ],
)
def test_a_bus_that_cannot_be_opened_says_what_to_do(error: OSError, message: str) -> None:
    def refuse(number: int) -> mpu.Bus:
        raise error

    with pytest.raises(SourceError, match=message):
        open_bus(refuse, "i2c:7:mpu6050@0x68", 7)


def test_a_machine_without_the_bus_says_so() -> None:
    pytest.importorskip("smbus2")
    config = SourceConfig(address="i2c:99:mpu6050@0x68", filter="f", model="m")
    with pytest.raises(SourceError, match="there is no /dev/i2c-99; switch I2C on"):
        list(open_source("imu", config, SPEC, must_open=True).samples())
