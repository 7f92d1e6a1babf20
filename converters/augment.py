"""Change training inputs in ways that leave their answers alone."""

from __future__ import annotations

import numpy as np

from infi_edge.preprocess import AudioSpec, ImageSpec, Spec, VideoSpec


def augment_pairs(a: np.ndarray, b: np.ndarray, spec: Spec, rng: np.random.Generator) -> np.ndarray:
    """Return (2P, *spec.shape) in the network's own units: all of a, then all of b.

    a, b: filter tensors (P, *spec.shape). The two of a pair share what a scene or a speaker does
    to both (mirror, light, loudness); each has its own noise.
    """
    count = len(a)
    if spec.dtype == np.int32:
        return _dropped(np.concatenate([a, b]), rng)
    pair = np.stack([a, b]).astype(np.float32)
    ones = (1,) * (pair.ndim - 2)
    if isinstance(spec, (ImageSpec, VideoSpec)):
        flip = rng.random(count) < 0.5
        pair[:, flip] = pair[:, flip, ..., ::-1, :]
        gain = rng.uniform(0.85, 1.15, (1, count, *ones)).astype(np.float32)
        offset = rng.uniform(-15, 15, (1, count, *ones)) + rng.normal(0, 3, (2, count, *ones))
        pair *= gain
        pair += offset.astype(np.float32)
    elif isinstance(spec, AudioSpec):  # in levels of 0.4 dB: loudness is an offset
        pair += rng.uniform(-15, 15, (1, count, *ones)).astype(np.float32)
        pair += rng.normal(0, 3, pair.shape).astype(np.float32)
    elif spec.dtype == np.float32:
        pair *= rng.uniform(0.9, 1.1, (1, count, *ones)).astype(np.float32)
        pair += rng.normal(0, 0.03, pair.shape).astype(np.float32)
    flat = pair.reshape(2 * count, *a.shape[1:])
    return in_units(np.clip(flat, 0, 255, out=flat) if spec.dtype == np.uint8 else flat, spec)


def in_units(tensors: np.ndarray, spec: Spec) -> np.ndarray:
    """Return filter tensors as a float network reads them: uint8 levels become the span."""
    if spec.dtype != np.uint8:
        return tensors
    low, high = spec.span
    scaled: np.ndarray = tensors.astype(np.float32) * np.float32((high - low) / 255)
    return scaled + np.float32(low)


def _dropped(ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Forget one id in twenty: no text hangs on a single word."""
    kept = rng.random(ids.shape) >= 0.05
    return (ids * kept).astype(np.int32)
