"""The loop: source -> gate -> sinks, from a configuration."""

from __future__ import annotations

import hashlib
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec

from infi_edge.bundle import Manifest, operating_point
from infi_edge.capture.camera import Camera
from infi_edge.capture.recordings import open_recording
from infi_edge.capture.replay import part
from infi_edge.config import Config, SourceConfig
from infi_edge.errors import BundleError, ConfigError, InfiEdgeError
from infi_edge.filter import InputFilter, load_filter
from infi_edge.gate import Gate, workload_for
from infi_edge.plugins import load_plugin
from infi_edge.preprocess import ImageSpec, MotionSpec
from infi_edge.sinks import JsonLines, Sink
from infi_edge.types import Result, Sample

log = logging.getLogger("infi_edge")

SNAPSHOT_EVERY_S = 60.0


def run_loop(
    samples: Iterable[Sample],
    gate: Gate,
    sinks: Iterable[Sink],
    after: Callable[[Result], None] | None = None,
) -> None:
    """Run every sample through the gate and each result into the sinks.

    An input that fails is counted in gate.stats["error"], told to the sinks, and logged once per
    cause; the loop goes on. after: called with each result.
    """
    sinks = list(sinks)
    told: set[str] = set()
    for sample in samples:
        try:
            result = gate(sample)
        except InfiEdgeError as error:
            gate.stats["error"] += 1
            message = str(error)
            if message not in told and len(told) < 100:
                told.add(message)
                log.error("input %d: %s", sample.index, message)
            for sink in sinks:
                sink.error(sample.index, sample.time_s, message)
            continue
        for sink in sinks:
            sink.write(result)
        if after is not None:
            after(result)


def trained_rate_hz(manifest: Manifest) -> float | None:
    """The rate of the pictures, lines or arrays a filter was trained on: some have none of their
    own. A signal's rate is in the bundle's preprocessing."""
    if isinstance(manifest.preprocess, MotionSpec):
        return None
    rate_hz = manifest.trained_on.get("rate_hz")
    return float(rate_hz) if isinstance(rate_hz, (int, float)) and rate_hz > 0 else None


def open_samples(config: SourceConfig, manifest: Manifest) -> Iterator[Sample]:
    """Open a source by its address, as inputs of a filter's kind.

    Raises SourceError if it is not there.
    """
    if config.address.startswith("camera:"):
        if not isinstance(manifest.preprocess, ImageSpec):
            raise ConfigError(f"{config.address} gives pictures, the filter reads others")
        return Camera(config.address.removeprefix("camera:")).samples()
    rate_hz = config.rate_hz or trained_rate_hz(manifest)
    recording = open_recording(config.address, rate_hz, manifest.preprocess)
    if (config.start, config.end) == (0.0, 1.0):
        return recording.samples()
    first, last = part(recording, config.start, config.end)
    return recording.samples(first, last)


def make_gate(config: Config, input_filter: InputFilter) -> Gate:
    """Build the gate of a configuration. Raises ConfigError, ExecutorError or BundleError."""
    gate = config.gate
    knobs = operating_point(input_filter.manifest, gate.target_accuracy, gate.target_recall).knobs
    caps = {
        name: getattr(gate, name)
        for name in ("max_consecutive_filtered", "heartbeat_s")
        if getattr(gate, name) is not None
    }
    return Gate(
        input_filter,
        workload_for(
            input_filter.manifest,
            config.model.path,
            model_version=config.model.version,
            allow_other_model=config.model.allow_other,
            threads=config.model.threads,
        ),
        knobs=msgspec.structs.replace(knobs, **caps),
        enabled=gate.enabled,
        cache_entries=config.cache.entries,
        cache_bytes=config.cache.max_bytes,
        cache_age_s=config.cache.max_age_s,
        eviction=config.cache.eviction,
    )


def cache_identity(config: Config, input_filter: InputFilter) -> str:
    """What a cache snapshot belongs to: the source, and the bundle (its model and task in it)."""
    bundle = hashlib.sha256(Path(config.gate.filter).read_bytes()).hexdigest()
    info = input_filter.manifest.workload
    parts = [config.source.address, config.model.path, info.task, info.same, bundle]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def run(config: Config, after: Callable[[Result], None] | None = None) -> Gate:
    """Run a configuration to the end of its source; return the gate with its stats.

    Raises InfiEdgeError if something cannot be opened, or the source breaks.
    """
    for plugin in config.plugins:
        load_plugin(plugin)
    input_filter = load_filter(config.gate.filter)
    gate = make_gate(config, input_filter)
    samples = open_samples(config.source, input_filter.manifest)
    snapshot = config.cache.snapshot
    with ExitStack() as stack:
        target = sys.stdout if config.output.jsonl == "-" else config.output.jsonl
        sink = JsonLines(target)
        stack.callback(sink.close)
        if snapshot is None:
            run_loop(samples, gate, [sink], after)
            return gate
        keeper = _SnapshotKeeper(gate, snapshot, cache_identity(config, input_filter))
        stack.callback(keeper.save)
        run_loop(keeper.watch(samples), gate, [sink], after)
    return gate


class _SnapshotKeeper:
    """Keeps the cache on disk: loaded at the first input, saved every minute and at the end."""

    def __init__(self, gate: Gate, path: str, identity: str) -> None:
        self._gate, self._path, self._identity = gate, path, identity
        self._saved_at_s = time.monotonic()
        self._now_s: float | None = None

    def watch(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Pass samples on; their stream time is what the ages of entries are counted in."""
        for sample in samples:
            if self._now_s is None:
                self._load(sample.time_s)
            self._now_s = sample.time_s
            yield sample
            if time.monotonic() - self._saved_at_s > SNAPSHOT_EVERY_S:
                self.save()

    def _load(self, now_s: float) -> None:
        if not Path(self._path).exists():
            return
        try:
            count = self._gate.cache.load(self._path, self._identity, now_s)
            log.info("cache snapshot: %d answers loaded from %s", count, self._path)
        except BundleError as error:
            log.warning("cache snapshot not used: %s", error)

    def save(self) -> None:
        """Write the snapshot, unless there was no input; a full disk is counted, not fatal."""
        self._saved_at_s = time.monotonic()
        if self._now_s is None:
            return
        try:
            self._gate.cache.save(self._path, self._identity, self._now_s)
        except OSError as error:
            self._gate.stats["snapshot_error"] += 1
            log.error("cache snapshot cannot be written to %s: %s", self._path, error.strerror)
