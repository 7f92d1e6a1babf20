"""What a gate has learned, read from its state: `inspect`'s summary and `export`'s bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from infi_edge.bundle import Bundle, WorkloadInfo, read_bundle, write_bundle
from infi_edge.cache import ReuseCache
from infi_edge.errors import BundleError
from infi_edge.filter import InputFilter
from infi_edge.learning.begin import identity_of, state_facts
from infi_edge.learning.bundle import blank_bundle
from infi_edge.learning.export import export_bundle
from infi_edge.learning.inspect import as_text, find_state, is_state, summary
from infi_edge.learning.learner import Learner
from infi_edge.learning.replay import Learned, replay_learning
from infi_edge.learning.start import from_nothing
from infi_edge.learning.state import Saved, StateFolder
from infi_edge.learning.worker import AtOnce
from infi_edge.policy import Policy
from infi_edge.preprocess import ImageSpec
from infi_edge.replay import INFERRED, make_truth
from infi_edge.tasks import make_same, make_task
from infi_edge.types import Action

SPEC = ImageSpec(32, 24)
TARGET = 0.9
INFO = WorkloadInfo(
    model="tiny.tflite",
    model_identity="0" * 64,
    decoder="raw",
    task="value",
    same="exact",
    labels=[],
)
ADDRESS = "rtsp://me:secret@yard/1"


class Presence:
    """The task of the made-up stream: is there a square?"""

    empty, can_skip = False, True

    def read(self, decoded: Any) -> bool:
        return bool(decoded)

    def is_redundant(self, value: bool) -> bool:
        return not value


@pytest.fixture(scope="module")
def tensors() -> np.ndarray:
    """A square that comes and goes every 20 inputs, uint8 (400, 24, 32, 3)."""
    rng = np.random.default_rng(0)
    frames = rng.integers(60, 80, (400, 24, 32, 3)).astype(np.uint8)
    for i in range(0, 400, 40):
        frames[i + 20 : i + 40, 6:14, 8:18] = 220
    return frames


@pytest.fixture(scope="module")
def learned(tensors: np.ndarray) -> Learned:
    """What a gate comes to on that stream, as every run does."""
    values = [(i // 20) % 2 == 1 for i in range(len(tensors))]
    truth = make_truth(values, np.arange(len(values)) / 20, Presence(), make_same("exact", "value"))
    return replay_learning(truth, tensors, SPEC, target_accuracy=TARGET, seed=1)


Keep = Callable[..., Path]


@pytest.fixture
def keep(learned: Learned, tmp_path: Path) -> Keep:
    """Save what was learned, changed by a function of (facts, state, arrays); return its folder."""

    def save(change: Callable[[Any, Any, Any], None] = lambda f, s, a: None) -> Path:
        facts = state_facts(blank_bundle("image", SPEC, INFO, TARGET).manifest, ADDRESS)
        state, arrays = learned.learner.snapshot(20.0)
        state = json.loads(json.dumps(state))
        change(facts, state, arrays)
        folder = StateFolder(tmp_path / "yard.learned", identity_of(facts))
        assert folder.save({"facts": facts, "state": state}, arrays, good=False)
        folder.close()
        return tmp_path / "yard.learned"

    return save


def gone_on(saved: Saved) -> Learner:
    """A gate's learner that goes on from a state."""
    learner = Learner(
        from_nothing(SPEC), make_task("value", ()), make_same("exact", "value"), TARGET, AtOnce()
    )
    learner.restore(saved.manifest["state"], saved.arrays, 20.0)
    return learner


def written(bundle: Bundle, path: Path) -> InputFilter:
    write_bundle(path, bundle.manifest, bundle.members)
    return InputFilter(read_bundle(path))


