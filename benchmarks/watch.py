"""How little data a filter needs: an activity model's answers on a wrist, new people.

    python -m benchmarks.watch [--net] [--seed 0] [-o build/bench/watch.json]

Data: the watch set of the registry package seglearn (10 people, 7 exercises, 140 series at 50 Hz;
`pip install --no-deps seglearn`). The model: a small Keras CNN over 8-second windows, trained here
on the exercises of people 1 to 4, converted to TFLite and run as any model. The filter learns from
the model's answers on a share of the series of people 5 to 7: on the people it was trained on the
model is steadier than it will ever be again, and thresholds set there promise too much. The
reported stream is people 8 to 10, whom neither has seen, a window every half second in the order
of recording. Asked for are the exercise (REUSE), and two exercises out of seven (SKIP, whose ideal
filters all the others and errs as often as the target allows).
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.methods import pareto
from converters.baselines import every_nth
from converters.calibrate import (
    Fold,
    Target,
    choose,
    gate_method,
    knob_blind,
    reuse_grid,
    score,
    skip_grid,
)
from converters.crossfit import cross_fit, embed_stretch
from converters.datasets import Dataset, Stream, load_dataset
from converters.quiet import quiet_stderr
from converters.recordings import TrainingData
from converters.search import search
from converters.trained import Kind, Mechanism, TrainSettings
from infi_edge.policy import Knobs
from infi_edge.preprocess import MotionSpec
from infi_edge.replay import every_nth_filtering_rate, make_truth
from infi_edge.workload import Workload, WorkloadSpec

WINDOW, HOP = 400, 25
MODEL, LEARN, REPORT = (1, 4), (5, 7), (8, 10)
TASKS: dict[Mechanism, str] = {"reuse": "label", "skip": "label:ABD,FEL"}
SHARES = (0.1, 0.25, 0.5, 1.0)
TARGETS = (0.9, 0.95)
CONFIDENCE = 0.95
Row = dict[str, Any]


def people(data: Dataset, first: int, last: int) -> list[Stream]:
    """The series of people first..last, counted from 1, in the order of recording."""
    names = sorted({stream.group for stream in data.streams})[first - 1 : last]
    return [s for name in names for s in data.streams if s.group == name]


def windows(streams: Sequence[Stream], hop: int = HOP) -> tuple[np.ndarray, list[str]]:
    """Return windows float32 (N, 400, 6) of the series, none over two of them, and exercises."""
    found, labels = [], []
    for stream in streams:
        signal = np.asarray(stream.inputs, np.float32)
        starts = range(0, len(signal) - WINDOW + 1, hop)
        found += [signal[i : i + WINDOW] for i in starts]
        labels += [str(stream.labels[0])] * len(starts)
    return np.stack(found), labels


def train_model(streams: Sequence[Stream], exercises: Sequence[str], seed: int) -> bytes:
    """Train the activity model on series with their exercises. Returns a .tflite (float16)."""
    with quiet_stderr():
        import keras
        from keras import layers

        from converters.quantize import to_tflite

    keras.utils.set_random_seed(seed)
    x, labels = windows(streams, hop=10)
    y = np.eye(len(exercises), dtype=np.float32)[[exercises.index(name) for name in labels]]
    inputs = layers.Input((WINDOW, x.shape[2]))
    hidden = layers.Normalization(mean=x.mean((0, 1)), variance=x.var((0, 1)))(inputs)
    for filters in (32, 64, 64):
        hidden = layers.Conv1D(filters, 7, padding="same", use_bias=False)(hidden)
        hidden = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(hidden))
        hidden = layers.Dropout(0.2)(layers.MaxPooling1D(2)(hidden))
    hidden = layers.Dropout(0.5)(layers.GlobalAveragePooling1D()(hidden))
    model = keras.Model(inputs, layers.Dense(len(exercises), "softmax")(hidden))
    epochs = 15
    rate = keras.optimizers.schedules.CosineDecay(2e-3, epochs * (len(x) // 64 + 1))
    model.compile(
        keras.optimizers.Adam(rate), keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
    )
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        model.fit(_worn_otherwise(x, rng), y, batch_size=64, verbose=0)
    return to_tflite(model, "float16", [])


def _worn_otherwise(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn each window a little (a watch sits differently on each wrist), louder or softer."""
    angle = rng.normal(0, 0.25, (len(x), 3))
    size = np.linalg.norm(angle, axis=1)[:, None, None] + 1e-9
    a, b, c = (angle / size[:, :, 0]).T
    zero = np.zeros_like(a)
    axis = np.stack([zero, -c, b, c, zero, -a, -b, a, zero], axis=1).reshape(-1, 3, 3)
    turn = np.eye(3) + np.sin(size) * axis + (1 - np.cos(size)) * (axis @ axis)
    turned = np.concatenate([x[..., :3] @ turn, x[..., 3:] @ turn], axis=2)
    turned *= rng.uniform(0.85, 1.15, (len(x), 1, 1))
    noisy: np.ndarray = (turned + rng.normal(0, 0.05, x.shape)).astype(np.float32)
    return noisy


