"""Do two machines see the same? Tensors, features and decisions of each, side by side.

    python -m benchmarks.parity write A.npz --data ../shared/data --bundle examples/demo.infi
    python -m benchmarks.parity compare A.npz B.npz

`write` needs the runtime alone. Without --inputs a machine makes, encodes and decodes the inputs
itself; `--inputs A.npz` takes those of an earlier file, so that only what infi-edge does with them
is compared.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from infi_edge.bundle import read_bundle
from infi_edge.capture.recordings import open_recording
from infi_edge.capture.signals import read_csv_signal
from infi_edge.errors import ConfigError, InfiEdgeError
from infi_edge.evaluate import embed
from infi_edge.filter import InputFilter
from infi_edge.interpreter import found_runtimes
from infi_edge.learn import sigmoid
from infi_edge.policy import Knobs
from infi_edge.preprocess import (
    AudioSpec,
    FeaturesSpec,
    ImageSpec,
    MotionSpec,
    Spec,
    TextSpec,
    VideoSpec,
)
from infi_edge.replay import INFERRED, Embedded, Truth, replay
from infi_edge.tasks import make_same
from infi_edge.types import Sample

Arrays = dict[str, np.ndarray]

STREAM, RATE_HZ = 200, 10.0
"""Inputs of a stream: one decision is half a percent of them."""
SCENE, SCENES = 8, 6
"""A made-up stream shows one of 6 scenes for 8 inputs, then the next, and comes back to them."""
REAL = 40
DELIVER: tuple[Literal["nearest", "vote", "last"], ...] = ("nearest", "vote", "last")
MAX_LEVELS, MIN_DECISIONS = 1, 0.99
CLIPS = (
    "traffic/highway-15fps.avi",
    "traffic/intersection-60fps.avi",
    "person/one-by-one-person.mp4",
)
SIZES = (
    *((1, 1), (3, 5), (37, 53), (97, 129), (127, 95), (128, 96), (255, 191), (257, 193)),
    *((321, 239), (320, 240), (479, 641), (640, 480), (801, 601), (1279, 721), (1920, 1080)),
)
"""Of made-up frames (width, height), around those at which preprocessing takes another way."""
IMAGES = {
    "rgb": ImageSpec(),
    "bgr-odd": ImageSpec(99, 77, "BGR"),
    "grey": ImageSpec(64, 48, "GREY"),
}
OTHERS: dict[str, Spec] = {
    "video": VideoSpec(frames=4),
    **{
        f"audio/{transform}-{rate_hz // 1000}khz": AudioSpec(rate_hz, 500, transform=transform)
        for transform in ("logmel", "power")
        for rate_hz in (8000, 16000, 48000)
    },
    "text/words": TextSpec(),
    "text/chars": TextSpec(unit="chars"),
    "motion/raw": MotionSpec(("x", "y", "z")),
    "motion/scaled": MotionSpec(("x", "y"), 50, offset=(0.1, 9.8), scale=(0.3, 2.7)),
    "features/map": FeaturesSpec((9, 7, 40), offset=0.2, scale=1.7),
    "features/flat": FeaturesSpec((1000,)),
    "features/int8": FeaturesSpec((7, 7, 24), "int8"),
    "features/ids": FeaturesSpec((32,), "int32"),
}
WORDS = """
the cat Straße ﬁre İstanbul naïve Ελλάδα ὀδός Москва 東京 カﾞ 한국어 हिन्दी ภาษาไทย العربية
עִברִית 😀 don't 3.14 ½ NASA x²
"""


def picture(rng: np.random.Generator, width: int, height: int, channels: int = 3) -> np.ndarray:
    """Blocks of one random colour each, and noise: uint8 (height, width, channels)."""
    side = int(rng.integers(1, 24))
    blocks = rng.integers(0, 256, (-(-height // side), -(-width // side), channels))
    wide = blocks.repeat(side, 0).repeat(side, 1)[:height, :width]
    return np.clip(wide + rng.integers(-12, 13, wide.shape), 0, 255).astype(np.uint8)


def made_input(spec: Spec, scene: np.random.Generator, moment: np.random.Generator) -> Any:
    """Make an input up. scene, moment: what all inputs of a scene share, and what each has."""
    if isinstance(spec, ImageSpec):
        frame = picture(scene, 320, 240)
        x, y = moment.integers(0, 260), moment.integers(0, 180)
        cv2.rectangle(frame, (int(x), int(y)), (int(x) + 60, int(y) + 60), (230, 220, 240), -1)
        return np.clip(frame + moment.integers(-6, 7, frame.shape), 0, 255).astype(np.uint8)
    if isinstance(spec, VideoSpec):
        frame = picture(scene, 161, 119)
        noise = moment.integers(-9, 10, (spec.frames, *frame.shape))
        return np.clip(frame + noise, 0, 255).astype(np.uint8)
    if isinstance(spec, AudioSpec):
        return _made_sound(spec, scene, moment)
    if isinstance(spec, TextSpec):
        words = WORDS.split()
        said = [words[i] for i in scene.integers(len(words), size=scene.integers(1, 90))]
        said[moment.integers(len(said))] = words[moment.integers(len(words))]
        return " ".join(said)
    if isinstance(spec, MotionSpec):
        step = scene.integers(0, 4) / 64
        wave = moment.integers(-64, 65, spec.shape) * step + scene.integers(-32, 33) / 64
        if scene.integers(2):
            wave[moment.random(spec.shape) < 0.02] = np.nan
        return wave * np.array(spec.scale or 1.0) + np.array(spec.offset or 0.0)
    if isinstance(spec, FeaturesSpec):
        if spec.type == "int32":
            ids = scene.integers(0, 4096, spec.size, np.int32)
            ids[moment.random(spec.size) < 0.1] = 7
            return ids
        base = scene.integers(-64, 65, spec.size) + moment.integers(-8, 9, spec.size)
        if spec.type == "float32":
            return (base / 32 * spec.scale + spec.offset).astype(np.float32)
        return (base + 128 * (spec.type == "uint8")).astype(spec.type)
    raise ConfigError(
        f"parity has no made-up inputs for {type(spec).__name__}; leave its bundle out"
    )


def _made_sound(
    spec: AudioSpec, scene: np.random.Generator, moment: np.random.Generator
) -> np.ndarray:
    """Silence, noise, tones or a full-scale square wave, as int16 or float32."""
    kind, times = scene.integers(6), np.arange(spec.window) / spec.rate_hz
    pcm = np.zeros(spec.window)
    tone = np.sin(2 * np.pi * scene.uniform(50, spec.rate_hz / 2) * times + moment.uniform(0, 6))
    if kind == 1:
        pcm = np.where(tone < 0, -32768.0, 32767.0)
    elif kind:
        pcm = np.rint(tone * scene.integers(1, 20000)) + moment.integers(-99, 100, spec.window)
    pcm = pcm.astype(np.int16)
    return pcm if kind % 2 else (pcm / 32768).astype(np.float32)


def made_stream(spec: Spec, count: int) -> Iterator[Any]:
    """Inputs that stay alike for a while, change, and come back."""
    for i in range(count):
        scene = np.random.default_rng([1, i // SCENE % SCENES])
        yield made_input(spec, scene, np.random.default_rng([2, i]))


def jpegs() -> Iterator[bytes]:
    """Files of many sizes, qualities and colour samplings, grey and progressive ones too."""
    samplings = (0x111111, 0x211111, 0x221111)
    for i, (width, height) in enumerate(size for size in SIZES * 2 if size[0] > 30):
        frame = picture(np.random.default_rng([3, i]), width, height, 1 if i % 5 == 4 else 3)
        settings = [cv2.IMWRITE_JPEG_QUALITY, (95, 75, 40)[i % 3], cv2.IMWRITE_JPEG_PROGRESSIVE]
        settings += [int(i % 4 == 3), cv2.IMWRITE_JPEG_SAMPLING_FACTOR, samplings[i // 3 % 3]]
        yield cv2.imencode(".jpg", frame, settings)[1].tobytes()


def recorded(path: str | Path, spec: Spec | None, count: int) -> Iterator[Any]:
    """The last `count` inputs of a recording."""
    recording = open_recording(str(path), spec=spec)
    for sample in recording.samples(max(recording.count - count, 0)):
        yield np.stack(sample.data) if isinstance(sample.data, list) else sample.data


def real_motion(path: Path) -> Iterator[np.ndarray]:
    """Windows of 100 rows of a table with missing values."""
    yield from read_csv_signal(path)[0][: REAL * 100].reshape(REAL, 100, -1)


def real_text(path: Path) -> Iterator[str]:
    """The sentences of a file with one word a line."""
    for sentence in path.read_text(encoding="utf-8").split("\n\n")[: 5 * REAL]:
        yield " ".join(line.partition("\t")[0] for line in sentence.splitlines())


class Inputs:
    """Inputs by name: of an earlier file where it has them, else made here and kept in `stored`."""

    def __init__(self, given: Arrays | None = None) -> None:
        self.stored: Arrays = {}
        self._given = given or {}

    def take(self, name: str, make: Callable[[], Iterable[Any]]) -> list[Any]:
        """Return the inputs of this name. make: called where the earlier file has none."""
        head = f"input/{name}/"
        known = sorted(key for key in self._given if key.startswith(head))
        if known:
            return [_unpacked(self._given[key]) for key in known]
        made = list(make())
        for i, data in enumerate(made):
            packed = np.array(np.void(data)) if isinstance(data, bytes) else np.asarray(data)
            self.stored[f"{head}{i:04d}"] = packed
        return made


def _unpacked(array: np.ndarray) -> Any:
    if array.dtype.kind == "V":
        return array.tobytes()
    return str(array) if array.dtype.kind == "U" else array


def preprocessing_cases(inputs: Inputs, data: Path | None) -> Iterator[tuple[str, Spec, list[Any]]]:
    """Yield (name, specification, inputs) of every modality; real ones where they are."""

    def real(path: str, read: Callable[[Path], Iterable[Any]]) -> list[Any]:
        there = data is not None and (data / path).exists()
        return inputs.take(path, lambda: read(data / path) if data is not None and there else ())

    sets = {
        "frames": inputs.take(
            "frames", lambda: (picture(np.random.default_rng(s), *s) for s in SIZES)
        ),
        "grey": inputs.take(
            "grey", lambda: (picture(np.random.default_rng(s), *s, 1)[..., 0] for s in SIZES)
        ),
        "jpeg": inputs.take("jpeg", jpegs),
    }
    for clip in CLIPS:
        sets[Path(clip).stem] = real(clip, lambda path: recorded(path, None, REAL))
    for image, picture_spec in IMAGES.items():
        for kind, pictures in sets.items():
            yield f"image/{image}/{kind}", picture_spec, pictures
    for name, spec in OTHERS.items():
        yield name, spec, inputs.take(name, functools.partial(made_stream, spec, 60))
    frames = sets[Path(CLIPS[0]).stem]
    clips = [frames[i : i + 4] for i in range(0, len(frames) - 3, 4)]
    yield "video/highway-15fps", OTHERS["video"], clips
    digits = AudioSpec(8000, 500)
    folder = "spoken-digits/recordings"
    yield "audio/spoken-digits", digits, real(folder, lambda path: recorded(path, digits, 2 * REAL))
    windows = real("mocap-postures/Postures.csv", real_motion)
    if windows:
        channels = tuple(f"column {i}" for i in range(windows[0].shape[1]))
        yield "motion/mocap-postures", MotionSpec(channels).fitted(windows), windows
    sentences = real("wnut17/wnut17train.conll", real_text)
    yield "text/wnut17", TextSpec(), sentences


def preprocessed(inputs: Inputs, data: Path | None) -> Arrays:
    """Tensors and features of every case."""
    found: Arrays = {}
    for name, spec, given in preprocessing_cases(inputs, data):
        if given:
            tensors = [spec.tensor(one) for one in given]
            found[f"tensor/{name}"] = np.concatenate(tensors)
            found[f"features/{name}"] = np.stack([spec.features(t) for t in tensors])
    return found


def replayed(inputs: Inputs, bundle: str) -> Arrays:
    """Scores, embeddings and decisions of a bundle (`NAME.infi` or `NAME.infi=RECORDING`)."""
    path, _, recording = bundle.partition("=")
    loaded = InputFilter(read_bundle(path))
    name, spec = loaded.name, loaded.spec
    found = replayed_stream(loaded, inputs, f"{name}/made-up", lambda: made_stream(spec, STREAM))
    return found | replayed_stream(
        loaded,
        inputs,
        f"{name}/recorded",
        lambda: recorded(recording, spec, STREAM) if recording else (),
    )


def replayed_stream(
    loaded: InputFilter, inputs: Inputs, name: str, make: Callable[[], Iterable[Any]]
) -> Arrays:
    """The same for one stream. Decisions: `table`, with every row of the bundle's; `tight`, with
    thresholds in the midst of this stream's own probabilities, where the least difference tells."""
    stream = inputs.take(name, make)
    if not stream:
        return {}
    embedded = embed(loaded, (Sample(data, i / RATE_HZ, i) for i, data in enumerate(stream)))
    found = {f"embedding/{name}": embedded.embeddings}
    if embedded.scores is not None:
        found[f"score/{name}"] = embedded.scores
    truth = made_answers(len(stream), loaded.manifest.workload.same)
    table = [point.knobs for point in loaded.manifest.calibration.points]
    reuse, skip = inputs.take(f"thresholds/{name}", lambda: tight_thresholds(embedded))
    tight = [Knobs(reuse_threshold=t, deliver=d) for t in reuse.tolist() for d in DELIVER]
    tight += [Knobs(skip_threshold=t) for t in skip.tolist()]
    for kind, rows in (("table", table), ("tight", tight)):
        actions = [replay(knobs, truth, embedded).actions for knobs in rows]
        found[f"decision/{name}/{kind}"] = np.stack(actions)
    return found


