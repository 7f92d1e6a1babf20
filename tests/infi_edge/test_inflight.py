"""Inputs whose answers come in any order are finished in their own."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from infi_edge.gate import Look, Step
from infi_edge.inflight import MOST, Arrival, InFlight
from infi_edge.served import Abandoned, Job
from infi_edge.types import Action, Decision, Sample


def until(good: Callable[[], bool], what: str, most_s: float = 30.0) -> None:
    end_s = time.monotonic() + most_s
    while not good():
        assert time.monotonic() < end_s, f"not in {most_s:g} s: {what}"
        time.sleep(0.002)


def arrival(index: int, inferred: bool = True) -> Arrival:
    look = Look(Sample(None, index / 10, index))
    made = Arrival(look.sample, 0.0, 0.0, look=look, step=Step(look, Decision(Action.INFER, "")))
    if inferred:
        made.job = Job(None, None)  # type: ignore[arg-type]
    return made


def alive() -> None:
    """Called while waiting."""


class Way:
    """A way for inputs, and what was finished on it."""

    def __init__(self, window: int) -> None:
        self.turn = threading.Condition(threading.RLock())
        self.finished: list[int] = []
        self.flight = InFlight(self.turn, window, self.finish)

    def finish(self, ended: Arrival) -> None:
        assert ended.job is None or ended.job.done.is_set()
        self.finished.append(ended.sample.index)

    def add(self, added: Arrival, alive: Callable[[], None] = alive) -> None:
        with self.turn:
            self.flight.add(added, alive)

    def drain(self) -> None:
        with self.turn:
            self.flight.drain(alive)

    def close(self) -> None:
        self.flight.close()


@contextmanager
def way(window: int = 4) -> Iterator[Way]:
    with closing(Way(window)) as made:
        yield made


@contextmanager
def running(call: Callable[[], Any]) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    yield thread
    thread.join(30)
    assert not thread.is_alive()


def done(ended: Arrival) -> None:
    assert ended.job is not None
    ended.job.done.set()


def test_answers_that_come_in_any_order_are_given_in_the_order_of_the_inputs():
    with way() as made:
        arrivals = [arrival(index) for index in range(3)]
        for added in arrivals:
            made.add(added)
        done(arrivals[2])
        done(arrivals[1])
        time.sleep(0.05)
        assert made.finished == []
        done(arrivals[0])
        made.drain()
        assert made.finished == [0, 1, 2]
        assert len(made.flight) == 0


@settings(max_examples=60, deadline=None)
@given(kinds=st.lists(st.booleans(), max_size=25), window=st.integers(1, 5), seed=st.integers(0, 9))
def test_whatever_comes_every_input_is_finished_once_in_its_turn(kinds, window, seed):
    chance = random.Random(seed)
    under_way: list[Arrival] = []
    ended = threading.Event()

    def server() -> None:
        while not ended.is_set() or under_way:
            if under_way:
                done(under_way.pop(chance.randrange(len(under_way))))
            else:
                time.sleep(0.0005)

    with way(window) as made, running(server):
        try:
            for index, inferred in enumerate(kinds):
                added = arrival(index, inferred)
                if inferred:
                    under_way.append(added)
                made.add(added)
                with made.turn:
                    assert len(made.flight.steps()) < window
        finally:
            ended.set()
        made.drain()
        assert made.finished == list(range(len(kinds)))


def test_one_without_an_inference_is_finished_at_once_if_none_is_before_it():
    with way() as made:
        made.add(arrival(0, inferred=False))
        assert made.finished == [0]
        first = arrival(1)
        made.add(first)
        made.add(arrival(2, inferred=False))
        assert made.finished == [0]
        done(first)
        made.drain()
        assert made.finished == [0, 1, 2]


def test_a_full_window_lets_the_next_wait_until_an_answer_is_taken():
    with way(2) as made:
        arrivals = [arrival(index) for index in range(3)]
        made.add(arrivals[0])
        with running(lambda: made.add(arrivals[1])) as adding:
            until(lambda: len(made.flight) == 2, "both are under way")
            adding.join(0.1)
            assert adding.is_alive()
            done(arrivals[1])
            adding.join(0.1)
            assert adding.is_alive(), "the oldest has no answer yet"
            done(arrivals[0])
        made.drain()
        assert made.finished == [0, 1]


def test_what_waits_behind_one_that_is_inferred_is_bounded():
    with way() as made:
        first = arrival(0)
        made.add(first)

        def fill() -> None:
            for index in range(1, MOST + 10):
                made.add(arrival(index, inferred=False))

        with running(fill) as filling:
            until(lambda: len(made.flight) == MOST, "it is full")
            filling.join(0.1)
            assert filling.is_alive()
            assert len(made.flight) == MOST
            done(first)
        made.drain()
        assert made.finished == list(range(MOST + 10))


def test_the_steps_that_have_no_answer_yet_are_told_the_newest_first():
    with way() as made:
        arrivals = [arrival(0), arrival(1, inferred=False), arrival(2)]
        for added in arrivals:
            made.add(added)
        with made.turn:
            assert [step.look.sample.index for step in made.flight.steps()] == [2, 0]
        for added in (arrivals[0], arrivals[2]):
            done(added)
        made.drain()
        with made.turn:
            assert made.flight.steps() == []


def test_waiting_for_the_next_ends_with_the_oldest_only():
    with way() as made:
        arrivals = [arrival(0), arrival(1)]
        for added in arrivals:
            made.add(added)

        def wait() -> None:
            with made.turn:
                made.flight.wait_for_next(alive)

        with running(wait) as waiting:
            done(arrivals[1])
            waiting.join(0.1)
            assert waiting.is_alive()
            done(arrivals[0])
        made.drain()
        with made.turn:
            made.flight.wait_for_next(alive)  # nothing is under way


def test_waiting_tells_that_it_lives_and_may_be_ended():
    calls = []

    def stopped() -> None:
        calls.append(1)
        if len(calls) > 1:
            raise Abandoned("the source is closed")

    with way(1) as made:
        added = arrival(0)
        with pytest.raises(Abandoned):
            made.add(added, stopped)
        assert len(calls) == 2
        done(added)
        made.drain()
        assert made.finished == [0], "it is finished all the same: nothing vanishes"


def test_closing_lets_what_has_its_answer_be_finished():
    made = Way(4)
    arrivals = [arrival(index) for index in range(3)]
    for added in arrivals:
        made.add(added)
    for added in arrivals:
        done(added)
    made.close()
    assert made.finished == [0, 1, 2]


def test_closing_does_not_wait_long_for_a_server_that_does_not_answer():
    made = Way(4)
    added = arrival(0)
    made.add(added)
    with running(made.close):
        pass
    assert made.finished == []
    done(added)
    until(lambda: made.finished == [0], "it is finished when the model lets go")


def test_it_serves_again_after_it_was_closed():
    made = Way(4)
    for index in range(3):
        added = arrival(index)
        made.add(added)
        done(added)
        made.close()
    assert made.finished == [0, 1, 2]
    hung = arrival(3)
    made.add(hung)
    made.close()
    after = arrival(4)
    made.add(after)
    done(after)
    done(hung)
    made.drain()
    assert made.finished == [0, 1, 2, 3, 4]
    made.close()


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_of_what_finishes_does_not_hold_up_the_others(caplog):
    class Defective(Way):
        def finish(self, ended: Arrival) -> None:
            super().finish(ended)
            if ended.sample.index == 0:
                raise RuntimeError("a defect")

    with closing(Defective(4)) as made:
        arrivals = [arrival(index) for index in range(3)]
        for added in arrivals:
            made.add(added)
        for added in arrivals:
            done(added)
        made.drain()
        assert made.finished == [0, 1, 2]
    assert "unexpected error" in caplog.text
