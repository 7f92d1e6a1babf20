"""A daemon that runs takes a new configuration, filter or sink without dropping its sources."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infi_edge.policy import Knobs
from tests.daemon_run import (
    AGAIN,
    Running,
    Tables,
    a_source,
    prepare,
    running,
    write_config,
    write_filter,
    write_rows,
)

WATCHFUL = """
import infi_edge.daemon
infi_edge.daemon.WATCH_FILES_S = 0.1
"""


def reloaded(daemon: Running, config: Tables, outcome: str = "done") -> None:
    """Write the configuration, send SIGHUP, wait until it is in force (or refused)."""
    count = daemon.metric("reloads_total", outcome=outcome)
    write_config(daemon.folder, config)
    daemon.reload()
    daemon.until(lambda: daemon.metric("reloads_total", outcome=outcome) == count + 1)


def more(daemon: Running, source: str, count: int = 40) -> None:
    """Wait until so many inputs more were answered, and are in the file."""
    seen = len(daemon.results(source))
    daemon.until(lambda: len(daemon.results(source)) >= seen + count)


def is_unbroken(daemon: Running, source: str, opened: int = 1) -> bool:
    """Whether every input of a source is there once, and it was opened so often."""
    indices = [line["index"] for line in daemon.results(source)]
    times = (daemon.folder / f"{source}.opened").read_text().count("opened")
    return indices == list(range(len(indices))) and times == opened


def test_a_new_target_is_in_force_and_the_answers_are_kept(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    config["sources"] = {"yard": a_source("ticks:250")}
    strict = copy.deepcopy(config)
    strict["sources"]["yard"]["target_accuracy"] = 0.95
    with running(tmp_path, config) as daemon:
        more(daemon, "yard")
        reloaded(daemon, strict)
        daemon.until(lambda: daemon.source("yard")["chosen"] == 1)
        more(daemon, "yard")
        assert daemon.source("yard")["promise"] == "accuracy of 0.95 (estimate)"
        reloaded(daemon, config)
        daemon.until(lambda: daemon.source("yard")["chosen"] == 0)
        daemon.until(lambda: daemon.results("yard")[-1]["action"] == "reuse")
        more(daemon, "yard")
        actions = [line["action"] for line in daemon.results("yard")]
        assert is_unbroken(daemon, "yard")
    strictly = actions[actions.index("reuse", 30) :].index("infer") + actions.index("reuse", 30)
    again = actions.index("reuse", strictly)
    assert set(actions[strictly:again]) == {"infer"}
    assert again - strictly >= 30
    assert set(actions[again:]) == {"reuse"}
    assert len(actions) - again >= 40


def test_a_filter_that_was_replaced_is_noticed_and_starts_with_no_answers(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    (tmp_path / "watchful.py").write_text(WATCHFUL)
    config["plugins"].append("watchful.py")
    config["sources"] = {"yard": a_source("ticks:250")}
    with running(tmp_path, config) as daemon:
        more(daemon, "yard")
        new = write_filter(tmp_path / "new.infi", knobs=AGAIN, source="elsewhere")
        new.replace(tmp_path / "m.infi")
        daemon.until(lambda: daemon.metric("reloads_total", outcome="done") == 1)
        # Each of the three levels is inferred once for each filter.
        daemon.until(lambda: daemon.metric("inputs_total", source="yard", action="infer") == 6)
        write_config(tmp_path, {**config, "budget": {"max_cpu": 3.0}})
        daemon.until(lambda: daemon.metric("reloads_total", outcome="done") == 2)
        count = daemon.answered("yard")
        daemon.until(lambda: daemon.answered("yard") > count + 40)
        assert daemon.metric("inputs_total", source="yard", action="infer") == 6
        assert is_unbroken(daemon, "yard")


@pytest.mark.slow
def test_a_reload_without_any_change_changes_nothing(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    config["sources"] = {"yard": a_source("ticks:250", heartbeat_s=3600.0)}
    with running(tmp_path, config) as daemon:
        more(daemon, "yard")
        before = daemon.holds()
        for _ in range(3):
            reloaded(daemon, config)
        more(daemon, "yard")
        assert daemon.holds() == before
        actions = [line["action"] for line in daemon.results("yard")]
        assert is_unbroken(daemon, "yard")
    assert actions.count("infer") == 3
    assert "is in force" not in daemon.log


def test_results_go_to_another_sink_and_none_is_lost(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    config["sources"] = {"yard": a_source("ticks:250")}
    other = copy.deepcopy(config)
    other["sinks"] = {"log": {**config["sinks"]["log"], "path": "other.jsonl"}}
    both = copy.deepcopy(other)
    both["sinks"]["more"] = config["sinks"]["log"]
    with running(tmp_path, config) as daemon:
        more(daemon, "yard")
        reloaded(daemon, other)
        first = [line["index"] for line in daemon.results()]
        daemon.until(lambda: len(daemon.results(path="other.jsonl")) > 40)
        reloaded(daemon, both)
        before = daemon.holds()
        more(daemon, "yard")
        reloaded(daemon, other)
        daemon.until(lambda: daemon.threads() == before[0] - 1)
        ended = daemon.stop()
        second = [line["index"] for line in daemon.results(path="other.jsonl")]
    assert ended.code == 0
    assert first + second == list(range(len(first + second)))
    assert f"{len(first + second)} inputs" in ended.log


def test_sources_come_and_go_and_the_others_do_not_notice(tmp_path: Path) -> None:
    config = prepare(tmp_path, m="level", n="other")
    config["sources"] = {"yard": a_source("ticks:250")}
    two = copy.deepcopy(config)
    two["sources"]["gate"] = a_source("ticks:250", "n")
    moved = copy.deepcopy(two)
    moved["sources"]["gate"]["address"] = "ticks:251"
    with running(tmp_path, config) as daemon:
        more(daemon, "yard")
        before = daemon.threads()
        reloaded(daemon, two)
        more(daemon, "gate")
        assert is_unbroken(daemon, "gate")
        reloaded(daemon, moved)  # another device: it begins anew
        daemon.until(lambda: (tmp_path / "gate.opened").read_text().count("opened") == 2)
        more(daemon, "gate")
        reloaded(daemon, config)
        assert daemon.metric("source_state", source="gate") == 0
        daemon.until(lambda: daemon.threads() == before, "the threads of the source end")
        more(daemon, "yard")
        count = len(daemon.results("gate"))
        more(daemon, "yard")
        assert len(daemon.results("gate")) == count
        assert is_unbroken(daemon, "yard")


@pytest.mark.slow
def test_another_model_takes_over_between_two_inputs(tmp_path: Path) -> None:
    config = prepare(tmp_path, m="slow", n="other")
    config["sources"] = {"yard": a_source("ticks:250", enabled=False)}
    other = copy.deepcopy(config)
    other["sources"]["yard"] = a_source("ticks:250", "n", enabled=False)
    with running(tmp_path, config) as daemon:
        more(daemon, "yard", 2)
        before = daemon.threads()
        for tables in (other, config, other):
            reloaded(daemon, tables)
            is_other = tables is other
            daemon.until(lambda o=is_other: (daemon.results()[-1]["value"] >= 10) == o)
        daemon.until(lambda: daemon.threads() == before, "the threads of the old models end")
        assert is_unbroken(daemon, "yard")
        values = [line["value"] for line in daemon.results()]
        ended = daemon.stop()
    assert set(values) <= {0, 1, 2, 10, 11, 12}
    assert values[-1] >= 10
    assert "abandoned" not in ended.log
    assert ended.code == 0


def test_a_source_that_leaves_does_not_wait_for_its_model(tmp_path: Path) -> None:
    config = prepare(tmp_path, m="level", n="hangs")
    write_rows(tmp_path / "rows.npy", [0, 3])
    config["sources"] = {
        "yard": a_source("ticks:250"),
        "slow": a_source("rows.npy", "n", rate_hz=50.0),
    }
    one = copy.deepcopy(config)
    del one["sources"]["slow"]
    with running(tmp_path, config) as daemon:
        daemon.until((tmp_path / "hanging").exists)
        before = daemon.threads()
        reloaded(daemon, one)
        daemon.until(lambda: daemon.threads() == before - 1)  # of the source; the model goes on
        more(daemon, "yard")
        assert is_unbroken(daemon, "yard")
        ended = daemon.stop()
    assert ended.seconds < 6
    assert ended.code == 0


def test_a_recording_that_has_ended_is_not_played_again(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    write_rows(tmp_path / "rows.npy", [0, 1, 2])
    config["sources"] = {"yard": a_source("ticks:250"), "clip": a_source("rows.npy")}
    config["sources"]["clip"]["rate_hz"] = 100.0
    with running(tmp_path, config) as daemon:
        daemon.until(lambda: daemon.source("clip")["state"] == "ended")
        config["budget"] = {"max_cpu": 3.0}
        config["sources"]["clip"]["target_accuracy"] = 0.95
        reloaded(daemon, config)
        more(daemon, "yard")
        assert len(daemon.results("clip")) == 3


def damaged(folder: Path, config: Tables) -> None:
    path = folder / "damaged.infi"
    content = bytearray((folder / "m.infi").read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    config["sources"]["yard"]["filter"] = "damaged.infi"


def other_model(folder: Path, config: Tables) -> None:
    config["models"]["m"]["path"] = "daemon_models:other"


def no_such_function(folder: Path, config: Tables) -> None:
    config["models"]["m"]["path"] = "daemon_models:absent"


def second_model(folder: Path, config: Tables) -> None:
    """One that is new and right, beside one that cannot be loaded."""
    for name, function in (("n", "other"), ("o", "absent"), ("p", "slow")):
        config["models"][name] = {"path": f"daemon_models:{function}", "allow_other": True}
        config["sources"][name] = {**config["sources"]["yard"], "model": name}


def no_row(folder: Path, config: Tables) -> None:
    config["sources"]["yard"]["target_accuracy"] = 0.99


def no_place(folder: Path, config: Tables) -> None:
    config["sinks"]["more"] = {"kind": "jsonl", "path": "absent/results.jsonl"}


def bad_topic(folder: Path, config: Tables) -> None:
    config["sinks"]["home"] = {"kind": "mqtt", "topic": "a/#"}


def other_inputs(folder: Path, config: Tables) -> None:
    (folder / "notes.txt").write_text("no numbers\n")
    config["sources"]["yard"]["address"] = "notes.txt"


def failing_plugin(folder: Path, config: Tables) -> None:
    config["sources"]["more"] = {**config["sources"]["yard"], "address": "ticks:often"}


def edited(key: str, value: Any) -> Callable[[Path, Tables], None]:
    def edit(folder: Path, config: Tables) -> None:
        config["sources"]["yard"][key] = value

    return edit


BAD: list[tuple[Callable[[Path, Tables], None], str]] = [
    (edited("filtre", "m.infi"), r"line \d+: sources.yard.filtre is unknown; did you mean filter"),
    (edited("stall_s", "soon"), r"line \d+: sources.yard.stall_s is str; it takes float, in sec"),
    (edited("filter", "absent.infi"), r"line \d+: sources.yard.filter names absent.infi"),
    (edited("model", "n"), r"line \d+: sources.yard.model names 'n', which is not in \[models\]"),
    (edited("address", "gone.npy"), r"line \d+: sources.yard.address names gone.npy"),
    (edited("address", "camera:0"), "camera:0"),
    (damaged, "damaged.infi is (damaged|truncated)"),
    (other_model, "trained for another model"),
    (no_such_function, "daemon_models:absent"),
    (second_model, "daemon_models:absent"),
    (no_row, "promises no accuracy of 0.99"),
    (no_place, r"sinks.more: .*absent/results.jsonl"),
    (bad_topic, r"sinks.home: topic 'a/#'"),
    (other_inputs, "notes.txt"),
    (failing_plugin, "unexpected: ValueError"),
]


def test_a_bad_configuration_leaves_the_old_one_running_and_is_told_once(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    config["sources"] = {"yard": a_source("ticks:250")}
    with running(tmp_path, config) as daemon:
        more(daemon, "yard")
        before = daemon.holds()
        (tmp_path / "daemon.toml").write_text("[sources.yard\n")
        daemon.reload()
        daemon.until_log("refused")
        assert re.search(r"is not TOML: .*line 1", daemon.log)
        for count, (edit, words) in enumerate(BAD, 2):
            bad = copy.deepcopy(config)
            edit(tmp_path, bad)
            reloaded(daemon, bad, "refused")
            told = [line for line in daemon.log.splitlines() if "is refused" in line]
            assert len(told) == count
            assert re.search(words, told[-1]), told[-1]
        more(daemon, "yard")
        daemon.until(lambda: daemon.holds() == before, str(before))
        assert daemon.metric("reloads_total", outcome="done") == 0
        assert is_unbroken(daemon, "yard")
        assert [line["action"] for line in daemon.results()].count("infer") == 3
        reloaded(daemon, config)  # the good one again


def test_what_takes_effect_at_the_next_start_is_said(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    config["sources"] = {"yard": a_source("ticks:250")}
    with running(tmp_path, config) as daemon:
        more(daemon, "yard", 1)
        reloaded(daemon, {**config, "state": "elsewhere", "flush_s": 0.2})
        assert daemon.log.count("state, flush_s: takes effect at the next start") == 1


def test_a_reload_that_comes_with_the_stop_does_not_keep_it_up(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    config["sources"] = {"yard": a_source("ticks:250")}
    with running(tmp_path, config) as daemon:
        more(daemon, "yard", 1)
        for _ in range(20):
            daemon.reload()
        ended = daemon.stop()
    assert ended.code == 0
    assert ended.seconds < 6


@pytest.mark.slow
def test_filters_replaced_again_and_again_leave_nothing_behind(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    config["sources"] = {"yard": a_source("ticks:250")}
    with running(tmp_path, config) as daemon:
        more(daemon, "yard", 1)
        before = daemon.holds()
        for i in range(8):
            new = write_filter(tmp_path / "new.infi", knobs=Knobs(reuse_threshold=0.5 + i / 100))
            new.replace(tmp_path / "m.infi")
            config["models"]["m"]["threads"] = 1 + i % 2  # another model object, too
            reloaded(daemon, config)
        daemon.until(lambda: daemon.holds() == before)
        more(daemon, "yard")
        assert is_unbroken(daemon, "yard")