def made_answers(count: int, rule: str) -> Truth:
    """Numbers that change with the scene: no model is run. Boxes and objects are numbers here."""
    values: list[Any] = [i // SCENE % SCENES % 4 for i in range(count)]
    same = make_same(rule if rule.startswith("within") else "exact", "value")
    redundant = np.array([value == 0 for value in values])
    return Truth(np.arange(count) / RATE_HZ, values, redundant, same, 0)


def tight_thresholds(embedded: Embedded) -> list[np.ndarray]:
    """Quantiles of p(changed) to the previous input and one scene before, and of the scores."""
    quantiles = (0.1, 0.3, 0.5, 0.7, 0.9)
    p: list[float] = []
    head, steps = embedded.head, embedded.embeddings
    for lag in (1, SCENE + 1):
        if head is None:
            break
        apart, age_s = cv2.absdiff(steps[lag:], steps[:-lag]), lag / RATE_HZ
        fixed = head.bias + head.log_age * float(np.log1p(age_s)) + head.age * age_s
        for row in apart:
            z = row.sum() if head.rescore is None else head.rescore(row[None])[0]
            p.append(sigmoid(fixed + head.distance * float(z)))
    rows: list[Any] = [p, [] if embedded.scores is None else embedded.scores]
    return [np.quantile(row, quantiles) if len(row) else np.zeros(0) for row in rows]


def about() -> dict[str, str]:
    """What computed: machine and versions."""
    runtimes, forced = found_runtimes(), os.environ.get("INFI_EDGE_RUNTIME")
    used = [f"{name} {version}" for name, version in runtimes.items() if forced in (None, name)]
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "runtime": used[0] if used else "none",
    }


