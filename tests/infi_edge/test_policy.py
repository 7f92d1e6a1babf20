"""The policy's corners, caps and deliveries, with a real cache and a real head."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi_edge.cache import ReuseCache
from infi_edge.learn import ReuseHead
from infi_edge.policy import Knobs, Policy
from infi_edge.tasks import same_exact
from infi_edge.types import Action, Decision

DIM = 4
BY_DISTANCE = ReuseHead(distance=0.1, log_age=0.0, age=0.0, bias=-4.0)


def at(place: int) -> np.ndarray:
    """The embedding whose distance to at(0) is `place`."""
    return np.array([place, 0, 0, 0], np.uint8)


def policy_of(knobs: Knobs, head: ReuseHead | None = BY_DISTANCE, **cache) -> Policy:
    return Policy(knobs, head, ReuseCache(DIM, **cache), same_exact, empty="nothing")


def run(policy: Policy, places, scores=None, hop_s: float = 1.0) -> list[Decision]:
    """Run a stream as the gate does; input i is answered with its index."""
    decisions = []
    for i, place in enumerate(places):
        decision = policy.decide(scores[i] if scores else None, at(place), i * hop_s)
        if decision.action is Action.INFER:
            policy.observe(at(place), i, i * hop_s)
        decisions.append(decision)
    return decisions


def inferred(decisions: list[Decision]) -> list[int]:
    return [i for i, d in enumerate(decisions) if d.action is Action.INFER]


def answered(policy: Policy, answers, now_s: float = 0.0) -> Policy:
    """Tell the policy (place, value) answers of the model."""
    for place, value in answers:
        policy.observe(at(place), value, now_s)
    return policy


@given(st.integers(2, 12), st.lists(st.integers(0, 255), min_size=1, max_size=60))
def test_every_nth_is_a_corner_of_the_family(n, places):
    knobs = Knobs(reuse_threshold=1.0, deliver="last", max_since_inference=n - 1)
    decisions = run(policy_of(knobs), places)
    assert inferred(decisions) == list(range(0, len(places), n))
    for i, decision in enumerate(decisions):
        if i % n:
            assert decision.action is Action.REUSE
            assert decision.value == i // n * n
            assert decision.age_s == i % n


def test_without_knobs_everything_is_inferred():
    assert inferred(run(policy_of(Knobs()), [0] * 5, [0.0] * 5)) == list(range(5))


def test_without_a_head_nothing_is_reused_or_cached():
    policy = policy_of(Knobs(reuse_threshold=1.0), None)
    assert inferred(run(policy, [0] * 5)) == list(range(5))
    assert len(policy.cache) == 0


def test_skip_takes_scores_up_to_its_threshold_and_delivers_empty():
    decisions = run(policy_of(Knobs(skip_threshold=0.3)), [0] * 4, [0.0, 0.3, 0.301, 1.0])
    assert inferred(decisions) == [2, 3]
    assert [d.value for d in decisions[:2]] == ["nothing", "nothing"]
    assert decisions[1].score == 0.3


@pytest.mark.parametrize("score", [None, math.nan])
def test_a_score_that_is_no_number_is_never_skipped(score):
    assert inferred(run(policy_of(Knobs(skip_threshold=1.0)), [0], [score])) == [0]


def test_reuse_takes_p_up_to_its_threshold():
    policy = answered(policy_of(Knobs(reuse_threshold=0.5)), [(0, "car")])
    assert policy.decide(None, at(40), 0.0).p_changed == 0.5
    near, far = policy.decide(None, at(40), 0.0), policy.decide(None, at(41), 0.0)
    assert (near.action, near.value, near.distance) == (Action.REUSE, "car", 40)
    assert far.action is Action.INFER
    assert far.p_changed > 0.5


@pytest.mark.parametrize("deliver", ["last", "nearest", "vote"])
@pytest.mark.parametrize("head", [ReuseHead(math.nan, 0, 0, 0), ReuseHead(0.1, 0, 0, math.nan)])
def test_a_p_that_is_no_number_is_inferred(deliver, head):
    policy = answered(policy_of(Knobs(reuse_threshold=1.0, deliver=deliver), head), [(0, "car")])
    assert policy.decide(None, at(0), 1.0).action is Action.INFER


@pytest.mark.parametrize("deliver", ["last", "nearest", "vote"])
@pytest.mark.parametrize("head", [ReuseHead(0.1, 0.5, 0, -4.0), ReuseHead(0.1, 0, 0.01, -4.0)])
def test_age_makes_p_grow_until_an_entry_no_longer_answers(deliver, head):
    knobs = Knobs(reuse_threshold=0.3, deliver=deliver)
    policy = answered(policy_of(knobs, head), [(0, "car")])
    decisions = [policy.decide(None, at(0), t) for t in (0.0, 10.0, 100.0, 10_000.0)]
    ps = [d.p_changed for d in decisions]
    assert ps == sorted(set(ps))
    assert [d.action for d in decisions[::3]] == [Action.REUSE, Action.INFER]
    assert decisions[1].age_s == 10.0


@pytest.mark.parametrize("deliver", ["last", "nearest", "vote"])
def test_reuse_refuses_an_entry_older_than_its_limit(deliver):
    knobs = Knobs(reuse_threshold=1.0, deliver=deliver)
    policy = answered(policy_of(knobs, max_age_s=10.0), [(0, "car")])
    assert policy.decide(None, at(0), 10.0).action is Action.REUSE
    assert policy.decide(None, at(0), 10.5).action is Action.INFER


def test_the_heartbeat_infers_after_so_many_seconds():
    decisions = run(
        policy_of(Knobs(skip_threshold=1.0, heartbeat_s=2.0)), [0] * 13, [0.0] * 13, 0.5
    )
    assert inferred(decisions) == [0, 4, 8, 12]


@given(st.integers(0, 5), st.lists(st.sampled_from([0.0, 1.0]), max_size=40))
def test_the_cap_bounds_skips_and_reuses_together(cap, scores):
    knobs = Knobs(skip_threshold=0.5, reuse_threshold=1.0, max_consecutive_filtered=cap)
    decisions = run(policy_of(knobs), [0] * len(scores), scores)
    in_a_row = 0
    for decision, score in zip(decisions, scores, strict=True):
        if decision.action is Action.INFER:
            in_a_row = 0
        else:
            in_a_row += 1
            assert decision.action is (Action.SKIP if score == 0.0 else Action.REUSE)
        assert in_a_row <= cap


def test_the_cap_is_used_up_by_skips_and_reuses_in_turn():
    knobs = Knobs(skip_threshold=0.5, reuse_threshold=1.0, max_consecutive_filtered=4)
    decisions = run(policy_of(knobs), [0] * 11, [1.0, 0.0] * 5 + [1.0])
    assert inferred(decisions) == [0, 5, 10]


def test_an_inference_that_failed_leaves_the_cap_reached():
    policy = answered(policy_of(Knobs(reuse_threshold=1.0, max_since_inference=1)), [(0, "car")])
    actions = [policy.decide(None, at(0), 0.0).action for _ in range(3)]  # no answer observed
    assert actions == [Action.REUSE, Action.INFER, Action.INFER]


def test_each_delivery_gives_its_own_answer():
    answers = [(0, "near"), (3, "most"), (4, "most"), (5, "most"), (200, "last")]
    found = {}
    for deliver in ("last", "nearest", "vote"):
        policy = answered(policy_of(Knobs(reuse_threshold=1.0, deliver=deliver)), answers)
        found[deliver] = policy.decide(None, at(0), 1.0)
    assert {name: d.value for name, d in found.items()} == {
        "last": "last",
        "nearest": "near",
        "vote": "most",
    }
    assert (found["last"].distance, found["nearest"].distance) == (200, 0)
    assert (found["nearest"].votes, found["vote"].votes) == (1, 5)


def test_fewer_votes_ask_only_the_nearest():
    answers = [(0, "near"), (3, "most"), (4, "most"), (5, "most")]
    policy = answered(policy_of(Knobs(reuse_threshold=1.0, deliver="vote", votes=1)), answers)
    assert policy.decide(None, at(0), 1.0).value == "near"


@pytest.mark.parametrize("entries", [1, 5, 100])
def test_more_votes_than_entries_are_all_entries(entries):
    knobs = Knobs(reuse_threshold=1.0, deliver="vote", votes=1000)
    policy = answered(policy_of(knobs), [(i, "car") for i in range(entries)])
    decision = policy.decide(None, at(0), 1.0)
    assert decision.value == "car"
    assert min(entries, 32) <= decision.votes <= min(entries, 64)


def test_a_vote_that_disagrees_is_less_sure_than_one_that_agrees():
    knobs = Knobs(reuse_threshold=0.9, deliver="vote")
    one = answered(policy_of(knobs), [(0, 1), (0, 1), (0, 1), (0, 1)])
    torn = answered(policy_of(knobs), [(0, 1), (0, 1), (0, 9), (0, 9)])
    sure, unsure = (p.decide(None, at(0), 1.0).p_changed for p in (one, torn))
    assert sure < 0.05
    assert unsure > 0.3


@pytest.mark.parametrize("deliver", ["last", "nearest", "vote"])
def test_nothing_answers_beyond_the_greatest_distance(deliver):
    knobs = Knobs(reuse_threshold=1.0, deliver=deliver, max_distance=10)
    policy = answered(policy_of(knobs), [(0, "car")] * 20)
    assert policy.decide(None, at(10), 1.0).action is Action.REUSE
    assert policy.decide(None, at(11), 1.0).action is Action.INFER


def test_entries_beyond_the_greatest_distance_have_no_vote():
    unsure_of_distance = ReuseHead(distance=0.0, log_age=0.0, age=0.0, bias=-1.0)
    knobs = Knobs(reuse_threshold=1.0, deliver="vote", max_distance=10)
    answers = [(0, "near"), *[(200, "far")] * 4]
    decision = answered(policy_of(knobs, unsure_of_distance), answers).decide(None, at(0), 1.0)
    assert decision.value != "far"


def test_a_reused_entry_is_kept_by_lru():
    policy = policy_of(Knobs(reuse_threshold=0.5), capacity=2, eviction="lru")
    answered(policy, [(0, "used"), (200, "unused")])
    policy.decide(None, at(0), 1.0)
    answered(policy, [(100, "new")])
    assert policy.decide(None, at(0), 1.0).value == "used"
    assert policy.decide(None, at(200), 1.0).action is Action.INFER


def test_knobs_survive_the_manifest():
    knobs = Knobs(0.1, 0.2, 3, "vote", 7, 8, 9, 1.5)
    assert msgspec.convert(msgspec.to_builtins(knobs), Knobs) == knobs
