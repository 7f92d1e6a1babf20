"""Bytes that a TCP connection has moved, as the kernel counts them."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

RECEIVED, SENT, RETRANS = 128, 200, 208
"""Offsets in struct tcp_info (linux/tcp.h): bytes_received, bytes_sent, bytes_retrans."""


def moved(end: socket.socket) -> tuple[int, int] | None:
    """Return bytes (sent, received) of a TCP socket, retransmissions not counted twice.

    None where the kernel does not tell (before Linux 4.19, other systems, no TCP).
    """
    try:
        info = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, RETRANS + 8)
    except (OSError, AttributeError):
        return None
    if len(info) < RETRANS + 8:
        return None
    (received,) = struct.unpack_from("=Q", info, RECEIVED)
    sent, again = struct.unpack_from("=QQ", info, SENT)
    return sent - again, received


@dataclass(frozen=True, slots=True)
class Connection:
    """A TCP connection that a library holds in this process: its descriptor and its two ends."""

    fd: int
    ends: tuple[object, object]

    def moved(self) -> tuple[int, int] | None:
        """Return bytes (sent, received) so far, or None if the descriptor is another's by now."""
        try:
            # Held for an instant only: a kept duplicate would keep the connection open.
            duplicate = os.dup(self.fd)
        except OSError:
            return None
        try:
            end = socket.socket(fileno=duplicate)
        except OSError:
            os.close(duplicate)
            return None
        with end:
            return moved(end) if _ends(end) == self.ends else None


_claimed: set[Connection] = set()
_locks: defaultdict[int, threading.Lock] = defaultdict(threading.Lock)


@contextmanager
def connecting(port: int, until_s: float) -> Iterator[None]:
    """Open a connection to a port and `claim` it in this block; one thread at a time per port.

    until_s: on the monotonic clock. Raises TimeoutError if it is not our turn by then.
    """
    lock = _locks[port]
    if not lock.acquire(timeout=max(until_s - time.monotonic(), 0.0)):
        raise TimeoutError("others are still connecting")
    try:
        yield
    finally:
        lock.release()


def claim(port: int) -> Connection | None:
    """Return this process's connection to a port that nobody has claimed, or None."""
    found = _connections(port)
    for connection in found:
        if connection not in _claimed and connection.moved() is not None:
            _claimed.add(connection)
            return connection
    return None


def release(connection: Connection | None) -> None:
    """Forget a connection that is no longer looked at."""
    if connection is not None:
        _claimed.discard(connection)


def _ends(end: socket.socket) -> tuple[object, object] | None:
    try:
        return end.getsockname(), end.getpeername()
    except OSError:
        return None


def _connections(port: int) -> list[Connection]:
    """The TCP connections of this process to a port."""
    found = []
    with suppress(OSError):  # without /proc there are none
        for name in os.listdir("/proc/self/fd"):
            connection = _connection(int(name))
            if connection is not None and connection.ends[1][1] == port:  # type: ignore[index]
                found.append(connection)
    return found


def _connection(fd: int) -> Connection | None:
    with suppress(OSError):
        if not os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
            return None
        with socket.socket(fileno=os.dup(fd)) as end:
            if end.family in (socket.AF_INET, socket.AF_INET6) and end.type == socket.SOCK_STREAM:
                ends = _ends(end)
                return None if ends is None else Connection(fd, ends)
    return None
