"""Where lines come from: bytes of standard input, a file, a FIFO or a socket, without waiting
longer than asked."""

from __future__ import annotations

import os
import select
import socket
import stat
import threading
import time
from typing import Protocol

from infi_edge.errors import SourceError

CHUNK_BYTES = 1 << 16
CONNECT_S = 5.0
_LOOK_S = 0.2


class StreamEnd(Exception):
    """No more bytes now. goes_on: another writer may come. sentence: why it is a fault, or ''."""

    def __init__(self, sentence: str = "", goes_on: bool = False) -> None:
        super().__init__(sentence)
        self.sentence, self.goes_on = sentence, goes_on


class Stream(Protocol):
    """Bytes as they come."""

    def read(self, timeout_s: float) -> bytes:
        """Return what there is, b"" if nothing in time. Raises StreamEnd, SourceError."""

    def close(self) -> None:
        """Let go of it."""


class DescriptorStream:
    """A descriptor to read from until its end. owned: closed with it."""

    def __init__(self, name: str, descriptor: int, owned: bool = True) -> None:
        self._name, self._descriptor, self._owned = name, descriptor, owned
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def read(self, timeout_s: float) -> bytes:
        if not self._poll.poll(timeout_s * 1000):
            return b""
        chunk = _read(self._name, self._descriptor)
        if chunk == b"":
            raise StreamEnd
        return chunk or b""

    def close(self) -> None:
        if self._owned:
            os.close(self._descriptor)


class Fifo:
    """A FIFO, whose writers may come and go; where one leaves, its last line ends."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._poll = select.poll()
        self._open()

    def _open(self) -> None:
        self._descriptor = _open(self._path)
        self._poll.register(self._descriptor, select.POLLIN)

    def read(self, timeout_s: float) -> bytes:
        if not self._poll.poll(timeout_s * 1000):
            return b""
        chunk = _read(self._path, self._descriptor)
        if chunk == b"":
            # A new descriptor waits for the next writer instead of reporting the end for ever.
            # It is opened before the old one is closed: what the next has written stays.
            old = self._descriptor
            self._poll.unregister(old)
            try:
                self._open()
            except SourceError:
                self._poll.register(old, select.POLLIN)
                raise
            os.close(old)
            raise StreamEnd(goes_on=True)
        return chunk or b""

    def close(self) -> None:
        os.close(self._descriptor)


class FollowedFile:
    """What is appended to a file from now on; one that is rotated or cut is read from its start."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = _open(path)
        os.lseek(self._descriptor, 0, os.SEEK_END)

    def read(self, timeout_s: float) -> bytes:
        until_s = time.monotonic() + timeout_s
        while True:
            chunk = _read(self._path, self._descriptor)
            if chunk:
                return chunk
            if self._replaced():
                chunk = _read(self._path, self._descriptor)  # written just before it was
                if chunk:
                    return chunk
                self._begin_anew()
                raise StreamEnd(goes_on=True)
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return b""
            time.sleep(min(left_s, _LOOK_S))

    def _replaced(self) -> bool:
        here = os.fstat(self._descriptor)
        if os.lseek(self._descriptor, 0, os.SEEK_CUR) > here.st_size:
            return True
        try:
            there = os.stat(self._path)
        except OSError:  # between two files of a rotation
            return False
        return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)

    def _begin_anew(self) -> None:
        descriptor = _open(self._path)
        os.close(self._descriptor)
        self._descriptor = descriptor

    def close(self) -> None:
        os.close(self._descriptor)


class SocketStream:
    """A connection; its end is a fault, after which another is made."""

    def __init__(self, name: str, connection: socket.socket) -> None:
        self._name, self._connection = name, connection

    def read(self, timeout_s: float) -> bytes:
        self._connection.settimeout(timeout_s)
        try:
            chunk = self._connection.recv(CHUNK_BYTES)
        except TimeoutError:
            return b""
        except OSError as error:
            raise StreamEnd(f"{self._name} is gone: {_reason(error)}") from error
        if not chunk:
            raise StreamEnd(f"{self._name} has ended the connection")
        return chunk

    def close(self) -> None:
        self._connection.close()


class TcpStream:
    """A TCP connection, made by a thread of its own: a name server may take its time.

    Keep-alive ends one whose other side has lost its power, within a minute.
    """

    def __init__(self, host: str, port: int, wait: bool = False) -> None:
        """wait: until it is connected; raises SourceError if it cannot be."""
        self._name = f"tcp://{host}:{port}"
        self._target = host, port
        self._lock = threading.Lock()
        self._finished = threading.Event()
        self._closed = False
        self._stream: SocketStream | None = None
        self._fault: OSError | None = None
        threading.Thread(target=self._connect, name=self._name, daemon=True).start()
        if wait:
            self._finished.wait(2 * CONNECT_S)
            self._connected()

    def _connect(self) -> None:
        try:
            connection = socket.create_connection(self._target, CONNECT_S)
        except (OSError, UnicodeError) as error:  # UnicodeError: no name of a host
            self._fault = error if isinstance(error, OSError) else OSError(str(error))
            self._finished.set()
            return
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        with self._lock:
            if self._closed:
                connection.close()
                return
            self._stream = SocketStream(self._name, connection)
        self._finished.set()

    def _connected(self) -> SocketStream:
        if self._stream is None:
            reason = _reason(self._fault) if self._fault else "no answer"
            raise SourceError(f"{self._name} cannot be reached: {reason}; check that it is running")
        return self._stream

    def read(self, timeout_s: float) -> bytes:
        if not self._finished.is_set():
            self._finished.wait(timeout_s)
            return b""
        return self._connected().read(timeout_s)

    def close(self) -> None:
        with self._lock:
            self._closed = True
        if self._stream is not None:
            self._stream.close()


def open_stdin() -> Stream:
    """Return standard input. It is shared with others: neither closed nor made non-blocking."""
    return DescriptorStream("standard input", 0, owned=False)


def open_path(path: str) -> Stream:
    """Return a file, or a FIFO. Raises SourceError."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise _cannot_open(path, error) from error
    if stat.S_ISDIR(mode):
        raise SourceError(f"{path} is a folder; give a file, or its path without lines: to play it")
    return Fifo(path) if stat.S_ISFIFO(mode) else DescriptorStream(path, _open(path))


def open_unix(path: str) -> Stream:
    """Return a connection to a Unix socket. Raises SourceError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_LOOK_S)
    try:
        connection.connect(path)
    except OSError as error:
        connection.close()
        raise _cannot_open(path, error) from error
    return SocketStream(path, connection)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _cannot_open(path, error) from error


def _read(name: str, descriptor: int) -> bytes | None:
    """Return bytes, none of them at the end; None if there is nothing now."""
    try:
        return os.read(descriptor, CHUNK_BYTES)
    except BlockingIOError:
        return None
    except OSError as error:
        raise SourceError(f"{name} cannot be read: {_reason(error)}; check it") from error


def _cannot_open(path: str, error: OSError) -> SourceError:
    return SourceError(
        f"{path} cannot be opened: {_reason(error)}; check its path and who may read"
    )


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
