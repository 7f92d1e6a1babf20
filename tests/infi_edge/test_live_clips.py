"""Clips of live pictures: in order, overlapping, never over a gap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi_edge.capture.clips import GAP_INTERVALS, LiveClips


def numbered(number: int) -> bytes:
    return str(number).encode()


@given(st.integers(1, 8), st.integers(1, 10), st.integers(0, 60))
def test_a_clip_is_the_last_frames_and_begins_hop_after_the_one_before(frames, hop, count):
    clips = LiveClips(frames, hop)
    made = [clips.add(numbered(i), i * 0.04) for i in range(count)]
    ends = [i for i, clip in enumerate(made) if clip is not None]
    assert ends == list(range(frames - 1, count, hop))
    for end in ends:
        assert made[end] == [numbered(i) for i in range(end - frames + 1, end + 1)]


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.lists(st.floats(0.03, 0.05), min_size=10, max_size=60),
    st.sets(st.integers(9, 60)),
)
def test_no_clip_spans_a_gap(frames, hop, intervals, gaps):
    clips = LiveClips(frames, hop)
    time_s, stretch = 0.0, 0
    for number, interval_s in enumerate(intervals):
        gap = number in gaps
        time_s += 10.0 if gap else interval_s
        # Where most pauses are long they are the usual thing; a few among many are gaps.
        stretch += gap
        clip = clips.add(numbered(stretch), time_s)
        if clip is not None and len(gaps) <= 1:
            assert len(set(clip)) == 1


def test_a_slow_gate_is_a_gap_and_jitter_is_none():
    clips = LiveClips(2, 1)
    times_s = [0.0, 0.04, 0.08, 0.12, 0.16]
    assert sum(clips.add(b"", t) is not None for t in times_s) == 4
    assert clips.add(b"", 0.16 + 0.04 * (GAP_INTERVALS - 1)) is not None
    assert clips.add(b"", 5.0) is None, "begun anew"
    assert clips.add(b"", 5.04) is not None


def test_a_reopened_camera_begins_anew():
    clips = LiveClips(3, 1)
    for number in range(5):
        clips.add(numbered(number), number * 0.04)
    clips.restart()
    assert clips.add(b"a", 0.24) is None
    assert clips.add(b"b", 0.28) is None
    assert clips.add(b"c", 0.32) == [b"a", b"b", b"c"]


def test_the_frames_of_a_clip_cannot_be_drawn_on():
    clips = LiveClips(2, 1)
    for number in range(2):
        clip = clips.add(np.zeros((4, 4, 3), np.uint8), number * 0.04)
    assert clip is not None
    with pytest.raises(ValueError, match="read-only"):
        clip[0][0, 0] = 1
