"""Where results and events go."""

from __future__ import annotations

from collections.abc import Mapping

from infi_edge.config import (
    JsonlSinkConfig,
    MqttSinkConfig,
    SinkConfig,
    SnapshotSinkConfig,
)
from infi_edge.errors import ConfigError
from infi_edge.sinks.callback import CallbackSink
from infi_edge.sinks.jsonl import JsonLines
from infi_edge.sinks.outlet import NotNow, Outlet
from infi_edge.sinks.sink import Sink, event_record, result_record
from infi_edge.sinks.snapshots import Snapshots
from infi_edge.status import Control

__all__ = [
    "CallbackSink",
    "JsonLines",
    "NotNow",
    "Outlet",
    "Sink",
    "Snapshots",
    "event_record",
    "make_sink",
    "result_record",
]  # fmt: skip


def make_sink(
    name: str, config: SinkConfig, control: Control, rates_hz: Mapping[str, float] | None = None
) -> Sink:
    """Return the sink of a table [sinks.NAME].

    rates_hz: of the sources whose inputs are sound; their snapshots are then .wav files.
    Raises ConfigError, that names the sink, if it cannot be opened.
    """
    try:
        return _make(config, control, rates_hz)
    except ConfigError as error:
        raise ConfigError(f"sinks.{name}: {error}") from error


def _make(config: SinkConfig, control: Control, rates_hz: Mapping[str, float] | None) -> Sink:
    if isinstance(config, JsonlSinkConfig):
        return JsonLines(config.path, config.max_bytes, config.keep, config.results, config.events)
    if isinstance(config, SnapshotSinkConfig):
        return Snapshots(config, rates_hz)
    # paho is optional, and TLS takes memory: each only where it is used.
    if isinstance(config, MqttSinkConfig):
        from infi_edge.sinks.mqtt import MqttSink

        return MqttSink(config, control)
    from infi_edge.sinks.http import HttpPost

    return HttpPost(config)
