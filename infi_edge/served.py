"""One loaded model that serves several sources, each in its turn."""

from __future__ import annotations

import logging
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
from infi_edge.executors.offload import Check, OffloadWorkload
from infi_edge.executors.remote import LinkDown, RemoteModel
from infi_edge.interpreter import Network, TensorSpec
from infi_edge.plugins import load_object
from infi_edge.tasks import SameRule, Task, Value
from infi_edge.workload import Workload, WorkloadSpec, is_callable_name, model_identity

log = logging.getLogger("infi_edge")

REACH_S = 1.5
"""A server that need not be there is looked for so long: a start or a reload waits for it."""


def file_stamp(path: str) -> tuple[int, int]:
    """Return what changes when a file is written anew: its time and size; or zeros."""
    if not path:  # not the working folder
        return (0, 0)
    try:
        stat = Path(path).stat()
    except OSError:
        return (0, 0)
    return (stat.st_mtime_ns, stat.st_size)


class Abandoned(InfiEdgeError):
    """An input whose inference was given up because its source, or the daemon, stops."""


class Job:
    """One inference: asked, running or done. sent, received: bytes to and from a server."""

    __slots__ = (
        "abandoned", "begun_s", "data", "done", "ended_s", "error", "queued_s", "received", "sent",
        "value", "workload",
    )  # fmt: skip

    def __init__(self, workload: Workload, data: Any) -> None:
        self.workload, self.data = workload, data
        self.queued_s = self.begun_s = self.ended_s = time.monotonic()
        self.done = threading.Event()
        self.abandoned = False
        self.value: Value = None
        self.error: Exception | None = None
        self.sent = self.received = 0

    @property
    def queue_s(self) -> float:
        """Seconds it waited for the model."""
        return self.begun_s - self.queued_s

    @property
    def model_s(self) -> float:
        """Seconds the model took."""
        return self.ended_s - self.begun_s


