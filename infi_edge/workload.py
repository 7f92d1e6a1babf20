"""The expensive inference task: a model, its decoder and its task, from the texts a user types."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np

from infi_edge.decoders import Fit, dequantize, make_decoder, prepare, prepare_array
from infi_edge.errors import ConfigError, ExecutorError, InfiEdgeError, SourceError
from infi_edge.interpreter import Network, TensorSpec
from infi_edge.plugins import load_object, names_object
from infi_edge.tasks import SameRule, Task, Value, make_same, make_task
from infi_edge.types import Image

MAX_LABELS_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """The workload as text.

    decoder None: `raw` for a callable, an error for a .tflite. labels: class names in order.
    modality: of its inputs; what is no picture goes to the model as it is.
    """

    task: str
    decoder: str | None = None
    same: str = "exact"
    labels: tuple[str, ...] = ()
    modality: str = "image"


@runtime_checkable
class Infer(Protocol):
    """What runs the model on one input: a Workload, or one that shares its model with others."""

    task: Task
    same: SameRule

    def __call__(self, data: Any) -> Value:
        """Return the task's value. Raises ExecutorError or SourceError."""


def is_callable_name(model: str) -> bool:
    """Whether `model` names a callable (`package.module:function`) and not a file."""
    return names_object(model) and not Path(model).exists()


def model_identity(model: str, version: str = "") -> str:
    """Return what tells models apart: the SHA-256 of a file, or a callable's name and version."""
    if is_callable_name(model):
        return f"{model}@{version}"
    try:
        return hashlib.sha256(Path(model).read_bytes()).hexdigest()
    except OSError as error:
        raise ExecutorError(
            f"model {model} cannot be read ({error.strerror}); "
            "give a .tflite file or package.module:function"
        ) from error


def find_labels(model: str, labels: str | None) -> tuple[str, ...]:
    """Return class names: of the file `labels`, else the model's metadata, else beside the model.

    Beside the model counts only a single `*labels*.txt`. Returns () when there are none.
    """
    if labels is not None:
        try:
            return _label_lines(Path(labels).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"labels file {labels} cannot be read: {error}") from error
    if is_callable_name(model):
        return ()
    path = Path(model)
    try:
        content = path.read_bytes()
        beside = sorted(path.parent.glob("*labels*.txt"))
    except OSError:
        return ()
    # TFLite metadata: the associated files are a ZIP appended to the flatbuffer.
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for info in archive.infolist():
                if info.filename.endswith(".txt") and info.file_size <= MAX_LABELS_BYTES:
                    return _label_lines(archive.read(info).decode("utf-8"))
    except (zipfile.BadZipFile, zlib.error, UnicodeDecodeError, NotImplementedError, RuntimeError):
        pass
    return find_labels(model, str(beside[0])) if len(beside) == 1 else ()


