"""Recording: what is kept of inputs of each modality, what the model saw, and what is read back."""

from __future__ import annotations

import os
import pickle
import struct
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi_edge import record
from infi_edge.bundle import WorkloadInfo
from infi_edge.capture.address import open_source
from infi_edge.capture.journal import JournalWriter, read_records, segments
from infi_edge.capture.mask import Mask
from infi_edge.capture.recorded import (
    Recorded,
    RecordingManifest,
    StoredInput,
    decode_input,
    encode_input,
)
from infi_edge.capture.recordings import draft_live_spec, draft_spec, open_recording
from infi_edge.capture.source import Health
from infi_edge.config import SourceConfig
from infi_edge.errors import BundleError, ConfigError, SourceError
from infi_edge.labels import DECODING_VERSION, label, stream_times
from infi_edge.preprocess import (
    AudioSpec,
    FeaturesSpec,
    ImageSpec,
    MotionSpec,
    Spec,
    TextSpec,
    VideoSpec,
)
from infi_edge.record import Preparation, Recorder, Totals, record_stream
from infi_edge.record_cli import parse_bytes, parse_polygon, parse_size
from infi_edge.types import Sample
from infi_edge.workload import Workload, WorkloadSpec, to_frame

MB = 1_000_000
IDENTITY = "tests:mean@"


def mean(data: Any) -> float:
    """The model: how bright or loud an input is, how long a text."""
    if isinstance(data, str):
        return float(len(data))
    return float(np.mean([np.mean(part) for part in data]))


class Stream:
    """A live source of made-up samples; None stands for a while without one."""

    def __init__(self, samples: list[Sample | None]) -> None:
        self.name, self.health = "stream", Health("stream")
        self._samples = samples
        self.closed = self.let_go = False

    def samples(self) -> Iterator[Sample | None]:
        try:
            yield from self._samples
        finally:
            self.let_go = True

    def now_s(self) -> float:
        return 0.0

    def close(self) -> None:
        self.closed = True


def frames(count: int, size: tuple[int, int] = (64, 48)) -> list[np.ndarray]:
    """Noise that grows brighter; no two are alike."""
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 40 + 3 * i % 200, (size[1], size[0], 3), np.uint8) for i in range(count)
    ]


def stream(inputs: list[Any], start_s: float = 1000.0, step_s: float = 0.1) -> Stream:
    return Stream([Sample(d, start_s + step_s * i, i, "stream") for i, d in enumerate(inputs)])


def manifest_of(spec: Spec, modality: str, **changes: Any) -> RecordingManifest:
    return RecordingManifest(
        format_version=1,
        modality=modality,
        preprocess=msgspec.to_builtins(spec),
        workload=WorkloadInfo(
            model="tests:mean",
            model_identity=IDENTITY,
            decoder="raw",
            task="value",
            same="exact",
            labels=[],
        ),
        decoding_version=DECODING_VERSION,
        **changes,
    )


def workload_of(modality: str, model: Callable[[Any], Any] = mean, task: str = "value") -> Workload:
    return Workload(model, WorkloadSpec(task, modality=modality))


def keep(
    folder: Path,
    source: Any,
    spec: Spec | None = None,
    modality: str = "image",
    *,
    model: Callable[[Any], Any] = mean,
    max_bytes: int = 100 * MB,
    mask: Mask | None = None,
    reduced: tuple[int, int] | None = None,
    **options: Any,
) -> Totals:
    """Record a source for real."""
    manifest = manifest_of(spec or ImageSpec(), modality, reduced=reduced)
    recorder, totals = Recorder(folder, manifest, max_bytes), Totals()
    prepare = Preparation(modality, mask or Mask(), reduced)
    try:
        record_stream(source, workload_of(modality, model), recorder, prepare, totals, **options)
    finally:
        recorder.close()
    return totals


def stored(folder: Path) -> list[StoredInput]:
    return [
        msgspec.msgpack.decode(content, type=StoredInput)
        for file in segments(folder)
        for _, content in read_records(file)
    ]


