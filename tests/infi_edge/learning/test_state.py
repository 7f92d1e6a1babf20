"""What was learned is on the disk whole or not at all, and belongs to one process and source."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from infi_edge.archive import array_bytes, read_archive, write_archive
from infi_edge.errors import BundleError, ConfigError
from infi_edge.learning.state import DTYPES, Saved, StateFolder, read_state
from tests.conftest import ROOT

KILLS = int(os.environ.get("INFI_EDGE_KILLS", "30"))
NAMES = ("state.learned", "state.previous", "state.good")

SAVER = """
import sys
from pathlib import Path
import numpy as np
from infi_edge.learning.state import StateFolder

folder = StateFolder(Path(sys.argv[1]), "yard")
newest = folder.load()
number = newest.manifest["number"] + 1 if newest else 0
print("begun", flush=True)
while True:
    content = {"number": number, "values": [["car", number]] * 200}
    arrays = {"weights": np.full((40, 64), number, np.float32)}
    if not folder.save(content, arrays, good=number % 3 == 0):
        sys.exit("a save failed")
    print(number, flush=True)
    number += 1
"""

KILLED_AT = """
import os, sys
from pathlib import Path
from infi_edge.learning.state import StateFolder

steps = int(sys.argv[2])
def counted(call):
    def step(*args, **kwargs):
        global steps
        steps -= 1
        if steps < 0:
            os._exit(9)
        return call(*args, **kwargs)
    return step

folder = StateFolder(Path(sys.argv[1]), "yard")
folder.load()
for name in ("open", "fsync", "chmod", "replace", "rename", "link", "unlink"):
    setattr(os, name, counted(getattr(os, name)))
folder.save({"number": 3}, {}, good=True)
"""

HOLDER = """
import sys, time
from pathlib import Path
from infi_edge.learning.state import StateFolder

folder = StateFolder(Path(sys.argv[1]), "yard")
print("begun", flush=True)
time.sleep(600)
"""

LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from infi_edge.learning.state import StateFolder

folder = StateFolder(Path(sys.argv[1]), "yard")
print(folder.save({"number": 1}, {"ring": np.zeros(1000, np.uint8)}, good=True))
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, unlimited[1]))
print(folder.save({"number": 2}, {"ring": np.zeros(100_000, np.uint8)}, good=True))
print(folder.save({"number": 3}, {"ring": np.zeros(1000, np.uint8)}, good=False))
"""


@pytest.fixture
def opened(tmp_path) -> Iterator[Callable[..., StateFolder]]:
    """A function that opens tmp_path's `state`; whatever it opened is closed."""
    folders = []

    def open_state(identity: str = "yard", folder: Path = tmp_path / "state") -> StateFolder:
        folders.append(StateFolder(folder, identity))
        return folders[-1]

    yield open_state
    for folder in folders:
        folder.close()


@pytest.fixture
def warnings(caplog) -> Callable[[], list[str]]:
    """A function that returns the warnings since its last call."""
    caplog.set_level(logging.INFO, "infi_edge")

    def take() -> list[str]:
        found = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        caplog.clear()
        return found

    return take


def put(folder: StateFolder, number: int, good: bool = False) -> bool:
    return folder.save({"number": number}, {"x": np.full(5, number, np.int64)}, good=good)


def number_of(saved: Saved | None) -> int | None:
    if saved is None:
        return None
    if "x" in saved.arrays:
        assert saved.arrays["x"].tolist() == [saved.manifest["number"]] * 5
    return saved.manifest["number"]


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"lock"}


