"""A microphone through the real PortAudio, on ALSA's file plugin and on a real sound server."""

from __future__ import annotations

import ctypes.util
import fcntl
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from infi_edge.capture import microphone_child
from infi_edge.capture.address import open_source
from infi_edge.capture.microphone import Microphone
from infi_edge.capture.microphone_child import FAILED, SOUND, Recorder, Ring
from infi_edge.config import MicrophoneConfig, SourceConfig
from infi_edge.errors import ConfigError, SourceError
from infi_edge.preprocess import ImageSpec
from infi_edge.preprocess.audio import AudioSpec
from infi_edge.types import Sample
from tests.infi_edge.conftest import Refuses

PATIENCE_S = 60.0
SPEC = AudioSpec(window_ms=250, hop_ms=125)
WINDOW, HOP = 4000, 2000
PIECE = 3200
"""PortAudio reads so much at a time or a part of it: the tape holds whole pieces."""
ALSA = Path("/usr/share/alsa/alsa.conf")


class Tape:
    """An ALSA device that records what is put on it, as fast as it can, then waits for more."""

    def __init__(self, folder: Path) -> None:
        self._pipe, self._config = folder / "tape", folder / "asound.conf"
        os.mkfifo(self._pipe)
        self._descriptor = os.open(self._pipe, os.O_RDWR)  # so that its reader never waits to open
        fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, 1 << 20)
        self.plug()

    def plug(self) -> None:
        self._config.write_text(
            f"<{ALSA}>\npcm.infi-tape {{ type file slave.pcm null file /dev/null\n"
            f"infile {self._pipe} format raw }}\npcm.infi-tone {{ type null }}\n"
        )

    def unplug(self) -> None:
        self._config.write_text(f"<{ALSA}>\npcm.infi-other {{ type null }}\n")

    def put(self, samples: np.ndarray) -> None:
        """At most 2**19 samples that are not read yet."""
        os.write(self._descriptor, samples.astype(np.uint16).tobytes())

    def wait_until_read(self) -> None:
        until_s = time.monotonic() + PATIENCE_S
        while any(fcntl.ioctl(self._descriptor, termios.FIONREAD, b"\0" * 4)):
            assert time.monotonic() < until_s
            time.sleep(0.02)

    @property
    def config(self) -> str:
        return str(self._config)

    def close(self) -> None:
        os.close(self._descriptor)


def need_portaudio() -> None:
    # Not imported here: that would open PortAudio in the process of the tests.
    if importlib.util.find_spec("sounddevice") is None:
        pytest.skip("sounddevice is not here: pip install 'infi-edge[microphone]'")
    if ctypes.util.find_library("portaudio") is None:
        pytest.skip("PortAudio is not here: apt install libportaudio2")


@pytest.fixture
def tape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tape]:
    need_portaudio()
    if not ALSA.is_file():
        pytest.skip("ALSA's configuration is not here: apt install libasound2-data")
    tape = Tape(tmp_path)
    monkeypatch.setenv("ALSA_CONFIG_PATH", tape.config)
    yield tape
    tape.close()


def microphone(
    address: str = "microphone:infi-tape", must_open: bool = False, stall_s: float = 30.0,
    rate_hz: int | None = None, buffer_s: float = 10.0,
) -> Microphone:  # fmt: skip
    settings = MicrophoneConfig(rate_hz=rate_hz, buffer_s=buffer_s)
    config = SourceConfig(
        address=address, filter="f", model="m", stall_s=stall_s, microphone=settings
    )
    source = open_source("mic", config, SPEC, must_open)
    assert isinstance(source, Microphone)
    return source


Record = Callable[..., tuple[Microphone, Iterator[Sample | None]]]


@pytest.fixture
def record() -> Iterator[Record]:
    """Begin to iterate a microphone; it is let go after the test, however that ends."""
    begun = []

    def begin(*arguments: Any, **settings: Any) -> tuple[Microphone, Iterator[Sample | None]]:
        source = microphone(*arguments, **settings)
        begun.append(source.samples())
        return source, begun[-1]

    yield begin
    for items in begun:
        items.close()


def wait_for(items: Iterator[Sample | None], met: Callable[[list[Sample]], bool]) -> list[Sample]:
    """Iterate until the condition on the samples so far is met; return them."""
    until_s = time.monotonic() + PATIENCE_S
    found: list[Sample] = []
    while not met(found):
        assert time.monotonic() < until_s, f"waited in vain; got {len(found)} samples"
        item = next(items)
        if item is not None:
            found.append(item)
    return found


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def numbers(sample: Sample) -> np.ndarray:
    return np.rint(sample.data * 32768).astype(np.int64) & 0xFFFF


