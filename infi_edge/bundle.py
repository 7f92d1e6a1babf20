"""The filter bundle `NAME.infi`: read, verify, write."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from infi_edge.archive import parse_archive, read_archive, write_archive
from infi_edge.errors import BundleError, ConfigError
from infi_edge.policy import Knobs
from infi_edge.preprocess import Spec, parse_spec

FORMAT_VERSION = 3
MAX_DIM = 4096


class FilterSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the input becomes an embedding, and what reads the difference of two.

    kind: `net` (member `filter.tflite`), `light` (members `features.npy`, `gains.npy`,
    `offsets.npy`: steps = (feature - offset) * gain), or `score`
    (a `filter.tflite` whose one output is p(needed): SKIP alone, no embedding).
    dim: numbers in the embedding. scale: embedding units per uint8 step (a float net's output is
    divided by it). zero: the step that stands for 0. parameters: of the filter, for `inspect`.
    classifier: `l1`, the sum of differences, or `mlp` (member `classifier.tflite`: float32
    (64, dim) differences -> (64, 1) logits), which re-scores the nearest.
    input_order: which part of the input each of the network's inputs takes; empty: in order.
    """

    kind: Literal["net", "light", "score"]
    dim: int
    scale: float
    parameters: int
    zero: int = 0
    classifier: Literal["l1", "mlp"] = "l1"
    input_order: tuple[int, ...] = ()


class SkipSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """score = sigmoid(weight * z + bias), z the distance to the empty input (the sum of the
    embedding, or its classifier's logit); a light filter: sigmoid(skip.npy . f)."""

    weight: float
    bias: float


class ReuseSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """p(changed) = sigmoid(bias + distance * z + log_age * log(1 + age_s) + age * age_s), z the
    uint8 L1 distance, or the classifier's logit."""

    distance: float
    log_age: float
    age: float
    bias: float


class WorkloadInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The workload the filter was trained for, as text, and what tells its model apart.

    task "": none yet; the bundle lets everything through until it is calibrated.
    head_identity: of the head whose features the filter reads, `model` is its tail; else "".
    """

    model: str
    model_identity: str
    decoder: str
    task: str
    same: str
    labels: list[str]
    head_identity: str = ""


class OperatingPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One row of the calibration table: a target, the knobs that hold it, what to expect of them.

    measure: what the target is about. bound: lower bound of it at the bundle's confidence.
    kind: `guarantee` where the bound is proven (Learn-then-Test), else `estimate`.
    """

    measure: Literal["accuracy", "recall"]
    target: float
    knobs: Knobs
    accuracy: float
    recall: float | None
    filtering_rate: float
    bound: float
    kind: Literal["guarantee", "estimate"]


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the table was made. blocks: independent ones, of block_inputs inputs each."""

    confidence: float
    blocks: int
    block_inputs: int
    chosen: int
    points: list[OperatingPoint]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything a bundle says about itself (members and their hashes are the archive's).

    preprocess: a `preprocess.Spec`.
    """

    format_version: int
    modality: str
    mechanism: Literal["both", "skip", "reuse"]
    preprocess: Any
    filter: FilterSpec
    skip: SkipSpec | None
    reuse: ReuseSpec | None
    workload: WorkloadInfo
    calibration: Calibration
    trained_on: dict[str, str | int | float]
    parity: dict[str, str | int | float]
    versions: dict[str, str]
    lowest_runtime: str


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle: its manifest and its members' bytes."""

    manifest: Manifest
    members: dict[str, bytes]
    name: str


def write_bundle(path: str | Path, manifest: Manifest, members: dict[str, bytes]) -> None:
    """Write a bundle atomically; the same content gives the same bytes."""
    _check(manifest, str(path))
    write_archive(path, msgspec.to_builtins(manifest), members)


def read_bundle(path: str | Path) -> Bundle:
    """Return a verified bundle. Raises BundleError, and nothing else, with one clear sentence."""
    return _bundle(*read_archive(path), str(path))


def parse_bundle(content: bytes, path: str) -> Bundle:
    """Return the verified bundle in `content`, the bytes of the file `path`. Raises BundleError."""
    return _bundle(*parse_archive(content, path), path)


