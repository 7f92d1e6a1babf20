"""Models built without a converter: operators that add, as the schema's objects and as files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from converters.flatgraph import load_schema

schema = load_schema()
Edge = Sequence[int]


def model_of(operators: Sequence[tuple[Edge, int]], outputs: Sequence[int], count: int) -> Any:
    """The schema's object of a model that adds: ((a, b), sum), ... over float32 tensors (1, 4).

    Tensor 0 is the input, tensor 1 a constant; `count` tensors in all.
    """
    model, subgraph = schema.ModelT(), schema.SubGraphT()
    model.version = 3
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    code.version = 1
    model.operatorCodes = [code]
    empty, full = schema.BufferT(), schema.BufferT()
    full.data = np.array([0.1, 0.2, 0.3, 0.4], np.float32).view(np.uint8)
    model.buffers = [empty, full]
    subgraph.tensors = []
    for i in range(count):
        tensor = schema.TensorT()
        tensor.shape, tensor.name, tensor.buffer = [1, 4], f"t{i}", int(i == 1)
        tensor.type = schema.TensorType.FLOAT32
        subgraph.tensors.append(tensor)
    subgraph.operators = []
    for reads, write in operators:
        operator = schema.OperatorT()
        operator.inputs, operator.outputs = list(reads), [write]
        operator.builtinOptionsType = schema.BuiltinOptions.AddOptions
        operator.builtinOptions = schema.AddOptionsT()
        subgraph.operators.append(operator)
    subgraph.inputs, subgraph.outputs = [0], list(outputs)
    model.subgraphs = [subgraph]
    return model


def packed(model: Any) -> bytes:
    builder = schema.flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def adding(operators: Sequence[tuple[Edge, int]], outputs: Sequence[int]) -> bytes:
    """A model that adds, with as many tensors as are needed."""
    return packed(model_of(operators, outputs, 2 + len(operators)))


CHAIN = adding([((0, 1), 2), ((2, 1), 3), ((3, 3), 4)], [4])


def opened(content: bytes) -> Any:
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
