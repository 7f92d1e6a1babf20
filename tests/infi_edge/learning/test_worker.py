"""Where fits run: one at a time, behind everything else, on a share of the CPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from infi_edge.learning import worker as module
from infi_edge.learning.worker import AtOnce, Background

WAIT_S = 10.0
Pause = Callable[[], None]


@pytest.fixture
def background() -> Iterator[Callable[..., Background[int]]]:
    made: list[Background[int]] = []

    def make(share: float = 1.0) -> Background[int]:
        made.append(Background(share))
        return made[-1]

    yield make
    for one in made:
        one.close()


def wait_for(condition: Callable[[], object]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s, "it did not happen"
        time.sleep(0.002)


def outcome(worker: Background[int]) -> int | Exception:
    found: list[int | Exception] = []

    def there() -> bool:
        result = worker.result()
        if result is not None:
            found.append(result)
        return bool(found)

    wait_for(there)
    return found[0]


def burn(cpu_s: float) -> None:
    """Use so much CPU time of this thread."""
    end_s = time.thread_time() + cpu_s
    while time.thread_time() < end_s:
        sum(range(1000))


def fails(pause: Pause) -> int:
    raise ValueError("a singular matrix")


def test_a_result_comes_once(background: Callable[..., Background[int]]) -> None:
    worker = background()
    assert worker.result() is None
    assert worker.start(lambda pause: 7)
    assert outcome(worker) == 7
    assert worker.result() is None


def test_one_job_runs_at_a_time(background: Callable[..., Background[int]]) -> None:
    worker, go, ran = background(), threading.Event(), []

    def slow(pause: Pause) -> int:
        ran.append("slow")
        assert go.wait(WAIT_S)
        return 1

    assert worker.start(slow)
    for _ in range(5):
        assert not worker.start(lambda pause: ran.append("other") or 2)
    go.set()
    assert outcome(worker) == 1
    assert ran == ["slow"]
    assert worker.start(lambda pause: 3)
    assert outcome(worker) == 3


def test_an_error_is_a_result_and_the_next_job_runs(
    background: Callable[..., Background[int]],
) -> None:
    worker = background()
    assert worker.start(fails)
    assert isinstance(outcome(worker), ValueError)
    assert worker.start(lambda pause: 4)
    assert outcome(worker) == 4


def test_at_once_is_done_when_it_has_started() -> None:
    worker: AtOnce[int] = AtOnce()
    assert worker.result() is None
    assert worker.start(lambda pause: pause() or 5)
    assert worker.result() == 5
    assert worker.result() is None
    assert worker.start(fails)
    assert isinstance(worker.result(), ValueError)
    worker.start(lambda pause: burn(0.02) or 1)
    assert worker.cpu_s >= 0.02
    worker.close()


def test_nothing_starts_while_it_is_paused(background: Callable[..., Background[int]]) -> None:
    worker = background()
    worker.paused = True
    assert not worker.start(lambda pause: 1)
    worker.paused = False
    assert worker.start(lambda pause: 2)
    assert outcome(worker) == 2


def test_closing_waits_for_the_job_that_runs(background: Callable[..., Background[int]]) -> None:
    worker, begun, done = background(), threading.Event(), []

    def slow(pause: Pause) -> int:
        begun.set()
        for _ in range(20):
            pause()
            time.sleep(0.01)
        done.append(True)
        return 1

    assert worker.start(slow)
    assert begun.wait(WAIT_S)
    worker.close()
    assert done == [True]
    assert not worker.start(lambda pause: 2)
    worker.close()


def test_closing_what_never_ran_returns(background: Callable[..., Background[int]]) -> None:
    before = threading.active_count()
    background().close()
    assert threading.active_count() == before


def test_in_the_long_run_it_keeps_to_its_share_of_the_cpu(
    background: Callable[..., Background[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock is the test's own, the CPU time is really used: a job of 0.05 s is wanted every
    0.25 s of a minute, ten times what 2 % are, and 0.1 s may be used at first."""
    clock_s = [1000.0]
    monkeypatch.setattr(module, "FIRST_S", 0.1)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock_s[0])
    share, length_s = 0.02, 60.0
    worker = background(share)
    refused = ran = 0
    begun_s = clock_s[0]
    while clock_s[0] < begun_s + length_s:
        if worker.start(lambda pause: burn(0.05) or 1):
            ran += 1
            while worker.result() is None:
                time.sleep(0.001)
        else:
            refused += 1
        assert worker.cpu_s <= 0.1 + share * (clock_s[0] - begun_s) + 0.3  # and the last job
        clock_s[0] += 0.25
    assert refused > 50
    assert ran >= 8  # the share is used, too
    assert worker.cpu_s >= 0.5 * share * length_s


def test_time_that_a_job_sleeps_is_not_cpu_time(
    background: Callable[..., Background[int]],
) -> None:
    worker = background()
    assert worker.start(lambda pause: time.sleep(0.2) or 1)
    assert outcome(worker) == 1
    assert worker.cpu_s < 0.15


def test_what_a_job_calls_lets_other_threads_run(
    background: Callable[..., Background[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    sleep = time.sleep

    def slept(seconds: float) -> None:
        if threading.current_thread().name == "learn":
            pauses.append(seconds)
        sleep(seconds)

    monkeypatch.setattr(module.time, "sleep", slept)
    worker = background()
    assert worker.start(lambda pause: [pause() for _ in range(3)] and 1)
    assert outcome(worker) == 1
    assert len(pauses) == 3
    assert all(0 < pause <= 0.005 for pause in pauses)
