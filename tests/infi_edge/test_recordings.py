"""Recordings of each modality: which inputs there are, at which index, from which file."""

from __future__ import annotations

import logging
import pickle
import wave
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converters.recordings import fit_spec, load_training_data
from infi_edge.capture.recordings import draft_spec, open_recording
from infi_edge.capture.replay import Recording
from infi_edge.capture.windows import SignalWindows, Stretch
from infi_edge.errors import ConfigError, SourceError
from infi_edge.preprocess import (
    AudioSpec,
    FeaturesSpec,
    ImageSpec,
    MotionSpec,
    Spec,
    TextSpec,
    VideoSpec,
)
from infi_edge.replay import Truth
from infi_edge.tasks import same_exact

AUDIO = AudioSpec(8000, window_ms=100, hop_ms=50)  # 800 samples, one every 400
MOTION = MotionSpec(("x", "y"), window=10, hop=5)
CLIPS = VideoSpec(frames=4, hop=2, width=32, height=24)


def write_wav(path: Path, samples: np.ndarray, rate_hz: int = 8000, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def write_csv(path: Path, table: np.ndarray, header: str = "x,y") -> Path:
    np.savetxt(path, table, "%.9g", ",", header=header, comments="")
    return path


def write_video(path: Path, count: int, first: int = 0, size: tuple[int, int] = (64, 48)) -> Path:
    """Frames whose grey level says which one they are."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 20.0, size)
    for i in range(first, first + count):
        writer.write(np.full((size[1], size[0], 3), 4 * i + 20, np.uint8))
    writer.release()
    return path


def number_of(frame: np.ndarray) -> int:
    return round((float(frame.mean()) - 20) / 4)


@pytest.fixture
def walks(tmp_path: Path) -> Path:
    """Three tables of 23, 9 and 30 rows; x counts on through all of them."""
    folder = tmp_path / "walks"
    folder.mkdir()
    for name, first, count in (("a", 0, 23), ("b", 23, 9), ("c", 32, 30)):
        x = np.arange(first, first + count)
        write_csv(folder / f"{name}.csv", np.column_stack([x, -x]))
    (folder / "notes.txt").write_text("no table")
    return folder


def test_windows_never_span_two_files(walks: Path) -> None:
    recording = open_recording(str(walks), 50.0, MOTION)
    samples = list(recording.samples())
    starts = [int(s.data[0, 0]) for s in samples]
    assert starts == [0, 5, 10, 32, 37, 42, 47, 52]  # b.csv is shorter than a window
    assert all((np.diff(s.data[:, 0]) == 1).all() for s in samples)
    assert [Path(s.source).name for s in samples] == ["a.csv"] * 3 + ["c.csv"] * 5
    assert recording.count == len(samples)
    assert [s.index for s in samples] == list(range(8))
    assert recording.rate_hz == 10.0
    assert [s.time_s for s in samples] == pytest.approx([i / 10 for i in range(8)])


def test_windows_never_span_a_gap_in_time(tmp_path: Path) -> None:
    x = np.arange(40)
    times = x * 0.02 + np.where(x >= 17, 1.0, 0.0) + np.where(x >= 22, 0.02, 0.0)
    path = write_csv(tmp_path / "a.csv", np.column_stack([times, x, x]), "time_s,x,y")
    recording = open_recording(str(path), None, MOTION)
    starts = [int(s.data[0, 0]) for s in recording.samples()]
    assert starts == [0, 5, 22, 27]
    even = write_csv(tmp_path / "b.csv", np.column_stack([x * 0.02, x, x]), "time_s,x,y")
    assert open_recording(str(even), None, MOTION).count == 7


def test_jitter_is_no_gap_and_another_rate_is_refused(tmp_path: Path, refuses) -> None:
    rng = np.random.default_rng(0)
    times = np.arange(40) * 0.02 + rng.uniform(-0.008, 0.008, 40)
    path = write_csv(tmp_path / "a.csv", np.column_stack([times, times]), "time,x")
    assert open_recording(str(path), None, MotionSpec(("x",), 10, 5, 50.0)).count == 7
    with refuses(SourceError, "a.csv has .* samples a second, the filter reads 100; resample it"):
        open_recording(str(path), None, MotionSpec(("x",), 10, 5, 100.0))


def test_short_sounds_are_filled_up_with_silence(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.full(1999, 100))
    write_wav(tmp_path / "b.wav", np.full(300, 200))
    write_wav(tmp_path / "c.wav", np.full(800, 300))
    recording = open_recording(str(tmp_path), None, AUDIO)
    samples = list(recording.samples())
    assert [Path(s.source).name for s in samples] == ["a.wav"] * 3 + ["b.wav", "c.wav"]
    assert all(s.data.shape == (800,) for s in samples)
    assert (samples[3].data[:300] * 32768 == 200).all()
    assert not samples[3].data[300:].any()
    assert recording.count == 5
    assert recording.rate_hz == 20.0


def test_clips_never_span_two_files(tmp_path: Path) -> None:
    write_video(tmp_path / "a.avi", 9)
    write_video(tmp_path / "b.avi", 3, 9)
    write_video(tmp_path / "c.avi", 6, 12, (80, 60))
    recording = open_recording(str(tmp_path), None, CLIPS)
    found = [[number_of(f) for f in s.data] for s in recording.samples()]
    assert found == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [12, 13, 14, 15], [14, 15, 16, 17]]
    assert recording.count == 5
    assert recording.rate_hz == 10.0


def test_a_hop_longer_than_a_clip_leaves_frames_out(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", 14)
    recording = open_recording(str(path), None, VideoSpec(2, 5, 32, 24))
    assert [[number_of(f) for f in s.data] for s in recording.samples()] == [
        *([0, 1], [5, 6], [10, 11]),
    ]


def test_lines_of_a_folder_follow_each_other(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("three\n\n")
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    recording = open_recording(str(tmp_path), 4.0, TextSpec())
    assert [s.data for s in recording.samples()] == ["one", "two", "three", ""]
    assert recording.rate_hz == 4.0


@pytest.mark.parametrize("suffix", ["npy", "npz", "NPY"])
def test_arrays_come_one_by_one(tmp_path: Path, suffix: str) -> None:
    maps = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
    path = tmp_path / f"maps.{suffix}"
    with path.open("wb") as file:
        np.savez(file, inputs=maps, other=1) if suffix == "npz" else np.save(file, maps)
    recording = open_recording(str(path), 2.0, FeaturesSpec((2, 4)))
    samples = list(recording.samples(1, 3))
    assert [s.index for s in samples] == [1, 2]
    assert (np.stack([s.data for s in samples]) == maps[1:]).all()
    assert type(samples[0].data) is np.ndarray
    assert (recording.count, recording.rate_hz) == (3, 2.0)


def identity(data: object) -> bytes:
    parts = data if isinstance(data, list) else [data]
    return b"".join(p.encode() if isinstance(p, str) else p.tobytes() for p in parts)


def recordings(folder: Path) -> dict[str, Recording]:
    """One of each kind, each with several stretches where there can be some."""
    for name in ("sounds", "clips", "walks", "lines", "pictures"):
        (folder / name).mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for name, count in (("a", 1999), ("b", 90), ("c", 2600)):
        write_wav(folder / "sounds" / f"{name}.wav", rng.integers(-9999, 9999, count))
        write_csv(folder / "walks" / f"{name}.csv", rng.normal(size=(count // 80 + 5, 2)))
        (folder / "lines" / f"{name}.txt").write_text("".join(f"{name} {i}\n" for i in range(4)))
        cv2.imwrite(str(folder / "pictures" / f"{name}.png"), rng.integers(0, 255, (8, 9, 3)))
    write_video(folder / "clips" / "a.avi", 11)
    write_video(folder / "clips" / "b.avi", 7, 11)
    np.save(folder / "maps.npy", rng.normal(size=(7, 2, 2)))
    return {
        "audio": open_recording(str(folder / "sounds"), None, AUDIO),
        "video": open_recording(str(folder / "clips"), None, CLIPS),
        "motion": open_recording(str(folder / "walks"), None, MOTION),
        "text": open_recording(str(folder / "lines"), None, TextSpec()),
        "features": open_recording(str(folder / "maps.npy"), None, FeaturesSpec((2, 2))),
        "image": open_recording(str(folder / "pictures"), None, ImageSpec()),
    }


@pytest.mark.parametrize("kind", ["audio", "video", "motion", "text", "features", "image"])
def test_any_cut_gives_just_those_inputs(tmp_path: Path, kind: str) -> None:
    recording = recordings(tmp_path)[kind]
    whole = list(recording.samples())
    assert len(whole) == recording.count > 2
    for first in range(recording.count + 1):
        for last in (first, first + 1, first + 3, recording.count, recording.count + 9):
            part = list(recording.samples(first, last))
            assert [s.index for s in part] == list(range(first, min(last, recording.count)))
            for found, expected in zip(part, whole[first:last], strict=True):
                assert identity(found.data) == identity(expected.data)
                assert (found.time_s, found.source) == (expected.time_s, expected.source)


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6),
    st.integers(1, 12),
    st.integers(1, 15),
    st.booleans(),
    st.data(),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_windows_of_any_stretches_are_those_of_a_slow_reading(
    lengths: list[int], window: int, hop: int, pad: bool, data: st.DataObject
) -> None:
    signals = [1000 * i + 1 + np.arange(n, dtype=np.float32) for i, n in enumerate(lengths)]
    expected = []
    for signal in signals:
        if pad and 0 < len(signal) < window:
            expected.append(np.append(signal, np.zeros(window - len(signal), np.float32)))
        starts = range(0, len(signal) - window + 1, hop)
        expected += [signal[i : i + window] for i in starts]
    stretches = [Stretch("s", len(s), lambda s=s: s) for s in signals]
    if not expected:
        with pytest.raises(SourceError, match=f"s is shorter than one window of {window} samples"):
            SignalWindows("s", stretches, window, hop, 10.0, str, pad)
        return
    recording = SignalWindows("s", stretches, window, hop, 10.0, str, pad)
    first = data.draw(st.integers(0, len(expected)))
    last = data.draw(st.none() | st.integers(first, len(expected) + 3))
    found = list(recording.samples(first, last))
    assert recording.count == len(expected)
    assert [s.data.tolist() for s in found] == [e.tolist() for e in expected[first:last]]


@pytest.mark.parametrize("kind", ["audio", "motion", "features", "text"])
def test_a_model_that_writes_into_its_input_changes_no_other_input(
    tmp_path: Path, kind: str
) -> None:
    recording = recordings(tmp_path)[kind]
    before = [identity(s.data) for s in recording.samples()]
    again = []
    for sample in recording.samples():
        again.append(identity(sample.data))
        if isinstance(sample.data, np.ndarray):
            sample.data[...] = 0
    assert again == before
    assert [identity(s.data) for s in recording.samples()] == before


def test_a_model_cannot_draw_on_frames_that_clips_share(tmp_path: Path) -> None:
    sample = next(recordings(tmp_path)["video"].samples())
    with pytest.raises(ValueError, match="read-only"):
        sample.data[0][:] = 0
    with pytest.raises(cv2.error):
        cv2.rectangle(sample.data[0], (1, 1), (5, 5), (0, 0, 255))


@pytest.mark.parametrize("kind", ["audio", "video", "motion", "text", "features", "image"])
def test_the_content_hash_is_of_the_content(tmp_path: Path, kind: str) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first = recordings(tmp_path / "one")[kind].content_hash()
    assert first == recordings(tmp_path / "two")[kind].content_hash()
    files = sorted(p for p in (tmp_path / "two").rglob("*") if p.is_file())
    changed = set()
    for file in files:
        content = file.read_bytes()
        last = len(content) - 3  # a digit, in a table
        file.write_bytes(content[:last] + bytes([content[last] ^ 1]) + content[last + 1 :])
        spec = {"audio": AUDIO, "video": CLIPS, "motion": MOTION, "text": TextSpec()}.get(kind)
        path = {"audio": "sounds", "video": "clips", "motion": "walks", "text": "lines"}
        name = path.get(kind, "maps.npy" if kind == "features" else "pictures")
        recording = open_recording(str(tmp_path / "two" / name), None, spec)
        if recording.content_hash() != first:
            changed.add(file.relative_to(tmp_path / "two").parts[0])
        file.write_bytes(content)
    assert changed == {name}


def test_the_content_hash_is_of_the_windows_as_well(tmp_path: Path) -> None:
    every = [recordings(tmp_path)[kind].content_hash() for kind in ("audio", "motion", "video")]
    for spec in (AudioSpec(8000, 100, 51), AudioSpec(8000, 101, 50), AudioSpec(8000, 100, 25)):
        every.append(open_recording(str(tmp_path / "sounds"), None, spec).content_hash())
    for window, hop in ((10, 4), (9, 5), (5, 10)):
        spec = MotionSpec(("x", "y"), window, hop)
        every.append(open_recording(str(tmp_path / "walks"), None, spec).content_hash())
    for frames, hop in ((4, 1), (3, 2), (2, 4)):
        spec = VideoSpec(frames, hop)
        every.append(open_recording(str(tmp_path / "clips"), None, spec).content_hash())
    assert len(set(every)) == len(every)


def test_a_file_moved_to_another_name_is_another_recording(tmp_path: Path) -> None:
    first = recordings(tmp_path)["text"].content_hash()
    (tmp_path / "lines" / "a.txt").rename(tmp_path / "lines" / "d.txt")
    again = open_recording(str(tmp_path / "lines"), None, TextSpec())
    assert again.content_hash() != first


@pytest.mark.parametrize("kind", ["audio", "video", "motion", "text", "features", "image"])
def test_the_tensor_trained_on_is_the_one_the_device_computes(tmp_path: Path, kind: str) -> None:
    recording = recordings(tmp_path)[kind]
    specs: dict[str, Spec] = {
        "audio": AUDIO,
        "video": CLIPS,
        "motion": MOTION,
        "text": TextSpec(8),
        "features": FeaturesSpec((2, 2)),
        "image": ImageSpec(16, 12),
    }
    count = recording.count
    spec = fit_spec(recording, 0, count, specs[kind])
    truth = Truth(np.zeros(count), [0] * count, np.zeros(count, bool), same_exact, None)
    data = load_training_data(recording, truth, 0, count, spec)
    for i, sample in enumerate(recording.samples()):
        tensor = spec.tensor(sample.data)
        assert tensor.dtype == data.tensors.dtype == spec.dtype
        assert tensor.tobytes() == data.tensors[i].tobytes()
        assert spec.features(tensor).tobytes() == data.features[i].tobytes()


@pytest.mark.parametrize(
    ("name", "modality"),
    [("sounds", "audio"), ("walks", "motion"), ("lines", "text"), ("pictures", "image")],
)
def test_the_modality_follows_from_the_files(tmp_path: Path, name: str, modality: str) -> None:
    recordings(tmp_path)
    assert draft_spec(None, str(tmp_path / name), {})[0] == modality
    file = next((tmp_path / name).iterdir())
    assert draft_spec(None, str(file), {})[0] == modality
    assert draft_spec(None, str(tmp_path / "maps.npy"), {})[0] == "features"
    assert draft_spec(None, str(tmp_path / "clips" / "a.avi"), {})[0] == "image"


def test_a_sounds_rate_is_taken_from_its_file(tmp_path: Path, refuses) -> None:
    path = str(write_wav(tmp_path / "a.wav", np.zeros(9000), 22050))
    spec = draft_spec(None, path, {"window_ms": "200"})[1]
    assert spec == AudioSpec(22050, window_ms=200)
    write_wav(tmp_path / "a.wav", np.zeros(9000), 96000)
    with refuses(SourceError, "a.wav is sampled at 96000 Hz; resample it to 8000..48000"):
        draft_spec(None, path, {})


def test_a_motion_window_is_given_in_samples_or_milliseconds(tmp_path: Path, refuses) -> None:
    table = np.column_stack([np.arange(100) / 50, np.zeros((100, 2))])
    timed = str(write_csv(tmp_path / "timed.csv", table, "time,x,y"))
    plain = str(write_csv(tmp_path / "plain.csv", table[:, 1:]))
    assert draft_spec(None, timed, {})[1] == MotionSpec(("x", "y"), 100, 25, pytest.approx(50.0))
    spec = draft_spec(None, timed, {"window_ms": "500", "hop": "7"})[1]
    assert (spec.window, spec.hop) == (25, 7)  # type: ignore[attr-defined]
    assert draft_spec(None, plain, {})[1] == MotionSpec(("x", "y"))
    assert draft_spec(None, plain, {"window": "9"}, 10.0)[1] == MotionSpec(("x", "y"), 9, 5, 10.0)
    assert draft_spec(None, plain, {"hop_ms": "300"}, 10.0)[1].hop == 3  # type: ignore[attr-defined]
    with refuses(ConfigError, "window_ms needs the signal's rate; add --rate-hz"):
        draft_spec(None, plain, {"window_ms": "500"})
    for wrong in ("long", "nan", "inf", ["1", "2"]):
        with refuses(ConfigError, "window_ms=.* not a number"):
            draft_spec(None, timed, {"window_ms": wrong})
    with refuses(ConfigError, "hop_ms=-5: not above 0"):
        draft_spec(None, timed, {"hop_ms": "-5"})


def test_times_in_milliseconds_are_not_taken_for_seconds(tmp_path: Path, refuses) -> None:
    table = np.column_stack([np.arange(100) * 20, np.zeros(100)])
    path = str(write_csv(tmp_path / "a.csv", table, "timestamp,x"))
    with refuses(SourceError, "samples are 20 s apart; give times in seconds, or .*window="):
        draft_spec(None, path, {})
    spec = draft_spec(None, path, {"window": "6", "hop": "2"})[1]
    assert spec == MotionSpec(("x",), 6, 2, pytest.approx(0.05))


@pytest.mark.parametrize(
    ("kind", "type_"),
    [
        *(("float32", "float32"), ("float64", "float32"), ("float16", "float32")),
        *(("int8", "int8"), ("uint8", "uint8"), ("bool", "uint8"), ("int16", "float32")),
        *(("int32", "int32"), ("int64", "int32")),
    ],
)
def test_an_arrays_size_and_type_are_taken_from_it(tmp_path: Path, kind: str, type_: str) -> None:
    np.save(tmp_path / "maps.npy", np.ones((5, 4, 3), kind))
    modality, spec = draft_spec(None, str(tmp_path / "maps.npy"), {})
    assert (modality, spec) == ("features", FeaturesSpec((4, 3), type_))  # type: ignore[arg-type]
    for sample in open_recording(str(tmp_path / "maps.npy"), None, spec).samples():
        assert (spec.tensor(sample.data) == 1).all()


@pytest.mark.parametrize("shape", [(6, 20, 3), (6, 20, 1), (6, 20)])
def test_motion_may_lie_in_windows_in_an_array(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "walk.npy", np.random.default_rng(0).normal(size=shape))
    path = str(tmp_path / "walk.npy")
    spec = draft_spec("motion", path, {}, 50.0)[1]
    assert spec.shape == (20, shape[2] if len(shape) > 2 else 1)
    recording = open_recording(path, 50.0, spec)
    assert (recording.count, recording.rate_hz) == (6, 2.5)
    assert open_recording(path, None, spec).rate_hz == 2.5
    fitted = fit_spec(recording, 0, 6, spec)
    assert np.std([fitted.tensor(s.data) for s in recording.samples()]) == pytest.approx(1)


def test_columns_are_found_by_name_whatever_their_order(tmp_path: Path, refuses) -> None:
    table = np.column_stack([np.arange(20), -np.arange(20)])
    swapped = write_csv(tmp_path / "a.csv", table, "y,x")
    window = next(open_recording(str(swapped), None, MOTION).samples()).data
    assert window[3].tolist() == [-3, 3]
    np.savetxt(tmp_path / "b.csv", table, "%g", ",")
    window = next(open_recording(str(tmp_path / "b.csv"), None, MOTION).samples()).data
    assert window[3].tolist() == [3, -3]
    other = write_csv(tmp_path / "c.csv", table, "x,z")
    with refuses(SourceError, r"c.csv has 2 channels \(x, z\), the filter reads 2 \(x, y\)"):
        open_recording(str(other), None, MOTION)
    more = write_csv(tmp_path / "d.csv", np.zeros((20, 3)), "x,y,z")
    with refuses(SourceError, r"d.csv has 3 channels .* reads 2"):
        open_recording(str(more), None, MOTION)


def test_constant_channels_are_named_once(tmp_path: Path, caplog) -> None:
    moving = np.arange(20.0)
    for name in ("a", "b"):
        table = np.column_stack([moving, np.full(20, 5.0), np.full(20, np.nan)])
        write_csv(tmp_path / f"{name}.csv", table, "x,y,z")
    spec = MotionSpec(("x", "y", "z"), 10, 5)
    with caplog.at_level(logging.WARNING):
        open_recording(str(tmp_path), None, spec)
    (record,) = caplog.records
    assert "nothing can be learned from y, z, which never changes" in record.getMessage()
    caplog.clear()
    table[:, 2] = moving
    write_csv(tmp_path / "b.csv", table, "x,y,z")
    open_recording(str(tmp_path), None, spec)
    assert "from y, which" in caplog.text
    caplog.clear()
    np.save(tmp_path / "walk.npy", np.tile(table[:10], (4, 1, 1)))
    open_recording(str(tmp_path / "walk.npy"), None, spec)
    assert "from y, which" in caplog.text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no array file"),
        (b"garbage", "no array file of numbers"),
        (pickle.dumps([1, 2]), "Python objects in it are never loaded"),
        (b"\x93NUMPY\x01\x00", "is no array file"),
        (b"PK\x03\x04 no zip", "is no array file"),
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_what_is_no_array_is_refused(
    tmp_path: Path, refuses, content: bytes, words: str, suffix: str
) -> None:
    path = tmp_path / f"maps.{suffix}"
    path.write_bytes(content)
    with refuses(SourceError, f"{path} {words}|{path} .*{words}"):
        open_recording(str(path))


class Trap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_pickled_objects_are_refused_and_never_loaded(tmp_path: Path, refuses, suffix: str) -> None:
    trap = np.array([Trap(tmp_path / "sprung")], object)
    path = tmp_path / f"maps.{suffix}"
    (np.savez if suffix == "npz" else np.save)(path, trap)
    with refuses(SourceError, "Python objects in it are never loaded"):
        open_recording(str(path))
    with refuses(SourceError, "Python objects"):
        draft_spec(None, str(path), {})
    assert not (tmp_path / "sprung").exists()
    loaded = np.load(path, allow_pickle=True)
    assert loaded["arr_0" if suffix == "npz" else ...].shape == (1,)
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": np.zeros(3), "b": np.zeros(3)}, "holds 2 arrays, none of them 'inputs'"),
        ({"a": np.array(3)}, r"holds int64 of shape \(\); inputs are numbers"),
        ({"a": np.array(["x"])}, "holds <U1"),
        ({"a": np.zeros(3, complex)}, "holds complex128"),
        ({"a": np.zeros((0, 4))}, "is empty"),
    ],
)
def test_arrays_that_are_no_inputs_are_refused(tmp_path: Path, refuses, arrays, words: str) -> None:
    np.savez(tmp_path / "maps.npz", **arrays)
    with refuses(SourceError, f"maps.npz {words}"):
        open_recording(str(tmp_path / "maps.npz"))


def test_a_truncated_array_file_is_refused(tmp_path: Path, refuses) -> None:
    for name, save in (("a.npy", np.save), ("a.npz", lambda p, a: np.savez(p, inputs=a))):
        save(tmp_path / name, np.random.default_rng(0).normal(size=(50, 9)))
        content = (tmp_path / name).read_bytes()
        for share in (0.02, 0.5, 0.97):
            (tmp_path / name).write_bytes(content[: int(share * len(content))])
            with refuses(SourceError, f"{name} is no array file"):
                open_recording(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "spec", "words"),
    [
        ("none", None, "none does not exist"),
        ("x" * 5000, None, "does not exist"),
        ("a\0b", None, "does not exist"),
        ("empty", AUDIO, "holds no .wav files"),
        ("empty", MOTION, "holds no .csv files"),
        ("empty", TextSpec(), "holds no .txt files"),
        ("empty", CLIPS, "holds no .avi, .*.mp4.* files"),
        ("empty", FeaturesSpec(), "holds no arrays; give a .npy or .npz file"),
        ("lines.txt", FeaturesSpec(), "holds no arrays"),
        ("lines.txt", AUDIO, "is not a WAV file"),
        ("lines.txt", CLIPS, "cannot be read as a video"),
        ("still.avi", CLIPS, "is shorter than one clip of 4 frames"),
        ("short.csv", MOTION, "is shorter than one window of 10 samples"),
        ("void.txt", TextSpec(), "is empty"),
    ],
)
def test_what_is_not_there_is_refused(
    tmp_path: Path, refuses, name: str, spec: Spec | None, words: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "lines.txt").write_text("a line\n")
    (tmp_path / "void.txt").write_text("")
    write_csv(tmp_path / "short.csv", np.zeros((9, 2)))
    write_video(tmp_path / "still.avi", 3)
    with refuses(SourceError, words) if "\0" not in name else pytest.raises(SourceError):
        list(open_recording(str(tmp_path / name), None, spec).samples())


def test_columns_in_another_order_are_another_recording(tmp_path):
    """The model sees other arrays, so its answers must not be found again under the old ones."""
    path = tmp_path / "walk.csv"
    path.write_text("a,b\n" + "1,2\n" * 40)
    one, other = (MotionSpec(channels=c, window=4, hop=2) for c in (("a", "b"), ("b", "a")))
    first, second = (open_recording(str(path), 10.0, spec) for spec in (one, other))
    assert next(first.samples()).data[0].tolist() == [1, 2]
    assert next(second.samples()).data[0].tolist() == [2, 1]
    assert first.content_hash() != second.content_hash()


@pytest.mark.parametrize("name", ["timestamp_ms", "t", "Time (s)", "ts", "date"])
def test_times_of_another_name_are_no_channel(tmp_path, name):
    path = tmp_path / "walk.csv"
    path.write_text(f"{name},a\n" + "".join(f"{i},2\n" for i in range(40)))
    with pytest.raises(SourceError, match="name it time_s"):
        draft_spec(None, str(path), {})


def test_an_unclosed_quote_is_named_by_its_own_line(tmp_path):
    path = tmp_path / "walk.csv"
    path.write_text("a,b\n" + "1,2\n" * 5 + '1,"2\n' + "1,2\n" * 50)
    with pytest.raises(SourceError, match="line 7 is not CSV"):
        draft_spec(None, str(path), {})
