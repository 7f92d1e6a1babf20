"""Decoders on hand-made outputs, and the way a frame goes into a model and its boxes come back."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi_edge.decoders import Fit, dequantize, make_decoder, prepare
from infi_edge.errors import ConfigError
from infi_edge.interpreter import TensorSpec


def tensor(shape, dtype="float32", scale=0.0, zero_point=0) -> TensorSpec:
    return TensorSpec("t", tuple(shape), np.dtype(dtype), scale, zero_point)


def decode(name: str, outputs, fit: Fit | None = None, side: int = 128):
    return make_decoder(name, [tensor((1, side, side, 3))]).decode(outputs, fit or Fit())


def yolo_row(cx, cy, w, h, objectness, *scores) -> list[float]:
    return [cx, cy, w, h, objectness, *scores]


def test_yolov5_keeps_sure_boxes_and_one_of_overlapping_ones():
    rows = [
        yolo_row(0.5, 0.5, 0.2, 0.4, 0.9, 0.1, 0.9),
        yolo_row(0.51, 0.5, 0.2, 0.4, 0.8, 0.9, 0.1),  # the same object, of another class
        yolo_row(0.2, 0.2, 0.1, 0.1, 0.7, 0.8, 0.0),
        yolo_row(0.8, 0.8, 0.1, 0.1, 0.2, 1.0, 0.0),  # no object
        yolo_row(0.8, 0.2, 0.1, 0.1, 0.5, 0.4, 0.4),  # no class
    ]
    found = decode("yolov5", [np.array([rows], np.float32)])
    assert found.classes.tolist() == [1, 0]
    assert found.scores == pytest.approx([0.81, 0.56], abs=1e-6)
    expected = np.array([[0.4, 0.3, 0.6, 0.7], [0.15, 0.15, 0.25, 0.25]])
    assert found.boxes == pytest.approx(expected, abs=1e-6)
    assert found.boxes.dtype == np.float32


@pytest.mark.parametrize("name", ["yolov5", "blazeface"])
def test_nothing_found_is_an_empty_list_of_boxes(name):
    outputs = {
        "yolov5": [np.zeros((1, 10, 7), np.float32)],
        "blazeface": [np.zeros((1, 896, 16)), np.full((1, 896, 1), -100.0)],
    }[name]
    found = decode(name, outputs)
    assert found.boxes.shape == (0, 4)
    assert len(found.classes) == len(found.scores) == 0


SSD_BOXES = np.array([[[0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1], [0.3, 0.3, 0.4, 0.4]]], np.float32)
SSD_CLASSES = np.array([[2.0, 1.0, 0.0]], np.float32)
SSD_SCORES = np.array([[0.75, 0.49, 0.9]], np.float32)
SSD_COUNT = np.array([2.0], np.float32)


@pytest.mark.parametrize(
    "outputs",
    [
        [SSD_BOXES, SSD_CLASSES, SSD_SCORES, SSD_COUNT],
        [SSD_SCORES, SSD_BOXES, SSD_COUNT, SSD_CLASSES],
    ],
)
def test_ssd_reads_both_orders_of_outputs_up_to_the_count(outputs):
    found = decode("ssd", outputs)
    assert found.classes.tolist() == [2]
    assert found.scores == pytest.approx([0.75])
    assert found.boxes == pytest.approx(np.array([[0.2, 0.1, 0.6, 0.5]]))


@pytest.mark.parametrize(
    ("side", "count", "index", "centre"),
    [
        (128, 896, 2 * (3 * 16 + 5) + 1, (5.5 / 16, 3.5 / 16)),
        (128, 896, 512 + 6 * (7 * 8 + 2), (2.5 / 8, 7.5 / 8)),
        (256, 896, 2 * (3 * 16 + 5), (5.5 / 16, 3.5 / 16)),
        (256, 896, 512 + 6 * (1 * 8 + 4) + 5, (4.5 / 8, 1.5 / 8)),
        (192, 2304, 10 * 48 + 20, (20.5 / 48, 10.5 / 48)),
        (192, 2016, 2 * (3 * 24 + 5), (5.5 / 24, 3.5 / 24)),
        (192, 2016, 1152 + 6 * (3 * 12 + 5), (5.5 / 12, 3.5 / 12)),
        (224, 2254, 2 * (3 * 28 + 5), (5.5 / 28, 3.5 / 28)),
        (224, 2254, 1568 + 2 * (3 * 14 + 5), (5.5 / 14, 3.5 / 14)),
        (224, 2254, 1568 + 392 + 6 * (3 * 7 + 5), (5.5 / 7, 3.5 / 7)),
    ],
)
def test_blazeface_finds_a_box_around_its_anchor(side, count, index, centre):
    regressors = np.zeros((1, count, 16), np.float32)
    logits = np.full((1, count, 1), -50.0, np.float32)
    regressors[0, index, :4] = 0.01 * side, -0.02 * side, 0.04 * side, 0.02 * side
    logits[0, index] = 2.0
    for outputs in ([regressors, logits], [logits, regressors]):
        found = decode("blazeface", outputs, side=side)
        x, y = centre[0] + 0.01, centre[1] - 0.02
        assert found.boxes == pytest.approx(
            np.array([[x - 0.02, y - 0.01, x + 0.02, y + 0.01]]), abs=1e-5
        )
        assert found.scores == pytest.approx([1 / (1 + np.exp(-2.0))])
        assert found.classes.tolist() == [0]


def test_movenet_gives_x_before_y_of_the_frame():
    points = np.zeros((1, 1, 17, 3), np.float32)
    points[0, 0, 4] = 0.5, 0.25, 0.9
    half = Fit(scale_y=0.5, offset_y=0.25)
    found = decode("movenet", [points], half)
    assert found.points.shape == (17, 3)
    assert found.points[4] == pytest.approx([0.25, 0.5, 0.9])


def test_classification_leaves_a_distribution_and_softens_scores():
    probabilities = decode("classification", [np.array([[0.25, 0.75]], np.float32)])
    assert probabilities.scores.tolist() == [0.25, 0.75]
    softened = decode("classification", [np.array([[1000.0, 1000.0, 999.0]])]).scores
    assert softened.sum() == pytest.approx(1.0)
    assert softened[2] / softened[0] == pytest.approx(np.exp(-1))


def test_raw_passes_whatever_it_gets():
    outputs = [np.zeros(3)]
    assert make_decoder("raw", []).decode(outputs, Fit()) is outputs


@pytest.mark.parametrize("name", ["yolov5", "ssd", "blazeface", "movenet", "classification"])
@pytest.mark.parametrize("shapes", [[], [(1, 1)], [(1, 3, 5), (2, 7)], [(1, 900, 16), (1, 900, 1)]])
def test_outputs_of_another_shape_are_refused_by_naming_them(refuses, name, shapes):
    named = re.escape(", ".join(map(str, shapes)) or "none")
    with refuses(ConfigError, f"decoder {name} needs .*, not {named}"):
        decode(name, [np.zeros(shape, np.float32) for shape in shapes])


@pytest.mark.parametrize("text", ["yolo", "", "yolov5:0", "ssd:a..b", "ssd:0..1..2", "a.b:c"])
def test_an_unknown_decoder_or_range_is_refused(refuses, text):
    with refuses(ConfigError, "decoder"):
        make_decoder(text, [])


def test_a_users_own_decoder_gets_the_outputs(tmp_path, monkeypatch):
    (tmp_path / "own_decoders").mkdir()
    (tmp_path / "own_decoders" / "first.py").write_text("def first(outputs): return outputs[0]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert make_decoder("own_decoders.first:first", []).decode(["a", "b"], Fit()) == "a"


@given(
    st.tuples(st.integers(40, 700), st.integers(40, 700)),
    st.tuples(st.sampled_from([96, 128, 320]), st.sampled_from([96, 160, 320])),
    st.sampled_from(["yolov5", "ssd"]),
    st.data(),
)
def test_a_box_in_the_models_input_maps_back_to_the_frame(frame_size, model_size, name, data):
    rows, columns = frame_size
    top, left = data.draw(st.integers(0, rows // 2)), data.draw(st.integers(0, columns // 2))
    bottom, right = (
        data.draw(st.integers(top + 20, rows)),
        data.draw(st.integers(left + 20, columns)),
    )
    frame = np.zeros((rows, columns, 3), np.uint8)
    frame[top:bottom, left:right] = 255
    height, width = model_size

    image, fit = prepare(frame, tensor((1, height, width, 3), "uint8"), make_decoder(name, []))

    ys, xs = np.nonzero(image[0, :, :, 0] > 127)
    corners = np.array([[xs.min() / width, ys.min() / height]])
    corners = np.append(corners, [[(xs.max() + 1) / width, (ys.max() + 1) / height]], axis=0)
    mapped = fit.to_frame(corners) * (columns, rows)
    pixel = 1.5 * max(1, columns / width / fit.scale_x, rows / height / fit.scale_y)
    assert mapped == pytest.approx(np.array([[left, top], [right, bottom]]), abs=pixel)


def test_a_letterbox_keeps_the_shape_and_fills_the_border():
    image, fit = prepare(
        np.full((50, 100, 3), 255, np.uint8),
        tensor((1, 64, 64, 3), "uint8"),
        make_decoder("yolov5", []),
    )
    assert (image[0, :16] == 114).all()
    assert (image[0, 16:48] == 255).all()
    assert (image[0, 48:] == 114).all()
    assert fit == Fit(1.0, 0.5, 0.0, 0.25)


@pytest.mark.parametrize("size", [(2000, 3), (3, 2000), (1, 1)])
@pytest.mark.parametrize("name", ["yolov5", "ssd"])
def test_a_frame_of_any_shape_is_prepared(size, name):
    image, _ = prepare(
        np.zeros((*size, 3), np.uint8), tensor((1, 320, 320, 3)), make_decoder(name, [])
    )
    assert image.shape == (1, 320, 320, 3)


BGR = np.zeros((8, 8, 3), np.uint8) + np.array([0, 51, 255], np.uint8)


@pytest.mark.parametrize(
    ("text", "spec", "pixel"),
    [
        ("ssd", tensor((1, 8, 8, 3), "uint8"), [255, 51, 0]),
        ("ssd", tensor((1, 8, 8, 3), "uint8", 1 / 128, 128), [255, 51, 0]),
        ("yolov5", tensor((1, 8, 8, 3), "int8", 1 / 255, -128), [127, -77, -128]),
        ("yolov5", tensor((1, 8, 8, 3)), [1.0, 0.2, 0.0]),
        ("ssd", tensor((1, 8, 8, 3)), [1.0, -0.6, -1.0]),
        ("classification:-1..1", tensor((1, 8, 8, 3)), [1.0, -0.6, -1.0]),
        ("movenet", tensor((1, 8, 8, 3)), [255.0, 51.0, 0.0]),
        ("classification", tensor((1, 8, 8, 1), "uint8"), [106]),
    ],
)
def test_pixels_reach_the_model_in_its_own_type_range_and_colour_order(text, spec, pixel):
    image, _ = prepare(BGR, spec, make_decoder(text, [spec]))
    assert image.shape == spec.shape
    assert image.dtype == spec.dtype
    assert image[0, 3, 3] == pytest.approx(np.array(pixel), abs=1e-5)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (tensor((1, 40)), r"\(1, 40\) is no image"),
        (tensor((2, 8, 8, 3)), "is no image"),
        (tensor((1, 8, 8, 4)), "is no image"),
        (tensor((1, 8, 8, 3), "int32"), "int32"),
    ],
)
def test_a_model_whose_input_is_no_image_is_refused(refuses, spec, words):
    with refuses(ConfigError, words):
        prepare(BGR, spec, make_decoder("raw", []))


def test_outputs_are_dequantized_where_they_have_a_scale():
    specs = [tensor((3,), "uint8", 0.5, 10), tensor((3,), "float32")]
    stored = [np.array([0, 10, 255], np.uint8), np.array([1, 2, 3], np.float32)]
    real = dequantize(stored, specs)
    assert real[0].tolist() == [-5.0, 0.0, 122.5]
    assert real[1] is stored[1]
