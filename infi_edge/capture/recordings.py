"""Open a recording of any modality, and say what its inputs look like."""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infi_edge.capture.address import public_address, scheme_of
from infi_edge.capture.recorded import is_recorded, open_recorded, recorded_manifest
from infi_edge.capture.replay import ImageFolder, Recording, VideoFile, files_hash
from infi_edge.capture.signals import (
    constant_channels,
    read_csv_signal,
    read_lines,
    read_mono,
    read_wav,
)
from infi_edge.capture.windows import Clips, Rows, SignalWindows, Stretch, read_arrays
from infi_edge.errors import ConfigError, SourceError
from infi_edge.preprocess import (
    AudioSpec,
    FeaturesSpec,
    ImageSpec,
    MotionSpec,
    Spec,
    TextSpec,
    VideoSpec,
    change_spec,
    parse_spec,
    spec_class,
)
from infi_edge.preprocess.audio import MAX_RATE_HZ, MIN_RATE_HZ

log = logging.getLogger("infi_edge")

ARRAYS = {".npy", ".npz"}
_FEATURE_TYPES = {"int8": "int8", "uint8": "uint8", "bool": "uint8"} | dict.fromkeys(
    ("int32", "int64", "uint32", "uint64"), "int32"
)
SUFFIXES = {
    "video": {".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg"},
    "audio": {".wav"},
    "motion": {".csv"},
    "text": {".txt"},
}
_LIVE = dict.fromkeys(("iio", "i2c", "serial"), "motion") | {"microphone": "audio", "lines": "text"}
"""What live sources give, by scheme; all others give pictures."""


def open_recording(text: str, rate_hz: float | None = None, spec: Spec | None = None) -> Recording:
    """Open a file or a folder as the inputs that `spec` describes; default: single pictures.

    rate_hz: inputs a second of a folder of images, of lines or of arrays; samples a second of a
    signal without times (default: the specification's). A folder of `infi-edge record` has times
    of its own. Raises SourceError or ConfigError.
    """
    path = _there(text)
    if is_recorded(path):
        return open_recorded(path, spec)
    if path.suffix.lower() in ARRAYS:
        array = read_arrays(path)
        if isinstance(spec, MotionSpec) and array.size == len(array) * math.prod(spec.shape):
            signal = array.reshape(-1, len(spec.channels))
            _tell_constant(text, set(constant_channels(signal, spec.channels)), spec.channels)
        rate_hz = _row_rate_hz(spec, rate_hz)
        return Rows(text, array, rate_hz, lambda: files_hash([path]))
    if isinstance(spec, VideoSpec):
        return Clips(text, _files(path, "video"), spec.frames, spec.hop)
    if isinstance(spec, AudioSpec):
        return _audio(text, _files(path, "audio"), spec)
    if isinstance(spec, MotionSpec):
        return _motion(text, _files(path, "motion"), spec, rate_hz)
    if isinstance(spec, TextSpec):
        files = _files(path, "text")
        lines = [line for file in files for line in read_lines(file)]
        return Rows(text, lines, rate_hz or 1.0, lambda: files_hash(files))
    if spec is not None and not isinstance(spec, ImageSpec):
        raise SourceError(f"{text} holds no arrays; give a .npy or .npz file of inputs")
    return ImageFolder(path, rate_hz or 1.0) if path.is_dir() else VideoFile(path)


def _row_rate_hz(spec: Spec | None, rate_hz: float | None) -> float:
    """Windows a second of a signal that lies in windows; else inputs a second."""
    if isinstance(spec, MotionSpec):
        samples_hz = rate_hz or spec.rate_hz
        return samples_hz / spec.hop if samples_hz else 1.0
    return rate_hz or (spec.rate_hz / spec.hop if isinstance(spec, AudioSpec) else 1.0)


def live_modality(address: str) -> str | None:
    """Return what a live source gives; None: the address is a recording's path."""
    scheme = scheme_of(address)
    return None if scheme is None else _LIVE.get(scheme, "image")


def draft_source(
    modality: str | None, address: str, settings: dict[str, Any], rate_hz: float | None = None
) -> tuple[str, Spec]:
    """Return (modality, specification) of the inputs of any source, a live one or a recording.

    Arguments and errors as for `draft_spec`.
    """
    live = live_modality(address)
    if live is None:
        return draft_spec(modality, address, settings, rate_hz)
    return modality or live, draft_live_spec(modality or live, settings, rate_hz)


