"""A microphone as a source: windows of sound, through PortAudio in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from infi_edge.capture import microphone_child
from infi_edge.capture.address import need_modality
from infi_edge.capture.live_audio import AudioWindows, Block
from infi_edge.capture.microphone_child import FAILED, HEADER, OPENED
from infi_edge.capture.source import Health, keep_open
from infi_edge.config import SourceConfig
from infi_edge.errors import ConfigError, SourceError
from infi_edge.preprocess import Spec
from infi_edge.preprocess.audio import MAX_RATE_HZ, MIN_RATE_HZ, AudioSpec
from infi_edge.types import Sample


class MicrophoneProcess:
    """The child that reads one microphone."""

    def __init__(self, config: SourceConfig, rate_hz: int, opened: Callable[[int], None]) -> None:
        """Start it. rate_hz: what the filter reads. opened: called by `read`, once it records, with
        the rate it records at."""
        settings = config.microphone
        name = config.address.partition(":")[2]
        rates = "any" if settings.rate_hz is None else "exact"
        wanted_hz = settings.rate_hz or rate_hz
        self._address, self._received, self._opened = config.address, bytearray(), opened
        # Not python -m: the package would be imported, and NumPy and OpenCV with it. In a session
        # of its own a Ctrl-C in the terminal does not reach it before it reaches the daemon.
        script = str(Path(microphone_child.__file__))
        arguments = [name, str(wanted_hz), rates, str(settings.buffer_s)]
        self._process = subprocess.Popen(
            [sys.executable, script, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._pipe = self._process.stdout
        self._poll = select.poll()
        self._poll.register(self._pipe, select.POLLIN)

    def read(self, timeout_s: float) -> Block | None:
        message = self._message(timeout_s)
        if message is None:
            return None
        kind, overflow, number, start_s, content = message
        if kind == OPENED:
            self._opened(int(content))
            return None
        return Block(np.frombuffer(content, np.int16), number, start_s, overflow)

    def _message(self, timeout_s: float) -> microphone_child.Message | None:
        until_s = time.monotonic() + timeout_s
        while (message := self._parsed()) is None:
            left_s = until_s - time.monotonic()
            if not self._poll.poll(max(left_s, 0.0) * 1000):
                return None
            received = os.read(self._pipe.fileno(), 1 << 16)
            if not received:
                code = self._process.wait(1.0)
                raise SourceError(f"{self._address}: the process that reads it ended ({code})")
            self._received += received
        return message

    def _parsed(self) -> microphone_child.Message | None:
        """Return the next message if it is here. Raises SourceError for one of a failure."""
        received = self._received
        if len(received) < HEADER.size:
            return None
        kind, overflow, length, number, start_s = HEADER.unpack_from(received)
        end = HEADER.size + length
        if len(received) < end:
            return None
        content = bytes(received[HEADER.size : end])
        del received[:end]
        if kind == FAILED:
            raise SourceError(f"{self._address}: {content.decode(errors='replace')}")
        return kind, overflow, number, start_s, content

    def close(self) -> None:
        self._process.kill()
        self._pipe.close()
        with suppress(subprocess.TimeoutExpired):  # the kernel may hold it in a driver
            self._process.wait(1.0)


class Microphone:
    """Windows of a microphone's sound, their times monotonic."""

    def __init__(self, name: str, config: SourceConfig, spec: AudioSpec, must_open: bool) -> None:
        self.name, self.health = name, Health(name)
        self._config, self._rate_hz, self._must_open = config, spec.rate_hz, must_open
        self._windows = AudioWindows(spec.window, spec.hop, spec.rate_hz, self.health)
        self._closing = threading.Event()

    def samples(self) -> Iterator[Sample | None]:
        index = 0
        blocks = keep_open(
            self._open,
            self.health,
            self._closing,
            stall_s=self._config.stall_s,
            must_open=self._must_open,
        )
        for block in blocks:
            before = index
            for data, time_s in self._windows.push(block) if block is not None else ():
                yield Sample(data, time_s, index, self.name)
                index += 1
            if index == before:
                yield None
        self.health.end()

    def _open(self) -> MicrophoneProcess:
        return MicrophoneProcess(self._config, self._rate_hz, self._opened)

    def _opened(self, from_hz: int) -> None:
        try:
            self._windows.open(from_hz)
        except SourceError as error:
            raise SourceError(f"{self._config.address}: {error}") from error

    def now_s(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        self._closing.set()


def open_source(name: str, config: SourceConfig, spec: Spec, must_open: bool = False) -> Microphone:
    """Return the microphone behind `microphone:NAME`. Raises ConfigError."""
    need_modality(config, spec, (AudioSpec,))
    assert isinstance(spec, AudioSpec)
    rate_hz = config.microphone.rate_hz
    if rate_hz is not None and not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise ConfigError(
            f"microphone.rate_hz is {rate_hz}; it must be {MIN_RATE_HZ} to {MAX_RATE_HZ}"
        )
    if importlib.util.find_spec("sounddevice") is None:
        raise ConfigError(
            f"{config.address} needs the package sounddevice: pip install 'infi-edge[microphone]'"
        )
    return Microphone(name, config, spec, must_open)
