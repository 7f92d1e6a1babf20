"""When requests to a server are let through."""

from __future__ import annotations

import threading

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from infi_edge.executors.breaker import Breaker


def opened(failures: int = 3) -> Breaker:
    breaker = Breaker(failures)
    for _ in range(failures):
        breaker.failed()
    assert breaker.state == "open"
    return breaker


def half_open() -> Breaker:
    breaker = opened()
    breaker.probed()
    return breaker


def test_it_opens_after_so_many_failures_in_a_row():
    breaker = Breaker(3)
    assert [breaker.failed() for _ in range(3)] == [False, False, True]
    assert (breaker.state, breaker.opened) == ("open", 1)
    assert not breaker.enter()


def test_an_answer_between_failures_begins_the_count_anew():
    breaker = Breaker(3)
    for _ in range(5):
        breaker.failed()
        breaker.failed()
        breaker.succeeded()
    assert (breaker.state, breaker.opened) == ("closed", 0)
    assert breaker.enter()


def test_requests_that_were_under_way_open_it_once():
    breaker = opened()
    assert not breaker.failed()
    assert not breaker.failed()
    assert breaker.opened == 1


def test_a_probe_lets_one_request_through_at_a_time():
    breaker = half_open()
    assert breaker.state == "half-open"
    assert [breaker.enter() for _ in range(4)] == [True, False, False, False]


def test_a_trial_that_is_answered_closes_it():
    breaker = half_open()
    assert breaker.enter()
    breaker.succeeded()
    assert breaker.state == "closed"
    assert all(breaker.enter() for _ in range(4))
    assert [breaker.failed() for _ in range(3)] == [False, False, True]


def test_a_trial_that_fails_opens_it_at_once():
    breaker = half_open()
    assert breaker.enter()
    assert breaker.failed()
    assert (breaker.state, breaker.opened) == ("open", 2)
    assert not breaker.enter()
    breaker.probed()
    assert breaker.enter(), "the failed trial is over"


def test_an_answer_to_an_older_request_closes_it_too():
    breaker = opened()
    breaker.succeeded()
    assert breaker.enter()
    breaker.probed()
    assert breaker.state == "closed"


def test_of_many_threads_one_makes_the_trial():
    for _ in range(50):
        breaker, begin = half_open(), threading.Barrier(4)
        entered: list[bool] = []

        def enter(breaker=breaker, begin=begin, entered=entered) -> None:
            begin.wait(10)
            entered.append(breaker.enter())

        threads = [threading.Thread(target=enter) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert sorted(entered) == [False, False, False, True]


class RequestsThroughABreaker(RuleBasedStateMachine):
    """Every request that entered is reported; who comes to an open one is turned away."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(2)
        self.under_way = 0

    @rule()
    def enter(self) -> None:
        state = self.breaker.state
        entered = self.breaker.enter()
        assert entered or state != "closed"
        assert not entered or state != "open"
        self.under_way += entered

    @precondition(lambda self: self.under_way)
    @rule(answered=st.booleans())
    def report(self, answered: bool) -> None:
        self.under_way -= 1
        opened = self.breaker.opened
        if answered:
            self.breaker.succeeded()
            assert self.breaker.state == "closed"
        else:
            assert self.breaker.failed() == (self.breaker.opened == opened + 1)

    @rule()
    def probe(self) -> None:
        self.breaker.probed()
        assert self.breaker.state != "open"

    @invariant()
    def it_is_never_shut_for_good(self) -> None:
        if not self.under_way and self.breaker.state == "half-open":
            assert self.breaker.enter()
            self.under_way += 1


RequestsThroughABreaker.TestCase.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None
)
TestRequestsThroughABreaker = RequestsThroughABreaker.TestCase
