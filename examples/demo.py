"""The main job on a real clip: a pose detector behind the filter bundle that ships beside this.

The filter was trained and calibrated on the first three quarters of the clip (`make demo-bundle`);
what is reported is the rest. Every-Nth is calibrated on the same stretch by the same calibrator.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import cv2

from converters.baselines import every_nth
from converters.calibrate import Fold, Target, choose, score
from infi_edge import Gate, InfiEdgeError, Sample, load_filter
from infi_edge.bundle import operating_point
from infi_edge.capture.recordings import open_recording
from infi_edge.capture.replay import part
from infi_edge.cli import Bar
from infi_edge.evaluate import Opened, labelled
from infi_edge.gate import workload_for
from infi_edge.replay import Truth
from infi_edge.sinks import result_record
from infi_edge.tasks import Value
from infi_edge.workload import Workload, model_identity

sys.path.insert(0, str(Path(__file__).parent))
from assets import CLIP, MODEL, fetch

SPLIT = 0.75
BUNDLE = Path(__file__).parent / "demo.infi"


class Row(NamedTuple):
    """What one gate did and how fast."""

    inputs: int
    inferred: int
    filtering_rate: float
    accuracy: float
    inputs_per_s: float


def main() -> None:
    """Run the three gates and print the table."""
    clip, model = open_recording(str(fetch(CLIP))), str(fetch(MODEL))
    input_filter = load_filter(BUNDLE)
    info = input_filter.manifest.workload
    target = operating_point(input_filter.manifest).target
    workload = workload_for(input_filter.manifest, model)
    print(f"clip   {Path(clip.name).name}, {clip.count} frames; {info.task}, same {info.same}")
    print(f"model  {info.model}; filter {BUNDLE.name}, target accuracy {target:g}\n")

    identity = model_identity(model)
    first, last = part(clip, SPLIT, 1.0)
    earlier = labelled(clip, workload, identity, 0, first)
    truth = labelled(clip, workload, identity, first, last)
    table = input_filter.manifest.calibration
    n = calibrated_n(earlier, target, table.confidence)

    rows = {
        "run-everything": timed(Opened(clip, first, last), truth, EveryNth(workload, 1)),
        f"every-{n}": timed(Opened(clip, first, last), truth, EveryNth(workload, n)),
    }
    gate = Gate(input_filter, workload)
    samples = Opened(clip, first, last)
    gate.warm_up(samples.first.data)
    bar = Bar("infi-edge on the clip")
    values: list[Value] = []
    inferred: list[int] = []

    began = time.perf_counter()
    for sample in samples:
        result = gate(sample)
        json.dumps(result_record(result))  # what the daemon's log would cost
        values.append(result.value)
        inferred.append(result.action.value == "infer")
        bar(len(values), last - first)
    spent_s = time.perf_counter() - began
    ours = rows["infi-edge"] = measured(truth, values, sum(inferred), spent_s)

    print(f"{'':<16}{'inputs':>8}{'inferred':>10}{'filtering':>11}{'accuracy':>10}{'inputs/s':>10}")
    for name, row in rows.items():
        print(
            f"{name:<16}{row.inputs:>8}{row.inferred:>10}{row.filtering_rate:>11.3f}"
            f"{row.accuracy:>10.3f}{row.inputs_per_s:>10.1f}"
        )
    ratio = ours.inputs_per_s / rows["run-everything"].inputs_per_s
    print(
        f"\nDEMO filtering_rate={ours.filtering_rate:.3f} accuracy={ours.accuracy:.3f} "
        f"throughput_ratio={ratio:.1f}"
    )


def calibrated_n(truth: Truth, target: float, confidence: float) -> int:
    """The N that the bundle's calibrator sets on the stretch the filter was trained on."""
    method = every_nth()
    scores = [score(method, n, [Fold(truth, None)]) for n in method.settings]
    chosen = choose(scores, Target("accuracy", target), confidence).score
    return int(chosen.setting) if chosen else 1


class EveryNth:
    """Run the workload on every Nth input, repeat its last answer between."""

    def __init__(self, workload: Workload, n: int) -> None:
        self._workload, self._n = workload, n
        self._count, self._value = 0, None

    def __call__(self, sample: Sample) -> tuple[Value, bool]:
        """Return (value, whether it was inferred)."""
        infers = self._count % self._n == 0
        self._count += 1
        if infers:
            self._value = self._workload(sample.data)
        return self._value, infers


def timed(
    samples: Iterable[Sample], truth: Truth, answer: Callable[[Sample], tuple[Value, bool]]
) -> Row:
    """Run `answer` over the samples and measure it."""
    began = time.perf_counter()
    answers = [answer(sample) for sample in samples]
    spent_s = time.perf_counter() - began
    values = [value for value, _ in answers]
    return measured(truth, values, sum(infers for _, infers in answers), spent_s)


def measured(truth: Truth, values: list[Value], inferred: int, spent_s: float) -> Row:
    """Compare delivered values with the model's own."""
    right = [truth.same(a, b) for a, b in zip(values, truth.values, strict=True)]
    count = len(values)
    return Row(count, inferred, 1 - inferred / count, sum(right) / count, count / spent_s)


if __name__ == "__main__":
    cv2.setNumThreads(1)
    try:
        main()
    except InfiEdgeError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(2)
