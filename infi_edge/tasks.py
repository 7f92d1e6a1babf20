"""What a model's decoded outputs mean: values, when one is redundant, when two are the same.

A task turns decoded outputs into a JSON value. `is_redundant` is the SKIP rule, a `same` rule the
REUSE rule (InFi, MobiCom 2022, sections 2.1 and 3.5). Both read the model's own answers only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from infi_edge.decoders import Classes, Detections, Keypoints
from infi_edge.errors import ConfigError, ExecutorError
from infi_edge.plugins import load_object, names_object

Value = Any
"""A JSON value: int, bool, str, None, or lists of these."""
SameRule = Callable[[Value, Value], bool]


class Task(Protocol):
    """The seam for a task of one's own (`package.module:Class`, made with the labels)."""

    empty: Value
    """What a SKIP delivers."""
    can_skip: bool
    """Whether any value is redundant at all."""

    def read(self, decoded: Any) -> Value:
        """Turn decoded outputs into a value; raise ConfigError if they are of another kind."""

    def is_redundant(self, value: Value) -> bool:
        """Whether nobody wants this value (the SKIP rule)."""


def _expect(decoded: Any, kind: type, task: str) -> None:
    if not isinstance(decoded, kind):
        raise ConfigError(
            f"task {task} needs {kind.__name__.lower()}, but the decoder gives "
            f"{type(decoded).__name__.lower()}; choose another --decoder or --task"
        )


def _class_ids(names: Sequence[str], labels: Sequence[str], task: str) -> np.ndarray:
    if not labels:
        raise ConfigError(f"task {task} names classes, but there are no labels; give --labels FILE")
    # ImageNet's labels are lists of synonyms ("suit, suit of clothes"): the first one names it.
    short = [label.partition(",")[0] for label in labels]
    missing = [name for name in names if name not in labels and name not in short]
    if missing:
        some = ", ".join(short[:8])
        raise ConfigError(
            f"class {missing[0]!r} is not in the labels ({some}, ...); use a name that is"
        )
    return np.array(
        [i for i, pair in enumerate(zip(labels, short, strict=True)) if set(pair) & set(names)]
    )


class Count:
    """`count:car,bus`: how many detections of these classes. Redundant: 0.

    A callable may also return the names of what it sees, or the answer itself.
    """

    empty: Value = 0
    can_skip = True
    name = "count"

    def __init__(self, names: Sequence[str], labels: Sequence[str], plain: bool = False) -> None:
        """plain: of a callable that may have no labels."""
        self._names = set(names)
        self._ids = None if plain and not labels else _class_ids(names, labels, self.name)

    def read(self, decoded: Any) -> int:
        if isinstance(decoded, (bool, int, np.bool_, np.integer)):
            return int(decoded)
        if isinstance(decoded, (list, tuple, set)) and all(isinstance(d, str) for d in decoded):
            return sum(name in self._names for name in decoded)
        if self._ids is None:
            raise ConfigError(
                f"task {self.name} reads the names of what is seen, a number or yes and no, and, "
                f"where there are labels, detections; the model gives {type(decoded).__name__}"
            )
        _expect(decoded, Detections, self.name)
        return int(np.isin(decoded.classes, self._ids).sum())

    def is_redundant(self, value: Value) -> bool:
        return bool(value == 0)


class Presence(Count):
    """`presence:person`: whether any of these classes is there. Redundant: false."""

    empty: Value = False
    name = "presence"

    def read(self, decoded: Any) -> bool:
        return super().read(decoded) > 0

    def is_redundant(self, value: Value) -> bool:
        return not value


class Detect:
    """`detect:car`: the boxes of these classes, [[label, x1, y1, x2, y2], ...], 0..1 of the frame.

    Redundant: none. For REUSE use `iou:0.5` (boxes agree only by an explicit rule).
    """

    can_skip = True

    def __init__(self, names: Sequence[str], labels: Sequence[str]) -> None:
        self._ids = _class_ids(names, labels, "detect")
        self._labels = labels
        self.empty: Value = []

    def read(self, decoded: Any) -> Value:
        _expect(decoded, Detections, "detect")
        return [
            [self._labels[int(c)], *(round(float(v), 4) for v in box)]
            for c, box in zip(decoded.classes, decoded.boxes, strict=True)
            if c in self._ids
        ]

    def is_redundant(self, value: Value) -> bool:
        return not value


class Label:
    """`label`: the best class. `label:walking,lying`: all other classes are redundant (null)."""

    empty: Value = None

    def __init__(self, names: Sequence[str], labels: Sequence[str]) -> None:
        self._wanted = set(_class_ids(names, labels, "label").tolist()) if names else None
        self._labels = labels
        self.can_skip = self._wanted is not None

    def read(self, decoded: Any) -> Value:
        _expect(decoded, Classes, "label")
        best = int(np.argmax(decoded.scores))
        if self._wanted is not None and best not in self._wanted:
            return None
        return self._labels[best] if best < len(self._labels) else str(best)

    def is_redundant(self, value: Value) -> bool:
        return self._wanted is not None and value is None


class Confidence:
    """`confidence:0.9`: the best class, or null below that confidence. Redundant: null.

    The hard case: in general not simpler than the model (InFi, 3.2; docs/filterability.md).
    """

    empty: Value = None
    can_skip = True

    def __init__(self, threshold: float, labels: Sequence[str]) -> None:
        self._threshold = threshold
        self._labels = labels

    def read(self, decoded: Any) -> Value:
        _expect(decoded, Classes, "confidence")
        best = int(np.argmax(decoded.scores))
        if float(decoded.scores[best]) < self._threshold:
            return None
        return self._labels[best] if best < len(self._labels) else str(best)

    def is_redundant(self, value: Value) -> bool:
        return value is None


