"""A .tflite as a graph of operators, checked.

The file is read with the schema classes of the TFLite packages; no interpreter runs. What the file
says is not believed: every index, shape and size is checked before it is used.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from infi_edge.errors import ConfigError

SCHEMAS = ("ai_edge_litert.schema_py_generated", "tensorflow.lite.python.schema_py_generated")
DTYPES = {
    "FLOAT32": np.float32, "FLOAT16": np.float16, "FLOAT64": np.float64, "BOOL": np.bool_,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64,
    "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
}  # fmt: skip
"""The tensor types that NumPy has too, by the schema's names."""
KEPT_METADATA = (b"min_runtime_version",)
"""Metadata that is as true of a part as of the whole."""
STATEFUL = ("VARIABLE", "VAR_HANDLE", "HASHTABLE", "CALL_ONCE", "RANDOM", "MULTINOMIAL")
CALLING = ("IF", "WHILE", "CALL", "STABLEHLO_COMPOSITE", "STABLEHLO_WHILE", "STABLEHLO_CASE")
MAX_ELEMENTS, MAX_SUBGRAPHS = 1 << 31, 1 << 16


@cache
def load_schema() -> Any:
    """The schema's module. Raises ConfigError if no package with one is here."""
    for name in SCHEMAS:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ConfigError("no TFLite schema can be imported; pip install ai-edge-litert")


@cache
def _types() -> dict[int, np.dtype[Any]]:
    return {getattr(load_schema().TensorType, name): np.dtype(t) for name, t in DTYPES.items()}


@cache
def _operator_names() -> dict[int, str]:
    codes = vars(load_schema().BuiltinOperator).items()
    return {code: name for name, code in codes if isinstance(code, int)}


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator. reads: tensors, the optional ones that are absent left out; writes: tensors."""

    name: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A checked model of one subgraph and one input. Tensors are numbers, as in the file.

    Operators come in the order in which they run.
    """

    model: Any
    operators: tuple[Operator, ...]
    input: int
    outputs: tuple[int, ...]

    def tensor(self, index: int) -> Any:
        """The schema's object of a tensor."""
        return self.model.subgraphs[0].tensors[index]

    def name(self, index: int) -> str:
        """A tensor's name; it need not be unique."""
        return _name(self.tensor(index))

    def shape(self, index: int) -> tuple[int, ...]:
        """A tensor's shape; () if it has none."""
        return numbers_of(self.tensor(index).shape)

    def signature(self, index: int) -> tuple[int, ...]:
        """A tensor's shape with -1 where it may change; () if nothing may."""
        return numbers_of(self.tensor(index).shapeSignature)

    def dtype(self, index: int) -> np.dtype[Any] | None:
        """A tensor's type; None for those that NumPy does not have."""
        return _types().get(self.tensor(index).type)

    def quantization(self, index: int) -> tuple[float, int]:
        """A tensor's per-tensor (scale, zero point); scale 0 if it has none."""
        found = self.tensor(index).quantization
        if found is None or found.scale is None or len(found.scale) != 1:
            return 0.0, 0
        zero_points = numbers_of(found.zeroPoint)
        return float(found.scale[0]), zero_points[0] if zero_points else 0


def read_graph(content: bytes) -> Graph:
    """Read and check a model. content: the bytes of a .tflite.

    Raises ConfigError if it is damaged, or of a kind that cannot be cut: several inputs or
    subgraphs, state, data outside the flatbuffer.
    """
    if content[4:8] != b"TFL3":
        raise ConfigError("the model is no TFLite file; give a .tflite")
    schema = load_schema()
    try:
        root = schema.Model.GetRootAsModel(content, 0)
        if 1 < root.SubgraphsLength() <= MAX_SUBGRAPHS:
            raise ConfigError(
                f"the model has {root.SubgraphsLength()} subgraphs (control flow or several "
                "signatures); only a model of one subgraph can be cut"
            )
        if root.SubgraphsLength() != 1:
            raise ValueError("no subgraph, or more than there can be")
        model = schema.ModelT.InitFromObj(root)
        _check_inside(model)
        return _checked(model)
    except ConfigError:
        raise
    except Exception as error:  # the reader of flatbuffers raises whatever damage leads to
        raise ConfigError("the model is damaged: it cannot be read; copy it again") from error


def _checked(model: Any) -> Graph:
    subgraph = model.subgraphs[0]
    tensors = subgraph.tensors or []
    operators = tuple(_operator(model, i, len(tensors)) for i in range(len(subgraph.operators)))
    inputs, outputs = numbers_of(subgraph.inputs), numbers_of(subgraph.outputs)
    _check_numbers("the model's inputs", inputs, len(tensors))
    _check_numbers("the model's outputs", outputs, len(tensors))
    if len(inputs) != 1:
        raise ConfigError(
            f"the model has {len(inputs)} inputs; only a model of one input can be cut"
        )
    if not outputs:
        raise ConfigError("the model is damaged: it has no outputs")
    if len(set(outputs)) != len(outputs):
        raise ConfigError("the model has an output twice; only one of distinct ones can be cut")
    for tensor in tensors:
        _check_tensor(model, tensor)
    kept = [m.buffer for m in model.metadata or [] if m.name in KEPT_METADATA]
    _check_numbers("the buffer of its metadata", kept, len(model.buffers or []))
    _check_order(model, operators, inputs, outputs)
    return Graph(model, operators, inputs[0], outputs)


