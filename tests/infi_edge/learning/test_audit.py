"""The audit's bounds hold for any stream, at all times; its alarm is rare when nothing is wrong."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi_edge.learning.audit import Bounded, ErrorAlarm, LiveAccuracy

FIRST, LATER = 0.05, 0.01


@dataclass
class Truth:
    """What really happened, and what the audit could see of it."""

    inputs: int = 0
    wrong: int = 0
    wanted: int = 0
    wanted_wrong: int = 0
    since_audit: int = 1000
    uncaught: float = 0.0  # delivered wrong, minus what the estimate says

    @property
    def accuracy(self) -> float:
        return 1 - self.wrong / self.inputs

    @property
    def recall(self) -> float:
        return 1 - self.wanted_wrong / self.wanted


Chance = Callable[[Truth, int], float]


def independent(truth: Truth, t: int) -> float:
    return 0.08


def bursts(truth: Truth, t: int) -> float:
    return 0.7 if (t * 7919) % 1000 < 60 or t % 400 < 30 else 0.01


def after_an_audit(truth: Truth, t: int) -> float:
    return 0.9 if truth.since_audit < 5 else 0.03


def while_uncaught(truth: Truth, t: int) -> float:
    """Go on until luck hid many, then stop, so that the audit never catches up."""
    return 0.0 if truth.uncaught > 45 else 0.5


def always(truth: Truth, t: int) -> float:
    return FIRST


def switched(truth: Truth, t: int) -> float:
    return FIRST if t < 1000 else LATER


def replay(
    seed: int, chance: Chance, probability: Chance = always, inputs: int = 2000
) -> Iterator[tuple[LiveAccuracy, Truth]]:
    """Yield the audit and the truth after every input. A fifth is needed, a third is wanted."""
    rng = np.random.default_rng(seed)
    draws = rng.random((inputs, 4)).tolist()
    live, truth = LiveAccuracy(), Truth()
    for t, (kind, luck, value, coin) in enumerate(draws):
        p, error = probability(truth, t), chance(truth, t)
        wrong, wanted = kind > 0.2 and luck < error, value < 1 / 3
        truth.inputs += 1
        truth.wanted += wanted
        truth.since_audit += 1
        if kind <= 0.2:
            live.needed(wanted)
        elif coin < p:
            live.audited(p, wrong, wanted)
            truth.since_audit = 0
            truth.uncaught -= wrong * (1 - p) / p
        else:
            live.filtered(p)
            truth.wrong += wrong
            truth.wanted_wrong += wrong and wanted
            truth.uncaught += wrong
        yield live, truth


def holds(bounds: Bounded | None, true: float) -> bool:
    return bounds is None or bounds.low - 1e-12 <= true <= bounds.high + 1e-12


STREAMS = [
    (independent, always),
    (bursts, always),
    (after_an_audit, always),
    (while_uncaught, always),
    (independent, switched),
    (after_an_audit, switched),
]


@pytest.mark.slow
@pytest.mark.parametrize(("chance", "probability"), STREAMS)
def test_the_bounds_hold_at_all_times_at_once(chance, probability):
    accuracy = recall = 0
    for seed in range(200):
        seen = [
            (holds(live.accuracy(), truth.accuracy), holds(live.recall(), truth.recall))
            for live, truth in replay(seed, chance, probability)
            if truth.inputs % 50 == 0
        ]
        accuracy += all(one for one, _ in seen)
        recall += all(one for _, one in seen)
    assert accuracy >= 190
    assert recall >= 190


def normal_interval_holds(live: LiveAccuracy, truth: Truth) -> bool:
    """The textbook interval for the number of wrong ones, at one confidence, at one time."""
    hits = live.audit_errors
    estimate, error = hits * (1 - FIRST) / FIRST, math.sqrt(hits * (1 - FIRST)) / FIRST
    return hits < 5 or abs(truth.wrong - estimate) <= 1.96 * error


def test_an_interval_for_one_time_fails_where_the_anytime_bound_holds():
    ours = textbook = 0
    for seed in range(100):
        replays = [
            (holds(live.accuracy(), truth.accuracy), normal_interval_holds(live, truth))
            for live, truth in replay(seed, after_an_audit)
            if truth.inputs % 50 == 0
        ]
        ours += all(one for one, _ in replays)
        textbook += all(one for _, one in replays)
    assert ours >= 95
    assert textbook < 92


def last(seed: int, chance: Chance, probability: Chance) -> tuple[LiveAccuracy, Truth]:
    *_, end = replay(seed, chance, probability)
    return end


def more_when_likely(truth: Truth, t: int) -> float:
    """Audit more where errors are likely, as a good rule may."""
    return 0.2 if bursts(truth, t) > 0.5 else 0.02


def biased(errors: list[float]) -> float:
    """By how many standard errors the mean is off zero."""
    return abs(np.mean(errors)) / (np.std(errors) / math.sqrt(len(errors)))


def test_the_estimate_is_unbiased_and_ignoring_the_propensities_is_not():
    ours, unweighted = [], []
    for seed in range(400):
        live, truth = last(seed, bursts, more_when_likely)
        ours.append(live.accuracy().estimate - truth.accuracy)
        filtered = sum(level["filtered"] for level in live.as_dict()["levels"])
        wrong = live.audit_errors / max(live.audits, 1) * filtered
        unweighted.append(1 - wrong / live.inputs - truth.accuracy)
    assert biased(ours) < 3
    assert biased(unweighted) > 10


def test_the_inferred_inputs_are_no_random_sample():
    ours, inferred = [], []
    for seed in range(400):
        live, truth = last(seed, independent, always)
        ours.append(live.accuracy().estimate - truth.accuracy)
        seen = live.as_dict()["needed"] + live.audits
        inferred.append(1 - live.audit_errors / seen - truth.accuracy)
    assert biased(ours) < 3
    assert biased(inferred) > 10


@pytest.mark.parametrize("chance", [independent, after_an_audit])
def test_the_estimate_is_unbiased_when_the_probability_falls(chance):
    ends = [last(seed, chance, switched) for seed in range(400)]
    assert biased([live.accuracy().estimate - truth.accuracy for live, truth in ends]) < 3


def many(probability: float, filtered: int, audited: int, live: LiveAccuracy) -> None:
    for _ in range(filtered):
        live.filtered(probability)
    for _ in range(audited):
        live.audited(probability, False, False)


@pytest.mark.parametrize("probability", [FIRST, LATER])
def test_without_errors_the_most_wrong_inputs_are_about_the_log_over_the_probability(probability):
    live = LiveAccuracy()
    many(probability, 5000, 100, live)
    wrong = live.accuracy()
    most = (1 - wrong.low) * live.inputs
    assert -math.log(0.05) / probability < most < 1.15 * math.log(2 / 0.05) / probability
    assert (wrong.estimate, wrong.high) == (1.0, 1.0)


def test_a_lower_probability_does_not_undo_what_the_higher_has_shown():
    live = LiveAccuracy()
    many(FIRST, 5000, 250, live)
    before = (1 - live.accuracy().low) * live.inputs
    many(LATER, 50, 0, live)
    assert (1 - live.accuracy().low) * live.inputs < before + 51


def evidence(probability: float, hits: int, missed: int) -> float:
    """log M: each coin predicted from those before it, over the known probability."""
    a, b = 0.5, 0.5 * (1 - probability) / probability
    total = 0.0
    for i in range(hits):
        total += math.log((a + i) / (a + b + i) / probability)
    for j in range(missed):
        total += math.log((b + j) / (a + b + hits + j) / (1 - probability))
    return total


LEVELS = st.lists(
    st.tuples(st.sampled_from([0.03, 0.1, 0.3]), st.integers(0, 6), st.integers(0, 60)),
    min_size=1,
    max_size=2,
    unique_by=lambda level: level[0],
)


@given(LEVELS)
def test_the_bounds_are_the_ends_of_all_counts_that_are_not_refuted(levels):
    live = LiveAccuracy()
    for probability, wrong, filtered in levels:
        many(probability, filtered, 0, live)
        for _ in range(wrong):
            live.audited(probability, True, None)
    tables = [
        [evidence(probability, wrong, missed) for missed in range(filtered + 1)]
        for probability, wrong, filtered in levels
    ]
    sums = [
        sum(missed)
        for missed in itertools.product(*[range(len(table)) for table in tables])
        if sum(table[i] for table, i in zip(tables, missed, strict=True)) <= math.log(20)
    ]
    if not sums or not live.inputs:
        return
    bounds = live.accuracy()
    most, least = ((1 - end) * live.inputs for end in (bounds.low, bounds.high))
    assert max(sums) - 1e-6 <= most < max(sums) + len(levels) + 1e-6
    assert min(sums) - len(levels) - 1e-6 < least <= min(sums) + 1e-6


def not_refuted(hits: int, filtered: int, alpha: float) -> tuple[int, int]:
    """The least and the greatest count, at the first probability."""
    kept = [d for d in range(filtered + 1) if evidence(FIRST, hits, d) <= -math.log(alpha)]
    return min(kept), max(kept)


@pytest.mark.parametrize(("missed", "reused"), [(0, 0), (3, 0), (0, 12), (4, 9), (15, 40)])
def test_recall_is_bounded_by_its_worst_corners(missed, reused):
    live = LiveAccuracy()
    many(FIRST, 2000, 10, live)
    for _ in range(50):
        live.needed(True)
    for i in range(missed + reused):
        live.audited(FIRST, i < missed, True)
    known = 50 + missed + reused
    (least_wrong, most_wrong), (least_right, most_right) = (
        not_refuted(hits, 2000, 0.025) for hits in (missed, reused)
    )
    recall = live.recall()
    assert recall is not None
    low = (known + least_right) / (known + least_right + most_wrong)
    high = (known + most_right) / (known + most_right + least_wrong)
    assert recall.low <= low + 1e-12
    assert recall.low == pytest.approx(low, abs=0.01)
    assert recall.high >= high - 1e-12
    assert recall.high == pytest.approx(high, abs=0.01)


@given(LEVELS, st.integers(0, 50), st.integers(0, 6))
def test_an_estimate_lies_within_its_bounds_and_those_within_0_and_1(levels, needed, right):
    live = LiveAccuracy()
    for _ in range(needed):
        live.needed(True)
    for probability, wrong, filtered in levels:
        many(probability, filtered, 2, live)
        for i in range(wrong):
            live.audited(probability, True, i % 2 == 0)
        for _ in range(right):
            live.audited(probability, False, True)
    for one in (live.accuracy(), live.recall()):
        assert one is None or 0 <= one.low <= one.estimate <= one.high <= 1


def test_when_everything_is_needed_nothing_is_wrong():
    live = LiveAccuracy()
    assert live.accuracy() == Bounded(1.0, 0.0, 1.0)
    for _ in range(10):
        live.needed(True)
    assert live.accuracy() == live.recall() == Bounded(1.0, 1.0, 1.0)


def test_recall_shows_misses_that_accuracy_hides():
    live = LiveAccuracy()
    for _ in range(100):
        live.needed(True)
    for i in range(19_000):
        live.filtered(FIRST)
        if i % 19 == 0:
            live.audited(FIRST, i % 380 == 0, i % 380 == 0)
    recall = live.recall()
    assert live.accuracy().low > 0.9
    assert recall is not None
    assert recall.high < 0.4
    assert recall.estimate == pytest.approx(150 / (150 + 50 * 19))


def test_recall_is_unknown_when_the_task_cannot_tell_or_nothing_was_wanted():
    live = LiveAccuracy()
    live.needed(False)
    assert live.recall() is None
    live.needed(True)
    assert live.recall() is not None
    live.audited(FIRST, False, None)
    assert live.recall() is None


def test_counts_are_of_what_was_said():
    live = LiveAccuracy()
    live.needed(True)
    many(FIRST, 7, 2, live)
    live.audited(LATER, True, True)
    assert (live.inputs, live.audits, live.audit_errors) == (11, 3, 1)


@pytest.mark.parametrize("probability", [0.0, 1.0, -0.1, math.nan, math.inf])
def test_a_probability_that_makes_no_sense_is_refused(probability):
    with pytest.raises(ValueError, match="probability"):
        LiveAccuracy().filtered(probability)
    with pytest.raises(ValueError, match="probability"):
        ErrorAlarm(0.1).filtered(probability)


def test_probabilities_without_end_are_refused():
    live = LiveAccuracy()
    for i in range(32):
        live.filtered(0.1 + i / 100)
    with pytest.raises(ValueError, match="32"):
        live.filtered(0.05)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1.0, math.nan])
def test_a_confidence_that_makes_no_sense_is_refused(confidence):
    with pytest.raises(ValueError, match="confidence"):
        LiveAccuracy(confidence)


def some() -> LiveAccuracy:
    return last(3, bursts, switched)[0]


def test_what_was_stored_goes_on_as_if_nothing_had_happened():
    live = some()
    again = LiveAccuracy.from_dict(json.loads(json.dumps(live.as_dict())))
    for one in (live, again):
        one.filtered(FIRST)
        one.audited(0.02, True, True)
    assert again.as_dict() == live.as_dict()
    assert (again.accuracy(), again.recall()) == (live.accuracy(), live.recall())


WRONG_NUMBERS = [-1, math.nan, 1.5, None, "3", True, 10**15, [3], {}]
FIELDS = ["confidence", "needed", "wanted", "levels"]
LEVEL_FIELDS = ["probability", "filtered", "audited", "wrong", "wanted_wrong", "wanted_right"]


@pytest.mark.parametrize("value", WRONG_NUMBERS, ids=str)
@pytest.mark.parametrize("key", FIELDS + LEVEL_FIELDS)
def test_a_stored_number_that_makes_no_sense_is_refused(key, value):
    raw = some().as_dict()
    place = raw if key in FIELDS else raw["levels"][0]
    place[key] = value
    with pytest.raises(ValueError, match=r"audit|confidence"):
        LiveAccuracy.from_dict(raw)


@pytest.mark.parametrize("key", [*FIELDS, "knows_wanted", *LEVEL_FIELDS])
def test_a_stored_number_that_is_missing_is_refused(key):
    raw = some().as_dict()
    del (raw["levels"][0] if key in LEVEL_FIELDS else raw)[key]
    with pytest.raises(ValueError, match=key):
        LiveAccuracy.from_dict(raw)


@pytest.mark.parametrize("raw", [None, 3, [], "x", {"levels": 3}], ids=str)
def test_what_is_no_table_is_refused(raw):
    with pytest.raises(ValueError, match="audit counts"):
        LiveAccuracy.from_dict(raw)


@pytest.mark.parametrize(
    ("key", "value"), [("wrong", 10**6), ("wanted_wrong", 10**6), ("wanted_right", 10**6)]
)
def test_stored_counts_that_do_not_add_up_are_refused(key, value):
    raw = some().as_dict()
    raw["levels"][0][key] = value
    with pytest.raises(ValueError, match="add up"):
        LiveAccuracy.from_dict(raw)
    raw = some().as_dict()
    raw["levels"].append(raw["levels"][0])
    with pytest.raises(ValueError, match="twice"):
        LiveAccuracy.from_dict(raw)


def false_alarms(allowed: float, every: int, inputs: int, seed: int) -> int:
    """Count alarms, each reset, at an error rate of exactly `allowed`: no input is needed."""
    rng = np.random.default_rng(seed)
    alarm, count = ErrorAlarm(allowed, every), 0
    wrongs, coins = rng.random(inputs) < allowed, rng.random(inputs)
    for t, (wrong, coin) in enumerate(zip(wrongs.tolist(), coins.tolist(), strict=True)):
        p = FIRST if t % 20_000 < 10_000 else LATER
        if coin < p:
            alarm.audited(p, wrong)
        else:
            alarm.filtered(p)
        if alarm.raised:
            count += 1
            alarm.reset()
    return count


@pytest.mark.parametrize("allowed", [0.02, 0.1])
def test_false_alarms_are_rarer_than_was_asked_for(allowed):
    count = false_alarms(allowed, 2000, 600_000, seed=1)
    assert 20 < count < 300


def test_the_alarm_is_quiet_for_long_when_the_rate_is_what_is_allowed():
    assert sum(false_alarms(0.05, 100_000, 50_000, seed) for seed in range(10)) <= 5


@pytest.mark.parametrize("seed", range(30))
def test_the_alarm_comes_at_the_input_that_one_sum_a_time_says(seed):
    rng = np.random.default_rng(seed)
    alarm, allowed, every, p, sums = ErrorAlarm(0.1, 2000), 0.1, 2000, 0.0, [0.0] * 3
    for t in range(20_000):
        kind, error = rng.random(2)
        coin = rng.random()
        wrong = False
        if kind < 0.3:
            alarm.needed()
        else:
            p = FIRST if t % 500 < 250 else LATER
            wrong = coin < p and error < 0.4
            if coin < p:
                alarm.audited(p, wrong)
            else:
                alarm.filtered(p)
        for i, rise in enumerate((2, 4, 10)):
            sums[i] = (sums[i] + 1) * (rise if wrong else 1) / (1 + p * allowed * (rise - 1))
        assert alarm.raised == (wrong and sum(sums) / 3 >= every)
        if alarm.raised:
            return
    pytest.fail("never raised")


@pytest.mark.parametrize("probability", [FIRST, LATER])
@pytest.mark.parametrize("needed_share", [0.0, 0.5])
@pytest.mark.parametrize("before", [0, 20_000])
def test_when_all_that_is_filtered_is_wrong_ten_audits_raise_it(probability, needed_share, before):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        alarm, errors = ErrorAlarm(0.05), 0
        for _ in range(before):
            alarm.filtered(probability)
        while not alarm.raised:
            if rng.random() < needed_share:
                alarm.needed()
            elif rng.random() < probability:
                alarm.audited(probability, True)
                errors += 1
            else:
                alarm.filtered(probability)
        assert errors <= 10


def test_it_stays_raised_until_it_is_reset():
    alarm = ErrorAlarm(0.05)
    for _ in range(10_000):
        alarm.audited(FIRST, True)
    for _ in range(10_000):
        alarm.filtered(LATER)
        alarm.needed()
    assert alarm.raised
    alarm.reset()
    alarm.audited(FIRST, True)
    assert not alarm.raised


def test_quiet_alone_never_raises_it():
    alarm = ErrorAlarm(1e-9)
    for _ in range(300_000):
        alarm.filtered(LATER)
    alarm.audited(LATER, False)
    assert not alarm.raised


@pytest.mark.parametrize(
    ("allowed", "every"), [(0.0, 1e5), (1.0, 1e5), (math.nan, 1e5), (0.1, 0.0), (0.1, math.inf)]
)
def test_an_alarm_that_makes_no_sense_is_refused(allowed, every):
    with pytest.raises(ValueError, match=r"allowed|false_alarm"):
        ErrorAlarm(allowed, every)
