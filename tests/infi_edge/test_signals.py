"""Signals and lines from files: what is written comes back, and damage is one clear sentence."""

from __future__ import annotations

import contextlib
import math
import struct
import uuid
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infi_edge.capture.signals import (
    constant_channels,
    read_csv_signal,
    read_lines,
    read_mono,
    read_wav,
)
from infi_edge.errors import SourceError
from tests.conftest import DATA, need

QUICK = settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
PCM_GUID = uuid.UUID("00000001-0000-0010-8000-00aa00389b71").bytes_le


def outcome(read: Callable[[Path], Any], path: Path) -> Any:
    """What a reader returns; None if it refuses, in one printable sentence that names the file."""
    with contextlib.suppress(SourceError):
        return read(path)
    with pytest.raises(SourceError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    return None


def chunk(name: bytes, body: bytes) -> bytes:
    """A RIFF chunk, padded to an even length."""
    return struct.pack("<4sI", name, len(body)) + body + b"\0" * (len(body) % 2)


def fmt(channels: int = 1, bits: int = 16, tag: int = 1, rate_hz: int = 16000) -> bytes:
    frame = channels * bits // 8
    return chunk(
        b"fmt ", struct.pack("<HHIIHH", tag, channels, rate_hz, rate_hz * frame, frame, bits)
    )


def riff(*chunks: bytes, size: int | None = None) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return struct.pack("<4sI", b"RIFF", len(body) if size is None else size) + body


def encoded(values: np.ndarray, bits: int) -> bytes:
    """Integer samples of 16, 24 or 32 bits; 8 are unsigned."""
    if bits == 8:
        return (values + 128).astype(np.uint8).tobytes()
    if bits == 24:
        return b"".join(struct.pack("<i", v)[:3] for v in values.tolist())
    return values.astype(f"<i{bits // 8}").tobytes()


@pytest.fixture
def wav(tmp_path: Path):
    """Write bytes to a file; return its path."""

    def write(content: bytes) -> Path:
        path = tmp_path / "tone.wav"
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_pcm_of_each_width_comes_back_to_its_last_bit(wav, bits: int, channels: int) -> None:
    half = 1 << (bits - 1)
    values = np.random.default_rng(0).integers(-half, half, 50 * channels)
    values[:2] = -half, half - 1
    path = wav(riff(fmt(channels, bits), chunk(b"data", encoded(values, bits))))
    samples, rate_hz = read_wav(path)
    assert rate_hz == 16000
    assert samples.dtype == np.float32
    assert samples.shape == ((50,) if channels == 1 else (50, channels))
    assert samples.ravel() == pytest.approx(values / half, abs=2**-24)
    assert samples.min() == -1.0


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_what_pythons_own_writer_writes_is_read(tmp_path: Path, bits: int) -> None:
    values = np.arange(-100, 100)
    with wave.open(str(tmp_path / "own.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(bits // 8)
        file.setframerate(44100)
        file.writeframes(encoded(values, bits))
    samples, rate_hz = read_wav(tmp_path / "own.wav")
    assert rate_hz == 44100
    assert samples.ravel() == pytest.approx(values / (1 << (bits - 1)))


def test_a_real_recording_is_read_as_pythons_own_reader_does() -> None:
    path = need(DATA / "spoken-digits" / "recordings" / "0_george_0.wav")
    with wave.open(str(path)) as file:
        expected = np.frombuffer(file.readframes(-1), "<i2")
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
    samples, rate_hz = read_wav(path)
    assert rate_hz == 8000
    assert (samples * 32768 == expected).all()
    assert (read_mono(path, 8000) == samples).all()


def test_float_samples_come_back_and_peaks_are_clipped(wav) -> None:
    values = np.array([0.0, -1.0, 0.25, 1.5], "<f4")
    samples, _ = read_wav(wav(riff(fmt(1, 32, tag=3), chunk(b"data", values.tobytes()))))
    assert samples.tolist() == [0.0, -1.0, 0.25, 1.0]


@pytest.mark.parametrize("bits", [16, 24])
def test_the_extensible_format_is_read(wav, bits: int) -> None:
    frame = bits // 8
    head = struct.pack("<HHIIHH", 0xFFFE, 1, 8000, 8000 * frame, frame, bits)
    head += struct.pack("<HHI", 22, bits, 4) + PCM_GUID
    values = np.array([1, -2, 3])
    path = wav(riff(chunk(b"fmt ", head), chunk(b"data", encoded(values, bits))))
    assert read_wav(path)[0] == pytest.approx(values / (1 << (bits - 1)))


def test_other_chunks_of_odd_lengths_are_passed_over(wav) -> None:
    values = np.array([7, -7, 9])
    note = chunk(b"LIST", b"odd")
    data = chunk(b"data", encoded(values, 16))
    path = wav(riff(chunk(b"JUNK", b""), note, fmt(), note, chunk(b"fact", b"12345"), data, note))
    assert (read_wav(path)[0] * 32768).tolist() == [7, -7, 9]


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x80000000, 0x7FFFF000])
def test_a_recording_written_to_a_pipe_reaches_the_end_of_the_file(wav, size: int) -> None:
    data = struct.pack("<4sI", b"data", size) + encoded(np.arange(5), 16)
    samples, _ = read_wav(wav(riff(fmt(), data, size=0xFFFFFFFF)))
    assert (samples * 32768).tolist() == [0, 1, 2, 3, 4]


DATA_CHUNK = chunk(b"data", b"\1\2" * 50)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a WAV file"),
        (b"RIFF", "is not a WAV file"),
        (b"OggS" + b"\0" * 100, "is not a WAV file"),
        (riff(), "truncated: it holds no samples"),
        (riff(fmt()), "truncated: it holds no samples"),
        (riff(DATA_CHUNK), "samples come before their format"),
        (riff(fmt(), chunk(b"data", b"")), "holds no sample; record it again"),
        (riff(fmt(), DATA_CHUNK)[:-30], "declares 100 bytes of samples and holds 70"),
        (riff(fmt(), chunk(b"LIST", b"x" * 40))[:-9], "a part of it declares 40 bytes and 31"),
        (riff(chunk(b"fmt ", b"12")), "its format takes 2 bytes"),
        (riff(fmt(0), DATA_CHUNK), "0 channels"),
        (riff(fmt(rate_hz=0), DATA_CHUNK), "at 0 Hz"),
        (riff(fmt(bits=0), DATA_CHUNK), "of 0 bits"),
        (riff(fmt(bits=64, tag=3), DATA_CHUNK), "encoding 3 of 64 bits; convert"),
        (riff(fmt(bits=4, tag=17, channels=2), DATA_CHUNK), "encoding 17"),
        (riff(fmt(bits=8, tag=7), DATA_CHUNK), "encoding 7"),
        (riff(fmt(3), DATA_CHUNK), "no multiple of the 6"),
        (riff(fmt(bits=24), DATA_CHUNK).replace(b"\3\0\x18\0", b"\4\0\x18\0"), "declares 4 bytes"),
        (riff(fmt(bits=32, tag=3), chunk(b"data", b"\0\0\xc0\x7f")), "nan at value 0"),
        (riff(fmt(bits=32, tag=3), chunk(b"data", b"\0" * 4 + b"\0\0\x80\xff")), "-inf at value 1"),
        (riff(fmt(bits=32, tag=3), chunk(b"data", struct.pack("<f", 9e3))), "reaches 9000"),
    ],
)
def test_a_damaged_wav_is_one_sentence_that_names_it(
    wav, refuses, content: bytes, words: str
) -> None:
    path = wav(content)
    with refuses(SourceError, f"{path}.*{words}"):
        read_wav(path)


