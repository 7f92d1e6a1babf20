"""From a model's raw outputs to detections, classes or keypoints; and how its input is prepared.

A decoder knows two things of a model family: how a frame becomes its input (letterbox or stretch,
the range of a float input) and what its outputs say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np

from infi_edge.errors import ConfigError
from infi_edge.interpreter import TensorSpec
from infi_edge.plugins import load_object, names_object


@dataclass(frozen=True, slots=True)
class Detections:
    """boxes: float32 (N, 4), x1 y1 x2 y2 in 0..1 of the frame; classes: int (N,); scores (N,)."""

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True, slots=True)
class Classes:
    """scores: float (number of classes,), one input's class probabilities."""

    scores: np.ndarray


@dataclass(frozen=True, slots=True)
class Keypoints:
    """points: float (K, 3): x, y in 0..1 of the frame, and score."""

    points: np.ndarray


@dataclass(frozen=True, slots=True)
class Fit:
    """Where the frame lies in the model's input, as fractions: input = offset + frame * scale."""

    scale_x: float = 1.0
    scale_y: float = 1.0
    offset_x: float = 0.0
    offset_y: float = 0.0

    def to_frame(self, xy: np.ndarray) -> np.ndarray:
        """Map (..., 2) input fractions to frame fractions, clipped to 0..1."""
        offset = (self.offset_x, self.offset_y)
        return np.clip((xy - offset) / (self.scale_x, self.scale_y), 0.0, 1.0)


Decode = Callable[[list[np.ndarray], Fit], Any]


@dataclass(frozen=True, slots=True)
class Decoder:
    """decode: dequantized outputs -> decoded. low, high: what 0 and 255 become in a float input."""

    decode: Decode
    resize: Literal["letterbox", "stretch"] = "stretch"
    low: float = 0.0
    high: float = 1.0
    border: int = 0


def _sigmoid(x: np.ndarray) -> np.ndarray:
    y: np.ndarray = 1.0 / (1.0 + np.exp(-np.clip(x, -60.0, 60.0)))
    return y


def _nms(
    corners: np.ndarray, scores: np.ndarray, classes: np.ndarray, iou: float, fit: Fit
) -> Detections:
    """Suppress overlapping boxes whatever their class: one vehicle is not a car and a truck."""
    if len(corners) == 0:
        return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0))
    sizes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    keep = np.asarray(cv2.dnn.NMSBoxes(sizes.tolist(), scores.tolist(), 0.0, iou), np.int64)
    boxes = fit.to_frame(corners[keep].reshape(-1, 2, 2)).reshape(-1, 4).astype(np.float32)
    return Detections(boxes, classes[keep], scores[keep])


def _shapes(outputs: Sequence[np.ndarray]) -> str:
    """The outputs as a sentence ends: their shapes, and what to do."""
    return (", ".join(str(tuple(o.shape)) for o in outputs) or "none") + "; choose another decoder"


def _yolov5(outputs: list[np.ndarray], fit: Fit) -> Detections:
    """1xNx(5+classes): cx, cy, w, h (0..1), objectness, class scores. Confidence 0.25, NMS 0.45."""
    if len(outputs) != 1 or outputs[0].ndim != 3 or outputs[0].shape[2] < 6:
        raise ConfigError(
            f"decoder yolov5 needs one output of 1xNx(5+classes), not {_shapes(outputs)}"
        )
    rows = outputs[0][0]
    rows = rows[rows[:, 4] > 0.25]
    class_scores = rows[:, 5:] * rows[:, 4:5]
    classes = class_scores.argmax(axis=1)
    scores = class_scores[np.arange(len(rows)), classes]
    sure = scores > 0.25
    rows, classes, scores = rows[sure], classes[sure], scores[sure]
    half = rows[:, 2:4] / 2
    corners = np.concatenate([rows[:, :2] - half, rows[:, :2] + half], axis=1)
    return _nms(corners, scores, classes, 0.45, fit)


