"""Results to a function of one's own, where infi-edge is embedded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from infi_edge.events import Event
from infi_edge.types import Result, Sample


class CallbackSink:
    """Calls functions; what they raise is counted, and told once."""

    kind = "callback"
    wants_samples = True

    def __init__(
        self,
        function: Callable[[Result, Sample], Any],
        on_event: Callable[[Event], Any] | None = None,
    ) -> None:
        """function: called with each result and its input. on_event: with each event."""
        self.counts: Counter[str] = Counter(sent=0, dropped=0, failed=0)
        self.sentence = ""
        self.wants_events = on_event is not None
        self._function, self._on_event = function, on_event

    def write(self, result: Result, sample: Sample) -> None:
        self._call(self._function, result, sample)

    def event(self, event: Event) -> None:
        if self._on_event is not None:
            self._call(self._on_event, event)

    def error(self, source: str, sample: Sample, message: str) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _call(self, function: Callable[..., Any], *args: Any) -> None:
        try:
            function(*args)
        except Exception as error:
            self.counts["failed"] += 1
            name = getattr(function, "__name__", "the callback")
            self.sentence = f"{name} raised {type(error).__name__}: {error}"
        else:
            self.counts["sent"] += 1
            self.sentence = ""
