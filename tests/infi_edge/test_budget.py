"""The allowance of inferences: never over its rate, less when hot, all of it when cool again."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi_edge import budget as module
from infi_edge.budget import BURST_S, LEAST_HZ, STEP_S, Budget, Share
from infi_edge.config import BudgetConfig


class Clock:
    """A monotonic clock moved by hand."""

    def __init__(self) -> None:
        self.now_s = 5000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def asked(budget: Budget, clock: Clock, hz: float, seconds: float) -> int:
    """How many of hz * seconds inferences are let through."""
    count = 0
    for _ in range(round(hz * seconds)):
        clock.now_s += 1 / hz
        count += budget.take()
    return count


def machine(budget: Budget, clock: Clock, hz: float, steps: int, **now: float) -> float:
    """Ask at hz for some steps of the machine; return what was let through a second."""
    count = 0
    for _ in range(steps):
        count += asked(budget, clock, hz, STEP_S)
        budget.step(now.get("cpu", 0.1), now.get("temperature_c"))
    return count / (steps * STEP_S)


def test_without_limits_everything_is_taken(clock):
    budget = Budget(BudgetConfig())
    assert all(budget.take() for _ in range(10_000))
    budget.step(99.0, 120.0)
    assert not budget.over
    assert budget.sentence == ""


def test_a_rate_holds_in_the_long_run(clock):
    budget = Budget(BudgetConfig(max_inferences_per_s=4.0))
    assert asked(budget, clock, 30, 100) == pytest.approx(400, abs=5)
    assert budget.over


def test_less_than_the_rate_is_never_refused(clock):
    budget = Budget(BudgetConfig(max_inferences_per_s=4.0))
    assert asked(budget, clock, 3.9, 100) == 390
    assert not budget.over


def test_a_rate_below_one_in_a_second_still_lets_some_through(clock):
    budget = Budget(BudgetConfig(max_inferences_per_s=0.1))
    assert asked(budget, clock, 30, 100) in (10, 11)


STEPS = st.lists(st.tuples(st.floats(0, 3), st.integers(1, 20)), min_size=1, max_size=60)


@given(st.floats(0.05, 50), STEPS)
def test_no_window_holds_more_than_the_rate_and_one_burst(rate_hz, steps):
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "time", clock)
        budget, taken_s = Budget(BudgetConfig(max_inferences_per_s=rate_hz)), []
        for pause_s, count in steps:
            clock.now_s += pause_s
            taken_s += [clock.now_s for _ in range(count) if budget.take()]
    burst = max(1.0, rate_hz * BURST_S)
    for i, first_s in enumerate(taken_s):
        for j in range(i, len(taken_s)):
            assert j - i + 1 <= burst + rate_hz * (taken_s[j] - first_s) + 1e-6


@pytest.mark.parametrize(
    ("config", "bad", "good"),
    [
        (BudgetConfig(max_temperature_c=70), {"temperature_c": 71.0}, {"temperature_c": 60.0}),
        (BudgetConfig(max_cpu=0.5), {"cpu": 0.6}, {"cpu": 0.3}),
    ],
)
def test_over_a_ceiling_the_rate_is_halved_and_comes_back(clock, config, bad, good):
    budget = Budget(config)
    machine(budget, clock, 20, 1, **bad)
    assert "at most 10.0 inferences" in budget.sentence
    assert machine(budget, clock, 20, 1, **bad) == pytest.approx(10, abs=2)
    assert machine(budget, clock, 20, 1, **bad) == pytest.approx(5, abs=2)
    machine(budget, clock, 20, 20, **bad)
    assert machine(budget, clock, 20, 4, **bad) == pytest.approx(LEAST_HZ, abs=0.06)
    assert budget.over
    slow = machine(budget, clock, 20, 2, **good)
    assert machine(budget, clock, 20, 10, **good) > slow
    machine(budget, clock, 20, 20, **good)
    assert machine(budget, clock, 20, 2, **good) == 20
    assert budget.sentence == ""
    clock.now_s += STEP_S
    assert not budget.over


def test_heat_halves_what_is_in_force_not_what_is_asked(clock):
    budget = Budget(BudgetConfig(max_inferences_per_s=4.0, max_temperature_c=70))
    machine(budget, clock, 30, 1, temperature_c=75.0)
    assert machine(budget, clock, 30, 1, temperature_c=60.0) == pytest.approx(2, abs=0.9)


def test_near_the_ceiling_the_rate_stays(clock):
    budget = Budget(BudgetConfig(max_temperature_c=70))
    machine(budget, clock, 20, 2, temperature_c=71.0)
    for temperature_c in (69.9, 68.0, 67.1):
        rate = machine(budget, clock, 20, 3, temperature_c=temperature_c)
        assert rate == pytest.approx(5, abs=1)
    assert machine(budget, clock, 20, 3, temperature_c=66.9) > 5


def test_a_machine_without_a_thermometer_is_never_hot(clock):
    budget = Budget(BudgetConfig(max_temperature_c=70))
    assert machine(budget, clock, 20, 3) == 20


def test_a_refusal_just_before_the_limit_goes_is_no_error(clock):
    budget = Budget(BudgetConfig(max_cpu=0.5))
    machine(budget, clock, 20, 1, cpu=0.6)
    clock.now_s += STEP_S
    assert sum(budget.take() for _ in range(30)) < 20  # a bunch
    budget.step(0.1, None)
    assert budget.over
    assert budget.sentence == ""
    assert all(budget.take() for _ in range(100))


def test_the_sentence_tells_of_a_rate_that_limits_and_of_no_other(clock):
    budget = Budget(BudgetConfig(max_inferences_per_s=4.0))
    machine(budget, clock, 3, 2)
    assert budget.sentence == ""
    machine(budget, clock, 30, 1)
    assert budget.sentence == "at most 4 inferences a second"
    machine(budget, clock, 1, 2)
    assert budget.sentence == ""


def test_other_settings_come_into_force_at_once(clock):
    budget = Budget(BudgetConfig(max_inferences_per_s=4.0))
    assert asked(budget, clock, 30, 10) < 50
    budget.configure(BudgetConfig(max_stale_s=5.0))
    assert budget.max_stale_s == 5.0
    assert asked(budget, clock, 30, 10) == 300
    budget.step(0.1, None)
    assert budget.sentence == ""


def test_wall_clock_jumps_change_nothing(monkeypatch):
    wall_s = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr(time, "time", lambda: float(next(wall_s)))
    budget = Budget(BudgetConfig(max_inferences_per_s=1000.0))
    begun_s, taken = time.monotonic(), 0
    for _ in range(50_000):
        taken += budget.take()
    assert taken <= 1000 + 1000 * (time.monotonic() - begun_s) + 1


def test_several_sources_share_one_allowance():
    budget = Budget(BudgetConfig(max_inferences_per_s=50.0))
    taken: list[int] = []

    def source() -> None:
        taken.append(sum(budget.take() for _ in range(5_000)))

    begun_s = time.monotonic()
    threads = [threading.Thread(target=source) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) <= 50 + 50 * (time.monotonic() - begun_s) + 1


def test_a_fast_source_does_not_take_all_of_a_slow_ones_part(clock):
    budget = Budget(BudgetConfig(max_inferences_per_s=10.0))
    fast, slow = Share(budget), Share(budget)
    taken = {"fast": 0, "slow": 0}
    for tick in range(300 * 20):
        clock.now_s += 1 / 300
        taken["fast"] += fast.take()
        if tick % 150 == 0:
            taken["slow"] += slow.take()
    assert taken["slow"] >= 18, "40 were asked for"
    assert taken["fast"] + taken["slow"] <= 20 * 10 + 12