@dataclass(frozen=True, slots=True)
class Row:
    """One item of two files. values, differing: how many; worst: the largest difference; equal: the
    share of equal values (of decisions: under the row of knobs that differs most)."""

    name: str
    unit: str
    values: int
    differing: int
    worst: float
    equal: float
    note: str = ""
    fails: bool = False


def compare_item(name: str, a: np.ndarray, b: np.ndarray) -> Row:
    """Compare what two machines found. Raises ConfigError if it is not the same thing."""
    kind = name.partition("/")[0]
    if a.dtype.kind in "VU":
        differs = a.tobytes() != b.tobytes()
        return Row(name, "files", 1, differs, differs, 1 - differs)
    if a.shape != b.shape or a.dtype.kind != b.dtype.kind:
        raise ConfigError(
            f"{name} is {a.dtype} {a.shape} in one file and {b.dtype} {b.shape} in the other; "
            "write both with the same infi-edge, inputs and bundles"
        )
    apart = np.abs(np.nan_to_num(a.astype(np.float64)) - np.nan_to_num(b.astype(np.float64)))
    differing, worst = int(np.count_nonzero(apart)), float(apart.max(initial=0.0))
    equal = 1 - differing / max(apart.size, 1)
    if kind == "decision":
        equal = 1 - float((apart > 0).mean(axis=1).max())
        note = f"filters {float((a != INFERRED).mean()):.2f}"
        fails = equal < MIN_DECISIONS
        return Row(name, "decisions", a.size, differing, float(worst > 0), equal, note, fails)
    unit = {"uint8": "levels", "int32": "ids"}.get(a.dtype.name, "units")
    unit = "steps" if kind == "embedding" else unit
    limit = {"levels": MAX_LEVELS, "ids": 0}.get(unit, np.inf) if kind == "tensor" else np.inf
    return Row(name, unit, a.size, differing, worst, equal, fails=worst > limit)


