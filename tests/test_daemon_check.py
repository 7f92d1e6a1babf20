"""`infi-edge check CONFIG`: what is right, what is wrong and in which line, and nothing runs."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path

import pytest

from infi_edge.daemon import check
from infi_edge.errors import InfiEdgeError
from infi_edge.preprocess import AudioSpec, MotionSpec
from tests.daemon_run import (
    ROOT,
    Tables,
    a_source,
    command,
    prepare,
    until,
    write_config,
    write_filter,
    write_rows,
)

HIDES = """
import os, sys
for name in os.environ["HIDDEN"].split():
    sys.modules[name] = None
"""


@pytest.fixture
def config(tmp_path: Path) -> Tables:
    tables = prepare(tmp_path)
    write_rows(tmp_path / "rows.npy", [0, 1, 2])
    tables["sources"] = {"yard": a_source("rows.npy", fast=True)}
    return tables


def test_a_right_configuration_is_right_and_nothing_runs(tmp_path: Path, config: Tables) -> None:
    config["sinks"]["home"] = {"kind": "mqtt", "host": "broker.invalid"}
    config["sinks"]["pictures"] = {"kind": "snapshots", "folder": "pictures"}
    write_config(tmp_path, config)
    before = {path.name for path in tmp_path.iterdir()}
    done = command(tmp_path, "check", "daemon.toml", PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "daemon.toml is right\n"
    assert done.stderr == ""
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_wrong_one_is_a_sentence_with_file_and_line(tmp_path: Path, config: Tables) -> None:
    config["sources"]["yard"]["filtre"] = "m.infi"
    text = write_config(tmp_path, config).read_text()
    line = 1 + text.splitlines().index('filtre = "m.infi"')
    done = command(tmp_path, "check", "daemon.toml")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"infi-edge: daemon.toml, line {line}: sources.yard.filtre is unknown; "
        "did you mean filter?\n"
    )


@pytest.mark.parametrize(
    ("sink", "words"),
    [
        ({"kind": "jsonl", "path": "absent/results.jsonl"}, "absent, which does not exist"),
        ({"kind": "http", "url": "htp://yard.example/"}, "is no URL"),
        ({"kind": "jsonl", "path": "results.jsonl"}, "same place as sinks."),
    ],
)
def test_a_sink_that_has_no_place_is_refused_with_its_line(
    tmp_path: Path, config: Tables, sink: Tables, words: str
) -> None:
    config["sinks"] = {"first": {"kind": "jsonl", "path": "results.jsonl"}, "second": sink}
    write_config(tmp_path, config)
    done = command(tmp_path, "check", "daemon.toml")
    assert done.returncode == 2
    assert words in done.stderr
    assert "daemon.toml, line " in done.stderr
    assert "sinks.second" in done.stderr


def test_results_may_go_to_the_state_folder_that_is_not_there_yet(
    tmp_path: Path, config: Tables
) -> None:
    config["sinks"] = {"log": {"kind": "jsonl", "path": "state/results.jsonl", "events": False}}
    write_config(tmp_path, config)
    assert command(tmp_path, "check", "daemon.toml").returncode == 0
    done = command(tmp_path, "run", "daemon.toml")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "state" / "results.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("package", "hidden", "extra"),
    [("paho-mqtt", "paho", "mqtt"), ("prometheus-client", "prometheus_client", "web")],
)
def test_a_package_that_is_missing_is_named_with_its_extra(
    tmp_path: Path, config: Tables, package: str, hidden: str, extra: str
) -> None:
    (tmp_path / "hides").mkdir()
    (tmp_path / "hides" / "sitecustomize.py").write_text(HIDES)
    config["sinks"]["home"] = {"kind": "mqtt"}
    write_config(tmp_path, config)
    path = f"{tmp_path / 'hides'}:{ROOT}"
    for name in ("check", "run"):
        done = command(tmp_path, name, "daemon.toml", PYTHONPATH=path, HIDDEN=hidden)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert f"needs the package {package}: pip install 'infi-edge[{extra}]'" in done.stderr


@pytest.mark.parametrize(
    ("address", "hidden", "words"),
    [
        ("microphone:0", "sounddevice", r"sounddevice: pip install 'infi-edge\[microphone\]'"),
        ("i2c:mpu6050@0x68", "smbus2", r"smbus2: pip install 'infi-edge\[i2c\]'"),
        ("serial:/dev/ttyUSB0@115200", "serial", r"pyserial: pip install 'infi-edge\[serial\]'"),
        ("rows.npy", "waitress", r"waitress: pip install 'infi-edge\[web\]'"),
    ],
)
def test_so_is_a_package_of_a_source(
    tmp_path: Path,
    config: Tables,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    hidden: str,
    words: str,
) -> None:
    spec = {
        "microphone:0": AudioSpec(),
        "rows.npy": None,
    }.get(address, MotionSpec(channels=("accel_x", "accel_y"), rate_hz=50.0))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "daemon_models", raising=False)
    monkeypatch.setitem(sys.modules, hidden, None)
    config["plugins"] = []
    if spec is not None:
        write_filter(tmp_path / "m.infi", spec=spec)
    config["sources"]["yard"] = a_source(address)
    refused(tmp_path, config, words)


def refused(folder: Path, config: Tables, words: str) -> None:
    """Check a configuration here; it is refused in one line, and leaves no thread."""
    before = threading.active_count()
    with pytest.raises(InfiEdgeError) as caught:
        check(write_config(folder, config))
    message = str(caught.value)
    assert re.search(words, message), message
    assert message.isprintable()
    until(lambda: threading.active_count() == before)


def test_a_recording_of_other_inputs_is_refused(
    tmp_path: Path, config: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "daemon_models", raising=False)
    config["plugins"] = []
    (tmp_path / "notes.txt").write_text("no numbers\n")
    config["sources"]["yard"]["address"] = "notes.txt"
    refused(tmp_path, config, "notes.txt")
