"""What a gate has learned outlives it: a kill, a power cut, a full disk, another model."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infi_edge.archive import read_archive
from infi_edge.errors import ConfigError
from infi_edge.gate import Gate
from infi_edge.learning import keeper as module
from infi_edge.learning.settings import LearnSettings
from infi_edge.learning.state import read_state
from infi_edge.preprocess import FeaturesSpec
from infi_edge.types import Action, Result
from tests.conftest import ROOT

WAIT_S = 60.0
SPEC = FeaturesSpec(size=(6,))

SERVER = """
import sys, time
from pathlib import Path
import numpy as np
from infi_edge.gate import Gate
from infi_edge.learning import keeper
from infi_edge.preprocess import FeaturesSpec
from infi_edge.types import Action

keeper.EVERY_S = 0.02
rng, state, i, reused = np.random.default_rng(int(sys.argv[2])), 0, 0, 0
gate = Gate(infer=lambda x: int(x[1] > 0.5), task="value", target_accuracy=0.9,
            modality="features", preprocess=FeaturesSpec(size=(6,)), state=sys.argv[1])
first = None
while True:
    if rng.random() < 0.01:
        state = 1 - state
    x = rng.normal(0.0, 0.02, 6)
    x[1] += state
    result = gate(x.astype(np.float32))
    i += 1
    if result.action is not Action.INFER:
        reused += 1
        first = i if first is None else first
    inputs = gate.learner.counts["inputs"]
    print(i, reused, inputs, first or 0, int(gate.learner.keeper.restored), flush=True)
    time.sleep(0.001)
"""


class Scene:
    """Six numbers; the second says which of two states it is."""

    def __init__(self, seed: int = 0, turn: int = 80) -> None:
        self._rng, self._turn, self.state = np.random.default_rng(seed), turn, 0

    def next(self) -> np.ndarray:
        if self._rng.random() < 1 / self._turn:
            self.state = 1 - self.state
        numbers = self._rng.normal(0.0, 0.02, 6)
        numbers[1] += self.state
        return numbers.astype(np.float32)


def model(numbers: np.ndarray) -> int:
    return int(numbers[1] > 0.5)


Opened = Callable[..., Gate]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """Gates over one folder; each is closed at the end."""
    made: list[Gate] = []

    def make(folder: str = "state", **choices: Any) -> Gate:
        given = {
            "infer": model,
            "task": "value",
            "target_accuracy": 0.9,
            "modality": "features",
            "preprocess": SPEC,
            "learn": LearnSettings(seed=0, cpu_share=1.0),
            "state": tmp_path / folder,
        }
        made.append(Gate(**{**given, **choices}))
        return made[-1]

    yield make
    for gate in made:
        with suppress(Exception):
            gate.close()


def serve(gate: Gate, count: int, at_s: float = 0.0, seed: int = 0) -> tuple[list[Result], float]:
    """Serve a stream. Returns the results, and the share that was right."""
    scene, results, right = Scene(seed), [], 0
    for i in range(count):
        results.append(gate(scene.next(), at_s + i / 10))
        right += results[-1].value == scene.state
    return results, right / count


def taught(gate: Gate, at_s: float = 0.0) -> float:
    """Serve until it filters. Returns the stream's time."""
    end_s, scene, i = time.monotonic() + WAIT_S, Scene(7), 0
    while gate.stats["reuse"] < 100:
        gate(scene.next(), at_s + i / 10)
        i += 1
        time.sleep(0.001)  # a fit needs the interpreter, too
        assert time.monotonic() < end_s, (gate.stats, gate.learner.counts)
    return at_s + i / 10


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# Going on.


def test_the_next_gate_goes_on_where_the_last_one_stood(opened: Opened) -> None:
    first = opened()
    now_s = taught(first)
    first.close()
    known = first.learner
    assert known is not None
    second = opened()
    results, right = serve(second, 200, now_s)
    learner = second.learner
    assert learner is not None
    assert learner.keeper is not None
    assert learner.keeper.restored
    assert any(r.action is not Action.INFER for r in results[:10])
    assert right >= 0.9
    assert learner.counts["inputs"] == known.counts["inputs"] + 200
    assert learner.live.inputs == known.live.inputs + 200


