"""Published layouts, written small, and the real ones where they are, become recordings."""

from __future__ import annotations

import csv
import importlib.util
import io
import subprocess
import sys
import tarfile
import wave
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from converters.dataset_cli import dataset_command
from converters.datasets import LOADERS, Dataset, Stream, load_dataset, uci_har, watch
from converters.datasets.addresses import ADDRESSES, Address
from converters.datasets.archives import unpack
from converters.datasets.write import Written, write_recordings
from infi_edge.capture.recordings import draft_spec, open_recording
from infi_edge.capture.replay import Recording, file_hash
from infi_edge.errors import ConfigError, InfiEdgeError, SourceError
from tests.conftest import DATA, ROOT, need


def write_har(root: Path) -> Path:
    """Three subjects, five windows: 1 (train, two activities), 3 (train), 2 (test)."""
    folder = root / "UCI HAR Dataset"
    rng = np.random.default_rng(0)
    rows = {"train": ([5, 4, 4, 6], [1, 1, 3, 1]), "test": ([6], [2])}
    for split, (labels, subjects) in rows.items():
        (folder / split / "Inertial Signals").mkdir(parents=True)
        (folder / split / f"y_{split}.txt").write_text("".join(f"{y}\n" for y in labels))
        (folder / split / f"subject_{split}.txt").write_text("".join(f"{s}\n" for s in subjects))
        for channel in uci_har.CHANNELS:
            file = folder / split / "Inertial Signals" / f"{channel}_{split}.txt"
            np.savetxt(file, rng.normal(size=(len(labels), 128)), "%16.7e")
    names = ("WALKING", "UPSTAIRS", "DOWNSTAIRS", "SITTING", "STANDING", "LAYING")
    text = "".join(f"{i} {name}\n" for i, name in enumerate(names, 1))
    (folder / "activity_labels.txt").write_text(text)
    return folder


def write_wav(path: Path, seconds: float = 1.0, rate_hz: int = 8000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate_hz, 0, "NONE", ""))
        file.writeframes(b"\1\0" * round(seconds * rate_hz))


