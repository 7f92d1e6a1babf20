"""A gate that is given a model and a target, and nothing else: what a user sees of it."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from infi_edge.bundle import Bundle
from infi_edge.capture.mask import Mask
from infi_edge.errors import ConfigError, ExecutorError
from infi_edge.filter import InputFilter
from infi_edge.gate import Gate, Step
from infi_edge.learning.learner import Learner
from infi_edge.learning.metric import Metric
from infi_edge.learning.settings import LearnSettings
from infi_edge.learning.start import from_filter, from_nothing
from infi_edge.learning.worker import AtOnce, Background
from infi_edge.policy import Knobs
from infi_edge.preprocess import FeaturesSpec, ImageSpec, Spec
from infi_edge.tasks import SameRule, make_task, same_exact
from infi_edge.types import Action, Result

WAIT_S = 60.0
SPEC = FeaturesSpec(size=(6,))
HALF = [((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))]


def make_learner(
    spec: Spec = SPEC, target: float = 0.9, same: SameRule = same_exact, **choices: Any
) -> Learner:
    """One that fits at once, and tosses the same coins each time."""
    settings = LearnSettings(**{"seed": 0, **choices})
    return Learner(from_nothing(spec), make_task("value", ()), same, target, AtOnce(), settings)


def numbers_gate(model: Callable[[Any], Any], target: float = 0.9, **choices: Any) -> Gate:
    """A gate over six numbers an input."""
    return Gate(
        infer=model,
        task="value",
        target_accuracy=target,
        modality="features",
        preprocess=SPEC,
        learn=make_learner(target=target, **choices),
    )


class Scene:
    """What the camera sees, six numbers; the model says which state it is in."""

    def __init__(self, seed: int = 0, turn: int = 50) -> None:
        self._rng = np.random.default_rng(seed)
        self._turn = turn
        self.state = 0
        self.asked = 0

    def next(self) -> np.ndarray:
        if self._rng.random() < 1 / self._turn:
            self.state = int(self._rng.integers(0, 3))
        numbers = self._rng.normal(0.0, 0.02, 6)
        numbers[1] += self.state > 0
        numbers[4] += self.state > 1
        return numbers.astype(np.float32)

    def model(self, numbers: np.ndarray) -> int:
        self.asked += 1
        return int(numbers[1] > 0.5) + int(numbers[4] > 0.5)


def serve(gate: Gate, scene: Scene, count: int, at_s: float = 0.0) -> tuple[list[Result], float]:
    """Results, and the share that was right."""
    results, right = [], 0
    for i in range(count):
        results.append(gate(scene.next(), at_s + i / 10))
        right += results[-1].value == scene.state
    return results, right / count


def filtered(results: list[Result]) -> float:
    return float(np.mean([r.action is not Action.INFER for r in results]))


# From nothing.


@pytest.mark.slow
def test_a_model_and_a_target_are_enough() -> None:
    """As in the README: real pictures, the fits in their own thread."""
    rng = np.random.default_rng(0)
    room = rng.integers(40, 200, (48, 64, 3))

    def person_is_there(frame: np.ndarray) -> bool:
        return bool((frame > 240).mean() > 0.02)

    def frames() -> Iterator[np.ndarray]:
        while True:
            for shown in range(400):
                frame = np.clip(room + rng.normal(0, 2, room.shape), 0, 255).astype(np.uint8)
                if shown >= 200:
                    frame[10:40, 20:40] = 255
                yield frame

    right = count = 0
    deadline_s = time.monotonic() + WAIT_S
    with Gate(infer=person_is_there, task="value", target_accuracy=0.95) as gate:
        for frame in frames():
            result = gate(frame)
            right += result.value == person_is_there(frame)
            count += 1
            if gate.stats["reuse"] > 500:
                break
            assert time.monotonic() < deadline_s, gate.stats
            time.sleep(0.001)
    assert right / count >= 0.95
    assert gate.learner is not None
    assert gate.learner.counts["inputs"] == count == sum(gate.stats.values())


def test_it_begins_open_and_then_filters_a_scene_that_can_be_foretold() -> None:
    scene = Scene()
    gate = numbers_gate(scene.model)
    results, accuracy = serve(gate, scene, 1500)
    first = next(i for i, r in enumerate(results) if r.action is not Action.INFER)
    assert first >= LearnSettings().warm_up
    assert {r.why for r in results[:first]} == {"learning"}
    assert filtered(results[300:]) > 0.7
    assert accuracy >= 0.9
    assert scene.asked == sum(r.action is Action.INFER for r in results)
    assert gate.stats["infer"] + gate.stats["reuse"] == 1500


def test_a_result_says_that_it_was_audited_and_how_right_the_gate_is() -> None:
    scene = Scene()
    gate = numbers_gate(scene.model, audit=0.2, audit_settled=0.2)
    results, _ = serve(gate, scene, 800)
    assert gate.learner is not None
    audited = [r for r in results if r.audited]
    assert len(audited) == gate.learner.counts["audited"] == gate.learner.live.audits > 20
    assert all(r.action is Action.INFER and r.why == "audit" for r in audited)
    assert all(r.audited for r in results if r.why == "audit")
    first = results.index(audited[0])
    assert all(r.live_bound is None for r in results[:first])
    for result in results[first + 1 :]:
        assert result.live_bound is not None
        assert result.live_accuracy is not None
        assert 0.0 <= result.live_bound <= result.live_accuracy <= 1.0


def test_of_what_it_could_filter_the_share_of_the_settings_is_audited() -> None:
    scene = Scene(turn=500)
    gate = numbers_gate(scene.model, audit=0.1, audit_settled=0.1)
    results, _ = serve(gate, scene, 5000)
    audits = sum(r.why == "audit" for r in results)
    could = audits + sum(r.action is not Action.INFER for r in results)
    assert abs(audits - 0.1 * could) < 4 * math.sqrt(0.1 * could)


def test_two_gates_in_one_process_have_nothing_to_do_with_each_other() -> None:
    alone, _ = serve(numbers_gate((first := Scene(1)).model), first, 500)
    one, other = Scene(1), Scene(2, turn=3)
    gate, beside = numbers_gate(one.model), numbers_gate(other.model, target=0.8)
    results = []
    for i in range(500):
        results.append(gate(one.next(), i / 10))
        beside(other.next(), i / 10)
    assert [(r.action, r.value, r.why) for r in results] == [
        (r.action, r.value, r.why) for r in alone
    ]


def test_a_gate_that_is_switched_off_infers_everything_and_learns_nothing() -> None:
    scene = Scene()
    gate = numbers_gate(scene.model)
    gate.enabled = False
    results, accuracy = serve(gate, scene, 200)
    assert scene.asked == 200
    assert accuracy == 1.0
    assert {r.why for r in results} == {"the gate is disabled"}
    assert gate.learner is not None
    assert gate.learner.counts["inputs"] == len(gate.learner.memory) == 0
    gate.enabled = True
    results, _ = serve(gate, scene, 600, at_s=20.0)
    assert filtered(results) > 0.4


def test_switched_off_in_between_it_goes_on_with_what_it_knew() -> None:
    scene = Scene()
    gate = numbers_gate(scene.model)
    serve(gate, scene, 500)
    gate.enabled = False
    serve(gate, scene, 100, at_s=50.0)
    gate.enabled = True
    results, accuracy = serve(gate, scene, 300, at_s=60.0)
    assert filtered(results[:30]) > 0
    assert accuracy >= 0.9


def test_a_new_gate_takes_over_what_the_old_one_has_learned() -> None:
    scene = Scene()
    old = numbers_gate(scene.model)
    serve(old, scene, 500)
    new = numbers_gate(scene.model)
    new.take_over(old)
    assert new.learner is old.learner
    results, accuracy = serve(new, scene, 200, at_s=50.0)
    assert filtered(results[:40]) > 0.4
    assert accuracy >= 0.9


@pytest.mark.parametrize(
    "values",
    [
        [["car", 0.1, 0.2], ["bus", 0.3, 0.4], []],
        [{"n": 1}, {"n": 2, "at": [1, None]}, {}],
        ["calm", "fire", ""],
        [True, False, None],
        [0.5, 1.5, 0.0],
    ],
    ids=["lists", "dicts", "strings", "none", "floats"],
)
def test_any_json_value_can_be_answered_again(values: list[Any]) -> None:
    scene = Scene()
    gate = numbers_gate(lambda numbers: copy.deepcopy(values[scene.model(numbers)]))
    right = 0
    for i in range(1000):
        result = gate(scene.next(), i / 10)
        right += result.value == values[scene.state]
    assert right >= 900
    assert gate.stats["reuse"] > 400


# Refusals.


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"task": None, "target_accuracy": 0.9}, "task="),
        ({"task": "value", "target_accuracy": None}, "target_accuracy="),
        ({"task": "value", "target_accuracy": 1.0}, "not between 0 and 1"),
        ({"task": "value", "target_accuracy": 0.0}, "not between 0 and 1"),
        ({"task": "value", "target_accuracy": float("nan")}, "not between 0 and 1"),
        ({"task": "value", "target_accuracy": 0.9, "modality": "motion"}, "preprocess="),
        ({"task": "nonsense", "target_accuracy": 0.9}, "nonsense"),
        ({"task": "value", "target_accuracy": 0.9, "preprocess": ImageSpec(0, 5)}, "input size"),
        ({"task": "value", "target_accuracy": 0.9, "learn": LearnSettings(warm_up=1)}, "warm_up"),
        (
            {"task": "value", "target_accuracy": 0.9, "modality": "text", "preprocess": SPEC},
            "text|features",
        ),
    ],
)
def test_what_cannot_be_learned_is_refused_in_one_sentence(
    choices: dict[str, Any], words: str, refuses: Any
) -> None:
    with refuses(ConfigError, words):
        Gate(infer=lambda data: 1, **choices)


def test_a_gate_needs_a_model(refuses: Any) -> None:
    with refuses(ConfigError, "infer="):
        Gate(task="value", target_accuracy=0.9)


# Fail open.


class Adversary:
    """Its answers change exactly when nobody looks; the inputs say nothing of it.

    `after`: the answer differs from the one before if and only if the input before was filtered.
    `while`: it differs as long as the gate filters at all (what it inferred of late was not all),
    and holds still while the gate is open, so that a shadow finds nothing wrong.
    """

    def __init__(self, kind: str, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._kind = kind
        self.value = 0

    def next(self) -> np.ndarray:
        return self._rng.normal(0.5, 0.02, 6).astype(np.float32)

    def __call__(self, numbers: np.ndarray) -> int:
        return self.value

    def learn_of(self, result: Result, is_open: bool) -> None:
        if self._kind == "after":
            self.value += result.action is not Action.INFER
        else:
            self.value += not is_open


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.9, 0.95])
@pytest.mark.parametrize("kind", ["after", "while"])
@pytest.mark.parametrize("seed", range(2))
def test_an_adversary_is_found_out_within_100_inferences(
    target: float, kind: str, seed: int
) -> None:
    """From then on, whether it opens or tightens, what it delivers is at the target."""
    adversary = Adversary(kind, seed)
    gate = numbers_gate(adversary, target, seed=seed)
    assert gate.learner is not None
    inferred, right = [], []
    for i in range(1500):
        result = gate(adversary.next(), i / 10)
        inferred.append(result.action is Action.INFER)
        right.append(result.value == adversary.value)
        adversary.learn_of(result, gate.learner.opened_for is not None)
    first = inferred.index(False)
    found_out = first + int(np.searchsorted(np.cumsum(inferred[first:]), 100))
    assert found_out < 400
    assert np.mean(right[first:found_out]) >= target - 0.1
    for begin in range(found_out, 1250, 125):
        assert np.mean(right[begin : begin + 250]) >= target, begin
    assert np.mean(right) >= target - 0.01


@pytest.mark.slow
def test_a_gate_that_opens_again_and_again_waits_longer_each_time() -> None:
    """As long as it is open the answers hold still; once it is closed half of them change."""
    rng, value = np.random.default_rng(0), 0
    gate = numbers_gate(lambda numbers: value, audit=0.3, audit_settled=0.3)
    learner = gate.learner
    assert learner is not None
    spells, opened_at = [], None
    for i in range(6000):
        if learner.opened_for is None and rng.random() < 0.15:
            value += 1
        gate(rng.normal(0.5, 0.02, 6).astype(np.float32), i / 10)
        if learner.opened_for == "below the target" and opened_at is None:
            opened_at = i
        elif learner.opened_for is None and opened_at is not None:
            spells.append(i - opened_at)
            opened_at = None
    if opened_at is not None:
        spells.append(6000 - opened_at)
    if len(spells) < 2:
        assert filtered_share(learner) < 0.5  # it has tightened so that it need not open
        return
    assert spells[1] > spells[0]
    assert max(spells) >= 2 * min(spells)


def filtered_share(learner: Learner) -> float:
    live = learner.live
    return 1 - (live._needed + live.audits) / max(live.inputs, 1)


def pictures(seed: int = 0, level: int = 90) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    room = rng.integers(level - 40, level + 40, (24, 32, 3))
    while True:
        yield np.clip(room + rng.normal(0, 2, room.shape), 0, 255).astype(np.uint8)


def pictures_gate(model: Callable[[Any], Any] = lambda frame: 1, **choices: Any) -> Gate:
    return Gate(
        infer=model,
        task="value",
        target_accuracy=0.9,
        learn=make_learner(ImageSpec()),
        **choices,
    )


def test_a_change_of_the_whole_scene_opens_the_gate_at_once_and_it_closes_again() -> None:
    gate = pictures_gate()
    day, night = pictures(0, 150), pictures(5, 50)
    before = [gate(next(day), i / 10) for i in range(300)]
    assert before[-1].action is not Action.INFER or filtered(before[-50:]) > 0.7
    after = [gate(next(night), 30 + i / 10) for i in range(400)]
    assert after[0].action is Action.INFER
    assert after[0].scene_change
    assert filtered(after[:15]) == 0
    assert filtered(after[200:]) > 0.7
    assert gate.learner is not None
    assert gate.learner.counts["failed_open"] == 1


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_clock_that_jumps_while_the_scene_changes_does_not_hold_the_gate_open(
    jump_s: float,
) -> None:
    gate = pictures_gate()
    day, night = pictures(0, 150), pictures(5, 50)
    for i in range(200):
        gate(next(day), 5000 + i / 10)
    for i in range(5):
        gate(next(night), 5020 + i / 10)
    results = [gate(next(night), 5020 + jump_s + i / 10) for i in range(600)]
    assert filtered(results[300:]) > 0.7


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0, -1e8, 1e8])
def test_a_clock_that_jumps_forth_and_back_is_survived(jump_s: float) -> None:
    scene = Scene()
    gate = numbers_gate(scene.model)
    serve(gate, scene, 500)
    away, right_away = serve(gate, scene, 600, at_s=50 + jump_s)
    back, right_back = serve(gate, scene, 600, at_s=110.0)
    assert min(right_away, right_back) >= 0.9
    assert filtered(away[300:]) > 0.5
    assert filtered(back[300:]) > 0.5


def test_a_model_that_fails_while_it_learns_loses_nothing() -> None:
    scene, rng = Scene(), np.random.default_rng(0)
    failures = 0

    def model(numbers: np.ndarray) -> int:
        nonlocal failures
        if rng.random() < 0.2:
            failures += 1
            raise RuntimeError("no power")
        return scene.model(numbers)

    gate = numbers_gate(model)
    answers = right = 0
    for i in range(1500):
        try:
            result = gate(scene.next(), i / 10)
        except ExecutorError:
            continue
        answers += 1
        right += result.value == scene.state
    assert gate.learner is not None
    assert answers + failures == 1500
    assert failures > 5
    assert sum(gate.stats.values()) == answers
    assert gate.learner.counts["inputs"] == 1500
    assert right / answers >= 0.9
    assert gate.stats["reuse"] > 600


def test_a_model_that_always_fails_is_asked_every_time() -> None:
    def broken(numbers: np.ndarray) -> int:
        raise RuntimeError("no power")

    gate = numbers_gate(broken)
    for i in range(100):
        with pytest.raises(ExecutorError, match="no power"):
            gate(np.zeros(6, np.float32), i / 10)
    assert gate.stats["reuse"] == 0


def test_an_answer_of_nan_from_a_task_of_ones_own_is_delivered_and_not_learned() -> None:
    class Own:
        empty, can_skip = None, False

        def read(self, decoded: Any) -> Any:
            return decoded

        def is_redundant(self, value: Any) -> bool:
            return False

    class Nan:
        task, same, empty = Own(), same_exact, None

        def __call__(self, data: Any) -> Any:
            return float("nan")

    gate = Gate(
        infer=Nan(),
        task="value",
        target_accuracy=0.9,
        modality="features",
        preprocess=SPEC,
        learn=make_learner(),
    )
    for i in range(100):
        result = gate(np.full(6, 0.5, np.float32), i / 10)
        assert result.action is Action.INFER
        assert math.isnan(result.value)
    assert gate.learner is not None
    assert gate.learner.counts["not_a_number"] == 100


def test_a_rule_that_raises_from_the_start_passes_everything(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def same(a: Any, b: Any) -> bool:
        raise KeyError("box")

    scene = Scene()
    gate = numbers_gate(scene.model, same=same)
    with caplog.at_level(logging.WARNING, "infi_edge"):
        results, accuracy = serve(gate, scene, 300)
    assert filtered(results) == 0
    assert accuracy == 1.0
    assert gate.learner is not None
    assert gate.learner.counts["rule_error"] > 0
    assert sum("cannot be compared" in r.getMessage() for r in caplog.records) == 1


def test_a_rule_that_raises_later_is_counted_said_once_and_every_answer_arrives(
    caplog: pytest.LogCaptureFixture,
) -> None:
    faulty = False

    def same(a: Any, b: Any) -> bool:
        if faulty:
            raise KeyError("box")
        return bool(a == b)

    scene = Scene()
    gate = numbers_gate(scene.model, same=same, audit=0.2, audit_settled=0.2)
    serve(gate, scene, 500)
    faulty = True
    with caplog.at_level(logging.WARNING, "infi_edge"):
        results, _ = serve(gate, scene, 300, at_s=50.0)
    inferred = [r for r in results if r.action is Action.INFER]
    assert all(r.value is not None for r in inferred)
    assert gate.learner is not None
    assert gate.learner.counts["rule_error"] > 5
    assert sum("cannot be compared" in r.getMessage() for r in caplog.records) == 1
    faulty = False
    results, accuracy = serve(gate, scene, 500, at_s=80.0)
    assert accuracy >= 0.88
    assert filtered(results) > 0.4


def test_features_that_are_no_numbers_are_inferred_and_not_learned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene()
    gate = numbers_gate(scene.model)
    serve(gate, scene, 300)
    assert gate.learner is not None
    known = len(gate.learner.memory)
    monkeypatch.setattr(FeaturesSpec, "features", lambda self, t: np.full(6, np.nan, np.float32))
    results, accuracy = serve(gate, scene, 50, at_s=30.0)
    assert filtered(results) == 0
    assert accuracy == 1.0
    assert gate.stats["filter_error"] == 50
    assert len(gate.learner.memory) == known
    monkeypatch.undo()
    assert filtered(serve(gate, scene, 100, at_s=35.0)[0]) > 0.3


def test_an_input_of_another_kind_is_inferred_and_not_learned() -> None:
    scene = Scene()
    gate = numbers_gate(lambda numbers: 7)
    serve(gate, scene, 50)
    assert gate.learner is not None
    known = len(gate.learner.memory)
    result = gate("no numbers at all", 6.0)
    assert (result.action, result.value) == (Action.INFER, 7)
    assert "filter error" in result.why
    assert len(gate.learner.memory) == known


# Masks.


def test_nothing_under_a_mask_is_learned_from() -> None:
    """What happens under the mask is wild; the gate filters as if it were not there."""
    rng = np.random.default_rng(0)
    seen: list[np.ndarray] = []

    def model(frame: np.ndarray) -> int:
        seen.append(frame)
        return 1

    gate = pictures_gate(model, mask=Mask(HALF, []))
    stream = pictures()
    results = []
    for i in range(300):
        frame = next(stream)
        frame[:, :16] = rng.integers(0, 256)
        results.append(gate(frame, i / 10))
    assert filtered(results[150:]) > 0.8
    assert all(len(np.unique(frame[:, :15])) == 1 for frame in seen)
    assert gate.learner is not None
    features = gate.learner.memory.sample().features
    cells = features[:, :192].reshape(-1, 12, 16)[:, :, :7]
    assert cells.std(axis=0).max() < 1e-3


# In flight.


def test_answers_that_come_late_are_taken_in_order_over_a_refit() -> None:
    """Windows of inputs are decided on before the answers of the ones before have come; a refit
    happens in between. What is in a cache is of one version, and the gate still holds."""
    scene = Scene()
    gate = numbers_gate(scene.model)
    assert gate.learner is not None
    waiting: list[tuple[Step, int]] = []
    versions_between = filtered_count = right = 0

    def take() -> None:
        nonlocal right
        step, state = waiting.pop(0)
        result = gate.answer(step, scene.model(step.look.sample.data))
        right += result.value == state
        cache, embedding = gate.learner.policy.cache, gate.learner.embedding
        if embedding is not None:
            assert cache.dim == len(embedding.used)
            assert gate.cache is cache

    for i in range(1500):
        look = gate.look(scene.next(), i / 10)
        state = scene.state
        while True:
            version = look.version
            in_flight = [step for step, _ in reversed(waiting)]
            step = gate.decide(look, in_flight)
            versions_between += version != look.version
            if step is not None:
                break
            take()
        for waited, _ in waiting:
            assert waited.look.version == gate.learner.version or waited.look.embedding is None
        if step.result is not None:
            filtered_count += 1
            right += step.result.value == state
        else:
            waiting.append((step, state))
        if len(waiting) >= 4:
            take()
    while waiting:
        take()
    assert versions_between > 0  # a metric did change between look and decide
    assert filtered_count > 600
    assert right / 1500 >= 0.88
    assert gate.learner.counts["inputs"] == gate.learner.live.inputs == 1500


def test_a_step_that_was_decided_before_a_refit_is_learned_with_the_new_metric() -> None:
    scene = Scene()
    gate = numbers_gate(scene.model)
    serve(gate, scene, 200)
    learner = gate.learner
    assert learner is not None
    for i in range(500):
        step = gate.decide(gate.look(scene.next(), 20 + i / 10))
        assert step is not None
        if step.result is None:
            break
    version = learner.version
    assert learner.metric is not None
    learner._adopt(doubled(learner.metric))
    assert learner.version == version + 1
    before = len(learner.policy.cache)
    gate.answer(step, scene.model(step.look.sample.data))
    cache = learner.policy.cache
    assert len(cache) == min(before + 1, cache.capacity)
    assert learner.embedding is not None
    assert cache.distance(cache.newest, learner.embed(step.look.cheap)) == 0


def doubled(metric: Metric) -> Metric:
    """The same metric, but with every weight doubled."""
    return Metric(metric.weights * 2, metric.log_age, metric.age, metric.bias)


def test_an_inference_that_fails_in_flight_is_none_for_the_cap() -> None:
    scene = Scene()
    gate = numbers_gate(scene.model)
    serve(gate, scene, 300)
    steps = []
    for i in range(400):
        step = gate.decide(gate.look(scene.next(), 30 + i / 10), steps[::-1])
        if step is None:
            gate.fail(steps.pop(0))
            continue
        if step.result is None:
            steps.append(step)
    for step in steps:
        gate.fail(step)
    results, accuracy = serve(gate, scene, 300, at_s=80.0)
    assert accuracy >= 0.88
    assert filtered(results) > 0.3


# A bundle to begin with.


class Grey:
    """Pictures of a grey level; the model says whether it is bright. What the light bundle of the
    tests looks at is grey levels, so it knows this task."""

    def __init__(self, seed: int = 0, turn: int = 60) -> None:
        self._rng = np.random.default_rng(seed)
        self._turn, self._bright = turn, False
        self.asked = 0

    def next(self) -> np.ndarray:
        if self._rng.random() < 1 / self._turn:
            self._bright = not self._bright
        level = 128.0 if self._bright else 80.0  # no change of the whole scene
        noise = self._rng.normal(0, 2, (48, 64, 3))
        frame = np.full((48, 64, 3), 80.0)
        frame[:, 10:40] = level
        return np.clip(frame + noise, 0, 255).astype(np.uint8)

    @property
    def label(self) -> str:
        return "bright" if self._bright else "dark"

    def model(self, frame: np.ndarray) -> np.ndarray:
        self.asked += 1
        bright = float(frame[:, 20:30].mean() > 104)
        return np.array([1 - bright, bright])


def light_bundle(manifest: Any, members: dict[str, bytes], mechanism: str, task: str) -> Bundle:
    """The light bundle of the tests, with SKIP, REUSE or both."""
    points = [
        msgspec.structs.replace(
            point,
            knobs=Knobs(
                reuse_threshold=None if mechanism == "skip" else 0.3,
                skip_threshold=None if mechanism == "reuse" else 0.3,
            ),
        )
        for point in manifest.calibration.points
    ]
    changed = msgspec.structs.replace(
        manifest,
        mechanism=mechanism,
        skip=None if mechanism == "reuse" else manifest.skip,
        reuse=None if mechanism == "skip" else manifest.reuse,
        workload=msgspec.structs.replace(manifest.workload, task=task),
        calibration=msgspec.structs.replace(manifest.calibration, points=points),
    )
    kept = {name: data for name, data in members.items() if name != "skip.npy" or changed.skip}
    return Bundle(changed, kept, "yard")


def bundle_gate(bundle: Bundle, grey: Grey, seed: int = 0, learns: bool = True) -> Gate:
    loaded = InputFilter(bundle)
    gate = Gate(loaded, grey.model, allow_other_model=True)
    if not learns:
        return gate
    knobs = bundle.manifest.calibration.points[0].knobs
    learner = Learner(
        from_filter(loaded, knobs), gate.task, same_exact, 0.9, AtOnce(), LearnSettings(seed=seed)
    )
    return Gate(InputFilter(bundle), grey.model, allow_other_model=True, learn=learner)


def run_grey(gate: Gate, grey: Grey, count: int) -> tuple[float, float, list[Result]]:
    """Filtered, accuracy, results."""
    results, right = [], 0
    for i in range(count):
        results.append(gate(grey.next(), i / 10))
        result = results[-1]
        if result.action is Action.SKIP:
            right += gate.task.is_redundant("bright" if grey.label == "bright" else None)
        else:
            right += result.value == (grey.label if gate.task.empty is None else None) or (
                result.value is None and grey.label == "dark" and gate.task.can_skip
            )
    return filtered(results), right / count, results


@pytest.mark.parametrize("mechanism", ["reuse", "skip", "both"])
def test_with_a_bundle_it_filters_from_the_first_inputs_on(
    manifest: Any, members: dict[str, bytes], mechanism: str
) -> None:
    grey = Grey()
    task = "label" if mechanism == "reuse" else "label:bright"
    gate = bundle_gate(light_bundle(manifest, members, mechanism, task), grey)
    rate, accuracy, results = run_grey(gate, grey, 600)
    assert filtered(results[:12]) > 0  # from nothing it would still be warming up
    assert accuracy >= 0.9
    assert rate > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_bundle_to_begin_with_is_never_worse_than_nothing(
    manifest: Any, members: dict[str, bytes], seed: int
) -> None:
    with_it, without = Grey(seed), Grey(seed)
    bundle = light_bundle(manifest, members, "reuse", "label")
    begun = run_grey(bundle_gate(bundle, with_it, seed), with_it, 1200)
    spec = manifest.preprocess
    plain = Gate(
        infer=without.model,
        task="label",
        decoder="classification",
        labels=("dark", "bright"),
        target_accuracy=0.9,
        preprocess=spec,
        learn=Learner(
            from_nothing(spec),
            make_task("label", ("dark", "bright")),
            same_exact,
            0.9,
            AtOnce(),
            LearnSettings(seed=seed),
        ),
    )
    nothing = run_grey(plain, without, 1200)
    assert begun[1] >= 0.9
    assert nothing[1] >= 0.9
    assert begun[0] >= nothing[0] - 0.01


@pytest.mark.slow
def test_a_bundle_that_does_not_fit_the_stream_does_not_hold_it_below_the_target(
    manifest: Any, members: dict[str, bytes]
) -> None:
    """It was trained to look at three cells of the picture; here it is the others that count."""

    class Elsewhere(Grey):
        def next(self) -> np.ndarray:
            frame = super().next()
            return np.ascontiguousarray(np.roll(frame, 24, axis=1))

        def model(self, frame: np.ndarray) -> np.ndarray:
            return super().model(np.roll(frame, -24, axis=1))

    for seed in range(3):
        grey = Elsewhere(seed)
        gate = bundle_gate(light_bundle(manifest, members, "reuse", "label"), grey, seed)
        rate, accuracy, _ = run_grey(gate, grey, 1500)
        assert accuracy >= 0.9
        assert rate > 0.3


def test_a_gate_with_a_bundle_learns_only_if_it_is_told_to(
    manifest: Any, members: dict[str, bytes]
) -> None:
    grey = Grey()
    bundle = light_bundle(manifest, members, "reuse", "label")
    assert bundle_gate(bundle, grey, learns=False).learner is None
    with Gate(InputFilter(bundle), grey.model, allow_other_model=True, learn=True) as gate:
        assert gate.learner is not None
        assert isinstance(gate.learner._worker, Background)
        assert gate.learner.opened_for is None


def test_a_target_of_recall_alone_cannot_be_learned(
    manifest: Any, members: dict[str, bytes], refuses: Any
) -> None:
    bundle = light_bundle(manifest, members, "both", "label:bright")
    points = [msgspec.structs.replace(p, measure="recall", recall=0.9) for p in
              bundle.manifest.calibration.points]  # fmt: skip
    changed = msgspec.structs.replace(
        bundle.manifest,
        calibration=msgspec.structs.replace(bundle.manifest.calibration, points=points),
    )
    with refuses(ConfigError, "target_accuracy="):
        Gate(
            InputFilter(Bundle(changed, bundle.members, "yard")),
            Grey().model,
            allow_other_model=True,
            learn=True,
        )


@pytest.fixture(scope="module")
def net() -> Bundle:
    """A network of a bundle: the mean grey level of the picture's left and right half, uint8."""
    keras = pytest.importorskip("keras", reason="a network is made with Keras")
    from converters.quantize import to_tflite

    layers = keras.layers
    picture = layers.Input((48, 64, 3))
    means = layers.AveragePooling2D((48, 16))(picture)
    weights = np.zeros((12, 4), np.float32)
    for cell in range(4):
        weights[3 * cell : 3 * cell + 3, cell] = 1 / 3
    out = layers.Dense(4, use_bias=False)(layers.Flatten()(means))
    model = keras.Model(picture, out)
    model.layers[-1].set_weights([weights])
    return Bundle(Any, {"filter.tflite": to_tflite(model, "float32", [])}, "net")  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_network_to_begin_with_filters_at_once(
    manifest: Any, members: dict[str, bytes], net: Bundle
) -> None:
    content = net.members["filter.tflite"]
    light = light_bundle(manifest, members, "reuse", "label")
    spec = msgspec.structs.replace(
        light.manifest.filter, kind="net", dim=4, scale=1.0, parameters=48
    )
    changed = msgspec.structs.replace(light.manifest, filter=spec)
    grey = Grey()
    gate = bundle_gate(Bundle(changed, {"filter.tflite": content}, "net"), grey)
    rate, accuracy, results = run_grey(gate, grey, 800)
    assert filtered(results[:12]) > 0
    assert accuracy >= 0.9
    assert rate > 0.4
