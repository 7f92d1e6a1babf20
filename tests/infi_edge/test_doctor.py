"""The doctor on made-up machines: files under /dev, /sys and /proc of a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infi_edge import doctor
from infi_edge.doctor import EXTRAS, Finding, examine
from infi_edge.interpreter import found_runtimes


def machine(root: Path, files: dict[str, str]) -> Path:
    """Write a machine's files."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def about(root: Path, word: str) -> list[Finding]:
    return [finding for finding in examine(root) if word in finding.what]


HEALTHY = {
    "dev/video0": "",
    "sys/class/video4linux/video0/name": "HD Webcam C525\n",
    "dev/snd/pcmC0D0c": "",
    "dev/snd/pcmC0D0p": "",
    "sys/class/thermal/thermal_zone0/temp": "51234\n",
    "proc/meminfo": "MemTotal: 4000000 kB\nMemAvailable:  2097152 kB\n",
}


@pytest.fixture
def equipped(monkeypatch):
    """Every program and library is here, and the user is in no group."""
    monkeypatch.setattr(doctor.ctypes.util, "find_library", lambda name: f"lib{name}.so.2")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(doctor.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(doctor.os, "getegid", lambda: 1000)
    monkeypatch.setattr(doctor.os, "getgroups", lambda: [])


def test_a_healthy_machine_has_no_problem(tmp_path, equipped):
    findings = list(examine(machine(tmp_path, HEALTHY)))
    assert [f for f in findings if f.level == "problem"] == []
    assert all(f.advice for f in findings if f.level != "ok")
    assert all(f"{f.what}{f.advice}".isprintable() for f in findings)


def test_an_empty_machine_is_examined_to_the_end(tmp_path):
    findings = list(examine(tmp_path))
    notes = " ".join(f.what for f in findings if f.level == "note")
    assert "no camera" in notes
    assert "no microphone under" in notes
    assert "no temperature sensor" in notes
    assert about(tmp_path, "MB of memory") == []


def test_the_runtimes_that_import_are_named(tmp_path, monkeypatch):
    monkeypatch.delenv("INFI_EDGE_RUNTIME", raising=False)
    found = about(tmp_path, "TFLite runtime")
    versions = list(found_runtimes().values())
    assert [f.level for f in found] == ["ok"] * len(versions)
    assert all(f.what.endswith(v) for f, v in zip(found, versions, strict=True))


def test_a_forced_runtime_that_is_not_here_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setenv("INFI_EDGE_RUNTIME", "absent_runtime")
    [finding] = about(tmp_path, "INFI_EDGE_RUNTIME")
    assert finding.level == "problem"
    assert "absent_runtime" in finding.what


def test_cameras_are_listed_by_name_and_stable_name(tmp_path):
    root = machine(tmp_path, {**HEALTHY, "dev/video1": ""})
    (root / "dev/v4l/by-id").mkdir(parents=True)
    link = root / "dev/v4l/by-id/usb-Logitech-video-index0"
    link.symlink_to("../../video0")
    first, second = about(root, "camera /")
    assert first == Finding("ok", f"camera {root}/dev/video0 (HD Webcam C525, stable name {link})")
    assert second == Finding("ok", f"camera {root}/dev/video1 (unknown)")


def test_only_capture_devices_are_microphones(tmp_path):
    [finding] = about(machine(tmp_path, HEALTHY), "microphone /")
    assert finding == Finding("ok", f"microphone {tmp_path}/dev/snd/pcmC0D0c")


def test_a_device_that_may_not_be_read_says_which_group_to_join(tmp_path):
    root = machine(tmp_path, HEALTHY)
    (root / "dev/video0").chmod(0)
    if os.access(root / "dev/video0", os.R_OK):
        pytest.skip("root may read every device")
    [finding] = about(root, "camera /")
    assert finding.level == "problem"
    assert "permission denied" in finding.what
    assert finding.advice.startswith("sudo usermod -aG ")


@pytest.mark.parametrize(
    ("zones", "level", "words"),
    [
        (["45000"], "ok", "45 C"),
        (["45000", "62000", "-273000"], "ok", "62 C"),
        (["79999"], "ok", "80 C"),
        (["45000", "80000"], "problem", "80 C and will slow down"),
        (["broken", "45000"], "ok", "45 C"),
    ],
)
def test_the_hottest_sensor_counts(tmp_path, zones, level, words):
    files = {f"sys/class/thermal/thermal_zone{i}/temp": t for i, t in enumerate(zones)}
    [finding] = about(machine(tmp_path, files), " C")
    assert finding.level == level
    assert words in finding.what
    assert bool(finding.advice) == (level == "problem")


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("MemAvailable: 204800 kB\n", ["ok"]),
        ("MemAvailable: 204799 kB\n", ["problem"]),
        ("MemTotal: 1000 kB\n", []),
        ("MemAvailable: lots\n", []),
        ("MemAvailable:\n", []),
        ("", []),
    ],
)
def test_little_memory_is_a_problem(tmp_path, text, levels):
    found = about(machine(tmp_path, {"proc/meminfo": text}), "MB of memory")
    assert [f.level for f in found] == levels