def write_esc(folder: Path) -> Path:
    rows = [
        ("1-100032-A-0.wav", 1, 0, "dog", "True"),
        ("1-100038-A-14.wav", 1, 14, "chirping_birds", "False"),
        ("5-9032-A-0.wav", 5, 0, "dog", "True"),
        ("2-117271-A-0.wav", 2, 0, "dog", "True"),
    ]
    (folder / "meta").mkdir(parents=True)
    with (folder / "meta" / "esc50.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("filename", "fold", "target", "category", "esc10", "src_file", "take"))
        for name, *rest in rows:
            table.writerow((name, *rest, name.split("-")[1], "A"))
            write_wav(folder / "audio" / name)
    return folder


def write_postures(folder: Path, dummy: bool = True) -> Path:
    """Users 0 and 2; the third marker of the second record is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    records = [(1, 2), (1, 0), (5, 0)]
    lines = ["Class,User," + ",".join(f"{a}{i}" for i in range(12) for a in "XYZ")]
    if dummy:
        lines.append(",".join(["0"] * 38))
    for number, (posture, user) in enumerate(records):
        values = [f"{x:.8f}" for x in rng.normal(0, 50, 36)]
        if number == 1:
            values[6:9] = ["?"] * 3
        lines.append(",".join([str(posture), str(user), *values]))
    (folder / "Postures.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_video(path: Path, frames: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for i in range(frames):
        video.write(np.full((48, 64, 3), 20 * i % 256, np.uint8))
    video.release()


def write_image(path: Path, level: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((48, 64, 3), level, np.uint8))


def write_hollywood2(folder: Path) -> Path:
    lists = {
        "AnswerPhone_train": "actioncliptrain00001  1\nactioncliptrain00002  -1\n",
        "Kiss_train": "actioncliptrain00001  1\nactioncliptrain00002  -1\n",
        "AnswerPhone_test": "actioncliptest00001 -1\n",
        "Kiss_test": "actioncliptest00001 1\n",
        "actions_train": "actioncliptrain00001  1\nactioncliptrain00002  1\n",
        "README": "not a list\n",
    }
    (folder / "ClipSets").mkdir(parents=True)
    for name, text in lists.items():
        (folder / "ClipSets" / f"{name}.txt").write_text(text)
    for name in ("actioncliptrain00001", "actioncliptrain00002", "actioncliptest00001"):
        write_video(folder / "AVIClips" / f"{name}.avi")
        write_image(folder / "frames" / name / "f2.jpg", 2)
        write_image(folder / "frames" / name / "f10.jpg", 10)
        write_wav(folder / "audio" / f"{name}.wav")
    subtitles = folder / "subtitles"
    subtitles.mkdir()
    (subtitles / "actioncliptrain00001.txt").write_text("Hello?\n\nWho is there?\n")
    (subtitles / "actioncliptrain00002.txt").write_text("\n")
    (subtitles / "actioncliptest00001.srt").write_text(
        "1\n00:00:01,000 --> 00:00:02,000\n<i>7\nof us.</i>\n\n"
        "2\n00:00:03,000 --> 00:00:04,000\nGo!",
    )
    return folder


def write_cameras(folder: Path) -> Path:
    for number in (1, 2, 10):
        write_image(folder / "cam-a" / f"{number}.jpg", number)
    write_image(folder / "cam-b" / "0001.png")
    write_video(folder / "cam-c.avi")
    (folder / "SOURCE.txt").write_text("ours")
    return folder


def write_digits(folder: Path) -> Path:
    for name in ("0_theo_0", "0_theo_5", "0_theo_10", "7_theo_4", "7_mary_jane_49"):
        write_wav(folder / "recordings" / f"{name}.wav", 0.5)
    return folder


def write_wnut(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "wnut17train.conll").write_text("Anna\tB-person\nis\tO\nhere\tO\n\t\nHi\tO\n")
    (folder / "emerging.test.annotated").write_text(
        "In\tO\nNew\tB-location\nYork\tI-location\nAnna\tB-person\n\n\n", encoding="utf-8"
    )
    return folder


def write_clips(folder: Path) -> Path:
    write_video(folder / "yes.avi")
    write_video(folder / "no.avi", 16)
    return folder


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "uci-har": write_har,
    "postures": write_postures,
    "esc-50": write_esc,
    "esc-10": write_esc,
    "spoken-digits": write_digits,
    "wnut17": write_wnut,
    "hollywood2": write_hollywood2,
    "hollywood2-frames": write_hollywood2,
    "hollywood2-audio": write_hollywood2,
    "hollywood2-subtitles": write_hollywood2,
    "city-traffic": write_cameras,
    "traffic": write_clips,
    "person": write_clips,
    "signs": write_clips,
}


def by_name(dataset: Dataset) -> dict[str, Stream]:
    return {stream.name: stream for stream in dataset.streams}


def file_names(stream: Stream) -> list[str]:
    return [Path(str(file)).name for file in stream.inputs]


def test_every_loader_has_a_layout_here_and_a_line_of_help() -> None:
    assert set(LAYOUTS) == set(LOADERS) - {"watch"}
    assert all((loader.__doc__ or "").strip() for loader in LOADERS.values())


def test_har_is_windows_of_nine_channels_by_subject(tmp_path: Path) -> None:
    folder = write_har(tmp_path)
    dataset = load_dataset("uci-har", folder)
    assert (dataset.modality, len(dataset.channels), dataset.hop) == ("motion", 9, 64)
    streams = by_name(dataset)
    assert {name: (s.split, s.labels) for name, s in streams.items()} == {
        "subject01": ("train", ("STANDING", "SITTING", "LAYING")),
        "subject03": ("train", ("SITTING",)),
        "subject02": ("test", ("LAYING",)),
    }
    gyro = np.loadtxt(folder / "train" / "Inertial Signals" / "body_gyro_y_train.txt")
    windows = streams["subject01"].inputs
    assert isinstance(windows, np.ndarray)
    assert (windows.shape, windows.dtype) == ((3, 128, 9), np.float32)
    np.testing.assert_allclose(windows[..., 4], gyro[[0, 1, 3]], rtol=1e-6)
    assert by_name(load_dataset("uci-har", tmp_path)).keys() == streams.keys()


def test_esc_takes_labels_and_folds_from_the_table(tmp_path: Path) -> None:
    write_esc(tmp_path / "ESC-50-master")
    streams = by_name(load_dataset("esc-50", tmp_path))
    assert list(streams) == ["fold1", "fold2", "fold5"]
    assert file_names(streams["fold1"]) == ["1-100032-A-0.wav", "1-100038-A-14.wav"]
    assert streams["fold1"].labels == ("dog", "chirping_birds")
    ten = by_name(load_dataset("esc-10", tmp_path))
    assert ten["fold1"].labels == ("dog",)


def test_the_older_esc10_needs_wav(tmp_path: Path) -> None:
    (tmp_path / "001 - Dog bark").mkdir()
    (tmp_path / "001 - Dog bark" / "1-30226-A.ogg").write_bytes(b"OggS")
    with pytest.raises(SourceError, match=r"001 - Dog bark holds \.ogg files, and WAV is needed"):
        load_dataset("esc-10", tmp_path)
    write_wav(tmp_path / "001 - Dog bark" / "1-30226-A.wav")
    write_wav(tmp_path / "002 - Rain" / "3-17367-A.wav")
    streams = by_name(load_dataset("esc-10", tmp_path))
    assert {s.group: s.labels for s in streams.values()} == {
        "fold1": ("Dog bark",),
        "fold3": ("Rain",),
    }
    with pytest.raises(SourceError, match="the older release"):
        load_dataset("esc-50", tmp_path)


@pytest.mark.parametrize("dummy", [False, True])
def test_postures_leave_out_the_dummy_and_keep_what_is_missing(tmp_path: Path, dummy: bool) -> None:
    dataset = load_dataset("postures", write_postures(tmp_path, dummy))
    streams = by_name(dataset)
    assert {name: s.labels for name, s in streams.items()} == {
        "user00": ("fist", "grab"),
        "user02": ("fist",),
    }
    records = streams["user00"].inputs
    assert isinstance(records, np.ndarray)
    assert records.shape == (2, 1, 36)
    assert np.flatnonzero(np.isnan(records[0, 0])).tolist() == [6, 7, 8]
    assert not np.isnan(records[1]).any()


def test_hollywood2_joins_the_lists_of_actions(tmp_path: Path) -> None:
    streams = by_name(load_dataset("hollywood2", write_hollywood2(tmp_path)))
    assert {name: (s.labels, s.split) for name, s in streams.items()} == {
        "actioncliptrain00001": (("AnswerPhone Kiss",), "train"),
        "actioncliptrain00002": (("none",), "train"),
        "actioncliptest00001": (("Kiss",), "test"),
    }
    assert file_names(streams["actioncliptest00001"]) == ["actioncliptest00001.avi"]


def test_hollywood2_recuts_have_the_clips_labels(tmp_path: Path) -> None:
    folder = write_hollywood2(tmp_path)
    frames = by_name(load_dataset("hollywood2-frames", folder))["actioncliptest00001"]
    assert (file_names(frames), frames.labels) == (["f2.jpg", "f10.jpg"], ("Kiss",))
    assert len(load_dataset("hollywood2-audio", folder).streams) == 3
    texts = by_name(load_dataset("hollywood2-subtitles", folder))
    assert {name: s.inputs for name, s in texts.items()} == {
        "actioncliptrain00001": ("Hello?", "Who is there?"),
        "actioncliptest00001": ("7 of us.", "Go!"),
    }


def test_a_camera_is_a_folder_in_time_order_or_a_video(tmp_path: Path) -> None:
    dataset = load_dataset("city-traffic", write_cameras(tmp_path))
    streams = by_name(dataset)
    assert dataset.modality == "image"
    assert {name: s.rate_hz for name, s in streams.items()} == {
        "cam-a": 1.0,
        "cam-b": 1.0,
        "cam-c": None,
    }
    assert file_names(streams["cam-a"]) == ["1.jpg", "2.jpg", "10.jpg"]


def test_digits_take_everything_from_the_name(tmp_path: Path) -> None:
    streams = by_name(load_dataset("spoken-digits", write_digits(tmp_path)))
    assert {n: (s.group, s.split, s.labels) for n, s in streams.items()} == {
        "mary_jane-train": ("mary_jane", "train", ("7",)),
        "theo-test": ("theo", "test", ("0", "7")),
        "theo-train": ("theo", "train", ("0", "0")),
    }
    assert file_names(streams["theo-train"]) == ["0_theo_5.wav", "0_theo_10.wav"]
    assert by_name(load_dataset("spoken-digits", tmp_path / "recordings")).keys() == streams.keys()


def test_a_sentence_is_labelled_with_its_entities(tmp_path: Path) -> None:
    dataset = load_dataset("wnut17", write_wnut(tmp_path / "wnut"))
    found = {s.split: (s.inputs, s.labels) for s in dataset.streams}
    assert found == {
        "train": (("Anna is here", "Hi"), ("person", "O")),
        "test": (("In New York Anna",), ("location person",)),
    }


def test_the_watch_set_is_found_in_the_package_without_importing_it() -> None:
    if importlib.util.find_spec("seglearn") is None:
        pytest.skip("seglearn is not here; pip install --no-deps seglearn")
    program = (
        "import sys; from converters.datasets import load_dataset; d = load_dataset('watch'); "
        "assert 'seglearn' not in sys.modules; print(len(d.streams), len(d.channels), "
        "len({s.group for s in d.streams}), len({s.labels for s in d.streams}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["140", "6", "10", "7"]


def test_a_missing_package_says_how_to_get_it() -> None:
    with pytest.raises(SourceError, match="pip install --no-deps no_such_package"):
        watch.package_folder("no_such_package")


class Bomb:
    """What a hostile pickle does: here it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.path,)


