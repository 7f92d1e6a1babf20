"""A gate whose answers come later: the decisions of one that waits, and nothing asked twice."""

from __future__ import annotations

import numpy as np
import pytest

from infi_edge.cache import ReuseCache
from infi_edge.learn import ReuseHead
from infi_edge.policy import Knobs, Policy
from infi_edge.tasks import same_exact
from infi_edge.types import Action, Decision

HEAD = ReuseHead(distance=1.0, log_age=0.0, age=0.5, bias=-4.0)


def policy(**knobs) -> Policy:
    return Policy(Knobs(**{"reuse_threshold": 0.5, **knobs}), HEAD, ReuseCache(2), same_exact)


def at(x: int) -> np.ndarray:
    return np.array([x, 0], np.uint8)


INFER = Decision(Action.INFER, "may have changed")


def awaits(p: Policy, x: int, age_s: float = 0.0, decision: Decision = INFER) -> bool:
    return p._awaits(decision, at(x), [(at(0), age_s)])


def test_an_answer_that_is_awaited_counts_like_one_that_is_there():
    for distance in range(8):
        for age_s in (0.0, 1.0, 4.0, 9.0):
            here = policy()
            here.observe(at(0), "a", 0.0)
            reused = here.decide(None, at(distance), age_s).action is Action.REUSE
            assert awaits(policy(), distance, age_s) == reused, (distance, age_s)


@pytest.mark.parametrize(
    "knobs",
    [
        {"reuse_threshold": None},
        {"max_distance": 0},
        {"max_since_inference": 0},
        {"max_consecutive_filtered": 0},
    ],
)
def test_an_awaited_answer_obeys_the_knobs(knobs):
    assert awaits(policy(), 1)
    assert not awaits(policy(**knobs), 1)


def test_an_older_answer_is_not_taken_where_the_awaited_one_is_nearer():
    nearer, farther = policy(), policy()
    for p, x in ((nearer, 3), (farther, 1)):
        p.observe(at(x), "old", 0.0)
    for p, waits in ((nearer, True), (farther, False)):
        decision = p.preview(None, at(2), 0.0)
        assert decision.action is Action.REUSE
        assert (p.preview(None, at(2), 0.0, [(at(2 if waits else 9), 0.0)]) is None) == waits


def test_a_skip_waits_for_nothing():
    assert not awaits(policy(), 0, decision=Decision(Action.SKIP, "not needed"))


def test_an_inference_that_fails_leaves_the_counters_as_if_it_had_not_been_asked():
    knobs = {"max_since_inference": 4, "heartbeat_s": 10.0}
    for failing in ([0], [1], [0, 1]):
        gate, never = policy(**knobs), policy(**knobs)
        for p in (gate, never):
            p.observe(at(0), "a", 0.0)
        asked = []
        for number in range(2):
            for p in (gate, never):
                p.decide(None, at(90 * (number + 1)), 0.1 * number)
            asked.append(gate.inferred(0.1 * number))
            if number not in failing:
                never.inferred(0.1 * number)
        for number in failing:
            gate.not_inferred(asked[number])
        assert gate.since_inference == never.since_inference, failing
        for now_s in (0.4, 9.9, 10.05, 10.15, 12.0):
            assert gate.decide(None, at(0), now_s) == never.decide(None, at(0), now_s)


def test_a_vote_waits_for_every_answer_to_come():
    voting = policy(deliver="vote")
    voting.observe(at(0), "a", 0.0)
    assert awaits(voting, 90)
    assert not awaits(policy(), 90)


def test_an_answer_before_the_last_is_none_where_the_last_one_counts():
    last = policy(deliver="last")
    last.observe(at(0), "old", 0.0)
    assert last.preview(None, at(0), 0.1).action is Action.REUSE
    assert last.preview(None, at(0), 0.1, [(at(90), 0.05)]).action is Action.INFER
    assert last.preview(None, at(90), 0.1, [(at(90), 0.05), (at(0), 0.08)]) is None
