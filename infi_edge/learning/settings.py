"""The settings of a gate that learns while it serves."""

from __future__ import annotations

import msgspec


class LearnSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may be set; the target accuracy apart.

    entries: inferred inputs that are remembered, which is also the cache; max_bytes: of their
    features. warm_up: inferences before the first fit. refit_every: inferences between fits.
    audit, audit_settled: share of the filtered inputs that is inferred all the same, at first and
    once settled (after `settle` inputs in which the target held).
    confidence: of the live bound. cpu_share: of one core, what learning may use in the long run.
    sample_bytes: of a recording of the inferred inputs, for `infi-convert train`; 0: none is kept.
    seed: of the audit's coin; None: from the operating system.
    """

    entries: int = 400
    max_bytes: int = 8 << 20
    warm_up: int = 12
    refit_every: int = 8
    audit: float = 0.05
    audit_settled: float = 0.01
    settle: int = 400
    confidence: float = 0.95
    cpu_share: float = 0.02
    sample_bytes: int = 0
    seed: int | None = None

    def problem(self) -> str | None:
        """Say what is impossible, or None."""
        if not 2 <= self.warm_up <= self.entries or self.refit_every < 1:
            return "warm_up is at least 2 and at most entries, refit_every at least 1"
        if not 0.0 < self.audit_settled <= self.audit < 1.0:
            return (
                "audit and audit_settled are shares between 0 and 1, the settled one not the larger"
            )
        if not 0.0 < self.confidence < 1.0 or not 0.0 < self.cpu_share <= 1.0:
            return "confidence and cpu_share are between 0 and 1"
        if self.max_bytes < 1 << 12 or self.settle < 0:
            return "max_bytes is at least 4096, settle not negative"
        if self.sample_bytes and self.sample_bytes < 1 << 20:
            return "sample_bytes is 0, or at least 1 MB (1048576)"
        return None
