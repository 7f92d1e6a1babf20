"""What a .tflite says is checked before it is used: hostile and damaged files get a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from converters.partition import cuts, split
from infi_edge.errors import ConfigError
from tests.conftest import MODELS, need
from tests.converters.flat_models import CHAIN, model_of, opened, packed, schema


def refused(content: bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        cuts(content)
    return str(caught.value)


def test_what_cannot_be_cut_is_refused_with_a_sentence() -> None:
    assert "no TFLite file" in refused(b"")
    assert "no TFLite file" in refused(b"PK\x03\x04" + bytes(100))
    two = model_of([((0, 2), 3), ((3, 1), 4)], [4], 5)
    two.subgraphs[0].inputs = [0, 2]
    assert "2 inputs" in refused(packed(two))
    model = opened(CHAIN)
    model.subgraphs.append(model.subgraphs[0])
    assert "2 subgraphs" in refused(packed(model))
    model = opened(CHAIN)
    model.subgraphs[0].tensors[3].isVariable = True
    assert "state" in refused(packed(model))
    model = opened(CHAIN)
    model.buffers[1].data, model.buffers[1].offset, model.buffers[1].size = None, 4096, 16
    assert "outside its flatbuffer" in refused(packed(model))
    for operator, word in (("RANDOM_UNIFORM", "random"), ("VAR_HANDLE", "state"), ("IF", "flow")):
        model = opened(CHAIN)
        code = model.operatorCodes[0]
        code.builtinCode = getattr(schema.BuiltinOperator, operator)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        assert word in refused(packed(model))


Damage = Callable[[Any, Any], None]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "reads past the tensors": (
        lambda model, graph: vars(graph.operators[2]).update(inputs=[3, 99]),
        "damaged: what operator 2 reads",
    ),
    "reads what is not there yet": (
        lambda model, graph: vars(graph.operators[0]).update(inputs=[0, 3]),
        "operator 0 reads tensor 3 before",
    ),
    "writes twice": (
        lambda model, graph: vars(graph.operators[2]).update(outputs=[3]),
        "operator 2 writes what is there",
    ),
    "writes a constant": (
        lambda model, graph: vars(graph.operators[2]).update(outputs=[1]),
        "operator 2 writes what is there",
    ),
    "has no such code": (
        lambda model, graph: vars(graph.operators[2]).update(opcodeIndex=7),
        "the code of operator 2",
    ),
    "is of no known kind": (
        lambda model, graph: vars(model.operatorCodes[0]).update(builtinCode=100_000),
        "of a kind .100000. that is unknown here",
    ),
    "has too short a constant": (
        lambda model, graph: vars(model.buffers[1]).update(data=model.buffers[1].data[:8]),
        "t1 has 8 bytes",
    ),
    "has no such buffer": (
        lambda model, graph: vars(graph.tensors[3]).update(buffer=12),
        "the buffer of t3",
    ),
    "has a negative shape": (
        lambda model, graph: vars(graph.tensors[3]).update(shape=[1, -4]),
        "t3 has the shape",
    ),
    "has a huge shape": (
        lambda model, graph: vars(graph.tensors[3]).update(shape=[1 << 30, 1 << 30]),
        "t3 has the shape",
    ),
    "has an output past the tensors": (
        lambda model, graph: vars(graph).update(outputs=[4, 5]),
        "the model's outputs",
    ),
    "has no outputs": (lambda model, graph: vars(graph).update(outputs=[]), "has no outputs"),
    "has an output twice": (
        lambda model, graph: vars(graph).update(outputs=[4, 4]),
        "an output twice",
    ),
    "has no operators": (lambda model, graph: vars(graph).update(operators=[]), "no operators"),
    "has a name that is no text": (
        lambda model, graph: vars(graph.tensors[2]).update(name=b"\xff\xfe"),
        "damaged: it cannot be read",
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_model_is_refused(what: str) -> None:
    damage, sentence = DAMAGES[what]
    model = opened(CHAIN)
    damage(model, model.subgraphs[0])
    with pytest.raises(ConfigError, match=sentence):
        cuts(packed(model))


def test_flipped_bytes_and_cut_off_files_give_a_sentence_or_a_model() -> None:
    rng = np.random.default_rng(5)
    content = need(MODELS / "gender" / "model_lite_gender_q.tflite").read_bytes()
    weights = [b.data for b in opened(content).buffers if b.data is not None]
    start = np.frombuffer(content, np.uint8).__array_interface__["data"][0]
    plain = np.ones(len(content), bool)
    for data in weights:
        at = data.__array_interface__["data"][0] - start
        plain[at : at + len(data)] = False
    structure, good, longest = np.flatnonzero(plain), 0, 0
    for i in range(400):
        damaged = bytearray(content)
        for at in rng.choice(structure, rng.integers(1, 6)):
            damaged[at] = rng.choice([0, 255, rng.integers(256)])
        damaged[4:8] = b"TFL3"
        if i % 4 == 0:
            damaged = damaged[: rng.integers(8, len(damaged))]
        try:
            found = cuts(bytes(damaged))
            if found:
                split(bytes(damaged), str(found[-1].number))
            good += 1
        except ConfigError as error:
            longest = max(longest, len(str(error)))
    assert longest < 400
    assert 0 < good < 300
