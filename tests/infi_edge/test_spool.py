"""Inputs that wait for the server: each is answered once, or counted."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from infi_edge.capture.recorded import decode_input, encode_input
from infi_edge.errors import ConfigError
from infi_edge.executors.spool import ROW_BYTES, Spool, Spooled
from tests.conftest import ROOT

AT = "2026-03-01T12:00:00.000+00:00"
MIB = 1 << 20
GONE = ("refused", "done", "dropped", "evicted", "uncertain", "damaged")


@contextmanager
def opened(
    path: Path | None,
    max_bytes: int = MIB,
    order: Literal["oldest", "newest"] = "oldest",
    identity: str = "a",
) -> Iterator[Spool]:
    with closing(Spool(path, max_bytes, order, identity)) as spool:
        yield spool


def put(spool: Spool, index: int, size: int = 100) -> bool:
    return spool.put(index, index / 10, AT, "text", bytes([index % 251]) * size, "no route")


def take(spool: Spool) -> Spooled:
    taken = spool.take()
    assert taken is not None
    return taken


def drained(spool: Spool) -> list[int]:
    """Answer all that waits; the indices in their order."""
    order = []
    while (taken := spool.take()) is not None:
        assert spool.delivering(taken.key)
        order.append(taken.index)
        spool.done(taken.key)
    return order


def assert_adds_up(spool: Spool) -> None:
    counts = spool.counts
    came = counts["put"] + counts["found"]
    assert came == sum(counts[cause] for cause in GONE) + len(spool), counts


@pytest.fixture(params=["memory", "disk"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "yard.spool" if request.param == "disk" else None


# What a queue does.


def test_an_input_comes_back_as_it_was_put(path: Path | None) -> None:
    with opened(path) as spool:
        assert spool.put(7, 1.25, AT, "jpeg", b"\xff\xd8picture", "no route")
        assert spool.put(8, 1.5, AT, "jpeg", [b"one", b"two"], "no route")
        first, second = take(spool), take(spool)
        assert first == Spooled(
            first.key, 7, 1.25, AT, "jpeg", b"\xff\xd8picture", "no route", attempts=0
        )
        assert second.data == [b"one", b"two"]
        assert spool.take() is None
        assert len(spool) == 2, "they are here until they are done"


@pytest.mark.parametrize(
    ("data", "modality"),
    [
        (np.full((4, 4, 3), 9, np.uint8), "image"),
        ([np.full((4, 4, 3), 9, np.uint8)] * 2, "video"),
        (np.zeros(16, np.float32), "audio"),
        ("a line with \udcff in it", "text"),
        (np.arange(6, dtype=np.float32).reshape(2, 3), "motion"),
        (np.arange(6, dtype=np.int8).reshape(1, 6), "features"),
    ],
)
def test_each_modality_is_kept_as_it_is_encoded(
    data: object, modality: str, path: Path | None
) -> None:
    encoding, kept = encode_input(data, modality)
    with opened(path) as spool:
        assert spool.put(0, float("nan"), AT, encoding, kept, "no route")
        taken = take(spool)
    assert (taken.encoding, taken.data) == (encoding, kept)
    decode_input(taken.encoding, taken.data)


@pytest.mark.parametrize(("order", "wanted"), [("oldest", [0, 1, 2]), ("newest", [2, 1, 0])])
def test_inputs_come_in_the_order_asked_for(
    order: Literal["oldest", "newest"], wanted: list[int], path: Path | None
) -> None:
    with opened(path, order=order) as spool:
        for index in range(3):
            put(spool, index)
        assert drained(spool) == wanted
        assert len(spool) == spool.size_bytes == 0


def test_a_full_queue_refuses_what_is_new_when_the_oldest_comes_first(path: Path | None) -> None:
    with opened(path, 3 * (ROW_BYTES + 200), "oldest") as spool:
        kept = [put(spool, index) for index in range(5)]
        assert kept == [True, True, True, False, False]
        assert "full" in spool.sentence
        assert drained(spool) == [0, 1, 2]
        assert spool.counts["refused"] == 2
        assert put(spool, 5)
        assert spool.sentence == ""


def test_a_full_queue_evicts_the_oldest_when_the_newest_comes_first(path: Path | None) -> None:
    with opened(path, 3 * (ROW_BYTES + 200), "newest") as spool:
        assert all(put(spool, index) for index in range(5))
        assert drained(spool) == [4, 3, 2]
        assert spool.counts["evicted"] == 2
        assert_adds_up(spool)


def test_what_is_being_answered_is_never_evicted(path: Path | None) -> None:
    with opened(path, 2 * (ROW_BYTES + 200), "newest") as spool:
        put(spool, 0)
        out = take(spool)
        assert put(spool, 1)
        assert put(spool, 2)
        assert spool.delivering(out.key)
        out_2 = take(spool)
        assert out_2.index == 2
        assert not put(spool, 3), "all are being answered: there is nothing to evict"
        spool.done(out.key)
        assert put(spool, 3)


def test_nothing_is_evicted_for_an_input_that_finds_no_room_even_then(path: Path | None) -> None:
    with opened(path, 4 * (ROW_BYTES + 200), "newest") as spool:
        put(spool, 0)
        out = take(spool)
        put(spool, 1)
        assert not put(spool, 2, size=4 * (ROW_BYTES + 200) - ROW_BYTES - 100)
        assert spool.counts["evicted"] == 0
        assert take(spool).index == 1
        spool.done(out.key)


@pytest.mark.parametrize("order", ["oldest", "newest"])
def test_an_input_larger_than_the_queue_is_refused(
    order: Literal["oldest", "newest"], path: Path | None
) -> None:
    with opened(path, 10_000, order) as spool:
        put(spool, 0)
        assert not put(spool, 1, size=10_000)
        assert "too large" in spool.sentence
        assert drained(spool) == [0]


def test_one_that_is_given_back_is_the_next_again(path: Path | None) -> None:
    with opened(path) as spool:
        for index in range(3):
            put(spool, index)
        first = take(spool)
        spool.give_back(first.key)
        again = take(spool)
        assert (again.index, again.attempts) == (0, 0)
        assert spool.delivering(again.key)
        spool.give_back(again.key)
    if path is not None:
        with opened(path) as spool:
            assert spool.counts["uncertain"] == 0
            assert drained(spool) == [0, 1, 2]


@pytest.mark.parametrize(("order", "wanted"), [("oldest", [1, 2, 0]), ("newest", [1, 0, 2])])
def test_one_the_server_fails_on_waits_behind_all_others(
    order: Literal["oldest", "newest"], wanted: list[int], path: Path | None
) -> None:
    with opened(path, order=order) as spool:
        for index in range(3):
            put(spool, index)
        poison = take(spool)
        assert spool.failed(poison.key) == 1
        assert drained(spool)[-1] == poison.index == wanted[-1]


def test_attempts_are_counted_across_restarts(tmp_path: Path) -> None:
    for attempt in range(3):
        with opened(tmp_path / "s") as spool:
            if not attempt:
                put(spool, 0)
            taken = take(spool)
            assert taken.attempts == attempt
            assert spool.failed(taken.key) == attempt + 1
    with opened(tmp_path / "s") as spool:
        spool.drop(take(spool).key)
        assert (len(spool), spool.counts["dropped"]) == (0, 1)


def test_a_key_that_is_not_out_changes_nothing(path: Path | None) -> None:
    with opened(path) as spool:
        put(spool, 0)
        key = take(spool).key
        spool.give_back(key)
        for call in (spool.done, spool.drop, spool.give_back):
            call(key)
            call(key + 1)
        assert not spool.delivering(key)
        assert spool.failed(key) == 0
        assert len(spool) == 1
        assert_adds_up(spool)


def test_a_key_is_never_given_again_though_the_file_is_made_anew(path: Path | None) -> None:
    with opened(path) as spool:
        keys = []
        for index in range(3):
            put(spool, index, 900_000)
            keys.append(take(spool).key)
            spool.done(keys[-1])
            spool.done(keys[0])
        assert len(set(keys)) == 3
        assert spool.counts["done"] == 3


# Across restarts.


def test_what_waits_is_there_after_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as spool:
        for index in range(4):
            put(spool, index)
        spool.done(take(spool).key)
        size = spool.size_bytes
    with opened(tmp_path / "s") as spool:
        assert (len(spool), spool.size_bytes, spool.counts["found"]) == (3, size, 3)
        put(spool, 4)
        assert drained(spool) == [1, 2, 3, 4]


def test_one_that_was_out_waits_again_but_not_if_its_answer_may_be_out(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s", MIB)
    for index in range(3):
        put(spool, index)
    take(spool)
    assert spool.delivering(take(spool).key)
    spool.close()
    with opened(tmp_path / "s", identity="") as spool:
        assert spool.counts["uncertain"] == 1
        spool.close()
    with opened(tmp_path / "s", identity="") as spool:
        assert spool.counts["uncertain"] == 0, "that was told before"
        assert drained(spool) == [0, 2]
        assert_adds_up(spool)


def test_uncertain_ones_are_told_again_if_nobody_can_have_heard(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path\n"
        "from infi_edge.executors.spool import Spool\n"
        "spool = Spool(Path(sys.argv[1]), 1 << 20)\n"
        "if not len(spool):\n"
        "    spool.put(0, 0.0, '', 'text', b'', ''); spool.delivering(spool.take().key)\n"
        "os.kill(os.getpid(), 9)"
    )
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program, str(tmp_path / "s")], cwd=ROOT, check=False)
    with opened(tmp_path / "s", identity="") as spool:
        assert spool.counts["uncertain"] == 1


def test_a_smaller_bound_keeps_what_was_promised_and_takes_no_more(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as spool:
        for index in range(10):
            put(spool, index)
    with opened(tmp_path / "s", 5 * ROW_BYTES) as spool:
        assert len(spool) == 10
        assert not put(spool, 10)
        assert drained(spool) == list(range(10))


def test_inputs_for_another_model_are_put_aside(tmp_path: Path) -> None:
    with opened(tmp_path / "s", identity="a") as spool:
        put(spool, 0)
        put(spool, 1)
    with opened(tmp_path / "s", identity="b") as spool:
        assert "another model" in spool.sentence
        assert "s.damaged-0" in spool.sentence
        assert (len(spool), spool.counts["damaged"]) == (0, 2)
        put(spool, 2)
        assert drained(spool) == [2]
    (tmp_path / "s.damaged-0").rename(tmp_path / "old")
    with opened(tmp_path / "old", identity="a") as spool:
        assert drained(spool) == [0, 1]


def test_an_empty_queue_serves_another_model(tmp_path: Path) -> None:
    with opened(tmp_path / "s", identity="a") as spool:
        put(spool, 0)
        drained(spool)
    for _ in range(2):
        with opened(tmp_path / "s", identity="b") as spool:
            assert (spool.sentence, spool.counts["damaged"]) == ("", 0)
            put(spool, 1)


def test_a_queue_of_another_version_is_put_aside(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as spool:
        put(spool, 0)
    with closing(sqlite3.connect(tmp_path / "s")) as db:
        db.execute("PRAGMA user_version = 99")
    with opened(tmp_path / "s") as spool:
        assert "version" in spool.sentence
        assert spool.counts["damaged"] == 1
        assert put(spool, 1)


# Its files.


def test_only_the_user_can_read_the_files(tmp_path: Path) -> None:
    path = tmp_path / "state" / "s"
    with opened(path) as spool:
        put(spool, 0)
        files = list(path.parent.iterdir())
        assert {file.name for file in files} == {"s", "s-wal", "s.lock"}
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_second_queue_on_one_file_is_an_error_and_harms_nothing(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from infi_edge.errors import ConfigError\n"
        "from infi_edge.executors.spool import Spool\n"
        "try: Spool(Path(sys.argv[1]), 1000)\n"
        "except ConfigError as error: print(error)"
    )
    with opened(tmp_path / "s") as spool:
        put(spool, 0)
        with pytest.raises(ConfigError, match="in use by another process"):
            Spool(tmp_path / "s", MIB)
        second = [sys.executable, "-c", program, str(tmp_path / "s")]
        for _ in range(2):
            done = subprocess.run(second, capture_output=True, text=True, cwd=ROOT, check=True)
            assert "in use by another process" in done.stdout
        assert put(spool, 1)
        assert drained(spool) == [0, 1]
    with opened(tmp_path / "s") as spool:
        assert spool.counts["damaged"] == 0


def files_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


@pytest.mark.parametrize("order", ["oldest", "newest"])
@pytest.mark.parametrize(
    "size",
    [
        *(pytest.param(size, marks=pytest.mark.slow) for size in (50, 700, 2030, 3000, 4100)),
        60_000,
        700_000,
    ],
)
def test_the_files_stay_near_the_bound(
    order: Literal["oldest", "newest"], size: int, tmp_path: Path
) -> None:
    most = 2 * MIB
    with opened(tmp_path / "s", most, order) as spool:
        index = 0
        for _ in range(3):
            for _ in range(min(most // (size + ROW_BYTES) * 3 // 2, 300) + 1):
                put(spool, index, size)
                index += 1
                assert spool.size_bytes <= most
                assert files_bytes(tmp_path) < most * 1.5 + MIB
            for _ in range(len(spool) * 2 // 3):
                spool.done(take(spool).key)
                assert files_bytes(tmp_path) < most * 1.5 + MIB
        drained(spool)
        assert files_bytes(tmp_path) < MIB, "an emptied queue gives its room back"
        assert_adds_up(spool)


def test_a_closed_queue_refuses_and_its_file_is_not_touched(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s", MIB, identity="a")
    put(spool, 0)
    out = take(spool)
    spool.close()
    spool.close()
    assert not put(spool, 1)
    assert spool.take() is None
    assert not spool.delivering(out.key)
    spool.give_back(out.key)
    with opened(tmp_path / "s") as spool:
        assert drained(spool) == [0]


def test_threads_that_put_and_take_lose_and_repeat_nothing(path: Path | None) -> None:
    answered: list[int] = []
    ended = threading.Event()
    with opened(path) as spool:

        def drain() -> None:
            while not (ended.is_set() and not len(spool)):
                if (taken := spool.take()) is not None:
                    if taken.index % 5 == 0 and taken.attempts < 2:
                        spool.failed(taken.key)
                        continue
                    assert spool.delivering(taken.key)
                    answered.append(taken.index)
                    spool.done(taken.key)

        def fill(first: int) -> None:
            for index in range(first, first + 60):
                assert put(spool, index)

        drainers = [threading.Thread(target=drain) for _ in range(2)]
        fillers = [threading.Thread(target=fill, args=(100 * n,)) for n in range(2)]
        for thread in drainers + fillers:
            thread.start()
        for thread in fillers:
            thread.join()
        ended.set()
        for thread in drainers:
            thread.join(60)
        assert_adds_up(spool)
    assert sorted(answered) == [*range(60), *range(100, 160)]


# The law.


class QueueBesideALine(RuleBasedStateMachine):
    """line: what is here, the oldest first. out: {key: input} of what is being answered; given:
    those of them whose answer may be out."""

    @initialize(
        order=st.sampled_from(["oldest", "newest"]),
        disk=st.booleans(),
        most=st.integers(2000, 9000),
    )
    def begin(self, order: Literal["oldest", "newest"], disk: bool, most: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "s" if disk else None
        self.order, self.most, self.index = order, most, 0
        self.line: list[int] = []
        self.out: dict[int, Spooled] = {}
        self.given: set[int] = set()
        self.spool = Spool(self.path, most, order)

    def teardown(self) -> None:
        self.spool.close()
        self.folder.cleanup()

    def waiting(self) -> list[int]:
        under_way = {taken.index for taken in self.out.values()}
        return [index for index in self.line if index not in under_way]

    @rule(size=st.integers(0, 6000))
    def put(self, size: int) -> None:
        evicted = self.spool.counts["evicted"]
        kept = put(self.spool, self.index, size)
        lost = self.spool.counts["evicted"] - evicted
        assert not lost or (kept and self.order == "newest")
        for index in self.waiting()[:lost]:
            self.line.remove(index)
        if kept:
            self.line.append(self.index)
        self.index += 1

    @rule()
    def take(self) -> None:
        taken, waiting = self.spool.take(), self.waiting()
        if taken is None:
            assert not waiting
            return
        assert taken.index == waiting[0 if self.order == "oldest" else -1]
        assert taken.data == bytes([taken.index % 251]) * len(taken.data)
        self.out[taken.key] = taken

    @precondition(lambda self: self.out)
    @rule(chosen=st.integers(0), call=st.sampled_from(["give", "done", "drop", "back", "failed"]))
    def answer(self, chosen: int, call: str) -> None:
        key = list(self.out)[chosen % len(self.out)]
        if call == "give":
            assert self.spool.delivering(key)
            self.given.add(key)
            return
        taken = self.out.pop(key)
        self.given.discard(key)
        if call == "back":
            self.spool.give_back(key)
            return
        self.line.remove(taken.index)
        if call == "failed":
            assert self.spool.failed(key) == taken.attempts + 1
            self.line.insert(len(self.line) if self.order == "oldest" else 0, taken.index)
        elif call == "done":
            self.spool.done(key)
        else:
            self.spool.drop(key)

    @precondition(lambda self: self.path is not None)
    @rule()
    def restart(self) -> None:
        self.spool.close()
        for key in self.given:
            self.line.remove(self.out[key].index)
        found, uncertain = len(self.line) + len(self.given), len(self.given)
        self.out, self.given = {}, set()
        self.spool = Spool(self.path, self.most, self.order)
        assert self.spool.counts["found"] == found
        assert self.spool.counts["uncertain"] == uncertain

    @invariant()
    def it_adds_up(self) -> None:
        assert_adds_up(self.spool)
        assert len(self.spool) == len(self.line)
        assert self.spool.size_bytes <= self.most
        assert self.spool.counts["damaged"] == 0


QueueBesideALine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
TestQueueBesideALine = QueueBesideALine.TestCase
