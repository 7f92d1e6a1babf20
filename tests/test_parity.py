"""benchmarks/parity.py: one machine against itself, and what it must not let pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.parity import Arrays, main, read_file, write_file
from converters.recordings import load_training_data
from infi_edge.capture.recordings import open_recording
from infi_edge.filter import load_filter
from infi_edge.replay import make_truth
from infi_edge.tasks import Presence, same_exact
from tests.conftest import ROOT

DEMO = str(ROOT / "examples" / "demo.infi")
TENSOR, IDS = "tensor/image/rgb/frames", "tensor/text/words"
DECISIONS = "decision/demo/made-up/table"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Arrays]:
    """What two runs have written on this machine."""
    found = []
    for name in ("a.npz", "b.npz"):
        path = tmp_path_factory.mktemp("parity") / name
        assert main(["write", str(path), "--bundle", DEMO]) == 0
        found.append(read_file(path))
        path.unlink()  # a hundred megabytes
    return found


def test_one_machine_gives_the_same_bits_twice(written: list[Arrays]) -> None:
    first, second = written
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert array.dtype == second[name].dtype, name
        assert array.tobytes() == second[name].tobytes(), name


def test_every_modality_and_decision_is_in_the_file(written: list[Arrays]) -> None:
    items = {"/".join(name.split("/")[:2]) for name in written[0] if not name.startswith("input")}
    for modality in ("image", "video", "audio", "text", "motion", "features"):
        assert {f"tensor/{modality}", f"features/{modality}"} <= items
    assert {"embedding/demo", "decision/demo"} <= items
    actions = written[0]["decision/demo/made-up/tight"]
    assert 0.1 < (actions == 0).mean() < 0.9, "decisions that are all alike compare nothing"


def compared(a: Arrays, b: Arrays, folder: Path) -> int:
    """The exit code of `compare` for the items that the tests change."""
    for name, arrays in (("a.npz", a), ("b.npz", b)):
        kept = {key: arrays[key] for key in ("about", TENSOR, IDS, DECISIONS) if key in arrays}
        np.savez(folder / name, **kept)
    return main(["compare", str(folder / "a.npz"), str(folder / "b.npz")])


def changed(arrays: Arrays, name: str, by: int, count: int = 1) -> Arrays:
    """A copy whose first `count` numbers of an item lie farther up (or down, from the top)."""
    array = arrays[name].copy()
    flat = array.reshape(-1)[:count]
    flat[...] = np.where(flat < 128, flat + by, flat - by)
    return {**arrays, name: array}


def lines(text: str) -> dict[str, str]:
    """The lines of a table by the item they are about."""
    return {line.split()[0]: line for line in text.splitlines() if line.strip()}


def test_one_level_passes_and_two_do_not(
    written: list[Arrays], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = written[0]
    assert compared(a, a, tmp_path) == 0
    assert compared(a, changed(a, TENSOR, 1), tmp_path) == 0
    capsys.readouterr()
    assert compared(a, changed(a, TENSOR, 2), tmp_path) == 1
    table = lines(capsys.readouterr().out)
    assert table[TENSOR].split()[2:4] == ["1", "2"]
    assert table[TENSOR].endswith("TOO FAR")
    assert not table[IDS].endswith("TOO FAR")


def test_ids_must_be_equal(written: list[Arrays], tmp_path: Path) -> None:
    assert compared(written[0], changed(written[0], IDS, 1), tmp_path) == 1


def test_a_hundredth_of_the_decisions_may_differ_under_any_knobs(
    written: list[Arrays], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = written[0]
    count = a[DECISIONS].shape[1]
    assert compared(a, changed(a, DECISIONS, 1, count // 100), tmp_path) == 0
    capsys.readouterr()
    # Of all rows together these would be less than a hundredth.
    assert compared(a, changed(a, DECISIONS, 1, count // 100 + 1), tmp_path) == 1
    assert lines(capsys.readouterr().out)[DECISIONS].endswith("TOO FAR")


def test_inputs_of_an_earlier_file_are_taken(written: list[Arrays], tmp_path: Path) -> None:
    name = "input/grey/0009"
    given = {k: v for k, v in written[0].items() if k.startswith("input/") and "demo" not in k}
    given[name] = 255 - given[name]
    write_file(tmp_path / "c.npz", given)
    taken = read_file(tmp_path / "c.npz")
    assert not [key for key in taken if key.startswith("input/")], "kept twice"
    grey = "tensor/image/grey/grey"
    assert (taken[grey][9] != written[0][grey][9]).mean() > 0.9
    assert (np.delete(taken[grey], 9, 0) == np.delete(written[0][grey], 9, 0)).all()


def test_files_that_do_not_belong_together_are_refused(
    written: list[Arrays], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = written[0]
    without = {k: v for k, v in a.items() if k != IDS}
    assert compared(a, without, tmp_path) == 2
    assert f"only one file has {IDS}" in capsys.readouterr().err
    assert compared(a, {**a, TENSOR: a[TENSOR][1:]}, tmp_path) == 2
    assert "write both with the same" in capsys.readouterr().err
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04 no archive")
    assert main(["compare", str(tmp_path / "a.npz"), str(tmp_path / "b.npz")]) == 2
    assert f"{tmp_path / 'b.npz'} is no file of" in capsys.readouterr().err


def test_two_bundles_of_one_name_are_refused(
    written: list[Arrays], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["write", str(tmp_path / "d.npz"), "--bundle", DEMO, "--bundle", DEMO]) == 2
    assert "another bundle has that name" in capsys.readouterr().err


def test_training_reads_the_bits_that_the_device_reads(toy: Path) -> None:
    loaded = load_filter(DEMO)
    clip = open_recording(str(toy / "toy.avi"), spec=loaded.spec)
    truth = make_truth([False] * 60, np.arange(60.0), Presence(["a"], ["a"]), same_exact)
    trained_on = load_training_data(clip, truth, 30, 90, loaded.spec)
    for number, sample in enumerate(clip.samples(30, 90)):
        tensor = loaded.spec.tensor(sample.data)
        assert np.array_equal(tensor[0], trained_on.tensors[number])
        assert np.array_equal(loaded.spec.features(tensor), trained_on.features[number])
