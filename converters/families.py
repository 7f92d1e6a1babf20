"""Which of InFi's three families a task falls in, and what the theory says of it.

The reasoning, the conditions and the counterexamples are in docs/filterability.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from infi_edge.workload import WorkloadSpec


@dataclass(frozen=True, slots=True)
class Family:
    """name: redundant when what. says: the comparison of complexities, with its conditions."""

    name: str
    says: str


SUBSET = Family(
    "the class is outside a wanted subset",
    "filterable: the filter's question is a coarsening of the model's own answers and never more "
    "complex than all of them together (Proposition 2)",
)
COUNT = Family(
    "a bounded regression output, a count, is 0",
    "filterable: '0 or not' is never more complex than the count itself, whole numbers with a gap "
    "around the threshold (Proposition 3a)",
)
CONFIDENCE = Family(
    "the model's confidence is below a threshold",
    "not filterable in general: one to two times the model's complexity if its scores have a free "
    "bias and may shrink; else either order occurs (Proposition 1)",
)
NOTHING = Family("never", "no value of this task is redundant: REUSE only")
UNKNOWN = Family(
    "the task says so",
    "filterable if what the task reads takes finitely many values (Proposition 2); undecided if it "
    "is a real number",
)


def skip_family(spec: WorkloadSpec, can_skip: bool) -> Family:
    """The family of a task's SKIP rule."""
    kind, _, rest = spec.task.partition(":")
    if not can_skip:
        return NOTHING
    if kind in ("count", "detect", "pose"):
        return COUNT
    if kind == "confidence":
        return CONFIDENCE
    if kind == "presence" or (kind in ("label", "value") and rest):
        return SUBSET
    return UNKNOWN


def reuse_says(spec: WorkloadSpec) -> str:
    """What the theory says of a task's REUSE rule."""
    kind = spec.same.partition(":")[0]
    if kind == "exact":
        return (
            "needs a discrete answer; then never more complex than the model at both ends of a "
            "pair together, against one end undecided (Proposition 4)"
        )
    return (
        f"'{spec.same}' makes the answer discrete enough to compare, but is not transitive; whole "
        "counts are covered (Proposition 4), coordinates and real numbers are not"
    )
