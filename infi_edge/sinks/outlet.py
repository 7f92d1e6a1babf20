"""A bounded queue and a thread in front of one sink, so that it never stops the loop."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from infi_edge.capture.address import public_address
from infi_edge.events import Event
from infi_edge.sinks.sink import Sink
from infi_edge.status import SinkStatus
from infi_edge.types import Result, Sample

log = logging.getLogger("infi_edge")

IDLE_S = 1.0
"""A sink is flushed so often though nothing came: it may have its own things to send."""

CLOSE_S = 0.4
"""How much of the time to close is the sink's own."""

MESSAGE_BYTES = 512
"""What a message without its input counts for."""

TOLD_AGAIN_S = 600.0


class NotNow(Exception):
    """Raised by a sink that cannot take a message now: it is kept, and offered again later."""

    def __init__(self, retry_s: float) -> None:
        """retry_s: when."""
        super().__init__(f"again in {retry_s:g} s")
        self.retry_s = retry_s


class _Message(NamedTuple):
    order: int
    size: int
    queue: deque[Any]
    deliver: Callable[[], None]


class Outlet:
    """Takes messages from any thread without blocking, and hands them to a sink in its own thread.

    Full, it drops the oldest result before any event. Lossless (a recording played as fast as
    possible), it blocks instead. What a sink wants is in its attributes: `wants_results`,
    `wants_events` (true unless they say otherwise), `wants_samples` (else inputs are not kept),
    and `queue_size`, if its own settings have one. `queued`: what it still holds itself.
    The outlet's own `wants_samples` and `wants_results` are the sink's.
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        queue_size: int,
        flush_s: float,
        lossless: bool = False,
        max_bytes: int = 32 << 20,
    ) -> None:
        """queue_size: messages; max_bytes: of the inputs kept with them. flush_s: seconds between
        flushes at least, while there is something to flush."""
        self.name = name
        self.counts: Counter[str] = Counter(dropped=0, abandoned=0, failed=0)
        self._sink = sink
        self.wants_results = bool(getattr(sink, "wants_results", True))
        self._wants_events = bool(getattr(sink, "wants_events", True))
        self.wants_samples = bool(getattr(sink, "wants_samples", False))
        self._queue_size = int(getattr(sink, "queue_size", queue_size))
        self._max_bytes, self._flush_s, self._lossless = max_bytes, flush_s, lossless
        self._changed = threading.Condition()
        self._results: deque[_Message] = deque()
        self._events: deque[_Message] = deque()
        self._order = self._written = self._bytes = self._in_hand = 0
        self._unflushed = self._closing = False
        self._until_s = self._retry_at_s = 0.0
        self._flushed_s = time.monotonic()
        self._flush_at_s = self._flushed_s + flush_s
        self._faults: dict[str, str] = {}
        self._sentence = ""
        self._logged = False
        self._told: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, name=f"sink {name}", daemon=True)
        self._thread.start()

    # Called from any thread.

    def put_result(self, result: Result, sample: Sample) -> None:
        """Take one result and the input it answers."""
        if not self.wants_results:
            return
        size = MESSAGE_BYTES + size_bytes(result.value)
        if self.wants_samples:
            size += size_bytes(sample.data) + sum(size_bytes(s.data) for s in result.before)
        else:
            sample = _without_data(sample)
            result = replace(result, before=()) if result.before else result
        self._put(self._results, size, partial(self._sink.write, result, sample))

    def put_event(self, event: Event) -> None:
        """Take one event."""
        if not self._wants_events:
            return
        size = MESSAGE_BYTES
        if self.wants_samples:
            samples = event.before if event.sample is None else (event.sample, *event.before)
            size += sum(size_bytes(sample.data) for sample in samples)
        elif event.sample is not None:
            event = replace(event, sample=None, before=())
        self._put(self._events, size, partial(self._sink.event, event))

    def put_error(self, source: str, sample: Sample, message: str) -> None:
        """Take the error of one input; it counts as a result."""
        if not self.wants_results:
            return
        size = MESSAGE_BYTES
        if self.wants_samples:
            size += size_bytes(sample.data)
        else:
            sample = _without_data(sample)
        self._put(self._results, size, partial(self._sink.error, source, sample, message))

    def mark(self) -> int:
        """What to ask `written` for, of everything that was put so far."""
        with self._changed:
            return self._order

    def written(self, mark: int, soon: bool = False) -> bool:
        """Whether the sink has flushed everything up to a mark, or nobody reads any more.

        soon: do not wait for the next flush.
        """
        with self._changed:
            if self._written >= mark or self.broken:
                return True
            if soon and not self._queued():
                self._flush_at_s = 0.0
                self._changed.notify_all()
            return False

    @property
    def broken(self) -> bool:
        """Whether nobody reads any more (a closed pipe): there is no use in going on."""
        return bool(getattr(self._sink, "broken", False))

    def status(self) -> SinkStatus:
        """Return what became of the messages."""
        counts = Counter(self.counts.copy())
        counts.update(self._sink.counts.copy())
        with self._changed:
            queued = self._queued() + self._in_hand
        kind = str(getattr(self._sink, "kind", type(self._sink).__name__))
        return SinkStatus(self.name, kind, self._wrong(), counts, queued + self._held())

    def drain(self, timeout_s: float) -> bool:
        """Wait until all is delivered and flushed; return whether it is. For a recording's end."""
        until_s = time.monotonic() + timeout_s
        while True:
            with self._changed:
                if not self._unflushed and not self._held():
                    return True
                if self._closing or time.monotonic() >= until_s:
                    return False
                if not self._queued():
                    self._flush_at_s = 0.0
                    self._changed.notify_all()
            time.sleep(0.02)

    def close(self, deadline_s: float = 1.5) -> None:
        """Deliver what can be in that time, count the rest as abandoned, close the sink.

        A sink that hangs is left to itself; its method `interrupt`, if it has one, is called first.
        """
        end_s = time.monotonic() + deadline_s
        with self._changed:
            self._closing = True
            self._until_s = max(end_s - CLOSE_S, time.monotonic() + deadline_s / 2)
            left_s = self._until_s - time.monotonic()
            self._changed.notify_all()
        self._thread.join(left_s + CLOSE_S / 4)
        interrupt = getattr(self._sink, "interrupt", None)
        if self._thread.is_alive() and interrupt is not None:
            interrupt()
        self._thread.join(max(end_s - time.monotonic(), 0.0))
        if self._thread.is_alive():
            self._abandon(self._in_hand)
            log.warning("sink %s does not close; it is left to itself", self.name)
        if self.counts["abandoned"] and not self.broken:
            log.warning("sink %s: %d messages abandoned", self.name, self.counts["abandoned"])

    def _put(self, queue: deque[_Message], size: int, deliver: Callable[[], None]) -> None:
        with self._changed:
            while self._lossless and not self._closing and self._full(size):
                self._changed.wait()
            if self._closing:
                self.counts["dropped"] += 1
                return
            self._order += 1
            queue.append(_Message(self._order, size, queue, deliver))
            self._bytes += size
            self._unflushed = True
            self._trim()
            self._changed.notify_all()

    def _queued(self) -> int:
        return len(self._results) + len(self._events)

    def _held(self) -> int:
        return int(getattr(self._sink, "queued", 0))

    def _full(self, size: int) -> bool:
        queued = self._queued()
        return queued >= self._queue_size or (queued > 0 and self._bytes + size > self._max_bytes)

    def _trim(self) -> None:
        """Drop the oldest, results first. One message alone is kept, however large it is."""
        while self._queued() > self._queue_size or (
            self._queued() > 1 and self._bytes > self._max_bytes
        ):
            dropped = (self._results or self._events).popleft()
            self._bytes -= dropped.size
            self.counts["dropped"] += 1

    # The outlet's own thread.

    def _run(self) -> None:
        while True:
            message = self._next()
            if message is not None:
                self._deliver(message)
            elif self._closing:
                break
            if time.monotonic() >= self._flush_at_s:
                self._flush()
        self._abandon()
        self._call("close", self._sink.close)
        self._tell()

    def _next(self) -> _Message | None:
        """Wait for a message that may be delivered; None when it is time to flush or to end."""
        with self._changed:
            while True:
                now_s = time.monotonic()
                if self._closing:
                    return self._take() if self._queued() and now_s < self._until_s else None
                if self._queued() and now_s >= self._retry_at_s:
                    return self._take()
                if now_s >= self._flush_at_s:
                    return None
                wake_s = self._flush_at_s
                if self._queued():
                    wake_s = min(wake_s, self._retry_at_s)
                self._changed.wait(wake_s - now_s)

    def _take(self) -> _Message:
        results, events = self._results, self._events
        result_first = results and (not events or results[0].order < events[0].order)
        message = (results if result_first else events).popleft()
        self._bytes -= message.size
        self._in_hand = 1
        self._changed.notify_all()
        return message

    def _deliver(self, message: _Message) -> None:
        retry_s = self._call("deliver", message.deliver)
        if retry_s is not None:
            self._keep(message, retry_s)
        with self._changed:
            self._in_hand = 0
            self._flush_at_s = min(self._flush_at_s, self._flushed_s + self._flush_s)
        self._tell()

    def _keep(self, message: _Message, retry_s: float) -> None:
        with self._changed:
            message.queue.appendleft(message)
            self._bytes += message.size
            self._retry_at_s = time.monotonic() + retry_s
            if not self._lossless:
                self._trim()
            if self._closing:
                self._until_s = 0.0

    def _flush(self) -> None:
        with self._changed:
            waiting = [queue[0].order for queue in (self._results, self._events) if queue]
            upto = min(waiting) - 1 if waiting else self._order
        self._call("flush", self._sink.flush)
        with self._changed:
            if not self._wrong():
                self._written = upto
            self._flushed_s = time.monotonic()
            self._flush_at_s = self._flushed_s + max(self._flush_s, IDLE_S)
            self._unflushed = self._queued() > 0
        self._tell()

    def _call(self, what: str, call: Callable[[], None]) -> float | None:
        """Call into the sink; return when to try again, if it says so.

        What it raises by mistake is counted and told: it must not end the others.
        """
        try:
            call()
        except NotNow as later:
            return later.retry_s
        except (Exception, SystemExit) as error:
            self.counts["failed"] += 1
            self._faults[what] = public_address(f"{type(error).__name__}: {error}")
        else:
            self._faults[what] = ""
        return None

    def _abandon(self, more: int = 0) -> None:
        with self._changed:
            self.counts["abandoned"] += self._queued() + more
            self._results.clear()
            self._events.clear()
            self._bytes = 0

    def _tell(self) -> None:
        """Log what is wrong with the sink, once, and when it works again."""
        if self.broken:
            with self._changed:
                self._closing, self._until_s = True, 0.0
                self._changed.notify_all()
        sentence = self._wrong()
        if sentence == self._sentence:
            return
        self._sentence = sentence
        if not sentence:
            if self._logged:
                log.info("sink %s: works again", self.name)
            return
        now_s = time.monotonic()
        self._logged = now_s - self._told.get(sentence, -TOLD_AGAIN_S) >= TOLD_AGAIN_S
        if self._logged:
            if len(self._told) >= 100:
                self._told.clear()
            self._told[sentence] = now_s
            log.warning("sink %s: %s", self.name, sentence)

    def _wrong(self) -> str:
        return next(filter(None, self._faults.copy().values()), self._sink.sentence)


def size_bytes(data: Any) -> int:
    """Return about how many bytes of memory an input takes."""
    if isinstance(data, np.ndarray):
        return data.nbytes
    if isinstance(data, (bytes, str)):
        return len(data)
    return sum(size_bytes(part) for part in data) if isinstance(data, (list, tuple)) else 64


def _without_data(sample: Sample) -> Sample:
    return Sample(None, sample.time_s, sample.index, sample.source)