def test_a_pickle_with_another_hash_is_not_opened(tmp_path: Path) -> None:
    file = tmp_path / watch.FILE
    np.save(file, np.array(Bomb(tmp_path / "harm"), object), allow_pickle=True)
    with pytest.raises(SourceError, match=r"watch_dataset\.npy is not the file this loader knows"):
        load_dataset("watch", tmp_path)
    assert not (tmp_path / "harm").exists()
    np.load(file, allow_pickle=True)  # the bomb is a real one
    assert (tmp_path / "harm").exists()


def damage_word(path: Path, line: int, word: str) -> None:
    lines = path.read_text().splitlines()
    lines[line - 1] = " ".join([word, *lines[line - 1].split()[1:]])
    path.write_text("\n".join(lines) + "\n")


def har_file(folder: Path) -> Path:
    return folder / "UCI HAR Dataset" / "train" / "Inertial Signals" / "body_acc_x_train.txt"


def cut_last_line(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def replace_text(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


BAD: list[tuple[str, Callable[[Path], Any], str]] = [
    (
        "uci-har",
        lambda f: damage_word(har_file(f), 3, "abc"),
        r"body_acc_x_train\.txt, line 3: 'abc' is not a number",
    ),
    (
        "uci-har",
        lambda f: damage_word(har_file(f), 2, "inf"),
        r"body_acc_x_train\.txt, line 2: 'inf' is not a number",
    ),
    (
        "uci-har",
        lambda f: damage_word(har_file(f), 2, ""),
        r"body_acc_x_train\.txt, line 2: 127 numbers where 128 are needed",
    ),
    (
        "uci-har",
        lambda f: cut_last_line(har_file(f)),
        r"body_acc_x_train\.txt has 3 lines, y_train\.txt 4",
    ),
    (
        "uci-har",
        lambda f: cut_last_line(f / "UCI HAR Dataset/train/subject_train.txt"),
        r"subject_train\.txt has 3 lines, y_train\.txt 4",
    ),
    (
        "uci-har",
        lambda f: har_file(f).write_bytes(b"1 2\n\xff\n"),
        r"body_acc_x_train\.txt, line 2 is not UTF-8",
    ),
    ("uci-har", lambda f: har_file(f).unlink(), r"body_acc_x_train\.txt cannot be read"),
    ("uci-har", lambda f: har_file(f).write_text(""), r"body_acc_x_train\.txt is empty"),
    (
        "uci-har",
        lambda f: damage_word(f / "UCI HAR Dataset/test/y_test.txt", 1, "six"),
        r"y_test\.txt, line 1: 'six' is not a whole number",
    ),
    (
        "uci-har",
        lambda f: damage_word(f / "UCI HAR Dataset/test/y_test.txt", 1, "9"),
        r"y_test\.txt, line 1: activity 9 is not in",
    ),
    (
        "postures",
        lambda f: replace_text(f / "Postures.csv", "?", "abc"),
        r"Postures\.csv, line 4: 'abc' is not a number in column X2",
    ),
    (
        "postures",
        lambda f: replace_text(f / "Postures.csv", "5,0,", "6,0,"),
        r"Postures\.csv, record 4: Class 6 of User 0 is no posture",
    ),
    (
        "postures",
        lambda f: replace_text(f / "Postures.csv", "Z11", "Q11"),
        r"Postures\.csv has not the columns Class, User, X0 to Z11",
    ),
    (
        "esc-50",
        lambda f: (f / "audio" / "5-9032-A-0.wav").unlink(),
        r"5-9032-A-0\.wav is not there, though .*esc50\.csv, line 4, names it",
    ),
    (
        "esc-50",
        lambda f: replace_text(f / "meta/esc50.csv", "5-9032-A-0.wav", "../up.wav"),
        r"esc50\.csv, line 4: '\.\./up\.wav' is no name of a WAV file",
    ),
    (
        "esc-50",
        lambda f: replace_text(f / "meta/esc50.csv", ",9032,A", ""),
        r"esc50\.csv, line 4: 5 cells where 7 are needed",
    ),
    (
        "esc-10",
        lambda f: replace_text(f / "meta/esc50.csv", "esc10", "ten"),
        r"esc50\.csv has no column esc10",
    ),
    (
        "spoken-digits",
        lambda f: write_wav(f / "recordings" / "seven.wav"),
        r"seven\.wav is not named DIGIT_SPEAKER_INDEX\.wav",
    ),
    (
        "wnut17",
        lambda f: replace_text(f / "wnut17train.conll", "is\tO", "is O"),
        r"wnut17train\.conll, line 2: 'is O' is no token, tab and tag",
    ),
    (
        "wnut17",
        lambda f: (f / "wnut17train.conll").write_bytes(b"a\tO\n\xe4\tO\n"),
        r"wnut17train\.conll, line 2 is not UTF-8",
    ),
    (
        "hollywood2",
        lambda f: replace_text(f / "ClipSets/Kiss_train.txt", "-1", "0"),
        r"Kiss_train\.txt, line 2: 'actioncliptrain00002  0' is no clip and 1 or -1",
    ),
    (
        "hollywood2",
        lambda f: cut_last_line(f / "ClipSets/Kiss_train.txt"),
        r"Kiss_train\.txt lists 1 clips, AnswerPhone_train\.txt 2",
    ),
    (
        "hollywood2",
        lambda f: replace_text(f / "ClipSets/Kiss_test.txt", "test00001", "train00001"),
        r"Kiss_test\.txt: actioncliptrain00001 is in AnswerPhone_train\.txt too",
    ),
    (
        "hollywood2",
        lambda f: (f / "AVIClips" / "actioncliptest00001.avi").unlink(),
        r"actioncliptest00001\.avi is not there, though .*AnswerPhone_test\.txt names it",
    ),
    (
        "hollywood2-audio",
        lambda f: write_wav(f / "audio" / "other.wav"),
        r"other\.wav: no list in ClipSets names other",
    ),
    (
        "hollywood2-subtitles",
        lambda f: (f / "subtitles/actioncliptest00001.srt").write_text("Go!\n"),
        r"actioncliptest00001\.srt holds no caption",
    ),
    (
        "city-traffic",
        lambda f: (f / "cam-d").mkdir(),
        r"cam-d holds no \.bmp, \.jpeg, \.jpg, \.png, \.webp files",
    ),
]


@pytest.mark.parametrize(("name", "damage", "message"), BAD)
def test_what_is_wrong_is_named(
    tmp_path: Path, name: str, damage: Callable[[Path], Any], message: str
) -> None:
    folder = tmp_path / "set"
    LAYOUTS[name](folder)
    load_dataset(name, folder)
    damage(folder)
    with pytest.raises(SourceError, match=message):
        load_dataset(name, folder)


@pytest.mark.parametrize("name", list(LOADERS))
def test_an_empty_or_missing_folder_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "gone"):
        with pytest.raises(SourceError, match=folder):
            load_dataset(name, tmp_path / folder)


def test_a_set_nobody_knows_or_without_its_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match="'har' is unknown; it is one of uci-har"):
        load_dataset("har")
    with pytest.raises(ConfigError, match="uci-har: give the folder"):
        load_dataset("uci-har")


