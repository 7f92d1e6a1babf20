"""What systemd is told, through real sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from infi_edge.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def systemd(request, tmp_path: Path) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    """A socket as systemd's, and the environment that names it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"\0{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name)
        receiver.settimeout(10)
        yield receiver, {"NOTIFY_SOCKET": name.replace("\0", "@")}


def test_each_message_is_one_datagram(systemd):
    receiver, environment = systemd
    notifier = Notifier(environment)
    assert notifier.ready("2 sources")
    assert receiver.recv(1000) == b"READY=1\nSTATUS=2 sources"
    assert notifier.watchdog()
    assert receiver.recv(1000) == b"WATCHDOG=1"
    assert notifier.status("Küche: 3 °C")
    assert receiver.recv(1000).decode() == "STATUS=Küche: 3 °C"
    assert notifier.stopping()
    assert receiver.recv(1000) == b"STOPPING=1"
    notifier.close()


def test_a_reload_carries_the_monotonic_time(systemd):
    receiver, environment = systemd
    before = time.monotonic_ns() // 1000
    Notifier(environment).reloading()
    first, second = receiver.recv(1000).decode().split("\n")
    assert first == "RELOADING=1"
    key, _, value = second.partition("=")
    assert key == "MONOTONIC_USEC"
    assert before <= int(value) <= time.monotonic_ns() // 1000


def test_a_status_cannot_add_a_line_of_its_own(systemd):
    receiver, environment = systemd
    Notifier(environment).status("camera gone\nSTOPPING=1")
    assert receiver.recv(1000) == b"STATUS=camera gone STOPPING=1"


def test_without_systemd_nothing_is_sent_and_nothing_is_open():
    before = len(os.listdir("/proc/self/fd"))
    notifier = Notifier({})
    assert not notifier.ready()
    assert not notifier.watchdog()
    assert notifier.watchdog_s is None
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_receiver_that_is_gone_or_full_never_blocks_and_is_told_of_once(tmp_path, caplog):
    name = str(tmp_path / "notify")
    notifier = Notifier({"NOTIFY_SOCKET": name})
    assert not notifier.ready()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name)
        sent = 0
        while notifier.watchdog():  # nobody reads: in the end its queue is full
            sent += 1
        assert sent > 0
        assert not notifier.watchdog()
        receiver.recv(1000)
        assert notifier.ready()
    assert not notifier.stopping()
    told = [r for r in caplog.records if "systemd" in r.message]
    assert len(told) == 3  # absent, full, absent again


def test_a_receiver_that_comes_back_is_found_again(tmp_path):
    name = tmp_path / "notify"
    notifier = Notifier({"NOTIFY_SOCKET": str(name)})
    for _ in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind(str(name))
            assert notifier.ready()
            assert receiver.recv(100) == b"READY=1"
        name.unlink()


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_the_one_meant_for_this_process(environment, seconds):
    assert Notifier(environment).watchdog_s == seconds


def test_the_real_environment_is_read(systemd):
    receiver, environment = systemd
    code = "from infi_edge.notify import Notifier; n = Notifier(); n.ready(); print(n.watchdog_s)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment, "WATCHDOG_USEC": "5000000"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert receiver.recv(1000) == b"READY=1"
    assert done.stdout == "5.0\n"
