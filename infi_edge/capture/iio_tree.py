"""Linux IIO in sysfs: which sensors there are, their channels, their rates and clocks.

The files are those of the kernel's Documentation/ABI/testing/sysfs-bus-iio.
"""

from __future__ import annotations

import errno
import math
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from infi_edge.capture.iio_scan import Element, parse_element
from infi_edge.errors import SourceError

ROOT_VARIABLE = "INFI_EDGE_IIO_ROOT"
"""A folder in place of /sys/bus/iio/devices; character devices are in its folder `dev` then."""

_SI = {"magn": 1e-4, "pressure": 1e3, "incli": math.pi / 180, "temp": 1e-3, "voltage": 1e-3} | {
    "current": 1e-3,
    "capacitance": 1e-9,
}
"""From the units of the kernel: gauss, kilopascal, degrees, milli-degrees Celsius (kept on the
Celsius scale), millivolt, milliampere, nanofarad. Others are in SI units already."""

_CLOCKS = {
    "realtime": time.CLOCK_REALTIME,
    "realtime_coarse": time.CLOCK_REALTIME,
    "monotonic": time.CLOCK_MONOTONIC,
    "monotonic_coarse": time.CLOCK_MONOTONIC,
    "monotonic_raw": time.CLOCK_MONOTONIC_RAW,
    "boottime": time.CLOCK_BOOTTIME,
    "tai": time.CLOCK_TAI,
}


DISTURBED = {errno.EREMOTEIO, errno.EIO, errno.ETIMEDOUT, errno.EAGAIN, errno.EPROTO}


class Disturbed(SourceError):
    """A transfer on the sensor's bus that failed, as when a motor starts; it may pass."""


class Denied(SourceError):
    """A file of the sensor that this user may not read or write."""


