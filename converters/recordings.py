"""A recording as training data: filter tensors, times, and the model's answers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from infi_edge.capture.replay import Recording
from infi_edge.errors import ConfigError, SourceError
from infi_edge.labels import Progress
from infi_edge.preprocess import Spec
from infi_edge.replay import Truth

Stretches = list[tuple[int, int]]
"""Half-open index ranges in stream order."""

FITTED_ON = 256
SAMPLED = (
    "these are the inputs that a learning gate has inferred, no even share of its stream: what the "
    "table expects is an estimate; see what the bundle does with infi-edge evaluate on a recording "
    "of everything, or hold the target with infi-edge run --learn"
)


@dataclass(frozen=True, slots=True)
class TrainingData:
    """tensors: (N, *spec.shape). features: float32 (N, F). truth: over the same N inputs."""

    tensors: np.ndarray
    features: np.ndarray
    truth: Truth
    spec: Spec
    modality: str = "image"

    def __len__(self) -> int:
        return len(self.tensors)

    def first(self, count: int) -> TrainingData:
        """The first `count` inputs alone."""
        return replace(
            self,
            tensors=self.tensors[:count],
            features=self.features[:count],
            truth=self.truth.cut(0, count),
        )


def fit_spec(recording: Recording, first: int, last: int, spec: Spec) -> Spec:
    """Return the specification with its scales learned from up to 256 inputs of this part.

    Raises ConfigError if they tell nothing apart, SourceError if one is bad.
    """
    if type(spec).fitted is Spec.fitted:
        return spec
    every = -(-(last - first) // FITTED_ON)
    windows = [s.data for s in recording.samples(first, last) if (s.index - first) % every == 0]
    try:
        return spec.fitted(windows)
    except ValueError as error:
        raise ConfigError(f"{recording.name}: {error}") from error


def check_first(recording: Recording, first: int, spec: Spec) -> None:
    """Raise SourceError if the first input is not what the specification takes.

    Asked before an expensive model labels a recording that no filter could read.
    """
    for sample in recording.samples(first, first + 1):
        try:
            spec.tensor(sample.data)
        except ValueError as error:
            raise SourceError(f"{sample.source}, input {sample.index}: {error}") from error


def load_training_data(
    recording: Recording,
    truth: Truth,
    first: int,
    last: int,
    spec: Spec,
    progress: Progress | None = None,
    modality: str = "image",
) -> TrainingData:
    """Read inputs first..last-1 through the device's own preprocessing.

    Raises SourceError naming the input that is bad, or where the recording ends.
    """
    tensors = np.empty((last - first, *spec.shape), spec.dtype)
    done = 0
    for sample in recording.samples(first, last):
        try:
            tensors[done] = spec.tensor(sample.data)[0]
        except ValueError as error:
            where = f"{sample.source}, input {sample.index}"
            raise SourceError(f"{where}: {error}; remove or mend it") from error
        done += 1
        if progress is not None:
            progress(done, last - first)
    if done != last - first:
        raise SourceError(f"{recording.name} ends at input {first + done}; use a smaller --end")
    features = np.stack([spec.features(tensor[None]) for tensor in tensors])
    return TrainingData(tensors, features, truth, spec, modality)
