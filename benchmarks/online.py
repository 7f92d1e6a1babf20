"""`python -m benchmarks.online`: a gate that learns while it serves, from the first input on.

Warm-up and audit count as inferences. Beside it stand every-Nth (at its best N in hindsight, and
at the N that the bench's own calibrator sets on an earlier stretch), and on streams that drift a
light filter trained before the change and frozen, and one refitted every tenth of the stream.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.methods import CONFIDENCE, cut
from benchmarks.streams import Adversary, Planned, Stream, clip_stream, drift_streams, play
from benchmarks.workloads import image_workloads
from converters import baselines
from converters.calibrate import Fold, Score, Target, choose, gate_method, quick_grid, score
from converters.crossfit import cross_fit, embed_stretch, fold_stretches
from converters.light import train_light
from converters.recordings import TrainingData
from converters.search import search
from converters.table import learnable
from converters.trained import DeadFilterError, TrainSettings
from infi_edge.archive import write_atomically
from infi_edge.errors import ConfigError
from infi_edge.gate import Gate
from infi_edge.learning.replay import Learned, replay_learning
from infi_edge.learning.settings import LearnSettings
from infi_edge.policy import Knobs
from infi_edge.preprocess import Spec
from infi_edge.replay import INFERRED, Outcome, Truth, every_nth_filtering_rate, replay
from infi_edge.types import Result

TARGETS = (0.9, 0.95)
WINDOWS = 10
"""Accuracy is looked at in each tenth of a stream."""
SLACK = 0.02
"""What accuracy in a tenth may lie below the target."""
RECOVERED = 0.8
"""Of the rate before a change: then it is back."""
RATE_INPUTS = 100
"""Over so many inputs a rate must be back."""
RECOVERY_GOAL = 300
OPENING_GOAL = 100
COVERAGE_GOAL = 0.95
COVERAGE_BUDGET_S = 900.0
OPEN_INPUTS = 20
"""So many inferences on end are an open gate."""
ADVERSARY_INPUTS = 1000
PAUSE_S = 0.005
"""Between an adversary's inputs: a live gate learns in a thread, which needs its turn."""
RATE_GOALS = {
    ("person", 0.9): 0.88,
    ("person", 0.95): 0.86,
    ("intersection", 0.9): 0.90,
    ("intersection", 0.95): 0.85,
    ("highway", 0.9): 0.02,
    ("highway", 0.95): 0.02,
}

Row = dict[str, Any]
GateMaker = Callable[
    [Adversary, int], AbstractContextManager[Callable[[np.ndarray, float], Result]]
]
Say = Callable[[str], None]


class Learner(Protocol):
    """What replays a learning gate: `replay_learning`."""

    def __call__(
        self,
        truth: Truth,
        tensors: Sequence[np.ndarray] | np.ndarray,
        spec: Spec,
        *,
        target_accuracy: float,
        seed: int = 0,
    ) -> Learned:
        """Replay it over a stream, from nothing."""


def tenths(values: np.ndarray) -> np.ndarray:
    """The mean of each of WINDOWS equal parts of (N,) values."""
    edges = np.linspace(0, len(values), WINDOWS + 1).astype(int)
    return np.array([values[a:b].mean() for a, b in itertools.pairwise(edges)])


def recovery(filtered: np.ndarray, change: int, before: float) -> int | None:
    """Inferences from a change until the rate is back; None: it does not come back.

    filtered: bool (N,). Back: over the last RATE_INPUTS inputs, all of them after the change, at
    least RECOVERED of `before`.
    """
    after = filtered[change:].astype(float)
    if len(after) < RATE_INPUTS:
        return None
    sums = np.concatenate([[0.0], np.cumsum(after)])
    rates = (sums[RATE_INPUTS:] - sums[:-RATE_INPUTS]) / RATE_INPUTS
    back = np.flatnonzero(rates >= RECOVERED * before - 1e-9)
    if not len(back):
        return None
    seen = int(back[0]) + RATE_INPUTS
    return round(seen - float(sums[seen]))


@dataclass(frozen=True, slots=True)
class Drift:
    """One run over a stream that changes: tenths (10,), rates in the second half of what is before
    the change and in all after it, and the inferences until the rate is back."""

    tenths: np.ndarray
    rate: float
    before: float
    after: float
    back: int | None


