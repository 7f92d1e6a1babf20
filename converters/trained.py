"""What training makes, whichever way it was trained."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from converters.recordings import Stretches
from infi_edge.bundle import FilterSpec, ReuseSpec, SkipSpec
from infi_edge.errors import InfiEdgeError

Precision = Literal["int8", "float16", "float32"]
Mechanism = Literal["both", "skip", "reuse"]
Kind = Literal["net", "light"]


class DeadFilterError(InfiEdgeError):
    """Training ended with an embedding that is zero for every input."""


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """mechanism: what to learn. steps, pairs: of training. precision: of the network."""

    mechanism: Mechanism = "both"
    steps: int = 400
    pairs: int = 64
    learning_rate: float = 2e-3
    precision: Precision = "int8"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TrainedFilter:
    """A filter without its calibration: what a bundle's manifest and members will hold.

    model: the float Keras network behind it, for the parity report; None for a light filter.
    """

    spec: FilterSpec
    skip: SkipSpec | None
    reuse: ReuseSpec | None
    members: dict[str, bytes]
    model: Any = None


def indices(stretches: Stretches) -> np.ndarray:
    """Return all indices of the stretches, in order."""
    return np.concatenate([np.arange(first, last) for first, last in stretches])


def versions() -> dict[str, str]:
    """What made a filter: Python and the packages that matter."""
    packages = ("infi-edge", "tensorflow", "keras", "numpy")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "source"
    return found
