"""The input filter: one pass from an input to a SKIP score and a uint8 embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from infi_edge.archive import array_from_bytes
from infi_edge.bundle import Bundle, Manifest, ReuseSpec, SkipSpec, read_bundle
from infi_edge.cache import CANDIDATES
from infi_edge.errors import BundleError, ExecutorError
from infi_edge.interpreter import Network, TensorSpec
from infi_edge.learn import ReuseHead, sigmoid
from infi_edge.preprocess import Spec

CLASSIFIER_ROWS = 2 * CANDIDATES


class Embedder(Protocol):
    """The feature network: filter tensor -> embedding and SKIP score."""

    def __call__(self, tensor: np.ndarray) -> tuple[float | None, np.ndarray]:
        """tensor: (1, *spec.shape). Returns (score or None, uint8 embedding (D,))."""


def quantize_embedding(steps: np.ndarray) -> np.ndarray:
    """Round embedding steps (float, zero point included) to uint8, clipped.

    Raises ValueError on a NaN.
    """
    if not np.isfinite(steps).all():
        raise ValueError("the filter's embedding is not a number")
    quantized: np.ndarray = np.clip(np.rint(steps), 0.0, 255.0).astype(np.uint8)
    return quantized


class _Input:
    """Turns filter tensors into what one input of a network takes."""

    def __init__(self, want: TensorSpec, spec: Spec) -> None:
        self._want = want
        self._low = np.float32(spec.span[0])
        self._step = np.float32((spec.span[1] - spec.span[0]) / 255)
        self._table: np.ndarray | None = None
        if spec.dtype == np.uint8:
            levels = np.arange(256, dtype=np.float32) * self._step + self._low
            self._table = self._quantized(levels) if want.scale else levels

    def __call__(self, tensor: np.ndarray) -> np.ndarray:
        if self._table is not None:
            return self._table[tensor]
        return self._quantized(tensor) if self._want.scale else tensor

    def _quantized(self, numbers: np.ndarray) -> np.ndarray:
        want = self._want
        limits = np.iinfo(want.dtype)
        steps = np.rint(numbers / np.float32(want.scale)) + want.zero_point
        quantized: np.ndarray = np.clip(steps, limits.min, limits.max).astype(want.dtype)
        return quantized

    @property
    def passes_through(self) -> bool:
        """Whether the tensor is what the network takes, as it is."""
        if self._table is None:
            return not self._want.scale
        return self._table.dtype == np.uint8 and bool((self._table == np.arange(256)).all())


class NetEmbedder:
    """A TFLite feature network (or, for kind `score`, a network whose one output is p(needed)).

    Its inputs are float32, int32 ids, or 8-bit with the scale the file says; its output is uint8
    steps, or floats to be rounded to them.
    """

    def __init__(self, bundle: Bundle, threads: int, runtime: str | None = None) -> None:
        manifest = bundle.manifest
        name, spec = bundle.name, manifest.preprocess
        self._network = _load(bundle, "filter.tflite", threads, runtime)
        self._spec: Spec = spec
        blank = spec.parts(np.zeros((1, *spec.shape), spec.dtype))
        self._order = manifest.filter.input_order or tuple(range(len(blank)))
        self._score = manifest.filter.kind == "score"
        dim = 1 if self._score else manifest.filter.dim
        inputs, outputs = self._network.inputs, self._network.outputs
        shapes = ([i.shape for i in inputs], [o.shape for o in outputs])
        if len(self._order) != len(blank) or shapes != (
            [blank[i].shape for i in self._order],
            [(1, dim)],
        ):
            raise BundleError(
                f"{name} is damaged: its network maps {shapes[0]} to {shapes[1]}, "
                f"not {manifest.modality} of {spec.shape} to {dim} numbers"
            )
        types = ("int32",) if spec.dtype == np.int32 else ("uint8", "int8", "float32")
        if any(i.dtype.name not in types for i in inputs) or outputs[0].dtype.name not in (
            "uint8",
            "float32",
        ):
            kinds = ([i.dtype.name for i in inputs], outputs[0].dtype.name)
            raise BundleError(f"{name} is damaged: its network maps {kinds[0]} to {kinds[1]}")
        prepared = [_Input(want, spec) for want in inputs]
        self._prepare = None if all(p.passes_through for p in prepared) else prepared
        self._output = outputs[0]
        self._step, self._zero = np.float32(manifest.filter.scale), manifest.filter.zero
        self._skip = manifest.skip
        self.classifier = (
            Classifier(bundle, threads, runtime) if manifest.filter.classifier == "mlp" else None
        )

    @property
    def is_quantized(self) -> bool:
        """Whether the network rounds its own output to uint8."""
        return bool(self._output.dtype == np.uint8)

    def output(self, tensor: np.ndarray) -> np.ndarray:
        """Return the network's own output (D,) for a filter tensor, before any rounding."""
        parts = self._spec.parts(tensor)
        given = [parts[i] for i in self._order]
        if self._prepare is not None:
            given = [prepare(part) for prepare, part in zip(self._prepare, given, strict=True)]
        return self._network.run(*given)[0][0]

    def __call__(self, tensor: np.ndarray) -> tuple[float | None, np.ndarray]:
        output = self.output(tensor)
        if self._score:
            return self._probability(output), np.zeros(1, np.uint8)
        if output.dtype == np.uint8:
            embedding = output
        else:
            embedding = quantize_embedding(output / self._step + self._zero)
        skip = self._skip
        return (None if skip is None else sigmoid(self._z(embedding, skip))), embedding

    def _z(self, embedding: np.ndarray, skip: SkipSpec) -> float:
        """The SKIP head's logit, on the distance to the zero embedding (InFi, 4.1)."""
        steps = np.abs(embedding.astype(np.int64) - self._zero)
        if self.classifier is None:
            return skip.weight * int(steps.sum()) + skip.bias
        return skip.weight * float(self.classifier(steps.astype(np.uint8)[None])[0]) + skip.bias

    def _probability(self, output: np.ndarray) -> float:
        value = float(output[0])
        if self._output.scale:
            value = (value - self._output.zero_point) * self._output.scale
        if not np.isfinite(value):
            raise ValueError("the filter's score is not a number")
        return min(max(value, 0.0), 1.0)


