"""One model serves several sources: each in its turn, none for ever, nothing kept."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infi_edge.config import ModelConfig
from infi_edge.errors import ConfigError, ExecutorError, InfiEdgeError
from infi_edge.served import Abandoned, ModelClient, ServedModel, file_stamp
from infi_edge.workload import WorkloadSpec

VALUE = WorkloadSpec("value", "raw", modality="features")

MODULE = """
import sys, threading
calls, gate, entered = [], threading.Event(), threading.Event()
gate.set()

def infer(data):
    entered.set()
    gate.wait(60)
    calls.append(data)
    return data

steps = threading.Semaphore(0)

def stepped(data):
    calls.append(data)
    steps.acquire(timeout=60)
    return data

def broken(data):
    if data == "exit":
        sys.exit(3)
    if data == "bad":
        raise RuntimeError("no power")
    return data

def scores(data):
    return [[0.1, 0.9]]

def failing(data):
    raise RuntimeError("no power")

nothing = 5
"""
NUMBERS = itertools.count()


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module of one's own with models: it notes its calls and waits at its gate."""
    name = f"served_models_{next(NUMBERS)}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = __import__(name)
    yield module
    module.gate.set()
    del sys.modules[name]


@pytest.fixture
def serve(plugin: Any) -> Iterator[Callable[..., ServedModel]]:
    """Serve one of the module's models; it is closed after the test, and its thread ends."""
    made: list[ServedModel] = []

    def start(function: str = "infer", **settings: Any) -> ServedModel:
        config = ModelConfig(path=f"{plugin.__name__}:{function}", **settings)
        made.append(ServedModel("big", config))
        return made[-1]

    yield start
    plugin.gate.set()
    for served in made:
        served.close()
        until_s = time.monotonic() + 20
        while served.stuck and time.monotonic() < until_s:
            time.sleep(0.01)
        assert not served.stuck


def wait_until(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.005)


class Asker(threading.Thread):
    """A source's thread that asks a client, and keeps what it gets."""

    def __init__(self, client: ModelClient, *inputs: Any) -> None:
        super().__init__(daemon=True)
        self.client, self.inputs = client, inputs
        self.answers: list[Any] = []
        self.start()

    def run(self) -> None:
        for data in self.inputs:
            try:
                self.answers.append(self.client(data))
            except InfiEdgeError as error:
                self.answers.append(error)


def test_an_answer_comes_with_its_times(serve, plugin):
    client = serve().client(VALUE)
    plugin.gate.clear()
    first = Asker(client, 1)
    assert plugin.entered.wait(20)
    second = Asker(client.served.client(VALUE), 2)
    wait_until(lambda: len(client.served._jobs) == 1)
    time.sleep(0.1)
    plugin.gate.set()
    for asker in (first, second):
        asker.join(20)
    assert (first.answers, second.answers) == ([1], [2])
    assert client.model_s >= 0.1
    assert second.client.queue_s >= 0.1


def test_sources_get_their_turn_one_after_another(serve, plugin):
    served, askers = serve("stepped"), []
    for count, name in enumerate("abc"):
        askers.append(Asker(served.client(VALUE), *[f"{name}{i}" for i in range(10)]))
        wait_until(lambda count=count: len(served._jobs) + len(plugin.calls) == count + 1)
    for done in range(30):
        waiting = min(2, 29 - done)  # all that are not answered yet have asked again
        wait_until(lambda n=done, w=waiting: (len(plugin.calls), len(served._jobs)) == (n + 1, w))
        plugin.steps.release()
    for asker in askers:
        asker.join(20)
    assert plugin.calls == [f"{name}{i}" for i in range(10) for name in "abc"]


def test_no_wakeup_is_lost_under_many_short_inferences(serve):
    served = serve("broken", deadline_s=30)
    askers = [Asker(served.client(VALUE), *range(500)) for _ in range(4)]
    for asker in askers:
        asker.join(60)
        assert asker.answers == list(range(500))


def test_each_source_has_its_own_task_on_the_same_model(serve):
    served = serve("scores")
    label = WorkloadSpec("label", "classification", "exact", ("dark", "bright"))
    confidence = WorkloadSpec("value", "raw", modality="features")
    frame = np.zeros((4, 4, 3), np.uint8)
    clients = [served.client(label), served.client(confidence)]
    assert clients[0](frame) == "bright"
    assert clients[1](frame) == [[0.1, 0.9]]
    assert clients[0].task is not clients[1].task


