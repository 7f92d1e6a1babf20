"""One loaded model that serves several sources, each in its turn."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infi_edge.capture.address import public_address
from infi_edge.capture.source import TICK_S
from infi_edge.config import ModelConfig
from infi_edge.errors import ExecutorError, InfiEdgeError
from infi_edge.interpreter import Network
from infi_edge.plugins import load_object
from infi_edge.tasks import SameRule, Task, Value
from infi_edge.workload import Workload, WorkloadSpec, is_callable_name, model_identity


def file_stamp(path: str) -> tuple[int, int]:
    """Return what changes when a file is written anew: its time and size; or zeros."""
    try:
        stat = Path(path).stat()
    except OSError:
        return (0, 0)
    return (stat.st_mtime_ns, stat.st_size)


class Abandoned(InfiEdgeError):
    """An input whose inference was given up because its source, or the daemon, stops."""


class _Job:
    __slots__ = (
        "abandoned", "begun_s", "data", "done", "ended_s", "error", "queued_s", "value", "workload"
    )  # fmt: skip

    def __init__(self, workload: Workload, data: Any) -> None:
        self.workload, self.data = workload, data
        self.queued_s = self.begun_s = self.ended_s = time.monotonic()
        self.done = threading.Event()
        self.abandoned = False
        self.value: Value = None
        self.error: Exception | None = None


class ServedModel:
    """Runs a model in one thread of its own, first come, first served.

    Each source has at most one input here, so the queue is bounded by the number of sources and
    no source waits for more than one inference of each other.
    """

    def __init__(self, name: str, config: ModelConfig) -> None:
        """Load the model. Raises ExecutorError or ConfigError."""
        self.name, self.config = name, config
        self.stamp = file_stamp(config.path)
        self.model: Network | Callable[[Any], Any] = (
            load_object(config.path, "model")
            if is_callable_name(config.path)
            else Network(config.path, config.threads)
        )
        self.identity = model_identity(config.path, config.version)
        self._jobs: deque[_Job] = deque()
        self._running: _Job | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"model {name}", daemon=True)
        self._thread.start()

    def client(self, spec: WorkloadSpec) -> ModelClient:
        """Return what one source asks: this model with the source's decoder and task."""
        return ModelClient(self, Workload(self.model, spec, self.config.threads))

    def run(self, job: _Job, alive: Callable[[], None]) -> None:
        """Wait until a job is done; alive is called every half second while waiting.

        Raises ExecutorError after deadline_s, Abandoned when the model is closed or alive says so.
        """
        deadline_s = job.queued_s + self.config.deadline_s
        with self._changed:
            if self._closed:
                raise Abandoned("the daemon stops")
            self._jobs.append(job)
            self._changed.notify()
        while not job.done.wait(min(TICK_S, max(deadline_s - time.monotonic(), 0.0))):
            try:
                alive()
            except Abandoned:
                if self._give_up(job):
                    raise
            if time.monotonic() >= deadline_s and self._give_up(job):
                raise ExecutorError(f"the model gave no answer in {self.config.deadline_s:g} s")
        if job.abandoned:
            raise Abandoned("the daemon stops")

    def _give_up(self, job: _Job) -> bool:
        """Take a job back, so that a model that hangs does not gather inputs; False if it is
        done by now."""
        with self._changed:
            if job.done.is_set():
                return False
            if job in self._jobs:
                self._jobs.remove(job)
            return True

    def _run(self) -> None:
        while True:
            with self._changed:
                self._running = None
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                self._running = job = self._jobs.popleft()
            job.begun_s = time.monotonic()
            try:
                job.value = job.workload(job.data)
            except InfiEdgeError as error:
                job.error = error
            except BaseException as error:  # sys.exit() in a user's function: the thread lives on
                job.error = ExecutorError(public_address(f"the model failed: {error!r}"))
            job.ended_s = time.monotonic()
            job.data = None
            job.done.set()
            del job

    def close(self) -> None:
        """Give up what waits and what runs. Returns at once: a model cannot be interrupted."""
        with self._changed:
            self._closed = True
            for job in (self._running, *self._jobs):
                if job is not None and not job.done.is_set():
                    job.abandoned = True
                    job.done.set()
            self._jobs.clear()
            self._changed.notify()

    def join(self, timeout_s: float) -> None:
        """Wait, after `close`, until the thread has ended; not for an inference that runs."""
        if self._running is None:
            self._thread.join(timeout_s)

    @property
    def hangs(self) -> bool:
        """Whether one inference runs for more than twice its deadline by now."""
        job = self._running
        begun_s = job.begun_s if job is not None else None
        return begun_s is not None and time.monotonic() - begun_s > 2 * self.config.deadline_s

    @property
    def stuck(self) -> bool:
        """Whether an inference still runs after `close`."""
        return self._thread.is_alive()


class ModelClient:
    """One source's way to a served model: `value = client(data)`.

    queue_s, model_s: of the last inference. alive: called while it waits; it may raise Abandoned.
    """

    def __init__(self, served: ServedModel, workload: Workload) -> None:
        self.served = served
        self._workload = workload
        self.task: Task = workload.task
        self.same: SameRule = workload.same
        self.alive: Callable[[], None] = lambda: None
        self.queue_s = self.model_s = 0.0

    def __call__(self, data: Any) -> Value:
        """Return the model's value. Raises ExecutorError, SourceError or Abandoned."""
        job = _Job(self._workload, data)
        self.queue_s = self.model_s = 0.0
        self.served.run(job, self.alive)
        self.queue_s = job.begun_s - job.queued_s
        self.model_s = job.ended_s - job.begun_s
        if job.error is None:
            return job.value
        try:
            raise job.error
        finally:
            del job  # else the error, this frame and the input are a cycle until the collector runs
