"""A device that may fail is kept open, and what fails is told once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from infi_edge.capture import source
from infi_edge.capture.source import (
    STEADY_S,
    TICK_S,
    TOLD_AGAIN_S,
    Backoff,
    Device,
    Health,
    keep_open,
)
from infi_edge.errors import SourceError

QUICK = Backoff(0.01, 0.05)
FOREVER = object()
"""In a script: no reading any more."""


class Plug:
    """Opens devices that read what a script says: a reading, None, an error, or FOREVER."""

    def __init__(self, *scripts: list[object]) -> None:
        self.scripts, self.opened, self.closed = list(scripts), 0, 0

    def open(self) -> Device[object]:
        script = self.scripts.pop(0) if self.scripts else [SourceError("gone")]
        if script and script[0] == "closed":
            raise SourceError("cannot be opened")
        self.opened += 1
        return Scripted(self, script)


class Scripted:
    def __init__(self, plug: Plug, script: list[object]) -> None:
        self._plug, self._script = plug, list(script)

    def read(self, timeout_s: float) -> object:
        item = self._script[0]
        if item is FOREVER:
            time.sleep(timeout_s)
            return None
        self._script.pop(0)
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        self._plug.closed += 1


@pytest.fixture
def health() -> Health:
    return Health("yard")


@pytest.fixture
def closing() -> threading.Event:
    return threading.Event()


def readings(stream: Iterator[object], count: int) -> list[object]:
    """The next readings of a stream that has at least so many."""
    found: list[object] = []
    until_s = time.monotonic() + 20
    for reading in stream:
        found += [reading] * (reading is not None)
        if len(found) == count:
            return found
        assert time.monotonic() < until_s
    raise AssertionError(f"only {found}")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """The monotonic clock of the module, moved by hand."""
    now = [1000.0]
    monkeypatch.setattr(source, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("first", "cause"),
    [
        (["closed"], "open"),
        ([1, SourceError("cable")], "read"),
        ([1, FOREVER], "stall"),
    ],
)
def test_a_device_that_fails_is_opened_again_and_counted_by_cause(health, closing, first, cause):
    plug = Plug(first, [2])
    stream = keep_open(plug.open, health, closing, stall_s=0.05, backoff=QUICK)
    assert readings(stream, 1 + (1 in first))[-1] == 2
    assert health.counts[cause] == 1
    assert health.counts["reconnects"] == (0 if cause == "open" else 1)
    assert health.state == "live"
    stream.close()
    assert plug.opened == plug.closed


def test_all_devices_are_closed_whatever_ends_them(health, closing):
    plug = Plug([1, SourceError("a")], [2, ValueError("a defect")])
    stream = keep_open(plug.open, health, closing, stall_s=1, backoff=QUICK)
    assert readings(stream, 2) == [1, 2]
    with pytest.raises(ValueError, match="a defect"):
        next(stream)
    assert plug.opened == plug.closed == 2


def test_a_stream_that_is_left_early_closes_its_device(health, closing):
    plug = Plug([1, 2, 3])
    stream = keep_open(plug.open, health, closing, stall_s=1)
    assert next(stream) == 1
    stream.close()
    assert plug.closed == 1


def test_a_slow_gate_is_no_stall(health, closing):
    plug = Plug([1, None, 2, None, 3, FOREVER])
    stream = keep_open(plug.open, health, closing, stall_s=0.2, backoff=QUICK)
    seen = []
    for reading in stream:
        seen.append(reading)
        if reading == 3 or health.counts["stall"]:
            break
        time.sleep(0.3)
    assert seen == [1, None, 2, None, 3]
    assert health.counts["stall"] == 0


@pytest.mark.parametrize("script", [["closed"], [FOREVER]])
def test_a_stream_without_input_says_so_at_least_every_tick(health, closing, script):
    plug = Plug(script, [7])
    stream = keep_open(plug.open, health, closing, stall_s=1.2, backoff=Backoff(2.1, 2.1))
    begun_s, nothings = time.monotonic(), 0
    while next(stream) is None:
        nothings += 1
    assert nothings >= int((time.monotonic() - begun_s) / TICK_S) // 2  # the machine may be busy
    assert nothings >= 3


@pytest.mark.parametrize("script", [["closed"], [FOREVER], [1, SourceError("cable")]])
def test_closing_ends_a_stream_within_a_second(health, closing, script):
    plug = Plug(script)
    stream = keep_open(plug.open, health, closing, stall_s=60, backoff=Backoff(60, 60))
    ended = threading.Event()

    def consume() -> None:
        for _ in stream:
            pass
        ended.set()

    thread = threading.Thread(target=consume)
    thread.start()
    time.sleep(0.1)
    closing.set()
    assert ended.wait(10)
    thread.join()
    assert plug.opened == plug.closed


def test_what_must_open_is_an_error_only_the_first_time(health, closing):
    stream = keep_open(Plug(["closed"]).open, health, closing, stall_s=1, must_open=True)
    with pytest.raises(SourceError, match="cannot be opened"):
        next(stream)
    plug = Plug([1, SourceError("cable")], ["closed"], [2])
    stream = keep_open(plug.open, health, closing, stall_s=1, backoff=QUICK, must_open=True)
    assert readings(stream, 2) == [1, 2]
    assert health.counts["open"] == 1


def test_waits_grow_from_the_first_to_the_longest():
    waits = Backoff(1.0, 8.0).waits()
    for most_s in (1, 2, 4, 8, 8, 8):
        assert 2 / 3 * most_s <= next(waits) <= most_s


class Counting(Backoff):
    """Notes how often the waits begin anew."""

    begun: list[int] = []  # noqa: RUF012

    def waits(self) -> Iterator[float]:
        self.begun.append(1)
        return super().waits()


def test_the_backoff_begins_anew_only_after_a_device_that_has_worked(health, closing):
    Counting.begun.clear()
    slow = [None] * 3
    plug = Plug(["closed"], [1, SourceError("flaps")], [2, SourceError("flaps")], [3, *slow, 4])
    stream = keep_open(plug.open, health, closing, stall_s=9, backoff=Counting(0.1, 0.2))
    assert readings(stream, 3) == [1, 2, 3]
    assert len(Counting.begun) == 1
    time.sleep(0.25)
    assert readings(stream, 1) == [4]
    assert len(Counting.begun) == 2


def test_wall_clock_jumps_change_nothing(health, closing, monkeypatch):
    wall_s = iter(range(0, 10**9, 10**6))
    monkeypatch.setattr(time, "time", lambda: float(next(wall_s)))
    plug = Plug([1, None, 2, None, 3, SourceError("cable")], [4])
    stream = keep_open(plug.open, health, closing, stall_s=30, backoff=QUICK)
    assert readings(stream, 4) == [1, 2, 3, 4]
    assert health.counts == {"read": 1, "reconnects": 1}


def test_a_fault_is_told_once_until_inputs_come_again(health, caplog, clock):
    caplog.set_level(logging.INFO, "infi_edge")
    for _ in range(100):
        health.fail("open", "cannot be opened")
        clock(30)
    assert told(caplog) == ["yard: cannot be opened"]
    assert (health.state, health.sentence) == ("failing", "cannot be opened")
    health.live()
    assert told(caplog)[1:] == ["yard: inputs again after 3000 s"]
    assert (health.state, health.sentence) == ("live", "")
    assert health.counts["open"] == 100


def test_every_cause_of_an_outage_is_told(health, caplog):
    for cause in ("stall", "open", "read", "open", "stall"):
        health.fail(cause, cause)
    assert told(caplog) == ["yard: stall", "yard: open", "yard: read"]


def test_an_outage_after_a_steady_time_is_told_anew(health, caplog, clock):
    for _ in range(3):
        health.fail("stall", "no input")
        health.live()
        clock(STEADY_S)
    assert told(caplog) == ["yard: no input"] * 3


def test_a_source_that_flaps_does_not_fill_the_log(health, caplog, clock):
    caplog.set_level(logging.INFO, "infi_edge")
    for _ in range(int(3 * TOLD_AGAIN_S)):
        health.live()
        clock(0.5)
        health.fail("read", "cable")
        clock(0.5)
    faults = [line for line in told(caplog) if "cable" in line]
    assert len(faults) == 3
    assert len(told(caplog)) <= 6


def test_a_fault_that_input_goes_on_after_is_told_once_in_ten_minutes(health, caplog, clock):
    health.live()
    for _ in range(60):
        health.notice("torn", "a picture was torn")
        health.notice("overflow", "too slow")
        clock(10)
    assert sorted(told(caplog)) == ["yard: a picture was torn", "yard: too slow"]
    health.notice("torn", "a picture was torn")
    assert len(told(caplog)) == 3
    assert health.state == "live"
    assert health.counts == {"torn": 61, "overflow": 60}


def test_what_is_no_fault_is_only_counted(health, caplog):
    health.count("dropped", 5)
    health.count("dropped")
    assert health.counts["dropped"] == 6
    assert not caplog.records
    health.end()
    assert health.state == "ended"