def is_whole(sample: Sample) -> bool:
    return bool((np.diff(numbers(sample)) % 65536 == 1).all())


def test_windows_carry_the_very_samples_in_order(record: Record, tape: Tape) -> None:
    sound = np.random.default_rng(0).integers(0, 1 << 16, 20 * PIECE)
    tape.put(sound)
    source, items = record(must_open=True)
    count = (len(sound) - WINDOW) // HOP + 1
    found = wait_for(items, lambda found: len(found) == count)
    for index, sample in enumerate(found):
        assert (sample.index, sample.source, sample.data.dtype) == (index, "mic", np.float32)
        start = index * HOP
        np.testing.assert_array_equal(numbers(sample), sound[start : start + WINDOW])
    assert not source.health.counts
    assert source.health.state == "live"
    source.close()
    assert next(items, None) is None
    assert source.health.state == "ended"


def test_a_busy_gate_loses_the_oldest_sound_and_no_window_is_spliced(
    record: Record, tape: Tape
) -> None:
    source, items = record(buffer_s=0.5)
    tape.put(np.arange(5 * PIECE) & 0xFFFF)
    wait_for(items, lambda found: len(found) > 0)
    before = source.health.counts["overflow"]
    tape.put(np.arange(5 * PIECE, 150 * PIECE) & 0xFFFF)
    tape.wait_until_read()  # the gate is busy
    health = source.health
    found = wait_for(items, lambda _: health.counts["overflow"] > before)
    found += wait_for(items, lambda found: len(found) > 0)
    assert all(is_whole(sample) for sample in found)
    assert health.counts["gap"] >= health.counts["overflow"]
    assert re.search(r"\d\.\d s of sound were lost: what reads it was busy", health.sentence)


def test_a_microphone_that_vanishes_is_opened_again_when_it_is_back(
    record: Record, tape: Tape
) -> None:
    source, items = record()
    health = source.health
    tape.put(np.arange(2 * PIECE))
    wait_for(items, lambda found: len(found) > 0)
    tape.wait_until_read()
    tape.unplug()
    (child,) = children()
    child.kill()
    wait_for(items, lambda _: health.counts["open"] >= 1)
    assert health.state == "failing"
    assert "no such microphone" in health.sentence
    assert "infi-other" in health.sentence
    tape.plug()
    tape.put(np.arange(2 * PIECE))
    (sample, *_) = wait_for(items, lambda found: len(found) > 0)
    assert is_whole(sample)
    assert sample.index > 0
    assert health.state == "live"
    assert (health.counts["read"], health.counts["reconnects"], health.counts["gap"]) == (1, 1, 1)


def test_a_microphone_that_hangs_is_ended_and_opened_again(record: Record, tape: Tape) -> None:
    source, items = record(stall_s=1.5)
    health = source.health
    wait_for(items, lambda _: len(children()) == 1 and health.counts["stall"] == 0)
    (child,) = children()
    wait_for(items, lambda _: health.counts["stall"] >= 1)
    tape.put(np.arange(4 * PIECE))
    wait_for(items, lambda found: len(found) > 0)
    assert not child.is_running()
    assert health.state == "live"


def test_faults_leave_no_process_thread_or_descriptor(record: Record, tape: Tape) -> None:
    before = (len(children()), threading.active_count(), descriptors())
    source, items = record()
    for count in (1, 2):
        tape.put(np.arange(4 * PIECE))
        wait_for(items, lambda found: len(found) > 0)
        children()[0].kill()
        wait_for(items, lambda _, count=count: source.health.counts["read"] == count)
    tape.put(np.arange(4 * PIECE))
    wait_for(items, lambda found: len(found) > 0)
    items.close()
    assert (len(children()), threading.active_count(), descriptors()) == before


def test_close_from_another_thread_ends_it(tape: Tape) -> None:
    source = microphone()
    timer = threading.Timer(0.5, source.close)
    timer.start()
    assert not [sample for sample in source.samples() if sample is not None]
    timer.join()
    assert source.health.state == "ended"
    assert not children()


def test_the_child_dies_with_its_parent(tape: Tape) -> None:
    script = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=subprocess.PIPE)\n"
        "child.stdout.read(1)\n"  # it records, and waits for sound
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    arguments = [microphone_child.__file__, "infi-tape", "16000", "exact", "10"]
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    _, alive = psutil.wait_procs([child], timeout=PATIENCE_S)
    assert not alive


def test_a_muted_microphone_is_noticed_once(record: Record, tape: Tape) -> None:
    source, items = record(buffer_s=60.0)
    tape.put(np.zeros(60 * PIECE))  # 12 s
    found = wait_for(items, lambda found: len(found) == 95)
    assert not found[-1].data.any()
    assert source.health.counts == {"silent": 1}
    assert "muted" in source.health.sentence