def test_stereo_and_another_rate_are_refused_where_mono_is_needed(wav, refuses) -> None:
    path = wav(riff(fmt(2), DATA_CHUNK))
    with refuses(SourceError, "2 channels where one is needed; mix it down"):
        read_mono(path, 16000)
    path = wav(riff(fmt(), DATA_CHUNK))
    with refuses(SourceError, "sampled at 16000 Hz where 8000 Hz is needed; resample"):
        read_mono(path, 8000)


WHOLE = riff(fmt(), chunk(b"LIST", b"abc"), chunk(b"data", bytes(range(40))))


@given(st.data())
@QUICK
def test_whatever_a_wav_holds_it_is_read_or_refused(wav, data: st.DataObject) -> None:
    content = bytearray(WHOLE)
    for place in data.draw(st.lists(st.integers(0, len(WHOLE) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.none() | st.integers(0, len(WHOLE)))
    path = wav(bytes(content[:cut]) + data.draw(st.binary(max_size=9)))
    found = outcome(read_wav, path)
    if found is None:
        return
    samples, rate_hz = found
    assert rate_hz > 0
    assert samples.size
    assert samples.dtype == np.float32
    assert (np.abs(samples) <= 1).all()


@given(st.binary(max_size=200))
@QUICK
def test_garbage_is_refused_by_each_reader_with_its_name(wav, content: bytes) -> None:
    path = wav(content)
    for read in (read_wav, read_csv_signal, read_lines):
        outcome(read, path)


@pytest.fixture
def table(tmp_path: Path):
    """Write text (or bytes) to a table; return its path."""

    def write(text: str | bytes) -> Path:
        path = tmp_path / "walk.csv"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_a_table_is_read_whatever_its_marks(table, mark: str, end: str, start: str) -> None:
    lines = ["time|ax|ay", "0.0|1|-2.5", "", "0.1| 3e-1 |4", "0.2||nan", "0.3|?|NaN", ""]
    path = table(start + end.join(lines).replace("|", mark))
    values, names, times_s = read_csv_signal(path)
    assert names == ("ax", "ay")
    assert times_s is not None
    assert times_s.dtype == np.float64
    assert times_s.tolist() == [0.0, 0.1, 0.2, 0.3]
    assert values.dtype == np.float32
    assert values[:2] == pytest.approx(np.array([[1, -2.5], [0.3, 4]]))
    assert np.isnan(values[2:]).all()


def test_a_table_without_a_header_has_numbered_columns(table) -> None:
    values, names, times_s = read_csv_signal(table("1,2\n3,4\n"))
    assert names == ("column_1", "column_2")
    assert times_s is None
    assert values.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("name", ["time", "time_s", "timestamp", "Timestamp"])
def test_times_keep_their_microseconds_since_1970(table, name: str) -> None:
    path = table(f"{name},x\n1700000000.000001,1\n1700000000.000002,1\n")
    times_s = read_csv_signal(path)[2]
    assert times_s is not None
    assert np.diff(times_s) == pytest.approx(1e-6, rel=0.3)


def test_a_lone_missing_value_is_a_sample_and_an_empty_line_is_none(table) -> None:
    values, _, _ = read_csv_signal(table('x\n1\n""\nnan\n\n4\n  \n'))
    assert np.isnan(values[1:3]).all()
    assert values[[0, 3], 0].tolist() == [1, 4]
    assert len(values) == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("\n \n\n", "is empty"),
        ("a,b\n", "a header and no row"),
        ("a,b\n1,2\n3,x7\n", "line 3: 'x7' is not a number in column b"),
        ("a,b\n\n\n1,1_0\n", "line 4: '1_0' is not a number in column b"),
        ("1,2\n3,four\n", "line 2: 'four' is not a number in column column_2"),
        ("a;b\n1,5;2\n", "line 2: '1,5' is not a number in column a"),
        ("a,b\n1,2\n3\n", "line 3: 1 cells where 2 are needed"),
        ("a,b\n1,2\n3,4,5\n", "line 3: 3 cells where 2 are needed"),
        ("a,b\n1,2\n3,inf\n", "line 3: inf in column b is no measurement"),
        ("a,b\n1,2\n-1e39,4\n", "line 3: -1e.39 in column a is no measurement"),
        ("a,a\n1,2\n", "line 1: two columns have the same name"),
        ("time\n1\n2\n", "times and no channel"),
        ("x,time\n1,2\n", "column time holds times; make it the first"),
        ("time,x\n1,2\n?,2\n", "line 3: the time is missing"),
        ("time,x\n1,2\n1,3\n", "line 3: time 1 does not come after 1"),
        ("time,x\n2,2\n\n1,3\n", "line 4: time 1 does not come after 2"),
        ('a,b\n"1,2\n', "line 2 is not CSV"),
        ("a\x1b,b\nx,2\n", r"line 2: 'x' is not a number in column a\?;"),
        ("a,b\n1,2\r3,4\n", "line 2 is not CSV"),
        (b"a,b\n1,2\n\xe4,3\n", "line 3 is not UTF-8: byte 0xe4"),
        ("a,b\n1,2\n".encode("utf-16"), "line 1 is not UTF-8"),
        ("x" * 200_000 + ",b\n1,2\n", "line 1 is not CSV"),
        ("a\n" + "9" * 5000 + "\n", "line 2: inf in column a"),
    ],
)
def test_a_bad_table_names_file_line_and_column(table, refuses, text, words: str) -> None:
    path = table(text)
    with refuses(SourceError, f"{path}.*{words}"):
        read_csv_signal(path)


