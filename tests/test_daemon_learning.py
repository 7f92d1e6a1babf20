"""`learn = true` in a daemon: what it learns while it serves, keeps, shows and refuses."""

from __future__ import annotations

import copy
import json
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from infi_edge.config import ModelConfig, SourceConfig
from infi_edge.daemon import Daemon, check, load_config
from infi_edge.errors import ConfigError
from infi_edge.learning.settings import LearnSettings
from infi_edge.learning.state import read_state
from infi_edge.machine import Machine
from infi_edge.preprocess import (
    AudioSpec,
    FeaturesSpec,
    ImageSpec,
    MotionSpec,
    Spec,
    TextSpec,
    VideoSpec,
)
from infi_edge.served import ServedModel
from infi_edge.setups import Setup, draft, make_setup
from infi_edge.types import Action
from tests.daemon_run import (
    PATIENCE_S,
    ROOT,
    Running,
    Tables,
    a_source,
    command,
    prepare,
    running,
    until,
    write_config,
    write_filter,
    write_rows,
)

CYCLE = [0] * 10 + [1] * 10 + [2] * 10
KEEPS_AT_ONCE = """
import infi_edge.learning.keeper
infi_edge.learning.keeper.EVERY_S = infi_edge.learning.keeper.IDLE_EVERY_S = 0.0
"""


def learns(address: str = "ticks:200", **settings: Any) -> Tables:
    """A source without a filter."""
    return {
        "address": address,
        "model": "m",
        "learn": True,
        "task": "value",
        "target_accuracy": 0.9,
        "modality": "features",
        "preprocess": {"size": [8]},
        "learning": {"seed": 1, "cpu_share": 1.0},
        **settings,
    }


@pytest.fixture
def config(tmp_path: Path) -> Tables:
    tables = prepare(tmp_path)
    tables["sources"] = {"yard": learns()}
    return tables


def learned(daemon: Running) -> Tables:
    found = daemon.source("yard")["learning"]
    assert isinstance(found, dict)
    return found


def until_it_filters(daemon: Running, audited: int = 1) -> None:
    daemon.until(lambda: not learned(daemon)["open"])
    daemon.until(lambda: daemon.metric("inputs_total", source="yard", action="reuse") > 40)
    daemon.until(lambda: learned(daemon)["audited"] >= audited)


def first_results(daemon: Running, count: int = 60) -> list[Tables]:
    """Of the first inputs after the last start."""

    def since_start() -> list[Tables]:
        lines = daemon.results("yard")
        begins = [at for at, line in enumerate(lines) if line["index"] == 0]
        return lines[begins[-1] :] if begins else []

    daemon.until(lambda: daemon.answered("yard") >= count)
    daemon.until(lambda: len(since_start()) >= count)
    return since_start()[:count]


def goes_on(lines: list[Tables]) -> bool:
    """Whether there was no second warm-up."""
    return all(line["why"] != "learning" for line in lines) and any(
        line["action"] == "reuse" for line in lines
    )


