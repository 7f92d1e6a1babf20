"""The numbers of examples/rademacher.py are right, and are those of docs/filterability.md."""

from __future__ import annotations

import importlib.util
import itertools
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.conftest import ROOT

EXAMPLE = ROOT / "examples" / "rademacher.py"
DOCUMENT = (ROOT / "docs" / "filterability.md").read_text(encoding="utf-8")
LINE = re.compile(r"([CSRP]\d) .+? +(\d+) +(\S+) ± (\S+) +(\S+) ± (\S+) +([<>]) +([<>~])")
WITHOUT_MATPLOTLIB = (
    "import runpy, sys; sys.modules['matplotlib'] = None; sys.argv = sys.argv[1:];"
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


def load() -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("rademacher", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = load()


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the example in a folder, as where matplotlib is missing."""
    command = [sys.executable, "-c", WITHOUT_MATPLOTLIB, str(EXAMPLE), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, ...]]:
    """The rows of the default run: id, n, model, its error, filter, its error, says, found."""
    done = run(tmp_path_factory.mktemp("rademacher"))
    assert done.returncode == 0, done.stderr
    rows = [LINE.fullmatch(line) for line in done.stdout.splitlines()[1:]]
    assert all(rows)
    return [row.groups() for row in rows if row]


def documented() -> dict[str, tuple[str, str]]:
    """The document's table of numbers: statement -> order, ratio."""
    rows = re.findall(r"^\| ([CSRP]\d) \|.*\| ([<>]) \| ([^|]+) \|$", DOCUMENT, re.MULTILINE)
    return {name: (order, ratio) for name, order, ratio in rows}


def every_sign(n: int) -> np.ndarray:
    """All 2^n sign vectors, so that a mean over them is exact."""
    return np.array(list(itertools.product([-1.0, 1.0], repeat=n)))


def test_every_order_the_document_states_is_found(table: list[tuple[str, ...]]) -> None:
    stated = documented()
    assert {row[0] for row in table} == set(stated)
    assert {int(row[1]) for row in table} == {16, 64, 256}
    for name, n, *_, says, found in table:
        assert (says, found) == (stated[name][0],) * 2, (name, n)


def test_the_documents_ratios_are_the_programs(table: list[tuple[str, ...]]) -> None:
    for name, n, model, model_error, filter_, filter_error, *_ in table:
        if n != "256":
            continue
        _, ratio = documented()[name]
        if ratio == "infinite":
            assert float(model) == 0 < float(filter_)
            continue
        # Wide enough for another NumPy's random numbers, not for another family.
        spread = 4 * (float(filter_error) + float(ratio) * float(model_error)) + 0.01 * float(model)
        assert abs(float(filter_) - float(ratio) * float(model)) < spread, name


@pytest.mark.parametrize("name", sorted(documented()))
def test_every_number_is_referred_to_by_a_statement(name: str) -> None:
    prose = DOCUMENT.partition("## The numbers")[0]
    assert re.search(rf"\b{name}\b", prose)


def test_each_tested_family_of_redundancy_and_reuse_has_numbers() -> None:
    assert {name[0] for name in documented()} == set("CSRP")


def test_linear_scores_reach_the_closed_form() -> None:
    rng = np.random.default_rng(1)
    x, signs = rng.normal(size=(50, 2)), rng.choice([-1.0, 1.0], (500, 50))
    bound = example.LENGTHS[-1]
    found = example.finite(bound * example.DIRECTIONS @ x.T, signs)
    closed = bound * np.linalg.norm(signs @ x, axis=1)
    # The nearest of 180 directions is within one degree of the best.
    assert np.all(found <= closed * (1 + 1e-9))
    assert np.all(found >= closed * np.cos(np.radians(1)) * (1 - 1e-9))


@pytest.mark.parametrize("n", [1, 2, 7, 10])
def test_rays_reach_the_exact_maximum_of_a_random_walk(n: int) -> None:
    signs = every_sign(n)
    ends = signs.sum(axis=1)
    exact = np.abs(ends).mean() - 0.5 + 0.5 * (ends == 0).mean()
    assert example.monotone(signs[:, :, None] * np.array([0, 1])).mean() == pytest.approx(exact)
    assert example.walk(signs, np.arange(n)).max(axis=1).mean() == pytest.approx(exact)


def test_rays_and_intervals_near_their_limit() -> None:
    signs = np.random.default_rng(2).choice([-1.0, 1.0], (3000, 1000))[:, :, None]
    rays = example.monotone(signs * np.array([0, 1])).mean()
    intervals = example.monotone(signs * np.array([0, 1, 0])).mean()
    assert intervals / rays == pytest.approx(np.pi / 2, rel=0.05)


def test_monotone_labels_agree_with_trying_all() -> None:
    rewards = np.random.default_rng(3).normal(size=(20, 5, 3))
    labels = list(itertools.combinations_with_replacement(range(3), 5))
    tried = [rewards[:, np.arange(5), label].sum(axis=1) for label in labels]
    np.testing.assert_allclose(example.monotone(rewards), np.max(tried, axis=0))


def test_half_planes_slabs_and_doubt_agree_with_trying_all() -> None:
    x = np.random.default_rng(4).uniform(-0.7, 0.7, (7, 2))
    signs = every_sign(7)
    half, slab = {(False,) * 7}, {(False,) * 7}
    for projected in (x @ direction for direction in example.DIRECTIONS):
        edges = [-2.0, *(np.sort(projected) + 1e-9)]
        half |= {tuple(projected > low) for low in edges}
        slab |= {
            tuple((projected > low) & (projected <= high))
            for low, high in itertools.combinations(edges, 2)
        }
    by_plane = example.planes(x, signs)
    np.testing.assert_allclose(by_plane[0], example.finite(np.array(list(half)), signs))
    np.testing.assert_allclose(by_plane[1], example.finite(np.array(list(slab)), signs))
    assert half < slab, "C1 rests on half-planes being slabs on a sample"

    # Confidence below T, for many lengths of w up to the bound.
    lengths = np.linspace(1e-6, example.LENGTHS[-1], 4000)[:, None]
    for j, threshold in enumerate(example.THRESHOLDS[[0, 20, 50]]):
        doubt = set()
        for projected in (x @ direction for direction in example.DIRECTIONS[:90]):
            p = 1 / (1 + np.exp(-lengths * projected))
            doubt |= set(map(tuple, np.maximum(p, 1 - p) < threshold))
        found = example.doubtful(x, signs)[[0, 20, 50][j]]
        np.testing.assert_allclose(found, example.finite(np.array(list(doubt)), signs))


def test_gaussian_one_hot_of_two_classes_is_the_filters_own() -> None:
    rng = np.random.default_rng(5)
    two = example.monotone(rng.normal(size=(20000, 12, 2))) / np.sqrt(2)
    one = example.monotone(rng.normal(size=(20000, 12, 1)) * np.array([0, 1]))
    assert abs(two.mean() - one.mean()) < 4 * np.hypot(example.error(two), example.error(one))


@pytest.mark.parametrize("seed", range(12))
def test_propositions_1b_2_and_4_hold_exactly_on_random_families(seed: int) -> None:
    rng = np.random.default_rng(seed)
    signs, per_class = every_sign(4), every_sign(12).reshape(-1, 4, 3)

    def one_hot(labels: np.ndarray) -> float:
        chosen = np.eye(3)[labels].reshape(len(labels), -1)
        return float(example.finite(chosen, per_class.reshape(len(per_class), -1)).mean())

    def plain(functions: np.ndarray) -> float:
        return float(example.finite(functions, signs).mean())

    labels, seconds = rng.integers(0, 3, (2, rng.integers(2, 20), 4))
    singles = [plain(labels == k) for k in range(3)]
    wanted = plain(np.isin(labels, rng.choice(3, 2, replace=False)))
    assert max(wanted, *singles) <= one_hot(labels) + 1e-9
    assert one_hot(labels) <= sum(singles) + 1e-9
    assert wanted <= sum(singles) + 1e-9

    rule = rng.random((3, 3)) < 0.5  # which answers are not the same: any rule will do
    assert plain(rule[labels, seconds]) <= one_hot(labels) + one_hot(seconds) + 1e-9
    within_1 = plain(abs(labels - seconds) > 1)
    assert within_1 <= plain(labels) + plain(seconds) + 1e-9
    assert plain(labels > 0) <= plain(labels) + 1e-9

    scores = rng.normal(size=(8, 4))
    levels = np.concatenate([scores > edge for edge in (-9, 9, *(scores.ravel() - 1e-9))])
    assert plain(abs(scores) < 0.7) <= 2 * plain(levels) + 1e-9


def test_a_class_that_fits_every_labelling_has_complexity_one_half() -> None:
    signs = every_sign(6)
    assert example.finite(signs > 0, signs).mean() / 6 == pytest.approx(0.5)


def test_the_same_seed_prints_the_same_numbers(tmp_path: Path) -> None:
    small = ("--sizes", "16", "--draws", "50")
    first, again = run(tmp_path, *small), run(tmp_path, *small)
    assert first.stdout == again.stdout
    assert first.stdout != run(tmp_path, *small, "--seed", "1").stdout


def test_without_matplotlib_the_table_comes_and_one_sentence(tmp_path: Path) -> None:
    done = run(tmp_path, "--sizes", "8", "--draws", "20")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1 + len(documented())
    assert done.stderr.count("\n") == 1
    assert "matplotlib" in done.stderr
    assert not list(tmp_path.iterdir())


def test_too_small_a_sample_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, "--sizes", "2")
    assert done.returncode == 2
    assert "4 inputs or more" in done.stderr


def test_the_figure_is_saved_or_the_reason_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib").use("agg")
    small = ["rademacher.py", "--sizes", "16", "--draws", "20", "-o"]
    figure = tmp_path / "r.png"
    monkeypatch.setattr(sys, "argv", [*small, str(figure)])
    example.main()
    assert figure.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(sys, "argv", [*small, str(tmp_path / "missing" / "r.png")])
    with pytest.raises(SystemExit, match="cannot be written"):
        example.main()
