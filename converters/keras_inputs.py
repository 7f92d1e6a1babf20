"""What a Keras model's inputs are, as a preprocessing specification."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from infi_edge.errors import ConfigError
from infi_edge.preprocess import (
    FeaturesSpec,
    ImageSpec,
    MotionSpec,
    Spec,
    TextSpec,
    VideoSpec,
    change_spec,
    spec_class,
)

Shape = tuple[int | None, ...]


def input_spec(
    modality: str, shapes: Sequence[Shape], ids: int | None, settings: dict[str, Any], path: Path
) -> Spec:
    """Return the specification of a model's inputs: its shapes, without the batch.

    ids: how many ids they know if they are whole numbers. settings: what the user says, by field.
    Pictures are resized and scaled to 0..1; every other modality takes tensors of the shape unless
    the settings say how a tensor is made. Raises ConfigError.
    """
    kind = spec_class(modality)
    takes = f"{path} takes {', '.join(str(s) for s in shapes)}"
    if kind is ImageSpec:
        found = _picture(shapes, takes)
    elif kind is VideoSpec:
        found = _clip(shapes, takes)
    else:
        if len(shapes) != 1:
            raise ConfigError(f"{takes}; a filter of {modality} takes one tensor")
        if set(settings) <= {"size", "type", "offset", "scale", "ids"}:
            kind = FeaturesSpec
        found = _tensor(kind, shapes[0], ids)
    missing = [key for key, value in found.items() if value is None and key not in settings]
    if missing:
        raise ConfigError(f"{takes}, which is open; set it with --preprocess {missing[0]}=NUMBER")
    known = {key: value for key, value in found.items() if value is not None}
    spec = change_spec(change_spec(kind(), known), settings)
    made = [p.shape[1:] for p in spec.parts(np.zeros((1, *spec.shape), spec.dtype))]
    whole = [int(np.prod([n or 1 for n in shape])) for shape in shapes]
    if ids and isinstance(spec, TextSpec) and spec.buckets > ids:
        raise ConfigError(f"{path} knows {ids} ids, but --preprocess buckets is {spec.buckets}")
    closed = None not in [n for shape in shapes for n in shape]
    if closed and sum(whole) != sum(int(np.prod(shape)) for shape in made):
        raise ConfigError(f"{takes}, but an input becomes {made[0]}; see --preprocess")
    return spec


def _picture(shapes: Sequence[Shape], takes: str) -> dict[str, Any]:
    shape = shapes[0]
    if len(shapes) != 1 or len(shape) != 3 or shape[2] not in (1, 3):
        raise ConfigError(f"{takes}; an image filter takes one picture (height, width, 1 or 3)")
    order = "GREY" if shape[2] == 1 else "RGB"
    return {"height": shape[0], "width": shape[1], "order": order, "low": 0.0, "high": 1.0}


def _clip(shapes: Sequence[Shape], takes: str) -> dict[str, Any]:
    """One input a frame, or one input of all frames."""
    frames, picture = len(shapes), shapes[0]
    if len(picture) == 4 and frames == 1 and picture[0] is not None:
        frames, picture = picture[0], picture[1:]
    if len(picture) != 3 or picture[2] != 3 or len(set(shapes)) != 1:
        raise ConfigError(f"{takes}; a video filter takes frames (height, width, 3)")
    found = {"frames": frames, "hop": max(frames // 2, 1), "low": 0.0, "high": 1.0}
    return {**found, "height": picture[0], "width": picture[1]}


def _tensor(kind: type[Spec], shape: Shape, ids: int | None) -> dict[str, Any]:
    if kind is FeaturesSpec:
        size = None if None in shape else shape
        if ids is None:
            return {"size": size, "type": "float32"}
        return {"size": size, "type": "int32", "ids": max(ids, 2) if ids else 1 << 24}
    if kind is MotionSpec and len(shape) == 2:
        names = tuple(f"channel {i}" for i in range(shape[1] or 1))
        return {"window": shape[0], "channels": names}
    if kind is not TextSpec:
        return {}
    return {"length": shape[0], **({"buckets": ids} if ids else {})}


def ids_below(model: Any, tensor: Any) -> int | None:
    """Return how many ids an input knows if it is whole numbers, else None; 0 where that is open.

    Ids are integer inputs, and whatever goes straight into an embedding.
    """
    for layer in getattr(model, "layers", []):
        inner = getattr(layer, "inputs", None) if getattr(layer, "layers", None) else None
        if inner is None and type(layer).__name__ != "Embedding":
            continue
        for node in layer._inbound_nodes:
            inputs = node.keras_inputs if hasattr(node, "keras_inputs") else node.input_tensors
            many = inputs if isinstance(inputs, (list, tuple)) else [inputs]
            for place, given in enumerate(many):
                if given is tensor:
                    return ids_below(layer, inner[place]) if inner else int(layer.input_dim)
    return 0 if tf.as_dtype(tensor.dtype).is_integer else None
