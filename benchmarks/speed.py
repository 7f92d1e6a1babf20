"""What the filter, the cache and the process cost on this machine."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from infi_edge.cache import ReuseCache
from infi_edge.filter import InputFilter
from infi_edge.gate import Gate
from infi_edge.policy import Knobs, Policy
from infi_edge.preprocess.image import image_tensor
from infi_edge.tasks import make_same
from infi_edge.types import Sample
from infi_edge.workload import Workload, WorkloadSpec

ENTRIES = 4096
REUSE_ALWAYS = Knobs(reuse_threshold=1.0, deliver="nearest")


def quantiles_ms(run: Callable[[], object], repeats: int = 2000) -> dict[str, float]:
    """p50 and p99 of a call in milliseconds, after a warm-up."""
    for _ in range(20):
        run()
    spent = np.empty(repeats)
    for i in range(repeats):
        began = time.perf_counter_ns()
        run()
        spent[i] = time.perf_counter_ns() - began
    return {
        "p50_ms": float(np.quantile(spent, 0.5)) / 1e6,
        "p99_ms": float(np.quantile(spent, 0.99)) / 1e6,
    }


def filter_costs(input_filter: InputFilter, frame: np.ndarray) -> dict[str, Any]:
    """Stages of one decision on a 320x240 frame, one thread, 4,096 entries in the cache.

    bare: preprocess, network and lookup called directly; loop: the same through Gate.__call__.
    """
    cv2.setNumThreads(1)
    frame = cv2.resize(frame, (320, 240), interpolation=cv2.INTER_AREA)
    spec, dim = input_filter.manifest.preprocess, input_filter.manifest.filter.dim
    tensor = image_tensor(frame, spec)
    score, embedding = input_filter(frame)
    same = make_same("exact", "count")
    policy = Policy(REUSE_ALWAYS, input_filter.head, full_cache(dim, ENTRIES), same, 0)
    workload = Workload(lambda image: 0, WorkloadSpec("label", "raw"))
    gate = Gate(input_filter, workload, knobs=REUSE_ALWAYS)
    fill(gate.cache, ENTRIES)
    sample = Sample(frame, 1e6)

    def bare() -> None:
        _, found = input_filter.embed_tensor(image_tensor(frame, spec))
        gate.cache.candidates(found, 1e6)

    stages = {
        "preprocess": quantiles_ms(lambda: image_tensor(frame, spec)),
        "network": quantiles_ms(lambda: input_filter.embed_tensor(tensor)),
        "policy_and_lookup": quantiles_ms(lambda: policy.decide(score, embedding, 1e6)),
        "bare": quantiles_ms(bare),
        "loop": quantiles_ms(lambda: gate(sample)),
    }
    overhead = stages["loop"]["p50_ms"] - stages["bare"]["p50_ms"]
    return {**stages, "loop_overhead_ms": overhead, "dim": dim}


def full_cache(dim: int, entries: int) -> ReuseCache:
    """A cache filled with random embeddings."""
    cache = ReuseCache(dim, entries, max_bytes=1 << 30)
    fill(cache, entries)
    return cache


def fill(cache: ReuseCache, entries: int) -> None:
    """Insert random embeddings until there are `entries`."""
    rng = np.random.default_rng(0)
    for i, row in enumerate(rng.integers(0, 256, (entries, cache.dim), np.uint8)):
        cache.insert(row, i % 5, float(i))


def cache_costs(dim: int = 64) -> dict[str, Any]:
    """Lookup of the nearest in full caches: ours, NumPy float32 L1, scikit-learn; growth."""
    rng = np.random.default_rng(1)
    query = rng.integers(0, 256, dim, np.uint8)
    growth = {}
    for entries in (256, 1024, ENTRIES, 16384, 65536):
        cache = full_cache(dim, entries)
        growth[str(entries)] = quantiles_ms(functools.partial(cache.candidates, query, 1e6), 500)
    stored = rng.integers(0, 256, (ENTRIES, dim)).astype(np.float32)
    wanted = query.astype(np.float32)
    neighbours = KNeighborsClassifier(n_neighbors=15, metric="manhattan")
    neighbours.fit(stored, rng.integers(0, 5, ENTRIES))
    ours = growth[str(ENTRIES)]
    numpy_ms = quantiles_ms(lambda: np.abs(stored - wanted).sum(axis=1).argmin(), 500)
    sklearn_ms = quantiles_ms(lambda: neighbours.predict(wanted[None]), 100)
    search = full_cache(dim, ENTRIES)
    search_ms = quantiles_ms(lambda: search.nearest(query), 1000)
    return {
        "entries": ENTRIES,
        "dim": dim,
        "lookup": ours,
        "search": search_ms,
        "numpy_float32": numpy_ms,
        "sklearn": sklearn_ms,
        "times_faster_than_numpy": numpy_ms["p50_ms"] / search_ms["p50_ms"],
        "times_faster_than_sklearn": sklearn_ms["p50_ms"] / search_ms["p50_ms"],
        "lookup_times_faster_than_numpy": numpy_ms["p50_ms"] / ours["p50_ms"],
        "lookup_times_faster_than_sklearn": sklearn_ms["p50_ms"] / ours["p50_ms"],
        "growth": growth,
    }


def footprint(bundle: Path, clip: Path) -> dict[str, float]:
    """PSS and time to the first decision of a process that gates a clip with a trivial model."""
    began = time.time()
    command = [sys.executable, "-m", "benchmarks.footprint", str(bundle), str(clip)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    return {"pss_mb": report["pss_mb"], "first_decision_s": report["first_decision_at"] - began}