def _label_lines(text: str) -> tuple[str, ...]:
    lines = [line.strip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    # Some label files number their lines: "0 person".
    numbered = [line.split(maxsplit=1) for line in lines]
    if lines and all(len(p) == 2 and p[0] == str(i) for i, p in enumerate(numbered)):
        lines = [p[1] for p in numbered]
    return tuple(lines)


def to_frame(data: Image) -> np.ndarray:
    """Return a full BGR uint8 frame of shape (H, W, 3); JPEG bytes are decoded.

    Raises SourceError if the bytes are no image.
    """
    if not isinstance(data, bytes):
        return data
    try:
        frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except cv2.error:  # a header that declares an absurd size
        frame = None
    if frame is None:
        raise SourceError("its bytes are not an image that can be decoded")
    return frame


class Workload:
    """A model with its decoder and task: `value = workload(frame)`.

    same: the REUSE rule of the spec. spec: with decoder and labels filled in.
    """

    def __init__(
        self,
        model: str | Path | Callable[[Any], Any] | Network,
        spec: WorkloadSpec,
        threads: int = 1,
        whole_input: TensorSpec | None = None,
    ) -> None:
        """model: a .tflite path, `package.module:function`, any callable, or a loaded network.

        A callable takes the input (a picture as a BGR uint8 frame (H, W, 3), a clip as a list of
        them, anything else as the sample has it) and returns outputs for the decoder.
        whole_input: of the tail of a partitioned model: what the whole one takes.
        Raises ConfigError or ExecutorError if the parts do not fit.
        """
        self._network: Network | None = None
        self._function: Callable[[Any], Any] | None = None
        if isinstance(model, Network):
            self._network = model
        elif callable(model):
            self._function = model
        elif is_callable_name(str(model)):
            self._function = load_object(str(model), "model")
        else:
            self._network = Network(model, threads)
        inputs = self._network.inputs if self._network else []
        if whole_input is not None:
            inputs = [whole_input]
        decoder = spec.decoder or ("raw" if self._function else None)
        if decoder is None:
            raise ConfigError(f"model {model} needs --decoder: what its outputs mean (yolov5, ...)")
        labels = spec.labels
        if not labels and decoder.startswith("blazeface"):
            labels = tuple(spec.task.partition(":")[2].split(",")[:1])  # its one class
        self.spec = WorkloadSpec(spec.task, decoder, spec.same, labels, spec.modality)
        self._decoder = make_decoder(decoder, inputs)
        self.task: Task = make_task(spec.task, labels, decoder == "raw")
        self.same: SameRule = make_same(spec.same, spec.task)

    def __call__(self, data: Any) -> Value:
        """Run the model on one input and return the task's value.

        Raises ExecutorError if the model fails, SourceError if the input cannot be decoded.
        """
        outputs, fit = self._outputs(self._input(data))
        try:
            return self.task.read(self._decoder.decode(outputs, fit))
        except InfiEdgeError:
            raise
        except Exception as error:  # a user's own decoder or task
            raise ExecutorError(f"the outputs cannot be read: {error!r}") from error

    def _outputs(self, data: Any) -> tuple[Any, Fit]:
        """Run the model: what the decoder reads, and where the picture lies in the input."""
        if self._network is not None:
            tensors, fit = self._tensors(data, self._network.inputs)
            return dequantize(self._network.run(*tensors), self._network.outputs), fit
        assert self._function is not None
        try:
            outputs = self._function(data)
        except Exception as error:
            raise ExecutorError(f"the model failed: {error!r}") from error
        return outputs if self.spec.decoder == "raw" else _as_list(outputs), Fit()

    def _input(self, data: Any) -> Any:
        if self.spec.modality == "image":
            return to_frame(data)
        if self.spec.modality == "video" and not isinstance(data, bytes):
            try:
                frames = list(data)
            except TypeError as error:
                raise SourceError(
                    f"a clip is a list of frames, not {type(data).__name__}"
                ) from error
            return [to_frame(frame) for frame in frames]
        return data

    def _tensors(self, data: Any, inputs: Sequence[TensorSpec]) -> tuple[list[np.ndarray], Fit]:
        """Make the network's inputs. A clip fills one input a frame, or one input of all frames;
        a network that takes single pictures gets a clip's last frame."""
        if self.spec.modality == "image":
            tensor, fit = prepare(data, inputs[0], self._decoder)
            return [tensor], fit
        if self.spec.modality != "video" or not isinstance(data, list):
            fit = getattr(data, "fit", Fit())  # of a head's feature map
            return [prepare_array(data, inputs[0])], fit
        if len(inputs) == len(data) > 1:
            pairs = zip(data, inputs, strict=True)
            return [prepare(frame, spec, self._decoder)[0] for frame, spec in pairs], Fit()
        spec = inputs[0]
        if len(spec.shape) == 4:
            tensor, fit = prepare(data[-1], spec, self._decoder)
            return [tensor], fit
        if len(spec.shape) != 5 or spec.shape[1] != len(data):
            raise ConfigError(f"the model takes {spec.shape}, a clip has {len(data)} frames")
        one = TensorSpec(spec.name, (1, *spec.shape[2:]), spec.dtype, spec.scale, spec.zero_point)
        frames = [prepare(frame, one, self._decoder)[0] for frame in data]
        return [np.stack(frames, axis=1)], Fit()


def _as_list(outputs: Any) -> list[np.ndarray]:
    many: Sequence[Any] = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    return [np.asarray(o) for o in many]
