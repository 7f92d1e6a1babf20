"""What the machine says of itself: heat, throttling, power; and what the daemon's processes use.

Everything is read from files under a root that a test can set. All of it is cheap enough to be
asked every few seconds.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

_PROCESSOR = re.compile(r"cpu|soc|core|pkg|cluster|^tj|^$")
_ELSEWHERE = re.compile(r"pmic|batt|fan|charger|wifi|iwl|nvme")  # a Jetson's PMIC-Die is always 100
_SLOWED = re.compile(r"cpufreq|throttle|^processor")
COLDEST_C = -50.0
"""Below this a sensor is switched off: a Jetson's say -256."""

UNDER_VOLTAGE, FREQUENCY_CAPPED, THROTTLED, SOFT_LIMIT = 1, 2, 4, 8
"""The firmware's flags of now on a Raspberry Pi; the same from bit 16 on: since it started."""

VCGENCMD_EVERY_S = 10.0
VCGENCMD_RETRY_S = 600.0


@dataclass(frozen=True, slots=True)
class Reading:
    """temperature_c: of the hottest part of the processor. throttled: slowed down now, by heat or
    by power. under_voltage: now. None where the machine does not say."""

    temperature_c: float | None
    throttled: bool | None
    under_voltage: bool | None


class Machine:
    """Reads a machine's health. Not for several threads at once."""

    def __init__(self, root: Path = Path("/")) -> None:
        """root: where /sys and /usr are."""
        self._root = root
        self._vcgencmd = root / "usr/bin/vcgencmd"
        self._flags: int | None = None
        self._ask_again_s = 0.0

    def read(self) -> Reading:
        """Return what the machine says now."""
        flags = self._firmware_flags()
        under_voltage = self._voltage_alarm()
        if flags is None:
            return Reading(self.temperature_c(), self._cooled_by_slowing(), under_voltage)
        throttled = bool(flags & (FREQUENCY_CAPPED | THROTTLED | SOFT_LIMIT))
        if under_voltage is None:
            under_voltage = bool(flags & UNDER_VOLTAGE)
        return Reading(self.temperature_c(), throttled, under_voltage)

    def temperature_c(self) -> float | None:
        """Return the temperature of the hottest thermal zone of the processor.

        Where no zone is known to be the processor's, of any that is not known to be elsewhere.
        """
        processor: list[float] = []
        others: list[float] = []
        for zone in (self._root / "sys/class/thermal").glob("thermal_zone*"):
            celsius = _number(zone / "temp")
            if celsius is None or celsius / 1000 < COLDEST_C:
                continue
            kind = _text(zone / "type").lower()
            if _ELSEWHERE.search(kind):
                continue
            (processor if _PROCESSOR.search(kind) else others).append(celsius / 1000)
        return max(processor or others, default=None)

    def _firmware_flags(self) -> int | None:
        # soc:firmware up to the Raspberry Pi 4, soc@107c000000:firmware on the 5.
        platform = self._root / "sys/devices/platform"
        for file in platform.glob("soc*/soc*:firmware/get_throttled"):
            try:
                return int(_text(file), 16)
            except ValueError:
                continue
        now_s = time.monotonic()
        if now_s >= self._ask_again_s:
            self._flags = self._ask_firmware()
            wait_s = VCGENCMD_RETRY_S if self._flags is None else VCGENCMD_EVERY_S
            self._ask_again_s = now_s + wait_s
        return self._flags

    def _ask_firmware(self) -> int | None:
        if not self._vcgencmd.exists():
            return None
        try:
            answer = subprocess.run(
                [str(self._vcgencmd), "get_throttled"],
                capture_output=True,
                text=True,
                check=True,
                timeout=2,
            ).stdout
            return int(answer.partition("=")[2], 16)
        except (OSError, subprocess.SubprocessError, ValueError):
            return None

    def _voltage_alarm(self) -> bool | None:
        for device in (self._root / "sys/class/hwmon").glob("hwmon*"):
            if _text(device / "name") == "rpi_volt":
                alarm = _number(device / "in0_lcrit_alarm")
                return None if alarm is None else bool(alarm)
        return None

    def _cooled_by_slowing(self) -> bool | None:
        """Whether the kernel holds the processor's frequency down because of heat."""
        states = [
            _number(device / "cur_state")
            for device in (self._root / "sys/class/thermal").glob("cooling_device*")
            if _SLOWED.search(_text(device / "type").lower())
        ]
        known = [state for state in states if state is not None]
        return any(known) if known else None


