"""A recording plays at its recorded speed, or as fast as it is taken."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infi_edge.capture.playback import Playback, open_playback
from infi_edge.capture.source import TICK_S
from infi_edge.config import SourceConfig
from infi_edge.errors import ConfigError, SourceError
from infi_edge.preprocess import ImageSpec
from infi_edge.types import Sample


class Times:
    """A recording of samples at given times."""

    name, rate_hz = "times", 1.0

    def __init__(self, *times_s: float) -> None:
        self.times_s, self.count = times_s, len(times_s)

    def samples(self, first: int = 0, last: int | None = None) -> Iterator[Sample]:
        for index, time_s in list(enumerate(self.times_s))[first:last]:
            yield Sample(index, time_s, index, "file")

    def content_hash(self) -> str:
        return ""


def played(playback: Playback) -> list[Sample]:
    return [sample for sample in playback.samples() if sample is not None]


def test_inputs_come_in_order_at_their_times():
    playback = Playback("yard", Times(5.0, 5.1, 5.1, 5.4), fast=False)
    begun_s = time.monotonic()
    for sample in playback.samples():
        if sample is None:
            continue
        assert playback.health.state == "live"
        assert playback.now_s() >= sample.time_s
        assert time.monotonic() - begun_s >= sample.time_s - 5.0 - 0.01
        assert sample.source == "yard"
    assert time.monotonic() - begun_s >= 0.39
    assert playback.health.state == "ended"


def test_a_slow_gate_gets_late_and_is_told_by_how_much():
    playback, ages_s = Playback("yard", Times(*np.arange(10) * 0.02), fast=False), []
    for sample in playback.samples():
        assert sample is not None
        ages_s.append(playback.now_s() - sample.time_s)
        time.sleep(0.05)
    assert len(ages_s) == 10
    assert ages_s[-1] > 0.2
    assert ages_s == sorted(ages_s)


def test_a_long_pause_yields_nothing_at_least_every_tick():
    playback = Playback("yard", Times(0.0, 1.6), fast=False)
    before_s, longest_s, nothings = time.monotonic(), 0.0, 0
    for sample in playback.samples():
        longest_s = max(longest_s, time.monotonic() - before_s)
        before_s, nothings = time.monotonic(), nothings + (sample is None)
    assert nothings >= 2
    assert longest_s < 2 * TICK_S + 1.0


def test_closing_ends_a_long_wait_at_once():
    playback = Playback("yard", Times(0.0, 3600.0), fast=False)
    found: list[Sample] = []
    thread = threading.Thread(target=lambda: found.extend(played(playback)))
    thread.start()
    while not found and playback.health.state != "live":
        time.sleep(0.01)
    playback.close()
    thread.join(10)
    assert not thread.is_alive()
    assert [sample.index for sample in found] == [0]
    assert playback.health.state == "ended"


def test_fast_does_not_wait_and_is_never_late():
    playback = Playback("yard", Times(*np.arange(1000) * 3600.0), fast=True)
    ages_s = [playback.now_s() - sample.time_s for sample in playback.samples() if sample]
    assert len(ages_s) == 1000
    assert set(ages_s) == {0.0}


def test_wall_clock_jumps_change_nothing(monkeypatch):
    wall_s = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr(time, "time", lambda: float(next(wall_s)))
    begun_s = time.monotonic()
    assert len(played(Playback("yard", Times(0.0, 0.1, 0.2), fast=False))) == 3
    assert 0.19 <= time.monotonic() - begun_s < 10


def config(path: Path, **more: Any) -> SourceConfig:
    return SourceConfig(address=str(path), filter="f", model="m", **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(10):
        (tmp_path / f"{index}.jpg").write_bytes(bytes([index]))
    return tmp_path


def test_a_part_is_played_with_its_own_times(folder):
    settings = config(folder, start=0.5, end=0.8, rate_hz=4.0, fast=True)
    samples = played(open_playback("yard", settings, ImageSpec()))
    assert [(s.index, s.time_s) for s in samples] == [(5, 1.25), (6, 1.5), (7, 1.75)]


def test_a_part_from_the_middle_begins_at_once(folder):
    settings = config(folder, start=0.9, rate_hz=0.001)
    begun_s = time.monotonic()
    assert len(played(open_playback("yard", settings, ImageSpec()))) == 1
    assert time.monotonic() - begun_s < 10


def test_a_recording_that_is_not_there_or_a_part_without_input_is_refused(folder, refuses):
    with refuses(SourceError, "does not exist"):
        open_playback("yard", config(folder / "absent"), ImageSpec())
    with refuses(ConfigError, "no input between"):
        open_playback("yard", config(folder, start=0.5, end=0.51), ImageSpec())


def test_a_bad_input_in_the_middle_is_an_error_that_names_it(folder, refuses):
    (folder / "5.png").write_bytes(b"no picture")
    playback = open_playback("yard", config(folder, fast=True), ImageSpec())
    with refuses(SourceError, "5.png is not an image"):
        played(playback)


def test_a_clip_left_in_the_middle_holds_no_file(toy):
    spec, folder = ImageSpec(), f"/proc/{os.getpid()}/fd"
    if not os.path.isdir(folder):
        pytest.skip("no /proc here")
    played(open_playback("yard", config(toy / "toy.avi", fast=True, end=0.1), spec))
    before = len(os.listdir(folder))
    for _ in range(3):
        stream = open_playback("yard", config(toy / "toy.avi", fast=True), spec).samples()
        assert next(stream) is not None
        stream.close()
    gc.collect()
    assert len(os.listdir(folder)) <= before
