"""Serves the page from a few threads, with limits that no client can use up."""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infi_edge.config import LOCAL, WebConfig, split_bind
from infi_edge.errors import ConfigError
from infi_edge.status import Control

THREADS = 4
MAX_CONNECTIONS = 64
CONNECTION_S = 20.0
"""No connection lives longer, however slowly its request comes or its answer is taken."""
_TICK_S = 2.0
_CLOSE_S = 0.7


class WebServer:
    """The page and /metrics of one daemon."""

    def __init__(self, control: Control, web: WebConfig) -> None:
        """Raises ConfigError if the settings make no sense, the token cannot be read or a package
        is missing."""
        try:
            from waitress import server, wasyncore  # type: ignore[import-untyped]
        except ImportError as error:
            raise ConfigError(
                "web needs the package waitress: pip install 'infi-edge[web]'"
            ) from error
        from infi_edge.web.app import App

        place = split_bind(web.bind)
        if place is None:
            raise ConfigError(f"web.bind is {web.bind!r}; it is HOST:PORT, as in 127.0.0.1:8765")
        self._host, self._port = place
        token = None if web.token_file is None else _token(web.token_file)
        local = self._host in LOCAL
        if token is None and not local:
            raise ConfigError(
                "web.bind is open to others; give web.token_file, a file with a secret"
            )
        self._app = App(control, token, web.pictures, local=local)
        self._create, self._asyncore = server.create_server, wasyncore
        self._map: dict[int, Any] = {}
        self._server: Any = None
        self._thread: threading.Thread | None = None
        self._closing = False

    @property
    def address(self) -> str:
        """Where the page is, once started: http://HOST:PORT."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    def start(self) -> None:
        """Bind now and serve from threads. Raises ConfigError if the port cannot be had."""
        listener = _listen(self._host, self._port)
        self._port = listener.getsockname()[1]
        # Its warnings are about single requests and the queue of them.
        logging.getLogger("waitress").setLevel(logging.CRITICAL)
        self._server = self._create(
            _one_request(self._app),
            map=self._map,
            sockets=[listener],
            threads=THREADS,
            # More than MAX_CONNECTIONS: at that many the oldest goes, so that all are accepted.
            connection_limit=2 * MAX_CONNECTIONS,
            max_request_header_size=16 << 10,
            max_request_body_size=4 << 10,
            channel_timeout=int(CONNECTION_S),
            asyncore_use_poll=True,
            log_socket_errors=False,
            ident=None,
        )
        self._thread = threading.Thread(target=self._run, name="web", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End within a second, whatever connections are open."""
        if self._thread is None:
            return
        self._closing = True
        self._server.pull_trigger()
        self._thread.join()
        self._thread = None

    def _run(self) -> None:
        server = self._server
        opened_s: dict[Any, float] = {}
        while not self._closing:
            self._asyncore.loop(timeout=_TICK_S, use_poll=True, map=self._map, count=1)
            _end_old(list(server.active_channels.values()), opened_s)
        self._asyncore.dispatcher.close(server)
        for channel in list(server.active_channels.values()):
            channel.handle_close()
        dispatcher = server.task_dispatcher
        dispatcher.set_thread_count(0)
        until_s = time.monotonic() + _CLOSE_S
        while dispatcher.threads and time.monotonic() < until_s:
            time.sleep(0.01)
        if not dispatcher.threads:
            # A thread that still runs would write to the trigger's descriptor when it ends.
            self._asyncore.close_all(self._map)


def _one_request(app: Any) -> Any:
    """Let a connection end after its first answer: thousands of requests sent at once by a client
    that reads no answer would fill the memory and stop the threads.

    waitress ends a connection after an answer of a length that it does not know.
    """

    def call(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        def start(status: str, headers: list[tuple[str, str]]) -> Any:
            return start_response(status, [h for h in headers if h[0] != "Content-Length"])

        return iter(app(environ, start))

    return call


def _end_old(channels: list[Any], opened_s: dict[Any, float]) -> None:
    # waitress itself waits for ever for a client that sends, or takes, a byte now and then; and
    # its clock is the wall's.
    now_s = time.monotonic()
    for gone in opened_s.keys() - set(channels):
        del opened_s[gone]
    for channel in channels:
        opened_s.setdefault(channel, now_s)
    surplus = len(opened_s) - MAX_CONNECTIONS
    for channel, since_s in list(opened_s.items()):
        if surplus > 0 or now_s - since_s > CONNECTION_S:
            channel.handle_close()
            surplus -= 1


def _token(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"web.token_file {path} cannot be read: {reason}") from error
    if len(text.split()) != 1:
        raise ConfigError(
            f"web.token_file {path} must hold one word, the token; write one into it: "
            "openssl rand -hex 16"
        )
    return text.strip()


_REASONS = {
    errno.EADDRINUSE: "is taken by another program; choose another port",
    errno.EADDRNOTAVAIL: "is no address of this machine; 127.0.0.1 is this machine alone",
    errno.EACCES: "is not allowed to this user; choose a port from 1024 on",
}


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"web.bind {host}:{port}: the name {host} is not known") from error
    # localhost may be both: 127.0.0.1 is what every client tries.
    family, kind, protocol, _, address = min(found, key=lambda f: f[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        reason = _REASONS.get(error.errno or 0, f"cannot be bound: {error.strerror}")
        raise ConfigError(f"web.bind {host}:{port} {reason}") from error
    return listener
