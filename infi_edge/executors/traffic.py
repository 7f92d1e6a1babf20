"""Bytes that went over a socket, as the kernel counts them, by cause."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Literal

Cause = Literal["infer", "retry", "metadata", "probe"]


class Traffic:
    """Totals of every connection to one served model; shared by its links.

    sent, received: bytes of TCP payload by cause (TLS and framing included, TCP/IP headers not).
    exact: whether all of it was seen; a kernel that does not tell makes it False.
    """

    def __init__(self, total: Traffic | None = None) -> None:
        """total: what all of this is added to as well."""
        self.sent: Counter[Cause] = Counter()
        self.received: Counter[Cause] = Counter()
        self._total = total
        self.exact = True
        self._lock = threading.Lock()

    def add(self, cause: Cause, sent: int, received: int, exact: bool = True) -> None:
        """Count what one call has moved. exact: as the kernel tells it, not as we reckon."""
        with self._lock:
            self.exact = self.exact and exact
            self.sent[cause] += sent
            self.received[cause] += received
        if self._total is not None:
            self._total.add(cause, sent, received, exact)

    def totals(self) -> tuple[Counter[str], Counter[str]]:
        """Copies of sent and received."""
        with self._lock:
            return Counter(self.sent), Counter(self.received)