CELLS = st.floats(width=32, allow_infinity=False) | st.just(math.nan)


@given(
    st.integers(1, 4).flatmap(
        lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n), min_size=1)
    )
)
@QUICK
def test_any_table_of_numbers_comes_back(table, rows: list[list[float]]) -> None:
    names = [f"c{i}" for i in range(len(rows[0]))]
    text = "\n".join(",".join(map(str, row)) for row in [names, *rows])
    values, found, times_s = read_csv_signal(table(text))
    assert list(found) == names
    assert times_s is None
    assert np.array_equal(values, np.array(rows, np.float32), equal_nan=True)


@given(st.lists(st.text(st.sampled_from('ab,;\t"\r\n 1.e-x\0é'), max_size=12), max_size=5))
@QUICK
def test_whatever_a_table_holds_it_is_read_or_refused(table, lines: list[str]) -> None:
    path = table("\n".join(lines))
    found = outcome(read_csv_signal, path)
    if found is None:
        return
    values, names, times_s = found
    assert values.shape == (len(values), len(names))
    assert len(values)
    assert not np.isinf(values).any()
    assert times_s is None or len(times_s) == len(values)


def test_constant_and_empty_channels_are_named() -> None:
    nan = math.nan
    signal = np.array([[1, 5, nan, nan, 0.1], [2, 5, nan, 3, 0.1], [3, 5, nan, nan, 0.2]], "f4")
    assert constant_channels(signal, ("a", "b", "c", "d", "e")) == ("b", "c", "d")
    assert constant_channels(signal[:1], ("a", "b", "c", "d", "e")) == tuple("abcde")
    assert constant_channels(signal[:, :1].astype(int), ("a",)) == ()


