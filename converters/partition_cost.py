"""What a cut costs: time of the head and the tail, measured here, and the bytes in between.

The choice is Neurosurgeon's (Kang et al., ASPLOS 2017): the least time from input to answer at a
bandwidth; or the fewest bytes among the heads that the device has time for.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

import numpy as np

from converters.flatgraph import Graph
from converters.partition import Cut, compressed_bytes, split_at
from infi_edge.decoders import make_decoder, prepare, prepare_array
from infi_edge.errors import ConfigError, ExecutorError, InfiEdgeError, SourceError
from infi_edge.interpreter import Network, TensorSpec
from infi_edge.workload import to_frame

P = ParamSpec("P")
T = TypeVar("T")

LEAST_MEASURED, LOADING_MS, MEASURING_MS = 40, 50.0, 20_000.0
"""Of a model with more cuts than there is time for an even share is measured, the others' times
are interpolated."""
WITHIN_NOISE = 1.01
"""Times this close are the same: the choice must not hang on the noise of a measurement."""
MOST_RUNS, LEAST_RUNS, RUNS_MS = 9, 3, 1000.0

Sent = Literal["int8", "asis"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a cut, per input. head_ms, tail_ms: median on this machine, one thread.

    compressed_bytes: as it would be sent, after zlib. Not measured: the times are interpolated
    between the neighbours and compressed_bytes is None.
    """

    cut: Cut
    head_ms: float
    tail_ms: float
    compressed_bytes: int | None
    is_measured: bool


@dataclass(frozen=True, slots=True)
class Link:
    """How parts are weighed. bandwidth_mbit: of the link. sent: how a feature map is sent.

    server_speedup: how many times faster than this machine the server is.
    """

    bandwidth_mbit: float = 10.0
    sent: Sent = "int8"
    server_speedup: float = 1.0

    def bytes_sent(self, cut: Cut) -> int:
        """Bytes per input."""
        return cut.bytes_int8 if self.sent == "int8" else cut.bytes_as_is

    def total_ms(self, head_ms: float, sent_bytes: int, tail_ms: float) -> float:
        """From input to answer: head, link, tail."""
        return (
            head_ms + sent_bytes * 8 / (self.bandwidth_mbit * 1000) + tail_ms / self.server_speedup
        )

    def cut_ms(self, cost: Cost) -> float:
        """From input to answer when the model is cut there."""
        return self.total_ms(cost.head_ms, self.bytes_sent(cost.cut), cost.tail_ms)


def choose(costs: Sequence[Cost], link: Link, budget_ms: float | None = None) -> Cost:
    """Return the cut of the least total time; with a budget, of the fewest bytes within it.

    Among equals the fewest bytes and then the earliest cut count. budget_ms: what a head may take.
    costs: at least one. Raises ConfigError if no head fits.
    """
    if budget_ms is None:
        most_ms = min(map(link.cut_ms, costs)) * WITHIN_NOISE
        return _fewest_bytes([cost for cost in costs if link.cut_ms(cost) <= most_ms], link)
    fitting = [cost for cost in costs if cost.head_ms <= budget_ms]
    if not fitting:
        least = min(costs, key=lambda cost: cost.head_ms)
        raise ConfigError(
            f"no head takes {budget_ms:g} ms or less; the quickest, cut {least.cut.number}, takes "
            f"{least.head_ms:.3g} ms"
        )
    return _fewest_bytes(fitting, link)


def _fewest_bytes(costs: Sequence[Cost], link: Link) -> Cost:
    return min(costs, key=lambda cost: (link.bytes_sent(cost.cut), cost.cut.number))