def test_the_bundle_decides_as_the_gate_that_goes_on(
    keep: Keep, tensors: np.ndarray, tmp_path: Path
) -> None:
    path, saved = find_state(keep())
    learner = gone_on(saved)
    exported = written(export_bundle(path, saved), tmp_path / "yard.infi")
    assert exported.manifest.calibration.points[0].knobs == learner.policy.knobs
    assert learner.metric is not None
    assert (learner.metric.weights > 0).any()
    assert exported.head == learner.policy.head
    knobs, dim = learner.policy.knobs, exported.manifest.filter.dim
    own, live = (
        Policy(knobs, head, ReuseCache(dim, 100), make_same("exact", "value"))
        for head in (exported.head, learner.policy.head)
    )
    reused = 0
    for i, tensor in enumerate(tensors):
        _, embedding = exported.embed_tensor(tensor[None])
        _, _, expected = learner.look(tensor[None])
        assert np.array_equal(embedding, expected)
        decision = own.decide(None, embedding, i / 20)
        assert decision == live.decide(None, expected, i / 20)
        reused += decision.action is Action.REUSE
        if decision.action is Action.INFER:
            for policy in (own, live):
                policy.observe(embedding, (i // 20) % 2 == 1, i / 20)
    assert reused > 100


def test_the_bundle_says_what_was_measured_in_service(keep: Keep, learned: Learned) -> None:
    path, saved = find_state(keep())
    manifest = export_bundle(path, saved).manifest
    (point,) = manifest.calibration.points
    live, recall = learned.learner.live.accuracy(), learned.learner.recall
    assert recall is not None
    assert (point.measure, point.target, point.kind) == ("accuracy", TARGET, "estimate")
    assert (point.accuracy, point.bound, point.recall) == (live.estimate, live.low, recall.estimate)
    assert point.filtering_rate == pytest.approx(learned.filtering_rate)
    assert manifest.calibration.confidence == 0.95
    assert manifest.workload == INFO
    assert manifest.trained_on["inputs"] == 400
    assert manifest.trained_on["inferences"] == int((learned.actions == INFERRED).sum())
    assert manifest.trained_on["fits"] == learned.refits > 1
    assert "secret" not in json.dumps(msgspec.to_builtins(manifest))


def test_the_summary_is_of_the_state(keep: Keep, learned: Learned) -> None:
    folder = keep()
    found = summary(*find_state(folder))
    learner = learned.learner
    assert replace(summary(*find_state(folder / "state.learned")), path=found.path) == found
    assert (found.inputs, found.fits) == (400, learned.refits)
    assert found.inferred == int((learned.actions == INFERRED).sum())
    assert (found.audited, found.audit_errors) == (learner.live.audits, learner.live.audit_errors)
    assert (found.live_accuracy, found.live_bound) == (
        learner.live.accuracy().estimate,
        learner.live.accuracy().low,
    )
    assert found.reuse_threshold == learner.control.threshold
    assert found.max_since_inference == learner.control.max_since_inference
    assert (found.open, found.opened_for) == (False, None)
    assert found.weights is not None
    assert 0 < found.weights < found.features == SPEC.feature_count
    assert found.changes == [(c.inputs, c.what) for c in learner.changes]
    told = as_text(found)
    for words in ("tiny.tflite", "yard/1", f"{found.live_bound:.3f}", "closed after", "filters"):
        assert words in told
    assert "secret" not in told + json.dumps(found.as_dict())


def test_the_summary_says_why_the_gate_is_open(keep: Keep) -> None:
    def open_it(facts: Any, state: Any, arrays: Any) -> None:
        state["opened_for"] = "below the target"
        state["counts"]["failed_open"] = 3

    found = summary(*find_state(keep(open_it)))
    assert (found.open, found.opened_for, found.failed_open) == (True, "below the target", 3)
    assert "open (below the target)" in as_text(found)
    assert "3 times" in as_text(found)


def unlearn(facts: Any, state: Any, arrays: Any) -> None:
    state["metric"], state["opened_for"] = None, "learning"
    del arrays["weights"]


def test_a_state_that_has_learned_nothing_is_told_and_not_exported(keep: Keep, refuses) -> None:
    path, saved = find_state(keep(unlearn))
    found = summary(path, saved)
    assert (found.weights, found.open, found.opened_for) == (None, True, "learning")
    assert "none yet" in as_text(found)
    with refuses(BundleError, "has learned nothing yet"):
        export_bundle(path, saved)


def test_what_was_learned_beside_a_network_is_no_bundle_of_its_own(keep: Keep, refuses) -> None:
    def from_net(facts: Any, state: Any, arrays: Any) -> None:
        facts["from_filter"] = {"kind": "net", "dim": 64}

    path, saved = find_state(keep(from_net))
    assert summary(path, saved).from_filter == "net"
    with refuses(BundleError, "trained network, which is not in it"):
        export_bundle(path, saved)


def test_what_went_on_from_a_light_filter_is_exported(keep: Keep, tmp_path: Path) -> None:
    def from_light(facts: Any, state: Any, arrays: Any) -> None:
        facts["from_filter"] = {"kind": "light", "dim": 3}

    path, saved = find_state(keep(from_light))
    written(export_bundle(path, saved), tmp_path / "x.infi")


def without(*keys: str) -> Callable[[Any, Any, Any], None]:
    def change(facts: Any, state: Any, arrays: Any) -> None:
        for table in (facts, state, arrays):
            for key in keys:
                table.pop(key, None)

    return change


def put(where: int, key: str, value: Any) -> Callable[[Any, Any, Any], None]:
    def change(*tables: Any) -> None:
        tables[where][key] = value

    return change


NONSENSE = {
    "no workload": without("workload"),
    "no control": without("control"),
    "no live": without("live"),
    "workload of another kind": put(0, "workload", {"model": 3}),
    "live of another kind": put(1, "live", [1, 2]),
    "threshold": put(1, "control", {"threshold": "high"}),
    "no features": without("features"),
}


@pytest.mark.parametrize("change", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_one_sentence(keep: Keep, refuses, change) -> None:
    path, saved = find_state(keep(change))
    with refuses(BundleError, "cannot read"):
        summary(path, saved)
    with refuses(BundleError, "cannot read"):
        export_bundle(path, saved)


UNUSABLE = {
    "negative weights": put(2, "weights", np.full(384, -1, np.float32)),
    "weights of another length": put(2, "weights", np.ones(3, np.float32)),
    "no weights": without("weights"),
    "features of another length": put(2, "features", np.ones((400, 5), np.float32)),
    "metric": put(1, "metric", [1.0]),
    "preprocess": put(0, "preprocess", {"kind": "image", "width": -4}),
}


@pytest.mark.parametrize("change", UNUSABLE.values(), ids=UNUSABLE)
def test_no_bundle_is_made_of_what_is_unusable(keep: Keep, refuses, change) -> None:
    path, saved = find_state(keep(change))
    with refuses(BundleError):
        export_bundle(path, saved)


def test_a_runs_folder_with_one_source_will_do_and_several_are_asked_about(
    keep: Keep, refuses
) -> None:
    folder = keep()
    assert find_state(folder.parent)[0] == folder
    (folder.parent / "door.learned").mkdir()
    with refuses(BundleError, r"door.learned, yard.learned\); name one"):
        find_state(folder.parent)


def test_only_folders_and_learned_states_are_states(keep: Keep, tmp_path: Path) -> None:
    folder = keep()
    bundle = blank_bundle("image", SPEC, INFO, TARGET)
    write_bundle(tmp_path / "x.infi", bundle.manifest, bundle.members)
    (tmp_path / "text").write_text("nothing")
    assert is_state(folder)
    assert is_state(folder / "state.learned")
    for other in ("x.infi", "text", "nowhere"):
        assert not is_state(tmp_path / other)


def test_a_folder_without_a_state_is_one_sentence(tmp_path: Path, refuses) -> None:
    with refuses(BundleError, "give the folder of a gate that has learned"):
        find_state(tmp_path)
    with refuses(BundleError, "give the folder of a gate that has learned"):
        find_state(tmp_path / "nowhere")
