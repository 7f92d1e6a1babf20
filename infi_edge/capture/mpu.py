"""The InvenSense MPU-6050, MPU-6500 and MPU-9250: acceleration and turning rate, by their FIFO.

Registers as in RM-MPU-6000A (rev. 4.2) and RM-MPU-6500A (rev. 2.1). The magnetometer of the
MPU-9250, a chip of its own, is not read.
"""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from infi_edge.capture.live_motion import Pick
from infi_edge.capture.motion_source import Rows
from infi_edge.capture.sample_times import ArrivalTimes
from infi_edge.capture.source import Health
from infi_edge.errors import SourceError

CHANNELS = ("accel_x", "accel_y", "accel_z", "anglvel_x", "anglvel_y", "anglvel_z")
"""As Linux IIO names them; in m/s^2 and rad/s."""

STANDARD_GRAVITY = 9.80665
ACCEL_RANGES_G = (2, 4, 8, 16)
GYRO_RANGES_DPS = (250, 500, 1000, 2000)

SMPLRT_DIV, CONFIG, GYRO_CONFIG, ACCEL_CONFIG, ACCEL_CONFIG_2 = 0x19, 0x1A, 0x1B, 0x1C, 0x1D
FIFO_EN, INT_ENABLE, INT_STATUS, USER_CTRL, PWR_MGMT_1, PWR_MGMT_2 = (
    0x23, 0x38, 0x3A, 0x6A, 0x6B, 0x6C,
)  # fmt: skip
FIFO_COUNT, FIFO_R_W, WHO_AM_I = 0x72, 0x74, 0x75

_SLEEP, _RESET, _CLOCK_FROM_GYRO = 0x40, 0x80, 0x01
_ACCEL_AND_GYRO = 0x78
_FIFO_ON, _FIFO_RESET, _OVERFLOW = 0x40, 0x04, 0x10
_SAMPLE_BYTES = 12
_BLOCK_BYTES = 24  # two samples; an SMBus block holds 32 bytes
_LOW_PASS_HZ = {1: 184, 2: 92, 3: 41, 4: 20, 5: 10, 6: 5}
_WAKE_S = 0.05
_RESET_S = 0.1
_TRIES = 5
_PASSING = {errno.EREMOTEIO, errno.EIO, errno.ETIMEDOUT, errno.EAGAIN, errno.ENXIO, errno.EPROTO}
"""A motor that starts disturbs the bus: the chip does not answer (121), and does a moment later."""

T = TypeVar("T")


class Bus(Protocol):
    """What is used of smbus2.SMBus."""

    def read_byte_data(self, i2c_addr: int, register: int, /) -> int: ...

    def write_byte_data(self, i2c_addr: int, register: int, value: int, /) -> None: ...

    def read_i2c_block_data(self, i2c_addr: int, register: int, length: int, /) -> list[int]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Chip:
    """A member of the family. separate: acceleration has a low-pass register of its own."""

    name: str
    fifo_bytes: int
    separate: bool


_6050 = Chip("MPU-6050", 1024, False)
CHIPS = {
    0x68: _6050,
    0x70: Chip("MPU-6500", 512, True),
    0x71: Chip("MPU-9250", 512, True),
    0x73: Chip("MPU-9255", 512, True),
    0x74: Chip("MPU-6515", 512, True),
}
"""By the answer of WHO_AM_I."""


@dataclass(frozen=True, slots=True)
class Settings:
    """rate_hz: samples a second, 4 to 1000. accel_g, gyro_dps: full scale, one of the ranges."""

    rate_hz: float
    accel_g: int = 4
    gyro_dps: int = 500


