"""MQTT: results, events and states to a broker; commands from it; Home Assistant's discovery."""

from __future__ import annotations

import hashlib
import logging
import math
import platform
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from infi_edge.config import MqttSinkConfig
from infi_edge.errors import ConfigError, InfiEdgeError
from infi_edge.events import Event
from infi_edge.sinks.homeassistant import discovery
from infi_edge.sinks.jsonl import error_record
from infi_edge.sinks.outlet import NotNow
from infi_edge.sinks.sink import event_record, result_record
from infi_edge.status import Control, SourceStatus
from infi_edge.types import Result, Sample

try:
    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
except ImportError as error:
    raise ConfigError(
        "an mqtt sink needs the package paho-mqtt: pip install 'infi-edge[mqtt]'"
    ) from error

log = logging.getLogger("infi_edge")

WINDOW = 100
"""Messages that the broker has not acknowledged yet; the others wait in the outlet."""

KEEPALIVE_S = 30
RECONNECT_S = (1, 60)
RATE_EVERY_S = 30.0
"""A filtering rate that alone has changed is told so often."""

RATE_STEP = 0.01
COMMAND_BYTES = 64


class MqttSink:
    """The sink. paho's thread holds the connection and makes it again; QoS 1 throughout.

    Under TOPIC: `status` (online or offline, retained), and for each source SOURCE/result, /error,
    /event, /state (retained), and the commands /enabled/set (ON, OFF) and /target/set (0.95). At
    every connection, availability, discovery and states are sent again.
    """

    kind = "mqtt"

    def __init__(
        self, config: MqttSinkConfig, control: Control, reconnect_s: tuple[int, int] = RECONNECT_S
    ) -> None:
        """control: what is going on, and what commands change. reconnect_s: least and most wait.

        counts: `sent` are the messages that the broker has acknowledged.
        Raises ConfigError for settings that make no sense, or files that cannot be read.
        """
        self.counts: Counter[str] = Counter(
            sent=0, dropped=0, failed=0, reconnects=0, commands=0, bad_command=0
        )
        self.wants_results, self.wants_events = config.results, config.events
        self.queue_size = config.queue
        self._config, self._control = config, control
        port = config.port or (8883 if config.tls else 1883)
        self._broker = f"broker {config.host}:{port}"
        self.sentence = f"{self._broker} is not connected yet; messages wait"
        self._topic = config.topic.strip("/")
        self._lock = threading.Lock()
        self._outstanding = 0
        self._connected = self._closing = False
        self._connections = self._announced_for = 0
        self._announced: dict[str, list[str]] = {}
        self._states: dict[str, tuple[dict[str, Any], float]] = {}
        self._told: set[str] = set()
        _check(config, self._topic)
        self._client = client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=config.client_id or _client_id(self._topic)
        )
        self._credentials()
        _use_tls(client, config)
        client.will_set(f"{self._topic}/status", "offline", qos=1, retain=True)
        client.max_inflight_messages_set(2 * WINDOW)
        client.reconnect_delay_set(*reconnect_s)
        client.on_pre_connect = self._on_pre_connect
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        client.connect_async(config.host, port, KEEPALIVE_S)
        client.loop_start()

    @property
    def queued(self) -> int:
        """Messages that the broker has not acknowledged."""
        return self._outstanding

    # The outlet's thread.

    def write(self, result: Result, sample: Sample) -> None:
        self._message(f"{self._topic}/{result.source}/result", result_record(result))

    def event(self, event: Event) -> None:
        self._message(f"{self._topic}/{event.source}/event", event_record(event))
        self.flush()

    def error(self, source: str, sample: Sample, message: str) -> None:
        self._message(f"{self._topic}/{source}/error", error_record(source, sample, message))

    def flush(self) -> None:
        """Send discovery after a connection, and the states that have changed."""
        self._client.loop_start()  # does nothing, unless a defect has ended paho's thread
        if not self._connected:
            return
        if self._announced_for != self._connections:
            self._announced_for = self._connections
            self._announced.clear()
            self._states.clear()
        sources = self._control.status().sources
        for name in self._announced.keys() - {source.name for source in sources}:
            for topic in (*self._announced.pop(name), f"{self._topic}/{name}/state"):
                self._publish(topic, b"", retain=True)  # what is retained of it goes
        for source in sources:
            if source.name not in self._announced:
                self._announced[source.name] = self._announce(source)
            self._tell_state(source)

    def close(self) -> None:
        """Say goodbye, and wait a moment for what the broker has not acknowledged."""
        self._closing = True
        if self._connected:
            self._publish(f"{self._topic}/status", b"offline", retain=True)
            until_s = time.monotonic() + 0.2
            while self._outstanding and time.monotonic() < until_s:
                time.sleep(0.005)
        self.counts["dropped"] += self._outstanding
        self._client.disconnect()
        # paho's thread may be in an attempt to connect; it ends after that by itself.
        ending = threading.Thread(target=self._client.loop_stop, name="mqtt end", daemon=True)
        ending.start()
        ending.join(0.2)

    def _message(self, topic: str, record: dict[str, Any]) -> None:
        if self._outstanding >= WINDOW:
            raise NotNow(0.02 if self._connected else 0.5)
        self._publish(topic, msgspec.json.encode(record))

    def _announce(self, source: SourceStatus) -> list[str]:
        """Let Home Assistant find a source; return the topics."""
        if not self._config.discovery:
            return []
        entities = discovery(self._config.discovery, self._topic, source, self._config.commands)
        for topic, entity in entities.items():
            payload = b"" if entity is None else msgspec.json.encode(entity)
            self._publish(topic, payload, retain=True)
        return list(entities)

    def _tell_state(self, source: SourceStatus) -> None:
        state = state_record(source)
        told, told_s = self._states.get(source.name, ({}, 0.0))
        now_s = time.monotonic()
        if told and {**told, "filtering_rate": None} == {**state, "filtering_rate": None}:
            change = abs((state["filtering_rate"] or 0.0) - (told["filtering_rate"] or 0.0))
            if change < RATE_STEP or now_s - told_s < RATE_EVERY_S:
                return
        self._states[source.name] = (state, now_s)
        self._publish(f"{self._topic}/{source.name}/state", msgspec.json.encode(state), retain=True)

    def _publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        with self._lock:
            self._outstanding += 1
        info = self._client.publish(topic, payload, qos=1, retain=retain)
        if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            with self._lock:
                self._outstanding -= 1
                self.counts["dropped"] += 1

    def _credentials(self) -> None:
        """Read the password; again at each connection, as secrets are replaced."""
        config = self._config
        if not config.user:
            return
        password = None
        if config.password_file is not None:
            try:
                password = Path(config.password_file).read_text(encoding="utf-8").strip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "it is no text"
                raise ConfigError(
                    f"the password in {config.password_file} cannot be read: {reason}"
                ) from None
        self._client.username_pw_set(config.user, password)

    # paho's thread. What these raised would end it.

    def _on_pre_connect(self, client: paho.Client, userdata: Any) -> None:
        try:
            self._credentials()
        except ConfigError as error:
            self.sentence = str(error)

    def _on_connect(
        self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any
    ) -> None:
        if reason.is_failure:
            self.sentence = f"{self._broker} refuses the connection: {reason}; messages wait"
            return
        topics = [f"{self._topic}/status"]
        if self._config.commands:
            topics += [f"{self._topic}/+/enabled/set", f"{self._topic}/+/target/set"]
        client.subscribe([(topic, 1) for topic in topics])
        self._publish(f"{self._topic}/status", b"online", retain=True)
        self.counts["reconnects"] += self._connections > 0
        self._connections += 1
        self._connected = True
        self.sentence = ""

    def _on_connect_fail(self, client: paho.Client, userdata: Any) -> None:
        error = sys.exc_info()[1]  # paho calls this from its `except OSError`
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        self.sentence = f"{self._broker} cannot be reached: {reason}; messages wait"

    def _on_disconnect(
        self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any
    ) -> None:
        was_connected, self._connected = self._connected, False
        if was_connected and reason.is_failure:
            self.sentence = f"{self._broker} is away; messages wait"

    def _on_publish(
        self, client: paho.Client, userdata: Any, mid: int, reason: Any, properties: Any
    ) -> None:
        with self._lock:
            self._outstanding -= 1
        self.counts["sent"] += 1

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        if message.topic == f"{self._topic}/status":
            return self._on_status(message)
        if message.retain:  # an old one, that would be obeyed again at every connection
            return self._bad_command("a retained command is ignored; send it without retain")
        parts = message.topic[len(self._topic) + 1 :].split("/")
        if len(parts) != 3:
            return self._bad_command("a command has another topic than SOURCE/enabled/set")
        try:
            self._obey(parts[0], parts[1], bytes(message.payload[:COMMAND_BYTES]))
            self.counts["commands"] += 1
        except InfiEdgeError as error:
            self._bad_command(str(error))
        except Exception as error:  # a defect there must not end the connection
            self._bad_command(f"a command failed: {error!r}")
        self._states.pop(parts[0], None)  # the state is the answer
        return None

    def _on_status(self, message: paho.MQTTMessage) -> None:
        # The last will of a dead connection, or another sink's goodbye at a reload, may come late.
        if message.payload == b"offline" and not message.retain and not self._closing:
            self._publish(message.topic, b"online", retain=True)

    def _obey(self, source: str, what: str, payload: bytes) -> None:
        """Raises ConfigError for a command that makes no sense."""
        known = {status.name: status for status in self._control.status().sources}
        if source not in known:
            raise ConfigError(f"a command is for {source[:COMMAND_BYTES]!r}, which is no source")
        text = payload.decode("ascii", "replace").strip()
        if what == "enabled":
            if text not in ("ON", "OFF"):
                raise ConfigError(f"a command for {source} is {text!r}; it takes ON or OFF")
            self._control.set_enabled(source, text == "ON")
            return
        try:
            target = float(text)
        except ValueError:
            target = math.nan
        if not 0 < target < 1:
            raise ConfigError(f"a target for {source} is {text!r}; it takes a share, as in 0.95")
        points = known[source].points
        measure = points[known[source].chosen].measure if points else "accuracy"
        self._control.set_target(source, measure, target)

    def _bad_command(self, sentence: str) -> None:
        self.counts["bad_command"] += 1
        sentence = str(ConfigError(sentence))  # printable, whatever somebody has sent
        if sentence not in self._told and len(self._told) < 100:
            self._told.add(sentence)
            log.warning("%s: %s", self._broker, sentence)


