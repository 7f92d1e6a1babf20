"""Recordings as sources: a real small video and a real folder of images."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi_edge.capture.recordings import open_recording
from infi_edge.capture.replay import ImageFolder, VideoFile, part
from infi_edge.errors import ConfigError, SourceError

FRAMES = 20


def shade(index: int) -> np.ndarray:
    """The image of an index: a flat grey of its own."""
    return np.full((48, 64, 3), 10 * index + 20, np.uint8)


def index_of(frame: np.ndarray) -> int:
    return round((float(frame.mean()) - 20) / 10)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """20 frames at 10 Hz."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (64, 48))
    for index in range(FRAMES):
        writer.write(shade(index))
    writer.release()
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three JPEGs, a PNG, and a file that is no image."""
    path = tmp_path / "images"
    path.mkdir()
    for name, index in (("c.JPEG", 2), ("a.jpg", 0), ("d.png", 3), ("b.jpg", 1)):
        encoded = cv2.imencode(".png" if name.endswith("png") else ".jpg", shade(index))[1]
        (path / name).write_bytes(encoded.tobytes())
    (path / "notes.txt").write_text("no image")
    return path


def test_a_video_gives_every_frame_with_its_time(video):
    recording = open_recording(str(video))
    samples = list(recording.samples())
    assert isinstance(recording, VideoFile)
    assert (recording.count, recording.rate_hz) == (FRAMES, 10.0)
    assert [s.index for s in samples] == list(range(FRAMES))
    assert [index_of(s.data) for s in samples] == list(range(FRAMES))
    assert [s.time_s for s in samples] == pytest.approx([i / 10 for i in range(FRAMES)])
    assert {s.source for s in samples} == {str(video)}


def test_a_part_of_a_recording_keeps_index_and_time(video, folder):
    samples = list(open_recording(str(video)).samples(7, 9))
    assert [(s.index, index_of(s.data), s.time_s) for s in samples] == [(7, 7, 0.7), (8, 8, 0.8)]
    samples = list(open_recording(str(folder), 4.0).samples(1, 3))
    assert [(s.index, s.time_s) for s in samples] == [(1, 0.25), (2, 0.5)]


def test_a_recording_can_be_read_again(video, folder):
    for path in (video, folder):
        recording = open_recording(str(path))
        first, second = (list(recording.samples()) for _ in range(2))
        assert len(first) == recording.count
        assert all(np.array_equal(a.data, b.data) for a, b in zip(first, second, strict=True))


def test_past_the_end_there_is_nothing(video, folder):
    for path in (video, folder):
        recording = open_recording(str(path))
        assert list(recording.samples(recording.count)) == []
        assert len(list(recording.samples(recording.count - 1, recording.count + 5))) == 1


def test_a_folder_is_read_by_name_and_its_jpegs_are_passed_untouched(folder):
    recording = open_recording(str(folder), 2.0)
    samples = list(recording.samples())
    assert isinstance(recording, ImageFolder)
    assert recording.count == 4
    assert [s.time_s for s in samples] == [0.0, 0.5, 1.0, 1.5]
    names = ["a.jpg", "b.jpg", "c.JPEG"]
    assert [s.data for s in samples[:3]] == [(folder / name).read_bytes() for name in names]
    assert (samples[3].data == shade(3)).all()


def test_a_folder_without_a_rate_is_one_image_a_second(folder):
    assert [s.time_s for s in open_recording(str(folder)).samples()] == [0.0, 1.0, 2.0, 3.0]


def test_what_is_no_recording_is_refused(tmp_path, refuses):
    (tmp_path / "text.mp4").write_text("hello, I am a text\n" * 100)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "images").mkdir()
    for name, words in (
        ("absent.mp4", "does not exist"),
        ("text.mp4", "cannot be read as a video"),
        ("empty.mp4", "cannot be read as a video"),
        ("images", "holds no images"),
        ("n" * 300, ""),
    ):
        with refuses(SourceError, words):
            open_recording(f"{tmp_path}/{name}")


def test_an_image_that_is_none_is_refused_by_name(folder, refuses):
    (folder / "b.png").write_text("no image")
    samples = open_recording(str(folder)).samples()
    assert next(samples).index == 0
    assert next(samples).index == 1
    with refuses(SourceError, r"b\.png is not an image"):
        next(samples)


def test_an_image_that_is_gone_is_refused_by_name(folder, refuses):
    samples = open_recording(str(folder)).samples()
    (folder / "a.jpg").unlink()
    with refuses(SourceError, r"a\.jpg cannot be read"):
        next(samples)


def test_a_truncated_video_ends_early_without_an_error(video, tmp_path):
    cut = tmp_path / "cut.avi"
    cut.write_bytes(video.read_bytes()[: video.stat().st_size * 4 // 5])
    samples = list(open_recording(str(cut)).samples())
    assert 0 < len(samples) < FRAMES
    whole = [index_of(s.data) for s in samples[:-1]]  # the last one may be cut
    assert whole == list(range(len(samples) - 1))


def test_the_content_hash_knows_content_names_and_nothing_else(video, folder, tmp_path):
    for path, touched in ((video, video), (folder, folder / "a.jpg")):
        before = open_recording(str(path)).content_hash()
        assert open_recording(str(path)).content_hash() == before
        touched.write_bytes(touched.read_bytes() + b"\0")
        assert open_recording(str(path)).content_hash() != before
    before = open_recording(str(folder)).content_hash()
    moved = folder.rename(tmp_path / "moved")
    assert open_recording(str(moved)).content_hash() == before
    (moved / "a.jpg").rename(moved / "aa.jpg")
    assert open_recording(str(moved)).content_hash() != before


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0.0, 1.0, (0, 20)), (0.5, 1.0, (10, 20)), (0.25, 0.5, (5, 10)), (0.99, 1.0, (19, 20))],
)
def test_a_part_is_a_share_of_the_inputs(video, start, end, expected):
    assert part(open_recording(str(video)), start, end) == expected


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), st.integers(1, 5000))
def test_adjacent_parts_share_no_input_and_lose_none(cuts, count):
    class Stream:
        name, rate_hz = "stream", 1.0

    stream = Stream()
    stream.count = count
    edges = sorted({0.0, *cuts, 1.0})
    ends = [0]
    for start, end in itertools.pairwise(edges):
        try:
            first, last = part(stream, start, end)
        except ConfigError:  # too narrow for an input
            continue
        assert first == ends[-1]
        ends.append(last)
    assert ends[-1] == count


@pytest.mark.parametrize(
    ("start", "end"), [(-0.1, 1.0), (0.5, 0.5), (0.6, 0.5), (0.0, 1.1), (float("nan"), 1.0)]
)
def test_an_impossible_part_is_refused(video, refuses, start, end):
    with refuses(ConfigError, "0 <= start < end <= 1"):
        part(open_recording(str(video)), start, end)


def test_a_part_without_an_input_is_refused(video, refuses):
    with refuses(ConfigError, "no input between"):
        part(open_recording(str(video)), 0.5, 0.501)
