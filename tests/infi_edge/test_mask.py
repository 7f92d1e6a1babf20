"""What is masked is black at every size, and nothing of it shows."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infi_edge.capture.mask import Mask

LEFT = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))
RIGHT = ((0.5, 0.0), (1.0, 0.0), (1.0, 1.0), (0.5, 1.0))
ALL = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))
SIZES = [(1, 1), (1, 50), (50, 1), (24, 32), (135, 240), (480, 640), (1080, 1920)]


@pytest.mark.parametrize("size", SIZES)
def test_without_polygons_everything_is_kept(size):
    assert not Mask()
    assert (Mask().kept(*size) == 255).all()


@pytest.mark.parametrize("size", SIZES)
def test_a_mask_of_the_whole_picture_keeps_nothing_and_a_region_of_it_everything(size):
    assert not Mask(masks=[ALL]).kept(*size).any()
    assert (Mask(regions=[ALL]).kept(*size) == 255).all()


@pytest.mark.parametrize(("height", "width"), [(24, 32), (135, 240), (480, 640), (1080, 1920)])
def test_a_mask_ends_at_its_edge_to_a_pixel(height, width):
    left = (Mask(masks=[LEFT]).kept(height, width) == 0).sum(axis=1)
    right = (Mask(masks=[RIGHT]).kept(height, width) == 0).sum(axis=1)
    for count in (*left, *right):
        assert width // 2 <= count <= width // 2 + 1


def test_a_region_keeps_its_inside_only():
    kept = Mask(regions=[LEFT]).kept(480, 640)
    assert (kept[:, :319] == 255).all()
    assert not kept[:, 322:].any()


def test_a_mask_cuts_out_of_a_region():
    kept = Mask(masks=[((0.0, 0.0), (1.0, 0.0), (1.0, 0.5), (0.0, 0.5))], regions=[LEFT])
    kept = kept.kept(480, 640)
    assert not kept[:240].any()
    assert (kept[243:, :319] == 255).all()
    assert not kept[:, 322:].any()


def test_two_regions_that_touch_leave_no_gap():
    assert (Mask(regions=[LEFT, RIGHT]).kept(48, 64) == 255).all()


@pytest.mark.parametrize("shape", [(48, 64), (48, 64, 1), (48, 64, 3)])
def test_grey_and_coloured_frames_are_copied_with_the_mask_at_zero(shape):
    frame = np.full(shape, 200, np.uint8)
    masked = Mask(masks=[LEFT])(frame)
    assert (frame == 200).all()
    assert masked.shape[:2] == shape[:2]
    assert not masked[:, :32].any()
    assert (masked[:, 33:] == 200).all()


def test_a_strided_view_of_a_frame_is_masked():
    frame = np.full((96, 128, 3), 200, np.uint8)[::2, ::-2]
    assert not Mask(masks=[LEFT])(frame)[:, :32].any()


def test_many_sizes_do_not_gather_in_memory():
    mask = Mask(masks=[LEFT])
    for width in range(10, 60):
        mask.kept(10, width)
    assert len(mask._kept) < 12


CORNER = st.tuples(st.floats(0, 1), st.floats(0, 1))
POLYGONS = st.lists(st.lists(CORNER, min_size=3, max_size=6).map(tuple), max_size=2)


@settings(max_examples=40)
@given(POLYGONS, POLYGONS, st.integers(0, 2**32 - 1))
def test_a_small_picture_shows_nothing_that_is_masked_in_the_large_one(masks, regions, seed):
    """As a JPEG that is decoded at 1/8 shows averages of 8x8 pixels."""
    mask, rng = Mask(masks, regions), np.random.default_rng(seed)
    hidden = mask.kept(768, 1024) == 0
    one = rng.integers(0, 256, hidden.shape, np.uint8)
    other = np.where(hidden, rng.integers(0, 256, hidden.shape, np.uint8), one)
    small = [cv2.resize(p, (128, 96), interpolation=cv2.INTER_AREA) for p in (one, other)]
    assert np.array_equal(mask(small[0]), mask(small[1]))
