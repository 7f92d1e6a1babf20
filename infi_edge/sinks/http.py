"""Results and events POSTed as JSON, one a request, over a connection that is kept."""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from infi_edge.capture.address import public_address
from infi_edge.capture.source import Backoff
from infi_edge.config import HttpSinkConfig
from infi_edge.errors import ConfigError
from infi_edge.events import Event
from infi_edge.sinks.jsonl import error_record
from infi_edge.sinks.outlet import NotNow
from infi_edge.sinks.sink import event_record, result_record
from infi_edge.types import Result, Sample

AWAY = (408, 425, 429, 502, 503, 504)
"""Answers that say nothing about the message: it is tried until it passes."""

MOST_TRIES = 8
"""Of a message that is answered with another 5xx: it may be the message that breaks the server."""

ANSWER_BYTES = 16 << 10
"""Of an answer that is longer, the connection is not kept."""


class HttpPost:
    """The sink. What cannot be sent now waits in the outlet (`NotNow`), in order."""

    kind = "http"

    def __init__(self, config: HttpSinkConfig, backoff: Backoff | None = None) -> None:
        """Raises ConfigError for a URL that is none, or files that cannot be read."""
        self.counts: Counter[str] = Counter(sent=0, dropped=0, failed=0, retried=0)
        self.sentence = ""
        self.wants_results, self.wants_events = config.results, config.events
        self.queue_size = config.queue
        self._config = config
        self._backoff = backoff or Backoff()
        self._waits: Iterator[float] = self._backoff.waits()
        self._tries = 0
        self._name = public_address(config.url)
        url = _parsed(config.url)
        self._target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        self._basic = ""
        if url.username is not None:
            pair = f"{unquote(url.username)}:{unquote(url.password or '')}"
            self._basic = "Basic " + base64.b64encode(pair.encode()).decode()
        self._connection = _connection(config, url)
        if config.token_file is not None:
            self._authorization()

    def write(self, result: Result, sample: Sample) -> None:
        self._send(result_record(result))

    def event(self, event: Event) -> None:
        self._send(event_record(event))

    def error(self, source: str, sample: Sample, message: str) -> None:
        self._send(error_record(source, sample, message))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._connection.close()

    def interrupt(self) -> None:
        """End a request that hangs; from any thread."""
        sock = self._connection.sock
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _send(self, record: dict[str, Any]) -> None:
        try:
            status = self._post(msgspec.json.encode(record))
        except ConfigError as error:
            self._later(str(error))
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            self._later(f"{self._name} cannot be reached: {reason}; messages wait")
        if 200 <= status < 300:
            self.counts["sent"] += 1
            self.sentence = ""
            self._settled()
        elif status in AWAY:
            self._later(f"{self._name} answers {status}; messages wait")
        elif status >= 500 and self._tries + 1 < MOST_TRIES:
            self._tries += 1
            self._later(f"{self._name} answers {status}; messages wait")
        else:
            self.counts["failed"] += 1
            self.sentence = f"{self._name} answers {status}; such messages are given up"
            self._settled()

    def _settled(self) -> None:
        self._tries = 0
        self._waits = self._backoff.waits()

    def _later(self, sentence: str) -> None:
        self.counts["retried"] += 1
        self.sentence = sentence
        raise NotNow(next(self._waits))

    def _post(self, body: bytes) -> int:
        """Send one request; return the status of the answer."""
        headers = {"Content-Type": "application/json", "User-Agent": "infi-edge"}
        if authorization := self._authorization():
            headers["Authorization"] = authorization
        was_open = self._connection.sock is not None
        try:
            return self._request(body, headers)
        except (ConnectionError, http.client.RemoteDisconnected):
            # The server may end a connection that it kept; that is no fault.
            if not was_open:
                raise
            self._connection.close()
            return self._request(body, headers)

    def _request(self, body: bytes, headers: dict[str, str]) -> int:
        self._connection.request("POST", self._target, body, headers)
        answer = self._connection.getresponse()
        with suppress(OSError, http.client.HTTPException):
            answer.read(ANSWER_BYTES)
        if not answer.isclosed():
            self._connection.close()
        return answer.status

    def _authorization(self) -> str:
        """The header; the token is read at each use, as secrets are replaced. Never logged.

        Raises ConfigError if the file cannot be read or holds no token.
        """
        path = self._config.token_file
        if path is None:
            return self._basic
        try:
            token = Path(path).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise ConfigError(f"the token in {path} cannot be read: {reason}") from None
        if not token or not token.isprintable() or " " in token:
            raise ConfigError(f"{path} holds no token; it takes one line without spaces")
        return f"Bearer {token}"


def _parsed(text: str) -> SplitResult:
    try:
        url = urlsplit(text)
        whole = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        whole = False
    if not whole or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError("the url is no http:// or https:// URL; give a whole one, without spaces")
    return url


def _connection(config: HttpSinkConfig, url: SplitResult) -> http.client.HTTPConnection:
    host = str(url.hostname)
    if url.scheme == "http":
        return http.client.HTTPConnection(host, url.port, timeout=config.timeout_s)
    try:
        context = ssl.create_default_context(cafile=config.ca_file)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"ca_file {config.ca_file} cannot be used: {reason}") from error
    return http.client.HTTPSConnection(host, url.port, timeout=config.timeout_s, context=context)
