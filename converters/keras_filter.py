"""A Keras filter as one function of the filter's parts, whichever Keras made it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from converters.augment import in_units
from converters.keras_inputs import ids_below, input_spec
from converters.siamese import Apart, score_network, take_apart
from infi_edge.errors import ConfigError
from infi_edge.learn import sigmoid


class KerasFilter:
    """A loaded Keras model as one function of the filter's parts, and what it is made of.

    apart: its siamese parts, or None for a SKIP model. inputs: what `parts` are, with a batch.
    ids: how many ids it knows, where its input is ids (0: nobody can tell).
    """

    def __init__(
        self,
        model: Any,
        path: Path,
        modality: str,
        settings: dict[str, Any],
        invert: bool = False,
    ) -> None:
        """invert: its score is the probability of the opposite (redundant, the same).

        Raises ConfigError if it is no filter, or its inputs are not the modality's.
        """
        self.notes: list[str] = []
        self.apart: Apart | None = None
        self._model = model
        if not hasattr(model, "layers"):
            self._model = _SignatureModel(model, path)
        else:
            self.apart = take_apart(model, path, invert, clip=modality == "video")
            if self.apart is not None:
                self._model = self.apart.feature
            else:
                self._model, note = score_network(model, path)
                self.notes += [note] if note else []
        self._invert = invert and self.apart is None
        shapes = [tuple(t.shape[1:]) for t in self._model.inputs]
        self.ids = ids_below(self._model, self._model.inputs[0])
        self.spec = input_spec(modality, shapes, self.ids, settings, path)
        blank = self.spec.parts(np.zeros((1, *self.spec.shape), self.spec.dtype))
        kind = tf.int32 if self.spec.dtype == np.int32 else tf.float32
        self.inputs = [tf.TensorSpec(part.shape, kind) for part in blank]
        self._stacked = len(blank) > 1 and len(shapes) == 1
        self._folded = None
        if self.apart is not None and self.is_l1:
            self._folded = self.apart.weights
        weights = None if self.apart is None else self.apart.weights
        if weights is not None and (weights <= 0).all():
            self.notes.append(
                "its score falls with the difference; if it is the probability that two answers "
                "are the same, convert it with --invert"
            )

    @property
    def is_l1(self) -> bool:
        """Whether the classifier is a sum of differences, whose weights fold into the network."""
        weights = None if self.apart is None else self.apart.weights
        return weights is not None and bool((weights >= 0).all()) and bool((weights > 0).any())

    @property
    def variables(self) -> list[Any]:
        """The weights of network and classifier."""
        head = [] if self.apart is None else list(self.apart.head.weights)
        return [*self._model.weights, *head]

    @property
    def layers(self) -> list[Any]:
        """The layers behind it, for the name of the one that cannot be converted."""
        return list(getattr(self._model, "layers", []))

    def __call__(self, parts: Any, training: bool = False) -> Any:
        """parts: a tensor or a list of tensors as `inputs` says. Returns (batch, D), or (batch, 1).

        The classifier's weights are in the embedding where they fold."""
        given = list(parts) if isinstance(parts, (list, tuple)) else [parts]
        if self._stacked:
            given = [tf.stack(given, axis=1)]
        given = [_fitting(part, want) for part, want in zip(given, self._model.inputs, strict=True)]
        output = self._model(given if len(given) > 1 else given[0], training=False)
        if self.apart is None and output.shape[-1] == 2:
            output = output[:, 1:]
        if self._invert:
            output = 1.0 - output
        return output if self._folded is None else output * self._folded

    def outputs(self, tensors: np.ndarray) -> np.ndarray:
        """Run the float model over filter tensors (N, *spec.shape), float32 (N, D)."""
        found = []
        for i in range(0, len(tensors), 32):
            parts = self.spec.parts(in_units(tensors[i : i + 32], self.spec))
            found.append(np.asarray(self([tf.constant(part) for part in parts])))
        return np.concatenate(found).astype(np.float32)

    def p_changed(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The float model's own score of pairs of `outputs` (N, D)."""
        assert self.apart is not None
        difference = np.abs(a - b)
        if self.is_l1:
            logits = difference.sum(axis=1) + self.apart.bias
        else:
            logits = np.asarray(self.apart.head(difference))[:, 0]
        return np.array([sigmoid(float(z)) for z in logits])


def _fitting(part: Any, want: Any) -> Any:
    """A part in the shape and type that a model's input has; open sizes take what comes."""
    shape = tuple(want.shape[1:])
    if None not in shape:
        part = tf.reshape(part, (-1, *shape))
    return tf.cast(part, want.dtype)


class _SignatureModel:
    """A SavedModel without Keras metadata (Keras 3's `export`): its serving function."""

    def __init__(self, module: Any, path: Path) -> None:
        signatures = dict(getattr(module, "signatures", {}))
        if not signatures:
            raise ConfigError(f"{path} has no serving signature; save it as .keras or .h5")
        self._module = module  # its variables live as long as it does
        self._run = signatures.get("serving_default") or next(iter(signatures.values()))
        named = dict(sorted(self._run.structured_input_signature[1].items()))
        self._names, self.inputs = list(named), list(named.values())
        self.outputs = list(self._run.structured_outputs.values())
        self.weights = list(getattr(module, "variables", []))
        self.layers: list[Any] = []
        if len(self.inputs) == 2:
            raise ConfigError(
                f"{path} takes two inputs and has no layers to take apart; save a siamese model as "
                ".keras or .h5"
            )
        if len(self.outputs) != 1 or self.outputs[0].shape.rank != 2:
            raise ConfigError(f"{path} has {len(self.outputs)} outputs; a filter has one, a score")
        if self.outputs[0].shape[-1] not in (1, 2):
            raise ConfigError(
                f"{path} gives {self.outputs[0].shape}, which is no score; a siamese model must be "
                "saved as .keras or .h5 to be taken apart"
            )

    def __call__(self, parts: Any, training: bool = False) -> Any:
        given = parts if isinstance(parts, list) else [parts]
        outputs = self._run(**dict(zip(self._names, given, strict=True)))
        return next(iter(outputs.values()))
