"""The doctor on made-up machines: files under /dev, /sys and /proc of a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infi_edge.doctor import Finding, examine
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


def test_a_healthy_machine_has_no_problem(tmp_path):
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