def test_this_very_machine_is_examined(monkeypatch):
    monkeypatch.delenv("INFI_EDGE_RUNTIME", raising=False)
    findings = list(examine())
    assert findings[0].what.startswith("Python 3.")
    assert {f.level for f in findings} <= {"ok", "note", "problem"}


@pytest.mark.parametrize("module", sorted(EXTRAS))
def test_a_missing_extra_is_named_with_what_installs_it(tmp_path, monkeypatch, module):
    there = doctor.importlib.util.find_spec
    monkeypatch.setattr(
        doctor.importlib.util, "find_spec", lambda name: None if name == module else there(name)
    )
    [finding] = about(tmp_path, module)
    assert finding.level == "note"
    assert finding.advice == f"pip install 'infi-edge[{EXTRAS[module][0]}]'"


def test_sounddevice_without_its_library_is_a_problem(tmp_path, monkeypatch, equipped):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    assert [f.level for f in about(tmp_path, "PortAudio")] == ["ok"]
    monkeypatch.setattr(doctor.ctypes.util, "find_library", lambda name: None)
    [finding] = about(tmp_path, "PortAudio")
    assert finding.level == "problem"
    assert finding.advice == "sudo apt-get install libportaudio2"


def test_gstreamer_is_asked_for_only_as_a_note(tmp_path, monkeypatch, equipped):
    assert [f.level for f in about(tmp_path, "gst-launch-1.0")] == ["ok"]
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert [f.level for f in about(tmp_path, "gst-launch-1.0")] == ["note"]


def test_a_user_outside_the_groups_of_devices_is_told_to_join(tmp_path, monkeypatch, equipped):
    [finding] = about(tmp_path, "not in the groups")
    assert "video" in finding.what
    assert finding.advice.startswith("sudo usermod -aG ")
    every = [group.gr_gid for group in doctor.grp.getgrall()]
    monkeypatch.setattr(doctor.os, "getgroups", lambda: every)
    assert about(tmp_path, "not in the groups") == []


def test_buses_and_sensors_are_listed_by_name(tmp_path):
    files = {
        "dev/i2c-0": "",
        "dev/i2c-1": "",
        "dev/iio:device0": "",
        "sys/bus/iio/devices/iio:device0/name": "lsm6ds3\n",
        "sys/bus/iio/devices/iio:device1/name": "bme280\n",
        "sys/bus/iio/devices/trigger0/name": "hrtimer\n",
    }
    root = machine(tmp_path, files)
    assert about(root, "I2C /") == [Finding("ok", f"I2C {root}/dev/i2c-0, {root}/dev/i2c-1")]
    assert about(root, "sensor iio") == [
        Finding("ok", "sensor iio:device0 (lsm6ds3)"),
        Finding("ok", "sensor iio:device1 (bme280)"),
    ]


@pytest.mark.parametrize(
    ("flags", "problems"),
    [
        ("0", []),
        ("50000", []),
        ("1", ["too little voltage"]),
        ("50005", ["too little voltage", "slowed down now"]),
        ("8", ["slowed down now"]),
    ],
)
def test_a_weak_power_supply_and_a_slowed_processor_are_problems(tmp_path, flags, problems):
    path = "sys/devices/platform/soc/soc:firmware/get_throttled"
    found = [f for f in examine(machine(tmp_path, {path: flags})) if f.level == "problem"]
    found = [f for f in found if "slow" in f.what]
    assert len(found) == len(problems)
    assert all(word in f.what and f.advice for word, f in zip(problems, found, strict=True))
