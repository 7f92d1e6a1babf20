"""A function of one's own as a sink, and making sinks from their configuration."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from infi_edge.config import (
    HttpSinkConfig,
    JsonlSinkConfig,
    SinkConfig,
    SnapshotSinkConfig,
)
from infi_edge.errors import ConfigError
from infi_edge.events import Event
from infi_edge.sinks import CallbackSink, Outlet, make_sink
from infi_edge.status import Control
from infi_edge.types import Action, Result, Sample

NO_CONTROL = cast(Control, None)


def test_functions_get_results_with_their_inputs_and_events() -> None:
    got: list[Any] = []
    sink = CallbackSink(lambda result, sample: got.append((result.index, sample.data)), got.append)
    outlet = Outlet("mine", sink, 10, 0.0)
    event = Event("begun", "e", "yard", 1, "", "", 0.0, Sample("picture", 0.0))
    outlet.put_result(Result(1, Action.INFER, "", 7, 0.0), Sample("picture", 0.0, 7))
    outlet.put_event(event)
    assert outlet.drain(20)
    outlet.close()
    assert got == [(7, "picture"), event]
    assert sink.counts["sent"] == 2


def test_what_a_function_raises_is_counted_and_the_next_result_comes() -> None:
    def mine(result: Result, sample: Sample) -> None:
        if result.index == 0:
            raise ValueError("no such thing")

    sink = CallbackSink(mine)
    sink.write(Result(1, Action.INFER, "", 0, 0.0), Sample(None, 0.0))
    assert sink.sentence == "mine raised ValueError: no such thing"
    sink.write(Result(1, Action.INFER, "", 1, 0.0), Sample(None, 0.0))
    assert (sink.counts["failed"], sink.counts["sent"], sink.sentence) == (1, 1, "")


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (JsonlSinkConfig(path="out.jsonl"), "jsonl"),
        (HttpSinkConfig(url="http://127.0.0.1:9/"), "http"),
        (SnapshotSinkConfig(folder="snapshots"), "snapshots"),
    ],
)
def test_each_configuration_makes_its_sink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: SinkConfig, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    outlet = Outlet("mine", make_sink("mine", config, NO_CONTROL), 10, 1.0)
    assert outlet.status().kind == kind
    outlet.close()


def test_a_sink_that_cannot_be_made_is_named(refuses: Callable[..., Any]) -> None:
    config = HttpSinkConfig(url="gopher://me:secret@host/")
    with refuses(ConfigError, r"^sinks\.mine: the url is no http[^@]*$"):
        make_sink("mine", config, NO_CONTROL)


def test_without_paho_an_mqtt_sink_is_refused_in_one_sentence() -> None:
    script = """
import sys
sys.modules["paho"] = None
from infi_edge.config import MqttSinkConfig
from infi_edge.errors import ConfigError
from infi_edge.sinks import make_sink
try:
    make_sink("mine", MqttSinkConfig(), None)
except ConfigError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == (
        "sinks.mine: an mqtt sink needs the package paho-mqtt: pip install 'infi-edge[mqtt]'\n"
    )