def compare(a: Arrays, b: Arrays) -> list[Row]:
    """Compare two files. Raises ConfigError if one lacks what the other has (inputs apart)."""
    missing = {n for n in a.keys() ^ b.keys() if not n.startswith("input/")}
    if missing:
        raise ConfigError(
            f"only one file has {min(missing)}; write both with the same data, inputs and bundles"
        )
    return [compare_item(name, a[name], b[name]) for name in a if name in b and name != "about"]


def table(rows: list[Row], sides: list[dict[str, str]]) -> str:
    """The comparison as text; inputs are listed only where they differ."""
    lines = [", ".join(f"{key} {value}" for key, value in side.items()) for side in sides]
    lines += ["", f"{'item':<46} {'values':>9} {'differing':>9} {'worst':>9} {'':<9} {'equal':>7}"]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.name.startswith("input/"):
            groups.setdefault(row.name.rpartition("/")[0], []).append(row)
            continue
        lines.append(
            f"{row.name:<46} {row.values:>9} {row.differing:>9} {row.worst:>9.2g} {row.unit:<9} "
            f"{row.equal:>7.4f}  {row.note}{'  TOO FAR' * row.fails}".rstrip()
        )
    for name, inputs in groups.items():
        apart = [row for row in inputs if row.differing]
        if apart:
            worst = max(row.worst for row in apart)
            lines.append(
                f"{name}: {len(apart)} of {len(inputs)} differ, by up to {worst:.2g} "
                f"{apart[0].unit}: made or decoded differently"
            )
    failing = sum(row.fails for row in rows)
    lines.append(f"{failing} items too far apart" if failing else "equal enough")
    return "\n".join(lines)