def right(lines: list[Tables]) -> float:
    """The share of the results that are what the model would have said."""
    hits = [line["value"] == line["index"] // 10 % 3 for line in lines]
    return sum(hits) / len(hits)


def test_it_learns_from_nothing_filters_and_says_how_well(tmp_path: Path, config: Tables) -> None:
    with running(tmp_path, config) as daemon:
        until_it_filters(daemon, audited=3)
        source = daemon.source("yard")
        shown = source["learning"]
        lines = daemon.results("yard")
        after = {
            "audits_total": learned(daemon)["audited"],
            "fits_total": learned(daemon)["fits"],
            "remembered": learned(daemon)["remembered"],
        }
        metrics = {name: daemon.metric(name, source="yard") for name in after}
        low = daemon.metric("live_accuracy_low", source="yard")
        live = daemon.metric("live_accuracy", source="yard")
        high = daemon.metric("live_accuracy_high", source="yard")
        assert 0 < low <= live <= high <= 1
        assert daemon.metric("live_recall_low", source="yard") > 0
        failed_open = daemon.metric("failed_open_total", source="yard")
        assert failed_open == learned(daemon)["failed_open"]
        assert daemon.metric("learn_cpu_seconds_total", source="yard") > 0
        assert daemon.metric("target_ratio", source="yard", measure="accuracy") == 0.9
        assert "infi_edge_expected_filtering_ratio{" not in daemon.ask("/metrics").decode()
        ended = daemon.stop()
    assert all(after[name] <= metrics[name] <= after[name] + 5 for name in after)
    assert right(lines) >= 0.8
    assert {line["why"] for line in lines[:12]} == {"learning"}
    assert shown["accuracy"]["low"] < shown["accuracy"]["estimate"] <= shown["accuracy"]["high"]
    assert shown["recall"] is not None
    assert shown["changes"][0]["what"] == "closed after learning"
    assert source["points"] == []
    assert re.fullmatch(
        r"accuracy of 0.9, learned in service, live \d\.\d{3} \(at least 0\.\d{3}\)(; .*)?",
        source["promise"],
    )
    assert ended.code == 0
    assert not re.search("ERROR|Traceback", ended.log)


def test_while_it_learns_the_promise_says_that_everything_is_inferred(
    tmp_path: Path, config: Tables
) -> None:
    config["sources"]["yard"]["learning"]["warm_up"] = 400
    with running(tmp_path, config) as daemon:
        daemon.until(lambda: daemon.answered("yard") > 20)
        source = daemon.source("yard")
        assert daemon.metric("gate_open", source="yard") == 1
    assert source["learning"]["opened_for"] == "learning"
    assert source["promise"].endswith("; everything is inferred: learning")
    assert set(source["counts"]) == {"infer"}


@pytest.mark.slow
def test_what_was_learned_is_kept_at_the_end_and_the_next_start_goes_on(
    tmp_path: Path, config: Tables
) -> None:
    with running(tmp_path, config) as daemon:
        until_it_filters(daemon)
        before = learned(daemon)
        ended = daemon.stop()
    assert ended.code == 0
    assert ended.seconds < 6
    with running(tmp_path, config) as daemon:
        lines = first_results(daemon)
        after = learned(daemon)
        ended = daemon.stop(signal.SIGINT)
    assert goes_on(lines)
    assert after["inputs"] >= before["inputs"] + 60
    assert after["audited"] >= before["audited"]
    assert after["fits"] >= before["fits"]
    assert after["changes"][: len(before["changes"])] == before["changes"]
    assert "cannot be gone on from" not in ended.log


@pytest.mark.slow
def test_after_a_kill_it_goes_on_from_what_was_kept_last(tmp_path: Path, config: Tables) -> None:
    (tmp_path / "keeps.py").write_text(KEEPS_AT_ONCE)
    config["plugins"].append("keeps.py")
    with running(tmp_path, config) as daemon:
        until_it_filters(daemon)
        kept, now_s = learned(daemon)["inputs"], time.time()
        state = tmp_path / "state" / "yard.learned" / "state.learned"
        daemon.until(lambda: state.exists() and state.stat().st_mtime > now_s)
        daemon.process.kill()
        daemon.process.wait()
    for _ in range(2):
        with running(tmp_path, config) as daemon:
            lines = first_results(daemon)
            inputs = learned(daemon)["inputs"]
            daemon.process.kill()
            daemon.process.wait()
            assert not re.search("ERROR|Traceback|usable|gone on from", daemon.log), daemon.log
        assert goes_on(lines)
        assert inputs > kept


def test_a_damaged_state_is_put_aside_with_one_sentence(tmp_path: Path, config: Tables) -> None:
    folder = tmp_path / "state" / "yard.learned"
    folder.mkdir(parents=True)
    (folder / "state.learned").write_bytes(b"PK" + b"\0" * 500)
    with running(tmp_path, config) as daemon:
        daemon.until(lambda: not learned(daemon)["open"])
        ended = daemon.stop()
    assert ended.count("is kept as state.damaged-1") == 1


def test_a_reload_keeps_the_learner_and_its_answers(tmp_path: Path, config: Tables) -> None:
    other = copy.deepcopy(config)
    other["sources"]["yard"]["events"] = {"end_s": 3.0}
    with running(tmp_path, config) as daemon:
        until_it_filters(daemon)
        before, count = learned(daemon), len(daemon.results("yard"))
        for tables in (config, other):
            done = daemon.metric("reloads_total", outcome="done")
            write_config(tmp_path, tables)
            daemon.reload()
            daemon.until(lambda done=done: daemon.metric("reloads_total", outcome="done") > done)
        daemon.until_log("is in force")
        daemon.until(lambda: len(daemon.results("yard")) > count + 60)
        after, lines = learned(daemon), daemon.results("yard")
        ended = daemon.stop()
    assert after["inputs"] > before["inputs"]
    assert after["changes"][: len(before["changes"])] == before["changes"]
    assert all(line["why"] != "learning" for line in lines[count:])
    assert [line["index"] for line in lines] == list(range(len(lines)))
    assert not re.search("ERROR|Traceback", ended.log)


def test_another_target_is_learned_for_from_what_is_known(tmp_path: Path, config: Tables) -> None:
    other = copy.deepcopy(config)
    other["sources"]["yard"]["target_accuracy"] = 0.95
    with running(tmp_path, config) as daemon:
        until_it_filters(daemon)
        before = learned(daemon)
        write_config(tmp_path, other)
        daemon.reload()
        daemon.until(lambda: learned(daemon)["target"] == 0.95)
        daemon.until(lambda: learned(daemon)["inputs"] > before["inputs"])
        after = learned(daemon)
        reused = daemon.metric("inputs_total", source="yard", action="reuse")
        daemon.until(lambda: daemon.metric("inputs_total", action="reuse") > reused + 40)
        ended = daemon.stop()
    assert after["remembered"] >= before["remembered"]
    assert after["changes"][0] == before["changes"][0]
    assert not re.search("ERROR|Traceback", ended.log)


@pytest.mark.slow
def test_learning_is_switched_on_and_off_by_a_reload(tmp_path: Path, config: Tables) -> None:
    config["sources"]["yard"] = a_source("ticks:200")
    on = copy.deepcopy(config)
    on["sources"]["yard"]["learn"] = True
    with running(tmp_path, config) as daemon:
        daemon.until(lambda: daemon.answered("yard") > 10)
        assert daemon.source("yard")["learning"] is None
        assert "infi_edge_live_accuracy{" not in daemon.ask("/metrics").decode()
        write_config(tmp_path, on)
        daemon.reload()
        daemon.until(lambda: (daemon.source("yard")["learning"] or {}).get("inputs", 0) > 60)
        assert daemon.source("yard")["points"] == []
        write_config(tmp_path, config)
        daemon.reload()
        daemon.until(lambda: daemon.source("yard")["learning"] is None)
        count = daemon.answered("yard")
        daemon.until(lambda: daemon.answered("yard") > count + 60)
        assert daemon.source("yard")["promise"] == "accuracy of 0.9 (estimate)"
        lines = daemon.results("yard")
        ended = daemon.stop()
    assert [line["index"] for line in lines] == list(range(len(lines)))
    assert right(lines) >= 0.8
    assert (tmp_path / "state" / "yard.learned" / "state.learned").exists()
    assert not re.search("ERROR|Traceback", ended.log)


def test_a_filter_is_where_it_begins(tmp_path: Path, config: Tables) -> None:
    config["sources"]["yard"] = a_source("ticks:200", learn=True)
    with running(tmp_path, config) as daemon:
        lines = first_results(daemon)
        assert learned(daemon)["target"] == 0.9
        assert daemon.source("yard")["bundle"] == "m.infi"
    assert goes_on(lines)


def test_the_second_daemon_on_a_state_folder_says_so_and_serves(
    tmp_path: Path, config: Tables
) -> None:
    second = tmp_path / "second"
    second.mkdir()
    elsewhere = prepare(second)
    elsewhere["sources"], elsewhere["state"] = config["sources"], str(tmp_path / "state")
    with running(tmp_path, config) as daemon:
        until_it_filters(daemon)
        with running(second, elsewhere) as other:
            until_it_filters(other)
            sentence = learned(other)["sentence"]
            ended = other.stop()
        known = learned(daemon)
        daemon.until(lambda: learned(daemon)["inputs"] > known["inputs"] + 20)
        assert learned(daemon)["sentence"] == ""
        assert "ERROR" not in daemon.log
    assert "in use by another process" in sentence
    assert "what is learned is not kept" in sentence
    assert ended.count(sentence) == 1
    assert ended.count("ERROR") == 1
    assert ended.code == 0


def test_a_gate_that_is_off_learns_nothing(tmp_path: Path, config: Tables) -> None:
    with running(tmp_path, config) as daemon:
        until_it_filters(daemon)
        assert post(daemon, "enabled", {"enabled": False}) == 200
        daemon.until(lambda: daemon.source("yard")["promise"] == "everything is inferred")
        inputs = learned(daemon)["inputs"]
        count = daemon.answered("yard")
        daemon.until(lambda: daemon.answered("yard") > count + 40)
        assert learned(daemon)["inputs"] <= inputs + 1
        assert post(daemon, "enabled", {"enabled": True}) == 200
        daemon.until(lambda: learned(daemon)["inputs"] > inputs + 60)
        assert right(daemon.results("yard")) >= 0.8


def test_its_target_is_set_in_the_configuration_alone(tmp_path: Path, config: Tables) -> None:
    with running(tmp_path, config) as daemon:
        daemon.until(lambda: daemon.answered("yard") > 10)
        told: list[str] = []
        assert post(daemon, "target", {"measure": "accuracy", "target": 0.95}, told) == 400
        assert "yard learns in service; change its target_accuracy" in told[0]
        assert learned(daemon)["target"] == 0.9


def post(daemon: Running, what: str, body: Tables, told: list[str] | None = None) -> int:
    """POST to the page; return the status. told: gets a refusal's text."""
    address = daemon.until_log("the page is at").partition("the page is at ")[2].split()[0]
    request = urllib.request.Request(
        f"{address}/api/source/yard/{what}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        if told is not None:
            told.append(error.read().decode())
        return error.code


def test_a_model_that_fails_while_it_learns_is_counted_and_the_rest_is_learned(
    tmp_path: Path,
) -> None:
    config = prepare(tmp_path, m="thirds")
    config["sources"] = {"yard": learns()}
    with running(tmp_path, config) as daemon:
        daemon.until(lambda: daemon.metric("errors_total", source="yard", cause="model") >= 10)
        daemon.until(lambda: learned(daemon)["fits"] > 0)
        lines = daemon.results("yard")
        ended = daemon.stop()
    assert right([line for line in lines if "error" not in line]) >= 0.8
    assert ended.count("no power") == 1
    assert ended.code == 0


def test_it_ends_at_once_while_the_model_hangs_and_what_was_learned_is_kept(
    tmp_path: Path,
) -> None:
    config = prepare(tmp_path, m="hangs")
    write_rows(tmp_path / "rows.npy", [*CYCLE, 3])
    config["sources"] = {"yard": learns("rows.npy", rate_hz=100.0)}
    with running(tmp_path, config) as daemon:
        daemon.until((tmp_path / "hanging").exists)
        ended = daemon.stop()
    assert ended.code == 0
    assert ended.seconds < 6
    assert "did not stop" not in ended.log
    saved = read_state(tmp_path / "state" / "yard.learned")
    assert saved.manifest["state"]["counts"]["inputs"] >= len(CYCLE)


def test_a_recording_is_learned_from_and_its_inputs_need_no_words(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    write_rows(tmp_path / "rows.npy", CYCLE * 4)
    source = learns("rows.npy", rate_hz=400.0)
    del source["modality"], source["preprocess"]
    config["sources"] = {"yard": source}
    with running(tmp_path, config) as daemon:
        ended = daemon.wait()
        lines = daemon.results("yard")
    assert right(lines) >= 0.8
    assert "reuse" in {line["action"] for line in lines}
    assert ended.code == 0


@pytest.mark.slow
def test_a_state_of_a_model_on_a_server_is_gone_on_from_once_the_server_is_there(
    tmp_path: Path, config: Tables
) -> None:
    pytest.importorskip("tritonclient.grpc", reason="needs the extra offload")
    from tests.test_offload_run import LevelServer

    server = LevelServer(tmp_path)
    config["models"]["m"] = {"executor": server.url, "offload": {"when_down": "drop"}}
    config["sources"]["yard"] = learns("ticks:100", decoder="raw", same="within:0.5")
    try:
        server.start()
        with running(tmp_path, config) as daemon:
            until_it_filters(daemon)
            before = learned(daemon)
            daemon.stop()
        server.kill()
        with running(tmp_path, config) as daemon:
            daemon.until(lambda: daemon.metric("inputs_total", action="link_down") > 5)
            assert learned(daemon)["inputs"] < before["inputs"]
            server.start()
            daemon.until(lambda: learned(daemon)["inputs"] > before["inputs"])
            after = learned(daemon)
            daemon.until(lambda: daemon.metric("inputs_total", action="reuse") > 20)
            ended = daemon.stop()
    finally:
        server.kill()
    assert after["changes"][: len(before["changes"])] == before["changes"]
    assert not re.search("Traceback|gone on from|usable", ended.log)


# What a configuration may say.


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"task": None}, "[sources.yard]", "learns without a filter and has no task; add it"),
        ({"target_accuracy": None}, "[sources.yard]", "has no target_accuracy; add it"),
        ({"learn": None}, "[sources.yard]", "has no filter; add it, or learn = true with task"),
        ({"filter": "m.infi"}, "task", "is what the filter was trained for; leave it out"),
        ({"target_accuracy": 1.5}, "target_accuracy", "is a share, above 0 and below 1"),
        ({"target_recall": 0.9}, "target_recall", "cannot be held by what is learned; give"),
        ({"head": "m.infi"}, "head", "needs a filter, which reads its features"),
        ({"cache": {"snapshot": True}}, "snapshot", "is not for a source that learns"),
        ({"learning": {"audit": 0.0}}, "audit", "it must be above 0"),
        ({"learning": {"audit": 1.5}}, "[sources.yard.learning]", "is impossible: audit and"),
        ({"learning": {"audits": 0.1}}, "audits", "is unknown; did you mean audit?"),
        ({"learning": {"entries": 10**9}}, "entries", "is too large"),
        ({"learning": {"seed": "x"}}, "seed", "it takes int"),
        ({"preprocess": {"sise": [8]}}, "[sources.yard]", "preprocess sise: unknown here"),
        ({"modality": "smell"}, "[sources.yard]", "modality 'smell' is unknown"),
        ({"task": "presense:person"}, "[sources.yard]", "presense"),
        ({"same": "nearly"}, "[sources.yard]", "nearly"),
        ({"decoder": "yolov99"}, "[sources.yard]", "yolov99"),
    ],
)
def test_what_cannot_be_is_refused_with_its_line(
    tmp_path: Path, config: Tables, change: Tables, key: str, words: str
) -> None:
    merged = {**config["sources"]["yard"], **change}
    config["sources"]["yard"] = {k: v for k, v in merged.items() if v is not None}
    lines = write_config(tmp_path, config).read_text().splitlines()
    done = command(tmp_path, "check", "daemon.toml")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert re.search(words.replace("?", r"\?"), done.stderr)
    assert "--preprocess" not in done.stderr
    number = next(n for n, text in enumerate(lines, 1) if text.startswith(key))
    assert f"line {number}: sources.yard" in done.stderr


