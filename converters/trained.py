"""What training makes, whichever way it was trained."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass, field
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
    """mechanism: what to learn. steps, pairs: of training. precision: of the network.

    classifier: what reads |differences|. network: `small`, `recurrent` or InFi's own. aware: fine
    tune the network against its own quantization.
    """

    mechanism: Mechanism = "both"
    steps: int = 400
    pairs: int = 64
    learning_rate: float = 2e-3
    precision: Precision = "int8"
    seed: int = 0
    classifier: Literal["l1", "mlp"] = "l1"
    network: Literal["small", "recurrent", "infi"] = "small"
    aware: bool = False


@dataclass(frozen=True, slots=True)
class TrainedFilter:
    """A filter without its calibration: what a bundle's manifest and members will hold.

    siamese: the float networks behind it, for the receipt; None for a light filter.
    receipt: what quantization cost on inputs it never saw. notes: what a user should be told.
    settings: as it was trained in the end (precision may have changed).
    """

    spec: FilterSpec
    skip: SkipSpec | None
    reuse: ReuseSpec | None
    members: dict[str, bytes]
    siamese: Any = None
    receipt: dict[str, str | int | float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    settings: TrainSettings = TrainSettings()


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