def read_file(path: Path) -> Arrays:
    """Read what `write` has written. Raises ConfigError."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive.items())
        json.loads(str(arrays["about"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{path} is no file of `parity write` that can be read ({error}); write it again"
        ) from error
    return arrays


def write_file(
    path: Path, given: Arrays | None = None, data: Path | None = None, bundles: Iterable[str] = ()
) -> None:
    """Compute everything and write it. given: an earlier file's arrays. Raises InfiEdgeError."""
    inputs = Inputs(given)
    found = preprocessed(inputs, data)
    for bundle in bundles:
        replays = replayed(inputs, bundle)
        if found.keys() & replays.keys():
            raise ConfigError(f"--bundle {bundle}: another bundle has that name; rename one")
        found |= replays
    found |= inputs.stored | {"about": np.array(json.dumps(about()))}
    try:
        with path.open("wb") as file:
            np.savez(file, **found)  # type: ignore[arg-type]
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: equal enough; 1: not; 2: something is wrong with the files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity")
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write", help="what this machine makes of the inputs")
    write.add_argument("output", type=Path)
    write.add_argument("--data", type=Path, help="folder of real streams")
    write.add_argument("--inputs", type=Path, help="take the inputs of this earlier file")
    write.add_argument("--bundle", action="append", default=[], metavar="NAME.infi[=RECORDING]")
    both = commands.add_parser("compare", help="two files that `write` wrote")
    both.add_argument("files", type=Path, nargs=2)
    options = parser.parse_args(arguments)
    try:
        if options.command == "compare":
            files = [read_file(path) for path in options.files]
            rows = compare(*files)
            print(table(rows, [json.loads(str(file["about"])) for file in files]))
            return int(any(row.fails for row in rows))
        given = read_file(options.inputs) if options.inputs else None
        write_file(options.output, given, options.data, options.bundle)
    except InfiEdgeError as error:
        print(f"parity: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
