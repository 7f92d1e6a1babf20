"""The receipt of a quantization: parity with the float network, sizes, operators, runtimes."""

from __future__ import annotations

import importlib.util

import numpy as np

from converters.recordings import TrainingData
from converters.trained import TrainedFilter
from infi_edge.archive import array_from_bytes
from infi_edge.bundle import Bundle
from infi_edge.filter import InputFilter
from infi_edge.interpreter import found_runtimes
from infi_edge.learn import changed, sample_pairs

Receipt = dict[str, str | int | float]
MIN_AGREEMENT = 0.99
MAX_AUC_LOSS = 0.005


def check_runtimes(bundle: Bundle) -> str:
    """Run the filter in every TFLite runtime found; return their names and versions.

    Raises BundleError if one cannot run it.
    """
    found = found_runtimes()
    spec = bundle.manifest.preprocess
    blank = np.zeros((1, *spec.shape), spec.dtype)
    if bundle.manifest.filter.kind != "light":
        for runtime in found:
            InputFilter(bundle, 1, runtime).embed_tensor(blank)
    return ", ".join(f"{name} {version}" for name, version in found.items())


def operators(bundle: Bundle) -> Receipt:
    """Return the bundle's size in bytes and its networks' operators with their versions."""
    facts: Receipt = {"size_bytes": sum(map(len, bundle.members.values()))}
    networks = [name for name in sorted(bundle.members) if name.endswith(".tflite")]
    if networks and importlib.util.find_spec("tensorflow") is not None:
        from converters.opversions import OLDEST_RUNTIME, operator_versions, too_new

        found: dict[str, int] = {}
        for name in networks:
            for operator, version in operator_versions(bundle.members[name]).items():
                found[operator] = max(version, found.get(operator, 0))
        facts["operators"] = " ".join(f"{name}:{version}" for name, version in found.items())
        if not any(too_new(bundle.members[name]) for name in networks):
            facts["known_to"] = OLDEST_RUNTIME
    return facts


def parity(
    trained: TrainedFilter,
    input_filter: InputFilter,
    data: TrainingData,
    stretch: tuple[int, int],
    seed: int,
) -> Receipt:
    """Compare the quantized filter with the float one on inputs of a stretch it never saw.

    Decision agreement: share of inputs (SKIP) and of pairs (REUSE) on the same side of 0.5.
    AUC: how well each ranks redundant against wanted, and same against changed pairs.
    """
    a, b = sample_pairs([stretch], 2000, np.random.default_rng(seed))
    used = np.unique(np.concatenate([a, b]))
    place = np.searchsorted(used, np.arange(used[-1] + 1))
    results = [input_filter.embed_tensor(data.tensors[i][None]) for i in used]
    quantized = np.stack([embedding for _, embedding in results]).astype(np.float64)
    floats = _float_steps(trained, data, used)
    report: Receipt = {"inputs": len(used), "pairs": len(a)}
    if trained.reuse is not None:
        differs = changed(data.truth.values, a, b, data.truth.same)
        age = np.abs(data.truth.times_s[a] - data.truth.times_s[b])
        head = trained.reuse
        fixed = head.bias + head.log_age * np.log1p(age) + head.age * age
        before, after = (
            fixed + head.distance * _distances(trained, np.abs(e[place[a]] - e[place[b]]))
            for e in (floats, quantized)
        )
        report |= _compare("reuse", before, after, differs > 0.5)
    if trained.skip is not None and trained.spec.kind == "net":
        before, after = (
            trained.skip.weight * _distances(trained, e) + trained.skip.bias
            for e in (floats, quantized)
        )
        report |= _compare("skip", before, after, ~data.truth.redundant[used])
    return report


def _distances(trained: TrainedFilter, steps: np.ndarray) -> np.ndarray:
    """What the classifier makes of |differences| in uint8 steps, (N, D) -> (N,)."""
    classifier = None if trained.siamese is None else trained.siamese.classifier
    if classifier is None:
        return steps.sum(axis=1)
    real = (steps * trained.spec.scale).astype(np.float32)
    return classifier(real, training=False).numpy()[:, 0].astype(np.float64)


def _float_steps(trained: TrainedFilter, data: TrainingData, used: np.ndarray) -> np.ndarray:
    if trained.siamese is not None:
        from converters.train import float_embeddings

        floats = float_embeddings(trained.siamese.model, data.tensors[used], data.spec)
        return floats.astype(np.float64) / trained.spec.scale
    dim, members = trained.spec.dim, trained.members
    index, gains, offsets = (
        array_from_bytes(members[f"{name}.npy"], dtype, (dim,), name)
        for name, dtype in (("features", "int32"), ("gains", "float32"), ("offsets", "float32"))
    )
    return (data.features[used][:, index].astype(np.float64) - offsets) * gains


def _compare(name: str, before: np.ndarray, after: np.ndarray, positive: np.ndarray) -> Receipt:
    return {
        f"{name}_agreement": round(float(((before > 0) == (after > 0)).mean()), 4),
        f"{name}_auc_float": round(auc(before, positive), 4),
        f"{name}_auc_quantized": round(auc(after, positive), 4),
    }


def merged(receipts: list[Receipt]) -> Receipt:
    """Several folds' receipts as one: counts added up, shares averaged over the folds."""
    total: Receipt = {}
    for key in receipts[0] if receipts else ():
        numbers = [float(r[key]) for r in receipts]
        whole = key in ("inputs", "pairs")
        total[key] = int(sum(numbers)) if whole else round(sum(numbers) / len(numbers), 4)
    return total


def faithful(receipt: Receipt) -> bool:
    """Whether a quantized filter decides as its float network does, and ranks as well."""
    for name in ("skip", "reuse"):
        if f"{name}_agreement" not in receipt:
            continue
        lost = float(receipt[f"{name}_auc_float"]) - float(receipt[f"{name}_auc_quantized"])
        if float(receipt[f"{name}_agreement"]) < MIN_AGREEMENT or lost > MAX_AUC_LOSS:
            return False
    return True


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve (Mann-Whitney), ties counted half; 0.5 if one class is missing."""
    count, total = int(positive.sum()), len(scores)
    if count in (0, total):
        return 0.5
    _, inverse, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[inverse]
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (total - count)))
