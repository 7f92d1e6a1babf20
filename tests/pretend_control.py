"""A daemon's numbers without a daemon: what the tests of the metrics and the page look at."""

from __future__ import annotations

import math
import time
from collections import Counter
from datetime import datetime, timezone

import cv2
import numpy as np

from infi_edge.bundle import OperatingPoint
from infi_edge.errors import ConfigError
from infi_edge.learning.audit import Bounded
from infi_edge.learning.learner import Change
from infi_edge.policy import Knobs
from infi_edge.status import (
    Histogram,
    LearningStatus,
    Minute,
    SinkStatus,
    SourceStatus,
    Status,
)
from infi_edge.types import Image


def point(measure: str, target: float, rate: float, recall: float | None = None) -> OperatingPoint:
    """A row of a bundle's table that delivers a little more than it promises."""
    return OperatingPoint(
        measure=measure,  # type: ignore[arg-type]
        target=target,
        knobs=Knobs(reuse_threshold=1 - target),
        accuracy=target + (1 - target) / 3,
        recall=recall,
        filtering_rate=rate,
        bound=target + 0.004,
        kind="estimate",
    )


def histogram(*seconds: float) -> Histogram:
    """A histogram that has seen these."""
    result = Histogram()
    for value in seconds:
        result.observe(value)
    return result


def minutes(count: int, per_minute: int = 1200) -> list[Minute]:
    """A past of so many minutes that ends now: busy by turns, with a gap of five minutes."""
    now_s = 60 * (time.time() // 60)
    result = []
    for i in range(count):
        ago = count - i
        if count > 60 and 20 <= ago < 25:
            continue
        busy = 0.5 + 0.5 * math.sin(i / 17.0) * math.sin(i / 5.0)
        wanted = int(per_minute * 0.3 * busy**3)
        inferred = int(per_minute * (0.05 + 0.25 * busy))
        result.append(
            Minute(
                at_s=now_s - 60 * ago,
                inputs=per_minute,
                filtered=per_minute - inferred,
                wanted=wanted,
                model_s=inferred * 0.045,
            )
        )
    return result


def source(name: str = "yard") -> SourceStatus:
    """A camera that does well."""
    return SourceStatus(
        name=name,
        address="camera:/dev/v4l/by-id/usb-Generic_HD_Camera-video-index0",
        modality="image",
        model="ssd",
        bundle="yard.infi",
        task="presence:person",
        state="live",
        promise="Accuracy of at least 90 % on inputs like those it was calibrated on.",
        points=[
            point("accuracy", 0.9, 0.83, 0.81),
            point("accuracy", 0.8, 0.91, 0.62),
            point("accuracy", 0.95, 0.74, 0.9),
            point("accuracy", 0.98, 0.55, 0.96),
            point("recall", 0.9, 0.71, 0.93),
            point("recall", 0.95, 0.6, 0.965),
        ],
        confidence=0.9,
        counts=Counter(skip=310_250, reuse=42_120, infer=61_330, over_budget=3),
        errors=Counter({"RuntimeError": 2}),
        faults=Counter(dropped=214, stall=1),
        filter_s=histogram(*[0.00018] * 90, *[0.0004] * 10),
        model_s=histogram(*[0.041] * 60, 0.19),
        queue_s=histogram(*[0.002] * 60, 0.08),
        frame_age_s=histogram(*[0.03] * 95, *[0.09] * 5),
        cache_entries=1730,
        cache_bytes=221_440,
        cache_hits=42_120,
        cache_evictions=118,
        bytes_saved=31_200_000_000,
        last_value=True,
        last_action="reuse",
        last_why="p(changed) 0.031 is at most 0.1; nearest of 1,730 entries",
        last_at=datetime.now(timezone.utc).isoformat(),
        last_score=0.71,
        last_p_changed=0.031,
        event_active=True,
        quiet_s=12.0,
        longest_quiet_s=1800.0,
        history=minutes(400),
    )


def learning(**more: object) -> LearningStatus:
    """What a source has learned since yesterday; it has been opened once."""
    usual: dict[str, object] = {
        "target": 0.95,
        "confidence": 0.95,
        "open": False,
        "opened_for": "",
        "frozen": False,
        "inputs": 412_000,
        "remembered": 400,
        "fits": 61,
        "audited": 3_950,
        "audit_errors": 118,
        "failed_open": 1,
        "accuracy": Bounded(0.971, 0.962, 0.979),
        "recall": Bounded(0.934, 0.901, 0.958),
        "cpu_s": 12.4,
        "sentence": "",
        "changes": (
            Change(412, "closed after learning"),
            Change(201_000, "opened: the scene changes"),
            Change(201_060, "closed after the scene changes"),
        ),
    }
    return LearningStatus(**{**usual, **more})  # type: ignore[arg-type]


class PretendControl:
    """The seam `Control` over fixed numbers; remembers what was changed."""

    def __init__(self) -> None:
        gate = source("gate")
        gate.address = "rtsp://***@10.0.0.7/stream1"
        gate.state = "failing"
        gate.sentence = "rtsp://***@10.0.0.7/stream1 gives no picture for 10 s; opened again in 8 s"
        gate.faults.update(stall=12, open=7)
        hum = source("hum")
        hum.address, hum.modality, hum.task = "microphone:USB", "audio", "label"
        hum.last_value, hum.last_action, hum.last_why = "fan", "infer", "no entry is near enough"
        hum.history = minutes(25, 60)
        hum.quiet_alarm, hum.quiet_s = True, 5400.0
        self.current = Status(
            version="0.9.1",
            started_at="2026-01-01T00:00:00+00:00",
            uptime_s=1_234_567.0,
            cpu=0.37,
            memory_bytes=91_300_000,
            temperature_c=61.2,
            throttled=False,
            under_voltage=True,
            reloads=Counter(done=3),
            sources=[source(), gate, hum],
            sinks=[
                SinkStatus("log", "jsonl", counts=Counter(sent=61_330)),
                SinkStatus(
                    "home", "mqtt", "127.0.0.1:1883 refuses the connection; tried again in 8 s",
                    Counter(sent=840, dropped=3), queued=17,
                ),
            ],
        )  # fmt: skip
        rng = np.random.default_rng(1)
        frame = rng.integers(60, 110, (18, 32, 3), np.uint8)
        frame = cv2.resize(frame, (1280, 720), interpolation=cv2.INTER_CUBIC)
        cv2.rectangle(frame, (560, 250), (700, 640), (190, 205, 220), -1)
        cv2.circle(frame, (630, 190), 60, (190, 205, 220), -1)
        self.frames: dict[str, Image | None] = {"yard": frame, "gate": None, "hum": None}
        self.changed: list[tuple[object, ...]] = []

    def status(self) -> Status:
        return self.current

    def set_enabled(self, source: str, enabled: bool) -> None:
        self.changed.append((source, enabled))
        self._source(source).enabled = enabled

    def set_target(self, source: str, measure: str, target: float) -> OperatingPoint:
        status = self._source(source)
        for i, row in enumerate(status.points):
            if (row.measure, row.target) == (measure, target):
                self.changed.append((source, measure, target))
                status.chosen = i
                status.promise = f"{measure.capitalize()} of at least {target:.0%}."
                return row
        raise ConfigError(f"{source}: its table has no row for {measure} {target:g}")

    def picture(self, source: str) -> Image | None:
        return self.frames[source]

    def _source(self, name: str) -> SourceStatus:
        return next(source for source in self.current.sources if source.name == name)