class Mpu:
    """One chip, woken and sampling into its FIFO, which is read some 20 times a second.

    The FIFO keeps the chip's own even spacing however busy the machine is. If it overflows, or
    its bytes are out of step after a bus error, it is emptied and samples are missing (`overflow`,
    `misaligned`). A disturbed transfer is tried again within about a sample's time (`bus`).
    """

    def __init__(
        self, address: str, bus: Bus, at: int, settings: Settings, picks: Sequence[Pick],
        health: Health,
    ) -> None:  # fmt: skip
        """address: its name in messages. at: on the bus. picks: the filter's of CHANNELS.

        The bus is the chip's from here on, and closed if it cannot be set up: SourceError.
        """
        self._address, self._bus, self._at, self._health = address, bus, at, health
        divider = min(max(int(1000 / settings.rate_hz + 1e-6), 1), 256)
        self.rate_hz: float = 1000 / divider
        self._pause_s = min(max(0.2 / self.rate_hz, 0.0005), 0.005)
        self._columns = [place for place, _ in picks]
        accel = settings.accel_g * STANDARD_GRAVITY / 32768
        gyro = math.radians(settings.gyro_dps) / 32768
        self._scale = np.array([(accel if i < 3 else gyro) * factor for i, factor in picks])
        self._arrivals = ArrivalTimes(self.rate_hz)
        self._missing = False
        try:
            self._chip = self._identify()
            self._set_up(divider, settings)
        except BaseException:
            bus.close()
            raise
        self._read_s = self._sampled_s = time.monotonic()

    def _identify(self) -> Chip:
        answer = self._try(self._bus.read_byte_data, WHO_AM_I)
        if answer not in CHIPS:
            known = ", ".join(f"{code:#x} {chip.name}" for code, chip in CHIPS.items())
            raise SourceError(
                f"{self._address} calls itself {answer:#x}, none of {known}; check wiring and "
                "address, or use its kernel driver (iio:NAME)"
            )
        return CHIPS[answer]

    def _set_up(self, divider: int, settings: Settings) -> None:
        self._write(PWR_MGMT_1, _RESET)
        time.sleep(_RESET_S)
        self._write(PWR_MGMT_1, _CLOCK_FROM_GYRO)
        self._write(PWR_MGMT_2, 0)
        low_pass = next((n for n, hz in _LOW_PASS_HZ.items() if hz <= self.rate_hz / 2), 6)
        self._write(CONFIG, low_pass)
        if self._chip.separate:
            self._write(ACCEL_CONFIG_2, low_pass)
        self._write(SMPLRT_DIV, divider - 1)
        self._write(GYRO_CONFIG, GYRO_RANGES_DPS.index(settings.gyro_dps) << 3)
        self._write(ACCEL_CONFIG, ACCEL_RANGES_G.index(settings.accel_g) << 3)
        self._write(INT_ENABLE, _OVERFLOW)
        self._write(FIFO_EN, _ACCEL_AND_GYRO)
        self._empty()

    def _empty(self) -> None:
        self._write(USER_CTRL, 0)
        self._write(USER_CTRL, _FIFO_RESET)
        self._write(USER_CTRL, _FIFO_ON)
        self._try(self._bus.read_byte_data, INT_STATUS)

    def read(self, timeout_s: float) -> Rows | None:
        until_s = time.monotonic() + timeout_s
        wake_s = max(_WAKE_S, 1 / self.rate_hz)
        while (now_s := time.monotonic()) < until_s:
            time.sleep(min(max(self._read_s + wake_s - now_s, 0.0), until_s - now_s))
            self._read_s = now_s = time.monotonic()
            rows = self._drain(now_s)
            if rows is not None:
                self._sampled_s = now_s
                return rows
            if now_s - self._sampled_s > max(1.0, 20 / self.rate_hz):
                raise SourceError(
                    f"{self._address} gives no more samples; it may have lost its power for a "
                    "moment and is set up again"
                )
        return None

    def _drain(self, now_s: float) -> Rows | None:
        overflowed = self._try(self._bus.read_byte_data, INT_STATUS) & _OVERFLOW
        count = self._fifo_count()
        if overflowed or count >= self._chip.fifo_bytes:
            self._lose("overflow", "was read too late and its FIFO overflowed; samples are missing")
            return None
        if count % _SAMPLE_BYTES:  # it may have been asked in the midst of a sample
            count = self._fifo_count()
        content = self._fifo(count // _SAMPLE_BYTES) if count % _SAMPLE_BYTES == 0 else None
        if content is None:
            self._lose(
                "misaligned", "has a FIFO out of step after a bus error; samples are missing"
            )
            return None
        if not content:
            return None
        raw = np.frombuffer(content, ">i2").reshape(-1, len(CHANNELS))
        times_s = self._arrivals.place(now_s, len(raw))
        after_gap, self._missing = self._missing, False
        return Rows(times_s, raw[:, self._columns] * self._scale, after_gap)

    def _fifo_count(self) -> int:
        high, low = self._try(self._bus.read_i2c_block_data, FIFO_COUNT, 2)
        return (high << 8 | low) & 0x1FFF

    def _fifo(self, samples: int) -> bytes | None:
        """Return so many samples, or None if a failed transfer took bytes away."""
        content, failures = bytearray(), 0
        while len(content) < samples * _SAMPLE_BYTES:
            length = min(_BLOCK_BYTES, samples * _SAMPLE_BYTES - len(content))
            try:
                content += bytes(self._bus.read_i2c_block_data(self._at, FIFO_R_W, length))
            except OSError as error:
                failures += 1
                self._disturbed(error, failures)
                if self._fifo_count() % _SAMPLE_BYTES:
                    return None
        return bytes(content)

    def _lose(self, cause: str, what: str) -> None:
        self._health.notice(cause, f"{self._address} {what}")
        self._empty()
        self._missing = True
        self._sampled_s = time.monotonic()

    def _write(self, register: int, value: int) -> None:
        self._try(self._bus.write_byte_data, register, value)

    def _try(self, transfer: Callable[..., T], *arguments: int) -> T:
        failures = 0
        while True:
            try:
                return transfer(self._at, *arguments)
            except OSError as error:
                failures += 1
                self._disturbed(error, failures)

    def _disturbed(self, error: OSError, failures: int) -> None:
        """Wait before the next try, or raise SourceError."""
        reason = (error.strerror or str(error)).lower()
        if error.errno == errno.EBUSY:
            raise SourceError(
                f"{self._address} belongs to a kernel driver; use it as iio:NAME"
            ) from error
        if error.errno not in _PASSING or failures >= _TRIES:
            raise SourceError(
                f"{self._address} does not answer: {reason}; check its wiring (i2cdetect shows "
                "which addresses answer)"
            ) from error
        self._health.notice("bus", f"a transfer failed ({reason}) and is tried again")
        time.sleep(self._pause_s)

    def close(self) -> None:
        try:
            self._bus.write_byte_data(self._at, PWR_MGMT_1, _SLEEP)
        except OSError:
            pass  # it may be what is gone
        finally:
            self._bus.close()
