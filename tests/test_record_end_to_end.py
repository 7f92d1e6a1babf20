"""Record on a device, train on a workstation: the commands as a user types them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from converters.options import make_workload
from infi_edge.bundle import read_bundle
from infi_edge.capture.recorded import recorded_manifest
from infi_edge.capture.recordings import open_recording
from infi_edge.errors import ConfigError, ExecutorError
from infi_edge.labels import label
from infi_edge.workload import Workload
from tests.conftest import ROOT, WORKLOAD, Command

TRAIN = ("--kind", "light", "--mechanism", "skip", "--target-accuracy", "0.9")
CLASSES = """
def classes(frame):
    bright = float((frame[..., 1] > 180).mean() > 0.01)
    return [[1.0 - bright, bright]]
"""


@pytest.fixture(scope="module")
def yard(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole toy clip, recorded with its model's answers by the real command."""
    folder = tmp_path_factory.mktemp("recorded") / "yard"
    arguments = ["record", "--source", "toy.avi", *WORKLOAD, "-o", str(folder), "--fast"]
    done = subprocess.run(
        [sys.executable, "-m", "infi_edge", *arguments],
        cwd=toy,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "240 inputs" in done.stderr
    return folder


def sentence(text: str) -> str:
    """The last line of standard error."""
    assert "Traceback" not in text
    return text.strip().splitlines()[-1]


def workload_of(recording: Path, **options: str) -> tuple[Workload, str]:
    """The workload that `infi-convert train RECORDING` works with."""
    names = ("model", "model_version", "decoder", "task", "same", "labels")
    given = {name: options.get(name) for name in names}
    return make_workload(given, "image", recorded_manifest(str(recording)))


def test_a_recording_is_trained_from_without_its_model(
    command: Command, yard: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "yard.infi"
    done = command("infi-convert", "train", str(yard), "--end", "0.5", *TRAIN, "-o", str(bundle))
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "cache").exists()  # nothing was labelled anew
    info = read_bundle(bundle).manifest.workload
    assert (info.model, info.task, info.decoder) == (WORKLOAD[1], WORKLOAD[3], "raw")
    assert info.model_identity == "toy_model:brightest@"

    half = ("--source", str(yard), "--start", "0.5", "--model", WORKLOAD[1])
    done = command("infi-edge", "evaluate", str(bundle), *half, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["inputs"] == 120
    assert report["accuracy"] >= 0.85
    assert report["filtering_rate"] > 0.3

    done = command("infi-edge", "run", "--filter", str(bundle), *half, "--fast")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["index"] for line in lines if "index" in line] == list(range(120, 240))


def test_the_model_given_or_not_makes_the_same_bundle(
    command: Command, yard: Path, tmp_path: Path
) -> None:
    contents = []
    for model in ((), WORKLOAD):
        bundle = tmp_path / "yard.infi"
        train = ("train", str(yard), "--end", "0.5", *TRAIN, *model, "-o", str(bundle))
        done = command("infi-convert", *train)
        assert done.returncode == 0, done.stderr
        contents.append(bundle.read_bytes())
    assert contents[0] == contents[1]
    assert not (tmp_path / "cache").exists()


def test_with_another_model_the_inputs_are_labelled_anew(
    yard: Path, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(toy))
    recording = open_recording(str(yard))
    workload, identity = workload_of(yard, model="toy_model:slow")
    assert (workload.spec.task, identity) == (WORKLOAD[3], "toy_model:slow@")
    assert label(recording, workload, identity, 10, 20) == recording.answers(10, 20)
    assert list((tmp_path / "cache").rglob("*.jsonl"))
    workload, identity = workload_of(yard, model="toy_model:brightest", task="value")
    assert not any(isinstance(v, bool) for v in label(recording, workload, identity, 10, 20))


def test_what_the_recording_cannot_answer_needs_the_model(
    command: Command, yard: Path, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(toy))
    labels = tmp_path / "names.txt"
    labels.write_text("other\n")
    for options in ({"task": "value"}, {"decoder": "ssd"}, {"labels": str(labels)}):
        with pytest.raises(ConfigError, match="run the model anew: --model toy_model:brightest"):
            workload_of(yard, **options)
    assert workload_of(yard, same="exact", task=WORKLOAD[3])[1] == "toy_model:brightest@"
    with pytest.raises(ExecutorError, match="give the model with --model"):
        workload_of(yard)[0](np.zeros((9, 9, 3), np.uint8))
    train = ("train", str(yard), *TRAIN, "-o", str(tmp_path / "b.infi"))
    for arguments, words in (
        ((*train, "--task", "value"), "are to decoder raw, task toy_model:Square"),
        ((*train, "--modality", "audio"), "holds image inputs"),
        (("filterability", str(yard)), "give the model with --model (toy_model:brightest)"),
    ):
        done = command("infi-convert", *arguments)
        assert done.returncode == 2
        assert words in sentence(done.stderr)


@pytest.mark.slow
def test_filterability_takes_the_rest_from_the_recording(command: Command, yard: Path) -> None:
    done = command("infi-convert", "filterability", str(yard), "--model", WORKLOAD[1])
    assert done.returncode == 0, done.stderr
    assert "VERDICT: " in done.stdout


def test_the_recording_knows_the_class_names(
    command: Command, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (toy / "classes_model.py").write_text(CLASSES)
    monkeypatch.syspath_prepend(str(toy))
    labels = tmp_path / "names.txt"
    labels.write_text("dark\nbright\n")
    record = ("record", "--source", "toy.avi", "--model", "classes_model:classes", "--fast")
    options = ("--decoder", "classification", "--task", "label:bright", "--labels", str(labels))
    yard = tmp_path / "yard"
    done = command("infi-edge", *record, *options, "-o", str(yard))
    assert done.returncode == 0, done.stderr
    labels.unlink()
    recording = open_recording(str(yard))
    assert set(recording.answers(0, 240)) == {None, "bright"}
    for given in ({}, {"model": "classes_model:classes"}):
        workload, identity = workload_of(yard, **given)
        assert workload.spec.labels == ("dark", "bright")
        assert label(recording, workload, identity, 0, 240) == recording.answers(0, 240)


def test_reduced_and_masked_pictures_are_all_that_is_kept(
    command: Command, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(toy))
    small = tmp_path / "small"
    options = ("--reduced", "--mask", "0,0 0.1,0 0.1,1 0,1", "--every", "2", "--fast")
    record = ("record", "--source", "toy.avi", *WORKLOAD, "-o", str(small), *options)
    done = command("infi-edge", *record)
    assert done.returncode == 0, done.stderr
    assert "120 inputs" in sentence(done.stderr)
    recording = open_recording(str(small))
    assert recording.rate_hz == pytest.approx(10.0)
    samples = list(recording.samples())
    assert {s.data.shape for s in samples} == {(96, 128, 3)}
    assert not any(s.data[:, :12].any() for s in samples)
    workload, identity = workload_of(small, model="toy_model:slow")
    with pytest.raises(ConfigError, match="reduced pictures"):
        label(recording, workload, identity, 0, 9)


def test_reduced_pictures_make_a_filter(command: Command, tmp_path: Path) -> None:
    small = tmp_path / "small"
    record = ("record", "--source", "toy.avi", *WORKLOAD, "-o", str(small), "--fast", "--reduced")
    assert command("infi-edge", *record).returncode == 0
    bundle = str(tmp_path / "small.infi")
    done = command("infi-convert", "train", str(small), "--end", "0.5", *TRAIN, "-o", bundle)
    assert done.returncode == 0, done.stderr
    clip = ("--source", "toy.avi", "--start", "0.5", "--model", WORKLOAD[1], "--json")
    done = command("infi-edge", "evaluate", bundle, *clip)  # of the camera's own pictures
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accuracy"] >= 0.85


def test_what_makes_no_sense_is_one_sentence_and_makes_no_folder(
    command: Command, toy: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "yard"
    record = ("record", "--source", "toy.avi", "-o", str(folder))
    for arguments, words in (
        ((*record, "--model", WORKLOAD[1]), "give --model and --task"),
        ((*record, *WORKLOAD, "--max-bytes", "12 parsecs"), "--max-bytes"),
        ((*record, *WORKLOAD, "--mask", "0,0"), "--mask"),
        ((*record, *WORKLOAD, "--reduced", "big"), "--reduced"),
        ((*record, *WORKLOAD, "--modality", "video", "--preprocess", "frames=x"), "--preprocess"),
        (("record", "--source", "absent.avi", *WORKLOAD, "-o", str(folder)), "absent.avi"),
        ((*record, "--model", "absent:f", "--task", "value"), "absent"),
    ):
        done = command("infi-edge", *arguments)
        assert done.returncode == 2, done.stderr
        assert words in sentence(done.stderr)
        assert not folder.exists()
    (folder / "sub").mkdir(parents=True)
    done = command("infi-edge", *record, *WORKLOAD)
    assert done.returncode == 2
    assert "holds other files (sub)" in sentence(done.stderr)


def test_credentials_of_a_source_are_told_to_nobody(command: Command, tmp_path: Path) -> None:
    yard = tmp_path / "yard"
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and nobody listens there
        url = f"http://ann:secret@127.0.0.1:{nobody.getsockname()[1]}/video?token=hidden"
        done = command("infi-edge", "record", "--source", url, *WORKLOAD, "-o", str(yard))
    assert done.returncode == 2
    told = done.stdout + done.stderr + (yard / "recording.json").read_text()
    assert "127.0.0.1" in sentence(done.stderr)
    assert not any(word in told for word in ("ann:", "secret", "hidden"))


def test_lines_of_a_pipe_are_recorded_to_its_end(toy: Path, tmp_path: Path) -> None:
    (toy / "lines_model.py").write_text("def length(text):\n    return len(text)\n")
    arguments = ["record", "--source", "lines:-", "--model", "lines_model:length"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "infi_edge",
            *arguments,
            "--task",
            "value",
            "-o",
            str(tmp_path / "y"),
        ],
        cwd=toy,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input="one\nzwei\nthree\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    recording = open_recording(str(tmp_path / "y"))
    assert [s.data for s in recording.samples()] == ["one", "zwei", "three"]
    assert recording.answers(0, 3) == [3, 4, 5]


def test_a_model_that_never_answers_is_exit_code_1(command: Command, tmp_path: Path) -> None:
    model = ("--model", "toy_model:broken", "--task", "toy_model:Square")
    record = ("record", "--source", "toy.avi", *model, "--fast", "-o", str(tmp_path / "yard"))
    done = command("infi-edge", *record)
    assert done.returncode == 1
    assert done.stderr.count("no power") == 1
    assert "240 errors" in sentence(done.stderr)


def test_it_ends_after_its_hours(command: Command, tmp_path: Path) -> None:
    record = ("record", "--source", "toy.avi", *WORKLOAD, "-o", str(tmp_path / "yard"))
    done = command("infi-edge", *record, "--hours", "0.0003")
    assert done.returncode == 0, done.stderr
    assert 0 < open_recording(str(tmp_path / "yard")).count < 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_everything_kept(toy: Path, tmp_path: Path, number: int) -> None:
    yard = tmp_path / "yard"
    arguments = ["record", "--source", "toy.avi", *WORKLOAD, "-o", str(yard)]
    process = subprocess.Popen(
        [sys.executable, "-m", "infi_edge", *arguments],
        cwd=toy,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline_s = time.monotonic() + 60
        while not any(p.stat().st_size > 20_000 for p in yard.glob("*.seg")):
            assert process.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        process.send_signal(number)
        errors = process.communicate(timeout=60)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors
    recording = open_recording(str(yard))
    assert f"{recording.count} inputs" in sentence(errors)
    assert recording.count < 240
    assert len(list(recording.samples())) == recording.count


def test_a_recording_can_be_moved(yard: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(yard, moved)
    one, other = open_recording(str(yard)), open_recording(str(moved))
    assert one.content_hash() == other.content_hash()
    assert one.answers(0, 240) == other.answers(0, 240)
