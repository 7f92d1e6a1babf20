"""A workload whose model is on a server: what is sent, and how the answer is read."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from infi_edge.config import OffloadConfig
from infi_edge.decoders import Fit, make_decoder
from infi_edge.errors import ConfigError, ExecutorError, SourceError
from infi_edge.executors.endpoint import is_endpoint
from infi_edge.executors.link import DATATYPES, FIT, SCALE, RemoteTensor, Tensors
from infi_edge.executors.remote import LinkDown, RemoteModel
from infi_edge.interpreter import TensorSpec
from infi_edge.workload import Workload, WorkloadSpec, model_identity, to_frame

log = logging.getLogger("infi_edge")

REFUSED_S = 5.0
"""A server with another model is asked again so often."""

Check = Callable[[RemoteModel], None]
"""Raises ConfigError if the server's model is not the one that is wanted."""


def open_workload(
    model: str | Path | Callable[[Any], Any],
    spec: WorkloadSpec,
    *,
    offload: OffloadConfig | None = None,
    check: Check | None = None,
    whole_input: TensorSpec | None = None,
    threads: int = 1,
) -> Workload:
    """Return the workload around a file, a function, or a served model, which must be there.

    Raises ConfigError or ExecutorError if something does not fit or is not reached.
    """
    if not isinstance(model, str) or not is_endpoint(model):
        return Workload(model, spec, threads, whole_input)
    workload = OffloadWorkload(
        RemoteModel(model, offload or OffloadConfig()), spec, check, whole_input
    )
    try:
        workload.meet()
    except BaseException:
        workload.remote.close()
        raise
    return workload


def workload_identity(workload: Workload, model: str, version: str = "") -> str:
    """Return what tells the model of a workload apart: see `model_identity` and `RemoteModel`."""
    if isinstance(workload, OffloadWorkload):
        return workload.remote.identity
    return model_identity(model, version)


class OffloadWorkload(Workload):
    """`value = workload(data)`, for any number of threads at once.

    A model with an input of BYTES gets pictures as JPEG, a camera's own bytes untouched, and texts
    as UTF-8; what it calls `fit` among its outputs says where the picture lay in its input. A
    model with an input `scale` gets float features as int8 steps with their scale.
    """

    def __init__(
        self,
        remote: RemoteModel,
        spec: WorkloadSpec,
        check: Check | None = None,
        whole_input: TensorSpec | None = None,
    ) -> None:
        """Nothing is sent yet. check: called once the server has said what the model is."""
        super().__init__(_never, spec, whole_input=whole_input)
        self.remote = remote
        self._check = check
        self._whole_input = whole_input
        self._specs: list[TensorSpec] | None = None
        self._refused_until_s, self._refusal = 0.0, ""

    def meet(self) -> None:
        """Learn what the served model is, and check it, unless that is done.

        Raises LinkDown if the server is not reached, ExecutorError or ConfigError if the model
        does not fit.
        """
        if self._specs is not None:
            return
        metadata = self.remote.metadata
        if self._check is not None:
            try:
                self._check(self.remote)
            except ConfigError:
                self.remote.forget()
                raise
        takes = self.remote.takes
        specs: list[TensorSpec] = []
        if takes == "bytes":
            if self.spec.modality not in ("image", "text"):
                raise ConfigError(
                    f"{self.remote.endpoint} takes bytes ({metadata.inputs[0].name}), but an "
                    f"input of modality {self.spec.modality} is an array"
                )
        else:
            if self.spec.modality == "text":
                raise ConfigError(f"{self.remote.endpoint} takes tensors, but an input is a text")
            specs = [_spec(tensor, self.remote) for tensor in metadata.inputs]
        wanted = [self._whole_input] if self._whole_input is not None else specs
        if self.spec.decoder is not None and wanted:
            self._decoder = make_decoder(self.spec.decoder, [_as_picture(wanted[0])])
        self._specs = specs

    def request(self, data: Any) -> tuple[Tensors, Fit]:
        """Return what is sent for an input, and where the picture lies in it.

        Raises SourceError if it cannot be encoded, ConfigError if it does not fit the model.
        """
        self._meet_now_and_then()
        assert self._specs is not None
        inputs = self.remote.metadata.inputs
        if not self._specs:
            return [(inputs[0], self._encoded(data, inputs[0]))], Fit()
        if self.remote.takes == "features":
            return self._features(data, inputs), getattr(data, "fit", Fit())
        given = to_frame(data) if self.spec.modality == "image" else data
        tensors, fit = self._tensors(given, [_as_picture(spec) for spec in self._specs])
        placed = [_placed(t, spec) for t, spec in zip(tensors, self._specs, strict=True)]
        return list(zip(inputs, placed, strict=True)), fit

    def _meet_now_and_then(self) -> None:
        """Raises LinkDown while the server has another model: it may get the right one."""
        if self._specs is not None:
            return
        now_s = time.monotonic()
        if now_s < self._refused_until_s:
            raise LinkDown(self._refusal, passing=False)
        try:
            self.meet()
        except ConfigError as error:
            if self._refusal != str(error):
                log.error("%s", error)
            self._refused_until_s, self._refusal = now_s + REFUSED_S, str(error)
            raise LinkDown(str(error), passing=False) from error

    def request_bytes(self, data: Any) -> int:
        """How many bytes of tensors are sent for an input."""
        return sum(
            sum(map(len, array.ravel())) if array.dtype == object else array.nbytes
            for _, array in self.request(data)[0]
        )

    def _input(self, data: Any) -> Any:
        return data if self.spec.modality == "image" else super()._input(data)

    def _outputs(self, data: Any) -> tuple[Any, Fit]:
        inputs, fit = self.request(data)
        outputs = dict(zip(self.remote.output_names, self.remote.run(inputs), strict=True))
        told = outputs.pop(FIT, None)
        if told is not None:
            fit = self._told_fit(told)
        arrays = list(outputs.values())
        if self.spec.decoder == "raw":
            return _plain(arrays), fit
        return arrays, fit

    def _encoded(self, data: Any, tensor: RemoteTensor) -> np.ndarray:
        if self.spec.modality == "text":
            content = str(data).encode("utf-8", "surrogatepass")
        elif isinstance(data, bytes):
            content = data
        else:
            quality = self.remote.config.jpeg_quality
            try:
                good, encoded = cv2.imencode(".jpg", data, [cv2.IMWRITE_JPEG_QUALITY, quality])
            except cv2.error as error:
                raise SourceError("a picture cannot be encoded as JPEG") from error
            if not good:
                raise SourceError("a picture cannot be encoded as JPEG")
            content = encoded.tobytes()
        array = np.empty(1, object)
        array[0] = content
        return array.reshape([1] * max(len(tensor.shape), 1))

    def _features(self, data: Any, inputs: tuple[RemoteTensor, ...]) -> Tensors:
        """Float features as int8 steps, each map with a scale of its own."""
        assert self._specs is not None
        if isinstance(data, str):
            raise SourceError("a feature map is an array, not a text")
        features = np.asarray(data, np.float32)
        by_name = {tensor.name: tensor for tensor in inputs}
        scale = by_name.pop(SCALE)
        (tensor,) = by_name.values()
        spec = next(s for s in self._specs if s.name == tensor.name)
        if features.size != int(np.prod(spec.shape)):
            raise ConfigError(
                f"{self.remote.endpoint} takes features {spec.shape}, not {features.shape}"
            )
        steps, step, zero = quantized(features.reshape(spec.shape))
        return [(tensor, steps), (scale, np.array([step, zero], np.float32))]

    def _told_fit(self, numbers: np.ndarray) -> Fit:
        if numbers.size != 6 or not np.isfinite(numbers).all() or (numbers.ravel()[:2] <= 0).any():
            raise ExecutorError(f"{self.remote.endpoint} answered an impossible {FIT}: {numbers}")
        scale_x, scale_y, offset_x, offset_y, width, height = map(float, numbers.ravel())
        whole = TensorSpec("image", (1, int(height), int(width), 3), np.dtype(np.uint8), 0.0, 0)
        if self._whole_input != whole:
            self._whole_input = whole
            self._decoder = make_decoder(str(self.spec.decoder), [whole])
        return Fit(scale_x, scale_y, offset_x, offset_y)