class Bench:
    """Runs a model and its parts in a process of its own, which a damaged file may take down."""

    def __init__(self, graph: Graph, content: bytes, sample: str | None = None) -> None:
        """content: the bytes that `graph` was read from. sample: an image or a .npy file.

        Without a sample the input is noise. Raises ConfigError or ExecutorError.
        """
        self._graph, self._content = graph, content
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, initializer=_start)
        try:
            self._input = _input(self._run(_input_spec, content), sample)
            self._runs = LEAST_RUNS
            self._outputs, self.whole_ms = self._timed(content, self._input)
            self._runs = int(min(max(RUNS_MS / max(self.whole_ms, 1e-3), LEAST_RUNS), MOST_RUNS))
            self._outputs, self.whole_ms = self._timed(content, self._input)
        except BaseException:
            self.close()
            raise

    @property
    def input_bytes(self) -> int:
        """Size of the whole model's input tensor."""
        return int(self._input.nbytes)

    def cost(self, cut: Cut) -> Cost:
        """Measure one cut. Raises ExecutorError if head and tail do not answer as the
        whole, or if what is between them cannot be sent."""
        head, tail = split_at(self._graph, cut, self._content)
        (features,), head_ms = self._timed(head, self._input)
        if features.shape != cut.shape or features.dtype != cut.dtype:
            raise ExecutorError(
                f"cut {cut.number} ({cut.tensor}) gives {features.dtype} {features.shape}, not "
                f"{cut.dtype} {cut.shape} as the file says; cut elsewhere"
            )
        outputs, tail_ms = self._timed(tail, features)
        if not all(_is_same(a, b) for a, b in zip(outputs, self._outputs, strict=True)):
            raise ExecutorError(
                f"cut {cut.number} ({cut.tensor}) changes the model's answer in this runtime; "
                "cut elsewhere"
            )
        try:
            sent_bytes = compressed_bytes(features)
        except SourceError as error:
            raise ExecutorError(
                f"cut {cut.number} ({cut.tensor}) gives values that are not numbers, which cannot "
                "be sent; cut elsewhere, or measure on a real input with --sample"
            ) from error
        return Cost(cut, head_ms, tail_ms, sent_bytes, True)

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown(cancel_futures=True)

    def _timed(self, content: bytes, tensor: np.ndarray) -> tuple[list[np.ndarray], float]:
        return self._run(_time, content, tensor, self._runs)

    def most_cuts(self) -> int:
        """How many cuts there is time to measure."""
        one_ms = (self.whole_ms * (self._runs + 1)) + 2 * LOADING_MS
        return max(LEAST_MEASURED, int(MEASURING_MS / one_ms))

    def _run(self, task: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        try:
            return self._pool.submit(task, *arguments, **named).result()
        except BrokenProcessPool as error:
            raise ExecutorError(
                "the TFLite runtime crashed on the model, which is damaged or too large for this "
                "machine"
            ) from error


def measure(
    bench: Bench, found: Sequence[Cut], progress: Progress = lambda done, total: None
) -> tuple[list[Cost], list[str]]:
    """Return (costs, sentences about the cuts that are left out), in the order of the cuts.

    Raises ExecutorError if no cut can be used.
    """
    places = np.linspace(0, len(found) - 1, min(bench.most_cuts(), len(found))).round().astype(int)
    chosen = [found[i] for i in places]
    measured: list[Cost] = []
    refused: dict[int, str] = {}
    for done, cut in enumerate(chosen, start=1):
        try:
            measured.append(bench.cost(cut))
        except InfiEdgeError as error:
            refused[cut.number] = str(error)
        progress(done, len(chosen))
    if not measured:
        raise ExecutorError(f"no cut can be used: {next(iter(refused.values()))}")
    known = {cost.cut.number: cost for cost in measured}
    costs = [
        known.get(cut.number) or _between(cut, measured)
        for cut in found
        if cut.number not in refused
    ]
    return costs, list(refused.values())


def _between(cut: Cut, measured: Sequence[Cost]) -> Cost:
    at = [cost.cut.operators for cost in measured]
    head_ms = np.interp(cut.operators, at, [cost.head_ms for cost in measured])
    tail_ms = np.interp(cut.operators, at, [cost.tail_ms for cost in measured])
    return Cost(cut, float(head_ms), float(tail_ms), None, False)


def _input(spec: TensorSpec, sample: str | None) -> np.ndarray:
    if sample is None:
        return _noise(spec)
    try:
        if Path(sample).suffix == ".npy":
            return prepare_array(np.load(sample, allow_pickle=False), spec)
        return prepare(to_frame(Path(sample).read_bytes()), spec, make_decoder("raw", [spec]))[0]
    except (OSError, ValueError, EOFError, SourceError) as error:
        raise ConfigError(f"the sample {sample} cannot be read: {error}") from error


def _noise(spec: TensorSpec) -> np.ndarray:
    """Numbers over the range of an image's; small ones where an integer may be an index."""
    rng = np.random.default_rng(0)
    if spec.dtype.kind == "f":
        return rng.random(spec.shape).astype(spec.dtype)
    if spec.dtype in (np.uint8, np.int8):
        limits = np.iinfo(spec.dtype)
        return rng.integers(limits.min, limits.max + 1, spec.shape).astype(spec.dtype)
    return rng.integers(0, 2, spec.shape).astype(spec.dtype)


def _is_same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _start() -> None:
    """Begin the process: silent, as the runtimes write past Python, and ended with its parent."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _input_spec(content: bytes) -> TensorSpec:
    return Network(content).inputs[0]


def _time(content: bytes, tensor: np.ndarray, runs: int) -> tuple[list[np.ndarray], float]:
    network = Network(content)
    outputs = network.run(tensor)
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        network.run(tensor)
        taken.append(time.perf_counter() - start)
    return outputs, float(np.median(taken)) * 1000
