"""Inputs that lie in a file, as filter tensors: what scores are computed and compared on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from infi_edge.capture.recordings import ARRAYS, open_recording
from infi_edge.capture.windows import load_arrays
from infi_edge.errors import ConfigError, SourceError
from infi_edge.preprocess import ImageSpec, Spec, VideoSpec

MOST = 2000


def read_sides(path: Path, spec: Spec, pairs: bool) -> list[np.ndarray]:
    """Return the arrays (N, ...) of a .npz or .npy: one of inputs, or two of pairs.

    An array `pairs` (N, 2, ...) counts as two; one array a frame makes up the clips of a video.
    Nothing is unpickled. Raises SourceError.
    """
    arrays = load_arrays(path)
    found = list(arrays.values())
    if any(a.ndim == 0 for a in found) or len({len(a) for a in found}) != 1:
        sizes = ", ".join(f"{name} {a.shape}" for name, a in arrays.items()) or "nothing"
        raise SourceError(f"{path} holds {sizes}; give arrays whose first axis is the inputs")
    if pairs and list(arrays) == ["pairs"] and found[0].ndim > 1 and found[0].shape[1] == 2:
        return [found[0][:, 0], found[0][:, 1]]
    sides = 2 if pairs else 1
    if isinstance(spec, VideoSpec) and len(found) == sides * spec.frames > sides:
        return [
            np.stack(found[i * spec.frames : (i + 1) * spec.frames], axis=1) for i in range(sides)
        ]
    if len(found) != sides:
        wanted = "two arrays, the inputs of each pair" if pairs else "one array of inputs"
        raise SourceError(f"{path} holds {', '.join(arrays) or 'nothing'}; give {wanted}")
    return found


def stored_tensors(array: np.ndarray, spec: Spec, name: str) -> np.ndarray:
    """Return filter tensors (N, *spec.shape) of inputs as a Keras model takes them.

    array: (N, ...) of the filter's own shape in the network's units, e.g. pictures 0..1; or what
    the specification turns into a tensor, pictures uint8 in the network's own order of colours.
    Raises SourceError.
    """
    if array.dtype.kind not in "biuf":
        raise SourceError(f"{name} holds {array.dtype}; inputs are numbers")
    tensors = np.empty((len(array), *spec.shape), spec.dtype)
    for i, row in enumerate(array):
        try:
            tensors[i] = _tensor(row, spec)
        except ValueError as error:
            raise SourceError(f"{name}, input {i}: {error}") from error
    return tensors


def _tensor(row: np.ndarray, spec: Spec) -> np.ndarray:
    fits = row.size == int(np.prod(spec.shape))
    if spec.dtype == np.uint8 and row.dtype.kind == "f" and fits:
        if not np.isfinite(row).all():
            raise ValueError("a value that is not a number")
        low, high = spec.span
        slack = 0.02 * (high - low)
        if row.min() < low - slack or row.max() > high + slack:
            raise ValueError(
                f"values from {row.min():g} to {row.max():g}, where the filter takes {low:g} to "
                f"{high:g}; scale them, or convert with --preprocess low=... high=..."
            )
        levels = (row.reshape(spec.shape).astype(np.float32) - low) * (255.0 / (high - low))
        clipped: np.ndarray = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
        return clipped
    if isinstance(spec, (ImageSpec, VideoSpec)) and row.dtype == np.uint8:
        if row.ndim > 2 and row.shape[-1] == 3 and getattr(spec, "order", "RGB") == "RGB":
            row = np.ascontiguousarray(row[..., ::-1])
        return (spec.tensor(list(row)) if isinstance(spec, VideoSpec) else spec.tensor(row))[0]
    if spec.dtype != np.uint8 and fits:
        row = row.reshape(spec.shape)
        if spec.dtype == np.int32:
            row = row.astype(np.int32)
    return spec.tensor(row)[0]


def calibration_tensors(path: Path, spec: Spec) -> np.ndarray:
    """Return up to 2,000 filter tensors, spread evenly, of an array file or a recording.

    Raises SourceError or ConfigError.
    """
    if path.suffix.lower() in ARRAYS:
        try:
            array = read_sides(path, spec, pairs=False)[0]
        except SourceError:
            array = np.concatenate(read_sides(path, spec, pairs=True))
        if len(array) == 0:
            raise SourceError(f"{path} is empty")
        return stored_tensors(array[_spread(len(array))], spec, str(path))
    recording = open_recording(str(path), None, spec)
    chosen = set(_spread(recording.count).tolist())
    tensors = []
    for sample in recording.samples():
        if sample.index in chosen:
            try:
                tensors.append(spec.tensor(sample.data)[0])
            except ValueError as error:
                raise SourceError(f"{sample.source}, input {sample.index}: {error}") from error
    if not tensors:
        raise ConfigError(f"{path} holds no input")
    return np.stack(tensors)


def _spread(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, MOST)).astype(int))