def test_frames_are_kept_as_jpegs_and_the_model_sees_just_those(tmp_path: Path) -> None:
    inputs = frames(12)
    totals = keep(tmp_path / "yard", stream(inputs))
    assert (totals.inputs, totals.failed) == (12, 0)
    recording = open_recording(str(tmp_path / "yard"))
    samples = list(recording.samples())
    assert [s.index for s in samples] == list(range(12))
    decoded = [cv2.imdecode(np.frombuffer(s.data, np.uint8), cv2.IMREAD_COLOR) for s in samples]
    assert all(abs(mean(a) - mean(b)) < 2 for a, b in zip(inputs, decoded, strict=True))
    assert any((a != b).any() for a, b in zip(inputs, decoded, strict=True))
    assert recording.answers(0, 12) == [mean(frame) for frame in decoded]
    assert recording.answers(3, 5) == [mean(frame) for frame in decoded[3:5]]


def test_a_cameras_jpegs_are_kept_untouched(tmp_path: Path) -> None:
    jpegs = [
        cv2.imencode(".jpg", f, [cv2.IMWRITE_JPEG_QUALITY, 40])[1].tobytes() for f in frames(4)
    ]
    keep(tmp_path / "yard", stream(jpegs))
    assert [s.data for s in open_recording(str(tmp_path / "yard")).samples()] == jpegs


def test_times_are_the_recorded_ones_with_their_gaps(tmp_path: Path) -> None:
    times = [500.0, 500.1, 500.2, 512.2, 512.3, 512.4]
    inputs = [Sample(f, t, i) for i, (f, t) in enumerate(zip(frames(6), times, strict=True))]
    keep(tmp_path / "yard", Stream([None, *inputs, None]))
    recording = open_recording(str(tmp_path / "yard"), 7.0)
    wanted = [t - 500.0 for t in times]
    assert [s.time_s for s in recording.samples()] == pytest.approx(wanted)
    assert stream_times(recording, 2, 5) == pytest.approx(wanted[2:5])
    assert recording.rate_hz == pytest.approx(10.0)
    assert recording.count == 6
    assert [s.time_s for s in recording.samples(4, 99)] == pytest.approx(wanted[4:])


def test_a_recording_is_continued_and_its_times_go_on(tmp_path: Path) -> None:
    yard = tmp_path / "yard"
    keep(yard, stream(frames(5), start_s=9000.0))
    last = segments(yard)[-1]
    os.utime(last, (time.time() - 60, time.time() - 60))
    keep(yard, stream(frames(5), start_s=3.0))  # after a reboot
    recording = open_recording(str(yard))
    times = recording.times_s(0, 10)
    assert recording.count == 10
    assert (np.diff(times) > 0).all()
    assert times[5] - times[4] == pytest.approx(60, abs=5)
    assert times[9] - times[5] == pytest.approx(0.4)
    assert [s.index for s in stored(yard)] == list(range(10))


def test_a_wall_clock_that_was_set_back_does_not_turn_time_round(tmp_path: Path) -> None:
    yard = tmp_path / "yard"
    keep(yard, stream(frames(3)))
    os.utime(segments(yard)[-1], (time.time() + 1e6, time.time() + 1e6))
    keep(yard, stream(frames(3)))
    times = open_recording(str(yard)).times_s(0, 6)
    assert times[3] - times[2] == pytest.approx(1.0)


def test_a_wall_clock_that_was_unset_makes_no_pause_of_decades(tmp_path: Path) -> None:
    yard = tmp_path / "yard"
    keep(yard, stream(frames(3)))
    os.utime(segments(yard)[-1], (0, 0))
    keep(yard, stream(frames(3)))
    times = open_recording(str(yard)).times_s(0, 6)
    assert times[3] - times[2] == pytest.approx(86_400.0)


def test_time_that_steps_back_in_a_source_stands_still(tmp_path: Path) -> None:
    inputs = [Sample(f, t, 0) for f, t in zip(frames(4), [5.0, 6.0, 5.5, 7.0], strict=True)]
    keep(tmp_path / "yard", Stream(list(inputs)))
    assert open_recording(str(tmp_path / "yard")).times_s(0, 4).tolist() == [0, 1, 1, 2]


def test_the_oldest_inputs_go_when_the_folder_is_full(tmp_path: Path) -> None:
    yard = tmp_path / "yard"
    inputs = frames(300, (96, 72))
    keep(yard, stream(inputs), max_bytes=MB)
    assert sum(p.stat().st_size for p in yard.iterdir()) <= MB
    left = [s.index for s in stored(yard)]
    assert left == list(range(left[0], 300))
    assert 0 < left[0] < 250
    recording = open_recording(str(yard))
    assert recording.count == len(left)
    assert next(recording.samples()).time_s == 0.0


