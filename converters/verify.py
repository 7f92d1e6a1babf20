"""Check what conversion made: parity with the float network, and loading in every runtime."""

from __future__ import annotations

import numpy as np

from converters.recordings import Stretches, TrainingData
from converters.trained import TrainedFilter
from infi_edge.bundle import Bundle
from infi_edge.filter import InputFilter, NetEmbedder
from infi_edge.interpreter import found_runtimes
from infi_edge.learn import changed, sample_pairs


def check_runtimes(bundle: Bundle) -> str:
    """Run the filter in every TFLite runtime found; return their names and versions.

    Raises BundleError if one cannot run it.
    """
    found = found_runtimes()
    if bundle.manifest.filter.kind == "net":
        size = bundle.manifest.preprocess
        blank = np.zeros((1, size.height, size.width, 3), np.uint8)
        for runtime in found:
            NetEmbedder(bundle, 1, runtime)(blank)
    return ", ".join(f"{name} {version}" for name, version in found.items())


def parity(
    trained: TrainedFilter,
    input_filter: InputFilter,
    data: TrainingData,
    stretches: Stretches,
    seed: int,
) -> dict[str, str | int | float]:
    """Compare the quantized filter with the float one on inputs of these stretches.

    Decision agreement: share of inputs (SKIP) and of pairs (REUSE) on the same side of 0.5.
    AUC: how well each ranks redundant against wanted, and same against changed pairs.
    """
    rng = np.random.default_rng(seed)
    a, b = sample_pairs(stretches, 2000, rng)
    used = np.unique(np.concatenate([a, b]))
    place = np.searchsorted(used, np.arange(used[-1] + 1))
    quantized = np.stack([input_filter.embed_tensor(data.tensors[i][None])[1] for i in used])
    floats = _float_steps(trained, data, used)
    report: dict[str, str | int | float] = {"inputs": len(used), "pairs": len(a)}
    if trained.reuse is not None:
        differs = changed(data.truth.values, a, b, data.truth.same)
        age = np.abs(data.truth.times_s[a] - data.truth.times_s[b])
        head = trained.reuse
        fixed = head.bias + head.log_age * np.log1p(age) + head.age * age
        logits = [
            fixed + head.distance * np.abs(e[place[a]] - e[place[b]]).sum(axis=1)
            for e in (floats, quantized.astype(np.float64))
        ]
        report |= _compare("reuse", logits[0], logits[1], differs > 0.5)
    if trained.skip is not None and trained.spec.kind == "net":
        scores = [
            trained.skip.weight * e.sum(axis=1) + trained.skip.bias
            for e in (floats, quantized.astype(np.float64))
        ]
        report |= _compare("skip", scores[0], scores[1], ~data.truth.redundant[used])
    return report


def _float_steps(trained: TrainedFilter, data: TrainingData, used: np.ndarray) -> np.ndarray:
    if trained.model is not None:
        from converters.train import float_embeddings

        floats = float_embeddings(trained.model, data.tensors[used])
        return floats.astype(np.float64) / trained.spec.scale
    index = np.frombuffer(trained.members["features.npy"][-4 * trained.spec.dim :], np.int32)
    gains = np.frombuffer(trained.members["gains.npy"][-4 * trained.spec.dim :], np.float32)
    return data.features[used][:, index].astype(np.float64) * gains


def _compare(
    name: str, before: np.ndarray, after: np.ndarray, positive: np.ndarray
) -> dict[str, str | int | float]:
    return {
        f"{name}_agreement": round(float(((before > 0) == (after > 0)).mean()), 4),
        f"{name}_auc_float": round(auc(before, positive), 4),
        f"{name}_auc_quantized": round(auc(after, positive), 4),
    }


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve (Mann-Whitney), ties counted half; 0.5 if one class is missing."""
    count, total = int(positive.sum()), len(scores)
    if count in (0, total):
        return 0.5
    _, inverse, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[inverse]
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (total - count)))
