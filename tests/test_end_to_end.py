"""The commands as a user types them, run for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from infi_edge import Action, Gate, load_filter
from infi_edge.bundle import operating_point, read_bundle
from infi_edge.capture.recordings import open_recording
from infi_edge.evaluate import embed, labelled
from infi_edge.replay import replay
from infi_edge.workload import Workload, WorkloadSpec
from tests.conftest import ROOT, WORKLOAD, Command


def records(text: str) -> list[dict[str, object]]:
    """Parse JSON lines."""
    return [json.loads(line) for line in text.splitlines()]


def test_the_trained_filter_saves_inferences_on_a_part_it_never_saw(
    command: Command, toy_bundle: Path, tmp_path: Path
) -> None:
    done = command(
        "infi-edge",
        *("evaluate", str(toy_bundle), "--source", "toy.avi", "--start", "0.5", "--json"),
        *("--model", "toy_model:slow", "--allow-other-model", "--misses", str(tmp_path / "m")),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    keys = "inputs inferred skipped reused filtering_rate accuracy recall throughput_ratio "
    keys += "predicted_throughput_ratio model_ms filter_ms target_accuracy every_nth_filtering_rate"
    assert set(keys.split()) <= set(report)
    assert report["inputs"] == report["inferred"] + report["skipped"] + report["reused"] == 120
    assert report["accuracy"] >= 0.9
    assert report["filtering_rate"] > report["every_nth_filtering_rate"]
    assert report["ideal_skip_filtering_rate"] == pytest.approx(0.5 + 0.1)  # half show nothing
    wrong = round((1 - report["accuracy"]) * report["inputs"])
    assert len(list((tmp_path / "m").iterdir())) == wrong


def test_run_writes_one_json_line_an_input(command: Command, toy_bundle: Path) -> None:
    done = command(
        "infi-edge",
        *("run", "--fast", "--source", "toy.avi", "--filter", str(toy_bundle)),
        *("--model", "toy_model:brightest", "--start", "0.5"),
    )
    assert done.returncode == 0, done.stderr
    lines = records(done.stdout)
    assert [line["index"] for line in lines] == list(range(120, 240))
    actions = {line["action"] for line in lines}
    assert "infer" in actions
    assert actions & {"skip", "reuse"}
    assert all("age_s" in line for line in lines if line["action"] == "reuse")
    assert "120 inputs" in done.stderr


def test_run_takes_a_configuration_and_keeps_its_cache(
    command: Command, toy: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    config = toy / "toy.toml"
    config.write_text(
        f'state = "{tmp_path}"\n'
        f'[models.square]\npath = "toy_model:brightest"\n'
        f'[sources.yard]\naddress = "toy.avi"\nstart = 0.5\nfast = true\nmodel = "square"\n'
        f'filter = "{toy_bundle.name}"\ncache.snapshot = true\n'
        f'[sinks.lines]\nkind = "jsonl"\nevents = false\npath = "{tmp_path / "out.jsonl"}"\n'
    )
    first = command("infi-edge", "run", str(config))
    second = command("infi-edge", "run", str(config))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "answers loaded" in second.stderr
    assert len(records((tmp_path / "out.jsonl").read_text())) == 240


def test_embedding_takes_five_lines(toy: Path, toy_bundle: Path) -> None:
    sys.path.insert(0, str(toy))
    from toy_model import brightest

    gate = Gate(load_filter(toy_bundle), infer=brightest)
    results = [gate(sample) for sample in open_recording(str(toy / "toy.avi")).samples(120)]
    truth = [(i // 15) % 2 == 1 for i in range(120, 240)]
    right = [r.value == t for r, t in zip(results, truth, strict=True)]
    assert np.mean(right) >= 0.9
    assert sum(r.action is Action.INFER for r in results) < 60


def test_the_gate_does_what_the_replay_said(toy: Path, toy_bundle: Path, tmp_path: Path) -> None:
    os.environ["XDG_CACHE_HOME"] = str(tmp_path)
    sys.path.insert(0, str(toy))
    recording = open_recording(str(toy / "toy.avi"))
    input_filter = load_filter(toy_bundle)
    workload = Workload("toy_model:brightest", WorkloadSpec("toy_model:Square"))
    knobs = operating_point(input_filter.manifest).knobs
    truth = labelled(recording, workload, "toy", 120, 240)
    outcome = replay(knobs, truth, embed(input_filter, recording.samples(120, 240)))
    gate = Gate(input_filter, workload)
    actions = [gate(sample).action.value for sample in recording.samples(120, 240)]
    assert actions == [["infer", "skip", "reuse"][a] for a in outcome.actions]


def test_jpeg_bytes_are_gated_like_frames(toy: Path, toy_bundle: Path) -> None:
    sys.path.insert(0, str(toy))
    from toy_model import brightest

    gate = Gate(load_filter(toy_bundle), infer=brightest)
    for sample in open_recording(str(toy / "toy.avi")).samples(120, 150):
        jpeg = cv2.imencode(".jpg", sample.data)[1].tobytes()
        result = gate(jpeg, time_s=sample.time_s)
        assert isinstance(result.value, bool)
    assert gate.stats["filter_error"] == 0
    assert gate.stats["reuse"] + gate.stats["skip"] > 0


def test_whatever_the_filter_does_the_input_is_inferred(toy: Path, toy_bundle: Path) -> None:
    sys.path.insert(0, str(toy))
    from toy_model import brightest

    gate = Gate(load_filter(toy_bundle), infer=brightest)
    strange = np.zeros((240, 320, 3), np.float32)
    result = gate(strange)
    assert result.action is Action.INFER
    assert "filter error" in result.why
    assert gate.stats["filter_error"] == 1
    assert len(gate.cache) == 0


def test_a_disabled_gate_infers_everything(toy: Path, toy_bundle: Path) -> None:
    sys.path.insert(0, str(toy))
    from toy_model import brightest

    gate = Gate(load_filter(toy_bundle), infer=brightest, enabled=False)
    samples = open_recording(str(toy / "toy.avi")).samples(0, 20)
    assert {gate(sample).action for sample in samples} == {Action.INFER}


def test_nothing_is_cached_from_an_error(command: Command, toy: Path, toy_bundle: Path) -> None:
    done = command(
        "infi-edge",
        *("run", "--fast", "--source", "toy.avi", "--filter", str(toy_bundle)),
        *("--model", "toy_model:broken", "--allow-other-model", "--end", "0.1"),
    )
    lines = records(done.stdout)
    assert len(lines) == 24
    assert sum("no power" in str(line.get("error")) for line in lines) > 0
    assert {line.get("action") for line in lines} <= {None, "skip"}
    assert done.stderr.count("no power") == 1


def test_the_same_seed_gives_the_same_bundle_byte_for_byte(
    command: Command, toy_bundle: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.infi"
    done = command(
        "infi-convert",
        *("train", "toy.avi", *WORKLOAD, "--end", "0.5", "--kind", "light"),
        *("--target-accuracy", "0.9", "-o", str(again), "--report", str(tmp_path / "r.json")),
    )
    assert done.returncode == 0, done.stderr
    assert again.read_bytes() == toy_bundle.read_bytes()
    assert json.loads((tmp_path / "r.json").read_text())["manifest"]["format_version"] == 3


def test_inspect_says_what_a_bundle_promises(command: Command, toy_bundle: Path) -> None:
    done = command("infi-edge", "inspect", str(toy_bundle))
    assert done.returncode == 0
    assert "estimate" in done.stdout
    assert "toy_model:Square" in done.stdout
    whole = json.loads(command("infi-edge", "inspect", str(toy_bundle), "--json").stdout)
    assert whole["workload"]["task"] == "toy_model:Square"


@pytest.mark.slow
def test_interrupted_labelling_leaves_no_bundle_and_resumes(toy: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    bundle = tmp_path / "late.infi"
    arguments = ["train", "toy.avi", "--model", "toy_model:slow", "--task", "toy_model:Square"]
    arguments += ["--kind", "light", "--target-accuracy", "0.9", "-o", str(bundle)]
    process = subprocess.Popen(
        [sys.executable, "-m", "converters", *arguments],
        cwd=toy,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # A background job's children ignore SIGINT; a user's terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    labels: list[Path] = []
    while not labels or labels[0].read_text().count("\n") < 20:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
        labels = list((tmp_path / "infi-edge" / "labels").glob("*"))
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert not bundle.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["infi-edge"]
    kept = labels[0].read_text()
    done = subprocess.run(
        [sys.executable, "-m", "converters", *arguments], cwd=toy, env=environment, check=False
    )
    assert done.returncode == 0
    assert bundle.exists()
    assert labels[0].read_text().startswith(kept)
    indices = [json.loads(line)[0] for line in labels[0].read_text().splitlines() if line]
    assert sorted(indices) == list(range(240))


def test_a_network_is_trained_quantized_and_checked(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    bundles = [tmp_path / "net.infi", tmp_path / "net2.infi"]
    for bundle in bundles:
        done = command(
            "infi-convert",
            *("train", "toy.avi", *WORKLOAD, "--end", "0.5", "--kind", "net", "--steps", "40"),
            *(
                "--preprocess",
                "width=64",
                "--preprocess",
                "height=48",
                "--target-accuracy",
                "0.8",
                "-o",
                str(bundle),
            ),
            "--allow-pass-through",
        )
        assert done.returncode == 0, done.stderr
    manifest = read_bundle(bundles[0]).manifest
    assert manifest.filter.kind == "net"
    assert float(manifest.parity["reuse_agreement"]) > 0.8
    assert "ai_edge_litert" in manifest.lowest_runtime
    assert bundles[0].read_bytes() == bundles[1].read_bytes()
    score, embedding = load_filter(bundles[0])(np.zeros((240, 320, 3), np.uint8))
    assert embedding.dtype == np.uint8
    assert score is not None
    assert 0 <= score <= 1
