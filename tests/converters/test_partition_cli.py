"""`infi-convert split`, as a user runs it."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest

from converters import partition_cli
from converters.flatgraph import read_graph
from converters.partition import Cut, cuts, find_cuts, split
from converters.partition_cli import write_parts
from converters.partition_cost import Bench, Cost, Link, choose, measure
from infi_edge.errors import ConfigError, ExecutorError
from infi_edge.interpreter import Network
from tests.conftest import MODELS, ROOT, Command, need
from tests.converters.flat_models import CHAIN, adding, opened, packed

FACE = MODELS / "face" / "face_detection_front.tflite"


@pytest.fixture(autouse=True, scope="module")
def no_process_left() -> Iterator[None]:
    """Python keeps a process beside those of a pool; other tests count this one's children."""
    yield
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(need(FACE).read_bytes())
    return path


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    path = tmp_path / "chain.tflite"
    path.write_bytes(CHAIN)
    return path


def report_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def sentence_of(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if not line.startswith("measuring")]
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("infi-convert: ")
    return lines[0]


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_may_be_given_relative_to_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        write_parts(Path("parts"), b"head", b"tail")
        assert (tmp_path / "parts" / "tail.tflite").read_bytes() == b"tail"
        assert files_in(Path("parts")) == ["head.tflite", "tail.tflite"]


def test_auto_writes_the_quickest_cut_and_says_what_it_costs(
    command: Command, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "parts"
    found = cuts(model.read_bytes())
    report = report_of(command("infi-convert", "split", str(model), "-o", str(out), "--json"))
    assert files_in(out) == ["head.tflite", "tail.tflite"]
    assert [row["tensor"] for row in report["cuts"]] == [cut.tensor for cut in found]
    assert report["bandwidth_mbit"] == 10
    assert report["input"]["bytes"] == 128 * 128 * 3 * 4
    for row, cut in zip(report["cuts"], found, strict=True):
        assert row["bytes_as_is"] == 4 * row["bytes_int8"] == 4 * np.prod(cut.shape)
        assert 0 < row["bytes_compressed"] <= 1.01 * row["bytes_int8"] + 100
        assert row["head_ms"] > 0
        assert row["tail_ms"] > 0
        total = row["head_ms"] + row["bytes_int8"] * 8 / 10_000 + row["tail_ms"]
        assert row["total_ms"] == pytest.approx(total, abs=1e-3)
    chosen = report["chosen"]
    assert chosen["total_ms"] <= 1.01 * min(row["total_ms"] for row in report["cuts"]) + 1e-3
    head, tail = split(model.read_bytes(), str(chosen["number"]))
    assert (out / "head.tflite").read_bytes() == head
    assert (out / "tail.tflite").read_bytes() == tail
    assert report["written"] == [str(out / "head.tflite"), str(out / "tail.tflite")]


def test_a_tensor_is_named_and_an_earlier_pair_replaced(
    command: Command, chain: Path, tmp_path: Path
) -> None:
    out = tmp_path / "parts"
    for at, said, tensor in (("t2", "cut 1 at t2", "t2"), ("2", "cut 2 at t3", "t3")):
        done = command("infi-convert", "split", str(chain), "--at", at, "-o", str(out))
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
        assert len([line for line in done.stdout.splitlines() if "float32 1x4" in line]) == 2
        assert Network(out / "head.tflite").outputs[0].name == tensor
        assert files_in(out) == ["head.tflite", "tail.tflite"]


def test_list_shows_every_cut_and_writes_nothing(
    command: Command, chain: Path, tmp_path: Path
) -> None:
    before = files_in(tmp_path)
    done = command("infi-convert", "split", str(chain), "--list")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == [
        *("cut", "as", "is", "int8", "zlib", "head", "ms", "tail", "ms", "total", "ms", "tensor")
    ]
    assert [line.split()[0] for line in lines[1:3]] == ["1", "2"]
    assert lines[1].endswith("t2 float32 1x4")
    assert "random noise" in done.stdout
    assert "a partition does not pay in time" in done.stdout
    assert "measuring the cuts: 100 %" in done.stderr
    assert set(files_in(tmp_path)) - set(before) <= {"cache"}


def test_a_budget_takes_the_fewest_bytes_among_the_heads_that_fit(
    command: Command, model: Path
) -> None:
    arguments = ("infi-convert", "split", str(model), "--list", "--json", "--budget-ms")
    report = report_of(command(*arguments, "10000"))
    assert report["chosen"]["bytes_int8"] == min(r["bytes_int8"] for r in report["cuts"])
    assert "no head takes 1e-06 ms or less" in sentence_of(command(*arguments, "1e-6"))


def test_what_is_sent_decides_the_time_of_the_link(command: Command, chain: Path) -> None:
    arguments = ("infi-convert", "split", str(chain), "--list", "--json", "--bandwidth", "0.001")
    for sent, milliseconds in (("int8", 4 * 8.0), ("asis", 16 * 8.0)):
        report = report_of(command(*arguments, "--sent", sent))
        for row in report["cuts"]:
            link_ms = row["total_ms"] - row["head_ms"] - row["tail_ms"]
            assert link_ms == pytest.approx(milliseconds, abs=0.01)


def test_a_sample_is_measured_instead_of_noise(
    command: Command, model: Path, tmp_path: Path
) -> None:
    arguments = ("infi-convert", "split", str(model), "--list", "--json")
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((90, 120, 3), 128, np.uint8))
    flat = report_of(command(*arguments, "--sample", str(tmp_path / "grey.png")))
    noise = report_of(command(*arguments))
    assert flat["measured_on"].endswith("grey.png")
    assert noise["measured_on"] == "noise"
    first = [report["cuts"][0]["bytes_compressed"] for report in (flat, noise)]
    assert first[0] < first[1] / 2


