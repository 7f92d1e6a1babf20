"""What each task reads, finds redundant and calls the same; how entries vote; what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi_edge.decoders import Classes, Detections, Keypoints
from infi_edge.errors import ConfigError, ExecutorError
from infi_edge.tasks import make_same, make_task, same_exact, vote

LABELS = ("person", "car", "bus")
SEEN = Detections(
    np.array([[0, 0, 0.5, 0.5], [0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 1, 1]], np.float32),
    np.array([1, 0, 2]),
    np.array([0.9, 0.8, 0.7]),
)
NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0))
CLASSES = Classes(np.array([0.1, 0.7, 0.2]))
POSE = Keypoints(np.array([[0.25, 0.5, 0.9], [0.1, 0.1, 0.2], [1.0, 0.0, 0.3]]))


@pytest.mark.parametrize(
    ("text", "decoded", "value"),
    [
        ("count:car,bus", SEEN, 2),
        ("count: car , bus ,", SEEN, 2),
        ("count:person", NOTHING, 0),
        ("presence:person", SEEN, True),
        ("presence:car", NOTHING, False),
        ("detect:car,person", SEEN, [["car", 0, 0, 0.5, 0.5], ["person", 0.1, 0.2, 0.3, 0.4]]),
        ("detect:car", NOTHING, []),
        ("label", CLASSES, "car"),
        ("label:car", CLASSES, "car"),
        ("label:person,bus", CLASSES, None),
        ("confidence:0.7", CLASSES, "car"),
        ("confidence:0.71", CLASSES, None),
        ("pose", POSE, [[0, 0.25, 0.5], [2, 1.0, 0.0]]),
    ],
)
def test_a_task_reads_a_json_value(text, decoded, value):
    read = make_task(text, LABELS).read(decoded)
    assert read == value
    assert type(read) is type(value)
    assert json.loads(json.dumps(read)) == read


@pytest.mark.parametrize(
    ("text", "redundant", "wanted"),
    [
        ("count:car", [0], [1, 7]),
        ("presence:car", [False], [True]),
        ("detect:car", [[]], [[["car", 0, 0, 1, 1]]]),
        ("label", [], [None, "car"]),
        ("label:car", [None], ["car"]),
        ("confidence:0.5", [None], ["car"]),
        ("pose", [[]], [[[0, 0.5, 0.5]]]),
    ],
)
def test_what_nobody_wants_is_redundant(text, redundant, wanted):
    task = make_task(text, LABELS)
    assert [task.is_redundant(v) for v in redundant] == [True] * len(redundant)
    assert [task.is_redundant(v) for v in wanted] == [False] * len(wanted)
    assert task.can_skip == bool(redundant)
    assert task.empty in (redundant or [None])


def test_a_class_without_a_label_is_named_by_its_number():
    scores = Classes(np.array([0.0, 0.0, 0.0, 1.0]))
    assert make_task("label", LABELS).read(scores) == "3"
    assert make_task("confidence:0.5", LABELS).read(scores) == "3"


@pytest.mark.parametrize(
    ("text", "labels", "words"),
    [
        ("count:dog", LABELS, r"class 'dog' is not in the labels \(person, car, bus"),
        ("count:car,dog", LABELS, "'dog'"),
        ("count:car", (), "--labels FILE"),
        ("label:car", (), "--labels FILE"),
        ("presence:car", (), "task presence names classes"),
        ("count", LABELS, "count:person"),
        ("presence:", LABELS, "presence:person"),
        ("detect: , ", LABELS, "detect:person"),
        ("confidence", LABELS, "confidence:0.5"),
        ("confidence:high", LABELS, "'high'"),
        ("confidence:nan", LABELS, "'nan'"),
        ("guess", LABELS, "unknown task 'guess'"),
        ("pose:left", LABELS, "task .pose:left."),
        ("", LABELS, "unknown task"),
        ("no.such.module:Task", LABELS, "cannot be imported"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(refuses, text, labels, words):
    with refuses(ConfigError, words):
        make_task(text, labels)


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("count:car", CLASSES),
        ("presence:car", CLASSES),
        ("detect:car", POSE),
        ("label", SEEN),
        ("confidence:0.5", POSE),
        ("pose", SEEN),
    ],
)
def test_a_task_names_itself_when_the_decoder_gives_another_kind(refuses, text, decoded):
    task = make_task(text, LABELS)
    kind = type(decoded).__name__.lower()
    with refuses(ConfigError, f"task {text.partition(':')[0]} needs .* gives {kind}"):
        task.read(decoded)


def test_a_users_own_task_is_made_with_the_labels(tmp_path, monkeypatch):
    (tmp_path / "own_tasks").mkdir()
    (tmp_path / "own_tasks" / "__init__.py").write_text("")
    (tmp_path / "own_tasks" / "first.py").write_text(
        "class First:\n"
        "    empty, can_skip = None, True\n"
        "    def __init__(self, labels): self.labels = labels\n"
        "    def read(self, decoded): return self.labels[decoded]\n"
        "    def is_redundant(self, value): return value is None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert make_task("own_tasks.first:First", LABELS).read(2) == "bus"


def test_exact_compares_whole_values():
    same = make_same("exact", "label")
    assert same("car", "car")
    assert not same("car", "bus")
    assert not same([["car", 0.1]], [["car", 0.2]])


def test_within_allows_a_difference_in_every_number_and_in_nothing_else():
    same = make_same("within:0.1", "pose")
    assert same(2, 2.05)
    assert not same(2, 2.11)
    assert make_same("within:1", "count:car")(2, 3)
    assert same([[0, 0.5, 0.5]], [[0, 0.55, 0.45]])
    assert not same([[0, 0.5, 0.5]], [[1, 0.5, 0.5]])
    assert not same([[0, 0.5, 0.5]], [])
    assert not same(None, 0)
    assert not same("car", "bus")


BOX = ["car", 0.0, 0.0, 0.4, 0.4]
SHIFTED = ["car", 0.1, 0.0, 0.5, 0.4]  # IoU 0.6


def test_iou_pairs_boxes_of_a_class_in_any_order():
    other = ["bus", 0.5, 0.5, 1.0, 1.0]
    assert make_same("iou:0.59", "detect:car")([BOX, other], [other, SHIFTED])
    assert not make_same("iou:0.61", "detect:car")([BOX, other], [other, SHIFTED])
    assert not make_same("iou:0.1", "detect:car")([BOX], [BOX, BOX])
    assert not make_same("iou:0.1", "detect:car")([BOX, BOX], [BOX, other])
    assert make_same("iou:0.5", "detect:car")([], [])


@pytest.mark.parametrize("threshold", [0, 0.5])
def test_boxes_of_another_class_are_never_the_same(threshold):
    assert not make_same(f"iou:{threshold}", "detect:car")([BOX], [["bus", *BOX[1:]]])


@pytest.mark.parametrize("task", ["count:car", "presence:car", "label", "confidence:0.5", "pose"])
def test_iou_needs_a_task_with_boxes(refuses, task):
    with refuses(ConfigError, "needs boxes"):
        make_same("iou:0.5", task)


@pytest.mark.parametrize("text", ["", "near", "exact:1", "within", "within:x", "iou:-1", "iou:inf"])
def test_an_unknown_same_rule_is_refused(refuses, text):
    with refuses(ConfigError, "same rule|needs a number"):
        make_same(text, "detect:car")


@given(st.lists(st.tuples(st.integers(-5, 5), st.floats(0.1, 10)), min_size=1, max_size=15))
def test_numbers_vote_for_their_weighted_median(votes):
    values, weights = [v for v, _ in votes], np.array([w for _, w in votes])
    winner, share = vote(values, weights, same_exact)
    total = weights.sum()
    below = sum(w for v, w in votes if v < winner)
    above = sum(w for v, w in votes if v > winner)
    assert below <= total / 2 + 1e-9
    assert above <= total / 2 + 1e-9
    assert share == pytest.approx(sum(w for v, w in votes if v == winner) / total)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), min_size=1, max_size=15))
def test_names_vote_for_the_heaviest_and_on_a_tie_for_the_earlier(votes):
    values, weights = [v for v, _ in votes], np.array([float(w) for _, w in votes])
    sums = {name: sum(w for v, w in votes if v == name) for name in values}
    heaviest = next(name for name in values if sums[name] == max(sums.values()))
    assert vote(values, weights, same_exact) == (heaviest, sums[heaviest] / weights.sum())


def test_true_and_false_vote_as_names_do():
    assert vote([False, True, True], np.array([1.5, 1.0, 1.0]), same_exact) == (True, 2 / 3.5)
    assert vote([True, False], np.array([1.0, 1.0]), same_exact) == (True, 0.5)


def test_values_that_are_nearly_the_same_vote_together():
    same = make_same("iou:0.5", "detect:car")
    far = [["car", 0.6, 0.6, 0.9, 0.9]]
    winner, share = vote([far, [BOX], [SHIFTED]], np.array([1.5, 1.0, 1.0]), same)
    assert winner == [BOX]
    assert share == pytest.approx(2 / 3.5)


@pytest.mark.parametrize("answer", [b"oops", object(), float("nan"), [1.0, float("inf")]])
def test_an_answer_that_is_no_json_is_an_error_of_that_input_alone(answer):
    task = make_task("value", ())
    with pytest.raises(ExecutorError, match="JSON value"):
        task.read(answer)
    with pytest.raises(ExecutorError, match="JSON value"):
        make_task("value:a", ()).read({"a": answer})


@pytest.mark.parametrize(
    ("text", "answer", "value"),
    [
        ("presence:person", ["dog", "person"], True),
        ("presence:person", ["dog"], False),
        ("presence:person", [], False),
        ("presence:person", True, True),
        ("count:car,bus", ("car", "bus", "dog"), 2),
        ("count:car", np.int64(3), 3),
        ("value:True", True, True),
        ("value:1,2", 3, None),
    ],
)
def test_a_callable_may_answer_in_plain_words(text, answer, value):
    assert make_task(text, (), plain=True).read(answer) == value


def test_detections_of_a_callable_need_labels():
    with pytest.raises(ConfigError, match="where there are labels"):
        make_task("presence:car", (), plain=True).read(SEEN)
