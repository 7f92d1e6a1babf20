"""Lines of text: `lines:-` (standard input), `lines:PATH`, `lines:tcp://HOST:PORT`,
`lines:unix:PATH`.

A file is read to its end; `lines:PATH?follow` is what is written to it from now on. Writers of a
FIFO may come and go, connections are made again. A slow gate slows the writer: no line is lost.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator

from infi_edge.capture.address import need_modality
from infi_edge.capture.line_buffer import LineBuffer
from infi_edge.capture.line_streams import (
    FollowedFile,
    Stream,
    StreamEnd,
    TcpStream,
    open_path,
    open_stdin,
    open_unix,
)
from infi_edge.capture.source import Device, Health, Source, keep_open
from infi_edge.config import SourceConfig
from infi_edge.errors import ConfigError, SourceError
from infi_edge.preprocess import Spec, TextSpec
from infi_edge.types import Sample

MAX_LINE_BYTES = 1 << 16

Line = tuple[float, str]
"""When it was read (monotonic), and its text."""


def open_source(name: str, config: SourceConfig, spec: Spec, must_open: bool = False) -> Source:
    """Return the lines as a source. Raises ConfigError."""
    need_modality(config, spec, (TextSpec,))
    return Lines(name, stream_opener(config.address), must_open)


Opener = Callable[[bool], Stream]
"""Opens a stream. Its argument: wait until it is connected, or raise SourceError."""


def stream_opener(address: str) -> Opener:
    """Return what opens the stream behind `lines:...`. Raises ConfigError."""
    place = address.removeprefix("lines:")
    if place == "-":
        return lambda wait: open_stdin()
    if place.startswith("tcp://"):
        host, colon, port = place.removeprefix("tcp://").rstrip("/").rpartition(":")
        if not colon or not host or "@" in host or not port.isdigit() or int(port) > 65535:
            raise ConfigError("lines:tcp:// needs HOST:PORT and nothing else")
        return lambda wait: TcpStream(host.strip("[]"), int(port), wait)
    if place.startswith("unix:"):
        return lambda wait: open_unix(place.removeprefix("unix:"))
    path, mark, query = place.partition("?")
    if not path or (mark and query != "follow"):
        raise ConfigError(f"{address} is no source of lines; write lines:PATH or lines:PATH?follow")
    return (lambda wait: FollowedFile(path)) if mark else (lambda wait: open_path(path))


class Lines:
    """Lines as they come; one that is no UTF-8 (`not_utf8`) or too long (`too_long`) is left out.

    Silence is no fault. Only a file and standard input end.
    """

    def __init__(self, name: str, open_stream: Opener, must_open: bool) -> None:
        self.name, self.health = name, Health(name)
        self._open_stream, self._must_open = open_stream, must_open
        self._first = True
        self._closing = threading.Event()

    def samples(self) -> Iterator[Sample | None]:
        index = 0
        lines = keep_open(
            self._open, self.health, self._closing, stall_s=math.inf, must_open=self._must_open
        )
        for line in lines:
            if line is None:
                yield None
                continue
            time_s, text = line
            yield Sample(text, time_s, index, self.name)
            index += 1
        self.health.end()

    def _open(self) -> Device[Line]:
        first, self._first = self._first, False
        stream = self._open_stream(first and self._must_open)
        return LineReader(stream, self.health, self._closing.set)

    def now_s(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        self._closing.set()


class LineReader:
    """The lines of one stream. Reads on only when all lines before are taken."""

    def __init__(self, stream: Stream, health: Health, on_end: Callable[[], None]) -> None:
        """on_end: called when the last line of a stream that ends for good is taken."""
        self._stream, self._health, self._on_end = stream, health, on_end
        self._buffer = LineBuffer(MAX_LINE_BYTES)
        self._lines: Iterator[str] = iter(())
        self._read_s = 0.0
        self._end: StreamEnd | None = None

    def read(self, timeout_s: float) -> Line | None:
        until_s = time.monotonic() + timeout_s
        while True:
            for text in self._lines:
                return self._read_s, text
            if self._end is not None:
                self._finish(self._end)
                return None
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return None
            self._lines = self._texts(self._more(left_s))

    def _more(self, timeout_s: float) -> list[bytes]:
        too_long = self._buffer.too_long
        try:
            chunk = self._stream.read(timeout_s)
        except StreamEnd as end:
            self._end = None if end.goes_on else end
            return self._buffer.rest()
        self._read_s = time.monotonic()
        lines = self._buffer.feed(chunk)
        for _ in range(self._buffer.too_long - too_long):
            self._health.notice(
                "too_long", f"a line has more than {MAX_LINE_BYTES} bytes and is left out"
            )
        return lines

    def _texts(self, lines: list[bytes]) -> Iterator[str]:
        for line in lines:
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError:
                self._health.notice("not_utf8", "a line is not UTF-8 and is left out")

    def _finish(self, end: StreamEnd) -> None:
        if end.sentence:
            raise SourceError(end.sentence)
        self._on_end()

    def close(self) -> None:
        self._stream.close()
