"""The seam for results and events, and what they are as JSON."""

from __future__ import annotations

from collections import Counter
from typing import Any, Protocol

from infi_edge.events import Event
from infi_edge.types import Result, Sample


class Sink(Protocol):
    """One place results go to. All calls come from one thread, which may block in them.

    counts: what became of the messages by cause (`sent`, `dropped`, `failed`, ...), read by the
    metrics. `sentence`: the last fault, without credentials; empty while all is well.
    """

    counts: Counter[str]
    sentence: str

    def write(self, result: Result, sample: Sample) -> None:
        """Take one result and the input it answers. A fault of the place is counted, not raised."""

    def event(self, event: Event) -> None:
        """Take one event."""

    def error(self, source: str, sample: Sample, message: str) -> None:
        """Take the error of one input."""

    def flush(self) -> None:
        """Write what waits; called at most about once in `flush_s`."""

    def close(self) -> None:
        """Flush and let go, within a second."""


def result_record(result: Result) -> dict[str, Any]:
    """Return a result as a JSON object; what does not apply is left out."""
    record: dict[str, Any] = {
        "index": result.index,
        "time_s": round(result.time_s, 4),
        "action": result.action.value,
        "value": result.value,
        "why": result.why,
    }
    optional = {
        "source": result.source or None,
        "at": result.at or None,
        "score": _rounded(result.score),
        "p_changed": _rounded(result.p_changed),
        "age_s": _rounded(result.age_s),
        "distance": result.distance,
        "votes": result.votes,
        "scene_change": result.scene_change or None,
        "degraded": result.degraded or None,
        "late": result.late or None,
        "audited": result.audited or None,
        "live_accuracy": _rounded(result.live_accuracy),
        "live_bound": _rounded(result.live_bound),
        "live_recall": _rounded(result.live_recall),
        "live_recall_bound": _rounded(result.live_recall_bound),
    }
    record.update({key: value for key, value in optional.items() if value is not None})
    return record


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 4)


def event_record(event: Event) -> dict[str, Any]:
    """Return an event as a JSON object."""
    return {
        "event": event.kind,
        "id": event.id,
        "source": event.source,
        "value": event.value,
        "at": event.at,
        "begun_at": event.begun_at,
        "duration_s": round(event.duration_s, 3),
    }
