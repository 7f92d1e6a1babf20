"""What a filter says of pairs of inputs."""

from __future__ import annotations

import numpy as np

from infi_edge.errors import ConfigError
from infi_edge.filter import CLASSIFIER_ROWS, InputFilter
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