def as_data(streams: Sequence[Stream], spec: MotionSpec, workload: Workload) -> TrainingData:
    """Series as a filter's data: the model's own answer on every window."""
    inputs, _ = windows(streams)
    values = [workload(window) for window in inputs]
    truth = make_truth(values, np.arange(len(inputs)) / 2.0, workload.task, workload.same)
    tensors = np.concatenate([spec.tensor(window) for window in inputs])
    features = np.stack([spec.features(tensor[None]) for tensor in tensors])
    return TrainingData(tensors, features, truth, spec, "motion")


def rows_of(
    kind: Kind, mechanism: Mechanism, share: float, learn: TrainingData, report: TrainingData
) -> list[Row]:
    """Train on `learn` alone, report on `report`: calibrated beforehand, and swept on it."""
    trained, folds = cross_fit(kind, learn, TrainSettings(mechanism))
    fold = Fold(report.truth, embed_stretch(trained, report, 0, len(report)))
    targets = [Target("accuracy", value) for value in TARGETS]
    scores = search(folds, targets, mechanism, CONFIDENCE)
    method = gate_method("infi-edge", [])
    assert fold.embedded is not None
    grid = reuse_grid(len(report))
    if mechanism == "skip":
        grid = [Knobs(skip_threshold=t) for t in skip_grid(fold.embedded.scores)]
    swept = [score(method, k, [fold], 1) for k in grid if not knob_blind(k)]
    curve = pareto([(s.filtering_rate, s.accuracy) for s in swept])
    nth_scores = [score(every_nth(), n, folds) for n in every_nth().settings]
    rows = []
    for target in targets:
        chosen = choose([s for s in scores if not s.blind], target, CONFIDENCE).score
        done = score(method, chosen.setting, [fold], 1) if chosen else None
        nth = choose(nth_scores, target, CONFIDENCE).score
        nth_done = score(every_nth(), nth.setting, [fold]) if nth else None
        redundant = float(report.truth.redundant.mean())
        rows.append(
            {
                "filter": kind,
                "mechanism": mechanism,
                "share": share,
                "windows": len(learn),
                "target": target.value,
                "ideal": min(redundant + 1 - target.value, 1.0) if mechanism == "skip" else None,
                "swept": max((rate for rate, a in curve if a >= target.value), default=0.0),
                "filtering_rate": done.filtering_rate if done else 0.0,
                "accuracy": done.accuracy if done else 1.0,
                "every_nth_swept": every_nth_filtering_rate(report.truth, target.value),
                "every_nth_filtering_rate": nth_done.filtering_rate if nth_done else 0.0,
                "every_nth_accuracy": nth_done.accuracy if nth_done else 1.0,
            }
        )
    return rows


def line(row: Row) -> str:
    """A row of the table."""
    ideal = "-" if row["ideal"] is None else f"{row['ideal']:.3f}"
    return (
        f"{row['mechanism']:<6} {row['filter']:<6} {row['share']:>5g} {row['windows']:>8}"
        f" {row['target']:>7g} {ideal:>6} {row['swept']:>7.3f}"
        f" {row['filtering_rate']:>10.3f} ({row['accuracy']:.3f}) {row['every_nth_swept']:>10.3f}"
        f" {row['every_nth_filtering_rate']:>8.3f} ({row['every_nth_accuracy']:.3f})"
    )


def main() -> None:
    """Train the model, then filters on growing shares of the data; print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", action="store_true", help="the siamese network as well")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=Path("build/bench/watch.json"))
    options = parser.parse_args()
    data = load_dataset("watch")
    exercises = sorted({str(stream.labels[0]) for stream in data.streams})
    options.output.parent.mkdir(parents=True, exist_ok=True)
    model = options.output.with_suffix(".tflite")
    model.write_bytes(train_model(people(data, *MODEL), exercises, options.seed))
    pool, new = people(data, *LEARN), people(data, *REPORT)
    spec = MotionSpec(channels=data.channels, window=WINDOW, hop=HOP, rate_hz=50.0)
    spec = spec.fitted(list(windows(pool[::10])[0][::7]))
    print("                                           infi-edge                       every-Nth")
    print(
        "               share  windows  target  ideal   swept   calibrated       swept calibrated"
    )
    kinds: tuple[Kind, ...] = ("light", "net") if options.net else ("light",)
    rows: list[Row] = []
    for mechanism, task in TASKS.items():
        asked = WorkloadSpec(task, "classification", labels=tuple(exercises), modality="motion")
        workload = Workload(str(model), asked)
        report = as_data(new, spec, workload)
        for kind, share in itertools.product(kinds, SHARES):
            learn = as_data(pool[:: round(1 / share)], spec, workload)
            found = rows_of(kind, mechanism, share, learn, report)
            print("\n".join(map(line, found)), flush=True)
            rows += found
        if mechanism == "reuse":
            values, done = report.truth.values, windows(new)[1]
            right = float(np.mean([a == b for a, b in zip(values, done, strict=True)]))
            steady = float(np.mean([a == b for a, b in itertools.pairwise(values)]))
            print(
                f"the model is right on {right:.3f} of these windows, repeats itself {steady:.3f}"
            )
            facts = {"model_accuracy": right, "model_repeats": steady}
    options.output.write_text(json.dumps(facts | {"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
