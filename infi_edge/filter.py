"""The input filter: one pass from an input to a SKIP score and a uint8 embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from infi_edge.archive import array_from_bytes
from infi_edge.bundle import Bundle, Manifest, read_bundle
from infi_edge.errors import BundleError, ExecutorError
from infi_edge.features import IMAGE_FEATURES, image_features
from infi_edge.interpreter import Network
from infi_edge.learn import ReuseHead, sigmoid
from infi_edge.preprocess import image_tensor
from infi_edge.types import Image


class Embedder(Protocol):
    """The feature network: filter tensor -> embedding and SKIP score."""

    def __call__(self, tensor: np.ndarray) -> tuple[float | None, np.ndarray]:
        """tensor: RGB uint8 (1, H, W, 3). Returns (score or None, uint8 embedding (D,))."""


def quantize_embedding(values: np.ndarray) -> np.ndarray:
    """Round embedding steps (float, >= 0) to uint8, clipped. Raises ValueError on a NaN."""
    if not np.isfinite(values).all():
        raise ValueError("the filter's embedding is not a number")
    quantized: np.ndarray = np.minimum(np.rint(values), 255.0).astype(np.uint8)
    return quantized


def skip_score(weight: float, bias: float, embedding: np.ndarray) -> float:
    """The SKIP head on d(x, 0): sigmoid(weight * sum(e) + bias) (InFi, MobiCom 2022, 4.1)."""
    return sigmoid(weight * int(embedding.sum(dtype=np.int64)) + bias)


class NetEmbedder:
    """A TFLite feature network; its output is uint8 steps, or floats to be rounded to them."""

    def __init__(self, bundle: Bundle, threads: int, runtime: str | None = None) -> None:
        manifest = bundle.manifest
        try:
            self._network = Network(bundle.members["filter.tflite"], threads, runtime)
        except ExecutorError as error:
            raise BundleError(f"{bundle.name}: the filter cannot be loaded: {error}") from error
        size, dim = manifest.preprocess, manifest.filter.dim
        inputs, outputs = self._network.inputs, self._network.outputs
        shapes = ([i.shape for i in inputs], [o.shape for o in outputs])
        if shapes != ([(1, size.height, size.width, 3)], [(1, dim)]):
            raise BundleError(
                f"{bundle.name} is damaged: its network maps {shapes[0]} to {shapes[1]}, "
                f"not a {size.width}x{size.height} image to {dim} numbers"
            )
        kinds = (inputs[0].dtype.name, outputs[0].dtype.name)
        if kinds not in (("uint8", "uint8"), ("float32", "float32")):
            raise BundleError(
                f"{bundle.name} is damaged: its network maps {kinds[0]} to {kinds[1]}"
            )
        self._float = kinds[0] == "float32"
        self._step = np.float32(manifest.filter.scale)
        self._skip = manifest.skip

    def __call__(self, tensor: np.ndarray) -> tuple[float | None, np.ndarray]:
        output = self._network.run(tensor.astype(np.float32) if self._float else tensor)[0][0]
        embedding = quantize_embedding(output / self._step) if self._float else output
        skip = self._skip
        score = skip_score(skip.weight, skip.bias, embedding) if skip is not None else None
        return score, embedding


class LightEmbedder:
    """Fixed features times learned gains; SKIP is a logistic regression on the same features."""

    def __init__(self, bundle: Bundle) -> None:
        dim, members = bundle.manifest.filter.dim, bundle.members

        def array(name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
            return array_from_bytes(members[name], dtype, shape, f"{bundle.name}: {name}")

        self._features = array("features.npy", "int32", (dim,))
        if self._features.min() < 0 or self._features.max() >= IMAGE_FEATURES:
            raise BundleError(f"{bundle.name} is damaged: features.npy names unknown features")
        self._gains = array("gains.npy", "float32", (dim,))
        has_skip = bundle.manifest.skip is not None
        self._skip = array("skip.npy", "float32", (IMAGE_FEATURES + 1,)) if has_skip else None
        numbers = [self._gains] if self._skip is None else [self._gains, self._skip]
        if not all(np.isfinite(n).all() for n in numbers) or self._gains.min() < 0:
            raise BundleError(f"{bundle.name} is damaged: its gains or weights are impossible")

    def __call__(self, tensor: np.ndarray) -> tuple[float | None, np.ndarray]:
        features = image_features(tensor)
        embedding = quantize_embedding(features[self._features] * self._gains)
        if self._skip is None:
            return None, embedding
        z = float(self._skip[:-1] @ features + self._skip[-1])
        return sigmoid(z), embedding


class InputFilter:
    """A loaded filter bundle. Not to be shared between threads."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        """Raises BundleError if the members are not what the manifest says."""
        self.manifest: Manifest = bundle.manifest
        self.name = bundle.name
        self._spec = bundle.manifest.preprocess
        self._embed: Embedder = (
            NetEmbedder(bundle, threads)
            if bundle.manifest.filter.kind == "net"
            else LightEmbedder(bundle)
        )
        reuse = bundle.manifest.reuse
        self.head = (
            ReuseHead(reuse.distance, reuse.log_age, reuse.age, reuse.bias) if reuse else None
        )

    def __call__(self, data: Image) -> tuple[float | None, np.ndarray]:
        """Return (SKIP score 0..1 or None, embedding uint8 (D,)) of a BGR frame or JPEG bytes.

        Raises ValueError if the input is no image or the embedding is not a number.
        """
        return self._embed(image_tensor(data, self._spec))

    def embed_tensor(self, tensor: np.ndarray) -> tuple[float | None, np.ndarray]:
        """The same for a tensor that `preprocess.image_tensor` has made."""
        return self._embed(tensor)


def load_filter(path: str | Path, threads: int = 1) -> InputFilter:
    """Read, verify and load a filter bundle. Raises BundleError."""
    return InputFilter(read_bundle(path), threads)