def _bundle(raw: dict[str, Any], members: dict[str, bytes], path: str) -> Bundle:
    manifest = parse_manifest(raw, path)
    needed = needed_members(manifest)
    if set(members) != needed:
        raise BundleError(
            f"{path} is damaged: a {manifest.filter.kind} filter has the members "
            f"{', '.join(sorted(needed))}, not {', '.join(sorted(members)) or 'none'}"
        )
    return Bundle(manifest, members, Path(path).stem)


def needed_members(manifest: Manifest) -> set[str]:
    """Return the names of the members that such a filter has."""
    if manifest.filter.kind == "light":
        needed = {"features.npy", "gains.npy"} | ({"skip.npy"} if manifest.skip else set())
        return needed | ({"offsets.npy"} if manifest.format_version > 1 else set())
    return {"filter.tflite"} | (
        {"classifier.tflite"} if manifest.filter.classifier == "mlp" else set()
    )


def parse_manifest(raw: dict[str, Any], name: str) -> Manifest:
    """Return a checked manifest. Raises BundleError."""
    version = raw.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(f"{name} is damaged: its manifest has no format_version")
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{name} has format version {version}, this infi-edge reads up to {FORMAT_VERSION}; "
            "update infi-edge"
        )
    try:
        manifest = msgspec.convert(raw, Manifest)
    except (msgspec.ValidationError, OverflowError, RecursionError, UnicodeError) as error:
        raise BundleError(f"{name} is damaged: its manifest is wrong: {error}") from error
    spec: Spec = parse_spec(manifest.preprocess, manifest.modality, name)
    manifest = msgspec.structs.replace(manifest, preprocess=spec)
    _check(manifest, name)
    return manifest


def _check(manifest: Manifest, name: str) -> None:
    spec, calibration = manifest.filter, manifest.calibration
    parts = len(spec.input_order)
    heads = [h for h in (manifest.skip, manifest.reuse) if h is not None]
    problems = {
        "head": not all(math.isfinite(x) for h in heads for x in msgspec.structs.astuple(h)),
        "embedding size": not 1 <= spec.dim <= MAX_DIM,
        "embedding scale": not (math.isfinite(spec.scale) and spec.scale > 0),
        "embedding zero": not 0 <= spec.zero <= 255,
        "input order": sorted(spec.input_order) != list(range(parts)),
        "classifier": spec.classifier == "mlp" and spec.kind != "net",
        "mechanism": (manifest.skip is not None, manifest.reuse is not None)
        != {"both": (True, True), "skip": (True, False), "reuse": (False, True)}[manifest.mechanism]
        or (spec.kind == "score" and manifest.mechanism != "skip"),
        "calibration table": not 0 <= calibration.chosen < len(calibration.points),
        "knobs": any(_bad_knobs(point.knobs) for point in calibration.points),
    }
    for what, wrong in problems.items():
        if wrong:
            raise BundleError(f"{name} is damaged: its manifest has an impossible {what}")


def _bad_knobs(knobs: Knobs) -> bool:
    whole = (
        knobs.max_since_inference,
        knobs.max_distance,
        knobs.max_consecutive_filtered,
    )
    shares = (knobs.skip_threshold, knobs.reuse_threshold)
    heartbeat = knobs.heartbeat_s
    return (
        not 1 <= knobs.votes <= 1000
        or any(n is not None and n < 0 for n in whole)
        or any(share is not None and not 0.0 <= share <= 1.0 for share in shares)
        or (heartbeat is not None and not 0.0 < heartbeat < math.inf)
    )


def operating_point(
    manifest: Manifest,
    target_accuracy: float | None = None,
    target_recall: float | None = None,
) -> OperatingPoint:
    """Return the row for a target, or the bundle's own choice when none is named.

    A target between rows takes the next stricter row. Raises ConfigError if no row holds it.
    """
    points = manifest.calibration.points
    if target_accuracy is None and target_recall is None:
        return points[manifest.calibration.chosen]
    measure = "accuracy" if target_accuracy is not None else "recall"
    target = target_accuracy if target_accuracy is not None else target_recall
    assert target is not None
    rows = [p for p in points if p.measure == measure and p.target >= target - 1e-9]
    if not rows:
        known = ", ".join(f"{p.target:g}" for p in points if p.measure == measure) or "none"
        raise ConfigError(
            f"the bundle promises no {measure} of {target:g}; it has {known}; "
            "train it again with that target"
        )
    return min(rows, key=lambda p: p.target)
