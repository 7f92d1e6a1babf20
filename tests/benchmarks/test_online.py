"""The section `online` of the bench: its figures, its rivals, its command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import online
from benchmarks.streams import Stream
from infi_edge.preprocess import ImageSpec
from infi_edge.replay import INFERRED, REUSED, Outcome, Truth, make_truth
from infi_edge.tasks import make_task, same_exact
from infi_edge.types import Action, Result
from tests.conftest import ROOT

SPEC = ImageSpec(width=32, height=24)


@dataclass(frozen=True, slots=True)
class Pretended(Outcome):
    """What a learning gate might have done."""

    audited: np.ndarray
    open: np.ndarray
    lows: np.ndarray
    highs: np.ndarray
    learn_cpu_s: float = 0.5
    refits: int = 3
    warm_up: int = 1


def every_fourth(
    truth: Truth, tensors: Any, spec: Any, *, target_accuracy: float, seed: int = 0
) -> Pretended:
    """Infers every fourth input; with an odd seed its bounds are wrong for a while."""
    done = online.every_nth(truth, 4)
    lows, highs = np.zeros(len(truth)), np.ones(len(truth))
    if seed % 2:
        lows[5] = 1.1
    never = np.zeros(len(truth), bool)
    return Pretended(done.actions, done.right, never, never, lows, highs)


def come_and_go(count: int, *, change: int | None = None, seed: int = 0) -> Stream:
    """A bright square is there or not, for about ten inputs each; after `change` it is dark."""
    rng = np.random.default_rng(seed)
    there = np.cumsum(rng.random(count) < 0.1) % 2 == 1
    pictures = rng.normal(90, 2, (count, *SPEC.shape))
    pictures[there, 6:14, 8:20] += 80
    if change is not None:
        pictures[change:] *= 0.4
    tensors = np.clip(pictures, 0, 255).astype(np.uint8)
    truth = make_truth(there.tolist(), np.arange(count) / 10, make_task("value", ()), same_exact)
    return Stream("square", truth, tensors, SPEC, () if change is None else (change,))


def test_recovery_counts_the_inferences_until_the_last_hundred_inputs_have_the_rate() -> None:
    filtered = np.array([True] * 200 + [False] * 40 + [True, False] * 20 + [True] * 300)
    assert online.recovery(filtered, 200, 0.9) == 40 + 20  # after inputs 232 to 331
    assert online.recovery(filtered, 280, 0.9) == 0
    assert online.recovery(filtered, 210, 0.5) == 30 + 20
    assert online.recovery(np.zeros(500, bool), 200, 0.9) is None
    assert online.recovery(filtered[:250], 200, 0.9) is None


def test_a_run_over_a_change_is_split_there() -> None:
    actions = np.array([INFERRED] * 50 + [REUSED] * 50 + [INFERRED] * 100, np.uint8)
    right = np.ones(200, bool)
    right[60:70] = False
    run = online.drift_of(actions, right, 100)
    assert (run.rate, run.before, run.after, run.back) == (0.25, 1.0, 0.0, None)
    assert run.tenths.tolist() == [1, 1, 1, 0.5, 1, 1, 1, 1, 1, 1]


def test_tenths_cover_every_input_once() -> None:
    values = np.random.default_rng(0).random(1003)
    edges = np.linspace(0, 1003, 11).astype(int)
    assert np.isclose(np.average(online.tenths(values), weights=np.diff(edges)), values.mean())


def test_the_gate_is_open_after_twenty_inferences_on_end() -> None:
    filtered = np.ones(300, bool)
    filtered[100:300:3] = False
    assert online.opening(filtered, 0) is None
    filtered[200:240] = False
    assert online.opening(filtered, 90) == len(range(100, 199, 3))  # 199 belongs to the run


def test_a_gate_that_holds_its_target_for_good_need_not_be_open() -> None:
    filtered = np.array([True] * 60 + [False, True] * 200)
    right = np.array([False] * 60 + [True] * 400)
    assert online.holding(filtered, right, 0.9) == 45  # inputs 51 to 150: 9 wrong, one before: 10
    assert online.holding(filtered, np.ones(460, bool), 0.9) == 0
    assert online.holding(filtered, ~np.roll(~right, 400), 0.9) is None


@pytest.mark.parametrize(("at", "value"), [(0, 1.01), (399, 1.01), (200, -0.01)])
def test_one_input_outside_its_bounds_is_seen(at: int, value: float) -> None:
    stream = come_and_go(400)
    run = every_fourth(stream.truth, stream.tensors, SPEC, target_accuracy=0.9)
    assert online.covered(run).all()  # type: ignore[arg-type]
    run.lows[at], run.highs[at] = (value, 2.0) if value > 1 else (-1.0, value)
    outside = np.flatnonzero(~online.covered(run))  # type: ignore[arg-type]
    assert outside.tolist() == [at]


def test_coverage_at_all_times_is_told_from_coverage_at_the_end() -> None:
    row = online.coverage_row(come_and_go(400), 0.9, 10, every_fourth)  # type: ignore[arg-type]
    assert (row["replays"], row["covered_at_end"], row["covered_always"]) == (10, 1.0, 0.5)
    assert row["reached"] is False


def test_coverage_stops_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "COVERAGE_BUDGET_S", 0.0)
    row = online.coverage_row(come_and_go(400), 0.9, 50, every_fourth)  # type: ignore[arg-type]
    assert (row["replays"], row["wanted_replays"]) == (2, 50)


def test_a_clips_row_has_the_gate_beside_every_nth_in_hindsight_and_as_calibrated() -> None:
    stream = come_and_go(600)
    row = online.clip_row(stream, 0.5, 2, every_fourth)  # type: ignore[arg-type]
    fourth = online.every_nth(stream.truth, 4)
    assert row["filtering_rate"] == row["filtering_rate_min"] == fourth.filtering_rate
    assert row["accuracy"] == pytest.approx(fourth.accuracy)
    assert row["learn_cpu_share"] == pytest.approx(0.5 / 60)
    later = online.every_nth(stream.truth.cut(300, 600), row["calibrated_nth"])
    assert row["later_nth_accuracy"] == later.accuracy
    assert row["calibrated_nth"] > 1
    assert "| square | 0.5 |" in online.markdown({"clips": [row]})


def test_a_clip_below_its_goal_is_said_to_be() -> None:
    stream = replace(come_and_go(600), name="person")
    row = online.clip_row(stream, 0.9, 1, every_fourth)  # type: ignore[arg-type]
    assert row["filtering_rate_goal"] == 0.88
    assert row["reached"] is False


@pytest.mark.slow
def test_the_frozen_filter_knows_nothing_of_what_comes_after_the_change() -> None:
    stream = come_and_go(600, change=300)
    data = online.training_data(stream)
    outcome = online.frozen(data, 300, [0.9])[0.9]
    assert outcome.filtering_rate > 0.5
    assert outcome.right[:300].mean() >= 0.9
    assert outcome.right[300:].mean() < 0.9  # in the dark no square looks like one
    other = online.training_data(come_and_go(600))
    same_before = online.frozen(other, 300, [0.9])[0.9]
    assert np.array_equal(outcome.actions[:300], same_before.actions[:300])


@pytest.mark.slow
def test_the_refitted_filter_learns_each_tenth_from_the_one_before_alone() -> None:
    one = come_and_go(1000)
    noise = np.random.default_rng(1).random(400) < 0.5  # answers that no picture explains
    values = noise.tolist() + one.truth.values[400:]
    truth = make_truth(values, one.truth.times_s, make_task("value", ()), same_exact)
    spliced = replace(one, truth=truth)
    first = online.refitted(online.training_data(one), [0.9])[0.9]
    second = online.refitted(online.training_data(spliced), [0.9])[0.9]
    assert (first.actions[:100] == INFERRED).all()
    assert (first.actions[100:] != INFERRED).mean() > 0.5
    assert not np.array_equal(first.actions[100:500], second.actions[100:500])
    assert np.array_equal(first.actions[500:], second.actions[500:])


def test_a_stream_that_never_changes_leaves_the_trained_rivals_open() -> None:
    stream = come_and_go(400, change=200)
    truth = replace(stream.truth, values=[True] * 400, redundant=np.zeros(400, bool))
    data = online.training_data(replace(stream, truth=truth))
    for rival in (online.frozen(data, 200, [0.9]), online.refitted(data, [0.9])):
        assert rival[0.9].filtering_rate == 0.0
        assert rival[0.9].accuracy == 1.0


def test_a_drift_row_stands_for_the_gate_and_for_each_rival() -> None:
    stream = come_and_go(400, change=200)
    truth = replace(stream.truth, values=[True] * 400, redundant=np.zeros(400, bool))
    rows = online.drift_rows(replace(stream, truth=truth), [0.9], 2, every_fourth)  # type: ignore[arg-type]
    assert [row["method"].split()[0] for row in rows] == [
        "learning", "frozen", "refitted", "every", "every",
    ]  # fmt: skip
    assert rows[0]["before"] == rows[0]["after"] == rows[0]["afresh"] == 0.75
    assert rows[0]["back"] == 25
    assert rows[1]["filtering_rate"] == rows[2]["filtering_rate"] == 0.0
    text = online.markdown({"drift": rows})
    assert text.count("| square |") == 2 * len(rows)


def test_a_gate_that_never_looks_again_is_found_out_by_the_adversary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(online, "PAUSE_S", 0.0)

    class Blind:
        def __init__(self, model: Any) -> None:
            self.model, self.answer = model, None

        def __call__(self, picture: np.ndarray, time_s: float) -> Result:
            if self.answer is None:
                self.answer = self.model(picture)
                return Result(self.answer, Action.INFER, "", 0, time_s)
            return Result(self.answer, Action.REUSE, "", 0, time_s)

    row = online.adversary_row(0, lambda adversary, seed: nullcontext(Blind(adversary)))
    assert row["inferences_until_open"] is row["inferences_until_held"] is None
    assert row["reached"] is False
    assert row["accuracy"] < 0.01
    assert "| - |" in online.markdown({"adversary": [row]})


def test_without_data_the_command_says_so_and_fails(tmp_path: Path) -> None:
    written = tmp_path / "rows.json"
    environment = {**os.environ, "INFI_EDGE_DATA": str(tmp_path), "PYTHONPATH": str(ROOT)}
    parts = ["--only", "clips", "--only", "drift", "--only", "coverage", "--json", str(written)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.online", *parts],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr.count("data not present") == 3 + 12 + 1
    assert json.loads(written.read_text()) == {"clips": [], "drift": [], "coverage": []}