def _operator(model: Any, index: int, tensors: int) -> Operator:
    operator = model.subgraphs[0].operators[index]
    where = f"operator {index}"
    _check_numbers(f"the code of {where}", (operator.opcodeIndex,), len(model.operatorCodes or []))
    code = model.operatorCodes[operator.opcodeIndex]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    names = _operator_names()
    if number not in names:
        raise ConfigError(f"{where} is of a kind ({number}) that is unknown here; it is too new")
    name = names[number]
    if name == "CUSTOM":
        name = (code.customCode or b"CUSTOM").decode(errors="replace")
    for kind, options in (
        (operator.builtinOptionsType, operator.builtinOptions),
        (operator.builtinOptions2Type, operator.builtinOptions2),
    ):
        if kind and options is None:
            raise ConfigError(f"{where} ({name}) has options that are unknown here; it is too new")
    if any(word in name for word in STATEFUL):
        raise ConfigError(
            f"the model keeps state or draws random numbers ({name}); such a model cannot be cut"
        )
    if name in CALLING:
        raise ConfigError(f"the model has control flow ({name}); such a model cannot be cut")
    reads, writes = numbers_of(operator.inputs), numbers_of(operator.outputs)
    inner = numbers_of(operator.intermediates)
    for what, numbers in (("reads", reads), ("writes", writes), ("uses inside", inner)):
        _check_numbers(f"what {where} {what}", [n for n in numbers if n != -1], tensors)
    return Operator(name, tuple(n for n in reads if n >= 0), tuple(n for n in writes if n >= 0))


def _check_inside(model: Any) -> None:
    """Raise ConfigError if data lies outside the flatbuffer, as in models over 2 GB.

    An offset or size of 1 means none too: it is a place holder for one filled in later.
    """
    operators = model.subgraphs[0].operators or []
    if (
        any(buffer.offset > 1 or buffer.size > 1 for buffer in model.buffers or [])
        or any(operator.largeCustomOptionsOffset > 1 for operator in operators)
        or getattr(model, "externalBuffers", None)
    ):
        raise ConfigError(
            "the model keeps data outside its flatbuffer, as models over 2 GB do; "
            "such a model cannot be cut"
        )
    if not operators:
        raise ConfigError("the model has no operators; there is nothing to cut")


def _check_tensor(model: Any, tensor: Any) -> None:
    name = _name(tensor)
    if tensor.isVariable:
        raise ConfigError(
            f"the model keeps state from one input to the next ({name}); a tail on a server "
            "would mix that of its clients, so such a model cannot be cut"
        )
    shape = numbers_of(tensor.shape)
    if any(side < 0 for side in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise ConfigError(f"the model is damaged: tensor {name} has the shape {shape}")
    _check_numbers(f"the buffer of {name}", (tensor.buffer,), len(model.buffers or []))
    data, dtype = data_of(model, tensor.buffer), _types().get(tensor.type)
    if data is None or dtype is None or tensor.sparsity is not None:
        return
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ConfigError(
            f"the model is damaged: tensor {name} has {len(data)} bytes, not those of its shape "
            f"{shape}"
        )


def _check_order(
    model: Any, operators: Sequence[Operator], inputs: Sequence[int], outputs: Sequence[int]
) -> None:
    """Raise ConfigError unless everything is computed once, and before it is read."""
    tensors = model.subgraphs[0].tensors
    constant = {i for i, t in enumerate(tensors) if data_of(model, t.buffer) is not None}
    empty = {i for i, t in enumerate(tensors) if math.prod(numbers_of(t.shape)) == 0}
    if constant & set(inputs):
        raise ConfigError("the model is damaged: its input is a constant")
    written = set(inputs)
    for index, operator in enumerate(operators):
        if missing := [n for n in operator.reads if n not in written | constant | empty]:
            raise ConfigError(
                f"the model is damaged: operator {index} reads tensor {missing[0]} before "
                "anything computes it"
            )
        twice = (written | constant) & set(operator.writes)
        if twice or len(set(operator.writes)) != len(operator.writes):
            raise ConfigError(
                f"the model is damaged: operator {index} writes what is there already"
            )
        written.update(operator.writes)
    if not set(outputs) <= written | constant:
        raise ConfigError("the model is damaged: nothing computes one of its outputs")


def _check_numbers(what: str, numbers: Iterable[int], count: int) -> None:
    if any(not 0 <= number < count for number in numbers):
        raise ConfigError(f"the model is damaged: {what} is not in the file")


def _name(tensor: Any) -> str:
    # Strictly: the interpreters cannot say a name that is no UTF-8.
    return (tensor.name or b"").decode()


def data_of(model: Any, number: int) -> np.ndarray | None:
    """The bytes of a buffer, uint8; None if it has none."""
    data = model.buffers[number].data
    return None if data is None or len(data) == 0 else np.asarray(data, np.uint8)


def numbers_of(values: Any) -> tuple[int, ...]:
    """A vector of the schema's, which may be absent, as numbers."""
    return () if values is None else tuple(int(value) for value in values)
