"""How many inferences the machine can afford: a rate, cores, a temperature."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Protocol

from infi_edge.config import BudgetConfig
from infi_edge.errors import InfiEdgeError

STEP_S = 5.0
COOLER_C = 3.0
BURST_S = 1.0
LEAST_HZ = 0.1


class OverBudget(InfiEdgeError):
    """An input that was dropped because there is no budget to infer it."""


class Allowance(Protocol):
    """What a gate asks before each inference. max_stale_s: see `BudgetConfig`."""

    @property
    def max_stale_s(self) -> float:
        """How old an answer may be that is given again."""

    def take(self) -> bool:
        """Take one inference, if there is one."""


class Share:
    """One source's part of a budget: `take` in its name."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    @property
    def max_stale_s(self) -> float:
        """The budget's."""
        return self._budget.max_stale_s

    def take(self) -> bool:
        return self._budget.take(self)


class Budget:
    """An allowance for all sources together.

    A token bucket of max_inferences_per_s. Over max_cpu or max_temperature_c the rate is halved
    every 5 s, down to one in ten seconds; below both (3 degrees below) it grows by a quarter every
    5 s until it is no longer what limits.
    """

    def __init__(self, config: BudgetConfig) -> None:
        self.max_stale_s = config.max_stale_s
        self._config = config
        self._rate_hz = config.max_inferences_per_s
        self._limit_hz: float | None = None
        self._tokens = 1.0
        self._filled_s = time.monotonic()
        self._step_s = self._filled_s
        self._taken = 0
        self._refused_s: float | None = None
        self._owed: deque[object] = deque()
        self._kept: set[object] = set()
        self._lock = threading.Lock()
        self.sentence = ""

    def configure(self, config: BudgetConfig) -> None:
        """Take other settings into force."""
        with self._lock:
            self._config, self._rate_hz = config, config.max_inferences_per_s
            self.max_stale_s, self._limit_hz, self.sentence = config.max_stale_s, None, ""
            self._owed.clear()  # of sources that may be gone
            self._kept.clear()

    def take(self, who: object = None) -> bool:
        """who: a source. One that was refused has the next inference kept for it, in turn: else a
        fast source takes all of them."""
        with self._lock:
            self._taken += 1
            rate_hz = self._now_hz()
            if rate_hz is None:
                return True
            now_s = time.monotonic()
            most = max(1.0, rate_hz * BURST_S)
            self._tokens = min(self._tokens + (now_s - self._filled_s) * rate_hz, most)
            self._filled_s = now_s
            while self._owed and self._tokens >= 1.0:
                self._kept.add(self._owed.popleft())
                self._tokens -= 1.0
            if who in self._kept:
                self._kept.discard(who)
                return True
            if self._tokens < 1.0:
                self._refused_s = now_s
                if who not in self._owed:
                    self._owed.append(who)
                return False
            self._tokens -= 1.0
            return True

    def _now_hz(self) -> float | None:
        rates = [rate for rate in (self._rate_hz, self._limit_hz) if rate is not None]
        return min(rates, default=None)

    @property
    def over(self) -> bool:
        """Whether an inference was refused in the last seconds."""
        return self._refused_s is not None and time.monotonic() - self._refused_s < STEP_S

    def step(self, cpu: float, temperature_c: float | None) -> None:
        """Look at the machine; called every second or so. cpu: cores used."""
        with self._lock:
            now_s = time.monotonic()
            elapsed_s = now_s - self._step_s
            if elapsed_s < STEP_S:
                return
            asked_hz, self._taken, self._step_s = self._taken / elapsed_s, 0, now_s
            hot = _over(temperature_c, self._config.max_temperature_c)
            busy = _over(cpu, self._config.max_cpu)
            if hot or busy:
                in_force_hz = self._now_hz()
                self._limit_hz = max(min(asked_hz, in_force_hz or asked_hz) / 2, LEAST_HZ)
                what = f"{temperature_c:.0f} degrees" if hot else f"{cpu:.2f} cores"
                self.sentence = f"{what}: at most {self._limit_hz:.1f} inferences a second"
            elif self._limit_hz is not None and not self._near(temperature_c):
                self._limit_hz *= 1.25
                self.sentence = f"at most {self._limit_hz:.1f} inferences a second"
                if self._limit_hz > 2 * asked_hz:
                    self._limit_hz, self.sentence = None, ""
            if self._limit_hz is None:
                limits = self._rate_hz is not None and self.over
                self.sentence = f"at most {self._rate_hz:g} inferences a second" if limits else ""

    def _near(self, temperature_c: float | None) -> bool:
        ceiling_c = self._config.max_temperature_c
        return (
            ceiling_c is not None
            and temperature_c is not None
            and temperature_c > ceiling_c - COOLER_C
        )


def _over(value: float | None, ceiling: float | None) -> bool:
    return value is not None and ceiling is not None and value > ceiling
