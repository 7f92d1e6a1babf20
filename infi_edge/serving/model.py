"""A .tflite file behind the Open Inference Protocol (v2): what it declares, takes and answers."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from infi_edge.decoders import Decoder, dequantize, make_decoder, prepare
from infi_edge.errors import ConfigError, ExecutorError, SourceError
from infi_edge.executors.link import DATATYPES, FIT, PLATFORM, SCALE, RemoteTensor
from infi_edge.interpreter import Network, TensorSpec
from infi_edge.serving.request import (
    Given,
    RequestError,
    picture_bytes,
    picture_size,
    tensor_values,
)
from infi_edge.workload import to_frame

IMAGE = "image"
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


class ServingOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a file is served.

    input: `tensor`: the network's own inputs. `jpeg`: one encoded picture. `features`: what the
    head of a partitioned model sends. decoder: of `jpeg`; how a picture becomes the network's
    input, as in `--decoder`. features: of a float network; `int8` steps with their scale, or
    `float32`. raw_outputs: quantized outputs as they are, instead of real numbers. threads: CPU
    threads of an inference. max_pixels: of a picture; larger ones are refused undecoded.
    """

    input: Literal["tensor", "jpeg", "features"] = "tensor"
    decoder: str = ""
    features: Literal["int8", "float32"] = "int8"
    raw_outputs: bool = False
    threads: int = 1
    max_pixels: int = 25_000_000


def serving_options(given: Any, strict: bool = True) -> ServingOptions:
    """Return options of a decoded JSON object. strict False: of texts, which may say numbers.

    Raises ConfigError.
    """
    try:
        options = msgspec.convert(given, ServingOptions, strict=strict)
    except msgspec.ValidationError as error:
        raise ConfigError(f"the model's parameters: {error}") from error
    if options.threads < 1 or options.max_pixels < 1:
        raise ConfigError("the model's parameters: threads and max_pixels are 1 or more")
    if (options.input == "jpeg") != bool(options.decoder):
        raise ConfigError(
            'the model\'s parameters: "decoder" goes with "input": "jpeg"; '
            'it says how a picture is prepared, as in "decoder": "yolov5"'
        )
    return options


