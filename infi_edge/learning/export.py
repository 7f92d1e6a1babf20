"""A filter bundle of what a gate has learned, from its saved state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from infi_edge import __version__
from infi_edge.bundle import Bundle, OperatingPoint, ReuseSpec, WorkloadInfo
from infi_edge.capture.address import public_address
from infi_edge.errors import BundleError
from infi_edge.learning.bundle import learned_bundle
from infi_edge.learning.inspect import control_of, filtered, live_accuracy, only_known
from infi_edge.learning.learner import PREFER_LAST
from infi_edge.learning.metric import embedding_of, saved_metric
from infi_edge.learning.state import Saved
from infi_edge.policy import Knobs
from infi_edge.preprocess import Spec, parse_spec

LEAST_INPUTS = 2
"""Features of so many say how far an embedding must reach."""


def export_bundle(path: Path, saved: Saved) -> Bundle:
    """Return a light filter that decides as the gate would that goes on from this state, but for
    its audits, and for the SKIP of a filter it began with.

    path: where the state is, for messages. Raises BundleError if it has learned nothing yet, if it
    is no filter without the network it began with, or of another version.
    """
    with only_known(path):
        return _export(path, saved)


def _export(path: Path, saved: Saved) -> Bundle:
    facts, state, arrays = saved.manifest["facts"], saved.manifest["state"], saved.arrays
    begun = facts["from_filter"]
    if begun is not None and begun["kind"] == "net":
        raise BundleError(
            f"{path} is what a gate has learned beside a trained network, which is not in it; "
            "go on using that bundle with --learn, or train it again"
        )
    features = arrays["features"]
    spec: Spec = parse_spec(facts["preprocess"], facts["modality"], str(path))
    metric = saved_metric(state, arrays, spec.feature_count)
    if metric is None or len(features) < LEAST_INPUTS:
        raise BundleError(f"{path} has learned nothing yet; let the gate run for a while longer")
    if features.shape[1] != spec.feature_count:
        raise ValueError("features of another shape")
    control = control_of(state)
    embedding = embedding_of(metric, features)
    head = embedding.head(control.slope, control.offset)
    bundle = learned_bundle(
        facts["modality"],
        spec,
        msgspec.convert(facts["workload"], WorkloadInfo),
        embedding,
        ReuseSpec(distance=head.distance, log_age=head.log_age, age=head.age, bias=head.bias),
        _point(
            state,
            Knobs(
                # Nothing steers a bundle: what one answer may risk is the target's own share.
                reuse_threshold=min(control.threshold, control.allowed),
                max_since_inference=control.max_since_inference,
                deliver="nearest",
                prefer_last=PREFER_LAST,
            ),
        ),
        _trained_on(facts, state),
    )
    return _with_origin(bundle, live_accuracy(state).confidence)


def _point(state: dict[str, Any], knobs: Knobs) -> OperatingPoint:
    """What was measured in service, warm-up and audits included."""
    live = live_accuracy(state)
    accuracy, recall = live.accuracy(), live.recall()
    return OperatingPoint(
        measure="accuracy",
        target=float(state["target_accuracy"]),
        knobs=knobs,
        accuracy=accuracy.estimate,
        recall=None if recall is None else recall.estimate,
        filtering_rate=filtered(state) / max(live.inputs, 1),
        bound=accuracy.low,
        kind="estimate",
    )


def _trained_on(facts: dict[str, Any], state: dict[str, Any]) -> dict[str, str | int | float]:
    inputs = live_accuracy(state).inputs
    return {
        "source": public_address(str(facts["source"])),
        "inputs": inputs,
        "inferences": inputs - filtered(state),
        "fits": int(state["counts"].get("fits", 0)),
    }


def _with_origin(bundle: Bundle, confidence: float) -> Bundle:
    """Say which program made it, and how sure its bound is."""
    replace, manifest = msgspec.structs.replace, bundle.manifest
    manifest = replace(
        manifest,
        calibration=replace(manifest.calibration, confidence=confidence),
        versions={"infi-edge": __version__, **manifest.versions},
    )
    return Bundle(manifest, bundle.members, bundle.name)
