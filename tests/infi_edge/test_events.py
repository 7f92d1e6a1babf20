"""Events: they begin and end in turn, and do not flap."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi_edge.config import EventsConfig
from infi_edge.events import Event, EventTracker
from infi_edge.tasks import make_same
from infi_edge.types import Action, Result, Sample


def sample_at(time_s: float) -> Sample:
    return Sample(f"input at {time_s:g}", time_s, source="yard")


def result_at(time_s: float, value: Any, **fields: Any) -> Result:
    return Result(value, Action.INFER, "", 0, time_s, at=f"wall {time_s:g}", **fields)


class Stream:
    """A tracker that is given one value after the other, and what it told."""

    def __init__(self, same: str | None = None, **config: float) -> None:
        rule = None if same is None else make_same(same, "label")
        wanted = bool if same is None else lambda value: True
        self.tracker = EventTracker("yard", EventsConfig(**config), wanted, rule)
        self.told: list[tuple[float, Event]] = []

    def value(self, time_s: float, value: Any, **fields: Any) -> list[str]:
        events = self.tracker.result(result_at(time_s, value, **fields), sample_at(time_s))
        return self._tell(time_s, events)

    def tick(self, time_s: float) -> list[str]:
        return self._tell(time_s, self.tracker.tick(time_s, f"wall {time_s:g}"))

    def _tell(self, time_s: float, events: list[Event]) -> list[str]:
        self.told += [(time_s, event) for event in events]
        return [event.kind for event in events]

    def of(self, kind: str) -> list[Event]:
        return [event for _, event in self.told if event.kind == kind]


def test_an_event_begins_goes_on_and_ends() -> None:
    stream = Stream(end_s=2, still_s=3)
    assert stream.value(0, 0) == []
    assert stream.value(1, 2) == ["begun"]
    assert stream.tracker.active
    assert stream.value(3, 1) == []
    assert stream.value(4, 5) == ["still"]
    assert stream.value(5, 0) == []
    assert stream.value(6, 0) == ["ended"]
    assert stream.value(7, 0) == []
    assert not stream.tracker.active
    begun, still, ended = (event for _, event in stream.told)
    assert begun.id == still.id == ended.id
    assert [begun.value, still.value, ended.value] == [2, 5, 5]
    assert [begun.duration_s, still.duration_s, ended.duration_s] == [0, 3, 3]
    assert {e.begun_at for e in (begun, still, ended)} == {"wall 1"}
    assert ended.at == "wall 6"


def test_what_is_wanted_for_less_than_begin_s_is_no_event() -> None:
    stream = Stream(begin_s=2, end_s=1)
    for time_s, value in enumerate([1, 1, 0, 1, 1, 0, 1, 1]):
        assert stream.value(time_s, value) == []
    assert stream.value(8, 1) == ["begun"]
    assert stream.of("begun")[0].begun_at == "wall 6"
    assert stream.of("begun")[0].duration_s == 2


def test_begun_carries_its_first_input_and_those_before() -> None:
    stream = Stream(begin_s=1)
    before = (sample_at(3),)
    stream.value(4, 1, before=before)
    stream.value(5, 1)
    (begun,) = stream.of("begun")
    assert begun.sample == sample_at(4)
    assert begun.before == before


def test_an_event_ends_though_no_input_comes() -> None:
    stream = Stream(end_s=12)
    stream.value(0, 1)
    assert stream.tick(11.9) == []
    assert stream.tick(12) == ["ended"]
    assert stream.of("ended")[0].duration_s == 0


def test_an_event_ends_though_no_input_comes_after_the_last_unwanted_one() -> None:
    stream = Stream(end_s=2)
    stream.value(0, 1)
    stream.value(1, 0)
    assert stream.tick(1.9) == []
    assert stream.tick(2) == ["ended"]


def test_a_pause_ends_an_event_whether_or_not_time_was_told() -> None:
    """Played back as fast as possible, nothing ticks between two inputs."""
    stream = Stream(end_s=5)
    stream.value(0, 1)
    assert stream.value(60, 1) == ["ended", "begun"]
    first, second = stream.of("begun")
    assert first.id != second.id


def test_with_end_s_0_the_time_between_two_inputs_ends_nothing() -> None:
    stream = Stream(end_s=0)
    stream.value(0, 1)
    assert stream.tick(5) == []
    assert stream.value(6, 1) == []
    assert stream.value(7, 0) == ["ended"]


def test_a_source_slower_than_end_s_does_not_flap() -> None:
    stream = Stream(end_s=1, still_s=0)
    stream.value(0, 0)
    for time_s in (60, 120, 180):
        stream.value(time_s, 1)
        stream.tick(time_s + 59)
    assert stream.value(240, 0) == ["ended"]
    assert len(stream.of("begun")) == 1


def test_a_skip_is_never_wanted() -> None:
    tracker = EventTracker("yard", EventsConfig(), lambda value: True)
    skipped = Result(None, Action.SKIP, "", 0, 0.0)
    assert tracker.result(skipped, sample_at(0)) == []


def test_finish_ends_what_goes_on_once() -> None:
    stream = Stream()
    stream.value(0, 1)
    stream.value(2, 1)
    (ended,) = stream.tracker.finish("wall end")
    assert (ended.kind, ended.at, ended.duration_s) == ("ended", "wall end", 2)
    assert stream.tracker.finish("wall end") == []


def test_where_every_value_is_wanted_each_change_is_an_event() -> None:
    stream = Stream(same="exact", end_s=2)
    for time_s, value in enumerate(["walking"] * 3 + ["lying"] * 4):
        stream.value(time_s, value)
    assert [(e.kind, e.value) for _, e in stream.told] == [
        ("begun", "walking"),
        ("ended", "walking"),
        ("begun", "lying"),
    ]
    assert stream.of("begun")[1].begun_at == "wall 3"
    assert stream.of("begun")[1].sample == sample_at(3)
    assert stream.of("ended")[0].duration_s == 2


def test_a_value_that_comes_between_is_no_change() -> None:
    stream = Stream(same="exact", begin_s=0, end_s=4)
    for time_s, value in enumerate(["walking", "lying", "walking", "lying", "sitting", "walking"]):
        stream.value(time_s, value)
    assert [e.kind for _, e in stream.told] == ["begun"]


def test_a_value_that_drifts_is_a_change_once_it_is_not_the_first_any_more() -> None:
    stream = Stream(same="within:1", end_s=0)
    for time_s, value in enumerate([10, 11, 12]):
        stream.value(time_s * 0.1, value)
    assert [e.value for e in stream.of("begun")] == [10, 12]


steps = st.lists(
    st.tuples(st.floats(0.01, 8), st.sampled_from(["input", "tick"]), st.integers(0, 2)),
    max_size=60,
)
settings = st.fixed_dictionaries(
    {name: st.sampled_from([0.0, 0.5, 2.0, 7.0]) for name in ("begin_s", "end_s", "cool_down_s")}
)


@given(steps, settings, st.sampled_from([None, "exact"]))
def test_begun_and_ended_alternate_and_keep_the_cool_down(
    steps: list[tuple[float, str, int]], config: dict[str, float], same: str | None
) -> None:
    stream, now_s = Stream(same, **config), 0.0
    for pause_s, what, value in steps:
        now_s += pause_s
        stream.value(now_s, value) if what == "input" else stream.tick(now_s)
        kinds = [e.kind for _, e in stream.told if e.kind != "still"]
        assert stream.tracker.active == (len(kinds) % 2 == 1)
    told = [(time_s, e) for time_s, e in stream.told if e.kind != "still"]
    assert [e.kind for _, e in told] == (["begun", "ended"] * len(told))[: len(told)]
    for (begun_s, begun), (ended_s, ended) in zip(told[::2], told[1::2], strict=False):
        assert begun.id == ended.id
        assert ended.duration_s >= 0
        assert ended_s >= begun_s
    for (ended_s, _), (begun_s, _) in zip(told[1::2], told[2::2], strict=False):
        assert begun_s - ended_s >= config["cool_down_s"]
    begun_s = [time_s for time_s, e in told if e.kind == "begun"]
    assert all(b - a >= config["cool_down_s"] for a, b in pairwise(begun_s))
    assert len({e.id for _, e in told if e.kind == "begun"}) == len(begun_s)


@given(
    st.lists(st.tuples(st.floats(0.01, 2.9), st.integers(0, 1)), min_size=1, max_size=40),
    st.floats(3, 10),
)
def test_a_value_that_flaps_faster_than_end_s_is_one_event(
    flaps: list[tuple[float, int]], end_s: float
) -> None:
    """Between any two wanted inputs less than end_s passes."""
    stream, now_s, wanted_s = Stream(end_s=end_s), 0.0, 0.0
    stream.value(0.0, 1)
    for pause_s, value in flaps:
        now_s += pause_s
        must = now_s + 2.9 - wanted_s >= end_s
        wanted_s = now_s if value or must else wanted_s
        stream.value(now_s, 1 if value or must else 0)
    assert [e.kind for _, e in stream.told if e.kind != "still"] == ["begun"]


@given(steps, settings)
def test_ticks_change_no_event(
    steps: list[tuple[float, str, int]], config: dict[str, float]
) -> None:
    """Inputs alone (a recording, played fast) give the events that a live stream gives."""
    config = {**config, "cool_down_s": 0.0}
    live, fast, now_s = Stream(**config), Stream(**config), 0.0
    for pause_s, what, value in steps:
        now_s += pause_s
        if what == "tick":
            live.tick(now_s)
            continue
        live.value(now_s, value)
        fast.value(now_s, value)
    live.tick(now_s + 100)
    fast.tick(now_s + 100)
    both = [[(e.kind, e.value, e.begun_at, e.duration_s) for _, e in s.told] for s in (live, fast)]
    assert both[0] == both[1]


@pytest.mark.parametrize("still_s", [0.0, 1.0])
def test_still_is_told_as_often_as_asked(still_s: float) -> None:
    stream = Stream(still_s=still_s)
    for time_s in range(5):
        stream.value(time_s, 1)
    assert len(stream.of("still")) == (4 if still_s else 0)
