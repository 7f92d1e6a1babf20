"""Real models on a real MLServer: pictures as tensors and as JPEG, and a model in two parts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest

from converters.partition import cuts, split
from infi_edge import Action, Gate, load_filter
from infi_edge.bundle import read_bundle, write_bundle
from infi_edge.capture.recordings import open_recording
from infi_edge.errors import ConfigError, InfiEdgeError
from infi_edge.executors.head import Head
from infi_edge.executors.offload import OffloadWorkload, open_workload, quantized
from infi_edge.preprocess import FeaturesSpec
from infi_edge.workload import Workload, WorkloadSpec, find_labels, model_identity
from tests.conftest import DATA, ROOT, need
from tests.daemon_run import environment, write_filter
from tests.offload.conftest import FACE, MOBILENET, add_models
from tests.offload.servers import MLServer, tflite_folder

CLIP = DATA / "person" / "one-by-one-person.mp4"
LABELS = ("face",)


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    recording = open_recording(str(need(CLIP)))
    return [s.data for s in recording.samples(0, 600) if s.index % 60 == 0]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Head and tail of a quantized and of a float model."""
    folder = tmp_path_factory.mktemp("parts")
    found = {}
    for name, model in (("mobilenet", need(MOBILENET)), ("face", need(FACE))):
        content = model.read_bytes()
        possible = cuts(content)
        cut = possible[len(possible) // 2]
        paths = folder / f"{name}-head.tflite", folder / f"{name}-tail.tflite"
        for path, part in zip(paths, split(content, cut.tensor), strict=True):
            path.write_bytes(part)
        found[name] = paths
    return found


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, parts: dict[str, tuple[Path, Path]]
) -> Iterator[MLServer]:
    folder = add_models(tmp_path_factory.mktemp("served") / "models")
    for name, (_, tail) in parts.items():
        tflite_folder(folder, f"{name}_tail", tail, input="features")
    with MLServer(folder) as made:
        yield made


def spec_of(name: str, modality: str = "image") -> WorkloadSpec:
    if name == "face":
        return WorkloadSpec("detect:face", "blazeface", "iou:0.5", LABELS, modality)
    labels = find_labels(str(MOBILENET), None)
    return WorkloadSpec("label", "classification", labels=labels, modality=modality)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize("name", ["mobilenet", "face"])
def test_pictures_as_tensors_are_answered_as_here(server, frames, scheme, name):
    url = f"grpc://{server.grpc}/{name}"
    if scheme == "http":
        url = f"http://{server.http}/v2/models/{name}"
    there = open_workload(url, spec_of(name))
    here = Workload(str(MOBILENET if name == "mobilenet" else FACE), spec_of(name))
    assert isinstance(there, OffloadWorkload)
    for frame in frames[:3]:
        assert there(frame) == here(frame)
    assert there.remote.identity == model_identity(str(MOBILENET if name == "mobilenet" else FACE))


@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize("name", ["mobilenet", "face"])
def test_a_cameras_own_jpeg_goes_untouched_and_boxes_come_back_to_the_frame(
    server, frames, scheme, name
):
    url = f"grpc://{server.grpc}/{name}_jpeg"
    if scheme == "http":
        url = f"http://{server.http}/v2/models/{name}_jpeg"
    there = open_workload(url, spec_of(name))
    here = Workload(str(MOBILENET if name == "mobilenet" else FACE), spec_of(name))
    found = 0
    for frame in frames:
        jpeg = cv2.imencode(".jpg", frame)[1].tobytes()
        value = there(jpeg)
        assert value == here(jpeg)
        found += bool(value)
        assert there.request(jpeg)[0][0][1].ravel()[0] is jpeg
    assert found, "no picture shows anything: boxes were not compared"


@pytest.mark.parametrize("name", ["mobilenet", "face"])
def test_a_model_in_two_parts_answers_as_the_whole(server, parts, frames, name):
    head_path, _ = parts[name]
    spec = spec_of(name)
    head = Head(head_path, str(spec.decoder))
    there = open_workload(
        f"grpc://{server.grpc}/{name}_tail", spec_of(name, "features"), whole_input=head.input
    )
    here = Workload(str(MOBILENET if name == "mobilenet" else FACE), spec)
    for frame in frames[:4]:
        features = head(frame)
        if name == "mobilenet":  # 8-bit features go as they are: nothing is lost
            assert there(features) == here(frame)
        else:
            assert here.same(there(features), here(frame))
            assert there.request(features)[0][0][1].dtype == np.int8


