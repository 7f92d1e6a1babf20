"""What a filter says of pairs of inputs, and the uint8 steps it says it in."""

from __future__ import annotations

import msgspec
import numpy as np

from infi_edge.bundle import Bundle
from infi_edge.errors import ConfigError
from infi_edge.filter import CLASSIFIER_ROWS, InputFilter, NetEmbedder
from infi_edge.learn import ReuseHead, sigmoid


def readings(head: ReuseHead | None, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return what the classifier reads of pairs, float64 (P,): L1 distance, or its logit.

    a, b: uint8 embeddings (P, D).
    """
    difference = np.abs(a.astype(np.int16) - b).astype(np.uint8)
    if head is None or head.rescore is None:
        return difference.sum(axis=1, dtype=np.int64).astype(np.float64)
    rows = range(0, len(difference), CLASSIFIER_ROWS)
    found = [head.rescore(difference[i : i + CLASSIFIER_ROWS]) for i in rows]
    return np.concatenate(found).astype(np.float64)


def pair_scores(input_filter: InputFilter, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return p(changed) at age 0, float64 (P,), of uint8 embeddings a, b (P, D)."""
    head = input_filter.head
    if head is None:
        raise ConfigError(f"{input_filter.name} has no REUSE; it scores single inputs")
    z = head.bias + head.distance * readings(head, a, b)
    return np.array([sigmoid(float(value)) for value in z])


def embedding_steps(outputs: np.ndarray, headroom: float = 1.0) -> tuple[float, int]:
    """Return (units per uint8 step, the step of zero) that hold these outputs (N, D).

    headroom: how much wider than they are. Raises ConfigError if they are all zero or no numbers.
    """
    if not np.isfinite(outputs).all():
        raise ConfigError("the network's embedding is not a number for some inputs")
    low = min(float(outputs.min()), 0.0) * headroom
    high = max(float(outputs.max()), 0.0) * headroom
    if high - low <= 1e-9:
        raise ConfigError(
            "the network's embedding is zero for every input: it died in training, train it again"
        )
    scale = (high - low) / 255
    return scale, round(-low / scale)


def fit_steps(bundle: Bundle, tensors: np.ndarray) -> Bundle:
    """Let the uint8 steps of a float network span what its embedding does on these inputs.

    tensors: filter tensors (N, *spec.shape). What was known when it was imported was less: some
    calibration data, or none.
    """
    manifest = bundle.manifest
    spec, embedder = manifest.filter, InputFilter(bundle).embedder
    if spec.kind != "net" or not isinstance(embedder, NetEmbedder) or embedder.is_quantized:
        return bundle
    outputs = np.stack([embedder.output(tensor[None]) for tensor in tensors])
    scale, zero = embedding_steps(outputs)
    ratio = 1.0 if spec.classifier == "mlp" else scale / spec.scale
    skip, reuse = manifest.skip, manifest.reuse
    if skip is not None:
        skip = msgspec.structs.replace(skip, weight=skip.weight * ratio)
    if reuse is not None:
        reuse = msgspec.structs.replace(reuse, distance=reuse.distance * ratio)
    manifest = msgspec.structs.replace(
        manifest,
        filter=msgspec.structs.replace(spec, scale=scale, zero=zero),
        skip=skip,
        reuse=reuse,
    )
    return Bundle(manifest, bundle.members, bundle.name)
