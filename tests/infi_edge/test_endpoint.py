"""Addresses of served models, what a server is shown of us, and what it may answer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi_edge.errors import ConfigError
from infi_edge.executors.credentials import Credentials, quoted
from infi_edge.executors.endpoint import Endpoint, is_endpoint, parse_endpoint
from infi_edge.executors.link import DATATYPES, LinkError, RemoteTensor
from infi_edge.executors.tensors import (
    MAX_TEXTS,
    check_declared,
    from_bytes,
    from_numbers,
    remote_metadata,
)

HERE = Endpoint("grpc", "127.0.0.1", 8001, "yolo")
THERE = Endpoint("http", "edge", 80, "yolo")
SECURE = Endpoint("https", "edge", 443, "yolo")


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("grpc://edge/yolo", Endpoint("grpc", "edge", 8001, "yolo")),
        ("grpcs://edge:9/yolo/versions/2", Endpoint("grpcs", "edge", 9, "yolo", "2")),
        ("grpc://[fe80::1]:9/yolo", Endpoint("grpc", "fe80::1", 9, "yolo")),
        ("http://edge/v2/models/yolo", Endpoint("http", "edge", 80, "yolo")),
        ("https://edge/v2/models/yolo/versions/1", Endpoint("https", "edge", 443, "yolo", "1")),
        ("http://edge:8080/a/b/v2/models/y.1", Endpoint("http", "edge", 8080, "y.1", "", "/a/b")),
    ],
)
def test_an_address_is_read_and_written_the_same(text: str, endpoint: Endpoint) -> None:
    assert is_endpoint(text)
    assert parse_endpoint(text) == endpoint
    assert parse_endpoint(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "text",
    [
        "grpc://edge", "grpc:///yolo", "grpc://edge/a/b", "http://edge/yolo", "ftp://edge/yolo",
        "http://edge/v2/models/", "http://edge/v2/models/../x", "grpc://edge:x/yolo",
        "grpc://edge:99999/yolo", "http://edge/v2/models/yolo?x=1", "grpc://edge/yo%0dlo",
        "http://[edge/v2/models/yolo", "grpc://edge/yolo/versions/",
    ],
)  # fmt: skip
def test_an_address_that_names_no_model_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_endpoint(text)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError) as error:
        parse_endpoint("http://user:s3cret@edge/v2/models/yolo")
    assert "s3cret" not in str(error.value)


def test_a_path_is_no_address() -> None:
    assert not is_endpoint("models/yolo.tflite")
    assert not is_endpoint("module:function")


# Credentials.


def test_a_token_is_read_anew_when_others_replace_it(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("  first\n")
    credentials = Credentials(token_file=str(file))
    assert credentials.token() == "first"
    file.write_text("other\n")
    assert credentials.token() == "other"


@pytest.mark.parametrize("content", ["", " \n", "two words", "kä", "a\x00b"])
def test_what_is_no_token_is_refused_without_being_repeated(tmp_path: Path, content: str) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    with pytest.raises(ConfigError, match="holds no bearer token") as error:
        Credentials(token_file=str(file)).check(HERE)
    assert "words" not in str(error.value)


def test_a_token_that_is_not_there_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"token_file .*cannot be read: no such file"):
        Credentials(token_file=str(tmp_path / "none")).token()
    monkeypatch.delenv("EDGE_TOKEN", raising=False)
    with pytest.raises(ConfigError, match=r"\$EDGE_TOKEN holds no bearer token"):
        Credentials(token_env="EDGE_TOKEN").token()
    with pytest.raises(ConfigError, match="not both"):
        Credentials(token_env="A", token_file="b").check(HERE)


def test_a_token_never_goes_out_in_the_clear_but_to_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EDGE_TOKEN", "s3cret")
    credentials = Credentials(token_env="EDGE_TOKEN")
    credentials.check(HERE)
    credentials.check(SECURE)
    with pytest.raises(ConfigError, match="unencrypted; use https://") as error:
        credentials.check(THERE)
    assert "s3cret" not in str(error.value)
    assert "s3cret" not in repr(credentials)


def test_certificates_need_an_encrypted_address_and_files_that_hold_some(tmp_path: Path) -> None:
    junk = tmp_path / "ca.pem"
    junk.write_text("no certificate")
    with pytest.raises(ConfigError, match=r"not encrypted; use grpcs://"):
        Credentials(ca_file=str(junk)).check(HERE)
    with pytest.raises(ConfigError, match=r"ca_file .*ca.pem cannot be used"):
        Credentials(ca_file=str(junk)).context()
    with pytest.raises(ConfigError, match=r"cert_file .*ca.pem cannot be used"):
        Credentials(cert_file=str(junk)).context()
    with pytest.raises(ConfigError, match="key_file is given without cert_file"):
        Credentials(key_file=str(junk)).check(SECURE)
    with pytest.raises(ConfigError, match=r"ca_file .*cannot be read"):
        Credentials(ca_file=str(tmp_path / "none")).check(SECURE)


def test_an_echoed_token_is_hidden_before_words_are_cut_short() -> None:
    for before in range(190, 205):
        words = quoted("x" * before + "s3cret-token", "s3cret-token")
        assert "s3c" not in words
        assert len(words) <= 200


# What a server may answer.


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_a_tensor_survives_bytes_and_numbers(datatype: str) -> None:
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(DATATYPES[datatype])
    for back in (
        from_bytes(array.tobytes(), datatype, [2, 3], "y", "there"),
        from_numbers(array.tolist(), datatype, [2, 3], "y", "there"),
        from_numbers(array.ravel().tolist(), datatype, [2, 3], "y", "there"),
    ):
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)


def test_half_precision_of_the_other_kind_becomes_float32() -> None:
    array = from_bytes(np.array([0x3F80, 0xC000], np.uint16).tobytes(), "BF16", [2], "y", "there")
    np.testing.assert_array_equal(array, np.array([1.0, -2.0], np.float32))


def test_an_unaligned_answer_is_aligned_for_use() -> None:
    content = memoryview(b"?" + np.arange(3, dtype=np.float64).tobytes())[1:]
    array = from_bytes(content, "FP64", [3], "y", "there")
    assert array.flags.aligned
    np.testing.assert_array_equal(array, [0.0, 1.0, 2.0])


def test_null_is_not_a_number() -> None:
    array = from_numbers([1.5, None], "FP32", [2], "y", "there")
    assert array[0] == 1.5
    assert math.isnan(array[1])


def test_texts_come_as_bytes() -> None:
    packed = b"\x02\x00\x00\x00ab\x00\x00\x00\x00"
    assert from_bytes(packed, "BYTES", [2], "y", "there").tolist() == [b"ab", b""]
    assert from_numbers(["ä"], "BYTES", [1], "y", "there").tolist() == ["ä".encode()]
    assert from_numbers(["YWI="], "BYTES", [1], "y", "there", "base64").tolist() == [b"ab"]


@pytest.mark.parametrize(
    ("content", "datatype", "shape"),
    [
        (b"1234", "FP32", [2]), (b"123", "FP32", [1]), (b"1234", "FP32", [2**40]),
        (b"1234", "FP32", [-1]), (b"1234", "FP32", [-1, -1]), (b"1234", "FP33", [1]),
        (b"1234", "FP32", None), (b"1234", "FP32", [1.0]), (b"1234", "FP32", [True]),
        (b"1234", "FP32", [1] * 100), (b"1234", None, [1]), (b"1234", ["FP32"], [1]),
        (b"", "FP32", [0, 2**30, 2**30, 2**30]), (b"\xff\xff\xff\xff", "BYTES", [1]),
        (b"\x01", "BYTES", [1]), (b"\x05\x00\x00\x00ab", "BYTES", [1]),
    ],
)  # fmt: skip
def test_bytes_that_do_not_fill_their_shape_are_refused(
    content: bytes, datatype: Any, shape: Any
) -> None:
    with pytest.raises(LinkError) as error:
        from_bytes(content, datatype, shape, "y", "there")
    assert error.value.fault == "answer"


def test_texts_without_end_are_refused() -> None:
    count = MAX_TEXTS + 1
    with pytest.raises(LinkError, match="too many texts"):
        from_bytes(bytes(4 * count), "BYTES", [count], "y", "there")
    assert from_bytes(bytes(4000), "BYTES", [1000], "y", "there").tolist() == [b""] * 1000


@pytest.mark.parametrize(
    ("data", "datatype"),
    [
        ("12", "UINT8"), (["1"], "UINT8"), ([300], "UINT8"), ([-1], "UINT8"), ([1.5], "UINT8"),
        ([True], "UINT8"), ([1], "BOOL"), ([None], "INT8"), ([10**400], "FP64"), ([2**63], "INT64"),
        ([{}], "FP32"), ({"a": 1}, "FP32"), (None, "FP32"), (1.0, "FP32"), ([[1], 2], "FP32"),
        ([1], "BYTES"), ([None], "BYTES"), (["\ud800"], "BYTES"),
    ],
)  # fmt: skip
def test_numbers_of_another_kind_are_refused(data: Any, datatype: str) -> None:
    with pytest.raises(LinkError) as error:
        from_numbers(data, datatype, [1], "y", "there")
    assert error.value.fault == "answer"


def test_a_text_that_is_not_base64_is_refused() -> None:
    with pytest.raises(LinkError):
        from_numbers(["?"], "BYTES", [1], "y", "there", "base64")


def test_lists_in_lists_end_somewhere() -> None:
    data: Any = 1.0
    for _ in range(900):
        data = [data]
    with pytest.raises(LinkError):
        from_numbers(data, "FP32", [1], "y", "there")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


@given(JSON, st.sampled_from([*DATATYPES, "BYTES", "BF16"]) | JSON, JSON | st.just([1]))
def test_any_json_is_an_array_of_its_shape_or_refused(data: Any, kind: Any, shape: Any) -> None:
    try:
        array = from_numbers(data, kind, shape, "y", "there")
    except LinkError:
        return
    assert list(array.shape) == shape


@given(st.binary(max_size=40), st.sampled_from([*DATATYPES, "BYTES", "BF16"]), JSON)
def test_any_bytes_are_an_array_of_their_shape_or_refused(
    content: bytes, kind: str, shape: Any
) -> None:
    try:
        array = from_bytes(content, kind, shape, "y", "there")
    except LinkError:
        return
    assert list(array.shape) == shape


@given(JSON, JSON, JSON, st.lists(st.tuples(JSON, JSON, JSON), max_size=3))
def test_any_description_of_a_model_is_metadata_or_refused(
    name: Any, versions: Any, platform: Any, tensors: Any
) -> None:
    try:
        told = remote_metadata(name, versions, platform, tensors, [], "there")
    except LinkError:
        return
    assert json.dumps([tensor.name for tensor in told.inputs])


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(LinkError, match="two tensors of one name"):
        remote_metadata("m", [], "", [("x", "FP32", [1]), ("x", "FP32", [2])], [], "there")


@pytest.mark.parametrize(
    ("datatype", "shape", "good"),
    [
        ("FP32", (2, 3), True), ("FP32", (-1, 3), True), ("FP32", (), True),
        ("FP32", (2, 4), False), ("FP32", (6,), False), ("FP64", (2, 3), False),
    ],
)  # fmt: skip
def test_an_answer_is_what_the_model_has_declared(
    datatype: str, shape: tuple[int, ...], good: bool
) -> None:
    array, declared = np.zeros((2, 3), np.float32), RemoteTensor("y", datatype, shape)
    if good:
        assert check_declared(array, declared, "there") is array
    else:
        with pytest.raises(LinkError, match="but it declares"):
            check_declared(array, declared, "there")
