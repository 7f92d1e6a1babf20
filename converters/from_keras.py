"""A Keras filter that somebody trained elsewhere, as a bundle.

The bundle has no task and no thresholds: it lets everything through until it is calibrated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from converters import verify
from converters.crossfit import pass_through
from converters.keras_filter import KerasFilter
from converters.quantize import filter_to_tflite, to_tflite
from converters.scores import embedding_steps, pair_scores
from converters.train import input_order
from converters.trained import Precision, versions
from infi_edge.bundle import Bundle, FilterSpec, ReuseSpec, SkipSpec
from infi_edge.capture.replay import file_hash, files_hash
from infi_edge.errors import ConfigError
from infi_edge.filter import CLASSIFIER_ROWS, InputFilter
from infi_edge.interpreter import Network
from infi_edge.preprocess import (
    Spec,
)

PROBES = 64
HEADROOM = 1.25
MIN_HELD_OUT = 8
ENOUGH_HELD_OUT = 50


@dataclass(frozen=True, slots=True)
class Imported:
    """A bundle and what a user should be told of how it came about."""

    bundle: Bundle
    notes: tuple[str, ...]


def import_keras(
    wanted: KerasFilter,
    path: Path,
    modality: str,
    precision: Precision | None = None,
    calibration: np.ndarray | None = None,
) -> Imported:
    """Return a bundle of a Keras filter. path: the model's own.

    calibration: filter tensors (N, *spec.shape) for quantization; every fourth is held out for
    the receipt. precision None: int8 with calibration data, else float16.
    Raises ConfigError or BundleError.
    """
    notes = list(wanted.notes)
    if calibration is None:
        if precision == "int8":
            raise ConfigError(
                "--precision int8 needs --calibration-data: inputs like the real ones"
            )
        if precision is None:
            notes.append("no --calibration-data: the weights are kept as float16, not int8")
    chosen: Precision = precision or ("float16" if calibration is None else "int8")
    fitting, held_out = _split(calibration, wanted)
    tries: list[Precision] = [chosen] if chosen != "int8" else ["int8", "float16"]
    for number, attempt in enumerate(tries):
        try:
            bundle = _bundle(wanted, path, modality, attempt, fitting, calibration is not None)
        except ConfigError as error:
            if attempt == tries[-1]:
                raise
            notes.append(f"{error}; float16 is taken")
            continue
        receipt = _parity(wanted, bundle, held_out)
        agreement, auc = float(receipt["agreement"]), float(receipt["auc_of_float_median"])
        enough = agreement >= verify.MIN_AGREEMENT and auc >= 1.0 - verify.MAX_AUC_LOSS
        if enough or number == len(tries) - 1:
            break
        if np.ptp(wanted.outputs(held_out)) < 1e-6:
            notes.append("the float model says the same of all calibration data: give other inputs")
        notes.append(
            f"int8 agrees on {agreement:.4f} of decisions with the Keras model and ranks inputs as "
            f"it does with an AUC of {auc:.4f}: float16 is taken"
        )
    receipt |= {"precision": attempt} | verify.operators(bundle)
    if calibration is None:
        receipt["on"] = "made-up inputs"
    elif len(held_out) < ENOUGH_HELD_OUT:
        notes.append(f"{len(held_out)} held-out inputs are few to judge the quantization by")
    manifest = msgspec.structs.replace(
        bundle.manifest, parity=receipt, lowest_runtime=verify.check_runtimes(bundle)
    )
    return Imported(Bundle(manifest, bundle.members, ""), tuple(notes))


def _split(calibration: np.ndarray | None, wanted: KerasFilter) -> tuple[np.ndarray, np.ndarray]:
    if calibration is None:
        probes = _probes(wanted.spec, wanted.ids or 2)
        return probes, probes
    if len(calibration) < 4 * MIN_HELD_OUT:
        return calibration, calibration
    held_out = np.arange(len(calibration)) % 4 == 3
    return calibration[~held_out], calibration[held_out]


def _bundle(
    wanted: KerasFilter,
    path: Path,
    modality: str,
    precision: Precision,
    tensors: np.ndarray,
    real: bool,
) -> Bundle:
    members = {"filter.tflite": filter_to_tflite(wanted, wanted.spec, precision, tensors)}
    network = Network(members["filter.tflite"])
    output, order = network.outputs[0], input_order(network)
    skip = reuse = None
    spec = FilterSpec(
        kind="score",
        dim=1,
        scale=1.0,
        parameters=int(sum(np.prod(v.shape) for v in wanted.variables)),
        input_order=order if order != tuple(range(len(order))) else (),
    )
    if wanted.apart is None:
        skip = SkipSpec(weight=1.0, bias=0.0)
    else:
        if precision == "int8":
            scale, zero = output.scale, output.zero_point
        else:
            scale, zero = embedding_steps(wanted.outputs(tensors), 1.0 if real else HEADROOM)
        distance, bias = (scale, wanted.apart.bias) if wanted.is_l1 else (1.0, 0.0)
        if not wanted.is_l1:
            head = wanted.apart.head
            members["classifier.tflite"] = to_tflite(head, "float32", [], CLASSIFIER_ROWS)
        reuse = ReuseSpec(distance=distance, log_age=0.0, age=0.0, bias=bias)
        spec = msgspec.structs.replace(
            spec,
            kind="net",
            dim=output.shape[1],
            scale=scale,
            zero=zero,
            classifier="l1" if wanted.is_l1 else "mlp",
        )
    manifest = msgspec.structs.replace(
        pass_through(modality, wanted.spec, spec, skip, reuse),
        trained_on={"keras_model": path.name, "model_sha256": _model_hash(path)},
        versions=versions(),
    )
    return Bundle(manifest, members, path.stem)


def _parity(wanted: KerasFilter, bundle: Bundle, tensors: np.ndarray) -> verify.Receipt:
    """Compare with the float Keras model on inputs (N, *shape), or on pairs of them.

    Without labels its own scores are the measure: decisions at 0.5, and how well the quantized
    scores tell what lies above the float scores' median (AUC; the float model's is 1).
    """
    input_filter = InputFilter(bundle)
    results = [input_filter.embed_tensor(tensor[None]) for tensor in tensors]
    floats = wanted.outputs(tensors)
    if wanted.apart is None:
        before, after = floats[:, 0], np.array([score for score, _ in results])
    else:
        rng = np.random.default_rng(0)
        a, b = rng.integers(0, len(tensors), (2, max(len(tensors), 256)))
        before = wanted.p_changed(floats[a], floats[b])
        embeddings = np.stack([embedding for _, embedding in results])
        after = pair_scores(input_filter, embeddings[a], embeddings[b])
    gap = np.abs(before - after)
    return {
        "inputs": len(tensors),
        "decisions": len(before),
        "agreement": round(float(((before > 0.5) == (after > 0.5)).mean()), 4),
        "auc_of_float_median": round(verify.auc(after, before > np.median(before)), 4),
        "score_gap_mean": round(float(gap.mean()), 5),
        "score_gap_max": round(float(gap.max()), 5),
    }


def _probes(spec: Spec, ids: int) -> np.ndarray:
    """Made-up inputs, where there are no real ones, from nearly flat to noisy. ids: how many."""
    rng = np.random.default_rng(0)
    shape = (PROBES, *spec.shape)
    if spec.dtype == np.int32:
        return rng.integers(0, ids, shape).astype(np.int32)
    noise = rng.normal(0, 1, shape) * np.linspace(0.1, 3.0, PROBES).reshape(
        -1, *[1] * len(spec.shape)
    )
    if spec.dtype == np.uint8:
        levels = rng.uniform(0, 255, (PROBES, *[1] * len(spec.shape)))
        return np.clip(levels + 60 * noise, 0, 255).astype(np.uint8)
    return noise.astype(np.float32)


def _model_hash(path: Path) -> str:
    if path.is_file():
        return file_hash(path)
    return files_hash(sorted(p for p in path.rglob("*") if p.is_file()))