def test_labels_and_inputs_must_match() -> None:
    with pytest.raises(SourceError, match="s: 2 labels for 3 inputs"):
        Stream("s", "g", ("a", "b", "c"), ("x", "y"))
    with pytest.raises(SourceError, match="s: 3 labels for 3 inputs"):
        Stream("s", "g", np.zeros((3, 1), np.float32), ("x", "y", "z"))
    with pytest.raises(SourceError, match="s holds no input"):
        Stream("s", "g", ())
    stream = Stream("s", "g", ("a",), ("x",))
    with pytest.raises(SourceError, match="2 streams are named s"):
        Dataset("d", "text", (), (stream, stream))


def test_groups_and_splits_are_parts(tmp_path: Path) -> None:
    dataset = load_dataset("uci-har", write_har(tmp_path))
    assert list(by_name(dataset.part(["subject01", "subject02"]))) == ["subject01", "subject02"]
    assert list(by_name(dataset.part(split="test"))) == ["subject02"]
    with pytest.raises(ConfigError, match="--group me: uci-har has subject01, subject02"):
        dataset.part(["me"])
    with pytest.raises(ConfigError, match="--split dev: the splits that uci-har has: test, train"):
        dataset.part(split="dev")
    with pytest.raises(ConfigError, match="no test split of subject01"):
        dataset.part(["subject01"], "test")


