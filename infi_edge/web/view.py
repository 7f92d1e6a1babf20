"""What the page gets: the status as JSON, and a source's picture as a small JPEG."""

from __future__ import annotations

import dataclasses
from collections import Counter
from datetime import datetime, timezone
from typing import Any

import cv2
import msgspec
import numpy as np

from infi_edge.capture.address import public_address
from infi_edge.preprocess.image import ImageSpec, reduced_frame
from infi_edge.status import Histogram, SourceStatus, Status
from infi_edge.types import Image

PICTURE_WIDTH = 640
_ENOUGH = ImageSpec(width=PICTURE_WIDTH // 2, height=1)
_SENTENCES = ("address", "sentence", "budget", "degraded", "link", "promise", "reload_sentence")


def status_json(status: Status, pictures: bool) -> bytes:
    """Return everything but the history. at: the wall time here, by which ages are told.

    A histogram is its count, mean_s, p50_s and p99_s (null where it is over the last bound).
    """
    view = _view(status)
    view["sources"] = [_source(source) for source in status.sources]
    view["sinks"] = [_view(sink) for sink in status.sinks]
    view["links"] = [_view(link) for link in status.links]
    view["at"] = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    view["pictures"] = pictures
    return json_bytes(view)


def history_json(status: Status) -> bytes:
    """Return {source: [minute, ...]}, the oldest first."""
    return json_bytes({source.name: list(source.history) for source in status.sources})


def json_bytes(value: Any) -> bytes:
    """Encode; what a plugin's task puts into a value that JSON does not know becomes text."""
    return msgspec.json.encode(value, enc_hook=str)


def _source(source: SourceStatus) -> dict[str, Any]:
    view = _view(source)
    del view["history"]
    view["inputs"] = source.inputs
    view["filtering_rate"] = source.filtering_rate
    view["model_saved_s"] = source.model_saved_s
    view["bandwidth_saved"] = source.bandwidth_saved
    view["bandwidth_saved_against_jpeg"] = source.bandwidth_saved_against_jpeg
    return view


def _view(status: Any) -> dict[str, Any]:
    # A shallow copy: the counters go on changing while it is encoded.
    view: dict[str, Any] = {}
    for field in dataclasses.fields(status):
        value = getattr(status, field.name)
        if isinstance(value, Histogram):
            value = _summary(value)
        elif isinstance(value, Counter):
            value = dict(value)
        elif field.name in _SENTENCES:
            value = public_address(value)
        view[field.name] = value
    return view


def _summary(histogram: Histogram) -> dict[str, Any]:
    count = histogram.count
    return {
        "count": count,
        "mean_s": histogram.total_s / count if count else None,
        "p50_s": histogram.quantile(0.5),
        "p99_s": histogram.quantile(0.99),
    }


def picture_jpeg(image: Image) -> bytes:
    """Return a picture as JPEG, at most PICTURE_WIDTH wide. Raises ValueError if it is none."""
    frame = reduced_frame(image, _ENOUGH) if isinstance(image, bytes) else image
    if frame.ndim not in (2, 3) or frame.dtype != np.uint8 or frame.size == 0:
        raise ValueError(f"no picture: {frame.dtype} {frame.shape}")
    height, width = frame.shape[:2]
    if width > PICTURE_WIDTH:
        size = (PICTURE_WIDTH, max(1, round(height * PICTURE_WIDTH / width)))
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 80])
    if not done:
        raise ValueError("a picture that cannot be written as JPEG")
    return data.tobytes()
