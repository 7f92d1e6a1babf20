"""Look at the machine: what is here, what is missing, what to do about it."""

from __future__ import annotations

import grp
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infi_edge.interpreter import RUNTIMES, found_runtimes

HOT_C = 80.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; advice says what to do about a problem."""

    level: Literal["ok", "note", "problem"]
    what: str
    advice: str = ""


def examine(root: Path = Path("/")) -> Iterator[Finding]:
    """Yield what is found. root: where /dev, /sys and /proc are (a test gives its own)."""
    yield Finding("ok", f"Python {platform.python_version()} on {platform.machine()}")
    yield from _runtimes()
    yield from _packages()
    yield from _cameras(root)
    yield from _audio(root)
    yield from _temperature(root)
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
    for package in ("numpy", "opencv-python-headless", "sounddevice"):
        try:
            yield Finding("ok", f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            module = {"opencv-python-headless": "cv2"}.get(package, package)
            if importlib.util.find_spec(module) is not None:
                yield Finding("ok", f"{module} (not from {package})")
            elif package == "sounddevice":
                yield Finding(
                    "note", "no microphone support (sounddevice)", "pip install sounddevice"
                )
            else:
                yield Finding("problem", f"{package} is missing", f"pip install {package}")


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


def _access(device: Path, what: str, group: str) -> Finding:
    if os.access(device, os.R_OK | os.W_OK):
        return Finding("ok", what)
    try:
        owner = grp.getgrgid(device.stat().st_gid).gr_name
    except (KeyError, OSError):
        owner = group
    return Finding(
        "problem",
        f"{what}: permission denied",
        f"sudo usermod -aG {owner} $USER, then log in again",
    )


def _temperature(root: Path) -> Iterator[Finding]:
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*/temp"))
    celsius = []
    for zone in zones:
        try:
            celsius.append(int(zone.read_text()) / 1000)
        except (OSError, ValueError):
            continue
    if not celsius:
        yield Finding("note", "no temperature sensor is readable")
    elif max(celsius) >= HOT_C:
        yield Finding(
            "problem",
            f"the device is at {max(celsius):.0f} C and will slow down",
            "give it a heat sink or a fan",
        )
    else:
        yield Finding("ok", f"temperature {max(celsius):.0f} C")


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