def test_a_table_of_learning_is_for_a_source_that_learns(tmp_path: Path, config: Tables) -> None:
    config["sources"]["yard"] = a_source("ticks:200", learning={"audit": 0.1})
    with pytest.raises(ConfigError, match=r"learning is for a source that learns; add learn"):
        check(write_config(tmp_path, config))


def test_a_right_one_is_right_and_leaves_nothing(tmp_path: Path, config: Tables) -> None:
    write_config(tmp_path, config)
    before = {path.name for path in tmp_path.iterdir()}
    done = command(tmp_path, "check", "daemon.toml", PYTHONDONTWRITEBYTECODE="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "daemon.toml is right\n", "")
    assert {path.name for path in tmp_path.iterdir()} == before


def test_the_examples_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").touch()
    deployed = (ROOT / "deploy" / "learning.toml").read_text()
    page = (ROOT / "docs" / "daemon.md").read_text()
    shown = page.partition("## Learning in service")[2].partition("| key |")[0]
    lines = [line.strip() for line in shown.splitlines() if line.startswith("    ")]
    lines += ["[models.detector]", 'path = "model.tflite"']
    for example in (deployed, "\n".join(lines)):
        (tmp_path / "yard.toml").write_text(example)
        source = load_config(tmp_path / "yard.toml").sources["yard"]
        assert (source.learn, source.filter, source.target_accuracy) == (True, "", 0.95)


@pytest.mark.parametrize(
    ("address", "more", "expected"),
    [
        ("camera:0", {}, ("image", ImageSpec())),
        ("camera:0", {"preprocess": {"width": 64, "height": "48"}}, ("image", ImageSpec(64, 48))),
        ("camera:0", {"modality": "video"}, ("video", VideoSpec())),
        ("lines:-", {}, ("text", TextSpec())),
        ("microphone:", {"preprocess": {"rate_hz": 8000}}, ("audio", AudioSpec(rate_hz=8000))),
        (
            "iio:imu",
            {"imu": {"rate_hz": 50, "channels": ["x", "y"]}},
            ("motion", MotionSpec(channels=("x", "y"), rate_hz=50, window=100, hop=25)),
        ),
        (
            "serial:/dev/ttyUSB0@115200",
            {"rate_hz": 50, "preprocess": {"channels": "x,y", "window_ms": 1000}},
            ("motion", MotionSpec(channels=("x", "y"), rate_hz=50, window=50, hop=25)),
        ),
    ],
)
def test_what_the_inputs_are_goes_by_the_address(
    address: str, more: Tables, expected: tuple[str, Spec]
) -> None:
    config = msgspec.convert({"address": address, "model": "m", **more}, SourceConfig)
    assert draft(config) == expected


def test_a_sensor_must_be_described() -> None:
    config = SourceConfig(address="iio:imu", model="m")
    with pytest.raises(ConfigError, match=r"Give imu.rate_hz and preprocess.channels"):
        draft(config)


def test_the_page_of_the_daemon_has_the_settings_as_they_are() -> None:
    page = (ROOT / "docs" / "daemon.md").read_text()
    usual = LearnSettings()
    for keys, words in (
        ("audit", f"all the same ({usual.audit}), and once the target has held for `settle`"),
        ("audit_settled", f"({usual.settle}) inputs ({usual.audit_settled})"),
        ("warm_up", f"first fit ({usual.warm_up}), and between fits ({usual.refit_every})"),
        ("entries", f"{usual.entries} inputs of at most {usual.max_bytes >> 20} MB"),
        (
            "confidence",
            f"bounds ({usual.confidence}); of one core, for learning ({usual.cpu_share}",
        ),
    ):
        row = next(line for line in page.splitlines() if line.startswith("|") and keys in line)
        assert words in row


# What a state belongs to.


@pytest.fixture
def served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, Any]], ServedModel]:
    prepare(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda more: ServedModel("m", ModelConfig(**{"path": "daemon_models:level", **more}))


PICTURES = {"address": "camera:0", "model": "m", "learn": True, "task": "value"}
PICTURES |= {"target_accuracy": 0.9, "preprocess": {"width": 32, "height": 24}}
MASK = (((0.0, 0.0), (1.0, 0.0), (1.0, 0.5)),)


@pytest.mark.parametrize(
    ("change", "model", "goes_on"),
    [
        ({}, {}, True),
        ({"target_accuracy": 0.95}, {}, True),
        ({"learning": {"entries": 50}}, {}, True),
        ({"heartbeat_s": 5.0}, {}, True),
        ({"masks": MASK}, {}, False),
        ({"address": "camera:1"}, {}, False),
        ({"task": "label"}, {}, False),
        ({"same": "within:1"}, {}, False),
        ({"preprocess": {"width": 64, "height": 24}}, {}, False),
        ({}, {"version": "2"}, False),
        ({}, {"path": "daemon_models:other"}, False),
    ],
)
def test_a_state_belongs_to_its_source_model_task_inputs_and_masks(
    tmp_path: Path,
    served: Callable[[dict[str, Any]], ServedModel],
    change: Tables,
    model: Tables,
    goes_on: bool,
) -> None:
    folder = tmp_path / "yard.learned"
    first = learning_setup({}, served({}), folder)
    frame_at = frames()
    for i in range(20):
        assert first.gate.decide(first.gate.look(frame_at(i), float(i))) is not None
    first.gate.close()
    second = learning_setup(change, served(model), folder)
    learner = second.gate.learner
    assert learner is not None
    assert learner.keeper is not None
    learner.keeper.restore(time.monotonic())
    assert learner.keeper.restored is goes_on
    second.gate.close()


def learning_setup(change: Tables, model: ServedModel, folder: Path) -> Setup:
    config = msgspec.convert({**PICTURES, **change}, SourceConfig)
    setup = make_setup(config, model, None)
    learner = setup.gate.learner
    assert learner is not None
    learner.keeper = setup.keeper(learner, folder)
    return setup


def frames() -> Callable[[int], Any]:
    return lambda i: np.full((24, 32, 3), 10 * i, np.uint8)


def test_no_credentials_are_in_what_is_kept(
    tmp_path: Path, served: Callable[[dict[str, Any]], ServedModel]
) -> None:
    change = {"address": "rtsp://me:secret@cam/1"}
    setup = learning_setup(change, served({}), tmp_path / "yard.learned")
    setup.gate.look(frames()(1), 1.0)
    setup.gate.close()
    kept = b"".join(p.read_bytes() for p in (tmp_path / "yard.learned").iterdir())
    assert b"rtsp://" in kept
    assert b"secret" not in kept


def test_learning_is_frozen_while_the_machine_is_hot(
    tmp_path: Path, config: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    zone = tmp_path / "root" / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("cpu-thermal")
    config["budget"] = {"max_temperature_c": 70.0}
    path = write_config(tmp_path, {k: v for k, v in config.items() if k != "web"})
    daemon = Daemon(load_config(path), path)
    daemon._machine = Machine(tmp_path / "root")
    pipeline = daemon._make_pipeline("yard", daemon._setups["yard"])
    daemon.pipelines["yard"] = pipeline
    frozen = []
    try:
        for celsius in (60, 75, 60):
            (zone / "temp").write_text(str(1000 * celsius))
            daemon._read_machine()
            learning = daemon.status().sources[0].learning
            assert learning is not None
            frozen.append(learning.frozen)
    finally:
        daemon._end()
    assert frozen == [False, True, False]
    assert Action.INFER.value not in pipeline.status.counts
    until(lambda: not pipeline.thread.is_alive())


@pytest.mark.slow
def test_another_filter_begins_anew_and_the_old_state_is_put_aside(
    tmp_path: Path, config: Tables
) -> None:
    config["sources"]["yard"] = a_source("ticks:200", learn=True)
    with running(tmp_path, config) as daemon:
        daemon.until(lambda: learned(daemon)["inputs"] > 400)
        new = write_filter(tmp_path / "new.infi", spec=FeaturesSpec(size=(8,)), epochs=2)
        new.replace(tmp_path / "m.infi")
        daemon.reload()
        daemon.until(lambda: 0 < learned(daemon)["inputs"] < 200)
        ended = daemon.stop()
    assert "belongs to another model, task or source" in ended.log
    assert ended.count("usable: none") == 1
    assert ended.code == 0