def test_an_input_the_model_fails_on_is_kept_and_left_out_of_training(
    tmp_path: Path, caplog
) -> None:
    def fails(frame: np.ndarray) -> float:
        value = mean(frame)
        if 30 < value < 60:
            raise RuntimeError("too grey")
        return value

    inputs = [np.full((48, 64, 3), 5 * i, np.uint8) for i in range(20)]
    totals = keep(tmp_path / "yard", stream(inputs), model=fails)
    assert totals.inputs == 20
    assert totals.failed == 5  # 35, 40, 45, 50, 55
    assert caplog.text.count("too grey") == 1
    assert (
        sum(s.error is not None and "too grey" in s.error for s in stored(tmp_path / "yard")) == 5
    )
    recording = open_recording(str(tmp_path / "yard"))
    answers = recording.answers(0, recording.count)
    assert recording.count == len(answers) == 15
    assert not any(30 < value < 60 for value in answers)
    assert [s.index for s in recording.samples()] == list(range(15))
    steps = np.diff([s.time_s for s in recording.samples()])
    assert steps.max() == pytest.approx(0.6)


def test_bytes_that_are_no_picture_are_an_error_of_that_input(tmp_path: Path) -> None:
    jpeg = cv2.imencode(".jpg", frames(1)[0])[1].tobytes()
    totals = keep(
        tmp_path / "yard", stream([b"no picture", jpeg, np.zeros((3, 3), np.float32), jpeg])
    )
    assert (totals.inputs, totals.failed) == (4, 2)
    assert open_recording(str(tmp_path / "yard")).count == 2


def test_a_task_that_never_fits_ends_the_recording_at_once(tmp_path: Path, refuses) -> None:
    recorder = Recorder(tmp_path / "yard", manifest_of(ImageSpec(), "image"), MB)
    source = stream(frames(5))
    workload = Workload(mean, WorkloadSpec("label", "raw"))  # `label` needs classes
    with refuses(ConfigError, "task label needs classes"):
        record_stream(source, workload, recorder, Preparation("image"), Totals())
    recorder.close()
    assert source.closed
    assert source.let_go


def test_a_value_that_json_has_not_is_an_error_of_that_input(tmp_path: Path) -> None:
    values = iter([1.0, object(), np.float32(2), [1, "a", None], 10**30])
    recorder = Recorder(tmp_path / "yard", manifest_of(ImageSpec(), "image"), MB)
    totals = Totals()
    record_stream(stream(frames(5)), lambda d: next(values), recorder, Preparation("image"), totals)
    recorder.close()
    assert totals.failed == 3
    assert open_recording(str(tmp_path / "yard")).answers(0, 2) == [1.0, [1, "a", None]]


def test_an_input_too_large_to_be_kept_is_an_error_of_that_input(tmp_path: Path) -> None:
    big = np.random.default_rng(0).integers(0, 255, (1500, 1500, 3), np.uint8)
    totals = keep(tmp_path / "yard", stream([*frames(2), big, *frames(2)]), max_bytes=MB)
    assert (totals.inputs, totals.failed) == (5, 1)
    assert open_recording(str(tmp_path / "yard")).count == 4


def test_every_nth_input_is_kept_and_inferred(tmp_path: Path) -> None:
    seen = []
    keep(tmp_path / "yard", stream(frames(10)), model=lambda d: seen.append(0) or 1, every=4)
    recording = open_recording(str(tmp_path / "yard"))
    assert len(seen) == recording.count == 3
    assert [s.time_s for s in recording.samples()] == pytest.approx([0.0, 0.4, 0.8])


def test_it_ends_when_asked_and_lets_go_of_the_source(tmp_path: Path) -> None:
    source, asked = stream(frames(10)), iter([False, False, False, True])
    totals = keep(tmp_path / "a", source, stopping=lambda: next(asked))
    assert totals.inputs == 3
    assert source.closed
    assert source.let_go
    totals = keep(tmp_path / "b", Stream([*stream(frames(3))._samples, *[None] * 9]), most_s=1e-9)
    assert totals.inputs == 0