def state_record(source: SourceStatus) -> dict[str, Any]:
    """Return what is retained about a source, as a JSON object."""
    rate = source.filtering_rate
    measure, target = source.target or (None, None)
    return {
        "active": source.event_active,
        "value": source.last_value,
        "filtering_rate": None if rate is None else round(rate, 4),
        "state": source.state,
        "enabled": source.enabled,
        "target": target,
        "measure": measure,
    }


def _check(config: MqttSinkConfig, topic: str) -> None:
    for name, text in (("topic", topic), ("discovery", config.discovery)):
        if not text.isprintable() or set(text) & set("+#"):
            raise ConfigError(f"{name} {text!r} of an mqtt sink cannot be; use words and slashes")
    if not topic:
        raise ConfigError("an mqtt sink has no topic; give one, as in infi-edge")
    files = {name: getattr(config, name) for name in ("ca_file", "cert_file", "key_file")}
    if not config.tls and any(files.values()):
        raise ConfigError("an mqtt sink has certificates but no tls = true; add it")
    if config.password_file is not None and not config.user:
        raise ConfigError("an mqtt sink has a password_file but no user; add it")
    try:
        config.host.encode("idna")
    except UnicodeError:
        raise ConfigError(f"{config.host!r} is no name of a broker") from None
    if config.port is not None and config.port > 65535:
        raise ConfigError(f"{config.port} is no port of a broker; it is at most 65535")


def _client_id(topic: str) -> str:
    # Always the same: the broker then ends an older connection of this client at once, so that its
    # last will does not come after our `online`. At most 23 characters, as brokers must take those.
    return "infi-edge-" + hashlib.sha256(f"{platform.node()} {topic}".encode()).hexdigest()[:12]


def _use_tls(client: paho.Client, config: MqttSinkConfig) -> None:
    if not config.tls:
        return
    try:
        client.tls_set(config.ca_file, config.cert_file, config.key_file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"the certificates of an mqtt sink cannot be used: {reason}") from error
