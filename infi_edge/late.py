"""Late answers: inputs that wait in a spool until the server can be used again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from infi_edge.capture.recorded import decode_input, encode_input
from infi_edge.errors import InfiEdgeError
from infi_edge.executors.remote import LinkDown, RemoteModel
from infi_edge.executors.spool import Spool, Spooled
from infi_edge.tasks import Value
from infi_edge.types import Action, Result, Sample

log = logging.getLogger("infi_edge")

ATTEMPTS = 3
TICK_S = 0.25


class Late:
    """Takes inputs from a spool and answers them, one after the other, in a thread of its own.

    infer: what answers; it may raise LinkDown. deliver, fail: called with what became of one.
    """

    def __init__(
        self,
        name: str,
        spool: Spool,
        remote: RemoteModel,
        infer: Callable[[Any], Value],
        deliver: Callable[[Result, Sample], None],
        fail: Callable[[Sample, str], None],
    ) -> None:
        self.name, self.spool = name, spool
        self._remote, self._infer = remote, infer
        self._deliver, self._fail = deliver, fail
        self._closing = threading.Event()
        self._put = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"late {name}", daemon=True)
        self._thread.start()

    def put(self, sample: Sample, at: str, data: Any, modality: str, why: str) -> bool:
        """Keep an input for later; whether there was room. data: as the model gets it.

        Raises SourceError if it cannot be encoded.
        """
        encoding, kept = encode_input(data, modality)
        good = self.spool.put(sample.index, sample.time_s, at, encoding, kept, why)
        self._put.set()
        return bool(good)

    def drain(self, alive: Callable[[], None], most_s: float) -> None:
        """Wait until nothing waits any more; give up when the server is away for most_s.

        alive: called now and then; it may raise.
        """
        up_s = time.monotonic()
        while len(self.spool) and time.monotonic() - up_s < most_s:
            alive()
            if self._closing.wait(TICK_S):
                return
            if self._remote.is_up:
                up_s = time.monotonic()

    def close(self) -> None:
        """End the thread; what waits stays in the spool."""
        self._closing.set()
        self._put.set()
        self._thread.join(1.0)
        self.spool.close()

    def _run(self) -> None:
        while not self._closing.is_set():
            if not len(self.spool):
                self._put.wait(TICK_S)
                self._put.clear()
                continue
            if not self._remote.wait(TICK_S):
                continue
            entry = self.spool.take()
            if entry is None:
                self._closing.wait(TICK_S)
                continue
            try:
                self._answer(entry)
            except Exception as error:  # a defect must not end what answers the others
                log.exception("%s: unexpected error in a late answer", self.name)
                self._give_up(entry, f"unexpected: {error!r}")

    def _answer(self, entry: Spooled) -> None:
        sample = Sample(None, entry.time_s, entry.index, self.name)
        try:
            data = decode_input(entry.encoding, entry.data)
            sample = Sample(data, entry.time_s, entry.index, self.name)
            value = self._infer(data)
        except LinkDown:
            self.spool.give_back(entry.key)
            self._closing.wait(TICK_S)
            return
        except InfiEdgeError as error:
            if self._closing.is_set():
                self.spool.give_back(entry.key)
            elif self.spool.failed(entry.key) >= ATTEMPTS:
                self._give_up(entry, str(error))
            return
        self.spool.delivering(entry.key)
        why = f"answered late: {entry.why}"
        self._deliver(
            Result(
                value,
                Action.INFER,
                why,
                entry.index,
                entry.time_s,
                self.name,
                at=entry.at,
                late=True,
            ),
            sample,
        )
        self.spool.done(entry.key)

    def _give_up(self, entry: Spooled, message: str) -> None:
        self.spool.drop(entry.key)
        self._fail(Sample(None, entry.time_s, entry.index, self.name), message)
