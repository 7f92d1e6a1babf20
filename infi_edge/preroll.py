"""The inputs from just before the gate opened."""

from __future__ import annotations

import math
from collections import deque

from infi_edge.sinks.outlet import size_bytes
from infi_edge.types import Action, Result, Sample

MAX_BYTES = 32 << 20


class PreRoll:
    """A short ring of inputs, bounded in time and bytes."""

    def __init__(self) -> None:
        self._inputs: deque[Sample] = deque()
        self._bytes = 0
        self._given_s = -math.inf
        self._was_filtered = self._was_wanted = False

    def add(
        self, sample: Sample, result: Result, wanted: bool, seconds: float
    ) -> tuple[Sample, ...]:
        """Keep an input; return those from before it that its result shall carry.

        Those are the ones that were not given yet when the gate opens, and all of them when
        something wanted begins. seconds: how long they are kept, on the stream's clock; 0: not.
        """
        if not seconds:
            return ()
        opens = result.action is Action.INFER and self._was_filtered
        begins = wanted and not self._was_wanted
        self._was_filtered, self._was_wanted = result.action is not Action.INFER, wanted
        while self._inputs and sample.time_s - self._inputs[0].time_s > seconds:
            self._forget_oldest()
        before: tuple[Sample, ...] = ()
        if self._inputs and (opens or begins):
            before = tuple(s for s in self._inputs if begins or s.time_s > self._given_s)
            self._given_s = self._inputs[-1].time_s
        self._inputs.append(sample)
        self._bytes += size_bytes(sample.data)
        while self._inputs and self._bytes > MAX_BYTES:
            self._forget_oldest()
        return before

    def _forget_oldest(self) -> None:
        self._bytes -= size_bytes(self._inputs.popleft().data)
