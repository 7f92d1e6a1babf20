"""The expensive model as text: its labels, its callables, its failures, and four real ones."""

from __future__ import annotations

import io
import os
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from infi_edge.errors import ConfigError, ExecutorError, SourceError
from infi_edge.tasks import make_same
from infi_edge.workload import (
    Workload,
    WorkloadSpec,
    find_labels,
    is_callable_name,
    model_identity,
    to_frame,
)

FRAME = np.full((48, 64, 3), 200, np.uint8)
FLATBUFFER = b"\x1c\x00\x00\x00TFL3" + bytes(100)
TWO = WorkloadSpec("label", "classification", labels=("dark", "bright"))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a package with one module; return `package.module`."""
    package = f"own_{tmp_path.name}"
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text: str) -> str:
        (tmp_path / package).mkdir()
        (tmp_path / package / "model.py").write_text(text)
        return f"{package}.model"

    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]


def with_metadata(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A model with associated files, as TFLite Support packs them: a ZIP after the flatbuffer."""
    buffer = io.BytesIO()
    buffer.write(FLATBUFFER)
    with zipfile.ZipFile(buffer, "a", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_labels_come_from_the_file_that_is_named(tmp_path):
    (tmp_path / "names.txt").write_text("dog\n cat \n\ntraffic light\n\n\n")
    model = tmp_path / "model.tflite"
    model.write_bytes(with_metadata({"labels.txt": b"bird\n"}))
    assert find_labels(str(model), str(tmp_path / "names.txt")) == (
        "dog",
        "cat",
        "",
        "traffic light",
    )


def test_labels_come_from_the_models_metadata_before_a_file_beside_it(tmp_path):
    (tmp_path / "labels.txt").write_text("wrong\n")
    model = tmp_path / "model.tflite"
    model.write_bytes(with_metadata({"labelmap.txt": b"person\ncar\n"}, zipfile.ZIP_DEFLATED))
    assert find_labels(str(model), None) == ("person", "car")


def test_labels_come_from_the_only_labels_file_beside_the_model(tmp_path):
    model = tmp_path / "model.tflite"
    model.write_bytes(FLATBUFFER)
    (tmp_path / "readme.txt").write_text("no labels\n")
    assert find_labels(str(model), None) == ()
    (tmp_path / "coco_labels.txt").write_text("person\ncar\n")
    assert find_labels(str(model), None) == ("person", "car")
    (tmp_path / "other_labels.txt").write_text("a\nb\n")
    assert find_labels(str(model), None) == ()


def test_numbered_labels_lose_their_numbers_and_others_keep_them(tmp_path):
    file = tmp_path / "labels.txt"
    file.write_text("0 person\n1  traffic light\n2 car\n")
    assert find_labels("m", str(file)) == ("person", "traffic light", "car")
    file.write_text("7 segment\n8 ball\n")
    assert find_labels("m", str(file)) == ("7 segment", "8 ball")


def test_damaged_metadata_leaves_the_labels_beside_the_model(tmp_path):
    names = "\n".join(f"class {i}" for i in range(100)).encode()
    content = bytearray(with_metadata({"labels.txt": names}, zipfile.ZIP_DEFLATED))
    start = content.index(b"labels.txt") + len("labels.txt")
    content[start : start + 20] = b"\xff" * 20
    (tmp_path / "model.tflite").write_bytes(content)
    (tmp_path / "my_labels.txt").write_text("car\n")
    assert find_labels(str(tmp_path / "model.tflite"), None) == ("car",)


def test_a_labels_file_that_is_no_text_is_refused(tmp_path, refuses):
    (tmp_path / "model.tflite").write_bytes(FLATBUFFER)
    (tmp_path / "my_labels.txt").write_bytes("café".encode("latin-1"))
    for named in (str(tmp_path / "my_labels.txt"), str(tmp_path / "absent.txt"), None):
        with refuses(ConfigError, r"labels"):
            find_labels(str(tmp_path / "model.tflite"), named)


def test_a_callable_and_a_missing_model_have_no_labels(tmp_path):
    assert find_labels("package.module:function", None) == ()
    assert find_labels(str(tmp_path / "absent.tflite"), None) == ()


@pytest.mark.parametrize(
    ("text", "is_callable"),
    [
        ("package.module:function", True),
        ("module:function", True),
        ("model.tflite", False),
        ("/models/a:b.tflite", False),
        ("C:\\models\\a.tflite", False),
        ("package:", False),
        (":function", False),
    ],
)
def test_a_callables_name_is_told_from_a_file(text, is_callable):
    assert is_callable_name(text) is is_callable


def test_models_are_told_apart_by_content_and_callables_by_version(tmp_path, refuses):
    a, b, c = (tmp_path / name for name in ("a.tflite", "b.tflite", "c.tflite"))
    a.write_bytes(b"one")
    b.write_bytes(b"two")
    c.write_bytes(b"one")
    assert model_identity(str(a)) == model_identity(str(c)) != model_identity(str(b))
    assert model_identity("m:f", "1") != model_identity("m:f", "2")
    with refuses(ExecutorError, "absent.tflite cannot be read"):
        model_identity(str(tmp_path / "absent.tflite"))


def test_a_function_of_ones_own_module_is_a_model(module):
    name = module(
        "import numpy as np\n"
        "def model(frame): return np.array([0.0, 1.0] if frame.mean() > 99 else [1.0, 0.0])\n"
    )
    workload = Workload(f"{name}:model", TWO)
    assert workload(FRAME) == "bright"
    assert workload(np.zeros_like(FRAME)) == "dark"


def test_a_model_gets_the_whole_frame_of_jpeg_bytes():
    shapes = []
    jpeg = cv2.imencode(".jpg", FRAME)[1].tobytes()
    Workload(lambda frame: shapes.append(frame.shape) or np.array([0.9, 0.1]), TWO)(jpeg)
    assert shapes == [FRAME.shape]


def test_a_callable_without_decoder_gives_its_task_what_it_returns(module):
    name = module(
        "class Own:\n"
        "    empty, can_skip = 0, True\n"
        "    def __init__(self, labels): pass\n"
        "    def read(self, decoded): return decoded['people']\n"
        "    def is_redundant(self, value): return value == 0\n"
    )
    workload = Workload(lambda _: {"people": 3}, WorkloadSpec(f"{name}:Own"))
    assert workload(FRAME) == 3
    assert workload.spec.decoder == "raw"


@pytest.mark.parametrize("text", ["", "def model(:\n", "1 / 0\n", "import absent_package\n"])
def test_a_callable_that_cannot_be_imported_is_refused(module, refuses, text):
    name = module(text)
    with refuses(ConfigError, "model '.*:model' cannot be imported"):
        Workload(f"{name}:model", TWO)


def test_a_callable_that_fails_is_an_executor_error(refuses):
    def model(frame: np.ndarray) -> list[float]:
        raise KeyError("weights\nmissing")

    with refuses(ExecutorError, "the model failed: KeyError"):
        Workload(model, TWO)(FRAME)


@pytest.mark.parametrize("part", ["decoder", "task"])
def test_a_users_own_decoder_or_task_that_fails_is_an_executor_error(module, refuses, part):
    name = module(
        "def decode(outputs): return {}['boxes']\n"
        "class Own:\n"
        "    empty, can_skip = 0, True\n"
        "    def __init__(self, labels): pass\n"
        "    def read(self, decoded): return {}[decoded]\n"
        "    def is_redundant(self, value): return value == 0\n"
    )
    spec = {
        "decoder": WorkloadSpec("label", f"{name}:decode", labels=("a",)),
        "task": WorkloadSpec(f"{name}:Own"),
    }[part]
    with refuses(ExecutorError, "KeyError"):
        Workload(lambda _: 0, spec)(FRAME)


def test_a_file_that_is_no_model_is_an_executor_error(tmp_path, refuses):
    spec = WorkloadSpec("count:car", "yolov5", labels=("car",))
    for name, content in (("text", b"hello, I am text"), ("empty", b""), ("cut", FLATBUFFER)):
        (tmp_path / name).write_bytes(content)
        with refuses(ExecutorError, "is not a TFLite model|does not load"):
            Workload(tmp_path / name, spec)
    with refuses(ExecutorError, "cannot be read"):
        Workload(tmp_path / "absent.tflite", spec)


HUGE = struct.pack(">HH", 65500, 65500)


def test_bytes_that_are_no_image_are_a_source_error(refuses):
    jpeg = cv2.imencode(".jpg", FRAME)[1].tobytes()
    size = jpeg.index(b"\xff\xc0") + 5
    for data in (b"", b"noise", jpeg[:20], jpeg[:size] + HUGE + jpeg[size + 4 :]):
        with refuses(SourceError, "not an image"):
            to_frame(data)


def test_a_model_file_needs_a_decoder(models, refuses):
    with refuses(ConfigError, "needs --decoder"):
        Workload(models / "face/face_detection_front.tflite", WorkloadSpec("presence:face"))


def frame_of(clip: str, index: int) -> np.ndarray:
    """A frame of a real clip; the test is skipped where there are none."""
    default = Path(__file__).resolve().parents[2] / "../shared/data"
    path = Path(os.environ.get("INFI_EDGE_DATA", default)) / clip
    if not path.exists():
        pytest.skip(f"no clip {path}; set INFI_EDGE_DATA to the folder of clips")
    capture = cv2.VideoCapture(str(path))
    for _ in range(index):
        assert capture.grab()
    return capture.read()[1]


def test_yolov5n_finds_the_person_in_a_frame_and_nobody_in_an_empty_one(models):
    model = str(models / "yolov5n/yolov5n-fp16.tflite")
    labels = find_labels(model, None)
    workload = Workload(model, WorkloadSpec("detect:person", "yolov5", labels=labels))
    assert len(labels) == 80
    shown, empty = (frame_of("person/one-by-one-person.mp4", i) for i in (300, 0))
    where = ["person", 0.49, 0.0, 0.71, 0.88]
    assert make_same("iou:0.8", "detect:person")(workload(shown), [where])
    assert workload(empty) == []


def test_blazeface_finds_the_face_where_movenet_sees_the_nose_and_eyes(models):
    frame = frame_of("signs/eat.mkv", 20)
    face = Workload(
        models / "face/face_detection_front.tflite", WorkloadSpec("detect:face", "blazeface")
    )
    pose = Workload(
        models / "coral/movenet_single_pose_lightning_ptq.tflite", WorkloadSpec("pose", "movenet")
    )
    [[label, left, top, right, bottom]] = face(frame)
    assert label == "face"
    assert 0.05 < right - left < 0.3
    seen = {index: (x, y) for index, x, y in pose(frame)}
    for x, y in (seen[0], seen[1], seen[2]):
        assert left < x < right
        assert top < y < bottom
    assert face(np.zeros_like(frame)) == []


def test_mobilenet_names_what_a_frame_shows(models):
    labels = find_labels("m", str(models / "coral/imagenet_labels.txt"))
    spec = WorkloadSpec("label", "classification", labels=labels)
    workload = Workload(models / "coral/mobilenet_v2_1.0_224_quant.tflite", spec)
    assert len(labels) == 1001
    assert workload(frame_of("person/one-by-one-person.mp4", 360)) == "suit, suit of clothes"
    jpeg = cv2.imencode(".jpg", frame_of("person/one-by-one-person.mp4", 0))[1].tobytes()
    assert workload(jpeg) == "wall clock"
