"""The process that reads a microphone: sound from PortAudio in, messages on a pipe out.

It runs as a script of its own, so that it can be killed whatever PortAudio does, and so that a
microphone that was plugged in again is seen: PortAudio lists the devices once a process. Only the
standard library and sounddevice are imported.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import struct
import sys
import threading
import time
from collections import deque
from typing import Any

HEADER = struct.Struct("<c?IQd")
"""Before each message: kind, whether sound was lost before it by an overflow, bytes that follow,
number of its first sample since the start, time of that sample (time.monotonic)."""

OPENED, SOUND, FAILED = b"O", b"S", b"F"
"""OPENED is followed by the rate in Hz, in digits; SOUND by mono samples, int16 of this machine;
FAILED by one sentence, and the process has ended."""

SAMPLE_BYTES = 2
LATENCY_S = 0.2
"""PortAudio's own buffer: for so long this process may get no processor and nothing is lost."""
DEVICES_TOLD = 5

_PR_SET_PDEATHSIG = 1
_INVALID_CHANNELS, _INVALID_RATE, _UNAVAILABLE = -9998, -9997, -9985  # PortAudio's PaErrorCode

Message = tuple[bytes, bool, int, float, bytes]
"""Kind, overflow, number, time_s, content."""


class Refused(Exception):
    """The microphone cannot be read; the message is a sentence about it."""


class Ring:
    """What waits to be written: sound up to `most_bytes`, then the oldest goes.

    The numbers of the samples show what is missing. One thread puts, another takes.
    """

    def __init__(self, most_bytes: int) -> None:
        self._messages: deque[Message] = deque()
        self._most_bytes, self._bytes = most_bytes, 0
        self._change = threading.Condition()

    def put(self, message: Message) -> None:
        """Add a message; never waits for the reader."""
        with self._change:
            self._messages.append(message)
            self._bytes += len(message[-1])
            while self._bytes > self._most_bytes and len(self._messages) > 1:
                self._bytes -= len(self._messages.popleft()[-1])
            self._change.notify()

    def take(self) -> Message:
        """Return the oldest message; waits for one."""
        with self._change:
            self._change.wait_for(lambda: self._messages)
            message = self._messages.popleft()
            self._bytes -= len(message[-1])
            return message


class Recorder:
    """Copies what PortAudio calls back with into the ring, as its first channel."""

    def __init__(self, ring: Ring, rate_hz: int, channels: int) -> None:
        self._ring, self._rate_hz, self._channels = ring, rate_hz, channels
        self._number = 0

    def heard(self, sound: Any, frames: int, times: Any, status: Any) -> None:
        """Take one block; PortAudio calls this from a thread of its own."""
        # The stream's clock may be the wall clock: only differences of its readings are used.
        age_s = times.currentTime - times.inputBufferAdcTime
        if not -1.0 < age_s < 60.0:  # a driver that does not know it
            age_s = frames / self._rate_hz
        start_s = time.monotonic() - age_s
        content = bytes(sound)
        if self._channels > 1:
            content = memoryview(content).cast("h")[:: self._channels].tobytes()
        # With blocks of the device's own size, what was lost was lost before the first sample.
        self._ring.put((SOUND, bool(status.input_overflow), self._number, start_s, content))
        self._number += frames

    def ended(self) -> None:
        """Note that PortAudio gives no more."""
        self._ring.put((FAILED, False, 0, 0.0, b"it has stopped; see that it is plugged in"))


def open_stream(
    name: str, rate_hz: int, may_differ: bool, buffer_s: float
) -> tuple[int, Ring, Any]:
    """Start recording; return (the rate in Hz, the ring that fills, PortAudio's stream).

    name: a part of the name, a number, or empty for the default. may_differ: take the device's
    own rate when it refuses rate_hz. Raises Refused.
    """
    sounddevice = _sounddevice()
    device = _device(sounddevice, name)
    own_hz = round(device["default_samplerate"])
    for hz in dict.fromkeys((rate_hz, own_hz) if may_differ else (rate_hz,)):
        # Most devices record one channel of theirs; those that do not give their first.
        for channels in dict.fromkeys((1, device["max_input_channels"])):
            ring = Ring(int(buffer_s * hz) * SAMPLE_BYTES)
            recorder = Recorder(ring, hz, channels)
            try:
                stream = sounddevice.RawInputStream(
                    samplerate=hz, device=device["index"], channels=channels, dtype="int16",
                    latency=LATENCY_S, callback=recorder.heard, finished_callback=recorder.ended,
                )  # fmt: skip
                stream.start()
                return hz, ring, stream
            except sounddevice.PortAudioError as error:
                code = error.args[1] if len(error.args) > 1 else None
                if code not in (_INVALID_CHANNELS, _INVALID_RATE):
                    raise Refused(_sentence(error, code)) from error
    remedy = f"; set microphone.rate_hz = {own_hz}" if own_hz != rate_hz else ""
    raise Refused(f"it does not record at {rate_hz} Hz{remedy}")


def _sounddevice() -> Any:
    try:
        return importlib.import_module("sounddevice")
    except ImportError as error:
        raise Refused(f"the package sounddevice is not usable: {error}") from error
    except OSError as error:
        problem = f"PortAudio is not usable ({error}); apt install libportaudio2"
        raise Refused(problem) from error


def _device(sounddevice: Any, name: str) -> Any:
    every = [d for d in sounddevice.query_devices() if d["max_input_channels"] > 0]
    if not every:
        raise Refused("no microphone is found; plug one in, or add the user to the group audio")
    wanted = int(name) if name.isdecimal() else name or None
    try:
        return sounddevice.query_devices(wanted, "input")
    except (ValueError, sounddevice.PortAudioError) as error:
        known = "; ".join(f"{d['index']} {d['name']}" for d in every[:DEVICES_TOLD])
        more = f"; and {len(every) - DEVICES_TOLD} more" if len(every) > DEVICES_TOLD else ""
        if wanted is None:
            problem = "there is no default microphone"
        elif str(error).startswith("Multiple"):
            problem = "several microphones have this name; give more of it, or the number"
        else:
            problem = "there is no such microphone"
        raise Refused(f"{problem}: {known}{more}") from error


def _sentence(error: Exception, code: int | None) -> str:
    if code == _UNAVAILABLE:
        return "it is busy or gone; end the program that uses it, or plug it in"
    return f"it cannot be opened: {error}"


def write_all(ring: Ring, pipe: Any) -> None:
    """Write what is heard until it ends. Raises BrokenPipeError when nobody reads."""
    kind = SOUND
    while kind == SOUND:
        kind = write(pipe, ring.take())


def write(pipe: Any, message: Message) -> bytes:
    """Write one message; return its kind."""
    kind, overflow, number, time_s, content = message
    pipe.write(HEADER.pack(kind, overflow, len(content), number, time_s) + content)
    pipe.flush()
    return kind


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Arguments: name, rate in Hz, `exact` or `any` rate, seconds of sound to keep."""
    _die_with_parent()
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a driver prints is no message
    name, rate_hz, rates, buffer_s = sys.argv[1:]
    try:
        hz, ring, _stream = open_stream(name, int(rate_hz), rates == "any", float(buffer_s))
        write(pipe, (OPENED, False, 0, 0.0, str(hz).encode()))
        write_all(ring, pipe)
    except BrokenPipeError:
        pass
    except Refused as error:
        write(pipe, (FAILED, False, 0, 0.0, str(error).encode()))
    os._exit(0)  # PortAudio's own ending may wait for a device that is gone


if __name__ == "__main__":
    main()
