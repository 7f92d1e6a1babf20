"""The threshold of a learning gate, set online by what the model says of what it would reuse.

Kin of adaptive conformal inference (Gibbs and Candes, NeurIPS 2021): every answer that comes moves
the threshold and the cap towards the share of errors that the target allows. An input that is
filtered tells nothing, and loosens nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

RECORDS = 300
DECAY = 0.97
"""By which an answer counts less with each later one: logits of older metrics mean less."""
PRIOR = 8.0
LEAST_RECORDS, LEAST_SEEN = 5, 10
MARGIN = 0.4
"""The share of the allowed errors that is planned for; the rest is for what the plan misses."""
HEAVIEST = 5.0
LOOSEST = 0.5
FIRST_CAP, FIRST_MOST, LARGEST_CAP = 2.0, 18.0, 150.0
REACH = 60.0
"""The cap's limit at first, times the root of the allowed share: one change that is missed makes
as many wrong answers as the cap lets pass."""
WIDEN = 1.5
"""By which the limit grows with each long stretch in which the target held."""
SLOW_START = 0.5
"""The cap is doubled up to this many inputs per percent of allowed errors, then only crept."""
CREEP = 0.5
CUT = 0.5
AT_CAP = 2.0
"""Times the allowed share that may be wrong at the cap: answers go wrong late, not early."""


class Control:
    """The reuse threshold on p(changed), the recalibration of p, and the cap A.

    allowed: share of inputs that may be wrong.
    """

    def __init__(self, allowed: float) -> None:
        self.allowed = allowed
        self.slope, self.offset = 1.0, 0.0
        self.threshold = allowed
        self.cap, self.limit = FIRST_CAP, self._first_limit
        self._starting = True
        self._records: deque[tuple[float, float, float]] = deque(maxlen=RECORDS)
        self._seen: deque[float] = deque(maxlen=RECORDS)

    @property
    def _first_limit(self) -> float:
        return min(max(REACH * math.sqrt(self.allowed), 1.0), FIRST_MOST)

    @property
    def max_since_inference(self) -> int:
        """A, whole inputs."""
        return int(self.cap)

    def see(self, p_changed: float) -> None:
        """Note the recalibrated p of an input that was decided on."""
        self._seen.append(self._raw(p_changed))

    def begin(self, threshold: float, cap: float) -> None:
        """Begin with what a calibration has found."""
        self.threshold, self.cap = threshold, cap
        self.limit, self._starting = max(cap, self._first_limit), False

    def restart(self) -> None:
        """Begin anew with small steps; what is known of p stays."""
        self.cap, self.limit, self._starting = FIRST_CAP, self._first_limit, True

    def widen(self) -> None:
        """The target has held for long: the cap may grow further."""
        self.limit = min(self.limit * WIDEN, LARGEST_CAP)

    def learn(self, p_changed: float, wrong: bool, probability: float) -> None:
        """Take what the model said of an input that would have been answered at p_changed.

        probability: with which it was inferred.
        """
        self._records.append((self._raw(p_changed), float(wrong), min(1.0 / probability, HEAVIEST)))

    def at_cap(self, wrong: bool) -> None:
        """Take what the model said of an input that was inferred for the cap alone: it grows while
        answers of that age are right."""
        if not self._starting:
            step = CREEP * (min(AT_CAP * self.allowed, 0.3) - wrong)
            self.cap = min(max(self.cap * math.exp(step), 1.0), self.limit)
            return
        if self.cap >= SLOW_START * 100 * self.allowed or wrong:
            self._starting = False
        self.cap = max(self.cap / 2, 1.0) if wrong else min(self.cap * 2, self.limit)

    def missed(self) -> None:
        """An audit has found a wrong answer below the cap."""
        self.cap, self._starting = max(self.cap * CUT, 1.0), False

    def settle(self) -> None:
        """Recalibrate p, then set the threshold: the highest at which the inputs seen of late
        would have as many errors, by their p, as are allowed."""
        if len(self._records) >= LEAST_RECORDS:
            self.slope, self.offset = platt(list(self._records))
        if len(self._seen) < LEAST_SEEN:
            self.threshold = self.allowed
            return
        z = self.slope * np.array(self._seen) + self.offset
        p = np.sort(1.0 / (1.0 + np.exp(-np.clip(z, -60, 60))))
        errors = np.cumsum(p) / len(p)
        planned = MARGIN * self.allowed
        beyond = int(np.searchsorted(errors, planned))
        reachable = float(p[min(beyond, len(p) - 1)]) if beyond else 0.0
        self.threshold = min(max(reachable, min(self.allowed / 2, planned)), LOOSEST)

    def as_dict(self) -> dict[str, object]:
        """Plain numbers, for the state on disk."""
        return {
            "slope": self.slope,
            "offset": self.offset,
            "threshold": self.threshold,
            "cap": self.cap,
            "limit": self.limit,
            "starting": self._starting,
            "records": [list(r) for r in self._records],
            "seen": list(self._seen),
        }

    def restore(self, raw: dict[str, object]) -> None:
        """Go on from `as_dict`. Raises ValueError, KeyError or TypeError on nonsense."""
        names = ("slope", "offset", "threshold", "cap", "limit")
        numbers = [float(raw[name]) for name in names]  # type: ignore[arg-type]
        records = np.array(raw["records"], np.float64).reshape(-1, 3)
        seen = np.array(raw["seen"], np.float64).ravel()
        if not all(np.isfinite(a).all() for a in (np.array(numbers), records, seen)):
            raise ValueError("not finite")
        slope, offset, threshold, cap, limit = numbers
        if not (slope > 0 and 0 <= threshold <= LOOSEST and 1 <= cap <= limit <= LARGEST_CAP):
            raise ValueError("out of range")
        self.slope, self.offset, self.threshold, self.cap = slope, offset, threshold, cap
        self.limit, self._starting = limit, bool(raw["starting"])
        self._records.extend((float(z), float(y), float(w)) for z, y, w in records)
        self._seen.extend(seen.tolist())

    def _raw(self, p_changed: float) -> float:
        p = min(max(p_changed, 1e-12), 1 - 1e-12)
        return (math.log(p / (1 - p)) - self.offset) / self.slope


def platt(records: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Fit p = sigmoid(slope * z + offset) to (z, outcome, weight), the newest counting most.

    Newton's method, with ridge penalties towards 1 and 0 (Platt 1999).
    """
    z, y, weight = np.array(records).T
    weight = weight * DECAY ** np.arange(len(z))[::-1]
    slope, offset = 1.0, 0.0
    for _ in range(12):
        p = 1.0 / (1.0 + np.exp(-np.clip(slope * z + offset, -30, 30)))
        residual, curve = weight * (p - y), weight * p * (1 - p) + 1e-9
        gradient = (residual @ z + PRIOR * (slope - 1), residual.sum() + 0.25 * offset)
        a, b, c = curve @ (z * z) + PRIOR, curve @ z, curve.sum() + 0.25
        determinant = a * c - b * b
        slope -= float(np.clip((c * gradient[0] - b * gradient[1]) / determinant, -0.5, 0.5))
        offset -= float(np.clip((a * gradient[1] - b * gradient[0]) / determinant, -2.0, 2.0))
        slope = min(max(slope, 0.05), 3.0)
    return slope, offset
