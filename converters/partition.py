"""Cut a model in two: the head runs on the device, the tail on a server (InFi, section 6).

A cut is a tensor through which all later computation goes, so that it alone is sent.
"""

from __future__ import annotations

import difflib
import io
import math
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.flatgraph import Graph, read_graph
from converters.flatpart import part
from infi_edge.errors import ConfigError
from infi_edge.executors.offload import quantized

MAX_LABELS_BYTES = 16 << 20
NEAR_NAMES = 3


@dataclass(frozen=True, slots=True)
class Cut:
    """A place where a model can be cut.

    number: from 1, in the order of computation. tensor: its name, which need not be unique.
    index: the tensor's number in the file. operators: how many of the model's that depend on the
    input lie before it. Real value = (stored - zero_point) * scale; scale 0: not quantized.
    """

    number: int
    tensor: str
    index: int
    operators: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scale: float
    zero_point: int

    @property
    def bytes_as_is(self) -> int:
        """Size of one feature map as the head computes it."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def bytes_int8(self) -> int:
        """Size with a float map sent as 8-bit numbers; others are sent as they are."""
        return math.prod(self.shape) if self.dtype.kind == "f" else self.bytes_as_is


def cuts(content: bytes) -> list[Cut]:
    """Return where a model can be cut, in the order of computation; empty if nowhere.

    content: the bytes of a .tflite. Raises ConfigError for one that is damaged or of a kind that
    cannot be cut.
    """
    return find_cuts(read_graph(content))


def split(content: bytes, tensor: str) -> tuple[bytes, bytes]:
    """Return (head, tail), the bytes of two .tflite files.

    tensor: the name of a cut, or its number. The head's only output and the tail's only input are
    this tensor, alike in name, shape, type and quantization; the tail has all of the model's
    outputs in their order. Both have at least one operator, and constants that both need are in
    both. Label files in the model's metadata go with the tail. Raises ConfigError.
    """
    graph = read_graph(content)
    cut = find_cut(find_cuts(graph), tensor)
    return split_at(graph, cut, content)


def split_at(graph: Graph, cut: Cut, content: bytes) -> tuple[bytes, bytes]:
    """Return (head, tail) for a cut of the graph that was read from `content`."""
    head = part(graph, _needed(graph, (cut.index,)), (graph.input,), (cut.index,))
    tail = part(graph, _needed(graph, graph.outputs, cut.index), (cut.index,), graph.outputs)
    return head, _with_labels(tail, content)


def find_cuts(graph: Graph) -> list[Cut]:
    """Return where a graph can be cut.

    After each operator the tensors that are still to be read are counted, constants aside: where
    just one is left, all that follows goes through it.
    """
    moving = _moving(graph)
    order = [i for i in _needed(graph, graph.outputs) if set(graph.operators[i].reads) & moving]
    last_read = {t: i for i in order for t in graph.operators[i].reads}
    last_read.update(dict.fromkeys(graph.outputs, len(graph.operators)))
    open_tensors = {graph.input} & set(last_read)
    found: list[Cut] = []
    for done, i in enumerate(order, start=1):
        operator = graph.operators[i]
        open_tensors.update(t for t in operator.writes if t in last_read)
        open_tensors -= {t for t in operator.reads if last_read[t] == i}
        if len(open_tensors) != 1:
            continue
        (index,) = open_tensors
        dtype = graph.dtype(index)
        if dtype is None or index in graph.outputs or not _is_static(graph, index):
            continue
        found.append(
            Cut(
                len(found) + 1,
                graph.name(index),
                index,
                done,
                graph.shape(index),
                dtype,
                *graph.quantization(index),
            )
        )
    return found


def find_cut(found: list[Cut], tensor: str) -> Cut:
    """Return the cut of that name or number. Raises ConfigError, with near names."""
    named = [cut for cut in found if cut.tensor == tensor]
    if len(named) > 1:
        numbers = ", ".join(str(cut.number) for cut in named)
        raise ConfigError(f"{tensor} is the name of the cuts {numbers}; give a number")
    if named:
        return named[0]
    if tensor.isascii() and tensor.isdigit() and 1 <= int(tensor) <= len(found):
        return found[int(tensor) - 1]
    need_cuts(found)
    near = difflib.get_close_matches(tensor, [cut.tensor for cut in found], NEAR_NAMES, 0.3)
    hint = f"near it are {', '.join(near)}" if near else f"it can be cut at 1 to {len(found)}"
    raise ConfigError(f"the model cannot be cut at {tensor!r}; {hint}; --list shows all")


def need_cuts(found: list[Cut]) -> None:
    """Raise ConfigError if there are none."""
    if not found:
        raise ConfigError(
            "the model cannot be cut: at no place does all later computation go through one "
            "tensor of a fixed shape; offload the whole model instead"
        )


def compressed_bytes(array: np.ndarray) -> int:
    """Size of a feature map as it would be sent, floats as int8, after zlib's level 1.

    Raises SourceError if a value is not a number.
    """
    sent = quantized(array)[0] if array.dtype.kind == "f" else array
    return len(zlib.compress(np.ascontiguousarray(sent).tobytes(), 1))


def _moving(graph: Graph) -> set[int]:
    """The tensors that depend on the input."""
    moving = {graph.input}
    for operator in graph.operators:
        if moving.intersection(operator.reads):
            moving.update(operator.writes)
    return moving


def _needed(graph: Graph, outputs: tuple[int, ...], given: int | None = None) -> list[int]:
    """The operators that compute `outputs`, in order, from the tensor `given` on."""
    wanted: set[int | None] = {*outputs}
    found = []
    for i in range(len(graph.operators) - 1, -1, -1):
        operator = graph.operators[i]
        if wanted.intersection(operator.writes):
            wanted.update(operator.reads)
            wanted.discard(given)
            found.append(i)
    return found[::-1]


def _is_static(graph: Graph, index: int) -> bool:
    """Whether the shape is the file's for every input; a batch as free as the input's is."""
    shape, free = graph.shape(index), graph.signature(index)
    if not shape or 0 in shape:
        return False
    inputs = graph.signature(graph.input)
    batch_is_free = bool(inputs) and inputs[0] == -1
    return -1 not in (free[1:] if batch_is_free else free)


def _with_labels(tail: bytes, content: bytes) -> bytes:
    """Append the label files of a model's metadata, a ZIP behind the flatbuffer, to its tail.

    None are appended if they are damaged or, unpacked, larger than MAX_LABELS_BYTES.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = archive.infolist()
            if sum(info.file_size for info in infos) > MAX_LABELS_BYTES:
                return tail
            files = {info.filename: archive.read(info) for info in infos}
    except Exception:  # zipfile raises whatever damage leads to: such labels nobody could read
        return tail
    joined = io.BytesIO(tail)
    with zipfile.ZipFile(joined, "a") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return joined.getvalue()