def draft_spec(
    modality: str | None, text: str, settings: dict[str, Any], rate_hz: float | None = None
) -> tuple[str, Spec]:
    """Return (modality, specification) that fits a recording. Raises ConfigError or SourceError.

    modality None: by the recording's suffix. settings: fields by name, and `window_ms`, `hop_ms`
    of a motion recording whose rate is known. rate_hz: samples a second of a signal without times.
    What `infi-edge record` has written says itself what it is.
    """
    path = _there(text)
    recorded = recorded_manifest(text)
    if recorded is not None:
        if modality not in (None, recorded.modality):
            raise ConfigError(f"{text} holds {recorded.modality} inputs; leave out --modality")
        spec = parse_spec(recorded.preprocess, recorded.modality, text)
        return recorded.modality, change_spec(spec, settings)
    modality = modality or _guess(path)
    kind, settings = spec_class(modality), dict(settings)
    if path.suffix.lower() in ARRAYS:
        array = read_arrays(path)
        if kind is MotionSpec and array.ndim in (2, 3):
            window, count = (*array.shape[1:], 1)[:2]
            found = {"channels": tuple(f"channel {i}" for i in range(count)), "rate_hz": rate_hz}
            settings = {**found, "window": window, "hop": window, **settings}
        elif kind is FeaturesSpec:
            name = _FEATURE_TYPES.get(array.dtype.name, "float32")
            settings = {"size": tuple(array.shape[1:]), "type": name, **settings}
    elif kind is AudioSpec:
        first = _files(path, "audio")[0]
        found_hz = read_wav(first)[1]
        if not MIN_RATE_HZ <= found_hz <= MAX_RATE_HZ:
            raise SourceError(
                f"{first} is sampled at {found_hz} Hz; resample it to {MIN_RATE_HZ}..{MAX_RATE_HZ}"
            )
        settings = {"rate_hz": found_hz, **settings}
    elif kind is MotionSpec:
        settings = _motion_settings(_files(path, "motion")[0], settings, rate_hz)
    return modality, change_spec(kind(), settings)


def _motion_settings(file: Path, settings: dict[str, Any], rate_hz: float | None) -> dict[str, Any]:
    _, names, times_s = read_csv_signal(file)
    if rate_hz is None and times_s is not None and len(times_s) > 1:
        rate_hz = float(f"{1.0 / float(np.median(np.diff(times_s))):.6g}")
    found: dict[str, Any] = {"channels": tuple(names), "rate_hz": rate_hz}
    if rate_hz is not None and rate_hz < 1 and not {"window", "window_ms"} & set(settings):
        raise SourceError(
            f"{file}: its samples are {1 / rate_hz:.4g} s apart; give times in seconds, or say "
            "how long a window is with --preprocess window=SAMPLES"
        )
    return _with_lengths(found, settings, rate_hz)


def draft_live_spec(modality: str, settings: dict[str, Any], rate_hz: float | None) -> Spec:
    """Return what the inputs of a live source shall look like. Raises ConfigError.

    rate_hz: samples a second of a signal; of anything else it is not asked.
    """
    kind, settings = spec_class(modality), dict(settings)
    if kind is AudioSpec and rate_hz is not None:
        settings = {"rate_hz": rate_hz, **settings}
    if kind is MotionSpec:
        if rate_hz is None and "rate_hz" in settings:
            timed = change_spec(MotionSpec(), {"rate_hz": settings["rate_hz"]})
            assert isinstance(timed, MotionSpec)
            rate_hz = timed.rate_hz
        if rate_hz is None or "channels" not in settings:
            raise ConfigError(
                "what of the sensor? Give --rate-hz, samples a second, and --preprocess "
                "channels=NAME,NAME,..."
            )
        settings = _with_lengths({"rate_hz": rate_hz}, settings, rate_hz)
        if isinstance(settings["channels"], str):
            settings["channels"] = [settings["channels"]]
    return change_spec(kind(), settings)


def _with_lengths(
    found: dict[str, Any], settings: dict[str, Any], rate_hz: float | None
) -> dict[str, Any]:
    """Fill in window and hop, in samples: 2 s and 0.5 s, or what `window_ms` and `hop_ms` say."""
    if rate_hz is not None:
        found |= {"window": round(2.0 * rate_hz), "hop": max(round(0.5 * rate_hz), 1)}
    for name in ("window", "hop"):
        milliseconds = settings.pop(f"{name}_ms", None)
        if milliseconds is None:
            continue
        if rate_hz is None:
            raise ConfigError(f"--preprocess {name}_ms needs the signal's rate; add --rate-hz")
        try:
            found[name] = max(round(float(milliseconds) * rate_hz / 1000), 1)
        except (TypeError, ValueError, OverflowError):
            raise ConfigError(f"--preprocess {name}_ms={milliseconds}: not a number") from None
        if float(milliseconds) <= 0:
            raise ConfigError(f"--preprocess {name}_ms={milliseconds}: not above 0")
    return {**found, **settings}


