"""Checks of what a server says and answers, before anything uses it."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np

from infi_edge.executors.link import DATATYPES, LinkError, RemoteMetadata, RemoteTensor

MAX_RANK = 16
MAX_TENSORS = 1000
MAX_NAME = 1000
MAX_TEXTS = 1 << 20


def remote_tensor(name: Any, datatype: Any, shape: Any, where: str) -> RemoteTensor:
    """Return a declared tensor. Raises LinkError if it is none."""
    good = (
        isinstance(name, str)
        and 0 < len(name) <= MAX_NAME
        and isinstance(datatype, str)
        and isinstance(shape, (list, tuple))
        and len(shape) <= MAX_RANK
        and all(isinstance(n, int) and not isinstance(n, bool) for n in shape)
        and all(-1 <= n < 1 << 40 for n in shape)
    )
    if not good:
        raise LinkError("answer", f"{where} declares a tensor that is none")
    return RemoteTensor(name, datatype[:100], tuple(shape))


def remote_metadata(
    name: Any, versions: Any, platform: Any, inputs: Any, outputs: Any, where: str
) -> RemoteMetadata:
    """Return what a server says of a model. inputs, outputs: (name, datatype, shape) each.

    Raises LinkError if it makes no sense.
    """
    versions = versions or []
    lists = isinstance(versions, (list, tuple)) and all(isinstance(v, str) for v in versions)
    if not lists or not isinstance(platform, str) or len(inputs) + len(outputs) > MAX_TENSORS:
        raise LinkError("answer", f"{where} describes the model in a way that cannot be read")
    told = RemoteMetadata(
        str(name)[:MAX_NAME],
        tuple(versions),
        platform,
        tuple(remote_tensor(n, kind, shape, where) for n, kind, shape in inputs),
        tuple(remote_tensor(n, kind, shape, where) for n, kind, shape in outputs),
    )
    for tensors in (told.inputs, told.outputs):
        if len({tensor.name for tensor in tensors}) < len(tensors):
            raise LinkError("answer", f"{where} declares two tensors of one name")
    return told


def from_bytes(
    content: bytes | memoryview, datatype: Any, shape: Any, name: str, where: str
) -> np.ndarray:
    """Return an output of its raw bytes, as a view of them where it can be one.

    BF16 becomes float32. Raises LinkError if they are not of the shape.
    """
    if datatype == "BYTES":
        return _shaped(_objects(_split(bytes(content), name, where)), shape, name, where)
    dtype = np.dtype(np.uint16) if datatype == "BF16" else _dtype(datatype, name, where)
    if len(content) % dtype.itemsize:
        raise _not_its_shape(name, where)
    array = np.frombuffer(content, dtype)
    if datatype == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    if not array.flags.aligned:
        array = array.copy()
    return _shaped(array, shape, name, where)


def from_numbers(
    data: Any, datatype: Any, shape: Any, name: str, where: str, content_type: Any = None
) -> np.ndarray:
    """Return an output of a JSON list, flat or nested; null is NaN. Raises LinkError.

    content_type: `base64` if that is what the texts of a BYTES output are.
    """
    if datatype == "BYTES":
        texts = _texts(_flat(data, name, where), name, where, content_type == "base64")
        return _shaped(_objects(texts), shape, name, where)
    dtype = np.dtype(np.float32) if datatype == "BF16" else _dtype(datatype, name, where)
    numbers = _flat(data, name, where)
    wrong = LinkError("answer", f"{where} answered {name[:100]} with what is no {datatype!s}")
    kinds = {"f": (int, float, type(None)), "b": (bool,)}.get(dtype.kind, (int,))
    for kind in set(map(type, numbers)):
        if kind not in kinds:
            raise wrong
    try:
        with np.errstate(over="ignore"):  # to infinity, which is a number
            wide = np.array(numbers, {"f": np.float64}.get(dtype.kind))
            if dtype.kind in "iu" and wide.size:
                limits: Any = np.iinfo(dtype)
                if not limits.min <= min(numbers) <= max(numbers) <= limits.max:
                    raise wrong
            return _shaped(wide.astype(dtype), shape, name, where)
    except (TypeError, ValueError, OverflowError) as error:
        raise wrong from error


def check_declared(array: np.ndarray, tensor: RemoteTensor | None, where: str) -> np.ndarray:
    """Return an output that is as the model has declared it. Raises LinkError."""
    if tensor is None:
        return array
    dtype = DATATYPES.get(tensor.datatype)
    same_rank = len(tensor.shape) == array.ndim
    fits = same_rank and all(
        want in (-1, got) for want, got in zip(tensor.shape, array.shape, strict=True)
    )
    if (tensor.shape and not fits) or (dtype is not None and array.dtype != dtype):
        raise LinkError(
            "answer",
            f"{where} answered {tensor.name} as {array.dtype} {list(array.shape)}, but it declares "
            f"{tensor.datatype} {list(tensor.shape)}",
        )
    return array


def _shaped(array: np.ndarray, shape: Any, name: str, where: str) -> np.ndarray:
    good = isinstance(shape, (list, tuple)) and len(shape) <= MAX_RANK
    good = good and all(type(n) is int and 0 <= n < 1 << 31 for n in shape)
    if not good or math.prod(shape) != array.size:
        raise _not_its_shape(name, where)
    try:
        return array.reshape(shape)
    except ValueError as error:  # nothing, but of a size that NumPy cannot count
        raise _not_its_shape(name, where) from error


def _not_its_shape(name: str, where: str) -> LinkError:
    return LinkError("answer", f"{where} answered {name[:100]} of a size that is not its shape")


def _dtype(datatype: Any, name: str, where: str) -> np.dtype[Any]:
    dtype = DATATYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        raise LinkError("answer", f"{where} answered {name[:100]} as {str(datatype)[:40]!r}")
    return dtype


def _objects(elements: list[bytes]) -> np.ndarray:
    array = np.empty(len(elements), object)
    array[:] = elements
    return array


def _split(content: bytes, name: str, where: str) -> list[bytes]:
    """Elements of a BYTES tensor: four bytes of length, little endian, before each."""
    elements: list[bytes] = []
    at = 0
    while at < len(content):
        end = at + 4 + int.from_bytes(content[at : at + 4], "little")
        if at + 4 > len(content) or end > len(content):
            raise LinkError("answer", f"{where} answered {name[:100]} cut short")
        if len(elements) == MAX_TEXTS:  # four bytes each on the way, ten times that here
            raise LinkError("answer", f"{where} answered {name[:100]} as too many texts")
        elements.append(content[at + 4 : end])
        at = end
    return elements


def _texts(data: list[Any], name: str, where: str, is_base64: bool) -> list[bytes]:
    try:
        texts = [t if isinstance(t, bytes) else t.encode() for t in data]
        return [base64.b64decode(t, validate=True) for t in texts] if is_base64 else texts
    except (AttributeError, ValueError) as error:
        raise LinkError("answer", f"{where} answered {name[:100]} with what is no text") from error


def _flat(data: Any, name: str, where: str) -> list[Any]:
    """A list of lists as one list; its depth is the server's choice, so it has a limit."""
    for _ in range(MAX_RANK):
        if not isinstance(data, list):
            break
        kinds = set(map(type, data))
        if list not in kinds:
            return data
        if len(kinds) > 1:
            break
        data = [number for part in data for number in part]
    raise LinkError("answer", f"{where} answered {name[:100]} with what is no list")
