"""MQTT, with a real broker that is killed, restarted, asks for passwords and certificates."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infi_edge.bundle import OperatingPoint
from infi_edge.config import MqttSinkConfig
from infi_edge.errors import ConfigError
from infi_edge.events import Event
from infi_edge.policy import Knobs
from infi_edge.sinks import outlet
from infi_edge.sinks.outlet import Outlet
from infi_edge.status import SourceStatus, Status
from infi_edge.types import Action, Image, Result, Sample

paho = pytest.importorskip("paho.mqtt.client", reason="needs paho-mqtt: pip install paho-mqtt")

from infi_edge.sinks.mqtt import WINDOW, MqttSink  # noqa: E402

PATIENCE_S = 60.0


def until(condition: Callable[[], Any]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, "it did not happen"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _states_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet, "IDLE_S", 0.05)


class Broker:
    """mosquitto on a port of its own; killed, it loses what it did not save."""

    def __init__(self, folder: Path, *lines: str) -> None:
        command = shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin")
        if command is None:
            pytest.skip("needs a broker: apt install mosquitto")
        self.command = command
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.config = folder / "mosquitto.conf"
        self.folder = folder / "saved"
        self.folder.mkdir()
        own = f"listener {self.port} 127.0.0.1\npersistence_location {self.folder}/\n"
        own += "persistence true\nuser root\nmax_queued_messages 0\n"
        self.config.write_text(own + "\n".join(lines or ("allow_anonymous true",)) + "\n")
        self.child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.child = subprocess.Popen(
            [self.command, "-c", str(self.config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(self._listens)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def save(self) -> None:
        """Write sessions and retained messages to disk now."""
        assert self.child is not None
        saved = self.folder / "mosquitto.db"
        before = saved.stat().st_mtime_ns if saved.exists() else 0
        self.child.send_signal(signal.SIGUSR1)
        until(lambda: saved.exists() and saved.stat().st_mtime_ns != before)

    def kill(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            self.child = None


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(tmp_path)
    made.start()
    yield made
    made.kill()


class Listener:
    """A client with a session that the broker keeps, so that it misses nothing."""

    def __init__(self, port: int, client_id: str = "listener") -> None:
        self.got: list[Any] = []
        client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id, clean_session=False)
        self.client = client
        self.ready = threading.Event()
        client.on_connect = lambda *args: client.subscribe("#", 1)
        client.on_subscribe = lambda *args: self.ready.set()
        client.on_message = lambda client, userdata, message: self.got.append(message)
        client.reconnect_delay_set(1, 1)
        client.connect_async("127.0.0.1", port)
        client.loop_start()
        assert self.ready.wait(PATIENCE_S)

    def on(self, topic: str) -> list[Any]:
        return [message for message in self.got if message.topic == topic]

    def texts(self, topic: str) -> list[str]:
        return [message.payload.decode() for message in self.on(topic)]

    def records(self, topic: str) -> list[Any]:
        return [json.loads(text) for text in self.texts(topic)]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def point_of(target: float, measure: Any = "accuracy") -> OperatingPoint:
    return OperatingPoint(
        measure=measure,
        target=target,
        knobs=Knobs(reuse_threshold=0.1),
        accuracy=target,
        recall=None,
        filtering_rate=0.5,
        bound=target,
        kind="estimate",
    )


class Desk:
    """What the daemon is to the sink."""

    def __init__(self, *names: str) -> None:
        self.sources = [SourceStatus(name, task="presence:person") for name in names]
        for source in self.sources:
            source.points = [point_of(0.9), point_of(0.95), point_of(0.8, "recall")]

    def status(self) -> Status:
        return Status("1", sources=self.sources)

    def set_enabled(self, source: str, enabled: bool) -> None:
        self._of(source).enabled = enabled

    def set_target(self, source: str, measure: str, target: float) -> OperatingPoint:
        status = self._of(source)
        for row, point in enumerate(status.points):
            if (point.measure, point.target) == (measure, target):
                status.chosen = row
                return point
        raise ConfigError(f"{source} has no row for {measure} {target:g}")

    def picture(self, source: str) -> Image | None:
        return None

    def _of(self, source: str) -> SourceStatus:
        return next(status for status in self.sources if status.name == source)


class Running:
    """A sink behind its outlet."""

    def __init__(self, port: int, desk: Desk | None = None, **config: Any) -> None:
        self.desk = desk or Desk("yard")
        settings = MqttSinkConfig(port=port, **{"topic": "home/edge", **config})
        self.sink = MqttSink(settings, self.desk, reconnect_s=(1, 1))
        self.outlet = Outlet("mqtt", self.sink, 1, 0.05)

    def result(self, index: int) -> None:
        result = Result(1, Action.INFER, "why", index, float(index), "yard")
        self.outlet.put_result(result, Sample(None, float(index), index, "yard"))

    def event(self, name: str) -> None:
        self.outlet.put_event(Event("begun", name, "yard", 1, "", "", 0.0))

    @property
    def counts(self) -> Any:
        return self.outlet.status().counts

    def close(self) -> None:
        self.outlet.close(PATIENCE_S / 6)


@pytest.fixture
def run() -> Iterator[Callable[..., Any]]:
    """Start things that are closed at the end; then no thread is left."""
    before = set(threading.enumerate())
    started: list[Any] = []

    def start(made: Any) -> Any:
        started.append(made)
        return made

    yield start
    for made in reversed(started):
        made.close()
    until(lambda: not set(threading.enumerate()) - before)


def test_results_events_and_errors_arrive_under_their_topics(
    broker: Broker, run: Callable[..., Any]
) -> None:
    listener = run(Listener(broker.port))
    sink = run(Running(broker.port, results=True))
    sink.result(5)
    sink.event("e")
    sink.outlet.put_error("yard", Sample(None, 2.0, 6, "yard"), "the model raised")
    assert sink.outlet.drain(PATIENCE_S)
    until(lambda: listener.on("home/edge/yard/error"))
    (result,) = listener.records("home/edge/yard/result")
    (event,) = listener.records("home/edge/yard/event")
    (error,) = listener.records("home/edge/yard/error")
    assert (result["index"], event["id"], error["error"]) == (5, "e", "the model raised")
    assert listener.on("home/edge/yard/event")[0].qos == 1
    assert sink.counts["sent"] >= 3
    assert sink.outlet.status().sentence == ""


def test_nothing_retained_is_left_of_a_source_that_is_gone(
    broker: Broker, run: Callable[..., Any]
) -> None:
    sink = run(Running(broker.port, Desk("yard", "gate")))
    listener = run(Listener(broker.port))
    until(lambda: listener.on("home/edge/gate/state") and listener.on("home/edge/yard/state"))
    sink.desk.sources.pop()
    until(lambda: listener.texts("home/edge/gate/state")[-1] == "")
    until(lambda: not _retained(broker, run, "gate"))
    assert _retained(broker, run, "yard")


def _retained(broker: Broker, run: Callable[..., Any], source: str) -> list[str]:
    """The topics about a source that a newcomer gets."""
    newcomer = run(Listener(broker.port, client_id="newcomer"))
    until(lambda: newcomer.on("home/edge/status"))
    time.sleep(0.2)
    topics = [message.topic for message in newcomer.got if source in message.topic]
    newcomer.close()
    return topics


def test_the_state_is_retained_and_sent_when_it_changes(
    broker: Broker, run: Callable[..., Any]
) -> None:
    listener = run(Listener(broker.port))
    sink = run(Running(broker.port))
    source = sink.desk.sources[0]
    topic = "home/edge/yard/state"
    until(lambda: listener.on(topic))
    assert listener.records(topic) == [
        {
            "active": False,
            "value": None,
            "filtering_rate": None,
            "state": "starting",
            "enabled": True,
            "target": 0.9,
            "measure": "accuracy",
        }
    ]
    source.last_value, source.state, source.event_active = 3, "live", True
    until(lambda: len(listener.on(topic)) == 2)
    for skipped in range(100):  # the rate alone is not worth a message at once
        source.counts["skip"] = skipped
        source.counts["infer"] = 1
        time.sleep(0.002)
    source.event_active = False
    until(lambda: len(listener.on(topic)) == 3)
    assert [state["active"] for state in listener.records(topic)] == [False, True, False]
    assert listener.records(topic)[-1]["filtering_rate"] == 0.99
    later = run(Listener(broker.port, "later"))
    until(lambda: later.on(topic))
    assert later.on(topic)[0].retain
    assert later.records(topic)[0] == listener.records(topic)[-1]


def test_home_assistant_finds_each_source(broker: Broker, run: Callable[..., Any]) -> None:
    run(Running(broker.port, Desk("yard", "door"), commands=True))
    late = run(Listener(broker.port, "late"))
    until(lambda: len([m for m in late.got if m.topic.startswith("homeassistant/")]) >= 10)
    found = {m.topic: json.loads(m.payload) for m in late.got if m.topic.endswith("/config")}
    node = "home_edge_yard"
    assert {topic for topic in found if "yard" in topic} == {
        f"homeassistant/binary_sensor/{node}/event/config",
        f"homeassistant/sensor/{node}/value/config",
        f"homeassistant/sensor/{node}/filtering_rate/config",
        f"homeassistant/switch/{node}/enabled/config",
        f"homeassistant/number/{node}/target/config",
    }
    assert len({entity["unique_id"] for entity in found.values()}) == 10
    for entity in found.values():
        assert entity["availability_topic"] == "home/edge/status"
        assert entity["state_topic"] in ("home/edge/yard/state", "home/edge/door/state")
        assert entity["device"]["identifiers"]
    number = found[f"homeassistant/number/{node}/target/config"]
    assert (number["min"], number["max"]) == (0.9, 0.95)
    assert number["command_topic"] == "home/edge/yard/target/set"


def test_without_commands_there_is_no_switch_even_if_there_was_one(
    broker: Broker, run: Callable[..., Any]
) -> None:
    first = Running(broker.port, commands=True)
    listener = run(Listener(broker.port))
    topic = "homeassistant/switch/home_edge_yard/enabled/config"
    until(lambda: listener.texts(topic))
    first.close()
    run(Running(broker.port))
    until(lambda: "" in listener.texts(topic))
    later = run(Listener(broker.port, "later"))
    until(lambda: later.on("homeassistant/sensor/home_edge_yard/value/config"))
    assert not later.on(topic)


def test_all_is_sent_again_when_the_broker_has_forgotten_it(
    broker: Broker, run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "infi_edge")
    sink = run(Running(broker.port))
    until(lambda: sink.sink.queued == 0 and sink.sink._states)
    broker.kill()
    until(lambda: "is away" in sink.outlet.status().sentence or "cannot be" in caplog.text)
    for saved in broker.folder.iterdir():
        saved.unlink()
    broker.start()
    until(lambda: sink.counts["reconnects"] == 1)
    later = run(Listener(broker.port, "later"))
    until(lambda: later.on("home/edge/yard/state"))
    assert later.texts("home/edge/status") == ["online"]
    assert later.on("homeassistant/binary_sensor/home_edge_yard/event/config")
    until(lambda: "works again" in caplog.text)


def outage(broker: Broker, run: Callable[..., Any], away_s: float, events: int) -> None:
    """Kill the broker while messages go out; all of them arrive after it is back."""
    listener = Listener(broker.port)
    sink = run(Running(broker.port, discovery="", queue=events))
    for index in range(50):
        sink.event(f"before {index}")
    assert sink.outlet.drain(PATIENCE_S)
    until(lambda: len(listener.on("home/edge/yard/event")) == 50)
    listener.close()  # its session stays: the broker keeps for it what comes
    broker.save()
    broker.kill()
    end_s = time.monotonic() + away_s
    for index in range(events):
        sink.event(f"while {index}")
    until(lambda: time.monotonic() >= end_s)
    assert sink.outlet.status().queued >= events
    broker.start()
    assert sink.outlet.drain(PATIENCE_S)
    got = run(Listener(broker.port))
    topic = "home/edge/yard/event"
    wanted = {f"while {index}" for index in range(events)}
    until(lambda: wanted <= {event["id"] for event in got.records(topic)})
    assert [e["id"] for e in got.records(topic)] == [f"while {i}" for i in range(events)]
    assert sink.counts["dropped"] == 0


def test_a_broker_that_was_killed_gets_everything_in_order(
    broker: Broker, run: Callable[..., Any]
) -> None:
    outage(broker, run, 1.0, 3 * WINDOW)


@pytest.mark.slow
def test_a_broker_that_was_killed_for_30_s_gets_everything_in_order(
    broker: Broker, run: Callable[..., Any]
) -> None:
    outage(broker, run, 30.0, 5000)


def test_what_is_over_the_queue_is_counted_and_the_loop_goes_on(
    broker: Broker, run: Callable[..., Any]
) -> None:
    sink = run(Running(broker.port, discovery="", queue=20, results=True))
    until(lambda: sink.counts["sent"] >= 2)
    broker.kill()
    until(lambda: sink.outlet.status().sentence)
    for index in range(WINDOW + 200):
        sink.result(index)
    for index in range(10):
        sink.event(f"{index}")
    until(lambda: sink.outlet.status().queued <= WINDOW + 21)
    assert sink.counts["dropped"] >= 180
    assert len(sink.outlet._events) + sink.sink.queued >= 10


def test_a_broker_that_is_not_there_yet_is_waited_for(
    tmp_path: Path, run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    broker = Broker(tmp_path)
    sink = run(Running(broker.port))
    sink.event("early")
    until(lambda: "cannot be reached" in sink.outlet.status().sentence)
    broker.start()
    try:
        assert sink.outlet.drain(PATIENCE_S)
        assert sink.outlet.status().sentence == ""
        assert caplog.text.count("Connection refused") == 1
    finally:
        broker.kill()


def test_closing_while_the_broker_is_away_does_not_take_long(tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    sink = Running(broker.port)
    for index in range(10):
        sink.event(f"{index}")
    until(lambda: sink.sink.queued == 10)
    began_s = time.monotonic()
    sink.outlet.close(1.5)
    assert time.monotonic() - began_s < PATIENCE_S / 4
    assert sink.counts["dropped"] == 10


def test_at_the_end_the_sink_says_offline(broker: Broker, run: Callable[..., Any]) -> None:
    listener = run(Listener(broker.port))
    sink = Running(broker.port)
    until(lambda: listener.texts("home/edge/status") == ["online"])
    sink.close()
    until(lambda: listener.texts("home/edge/status") == ["online", "offline"])


def test_a_goodbye_that_comes_late_does_not_leave_it_offline(
    broker: Broker, run: Callable[..., Any]
) -> None:
    """As when a reload opens the new sink before it closes the old one."""
    listener = run(Listener(broker.port))
    old = Running(broker.port, client_id="old")
    run(Running(broker.port, client_id="new"))
    until(lambda: listener.texts("home/edge/status") == ["online", "online"])
    old.close()
    until(lambda: listener.texts("home/edge/status")[2:] == ["offline", "online"])


DYING = """
import sys, time
from infi_edge.config import MqttSinkConfig
from infi_edge.sinks.mqtt import MqttSink
MqttSink(MqttSinkConfig(port=int(sys.argv[1]), topic="home/edge"), None)
time.sleep(600)
"""


def test_a_daemon_that_dies_is_offline_and_the_next_one_online(
    broker: Broker, run: Callable[..., Any]
) -> None:
    listener = run(Listener(broker.port))
    for died in range(2):
        with subprocess.Popen([sys.executable, "-c", DYING, str(broker.port)]) as child:
            until(lambda d=died: listener.texts("home/edge/status")[2 * d :] == ["online"])
            child.kill()
        until(lambda d=died: listener.texts("home/edge/status")[2 * d :] == ["online", "offline"])


def test_commands_enable_disable_and_change_the_target(
    broker: Broker, run: Callable[..., Any]
) -> None:
    listener = run(Listener(broker.port))
    sink = run(Running(broker.port, Desk("yard", "door"), commands=True))
    yard, door = sink.desk.sources
    topic = "home/edge/yard/state"
    until(lambda: listener.on(topic))
    listener.client.publish("home/edge/yard/enabled/set", "OFF", 1)
    until(lambda: not yard.enabled)
    until(lambda: listener.records(topic)[-1]["enabled"] is False)
    assert door.enabled
    listener.client.publish("home/edge/yard/enabled/set", "ON", 1)
    until(lambda: yard.enabled)
    listener.client.publish("home/edge/yard/target/set", "0.95", 1)
    until(lambda: yard.chosen == 1)
    until(lambda: listener.records(topic)[-1]["target"] == 0.95)
    assert sink.counts["commands"] == 3
    yard.chosen = 2  # the target is then one of recall
    listener.client.publish("home/edge/yard/target/set", "0.95", 1)
    until(lambda: sink.counts["bad_command"] == 1)
    assert yard.chosen == 2


def test_bad_commands_are_counted_and_logged_once(
    broker: Broker, run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    listener = run(Listener(broker.port))
    sink = run(Running(broker.port, commands=True))
    until(lambda: listener.on("home/edge/yard/state"))
    bad = [
        ("yard/enabled/set", b"maybe"),
        ("yard/enabled/set", b"maybe"),
        ("yard/enabled/set", b"\x1b[2J\xff"),
        ("yard/enabled/set", b"x" * 100_000),
        ("yard/target/set", b"nan"),
        ("yard/target/set", b"0,95"),
        ("yard/target/set", b"7"),
        ("yard/target/set", b"0.5"),
        ("nowhere/enabled/set", b"ON"),
        ("../enabled/set", b"ON"),
    ]
    for topic, payload in bad:
        listener.client.publish(f"home/edge/{topic}", payload, 1)
    until(lambda: sink.counts["bad_command"] == len(bad))
    assert sink.counts["commands"] == 0
    assert sink.desk.sources[0].enabled
    assert caplog.text.count("'maybe'") == 1
    assert "yard has no row for accuracy 0.5" in caplog.text
    assert "\x1b" not in caplog.text
    assert len(caplog.text) < 5000
    until(lambda: len(listener.on("home/edge/yard/state")) >= 2)  # what stays is told again


def test_a_defect_behind_a_command_does_not_end_the_connection(
    broker: Broker, run: Callable[..., Any]
) -> None:
    listener = run(Listener(broker.port))
    sink = run(Running(broker.port, commands=True))
    until(lambda: listener.on("home/edge/yard/state"))
    sink.desk.set_enabled = lambda source, enabled: 1 / 0
    listener.client.publish("home/edge/yard/enabled/set", "ON", 1)
    until(lambda: sink.counts["bad_command"] == 1)
    listener.client.publish("home/edge/yard/target/set", "0.95", 1)
    until(lambda: sink.desk.sources[0].chosen == 1)


def test_a_retained_command_is_not_obeyed_at_each_connection(
    broker: Broker, run: Callable[..., Any]
) -> None:
    listener = run(Listener(broker.port))
    listener.client.publish("home/edge/yard/enabled/set", "OFF", 1, retain=True)
    until(lambda: listener.on("home/edge/yard/enabled/set"))
    sink = run(Running(broker.port, commands=True))
    until(lambda: sink.counts["bad_command"] == 1)
    assert sink.desk.sources[0].enabled


def test_without_commands_nothing_is_obeyed(broker: Broker, run: Callable[..., Any]) -> None:
    listener = run(Listener(broker.port))
    sink = run(Running(broker.port))
    until(lambda: listener.on("home/edge/yard/state"))
    listener.client.publish("home/edge/yard/enabled/set", "OFF", 1)
    until(lambda: listener.on("home/edge/yard/enabled/set"))
    sink.event("after")
    until(lambda: listener.on("home/edge/yard/event"))
    assert sink.desk.sources[0].enabled
    assert sink.counts["commands"] == sink.counts["bad_command"] == 0


def test_a_password_is_read_at_each_connection_and_never_told(
    tmp_path: Path, run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    passwords = tmp_path / "passwords"
    passwords.touch(0o600)
    broker = Broker(tmp_path, "allow_anonymous false", f"password_file {passwords}")
    subprocess.run(["mosquitto_passwd", "-b", str(passwords), "me", "right horse"], check=True)
    broker.start()
    mine = tmp_path / "mine"
    mine.write_text("wrong horse\n")
    try:
        sink = run(Running(broker.port, user="me", password_file=str(mine)))
        sink.event("e")
        until(lambda: "refuses the connection: Not authorized" in sink.outlet.status().sentence)
        mine.write_text("right horse\n")
        assert sink.outlet.drain(PATIENCE_S)
        broker.kill()
        mine.unlink()  # then the one that was read last is good enough
        broker.start()
        sink.event("f")
        assert sink.outlet.drain(PATIENCE_S)
        assert "horse" not in caplog.text
    finally:
        broker.kill()


def openssl(*arguments: str) -> None:
    try:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs openssl: apt install openssl")


def make_certificate(folder: Path, name: str, authority: str) -> None:
    key, request = folder / f"{name}.key", folder / f"{name}.csr"
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(request),
            "-subj", f"/CN={name}")  # fmt: skip
    extensions = folder / "extensions"
    extensions.write_text("subjectAltName=DNS:localhost\n")
    openssl("x509", "-req", "-in", str(request), "-CA", str(folder / f"{authority}.crt"),
            "-CAkey", str(folder / f"{authority}.key"), "-CAcreateserial", "-days", "2",
            "-out", str(folder / f"{name}.crt"), "-extfile", str(extensions))  # fmt: skip


def test_tls_with_certificates_on_both_sides(tmp_path: Path, run: Callable[..., Any]) -> None:
    for name in ("ca", "stranger"):
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
                f"/CN={name}", "-keyout", str(tmp_path / f"{name}.key"),
                "-out", str(tmp_path / f"{name}.crt"))  # fmt: skip
    make_certificate(tmp_path, "server", "ca")
    make_certificate(tmp_path, "client", "ca")
    broker = Broker(
        tmp_path,
        f"cafile {tmp_path}/ca.crt",
        f"certfile {tmp_path}/server.crt",
        f"keyfile {tmp_path}/server.key",
        "require_certificate true",
        "allow_anonymous true",
    )
    broker.start()
    mine = {"cert_file": str(tmp_path / "client.crt"), "key_file": str(tmp_path / "client.key")}
    shared = {"host": "localhost", "tls": True, **mine}
    try:
        wary = run(Running(broker.port, ca_file=str(tmp_path / "stranger.crt"), **shared))
        until(lambda: "certificate verify failed" in wary.outlet.status().sentence)
        sink = run(Running(broker.port, ca_file=str(tmp_path / "ca.crt"), **shared))
        sink.event("e")
        assert sink.outlet.drain(PATIENCE_S)
        assert sink.counts["sent"] >= 2
    finally:
        broker.kill()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"topic": "home/#"}, "topic 'home/#' of an mqtt sink cannot be"),
        ({"topic": "/"}, "has no topic"),
        ({"discovery": "a+b"}, "discovery 'a.b'"),
        ({"host": "a..b"}, "no name of a broker"),
        ({"port": 70_000}, "no port of a broker"),
        ({"ca_file": "ca.pem"}, "no tls = true"),
        ({"password_file": "secret"}, "no user"),
        ({"user": "me", "password_file": "/nowhere/secret"}, "cannot be read: No such file"),
        ({"tls": True, "ca_file": "/nowhere/ca"}, "certificates .* cannot be used: No such file"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    config: dict[str, Any], words: str, refuses: Callable[..., Any]
) -> None:
    before = threading.active_count()
    with refuses(ConfigError, words):
        MqttSink(MqttSinkConfig(**config), Desk())
    assert threading.active_count() == before
