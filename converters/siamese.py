"""Take a Keras model apart into what the device runs: a feature network and a classifier.

Found by looking at the graph, whatever the layers are called: a shared part that is applied to
both inputs, the absolute difference of what it gives, and dense layers on top (InFi, MobiCom 2022,
5.2). Keras 2 and Keras 3 keep their graphs differently; `_producer` is where that is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infi_edge.errors import ConfigError

ADVICE = "give a model that compares abs(f(a) - f(b)) of one shared network f by dense layers"
_HEAD_LAYERS = {"Dense", "Activation", "Dropout", "InputLayer", "ReLU", "BatchNormalization"}


@dataclass(frozen=True, slots=True)
class Apart:
    """feature: the shared network, its inputs in the model's order. head: |difference| (., D) ->
    logit (., 1). weights, bias: of a head that is one dense layer, float32 (D,); else None.
    """

    feature: Any
    head: Any
    weights: np.ndarray | None
    bias: float


def take_apart(model: Any, path: Path, invert: bool = False, clip: bool = False) -> Apart | None:
    """Return the parts of a siamese model, or None if the model compares nothing.

    clip: its inputs may be the frames of a clip, which share layers without being compared.
    invert: it says how likely two inputs have the same answer, not different ones.
    Raises ConfigError naming the layer where it compares in a way that is not known.
    """
    generation = _keras_of(model)
    if len(model.inputs) < 2 or len(model.outputs) != 1:
        return None
    difference = _absolute_difference(model)
    if difference is None:
        shared = None if clip else _shared_layer(model)
        if shared is None:
            return None
        raise ConfigError(
            f"{path}: {shared!r} reads both inputs, but no absolute difference of what it gives is "
            f"found, so the model cannot be taken apart; {ADVICE}"
        )
    left, right = (_inputs_of(model, tensor) for tensor in difference.sides)
    if set(map(id, left)) & set(map(id, right)) or len(left) + len(right) != len(model.inputs):
        raise ConfigError(
            f"{path}: layer {_name(difference.at)!r} compares parts that do not each read one half "
            f"of the inputs; {ADVICE}"
        )
    _check_shared(difference.sides, path)
    u = difference.sides[0]
    if len(u.shape) != 2:
        raise ConfigError(
            f"{path}: layer {_name(u)!r} gives {tuple(u.shape)}, and an embedding is one row of "
            "numbers an input; add a pooling or Flatten layer"
        )
    feature = generation.Model(left, u)
    head, weights, bias = _head(generation, difference.at, model.outputs[0], path)
    if invert:
        head = generation.Model(head.inputs, generation.layers.Rescaling(-1.0)(head.outputs[0]))
        weights, bias = (None if weights is None else -weights), -bias
    return Apart(feature, head, weights, bias)


def score_network(model: Any, path: Path) -> tuple[Any, str]:
    """Return (model inputs -> p(needed) (., 1), a sentence or "") of a single-input model.

    Raises ConfigError if its output is no probability.
    """
    generation = _keras_of(model)
    if len(model.outputs) != 1:
        raise ConfigError(f"{path} has {len(model.outputs)} outputs; a filter has one, a score")
    output = model.outputs[0]
    layer = _producer(output)[0]
    width = int(output.shape[-1] or 0)
    kind = _activation(layer)
    if len(output.shape) != 2 or width not in (1, 2):
        raise ConfigError(
            f"{path}: layer {layer.name!r} gives {tuple(output.shape)}; a filter ends in one "
            "number an input, the probability that the model is needed"
        )
    if width == 2:
        if kind != "softmax":
            raise ConfigError(
                f"{path}: layer {layer.name!r} gives two numbers that are no softmax; end the "
                "model in one sigmoid unit"
            )
        return model, "of the two classes, the second is read as 'needed'"
    if kind == "sigmoid":
        return model, ""
    if kind == "linear":
        sigmoid = generation.layers.Activation("sigmoid")
        return (
            generation.Model(model.inputs, sigmoid(output)),
            f"layer {layer.name!r} has no sigmoid; its output is read as a logit",
        )
    raise ConfigError(
        f"{path}: layer {layer.name!r} ends in {kind}, whose output is no probability; "
        "end the model in one sigmoid unit"
    )


@dataclass(frozen=True, slots=True)
class _Difference:
    """at: the tensor |u - v|. sides: the tensors u and v."""

    at: Any
    sides: tuple[Any, Any]


def _keras_of(model: Any) -> Any:
    if type(model).__module__.startswith("tf_keras"):
        import tf_keras

        return tf_keras
    import keras

    return keras


def _producer(tensor: Any) -> tuple[Any, int, list[Any]]:
    """Return (layer or operation, which of its calls, the tensors of that call)."""
    history = tensor._keras_history
    layer = history.operation if hasattr(history, "operation") else history.layer
    node = layer._inbound_nodes[history.node_index]
    inputs = node.keras_inputs if hasattr(node, "keras_inputs") else node.input_tensors
    flat = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    # A Keras 2 input layer is its own input.
    return layer, history.node_index, [t for t in flat if t is not tensor]


def _name(tensor: Any) -> str:
    return str(_producer(tensor)[0].name)


def _walk(tensor: Any) -> Iterator[Any]:
    """Yield a tensor and all it is made of, nearest first."""
    pending, seen = [tensor], set()
    while pending:
        item = pending.pop(0)
        key = id(item)
        if key in seen:
            continue
        seen.add(key)
        yield item
        pending.extend(_producer(item)[2])


def _operation(layer: Any) -> str:
    """The arithmetic that a layer does: `abs`, `subtract`, or its class name."""
    kind = type(layer).__name__
    function = getattr(layer, "symbol", None) or getattr(layer, "function", None)
    if kind == "TFOpLambda":
        name = str(getattr(layer, "symbol", "") or function).rsplit(".", 1)[-1]
        return {"sub": "subtract", "absolute": "abs"}.get(name, name)
    if kind == "Activation" and getattr(layer.activation, "__name__", "") == "abs":
        return "abs"
    return {"Absolute": "abs", "Abs": "abs", "Subtract": "subtract"}.get(kind, kind)


def _absolute_difference(model: Any) -> _Difference | None:
    for tensor in _walk(model.outputs[0]):
        layer, _, inputs = _producer(tensor)
        if _operation(layer) != "abs" or len(inputs) != 1:
            continue
        inner, _, sides = _producer(inputs[0])
        if _operation(inner) == "subtract" and len(sides) == 2:
            return _Difference(tensor, (sides[0], sides[1]))
    return None


def _inputs_of(model: Any, tensor: Any) -> list[Any]:
    """The model's inputs that a tensor is made of, in the model's order."""
    names = {_name(t) for t in _walk(tensor) if not _producer(t)[2]}
    return [t for t in model.inputs if _name(t) in names]


def _layers_of(tensor: Any) -> dict[int, Any]:
    layers = (_producer(t)[0] for t in _walk(tensor) if _producer(t)[2])
    return {id(layer): layer for layer in layers}


def _check_shared(sides: tuple[Any, Any], path: Path) -> None:
    left, right = map(_layers_of, sides)
    for layer in [*left.values(), *right.values()]:
        if (id(layer) in left) != (id(layer) in right) and getattr(layer, "weights", None):
            raise ConfigError(
                f"{path}: layer {layer.name!r} is applied to one input alone, so the two sides "
                f"are not one network; {ADVICE}"
            )


def _shared_layer(model: Any) -> str | None:
    """The name of a layer with weights that is called more than once within the model."""
    calls: dict[int, set[int]] = {}
    for tensor in _walk(model.outputs[0]):
        layer, node, inputs = _producer(tensor)
        if inputs and getattr(layer, "weights", None):
            calls.setdefault(id(layer), set()).add(node)
            if len(calls[id(layer)]) > 1:
                return str(layer.name)
    return None


def _activation(layer: Any) -> str:
    activation = getattr(layer, "activation", None)
    if activation is None:
        return "softmax" if type(layer).__name__ == "Softmax" else "linear"
    return str(getattr(activation, "__name__", activation))


def _head(
    generation: Any, difference: Any, output: Any, path: Path
) -> tuple[Any, np.ndarray | None, float]:
    """Return (head model up to its logit, weights or None, bias)."""
    layers = [_producer(t)[0] for t in _between(output, difference)]
    for layer in layers:
        if type(layer).__name__ not in _HEAD_LAYERS:
            raise ConfigError(
                f"{path}: layer {layer.name!r} ({type(layer).__name__}) reads the difference, and "
                f"only dense layers may; {ADVICE}"
            )
    if not layers or int(output.shape[-1] or 0) != 1:
        raise ConfigError(f"{path}: layer {_name(output)!r} gives no single score; {ADVICE}")
    last, _, inputs = _producer(output)
    kind = _activation(last)
    if kind not in ("sigmoid", "linear"):
        raise ConfigError(
            f"{path}: layer {last.name!r} ends in {kind}; end the model in one sigmoid unit, the "
            "probability that the two inputs have different answers"
        )
    if type(last).__name__ == "Activation":
        output = inputs[0]
    elif kind == "sigmoid":
        last.activation = (
            generation.activations.linear
        )  # the model is ours: loaded to be taken apart
    head = generation.Model(difference, output)
    dense = [layer for layer in layers if type(layer).__name__ not in ("Activation", "Dropout")]
    if len(dense) == 1 and type(dense[0]).__name__ == "Dense":
        kernel, *bias = dense[0].get_weights()
        activations = {_activation(layer) for layer in layers if layer is not last}
        if activations <= {"linear"}:
            return head, kernel[:, 0].astype(np.float32), float(bias[0][0]) if bias else 0.0
    return head, None, 0.0


def _between(output: Any, start: Any) -> list[Any]:
    """The tensors from `output` back to `start`, without it."""
    found, pending = [], [output]
    while pending:
        tensor = pending.pop(0)
        if tensor is start or _same_tensor(tensor, start):
            continue
        found.append(tensor)
        pending.extend(_producer(tensor)[2])
    return found


def _same_tensor(a: Any, b: Any) -> bool:
    return tuple(map(id, _producer(a)[:1])) == tuple(map(id, _producer(b)[:1])) and (
        _producer(a)[1] == _producer(b)[1]
    )
