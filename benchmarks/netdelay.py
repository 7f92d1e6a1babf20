"""A TCP relay on loopback that delays what passes, and fails in the ways a link fails."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

CHUNK = 64 << 10
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset
T = TypeVar("T")


class DelayProxy:
    """Clients connect to `address` and reach `target`, delay_s later in each direction.

    A delay line: any amount may be under way, so throughput is not limited. sent, received: bytes
    taken from clients, and given to them. Use as a context manager.
    """

    def __init__(self, target: str, delay_s: float = 0.02) -> None:
        """target: HOST:PORT."""
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self.delay_s = delay_s
        self.sent = self.received = self.connections = 0
        self._limit: int | None = None
        self._flows = asyncio.Event()
        self._flows.set()
        self._open: set[_Relay] = set()
        self._server: asyncio.Server | None = None
        self._port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="delay proxy", daemon=True
        )

    @property
    def address(self) -> str:
        """Where clients connect, HOST:PORT."""
        return f"127.0.0.1:{self._port}"

    def __enter__(self) -> DelayProxy:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._do(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def cut(self) -> None:
        """Reset every connection, and refuse new ones."""
        self._do(self._shut())

    def reset(self) -> None:
        """Reset every connection; new ones are taken."""
        self._do(self._drop())

    def blackhole(self) -> None:
        """Take connections and bytes, and pass nothing on, as when packets get lost."""
        self._call(self._flows.clear)

    def limit(self, count: int) -> None:
        """Reset each connection once `count` more bytes of answers have passed on it."""

        def set_limit() -> None:
            self._limit = count
            for relay in self._open:
                relay.left = count

        self._call(set_limit)

    def heal(self) -> None:
        """Undo cut, blackhole and limit; what a black hole has swallowed arrives now."""
        self._do(self._heal())

    async def _heal(self) -> None:
        self._limit = None
        for relay in self._open:
            relay.left = None
        self._flows.set()
        if self._server is None:
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _shut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._drop()

    async def _drop(self) -> None:
        relays = list(self._open)
        for relay in relays:
            relay.task.cancel()
        await asyncio.gather(*(relay.task for relay in relays), return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relay = _Relay(self, _current_task(), self._limit)
        self._open.add(relay)
        self.connections += 1
        try:
            await self._flows.wait()
            upstream = await asyncio.open_connection(*self._target)
            try:
                await relay.run((reader, writer), upstream)
            finally:
                _reset(upstream[1])
        except (OSError, asyncio.CancelledError):
            pass  # the client learns it by the reset
        finally:
            self._open.discard(relay)
            _reset(writer)

    async def wait_for_flow(self) -> None:
        """Return when bytes may pass."""
        await self._flows.wait()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def _call(self, function: Callable[[], None]) -> None:
        async def call() -> None:
            function()

        self._do(call())


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Line = asyncio.Queue[tuple[float, bytes]]
"""What is under way: when it is due, and the bytes; none at the end."""


class _Relay:
    """One client's connection, both ways. left: bytes it may still be answered, None: any."""

    def __init__(self, proxy: DelayProxy, task: asyncio.Task[Any], left: int | None) -> None:
        self._proxy, self.task, self.left = proxy, task, left

    async def run(self, client: Stream, server: Stream) -> None:
        """Pass bytes until both sides have ended, or one breaks."""
        asked: Line = asyncio.Queue()
        answered: Line = asyncio.Queue()
        tasks = [
            asyncio.create_task(work)
            for work in (
                self._take(client[0], asked, False),
                self._pass_on(asked, server[1], False),
                self._take(server[0], answered, True),
                self._pass_on(answered, client[1], True),
            )
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _take(self, reader: asyncio.StreamReader, line: Line, is_answer: bool) -> None:
        chunk = b"-"
        while chunk:
            chunk = await reader.read(CHUNK)
            self._proxy.sent += 0 if is_answer else len(chunk)
            line.put_nowait((asyncio.get_running_loop().time() + self._proxy.delay_s, chunk))

    async def _pass_on(self, line: Line, writer: asyncio.StreamWriter, is_answer: bool) -> None:
        while True:
            due, chunk = await line.get()
            await asyncio.sleep(due - asyncio.get_running_loop().time())
            await self._proxy.wait_for_flow()
            if not chunk:
                writer.write_eof()
                return
            if is_answer:
                chunk = self._allowed(chunk)
                self._proxy.received += len(chunk)
            writer.write(chunk)
            await writer.drain()
            if is_answer and self.left == 0:
                raise ConnectionAbortedError

    def _allowed(self, chunk: bytes) -> bytes:
        if self.left is None:
            return chunk
        chunk = chunk[: self.left]
        self.left -= len(chunk)
        return chunk


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


def _reset(writer: asyncio.StreamWriter) -> None:
    end = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
