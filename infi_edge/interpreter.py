"""Load a .tflite on whichever TFLite runtime is here; the only file that imports one."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from infi_edge.errors import ConfigError, ExecutorError

RUNTIMES = {"ai_edge_litert": "ai-edge-litert", "tflite_runtime": "tflite-runtime"}
"""Import name -> distribution name, in order of preference."""


def found_runtimes() -> dict[str, str]:
    """Return the runtimes that import here, as {import name: version}."""
    found = {}
    for name, distribution in RUNTIMES.items():
        try:
            importlib.import_module(f"{name}.interpreter")
            found[name] = importlib.metadata.version(distribution)
        except (ImportError, AttributeError):  # AttributeError: built for NumPy 1, NumPy 2 here
            continue
    return found


def _runtime(forced: str | None) -> ModuleType:
    forced = forced or os.environ.get("INFI_EDGE_RUNTIME")
    if forced and forced not in RUNTIMES:
        raise ConfigError(
            f"TFLite runtime {forced!r} is unknown; set INFI_EDGE_RUNTIME to one of "
            f"{', '.join(RUNTIMES)}"
        )
    for name in [forced] if forced else RUNTIMES:
        try:
            return importlib.import_module(f"{name}.interpreter")
        except (ImportError, AttributeError):
            continue
    wanted = RUNTIMES[forced] if forced else "ai-edge-litert"
    raise ExecutorError(
        f"no TFLite runtime can be imported; install one with 'pip install {wanted}'"
    )


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a network. Real value = (stored - zero_point) * scale; scale 0 = unquantized."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scale: float
    zero_point: int


class Network:
    """One interpreter over one .tflite file; not to be shared between threads."""

    def __init__(
        self, model: str | Path | bytes, threads: int = 1, runtime: str | None = None
    ) -> None:
        """Load. model: a path or the file's bytes. threads: CPU threads.

        runtime: an import name of RUNTIMES; default: $INFI_EDGE_RUNTIME, else the first found.
        Raises ExecutorError if the file is missing, no TFLite model, or needs what no runtime has.
        """
        if isinstance(model, bytes):
            name, content = "the network", model
        else:
            name = str(model)
            try:
                content = Path(model).read_bytes()
            except OSError as error:
                raise ExecutorError(f"{name} cannot be read: {error.strerror or error}") from error
        if content[4:8] != b"TFL3":
            raise ExecutorError(f"{name} is not a TFLite model; give a .tflite file")
        module = _runtime(runtime)
        try:
            self._interpreter = module.Interpreter(model_content=content, num_threads=threads)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise ExecutorError(
                f"{name} does not load in {module.__name__}: {reason}; "
                "a newer runtime or a model exported for an older one is needed"
            ) from error
        self.inputs = [_spec(d) for d in self._interpreter.get_input_details()]
        self.outputs = [_spec(d) for d in self._interpreter.get_output_details()]
        self._input_ids = [d["index"] for d in self._interpreter.get_input_details()]
        self._output_ids = [d["index"] for d in self._interpreter.get_output_details()]

    def run(self, *tensors: np.ndarray) -> list[np.ndarray]:
        """Run once. tensors: one per input, of its exact shape and dtype. Returns copies.

        Raises ExecutorError if a tensor does not fit or the network fails.
        """
        try:
            for index, tensor in zip(self._input_ids, tensors, strict=True):
                self._interpreter.set_tensor(index, tensor)
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise ExecutorError(f"the network failed: {str(error).strip()[:200]}") from error
        return [self._interpreter.get_tensor(index) for index in self._output_ids]


def _spec(detail: dict[str, Any]) -> TensorSpec:
    scale, zero_point = detail["quantization"]
    shape = tuple(int(n) for n in detail["shape"])
    return TensorSpec(
        detail["name"], shape, np.dtype(detail["dtype"]), float(scale), int(zero_point)
    )
