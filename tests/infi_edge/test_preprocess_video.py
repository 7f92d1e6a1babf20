"""A clip is a fixed number of pictures, each of them what the image filter would see."""

from __future__ import annotations

from collections import deque

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi_edge.preprocess import ImageSpec, VideoSpec
from infi_edge.preprocess.image import CELLS, GRID, image_tensor

SPEC = VideoSpec(frames=3, hop=1, width=32, height=24)


def frame(seed: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A smooth BGR picture."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def jpeg(picture: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", picture)[1].tobytes()


CLIP = [frame(0), frame(1), frame(2)]


def test_each_frame_is_what_the_image_filter_sees() -> None:
    tensor = SPEC.tensor(CLIP)
    assert tensor.shape == (1, *SPEC.shape) == (1, 3, 24, 32, 3)
    assert tensor.dtype == np.uint8
    for i, picture in enumerate(CLIP):
        assert (tensor[:, i] == image_tensor(picture, ImageSpec(32, 24))).all()


@pytest.mark.parametrize("kind", [tuple, deque, np.stack])
def test_a_clip_may_be_any_sequence_or_one_array(kind: type) -> None:
    assert (SPEC.tensor(kind(CLIP)) == SPEC.tensor(CLIP)).all()


def test_frames_may_be_jpeg_bytes_beside_arrays() -> None:
    flag = cv2.IMREAD_REDUCED_COLOR_2  # what a filter of half the size decodes
    decoded = [cv2.imdecode(np.frombuffer(jpeg(f), np.uint8), flag) for f in CLIP]
    assert (SPEC.tensor([jpeg(f) for f in CLIP]) == SPEC.tensor(decoded)).all()
    mixed = SPEC.tensor([jpeg(CLIP[0]), CLIP[1], jpeg(CLIP[2])])
    assert (mixed[:, 1] == SPEC.tensor(CLIP)[:, 1]).all()


def test_frames_of_different_sizes_and_grey_ones_are_stretched_to_one() -> None:
    clip = [frame(0, 640, 480), frame(0, 33, 21), frame(0)[:, :, 0]]
    tensor = SPEC.tensor(clip)
    assert tensor.shape == (1, *SPEC.shape)
    large, small = tensor[0, 0].astype(int), tensor[0, 1].astype(int)
    assert np.abs(large - small).mean() < 12
    assert (np.ptp(tensor[0, 2], axis=2) == 0).all()


@pytest.mark.parametrize(
    ("clip", "words"),
    [
        ([], "a clip is 3 frames here, not 0"),
        (CLIP[:2], "not 2"),
        ([*CLIP, frame(3)], "not 4"),
        (jpeg(CLIP[0]), "not one bytes"),
        (CLIP[0][0], "not one ndarray"),
        (np.array(3), "not one ndarray"),
        ("abc", "not one str"),
        (None, "not one NoneType"),
        ([*CLIP[:2], None], "not NoneType"),
        ([*CLIP[:2], b"no jpeg"], "no image"),
        ([*CLIP[:2], frame(0).astype(np.float32)], "not float32"),
        (np.stack(CLIP).astype(np.int16), "not int16"),
        ([*CLIP[:2], np.zeros((0, 4, 3), np.uint8)], "an image is"),
    ],
)
def test_what_is_no_clip_is_a_value_error(clip: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SPEC.tensor(clip)  # type: ignore[arg-type]


@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_any_clip_gives_a_tensor_of_the_shape(frames: int, w: int, h: int, seed: int) -> None:
    spec = VideoSpec(frames, 1, width=17, height=9)
    clip = list(np.random.default_rng(seed).integers(0, 256, (frames, h, w, 3), np.uint8))
    before = [f.tobytes() for f in clip]
    for f in clip:
        f.flags.writeable = False
    tensor = spec.tensor(clip)
    assert tensor.shape == (1, *spec.shape)
    assert tensor.tobytes() == spec.tensor(clip).tobytes()
    assert [f.tobytes() for f in clip] == before
    features = spec.features(tensor)
    assert features.shape == (spec.feature_count,)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    parts = spec.parts(tensor)
    assert len(parts) == frames
    assert (np.stack(parts, axis=1) == tensor).all()


def test_features_show_where_it_moves() -> None:
    still = VideoSpec(4, 1, 64, 48)
    clip = np.full((4, 48, 64, 3), 60, np.uint8)
    assert not still.features(still.tensor(clip))[2 * CELLS :].any()
    for i in range(4):
        clip[i, 24:32, 8 + 4 * i : 16 + 4 * i] = 230
    moves = still.features(still.tensor(clip))[2 * CELLS :].reshape(GRID[1], GRID[0])
    assert moves.max() > 0.2
    assert set(np.argwhere(moves > 0.01)[:, 0]) == {6, 7}
    assert set(np.argwhere(moves > 0.01)[:, 1]) <= set(range(2, 7))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"frames": 0}, "0 frames"),
        ({"frames": 65}, "65 frames"),
        ({"hop": 0}, "hop 0"),
        ({"width": 0}, "input size"),
        ({"height": 1025}, "input size"),
        ({"frames": 64, "width": 1024, "height": 1024}, "too large"),
        ({"low": 9.0, "high": 9.0}, "low must be below high"),
        ({"high": float("inf")}, "low must be below high"),
    ],
)
def test_impossible_fields_are_told(fields: dict[str, float], words: str) -> None:
    assert words in (msgspec.structs.replace(SPEC, **fields).problem() or "")


def test_a_specification_round_trips() -> None:
    spec = VideoSpec(5, 2, 40, 30, -1.0, 1.0)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=VideoSpec) == spec
