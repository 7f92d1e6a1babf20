"""A served .tflite without a server: options, declarations, checks of requests."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infi_edge.errors import ConfigError, ExecutorError
from infi_edge.executors.link import RemoteTensor
from infi_edge.serving.model import ServedModel, serving_options
from infi_edge.serving.request import (
    Given,
    RequestError,
    picture_bytes,
    picture_size,
    tensor_values,
)
from tests.conftest import MODELS, ROOT, need
from tests.offload.bare_client import picture
from tests.offload.conftest import FACE, MOBILENET


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({"input": "jpg"}, "model's parameters"),
        ({"inputs": "jpeg"}, "unknown field `inputs`"),
        ({"input": "jpeg"}, '"decoder" goes with'),
        ({"decoder": "yolov5"}, '"decoder" goes with'),
        ({"threads": 0}, "1 or more"),
        ({"threads": "2"}, "model's parameters"),
        ({"max_pixels": 0}, "1 or more"),
        ([], "model's parameters"),
    ],
)
def test_options_that_make_no_sense_are_refused(extra: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        serving_options(extra)


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({"input": "jpeg", "decoder": "yolo"}, "unknown decoder"),
        ({"input": "features", "features": "float32"}, "takes uint8 features"),
    ],
)
def test_options_that_do_not_fit_the_file_are_refused(extra: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ServedModel(need(MOBILENET), serving_options(extra))


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExecutorError, match="cannot be read"):
        ServedModel(tmp_path / "none.tflite", serving_options({}))
    (tmp_path / "bad.tflite").write_bytes(b"0000TFL3" + bytes(100))
    with pytest.raises(ExecutorError, match=r"bad\.tflite"):
        ServedModel(tmp_path / "bad.tflite", serving_options({}))


@pytest.mark.parametrize("path", sorted(MODELS.glob("*/*.tflite")), ids=lambda p: p.stem)
def test_every_model_here_can_be_served(path: Path) -> None:
    served = ServedModel(path, serving_options({}))
    zeros = [Given(t.name, t.datatype, t.shape, [0] * int(np.prod(t.shape))) for t in served.inputs]
    for tensor, array in served.infer(zeros):
        assert tensor.datatype == "FP32"
        assert array.dtype == np.float32
        assert tensor.shape == array.shape


def test_the_runtime_names_what_is_missing_without_mlserver() -> None:
    code = "import sys; sys.modules['mlserver'] = None; import infi_edge.serving.tflite"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode
    assert "pip install 'infi-edge[server]'" in ran.stderr.splitlines()[-1]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=8,
)
DATATYPES = ("FP32", "UINT8", "INT8", "INT64", "FP16", "BOOL", "FP64")


@settings(max_examples=300)
@given(datatype=st.sampled_from(DATATYPES), data=ANYTHING)
def test_any_data_is_an_array_of_the_declared_type_or_refused(datatype: str, data: Any) -> None:
    tensor = RemoteTensor("x", datatype, (2, 2))
    try:
        array = tensor_values(Given("x", datatype, (2, 2), data), tensor)
    except RequestError:
        return
    assert array.shape == (2, 2)
    assert not np.isnan(array).any()


@settings(max_examples=300)
@given(data=ANYTHING)
def test_any_data_is_a_picture_or_refused(data: Any) -> None:
    with contextlib.suppress(RequestError):
        content = picture_bytes(Given("image", "BYTES", (1,), data))
        assert content.startswith((b"\xff", b"\x89"))


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=64), at=st.integers(0, 200))
def test_a_damaged_picture_is_answered_or_refused(content: bytes, at: int) -> None:
    served = _face()
    whole = picture(width=32, height=32)
    damaged = whole[:at] + content + whole[at + len(content) :]
    try:
        outputs = served.infer([Given("image", "BYTES", (1,), [damaged])])
    except RequestError:
        return
    assert len(outputs) == 3


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_the_size_of_a_picture_is_read_from_its_header(suffix: str) -> None:
    assert picture_size(picture(suffix, 320, 200)) == (320, 200)
    assert picture_size(picture(suffix)[:12]) == (0, 0)


def hidden(content: bytes, skipped: int) -> bytes:
    """A JPEG whose own header is in what some readers take for a segment, before a small one."""
    start = content.index(b"\xff\xdb")
    small = b"\xff\xc0\x00\x0b\x08\x00\x40\x00\x40\x01\x01\x11\x00"
    segment = b"\xff\x00" + (2 + skipped).to_bytes(2, "big") + content[start : start + skipped]
    return content[:start] + segment + small + content[start + skipped :]


def test_a_picture_with_a_second_header_is_not_taken_for_the_small_one() -> None:
    served, large = _face(), picture(width=1104, height=1000)
    with pytest.raises(RequestError, match="1104x1000; at most 1000000 pixels"):
        served.infer([Given("image", "BYTES", (1,), [hidden(large, 20000)])])


@settings(max_examples=1000, deadline=None)
@given(
    edits=st.lists(
        st.tuples(st.integers(2, 640), st.integers(0, 4), st.binary(max_size=6)), max_size=3
    )
)
def test_a_damaged_jpeg_is_decoded_at_the_size_that_was_checked(
    edits: list[tuple[int, int, bytes]],
) -> None:
    content = picture(width=64, height=48)
    for at, removed, added in edits:
        content = content[:at] + added + content[at + removed :]
    width, height = picture_size(content)
    if not 0 < width * height < 10**6:
        return
    frame = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if frame is not None:
        assert {width, height} == set(frame.shape[:2])


_CACHE: list[ServedModel] = []


def _face() -> ServedModel:
    if not _CACHE:
        options = serving_options({"input": "jpeg", "decoder": "blazeface", "max_pixels": 10**6})
        _CACHE.append(ServedModel(need(FACE), options))
    return _CACHE[0]