def _guess(path: Path) -> str:
    suffix = path.suffix.lower()
    if path.is_dir():
        inside = {p.suffix.lower() for p in path.iterdir()}
        for modality in ("audio", "motion", "text"):
            if inside & SUFFIXES[modality]:
                return modality
        return "image"
    if suffix in ARRAYS:
        return "features"
    for modality in ("audio", "motion", "text"):
        if suffix in SUFFIXES[modality]:
            return modality
    return "image"


def _there(text: str) -> Path:
    path = Path(text)
    try:
        there = path.exists()
    except (OSError, ValueError):  # a name too long, a NUL in it
        there = False
    if not there:
        raise SourceError(
            f"{public_address(text)} does not exist; give a recording: a file or a folder"
        )
    return path


def _files(path: Path, modality: str) -> list[Path]:
    """The file itself, or a folder's files of that modality in the order of their names."""
    if not path.is_dir():
        return [path]
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES[modality])
    if not files:
        raise SourceError(f"{path} holds no {', '.join(sorted(SUFFIXES[modality]))} files")
    return files


def _audio(name: str, files: Sequence[Path], spec: AudioSpec) -> Recording:
    @functools.lru_cache(maxsize=2)
    def load(file: Path) -> np.ndarray:
        return read_mono(file, spec.rate_hz)

    stretches = [Stretch(str(f), len(load(f)), functools.partial(load, f)) for f in files]
    settings = f"windows of {spec.window}, hop {spec.hop}"
    return SignalWindows(
        name,
        stretches,
        spec.window,
        spec.hop,
        spec.rate_hz,
        lambda: files_hash(files, settings),
        pad=True,
    )


def _motion(name: str, files: Sequence[Path], spec: MotionSpec, rate_hz: float | None) -> Recording:
    @functools.lru_cache(maxsize=8)
    def load(file: Path) -> tuple[np.ndarray, np.ndarray | None]:
        values, names, times_s = read_csv_signal(file)
        return values[:, _columns(file, names, spec.channels)], times_s

    stretches, still = [], set(spec.channels)
    for file in files:
        values, times_s = load(file)
        still &= set(constant_channels(values, spec.channels))
        for first, last in _without_gaps(file, len(values), times_s, spec):

            def cut(file: Path = file, first: int = first, last: int = last) -> np.ndarray:
                return load(file)[0][first:last]

            stretches.append(Stretch(str(file), last - first, cut))
    _tell_constant(name, still, spec.channels)
    settings = f"windows of {spec.window}, hop {spec.hop}, channels {list(spec.channels)}"
    rate = rate_hz or spec.rate_hz or float(spec.hop)
    return SignalWindows(
        name, stretches, spec.window, spec.hop, rate, lambda: files_hash(files, settings)
    )


def _columns(file: Path, names: tuple[str, ...], channels: tuple[str, ...]) -> list[int]:
    """Which column each channel is: by name where both have names, else by place."""
    if sorted(names) == sorted(channels):
        return [names.index(channel) for channel in channels]
    unnamed = any(every[0] in ("column_1", "channel 0") for every in (names, channels))
    if len(names) != len(channels) or not unnamed:
        raise SourceError(
            f"{file} has {len(names)} channels ({', '.join(names)}), the filter reads "
            f"{len(channels)} ({', '.join(channels)}); give it those columns"
        )
    return list(range(len(names)))


def _tell_constant(name: str, still: set[str], channels: tuple[str, ...]) -> None:
    """Name the channels that never change, unless it is all of them (training refuses those)."""
    if 0 < len(still) < len(channels):
        some = ", ".join(channel for channel in channels if channel in still)
        log.warning(
            "%s: nothing can be learned from %s, which never changes; check the sensor", name, some
        )


def _without_gaps(
    file: Path, count: int, times_s: np.ndarray | None, spec: MotionSpec
) -> list[tuple[int, int]]:
    """Cut a signal where samples are missing, so that no window spans a gap."""
    if times_s is None or count < 2:
        return [(0, count)]
    steps = np.diff(times_s)
    usual = float(np.median(steps))
    if spec.rate_hz is not None and not 0.9 < usual * spec.rate_hz < 1.1:
        raise SourceError(
            f"{file} has {1 / usual:.4g} samples a second, the filter reads {spec.rate_hz:g}; "
            "resample it"
        )
    edges = [0, *(np.flatnonzero(steps > 1.9 * usual) + 1).tolist(), count]
    return list(itertools.pairwise(edges))
