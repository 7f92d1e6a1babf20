"""What is saved of a link, in the report and in the status."""

from __future__ import annotations

import numpy as np
import pytest

from infi_edge.bandwidth import bandwidth
from infi_edge.status import SourceStatus


def test_what_is_saved_is_told_against_every_alternative():
    sizes, jpegs = np.full(10, 900.0), np.full(10, 150.0)
    inferred = np.arange(10) == 0
    found = bandwidth(sizes, jpegs, inferred, overhead=100.0, every_nth_filtering_rate=0.8)
    assert (found.bytes_of_all, found.bytes_sent, found.bytes_per_input) == (10_000, 1000, 1000)
    assert found.saved == pytest.approx(0.9)
    assert found.saved_against_jpeg == pytest.approx(1 - 1000 / 2500)
    assert found.saved_against_every_nth == pytest.approx(1 - 1000 / 500)
    assert bandwidth(sizes, None, inferred, 100.0, 0.8).saved_against_jpeg is None


def test_the_status_counts_what_went_and_what_could_have():
    status = SourceStatus("yard")
    assert status.bandwidth_saved is None
    status.counts.update(infer=1, reuse=9, skip=2, stale=2, queued=5, link_down=7)
    status.sent, status.bytes_sent = 1, 5000
    assert status.bandwidth_saved == pytest.approx(0.9)  # an outage saves nothing
    assert status.bandwidth_saved_against_jpeg is None
    for _ in range(10):
        status.note_jpeg(b"x" * 2000)
    status.note_jpeg(np.zeros(3))
    assert status.bandwidth_saved_against_jpeg == pytest.approx(0.75)