@dataclass(frozen=True, slots=True)
class Use:
    """cpu: cores, on average since the reading before. rss_bytes counts pages that are shared for
    each process, pss_bytes by their share (None where the kernel does not tell)."""

    cpu: float
    rss_bytes: int
    pss_bytes: int | None
    processes: int


class Processes:
    """Reads what one process and all its descendants use. Not for several threads at once."""

    def __init__(self, pid: int | None = None, proc: Path = Path("/proc")) -> None:
        """pid: of the first of them; None: this one."""
        self._pid = os.getpid() if pid is None else pid
        self._proc = proc
        self._tick_s = 1 / os.sysconf("SC_CLK_TCK")
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self._cpu = 0.0
        self._read_s = time.monotonic()
        self._used_s = self._cpu_s(self._family())

    def read(self) -> Use:
        """Return what they use now."""
        family = self._family()
        rss_bytes, pss_bytes = 0, 0
        told = True
        for pid, stat in family.items():
            rss, pss = self._memory(pid, stat)
            rss_bytes += rss
            pss_bytes += pss or 0
            told = told and pss is not None
        return Use(self._cores(family), rss_bytes, pss_bytes if told else None, len(family))

    def _cores(self, family: dict[int, list[str]]) -> float:
        now_s, used_s = time.monotonic(), self._cpu_s(family)
        passed_s = now_s - self._read_s
        if passed_s < 0.1:  # the kernel counts in hundredths of a second
            return self._cpu
        # What a child used moves to its parent when it is waited for; an orphan's is lost.
        self._cpu = max(used_s - self._used_s, 0.0) / passed_s
        self._read_s, self._used_s = now_s, used_s
        return self._cpu

    def _cpu_s(self, family: dict[int, list[str]]) -> float:
        # utime, stime, and cutime, cstime: of children that have ended.
        return sum(int(n) for stat in family.values() for n in stat[11:15]) * self._tick_s

    def _family(self) -> dict[int, list[str]]:
        """The fields of /proc/PID/stat from the state on, of the process and its descendants."""
        children: dict[int, list[int]] = {}
        stats: dict[int, list[str]] = {}
        for name in os.listdir(self._proc):
            if not name.isdigit():
                continue
            # The second field, the name, may hold anything, spaces and parentheses too.
            fields = _text(self._proc / name / "stat").rpartition(")")[2].split()
            if len(fields) < 22:  # it has just ended
                continue
            stats[int(name)] = fields
            children.setdefault(int(fields[1]), []).append(int(name))
        family, waiting = {}, [self._pid]
        while waiting:
            pid = waiting.pop()
            if pid in stats:
                family[pid] = stats[pid]
            waiting += children.get(pid, [])
        return family

    def _memory(self, pid: int, stat: list[str]) -> tuple[int, int | None]:
        if stat[0] in "ZX":
            return 0, 0
        rollup = _text(self._proc / str(pid) / "smaps_rollup")
        found = dict(re.findall(r"^(Rss|Pss):\s+(\d+) kB", rollup, re.MULTILINE))
        if len(found) < 2:
            return int(stat[21]) * self._page_bytes, None
        return int(found["Rss"]) * 1024, int(found["Pss"]) * 1024


def _text(file: Path) -> str:
    """The text of a kernel's file; empty if it cannot be read (now)."""
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    try:
        return int(_text(file))
    except ValueError:
        return None
