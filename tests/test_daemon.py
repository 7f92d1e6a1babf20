"""`infi-edge run CONFIG` in processes of their own: what it answers, how it ends."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infi_edge.cache import ReuseCache
from infi_edge.preprocess import ImageSpec
from tests.daemon_run import (
    a_source,
    command,
    environment,
    prepare,
    running,
    until,
    write_config,
    write_filter,
    write_rows,
)
from tests.infi_edge.camera_servers import PICTURES, MjpegServer, part

CYCLE = [level for _ in range(4) for level in (0, 0, 1, 1, 1, 2, 0, 3, 3, 2)]


def test_two_sources_share_a_model_and_every_input_is_answered_once_in_order(
    tmp_path: Path,
) -> None:
    config = prepare(tmp_path)
    write_rows(tmp_path / "up.npy", CYCLE)
    write_rows(tmp_path / "down.npy", CYCLE[::-1])
    config["sources"] = {
        "up": a_source("up.npy", fast=True),
        "down": a_source("down.npy", fast=True, target_accuracy=0.95),
    }
    with running(tmp_path, config) as daemon:
        ended = daemon.wait()
        lines = daemon.results()
    assert ended.code == 0
    assert "80 inputs: 44 inferred, 0 skipped, 36 reused" in ended.log
    for name, levels in (("up", CYCLE), ("down", CYCLE[::-1])):
        mine = [line for line in lines if line["source"] == name]
        assert [line["index"] for line in mine] == list(range(40))
        assert [line["value"] for line in mine] == levels
        assert all(line["at"] for line in mine)
    actions = {n: [r["action"] for r in lines if r["source"] == n] for n in ("up", "down")}
    assert actions["up"].count("infer") == 4  # each level once
    assert set(actions["down"]) == {"infer"}


def test_a_slow_model_of_one_source_does_not_delay_another(tmp_path: Path) -> None:
    config = prepare(tmp_path, quick="level", slow="slow")
    config["sources"] = {
        "quick": a_source("ticks:50", "quick", enabled=False),
        "slow": a_source("ticks:50", "slow", enabled=False),
    }
    with running(tmp_path, config) as daemon:
        daemon.until(lambda: len(daemon.results("slow")) >= 6)
        slow = [line["time_s"] for line in daemon.results("slow")]
        quick = [line["time_s"] for line in daemon.results("quick")]
    meanwhile = [time_s for time_s in quick if slow[0] <= time_s <= slow[-1]]
    assert len(meanwhile) > 3 * len(slow)


@pytest.mark.slow
def test_sources_of_one_slow_model_take_turns(tmp_path: Path) -> None:
    config = prepare(tmp_path, m="slow")
    config["sources"] = {name: a_source("ticks:50", enabled=False) for name in "abc"}
    with running(tmp_path, config) as daemon:
        daemon.until(lambda: len(daemon.results()) >= 12)
        order = [line["source"] for line in daemon.results()][3:12]
    for turn in zip(*[iter(order)] * 3, strict=True):
        assert sorted(turn) == ["a", "b", "c"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once_while_the_model_hangs(tmp_path: Path, how: signal.Signals) -> None:
    config = prepare(tmp_path, m="hangs")
    write_rows(tmp_path / "rows.npy", [0, 1, 2, 3, 0])
    source = a_source("rows.npy", rate_hz=20.0, cache={"snapshot": True})
    config["sources"] = {"yard": source}
    with running(tmp_path, config) as daemon:
        daemon.until((tmp_path / "hanging").exists)
        ended = daemon.stop(how)
        values = [line["value"] for line in daemon.results()]
    assert ended.code == 0
    assert ended.seconds < 6
    assert "4 inputs: 3 inferred, 0 skipped, 0 reused, 1 abandoned" in ended.log
    assert ended.count("Traceback") == 0
    assert values == [0, 1, 2]
    assert (tmp_path / "results.jsonl").read_text().endswith("\n")
    assert snapshot_entries(tmp_path / "state" / "yard.cache") == 3


def snapshot_entries(path: Path) -> int:
    """Open a cache snapshot as the daemon does; return its entries."""
    from infi_edge.archive import read_archive

    identity = read_archive(path)[0]["identity"]
    assert isinstance(identity, str)
    return ReuseCache(8).load(path, identity, time.monotonic())


def test_the_answers_survive_a_restart(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    write_rows(tmp_path / "rows.npy", [0, 1, 2, 2, 1, 0])
    config["sources"] = {"yard": a_source("rows.npy", fast=True, cache={"snapshot": True})}
    logs = []
    for _ in range(2):
        with running(tmp_path, config) as daemon:
            logs.append(daemon.wait().log)
    assert "6 inputs: 3 inferred, 0 skipped, 3 reused" in logs[0]
    assert "3 answers loaded" in logs[1]
    assert "6 inputs: 0 inferred, 0 skipped, 6 reused" in logs[1]


@pytest.mark.slow
def test_the_answers_of_another_filter_are_not_used(tmp_path: Path) -> None:
    config = prepare(tmp_path, m="level", n="other")
    write_rows(tmp_path / "rows.npy", [0, 1, 2])
    for model, value in (("m", 1), ("n", 11)):
        source = a_source("rows.npy", model, fast=True, cache={"snapshot": True})
        config["sources"] = {"yard": source}
        with running(tmp_path, config) as daemon:
            ended = daemon.wait()
            assert daemon.results()[-2]["value"] == value
        assert "3 inferred" in ended.log
    assert ended.count("cache snapshot not used") == 1


BUSY = """
import infi_edge.pipeline
infi_edge.pipeline.SNAPSHOT_EVERY_S = 0.0
"""


@pytest.mark.slow
def test_after_a_kill_at_any_moment_everything_opens(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    (tmp_path / "busy.py").write_text(BUSY)
    config["plugins"].append("busy.py")
    config["flush_s"] = 0.0
    cache = {"snapshot": True, "entries": 500}
    source = a_source("ticks:500", target_accuracy=0.95, cache=cache)
    config["sources"] = {"a": source, "b": source}
    snapshots = [tmp_path / "state" / f"{name}.cache" for name in "ab"]
    results = tmp_path / "results.jsonl"
    rng, size = random.Random(0), 0
    for kills in range(1, 1 + int(os.environ.get("INFI_EDGE_KILLS", "20"))):
        loaded = sum(path.exists() for path in snapshots)
        with running(tmp_path, config) as daemon:
            daemon.until(lambda n=size: results.exists() and results.stat().st_size > n)
            time.sleep(rng.uniform(0.0, 0.7))
            daemon.process.kill()
            daemon.process.wait()
            assert daemon.log.count("answers loaded") == loaded, daemon.log
            assert not re.search("ERROR|WARNING", daemon.log), daemon.log
        size = results.stat().st_size
        lines = results.read_text().split("\n")[:-1]
        # One that a kill has cut stays; the next start ends it before it writes on.
        assert sum(not is_json(line) for line in lines) < kills
        for path in snapshots:
            assert not path.exists() or 0 < snapshot_entries(path) <= 500
    assert all(path.exists() for path in snapshots)


def is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def test_a_model_that_raises_now_and_then_is_counted_and_the_loop_runs(tmp_path: Path) -> None:
    config = prepare(tmp_path, m="thirds")
    write_rows(tmp_path / "rows.npy", CYCLE)
    config["sources"] = {"yard": a_source("rows.npy", rate_hz=200.0, enabled=False)}
    with running(tmp_path, config) as daemon:
        ended = daemon.wait()
        lines = daemon.results()
    assert [line["index"] for line in lines] == list(range(40))
    errors = [line for line in lines if "error" in line]
    assert [line["index"] for line in errors] == list(range(2, 40, 3))
    assert all("no power" in line["error"] for line in errors)
    assert ended.code == 0
    assert ended.count("no power") == 1
    assert "27 inferred, 0 skipped, 0 reused, 13 errors" in ended.log


def test_a_model_that_always_raises_is_in_the_metrics_and_the_log_once(tmp_path: Path) -> None:
    config = prepare(tmp_path, m="broken")
    config["sources"] = {"yard": a_source("ticks:50")}
    with running(tmp_path, config) as daemon:
        daemon.until(lambda: daemon.metric("errors_total", source="yard", cause="model") >= 10)
        before = daemon.holds()
        daemon.until(lambda: daemon.metric("errors_total", source="yard", cause="model") >= 60)
        assert daemon.holds() == before
        assert daemon.answered("yard") == 0
        ended = daemon.stop()
    assert ended.count("no power") == 1
    assert ended.code == 1  # nothing at all was answered


def test_a_camera_stays_connected_over_a_reload_and_its_process_ends_with_the_daemon(
    tmp_path: Path,
) -> None:
    config = prepare(tmp_path, eye="bright")
    write_filter(tmp_path / "eye.infi", "daemon_models:bright", spec=ImageSpec(64, 48))

    def stream(send: Callable[[bytes], None]) -> None:
        for i in itertools.count():
            send(part(PICTURES[i % len(PICTURES)]))
            time.sleep(0.02)

    with MjpegServer(stream) as server:
        config["sources"] = {"yard": a_source(server.url(), "eye")}
        with running(tmp_path, config) as daemon:
            daemon.until(lambda: daemon.answered("yard") > 10)
            config["sources"]["yard"]["target_accuracy"] = 0.95
            write_config(tmp_path, config)
            daemon.reload()
            daemon.until(lambda: daemon.source("yard")["chosen"] == 1)
            count = daemon.answered("yard")
            daemon.until(lambda: daemon.answered("yard") > count + 10)
            assert server.connections == 1
            assert daemon.metric("source_faults_total", cause="reconnects") == 0
            (child,) = daemon.children()
            ended = daemon.stop()
            until(lambda: not Path(f"/proc/{child}").exists())
    assert ended.code == 0
    assert ended.seconds < 6
    assert "Traceback" not in ended.log


MISSING = "http://127.0.0.1:9/never"


def test_a_camera_that_is_not_there_does_not_keep_the_other_from_running(tmp_path: Path) -> None:
    config = prepare(tmp_path, m="level", eye="bright")
    write_filter(tmp_path / "eye.infi", "daemon_models:bright", spec=ImageSpec(64, 48))
    config["sources"] = {"here": a_source("ticks:50"), "away": a_source(MISSING, "eye")}
    with running(tmp_path, config) as daemon:
        daemon.until(lambda: daemon.metric("source_faults_total", source="away", cause="open") > 1)
        assert daemon.metric("source_state", source="away", state="failing") == 1
        assert daemon.metric("source_state", source="here", state="live") == 1
        away = daemon.source("away")
        assert away["state"] == "failing"
        assert "cannot be opened" in away["sentence"]
        count = daemon.answered("here")
        daemon.until(lambda: daemon.answered("here") > count + 20)
        ended = daemon.stop()
    assert ended.count("cannot be opened") == 1
    assert ended.code == 0
    assert ended.seconds < 6


def test_on_the_command_line_a_camera_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    prepare(tmp_path)
    write_filter(tmp_path / "eye.infi", "daemon_models:bright", spec=ImageSpec(64, 48))
    arguments = ["--source", MISSING, "--filter", "eye.infi", "--model", "daemon_models:bright"]
    done = command(tmp_path, "run", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "cannot be opened" in done.stderr


def test_a_recording_that_breaks_is_told_and_the_others_run_on(tmp_path: Path) -> None:
    (tmp_path / "breaks.py").write_text(
        "from infi_edge.capture.address import register_source\n"
        "from infi_edge.capture.source import Health\n"
        "from infi_edge.errors import SourceError\n"
        "class Breaks:\n"
        "    def __init__(self, name): self.name, self.health = name, Health(name)\n"
        "    def samples(self):\n"
        "        yield None\n"
        "        raise SourceError('the file is cut off')\n"
        "    def now_s(self): return 0.0\n"
        "    def close(self): pass\n"
        "register_source('breaks', lambda name, *_: Breaks(name))\n"
    )
    config = prepare(tmp_path)
    config["plugins"].append("breaks.py")
    config["sources"] = {"here": a_source("ticks:50"), "cut": a_source("breaks:")}
    with running(tmp_path, config) as daemon:
        daemon.until_log("cut: the file is cut off")
        assert daemon.metric("source_state", source="cut", state="failing") == 1
        assert daemon.source("cut")["sentence"] == "the file is cut off"
        count = daemon.answered("here")
        daemon.until(lambda: daemon.answered("here") > count + 20)
        ended = daemon.stop()
    assert ended.count("the file is cut off") == 1
    assert ended.code == 0
    config["sources"].pop("here")
    with running(tmp_path, config) as daemon:
        ended = daemon.wait()
    assert ended.code == 2
    assert ended.count("the file is cut off") == 1


def test_a_port_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    config["sources"] = {"yard": a_source("ticks:50")}
    with running(tmp_path, config) as daemon:
        daemon.ask("/metrics")
        port = daemon.log.partition("http://127.0.0.1:")[2].split()[0]
        config["web"]["bind"] = f"127.0.0.1:{port}"
        other = tmp_path / "other"
        other.mkdir()
        prepare(other)
        write_config(other, config)
        done = command(other, "run", "daemon.toml")
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert port in done.stderr


def test_a_reader_that_has_enough_ends_it_quietly(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    config["sources"], config["sinks"] = {"yard": a_source("ticks:50")}, {}
    write_config(tmp_path, config)
    line = f"{sys.executable} -m infi_edge run daemon.toml 2>log | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    first, code = done.stdout.splitlines()
    log = (tmp_path / "log").read_text()
    assert json.loads(first)["index"] == 0
    assert code == "0", log
    assert "Traceback" not in log
    assert "rror" not in log


@pytest.mark.slow
def test_a_reader_that_goes_does_not_end_the_other_sinks(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    config["sources"] = {"yard": a_source("ticks:50")}
    config["sinks"]["out"] = {"kind": "jsonl"}
    write_config(tmp_path, config)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "infi_edge", "run", "daemon.toml"],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        results = tmp_path / "results.jsonl"
        size = until(lambda: results.exists() and results.stat().st_size)
        until(lambda: results.stat().st_size > size + 5000)
        assert process.poll() is None
        process.terminate()
        assert process.wait(20) == 0
        assert "Traceback" not in (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB, mounted for real, on which 32 kB are left beside the file `else`."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small disk can only be mounted by root")
    (folder / "else").write_bytes(bytes((4 << 20) - (32 << 10)))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_does_not_stop_the_loop(tmp_path: Path, small_disk: Path) -> None:
    config = prepare(tmp_path)
    config["sources"] = {"yard": a_source("ticks:500", cache={"snapshot": True})}
    config["sinks"]["log"]["path"] = str(small_disk / "results.jsonl")
    config["state"] = str(small_disk / "state")
    (tmp_path / "busy.py").write_text(BUSY.replace("0.0", "0.2"))
    config["plugins"].append("busy.py")
    with running(tmp_path, config) as daemon:
        daemon.until(lambda: daemon.metric("sink_messages_total", outcome="failed") > 2)
        daemon.until(lambda: daemon.metric("incidents_total", kind="snapshot_error") > 2)
        count = daemon.answered("yard")
        daemon.until(lambda: daemon.answered("yard") > count + 200)
        (small_disk / "else").unlink()
        daemon.until_log("works again")
        ended = daemon.stop()
        lines = daemon.results(path="disk/results.jsonl")
    assert ended.code == 0
    assert ended.count("No space left") == 2  # each of the two once
    assert [line["index"] for line in lines] == list(range(len(lines)))  # nothing was lost
    assert f"{len(lines)} inputs" in ended.log


def test_a_short_run_says_what_it_did(tmp_path: Path) -> None:
    """The end of recordings ends the daemon, and all results are written by then."""
    config = prepare(tmp_path)
    write_rows(tmp_path / "rows.npy", CYCLE * 50)
    config["sources"] = {"yard": a_source("rows.npy", fast=True)}
    with running(tmp_path, config) as daemon:
        ended = daemon.wait()
        assert len(daemon.results()) == 2000
    assert ended.code == 0
    assert "2000 inputs" in ended.log