class ServedModel:
    """Runs a model in one thread of its own, first come, first served; one on a server in as many
    as requests may be under way.

    A source has at most so many inputs here, so the queue is bounded by the sources, and no source
    waits for more than that of each other.
    """

    def __init__(self, name: str, config: ModelConfig) -> None:
        """Load the model, or look for the server. Raises ExecutorError or ConfigError."""
        self.name, self.config = name, config
        self.stamp = file_stamp(config.path)
        self.remote: RemoteModel | None = None
        self.model: Network | Callable[[Any], Any] | None = None
        if config.executor:
            self.remote = _reach(RemoteModel(config.executor, config.offload))
        elif is_callable_name(config.path):
            self.model = load_object(config.path, "model")
        else:
            self.model = Network(config.path, config.threads)
        self._identity = "" if config.executor else model_identity(config.path, config.version)
        self._jobs: deque[Job] = deque()
        self._running: set[Job] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"model {name}", daemon=True)
            for _ in range(self.window)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def window(self) -> int:
        """How many inferences may be under way at a time."""
        return 1 if self.remote is None else self.config.offload.window

    @property
    def identity(self) -> str:
        """What tells models apart; of a server that was not reached yet, only its address."""
        if self.remote is None:
            return self._identity
        return self.remote.identity if self.remote.is_known else f"{self.remote.endpoint}?"

    def client(
        self,
        spec: WorkloadSpec,
        check: Check | None = None,
        whole_input: TensorSpec | None = None,
    ) -> ModelClient:
        """Return what one source asks: this model with the source's decoder and task.

        check: of a model on a server, once it is known. whole_input: see `Workload`. Raises
        ConfigError or ExecutorError if something does not fit, as far as it can be known.
        """
        if self.remote is None:
            assert self.model is not None
            workload = Workload(self.model, spec, self.config.threads, whole_input)
            return ModelClient(self, workload)
        remote = OffloadWorkload(self.remote, spec, check, whole_input)
        if self.remote.is_known:
            remote.meet()
        return ModelClient(self, remote)

    def put(self, job: Job) -> None:
        """Ask for an inference. Raises Abandoned when the model is closed."""
        with self._changed:
            if self._closed:
                raise Abandoned("the daemon stops")
            self._jobs.append(job)
            self._changed.notify()

    def wait(self, job: Job, alive: Callable[[], None]) -> None:
        """Wait until a job is done; alive is called every half second while waiting.

        Raises ExecutorError after deadline_s, Abandoned when the model is closed or alive says so.
        """
        deadline_s = job.queued_s + self.config.deadline_s
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

    def _give_up(self, job: Job) -> bool:
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
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                job = self._jobs.popleft()
                self._running.add(job)
            self._infer(job)
            with self._changed:
                self._running.discard(job)
            job.done.set()
            del job

    def _infer(self, job: Job) -> None:
        job.begun_s = time.monotonic()
        sent, received = (0, 0) if self.remote is None else self.remote.moved()
        try:
            job.value = job.workload(job.data)
        except InfiEdgeError as error:
            job.error = error
        except BaseException as error:  # sys.exit() in a user's function: the thread lives on
            job.error = ExecutorError(public_address(f"the model failed: {error!r}"))
        if self.remote is not None:
            now_sent, now_received = self.remote.moved()
            job.sent, job.received = now_sent - sent, now_received - received
        job.ended_s = time.monotonic()
        job.data = None
        del job  # an error keeps this frame, and must not keep itself by it

    def close(self) -> None:
        """Give up what waits and what runs. Returns at once: a model cannot be interrupted."""
        with self._changed:
            self._closed = True
            for job in (*self._running, *self._jobs):
                if not job.done.is_set():
                    job.abandoned = True
                    job.done.set()
            self._jobs.clear()
            self._changed.notify_all()
        if self.remote is not None:
            self.remote.close()

    def join(self, timeout_s: float) -> None:
        """Wait, after `close`, until the threads have ended; not for an inference that runs."""
        until_s = time.monotonic() + timeout_s
        for thread in self._threads:
            if not self._running:
                thread.join(max(until_s - time.monotonic(), 0.0))

    @property
    def hangs(self) -> bool:
        """Whether one inference runs for more than twice its deadline by now."""
        with self._changed:
            begun_s = [job.begun_s for job in self._running]
        return any(time.monotonic() - b > 2 * self.config.deadline_s for b in begun_s)

    @property
    def stuck(self) -> bool:
        """Whether an inference still runs after `close`, in a thread that an exit would wait
        for: not one that waits for a server."""
        return self.remote is None and any(thread.is_alive() for thread in self._threads)


def _reach(remote: RemoteModel) -> RemoteModel:
    """Look whether a server is there. Raises ExecutorError if it must be and is not, or if it has
    no such model."""
    try:
        remote.connect(REACH_S if remote.config.at_start == "wait" else remote.config.deadline_s)
    except LinkDown as error:
        if remote.config.at_start == "fail" or not error.passing:
            remote.close()
            raise
        log.warning("%s; inputs go the way of when_down until it is there", error)
    except BaseException:
        remote.close()
        raise
    return remote


class ModelClient:
    """One source's way to a served model: `value = client(data)`, or begun now and awaited later.

    alive: called while it waits; it may raise Abandoned.
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
        self.queue_s = self.model_s = 0.0
        return self.end(self.begin(data))

    def begin(self, data: Any) -> Job:
        """Ask for an inference and go on. Raises Abandoned."""
        job = Job(self._workload, data)
        self.served.put(job)
        return job

    def end(self, job: Job) -> Value:
        """Wait for what was begun and return the model's value. Raises as the call does."""
        self.served.wait(job, self.alive)
        self.queue_s, self.model_s = job.queue_s, job.model_s
        if job.error is None:
            return job.value
        try:
            raise job.error
        finally:
            del job  # else the error, this frame and the input are a cycle until the collector runs
