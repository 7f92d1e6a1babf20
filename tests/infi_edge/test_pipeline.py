"""One source and its gate in a running daemon of this process: what is kept, told, left behind."""

from __future__ import annotations

import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from infi_edge import pipeline
from infi_edge.capture.address import register_source
from infi_edge.capture.source import Health
from infi_edge.config import SourceConfig, load_config
from infi_edge.daemon import Daemon
from infi_edge.errors import ConfigError, InfiEdgeError
from infi_edge.pipeline import Pipeline
from infi_edge.policy import Knobs
from infi_edge.preprocess import ImageSpec, Spec
from infi_edge.status import SourceStatus
from infi_edge.types import Sample
from tests.daemon_run import (
    Tables,
    a_source,
    prepare,
    until,
    write_config,
    write_filter,
    write_rows,
)

SCRIPTS: dict[str, Fed] = {}


class Fed:
    """`fed:`: a live source whose inputs come from the test, with the times it says."""

    def __init__(self) -> None:
        self.health = Health("yard")
        self.name = "yard"
        self.taken = 0
        self._inputs: list[tuple[Any, float]] = []
        self._closing = threading.Event()
        self._time_s = 0.0

    def feed(self, data: Any, time_s: float) -> None:
        """Give one input, and wait until it was answered."""
        self.feed_all([(data, time_s)])

    def feed_all(self, inputs: list[tuple[Any, float]]) -> None:
        """Give several, one right after the other."""
        self._inputs += inputs
        until(lambda: self.taken == len(self._inputs))

    def samples(self) -> Iterator[Sample | None]:
        self.health.live()
        while not self._closing.is_set():
            if self.taken < len(self._inputs):
                data, self._time_s = self._inputs[self.taken]
                yield Sample(data, self._time_s, self.taken, self.name)
                self.taken += 1  # when it is asked for the next one
            else:
                self._closing.wait(0.002)
                yield None

    def now_s(self) -> float:
        return self._time_s

    def close(self) -> None:
        self._closing.set()


def _open_fed(name: str, config: SourceConfig, spec: Spec, must_open: bool) -> Fed:
    """Opened anew, it is another one: the daemon also opens a source to check its address."""
    SCRIPTS[name] = Fed()
    return SCRIPTS[name]


register_source("fed", _open_fed)


class Here:
    """A daemon that runs in a thread of this process."""

    def __init__(self, folder: Path, tables: Tables) -> None:
        path = write_config(folder, {k: v for k, v in tables.items() if k != "web"})
        self.daemon = Daemon(load_config(path), path)
        self.error: InfiEdgeError | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        until(lambda: "yard" in self.daemon.pipelines or not self.thread.is_alive())

    def _run(self) -> None:
        try:
            self.daemon.run()
        except InfiEdgeError as error:
            self.error = error

    @property
    def pipeline(self) -> Pipeline:
        return self.daemon.pipelines["yard"]

    @property
    def source(self) -> SourceStatus:
        return self.pipeline.status

    @property
    def fed(self) -> Fed:
        found = until(lambda: self.pipeline._source)
        assert isinstance(found, Fed)
        return found

    def wait(self) -> None:
        self.thread.join(30)
        assert not self.thread.is_alive()

    def reload(self, folder: Path, tables: Tables) -> None:
        reloads = self.daemon.status().reloads
        count = reloads["done"]
        write_config(folder, {k: v for k, v in tables.items() if k != "web"})
        self.daemon.request_reload()
        until(lambda: reloads["done"] > count)