class Pose:
    """`pose`: visible keypoints as [[index, x, y], ...], 0..1 of the frame. Redundant: none."""

    can_skip = True

    def __init__(self, min_score: float = 0.3) -> None:
        self._min_score = min_score
        self.empty: Value = []

    def read(self, decoded: Any) -> Value:
        _expect(decoded, Keypoints, "pose")
        return [
            [i, round(float(x), 4), round(float(y), 4)]
            for i, (x, y, score) in enumerate(decoded.points)
            if score >= self._min_score
        ]

    def is_redundant(self, value: Value) -> bool:
        return not value


class Verbatim:
    """`value`: what the model returns, as it is. Redundant: null, false, 0, "" or an empty list.

    `value:walking,lying`: any other text is redundant (null). For callables that answer in JSON.
    """

    can_skip = True
    empty: Value = None

    def __init__(self, names: Sequence[str]) -> None:
        self._wanted = set(names)

    def read(self, decoded: Any) -> Value:
        value = _plain(decoded)
        scalar = isinstance(value, (str, bool, int))
        wanted = not self._wanted or (scalar and str(value) in self._wanted)
        return value if wanted else None

    def is_redundant(self, value: Value) -> bool:
        return not value


def _plain(value: Any) -> Value:
    """Return a JSON value. Raises ExecutorError if it is none."""
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise ExecutorError(f"the model answered {value}, which is no JSON value")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    kind = type(value).__name__
    raise ExecutorError(f"task value needs a JSON value, but the model gave a {kind}")


def _names(text: str, task: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"task {task} needs class names, as in '{task}:person'")
    return names


KINDS = ("count", "presence", "detect", "label", "confidence", "pose", "value")


def make_task(text: str, labels: Sequence[str], plain: bool = False) -> Task:
    """Make the task that `text` names (see the classes above, or `package.module:Class`).

    plain: what it reads is what a callable returns, as it is.
    Raises ConfigError for an unknown task, or a class that is not in the labels.
    """
    kind, _, rest = text.partition(":")
    if kind == "count":
        return Count(_names(rest, kind), labels, plain)
    if kind == "presence":
        return Presence(_names(rest, kind), labels, plain)
    if kind == "detect":
        return Detect(_names(rest, kind), labels)
    if kind == "label":
        return Label(_names(rest, kind) if rest else [], labels)
    if kind == "confidence":
        return Confidence(_number(rest, "confidence"), labels)
    if kind == "pose" and not rest:
        return Pose()
    if kind == "value":
        return Verbatim(_names(rest, kind) if rest else [])
    known = (
        "count:NAMES, presence:NAMES, detect:NAMES, label, label:NAMES, confidence:0.9, pose, "
        "value, value:NAMES or package.module:Class"
    )
    if names_object(text) and kind not in KINDS:
        try:
            task: Task = load_object(text, "task")(labels)
        except ConfigError as error:
            raise ConfigError(f"{error}; use {known}") from error
        return task
    raise ConfigError(f"unknown task {text!r}; use {known}")


def _number(text: str, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise ConfigError(f"{what} needs a number, as in '{what}:0.5', not {text!r}")
    return number


def same_exact(a: Value, b: Value) -> bool:
    """Whether two values are equal."""
    return bool(a == b)


def _within(tolerance: float) -> SameRule:
    def same(a: Value, b: Value) -> bool:
        if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
            return len(a) == len(b) and all(map(same, a, b))
        if isinstance(a, (int, float)) and isinstance(b, (int, float)):
            return abs(a - b) <= tolerance
        return bool(a == b)

    return same


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    total = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / total if total > 0 else 0.0


def _same_boxes(threshold: float) -> SameRule:
    def same(a: Value, b: Value) -> bool:
        if len(a) != len(b):
            return False
        left = list(b)
        for label, *box in a:
            matches = [
                (_iou(box, other[1:]), i) for i, other in enumerate(left) if other[0] == label
            ]
            best = max(matches, default=(0.0, -1))
            if best[1] < 0 or best[0] < threshold:
                return False
            left.pop(best[1])
        return True

    return same


def make_same(text: str, task: str) -> SameRule:
    """Make the REUSE rule: `exact`, `within:1` (numbers, keypoints), `iou:0.5` (boxes).

    Raises ConfigError for an unknown rule, or `iou` with a task that gives no boxes.
    """
    kind, _, rest = text.partition(":")
    if text == "exact":
        return same_exact
    if kind == "within":
        return _within(_number(rest, "within"))
    if kind == "iou":
        if task.partition(":")[0] in {"count", "presence", "label", "confidence", "pose"}:
            raise ConfigError(f"same rule {text} needs boxes; task {task} has none, use detect:...")
        return _same_boxes(_number(rest, "iou"))
    raise ConfigError(f"unknown same rule {text!r}; use exact, within:NUMBER or iou:NUMBER")


def vote(values: Sequence[Value], weights: np.ndarray, same: SameRule) -> tuple[Value, float]:
    """Return the weighted vote of `values` and the share of the weight that agrees with it.

    Numbers: their weighted median. Anything else: the value that agrees with the most weight
    (majority under `exact`); on a tie the earlier value. weights: float, shape (K,), positive.
    """
    total = float(weights.sum())
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        order = np.argsort(np.asarray(values, dtype=np.float64), kind="stable")
        cumulative = np.cumsum(weights[order])
        winner = values[order[int(np.searchsorted(cumulative, total / 2))]]
        agreeing = [same(winner, value) for value in values]
        return winner, float(weights[agreeing].sum()) / total
    best, best_weight = values[0], -1.0
    for candidate in values:
        weight = float(weights[[same(candidate, value) for value in values]].sum())
        if weight > best_weight + 1e-12:
            best, best_weight = candidate, weight
    return best, best_weight / total
