"""The queue in front of a sink: it never stops the loop, and loses results before events."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from infi_edge.events import Event
from infi_edge.sinks.outlet import NotNow, Outlet
from infi_edge.types import Action, Result, Sample

PATIENCE_S = 20.0


class Place:
    """A sink that keeps what it gets, while it is open."""

    kind = "place"

    def __init__(self, open_at_once: bool = True) -> None:
        self.counts: Counter[str] = Counter(sent=0)
        self.sentence = ""
        self.got: list[Any] = []
        self.flushed_s: list[float] = []
        self.closed = False
        self.gate = threading.Event()
        self.busy = threading.Event()
        if open_at_once:
            self.gate.set()

    def write(self, result: Result, sample: Sample) -> None:
        self._take(result.index, sample)

    def event(self, event: Event) -> None:
        self._take(event.id, event.sample)

    def error(self, source: str, sample: Sample, message: str) -> None:
        self._take(message, sample)

    def _take(self, what: Any, sample: Sample | None) -> None:
        self.busy.set()
        self.gate.wait()
        self.got.append(what)
        self.counts["sent"] += 1

    def flush(self) -> None:
        self.flushed_s.append(time.monotonic())

    def close(self) -> None:
        self.closed = True


def sample_of(index: int, data: Any = "x") -> Sample:
    return Sample(data, float(index), index, "yard")


def result_of(index: int) -> Result:
    return Result(1, Action.INFER, "", index, float(index), "yard")


def event_of(name: str, sample: Sample | None = None) -> Event:
    return Event("begun", name, "yard", 1, "", "", 0.0, sample)


def until(condition: Callable[[], Any]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, "it did not happen"
        time.sleep(0.005)


@contextmanager
def outlet_of(sink: Any, size: int = 100, flush_s: float = 0.0, **more: Any) -> Iterator[Outlet]:
    outlet = Outlet("place", sink, size, flush_s, **more)
    try:
        yield outlet
    finally:
        gate = getattr(sink, "gate", None)
        if gate is not None:
            gate.set()
        outlet.close(PATIENCE_S)
        assert not outlet._thread.is_alive()


def test_messages_arrive_in_order() -> None:
    place = Place()
    with outlet_of(place) as outlet:
        outlet.put_result(result_of(1), sample_of(1))
        outlet.put_event(event_of("e"))
        outlet.put_error("yard", sample_of(2), "wrong")
        outlet.put_result(result_of(3), sample_of(3))
        assert outlet.drain(PATIENCE_S)
        assert place.got == [1, "e", "wrong", 3]
        status = outlet.status()
    assert (status.name, status.kind, status.queued) == ("place", "place", 0)
    assert status.counts["sent"] == 4
    assert place.closed


def test_a_sink_that_hangs_stops_nobody_and_results_are_dropped_before_events() -> None:
    place = Place(open_at_once=False)
    with outlet_of(place, size=4) as outlet:
        outlet.put_result(result_of(0), sample_of(0))
        assert place.busy.wait(PATIENCE_S)
        outlet.put_event(event_of("first"))
        for index in range(1, 9):
            outlet.put_result(result_of(index), sample_of(index))
        outlet.put_event(event_of("last"))
        assert outlet.status().counts["dropped"] == 6
        assert outlet.status().queued == 5
        place.gate.set()
        assert outlet.drain(PATIENCE_S)
    assert place.got == [0, "first", 7, 8, "last"]


def test_among_events_alone_the_oldest_is_dropped() -> None:
    place = Place(open_at_once=False)
    with outlet_of(place, size=2) as outlet:
        outlet.put_event(event_of("in hand"))
        assert place.busy.wait(PATIENCE_S)
        for name in "abcd":
            outlet.put_event(event_of(name))
        outlet.put_result(result_of(1), sample_of(1))
        place.gate.set()
        assert outlet.drain(PATIENCE_S)
        assert outlet.counts["dropped"] == 3
    assert place.got == ["in hand", "c", "d"]


def test_inputs_that_wait_are_bounded_in_bytes() -> None:
    place = Place(open_at_once=False)
    place.wants_samples = True  # type: ignore[attr-defined]
    with outlet_of(place, max_bytes=10_000) as outlet:
        outlet.put_result(result_of(0), sample_of(0))
        assert place.busy.wait(PATIENCE_S)
        for index in range(1, 6):
            outlet.put_result(result_of(index), sample_of(index, b"x" * 4000))
        assert outlet.counts["dropped"] == 3
        outlet.put_event(event_of("huge", sample_of(9, np.zeros(50_000, np.uint8))))
        place.gate.set()
        assert outlet.drain(PATIENCE_S)
    assert place.got == [0, "huge"]


def test_inputs_are_not_kept_for_a_sink_that_does_not_want_them() -> None:
    place = Place(open_at_once=False)
    with outlet_of(place) as outlet:
        outlet.put_result(result_of(0), sample_of(0))
        assert place.busy.wait(PATIENCE_S)
        picture = np.zeros((4, 4, 3), np.uint8)
        alive = weakref.ref(picture)
        before = Result(1, Action.INFER, "", 1, 1.0, before=(sample_of(0, picture),))
        outlet.put_result(before, sample_of(1, picture))
        outlet.put_event(event_of("e", sample_of(1, picture)))
        outlet.put_error("yard", sample_of(1, picture), "wrong")
        del picture, before
        gc.collect()
        assert alive() is None


def test_a_sink_gets_only_what_it_wants() -> None:
    place = Place()
    place.wants_results = False  # type: ignore[attr-defined]
    with outlet_of(place) as outlet:
        outlet.put_result(result_of(1), sample_of(1))
        outlet.put_error("yard", sample_of(1), "wrong")
        outlet.put_event(event_of("e"))
        assert outlet.drain(PATIENCE_S)
    assert place.got == ["e"]


def test_lossless_blocks_and_loses_nothing() -> None:
    place = Place(open_at_once=False)
    with outlet_of(place, size=3, lossless=True) as outlet:

        def play() -> None:
            for index in range(50):
                outlet.put_result(result_of(index), sample_of(index))

        player = threading.Thread(target=play, daemon=True)
        player.start()
        until(lambda: outlet.status().queued == 4)
        assert player.is_alive()
        place.gate.set()
        player.join(PATIENCE_S)
        assert outlet.drain(PATIENCE_S)
    assert place.got == list(range(50))
    assert outlet.counts["dropped"] == 0


def test_closing_frees_a_recording_that_waits() -> None:
    place = Place(open_at_once=False)
    outlet = Outlet("place", place, 1, 0.0, lossless=True)
    player = threading.Thread(
        target=lambda: [outlet.put_result(result_of(i), sample_of(i)) for i in range(9)],
        daemon=True,
    )
    player.start()
    until(lambda: outlet.status().queued == 2)
    outlet.close(0.2)
    player.join(PATIENCE_S)
    assert not player.is_alive()
    place.gate.set()
    outlet._thread.join(PATIENCE_S)
    assert outlet.counts["dropped"] + outlet.counts["abandoned"] == 9


def test_an_exception_is_counted_told_once_and_not_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Place):
        def write(self, result: Result, sample: Sample) -> None:
            if result.index < 5:
                raise RuntimeError("no rtsp://me:secret@camera/")
            super().write(result, sample)

    place = Broken()
    with caplog.at_level(logging.INFO, "infi_edge"), outlet_of(place) as outlet:
        for index in range(5):
            outlet.put_result(result_of(index), sample_of(index))
        assert outlet.drain(PATIENCE_S)
        assert outlet.status().counts["failed"] == 5
        assert "RuntimeError: no rtsp://***@camera/" in outlet.status().sentence
        outlet.put_result(result_of(5), sample_of(5))
        assert outlet.drain(PATIENCE_S)
        until(lambda: outlet.status().sentence == "")
    assert place.got == [5]
    told = [record.message for record in caplog.records]
    assert len([m for m in told if "RuntimeError" in m]) == 1
    assert len([m for m in told if "works again" in m]) == 1
    assert "secret" not in caplog.text


def test_what_a_sink_cannot_take_now_comes_again_in_order() -> None:
    tried_s: list[float] = []

    class Away(Place):
        def _take(self, what: Any, sample: Sample | None) -> None:
            tried_s.append(time.monotonic())
            if len(tried_s) <= 3:
                raise NotNow(0.1)
            super()._take(what, sample)

    place = Away()
    with outlet_of(place) as outlet:
        for index in range(4):
            outlet.put_result(result_of(index), sample_of(index))
        assert outlet.drain(PATIENCE_S)
    assert place.got == [0, 1, 2, 3]
    assert np.diff(tried_s)[:3].min() >= 0.1


def test_while_a_sink_takes_nothing_the_queue_stays_bounded_and_keeps_events() -> None:
    class Away(Place):
        away = True

        def _take(self, what: Any, sample: Sample | None) -> None:
            if self.away:
                raise NotNow(0.001)
            super()._take(what, sample)

    place = Away()
    with outlet_of(place, size=3) as outlet:
        for index in range(200):
            outlet.put_result(result_of(index), sample_of(index))
            if index % 100 == 0:
                outlet.put_event(event_of(f"e{index}"))
            assert outlet.status().queued <= 4
        place.away = False
        assert outlet.drain(PATIENCE_S)
    assert place.got == ["e0", "e100", 199]
    assert outlet.counts["dropped"] == 199


def test_what_waits_is_flushed_and_not_more_often_than_asked() -> None:
    place = Place()
    with outlet_of(place, flush_s=0.2) as outlet:
        end_s = time.monotonic() + 0.7
        index = 0
        while time.monotonic() < end_s:
            index += 1
            outlet.put_result(result_of(index), sample_of(index))
            time.sleep(0.005)
        until(lambda: len(place.got) == index and place.flushed_s)
        last_s = time.monotonic()
        until(lambda: place.flushed_s[-1] >= last_s)
    pauses = np.diff(place.flushed_s)
    assert len(pauses) >= 1
    assert pauses.min() >= 0.15


def test_a_sink_that_hangs_is_left_after_the_deadline(caplog: pytest.LogCaptureFixture) -> None:
    place = Place(open_at_once=False)
    outlet = Outlet("place", place, 100, 0.0)
    for index in range(5):
        outlet.put_result(result_of(index), sample_of(index))
    assert place.busy.wait(PATIENCE_S)
    began_s = time.monotonic()
    outlet.close(0.3)
    assert time.monotonic() - began_s < PATIENCE_S / 2
    assert outlet.counts["abandoned"] == 5
    assert "5 messages abandoned" in caplog.text
    outlet.put_result(result_of(9), sample_of(9))
    assert outlet.counts["dropped"] == 1
    place.gate.set()
    outlet._thread.join(PATIENCE_S)
    assert not outlet._thread.is_alive()


def test_a_call_that_hangs_is_interrupted_at_the_end() -> None:
    class Hanging(Place):
        def interrupt(self) -> None:
            self.gate.set()

    place = Hanging(open_at_once=False)
    outlet = Outlet("place", place, 100, 0.0)
    outlet.put_result(result_of(1), sample_of(1))
    assert place.busy.wait(PATIENCE_S)
    outlet.close(PATIENCE_S / 10)
    outlet._thread.join(PATIENCE_S)
    assert place.got == [1]
    assert place.closed


def test_closing_delivers_what_waits_and_leaves_no_thread() -> None:
    before = threading.active_count()
    place = Place()
    outlet = Outlet("place", place, 1000, 60.0)
    for index in range(500):
        outlet.put_result(result_of(index), sample_of(index))
    outlet.close(PATIENCE_S)
    assert place.got == list(range(500))
    assert place.closed
    assert outlet.counts["abandoned"] == 0
    assert threading.active_count() == before


def test_a_sink_that_nobody_reads_ends_at_once_and_says_so() -> None:
    class Pipe(Place):
        broken = False

        def _take(self, what: Any, sample: Sample | None) -> None:
            self.broken = True

    place = Pipe()
    outlet = Outlet("place", place, 10, 0.0, lossless=True)
    assert not outlet.broken
    for index in range(50):
        outlet.put_result(result_of(index), sample_of(index))
    until(lambda: outlet.broken)
    outlet.close(PATIENCE_S)
    assert place.closed
    assert not outlet.drain(PATIENCE_S) or outlet.status().queued == 0
