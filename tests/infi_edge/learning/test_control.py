"""The threshold of a learning gate: only what the model says moves it, and errors tighten it."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi_edge.learning import control as module
from infi_edge.learning.control import FIRST_CAP, LARGEST_CAP, LOOSEST, Control, platt

PROBABILITY = st.floats(0.0, 1.0, allow_nan=False)
ANSWERS = st.lists(
    st.tuples(PROBABILITY, st.booleans(), st.floats(0.01, 1.0), st.sampled_from(["need", "cap"])),
    max_size=60,
)


def steered(allowed: float, count: int = 100, rate: float = 0.0, seed: int = 0) -> Control:
    """A control that has seen answers at small p, a share `rate` of them wrong."""
    rng = np.random.default_rng(seed)
    control = Control(allowed)
    for _ in range(count):
        p = float(rng.uniform(0.0, 0.2))
        control.see(p)
        control.learn(p, bool(rng.random() < rate), 1.0)
        control.settle()
    return control


def knobs(control: Control) -> tuple[float, int, float, float]:
    return control.threshold, control.max_since_inference, control.slope, control.offset


@given(st.lists(PROBABILITY, max_size=400), st.floats(0.01, 0.5))
def test_what_is_filtered_moves_no_knob(seen: list[float], allowed: float) -> None:
    for control in (Control(allowed), steered(allowed)):
        before = knobs(control)
        for p in seen:
            control.see(p)
        assert knobs(control) == before


def test_an_error_that_an_audit_finds_tightens_threshold_and_cap() -> None:
    calm = steered(0.1, 200)
    for _ in range(6):
        calm.at_cap(False)
    struck = copy.deepcopy(calm)
    for control, wrong in ((calm, False), (struck, True)):
        control.see(0.01)
        control.learn(0.01, wrong, 0.05)
        if wrong:
            control.missed()
        control.settle()
    assert struck.offset > calm.offset  # the same reading means a larger p now
    assert struck.max_since_inference < calm.max_since_inference
    assert admits(struck, 0.15) <= admits(calm, 0.15)
    assert reach(struck) < reach(calm)


def reach(control: Control) -> float:
    """The largest raw reading (logit of the metric's own p) that is still reused."""
    p = control.threshold
    return (math.log(p / (1 - p)) - control.offset) / control.slope


def admits(control: Control, raw_p: float) -> bool:
    return math.log(raw_p / (1 - raw_p)) <= reach(control)


def test_many_errors_close_what_none_leaves_open() -> None:
    good, bad = steered(0.1, 300, rate=0.0), steered(0.1, 300, rate=0.5)
    assert reach(bad) < reach(good)
    assert admits(good, 0.1)
    assert not admits(bad, 0.1)


def test_an_answer_that_was_seldom_to_be_seen_counts_for_more() -> None:
    rare, common = Control(0.1), Control(0.1)
    for control, probability in ((rare, 0.05), (common, 1.0)):
        for k in range(40):
            control.learn(0.05, k % 10 == 9, probability if k % 10 == 9 else 1.0)
        control.settle()
    assert rare.offset > common.offset


def test_the_threshold_plans_for_no_more_errors_than_are_allowed() -> None:
    rng = np.random.default_rng(1)
    for allowed in (0.02, 0.05, 0.1, 0.3):
        control = Control(allowed)
        readings = rng.beta(0.4, 3.0, 300)
        for p in readings:
            control.see(float(p))
        control.settle()
        filtered = readings[readings <= control.threshold]
        assert filtered.sum() / len(readings) <= allowed + allowed / 2
        assert control.threshold <= LOOSEST


def test_a_stricter_target_is_a_lower_threshold() -> None:
    rng = np.random.default_rng(2)
    readings = rng.beta(0.5, 3.0, 300)
    thresholds = []
    for allowed in (0.01, 0.05, 0.1, 0.2):
        control = Control(allowed)
        for p in readings:
            control.see(float(p))
        control.settle()
        thresholds.append(control.threshold)
    assert thresholds == sorted(thresholds)
    assert thresholds[0] < thresholds[-1]


def test_the_cap_grows_with_right_answers_and_shrinks_with_wrong_ones() -> None:
    control = Control(0.1)
    caps = [control.cap]
    for _ in range(30):
        control.at_cap(False)
        caps.append(control.cap)
    assert caps == sorted(caps)
    assert caps[-1] > 4 * FIRST_CAP
    for _ in range(200):
        control.at_cap(True)
        assert control.cap <= caps[-1]
        caps.append(control.cap)
    assert control.cap == control.max_since_inference == 1


def test_a_cap_that_is_wrong_more_often_than_allowed_does_not_stay_large() -> None:
    rng = np.random.default_rng(0)
    control = Control(0.05)
    caps = []
    for _ in range(2000):
        control.at_cap(bool(rng.random() < 0.5))
        caps.append(control.cap)
    assert np.mean(caps[500:]) < 4


@pytest.mark.parametrize("allowed", [0.01, 0.05, 0.1, 0.2])
def test_the_first_steps_are_large_and_end_at_what_the_target_bears(allowed: float) -> None:
    control = Control(allowed)
    doublings = 0
    for _ in range(50):
        before = control.cap
        control.at_cap(False)
        if control.cap < 1.9 * before:
            break
        doublings += 1
    most = max(4 * module.SLOW_START * 100 * allowed, 2 * FIRST_CAP)
    assert FIRST_CAP * 2**doublings <= most


def test_after_one_error_at_the_cap_it_is_not_doubled_again() -> None:
    control = Control(0.2)
    control.at_cap(False)
    control.at_cap(True)
    before = control.cap
    control.at_cap(False)
    assert control.cap < 1.9 * before


def test_a_restart_begins_with_small_steps_and_keeps_what_is_known_of_p() -> None:
    control = steered(0.1, 200, rate=0.2)
    for _ in range(50):
        control.at_cap(False)
    slope, offset = control.slope, control.offset
    control.restart()
    assert control.cap == FIRST_CAP
    assert (control.slope, control.offset) == (slope, offset)
    control.at_cap(False)
    assert control.cap == 2 * FIRST_CAP


@given(ANSWERS, st.floats(0.005, 0.6))
def test_whatever_comes_the_knobs_stay_in_range(
    answers: list[tuple[float, bool, float, str]], allowed: float
) -> None:
    control = Control(allowed)
    for p, wrong, probability, kind in answers:
        control.see(p)
        control.learn(p, wrong, probability)
        if kind == "cap":
            control.at_cap(wrong)
        elif wrong:
            control.missed()
        control.settle()
        assert 0.0 <= control.threshold <= max(LOOSEST, allowed)
        assert 1.0 <= control.cap <= LARGEST_CAP
        assert 0.0 < control.slope < 10.0
        assert math.isfinite(control.offset)
        assert isinstance(control.max_since_inference, int)


@pytest.mark.parametrize(("slope", "offset"), [(1.0, 0.0), (1.0, 1.0), (0.6, -0.5), (1.5, 0.5)])
def test_platt_finds_the_slope_and_offset_that_made_the_answers(
    slope: float, offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DECAY", 1.0)
    rng = np.random.default_rng(3)
    z = rng.normal(0.0, 2.0, 4000)
    wrong = rng.random(len(z)) < 1 / (1 + np.exp(-(slope * z + offset)))
    found = platt([(float(a), float(b), 1.0) for a, b in zip(z, wrong, strict=True)])
    assert found == pytest.approx((slope, offset), abs=0.12)


def test_platt_with_hardly_an_answer_stays_near_what_the_metric_says() -> None:
    slope, offset = platt([(-3.0, 0.0, 1.0)])
    assert slope == pytest.approx(1.0, abs=0.1)
    assert abs(offset) < 0.5


def test_platt_weighs_what_was_seldom_seen() -> None:
    """Of 2,000 answers at one reading a tenth are wrong; those were seen with probability 1, of
    the others only every fifth. The weights undo it."""
    rng = np.random.default_rng(4)
    records = [
        (-1.0 + 0.01 * rng.normal(), float(wrong), 1.0 if wrong else 5.0)
        for wrong in rng.random(2000) < 0.1
        if wrong or rng.random() < 0.2
    ]
    rng.shuffle(records)
    slope, offset = platt(records)
    assert 1 / (1 + math.exp(slope - offset)) == pytest.approx(0.1, abs=0.06)


def test_what_it_knows_comes_back_from_json() -> None:
    control = steered(0.1, 250, rate=0.1)
    for wrong in (False, False, True, False):
        control.at_cap(wrong)
    control.settle()
    again = Control(0.1)
    again.restore(json.loads(json.dumps(control.as_dict(), allow_nan=False)))
    assert knobs(again) == knobs(control)
    for one in (control, again):
        one.see(0.03)
        one.learn(0.02, True, 0.05)
        one.at_cap(False)
        one.settle()
    assert knobs(again) == knobs(control)
    assert again.as_dict() == control.as_dict()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("slope", 0.0),
        ("slope", float("nan")),
        ("offset", float("inf")),
        ("threshold", -0.1),
        ("threshold", 0.9),
        ("cap", 0.5),
        ("cap", 1e9),
        ("cap", "many"),
        ("records", [[1.0, 2.0]]),
        ("records", [[1.0, 0.0, float("nan")]]),
        ("records", "none"),
        ("seen", [None]),
        ("seen", {"a": 1}),
        ("slope", None),
        ("slope", [1.0, 2.0]),
    ],
)
def test_nonsense_is_refused_and_changes_nothing(name: str, value: object) -> None:
    raw = steered(0.1).as_dict()
    control = steered(0.1, 40, rate=0.2, seed=9)
    before = control.as_dict()
    with pytest.raises((ValueError, KeyError, TypeError)):
        control.restore({**raw, name: value})
    assert control.as_dict() == before


@pytest.mark.parametrize("name", ["slope", "offset", "threshold", "cap", "records", "seen"])
def test_a_missing_part_is_refused(name: str) -> None:
    raw = steered(0.1).as_dict()
    del raw[name]
    with pytest.raises((ValueError, KeyError, TypeError)):
        Control(0.1).restore(raw)
