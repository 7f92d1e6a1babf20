"""The device's half of a partitioned model: from a picture to the features that are sent on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infi_edge.decoders import Fit, make_decoder, prepare, prepare_array
from infi_edge.errors import ConfigError
from infi_edge.interpreter import Network, TensorSpec
from infi_edge.workload import model_identity, to_frame


@dataclass(frozen=True, slots=True, eq=False)
class FeatureMap:
    """What a head makes of one input: an array as its output has it, without the batch.

    fit: where the picture lies in the whole model's input. NumPy reads it as the array.
    """

    array: np.ndarray
    fit: Fit

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.array if dtype is None else self.array.astype(dtype, copy=False)
        return array.copy() if copy else array


class Head:
    """head.tflite of `infi-convert split`. Not to be shared between threads."""

    def __init__(self, path: str | Path, decoder: str, threads: int = 1) -> None:
        """decoder: of the whole model; it knows how a picture becomes the model's input.

        Raises ExecutorError if it does not load, ConfigError if it is no head.
        """
        self.path, self.identity = str(path), model_identity(str(path))
        self._network = Network(path, threads)
        if len(self._network.inputs) != 1 or len(self._network.outputs) != 1:
            raise ConfigError(
                f"{path} is no head of a partitioned model: it has {len(self._network.inputs)} "
                f"inputs and {len(self._network.outputs)} outputs; make one with infi-convert split"
            )
        self._decoder = make_decoder(decoder, self._network.inputs)

    @property
    def input(self) -> TensorSpec:
        """The whole model's input."""
        return self._network.inputs[0]

    @property
    def output(self) -> TensorSpec:
        """The features, with the batch."""
        return self._network.outputs[0]

    def __call__(self, data: Any) -> FeatureMap:
        """Run on a picture (BGR frame or JPEG bytes), or on an array where the input is none.

        Raises SourceError if the picture cannot be decoded, ExecutorError if the network fails.
        """
        spec = self.input
        if len(spec.shape) == 4 and spec.shape[3] in (1, 3):
            tensor, fit = prepare(to_frame(data), spec, self._decoder)
        else:
            tensor, fit = prepare_array(data, spec), Fit()
        return FeatureMap(self._network.run(tensor)[0][0], fit)