def _ssd(outputs: list[np.ndarray], fit: Fit) -> Detections:
    """TFLite_Detection_PostProcess: boxes 1xNx4 (y1 x1 y2 x2), classes, scores, count. Over 0.5.

    Exporters order the outputs differently; they are told apart by shape and content.
    """
    boxes = [o for o in outputs if o.ndim == 3 and o.shape[2] == 4]
    counts = [o for o in outputs if o.ndim == 1 and o.size == 1]
    rest = [o for o in outputs if o.ndim == 2]
    if len(outputs) != 4 or len(boxes) != 1 or len(counts) != 1 or len(rest) != 2:
        raise ConfigError(
            "decoder ssd needs the four TFLite_Detection_PostProcess outputs, "
            f"not {_shapes(outputs)}"
        )
    count = int(counts[0].reshape(()))
    first_is_classes = bool(np.all(rest[0] == np.round(rest[0])))
    classes, scores = (rest[0], rest[1]) if first_is_classes else (rest[1], rest[0])
    sure = np.flatnonzero(scores[0][:count] >= 0.5)
    corners = boxes[0][0][sure][:, [1, 0, 3, 2]]
    mapped = fit.to_frame(corners.reshape(-1, 2, 2)).reshape(-1, 4).astype(np.float32)
    return Detections(mapped, classes[0][sure].astype(np.int64), scores[0][sure])


_ANCHOR_STRIDES = ((8, 16, 16, 16), (8, 16, 32, 32, 32), (16, 32, 32, 32), (4,))


def _anchor_centres(count: int, side: int) -> np.ndarray | None:
    """MediaPipe SSD anchors of fixed size: centres (count, 2) in 0..1, two a layer, or one at 4."""
    for strides in _ANCHOR_STRIDES:
        layers = []
        for stride in sorted(set(strides)):
            cells = -(-side // stride)
            each = 1 if strides == (4,) else 2 * strides.count(stride)
            y, x = np.meshgrid(np.arange(cells), np.arange(cells), indexing="ij")
            centres = np.stack([(x.ravel() + 0.5) / cells, (y.ravel() + 0.5) / cells], axis=1)
            layers.append(np.repeat(centres, each, axis=0))
        anchors = np.concatenate(layers)
        if len(anchors) == count:
            return anchors
    return None


def _blazeface(side: int) -> Decode:
    """MediaPipe detectors (face, palm, pose): 1xNxP regressors, 1xNx1 logits. Over 0.5, NMS 0.3."""

    def decode(outputs: list[np.ndarray], fit: Fit) -> Detections:
        logits = [o for o in outputs if o.ndim == 3 and o.shape[2] == 1]
        regressors = [o for o in outputs if o.ndim == 3 and o.shape[2] > 4]
        anchors = _anchor_centres(logits[0].shape[1], side) if logits else None
        if len(logits) != 1 or len(regressors) != 1 or anchors is None:
            raise ConfigError(
                "decoder blazeface needs 1xNxP regressors and 1xNx1 scores on MediaPipe anchors, "
                f"not {_shapes(outputs)}"
            )
        scores = _sigmoid(logits[0][0, :, 0])
        sure = scores >= 0.5
        rows = regressors[0][0][sure][:, :4] / side
        centres = rows[:, :2] + anchors[sure]
        corners = np.concatenate([centres - rows[:, 2:] / 2, centres + rows[:, 2:] / 2], axis=1)
        return _nms(corners, scores[sure], np.zeros(int(sure.sum()), np.int64), 0.3, fit)

    return decode


def _movenet(outputs: list[np.ndarray], fit: Fit) -> Keypoints:
    """1x1x17x3: y, x, score of COCO's 17 keypoints."""
    if len(outputs) != 1 or outputs[0].shape[-2:] != (17, 3):
        raise ConfigError(f"decoder movenet needs one output of 1x1x17x3, not {_shapes(outputs)}")
    points = outputs[0].reshape(17, 3)
    return Keypoints(np.concatenate([fit.to_frame(points[:, [1, 0]]), points[:, 2:]], axis=1))


def _classification(outputs: list[np.ndarray], fit: Fit) -> Classes:
    """One row of class scores; a row that is no distribution gets a softmax."""
    scores = outputs[0].ravel().astype(np.float64) if len(outputs) == 1 else np.zeros(0)
    if scores.size < 2:
        raise ConfigError(
            f"decoder classification needs one row of class scores, not {_shapes(outputs)}"
        )
    if scores.min() < -0.01 or not 0.9 <= scores.sum() <= 1.1:
        scores = np.exp(scores - scores.max())
        scores /= scores.sum()
    return Classes(scores)


def _raw(outputs: list[np.ndarray], fit: Fit) -> Any:
    return outputs


DECODERS = ("ssd", "yolov5", "blazeface", "movenet", "classification", "raw")


def make_decoder(text: str, inputs: Sequence[TensorSpec]) -> Decoder:
    """Make the decoder that `text` names, for a model with these inputs (empty for a callable).

    text: NAME or NAME:LOW..HIGH, where LOW..HIGH is the range of a float input (as in
    `classification:-1..1`), or `package.module:function` taking the list of outputs.
    """
    name, _, rest = text.partition(":")
    if name not in DECODERS:
        if names_object(text):
            function = load_object(text, "decoder")
            return Decoder(lambda outputs, fit: function(outputs))
        known = ", ".join(DECODERS)
        raise ConfigError(f"unknown decoder {text!r}; use {known} or package.module:function")
    side = inputs[0].shape[1] if inputs and len(inputs[0].shape) == 4 else 128
    decoder = {
        "yolov5": Decoder(_yolov5, "letterbox", 0.0, 1.0, border=114),
        "ssd": Decoder(_ssd, "stretch", -1.0, 1.0),
        "blazeface": Decoder(_blazeface(side), "letterbox", -1.0, 1.0),
        "movenet": Decoder(_movenet, "letterbox", 0.0, 255.0),
        "classification": Decoder(_classification, "stretch", 0.0, 1.0),
        "raw": Decoder(_raw, "stretch", 0.0, 1.0),
    }[name]
    if not rest:
        return decoder
    try:
        low, high = (float(part) for part in rest.split(".."))
    except ValueError:
        raise ConfigError(f"decoder {text!r}: the input range reads as in '{name}:-1..1'") from None
    return Decoder(decoder.decode, decoder.resize, low, high, decoder.border)


def prepare(frame: np.ndarray, spec: TensorSpec, decoder: Decoder) -> tuple[np.ndarray, Fit]:
    """Make a model's input tensor of a BGR uint8 frame (H, W, 3).

    A uint8 input gets the pixels as they are, an int8 input the pixels minus 128, a float input
    the decoder's range. Raises ConfigError for a non-image input.
    """
    if len(spec.shape) != 4 or spec.shape[0] != 1 or spec.shape[3] not in (1, 3):
        raise ConfigError(f"the model's input {spec.shape} is no image of shape (1, H, W, 3 or 1)")
    height, width, channels = spec.shape[1:]
    rows, columns = frame.shape[:2]
    if decoder.resize == "letterbox":
        ratio = min(height / rows, width / columns)
        new_h, new_w = max(round(rows * ratio), 1), max(round(columns * ratio), 1)
        top, left = (height - new_h) // 2, (width - new_w) // 2
        image = np.full((height, width, 3), decoder.border, np.uint8)
        image[top : top + new_h, left : left + new_w] = _resize(frame, new_w, new_h)
        fit = Fit(new_w / width, new_h / height, left / width, top / height)
    else:
        image, fit = _resize(frame, width, height), Fit()
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB if channels == 3 else cv2.COLOR_BGR2GRAY)
    image = image.reshape(spec.shape)
    if spec.dtype == np.float32:
        scale = (decoder.high - decoder.low) / 255
        return image * np.float32(scale) + np.float32(decoder.low), fit
    if spec.dtype == np.uint8:
        return image, fit
    if spec.dtype == np.int8:
        return (image.astype(np.int16) - 128).astype(np.int8), fit
    raise ConfigError(f"the model's input has type {spec.dtype}; uint8, int8 and float32 are known")