def test_it_tells_how_far_it_is_but_not_often(tmp_path: Path, monkeypatch) -> None:
    told = []
    keep(tmp_path / "a", stream(frames(10)), tell=lambda: told.append(1))
    assert told == []
    monkeypatch.setattr(record, "TELL_S", 0.0)
    keep(tmp_path / "b", stream(frames(10)), tell=lambda: told.append(1))
    assert len(told) == 10


def test_reduced_pictures_are_what_the_filter_reads_of_the_originals(tmp_path: Path) -> None:
    inputs: list[Any] = frames(4, (320, 240))
    inputs.append(cv2.imencode(".jpg", frames(1, (800, 600))[0])[1].tobytes())
    seen = []

    def model(frame: np.ndarray) -> float:
        seen.append(frame.shape)
        return mean(frame)

    keep(tmp_path / "yard", stream(inputs), reduced=(64, 48), model=model)
    assert seen == [(240, 320, 3)] * 4 + [(600, 800, 3)]
    for spec in (ImageSpec(64, 48), ImageSpec(64, 48, "GREY"), ImageSpec(64, 48, "BGR")):
        samples = open_recording(str(tmp_path / "yard"), None, spec).samples()
        for original, sample in zip(inputs, samples, strict=True):
            assert sample.data.shape == (48, 64, 3)
            assert np.array_equal(spec.tensor(original), spec.tensor(sample.data))
    assert all(s.encoding == "png" for s in stored(tmp_path / "yard"))


@pytest.mark.parametrize("reduced", [None, (32, 24)])
def test_what_is_masked_is_neither_kept_nor_seen(
    tmp_path: Path, reduced: tuple[int, int] | None
) -> None:
    left = Mask([((0, 0), (0.5, 0), (0.5, 1), (0, 1))])
    inputs: list[Any] = [np.full((48, 64, 3), 200, np.uint8)] * 2
    inputs.append(cv2.imencode(".jpg", inputs[0])[1].tobytes())
    shown: list[np.ndarray] = []

    def model(frame: np.ndarray) -> int:
        shown.append(frame)
        return 1

    keep(tmp_path / "yard", stream(inputs), mask=left, reduced=reduced, model=model)
    for sample in open_recording(str(tmp_path / "yard")).samples():
        shown.append(to_frame(sample.data))
    assert len(shown) == 6
    for frame in shown:
        middle = frame.shape[1] // 2
        assert frame[:, : middle - 4].max() <= 8
        assert frame[:, middle + 4 :].min() >= 190


def test_a_clip_is_kept_frame_by_frame(tmp_path: Path) -> None:
    many = frames(12)
    clips = [many[i : i + 4] for i in range(0, 9, 2)]
    spec = VideoSpec(frames=4, hop=2)
    keep(tmp_path / "yard", stream(clips), spec, "video")
    samples = list(open_recording(str(tmp_path / "yard"), None, spec).samples())
    assert [len(s.data) for s in samples] == [4] * 5
    assert samples[0].data[2:] == samples[1].data[:2]
    assert spec.tensor(samples[0].data).shape == (1, 4, 72, 96, 3)
    keep(tmp_path / "small", stream(clips), spec, "video", reduced=(96, 72))
    small = open_recording(str(tmp_path / "small"), None, spec).samples()
    for clip, sample in zip(clips, small, strict=True):
        assert np.array_equal(spec.tensor(clip), spec.tensor(sample.data))