def test_what_is_loaded_is_what_was_saved(opened):
    arrays: dict[str, Any] = {f"a.{dtype}": np.ones((2, 3), dtype) for dtype in DTYPES}
    arrays |= {
        "empty": np.zeros((0, 4), np.float32),
        "number": np.array(2.5),
        "swapped": np.arange(3, dtype=">i4"),
        "reversed": np.arange(12, dtype=np.float64).reshape(3, 4)[::-1, ::2],
        "columns": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    }
    content = {
        "values": [None, True, ["é\ud800\n", 1.5, {"box": [0, -1]}]],
        "empty": {},
        "": 10**40,
    }
    before = time.time()
    folder = opened()
    assert folder.load() is None
    assert folder.save(content, arrays, good=False)

    for saved in (folder.load(), read_state(folder.folder)):
        assert saved is not None
        assert saved.manifest == content
        assert saved.arrays.keys() == arrays.keys()
        for name, array in arrays.items():
            assert saved.arrays[name].dtype == array.dtype.newbyteorder("=")
            assert np.array_equal(saved.arrays[name], array)
            assert saved.arrays[name].shape == array.shape
            assert saved.arrays[name].flags.writeable
        assert before <= saved.saved_at_unix_s <= time.time()


def test_folder_and_files_are_for_their_owner_only(opened):
    folder = opened()
    put(folder, 1, good=True)
    put(folder, 2)
    assert folder.folder.stat().st_mode & 0o777 == 0o700
    assert {(folder.folder / name).stat().st_mode & 0o777 for name in NAMES} == {0o600}


def test_the_one_before_and_the_last_good_one_are_kept(opened):
    folder = opened()
    assert folder.load_good() is None
    for number in range(1, 6):
        assert put(folder, number, good=number == 2)
    assert [number_of(read_state(folder.folder / name)) for name in NAMES] == [5, 4, 2]
    assert number_of(folder.load()) == 5
    assert number_of(folder.load_good()) == 2
    assert files(folder.folder) == set(NAMES)


def test_a_rollback_goes_on_after_the_state_that_was_newest(opened):
    folder = opened()
    put(folder, 1, good=True)
    put(folder, 2)
    good = folder.load_good()
    assert folder.save(good.manifest, good.arrays, good=False)
    folder.close()
    assert number_of(opened().load()) == 1
    assert [read_state(folder.folder / name).sequence for name in NAMES] == [3, 2, 1]


def test_the_newest_is_told_by_its_number_whatever_the_clock_does(opened, monkeypatch):
    folder = opened()
    for number, clock in [(1, 4e9), (2, 0.0), (3, 2e9), (4, -5.0)]:
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        put(folder, number)
    folder.close()
    for name in NAMES[:2]:
        os.utime(folder.folder / name, (0, 5_000_000_000 * (name == "state.previous")))
    assert number_of(opened().load()) == 4


def test_the_newer_one_is_used_under_either_name(opened):
    folder = opened()
    put(folder, 1)
    put(folder, 2)
    folder.close()
    learned, previous = (folder.folder / name for name in NAMES[:2])
    old = previous.read_bytes()
    previous.write_bytes(learned.read_bytes())
    learned.write_bytes(old)
    assert number_of(opened().load()) == 2


def test_a_folder_that_was_not_loaded_is_looked_at_before_it_is_saved_to(opened, warnings):
    folder = opened("barn")
    put(folder, 1)
    folder.close()
    folder = opened()
    assert put(folder, 2)
    assert len(warnings()) == 1
    assert files(folder.folder) == {"state.learned", "state.other-1"}
    folder.close()
    folder = opened()
    put(folder, 3)
    assert [read_state(folder.folder / name).sequence for name in NAMES[:2]] == [2, 1]


# Kills.


@pytest.mark.slow
def test_killed_at_any_moment_the_newest_state_or_the_one_before_is_there(
    tmp_path, opened, warnings
):
    chance = random.Random(7)
    saved = good = -1
    for _ in range(max(KILLS, 30)):
        program = [sys.executable, "-c", SAVER, str(tmp_path / "state")]
        with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout.readline() == "begun\n"
                time.sleep(chance.random() * 0.05)
            finally:
                process.kill()
            rest = process.stdout.read().split("\n")[:-1]
        assert process.returncode == -signal.SIGKILL
        saved = max([saved, *map(int, rest)])
        folder = opened()
        newest = folder.load()
        number = number_of(newest) if newest else -1
        assert saved <= number <= saved + 1
        if newest:
            assert newest.manifest["values"] == [["car", number]] * 200
            assert (newest.arrays["weights"] == number).all()
            good = max(good, saved - saved % 3)
            kept = number_of(folder.load_good())
            assert kept % 3 == 0
            assert good <= kept <= number
        assert files(folder.folder) <= set(NAMES)
        folder.close()
        saved = number
    assert saved > max(KILLS, 30)
    assert warnings() == []