def test_a_clip_that_begins_at_zero_again_is_gone_on_with(opened: Opened) -> None:
    first = opened()
    taught(first, at_s=10_000.0)
    first.close()
    results, right = serve(opened(), 200, 0.0)
    assert any(r.action is not Action.INFER for r in results[:10])
    assert right >= 0.9


def test_it_is_saved_now_and_then_without_being_closed(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVERY_S", 0.01)
    gate = opened()
    taught(gate)
    end_s = time.monotonic() + WAIT_S
    while not (tmp_path / "state" / "state.learned").exists():
        serve(gate, 20, 1000.0)
        assert time.monotonic() < end_s
        time.sleep(0.01)
    assert read_state(tmp_path / "state").manifest["state"]["values"]


def test_it_is_not_saved_with_each_input(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = opened()
    assert gate.learner is not None
    assert gate.learner.keeper is not None
    saved: list[Any] = []
    monkeypatch.setattr(gate.learner.keeper, "_write", lambda *state: saved.append(state))
    serve(gate, 200)
    assert len(saved) <= 1  # the first fit
    assert module.EVERY_S >= 10


def test_a_gate_without_a_folder_leaves_nothing_behind(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    gate = opened(state=None)
    taught(gate)
    gate.close()
    assert list(tmp_path.iterdir()) == []


def test_without_an_input_nothing_is_saved_and_what_is_there_stays(
    opened: Opened, tmp_path: Path
) -> None:
    first = opened()
    taught(first)
    first.close()
    before = (tmp_path / "state" / "state.learned").read_bytes()
    opened().close()
    assert (tmp_path / "state" / "state.learned").read_bytes() == before


def test_what_was_learned_is_no_picture_of_anybody(opened: Opened, tmp_path: Path) -> None:
    """The state holds cheap features and answers, never an input."""
    gate = opened()
    taught(gate)
    gate.close()
    _, members = read_archive(tmp_path / "state" / "state.learned")
    assert set(members) <= {
        "content.json", "features.npy", "ages_s.npy", "probabilities.npy", "weights.npy"
    }  # fmt: skip


# Kills.


def run(folder: Path, seed: int) -> subprocess.Popen[str]:
    program = [sys.executable, "-c", SERVER, str(folder), str(seed)]
    return subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def lines_until(process: subprocess.Popen[str], enough: Callable[[list[int]], bool]) -> list[int]:
    """Read what a server prints until there is enough of it."""
    end_s = time.monotonic() + WAIT_S
    assert process.stdout is not None
    numbers = [0] * 5
    while not enough(numbers):
        line = process.stdout.readline()
        assert line, "the server has ended"
        assert time.monotonic() < end_s, numbers
        numbers = [int(word) for word in line.split()]
    return numbers


@pytest.mark.slow
def test_a_gate_killed_in_mid_stream_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    rng = np.random.default_rng(0)
    known = 0
    for round_ in range(4):
        process = run(folder, round_)
        try:
            numbers = lines_until(process, lambda n: n[0] > 0)
            if round_:
                assert numbers[4] == 1, "it began anew"
                assert numbers[2] > 0.2 * known
                early = lines_until(process, lambda n: n[1] > 0)
                assert early[3] <= 60
            reused = numbers[1]
            last = lines_until(process, lambda n, r=reused: n[0] > 400 and n[1] > r + 100)
            time.sleep(float(rng.uniform(0.0, 0.1)))
            process.send_signal(signal.SIGKILL)
            known = last[2]
        finally:
            process.kill()
            process.wait(WAIT_S)
            assert process.stdout is not None
            process.stdout.close()
    state = read_state(folder)
    assert state.manifest["state"]["counts"]["inputs"] > 400
    assert not [p.name for p in folder.iterdir() if "damaged" in p.name]


# Damage, others.


def damaged(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    for path in (tmp_path / "state").glob("state.*"):
        path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[: len(content) // 3] + b"?" + content[len(content) // 3 + 1 :],
        lambda content: os.urandom(len(content)),
    ],
    ids=["empty", "half", "a byte", "noise"],
)
def test_a_damaged_state_is_put_aside_with_one_sentence_and_it_starts_anew(
    opened: Opened,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[bytes], bytes],
) -> None:
    first = opened()
    taught(first)
    first.close()
    damaged(tmp_path, change)
    second = opened()
    with caplog.at_level(logging.WARNING, "infi_edge"):
        results, _ = serve(second, 11)
    assert {r.why for r in results} == {"learning"}
    said = warnings(caplog)
    assert len(said) == 1
    assert "damaged" in said[0]
    assert [p for p in (tmp_path / "state").iterdir() if "damaged" in p.name]
    taught(second, at_s=100.0)
    second.close()
    assert read_state(tmp_path / "state").manifest["state"]["counts"]["inputs"] > 11


def nonsense(gate: Gate, key: str, value: object) -> None:
    """Save a state whose checksums are right and whose content is not."""
    learner = gate.learner
    assert learner is not None
    assert learner.keeper is not None
    state, arrays = learner.snapshot(100.0)
    state[key] = value
    keeper = learner.keeper
    assert keeper._folder.save({"facts": {}, "state": state}, arrays, good=False)
    keeper._folder.close()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("metric", [1.0]),
        ("metric", [-1.0, 0.0, 0.0]),
        ("control", None),
        ("live", {}),
        ("values", [1, 2]),
        ("counts", None),
        ("counts", [1, 2]),
        ("changes", 7),
        ("opened_for", 7),
        ("target_accuracy", 10**400),
    ],
)
def test_a_sound_file_with_nonsense_in_it_is_learned_anew_with_one_sentence(
    opened: Opened, caplog: pytest.LogCaptureFixture, key: str, value: object
) -> None:
    first = opened()
    taught(first)
    nonsense(first, key, value)
    second = opened()
    with caplog.at_level(logging.WARNING, "infi_edge"):
        results, right = serve(second, 200)
    assert second.stats["filter_error"] == 0
    assert results[0].why == "learning"
    assert right >= 0.9
    said = [text for text in warnings(caplog) if "opens" not in text]
    assert len(said) == 1
    assert "cannot be gone on from" in said[0]
    assert second.learner is not None
    assert second.learner.counts["inputs"] == 200


