"""What flows through the loop: Sample -> Decision -> Result."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

Image = np.ndarray | bytes
"""A BGR uint8 array of shape (H, W, 3), or the bytes of a JPEG file."""


class Action(str, Enum):
    """What the gate did with an input."""

    SKIP = "skip"
    REUSE = "reuse"
    INFER = "infer"


@dataclass(frozen=True, slots=True)
class Sample:
    """One input. time_s: seconds of the stream, monotonic. index: its place in the stream.

    data, by modality: an Image; a list or array of `frames` Images; mono PCM (window,) float32
    -1..1; str; a float array (window, channels); an array of any shape.
    """

    data: Any
    time_s: float
    index: int = 0
    source: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy says about one input, and why.

    score: probability that the input needs inference (SKIP head); None without a SKIP head.
    p_changed: probability that `value` is no longer right; None unless the cache was asked.
    age_s, distance (uint8 L1 steps), votes: of the entry behind a REUSE, else None.
    """

    action: Action
    why: str
    value: Any = None
    score: float | None = None
    p_changed: float | None = None
    age_s: float | None = None
    distance: int | None = None
    votes: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to one input and how it came about; further fields are those of Decision.

    at: wall time of the input, ISO 8601 in UTC; empty outside the daemon. scene_change: the whole
    scene changes, inputs pass through. degraded: over budget, or the server away: an old answer or
    another model's. late: answered after later inputs, once the server was there again.
    before: the inputs kept from before this one (the pre-roll), where the gate has just opened.
    Of a gate that learns: audited: it would have been filtered and was inferred all the same.
    live_accuracy, live_bound: the live estimate and its low bound; None without an audit yet.
    live_recall, live_recall_bound: of wanted inputs; None also where the task wants all.
    """

    value: Any
    action: Action
    why: str
    index: int
    time_s: float
    source: str = ""
    score: float | None = None
    p_changed: float | None = None
    age_s: float | None = None
    distance: int | None = None
    votes: int | None = None
    at: str = ""
    scene_change: bool = False
    degraded: bool = False
    late: bool = False
    audited: bool = False
    live_accuracy: float | None = None
    live_bound: float | None = None
    live_recall: float | None = None
    live_recall_bound: float | None = None
    before: tuple[Sample, ...] = field(default=(), repr=False)
