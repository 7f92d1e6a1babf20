"""Where fits run: at once, or in a thread within a share of the CPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
Job = Callable[[Callable[[], None]], T]
"""A piece of work; it calls what it is given now and then, where other threads may run."""

FIRST_S = 1.0
"""CPU seconds that may be used before the share counts: the first fits."""
PAUSE_S = 0.0005
CLOSE_S = 0.5
"""A fit that still runs is not waited for: its thread ends with the process."""


class Worker(Protocol[T]):
    """Runs one job at a time. All but the job itself is called by one thread."""

    cpu_s: float
    paused: bool

    @property
    def ready(self) -> bool:
        """Whether a job may run now."""

    def start(self, job: Job[T]) -> bool:
        """Begin a job; False if it may not run now."""

    def result(self) -> T | Exception | None:
        """What the last job came to, once; None: nothing yet."""

    def close(self) -> None:
        """Start no more; wait for a job that runs, but not for long."""


class AtOnce(Generic[T]):
    """Runs a job when it is started: replays, the same on every run."""

    def __init__(self) -> None:
        self.cpu_s = 0.0
        self.paused = False
        self._result: T | Exception | None = None

    @property
    def ready(self) -> bool:
        return not self.paused

    def start(self, job: Job[T]) -> bool:
        if not self.ready:
            return False
        begun_s = time.thread_time()
        try:
            self._result = job(lambda: None)
        except Exception as error:
            self._result = error
        self.cpu_s += time.thread_time() - begun_s
        return True

    def result(self) -> T | Exception | None:
        result, self._result = self._result, None
        return result

    def close(self) -> None:
        pass


class Background(Generic[T]):
    """Runs jobs in a thread that often pauses, on `share` of one core in the long run.

    Its priority is that of the others: a thread that holds the interpreter's lock and is not let
    run by a busy machine would hold up all of them.

    paused: True while nothing may be learned (the machine is hot).
    """

    def __init__(self, share: float) -> None:
        self.cpu_s = 0.0
        self.paused = False
        self._share = share
        self._begun_s = time.monotonic()
        self._changed = threading.Condition()
        self._job: Job[T] | None = None
        self._result: T | Exception | None = None
        self._busy = self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def ready(self) -> bool:
        allowed_s = FIRST_S + self._share * (time.monotonic() - self._begun_s)
        return not (self._busy or self._closed or self.paused or self.cpu_s > allowed_s)

    def start(self, job: Job[T]) -> bool:
        with self._changed:
            if not self.ready:
                return False
            self._job, self._busy = job, True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="learn", daemon=True)
                self._thread.start()
            self._changed.notify()
            return True

    def result(self) -> T | Exception | None:
        if self._result is None:  # the hot path: no lock
            return None
        with self._changed:
            result, self._result = self._result, None
            return result

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._job is None and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                job, self._job = self._job, None
            assert job is not None
            begun_s = time.thread_time()
            try:
                result: T | Exception = job(lambda: time.sleep(PAUSE_S))
            except Exception as error:
                result = error
            with self._changed:
                self.cpu_s += time.thread_time() - begun_s
                self._result, self._busy = result, False
