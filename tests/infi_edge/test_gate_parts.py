"""The gate's masks, scene changes, allowance and hand-over; and that it still fails open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infi_edge.budget import Budget, OverBudget
from infi_edge.bundle import write_bundle
from infi_edge.cache import ReuseCache
from infi_edge.capture.mask import Mask
from infi_edge.config import BudgetConfig
from infi_edge.errors import ConfigError, ExecutorError, SourceError
from infi_edge.filter import InputFilter, load_filter
from infi_edge.gate import Gate
from infi_edge.policy import Knobs
from infi_edge.preprocess import TextSpec
from infi_edge.types import Action

REUSE = Knobs(reuse_threshold=0.5)
HALF = [((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))]


@pytest.fixture
def light(tmp_path: Path, manifest: Any, members: dict[str, bytes]) -> InputFilter:
    write_bundle(tmp_path / "yard.infi", manifest, members)
    return load_filter(tmp_path / "yard.infi")


class Model:
    """Says whether a frame is bright; keeps what it was given."""

    def __init__(self) -> None:
        self.inputs: list[np.ndarray] = []
        self.fails = False

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        self.inputs.append(frame.copy())
        if self.fails:
            raise RuntimeError("no power")
        bright = float(frame.mean() > 100)
        return np.array([1 - bright, bright])


@pytest.fixture
def model() -> Model:
    return Model()


class Allow:
    """An allowance that is there or not."""

    max_stale_s = 10.0

    def __init__(self) -> None:
        self.there, self.asked = True, 0

    def take(self) -> bool:
        self.asked += 1
        return self.there


@pytest.fixture
def allowance() -> Allow:
    return Allow()


def seen_by(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The tensors that the gate's filter gets from now on."""
    tensors: list[np.ndarray] = []
    embed = gate._filter.embed_tensor

    def watch(tensor: np.ndarray) -> tuple[float | None, np.ndarray]:
        tensors.append(tensor.copy())
        return embed(tensor)

    monkeypatch.setattr(gate._filter, "embed_tensor", watch)
    return tensors


def frame(level: int, height: int = 96, width: int = 128, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-9, 10, (height, width, 3))
    return np.clip(level + noise, 0, 255).astype(np.uint8)


