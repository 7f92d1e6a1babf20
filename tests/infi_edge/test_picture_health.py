"""Torn, black and frozen pictures are told from sound ones."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
from camera_servers import PICTURES, jpeg, noisy

from infi_edge.capture.picture_health import (
    ACCUSTOMED,
    FrozenPicture,
    PictureHealth,
    frame_is_whole,
    is_black,
    jpeg_is_whole,
)
from infi_edge.capture.source import Health

PICTURE = PICTURES[0]


@pytest.mark.parametrize(
    "flags",
    [[], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 4]],
    ids=["baseline", "progressive", "restarts"],
)
def test_whole_jpegs_of_all_kinds_are_whole(flags):
    data = cv2.imencode(".jpg", noisy(1), flags)[1].tobytes()
    assert jpeg_is_whole(data)
    assert jpeg_is_whole(data + bytes(512)), "a camera's buffer is larger than its picture"


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9, 0.999])
def test_a_jpeg_cut_anywhere_is_torn(share):
    assert not jpeg_is_whole(PICTURE[: int(len(PICTURE) * share)])


def test_a_jpeg_with_a_second_start_in_the_middle_is_torn():
    half = PICTURE[: len(PICTURE) // 2]
    assert not jpeg_is_whole(half + PICTURES[1])


def test_a_thumbnail_in_the_header_is_neither_a_start_nor_an_end():
    thumbnail = jpeg(noisy(2, 16, 16))
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    with_thumbnail = PICTURE[:2] + segment + PICTURE[2:]
    assert jpeg_is_whole(with_thumbnail)
    assert not jpeg_is_whole(with_thumbnail[: -len(PICTURE) // 2])


def torn(fill: str, share: float = 0.3) -> np.ndarray:
    frame = noisy(3)
    first = int(len(frame) * (1 - share))
    frame[first:] = {"row": frame[first], "grey": 128, "grey of YUV": 130}[fill]
    return frame


@pytest.mark.parametrize("fill", ["row", "grey", "grey of YUV"])
@pytest.mark.parametrize("share", [0.12, 0.3, 0.7])
def test_a_frame_that_was_filled_up_is_torn(fill, share):
    assert not frame_is_whole(torn(fill, share))


def floor(level: int, spread: float) -> np.ndarray:
    frame = noisy(4)
    noise = np.random.default_rng(0).normal(0, spread, frame[60:].shape)
    frame[60:] = np.clip(level + noise, 0, 255).round().astype(np.uint8)
    return frame


@pytest.mark.parametrize(
    "frame",
    [
        noisy(5),
        floor(128, 1.0),
        floor(200, 0.3),
        np.full((120, 160, 3), 128, np.uint8),
        np.zeros((120, 160, 3), np.uint8),
        np.tile(np.arange(160, dtype=np.uint8)[None, :, None], (120, 1, 3)),
        np.zeros((4, 4, 3), np.uint8),
    ],
    ids=["noise", "grey floor", "bright floor", "grey card", "black", "bars", "tiny"],
)
def test_uniform_scenes_are_not_torn(frame):
    assert frame_is_whole(frame)


@pytest.mark.parametrize("level", [0, 16, 255])
def test_a_letterbox_is_not_torn(level):
    frame = noisy(6)
    frame[-24:] = level
    assert frame_is_whole(frame)


def test_a_real_floor_through_h264_like_blocks_is_not_torn():
    """Blocks of 8 rows that a codec made flat: rows repeat within a block, not through all."""
    frame = cv2.resize(noisy(7, 15, 20), (160, 120), interpolation=cv2.INTER_NEAREST)
    assert frame_is_whole(frame)


def test_black_is_told_from_night():
    night = noisy(8) // 12
    night[20:40, 20:40] = 180
    assert not is_black(night)
    assert not is_black(jpeg(night))
    dark = np.random.default_rng(0).integers(0, 5, (120, 160, 3)).astype(np.uint8)
    assert is_black(dark)
    assert is_black(jpeg(dark))
    assert not is_black(np.full((120, 160, 3), 90, np.uint8))
    assert not is_black(b"\xff\xd8 no picture")


def watched(freeze_s: float = 10.0) -> tuple[Health, PictureHealth]:
    health = Health("yard")
    health.live()
    return health, PictureHealth(health, freeze_s)


def test_torn_pictures_are_counted_and_refused():
    health, pictures = watched()
    half = PICTURE[: len(PICTURE) // 2]
    assert [pictures.accept(image) for image in (PICTURE, half, PICTURE, torn("row"))] == [
        True,
        False,
        True,
        False,
    ]
    assert health.counts["torn"] == 2


def test_a_camera_all_of_whose_pictures_look_torn_is_let_through():
    """A cheap camera without end markers is not mute for ever."""
    health, pictures = watched()
    accepted = [pictures.accept(PICTURE[:-2]) for _ in range(ACCUSTOMED + 5)]
    assert accepted == [False] * (ACCUSTOMED - 1) + [True] * 6
    assert health.counts["torn"] == ACCUSTOMED
    pictures.accept(PICTURE)
    assert not pictures.accept(PICTURE[:-2])


def test_what_is_no_jpeg_never_gets_through():
    _, pictures = watched()
    assert not any(pictures.accept(b"<html>") for _ in range(2 * ACCUSTOMED))


def test_black_is_told_once_and_passes_on(caplog):
    health, pictures = watched()
    black = [jpeg(np.full((120, 160, 3), level, np.uint8)) for level in (0, 1)]
    for second in range(10):
        pictures.watch(black[second % 2], float(second))
    assert health.counts["black"] == 1
    assert "black" in health.sentence
    assert health.state == "live"
    assert len(caplog.records) == 1
    pictures.watch(PICTURE, 10.0)
    assert health.sentence == ""


@pytest.mark.parametrize("image", [PICTURE, noisy(0)], ids=["jpeg", "frame"])
def test_a_picture_that_never_changes_is_frozen(image):
    health, pictures = watched(10.0)
    for second in range(10):
        pictures.watch(image, float(second))
    with pytest.raises(FrozenPicture):
        pictures.watch(image, 10.0)
    assert health.counts["frozen"] == 1
    assert health.state == "failing"


def test_one_changed_row_in_four_is_no_frozen_picture():
    health, pictures = watched(10.0)
    image = noisy(0)
    for second in range(30):
        image[8, 8] = second
        pictures.watch(image, float(second))
    assert health.counts["frozen"] == 0


def freeze(pictures: PictureHealth, from_s: float) -> tuple[float, float]:
    """Show the same picture until it counts as frozen; return the seconds it took, and the wait."""
    pictures.opened()
    for half_seconds in range(100):
        try:
            pictures.watch(PICTURE, from_s + half_seconds / 2)
        except FrozenPicture as frozen:
            return half_seconds / 2, frozen.wait_s
    pytest.fail("never frozen")


def test_freeze_s_passes_anew_after_reopening_and_waits_grow():
    health, pictures = watched(2.0)
    seconds, waits = zip(*(freeze(pictures, 100.0 * n) for n in range(5)), strict=True)
    assert min(seconds) >= 2.0
    assert all(later > earlier for earlier, later in itertools.pairwise(waits))
    assert health.counts["frozen"] == 5


def test_a_camera_that_stays_frozen_is_not_logged_every_time(caplog):
    health, pictures = watched(2.0)
    for opening in range(5):
        health.live()
        freeze(pictures, 100.0 * opening)
    assert sum("the same picture" in record.message for record in caplog.records) <= 2
