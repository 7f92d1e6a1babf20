"""Bundles and the archive under them: written whole, read back equal, refused in one sentence."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from infi_edge.archive import (
    MAX_MEMBERS,
    array_bytes,
    parse_archive,
    read_archive,
    write_archive,
)
from infi_edge.bundle import operating_point, read_bundle, write_bundle
from infi_edge.errors import BundleError, ConfigError
from infi_edge.filter import load_filter
from infi_edge.gate import Gate
from infi_edge.policy import Knobs
from infi_edge.preprocess.image import CELLS
from infi_edge.types import Action

FRAME = np.full((120, 160, 3), 90, np.uint8)
KNOBS = ("calibration", "points", 1, "knobs")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "yard.infi"


@pytest.fixture
def content(path, manifest, members) -> bytes:
    """A valid bundle's bytes; it lies at `path` too."""
    write_bundle(path, manifest, members)
    return path.read_bytes()


def with_value(raw: Any, keys: tuple[Any, ...], value: Any) -> Any:
    """Replace one value of a manifest, in place."""
    place = raw
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return raw


def rezipped(
    content: bytes,
    change: Callable[[str, bytes], bytes] = lambda _, data: data,
    last: Callable[[zipfile.ZipFile], None] = lambda _: None,
) -> bytes:
    """The same members in a ZIP that infi-edge would not write; checksums are right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        last(new)
    return buffer.getvalue()


def test_what_is_written_is_read_back_equal(content, path, manifest, members):
    bundle = read_bundle(path)
    assert bundle.manifest == manifest
    assert bundle.members == members
    assert bundle.name == "yard"


def test_the_same_content_gives_the_same_bytes(content, tmp_path, manifest, members):
    write_bundle(tmp_path / "again.infi", manifest, dict(reversed(members.items())))
    assert (tmp_path / "again.infi").read_bytes() == content


def test_a_bundle_read_and_written_again_is_the_same_file(content, path, tmp_path):
    bundle = read_bundle(path)
    write_bundle(tmp_path / "again.infi", bundle.manifest, bundle.members)
    assert (tmp_path / "again.infi").read_bytes() == content


def test_a_truncated_bundle_is_refused(content, path, refuses):
    path.write_bytes(content[: len(content) // 2])
    with refuses(BundleError, "truncated"):
        read_bundle(path)


def test_a_flipped_byte_in_a_member_is_refused(content, path, members, refuses):
    damaged = bytearray(content)
    damaged[content.index(members["gains.npy"]) + 130] ^= 1
    path.write_bytes(damaged)
    with refuses(BundleError, "copy it again"):
        read_bundle(path)


def test_a_member_with_the_wrong_hash_is_refused_though_its_checksum_is_right(content, refuses):
    def change(name: str, data: bytes) -> bytes:
        return data[:-1] + b"\x01" if name == "gains.npy" else data

    with refuses(BundleError, r"gains\.npy has a wrong hash"):
        parse_archive(rezipped(content, change=change), "yard.infi")


def test_a_member_that_declares_10_gb_is_refused(content, refuses):
    def declare(archive: zipfile.ZipFile) -> None:
        archive.filelist[1].file_size = archive.filelist[1].compress_size = 10 << 30

    with refuses(BundleError, f"declares {10 << 30} bytes"):
        parse_archive(rezipped(content, last=declare), "yard.infi")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "..\\x", "C:x", ".hidden", "n" * 101])
def test_a_member_outside_the_archive_is_refused(content, refuses, name):
    with refuses(BundleError, "outside the archive"):
        parse_archive(rezipped(content, last=lambda new: new.writestr(name, "x")), "yard.infi")


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred", "tab\t"])
def test_the_name_of_a_member_cannot_break_the_sentence(path, manifest, members, refuses, name):
    write_archive(path, msgspec.to_builtins(manifest), {**members, name: b"x"})
    content = path.read_bytes()
    with refuses(BundleError):
        read_bundle(path)
    with refuses(BundleError):
        parse_archive(rezipped(content, change=lambda n, data: b"y" if n == name else data), "y")
    with refuses(BundleError):
        parse_archive(rezipped(content, last=lambda new: new.writestr(name + "2", "", 8)), "y")


def test_a_compressed_member_is_refused(content, refuses):
    def compress(archive: zipfile.ZipFile) -> None:
        archive.writestr("x.npy", "x", zipfile.ZIP_DEFLATED)

    with refuses(BundleError, r"member x\.npy is compressed"):
        parse_archive(rezipped(content, last=compress), "yard.infi")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_repeated_member_is_refused(content, refuses):
    twice = rezipped(content, last=lambda new: new.writestr("gains.npy", "another"))
    with refuses(BundleError, "repeated members"):
        parse_archive(twice, "yard.infi")


def test_too_many_members_are_refused(path, refuses):
    write_archive(path, {}, {f"m{i}": b"" for i in range(MAX_MEMBERS)})
    with refuses(BundleError, "too many"):
        read_archive(path)


def test_a_zip_without_manifest_is_refused(content, refuses):
    renamed = content.replace(b"manifest.json", b"manifest.jsom")
    with refuses(BundleError, r"no manifest\.json"):
        parse_archive(renamed, "yard.infi")


@pytest.mark.parametrize(
    "text", [b'{"scale": NaN}', b'{"a": -Infinity}', b"[1]", b"{", b"\xff", b"", b"[" * 100_000]
)
def test_a_manifest_that_is_no_json_object_is_refused(content, refuses, text):
    with refuses(BundleError, "its manifest is not"):
        parse_archive(rezipped(content, change=lambda *_: text), "yard.infi")


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("format_version",), 4, "format version 4.*update infi-edge"),
        (("format_version",), 0, "format_version"),
        (("format_version",), True, "format_version"),
        (("colour",), "red", "unknown field"),
        (("new\nline",), 1, "unknown field"),
        (("filter", "colour"), "red", "unknown field"),
        ((*KNOBS, "colour"), "red", "unknown field"),
        (("\ud800",), 1, "manifest"),
        (("modality",), "\ud800", "manifest"),
        (("modality",), "smell", "modality"),
        (("filter", "dim"), 0, "embedding size"),
        (("filter", "dim"), 1 << 40, "embedding size"),
        (("filter", "scale"), 0.0, "embedding scale"),
        (("filter", "scale"), 10**400, "manifest"),
        (("preprocess", "width"), 100_000, "input size"),
        (("mechanism",), "neither", "mechanism"),
        (("calibration", "chosen"), 2, "calibration table"),
        (("calibration", "chosen"), -1, "calibration table"),
        (("calibration", "points"), [], "calibration table"),
        ((*KNOBS, "votes"), 0, "knobs"),
        ((*KNOBS, "votes"), 1001, "knobs"),
        ((*KNOBS, "max_since_inference"), -1, "knobs"),
        ((*KNOBS, "max_distance"), -1, "knobs"),
        ((*KNOBS, "max_consecutive_filtered"), -1, "knobs"),
        ((*KNOBS, "heartbeat_s"), -1.0, "knobs"),
        ((*KNOBS, "skip_threshold"), 1.5, "knobs"),
        ((*KNOBS, "reuse_threshold"), -0.5, "knobs"),
        ((*KNOBS, "deliver"), "oldest", "deliver"),
    ],
)
def test_an_impossible_manifest_is_refused(path, manifest, members, refuses, keys, value, words):
    write_archive(path, with_value(msgspec.to_builtins(manifest), keys, value), members)
    with refuses(BundleError, words):
        read_bundle(path)


@pytest.mark.parametrize("knob", ["skip_threshold", "reuse_threshold", "heartbeat_s"])
def test_a_knob_that_overflows_to_infinity_is_refused(path, manifest, members, refuses, knob):
    raw = with_value(msgspec.to_builtins(manifest), (*KNOBS, knob), 4711.25)
    write_archive(path, raw, members)
    path.write_bytes(
        rezipped(path.read_bytes(), change=lambda _, data: data.replace(b"4711.25", b"1e999"))
    )
    with refuses(BundleError, "knobs"):
        read_bundle(path)


@pytest.mark.parametrize("gone", ["skip", "reuse"])
def test_a_mechanism_without_its_head_is_refused(path, manifest, members, refuses, gone):
    raw = {**msgspec.to_builtins(manifest), gone: None, "mechanism": gone}
    write_archive(path, raw, members)
    with refuses(BundleError, "mechanism"):
        read_bundle(path)


def test_a_missing_or_an_extra_member_is_refused(path, manifest, members, refuses):
    for other in ({"gains.npy": members["gains.npy"]}, {**members, "x.npy": b""}):
        write_bundle(path, manifest, other)
        with refuses(
            BundleError, r"has the members features\.npy, gains\.npy, offsets\.npy, skip\.npy, not"
        ):
            read_bundle(path)


def test_a_bundle_of_the_first_format_still_loads(path, manifest, members):
    raw = msgspec.to_builtins(manifest) | {"format_version": 1}
    del raw["preprocess"]["kind"]
    old = {name: data for name, data in members.items() if name != "offsets.npy"}
    write_archive(path, raw, old)
    write_bundle(path.with_name("new.infi"), manifest, members)
    found, expected = (load_filter(p)(FRAME) for p in (path, path.with_name("new.infi")))
    assert found[0] == expected[0]
    assert (found[1] == expected[1]).all()


@pytest.mark.parametrize("name", ["absent.infi", ".", "nul\0byte", "n" * 5000])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, refuses, name):
    with refuses(BundleError):
        read_bundle(f"{tmp_path}/{name}")


@pytest.mark.parametrize("index", [-1, 2 * CELLS])
def test_a_light_filter_of_unknown_features_is_refused(path, manifest, members, refuses, index):
    features = array_bytes(np.array([0, 1, index], np.int32))
    write_bundle(path, manifest, {**members, "features.npy": features})
    with refuses(BundleError, "unknown features"):
        load_filter(path)


@pytest.mark.parametrize(("name", "count"), [("gains.npy", 3), ("skip.npy", 2 * CELLS + 1)])
@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_number_that_is_none_in_a_light_filter_is_refused_or_infers(
    path, manifest, members, name, count, number
):
    poison = array_bytes(np.full(count, number, np.float32))
    write_bundle(path, manifest, {**members, name: poison})
    try:
        light = load_filter(path)
    except BundleError:
        return
    knobs = Knobs(skip_threshold=0.9, reuse_threshold=1.0)
    gate = Gate(light, lambda _: np.array([1.0, 0.0]), knobs=knobs)
    assert {gate(np.zeros_like(FRAME), t).action for t in (0.0, 1.0)} == {Action.INFER}


def test_a_light_filter_of_negative_gains_is_refused(path, manifest, members, refuses):
    gains = array_bytes(np.array([255, -128, 64], np.float32))
    write_bundle(path, manifest, {**members, "gains.npy": gains})
    with refuses(BundleError, "gains"):
        load_filter(path)


def test_a_target_between_rows_takes_the_stricter_row(manifest):
    points = manifest.calibration.points
    assert operating_point(manifest) is points[0]
    assert operating_point(manifest, target_accuracy=0.92) is points[1]
    assert operating_point(manifest, target_accuracy=0.9) is points[0]


def test_a_target_that_no_row_holds_is_refused(manifest, refuses):
    with refuses(ConfigError, "no accuracy of 0.99; it has 0.9, 0.95"):
        operating_point(manifest, target_accuracy=0.99)
    with refuses(ConfigError, "no recall of 0.5; it has none"):
        operating_point(manifest, target_recall=0.5)
