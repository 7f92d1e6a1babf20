"""What a saved state says of a gate that learns, for people and programs; it changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from infi_edge.archive import read_archive
from infi_edge.bundle import WorkloadInfo
from infi_edge.capture.address import public_address
from infi_edge.errors import BundleError
from infi_edge.learning.audit import LiveAccuracy
from infi_edge.learning.control import Control
from infi_edge.learning.state import KIND, Saved, read_state

FOLDERS = "*.learned"
"""A daemon's state folder has one a source."""
_NONSENSE = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError,
             msgspec.ValidationError)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Summary:
    """A learned state in figures.

    saved: UTC. inferred: of the inputs. remembered: of those, what the next fit learns from.
    weights: of the features, those that count. live_bound: of the accuracy, at least, at
    `confidence`; both of all inputs since the beginning. open: everything is inferred, for the
    reason opened_for. changes: [after how many inputs, what], the newest last.
    """

    path: str
    saved: str
    modality: str
    workload: WorkloadInfo
    source: str
    from_filter: str | None
    target_accuracy: float
    inputs: int
    inferred: int
    remembered: int
    fits: int
    features: int
    weights: int | None
    reuse_threshold: float
    max_since_inference: int
    skip_threshold: float | None
    live_accuracy: float
    live_bound: float
    live_high: float
    live_recall: float | None
    live_recall_bound: float | None
    confidence: float
    audited: int
    audit_errors: int
    open: bool
    opened_for: str | None
    failed_open: int
    changes: list[tuple[int, str]]

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return {**asdict(self), "workload": msgspec.to_builtins(self.workload)}


def is_state(path: str | Path) -> bool:
    """Whether this is a folder, or a file with a learned state in it, and no bundle."""
    path = Path(path)
    if path.is_dir():
        return True
    try:
        return read_archive(path)[0].get("kind") == KIND
    except BundleError:
        return False


def find_state(path: str | Path) -> tuple[Path, Saved]:
    """Return the newest state of a file, of its folder, or of a run's folder with one source, and
    where it is. Raises BundleError."""
    path = Path(path)
    if path.is_dir() and not any(inside.is_file() for inside in path.glob("state.*")):
        below = sorted(inside for inside in path.glob(FOLDERS) if inside.is_dir())
        if len(below) > 1:
            names = ", ".join(inside.name for inside in below)
            raise BundleError(f"{path} has what several sources have learned ({names}); name one")
        path = below[0] if below else path
    return path, read_state(path)


@contextmanager
def only_known(path: Path) -> Iterator[None]:
    """What is read here may be of another version, or nonsense: that becomes one BundleError."""
    try:
        yield
    except _NONSENSE as error:
        raise BundleError(
            f"{path} holds a state that this infi-edge cannot read ({type(error).__name__}: "
            f"{error}); use the version that wrote it"
        ) from error


def summary(path: Path, saved: Saved) -> Summary:
    """Return what a state says. Raises BundleError if it is of no version known here."""
    with only_known(path):
        facts, state, arrays = saved.manifest["facts"], saved.manifest["state"], saved.arrays
        live, control, counts = live_accuracy(state), control_of(state), state["counts"]
        bounds, recall = live.accuracy(), live.recall()
        opened_for = state["opened_for"]
        return Summary(
            path=str(path),
            saved=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(saved.saved_at_unix_s)),
            modality=str(facts["modality"]),
            workload=msgspec.convert(facts["workload"], WorkloadInfo),
            source=public_address(str(facts["source"])),
            from_filter=facts["from_filter"] and str(facts["from_filter"]["kind"]),
            target_accuracy=float(state["target_accuracy"]),
            inputs=live.inputs,
            inferred=live.inputs - filtered(state),
            remembered=len(state["values"]),
            fits=int(counts.get("fits", 0)),
            features=int(arrays["features"].shape[1]),
            weights=int((arrays["weights"] > 0).sum()) if "weights" in arrays else None,
            reuse_threshold=control.threshold,
            max_since_inference=control.max_since_inference,
            skip_threshold=state["skip_threshold"],
            live_accuracy=bounds.estimate,
            live_bound=bounds.low,
            live_high=bounds.high,
            live_recall=None if recall is None else recall.estimate,
            live_recall_bound=None if recall is None else recall.low,
            confidence=live.confidence,
            audited=live.audits,
            audit_errors=live.audit_errors,
            open=opened_for is not None,
            opened_for=None if opened_for is None else str(opened_for),
            failed_open=int(counts.get("failed_open", 0)),
            changes=[(int(inputs), str(what)) for inputs, what in state["changes"]],
        )


def live_accuracy(state: dict[str, Any]) -> LiveAccuracy:
    """The live estimate of a state. Raises ValueError or KeyError."""
    return LiveAccuracy.from_dict(state["live"])


def control_of(state: dict[str, Any]) -> Control:
    """The thresholds of a state. Raises ValueError, KeyError or TypeError."""
    control = Control(1.0 - float(state["target_accuracy"]))
    control.restore(state["control"])
    return control


def filtered(state: dict[str, Any]) -> int:
    """How many inputs were not inferred."""
    return sum(int(level["filtered"]) for level in state["live"]["levels"])


def as_text(found: Summary) -> str:
    """Return a summary for people."""
    info = found.workload
    origin = "nothing" if found.from_filter is None else f"a {found.from_filter} filter"
    weights = "none yet" if found.weights is None else f"{found.weights} of {found.features}"
    skip = (
        ""
        if found.skip_threshold is None
        else f", SKIP at a score up to {found.skip_threshold:.3g}"
    )
    recall = (
        "-"
        if found.live_recall is None
        else f"{found.live_recall:.3f}, at least {found.live_recall_bound:.3f}"
    )
    share = 1.0 - found.inferred / max(found.inputs, 1)
    lines = [
        f"{found.path}: {found.modality} gate that learns, saved {found.saved}",
        f"source      {found.source or '-'}",
        f"workload    {info.model}, decoder {info.decoder}, task {info.task}, same {info.same}",
        f"model       {info.model_identity or '-'}",
        f"began with  {origin}",
        f"learned     {found.fits} fits; {found.inputs} inputs, {found.inferred} of them inferred "
        f"(filtering rate {share:.3f}), {found.remembered} remembered",
        f"weights     {weights}",
        f"thresholds  REUSE at p(changed) up to {found.reuse_threshold:.3g} within "
        f"{found.max_since_inference} inputs{skip}",
        f"target      accuracy {found.target_accuracy:g}",
        f"live        accuracy {found.live_accuracy:.3f}, at least {found.live_bound:.3f}, at most "
        f"{found.live_high:.3f} (confidence {found.confidence:g}), recall of wanted {recall}",
        f"audits      {found.audited}, {found.audit_errors} of them wrong",
        f"gate        {_gate(found)}",
        "changes" if found.changes else "changes     none yet",
    ]
    lines += [f"            after {inputs} inputs: {what}" for inputs, what in found.changes]
    return "\n".join(lines)


def _gate(found: Summary) -> str:
    times = f"; it has failed open {found.failed_open} times" if found.failed_open else ""
    if not found.open:
        return f"filters{times}"
    return f"open ({found.opened_for}): everything is inferred{times}"