class SensorFolder:
    """The folder of one sensor. Every fault is a SourceError that names the sensor."""

    def __init__(self, address: str, path: Path, node: Path) -> None:
        """node: its character device."""
        self.address, self.path, self.node = address, path, node

    def read(self, name: str) -> str:
        """Return the content of a file. Raises SourceError, Denied."""
        try:
            descriptor = os.open(f"{self.path}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.read(descriptor, 4096).decode("utf-8", "replace").strip()
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self.fault(error, name) from error

    def read_if_there(self, name: str) -> str | None:
        """Return the content of a file, or None if the sensor has no such file."""
        return self.read(name) if (self.path / name).exists() else None

    def write(self, name: str, text: str) -> None:
        """Write a file. Raises SourceError, Denied."""
        try:
            descriptor = os.open(self.path / name, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
            try:
                os.write(descriptor, text.encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self.fault(error, name) from error

    def fault(self, error: OSError, name: str) -> SourceError:
        """Return what an error of the system means."""
        if error.errno in (errno.EACCES, errno.EPERM):
            return Denied(
                f"{self.address}: {name} may not be used: permission denied; install the udev "
                "rule deploy/55-infi-edge.rules and add the user to its group infi-edge"
            )
        if error.errno == errno.EBUSY:
            return SourceError(
                f"{self.address} is in use by another program ({name}); end it, iiod for example"
            )
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO) and not self.there():
            return SourceError(f"{self.address} is gone; check its plug")
        reason = (error.strerror or str(error)).lower()
        if error.errno in DISTURBED:
            return Disturbed(f"{self.address} does not answer: {reason}; check its wiring")
        return SourceError(f"{self.address}: {name} cannot be used: {reason}; check its driver")

    def there(self) -> bool:
        """Whether the sensor is (still) there."""
        return (self.path / "name").exists()

    def factor(self, channel: str, what: str, default: float) -> float:
        """Return a channel's `scale` or `offset`, its own or one shared with others."""
        kind = _kind(channel)
        for name in (f"in_{channel}_{what}", f"in_{kind}_{what}", f"in_{what}", what):
            text = self.read_if_there(name)
            if text is not None:
                try:
                    return float(text)
                except ValueError:
                    raise SourceError(f"{self.address}: {name} holds no number: {text!r}") from None
        return default

    def to_si(self, channel: str) -> tuple[float, float]:
        """Return (offset, scale): a value in SI units is (raw + offset) * scale."""
        scale = self.factor(channel, "scale", 1.0) * si_factor(channel)
        return self.factor(channel, "offset", 0.0), scale

    def elements(self) -> list[Element]:
        """Return what its buffer may hold, in the buffer's order; empty without a buffer."""
        found = []
        for path in (self.path / "scan_elements").glob("in_*_type"):
            name = path.name.removeprefix("in_").removesuffix("_type")
            text = self.read(f"scan_elements/{path.name}")
            index = self.read(f"scan_elements/in_{name}_index")
            element = parse_element(name, index, text)
            if element is None:
                raise SourceError(f"{self.address}: {path.name} is of unknown form: {text!r}")
            found.append(element)
        return sorted(found, key=lambda element: element.index)

    def polled(self) -> dict[str, str]:
        """Return the channels that have a file to read, and its name."""
        files = {}
        for ending in ("_raw", "_input"):  # the latter are in the kernel's units already
            for path in sorted(self.path.glob(f"in_*{ending}")):
                name = path.name.removeprefix("in_").removesuffix(ending)
                files[name] = path.name
        return files

    def set_rate(self, rate_hz: float, channels: Sequence[str] = ()) -> float | None:
        """Set the least rate that is high enough for these channels.

        Returns what it is set to (the slowest), if it can be told.
        """
        shared = ["", *{f"in_{_kind(channel)}_" for channel in channels}]
        own = [f"in_{channel}_" for channel in channels]
        files = [f"{prefix}sampling_frequency" for prefix in shared + own]
        files = [file for file in files if (self.path / file).exists()]
        for file in files:
            available = self.read_if_there(f"{file}_available")
            try:
                self.write(file, f"{_nearest(rate_hz, available):.6g}")
            except SourceError:
                if not self.there():
                    raise
        rates = [self.read(file) for file in files]
        try:
            known = [float(rate) for rate in rates]
        except ValueError:
            return None
        return min((rate for rate in known if rate > 0), default=None)

    def clock(self) -> int:
        """Let samples be stamped on the monotonic clock if possible; return the clock it is."""
        name = "current_timestamp_clock"
        current = self.read_if_there(name) or "realtime"
        if current != "monotonic":
            try:
                self.write(name, "monotonic")
                current = self.read(name)
            except SourceError:
                if not self.there():
                    raise
        return _CLOCKS.get(current, time.CLOCK_REALTIME)


def find_sensor(address: str) -> SensorFolder:
    """Return the sensor behind `iio:NAME`: by number, `iio:deviceN`, label or name.

    Raises SourceError that says which there are.
    """
    wanted = address.removeprefix("iio:")
    root = Path(os.environ.get(ROOT_VARIABLE, "/sys/bus/iio/devices"))
    nodes = root / "dev" if ROOT_VARIABLE in os.environ else Path("/dev")
    known, found = [], []
    for path in sorted(root.glob("iio:device*")):
        folder = SensorFolder(address, path, nodes / path.name)
        number = path.name.removeprefix("iio:device")
        if wanted in (number, path.name):
            return folder
        names = {_text(path / "name"), _text(path / "label")} - {""}
        known.append(f"{number} ({' '.join(sorted(names))})")
        if wanted in names:
            found.append(folder)
    if len(found) == 1:
        return found[0]
    if found:
        numbers = ", ".join(folder.path.name for folder in found)
        raise SourceError(f"{address} is the name of several ({numbers}); give the number of one")
    raise SourceError(
        f"{address} is not there; the sensors of Linux IIO are: {', '.join(known) or 'none'}; "
        "check its wiring and driver (device tree overlay)"
    )


def find_trigger(folder: SensorFolder) -> str | None:
    """Return the trigger that fills a sensor's buffer: the one set, else its own; None if none."""
    current = folder.read("trigger/current_trigger")
    if current and current != "NULL":
        return current
    number = folder.path.name.removeprefix("iio:device")
    own = f"{folder.read('name')}-dev{number}"
    names = {_text(path / "name") for path in folder.path.parent.glob("trigger*")}
    return own if own in names else None


def trigger_folder(folder: SensorFolder) -> SensorFolder | None:
    """Return the folder of the trigger that is set, if there is one."""
    trigger = folder.read_if_there("trigger/current_trigger")
    for path in folder.path.parent.glob("trigger*"):
        if _text(path / "name") == trigger:
            return SensorFolder(folder.address, path, folder.node)
    return None


def si_factor(channel: str) -> float:
    """Return the factor from the kernel's unit of a channel to the SI unit."""
    return _SI.get(_kind(channel), 1.0)


def _kind(channel: str) -> str:
    """`accel` of `accel_x`, `voltage` of `voltage0`."""
    return channel.split("_", maxsplit=1)[0].rstrip("0123456789")


def _nearest(rate_hz: float, available: str | None) -> float:
    """The least of the available rates that is at least rate_hz, else the highest."""
    numbers = [float(n) for n in re.findall(r"\d+(?:\.\d+)?", available or "")]
    if not numbers:
        return rate_hz
    if available is not None and available.startswith("["):  # [least step most]
        return min(max(rate_hz, numbers[0]), numbers[-1])
    return min((n for n in numbers if n >= 0.999 * rate_hz), default=max(numbers))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # it has none, or goes away just now
        return ""
