"""Where results go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol, TextIO

from infi_edge.errors import ConfigError
from infi_edge.types import Result


class Sink(Protocol):
    """The seam for results."""

    def write(self, result: Result) -> None:
        """Take one result."""

    def error(self, index: int, time_s: float, message: str) -> None:
        """Take the error of one input."""

    def close(self) -> None:
        """Flush and let go."""


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
        "score": None if result.score is None else round(result.score, 4),
        "p_changed": None if result.p_changed is None else round(result.p_changed, 4),
        "age_s": None if result.age_s is None else round(result.age_s, 4),
        "distance": result.distance,
        "votes": result.votes,
    }
    record.update({key: value for key, value in optional.items() if value is not None})
    return record


class JsonLines:
    """One JSON object a line, to a file or an open stream."""

    def __init__(self, target: str | Path | TextIO) -> None:
        """target: a path (appended to) or a stream. Raises ConfigError if it cannot be opened."""
        self._owned = isinstance(target, (str, Path))
        if isinstance(target, (str, Path)):
            try:
                self._file: TextIO = Path(target).open("a", encoding="utf-8")  # noqa: SIM115
            except OSError as error:
                raise ConfigError(
                    f"results cannot be written to {target}: {error.strerror}"
                ) from error
        else:
            self._file = target

    def write(self, result: Result) -> None:
        self._line(result_record(result))

    def error(self, index: int, time_s: float, message: str) -> None:
        self._line({"index": index, "time_s": round(time_s, 4), "error": message})

    def _line(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._owned:
            self._file.close()