def drift_of(actions: np.ndarray, right: np.ndarray, change: int) -> Drift:
    """Look at one run. actions: uint8 (N,), right: bool (N,)."""
    filtered = actions != INFERRED
    before = float(filtered[change // 2 : change].mean())
    return Drift(
        tenths(right),
        float(filtered.mean()),
        before,
        float(filtered[change:].mean()),
        recovery(filtered, change, before),
    )


def calibrated_nth(truth: Truth, target: float) -> int:
    """N of every-Nth as the bench's calibrator sets it on a stretch; 1 where none holds."""
    folds = [Fold(truth.cut(*stretch), None) for stretch in fold_stretches(len(truth))]
    method = baselines.every_nth()
    scores = [score(method, n, folds) for n in method.settings]
    chosen = choose(scores, Target("accuracy", target), CONFIDENCE).score
    return 1 if chosen is None else int(chosen.setting)


def every_nth(truth: Truth, n: int) -> Outcome:
    """Every Nth input inferred, the last answer in between."""
    return baselines.every_nth().run(n, Fold(truth, None))


def training_data(stream: Stream) -> TrainingData:
    """A stream as the converters take it."""
    features = np.stack([stream.spec.features(tensor[None]) for tensor in stream.tensors])
    return TrainingData(stream.tensors, features, stream.truth, stream.spec, stream.modality)


def inferred(truth: Truth) -> Outcome:
    """A gate that filters nothing."""
    return Outcome(np.zeros(len(truth), np.uint8), np.ones(len(truth), bool))


def frozen(data: TrainingData, change: int, targets: Sequence[float]) -> dict[float, Outcome]:
    """The light filter trained and calibrated on what is before the change, used on everything.

    Before the change it sees what it was trained on: only what follows is a fair figure.
    """
    before = cut(data, 0, change)
    wanted = [Target("accuracy", target) for target in targets]
    try:
        mechanism, _ = learnable(before.truth, "both")
        trained, folds = cross_fit("light", before, TrainSettings(mechanism))
    except (ConfigError, DeadFilterError):
        return {target: inferred(data.truth) for target in targets}
    grid = quick_grid(min(len(fold.truth) for fold in folds))
    scores = search(folds, wanted, mechanism, CONFIDENCE, grid=grid)
    embedded = embed_stretch(trained, data, 0, len(data))
    outcomes = {}
    for target in wanted:
        chosen = choose(scores, target, CONFIDENCE).score
        knobs = Knobs() if chosen is None else chosen.setting
        outcomes[target.value] = replay(knobs, data.truth, embedded)
    return outcomes


def refitted(data: TrainingData, targets: Sequence[float]) -> dict[float, Outcome]:
    """A light filter made anew for each tenth of the stream from the tenth before.

    That tenth's answers are given to it for nothing (a gate cannot infer all of an hour and filter
    in it too), so its rates are above what it could reach. It learns on the first half of them and
    takes the boldest setting that holds the target on the second. The first tenth is all inferred.
    """
    edges = np.linspace(0, len(data), WINDOWS + 1).astype(int).tolist()
    parts: dict[float, list[Outcome]] = {
        t: [inferred(data.truth.cut(0, edges[1]))] for t in targets
    }
    for earlier, first, last in zip(edges, edges[1:], edges[2:], strict=False):
        part = _refit(cut(data, earlier, first), cut(data, first, last), targets)
        for target in targets:
            parts[target].append(part[target])
    return {target: _after_one_another(outcomes) for target, outcomes in parts.items()}


def _refit(past: TrainingData, now: TrainingData, targets: Sequence[float]) -> dict[float, Outcome]:
    try:
        mechanism, _ = learnable(past.truth, "reuse")
        half = len(past) // 2
        trained = train_light(past, [(0, half)], TrainSettings(mechanism), pairs=5000)
    except (ConfigError, DeadFilterError):
        return {target: inferred(now.truth) for target in targets}
    judged = Fold(past.truth.cut(half, len(past)), embed_stretch(trained, past, half, len(past)))
    grid = quick_grid(len(judged.truth))
    scores = [score(gate_method("refitted", grid), knobs, [judged], 1) for knobs in grid]
    embedded = embed_stretch(trained, now, 0, len(now))
    return {t: replay(_boldest(scores, t), now.truth, embedded) for t in targets}


def _boldest(scores: Sequence[Score], target: float) -> Knobs:
    holding = [s for s in scores if s.accuracy >= target]
    best = max(holding, key=lambda s: s.filtering_rate, default=None)
    return Knobs() if best is None else best.setting


def _after_one_another(outcomes: Sequence[Outcome]) -> Outcome:
    actions = np.concatenate([outcome.actions for outcome in outcomes])
    return Outcome(actions, np.concatenate([outcome.right for outcome in outcomes]))


def clip_row(stream: Stream, target: float, seeds: int, learner: Learner) -> Row:
    """A clip from nothing, over seeds, beside every-Nth."""
    truth, half = stream.truth, len(stream) // 2
    runs = [
        learner(truth, stream.tensors, stream.spec, target_accuracy=target, seed=seed)
        for seed in range(seeds)
    ]
    period = calibrated_nth(truth.cut(0, half), target)
    later = every_nth(truth.cut(half, len(truth)), period)
    rates = np.array([run.filtering_rate for run in runs])
    accuracies = np.array([run.accuracy for run in runs])
    goal = RATE_GOALS.get((stream.name, target))
    return {
        "stream": stream.name,
        "target_accuracy": target,
        "seeds": seeds,
        "filtering_rate": float(rates.mean()),
        "filtering_rate_min": float(rates.min()),
        "filtering_rate_goal": goal,
        "accuracy": float(accuracies.mean()),
        "accuracy_min": float(accuracies.min()),
        "audited": float(np.mean([run.audited.mean() for run in runs])),
        "open": float(np.mean([run.open.mean() for run in runs])),
        "warm_up": float(np.mean([run.warm_up for run in runs])),
        "worst_tenth": float(min(tenths(run.right).min() for run in runs)),
        "low": float(np.mean([run.lows[-1] for run in runs])),
        "high": float(np.mean([run.highs[-1] for run in runs])),
        "refits": float(np.mean([run.refits for run in runs])),
        "learn_cpu_s": float(np.mean([run.learn_cpu_s for run in runs])),
        "learn_cpu_share": float(np.mean([run.learn_cpu_s for run in runs])) / stream.duration_s,
        "later_filtering_rate": float(
            np.mean([(run.actions[half:] != INFERRED).mean() for run in runs])
        ),
        "later_accuracy": float(np.mean([run.right[half:].mean() for run in runs])),
        "best_nth_filtering_rate": every_nth_filtering_rate(truth, target),
        "calibrated_nth": period,
        "later_nth_filtering_rate": later.filtering_rate,
        "later_nth_accuracy": later.accuracy,
        "reached": goal is None or bool(rates.mean() >= goal and accuracies.mean() >= target),
    }


def drift_rows(stream: Stream, targets: Sequence[float], seeds: int, learner: Learner) -> list[Row]:
    """A stream at its first change: the learning gate over seeds, and each rival once."""
    change, truth = stream.changes[0], stream.truth
    data = training_data(stream)
    still, hourly = frozen(data, change, targets), refitted(data, targets)
    rows = []
    for target in targets:
        runs = [
            learner(truth, stream.tensors, stream.spec, target_accuracy=target, seed=seed)
            for seed in range(seeds)
        ]
        rest = truth.cut(change, len(truth))
        afresh = learner(rest, stream.tensors[change:], stream.spec, target_accuracy=target)
        row = _drift_row(stream, "learning", target, [(r.actions, r.right) for r in runs])
        rows.append(row | {"afresh": afresh.filtering_rate})
        period = calibrated_nth(truth.cut(0, change), target)
        best = round(1.0 / (1.0 - every_nth_filtering_rate(truth, target)))
        rivals = {
            "frozen": still[target],
            "refitted": hourly[target],
            f"every {period} (set before)": every_nth(truth, period),
            f"every {best} (hindsight)": every_nth(truth, best),
        }
        rows += [
            _drift_row(stream, name, target, [(outcome.actions, outcome.right)])
            for name, outcome in rivals.items()
        ]
    return rows


def _drift_row(
    stream: Stream, method: str, target: float, runs: Sequence[tuple[np.ndarray, np.ndarray]]
) -> Row:
    found = [drift_of(actions, right, stream.changes[0]) for actions, right in runs]
    backs = [run.back for run in found]
    tenths_worst = np.min([run.tenths for run in found], axis=0)
    return {
        "stream": stream.name,
        "method": method,
        "target_accuracy": target,
        "seeds": len(runs),
        "filtering_rate": float(np.mean([run.rate for run in found])),
        "accuracy": float(np.mean([right.mean() for _, right in runs])),
        "tenths": np.mean([run.tenths for run in found], axis=0).tolist(),
        "worst_tenth": float(tenths_worst.min()),
        "held": float(np.mean([run.tenths.min() >= target - SLACK for run in found])),
        "before": float(np.mean([run.before for run in found])),
        "after": float(np.mean([run.after for run in found])),
        "back": None if None in backs else max(b for b in backs if b is not None),
        "came_back": float(np.mean([b is not None and b <= RECOVERY_GOAL for b in backs])),
    }


def coverage_row(stream: Stream, target: float, seeds: int, learner: Learner) -> Row:
    """How often the live bounds hold the true running accuracy, over seeded replays.

    As many as fit into COVERAGE_BUDGET_S, at most `seeds`.
    """
    begun_s = time.perf_counter()
    at_end, always, width, done = 0, 0, 0.0, 0
    while done < seeds and (done < 2 or time.perf_counter() - begun_s < COVERAGE_BUDGET_S):
        run = learner(stream.truth, stream.tensors, stream.spec, target_accuracy=target, seed=done)
        held = covered(run)
        at_end, always = at_end + bool(held[-1]), always + bool(held.all())
        width += float(run.highs[-1] - run.lows[-1])
        done += 1
    return {
        "stream": stream.name,
        "target_accuracy": target,
        "replays": done,
        "wanted_replays": seeds,
        "covered_at_end": at_end / done,
        "covered_always": always / done,
        "width_at_end": width / done,
        "goal": COVERAGE_GOAL,
        "reached": always / done >= COVERAGE_GOAL,
    }


def covered(run: Learned) -> np.ndarray:
    """Whether the bounds hold the accuracy since the start, after each input: bool (N,)."""
    true = np.cumsum(run.right) / np.arange(1, len(run.right) + 1)
    inside: np.ndarray = (run.lows <= true + 1e-9) & (true <= run.highs + 1e-9)
    return inside


def learning_gate(adversary: Adversary, seed: int) -> Gate:
    """A gate around the adversary that knows nothing.

    cpu_share: the stream goes by faster than its clock says, so a share of the real time would be
    a far smaller one of the stream's.
    """
    learn = LearnSettings(seed=seed, cpu_share=1.0)
    return Gate(infer=adversary, task="value", target_accuracy=TARGETS[0], learn=learn)


def adversary_row(seed: int, make_gate: GateMaker = learning_gate) -> Row:
    """Inferences from the first filtered input until the gate is open; or until it holds its
    target for good, having found what this adversary leaves it: one answer at a time."""
    adversary = Adversary(seed)
    with make_gate(adversary, seed) as gate:
        filtered, right = play(adversary, gate, ADVERSARY_INPUTS, PAUSE_S)
    first = int(np.argmax(filtered)) if filtered.any() else ADVERSARY_INPUTS
    opened, held = opening(filtered, first), holding(filtered[first:], right[first:], TARGETS[0])
    soon = [count for count in (opened, held) if count is not None and count <= OPENING_GOAL]
    return {
        "seed": seed,
        "inputs": ADVERSARY_INPUTS,
        "first_filtered": first if filtered.any() else None,
        "inferences_until_open": opened,
        "inferences_until_held": held,
        "filtering_rate": float(filtered.mean()),
        "accuracy": float(right.mean()),
        "later_accuracy": float(right[ADVERSARY_INPUTS // 2 :].mean()),
        "goal": OPENING_GOAL,
        "reached": bool(soon) or not filtered.any(),
    }


def opening(filtered: np.ndarray, first: int) -> int | None:
    """Inferences from input `first` until OPEN_INPUTS on end begin; None: they never do."""
    inferences = run = 0
    for passes in ~filtered[first:]:
        run = run + 1 if passes else 0
        inferences += bool(passes)
        if run == OPEN_INPUTS:
            return inferences - OPEN_INPUTS
    return None


def holding(filtered: np.ndarray, right: np.ndarray, target: float) -> int | None:
    """Inferences until accuracy over the last RATE_INPUTS inputs is never below the target again;
    None: it is at the end. filtered, right: bool (N,)."""
    if len(right) < RATE_INPUTS:
        return None
    sums = np.concatenate([[0], np.cumsum(right)])
    below = np.flatnonzero(sums[RATE_INPUTS:] - sums[:-RATE_INPUTS] < target * RATE_INPUTS - 1e-9)
    if not len(below):
        return 0
    last = int(below[-1]) + RATE_INPUTS
    return None if last == len(right) else int((~filtered[:last]).sum())


def table(rows: Sequence[Row], columns: Sequence[tuple[str, str]]) -> str:
    """Rows as Markdown. columns: (heading, template over the row's fields)."""
    lines = ["| " + " | ".join(heading for heading, _ in columns) + " |"]
    lines.append("|" + " --- |" * len(columns))
    for row in rows:
        cells = [_cell(template, row) for _, template in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


class _Known(dict[str, Any]):
    """What a row has; a field that it lacks is a dash."""

    def __missing__(self, key: str) -> str:
        return "-"


def _cell(template: str, row: Row) -> str:
    try:
        return template.format_map(_Known({k: v for k, v in row.items() if v is not None}))
    except ValueError:  # a dash where a number is formatted
        return "-"


CLIP_COLUMNS = (
    ("clip", "{stream}"),
    ("target", "{target_accuracy:g}"),
    ("filtered (worst seed)", "{filtering_rate:.3f} ({filtering_rate_min:.3f})"),
    ("goal", "{filtering_rate_goal:.2f}"),
    ("accuracy (worst seed)", "{accuracy:.3f} ({accuracy_min:.3f})"),
    ("reached", "{reached}"),
    ("worst tenth", "{worst_tenth:.3f}"),
    ("live bound", "{low:.3f}-{high:.3f}"),
    ("audited", "{audited:.3f}"),
    ("open", "{open:.3f}"),
    ("warm-up", "{warm_up:.0f}"),
    ("refits", "{refits:.0f}"),
    ("learning CPU s", "{learn_cpu_s:.2f}"),
    ("of the time", "{learn_cpu_share:.2%}"),
    ("every-Nth, hindsight", "{best_nth_filtering_rate:.3f}"),
    ("2nd half: filtered, accuracy", "{later_filtering_rate:.3f}, {later_accuracy:.3f}"),
    (
        "2nd half: every-Nth set on the 1st",
        "{later_nth_filtering_rate:.3f}, {later_nth_accuracy:.3f} (N={calibrated_nth})",
    ),
)
DRIFT_COLUMNS = (
    ("stream", "{stream}"),
    ("target", "{target_accuracy:g}"),
    ("gate", "{method}"),
    ("filtered", "{filtering_rate:.3f}"),
    ("accuracy", "{accuracy:.3f}"),
    ("worst tenth", "{worst_tenth:.3f}"),
    ("runs with every tenth at target - 0.02", "{held:.0%}"),
    ("rate before", "{before:.3f}"),
    ("after", "{after:.3f}"),
    ("afresh", "{afresh:.3f}"),
    ("inferences until back", "{back}"),
    ("runs back within 300", "{came_back:.0%}"),
)
TENTH_COLUMNS = (
    ("stream", "{stream}"),
    ("target", "{target_accuracy:g}"),
    ("gate", "{method}"),
    ("accuracy of each tenth", "{shown}"),
)
COVERAGE_COLUMNS = (
    ("clip", "{stream}"),
    ("target", "{target_accuracy:g}"),
    ("replays", "{replays} of {wanted_replays}"),
    ("covered at the end", "{covered_at_end:.3f}"),
    ("covered at all times", "{covered_always:.3f}"),
    ("goal", "{goal:.2f}"),
    ("reached", "{reached}"),
    ("width at the end", "{width_at_end:.3f}"),
)
ADVERSARY_COLUMNS = (
    ("seed", "{seed}"),
    ("inputs", "{inputs}"),
    ("first filtered", "{first_filtered}"),
    ("inferences until open", "{inferences_until_open}"),
    ("until it holds for good", "{inferences_until_held}"),
    ("goal of either", "{goal}"),
    ("reached", "{reached}"),
    ("filtered", "{filtering_rate:.3f}"),
    ("accuracy", "{accuracy:.3f}"),
    ("2nd half", "{later_accuracy:.3f}"),
)


def run_clips(seeds: int, say: Say) -> list[Row]:
    """Each clip from nothing."""
    rows = []
    for bench in image_workloads():
        if bench.missing:
            say(f"{bench.name}: data not present ({bench.missing})")
            continue
        stream = clip_stream(bench)
        for target in TARGETS:
            say(f"{bench.name} at {target:g}: {seeds} seeds")
            rows.append(clip_row(stream, target, seeds, replay_learning))
    return rows


def run_drift(seeds: int, say: Say) -> list[Row]:
    """Each stream that changes."""
    rows = []
    for planned in _present(drift_streams(), say):
        say(f"{planned.name}: {seeds} seeds and the rivals")
        rows += drift_rows(planned.build(), TARGETS, seeds, replay_learning)
    return rows


def _present(streams: Iterable[Planned], say: Say) -> Iterable[Planned]:
    for planned in streams:
        if planned.missing:
            say(f"{planned.name}: data not present ({planned.missing})")
        else:
            yield planned


def run_coverage(seeds: int, say: Say) -> list[Row]:
    """The bound on the person clip."""
    person = image_workloads()[0]
    if person.missing:
        say(f"{person.name}: data not present ({person.missing})")
        return []
    say(f"coverage: up to {seeds} replays")
    return [coverage_row(clip_stream(person), TARGETS[0], seeds, replay_learning)]


def run_adversary(seeds: int, say: Say) -> list[Row]:
    """The stream that changes when nobody looks."""
    say(f"adversary: {seeds} seeds")
    return [adversary_row(seed) for seed in range(seeds)]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the section. seeds: how many it takes by default."""

    title: str
    run: Callable[[int, Say], list[Row]]
    columns: tuple[tuple[str, str], ...]
    seeds: int = 5


PARTS = {
    "clips": Part("From nothing, first input on", run_clips, CLIP_COLUMNS),
    "drift": Part("Streams that change", run_drift, DRIFT_COLUMNS),
    "coverage": Part("The live bound", run_coverage, COVERAGE_COLUMNS, 200),
    "adversary": Part("An adversary", run_adversary, ADVERSARY_COLUMNS),
}


def run(only: Iterable[str] = PARTS, seeds: int | None = None, say: Say = print) -> dict[str, Any]:
    """Run these parts: {name: rows}. seeds: instead of each part's own number."""
    return {name: PARTS[name].run(seeds or PARTS[name].seeds, say) for name in only}


def markdown(result: dict[str, list[Row]]) -> str:
    """The tables of what was run."""
    text = []
    for name, rows in result.items():
        text.append(f"{PARTS[name].title}:\n\n{table(rows, PARTS[name].columns)}")
        if name == "drift":
            shown = [r | {"shown": " ".join(f"{a:.2f}" for a in r["tenths"])} for r in rows]
            text.append(table(shown, TENTH_COLUMNS))
    return "\n\n".join(text) + "\n"


def main() -> int:
    """Run, print the tables; exit code 1 if nothing could run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.online", description=__doc__)
    parser.add_argument("--seeds", type=int, help="runs of each (default 5; of coverage 200)")
    parser.add_argument("--only", choices=PARTS, action="append", help="(repeatable)")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    arguments = parser.parse_args()
    if arguments.seeds is not None and arguments.seeds < 1:
        parser.error("--seeds is at least 1")
    begun_s = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begun_s:6.0f} s] {text}", file=sys.stderr, flush=True)

    logging.getLogger("infi_edge").setLevel(logging.ERROR)  # each gate tells when it opens
    result = run(arguments.only or PARTS, arguments.seeds, say)
    if arguments.json:
        write_atomically(arguments.json, json.dumps(result, indent=1).encode())
    print(markdown(result), flush=True)
    return 0 if any(result.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
