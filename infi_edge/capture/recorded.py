"""What `infi-edge record` keeps: inputs as the model saw them, and what it said of each.

FOLDER/recording.json says of what kind they are and of which workload; the inputs lie in the
segments of a journal. Nothing is unpickled.
"""

from __future__ import annotations

import array
import hashlib
import io
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import cv2
import msgspec
import numpy as np

from infi_edge.archive import array_bytes
from infi_edge.bundle import WorkloadInfo
from infi_edge.capture.journal import read_records, segments
from infi_edge.config import Polygon
from infi_edge.errors import SourceError
from infi_edge.preprocess import (
    AudioSpec,
    FeaturesSpec,
    MotionSpec,
    Spec,
    VideoSpec,
    parse_spec,
)
from infi_edge.tasks import Value
from infi_edge.types import Sample

log = logging.getLogger("infi_edge")

NAME = "recording.json"
FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 4 << 20
JPEG_QUALITY = 95

Encoding = Literal["jpeg", "png", "pcm16", "text", "npy"]
"""jpeg, png: a picture, or a list of them. pcm16: little-endian samples. text: UTF-8."""

_FORM: dict[type[Spec], tuple[str, ...]] = {
    AudioSpec: ("rate_hz", "window_ms", "hop_ms"),
    MotionSpec: ("channels", "window", "hop", "rate_hz"),
    VideoSpec: ("frames", "hop"),
    FeaturesSpec: ("size", "type"),
}
"""The fields that say what an input is, not what the filter makes of it."""


class RecordingManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """recording.json.

    preprocess: of the filter's input, as in a bundle. decoding_version: of the answers.
    reduced: (width, height) if only pictures so small are kept, though the model saw whole ones.
    masks: what was blanked. inferred_only: the inputs are those that a gate has inferred, no even
    share of the stream. made: facts for people (the source, when, by what).
    """

    format_version: int
    modality: str
    preprocess: dict[str, Any]
    workload: WorkloadInfo
    decoding_version: int
    reduced: tuple[int, int] | None = None
    masks: tuple[Polygon, ...] = ()
    inferred_only: bool = False
    made: dict[str, str] = {}

    def same_workload(self, other: RecordingManifest) -> bool:
        """Whether inputs of both may lie in one recording."""
        return msgspec.structs.replace(self, made={}) == msgspec.structs.replace(other, made={})


class Head(msgspec.Struct, frozen=True, array_like=True):
    """index: since the recording began. time_s: increases. error: why there is no value."""

    index: int
    time_s: float
    error: str | None


class _Answer(Head, frozen=True, array_like=True):
    value: Value


class StoredInput(_Answer, frozen=True, array_like=True):
    """One record. The parts are in this order so that a reader can stop after what it needs."""

    encoding: Encoding
    data: bytes | list[bytes]


_heads = msgspec.msgpack.Decoder(Head)
_answers = msgspec.msgpack.Decoder(_Answer)
_inputs = msgspec.msgpack.Decoder(StoredInput)


def read_head(content: bytes) -> Head:
    """Return the first fields of a record. Raises SourceError if it is none of an input."""
    try:
        return _heads.decode(content)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise SourceError(f"a record that makes no sense: {error}") from error