def test_a_sample_is_an_image_or_numbers(
    command: Command, model: Path, chain: Path, tmp_path: Path
) -> None:
    def run(model: Path, sample: str) -> subprocess.CompletedProcess[str]:
        path = str(tmp_path / sample)
        return command("infi-convert", "split", str(model), "--list", "--json", "--sample", path)

    np.save(tmp_path / "four.npy", np.ones(4, np.float32))
    (tmp_path / "no.png").write_bytes(b"no image")
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY")
    assert report_of(run(chain, "four.npy"))["measured_on"].endswith("four.npy")
    assert "an input is (4,)" in sentence_of(run(model, "four.npy"))
    assert "no.png" in sentence_of(run(model, "no.png"))
    assert "absent.png cannot be read" in sentence_of(run(model, "absent.png"))
    assert "bad.npy cannot be read" in sentence_of(run(chain, "bad.npy"))


def test_what_does_not_make_sense_is_one_sentence(
    command: Command, chain: Path, tmp_path: Path
) -> None:
    def said(*arguments: str) -> str:
        return sentence_of(command("infi-convert", "split", *arguments))

    out = str(tmp_path / "parts")
    assert "either -o DIR" in said(str(chain))
    assert "either -o DIR" in said(str(chain), "--list", "-o", out)
    assert "--bandwidth nan" in said(str(chain), "--list", "--bandwidth", "nan")
    assert "--server-speedup inf" in said(str(chain), "--list", "--server-speedup", "inf")
    assert "near it are t3" in said(str(chain), "--at", "tt3", "-o", out)
    assert "cannot be read" in said(str(tmp_path / "absent.tflite"), "-o", out)
    (tmp_path / "text.tflite").write_text("hello, I am no model")
    assert "no TFLite file" in said(str(tmp_path / "text.tflite"), "-o", out)
    (tmp_path / "short.tflite").write_bytes(CHAIN[: len(CHAIN) // 2])
    assert "damaged" in said(str(tmp_path / "short.tflite"), "-o", out)
    (tmp_path / "skip.tflite").write_bytes(adding([((0, 1), 2), ((2, 0), 3)], [3]))
    assert "at no place" in said(str(tmp_path / "skip.tflite"), "-o", out)
    assert not Path(out).exists()


def test_a_folder_that_holds_other_things_is_refused(
    command: Command, chain: Path, tmp_path: Path
) -> None:
    def said(folder: Path, model: Path = chain) -> str:
        return sentence_of(command("infi-convert", "split", str(model), "-o", str(folder)))

    assert "other files in it (chain.tflite)" in said(tmp_path)
    assert "is a file" in said(chain / "parts") or "cannot be used" in said(chain / "parts")
    assert "cannot be used: not a directory" in said(chain)
    own = tmp_path / "own"
    own.mkdir()
    shutil.copy(chain, own / "head.tflite")
    assert "would be overwritten" in said(own, own / "head.tflite")
    assert (own / "head.tflite").read_bytes() == CHAIN


def test_what_a_power_cut_left_is_cleared_away(tmp_path: Path) -> None:
    out = tmp_path / "parts"
    write_parts(out, b"old head", b"old tail")
    (out / ".tail.tflite.x1y2_z3q").write_bytes(b"half")
    partition_cli._check_folder(out, tmp_path / "model.tflite")
    write_parts(out, b"head", b"tail")
    assert files_in(out) == ["head.tflite", "tail.tflite"]
    assert (out / "head.tflite").read_bytes() == b"head"


def test_a_full_disk_leaves_the_earlier_pair_or_nothing(
    command: Command, model: Path, tmp_path: Path
) -> None:
    """The limit on a file's size stops the second file, as a full disk would."""
    head, tail = split(model.read_bytes(), "2")
    assert len(head) < 32_768 < len(tail)
    program = (
        "import resource, sys; from converters.cli import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (32768, resource.RLIM_INFINITY)); "
        "sys.argv[0] = 'infi-convert'; main()"
    )

    def run(out: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, "split", str(model), "--at", "2", "-o", str(out)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    assert "write elsewhere" in sentence_of(run(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    write_parts(tmp_path / "old", b"head", b"tail")
    assert "write elsewhere" in sentence_of(run(tmp_path / "old"))
    assert files_in(tmp_path / "old") == ["head.tflite", "tail.tflite"]
    assert (tmp_path / "old" / "tail.tflite").read_bytes() == b"tail"


@pytest.mark.parametrize("step", [1, 2])
def test_a_disk_that_fails_at_the_last_step_leaves_neither_part(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, replace, done = tmp_path / "parts", os.replace, []
    write_parts(out, b"old head", b"old tail")

    def failing(source: Path, target: Path) -> None:
        done.append(target)
        if len(done) == step:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="Input/output"):
        write_parts(out, b"head", b"tail")
    assert files_in(out) == []


def test_never_is_a_part_there_beside_one_of_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a kill between any two steps would find the folder."""
    out, replace, seen = tmp_path / "parts", os.replace, []
    write_parts(out, b"old head", b"old tail")

    def watched(source: Path, target: Path) -> None:
        replace(source, target)
        seen.append({p.read_bytes() for p in out.glob("*.tflite")})

    monkeypatch.setattr(os, "replace", watched)
    write_parts(out, b"head", b"tail")
    assert seen == [{b"head"}, {b"head", b"tail"}]


def costs_of(*numbers: tuple[int, float, float]) -> list[Cost]:
    """Costs from (elements, head ms, tail ms) of float32 maps."""
    return [
        Cost(
            Cut(i, f"t{i}", i, i, (1, elements), np.dtype(np.float32), 0.0, 0),
            head_ms,
            tail_ms,
            None,
            True,
        )
        for i, (elements, head_ms, tail_ms) in enumerate(numbers, start=1)
    ]


def test_the_choice_follows_the_link_and_the_server() -> None:
    costs = costs_of((100_000, 1, 90), (10_000, 50, 41), (1_000, 85, 6))
    assert choose(costs, Link(1.0)).cut.number == 3
    assert choose(costs, Link(1000.0, server_speedup=10)).cut.number == 1
    assert choose(costs, Link(10.0, server_speedup=10)).cut.number == 2
    assert choose(costs, Link(1000.0, server_speedup=10), budget_ms=60).cut.number == 2
    assert choose(costs, Link(), budget_ms=60).cut.number == 2
    assert choose(costs, Link(), budget_ms=1).cut.number == 1
    with pytest.raises(ConfigError, match=r"no head takes 0.5 ms.*cut 1, takes 1 ms"):
        choose(costs, Link(), budget_ms=0.5)


def test_the_noise_of_a_measurement_does_not_choose() -> None:
    costs = costs_of((1000, 1.0, 9.0), (1000, 4.0, 5.99), (500, 5.0, 5.4))
    assert choose(costs, Link(1e6)).cut.number == 1
    assert choose(costs[::-1], Link(1e6)).cut.number == 1
    assert choose(costs_of((1000, 1.0, 9.0), (500, 5.0, 5.01)), Link(1e6)).cut.number == 2


def test_of_many_cuts_an_even_share_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 101
    content = adding([((i + 1 if i else 0, 1), i + 2) for i in range(count)], [count + 1])
    graph = read_graph(content)
    bench = Bench(graph, content)
    try:
        monkeypatch.setattr(bench, "most_cuts", lambda: 11)
        shown: list[tuple[int, int]] = []
        costs, refused = measure(bench, find_cuts(graph), lambda *step: shown.append(step))
    finally:
        bench.close()
    assert refused == []
    assert len(costs) == count - 1
    assert [cost.cut.number for cost in costs if cost.is_measured] == [
        *(1, 11, 21, 31, 41, 51, 60, 70, 80, 90, 100)
    ]
    assert shown[-1] == (11, 11)
    assert all(cost.compressed_bytes is None for cost in costs if not cost.is_measured)
    between = [costs[i].head_ms for i in (0, 5, 10)]
    assert min(between) <= between[1] <= max(between)


def test_a_cut_that_changes_the_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should a runtime compute parts otherwise than the whole: here, a tail of another model."""
    graph = read_graph(CHAIN)
    other = split(adding([((0, 1), 2), ((2, 2), 3), ((3, 3), 4)], [4]), "1")
    parts = {1: other, 2: split(CHAIN, "2")}
    monkeypatch.setattr(
        "converters.partition_cost.split_at", lambda graph, cut, content: parts[cut.number]
    )
    bench = Bench(graph, CHAIN)
    try:
        costs, refused = measure(bench, find_cuts(graph))
        with pytest.raises(ExecutorError, match="changes the model's answer"):
            bench.cost(find_cuts(graph)[0])
    finally:
        bench.close()
    assert [cost.cut.number for cost in costs] == [2]
    assert len(refused) == 1
    assert "cut 1 (t2) changes the model's answer" in refused[0]


def test_a_cut_that_gives_no_numbers_is_refused_by_name() -> None:
    model = opened(CHAIN)
    model.buffers[1].data = np.full(4, np.nan, np.float32).view(np.uint8)
    content = packed(model)
    graph = read_graph(content)
    bench = Bench(graph, content)
    try:
        with pytest.raises(ExecutorError, match=r"cut 1 \(t2\) gives values that are not numbers"):
            bench.cost(find_cuts(graph)[0])
    finally:
        bench.close()


def test_a_runtime_that_crashes_is_one_sentence() -> None:
    graph = read_graph(CHAIN)
    bench = Bench(graph, CHAIN)
    try:
        (worker,) = map(psutil.Process, bench._pool._processes)
        worker.kill()
        worker.wait(20)
        with pytest.raises(ExecutorError, match="crashed on the model"):
            bench.cost(find_cuts(graph)[0])
    finally:
        bench.close()


def test_a_killed_command_leaves_no_process_behind(model: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-m", "converters", "split", str(model), "-o", str(tmp_path / "o")]
    started = subprocess.Popen(program, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    alive: list[psutil.Process] = []
    try:
        assert started.stderr is not None
        assert "measuring" in started.stderr.readline()
        alive = psutil.Process(started.pid).children(recursive=True)
        assert alive
        started.kill()
        _, alive = psutil.wait_procs(alive, timeout=20)
        assert alive == []
    finally:
        for process in (started, *alive):
            process.kill()
        started.wait()
        started.stderr.close()
    assert not (tmp_path / "o").exists()