def test_a_wrong_name_is_refused_with_the_names_there_are(tape: Tape, refuses: Refuses) -> None:
    source = microphone("microphone:no such thing", must_open=True)
    with refuses(SourceError, "microphone:no such thing: there is no such microphone: .*infi-tape"):
        next(source.samples())
    assert not children()


def test_a_name_of_several_is_refused(tape: Tape, refuses: Refuses) -> None:
    with refuses(SourceError, "several microphones have this name.*infi-tape; . infi-tone"):
        next(microphone("microphone:infi-t", must_open=True).samples())


def test_a_number_out_of_range_is_refused(tape: Tape, refuses: Refuses) -> None:
    with refuses(SourceError, "there is no such microphone"):
        next(microphone("microphone:999", must_open=True).samples())


def test_the_default_microphone_needs_no_name(record: Record, tape: Tape) -> None:
    tape.put(np.arange(4 * PIECE))
    _, items = record("microphone:", must_open=True)
    try:
        wait_for(items, lambda found: len(found) > 0)
    except SourceError:
        pytest.skip("this machine has another default microphone")


def test_what_is_no_sound_is_refused(refuses: Refuses) -> None:
    config = SourceConfig(address="microphone:", filter="f", model="m")
    with refuses(ConfigError, "other inputs than the filter reads"):
        open_source("mic", config, ImageSpec(64, 48))
    with refuses(ConfigError, r"microphone.rate_hz is 96000; it must be 8000 to 48000"):
        microphone(rate_hz=96_000)


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, refuses: Refuses) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with refuses(ConfigError, r"needs the package sounddevice: pip install .*\[microphone\]"):
        microphone()