def jpeg(picture: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


CORNER = st.tuples(st.floats(0, 1), st.floats(0, 1))
POLYGONS = st.lists(st.lists(CORNER, min_size=3, max_size=5).map(tuple), max_size=2)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(POLYGONS, POLYGONS, st.integers(0, 2**32 - 1))
def test_nothing_under_a_mask_reaches_filter_or_model(light, masks, regions, seed):
    with pytest.MonkeyPatch.context() as patch:
        mask, model = Mask(masks, regions), Model()
        gate = Gate(light, model, knobs=Knobs(), mask=mask)
        tensors = seen_by(gate, patch)
        rng = np.random.default_rng(seed)
        hidden = mask.kept(240, 320)[..., None] == 0
        first = rng.integers(0, 256, (240, 320, 3), np.uint8)
        for _ in range(2):
            other = rng.integers(0, 256, first.shape, np.uint8)
            gate(np.where(hidden, other, first))
        assert np.array_equal(*tensors)
        assert np.array_equal(*model.inputs)
        assert (model.inputs[0][~hidden[..., 0]] == first[~hidden[..., 0]]).all()


@pytest.mark.parametrize("size", [(96, 128), (240, 320), (540, 960), (1080, 1920)])
def test_nothing_under_a_mask_of_a_jpeg_reaches_filter_or_model(light, model, monkeypatch, size):
    gate = Gate(light, model, knobs=Knobs(), mask=Mask(masks=HALF))
    tensors, rng = seen_by(gate, monkeypatch), np.random.default_rng(0)
    picture = frame(150, *size)
    for _ in range(2):
        # A block of a JPEG that the mask's edge cuts is one in the file already.
        inner = picture[:, : size[1] // 2 // 16 * 16 - 16]
        inner[:] = rng.integers(0, 256, inner.shape)
        gate(jpeg(picture))
    assert np.array_equal(*tensors)
    assert np.array_equal(*model.inputs)
    assert not model.inputs[0][:, : size[1] // 2].any()
    assert model.inputs[0][:, size[1] // 2 + 2 :].mean() > 140
    assert not tensors[0][0, :, :31].any()
    assert tensors[0][0, :, 34:].mean() > 140


@pytest.mark.parametrize("size", [(96, 128), (240, 320), (1080, 1920)])
def test_a_masked_jpeg_is_to_the_filter_what_the_masked_picture_is(light, model, monkeypatch, size):
    mask = Mask(masks=[((0.1, 0.2), (0.6, 0.3), (0.4, 0.9))], regions=[HALF[0]])
    gate = Gate(light, model, knobs=Knobs(), mask=mask)
    tensors = seen_by(gate, monkeypatch)
    coarse = np.random.default_rng(1).integers(0, 256, (6, 8, 3), np.uint8)
    picture = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
    gate(jpeg(picture))
    gate(cv2.imdecode(np.frombuffer(jpeg(picture), np.uint8), cv2.IMREAD_COLOR))
    assert np.array_equal(*model.inputs)
    difference = np.abs(tensors[0].astype(int) - tensors[1]).max(axis=3)[0]
    assert np.median(difference) <= 2
    assert (difference > 12).mean() < 0.05  # the mask's edge, a pixel wide


def test_a_gate_that_is_disabled_masks_what_the_model_sees(light, model):
    gate = Gate(light, model, enabled=False, mask=Mask(masks=HALF))
    gate(frame(200))
    assert not model.inputs[0][:, :64].any()


def test_a_grey_picture_is_masked(light, model):
    gate = Gate(light, model, knobs=Knobs(), mask=Mask(masks=HALF))
    gate(frame(200)[..., 0])
    assert not model.inputs[0][:, :64].any()


@pytest.mark.parametrize(
    "data", [None, "text", [1, 2], np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), b"", b"no"]
)
def test_what_no_mask_can_be_laid_on_never_reaches_the_model(light, model, data):
    gate = Gate(light, model, knobs=Knobs(), mask=Mask(masks=HALF))
    with pytest.raises(SourceError):
        gate(data)
    assert model.inputs == []


def test_a_mask_is_refused_where_inputs_are_no_single_pictures(light, model, refuses):
    light.spec = TextSpec()
    with refuses(ConfigError, "masks are for single pictures"):
        Gate(light, model, mask=Mask(masks=HALF))
    Gate(light, model, mask=Mask())


def warm(gate: Gate, count: int = 30) -> float:
    """Show a steady scene; return the time of the next input."""
    for index in range(count):
        result = gate(frame(150, seed=index), index / 10)
        assert not result.scene_change
    return count / 10


def test_a_scene_that_changes_passes_inputs_and_is_flagged(light, model):
    gate = Gate(light, model, knobs=REUSE, scene_change=True)
    now_s = warm(gate)
    assert len(model.inputs) < 10
    results = [gate(frame(60, seed=i), now_s + i / 10) for i in range(60)]
    flagged = [result.scene_change for result in results]
    assert flagged == [True] * 20 + [False] * 40
    for result in results[:20]:
        assert (result.action, result.why) == (Action.INFER, "the scene changes")
    assert results[-1].action is Action.REUSE
    assert gate.scene is not None
    assert gate.scene.changes == 1


def test_a_scene_is_not_watched_unless_asked(light, model):
    gate = Gate(light, model, knobs=REUSE)
    now_s = warm(gate)
    assert gate.scene is None
    assert not any(gate(frame(60), now_s + i / 10).scene_change for i in range(10))


def test_a_disabled_gate_flags_no_scene(light, model):
    gate = Gate(light, model, enabled=False, scene_change=True)
    assert not gate(frame(150), 0.0).scene_change
    assert not gate(frame(10), 0.1).scene_change


def test_an_allowance_is_asked_for_inferences_only(light, model, allowance):
    gate = Gate(light, model, knobs=REUSE, allowance=allowance)
    actions = [gate(frame(150), i / 10).action for i in range(20)]
    assert actions == [Action.INFER] + [Action.REUSE] * 19
    assert allowance.asked == len(model.inputs) == 1


def every(gate_settings: str) -> dict[str, Any]:
    return {"infers all": {"knobs": Knobs()}, "disabled": {"enabled": False}}[gate_settings]


@pytest.mark.parametrize("settings", ["infers all", "disabled"])
def test_over_budget_the_last_answer_is_given_again_and_says_so(light, model, allowance, settings):
    gate = Gate(light, model, allowance=allowance, **every(settings))
    first = gate(frame(200), 0.0)
    assert (first.value, first.degraded) == ("bright", False)
    allowance.there = False
    again = gate(frame(20), 4.0)
    assert (again.value, again.action, again.age_s) == ("bright", Action.REUSE, 4.0)
    assert again.degraded
    assert again.why.startswith("over budget: ")
    assert gate.stats == {"infer": 1, "reuse": 1}
    allowance.there = True
    fresh = gate(frame(20), 5.0)
    assert (fresh.value, fresh.action, fresh.degraded) == ("dark", Action.INFER, False)


def test_over_budget_an_answer_too_old_or_none_drops_the_input(light, model, allowance, refuses):
    gate = Gate(light, model, knobs=Knobs(), allowance=allowance)
    allowance.there = False
    with refuses(OverBudget, "there is no answer"):
        gate(frame(200), 0.0)
    allowance.there = True
    gate(frame(200), 1.0)
    allowance.there = False
    assert gate(frame(200), 11.0).degraded
    with refuses(OverBudget, "too old"):
        gate(frame(200), 11.1)
    assert len(model.inputs) == 1


def test_a_filter_that_only_skips_has_a_last_answer_too(tmp_path, manifest, members, allowance):
    skip = msgspec.structs.replace(manifest, mechanism="skip", reuse=None)
    points = [
        msgspec.structs.replace(p, knobs=Knobs(skip_threshold=0.0)) for p in skip.calibration.points
    ]
    calibration = msgspec.structs.replace(skip.calibration, points=points)
    skip = msgspec.structs.replace(skip, calibration=calibration)
    write_bundle(tmp_path / "skip.infi", skip, members)
    gate = Gate(load_filter(tmp_path / "skip.infi"), Model(), allowance=allowance)
    assert gate(frame(200), 0.0).value == "bright"
    allowance.there = False
    assert gate(frame(20), 1.0).value == "bright"


def test_the_error_of_a_model_is_no_last_answer(light, model, allowance):
    gate = Gate(light, model, knobs=Knobs(), allowance=allowance)
    gate(frame(200), 0.0)
    model.fails = True
    with pytest.raises(ExecutorError, match="no power"):
        gate(frame(20), 1.0)
    allowance.there = False
    assert gate(frame(20), 2.0).age_s == 2.0


def test_a_scene_that_changes_over_budget_is_flagged(light, model, allowance):
    gate = Gate(light, model, knobs=REUSE, scene_change=True, allowance=allowance)
    now_s = warm(gate)
    allowance.there = False
    result = gate(frame(60), now_s)
    assert result.scene_change
    assert result.degraded


def test_a_real_budget_bounds_what_the_model_runs(light, model):
    gate = Gate(light, model, knobs=Knobs(), allowance=Budget(BudgetConfig(max_inferences_per_s=1)))
    results = [gate(frame(150), i / 1000) for i in range(50)]
    assert len(model.inputs) < 25
    assert sum(result.degraded for result in results) == 50 - len(model.inputs)


def test_a_gate_that_takes_over_has_the_answers_and_the_counts(light, model):
    knobs = Knobs(reuse_threshold=0.5, max_consecutive_filtered=5)
    old = Gate(light, model, knobs=knobs, scene_change=True)
    for i in range(4):
        old(frame(150), i / 10)
    new = Gate(light, model, knobs=knobs, scene_change=True)
    new.take_over(old)
    assert [new(frame(150), 0.4 + i / 10).action.value for i in range(3)] == [
        "reuse",
        "reuse",
        "infer",
    ]
    assert new.scene is old.scene
    assert len(model.inputs) == 2


def test_a_gate_that_takes_over_keeps_the_last_answer(light, model, allowance):
    old = Gate(light, model, enabled=False)
    old(frame(200), 0.0)
    new = Gate(light, model, enabled=False, allowance=allowance)
    new.take_over(old)
    allowance.there = False
    assert new(frame(20), 3.0).value == "bright"


def test_a_gate_that_takes_over_holds_its_own_bounds(light, model):
    old = Gate(light, model, knobs=REUSE)
    for level in range(0, 250, 25):
        old(frame(level), level / 25)
    assert len(old.cache) > 3
    new = Gate(light, model, knobs=REUSE, cache_entries=2, cache_age_s=5.0)
    new.take_over(old)
    assert len(new.cache) == 2
    assert new.cache.capacity == 2
    assert new.policy.cache is new.cache
    calls = len(model.inputs)
    assert new(frame(225), 10.0).action is Action.REUSE
    assert len(model.inputs) == calls
    assert new(frame(225), 30.0).action is Action.INFER


@given(st.integers(1, 12), st.integers(0, 30), st.sampled_from(["oldest", "lru", "least-hit"]))
def test_a_cache_adopts_the_newest_entries_that_fit(capacity, count, eviction):
    old, new = ReuseCache(3, 40), ReuseCache(3, capacity, eviction=eviction)
    for i in range(count):
        old.insert(np.full(3, i, np.uint8), i, float(i))
    new.adopt(old)
    assert len(new) == min(capacity, count)
    kept = sorted(new.value(slot) for slot in range(len(new)))
    if eviction == "oldest":
        assert kept == list(range(count))[-capacity:]
    if count:
        assert new.value(new.newest) == count - 1
        assert new.age_s(new.newest, float(count)) == 1.0


@pytest.mark.parametrize("mask", [None, Mask(masks=HALF)])
@pytest.mark.parametrize("part", ["embed_tensor", "scene", "score", "policy"])
def test_whatever_goes_wrong_in_the_filter_the_input_is_inferred(
    light, model, monkeypatch, mask, part
):
    def broken(*_: object) -> Any:
        raise RuntimeError("defect")

    gate = Gate(light, model, knobs=REUSE, mask=mask, scene_change=True)
    owner, name = {
        "embed_tensor": (gate._filter, "embed_tensor"),
        "scene": (gate.scene, "changing"),
        "score": (gate._filter, "embed_tensor"),
        "policy": (gate.policy, "preview"),
    }[part]
    nan = (float("nan"), np.zeros(3, np.uint8))
    monkeypatch.setattr(owner, name, (lambda _: nan) if part == "score" else broken)
    for _ in range(3):
        result = gate(frame(250))
        assert (result.action, result.value) == (Action.INFER, "bright")
        assert result.why.startswith("filter error")
    assert gate.stats["filter_error"] == 3
    assert len(gate.cache) == 0