def quantized(features: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Return (int8 steps, scale, zero point) of float32 features of any shape.

    Real value = (step - zero point) * scale; 0 is kept exactly. Raises SourceError on a NaN.
    """
    low, high = min(float(features.min()), 0.0), max(float(features.max()), 0.0)
    if not np.isfinite([low, high]).all():
        raise SourceError("a feature map with a value that is not a number")
    scale = (high - low) / 255 or 1.0
    zero = float(np.clip(np.rint(-128 - low / scale), -128, 127))
    steps = np.clip(np.rint(features / np.float32(scale)) + np.float32(zero), -128, 127)
    return steps.astype(np.int8), scale, zero


def _never(data: Any) -> Any:
    raise AssertionError("the model is on a server")


def _spec(tensor: RemoteTensor, remote: RemoteModel) -> TensorSpec:
    """A remote tensor as the preparation of inputs has it; a free batch is one."""
    dtype = DATATYPES.get(tensor.datatype)
    shape = tuple(1 if n == -1 and i == 0 else n for i, n in enumerate(tensor.shape))
    if dtype is None or any(n < 1 for n in shape):
        raise ConfigError(
            f"{remote.endpoint} takes {tensor.name} {tensor.datatype} {list(tensor.shape)}; only "
            "numbers of a fixed shape can be made here, with a batch of any size"
        )
    return TensorSpec(tensor.name, shape, dtype, 0.0, 0)


def _channels_first(spec: TensorSpec) -> bool:
    shape = spec.shape
    return len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3)


def _as_picture(spec: TensorSpec) -> TensorSpec:
    """What the preparation makes: pictures with their channels last, half floats as floats."""
    shape = spec.shape
    if _channels_first(spec):
        shape = (shape[0], shape[2], shape[3], shape[1])
    dtype = np.dtype(np.float32) if spec.dtype == np.float16 else spec.dtype
    return replace(spec, shape=shape, dtype=dtype)


def _placed(tensor: np.ndarray, spec: TensorSpec) -> np.ndarray:
    if _channels_first(spec):
        tensor = tensor.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(tensor.reshape(spec.shape), spec.dtype)


def _plain(arrays: list[np.ndarray]) -> Any:
    """Outputs as a user's own reading takes them: one that stands alone without a list, a single
    number or text as itself."""
    plain = [_text(a) if a.dtype == object else a for a in arrays]
    if len(plain) != 1:
        return plain
    only = plain[0]
    return only.ravel().tolist()[0] if only.size == 1 else only


def _text(array: np.ndarray) -> np.ndarray:
    texts = [b.decode("utf-8", "replace") if isinstance(b, bytes) else b for b in array.ravel()]
    return np.array(texts, object).reshape(array.shape)
