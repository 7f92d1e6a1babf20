"""What watches a daemon, and what it does when there is too much to do."""

from __future__ import annotations

import copy
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon_run import PATIENCE_S, a_source, prepare, running, write_config

QUICK = """
import infi_edge.budget, infi_edge.daemon, infi_edge.pipeline
infi_edge.daemon.HUNG_S = 1.2
infi_edge.daemon.MACHINE_EVERY_S = 0.2
infi_edge.budget.STEP_S = 0.5
infi_edge.pipeline.DEGRADED_S = 1.0
"""


class Systemd:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))

    def next(self, seconds: float = PATIENCE_S) -> str:
        """The next message; empty if there is none in time."""
        self.socket.settimeout(seconds)
        try:
            return self.socket.recv(4096).decode()
        except TimeoutError:
            return ""

    def until(self, message: str) -> None:
        """Wait for a message."""
        while (found := self.next()) != message:
            assert found, f"no {message} came"

    def until_silence(self, seconds: float) -> None:
        """Wait until nothing came for so long."""
        end_s = time.monotonic() + PATIENCE_S
        while self.next(seconds):
            assert time.monotonic() < end_s, "it goes on and on"


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    made = Systemd(tmp_path / "notify")
    yield made
    made.socket.close()


def quick(folder: Path, **models: str) -> dict[str, object]:
    config = prepare(folder, **models)
    (folder / "quick.py").write_text(QUICK)
    config["plugins"].append("quick.py")
    return config


def test_the_watchdog_is_fed_while_every_source_gets_on(tmp_path: Path, systemd: Systemd) -> None:
    config = quick(tmp_path)
    config["sources"] = {"a": a_source("ticks:50"), "b": a_source("ticks:50")}
    told = {"NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": "30000000"}
    with running(tmp_path, config, **told) as daemon:
        assert systemd.next() == "READY=1"
        for _ in range(3):
            systemd.until("WATCHDOG=1")
        (tmp_path / "b.hang").touch()
        systemd.until_silence(2.0)
        assert "b: its driver hangs" in daemon.log
        assert daemon.source("b")["state"] == "failing"
        count = daemon.answered("a")
        daemon.until(lambda: daemon.answered("a") > count + 20)
        assert daemon.log.count("hangs") == 1
        (tmp_path / "b.hang").unlink()
        systemd.until("WATCHDOG=1")
        daemon.until(lambda: daemon.source("b")["state"] == "live")
        daemon.reload()
        assert ready_again(systemd)
        ended = daemon.stop()
        systemd.until("STOPPING=1")
    assert ended.code == 0


def ready_again(systemd: Systemd) -> bool:
    while not (found := systemd.next()).startswith("RELOADING=1\nMONOTONIC_USEC="):
        assert found == "WATCHDOG=1"
    return systemd.next() == "READY=1"


@pytest.mark.slow
def test_a_model_that_takes_long_is_no_source_that_hangs(tmp_path: Path, systemd: Systemd) -> None:
    import numpy as np

    config = quick(tmp_path, m="hangs")
    np.save(tmp_path / "rows.npy", np.full((4, 8), 3, np.float32))
    config["sources"] = {"yard": a_source("rows.npy", rate_hz=50.0)}
    told = {"NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": "30000000"}
    with running(tmp_path, config, **told) as daemon:
        daemon.until((tmp_path / "hanging").exists)
        while systemd.next(0.01):
            pass
        for _ in range(16):  # 4 s of it, and HUNG_S is 1.2
            assert systemd.next(2.0) == "WATCHDOG=1"
        assert daemon.stop().code == 0


def test_over_budget_it_degrades_then_drops_says_so_and_recovers(tmp_path: Path) -> None:
    config = quick(tmp_path)
    config["sources"] = {"yard": a_source("ticks:50", target_accuracy=0.95)}
    config["budget"] = {"max_inferences_per_s": 1.0, "max_stale_s": 0.3}
    with running(tmp_path, config) as daemon:
        daemon.until(lambda: daemon.metric("incidents_total", kind="over_budget") > 40)
        daemon.until(lambda: daemon.metric("over_budget") == 1)
        assert daemon.metric("degraded", source="yard") == 1
        assert daemon.source("yard")["degraded"].startswith("over budget")
        assert daemon.log.count("promised is suspended") == 1
        calmer = copy.deepcopy(config)
        calmer["sources"]["yard"]["target_accuracy"] = 0.9
        write_config(tmp_path, calmer)
        daemon.reload()
        daemon.until(lambda: daemon.metric("degraded", source="yard") == 0)
        assert daemon.source("yard")["degraded"] == ""
        daemon.until(lambda: daemon.metric("over_budget") == 0)
        lines = daemon.results()
        drops = daemon.metric("incidents_total", kind="over_budget")
        ended = daemon.stop()
    again = [line for line in lines if line.get("degraded")]
    assert again
    assert all(line["action"] == "reuse" and line["age_s"] <= 0.3 for line in again)
    assert all(line["why"] == "over budget: may have changed" for line in again)
    assert f"{drops:.0f} dropped over budget" in ended.log
    assert ended.code == 0
    inferred = [line["time_s"] for line in lines if line["action"] == "infer"]
    assert len(inferred) <= 3 + inferred[-1] - inferred[0]
