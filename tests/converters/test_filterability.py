"""An answer to "is it worth it?", and controls that it must not be fooled by."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from converters.calibrate import Target
from converters.families import skip_family
from converters.filterability import (
    Cost,
    Point,
    judge,
    measure,
    redundancy,
    without_skill,
)
from converters.recordings import TrainingData
from infi_edge.preprocess import FeaturesSpec
from infi_edge.replay import Truth
from infi_edge.tasks import make_task, same_exact
from infi_edge.workload import WorkloadSpec
from tests.conftest import WORKLOAD, Command
from tests.test_bad_input import refused

CHEAP = Cost(0.1, 0.01, 50.0)


def truth_of(values: list[object], can_skip: bool = True) -> Truth:
    redundant = np.array([can_skip and not value for value in values], bool)
    times = np.arange(len(values)) / 10
    return Truth(times, values, redundant, same_exact, False, can_skip)


def stream(count: int, seed: int, seen: bool) -> TrainingData:
    """Answers that come in runs; the inputs show them (seen), or only noise."""
    rng = np.random.default_rng(seed)
    runs = rng.integers(3, 12, count)
    values = np.repeat(np.arange(count) % 2 == 1, runs)[:count]
    spec = FeaturesSpec(size=(8,))
    tensors = rng.normal(0, 0.3, (count, 8)).astype(np.float32)
    if seen:
        tensors[:, :4] += np.where(values, 1.5, -1.5)[:, None]
    features = np.stack([spec.features(t[None]) for t in tensors])
    return TrainingData(tensors, features, truth_of(values.tolist()), spec, "features")


def test_inputs_that_show_their_answer_pay() -> None:
    found = measure(stream(800, 0, seen=True), Target("accuracy", 0.9), CHEAP)
    assert found.verdict == "pays", found.why
    last = found.curve[-1]
    assert last.accuracy >= 0.88
    assert last.low > found.without_skill
    assert found.curve[0].trained_on < last.trained_on


@pytest.mark.parametrize("seed", range(4))
def test_inputs_that_show_nothing_do_not_pay(seed: int) -> None:
    found = measure(stream(500, seed, seen=False), Target("accuracy", 0.9), CHEAP, (1.0,))
    assert found.verdict == "does not pay", found.why


def test_a_model_as_cheap_as_the_filter_does_not_pay() -> None:
    dear = Cost(1.0, 0.1, 1.05)
    assert dear.break_even == 1.0
    assert Cost(1.0, 0.0, 4.0).break_even == 0.25
    found = measure(stream(500, 0, seen=True), Target("accuracy", 0.9), dear, (1.0,))
    assert found.verdict == "does not pay"
    assert "break-even" in found.why


def test_too_little_is_not_enough_data() -> None:
    few = measure(stream(60, 0, seen=True), Target("accuracy", 0.9), CHEAP)
    assert (few.verdict, few.curve) == ("not enough data", ())


def test_what_never_changes_does_not_pay() -> None:
    data = stream(300, 0, seen=True)
    still = TrainingData(data.tensors, data.features, truth_of([True] * 300), data.spec, "features")
    found = measure(still, Target("accuracy", 0.9), CHEAP)
    assert found.verdict == "does not pay"


@pytest.mark.parametrize(
    ("low", "high", "without_skill", "break_even", "verdict"),
    [
        (0.6, 0.7, 0.5, 0.1, "pays"),
        (0.6, 0.7, 0.5, 0.65, "not enough data"),
        (0.4, 0.9, 0.5, 0.1, "not enough data"),
        (0.4, 0.52, 0.5, 0.1, "does not pay"),
        (0.9, 1.0, 1.0, 0.1, "does not pay"),
        (0.1, 0.3, 0.2, 0.9, "does not pay"),
    ],
)
def test_the_verdict_follows_from_the_bounds(
    low: float, high: float, without_skill: float, break_even: float, verdict: str
) -> None:
    point = Point(100, (low + high) / 2, low, high, 0.9, None)
    assert judge(point, without_skill, break_even)[0] == verdict


def _simulated(values: list[object], rate: float, constant: object | None) -> float:
    rng = np.random.default_rng(0)
    right = []
    for _ in range(200):
        answer: object = None
        for value in values:
            if rng.random() >= rate or answer is None:
                answer = value
                right.append(True)
            else:
                right.append((answer if constant is None else constant) == value)
    return float(np.mean(right))


@pytest.mark.parametrize("share", [0.3, 0.8])
@pytest.mark.parametrize("runs", [1, 20])
def test_the_best_without_skill_holds_the_target_and_no_more(share: float, runs: int) -> None:
    rng = np.random.default_rng(1)
    values = np.repeat(rng.random(400 // runs) < share, runs).tolist()
    _, rate, best = without_skill(truth_of(values, can_skip=False), Target("accuracy", 0.9))
    assert best >= rate
    commonest = sum(values) * 2 > len(values)
    reached = [_simulated(values, rate, c) for c in (None, commonest)]
    beyond = [_simulated(values, min(rate + 0.05, 1), c) for c in (None, commonest)]
    assert max(reached) == pytest.approx(0.9, abs=0.012)
    assert max(beyond) < 0.9


def test_two_gates_in_turns_fill_the_gaps_of_every_nth() -> None:
    # Runs of four: every second input is 7/8 right, every input is right; 0.9375 lies half-way.
    values = np.repeat(np.arange(100) % 2, 4).tolist()
    nth, _, best = without_skill(truth_of(values, can_skip=False), Target("accuracy", 0.9375))
    assert nth == 0.0
    assert best == pytest.approx(0.25, abs=0.01)


def test_redundancy_counts_runs() -> None:
    found = redundancy(truth_of([0, 0, 0, 1, 1, 0]))
    assert found.redundant == pytest.approx(4 / 6)
    assert found.repeats == pytest.approx(3 / 5)
    assert found.runs == (2.0, 2.0, 3)
    assert redundancy(truth_of([1, 2], can_skip=False)).redundant is None


@pytest.mark.parametrize(
    ("task", "labels", "words"),
    [
        ("count:car", ("car",), "count"),
        ("presence:car", ("car",), "subset"),
        ("label:car", ("car", "bus"), "subset"),
        ("label", ("car", "bus"), "never"),
        ("confidence:0.9", ("car",), "confidence"),
        ("pose", (), "count"),
        ("value:yes", (), "subset"),
        ("value", (), "task says so"),
    ],
)
def test_every_task_has_its_family(task: str, labels: tuple[str, ...], words: str) -> None:
    family = skip_family(WorkloadSpec(task, labels=labels), make_task(task, labels).can_skip)
    assert words in family.name


def test_the_command_ends_with_a_verdict(command: Command, toy: Path, tmp_path: Path) -> None:
    asked = ("filterability", "toy.avi", "--model", "toy_model:slow", "--task", "toy_model:Square")
    report = tmp_path / "report.json"
    done = command("infi-convert", *asked, "--report", str(report))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    facts = json.loads(report.read_text())
    assert lines[-1] == f"VERDICT: {facts['verdict']}"
    assert facts["cost"]["model_ms"] >= 20
    assert 0 < facts["break_even"] < 0.2
    for word in ("SKIP family", "REUSE", "runs", "breaks even", "learned from", "every-Nth"):
        assert word in done.stdout
    assert facts["verdict"] == "pays", done.stdout
    short = command("infi-convert", *asked, "--end", "0.2")
    assert short.returncode == 0
    assert short.stdout.splitlines()[-1] == "VERDICT: not enough data"


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["1", "2"])
def test_a_control_with_shuffled_answers_does_not_pay(command: Command, seed: str) -> None:
    asked = ("filterability", "toy.avi", *WORKLOAD)
    done = command("infi-convert", *asked, "--shuffle-labels", seed)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "VERDICT: does not pay", done.stdout


def test_the_command_refuses(command: Command) -> None:
    refused(command("infi-convert", "filterability", "none.avi", *WORKLOAD), "none.avi")
    refused(command("infi-convert", "filterability", "toy.avi"), "--model")
    both = ("--target-accuracy", "0.9", "--target-recall", "0.9")
    refused(command("infi-convert", "filterability", "toy.avi", *WORKLOAD, *both), "not both")
