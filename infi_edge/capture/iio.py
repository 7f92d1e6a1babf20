"""Sensors of Linux IIO (`iio:NAME`): through the kernel's buffer, else by reading sysfs files.

Channels have the kernel's names (accel_x, anglvel_z, magn_y, temp) and SI units.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Sequence

import numpy as np

from infi_edge.capture.address import need_modality
from infi_edge.capture.iio_scan import TIMESTAMP, Element, layout
from infi_edge.capture.iio_tree import (
    Denied,
    Disturbed,
    SensorFolder,
    find_sensor,
    find_trigger,
    si_factor,
    trigger_folder,
)
from infi_edge.capture.live_motion import Pick, pick_channels
from infi_edge.capture.motion_source import MotionDevice, MotionSource, Rows
from infi_edge.capture.sample_times import ArrivalTimes
from infi_edge.capture.source import Health, Source
from infi_edge.config import SourceConfig
from infi_edge.errors import SourceError
from infi_edge.preprocess import MotionSpec, Spec

DEFAULT_RATE_HZ = 100.0
_WAKE_S = 0.05
_KERNEL_BUFFER_S = 2.0
_NS = 1e-9
_TRIES = 10


def open_source(name: str, config: SourceConfig, spec: Spec, must_open: bool = False) -> Source:
    """Return the sensor as a source; its channels are checked when it is there."""
    need_modality(config, spec, (MotionSpec,))
    assert isinstance(spec, MotionSpec)

    def open_device(health: Health) -> MotionDevice:
        return open_sensor(config, spec, health)

    return MotionSource(name, config, spec, open_device, must_open)


def open_sensor(config: SourceConfig, spec: MotionSpec, health: Health) -> MotionDevice:
    """Open config.address at imu.rate_hz, else the filter's rate.

    The buffer is used where the sensor has one and a trigger that fills it; without the right to
    set it up, files are read instead (noticed as `permission`). Raises SourceError, ConfigError.
    """
    folder = find_sensor(config.address)
    rate_hz = config.imu.rate_hz or spec.rate_hz or DEFAULT_RATE_HZ
    elements = folder.elements()
    if elements and (folder.path / "buffer").is_dir():
        names = [e.name for e in elements if e.name != TIMESTAMP]
        picks = pick_channels(config.address, spec, config.imu, names, config.imu.channels)
        try:
            if _set_trigger(folder):
                return BufferedSensor(folder, elements, [(names[i], f) for i, f in picks], rate_hz)
        except Denied as error:
            if not folder.polled():
                raise
            health.notice("permission", f"{error}; its files are read one by one meanwhile")
    files = folder.polled()
    names = list(files)
    picks = pick_channels(config.address, spec, config.imu, names, config.imu.channels)
    return PolledSensor(folder, [files[names[i]] for i, _ in picks], picks, names, rate_hz, health)


def _set_trigger(folder: SensorFolder) -> bool:
    """Give the sensor its trigger; False if it needs one and there is none."""
    if not (folder.path / "trigger").is_dir():
        return True  # its hardware fills the buffer
    trigger = find_trigger(folder)
    if trigger is None:
        return False
    if folder.read("trigger/current_trigger") != trigger:
        folder.write("trigger/current_trigger", trigger)
    return True


def _set_rate(folder: SensorFolder, rate_hz: float, channels: Sequence[str]) -> float:
    """Set the rate of the sensor, and of its trigger if that is a timer; return what counts."""
    own_hz = folder.set_rate(rate_hz, channels)
    timer = trigger_folder(folder)
    timer_hz = timer.set_rate(rate_hz) if timer is not None else None
    return timer_hz or own_hz or rate_hz


class BufferedSensor:
    """A sensor read through its kernel buffer, at the times the kernel stamped."""

    def __init__(
        self,
        folder: SensorFolder,
        elements: Sequence[Element],
        channels: Sequence[tuple[str, float]],
        rate_hz: float,
    ) -> None:
        """channels: the filter's, each with a factor. Raises SourceError, Denied."""
        self._folder = folder
        self._descriptor = self._open_node()  # exclusive in the kernel: ours from here on
        try:
            folder.write("buffer/enable", "0")
            wanted = {name for name, _ in channels} | {TIMESTAMP}
            for element in elements:
                enable = f"scan_elements/in_{element.name}_en"
                folder.write(enable, str(int(element.name in wanted)))
            enabled = [e for e in elements if folder.read(f"scan_elements/in_{e.name}_en") == "1"]
            self._elements = {element.name: element for element in enabled}
            self._scan = layout(enabled)
            self._channels = []
            for name, factor in channels:
                offset, scale = folder.to_si(name)
                self._channels.append((name, offset, scale * factor))
            self.rate_hz = _set_rate(folder, rate_hz, [name for name, _ in channels])
            self._clock = folder.clock()
            self._arrivals = ArrivalTimes(self.rate_hz)
            self._set_length(self.rate_hz)
            folder.write("buffer/enable", "1")
        except BaseException:
            os.close(self._descriptor)
            raise
        self._rest = b""
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)

    def _open_node(self) -> int:
        try:
            return os.open(self._folder.node, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise self._folder.fault(error, str(self._folder.node)) from error

    def _set_length(self, rate_hz: float) -> None:
        length = max(int(_KERNEL_BUFFER_S * rate_hz), 16)
        self._folder.write("buffer/length", str(length))
        if (self._folder.path / "buffer/watermark").exists():
            watermark = min(max(int(_WAKE_S * rate_hz), 1), length // 2)
            self._folder.write("buffer/watermark", str(watermark))

    def read(self, timeout_s: float) -> Rows | None:
        self._poll.poll(timeout_s * 1000)
        arrival_s = time.monotonic()
        try:  # also after a time-out: less than the watermark may be there, or the sensor gone
            block = os.read(self._descriptor, 512 * self._scan.itemsize)
        except BlockingIOError:
            if not self._folder.there():
                raise SourceError(f"{self._folder.address} is gone; check its plug") from None
            return None
        except OSError as error:
            raise self._folder.fault(error, str(self._folder.node)) from error
        if not block:
            raise SourceError(f"{self._folder.address} is gone; check its plug")
        self._rest += block
        whole = len(self._rest) // self._scan.itemsize
        if whole == 0:
            return None
        scans = np.frombuffer(self._rest, self._scan, whole)
        self._rest = self._rest[whole * self._scan.itemsize :]
        return Rows(self._times_s(scans, arrival_s), self._values(scans))

    def _times_s(self, scans: np.ndarray, arrival_s: float) -> Sequence[float]:
        if TIMESTAMP in self._elements:
            stamps = scans[TIMESTAMP].astype(np.int64)
            if (stamps > 0).all():  # a driver without stamps leaves them zero
                ahead_ns = 0
                if self._clock != time.CLOCK_MONOTONIC:
                    ahead_ns = time.monotonic_ns() - time.clock_gettime_ns(self._clock)
                times: list[float] = ((stamps + ahead_ns) * _NS).tolist()
                return times
        return self._arrivals.place(arrival_s, len(scans))

    def _values(self, scans: np.ndarray) -> np.ndarray:
        columns = []
        for name, offset, scale in self._channels:
            numbers = self._elements[name].numbers(scans[name])
            numbers = numbers if numbers.ndim == 1 else numbers[:, 0]
            columns.append((numbers + offset) * scale)
        return np.stack(columns, axis=1)

    def close(self) -> None:
        with contextlib.suppress(SourceError):  # it may be what is gone
            self._folder.write("buffer/enable", "0")
        os.close(self._descriptor)


class PolledSensor:
    """A sensor whose files are read at the rate, one by one."""

    def __init__(
        self,
        folder: SensorFolder,
        files: Sequence[str],
        picks: Sequence[Pick],
        names: Sequence[str],
        rate_hz: float,
        health: Health,
    ) -> None:
        """files: one a channel of the filter. Raises SourceError, Denied."""
        self._folder, self._health = folder, health
        self._failures = 0
        own_hz = folder.set_rate(rate_hz, [names[place] for place, _ in picks])
        self.rate_hz = min(own_hz or rate_hz, rate_hz)
        self._channels: list[tuple[str, float, float]] = []
        for file, (place, factor) in zip(files, picks, strict=True):
            name = names[place]
            offset, scale = (
                (0.0, si_factor(name)) if file.endswith("_input") else folder.to_si(name)
            )
            self._channels.append((file, offset, scale * factor))
        self._due_s = time.monotonic()

    def read(self, timeout_s: float) -> Rows | None:
        early_s = self._due_s - time.monotonic()
        if early_s > 0:
            time.sleep(min(early_s, timeout_s))
        begun_s = time.monotonic()
        if begun_s < self._due_s:
            return None
        # Late: skip what cannot be made up for, keep the beat.
        steps = max(int((begun_s - self._due_s) * self.rate_hz) + 1, 1)
        self._due_s += steps / self.rate_hz
        try:
            values = [self._value(*channel) for channel in self._channels]
        except Disturbed as error:
            self._failures += 1
            if self._failures >= _TRIES:
                raise
            self._health.notice("bus", str(error))
            return None
        self._failures = 0
        return Rows([(begun_s + time.monotonic()) / 2], [values])

    def _value(self, file: str, offset: float, scale: float) -> float:
        text = self._folder.read(file)
        try:
            return (float(text) + offset) * scale
        except ValueError:
            raise SourceError(f"{self._folder.address}: {file} holds no number: {text!r}") from None

    def close(self) -> None:
        """There is nothing to let go of."""
