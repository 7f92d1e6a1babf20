"""A model cut in two answers bit for bit as the whole, wherever it may be cut."""

from __future__ import annotations

import importlib
import io
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters import flatgraph
from converters.flatgraph import read_graph
from converters.partition import MAX_LABELS_BYTES, Cut, cuts, find_cuts, split
from infi_edge.decoders import make_decoder, prepare
from infi_edge.errors import ConfigError
from infi_edge.interpreter import Network
from infi_edge.workload import find_labels
from tests.conftest import DATA, MODELS, need
from tests.converters.flat_models import CHAIN, Edge, adding, opened, packed, schema

SHARED = {
    "coral/mobilenet_v1_0.25_128_quant": 30,
    "coral/mobilenet_v1_1.0_224_quant_embedding_extractor": 27,
    "coral/mobilenet_v2_1.0_224_quant": 35,
    "coral/movenet_single_pose_lightning_ptq": 16,
    "face/face_detection_back": 64,
    "face/face_detection_front": 24,
    "face/face_detection_full_range": 15,
    "gender/model_gender_q": 23,
    "gender/model_lite_gender_q": 28,
    "yolov5n/yolov5n-fp16": 15,
    "yolov5n/yolov5n-int8": 17,
}
"""The models of the shared folder, and how many cuts each has."""


def assert_same(content: bytes, cut: Cut, inputs: Sequence[np.ndarray]) -> None:
    """Head and tail fit together, are what the whole was, and answer as it does."""
    head_bytes, tail_bytes = split(content, str(cut.number))
    whole, head, tail = Network(content), Network(head_bytes), Network(tail_bytes)
    assert head.inputs == whole.inputs
    assert head.outputs == tail.inputs
    assert head.outputs[0].name == cut.tensor
    assert (head.outputs[0].shape, head.outputs[0].dtype) == (cut.shape, cut.dtype)
    assert tail.outputs == whole.outputs
    for tensor in inputs:
        (features,) = head.run(tensor)
        answers, wanted = tail.run(features), whole.run(tensor)
        assert features.shape == cut.shape
        for answer, right in zip(answers, wanted, strict=True):
            assert answer.dtype == right.dtype
            assert answer.tobytes() == right.tobytes(), cut


def inputs_of(content: bytes, count: int = 2) -> list[np.ndarray]:
    spec, rng = Network(content).inputs[0], np.random.default_rng(7)
    if spec.dtype.kind in "iu":
        limits = np.iinfo(spec.dtype)
        return [
            rng.integers(limits.min, limits.max + 1, spec.shape).astype(spec.dtype)
            for _ in range(count)
        ]
    return [rng.normal(0, 1, spec.shape).astype(spec.dtype) for _ in range(count)]


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    clip = cv2.VideoCapture(str(need(DATA / "person" / "one-by-one-person.mp4")))
    clip.set(cv2.CAP_PROP_POS_FRAMES, 100)
    read, frame = clip.read()
    assert read
    return frame


def shared(name: str) -> bytes:
    return need(MODELS / f"{name}.tflite").read_bytes()


