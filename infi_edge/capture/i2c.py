"""Sensors on the I2C bus: `i2c:mpu6050@0x68`, or on another bus than 1: `i2c:3:mpu9250@0x69`.

Full scale is 4 g and 500 degrees a second; `i2c:mpu6050@0x68?g=8&dps=1000` is others.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable

from infi_edge.capture.address import need_modality
from infi_edge.capture.live_motion import pick_channels
from infi_edge.capture.motion_source import MotionDevice, MotionSource
from infi_edge.capture.mpu import (
    ACCEL_RANGES_G,
    CHANNELS,
    GYRO_RANGES_DPS,
    Bus,
    Mpu,
    Settings,
)
from infi_edge.capture.source import Health, Source
from infi_edge.config import SourceConfig
from infi_edge.errors import ConfigError, SourceError
from infi_edge.preprocess import MotionSpec, Spec

DEFAULT_BUS = 1
DEFAULT_RATE_HZ = 100.0
KINDS = ("mpu6050", "mpu6500", "mpu9250")
_ADDRESS = re.compile(r"i2c:(?:(\d+):)?([a-z0-9]+)(?:@(0x[0-9a-fA-F]{1,2}))?(?:\?(.*))?")


def open_source(name: str, config: SourceConfig, spec: Spec, must_open: bool = False) -> Source:
    """Return the sensor as a source. The chip says itself which of the family it is."""
    need_modality(config, spec, (MotionSpec,))
    assert isinstance(spec, MotionSpec)
    number, at, settings = parse(config.address, config.imu.rate_hz or spec.rate_hz)
    picks = pick_channels(config.address, spec, config.imu, CHANNELS, config.imu.channels)
    smbus = smbus_class(config.address)

    def open_device(health: Health) -> MotionDevice:
        bus = open_bus(smbus, config.address, number)
        return Mpu(config.address, bus, at, settings, picks, health)

    return MotionSource(name, config, spec, open_device, must_open)


def parse(address: str, rate_hz: float | None) -> tuple[int, int, Settings]:
    """Return (bus, address on the bus, settings). Raises ConfigError."""
    match = _ADDRESS.fullmatch(address)
    if match is None or match[2] not in KINDS:
        raise ConfigError(
            f"{address} is no sensor on the I2C bus; write i2c:KIND@0x68 or i2c:BUS:KIND@0x68 "
            f"with KIND one of {', '.join(KINDS)}"
        )
    bus, _, at, query = match.groups()
    ranges = dict(part.partition("=")[::2] for part in (query or "g=4").split("&"))
    accel, gyro = ranges.pop("g", "4"), ranges.pop("dps", "500")
    if ranges or accel not in map(str, ACCEL_RANGES_G) or gyro not in map(str, GYRO_RANGES_DPS):
        raise ConfigError(
            f"{address}: after the ? come g={'/'.join(map(str, ACCEL_RANGES_G))} and "
            f"dps={'/'.join(map(str, GYRO_RANGES_DPS))}, joined by &"
        )
    rate_hz = rate_hz or DEFAULT_RATE_HZ
    if not 4 <= rate_hz <= 1000:
        raise ConfigError(
            f"{address} gives 4 to 1000 samples a second, not {rate_hz:g}; set imu.rate_hz"
        )
    number = int(bus) if bus else DEFAULT_BUS
    return number, int(at or "0x68", 16), Settings(rate_hz, int(accel), int(gyro))


def smbus_class(address: str) -> Callable[[int], Bus]:
    """Return smbus2.SMBus. Raises ConfigError if the package is not installed."""
    try:
        return importlib.import_module("smbus2").SMBus
    except ImportError as error:
        raise ConfigError(
            f"{address} needs the package smbus2: pip install 'infi-edge[i2c]'"
        ) from error


def open_bus(smbus: Callable[[int], Bus], address: str, number: int) -> Bus:
    """Open /dev/i2c-NUMBER. Raises SourceError."""
    try:
        return smbus(number)
    except FileNotFoundError as error:
        raise SourceError(
            f"{address}: there is no /dev/i2c-{number}; switch I2C on (raspi-config) and load the "
            "module i2c-dev"
        ) from error
    except PermissionError as error:
        raise SourceError(
            f"{address}: /dev/i2c-{number} may not be used: permission denied; add the user to "
            "group i2c"
        ) from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SourceError(
            f"{address}: /dev/i2c-{number} cannot be opened: {reason}; check the bus"
        ) from error