STANDIN = """
import importlib.util, sys, threading
place = importlib.util.spec_from_file_location("real_sounddevice", {real!r})
real = importlib.util.module_from_spec(place)
sys.modules["real_sounddevice"] = real
place.loader.exec_module(real)
from real_sounddevice import *
from real_sounddevice import PortAudioError

def RawInputStream(samplerate, channels, **settings):
    if {rate_hz} not in (None, samplerate):
        raise PortAudioError("Invalid sample rate", -9997)
    if {stops}:
        threading.Timer(0.3, settings["finished_callback"]).start()
    return real.RawInputStream(samplerate=samplerate, channels=channels, **settings)
"""
StandIn = Callable[..., None]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The real PortAudio, with the one fault that no device here has."""

    def fault(rate_hz: int | None = None, stops: bool = False) -> None:
        """rate_hz: the only one it records at. stops: PortAudio says that the stream is over."""
        real = importlib.util.find_spec("sounddevice")
        assert real is not None
        content = STANDIN.format(real=real.origin, rate_hz=rate_hz, stops=stops)
        (tmp_path / "sounddevice.py").write_text(content)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return fault


def test_a_stream_that_ends_is_told_and_opened_again(
    record: Record, tape: Tape, stand_in: StandIn
) -> None:
    stand_in(stops=True)
    source, items = record()
    wait_for(items, lambda _: source.health.counts["open"] > 0)
    assert "microphone:infi-tape: it has stopped; see that it is plugged in" in (
        source.health.sentence
    )
    wait_for(items, lambda _: source.health.counts["open"] > 1)


def test_a_device_of_another_rate_is_resampled(
    record: Record, tape: Tape, stand_in: StandIn
) -> None:
    pytest.importorskip("soxr")
    stand_in(rate_hz=44_100)
    tone = 8000 * np.sin(2 * np.pi * 500 * np.arange(20 * 8820) / 44_100)
    tape.put(np.rint(tone).astype(np.int64) & 0xFFFF)
    _, items = record(must_open=True)
    *_, sample = wait_for(items, lambda found: len(found) == 5)
    spectrum = np.abs(np.fft.rfft(sample.data))
    assert sample.data.shape == (WINDOW,)
    assert np.argmax(spectrum) == 500 * WINDOW // 16_000


def test_a_rate_that_was_asked_for_and_is_refused_is_told(
    tape: Tape, stand_in: StandIn, refuses: Refuses
) -> None:
    stand_in(rate_hz=44_100)
    with refuses(SourceError, "does not record at 48000 Hz; set microphone.rate_hz = 44100"):
        next(microphone(rate_hz=48_000, must_open=True).samples())


def test_a_missing_portaudio_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    with refuses(SourceError, "PortAudio library not found.*apt install libportaudio2"):
        next(microphone(must_open=True).samples())


def heard(recorder: Recorder, content: bytes, frames: int, overflow: bool = False) -> None:
    times = SimpleNamespace(currentTime=8.0, inputBufferAdcTime=7.5)
    recorder.heard(content, frames, times, SimpleNamespace(input_overflow=overflow))


def test_portaudios_overflow_flag_and_capture_time_are_passed_on() -> None:
    ring = Ring(1000)
    recorder = Recorder(ring, 16_000, 1)
    heard(recorder, b"\1\0\2\0", 2)
    heard(recorder, b"\3\0\4\0", 2, overflow=True)
    recorder.ended()
    first, second, last = ring.take(), ring.take(), ring.take()
    assert [m[:3] for m in (first, second)] == [(SOUND, False, 0), (SOUND, True, 2)]
    assert time.monotonic() - first[3] == pytest.approx(0.5, abs=0.4)
    assert last[0] == FAILED


def test_of_several_channels_the_first_is_taken() -> None:
    ring = Ring(1000)
    heard(Recorder(ring, 16_000, 2), np.array([1, -9, 2, -9, 3, -9], np.int16).tobytes(), 3)
    assert np.frombuffer(ring.take()[-1], np.int16).tolist() == [1, 2, 3]


def test_the_ring_is_bounded_and_drops_the_oldest() -> None:
    ring = Ring(40)
    recorder = Recorder(ring, 16_000, 1)
    for _ in range(10):
        heard(recorder, bytes(10), 5)
    assert [ring.take()[2] for _ in range(4)] == [30, 35, 40, 45]


def test_the_child_imports_no_numpy(record: Record, tape: Tape) -> None:
    tape.put(np.arange(2 * PIECE))
    _, items = record(must_open=True)
    wait_for(items, lambda found: len(found) > 0)
    (child,) = children()
    assert not [file.path for file in child.memory_maps() if "numpy" in file.path]
    assert microphone_child.__file__ in child.cmdline()


class SoundServer:
    """A real PulseAudio with one microphone that hears a tone, in real time."""

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "socket"
        self._environment = {**os.environ, "HOME": str(folder), "XDG_RUNTIME_DIR": str(folder)}
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["pulseaudio", "-n", "--daemonize=no", "--use-pid-file=no", "--exit-idle-time=-1",
             "-L", f"module-native-protocol-unix socket={self._socket} auth-anonymous=1",
             "-L", "module-sine-source frequency=500 rate=16000"],
            env=self._environment, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until_s = time.monotonic() + PATIENCE_S
        while not self._socket.exists():
            assert time.monotonic() < until_s
            assert self._process.poll() is None
            time.sleep(0.05)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._socket.unlink(missing_ok=True)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SoundServer]:
    need_portaudio()
    if shutil.which("pulseaudio") is None:
        pytest.skip("no sound server to record from: apt install pulseaudio")
    if not list(Path("/usr/lib").glob("*/alsa-lib/libasound_module_pcm_pulse.so")):
        pytest.skip("ALSA cannot reach the sound server: apt install libasound2-plugins")
    with tempfile.TemporaryDirectory() as name:  # short: the path of a socket has 107 bytes
        folder = Path(name)
        config = folder / "asound.conf"
        config.write_text(
            f'<{ALSA}>\npcm.infi-desk {{ type pulse server "unix:{folder}/socket" }}\n'
        )
        monkeypatch.setenv("ALSA_CONFIG_PATH", str(config))
        monkeypatch.setenv("HOME", name)
        server = SoundServer(folder)
        yield server
        server.kill()


@pytest.mark.slow
def test_a_sound_server_that_is_killed_is_recorded_from_again(
    record: Record, server: SoundServer
) -> None:
    source, items = record("microphone:infi-desk", stall_s=4.0)
    health = source.health
    before = wait_for(items, lambda found: len(found) >= 20)
    ages_s = [time.monotonic() - before[-1].time_s]
    server.kill()
    wait_for(items, lambda _: health.counts["stall"] + health.counts["read"] > 0)
    wait_for(items, lambda _: health.counts["open"] > 0)
    server.start()
    after = wait_for(items, lambda found: len(found) >= 20)
    ages_s.append(time.monotonic() - after[-1].time_s)
    for found in (before, after):
        # At first the sound server does not know its own latency.
        hops_s = np.diff([sample.time_s for sample in found[5:]])
        np.testing.assert_allclose(hops_s, HOP / 16_000, atol=0.05)
        assert all(np.argmax(np.abs(np.fft.rfft(s.data))) == 125 for s in found)  # 500 Hz
    assert after[0].time_s > before[-1].time_s
    assert all(-1 < age_s < 5 for age_s in ages_s)
    assert health.counts["reconnects"] == 1
