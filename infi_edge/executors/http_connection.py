"""A keep-alive HTTP connection on which everything ends by one time, however slow the other end.

The usual timeouts are per read, so that a trickle of single bytes never ends.
"""

from __future__ import annotations

import http.client
import math
import select
import socket
import ssl
import threading
import time
from contextlib import suppress
from typing import Any

from infi_edge.executors.sockets import moved


class _Timed:
    """What both kinds of sockets get: an end for all they do, and what they have moved."""

    until_s = math.inf
    last: tuple[int, int] | None = None

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.settimeout(left(self.until_s))  # type: ignore[attr-defined]
        return super().recv_into(*args, **kwargs)  # type: ignore[misc]

    def sendall(self, *args: Any, **kwargs: Any) -> None:
        self.settimeout(left(self.until_s))  # type: ignore[attr-defined]
        super().sendall(*args, **kwargs)  # type: ignore[misc]

    def close(self) -> None:
        self.moved()
        super().close()  # type: ignore[misc]

    def moved(self) -> tuple[int, int] | None:
        """Bytes (sent, received), also when it has been closed; None: the kernel does not tell."""
        now = moved(self)  # type: ignore[arg-type]
        self.last = now or self.last
        return self.last


class _TimedSocket(_Timed, socket.socket):
    pass


class _TimedSSLSocket(_Timed, ssl.SSLSocket):
    pass


class HttpConnection(http.client.HTTPConnection):
    """http.client's, with a deadline. until_s: on the monotonic clock, set before each use."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        """context: of TLS, or None."""
        self.default_port = 80 if context is None else 443
        super().__init__(host, port)
        self._context = context
        if context is not None:
            context.sslsocket_class = _TimedSSLSocket
        self.until_s = math.inf
        self.end: _Timed | None = None

    def connect(self) -> None:
        """Connect anew. Raises OSError, ssl.SSLError."""
        self.end = None
        end: _TimedSocket | _TimedSSLSocket = _connected(self.host, self.port, self.until_s)
        self.end = end
        try:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                end.settimeout(left(self.until_s))
                secured = self._context.wrap_socket(
                    end, server_hostname=self.host, do_handshake_on_connect=False
                )
                assert isinstance(secured, _TimedSSLSocket)
                self.end = end = secured
                secured.do_handshake()
        except BaseException:
            end.close()
            raise
        end.until_s = self.until_s
        self.sock = end

    def is_kept(self) -> bool:
        """Whether it is connected still; what the other end has closed, or sent unasked, is not."""
        if self.sock is None or self.end is None:
            return False
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        if poll.poll(0):
            self.close()
            return False
        self.end.until_s = self.until_s
        return True

    def wake(self) -> None:
        """End what another thread waits for here."""
        sock = self.sock
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class HungUp(ssl.SSLError):
    """The other end has closed the connection after the handshake, without a word."""


def tls_error(host: str, port: int, context: ssl.SSLContext, until_s: float) -> ssl.SSLError | None:
    """Connect, and return what TLS has against it, or None.

    A server that dislikes our certificate says so after the handshake, and what it says is lost
    when a request is under way by then. So this one only listens, until until_s.
    """
    connection = HttpConnection(host, port, context)
    connection.until_s = until_s
    try:
        connection.connect()
        return None if _listen(connection.sock) else HungUp()
    except ssl.SSLError as error:
        return error
    except OSError:
        return None
    finally:
        connection.close()


def _listen(end: socket.socket) -> bool:
    """Whether the other end says something, or nothing and stays. Raises ssl.SSLError."""
    try:
        return end.recv_into(bytearray(1)) > 0
    except TimeoutError:
        return True
    except ConnectionError:
        return False


def left(until_s: float) -> float:
    """Return the seconds left. Raises TimeoutError if there are none."""
    seconds = until_s - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("timed out")
    return min(seconds, 1e6)


def _connected(host: str, port: int, until_s: float) -> _TimedSocket:
    addresses = _addresses(host, port, until_s)
    for index, (family, kind, protocol, _, address) in enumerate(addresses):
        end = _TimedSocket(family, kind, protocol)
        try:
            end.settimeout(left(until_s) / (len(addresses) - index))
            end.connect(address)
            return end
        except OSError:
            end.close()
            if index == len(addresses) - 1:
                raise
    raise OSError("the host has no address")


def _addresses(host: str, port: int, until_s: float) -> list[Any]:
    """getaddrinfo in time: it has no timeout, and a name server that is down holds it for long."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        pass
    found: list[Any] = []

    def look_up() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.append(error)

    thread = threading.Thread(target=look_up, name=f"name of {host}", daemon=True)
    thread.start()
    thread.join(left(until_s))
    if not found:
        raise TimeoutError("the name server gives no answer")
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]
