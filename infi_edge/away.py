"""What becomes of a source's inputs while the server of its model cannot be used."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from infi_edge.capture.address import public_address
from infi_edge.errors import InfiEdgeError
from infi_edge.executors.remote import LinkDown
from infi_edge.executors.spool import Spool
from infi_edge.inflight import Arrival
from infi_edge.late import Late, Written
from infi_edge.served import Job
from infi_edge.setups import Setup
from infi_edge.status import SourceStatus
from infi_edge.tasks import Value
from infi_edge.types import Action, Result, Sample

log = logging.getLogger("infi_edge")

LOSSES = ("evicted", "uncertain", "damaged")
AWAY = "the server is away"
PATIENCE_S = 10.0
"""A recording that has ended waits so long for a server that is away."""


class Unanswered(InfiEdgeError):
    """An input that gets no answer because the server is away."""


class Queued(Unanswered):
    """One that will be answered later."""


class Away:
    """Answers without the server, as `when_down` says, and late where that is `queue`.

    Of one source and one setup of it; all but the late answers in the source's own thread.
    """

    def __init__(
        self,
        name: str,
        setup: Setup,
        state: Path,
        status: SourceStatus,
        turn: threading.Condition,
        give: Callable[[Result, Sample], Written],
        give_error: Callable[[Sample, str], None],
        tell: Callable[[str], bool],
    ) -> None:
        """turn: held while the status is changed. give, give_error: to the sinks; `give`
        returns whether they have written it, as a question. tell: whether the log shall have a
        cause.

        Raises ConfigError if another process has the queue.
        """
        self._name, self._setup, self._status, self._turn = name, setup, status, turn
        self._give, self._give_error, self._tell = give, give_error, tell
        self._offload = setup.client.served.config.offload
        self._late: Late | None = None
        self._told: Counter[str] = Counter()
        remote = setup.client.served.remote
        path = state / f"{name}.spool" if self._offload.spool == "disk" else None
        queues = self._offload.when_down == "queue"
        if remote is None or not (queues or (path is not None and path.exists())):
            return  # what is queued is answered, also when nothing more is
        spool = Spool(path, self._offload.spool_bytes, self._offload.spool_order, setup.question)
        if spool.sentence:
            log.warning("%s: %s", name, spool.sentence)
        if len(spool):
            log.info("%s: %d inputs wait from before", name, len(spool))
        self._late = Late(name, spool, remote, self._infer_late, self._deliver, self._fail)
        self.tell()

    def goes_on(self, setup: Setup) -> bool:
        """Take another setup of the source, if its queue and its model are as before."""
        old, new = self._setup, setup
        same = old.client.served is new.client.served and old.question == new.question
        if same:
            self._setup = setup
        return same

    def tell(self) -> None:
        """Bring the status up to date: what waits, and what was lost of the queue."""
        status = self._status
        if self._late is None:
            status.waiting = 0
            return
        spool = self._late.spool
        status.waiting = len(spool)
        for cause in LOSSES:
            more = spool.counts[cause] - self._told[cause]
            if not more:
                continue
            self._told[cause] += more
            status.counts[f"spool_{cause}"] += more
            if self._tell(f"spool {cause}"):
                log.warning("%s: %d queued inputs are lost (%s)", self._name, more, cause)

    def answer(self, arrival: Arrival, at: str, error: LinkDown) -> Result:
        """Answer an input without the server. at: its wall time. error: what is wrong.

        Raises Queued if it is kept for later, Unanswered if it is dropped, or what the local model
        raises.
        """
        why = public_address(str(error))
        self._status.link = why
        how = self._offload.when_down
        if self._tell("link"):
            log.warning(
                "%s: %s; meanwhile inputs go the way of when_down = %s", self._name, why, how
            )
        if how == "reuse":
            return self._last_answer(arrival, why)
        if how == "local":
            return self._local_answer(arrival)
        if how == "queue":
            self._queue(arrival, at, why)
        raise Unanswered(why)

    def _last_answer(self, arrival: Arrival, why: str) -> Result:
        look, step = arrival.look, arrival.step
        assert look is not None
        assert step is not None
        most_s = self._offload.max_stale_s
        result = self._setup.gate.last_answer(look, step.decision, AWAY, most_s)
        if result is None:
            raise Unanswered(f"{why}; there is no answer young enough to give again")
        self._status.counts["stale"] += 1
        return result

    def _local_answer(self, arrival: Arrival) -> Result:
        local, step, sample = self._setup.local, arrival.step, arrival.sample
        assert local is not None
        assert step is not None
        value = local(self._setup.gate.masked(sample.data))
        self._status.counts["local"] += 1
        result = Result(
            value,
            Action.INFER,
            f"{AWAY}: answered by {local.served.name}",
            sample.index,
            sample.time_s,
            sample.source,
            step.decision.score,
            step.decision.p_changed,
        )
        return replace(result, degraded=True)

    def _queue(self, arrival: Arrival, at: str, why: str) -> None:
        late, setup = self._late, self._setup
        if late is None:
            raise Unanswered(why)
        modality = "image" if setup.head is not None else setup.manifest.modality
        data = setup.gate.masked(arrival.sample.data)
        if late.put(arrival.sample, at, data, modality, why):
            raise Queued(why)
        raise Unanswered(f"{why}; {late.spool.sentence or 'the queue is full'}")

    def drain(self, alive: Callable[[], None]) -> None:
        """Wait, when a recording has ended, until nothing waits any more, or the server is away
        for too long. alive: called meanwhile; it may raise."""
        if self._late is not None:
            self._late.drain(alive, PATIENCE_S)

    def close(self) -> None:
        """End the late answers; what waits on disk stays there for the next start."""
        late = self._late
        if late is None:
            return
        self.tell()
        late.close()
        waiting = len(late.spool)
        self._status.waiting = waiting
        if waiting and late.spool.path is None:
            self._status.counts["late_abandoned"] += waiting
        elif waiting:
            log.info("%s: %d inputs stay queued for the next start", self._name, waiting)
        self.tell()
        self._late = None

    # In the thread of the late answers.

    def _infer_late(self, data: Any) -> Value:
        late = self._setup.late
        assert late is not None
        job = late.client.begin(data if late.head is None else late.head(data))
        try:
            return late.client.end(job)
        finally:
            with self._turn:
                count_bytes(self._status, job)

    def _deliver(self, result: Result, sample: Sample) -> Written:
        with self._turn:
            self._status.counts["late"] += 1
            self._status.sent += 1
            self._status.note_jpeg(sample.data)
            return self._give(result, sample)

    def _fail(self, sample: Sample, message: str) -> None:
        message = public_address(message)
        with self._turn:
            self._status.counts["late_error"] += 1
            if self._tell("late"):
                log.error("%s, queued input %d: %s", self._name, sample.index, message)
            self._give_error(sample, message)


def count_bytes(status: SourceStatus, job: Job | None) -> None:
    """Count what an inference has moved."""
    if job is not None:
        status.bytes_sent += job.sent
        status.bytes_received += job.received