@pytest.mark.parametrize("name", SHARED)
def test_a_shared_model_answers_the_same_at_its_first_middle_and_last_cut(
    name: str, picture: np.ndarray
) -> None:
    content = shared(name)
    found = cuts(content)
    assert len(found) == SHARED[name]
    spec = Network(content).inputs[0]
    inputs = [prepare(picture, spec, make_decoder("raw", [spec]))[0], *inputs_of(content, 1)]
    # Or the test would pass with an answer that does not depend on the input.
    first, second = (Network(content).run(tensor) for tensor in inputs)
    assert any(a.tobytes() != b.tobytes() for a, b in zip(first, second, strict=True))
    for cut in (found[0], found[len(found) // 2], found[-1]):
        assert_same(content, cut, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_a_shared_model_answers_the_same_at_every_cut(name: str, picture: np.ndarray) -> None:
    content = shared(name)
    spec = Network(content).inputs[0]
    inputs = [prepare(picture, spec, make_decoder("raw", [spec]))[0], *inputs_of(content)]
    for cut in cuts(content):
        assert_same(content, cut, inputs)


def test_every_shared_model_is_among_those_tested() -> None:
    here = {str(p.relative_to(MODELS))[:-7] for p in need(MODELS).glob("*/*.tflite")}
    assert here == set(SHARED)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[tuple[tuple[int, int], int]], list[int]]:
    count = draw(st.integers(1, 9))
    operators = []
    for i in range(count):
        known = st.integers(0, i + 1)
        # Mostly what came last, or hardly any graph could be cut.
        reads = (draw(st.one_of(st.just(i + 1), known)), draw(st.one_of(st.just(1), known)))
        operators.append((reads, i + 2))
    last = count + 1
    others = draw(st.sets(st.integers(2, last), max_size=2))
    return operators, sorted(others | {last})


def may_be_cut(operators: Sequence[tuple[Edge, int]], outputs: Sequence[int], at: int) -> bool:
    """The definition, read literally: from the input to an output every way goes through `at`."""

    def reached(start: int, without: int | None = None) -> set[int]:
        found = {start}
        for reads, write in operators:
            if write != without and found & set(reads):
                found.add(write)
        return found

    return (
        at not in outputs
        and at in reached(0)
        and bool(reached(at) & set(outputs))
        and not reached(0, without=at) & set(outputs)
    )


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_a_cut_is_what_all_ways_from_the_input_to_the_outputs_go_through(graph: Any) -> None:
    operators, outputs = graph
    content = adding(operators, outputs)
    wanted = [at for _, at in operators if may_be_cut(operators, outputs, at)]
    found = cuts(content)
    assert [cut.index for cut in found] == wanted
    for cut in found:
        assert_same(content, cut, inputs_of(content, 1))


def test_nothing_is_cut_inside_a_skip_connection() -> None:
    content = adding([((0, 1), 2), ((2, 1), 3), ((3, 1), 4), ((4, 2), 5), ((5, 1), 6)], [6])
    assert [cut.tensor for cut in cuts(content)] == ["t2", "t5"]


def test_constants_and_what_is_made_of_them_are_in_the_part_that_needs_them() -> None:
    operators = [((1, 1), 2), ((0, 2), 3), ((3, 2), 4), ((1, 2), 5), ((4, 5), 6)]
    content = adding(operators, [6])
    assert [cut.tensor for cut in cuts(content)] == ["t3", "t4"]
    head, tail = split(content, "t3")
    names = [[t.name for t in opened(p).subgraphs[0].tensors] for p in (head, tail)]
    assert names[0] == [b"t0", b"t1", b"t2", b"t3"]
    assert names[1] == [b"t1", b"t2", b"t3", b"t4", b"t5", b"t6"]
    assert_same(content, cuts(content)[0], inputs_of(content))


def test_a_part_holds_nothing_it_does_not_use() -> None:
    content = shared("yolov5n/yolov5n-fp16")
    head, tail = split(content, "8")
    assert len(head) + len(tail) < 1.05 * len(content)
    for part in (head, tail):
        model = opened(part)
        (subgraph,) = model.subgraphs
        used = {int(n) for o in subgraph.operators for n in (*o.inputs, *o.outputs)}
        assert used == set(range(len(subgraph.tensors)))
        assert {o.opcodeIndex for o in subgraph.operators} == set(range(len(model.operatorCodes)))
        buffers = {t.buffer for t in subgraph.tensors} | {m.buffer for m in model.metadata}
        assert buffers == set(range(len(model.buffers)))
        assert not model.signatureDefs


def test_a_custom_operator_keeps_its_name_and_options() -> None:
    model = opened(CHAIN)
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = b"Mine"
    model.operatorCodes.append(code)
    operator = model.subgraphs[0].operators[2]
    operator.opcodeIndex, operator.builtinOptionsType, operator.builtinOptions = 1, 0, None
    operator.customOptions = np.arange(9, dtype=np.uint8)
    tail = opened(split(packed(model), "t3")[1])
    assert [code.customCode for code in tail.operatorCodes] == [b"Mine"]
    assert bytes(tail.subgraphs[0].operators[0].customOptions) == bytes(range(9))


def test_weights_are_aligned_as_the_schema_asks() -> None:
    for part in split(shared("face/face_detection_front"), "9"):
        whole = np.frombuffer(part, np.uint8)
        start = whole.__array_interface__["data"][0]
        data = [b.data for b in opened(part).buffers if b.data is not None]
        assert len(data) > 10
        assert all((d.__array_interface__["data"][0] - start) % 16 == 0 for d in data)


def test_the_tail_keeps_the_labels(tmp_path: Path) -> None:
    name = "coral/mobilenet_v2_1.0_224_quant"
    head, tail = split(shared(name), "20")
    (tmp_path / "tail.tflite").write_bytes(tail)
    (tmp_path / "head.tflite").write_bytes(head)
    labels = find_labels(str(tmp_path / "tail.tflite"), None)
    assert len(labels) == 1001
    assert labels == find_labels(str(MODELS / f"{name}.tflite"), None)
    assert zipfile.is_zipfile(tmp_path / "tail.tflite")
    assert not zipfile.is_zipfile(tmp_path / "head.tflite")
    Network(tail)


def with_labels(names: Sequence[str], data: bytes) -> bytes:
    file = io.BytesIO(CHAIN)
    with warnings.catch_warnings(), zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # of a name that is there already
        for name in names:
            archive.writestr(name, data)
    return file.getvalue()


def test_damaged_labels_are_left_out_and_the_model_is_cut_all_the_same() -> None:
    content = with_labels(["labels.txt"], bytes(range(256)) * 40)
    whole, bare = split(content, "t3")[1], split(CHAIN, "t3")[1]
    assert whole.startswith(bare)
    assert len(whole) > len(bare)
    rng, left_out = np.random.default_rng(2), 0
    places = [*range(len(CHAIN), len(CHAIN) + 40), *range(len(content) - 120, len(content))]
    for _ in range(500):
        damaged = bytearray(content)
        for at in rng.choice(places, rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        tail = split(bytes(damaged), "t3")[1]
        assert tail.startswith(bare)
        left_out += tail == bare
    assert left_out > 150


@pytest.mark.filterwarnings("error")
def test_labels_that_are_there_twice_are_kept_once() -> None:
    tail = split(with_labels(["labels.txt", "labels.txt"], b"cat"), "t3")[1]
    with zipfile.ZipFile(io.BytesIO(tail)) as archive:
        assert archive.namelist() == ["labels.txt"]


def test_labels_that_unpack_to_too_much_are_left_out() -> None:
    content = with_labels(["labels.txt"], bytes(MAX_LABELS_BYTES + 1))
    assert split(content, "t3")[1] == split(CHAIN, "t3")[1]


def test_both_packages_that_have_the_schema_give_the_same_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = []
    for name in flatgraph.SCHEMAS:
        pytest.importorskip(name)
        monkeypatch.setattr(flatgraph, "SCHEMAS", (name,))
        for cached in (flatgraph.load_schema, flatgraph._types, flatgraph._operator_names):
            cached.cache_clear()
        assert flatgraph.load_schema() is importlib.import_module(name)
        parts.append(split(shared("gender/model_lite_gender_q"), "12"))
    monkeypatch.undo()
    flatgraph.load_schema.cache_clear()
    assert parts[0] == parts[1]


def test_a_cut_is_found_by_its_name_or_its_number() -> None:
    assert split(CHAIN, "t3") == split(CHAIN, "2")
    with pytest.raises(ConfigError, match=r"cannot be cut at 't33'; near it are t3.*--list"):
        split(CHAIN, "t33")
    for wrong in ("0", "3", "-1", "", "t4", "²"):
        with pytest.raises(ConfigError, match="cannot be cut at"):
            split(CHAIN, wrong)


def test_a_name_that_two_cuts_have_is_refused_with_their_numbers() -> None:
    model = opened(CHAIN)
    model.subgraphs[0].tensors[3].name = b"t2"
    with pytest.raises(ConfigError, match=r"t2 is the name of the cuts 1, 2; give a number"):
        split(packed(model), "t2")


def test_a_model_that_nowhere_narrows_to_one_tensor_is_refused() -> None:
    content = adding([((0, 1), 2), ((2, 0), 3)], [3])
    assert cuts(content) == []
    with pytest.raises(ConfigError, match=r"cannot be cut: at no place.*offload the whole"):
        split(content, "t2")


def keras_model(build: Callable[[Any, Any], Any], shape: tuple[int, ...]) -> Any:
    pytest.importorskip("tensorflow")
    import keras

    keras.utils.set_random_seed(3)
    given = keras.Input(shape, 1)
    return keras.Model(given, build(keras.layers, given))


def converted(model: Any, precision: Any = "float32") -> bytes:
    from converters.quantize import to_tflite

    rng, shape = np.random.default_rng(1), model.inputs[0].shape
    samples = [[rng.normal(0, 1, shape).astype(np.float32)] for _ in range(8)]
    return to_tflite(model, precision, samples)


def residual(layers: Any, x: Any) -> Any:
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    deep = layers.Conv2D(4, 3, padding="same")(x)
    x = layers.ReLU()(layers.Add()([x, deep]))
    return layers.Dense(3)(layers.GlobalAveragePooling2D()(x))


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_what_keras_makes_answers_the_same_in_every_precision(precision: str) -> None:
    content = converted(keras_model(residual, (16, 16, 3)), precision)
    found = cuts(content)
    assert len(found) >= 3
    for cut in found:
        assert_same(content, cut, inputs_of(content))


def test_weights_that_both_parts_read_are_in_both() -> None:
    def shared_twice(layers: Any, x: Any) -> Any:
        dense = layers.Dense(32)
        return dense(layers.ReLU()(dense(x)))

    content = converted(keras_model(shared_twice, (32,)), "float16")
    found = cuts(content)
    head, tail = split(content, found[0].tensor)
    weights = 32 * 32 * 2
    assert weights < len(head) < 4 * weights
    assert weights < len(tail) < 4 * weights
    for cut in found:
        assert_same(content, cut, inputs_of(content))


def test_all_outputs_come_from_the_tail_in_their_order() -> None:
    def branches(layers: Any, x: Any) -> Any:
        x = layers.Dense(8, activation="relu")(x)
        x = layers.Dense(8, activation="tanh")(x)
        return [layers.Dense(n)(x) for n in (5, 2, 3)]

    content = converted(keras_model(branches, (6,)))
    found = cuts(content)
    assert len(found) >= 2
    for cut in found:
        assert_same(content, cut, inputs_of(content))


def test_a_batch_that_is_free_in_the_file_can_be_cut() -> None:
    pytest.importorskip("tensorflow")
    import keras
    import tensorflow as tf

    given = keras.Input((6,))
    model = keras.Model(given, keras.layers.Dense(2)(keras.layers.Dense(4)(given)))
    content = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    assert -1 in read_graph(content).signature(read_graph(content).input)
    for cut in cuts(content):
        assert_same(content, cut, inputs_of(content))
    assert cuts(content)


def test_a_tensor_whose_size_depends_on_the_input_is_no_cut() -> None:
    tf = pytest.importorskip("tensorflow")

    @tf.function(input_signature=[tf.TensorSpec((1, 6), tf.float32)])
    def chosen(x: Any) -> Any:
        y = tf.abs(x) + 1.0
        return tf.reduce_sum(tf.gather_nd(y, tf.where(y > 1.5)))

    content = tf.lite.TFLiteConverter.from_concrete_functions(
        [chosen.get_concrete_function()], chosen
    ).convert()
    found = cuts(content)
    assert found
    assert all(cut.shape == (1, 6) for cut in found)
    for cut in found:
        assert_same(content, cut, inputs_of(content))


def test_finding_the_cuts_of_a_long_model_takes_one_pass() -> None:
    """4,000 operators: comparing each with each would take minutes."""
    count = 4000
    content = adding([((i + 1 if i else 0, 1), i + 2) for i in range(count)], [count + 1])
    assert len(find_cuts(read_graph(content))) == count - 1


def test_an_lstm_that_keeps_its_state_is_refused() -> None:
    def recurrent(layers: Any, x: Any) -> Any:
        return layers.Dense(2)(layers.LSTM(4)(x))

    content = converted(keras_model(recurrent, (5, 3)))
    with pytest.raises(ConfigError) as caught:
        cuts(content)
    message = str(caught.value)
    assert "state" in message or "subgraphs" in message