def test_recorded_files_of_each_modality_give_the_same_inputs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pcm = rng.integers(-32768, 32767, 8000).astype("<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(pcm.tobytes())
    table = np.column_stack([np.arange(200) * 0.02, rng.normal(size=(200, 2))])
    np.savetxt(tmp_path / "b.csv", table, "%.9g", ",", header="time_s,x,y", comments="")
    (tmp_path / "c.txt").write_text("one\nzwei \u00fc\n\u4e09\n", encoding="utf-8")
    np.save(tmp_path / "d.npy", rng.integers(-99, 99, (7, 3, 2)).astype(np.int8))
    cases: list[tuple[str, str, Spec]] = [
        ("a.wav", "audio", AudioSpec(8000, window_ms=100, hop_ms=50)),
        ("b.csv", "motion", MotionSpec(("x", "y"), 20, 10, 50.0)),
        ("c.txt", "text", TextSpec()),
        ("d.npy", "features", FeaturesSpec((3, 2), "int8")),
    ]
    for name, modality, spec in cases:
        path = str(tmp_path / name)
        config = SourceConfig(address=path, filter="", model="", fast=True)
        source = open_source(name, config, spec, must_open=True)
        yard = tmp_path / f"{modality}-yard"
        totals = keep(yard, source, spec, modality)
        assert totals.failed == 0
        originals = list(open_recording(path, None, spec).samples())
        recording = open_recording(str(yard), None, spec)
        copies = list(recording.samples())
        assert totals.inputs == len(copies) == len(originals)
        for a, b in zip(originals, copies, strict=True):
            assert type(a.data) is type(b.data)
            assert np.array_equal(a.data, b.data)
            assert getattr(a.data, "dtype", None) == getattr(b.data, "dtype", None)
            assert a.time_s == pytest.approx(b.time_s)
        assert recording.answers(0, 2) == [mean(s.data) for s in originals[:2]]
        assert draft_spec(None, str(yard), {}) == (modality, spec)


@given(st.binary(min_size=2, max_size=200))
def test_samples_of_16_bits_are_kept_to_the_bit(content: bytes) -> None:
    pcm = np.frombuffer(content[: len(content) // 2 * 2], "<i2")
    for window in (pcm, pcm.astype(np.float32) / np.float32(32768)):
        encoding, data = encode_input(window, "audio")
        assert np.array_equal(decode_input(encoding, data) * 32768, pcm)


@given(st.text(st.characters(exclude_categories=[])))
def test_any_text_is_kept(text: str) -> None:
    assert decode_input(*encode_input(text, "text")) == text


def test_what_is_of_another_modality_is_refused(refuses) -> None:
    for data, modality in (
        ("text", "image"), (7, "video"), ([1.0], "audio"), (b"text", "text"),
        (np.array(["a"]), "features"), (np.array([object()]), "motion"),
        (np.zeros((3, 3)), "image"),
    ):  # fmt: skip
        with refuses(SourceError, "not "):
            encode_input(data, modality)


def test_nothing_is_unpickled_and_no_declared_size_is_believed(refuses) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return pytest.fail, ("unpickled",)

    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}\n"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    objects = npy.replace(b"<f8", b"|O8")
    for content in (npy, objects, npy + bytes(8), pickle.dumps(Trap()), b"", b"\x93NUMPY"):
        with refuses(SourceError, "no npy that can be decoded"):
            decode_input("npy", content)
    for encoding, data in (("pcm16", b"abc"), ("text", b"\xff"), ("png", b"abc"), ("png", b"")):
        with refuses(SourceError, f"no {encoding}"):
            decode_input(encoding, data)
    with refuses(SourceError, "a list of npy"):
        decode_input("npy", [b"a"])


def test_another_workload_or_form_is_not_mixed_in(tmp_path: Path, refuses) -> None:
    yard = tmp_path / "yard"
    keep(yard, stream(frames(2)))
    before = {p.name: p.read_bytes() for p in yard.iterdir()}
    whole = manifest_of(ImageSpec(), "image")
    for other in (
        manifest_of(ImageSpec(64, 48), "image"),
        manifest_of(ImageSpec(), "image", reduced=(64, 48)),
        manifest_of(ImageSpec(), "image", masks=(((0.0, 0.0), (1.0, 0.0), (1.0, 1.0)),)),
        msgspec.structs.replace(
            whole, workload=msgspec.structs.replace(whole.workload, task="label")
        ),
    ):
        with refuses(ConfigError, "another workload or form"):
            Recorder(yard, other, MB)
    assert {p.name: p.read_bytes() for p in yard.iterdir()} == before
    Recorder(yard, manifest_of(ImageSpec(), "image", made={"source": "elsewhere"}), MB).close()


def test_a_folder_of_something_else_is_refused(tmp_path: Path, refuses) -> None:
    for name in ("notes.txt", "00000001.seg"):
        folder = tmp_path / f"with {name}"
        folder.mkdir()
        (folder / name).write_text("mine")
        with refuses(ConfigError, f"holds other files .{name}"):
            Recorder(folder, manifest_of(ImageSpec(), "image"), MB)
        assert [p.name for p in folder.iterdir()] == [name]
    (tmp_path / "file").touch()
    with refuses(ConfigError, "cannot be written"):
        Recorder(tmp_path / "file", manifest_of(ImageSpec(), "image"), MB)


def test_what_a_kill_leaves_of_the_manifest_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / ".recording.json.abc").write_text("{")
    keep(tmp_path, stream(frames(2)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000001.seg", "recording.json"]


def test_a_recording_without_an_answer_is_refused_and_can_be_continued(tmp_path, refuses) -> None:
    keep(tmp_path / "yard", stream([]))
    with refuses(SourceError, "yard holds no input"):
        open_recording(str(tmp_path / "yard"))
    keep(tmp_path / "yard", stream(frames(2)))
    assert open_recording(str(tmp_path / "yard")).count == 2


def test_a_manifest_that_is_none_is_refused(tmp_path: Path, refuses) -> None:
    keep(tmp_path / "yard", stream(frames(2)))
    path = tmp_path / "yard" / "recording.json"
    good = path.read_text()
    for text, kind, words in (
        ("", SourceError, "damaged, or not of a recording"),
        ("[" * 100_000, SourceError, "damaged"),
        ("\u2028{}", SourceError, "damaged"),
        (good.replace('"format_version": 1', '"format_version": 9'), SourceError, "upgrade"),
        (good.replace('"masks"', '"maske"'), SourceError, "maske"),
        (good.replace('"width": 128', '"width": -1'), BundleError, "impossible input size"),
    ):
        path.write_text(text)
        with refuses(kind, words):
            open_recording(str(tmp_path / "yard"))


def test_records_that_make_no_sense_are_left_out(tmp_path: Path, caplog) -> None:
    keep(tmp_path / "yard", stream(frames(3)))
    writer = JournalWriter(tmp_path / "yard", MB)
    encode = msgspec.msgpack.encode
    for content in (
        b"\xc1", encode([1]), encode({"index": 1}), encode([1, float("nan"), None, 1, "jpeg", b""]),
        b"\x91" * 5000,
    ):  # fmt: skip
        writer.append(content)
    writer.append(encode([9, 5.0, None, 1, "elf", b"data"]))
    writer.close()
    recording = open_recording(str(tmp_path / "yard"))
    assert recording.count == 4
    assert "5 records that make no sense" in caplog.text
    with pytest.raises(SourceError, match="input 3, is damaged"):
        list(recording.samples())
    assert len(list(recording.samples(0, 3))) == 3


def test_a_recording_cut_by_a_power_loss_opens(tmp_path: Path) -> None:
    keep(tmp_path / "yard", stream(frames(6)))
    file = segments(tmp_path / "yard")[0]
    file.write_bytes(file.read_bytes()[:-100])
    assert open_recording(str(tmp_path / "yard")).count == 5
    keep(tmp_path / "yard", stream(frames(6)))
    assert open_recording(str(tmp_path / "yard")).count == 11
    assert [s.index for s in stored(tmp_path / "yard")] == list(range(11))


def test_the_answers_are_the_labels_of_the_same_workload(
    tmp_path: Path, monkeypatch, refuses
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    keep(tmp_path / "yard", stream(frames(6)))
    recording = open_recording(str(tmp_path / "yard"))
    runs = []

    def other(frame: np.ndarray) -> float:
        runs.append(1)
        return 7.0

    answers = recording.answers(0, 6)
    assert label(recording, workload_of("image", other), IDENTITY, 1, 4) == answers[1:4]
    assert runs == []
    assert not (tmp_path / "cache").exists()
    assert label(recording, workload_of("image", other), "another", 1, 4) == [7.0] * 3
    assert label(recording, workload_of("image", other, "value:7"), IDENTITY, 0, 1) == [None]
    assert len(runs) == 4
    keep(tmp_path / "small", stream(frames(6)), reduced=(64, 48))
    small = open_recording(str(tmp_path / "small"))
    assert len(label(small, workload_of("image", other), IDENTITY, 0, 6)) == 6
    with refuses(ConfigError, "reduced pictures"):
        label(small, workload_of("image", other), "another", 0, 6)
    assert len(runs) == 4


def test_a_filter_of_another_form_is_refused(tmp_path: Path, refuses) -> None:
    spec = MotionSpec(("x", "y"), 20, 10, 50.0)
    keep(tmp_path / "yard", stream([np.ones((20, 2), np.float32)] * 3), spec, "motion")
    yard = str(tmp_path / "yard")
    fitted = msgspec.structs.replace(spec, offset=(0.0, 1.0), scale=(1.0, 2.0), rate_hz=None)
    assert open_recording(yard, None, fitted).count == 3
    for other, words in (
        (ImageSpec(), "holds motion inputs, the filter reads image"),
        (MotionSpec(("x", "z"), 20, 10, 50.0), "channels=x,y, the filter reads x,z"),
        (MotionSpec(("x", "y"), 20, 5, 50.0), "hop=10, the filter reads 5"),
    ):
        with refuses(SourceError, words):
            open_recording(yard, None, other)
    with refuses(ConfigError, "motion inputs; leave out --modality"):
        draft_spec("audio", yard, {})


def test_the_content_hash_is_of_inputs_and_answers(tmp_path: Path) -> None:
    keep(tmp_path / "a", stream(frames(3)))
    keep(tmp_path / "b", stream(frames(3)))
    keep(tmp_path / "c", stream(frames(3)), model=lambda frame: 1)
    a, b, c = (Recorded(tmp_path / name).content_hash() for name in "abc")
    assert a == b
    assert a != c
    keep(tmp_path / "a", stream(frames(1)))
    assert Recorded(tmp_path / "a").content_hash() != a


def test_a_live_source_is_described_by_its_options(refuses) -> None:
    spec = draft_live_spec("motion", {"channels": ["x", "y"], "window_ms": "500"}, 50.0)
    assert spec == MotionSpec(("x", "y"), 25, 25, 50.0)
    spec = draft_live_spec("motion", {"channels": "x", "rate_hz": "100", "window": "30"}, None)
    assert spec == MotionSpec(("x",), 30, 50, 100.0)
    assert draft_live_spec("audio", {"window_ms": "500"}, 8000.0) == AudioSpec(8000, 500)
    assert draft_live_spec("image", {"width": "64"}, 5.0) == ImageSpec(64)
    with refuses(ConfigError, "--rate-hz"):
        draft_live_spec("motion", {"channels": ["x"]}, None)
    with refuses(ConfigError, "channels="):
        draft_live_spec("motion", {}, 50.0)


def test_sizes_and_polygons_as_text(refuses) -> None:
    sizes = {
        "500MB": 5 * 10**8,
        "2gb": 2 * 10**9,
        "1.5 GiB": 3 << 29,
        "1000000": 10**6,
        "3M": 3 * MB,
    }
    assert {text: parse_bytes(text) for text in sizes} == sizes
    for text in ("", "MB", "12 parsecs", "-1GB", "10kB"):
        with refuses(ConfigError, "--max-bytes"):
            parse_bytes(text)
    assert parse_polygon("0,0 0.5,0  0.5,1") == ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0))
    for text in ("", "0,0 1,1", "0,0 1,1 2,0", "0,0 1 1,0", "0,0 1,1 nan,0"):
        with refuses(ConfigError, "--mask"):
            parse_polygon(text)
    assert parse_size("128x96") == (128, 96)
    for text in ("128", "0x5", "5000x5000", "axb"):
        with refuses(ConfigError, "--reduced"):
            parse_size(text)


def test_a_disk_that_is_full_ends_it_and_the_source_is_let_go(
    tmp_path, monkeypatch, refuses, caplog
) -> None:
    source, write = stream(frames(50)), os.write

    def full(descriptor: int, content: bytes) -> int:
        if sum(p.stat().st_size for p in (tmp_path / "yard").iterdir()) > 20_000:
            write(descriptor, content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        return write(descriptor, content)

    monkeypatch.setattr(os, "write", full)
    with refuses(ConfigError, "yard cannot be written: no space left on device"):
        keep(tmp_path / "yard", source)
    monkeypatch.undo()
    assert source.let_go
    recording = open_recording(str(tmp_path / "yard"))
    assert recording.count == len(list(recording.samples())) > 1
    assert caplog.text == ""