def encode_picture(frame: np.ndarray | bytes, lossless: bool = False) -> bytes:
    """Return a frame, uint8 (H, W, 3) or (H, W), as JPEG or PNG; JPEG bytes are kept as they are.

    Raises SourceError if it is no picture.
    """
    if isinstance(frame, bytes) and not lossless:
        return frame
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8:
        raise SourceError(f"not a picture: {_kind(frame)}")
    suffix, how = (".png", []) if lossless else (".jpg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    try:
        return cv2.imencode(suffix, frame, how)[1].tobytes()
    except cv2.error as error:  # no rows, four axes, more pixels than a JPEG may have
        raise SourceError(f"not a picture that can be kept: {_kind(frame)}") from error


def encode_input(data: Any, modality: str) -> tuple[Encoding, bytes | list[bytes]]:
    """Return an input as it is stored. Raises SourceError if it is not of its modality."""
    try:
        if modality == "image":
            return "jpeg", encode_picture(data)
        if modality == "video":
            return "jpeg", [encode_picture(frame) for frame in data]
        if modality == "audio":
            if data.dtype == np.int16:
                return "pcm16", data.astype("<i2").tobytes()
            levels = np.clip(np.rint(data.astype(np.float64) * 32768.0), -32768, 32767)
            return "pcm16", levels.astype("<i2").tobytes()
        if modality == "text":
            return "text", data.encode("utf-8", "surrogatepass")
        numbers = np.asarray(data)
        if numbers.dtype.kind not in "biuf":
            raise TypeError
        return "npy", array_bytes(numbers)
    except (AttributeError, TypeError, ValueError) as error:
        raise SourceError(f"not of modality {modality}: {_kind(data)}") from error


def _kind(data: Any) -> str:
    return f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__


def decode_input(encoding: Encoding, data: bytes | list[bytes]) -> Any:
    """Return an input as a Sample has it; JPEGs as their bytes. Raises SourceError."""
    if isinstance(data, list):
        if encoding not in ("jpeg", "png"):
            raise SourceError(f"a list of {encoding}")
        return [decode_input(encoding, part) for part in data]
    try:
        if encoding == "jpeg":
            return data
        if encoding == "text":
            return data.decode("utf-8", "surrogatepass")
        if encoding == "pcm16":
            return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)
        if encoding == "npy":
            return _array(data)
        frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except (ValueError, cv2.error) as error:
        raise SourceError(f"no {encoding} that can be decoded") from error
    if frame is None:
        raise SourceError(f"no {encoding} that can be decoded")
    return frame


def _array(content: bytes) -> np.ndarray:
    """The array of a .npy; its header is compared with what is there before anything is made."""
    stream = io.BytesIO(content)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("version")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # NumPy's header parser raises what Python's own parsers raise
        raise ValueError("header") from error
    body = memoryview(content)[stream.tell() :]
    count = 1
    for side in shape:
        count *= side
    if fortran or dtype.kind not in "biuf" or len(body) != count * dtype.itemsize:
        raise ValueError("array")
    return np.frombuffer(body, dtype).reshape(shape).copy()


def is_recorded(path: Path) -> bool:
    """Whether a path is a folder that `infi-edge record` has written."""
    try:
        return (path / NAME).is_file()
    except (OSError, ValueError):  # no permission, a name too long, a NUL in it
        return False


def read_manifest(folder: Path) -> RecordingManifest:
    """Return what a recording says of itself. Raises SourceError."""
    path = folder / NAME
    try:
        with path.open("rb") as file:
            content = file.read(MAX_MANIFEST_BYTES)
        version = msgspec.json.decode(content, type=dict[str, Any]).get("format_version")
        if version == FORMAT_VERSION:
            return msgspec.json.decode(content, type=RecordingManifest)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise SourceError(f"{path} is damaged, or not of a recording: {error}") from error
    raise SourceError(
        f"{path} has format {version!r}, this program reads {FORMAT_VERSION}; upgrade infi-edge"
    )


