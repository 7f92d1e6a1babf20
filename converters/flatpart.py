"""Write some of the operators of a graph as a .tflite of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from converters.flatgraph import KEPT_METADATA, Graph, data_of, load_schema, numbers_of


def part(
    graph: Graph, operators: Iterable[int], inputs: Sequence[int], outputs: Sequence[int]
) -> bytes:
    """Write a model of some of the operators, with just the tensors, buffers and codes they use.

    operators: their numbers, in order. inputs, outputs: tensors of the whole.
    """
    schema = load_schema()
    whole, new = graph.model, schema.ModelT()
    chosen = [whole.subgraphs[0].operators[i] for i in operators]
    used = [*inputs, *outputs]
    for operator in chosen:
        for numbers in (operator.inputs, operator.outputs, operator.intermediates):
            used.extend(n for n in numbers_of(numbers) if n >= 0)
    tensors = _renumbered(used)
    codes = _renumbered(operator.opcodeIndex for operator in chosen)
    kept = [m for m in whole.metadata or [] if m.name in KEPT_METADATA]
    buffers = _renumbered(
        [
            *(n for t in tensors if data_of(whole, n := graph.tensor(t).buffer) is not None),
            *(m.buffer for m in kept),
        ],
        first=1,
    )
    new.version, new.description = whole.version, whole.description
    new.operatorCodes = [whole.operatorCodes[code] for code in codes]
    new.buffers = [_Buffer(None), *(_Buffer(data_of(whole, number)) for number in buffers)]
    new.metadata = [_copy(m, buffer=buffers[m.buffer]) for m in kept] or None
    subgraph = _copy(
        whole.subgraphs[0],
        inputs=[tensors[n] for n in inputs],
        outputs=[tensors[n] for n in outputs],
        debugMetadataIndex=-1,
    )
    # Tensors that are computed have no data: they share the empty buffer 0, as is usual.
    subgraph.tensors = [
        _copy(graph.tensor(n), buffer=buffers.get(graph.tensor(n).buffer, 0)) for n in tensors
    ]
    subgraph.operators = [
        _copy(
            operator,
            opcodeIndex=codes[operator.opcodeIndex],
            inputs=_mapped(operator.inputs, tensors),
            outputs=_mapped(operator.outputs, tensors),
            intermediates=_mapped(operator.intermediates, tensors),
            debugMetadataIndex=-1,
        )
        for operator in chosen
    ]
    new.subgraphs = [subgraph]
    builder = schema.flatbuffers.Builder(1024)
    builder.Finish(new.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


class _Buffer:
    """A buffer that packs itself at the 16 bytes' alignment the schema asks for; the generated
    Python classes do not, and kernels on Arm may read weights as aligned."""

    def __init__(self, data: np.ndarray | None) -> None:
        self._data = data

    def Pack(self, builder: Any) -> Any:
        schema, vector = load_schema(), None
        if self._data is not None:
            payload = self._data.tobytes()
            builder.StartVector(1, len(payload), 16)
            builder.head -= len(payload)
            builder.Bytes[builder.head : builder.head + len(payload)] = payload
            vector = builder.EndVector()
        schema.BufferStart(builder)
        if vector is not None:
            schema.BufferAddData(builder, vector)
        return schema.BufferEnd(builder)


def _renumbered(numbers: Iterable[int], first: int = 0) -> dict[int, int]:
    return {number: first + i for i, number in enumerate(sorted(set(numbers)))}


def _mapped(numbers: Any, to: dict[int, int]) -> list[int] | None:
    return None if numbers is None else [to.get(n, -1) for n in numbers_of(numbers)]


def _copy(item: Any, **changes: Any) -> Any:
    new = type(item)()
    vars(new).update(vars(item), **changes)
    return new