def test_a_model_that_hangs_is_given_up_at_the_deadline_and_gathers_nothing(serve, plugin):
    served = serve(deadline_s=0.15)
    plugin.gate.clear()
    inputs = [np.zeros(1000) for _ in range(4)]
    asker, alive = Asker(served.client(VALUE), *inputs), weakref.ref(inputs[2])
    asker.join(20)
    assert all("no answer in 0.15 s" in str(answer) for answer in asker.answers)
    assert len(served._jobs) == 0
    del inputs, asker
    gc.collect()
    assert alive() is None
    assert served.hangs
    plugin.gate.set()
    wait_until(lambda: len(plugin.calls) == 1)  # the others were taken back
    assert served.client(VALUE)("after") == "after"
    assert not served.hangs


def test_a_slow_source_does_not_cost_another_its_answer(serve, plugin):
    served = serve(deadline_s=0.3)
    plugin.gate.clear()
    given_up = Asker(served.client(VALUE), "slow")
    given_up.join(20)
    waiting = Asker(served.client(VALUE), "next")
    plugin.gate.set()
    waiting.join(20)
    assert waiting.answers == ["next"]


def test_a_source_that_waits_says_that_it_lives(serve, plugin):
    client, beats = serve().client(VALUE), []
    client.alive = lambda: beats.append(1)
    plugin.gate.clear()
    asker = Asker(client, 1)
    wait_until(lambda: len(beats) >= 2)
    plugin.gate.set()
    asker.join(20)
    assert asker.answers == [1]


def test_closing_gives_up_what_runs_and_what_waits_at_once(serve, plugin):
    served = serve(deadline_s=1e6)
    plugin.gate.clear()
    askers = [Asker(served.client(VALUE), i) for i in range(3)]
    wait_until(lambda: plugin.entered.is_set() and len(served._jobs) == 2)
    begun_s = time.monotonic()
    served.close()
    for asker in askers:
        asker.join(20)
        assert isinstance(asker.answers[0], Abandoned)
    assert time.monotonic() - begun_s < 5
    assert served.stuck
    with pytest.raises(Abandoned):
        served.client(VALUE)(1)
    plugin.gate.set()
    wait_until(lambda: not served.stuck)
    assert len(plugin.calls) == 1


def test_closing_an_idle_model_ends_its_thread(serve):
    served = serve()
    assert served.client(VALUE)(1) == 1
    served.close()
    wait_until(lambda: not served.stuck)


@pytest.mark.parametrize(("data", "words"), [("bad", "no power"), ("exit", "SystemExit")])
def test_a_model_that_raises_is_an_error_of_one_input(serve, refuses, data, words):
    client = serve("broken", deadline_s=5).client(VALUE)
    for _ in range(3):
        with refuses(ExecutorError, words):
            client(data)
        assert client("good") == "good"


def test_errors_do_not_keep_their_inputs(serve):
    client = serve("failing").client(VALUE)
    gc.disable()
    try:
        data = np.zeros(1000)
        alive = weakref.ref(data)
        with pytest.raises(ExecutorError):
            client(data)
        del data
        wait_until(lambda: alive() is None)
    finally:
        gc.enable()


@pytest.mark.parametrize("path", ["absent.tflite", "no_such_module:infer", "served_models:absent"])
def test_a_model_that_cannot_be_loaded_is_refused_and_leaves_no_thread(path):
    before = threading.active_count()
    with pytest.raises((ConfigError, ExecutorError)):
        ServedModel("big", ModelConfig(path=path))
    assert threading.active_count() == before


def test_a_real_network_serves_two_sources(models):
    path = models / "mobilenet_v1_0.25_128_quant.tflite"
    path = path if path.exists() else next(iter(sorted(models.rglob("*.tflite"))), path)
    if not path.exists():
        pytest.skip(f"no .tflite in {models}")
    served = ServedModel("net", ModelConfig(path=str(path), threads=1))
    try:
        spec = WorkloadSpec("value", "raw")
        frames = [np.full((64, 64, 3), level, np.uint8) for level in (0, 200)]
        alone = [np.asarray(served.client(spec)(frame)[0]) for frame in frames]
        askers = [Asker(served.client(spec), *[frame] * 5) for frame in frames]
        for asker, answer in zip(askers, alone, strict=True):
            asker.join(60)
            assert len(asker.answers) == 5
            for found in asker.answers:
                assert np.array_equal(np.asarray(found[0]), answer)
    finally:
        served.close()


def test_a_file_written_anew_has_another_stamp(tmp_path):
    path = tmp_path / "m.tflite"
    assert file_stamp(str(path)) == (0, 0)
    path.write_bytes(b"a")
    first = file_stamp(str(path))
    path.write_bytes(b"ab")
    os.utime(path, ns=(1, 1))
    assert file_stamp(str(path)) not in ((0, 0), first)
    assert file_stamp("package.module:function") == (0, 0)