Run = Callable[[Tables], Here]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run a configuration here; it is stopped at the end, and leaves nothing behind."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "daemon_models", raising=False)
    with nothing_left_behind():
        started: list[Here] = []

        def start(tables: Tables) -> Here:
            started.append(Here(tmp_path, tables))
            return started[-1]

        yield start
        for here in started:
            here.daemon.stop()
            here.wait()


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Afterwards there are as many threads and open files as before."""

    def now() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    before = now()
    yield
    until(lambda: now() <= before, f"{before} threads and files again; {threading.enumerate()}")


def rows(folder: Path, address: str = "fed:", **settings: Any) -> Tables:
    """A configuration with one source of rows of numbers."""
    tables = prepare(folder)
    tables["plugins"] = []
    tables["sources"] = {"yard": a_source(address, **settings)}
    return tables


def row(level: int) -> np.ndarray:
    return np.full(8, level, np.float32)


def pictures(folder: Path, address: str = "fed:", **settings: Any) -> Tables:
    """A configuration with one source of pictures."""
    tables = rows(folder, address, **settings)
    tables["models"]["m"]["path"] = "daemon_models:bright"
    write_filter(folder / "m.infi", "daemon_models:bright", spec=ImageSpec(64, 48))
    return tables


def picture(spot: bool = False, shade: int = 60) -> np.ndarray:
    """A yard, with a bright spot in its upper left quarter."""
    slope = np.linspace(0, 60, 160, dtype=np.uint8)[None, :, None]
    frame = np.full((120, 160, 3), shade, np.uint8) + slope
    if spot:
        cv2.rectangle(frame, (20, 15), (50, 45), (240, 240, 240), -1)
    return frame


UPPER_LEFT = [[[0.0, 0.0], [0.5, 0.0], [0.5, 0.5], [0.0, 0.5]]]


def results(folder: Path) -> list[Tables]:
    import json

    text = (folder / "results.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if "action" in line]


def test_a_mask_is_laid_on_what_filter_and_model_see(tmp_path: Path, run: Run) -> None:
    seen = []
    for masks in ([], UPPER_LEFT):
        here = run(pictures(tmp_path, masks=masks, scene_change=False))
        for i in range(4):
            here.fed.feed(picture(spot=i % 2 == 1), i / 10)
        here.daemon.stop()
        here.wait()
        seen.append([(line["action"], line["value"]) for line in results(tmp_path)])
        (tmp_path / "results.jsonl").unlink()
    assert seen[0] == [("infer", 0), ("infer", 1), ("reuse", 0), ("reuse", 1)]
    assert seen[1] == [("infer", 0), *[("reuse", 0)] * 3]


def test_other_masks_at_a_reload_start_with_no_answers(tmp_path: Path, run: Run) -> None:
    tables = pictures(tmp_path, scene_change=False)
    here = run(tables)
    here.fed.feed(picture(), 0.0)
    here.fed.feed(picture(), 0.1)
    tables["sources"]["yard"]["masks"] = UPPER_LEFT
    here.reload(tmp_path, tables)
    here.fed.feed(picture(), 0.2)
    here.fed.feed(picture(spot=True), 0.3)
    assert here.source.counts["infer"] == 2
    assert here.source.counts["reuse"] == 2


def test_a_snapshot_has_the_pictures_from_before(tmp_path: Path, run: Run) -> None:
    tables = pictures(tmp_path, pre_roll_s=0.55, scene_change=False)
    tables["sinks"]["kept"] = {"kind": "snapshots", "folder": str(tmp_path / "kept")}
    # One that the heartbeat has inferred just before must not empty what is kept.
    tables["sources"]["yard"]["heartbeat_s"] = 0.8
    here = run(tables)
    for i in range(10):
        here.fed.feed(picture(shade=60 + i), i / 10)
    here.fed.feed(picture(spot=True), 1.0)
    until(lambda: len(list((tmp_path / "kept").glob("*/*.jpg"))) == 6)
    files = sorted((tmp_path / "kept").glob("*/*.jpg"), key=lambda p: (len(p.name), p.name))
    shades = [round(float(cv2.imread(str(file))[100, 5].mean())) for file in files]
    assert cv2.imread(str(files[0])).max() > 200  # the event's own
    assert shades[1:] == pytest.approx([66, 67, 68, 69, 70], abs=2.0)


def test_a_result_brings_what_was_not_given_yet(tmp_path: Path, run: Run) -> None:
    tables = rows(tmp_path, pre_roll_s=10.0)
    here = run(tables)
    given: list[list[int]] = []
    put = here.pipeline._outlets[0].put_result
    here.pipeline._outlets[0].put_result = lambda result, sample: (  # type: ignore[method-assign]
        given.append([s.index for s in result.before]),
        put(result, sample),
    )[0]
    for i, level in enumerate((0, 0, 0, 1, 0, 0, 2)):
        here.fed.feed(row(level), float(i))
    # The gate opens at 3 and 6; at 3 something wanted begins, too, and at 6 again.
    assert given[3] == [0, 1, 2]
    assert given[6] == [0, 1, 2, 3, 4, 5]
    assert [len(before) for before in given] == [0, 0, 0, 3, 0, 0, 6]


def test_the_light_goes_out_inputs_pass_and_then_it_is_over(tmp_path: Path, run: Run) -> None:
    fourcc = cv2.VideoWriter_fourcc(*"MJPG")
    video = cv2.VideoWriter(str(tmp_path / "yard.avi"), fourcc, 10, (160, 120))
    for i in range(100):
        video.write(picture(shade=100 if i < 40 else 10))
    video.release()
    here = run(pictures(tmp_path, "yard.avi", fast=True))
    here.wait()
    lines = results(tmp_path)
    changing = [line["index"] for line in lines if line.get("scene_change")]
    assert changing == list(range(changing[0], changing[0] + len(changing)))
    assert changing[0] == 40
    assert 15 <= len(changing) <= 30  # the two seconds that it takes to settle
    assert all(lines[i]["action"] == "infer" for i in changing)
    assert {line["action"] for line in lines[changing[-1] + 1 :]} == {"reuse"}
    assert here.source.counts["scene_change"] == 1
    assert not here.source.scene_change


def test_the_wall_clock_jumps_and_only_the_times_of_day_change(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, shift_s = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + shift_s[0])
    tables = rows(tmp_path, heartbeat_s=100.0, events={"end_s": 1000.0})
    tables["sources"]["yard"]["cache"] = {"max_age_s": 1000.0}
    here = run(tables)
    for i, days in enumerate((0, 1, -1, 0, 1, -1, 0)):
        shift_s[0] = days * 86400.0
        for j in range(3):
            here.fed.feed(row(1), 3.0 * i + j)
    assert here.source.event_active
    here.daemon.stop()
    here.wait()
    assert here.source.errors == {}
    lines = results(tmp_path)
    assert [line["action"] for line in lines] == ["infer", *["reuse"] * 20]
    assert [line["time_s"] for line in lines] == [3.0 * i + j for i in range(7) for j in range(3)]
    ages = [line["age_s"] for line in lines[1:]]
    assert ages == [line["time_s"] for line in lines[1:]]
    days_told = [line["at"][:10] for line in lines[::3]]
    assert len(set(days_told)) == 3
    assert here.source.history[0].inputs <= 6
    assert sum(minute.inputs for minute in here.source.history) == 21
    import json

    events = [json.loads(s) for s in (tmp_path / "results.jsonl").read_text().splitlines()]
    kinds = [line["event"] for line in events if "event" in line]
    assert kinds == ["begun", "ended"]  # ended by the stop
    assert here.daemon.status().uptime_s < 1000


def test_a_clock_that_is_set_back_begins_a_new_minute(tmp_path: Path, run: Run) -> None:
    here = run(rows(tmp_path))
    minute = here.pipeline._minute
    for at_s, count in ((1e9, 1), (1e9 + 70, 2), (1e9 + 50, 2), (1e9 - 86400, 3), (1e9 + 70, 4)):
        minute(at_s)
        assert len(here.source.history) == count


LEVELS = [0, 1, 0, 2, 3, 3, 0, 1] * 10


@pytest.mark.parametrize("model", ["level", "thirds"])
def test_nothing_is_left_after_five_daemons(tmp_path: Path, run: Run, model: str) -> None:
    write_rows(tmp_path / "rows.npy", LEVELS)
    for _ in range(5):
        with nothing_left_behind():
            tables = rows(tmp_path, "rows.npy", fast=True)
            tables["models"]["m"] = {"path": f"daemon_models:{model}", "allow_other": True}
            tables["sources"]["yard"]["cache"] = {"snapshot": True}
            tables["sinks"]["kept"] = {"kind": "snapshots", "folder": str(tmp_path / "kept")}
            here = run(tables)
            here.wait()
            assert not here.daemon.stuck


def test_nothing_is_left_after_a_start_that_fails(tmp_path: Path, run: Run) -> None:
    write_rows(tmp_path / "rows.npy", LEVELS)
    with nothing_left_behind():
        tables = rows(tmp_path, "rows.npy", fast=True)
        tables["sinks"]["more"] = {"kind": "jsonl", "path": "/proc/no-such-file"}
        here = run(tables)
        here.wait()
        assert isinstance(here.error, ConfigError)
    with nothing_left_behind():
        tables["models"]["n"] = {"path": "daemon_models:absent"}
        tables["sources"]["more"] = a_source("rows.npy", "m") | {"model": "n"}
        with pytest.raises(ConfigError):
            Daemon(load_config(write_config(tmp_path, tables)))


@pytest.fixture
def soon_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infi_edge.quiet.LEAST_S", 5.0)


def alarms(caplog: pytest.LogCaptureFixture) -> int:
    return sum("everything filtered" in record.message for record in caplog.records)


def test_a_source_that_filters_everything_for_longer_than_ever_is_told(
    tmp_path: Path, run: Run, soon_quiet: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "infi_edge")
    here = run(rows(tmp_path))
    here.fed.feed(row(0), 0.0)
    for i in range(1, 5):
        here.fed.feed(row(0), float(i))
    assert not here.source.quiet_alarm
    for i in range(5, 20):
        here.fed.feed(row(0), float(i))
    assert here.source.quiet_alarm
    assert here.source.quiet_s == 19
    assert alarms(caplog) == 1
    here.fed.feed(row(1), 20.0)
    assert not here.source.quiet_alarm
    assert here.source.longest_quiet_s == 20
    for i in range(21, 40):
        here.fed.feed(row(0), float(i))
    assert not here.source.quiet_alarm  # it was as quiet before
    assert alarms(caplog) == 1


@pytest.mark.parametrize(
    ("knobs", "caps"),
    [
        (Knobs(reuse_threshold=0.5, max_since_inference=3), {}),
        (Knobs(reuse_threshold=1.0, max_since_inference=2, deliver="last"), {}),
        (Knobs(reuse_threshold=0.5), {"heartbeat_s": 2.5}),
        (Knobs(reuse_threshold=0.5), {"max_consecutive_filtered": 2}),
    ],
)
def test_forced_inferences_that_show_nothing_new_do_not_end_the_quiet(
    tmp_path: Path,
    run: Run,
    soon_quiet: None,
    caplog: pytest.LogCaptureFixture,
    knobs: Knobs,
    caps: Tables,
) -> None:
    tables = rows(tmp_path, **caps)
    write_filter(tmp_path / "m.infi", knobs=knobs)
    here = run(tables)
    for i in range(10):
        here.fed.feed(row(0), float(i))
    assert here.source.counts["infer"] >= 3
    assert here.source.quiet_alarm
    assert alarms(caplog) == 1
    for i in range(10, 14):  # a forced one that shows something wanted
        here.fed.feed(row(1), float(i))
    assert not here.source.quiet_alarm


def test_the_quiet_of_the_training_data_counts(
    tmp_path: Path, run: Run, soon_quiet: None, caplog: pytest.LogCaptureFixture
) -> None:
    tables = rows(tmp_path)
    write_filter(tmp_path / "m.infi", longest_quiet_s=15.0)
    here = run(tables)
    for i in range(16):
        here.fed.feed(row(0), float(i))
    assert not here.source.quiet_alarm
    here.fed.feed(row(0), 16.0)
    assert here.source.quiet_alarm


def test_a_source_that_is_away_is_not_quiet(tmp_path: Path, run: Run, soon_quiet: None) -> None:
    here = run(rows(tmp_path))
    here.fed.feed(row(0), 0.0)
    here.fed.feed(row(0), 1.0)
    here.fed.health.fail("read", "it is away")
    until(lambda: here.source.state == "failing")
    here.fed.health.live()
    here.fed.feed(row(0), 3600.0)
    assert not here.source.quiet_alarm


def test_an_event_ends_though_the_model_fails_from_then_on(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = run(rows(tmp_path, enabled=False, events={"end_s": 2.0}))
    here.fed.feed(row(1), 0.0)
    assert here.source.event_active
    monkeypatch.setattr(here.pipeline.setup.client._workload, "_function", None)
    active = []
    watch_errors(here, lambda: active.append(here.source.event_active))
    here.fed.feed_all([(row(1), float(i)) for i in range(1, 30)])
    assert here.source.counts["error"] == 29
    assert active[0]
    assert not active[-1]


def watch_errors(here: Here, call: Callable[[], None]) -> None:
    """Have something called at each error of an input."""
    put = here.pipeline._outlets[0].put_error

    def watched(source: str, sample: Sample, message: str) -> None:
        call()
        put(source, sample, message)

    here.pipeline._outlets[0].put_error = watched  # type: ignore[method-assign]


def test_a_filter_that_fails_is_told_once_and_its_inputs_are_inferred(
    tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    here = run(rows(tmp_path))
    for i in range(5):
        here.fed.feed(np.full(7, 2, np.float32), float(i))
    assert here.source.counts["infer"] == here.source.counts["filter_error"] == 5
    told = [record for record in caplog.records if "filter error" in record.message]
    assert len(told) == 1


def test_a_target_chosen_while_the_filter_is_replaced_does_no_harm(
    tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    tables = rows(tmp_path)
    here = run(tables)
    here.fed.feed(row(0), 0.0)
    point = here.source.points[1]
    opened = here.fed
    write_filter(tmp_path / "m.infi", knobs=Knobs(reuse_threshold=0.3), more=1)
    here.reload(tmp_path, tables)
    other = point.__class__(
        **{f: getattr(point, f) for f in point.__struct_fields__ if f != "target"}, target=0.97
    )
    here.pipeline.choose(other)
    here.fed.feed(row(0), 1.0)
    assert here.fed is opened
    assert "unexpected" not in caplog.text
    assert here.daemon.set_target("yard", "accuracy", 0.95).target == 0.95
    here.fed.feed(row(0), 2.0)
    assert here.source.chosen == 1


def test_another_model_under_the_same_name_starts_with_no_answers(tmp_path: Path, run: Run) -> None:
    tables = rows(tmp_path)
    tables["models"]["m"]["allow_other"] = True
    here = run(tables)
    here.fed.feed(row(1), 0.0)
    here.fed.feed(row(1), 1.0)
    tables["models"]["m"]["path"] = "daemon_models:other"
    here.reload(tmp_path, tables)
    here.fed.feed(row(1), 2.0)
    assert here.source.counts == {"infer": 2, "reuse": 1}


def test_another_version_of_code_that_is_loaded_is_refused(
    tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    tables = rows(tmp_path)
    here = run(tables)
    here.fed.feed(row(1), 0.0)
    tables["models"]["m"]["version"] = "2"
    write_config(tmp_path, tables)
    here.daemon.request_reload()
    until(lambda: here.daemon.status().reloads["refused"] == 1)
    assert "read at the start only" in here.daemon.status().reload_sentence
    here.fed.feed(row(1), 1.0)
    assert here.source.counts == {"infer": 1, "reuse": 1}


def test_what_is_asked_of_a_source_that_is_not_there_is_refused(tmp_path: Path, run: Run) -> None:
    here = run(rows(tmp_path))
    for ask in (
        lambda: here.daemon.set_enabled("street", True),
        lambda: here.daemon.set_target("street", "accuracy", 0.9),
        lambda: here.daemon.picture("street"),
        lambda: here.daemon.set_target("yard", "speed", 0.9),
        lambda: here.daemon.set_target("yard", "accuracy", 0.99),
        lambda: here.daemon.set_target("yard", "accuracy", 90.0),
    ):
        with pytest.raises(ConfigError):
            ask()


def test_it_can_be_told_to_let_everything_pass(tmp_path: Path, run: Run) -> None:
    here = run(rows(tmp_path))
    here.fed.feed(row(1), 0.0)
    here.fed.feed(row(1), 1.0)
    here.daemon.set_enabled("yard", False)
    until(lambda: not here.source.enabled)
    here.fed.feed(row(1), 2.0)
    assert here.source.promise == "everything is inferred"
    here.daemon.set_enabled("yard", True)
    until(lambda: here.source.enabled)
    here.fed.feed(row(1), 3.0)
    actions = [line["action"] for line in stopped(here, tmp_path)]
    assert actions == ["infer", "reuse", "infer", "reuse"]


def stopped(here: Here, folder: Path) -> list[Tables]:
    here.daemon.stop()
    here.wait()
    return results(folder)


def test_a_defect_in_a_source_is_told_and_the_source_starts_again(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pipeline, "Backoff", lambda *_: Soon())
    here = run(rows(tmp_path))
    here.fed.feed(row(1), 0.0)
    first = here.fed
    monkeypatch.setattr(here.pipeline, "_count", raising_once(here.pipeline._count))
    first._inputs.append((row(1), 1.0))
    until(lambda: here.pipeline._source is not first)
    here.fed.feed(row(1), 2.0)
    assert here.source.errors == {"internal": 1}
    assert caplog.text.count("unexpected error; the source starts again") == 1
    assert len(stopped(here, tmp_path)) == 2


class Soon:
    def waits(self) -> Iterator[float]:
        return itertools.repeat(0.01)


def raising_once(call: Callable[..., None]) -> Callable[..., None]:
    calls = itertools.count()

    def one(*arguments: Any) -> None:
        if next(calls) == 0:
            raise ZeroDivisionError
        call(*arguments)

    return one