@pytest.mark.slow
def test_killed_at_each_step_of_a_save_a_state_is_there(tmp_path, opened, warnings):
    folder, steps, code = tmp_path / "state", 0, 9
    seen = set()
    while code == 9:
        first = opened()
        put(first, 1, good=True)
        put(first, 2)
        first.close()
        program = [sys.executable, "-c", KILLED_AT, str(folder), str(steps)]
        code = subprocess.run(program, cwd=ROOT, timeout=60, check=False).returncode
        after = opened()
        newest, good = number_of(after.load()), number_of(after.load_good())
        seen.add((newest, good))
        assert files(folder) <= set(NAMES)
        after.close()
        steps += 1
    assert code == 0
    assert steps >= 8
    assert seen == {(2, 1), (3, 1), (3, 3)}
    assert warnings() == []


def test_what_a_kill_left_is_removed_and_other_files_stay(opened):
    folder = opened()
    put(folder, 1)
    folder.close()
    for name in (".state.new.k3j_2", "state.new", "state.new.good", "..state.x", "ring.bin"):
        (folder.folder / name).write_bytes(b"x")
    opened()
    assert files(folder.folder) == {"state.learned", "..state.x", "ring.bin"}


def test_a_state_is_on_the_disk_before_it_has_its_name(opened, monkeypatch):
    folder = opened()
    put(folder, 1)
    steps = []
    sync, replace = os.fsync, os.replace

    def note_sync(file: int) -> None:
        steps.append(Path(os.readlink(f"/proc/self/fd/{file}")).name.split(".new.")[0])
        sync(file)

    def note_replace(old: Any, new: Any, **kwargs: Any) -> None:
        steps.append(f"-> {Path(new).name}")
        replace(old, new, **kwargs)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    put(folder, 2, good=True)
    names = ["-> state.new", "-> state.previous", "-> state.learned", "-> state.good"]
    assert steps == [".state", *names, "state"]


# Damage.


def test_a_torn_file_is_put_aside_and_the_one_before_is_used(opened, warnings):
    folder = opened()
    put(folder, 1, good=True)
    put(folder, 2)
    folder.close()
    learned = folder.folder / "state.learned"
    whole = learned.read_bytes()
    cuts = [whole[: len(whole) * i // 20] for i in range(20)]
    chance = random.Random(3)
    for _ in range(60):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        cuts.append(bytes(flipped))
    used = 0
    for torn in cuts:
        learned.write_bytes(torn)
        folder = opened()
        newest = number_of(folder.load())
        said = warnings()
        if newest == 2:  # a bit of the ZIP's directory that means nothing
            assert said == []
            used += 1
        else:
            assert newest == 1
            assert len(said) == 1
            assert f"{learned} is damaged and is kept as state.damaged-" in said[0]
            assert said[0].endswith("; usable: state.previous, state.good")
        assert number_of(folder.load_good()) == 1
        folder.close()
    assert used < 20
    aside = sorted(folder.folder.glob("state.damaged-*"))
    assert len(aside) == 3
    assert {path.read_bytes() for path in aside} <= set(cuts)


def test_put_aside_are_the_last_three(opened):
    folder = opened()
    for number in range(12):
        (folder.folder / "state.learned").write_bytes(b"%d" % number)
        assert folder.load() is None
    aside = {path.name: path.read_bytes() for path in folder.folder.glob("state.damaged-*")}
    assert aside == {f"state.damaged-{n + 1}": b"%d" % n for n in (9, 10, 11)}


def test_with_all_damaged_it_starts_anew_and_nothing_is_thrown_away(opened, warnings):
    folder = opened()
    put(folder, 1, good=True)
    put(folder, 2)
    folder.close()
    for name in NAMES:
        (folder.folder / name).write_bytes(b"" if name == "state.good" else b"noise")
    folder = opened()
    assert folder.load() is None
    assert folder.load_good() is None
    said = warnings()
    assert len(said) == 1
    assert said[0].endswith("; usable: none")
    assert files(folder.folder) == {f"state.damaged-{n}" for n in (1, 2, 3)}
    assert put(folder, 3)
    assert number_of(folder.load()) == 3


def test_a_damaged_good_one_is_put_aside_at_the_rollback(opened, warnings):
    folder = opened()
    put(folder, 1, good=True)
    put(folder, 2)
    (folder.folder / "state.good").write_bytes(b"noise")
    assert folder.load_good() is None
    assert len(warnings()) == 1
    assert number_of(folder.load()) == 2


def test_states_of_another_source_are_put_aside_bounded_and_said(opened, warnings):
    for number, identity in enumerate("abcdefgh"):
        folder = opened(identity)
        assert folder.load() is None
        assert folder.load_good() is None
        said = warnings()
        assert len(said) == (1 if number else 0)
        assert all("belongs to another model, task or source" in text for text in said)
        put(folder, number, good=True)
        folder.close()
    kept = folder.folder.glob("state.other-*")
    assert len(list(kept)) == 3


@pytest.mark.parametrize("change", [{"format_version": 2}, {"kind": "reuse-cache"}])
def test_another_version_is_put_aside(opened, warnings, change):
    folder = opened()
    put(folder, 1)
    rewrite(folder.folder / "state.learned", lambda manifest, _: manifest.update(change))
    assert folder.load() is None
    (said,) = warnings()
    assert "of the version that is known" in said
    assert files(folder.folder) == {"state.other-1"}


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, bytes]], Any]) -> None:
    """Change an archive so that its checksums are right all the same."""
    manifest, members = read_archive(path)
    change(manifest, members)
    write_archive(path, manifest, members)