class Recorded:
    """A recording folder as a `Recording`: inputs that the model has answered, in their order.

    Their times are the recorded ones, relative to the first, with the gaps there were; rate_hz is
    of the median step. In memory are an index and the input at hand.
    """

    def __init__(self, folder: Path) -> None:
        """Find all whole records. Raises SourceError if there is none, or BundleError."""
        self.name, self.manifest = str(folder), read_manifest(folder)
        self.spec = parse_spec(self.manifest.preprocess, self.manifest.modality, str(folder / NAME))
        try:
            self._files = segments(folder)
        except OSError as error:
            raise SourceError(f"{folder} cannot be read: {error.strerror}") from error
        self._places = (array.array("q"), array.array("q"), array.array("q"))
        times = array.array("d")
        failed = spoilt = 0
        for number, file in enumerate(self._files):
            for offset, content in read_records(file):
                try:
                    head = read_head(content)
                except SourceError:
                    spoilt += 1
                    continue
                if head.error is not None:
                    failed += 1
                elif not math.isfinite(head.time_s):
                    spoilt += 1
                else:
                    times.append(head.time_s)
                    for column, place in zip(
                        self._places, (number, offset, len(content)), strict=True
                    ):
                        column.append(place)
        if failed:
            log.warning("%s: %d inputs that the model failed on are left out", folder, failed)
        if spoilt:
            log.warning("%s: %d records that make no sense are left out", folder, spoilt)
        if not times:
            raise SourceError(f"{folder} holds no input that the model has answered")
        self._times_s = np.maximum.accumulate(np.array(times))
        self._times_s -= self._times_s[0]
        steps = np.diff(self._times_s)
        usual = float(np.median(steps)) if len(steps) else 0.0
        self.rate_hz = float(f"{1.0 / usual:.6g}") if usual > 0 else 1.0
        self.count = len(times)

    def samples(self, first: int = 0, last: int | None = None) -> Iterator[Sample]:
        last = self.count if last is None else min(last, self.count)
        for index, content in enumerate(self._contents(first, last), first):
            try:
                stored = _inputs.decode(content)
                data = decode_input(stored.encoding, stored.data)
            except (msgspec.MsgspecError, UnicodeError, RecursionError, SourceError) as error:
                raise SourceError(f"{self.name}, input {index}, is damaged: {error}") from error
            yield Sample(data, float(self._times_s[index]), index, self.name)

    def times_s(self, first: int, last: int) -> np.ndarray:
        """The times of inputs first..last-1, float64, as `samples` gives them."""
        return self._times_s[first:last].copy()

    def answers(self, first: int, last: int) -> list[Value]:
        """What the model said of inputs first..last-1. Raises SourceError."""
        try:
            return [_answers.decode(content).value for content in self._contents(first, last)]
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise SourceError(f"{self.name} holds an answer that is damaged: {error}") from error

    def content_hash(self) -> str:
        """SHA-256 of the inputs with their times and answers, and of how they are read."""
        digest = hashlib.sha256(msgspec.json.encode(self.manifest.preprocess, order="sorted"))
        for content in self._contents(0, self.count):
            digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()

    def _contents(self, first: int, last: int) -> Iterator[bytes]:
        numbers, offsets, lengths = self._places
        index = first
        while index < last:
            number = numbers[index]
            try:
                with self._files[number].open("rb") as file:
                    while index < last and numbers[index] == number:
                        file.seek(offsets[index])
                        yield file.read(lengths[index])
                        index += 1
            except OSError as error:
                raise SourceError(
                    f"{self._files[number]} cannot be read: {error.strerror}"
                ) from error


def open_recorded(folder: Path, spec: Spec | None) -> Recorded:
    """Open a recording as inputs that `spec` describes; None: as they are. Raises SourceError."""
    recorded = Recorded(folder)
    if spec is None:
        return recorded
    if type(spec) is not type(recorded.spec):
        tag = type(spec).__struct_config__.tag
        raise SourceError(
            f"{folder} holds {recorded.manifest.modality} inputs, the filter reads {tag}"
        )
    for field in _FORM.get(type(spec), ()):
        there, wanted = getattr(recorded.spec, field), getattr(spec, field)
        if there != wanted and None not in (there, wanted):
            raise SourceError(
                f"{folder} was recorded with {field}={_text(there)}, the filter reads "
                f"{_text(wanted)}; record it again with that"
            )
    return recorded


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def recorded_manifest(text: str) -> RecordingManifest | None:
    """Return what a recording says of its workload; None if the path is no such folder."""
    return read_manifest(Path(text)) if is_recorded(Path(text)) else None
