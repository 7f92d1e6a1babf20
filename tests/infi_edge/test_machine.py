"""The machine's health on made-up machines, and what real processes use."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from infi_edge.machine import Machine, Processes, Reading

MB = 1 << 20
PI_4 = "sys/devices/platform/soc/soc:firmware/get_throttled"
PI_5 = "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled"


def machine(root: Path, files: dict[str, str]) -> Machine:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return Machine(root)


def zones(**celsius: float) -> dict[str, str]:
    files = {}
    for number, (kind, value) in enumerate(celsius.items()):
        zone = f"sys/class/thermal/thermal_zone{number}"
        files[f"{zone}/type"] = kind.replace("__", "-") + "\n"
        files[f"{zone}/temp"] = f"{int(value * 1000)}\n"
    return files


def test_a_machine_that_says_nothing_gives_none(tmp_path):
    assert Machine(tmp_path).read() == Reading(None, None, None)


def test_this_very_machine_can_be_read():
    reading = Machine().read()
    assert reading.temperature_c is None or -50 < reading.temperature_c < 150


@pytest.mark.parametrize(
    ("found", "celsius"),
    [
        ({"cpu__thermal": 61.5}, 61.5),
        # A Jetson: the PMIC always says 100, a part that is switched off -256.
        ({"CPU__therm": 50, "GPU__therm": 49, "PMIC__Die": 100}, 50),
        ({"cpu__thermal": 48.25, "soc0__thermal": 51, "cv0__thermal": -256, "tj__thermal": 52}, 52),
        ({"x86_pkg_temp": 70, "acpitz": 90, "iwlwifi_1": 99}, 70),
        ({"acpitz": 42}, 42),
        ({"battery": 30}, None),
        ({"cpu__thermal": -256}, None),
    ],
)
def test_the_hottest_zone_of_the_processor_counts(tmp_path, found, celsius):
    assert machine(tmp_path, zones(**found)).read().temperature_c == celsius


def test_a_zone_that_cannot_be_read_now_is_left_out(tmp_path):
    files = zones(cpu__thermal=50, gpu__thermal=60)
    reader = machine(tmp_path, files)
    (tmp_path / "sys/class/thermal/thermal_zone1/temp").write_text("")
    assert reader.read().temperature_c == 50
    (tmp_path / "sys/class/thermal/thermal_zone0/temp").write_text("55000\n")
    assert reader.read().temperature_c == 55


@pytest.mark.parametrize("path", [PI_4, PI_5])
@pytest.mark.parametrize(
    ("flags", "throttled", "under_voltage"),
    [
        ("0", False, False),
        ("1", False, True),
        ("2", True, False),
        ("4", True, False),
        ("8", True, False),
        ("50005", True, True),
        ("f0000", False, False),  # it happened, but not now
    ],
)
def test_a_raspberry_pi_tells_by_its_flags(tmp_path, path, flags, throttled, under_voltage):
    reading = machine(tmp_path, {path: f"{flags}\n"}).read()
    assert (reading.throttled, reading.under_voltage) == (throttled, under_voltage)


@pytest.mark.parametrize(("alarm", "low"), [("0", False), ("1", True), ("", None)])
def test_the_voltage_sensor_of_a_raspberry_pi_is_read(tmp_path, alarm, low):
    files = {
        "sys/class/hwmon/hwmon0/name": "cpu_thermal\n",
        "sys/class/hwmon/hwmon1/name": "rpi_volt\n",
        "sys/class/hwmon/hwmon1/in0_lcrit_alarm": f"{alarm}\n",
    }
    assert machine(tmp_path, files).read() == Reading(None, None, low)


def vcgencmd(root: Path, body: str) -> Path:
    """Write a program in its place that counts its calls; return the file with the count."""
    program, calls = root / "usr/bin/vcgencmd", root / "calls"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n{body}\n')
    program.chmod(0o755)
    return calls


def test_the_firmware_is_asked_by_vcgencmd_where_the_kernel_does_not_tell(tmp_path):
    calls = vcgencmd(tmp_path, "echo throttled=0x50005")
    reader = Machine(tmp_path)
    assert [reader.read() for _ in range(5)] == [Reading(None, True, True)] * 5
    assert calls.read_text() == "get_throttled\n"  # a process for each reading would be dear


@pytest.mark.parametrize("body", ["exit 1", "echo VCHI initialization failed", "echo throttled="])
def test_vcgencmd_that_fails_is_not_asked_all_the_time(tmp_path, body):
    calls = vcgencmd(tmp_path, body)
    reader = Machine(tmp_path)
    assert [reader.read() for _ in range(3)] == [Reading(None, None, None)] * 3
    assert calls.read_text() == "get_throttled\n"


@pytest.mark.parametrize(
    ("devices", "throttled"),
    [
        ({"pwm-fan": 3}, None),
        ({"cpufreq-cpu0": 0, "pwm-fan": 3}, False),
        ({"cpufreq-cpu0": 0, "cpufreq-cpu4": 2}, True),
        ({"thermal-cpufreq-0": 1}, True),
        ({"cpu_throttle_alert": 1}, True),
        ({"Processor": 0}, False),
    ],
)
def test_the_kernel_that_slows_the_processor_down_is_noticed(tmp_path, devices, throttled):
    files = {}
    for number, (kind, state) in enumerate(devices.items()):
        device = f"sys/class/thermal/cooling_device{number}"
        files |= {f"{device}/type": f"{kind}\n", f"{device}/cur_state": f"{state}\n"}
    assert machine(tmp_path, files).read().throttled is throttled


@contextmanager
def child(code: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that prints one line when it is ready, and waits for its input to end."""
    program = f"import os, sys\n{code}\nprint('ready', flush=True)\nsys.stdin.read()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.communicate("")


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


