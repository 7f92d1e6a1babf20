"""The alarm of a source that has filtered everything for longer than its data ever was quiet."""

from __future__ import annotations

from infi_edge.tasks import SameRule, Value
from infi_edge.types import Action, Result

LEAST_S = 600.0
FORCED = ("heartbeat", "too many filtered in a row", "last inference too long ago")
"""Why an input may be inferred though the filter would not have."""


class Quiet:
    """How long a source has been quiet. longest_s: the longest it ever was, training included."""

    def __init__(self) -> None:
        self.quiet_s = self.longest_s = 0.0
        self._from_s: float | None = None
        self._answer: tuple[Value, ...] = ()

    def count(self, result: Result, wanted: bool, same: SameRule) -> bool:
        """Take one result; return whether it is quiet for longer than ever, LEAST_S at least."""
        now_s = result.time_s
        if self._from_s is None:
            self._from_s = now_s
        self.quiet_s = now_s - self._from_s
        if self._is_lively(result, wanted, same):
            self.longest_s = max(self.longest_s, self.quiet_s)
            self._from_s, self.quiet_s = now_s, 0.0
        return max(self.longest_s, LEAST_S) < self.quiet_s

    def restart(self) -> None:
        """Begin anew: there was no input."""
        self._from_s = None

    def forget_answer(self) -> None:
        """The next answer is another model's or task's."""
        self._answer = ()

    def _is_lively(self, result: Result, wanted: bool, same: SameRule) -> bool:
        """Whether the filter asked for this inference, or a forced one has shown something wanted
        or new, as `longest_quiet_s` of the training data has it."""
        if result.action is not Action.INFER:
            return False
        before, self._answer = self._answer, (result.value,)
        if result.why not in FORCED or wanted:
            return True
        return bool(before) and not same(before[0], result.value)