def test_float_features_lose_less_than_a_step():
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(5, 7)), rng.uniform(0, 3, 9), np.zeros(4), np.full(3, -2.0)]
    for features in (one.astype(np.float32) for one in maps):
        steps, scale, zero = quantized(features)
        back = (steps.astype(np.float32) - np.float32(zero)) * np.float32(scale)
        assert np.abs(back - features).max() <= scale * 0.501
        assert ((back == 0) | (features != 0)).all()
    with pytest.raises(InfiEdgeError, match="not a number"):
        quantized(np.array([1.0, np.nan], np.float32))


@pytest.mark.parametrize(
    ("name", "spec", "words"),
    [
        ("mobilenet", WorkloadSpec("value", modality="text"), "an input is a text"),
        ("mobilenet_jpeg", WorkloadSpec("value", modality="audio"), "is an array"),
        ("no_such", WorkloadSpec("value"), "no such model"),
        ("face", WorkloadSpec("label", "classification"), "decoder classification needs"),
    ],
)
def test_what_does_not_fit_is_one_sentence(server, frames, name, spec, words):
    with pytest.raises(InfiEdgeError, match=words):
        open_workload(f"grpc://{server.grpc}/{name}", spec)(frames[0])


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infi_edge", *map(str, arguments)]
    return subprocess.run(  # noqa: PLW1510
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_partition_end_to_end(server, parts, tmp_path):
    """Learned from a clip, head and filter here, the tail on the server, over a socket."""
    head, tail = parts["mobilenet"]
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(find_labels(str(MOBILENET), None)))
    train = [
        sys.executable, "-m", "converters", "train", str(need(CLIP)), "--head", str(head),
        "--model", str(tail), "--decoder", "classification", "--labels", str(labels),
        "--task", "label", "--end", "0.3", "--target-accuracy", "0.8", "--kind", "light",
        "--allow-pass-through", "-o", "features.infi",
    ]  # fmt: skip
    trained = subprocess.run(  # noqa: PLW1510
        train, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=600
    )
    assert trained.returncode == 0, trained.stderr
    manifest = read_bundle(tmp_path / "features.infi").manifest
    assert manifest.modality == "features"
    assert manifest.workload.head_identity == model_identity(str(head))
    common = ["--source", CLIP, "--head", head, "--start", "0.4", "--end", "0.5"]
    url = f"grpc://{server.grpc}/mobilenet_tail"
    told = []
    for model in (("--executor", url), ("--model", tail)):
        done = run(tmp_path, "run", "--filter", "features.infi", "--fast", *common, *model)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        told.append([(line["index"], line["action"], line["value"]) for line in lines])
    assert told[0] == told[1]
    assert len(told[0]) > 100
    done = run(
        tmp_path, "evaluate", "features.infi", "--json", "--timed-inputs", 20, *common,
        "--executor", url,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    bandwidth = report["bandwidth"]
    assert bandwidth["saved"] == pytest.approx(report["filtering_rate"], abs=1e-6)
    without = run(tmp_path, "run", "--filter", "features.infi", "--source", CLIP, "--executor", url)
    assert without.returncode == 2
    assert "give its head with --head" in without.stderr
    other = run(tmp_path, "run", "--filter", "features.infi", "--source", CLIP, "--head", tail,
                "--executor", url)  # fmt: skip
    assert other.returncode == 2
    assert "Traceback" not in other.stderr


def test_a_bundle_that_reads_features_wants_its_head(server, parts, frames, tmp_path):
    head = Head(parts["mobilenet"][0], "classification")
    spec = FeaturesSpec(size=head.output.shape[1:], type=head.output.dtype.name)
    path = write_filter(tmp_path / "features.infi", spec=spec)
    bundle = read_bundle(path)
    info = msgspec.structs.replace(
        bundle.manifest.workload,
        head_identity=head.identity,
        model_identity=model_identity(str(parts["mobilenet"][1])),
    )
    write_bundle(path, msgspec.structs.replace(bundle.manifest, workload=info), bundle.members)
    url = f"grpc://{server.grpc}/mobilenet_tail"
    with pytest.raises(ConfigError, match="give its head"):
        Gate(load_filter(path), infer=url)
    gate = Gate(load_filter(path), infer=url, head=parts["mobilenet"][0])
    assert gate(frames[0]).action is Action.INFER
    assert gate(frames[0]).action is Action.REUSE


def test_the_demo_bundle_refuses_a_server_of_another_model(server):
    manifest = read_bundle(ROOT / "examples" / "demo.infi").manifest
    from infi_edge.gate import workload_for

    with pytest.raises(ConfigError, match="was trained for another model"):
        workload_for(manifest, f"grpc://{server.grpc}/face")
