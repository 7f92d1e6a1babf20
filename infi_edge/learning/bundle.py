"""Filter bundles of what a gate has learned, or of nothing yet."""

from __future__ import annotations

import platform

import numpy as np

from infi_edge.archive import array_bytes
from infi_edge.bundle import (
    FORMAT_VERSION,
    Bundle,
    Calibration,
    FilterSpec,
    Manifest,
    OperatingPoint,
    ReuseSpec,
    WorkloadInfo,
)
from infi_edge.learning.metric import Embedding
from infi_edge.policy import Knobs
from infi_edge.preprocess import Spec

NO_WORKLOAD = WorkloadInfo(
    model="", model_identity="", decoder="raw", task="", same="exact", labels=[]
)


def blank_bundle(modality: str, spec: Spec, workload: WorkloadInfo, target: float) -> Bundle:
    """Return a light filter that has learned nothing: every input is inferred."""
    everything = OperatingPoint(
        measure="accuracy",
        target=target,
        knobs=Knobs(),
        accuracy=1.0,
        recall=None,
        filtering_rate=0.0,
        bound=0.0,
        kind="estimate",
    )
    nothing = ReuseSpec(distance=0.0, log_age=0.0, age=0.0, bias=0.0)
    return learned_bundle(modality, spec, workload, None, nothing, everything, {})


def learned_bundle(
    modality: str,
    spec: Spec,
    workload: WorkloadInfo,
    embedding: Embedding | None,
    reuse: ReuseSpec,
    point: OperatingPoint,
    trained_on: dict[str, str | int | float],
) -> Bundle:
    """Return a light filter of what was learned; embedding None: of nothing.

    reuse: of the embedding's uint8 distance. point: the thresholds, and what was measured.
    """
    used, gains, offsets = np.zeros(1, np.int32), np.zeros(1, np.float32), np.zeros(1, np.float32)
    if embedding is not None:
        used, gains = embedding.used, embedding.gains
        offsets = np.where(gains > 0, -embedding.shift / np.where(gains > 0, gains, 1), 0)
    members = {
        "features.npy": array_bytes(used),
        "gains.npy": array_bytes(gains),
        "offsets.npy": array_bytes(offsets.astype(np.float32)),
    }
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        modality=modality,
        mechanism="reuse",
        preprocess=spec,
        filter=FilterSpec(
            kind="light",
            dim=len(used),
            scale=1.0 if embedding is None else embedding.step,
            parameters=len(used),
        ),
        skip=None,
        reuse=reuse,
        workload=workload,
        calibration=Calibration(confidence=0.0, blocks=0, block_inputs=0, chosen=0, points=[point]),
        trained_on=trained_on,
        parity={},
        versions={"python": platform.python_version(), "numpy": np.__version__},
        lowest_runtime="none is needed",
    )
    return Bundle(manifest, members, "learned")