def test_where_the_newest_state_is_nonsense_the_last_that_held_is_gone_on_with(
    opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    first = opened()
    now_s = taught(first)
    assert first.learner is not None
    assert first.learner.keeper is not None
    state, arrays = first.learner.snapshot(now_s)
    assert first.learner.keeper._folder.save({"facts": {}, "state": state}, arrays, good=True)
    nonsense(first, "control", None)
    second = opened()
    with caplog.at_level(logging.WARNING, "infi_edge"):
        results, right = serve(second, 200, now_s)
    assert any(r.action is not Action.INFER for r in results[:10])
    assert right >= 0.9
    assert len([text for text in warnings(caplog) if "opens" not in text]) == 1


@pytest.mark.parametrize("ahead_s", [-86400.0, 86400.0 * 365])
def test_a_wall_clock_that_was_wrong_at_the_save_or_is_now_does_no_harm(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    first = opened()
    now_s = taught(first)
    first.close()
    wall = time.time
    monkeypatch.setattr(module.time, "time", lambda: wall() + ahead_s)
    results, right = serve(opened(), 300, now_s)
    assert right >= 0.9
    assert any(r.action is not Action.INFER for r in results[:200])


@pytest.mark.parametrize(
    "choices",
    [
        {"task": "value:fire"},
        {"preprocess": FeaturesSpec(size=(6,), scale=2.0)},
        {"same": "within:1"},
    ],
    ids=["task", "inputs", "rule"],
)
def test_what_was_learned_for_something_else_is_not_used(
    opened: Opened, tmp_path: Path, caplog: pytest.LogCaptureFixture, choices: dict[str, Any]
) -> None:
    first = opened()
    taught(first)
    first.close()
    other = opened(**choices)
    with caplog.at_level(logging.WARNING, "infi_edge"):
        results = [other(Scene().next(), i / 10) for i in range(11)]
    assert {r.why for r in results} == {"learning"}
    said = warnings(caplog)
    assert len(said) == 1
    assert "another model, task or source" in said[0]
    assert [p for p in (tmp_path / "state").iterdir() if "other" in p.name]


def test_another_models_state_is_not_used(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Functions have no name to tell them apart; those that are named have."""
    for name in ("one", "other"):
        (tmp_path / f"{name}_model.py").write_text("def answer(x):\n    return int(x[1] > 0.5)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    first = opened(infer="one_model:answer")
    taught(first)
    first.close()
    second = opened(infer="other_model:answer")
    results, _ = serve(second, 11)
    assert {r.why for r in results} == {"learning"}
    second.close()
    assert [p for p in (tmp_path / "state").iterdir() if "other" in p.name]


def test_another_target_goes_on_with_what_is_known_and_holds_the_new_one(opened: Opened) -> None:
    first = opened(target_accuracy=0.8)
    now_s = taught(first)
    first.close()
    second = opened(target_accuracy=0.95)
    results, right = serve(second, 600, now_s)
    assert second.learner is not None
    assert second.learner.keeper is not None
    assert second.learner.keeper.restored
    assert results[0].why != "learning"
    assert right >= 0.95


def test_two_gates_do_not_share_a_folder(opened: Opened, refuses: Any) -> None:
    first = opened()
    with refuses(ConfigError, "in use by another process"):
        opened()
    taught(first)
    first.close()
    opened().close()


def test_two_gates_of_one_process_with_folders_of_their_own_keep_them_apart(
    opened: Opened,
) -> None:
    one, other = opened("one"), opened("other")
    now_s = taught(one)
    serve(other, 5)
    one.close()
    other.close()
    again = opened("other")
    assert serve(again, 3)[0][0].why == "learning"
    assert again.learner is not None
    assert again.learner.counts["inputs"] == 8
    assert any(r.action is not Action.INFER for r in serve(opened("one"), 10, now_s)[0])


# Disks.


def test_a_full_disk_is_said_once_and_the_gate_goes_on(
    opened: Opened,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "EVERY_S", 0.01)
    gate = opened()
    assert gate.learner is not None
    assert gate.learner.keeper is not None
    fsync, refused = os.fsync, []

    def full(file: int) -> None:
        refused.append(file)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    end_s = time.monotonic() + WAIT_S
    with caplog.at_level(logging.WARNING, "infi_edge"):
        now_s = taught(gate)
        while len(refused) < 3:
            serve(gate, 20, now_s)
            time.sleep(0.01)
            assert time.monotonic() < end_s
        thread = gate.learner.keeper._thread
        assert thread is not None
        thread.join(WAIT_S)
    said = [text for text in warnings(caplog) if "opens" not in text]
    assert len(said) == 1
    assert "no space left" in said[0]
    assert str(tmp_path / "state") in said[0]
    assert gate.stats["reuse"] >= 100
    monkeypatch.setattr(os, "fsync", fsync)
    gate.close()
    assert read_state(tmp_path / "state").manifest["state"]["counts"]["inputs"] > 100


def test_a_folder_that_goes_away_does_not_stop_the_gate(opened: Opened, tmp_path: Path) -> None:
    gate = opened()
    now_s = taught(gate)
    for path in (tmp_path / "state").iterdir():
        path.unlink()
    (tmp_path / "state").rmdir()
    _, right = serve(gate, 100, now_s)
    assert right >= 0.9
    gate.close()


def test_a_folder_that_cannot_be_made_does_not_stop_the_gate(
    opened: Opened, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    with caplog.at_level(logging.WARNING, "infi_edge"):
        gate = opened("file/state")
        taught(gate)
        gate.close()
    said = [text for text in warnings(caplog) if "opens" not in text]
    assert len(said) == 1
    assert str(tmp_path / "file") in said[0]


def test_an_answer_that_no_json_can_say_does_not_stop_the_gate(opened: Opened) -> None:
    """A task of one's own may answer infinity: it is learned, and not kept on the disk."""
    gate = opened()
    taught(gate)
    learner = gate.learner
    assert learner is not None
    learner.memory.add(np.zeros(6, np.float32), 0.0, float("inf"), 1.0)
    serve(gate, 20, 1000.0)
    gate.close()
