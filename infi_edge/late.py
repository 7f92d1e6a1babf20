"""Late answers: inputs that wait in a spool until the server can be used again."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from infi_edge.capture.recorded import decode_input, encode_input
from infi_edge.capture.source import Backoff
from infi_edge.errors import ConfigError, InfiEdgeError, SourceError
from infi_edge.executors.remote import LinkDown, RemoteModel
from infi_edge.executors.spool import Spool, Spooled
from infi_edge.served import Abandoned
from infi_edge.tasks import Value
from infi_edge.types import Action, Result, Sample

log = logging.getLogger("infi_edge")

ATTEMPTS = 3
"""An input that the server has failed on so often is given up."""
CUT_OFF = 3
"""One that has so often in a row been on its way when the link went down waits behind the others:
it may be what the server dies of."""
SETTLE_S = 1.0
"""At the end the sinks are waited for so long."""
TICK_S = 0.25
LONGEST_WAIT_S = 5.0


Written = Callable[[bool], bool]
"""Whether an answer is written by now; the argument: to have it written soon."""


class Late:
    """Takes inputs from a spool and answers them, one after the other, in a thread of its own.

    infer: what answers; it may raise LinkDown. deliver, fail: called with what became of one.
    deliver returns a question: is it written by now? Only then is the input forgotten: after a
    power loss it is known that its answer got out, or counted that it is not. None: it is.
    """

    def __init__(
        self,
        name: str,
        spool: Spool,
        remote: RemoteModel,
        infer: Callable[[Any], Value],
        deliver: Callable[[Result, Sample], Written | None],
        fail: Callable[[Sample, str], None],
    ) -> None:
        self.name, self.spool = name, spool
        self._remote, self._infer = remote, infer
        self._deliver, self._fail = deliver, fail
        self._given: deque[tuple[int, Written]] = deque()
        self._closing = threading.Event()
        self._put = threading.Event()
        self._waits = Backoff(TICK_S, LONGEST_WAIT_S).waits()
        self._cut_off = (-1, 0)
        self._thread = threading.Thread(target=self._run, name=f"late {name}", daemon=True)
        self._thread.start()

    def put(self, sample: Sample, at: str, data: Any, modality: str, why: str) -> bool:
        """Keep an input for later; whether there was room. data: as the model gets it.

        Raises SourceError if it cannot be encoded.
        """
        encoding, kept = encode_input(data, modality)
        good = self.spool.put(sample.index, sample.time_s, at, encoding, kept, why)
        self._put.set()
        return good

    def drain(self, alive: Callable[[], None], most_s: float) -> None:
        """Wait until nothing waits any more; give up when none has come to its end for most_s,
        and for the time an answer may take if the server can be used.

        alive: called now and then; it may raise.
        """
        fewest, since_s = len(self.spool), time.monotonic()
        while (waiting := len(self.spool)) and not self._closing.wait(TICK_S):
            alive()
            now_s = time.monotonic()
            if waiting < fewest:
                fewest, since_s = waiting, now_s
            patience_s = most_s + (self._remote.config.deadline_s if self._remote.is_up else 0.0)
            if now_s - since_s >= patience_s:
                return

    def close(self) -> None:
        """End the thread; what waits stays in the spool."""
        self._closing.set()
        self._put.set()
        self._thread.join(1.0)
        until_s = time.monotonic() + SETTLE_S
        while self._given and not self._thread.is_alive() and time.monotonic() < until_s:
            self._settle(soon=True)
            time.sleep(0.02)
        self.spool.close()

    # The thread.

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                entry = self._next()
                if entry is not None:
                    self._answer_or_give_up(entry)
            except Exception:  # a defect must not end what answers the others
                log.exception("%s: unexpected error in a late answer", self.name)
                self._closing.wait(TICK_S)

    def _next(self) -> Spooled | None:
        """Wait a moment for an input that the server can be asked for."""
        if len(self.spool) <= len(self._given):
            self._settle()
            self._put.wait(TICK_S)
            self._put.clear()
            return None
        if not self._remote.wait(TICK_S) or self._closing.is_set():
            return None
        entry = self.spool.take()
        if entry is None:  # the disk cannot be read now
            self._closing.wait(TICK_S)
        return entry

    def _answer_or_give_up(self, entry: Spooled) -> None:
        try:
            self._answer(entry)
        except Exception as error:
            log.exception("%s: unexpected error in a late answer", self.name)
            self._give_up(entry, f"unexpected: {error!r}")

    def _answer(self, entry: Spooled) -> None:
        try:
            data = decode_input(entry.encoding, entry.data)
            value = self._infer(data)
        except Abandoned:
            self._put_back(entry)
        except LinkDown as error:
            # Without a cause it was not asked: another request is just trying the server.
            self._put_off(entry, error.__cause__ is not None and not self._remote.is_up)
            self._closing.wait(TICK_S)
        except ConfigError:  # the server has another model than these inputs are for
            self._put_off(entry, True)
            self._closing.wait(next(self._waits))
        except SourceError as error:  # the input's own fault: it stays so
            self._give_up(entry, str(error))
        except InfiEdgeError as error:
            if entry.attempts + 1 >= ATTEMPTS:
                self._give_up(entry, str(error))
            else:
                self.spool.failed(entry.key)
            self._closing.wait(next(self._waits))
        else:
            self._give_out(entry, data, value)

    def _give_out(self, entry: Spooled, data: Any, value: Value) -> None:
        if not self.spool.delivering(entry.key):
            self._put_back(entry)
            return
        self._waits = Backoff(TICK_S, LONGEST_WAIT_S).waits()
        result = Result(
            value, Action.INFER, f"answered late: {entry.why}", entry.index, entry.time_s,
            self.name, at=entry.at, late=True,
        )  # fmt: skip
        written = self._deliver(result, Sample(data, entry.time_s, entry.index, self.name))
        self._given.append((entry.key, written or _at_once))
        self._settle()

    def _settle(self, soon: bool = False) -> None:
        """Forget the inputs whose answers are written by now. soon: have it written."""
        while self._given and self._given[0][1](soon):
            self.spool.done(self._given.popleft()[0])

    def _give_up(self, entry: Spooled, message: str) -> None:
        if not self.spool.delivering(entry.key):
            self._put_back(entry)
            return
        try:
            self._fail(Sample(None, entry.time_s, entry.index, self.name), message)
        finally:
            self.spool.drop(entry.key)

    def _put_back(self, entry: Spooled) -> None:
        self.spool.give_back(entry.key)
        self._closing.wait(next(self._waits))

    def _put_off(self, entry: Spooled, suspect: bool) -> None:
        key, times = self._cut_off
        times = suspect + (times if key == entry.key else 0)
        self._cut_off = (entry.key, times)
        if times < CUT_OFF:
            self.spool.give_back(entry.key)
        else:
            self.spool.failed(entry.key)
            self._cut_off = (-1, 0)


def _at_once(soon: bool) -> bool:
    return True
