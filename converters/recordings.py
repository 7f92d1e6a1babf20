"""A recording as training data: filter tensors, times, and the model's answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infi_edge.capture.replay import Recording
from infi_edge.errors import SourceError
from infi_edge.features import image_features
from infi_edge.labels import Progress
from infi_edge.preprocess import ImageSpec, image_tensor
from infi_edge.replay import Truth

Stretches = list[tuple[int, int]]
"""Half-open index ranges in stream order."""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """tensors: RGB uint8 (N, H, W, 3). features: float32 (N, F). truth: over the same N inputs."""

    tensors: np.ndarray
    features: np.ndarray
    truth: Truth
    spec: ImageSpec

    def __len__(self) -> int:
        return len(self.tensors)


def load_training_data(
    recording: Recording,
    truth: Truth,
    first: int,
    last: int,
    spec: ImageSpec,
    progress: Progress | None = None,
) -> TrainingData:
    """Read inputs first..last-1 through the device's own preprocessing. Raises SourceError."""
    tensors = np.empty((last - first, spec.height, spec.width, 3), np.uint8)
    done = 0
    for sample in recording.samples(first, last):
        tensors[done] = image_tensor(sample.data, spec)[0]
        done += 1
        if progress is not None:
            progress(done, last - first)
    if done != last - first:
        raise SourceError(f"{recording.name} ends at input {first + done}; use a smaller --end")
    features = np.stack([image_features(tensor[None]) for tensor in tensors])
    return TrainingData(tensors, features, truth, spec)