def test_lines_end_at_lf_or_crlf_and_nowhere_else(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes("\ufeffone\r\n\n two\u2028\x0b three \rfour\nfünf".encode())
    assert read_lines(path) == ["one", "", " two\u2028\x0b three \rfour", "fünf"]
    for content, lines in ((b"", []), (b"\n", [""]), (b"a\n", ["a"]), (b"\r\n\r\n", ["", ""])):
        path.write_bytes(content)
        assert read_lines(path) == lines


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r")), min_size=1))
@QUICK
def test_any_lines_come_back(table, lines: list[str]) -> None:
    assert read_lines(table("".join(line + "\n" for line in ["x", *lines])))[1:] == lines


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path, refuses) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(b"one\r\ntwo\nthr\xffee\n")
    with refuses(SourceError, f"{path}, line 3 is not UTF-8: byte 0xff; save the file as UTF-8"):
        read_lines(path)


@pytest.mark.parametrize("read", [read_wav, read_csv_signal, read_lines])
def test_what_cannot_be_opened_is_refused(tmp_path: Path, refuses, read) -> None:
    with refuses(SourceError, "none.wav cannot be read: no such file"):
        read(tmp_path / "none.wav")
    with refuses(SourceError, "is a directory"):
        read(tmp_path)
    with refuses(SourceError, "is no file name"):
        read("a\0b")


def test_a_file_that_no_small_device_can_hold_is_refused_unread(tmp_path: Path, refuses) -> None:
    path = tmp_path / "huge.wav"
    with path.open("wb") as file:
        file.truncate((1 << 30) + 1)  # a hole, not bytes on the disk
    with refuses(SourceError, "more than the 1073741824 allowed; cut it"):
        read_wav(path)
