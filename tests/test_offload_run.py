"""The daemon with its model on a real server, which is killed, late, wrong or not there."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from infi_edge.bundle import read_bundle, write_bundle
from infi_edge.config import OffloadConfig
from infi_edge.executors.remote import LinkDown, RemoteModel
from infi_edge.policy import Knobs
from tests.daemon_run import (
    Running,
    Tables,
    a_source,
    environment,
    prepare,
    until,
    write_config,
    write_filter,
    write_rows,
)

pytest.importorskip("tritonclient.grpc", reason="needs the extra offload")

ENDS = ("infer", "skip", "reuse", "local", "queued", "link_down", "error", "abandoned")
THIRD_S = 5.0
"""The server is there for so long, away for so long, and there again."""


class LevelServer:
    """tests/offload/level_server.py on a port of its own, killed and started at will."""

    def __init__(self, folder: Path, **more: str) -> None:
        with socket.socket() as end:
            end.bind(("127.0.0.1", 0))
            self.port = end.getsockname()[1]
        self.folder, self.more = folder, more
        self.answered = folder / "answered.txt"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"grpc://127.0.0.1:{self.port}/level"

    def start(self) -> None:
        script = Path(__file__).parent / "offload" / "level_server.py"
        command = [sys.executable, str(script), str(self.port), str(self.answered)]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment(**self.more), stdout=log, stderr=log
            )
        until(self.listens, "the server listens")

    def listens(self) -> bool:
        with socket.socket() as end:
            return end.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LevelServer]:
    made = LevelServer(tmp_path)
    made.start()
    yield made
    made.kill()


def offloaded(folder: Path, server: LevelServer, address: str, **offload: Any) -> Tables:
    """A configuration whose model is on the server; `small` is a model here."""
    tables = prepare(folder, m="level", small="level")
    write_filter(folder / "all.infi", "daemon_models:level", Knobs(reuse_threshold=0.0))
    tables["models"]["m"] = {
        "executor": server.url,
        "offload": {"deadline_s": 2.0, "when_down": "drop", **offload},
    }
    tables["models"]["small"]["allow_other"] = True
    tables["sources"] = {"yard": a_source(address)}
    return tables


def results(folder: Path) -> list[dict[str, Any]]:
    path = folder / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [record for record in map(json.loads, lines) if "event" not in record]


def counts(running: Running) -> Counter[str]:
    return Counter(running.source("yard")["counts"])


LEVELS = [0, 0, 1, 1, 1, 2, 0, 0, 0, 1, 2, 2, 2, 0, 0, 1, 0, 2, 1, 1] * 10


@pytest.mark.parametrize("window", [1, 4])
def test_a_model_on_a_server_decides_and_answers_as_one_here(tmp_path, server, window):
    write_rows(tmp_path / "rows.npy", LEVELS)
    told = []
    for where in ("here", "there"):
        folder = tmp_path / where
        folder.mkdir()
        write_rows(folder / "rows.npy", LEVELS)
        tables = offloaded(folder, server, "rows.npy", window=window)
        tables["sources"]["yard"]["fast"] = True
        if where == "here":
            tables["models"]["m"] = {"path": "daemon_models:level"}
        write_config(folder, tables)
        running = Running(folder)
        assert running.process.wait(60) == 0, running.log
        told.append([{k: v for k, v in r.items() if k != "at"} for r in results(folder)])
    assert len(told[0]) == len(LEVELS)
    assert told[0] == told[1]
    assert {r["action"] for r in told[0]} == {"infer", "reuse"}


def outage(folder: Path, server: LevelServer, **offload: Any) -> tuple[Running, Counter[str]]:
    """Run a source at 50 Hz that infers everything; the server is away in the middle."""
    tables = offloaded(folder, server, "ticks:50", **offload)
    tables["sources"]["yard"]["filter"] = "all.infi"
    write_config(folder, tables)
    running = Running(folder)
    try:
        running.until(lambda: counts(running)["infer"] >= 20)
        time.sleep(THIRD_S)
        server.kill()
        gone = sum(counts(running)[end] for end in ENDS)
        running.until(lambda: sum(counts(running)[end] for end in ENDS) >= gone + 20)
        time.sleep(THIRD_S)
        server.start()
        inferred = counts(running)["infer"]
        running.until(lambda: counts(running)["infer"] >= inferred + 20, "it answers again")
        time.sleep(THIRD_S)
        if offload["when_down"] == "queue":
            running.until(lambda: running.source("yard")["waiting"] == 0, "nothing waits")
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(30) == 0, running.log
    finally:
        running.process.kill()
    told = running.log.rpartition("inputs: ")
    total = int(told[0].split()[-1])
    return running, Counter({"total": total}) + Counter(_summary(told[2]))


def _summary(text: str) -> dict[str, int]:
    names = {
        "inferred": "infer", "skipped": "skip", "reused": "reuse", "errors": "error",
        "answered by the local model": "local", "queued": "queued",
        "answered late": "late", "dropped as the server was away": "link_down",
        "abandoned": "abandoned",
    }  # fmt: skip
    parts = (part.strip().partition(" ") for part in text.split(","))
    return {names[name]: int(number) for number, _, name in parts}


@pytest.mark.slow
@pytest.mark.parametrize("spool", ["disk", "memory"])
@pytest.mark.parametrize("order", ["oldest", "newest"])
def test_queued_inputs_are_each_answered_once_in_the_end(tmp_path, server, spool, order):
    _, told = outage(tmp_path, server, when_down="queue", spool=spool, spool_order=order)
    found = results(tmp_path)
    assert told["queued"] > 20
    assert told["late"] == told["queued"]
    assert told["total"] == sum(told[end] for end in ENDS)
    indices = [record["index"] for record in found if "error" not in record]
    assert len(indices) == len(set(indices)) == told["infer"] + told["late"]
    assert sorted(indices) == list(range(told["total"] - told["abandoned"] - told["error"]))
    late = [record for record in found if record.get("late")]
    assert len(late) == told["late"]
    assert all(record["value"] == record["index"] // 10 % 3 for record in late)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["drop", "reuse", "local"])
def test_without_a_queue_the_counts_add_up(tmp_path, server, how):
    more = {"local": "small"} if how == "local" else {}
    _, told = outage(tmp_path, server, when_down=how, **more)
    found = results(tmp_path)
    assert told["total"] == sum(told[end] for end in ENDS)
    assert told[{"drop": "link_down", "reuse": "reuse", "local": "local"}[how]] >= 20
    errors = [record for record in found if "error" in record]
    assert len(errors) == told["link_down"] + told["error"]
    answered = [record for record in found if "error" not in record]
    assert len(answered) == told["infer"] + told["reuse"] + told["local"]
    marked = [record for record in answered if record.get("degraded")]
    assert len(marked) == told["reuse"] + told["local"]
    assert all(record["age_s"] <= 60 for record in marked if record["action"] == "reuse")


def test_an_answer_that_is_too_old_is_not_given_again(tmp_path, server):
    tables = offloaded(tmp_path, server, "ticks:50", when_down="reuse", max_stale_s=0.5)
    tables["sources"]["yard"]["filter"] = "all.infi"
    write_config(tmp_path, tables)
    running = Running(tmp_path)
    try:
        running.until(lambda: counts(running)["infer"] >= 5)
        server.kill()
        running.until(lambda: counts(running)["link_down"] >= 5)
        assert counts(running)["stale"] >= 1
        assert "no answer young enough" in running.log
    finally:
        running.process.kill()


def test_a_queue_on_disk_outlives_the_daemon(tmp_path, server):
    tables = offloaded(tmp_path, server, "ticks:50", when_down="queue")
    tables["sources"]["yard"]["filter"] = "all.infi"
    write_config(tmp_path, tables)
    running = Running(tmp_path)
    try:
        running.until(lambda: counts(running)["infer"] >= 5)
        server.kill()
        running.until(lambda: counts(running)["queued"] >= 30)
        running.process.kill()  # as a power loss
        running.process.wait()
        first = {r["index"] for r in results(tmp_path) if r["action"] == "infer"}
        server.start()
        running = Running(tmp_path)
        running.until(lambda: counts(running)["late"] >= 30)
        running.until(lambda: running.source("yard")["waiting"] == 0)
        assert counts(running)["spool_uncertain"] == 0
        assert counts(running)["spool_damaged"] == 0
    finally:
        running.process.kill()
        running.process.wait()
    late = [r["index"] for r in results(tmp_path) if r.get("late")]
    assert len(late) == len(set(late)) >= 30
    assert not first & set(late)


def test_a_queue_that_is_full_says_so_and_counts(tmp_path, server):
    tables = offloaded(tmp_path, server, "ticks:50", when_down="queue", spool_bytes=5000)
    tables["sources"]["yard"]["filter"] = "all.infi"
    write_config(tmp_path, tables)
    running = Running(tmp_path)
    try:
        running.until(lambda: counts(running)["infer"] >= 5)
        server.kill()
        running.until(lambda: counts(running)["link_down"] >= 5)
        told = counts(running)
        assert 0 < told["queued"] < 20
        assert "the queue is full" in running.log
    finally:
        running.process.kill()


def test_an_input_the_server_fails_on_does_not_hold_up_the_others(tmp_path, server):
    write_rows(tmp_path / "rows.npy", [1, 2, 99, 3, 4, 99, 5])
    tables = offloaded(tmp_path, server, "rows.npy", when_down="queue")
    tables["sources"]["yard"] |= {"fast": True, "filter": "all.infi"}
    write_config(tmp_path, tables)
    running = Running(tmp_path)
    assert running.process.wait(60) == 0, running.log
    found = results(tmp_path)
    assert [r["value"] for r in found if "error" not in r] == [1, 2, 3, 4, 5]
    errors = [r["error"] for r in found if "error" in r]
    assert len(errors) == 2
    assert all("99 is too much" in error for error in errors)


def test_a_server_that_is_not_there_is_waited_for(tmp_path, server):
    server.kill()
    write_config(tmp_path, offloaded(tmp_path, server, "ticks:50", when_down="drop"))
    running = Running(tmp_path)
    try:
        running.until(lambda: counts(running)["link_down"] >= 3)
        assert "connection refused" in running.log
        assert running.metric("link_up", model="m") == 0
        assert "server is away" in running.source("yard")["link"] or running.source("yard")["link"]
        server.start()
        running.until(lambda: counts(running)["infer"] >= 3)
        assert running.metric("link_up", model="m") == 1
        running.until(lambda: not running.source("yard")["link"])
        assert running.metric("link_bytes_total", model="m", direction="sent", cause="infer") > 100
    finally:
        running.process.kill()


@pytest.mark.parametrize(
    ("offload", "url", "words"),
    [
        ({"at_start": "fail"}, "grpc://127.0.0.1:1/level", "nothing answers there"),
        ({}, "grpc://127.0.0.1:{port}/other", "no such model"),
        ({"token_env": "NO_SUCH_TOKEN"}, "grpc://127.0.0.1:{port}/level", "holds no bearer token"),
        ({"send": "jpeg"}, "grpc://127.0.0.1:{port}/level", "takes no encoded pictures"),
    ],
)
def test_what_is_wrong_at_the_start_is_one_sentence(tmp_path, server, offload, url, words):
    tables = offloaded(tmp_path, server, "ticks:50", **offload)
    tables["models"]["m"]["executor"] = url.format(port=server.port)
    write_config(tmp_path, tables)
    running = Running(tmp_path)
    assert running.process.wait(60) == 2
    last = running.log.strip().splitlines()[-1]
    assert last.startswith("infi-edge: ")
    assert words in last
    assert "Traceback" not in running.log


def trained_for(path: Path, sha: str) -> None:
    """Let a bundle say that it was trained for a file."""
    bundle = read_bundle(path)
    info = msgspec.structs.replace(bundle.manifest.workload, model_identity=sha)
    manifest = msgspec.structs.replace(bundle.manifest, workload=info)
    write_bundle(path, manifest, bundle.members)


RIGHT, WRONG = "1" * 64, "0" * 64


def test_a_server_of_another_model_is_refused(tmp_path):
    server = LevelServer(tmp_path, PLATFORM=f"tflite-sha256-{WRONG}")
    server.start()
    try:
        tables = offloaded(tmp_path, server, "ticks:50")
        trained_for(tmp_path / "m.infi", RIGHT)
        write_config(tmp_path, tables)
        running = Running(tmp_path)
        assert running.process.wait(60) == 2
        assert "was trained for another model" in running.log
    finally:
        server.kill()


@pytest.mark.slow
def test_a_wrong_model_that_is_replaced_by_the_right_one_is_used_then(tmp_path):
    server = LevelServer(tmp_path, PLATFORM=f"tflite-sha256-{WRONG}")
    tables = offloaded(tmp_path, server, "ticks:20", when_down="queue")
    trained_for(tmp_path / "m.infi", RIGHT)
    write_config(tmp_path, tables)
    running = Running(tmp_path)
    try:
        running.until(lambda: counts(running)["queued"] >= 2)
        server.start()
        running.until_log("was trained for another model")
        assert counts(running)["infer"] == 0
        server.kill()
        server.more = {"PLATFORM": f"tflite-sha256-{RIGHT}"}
        server.start()
        running.until(lambda: counts(running)["infer"] >= 2)
        running.until(lambda: running.source("yard")["waiting"] == 0)
        assert counts(running)["error"] == 0
    finally:
        running.process.kill()
        server.kill()


def test_a_server_that_begins_to_serve_another_model_is_not_used(tmp_path):
    server = LevelServer(tmp_path, PLATFORM=f"tflite-sha256-{RIGHT}")
    server.start()
    tables = offloaded(tmp_path, server, "ticks:20", when_down="drop")
    tables["sources"]["yard"]["filter"] = "all.infi"
    trained_for(tmp_path / "all.infi", RIGHT)
    write_config(tmp_path, tables)
    running = Running(tmp_path)
    try:
        running.until(lambda: counts(running)["infer"] >= 5)
        server.kill()
        asked = server.answered.read_text().count("\n")
        server.more = {"PLATFORM": f"tflite-sha256-{WRONG}"}
        server.start()
        running.until_log("is another model now")
        running.until(lambda: counts(running)["link_down"] >= 20)
        assert server.answered.read_text().count("\n") == asked
    finally:
        running.process.kill()
        server.kill()


def reload(running: Running, tables: Tables) -> None:
    done = running.log.count("was read again")
    write_config(running.folder, tables)
    running.process.send_signal(signal.SIGHUP)
    running.until_log("was read again", done + 1)


@pytest.mark.parametrize("spool", ["disk", "memory"])
def test_a_reload_in_an_outage_keeps_the_queue(tmp_path, server, spool):
    tables = offloaded(tmp_path, server, "ticks:50", when_down="queue", spool=spool)
    tables["sources"]["yard"]["filter"] = "all.infi"
    write_config(tmp_path, tables)
    running = Running(tmp_path)
    try:
        running.until(lambda: counts(running)["infer"] >= 5)
        server.kill()
        running.until(lambda: running.source("yard")["waiting"] >= 20)
        tables["sources"]["yard"]["events"] = {"end_s": 5.0}
        reload(running, tables)
        assert running.source("yard")["waiting"] >= 20
        server.start()
        running.until(lambda: running.source("yard")["waiting"] == 0)
        told = counts(running)
        assert told["late"] == told["queued"]
    finally:
        running.process.kill()


def test_a_queue_waits_for_the_model_and_not_for_the_address(tmp_path, server):
    tables = offloaded(tmp_path, server, "ticks:50", when_down="queue")
    tables["sources"]["yard"]["filter"] = "all.infi"
    tables["models"]["m"]["executor"] = "grpc://127.0.0.1:1/level"
    write_config(tmp_path, tables)
    running = Running(tmp_path)
    try:
        running.until(lambda: running.source("yard")["waiting"] >= 20)
        tables["models"]["m"]["executor"] = server.url
        reload(running, tables)
        running.until(lambda: counts(running)["late"] >= 20)
        running.until(lambda: running.source("yard")["waiting"] == 0)
        assert counts(running)["spool_damaged"] == 0
    finally:
        running.process.kill()


def test_a_token_that_is_away_for_a_moment_does_not_end_the_link(tmp_path, server):
    token = tmp_path / "token"
    token.write_text("secret")
    remote = RemoteModel(server.url, OffloadConfig(token_file=str(token), deadline_s=1.0))
    row = np.ones(8, np.float32)
    try:
        inputs = [(remote.metadata.inputs[0], row)]
        assert remote.run(inputs)[0].tolist() == [1]
        server.kill()
        token.unlink()
        for _ in range(5):
            with pytest.raises(LinkDown):
                remote.run(inputs)
        server.start()
        time.sleep(2.0)  # a trial or a probe without a token is no end
        with pytest.raises(LinkDown):
            remote.run(inputs)
        token.write_text("secret")
        until(lambda: remote.wait(0.5) and answers(remote, inputs))
    finally:
        remote.close()


def answers(remote: RemoteModel, inputs: Any) -> bool:
    try:
        return remote.run(inputs)[0].tolist() == [1]
    except LinkDown:
        return False


def test_several_are_under_way_at_a_time(tmp_path):
    server = LevelServer(tmp_path, DELAY_S="0.1")
    server.start()
    try:
        levels = np.arange(40).tolist()
        write_rows(tmp_path / "rows.npy", levels)
        tables = offloaded(tmp_path, server, "rows.npy", window=4)
        tables["sources"]["yard"] |= {"fast": True, "filter": "all.infi"}
        write_config(tmp_path, tables)
        begun_s = time.monotonic()
        running = Running(tmp_path)
        assert running.process.wait(60) == 0, running.log
        assert time.monotonic() - begun_s < 40 * 0.1  # one at a time cannot be faster
        found = results(tmp_path)
        assert [r["value"] for r in found] == levels
        assert [r["index"] for r in found] == list(range(40))
    finally:
        server.kill()


def test_a_server_that_never_answers_costs_a_deadline_and_no_more(tmp_path, server):
    tables = offloaded(tmp_path, server, "ticks:50", when_down="drop", deadline_s=0.5)
    tables["sources"]["yard"]["filter"] = "all.infi"
    write_config(tmp_path, tables)
    running = Running(tmp_path)
    try:
        running.until(lambda: counts(running)["infer"] >= 5)
        server.signal(signal.SIGSTOP)
        running.until(lambda: counts(running)["link_down"] >= 20)
        server.signal(signal.SIGCONT)
        inferred = counts(running)["infer"]
        running.until(lambda: counts(running)["infer"] >= inferred + 5)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(30) == 0, running.log
    finally:
        running.process.kill()