class Classifier:
    """A learned reading of |differences|: the multi-layer perceptron of InFi's own design (5.2)."""

    def __init__(self, bundle: Bundle, threads: int, runtime: str | None = None) -> None:
        self._network = _load(bundle, "classifier.tflite", threads, runtime)
        dim = bundle.manifest.filter.dim
        found = [*self._network.inputs, *self._network.outputs]
        if [(t.shape, t.dtype.name) for t in found] != [
            ((CLASSIFIER_ROWS, dim), "float32"),
            ((CLASSIFIER_ROWS, 1), "float32"),
        ]:
            raise BundleError(f"{bundle.name} is damaged: its classifier has another shape")
        self._step = np.float32(bundle.manifest.filter.scale)
        self._rows = np.zeros((CLASSIFIER_ROWS, dim), np.float32)

    def __call__(self, differences: np.ndarray) -> np.ndarray:
        """Return logits (C,) of uint8 |differences| (C, D), C up to 64."""
        count = len(differences)
        np.multiply(differences, self._step, out=self._rows[:count])
        return self._network.run(self._rows)[0][:count, 0]


class LightEmbedder:
    """Fixed features times learned gains; SKIP is a logistic regression on the same features."""

    classifier = None

    def __init__(self, bundle: Bundle) -> None:
        dim, members = bundle.manifest.filter.dim, bundle.members
        self._spec: Spec = bundle.manifest.preprocess
        count = self._spec.feature_count

        def array(name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
            return array_from_bytes(members[name], dtype, shape, f"{bundle.name}: {name}")

        self._features = array("features.npy", "int32", (dim,))
        if self._features.min() < 0 or self._features.max() >= count:
            raise BundleError(f"{bundle.name} is damaged: features.npy names unknown features")
        self._gains = array("gains.npy", "float32", (dim,))
        offsets = np.zeros(dim, np.float32)
        if "offsets.npy" in members:
            offsets = array("offsets.npy", "float32", (dim,))
        has_skip = bundle.manifest.skip is not None
        self._skip = array("skip.npy", "float32", (count + 1,)) if has_skip else None
        numbers = [self._gains, offsets, *([] if self._skip is None else [self._skip])]
        if not all(np.isfinite(n).all() for n in numbers) or self._gains.min() < 0:
            raise BundleError(f"{bundle.name} is damaged: its gains or weights are impossible")
        self._offsets = offsets
        self._shift = -offsets * self._gains

    def __call__(self, tensor: np.ndarray) -> tuple[float | None, np.ndarray]:
        features = self._spec.features(tensor)
        embedding = quantize_embedding(features[self._features] * self._gains + self._shift)
        return self.score(features), embedding

    def score(self, features: np.ndarray) -> float | None:
        """Return the SKIP score of features float32 (F,); None without a SKIP head."""
        if self._skip is None:
            return None
        return sigmoid(float(self._skip[:-1] @ features + self._skip[-1]))

    @property
    def scale(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which features it uses, int32 (D,), and steps = (feature - offset) * gain: gains and
        offsets, float32 (D,)."""
        return self._features, self._gains, self._offsets


def _load(bundle: Bundle, member: str, threads: int, runtime: str | None) -> Network:
    try:
        return Network(bundle.members[member], threads, runtime)
    except ExecutorError as error:
        raise BundleError(f"{bundle.name}: the filter cannot be loaded: {error}") from error


class InputFilter:
    """A loaded filter bundle. Not to be shared between threads."""

    def __init__(self, bundle: Bundle, threads: int = 1, runtime: str | None = None) -> None:
        """runtime: as for `Network`. Raises BundleError if the members are not the manifest's."""
        self.manifest: Manifest = bundle.manifest
        self.name = bundle.name
        self.spec: Spec = bundle.manifest.preprocess
        self.embedder: NetEmbedder | LightEmbedder = (
            LightEmbedder(bundle)
            if bundle.manifest.filter.kind == "light"
            else NetEmbedder(bundle, threads, runtime)
        )
        reuse: ReuseSpec | None = bundle.manifest.reuse
        self.head = (
            ReuseHead(
                reuse.distance, reuse.log_age, reuse.age, reuse.bias, self.embedder.classifier
            )
            if reuse
            else None
        )

    def __call__(self, data: Any) -> tuple[float | None, np.ndarray]:
        """Return (SKIP score 0..1 or None, embedding uint8 (D,)) of an input of the modality.

        Raises ValueError if it is of another kind or the embedding is not a number.
        """
        return self.embedder(self.spec.tensor(data))

    def embed_tensor(self, tensor: np.ndarray) -> tuple[float | None, np.ndarray]:
        """The same for a tensor that the specification's `tensor` has made."""
        return self.embedder(tensor)


def load_filter(path: str | Path, threads: int = 1) -> InputFilter:
    """Read, verify and load a filter bundle. Raises BundleError."""
    return InputFilter(read_bundle(path), threads)