def set_array(key: str, value: Any) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    return lambda manifest, _: manifest["arrays"]["x"].update({key: value})


def set_content(text: bytes) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    return lambda _, members: members.update({"content.json": text})


def replace_array(array: np.ndarray) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    def replace(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
        members["x.npy"] = array_bytes(array)
        manifest["arrays"]["x"] = {"dtype": array.dtype.name, "shape": list(array.shape)}

    return replace


def hide_object(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    members["x.npy"] = array_bytes(np.zeros(5, np.int64)).replace(b"'<i8'", b"'|O' ")
    manifest["arrays"]["x"]["dtype"] = "object"


HOSTILE: dict[str, Callable[[dict[str, Any], dict[str, bytes]], Any]] = {
    "huge shape": set_array("shape", [10**12]),
    "shape that overflows": set_array("shape", [2**32, 2**32]),
    "shape of nothing": set_array("shape", [0, 2**26, 2**26, 2**26]),
    "negative shape": set_array("shape", [-5]),
    "shape of floats": set_array("shape", [5.0]),
    "shape of truths": set_array("shape", [True] * 5),
    "no shape": set_array("shape", None),
    "many dimensions": set_array("shape", [1] * 40 + [5]),
    "object": hide_object,
    "huge shape of nothing": replace_array(np.zeros((0, 10**12), np.uint8)),
    "dtype that is not ours": replace_array(np.zeros(5, np.float16)),
    "strange dtype": set_array("dtype", "V8"),
    "dtype that is a program": set_array("dtype", {"names": ["a"], "formats": ["O"]}),
    "wrong dtype": set_array("dtype", "float64"),
    "more in a spec": set_array("order", "F"),
    "content with NaN": set_content(b'{"number": NaN}'),
    "content with infinity": set_content(b'{"number": 1e999}'),
    "content of another shape": set_content(b"[1]"),
    "content that is deep": set_content(b"[" * 100_000),
    "content of many digits": set_content(b'{"number": ' + b"1" * 5000 + b"}"),
    "content of no JSON": set_content(b"\xff\xfe\x00"),
    "no content": lambda _, members: members.pop("content.json"),
    "no array": lambda _, members: members.pop("x.npy"),
    "an array too many": lambda _, members: members.update({"y.npy": members["x.npy"]}),
    "arrays in a list": lambda manifest, _: manifest.update(arrays=["x"]),
    "no arrays": lambda manifest, _: manifest.pop("arrays"),
    "identity of a number": lambda manifest, _: manifest.update(identity=5),
    "sequence below zero": lambda manifest, _: manifest.update(sequence=-1),
    "sequence of fractions": lambda manifest, _: manifest.update(sequence=1.5),
    "sequence of text": lambda manifest, _: manifest.update(sequence="1"),
    "time beyond": lambda manifest, _: manifest.update(saved_at_unix_s=10**400),
    "time of text": lambda manifest, _: manifest.update(saved_at_unix_s="noon"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_state_is_refused_in_one_sentence(opened, warnings, what):
    folder = opened()
    put(folder, 1)
    put(folder, 2)
    learned = folder.folder / "state.learned"
    rewrite(learned, HOSTILE[what])
    with pytest.raises(BundleError, match="is damaged"):
        read_state(learned)
    assert number_of(read_state(folder.folder)) == 1
    assert number_of(folder.load()) == 1
    assert len(warnings()) == 1
    assert put(folder, 3)
    assert number_of(folder.load()) == 3


JSON = st.recursive(
    st.none() | st.booleans() | st.sampled_from([0, 1, 5, -1, 1 << 63, 10**400, 1e308, "int64"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["x", "dtype", "shape", "y"]), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = ("kind", "format_version", "identity", "sequence", "saved_at_unix_s", "arrays")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@settings(max_examples=150)
@given(changes=st.dictionaries(st.sampled_from(KEYS), JSON, min_size=1, max_size=3), content=JSON)
def test_whatever_the_manifest_says_it_is_read_or_refused(scratch, changes, content):
    manifest = {"kind": "learned-state", "format_version": 1, "identity": "yard", "sequence": 1}
    manifest |= {"saved_at_unix_s": 0, "arrays": {"x": {"dtype": "int64", "shape": [5]}}}
    members = {"x.npy": array_bytes(np.zeros(5, np.int64))}
    members["content.json"] = json.dumps(content).encode()
    write_archive(scratch / "any", {**manifest, **changes}, members)
    with suppress(BundleError):
        assert read_state(scratch / "any").manifest == content


def test_a_link_in_place_of_a_state_is_not_followed(opened, tmp_path, warnings):
    folder = opened()
    put(folder, 1)
    put(folder, 2)
    outside = tmp_path / "outside"
    learned = folder.folder / "state.learned"
    learned.replace(outside)
    content = outside.read_bytes()
    learned.symlink_to(outside)
    assert number_of(folder.load()) == 1
    assert len(warnings()) == 1

    for name in (*NAMES, "state.new", "state.new.good"):
        (folder.folder / name).unlink(missing_ok=True)
        (folder.folder / name).symlink_to(outside)
    assert put(folder, 3, good=True)
    assert number_of(folder.load()) == 3
    assert not (folder.folder / "state.learned").is_symlink()
    assert outside.read_bytes() == content


def test_pipes_and_folders_in_place_of_a_state_are_put_aside(opened, warnings):
    folder = opened()
    for make in (os.mkfifo, os.mkdir):
        make(folder.folder / "state.learned")
        with pytest.raises(BundleError):
            read_state(folder.folder)
        assert folder.load() is None
        assert len(warnings()) == 1
    assert put(folder, 1)
    assert number_of(folder.load()) == 1


# Two holders.


def test_a_folder_that_another_process_has_is_refused_until_that_is_killed(tmp_path, opened):
    program = [sys.executable, "-c", HOLDER, str(tmp_path / "state")]
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "begun\n"
            with pytest.raises(ConfigError, match=f"{tmp_path}/state is in use"):
                opened()
        finally:
            process.kill()
    assert put(opened(), 1)


def test_of_threads_that_want_one_folder_one_gets_it(tmp_path, opened):
    got, refused = [], []
    start = threading.Barrier(8)

    def take() -> None:
        start.wait()
        try:
            got.append(opened())
        except ConfigError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 7)
    assert put(got[0], 1)
    got[0].close()
    assert number_of(opened().load()) == 1


def test_a_program_that_the_process_starts_does_not_keep_the_folder(opened):
    folder = opened()
    with subprocess.Popen(["sleep", "600"], close_fds=False) as child:
        try:
            folder.close()
            opened()
        finally:
            child.kill()


def test_saves_and_a_close_from_many_threads_leave_the_newest_whole(opened, warnings):
    folder = opened()
    done: list[tuple[int, bool]] = []

    def save(first: int) -> None:
        for number in range(first, first + 20):
            done.append((number, put(folder, number, good=True)))

    threads = [threading.Thread(target=save, args=(i * 100,)) for i in range(4)]
    for thread in threads:
        thread.start()
    while len(done) < 12:
        time.sleep(0.001)
    folder.close()
    other = opened()  # free at once: a save that is under way was waited for
    there = number_of(other.load())
    for thread in threads:
        thread.join()
    saved = [number for number, kept in done if kept]
    assert 0 < len(saved) < 80
    assert there in saved
    assert number_of(other.load()) == there
    assert warnings() == []
    assert files(folder.folder) <= set(NAMES)


def test_a_closed_folder_saves_and_loads_nothing_and_closes_twice(opened, warnings):
    folder = opened()
    put(folder, 1, good=True)
    folder.close()
    folder.close()
    assert not put(folder, 2)
    assert folder.load() is None
    assert folder.load_good() is None
    assert number_of(read_state(folder.folder)) == 1
    assert warnings() == []


def test_a_folder_whose_lock_another_process_has_meanwhile_is_left_alone(
    tmp_path, opened, warnings
):
    folder = opened()
    put(folder, 1)
    folder.folder.rename(tmp_path / "moved")
    other = opened()
    put(other, 5)
    assert not put(folder, 2)
    assert "another process uses the folder" in warnings()[0]
    assert number_of(read_state(folder.folder)) == 5
    assert number_of(read_state(tmp_path / "moved")) == 1
    other.close()
    assert put(folder, 6)
    assert read_state(folder.folder).sequence == 2


# A disk that fails.

SEAMS = ("fsync", "replace", "link", "chmod")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_whichever_step_fails_what_is_there_stays_and_saving_goes_on(
    opened, warnings, monkeypatch, number
):
    folder = opened()
    steps, saved, value = 0, False, 10
    while not saved:
        put(folder, value, good=True)
        put(folder, value + 1)
        left = steps
        warnings()

        def failing(call: Callable[..., Any]) -> Callable[..., Any]:
            def step(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise OSError(number, os.strerror(number))
                return call(*args, **kwargs)

            return step

        with monkeypatch.context() as broken:
            for name in SEAMS:
                broken.setattr(os, name, failing(getattr(os, name)))
            saved = put(folder, value + 2, good=True)
            if not saved:
                assert not put(folder, value + 3)
                (said,) = warnings()
                assert os.strerror(number).lower() in said
        assert number_of(folder.load()) in (value + 1, value + 2)
        assert number_of(folder.load_good()) in (value, value + 2)
        assert files(folder.folder) <= set(NAMES)
        assert put(folder, value + 4)
        assert number_of(folder.load()) == value + 4
        assert warnings() == []
        steps, value = steps + 1, value + 10
    assert steps > 6


def test_a_cause_is_said_once_and_again_after_it_went(opened, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "infi_edge")
    folder = opened()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for _ in range(2):
        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", full)
            assert [put(folder, 1) for _ in range(5)] == [False] * 5
        assert put(folder, 2)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 4
    assert said[0] == said[2]
    assert str(folder.folder) in said[0]
    assert "no space left on device" in said[0]
    assert said[1] == said[3]
    assert "saved again" in said[1]


def test_at_a_limit_of_the_file_size_the_smaller_ones_are_still_saved(tmp_path, opened):
    program = [sys.executable, "-c", LIMITED, str(tmp_path / "state")]
    ran = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ran.stdout.split() == ["True", "False", "True"], ran.stderr
    assert ran.stderr.count("file too large") == 1
    folder = opened()
    assert folder.load().manifest == {"number": 3}
    assert folder.load_good().manifest == {"number": 1}
    assert files(folder.folder) == set(NAMES)


def test_a_folder_that_went_and_comes_back_is_used_again(tmp_path, opened, warnings):
    folder = opened()
    put(folder, 1, good=True)
    folder.folder.rename(tmp_path / "away")
    assert not put(folder, 2)
    assert not put(folder, 2)
    assert folder.load() is None
    assert len(warnings()) == 1
    assert not folder.folder.exists()
    (tmp_path / "away").rename(folder.folder)
    assert put(folder, 3)
    assert read_state(folder.folder).sequence == 2
    with pytest.raises(ConfigError):
        opened()


def test_a_folder_that_cannot_be_made_is_a_warning_until_it_can(tmp_path, opened, warnings):
    (tmp_path / "file").write_bytes(b"")
    folder = opened(folder=tmp_path / "file" / "state")
    assert folder.load() is None
    assert not put(folder, 1)
    (said,) = warnings()
    assert "not a directory" in said
    (tmp_path / "file").unlink()
    assert put(folder, 1)
    assert folder.folder.stat().st_mode & 0o777 == 0o700


def test_without_hard_links_the_good_one_is_a_copy(opened, monkeypatch):
    def no_link(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    folder = opened()
    assert put(folder, 1, good=True)
    assert put(folder, 2)
    assert number_of(folder.load_good()) == 1
    assert (folder.folder / "state.good").stat().st_mode & 0o777 == 0o600
    assert files(folder.folder) == set(NAMES)


# What cannot be saved, and reading without the lock.


@pytest.mark.parametrize(
    ("content", "arrays"),
    [
        ({"value": float("nan")}, {}),
        ({"value": [1.0, float("inf")]}, {}),
        ({"value": np.zeros(2)}, {}),
        ({"value": 10**5000}, {}),
        ([1], {}),
        ({}, {"x": np.zeros(2, object)}),
        ({}, {"x": np.zeros(2, np.float16)}),
        ({}, {"x": np.zeros(2, [("a", "<f4")])}),
        ({}, {"x": [[1], [1, 2]]}),
        ({}, {"../x": np.zeros(2)}),
        ({}, {".x": np.zeros(2)}),
        ({}, {"x" * 65: np.zeros(2)}),
        ({}, {"x": np.zeros([1] * 9)}),
        ({}, {f"x{i}": np.zeros(1) for i in range(63)}),
        ({}, {"x": np.zeros((64 << 20) + 1, np.uint8)}),
    ],
)
def test_what_could_not_be_read_again_is_not_saved(opened, warnings, content, arrays):
    folder = opened()
    put(folder, 1)
    assert not folder.save(content, arrays, good=True)
    assert not folder.save(content, arrays, good=True)
    assert len(warnings()) == 1
    assert number_of(folder.load()) == 1
    assert files(folder.folder) == {"state.learned"}
    assert put(folder, 2)


def test_a_state_is_read_while_it_is_in_use_and_nothing_is_changed(opened, tmp_path):
    folder = opened()
    put(folder, 1, good=True)
    put(folder, 2)
    (tmp_path / "link").symlink_to(folder.folder / "state.previous")
    assert number_of(read_state(folder.folder)) == 2
    assert number_of(read_state(tmp_path / "link")) == 1
    (folder.folder / "state.learned").write_bytes(b"noise")
    assert number_of(read_state(folder.folder)) == 1
    assert read_state(folder.folder).identity == "yard"
    assert files(folder.folder) == set(NAMES)


def test_a_reader_always_finds_a_state_while_one_is_saved(opened):
    folder = opened()
    put(folder, 0)
    stop = threading.Event()

    def save() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            put(folder, number)

    thread = threading.Thread(target=save)
    thread.start()
    try:
        numbers = [number_of(read_state(folder.folder)) for _ in range(300)]
    finally:
        stop.set()
        thread.join()
    assert len(set(numbers)) > 3


@pytest.mark.parametrize("path", ["nothing", ".", "\0", "loop", "x" * 300])
def test_where_no_state_is_one_sentence_says_so(tmp_path, path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(BundleError) as refused:
        read_state(tmp_path / path)
    assert "\n" not in str(refused.value)
