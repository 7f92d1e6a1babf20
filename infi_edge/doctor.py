"""Look at the machine: what is here, what is missing, what to do about it."""

from __future__ import annotations

import ctypes.util
import grp
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infi_edge.interpreter import RUNTIMES, found_runtimes
from infi_edge.machine import Machine

HOT_C = 80.0

EXTRAS = {
    "sounddevice": ("microphone", "no microphone support"),
    "smbus2": ("i2c", "no sensors on the I2C bus"),
    "serial": ("serial", "no sensors on serial ports"),
    "paho": ("mqtt", "no MQTT"),
    "waitress": ("web", "no status page"),
    "tritonclient": ("offload", "no model on a server"),
    "prometheus_client": ("web", "no metrics"),
}
"""Modules that may be missing: the extra that brings them, and what there is not without."""

DEVICE_GROUPS = ("video", "audio", "i2c", "gpio", "dialout")


Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; advice says what to do about a problem."""

    level: Level
    what: str
    advice: str = ""


def examine(root: Path = Path("/")) -> Iterator[Finding]:
    """Yield what is found. root: where /dev, /sys and /proc are (a test gives its own)."""
    yield Finding("ok", f"Python {platform.python_version()} on {platform.machine()}")
    yield from _runtimes()
    yield from _packages()
    yield from _extras()
    yield from _programs()
    yield from _cameras(root)
    yield from _audio(root)
    yield from _sensors(root)
    yield from _groups()
    yield from _heat_and_power(root)
    yield from _memory(root)


def _runtimes() -> Iterator[Finding]:
    found = found_runtimes()
    forced = os.environ.get("INFI_EDGE_RUNTIME")
    for name, version in found.items():
        yield Finding("ok", f"TFLite runtime {RUNTIMES[name]} {version}")
    if not found:
        old = platform.machine() == "armv7l" and sys.version_info < (3, 12)
        package = "'numpy<2' tflite-runtime" if old else "ai-edge-litert"
        yield Finding("problem", "no TFLite runtime can be imported", f"pip install {package}")
    if forced and forced not in found:
        yield Finding(
            "problem",
            f"INFI_EDGE_RUNTIME={forced}, which cannot be imported",
            "unset it or install that runtime",
        )


def _packages() -> Iterator[Finding]:
    for package in ("numpy", "opencv-python-headless"):
        try:
            yield Finding("ok", f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            module = {"opencv-python-headless": "cv2"}.get(package, package)
            if importlib.util.find_spec(module) is not None:
                yield Finding("ok", f"{module} (not from {package})")
            else:
                yield Finding("problem", f"{package} is missing", f"pip install {package}")


def _extras() -> Iterator[Finding]:
    for module, (extra, without) in EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            yield Finding("note", f"{without} ({module})", f"pip install 'infi-edge[{extra}]'")
        else:
            yield Finding("ok", f"{module}, of the extra {extra}")


def _programs() -> Iterator[Finding]:
    # PyPI's sounddevice for Linux does not bring the library it is about.
    if importlib.util.find_spec("sounddevice") is not None:
        if ctypes.util.find_library("portaudio"):
            yield Finding("ok", "PortAudio")
        else:
            yield Finding(
                "problem",
                "sounddevice cannot find PortAudio",
                "sudo apt-get install libportaudio2",
            )
    if shutil.which("gst-launch-1.0"):
        yield Finding("ok", "GStreamer (gst-launch-1.0)")
    else:
        yield Finding(
            "note",
            "no gst: sources (gst-launch-1.0)",
            "sudo apt-get install gstreamer1.0-tools gstreamer1.0-plugins-good",
        )


def _cameras(root: Path) -> Iterator[Finding]:
    devices = sorted((root / "dev").glob("video*"))
    if not devices:
        yield Finding(
            "note",
            "no camera under /dev/video*",
            "plug one in; a Pi camera needs libcamera's V4L2 layer",
        )
    by_id = {link.resolve(): link for link in (root / "dev/v4l/by-id").glob("*")}
    for device in devices:
        name_file = root / "sys/class/video4linux" / device.name / "name"
        name = name_file.read_text().strip() if name_file.exists() else "unknown"
        stable = by_id.get(device.resolve())
        known_as = f", stable name {stable}" if stable else ""
        yield _access(device, f"camera {device} ({name}{known_as})", "video")


def _audio(root: Path) -> Iterator[Finding]:
    captures = sorted((root / "dev/snd").glob("pcm*c"))
    if not captures:
        yield Finding("note", "no microphone under /dev/snd", "plug one in if you need sound")
    for device in captures:
        yield _access(device, f"microphone {device}", "audio")


def _sensors(root: Path) -> Iterator[Finding]:
    buses = sorted((root / "dev").glob("i2c-*"))
    if buses:
        what = f"I2C {', '.join(str(bus) for bus in buses)}"
        yield _access(buses[0], what, "i2c", level="note")
    for sensor in sorted((root / "sys/bus/iio/devices").glob("iio:device*")):
        name_file = sensor / "name"
        name = name_file.read_text().strip() if name_file.exists() else "unknown"
        what, device = f"sensor {sensor.name} ({name})", root / "dev" / sensor.name
        # Without a device there is no buffer: its values are read one by one from sysfs.
        if device.exists():
            yield _access(device, what, "infi-edge", level="note")
        else:
            yield Finding("ok", what)


def _access(device: Path, what: str, group: str, level: Level = "problem") -> Finding:
    if os.access(device, os.R_OK | os.W_OK):
        return Finding("ok", what)
    try:
        owner = grp.getgrgid(device.stat().st_gid).gr_name
    except (KeyError, OSError):
        owner = group
    advice = f"sudo usermod -aG {owner} $USER, then log in again"
    if owner == "root":
        advice = "infi-edge service install gives it to the service; else run with sudo"
    return Finding(level, f"{what}: permission denied", advice)


def _groups() -> Iterator[Finding]:
    """The groups that devices belong to, as far as the machine has them."""
    if os.geteuid() == 0:
        return
    mine = {os.getegid(), *os.getgroups()}
    missing = [
        group.gr_name
        for group in grp.getgrall()
        if group.gr_name in DEVICE_GROUPS and group.gr_gid not in mine
    ]
    if missing:
        yield Finding(
            "note",
            f"this user is not in the groups {', '.join(missing)}",
            f"sudo usermod -aG {','.join(missing)} $USER, then log in again",
        )


def _heat_and_power(root: Path) -> Iterator[Finding]:
    reading = Machine(root).read()
    celsius = reading.temperature_c
    if celsius is None:
        yield Finding(
            "note",
            "no temperature sensor is readable",
            "leave budget.max_temperature_c out: it would never act",
        )
    elif celsius >= HOT_C:
        yield Finding(
            "problem",
            f"the device is at {celsius:.0f} C and will slow down",
            "give it a heat sink or a fan",
        )
    else:
        yield Finding("ok", f"temperature {celsius:.0f} C")
    if reading.under_voltage:
        yield Finding(
            "problem",
            "the device has too little voltage and slows down",
            "use the power supply it was made for, with a short cable",
        )
    if reading.throttled:
        yield Finding(
            "problem",
            "the processor is slowed down now, by heat or by power",
            "cool it, give it a stronger power supply, or lower budget.max_inferences_per_s",
        )
    elif reading.throttled is not None:
        yield Finding("ok", "the processor is not slowed down")


def _memory(root: Path) -> Iterator[Finding]:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        free_mb = int(fields["MemAvailable"].split()[0]) / 1024
    except (OSError, KeyError, ValueError, IndexError):
        return
    if free_mb < 200:
        yield Finding("problem", f"{free_mb:.0f} MB of memory free", "close other programs")
    else:
        yield Finding("ok", f"{free_mb:.0f} MB of memory free")