def labels_of(written: Written) -> list[dict[str, str]]:
    with written.labels.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == written.rows
    return rows


def opened(written: Written) -> Recording:
    """Open the first recording exactly as `infi-convert train` does with the printed options."""
    pairs = dict(zip(written.options[::2], written.options[1::2], strict=True))
    rate_hz = float(pairs["--rate-hz"]) if "--rate-hz" in pairs else None
    settings = dict([pairs["--preprocess"].split("=")]) if "--preprocess" in pairs else {}
    recording = str(written.recordings[0])
    _, spec = draft_spec(pairs["--modality"], recording, settings, rate_hz)
    return open_recording(recording, rate_hz, spec)


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("name", list(LAYOUTS))
def test_what_is_written_opens_and_its_labels_follow_it(
    tmp_path: Path, name: str, seed: int | None
) -> None:
    """Motion, sound, text, images and clips: counts, order and content, shuffled too."""
    LAYOUTS[name](tmp_path / "set")
    dataset = load_dataset(name, tmp_path / "set")
    written = write_recordings(dataset, tmp_path / "out", seed)
    rows = labels_of(written)
    wanted = sorted(
        (stream.label(i), stream.group, stream.split)
        for stream in dataset.streams
        for i in range(len(stream.inputs))
    )
    assert sorted((row["label"], row["group"], row["split"]) for row in rows) == wanted
    recording = opened(written)
    samples = list(recording.samples())
    assert len(samples) == recording.count
    if dataset.modality in ("motion", "text"):
        assert [row["input_or_file"] for row in rows] == [str(i) for i in range(recording.count)]
    elif dataset.modality == "audio":  # each of them is no longer than one window
        assert [Path(s.source).name for s in samples] == [row["input_or_file"] for row in rows]
    elif dataset.modality == "video":  # clips of 8 frames, a new one every 4
        frames = [16 if "no" in row["input_or_file"] else 12 for row in rows]
        assert recording.count == sum((f - 8) // 4 + 1 for f in frames)
        sources = dict.fromkeys(Path(s.source).name for s in samples)
        assert list(sources) == [row["input_or_file"] for row in rows]
    elif name in ("traffic", "person"):
        assert [path.name for path in written.recordings] == [r["input_or_file"] for r in rows]
        assert recording.count == (16 if "no" in written.recordings[0].name else 12)
    else:
        images = [r["input_or_file"] for r in rows if not r["input_or_file"].endswith(".avi")]
        assert [Path(s.source).name for s in samples] == images


def test_motion_windows_keep_content_rate_and_labels_together(tmp_path: Path) -> None:
    dataset = load_dataset("uci-har", write_har(tmp_path))
    written = write_recordings(dataset, tmp_path / "out", seed=1)
    recording = opened(written)
    assert recording.count == 5
    assert recording.rate_hz == pytest.approx(50 / 64)
    known = [
        (np.asarray(stream.inputs[i]), stream.label(i), stream.group)
        for stream in dataset.streams
        for i in range(len(stream.inputs))
    ]
    for sample, row in zip(recording.samples(), labels_of(written), strict=True):
        label, group = next(k[1:] for k in known if np.array_equal(k[0], sample.data))
        assert (row["label"], row["group"]) == (label, group)


def test_motion_series_are_written_with_their_times(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    signals = [rng.normal(size=(300, 2)).astype(np.float32) for _ in range(12)]
    signals[3][7, 1] = np.nan
    streams = tuple(
        Stream(f"s/{i}", f"g{i % 2}", signal, ("walk",), rate_hz=50.0)
        for i, signal in enumerate(signals)
    )
    written = write_recordings(Dataset("d", "motion", ("x", "y"), streams), tmp_path / "out")
    recording = opened(written)
    # 2 s windows, a new one every 0.5 s: (300 - 100) // 25 + 1 of each series, in their order
    assert recording.count == 12 * 9
    for index, sample in enumerate(recording.samples()):
        series, place = divmod(index, 9)
        np.testing.assert_array_equal(sample.data, signals[series][25 * place : 25 * place + 100])
    rows = labels_of(written)
    assert rows[10]["input_or_file"] == "10-s_10.csv"
    assert (written.recordings[0] / "10-s_10.csv").exists()


def test_sounds_are_linked_not_copied(tmp_path: Path) -> None:
    write_digits(tmp_path / "set")
    written = write_recordings(load_dataset("spoken-digits", tmp_path / "set"), tmp_path / "out")
    linked = written.recordings[0] / labels_of(written)[0]["input_or_file"]
    assert linked.is_symlink()
    assert linked.resolve() == (tmp_path / "set/recordings/7_mary_jane_49.wav").resolve()


def test_shuffling_keeps_time_within_a_label(tmp_path: Path) -> None:
    windows = np.arange(60, dtype=np.float32).reshape(60, 1, 1)
    labels = tuple(str(i // 10) for i in range(60))
    dataset = Dataset("d", "motion", ("x",), (Stream("s", "g", windows, labels),))
    values = []
    for seed in (0, 0, 1):
        written = write_recordings(dataset, tmp_path / f"out{len(values)}", seed)
        with np.load(written.recordings[0]) as arrays:
            values.append(arrays["inputs"].ravel())
        runs = values[-1].reshape(6, 10)
        assert (np.diff(runs) == 1).all()
        assert [row["label"] for row in labels_of(written)] == [
            str(int(v // 10)) for v in values[-1]
        ]
    assert np.array_equal(values[0], values[1])
    assert not np.array_equal(values[0], values[2])


def test_what_is_there_is_not_overwritten_and_nothing_is_left_half(tmp_path: Path) -> None:
    dataset = load_dataset("wnut17", write_wnut(tmp_path / "set"))
    out = tmp_path / "out"
    out.mkdir()
    write_recordings(dataset, out)
    with pytest.raises(ConfigError, match="out is not empty"):
        write_recordings(dataset, out)
    with pytest.raises(ConfigError, match=r"labels\.csv is a file"):
        write_recordings(dataset, out / "labels.csv")
    with pytest.raises(ConfigError, match="its folder does not exist"):
        write_recordings(dataset, tmp_path / "a" / "b")
    windows = [Stream(str(n), "g", np.zeros((2, n, 1), np.float32)) for n in (3, 4)]
    with pytest.raises(SourceError, match="windows of 3 x 1 and of 4 x 1"):
        write_recordings(Dataset("d", "motion", ("x",), tuple(windows)), tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "set"]


REAL = {
    "postures": ("mocap-postures", 11022),
    "spoken-digits": ("spoken-digits", 2000),
    "wnut17": ("wnut17", 3394 + 1009 + 1287),
    "signs": ("signs", 20),
    "traffic": ("traffic", 2),
    "person": ("person", 1),
}


@pytest.mark.parametrize("name", list(REAL))
def test_real_sets_load_whole(name: str) -> None:
    folder, count = REAL[name]
    dataset = load_dataset(name, need(DATA / folder))
    assert sum(len(stream.inputs) for stream in dataset.streams) == count


def test_real_sets_have_the_published_parts() -> None:
    digits = load_dataset("spoken-digits", need(DATA / "spoken-digits"))
    assert sum(len(stream.inputs) for stream in digits.part(split="test").streams) == 200
    texts = load_dataset("wnut17", need(DATA / "wnut17"))
    counts = {stream.split: len(stream.inputs) for stream in texts.streams}
    assert counts == {"train": 3394, "dev": 1009, "test": 1287}
    postures = load_dataset("postures", need(DATA / "mocap-postures"))
    assert {s.group: len(s.inputs) for s in postures.streams} == {
        "user00": 5224,
        "user01": 3071,
        "user02": 2727,
    }


@pytest.mark.parametrize("address", ADDRESSES["wnut17"])
def test_the_known_hashes_of_wnut17_are_those_of_the_real_files(address: Address) -> None:
    assert file_hash(need(DATA / "wnut17" / address.file)) == address.sha256


def run(*arguments: str) -> str:
    """Run the command in this process; its errors are raised."""
    result = CliRunner().invoke(dataset_command, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_writes_a_part(tmp_path: Path) -> None:
    folder = write_har(tmp_path / "set")
    output = run("uci-har", str(folder), "-o", str(tmp_path / "har"), "--group", "subject01")
    assert "3 inputs or files" in output
    assert "har/recording.npz --modality motion --rate-hz 50 --preprocess hop=64" in output
    with np.load(tmp_path / "har" / "recording.npz") as arrays:
        assert arrays["inputs"].shape == (3, 128, 9)
    listed = run("--list")
    assert all(f"\n{name} " in f"\n{listed}" for name in LOADERS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a data set"),
        (("uci-har", "x"), "-o OUT"),
        (("uci-har", "-o", "out"), "give the folder"),
        (("uci-har", "x", "--download", "y"), "not both"),
        (("uci-har", "x", "-o", "out", "--accept-any-content"), "go with --download"),
        (("signs", "--download", "x"), "no public address"),
        (("sings", "--download", "x"), "'sings' is unknown"),
        (("postures", "--download", "x"), "no SHA-256 is known for .*--accept-any-content"),
        (("wnut17", "--download", "x", "--sha256", "0" * 64), "for a set of one file"),
    ],
)
def test_the_command_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InfiEdgeError, match=message):
        run(*arguments)
    assert not list(tmp_path.iterdir())


def zip_of(folder: Path, path: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, f"{prefix}{file.relative_to(folder)}")
    return path


def test_download_checks_unpacks_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As UCI gives it out: an archive in an archive, and a Mac's folder beside."""
    write_har(tmp_path / "set")
    (tmp_path / "outer").mkdir()
    inner = zip_of(tmp_path / "set", tmp_path / "outer" / "UCI HAR Dataset.zip")
    with zipfile.ZipFile(inner, "a") as archive:
        archive.writestr("__MACOSX/._x", b"")
    outer = zip_of(tmp_path / "outer", tmp_path / "outer.zip")
    address = Address(outer.as_uri(), "uci-har.zip")
    monkeypatch.setitem(ADDRESSES, "uci-har", (address,))
    raw, out = tmp_path / "raw", tmp_path / "har"
    with pytest.raises(SourceError, match="it was removed"):
        run("uci-har", "--download", str(raw), "--sha256", "0" * 64)
    assert not list(raw.iterdir())
    output = run("uci-har", "--download", str(raw), "--accept-any-content")
    assert f"sha256 {file_hash(outer)}, unchecked" in output
    assert sorted(p.name for p in raw.iterdir()) == ["UCI HAR Dataset", "uci-har.zip"]
    run("uci-har", "--download", str(raw), "--sha256", file_hash(outer), "-o", str(out))
    assert (out / "recording.npz").exists()


def test_a_tar_is_unpacked_too(tmp_path: Path) -> None:
    write_digits(tmp_path / "set")
    path = tmp_path / "digits.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tmp_path / "set", "digits-1.0")
        link = tarfile.TarInfo("digits-1.0/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (tmp_path / "raw").mkdir()
    unpack(path, tmp_path / "raw")
    unpack(path, tmp_path / "raw")
    assert len(load_dataset("spoken-digits", tmp_path / "raw").streams) == 3
    assert [p.name for p in tmp_path.joinpath("raw", "digits-1.0").iterdir()] == ["recordings"]


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "..\\x", "c:x"])
def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path, name: str) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fine.txt", b"x")
        archive.writestr(name, b"x")
    with pytest.raises(SourceError, match=r"a\.zip is refused"):
        unpack(path, raw)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.zip", "raw"]


def damaged_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("fine.txt", b"x" * 1000)
    content = bytearray(buffer.getvalue())
    content[500] ^= 1
    return bytes(content)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.zip", b"<html>"),
        ("a.zip", damaged_zip()),
        ("a.tar.gz", b"<html>"),
        ("a.tar.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\3abc"),
    ],
)
def test_a_damaged_archive_is_named_and_leaves_nothing(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=f"{name} is damaged or no archive"):
        unpack(tmp_path / name, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name]
