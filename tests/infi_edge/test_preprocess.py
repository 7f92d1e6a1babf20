"""The filter's tensor is the same from an array and from JPEG bytes; its features are cheap."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infi_edge.errors import ConfigError
from infi_edge.preprocess import ImageSpec, register, spec_class
from infi_edge.preprocess.image import CELLS, GRID, image_tensor

SPEC = ImageSpec(64, 48)


def scene(width: int, height: int, seed: int = 0) -> np.ndarray:
    """A smooth BGR image in colour."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def jpeg(frame: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


JPEG = jpeg(scene(320, 240))


@pytest.mark.parametrize("size", [(1280, 960), (640, 480), (320, 240), (150, 100)])
def test_jpeg_bytes_give_nearly_the_tensor_of_the_array(size):
    frame = scene(*size)
    of_bytes, of_array = image_tensor(jpeg(frame), SPEC), image_tensor(frame, SPEC)
    assert of_bytes.shape == of_array.shape == (1, 48, 64, 3)
    assert of_bytes.dtype == of_array.dtype == np.uint8
    assert cv2.absdiff(of_bytes[0], of_array[0]).mean() < 3


@pytest.mark.parametrize(
    ("size", "flag"),
    [
        ((640, 480), cv2.IMREAD_REDUCED_COLOR_8),
        ((511, 384), cv2.IMREAD_REDUCED_COLOR_4),
        ((255, 192), cv2.IMREAD_REDUCED_COLOR_2),
        ((127, 200), cv2.IMREAD_COLOR),
    ],
)
def test_only_as_much_of_a_jpeg_is_decoded_as_is_needed(size, flag):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    data = jpeg(noise)
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    assert (image_tensor(data, SPEC) == image_tensor(decoded, SPEC)).all()


@pytest.mark.parametrize("size", [(64, 48), (65, 49), (640, 480), (1920, 1080), (10, 2000)])
def test_the_mean_colour_of_a_frame_survives_and_is_rgb(size):
    frame = scene(*size)
    mean = image_tensor(frame, SPEC)[0].mean(axis=(0, 1))
    assert mean[::-1] == pytest.approx(frame.mean(axis=(0, 1)), abs=4)
    blue = np.zeros((*size[::-1], 3), np.uint8) + np.array([255, 0, 9], np.uint8)
    assert (image_tensor(blue, SPEC) == [9, 0, 255]).all()


def test_a_frame_of_the_filters_size_is_passed_pixel_by_pixel():
    frame = scene(64, 48)
    assert (image_tensor(frame, SPEC)[0] == frame[:, :, ::-1]).all()


@pytest.mark.parametrize("size", [(640, 480), (64, 48), (20, 15)])
def test_a_grey_frame_is_grey_in_all_three_colours(size):
    grey = scene(*size)[:, :, 0]
    flat, deep = image_tensor(grey, SPEC), image_tensor(grey[:, :, None], SPEC)
    coloured = image_tensor(np.repeat(grey[:, :, None], 3, axis=2), SPEC)
    assert (flat == deep).all()
    assert (flat == coloured).all()


def test_the_same_input_gives_the_same_bytes_and_stays_as_it_was():
    frame = scene(640, 480)
    before = frame.copy()
    assert image_tensor(frame, SPEC).tobytes() == image_tensor(frame, SPEC).tobytes()
    assert image_tensor(JPEG, SPEC).tobytes() == image_tensor(JPEG, SPEC).tobytes()
    assert (frame == before).all()


def test_a_view_of_a_frame_gives_the_tensor_of_its_copy():
    view = scene(640, 480)[::2, 40:600:3]
    assert (image_tensor(view, SPEC) == image_tensor(view.copy(), SPEC)).all()


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((48, 64, 3), np.float32),
        np.zeros((48, 64, 3), np.int16),
        np.zeros(64, np.uint8),
        np.zeros((1, 48, 64, 3), np.uint8),
        np.zeros((0, 64, 3), np.uint8),
        np.zeros((48, 64, 2), np.uint8),
        np.zeros((48, 64, 0), np.uint8),
        b"",
        b"noise",
        JPEG[:30],
    ],
    ids=lambda wrong: f"{wrong.dtype}{wrong.shape}" if isinstance(wrong, np.ndarray) else None,
)
def test_what_is_no_image_is_a_value_error(wrong):
    with pytest.raises(ValueError, match="image"):
        image_tensor(wrong, SPEC)


@settings(max_examples=200)
@given(st.data())
def test_damaged_image_bytes_give_a_tensor_or_a_value_error(data):
    png = cv2.imencode(".png", scene(40, 30))[1].tobytes()
    damaged = bytearray(data.draw(st.sampled_from([JPEG[:1200], png])))
    for place in data.draw(st.lists(st.integers(0, 200), max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    content = bytes(damaged[: data.draw(st.sampled_from([cut, len(damaged)]))])
    try:
        tensor = image_tensor(content, SPEC)
    except ValueError:
        return
    assert tensor.shape == (1, 48, 64, 3)


def test_an_image_that_declares_too_many_pixels_is_a_value_error():
    png = cv2.imencode(".png", scene(40, 30))[1].tobytes()
    huge = png[:16] + struct.pack(">II", 60_000, 60_000) + png[24:]
    with pytest.raises(ValueError, match="image"):
        image_tensor(huge, SPEC)


@given(st.integers(0, 2**32 - 1))
def test_features_are_about_0_to_1(seed):
    noise = np.random.default_rng(seed).integers(0, 256, (1, 48, 64, 3), np.uint8)
    features = SPEC.features(noise)
    assert features.shape == (2 * CELLS,)
    assert features.dtype == np.float32
    assert ((features >= 0) & (features <= 2)).all()


@pytest.mark.parametrize("level", [0, 100, 255])
def test_a_flat_image_has_its_grey_level_and_no_gradient(level):
    features = ImageSpec().features(np.full((1, 96, 128, 3), level, np.uint8))
    assert features[:192] == pytest.approx(np.full(192, level / 255), abs=0.005)
    assert (features[192:] == 0).all()


def test_an_edge_shows_where_it_is():
    tensor = np.zeros((1, 96, 128, 3), np.uint8)
    tensor[:, :, 64:] = 255
    levels, gradients = ImageSpec().features(tensor).reshape(2, GRID[1], GRID[0])
    assert (levels[:, :6] == 0).all()
    assert levels[:, 10:] == pytest.approx(np.ones((12, 6)))
    assert set(gradients.argmax(axis=1)) <= {7, 8}
    assert (gradients[:, 7:9] > 0.1).all()
    assert (gradients[:, [0, 1, 14, 15]] == 0).all()


def test_a_modality_does_not_take_the_place_of_another():
    class Impostor(ImageSpec, frozen=True, tag="image"):
        pass

    with pytest.raises(ConfigError, match="'image' is ImageSpec already"):
        register(Impostor)
    assert spec_class("image") is ImageSpec
