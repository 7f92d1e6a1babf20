"""Laws that hold between a trained network, its quantized copy, and the decisions on its word."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.calibrate import Target
from converters.crossfit import uncalibrated
from converters.recordings import TrainingData
from converters.trained import TrainedFilter, TrainSettings
from infi_edge.bundle import Bundle, WorkloadInfo
from infi_edge.cache import ReuseCache
from infi_edge.filter import InputFilter
from infi_edge.learn import ReuseHead, sigmoid
from infi_edge.policy import Knobs, Policy
from infi_edge.preprocess import ImageSpec, MotionSpec, Spec, TextSpec
from infi_edge.replay import Truth
from infi_edge.tasks import same_exact
from infi_edge.types import Action

pytest.importorskip("tensorflow")

COUNT = 120
SPECS: dict[str, Spec] = {
    "image": ImageSpec(32, 24),
    "motion": MotionSpec(("x", "y"), 20, 5, None, (0.0, 0.0), (1.0, 1.0)),
    "text": TextSpec(12, 200),
}


def stream(spec: Spec, count: int = COUNT) -> TrainingData:
    """Inputs whose answer is whether they are brighter, faster, or begin with one word."""
    rng = np.random.default_rng(0)
    on = np.arange(count) // 7 % 2 == 1
    if spec.dtype == np.uint8:
        tensors = rng.integers(20, 90, (count, *spec.shape), np.uint8)
        tensors[on, 4:12, 4:12] += 120
    elif spec.dtype == np.int32:
        tensors = rng.integers(1, 200, (count, *spec.shape)).astype(np.int32)
        tensors[on, :3] = 7
    else:
        tensors = rng.normal(0, 0.5, (count, *spec.shape)).astype(np.float32)
        tensors[on, ::2] += 2
    features = np.stack([spec.features(tensor[None]) for tensor in tensors])
    truth = Truth(np.arange(count) / 10, on.tolist(), ~on, same_exact, False)
    return TrainingData(tensors, features, truth, spec)


def trained(kind: str, **choices: Any) -> tuple[TrainingData, TrainedFilter, InputFilter]:
    from converters.train import train_network

    data = stream(SPECS[kind])
    made = train_network(data, [(0, COUNT)], replace(TrainSettings(steps=60), **choices))
    return data, made, InputFilter(uncalibrated(made, data))


@pytest.fixture(
    scope="module",
    params=[
        ("image", "int8", "l1"),
        ("image", "float32", "l1"),
        ("motion", "float16", "l1"),
        ("text", "int8", "l1"),
        ("motion", "float32", "mlp"),
    ],
    ids="-".join,
)
def network(request: pytest.FixtureRequest) -> Any:
    kind, precision, classifier = request.param
    return (*trained(kind, precision=precision, classifier=classifier), precision)


def logits(siamese: Any, differences: np.ndarray, ages_s: np.ndarray) -> tuple[Any, Any]:
    """(REUSE, SKIP) logits of the float Keras heads on |differences| (P, D), in real units."""
    w = np.log1p(np.exp(10.0 * siamese.heads.numpy().astype(float)))
    b = 10.0 * siamese.biases.numpy().astype(float)
    z = differences.sum(axis=1)
    if siamese.classifier is not None:
        z = siamese.classifier(differences.astype(np.float32), training=False).numpy()[:, 0]
    return w[0] * z + w[1] * np.log1p(ages_s) + 0.1 * w[2] * ages_s + b[0], w[3] * z + b[1]


def test_the_devices_heads_are_those_of_the_float_network(network: Any) -> None:
    from converters.train import float_embeddings

    data, made, input_filter, precision = network
    floats = float_embeddings(made.siamese.model, data.tensors, data.spec).astype(float)
    results = [input_filter.embed_tensor(tensor[None]) for tensor in data.tensors]
    bytes_ = np.stack([embedding for _, embedding in results]).astype(int)
    assert (floats >= 0).all()
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, COUNT, (2, 500))
    ages_s = np.abs(a - b) / 10
    expected, _ = logits(made.siamese, np.abs(floats[a] - floats[b]), ages_s)
    _, wanted = logits(made.siamese, floats, np.zeros(COUNT))
    head = input_filter.head
    assert head is not None
    steps = np.abs(bytes_[a] - bytes_[b]).astype(np.uint8)
    z = (
        np.concatenate([head.rescore(steps[i : i + 50]) for i in range(0, 500, 50)])
        if head.rescore
        else steps.sum(axis=1)
    )
    found = head.bias + head.distance * z + head.log_age * np.log1p(ages_s) + head.age * ages_s
    scores = np.array([score for score, _ in results])
    sure = np.abs(expected) > 0.5
    assert ((found > 0) == (expected > 0))[sure].mean() > 0.99
    p_found, p_expected = (1 / (1 + np.exp(-x)) for x in (found, expected))
    loose = 0.1 if precision == "int8" else 0.02
    assert np.abs(p_found - p_expected).mean() < loose / 4
    assert np.quantile(np.abs(p_found - p_expected), 0.99) < loose
    assert np.quantile(np.abs(scores - 1 / (1 + np.exp(-wanted))), 0.99) < loose
    assert len(set(found > 0)) == len(set(scores > 0.5)) == 2  # it has learned something to compare


def test_an_embedding_is_off_by_half_a_step_and_what_the_precision_costs(network: Any) -> None:
    from converters.train import float_embeddings

    data, made, input_filter, precision = network
    floats = float_embeddings(made.siamese.model, data.tensors, data.spec)
    embeddings = [input_filter.embed_tensor(tensor[None])[1] for tensor in data.tensors]
    # The largest calibration input is 255; an input beyond it stays there.
    off = np.abs(np.stack(embeddings) - np.minimum(floats / made.spec.scale, 255))
    most = {"float32": 0.501, "float16": 1.0, "int8": 8.0}[precision]
    assert off.max() <= most


def test_skip_is_reuse_against_the_zero_embedding(network: Any) -> None:
    data, made, input_filter, _ = network
    zero = np.full(made.spec.dim, made.spec.zero, np.uint8)
    head = input_filter.head
    assert head is not None
    for tensor in data.tensors[::5]:
        score, embedding = input_filter.embed_tensor(tensor[None])
        z = float(cv2.norm(embedding, zero, cv2.NORM_L1))
        if head.rescore is not None:
            z = float(head.rescore(cv2.absdiff(embedding, zero).reshape(1, -1))[0])
        assert score == pytest.approx(sigmoid(made.skip.weight * z + made.skip.bias), abs=1e-6)


def test_the_empty_inputs_embedding_is_read_as_the_headers_bias(network: Any) -> None:
    """A zero embedding is at distance zero from the SKIP reference, whatever the weights."""
    _, made, input_filter, _ = network
    zero = np.zeros((1, made.spec.dim), np.uint8)
    rescore = input_filter.head.rescore
    z = 0.0 if rescore is None else float(rescore(zero)[0])
    _, expected = logits(made.siamese, zero.astype(float), np.zeros(1))
    assert made.skip.weight * z + made.skip.bias == pytest.approx(float(expected[0]), abs=1e-4)


@pytest.mark.parametrize(("kind", "style"), [("image", "small"), ("text", "recurrent")])
def test_a_network_can_be_tuned_to_its_quantization(kind: str, style: str) -> None:
    _, made, input_filter = trained(kind, aware=True, network=style, steps=10)
    assert made.spec.dim == 64
    assert input_filter.head is not None


def test_a_certified_filter_carries_its_receipt() -> None:
    from converters.fit import fit

    data = stream(SPECS["motion"], 400)
    workload = WorkloadInfo(
        model="m", model_identity="m", decoder="raw", task="value", same="exact", labels=[]
    )
    fitted = fit(
        data, [Target("accuracy", 0.8)], workload, TrainSettings("skip"), 0.8, {}, kinds=["light"]
    )
    (point, *_) = fitted.bundle.manifest.calibration.points
    assert point.kind == "guarantee"
    assert int(fitted.bundle.manifest.parity["inputs"]) > 0


def decide(
    embeddings: np.ndarray, order: list[int], query: np.ndarray, knobs: Knobs, head: ReuseHead
) -> Any:
    cache = ReuseCache(embeddings.shape[1])
    policy = Policy(knobs, head, cache, same_exact)
    for i in order:
        policy.observe(embeddings[i], int(i), 5.0)
    return policy.decide(None, query, 5.0 + 2.0)


@given(st.data(), st.integers(1, 90), st.integers(2, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_the_order_of_answers_of_one_age_changes_no_nearest_reuse(
    data: st.DataObject, count: int, dim: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    embeddings = rng.integers(0, 256, (count, dim), np.uint8)
    query = rng.integers(0, 256, dim, np.uint8)
    order = data.draw(st.permutations(range(count)))
    distances = np.abs(embeddings.astype(int) - query).sum(axis=1)
    nearest = int(distances.min())
    threshold = data.draw(st.floats(0.05, 0.95))
    limit = data.draw(st.none() | st.integers(0, 200))
    knobs = Knobs(reuse_threshold=threshold, deliver="nearest", max_distance=limit)
    head = ReuseHead(distance=0.05, log_age=0.2, age=0.01, bias=-2.0)
    first = decide(embeddings, list(range(count)), query, knobs, head)
    again = decide(embeddings, list(order), query, knobs, head)
    assert (first.action, first.p_changed) == (again.action, again.p_changed)
    p = sigmoid(-2.0 + 0.05 * nearest + 0.2 * math.log1p(2.0) + 0.02)
    reuses = p <= threshold and (limit is None or nearest <= limit)
    assert (first.action is Action.REUSE) == reuses
    if reuses:
        for decision in (first, again):
            assert decision.distance == distances[decision.value] == nearest
    if reuses and (distances == nearest).sum() == 1:
        assert first.value == again.value


def test_embeddings_of_one_number_have_distances_as_well() -> None:
    rng = np.random.default_rng(0)
    for count in range(2, 40):
        cache = ReuseCache(1)
        entries = rng.integers(0, 256, (count, 1), np.uint8)
        for entry in entries:
            cache.insert(entry, None, 0.0)
        query = rng.integers(0, 256, 1, np.uint8)
        found = cache.candidates(query, 1.0)
        expected = np.abs(entries.astype(int) - query)[found.slots, 0]
        assert found.distances.tolist() == expected.tolist()


def test_a_bundle_says_the_same_whatever_was_asked_before(network: Any) -> None:
    data, made, input_filter, _ = network
    bundle: Bundle = uncalibrated(made, data)
    again = InputFilter(bundle)
    forth = [input_filter.embed_tensor(t[None]) for t in data.tensors[:20]]
    back = [again.embed_tensor(t[None]) for t in data.tensors[:20][::-1]][::-1]
    for (score, embedding), (other_score, other) in zip(forth, back, strict=True):
        assert score == other_score
        assert (embedding == other).all()