class ServedModel:
    """One .tflite file, for any number of threads; the network runs for one at a time.

    inputs, outputs: as declared to clients. platform: tells which file it is, by its SHA-256.
    """

    def __init__(self, path: str | Path, options: ServingOptions) -> None:
        """Load it, and run it once. Raises ExecutorError or ConfigError if it cannot be served."""
        self.options = options
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise ExecutorError(f"{path} cannot be read: {error.strerror or error}") from error
        self.platform = PLATFORM + hashlib.sha256(content).hexdigest()
        self._network = Network(path, options.threads)
        self._lock = threading.Lock()
        self._decoder: Decoder | None = None
        if options.input == "jpeg":
            self._decoder = make_decoder(options.decoder, self._network.inputs)
        self.inputs = self._declared_inputs(str(path))
        self.outputs = self._declared_outputs()

    def infer(
        self, inputs: Sequence[Given], wanted: Iterable[str] | None = None
    ) -> list[tuple[RemoteTensor, np.ndarray]]:
        """Answer one request: outputs in their declared order, those in `wanted` or all.

        Raises RequestError if the request does not fit, ExecutorError if the network fails.
        """
        given = self._by_name(inputs)
        names = [tensor.name for tensor in self.outputs]
        chosen = set(names if wanted is None else wanted)
        unknown = chosen - set(names)
        if unknown:
            raise RequestError(
                f"there is no output {min(unknown)[:100]!r}; the outputs are {', '.join(names)}"
            )
        tensors, fit = self._tensors(given)
        with self._lock:
            outputs = self._network.run(*tensors)
        answered = self._readable(outputs)
        if fit is not None:
            answered.append(fit)
        pairs = zip(self.outputs, answered, strict=True)
        return [(tensor, array) for tensor, array in pairs if tensor.name in chosen]

    # What it declares.

    def _declared_inputs(self, path: str) -> tuple[RemoteTensor, ...]:
        specs = self._network.inputs
        declared = _declared(specs, [SCALE] if self.options.input == "features" else [])
        if self.options.input == "tensor":
            return declared
        if len(specs) != 1:
            raise ConfigError(
                f'{path} has {len(specs)} inputs; "input": "{self.options.input}" needs one'
            )
        if self.options.input == "jpeg":
            assert self._decoder is not None
            prepare(np.zeros((1, 1, 3), np.uint8), specs[0], self._decoder)
            return (RemoteTensor(IMAGE, "BYTES", (1,)),)
        is_float = specs[0].dtype == np.float32
        if self.options.features == "float32":
            if not is_float:
                raise ConfigError(
                    f'{path} takes {specs[0].dtype} features; leave "features": "float32" out'
                )
            return declared
        if not is_float:
            return declared
        (tensor,) = declared
        return RemoteTensor(tensor.name, "INT8", tensor.shape), RemoteTensor(SCALE, "FP32", (2,))

    def _declared_outputs(self) -> tuple[RemoteTensor, ...]:
        """What a first run answers; a size that differs from the file's is any size."""
        zeros = [np.zeros(spec.shape, spec.dtype) for spec in self._network.inputs]
        specs = self._network.outputs
        declared = _declared(specs, [FIT] if self._decoder is not None else [])
        answered = []
        for tensor, spec, array in zip(
            declared, specs, self._readable(self._network.run(*zeros)), strict=True
        ):
            shape = tuple(-1 if spec.shape != array.shape else n for n in array.shape)
            answered.append(RemoteTensor(tensor.name, _datatype(array.dtype, spec.name), shape))
        if self._decoder is not None:
            answered.append(RemoteTensor(FIT, "FP32", (6,)))
        return tuple(answered)

    # One request.

    def _by_name(self, inputs: Sequence[Given]) -> dict[str, Given]:
        given = {one.name: one for one in inputs}
        takes = {tensor.name for tensor in self.inputs}
        if given.keys() != takes or len(given) != len(inputs):
            told = ", ".join(one.name[:100] for one in inputs) or "nothing"
            raise RequestError(f"the request gives {told}; {self._takes()}")
        return given

    def _takes(self) -> str:
        return "the model takes " + ", ".join(
            f"{t.name} {t.datatype} {list(t.shape)}" for t in self.inputs
        )

    def _tensors(self, given: dict[str, Given]) -> tuple[list[np.ndarray], np.ndarray | None]:
        """The network's inputs, and what is answered as `fit`."""
        if self._decoder is not None:
            return self._picture(picture_bytes(given[IMAGE]))
        arrays = [tensor_values(given[tensor.name], tensor) for tensor in self.inputs]
        if len(arrays) > len(self._network.inputs):
            arrays = [_real(*arrays)]
        return arrays, None

    def _picture(self, content: bytes) -> tuple[list[np.ndarray], np.ndarray]:
        assert self._decoder is not None
        spec = self._network.inputs[0]
        _check_size(content, self.options.max_pixels)
        try:
            tensor, fit = prepare(to_frame(content), spec, self._decoder)
        except SourceError as error:
            raise RequestError(f"{IMAGE}: {error}") from error
        numbers = (fit.scale_x, fit.scale_y, fit.offset_x, fit.offset_y, *spec.shape[2:0:-1])
        return [tensor], np.array(numbers, np.float32)

    def _readable(self, outputs: list[np.ndarray]) -> list[np.ndarray]:
        if self.options.raw_outputs:
            return outputs
        return dequantize(outputs, self._network.outputs)


def _declared(specs: Sequence[TensorSpec], taken: Sequence[str]) -> tuple[RemoteTensor, ...]:
    """Tensors as the file has them; names made unique, as the protocol tells by name."""
    names, declared = set(taken), []
    for spec in specs:
        first = spec.name or "tensor"
        name, count = first, 1
        while name in names:
            name, count = f"{first}_{count}", count + 1
        names.add(name)
        declared.append(RemoteTensor(name, _datatype(spec.dtype, spec.name), spec.shape))
    return tuple(declared)


def _datatype(dtype: np.dtype[Any], name: str) -> str:
    datatype = _NAMES.get(np.dtype(dtype))
    if datatype is None:
        raise ConfigError(f"tensor {name} has type {dtype}, which the protocol does not have")
    return datatype


def _real(steps: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """int8 steps as real numbers; scale: (scale, zero point)."""
    step, zero = scale
    if not np.isfinite(scale).all() or step <= 0:
        raise RequestError(f"{SCALE} is (scale, zero point) with a scale above 0, not {scale}")
    real: np.ndarray = (steps.astype(np.float32) - zero) * step
    return real


def _check_size(content: bytes, max_pixels: int) -> None:
    """Raises RequestError for a picture that is too large to be decoded, or none."""
    width, height = picture_size(content)
    if width < 1 or height < 1:
        raise RequestError(f"{IMAGE} is neither a JPEG nor a PNG")
    if width * height > max_pixels:
        raise RequestError(
            f"{IMAGE} is {width}x{height}; at most {max_pixels} pixels are decoded (max_pixels)"
        )