def prepare_array(data: Any, spec: TensorSpec) -> np.ndarray:
    """Make a model's input tensor of a window of sound or motion, or of a feature map.

    Numbers go in as they are; a quantized input gets them by its own scale, missing values as 0.
    Raises ConfigError if the sizes differ.
    """
    if isinstance(data, str):
        raise ConfigError("a .tflite model takes no text; give package.module:function")
    array = np.asarray(data)
    if array.size != int(np.prod(spec.shape)):
        raise ConfigError(
            f"the model takes {spec.shape}, an input is {array.shape}; set the window with "
            "--preprocess, or wrap the model as package.module:function"
        )
    array = array.reshape(spec.shape)
    if spec.scale and array.dtype != spec.dtype:
        limits = np.iinfo(spec.dtype)
        steps = np.rint(np.nan_to_num(array) / spec.scale) + spec.zero_point
        return np.clip(steps, limits.min, limits.max).astype(spec.dtype)
    if array.dtype.kind == "f":
        array = np.nan_to_num(array)
    return array.astype(spec.dtype)


def _resize(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    if frame.shape[:2] == (height, width):
        return frame
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)


def dequantize(outputs: Sequence[np.ndarray], specs: Sequence[TensorSpec]) -> list[np.ndarray]:
    """Return outputs as real numbers; those without a scale are returned as they are."""
    return [
        (o.astype(np.float32) - s.zero_point) * np.float32(s.scale) if s.scale else o
        for o, s in zip(outputs, specs, strict=True)
    ]