FORK = "block = bytearray(b'x') * (32 << 20)\nif os.fork() == 0: sys.stdin.read()"


def test_memory_of_children_and_grandchildren_counts():
    with child("") as process:
        usage = Processes(process.pid)
        alone = usage.read()
    with child(
        "block = bytearray(b'x') * (32 << 20)\nif os.fork() == 0: sys.stdin.read()"
    ) as process:
        usage = Processes(process.pid)
        until(lambda: usage.read().processes == 2)
        both = usage.read()
    assert alone.processes == 1
    assert alone.pss_bytes is not None
    assert both.pss_bytes is not None
    # The child's block is the parent's until it writes to it: RSS counts it twice, PSS once.
    assert both.rss_bytes - alone.rss_bytes > 60 * MB
    assert 30 * MB < both.pss_bytes - alone.pss_bytes < 50 * MB


def test_memory_is_what_another_reader_says():
    with child("block = bytearray(b'x') * (32 << 20)") as process:
        use = Processes(process.pid).read()
        known = psutil.Process(process.pid).memory_full_info()
    assert use.rss_bytes == pytest.approx(known.rss, abs=2 * MB)
    assert use.pss_bytes == pytest.approx(known.pss, abs=2 * MB)


def test_processor_time_of_a_busy_child_counts_and_of_an_idle_one_does_not():
    with child("") as process:
        usage = Processes(process.pid)
        time.sleep(0.3)
        assert usage.read().cpu < 0.2
    with child("if os.fork() == 0:\n    while True: pass") as process:
        usage = Processes(process.pid)
        used = psutil.Process(process.pid).children()[0]
        before_s, began_s = sum(used.cpu_times()[:2]), time.monotonic()
        until(lambda: sum(used.cpu_times()[:2]) - before_s > 0.5)
        cores = usage.read().cpu
        wanted = (sum(used.cpu_times()[:2]) - before_s) / (time.monotonic() - began_s)
        used.kill()
    assert cores == pytest.approx(wanted, rel=0.3, abs=0.1)


def test_a_child_that_ends_neither_lowers_nor_repeats_what_was_used():
    usage = Processes()
    readings = []
    for _ in range(3):
        busy = subprocess.Popen(
            [sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"]
        )
        busy.wait()
        readings.append(usage.read().cpu)
    assert all(cores > 0 for cores in readings)
    time.sleep(0.3)
    assert 0 <= usage.read().cpu < 0.5


def test_two_readings_at_once_give_the_same_cores():
    usage = Processes()
    time.sleep(0.15)
    assert usage.read().cpu == usage.read().cpu


def test_a_process_that_is_gone_uses_nothing():
    with child("") as process:
        usage = Processes(process.pid)
    use = usage.read()
    assert (use.cpu, use.rss_bytes, use.pss_bytes, use.processes) == (0.0, 0, 0, 0)


def test_a_name_with_spaces_and_parentheses_is_no_trap(tmp_path):
    stat = "7 (a) R 1 (b) S 1 " + " ".join(["0"] * 9) + " 100 50 25 25 " + " ".join(["0"] * 20)
    (tmp_path / "7").mkdir()
    (tmp_path / "7/stat").write_text(stat)
    (tmp_path / "self").mkdir()
    use = Processes(7, tmp_path).read()
    assert use.processes == 1
    assert use.pss_bytes is None  # no smaps_rollup: an old kernel, or another's process


def test_reading_leaves_no_descriptor_open():
    usage, reader = Processes(), Machine()
    usage.read()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        usage.read()
        reader.read()
    assert len(os.listdir("/proc/self/fd")) == before
