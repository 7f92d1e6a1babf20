"""The daemon's TOML: what is read, where its paths point, what is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from infi_edge.config import CacheConfig, load_config
from infi_edge.errors import ConfigError

PARTS = {
    "source": 'address = "camera:0"',
    "model": 'path = "own.model:infer"',
    "gate": 'filter = "yard.infi"',
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "yard.toml"


def toml(**more: str) -> str:
    """A valid file with lines added to its sections."""
    sections = {**PARTS, **{k: "" for k in more if k not in PARTS}}
    return "\n".join(f"[{k}]\n{text}\n{more.get(k, '')}" for k, text in sections.items())


def test_the_smallest_file_has_the_defaults(path):
    path.write_text(toml())
    config = load_config(path)
    assert config.source.address == "camera:0"
    assert config.model.path == "own.model:infer"
    assert config.gate.enabled
    assert config.cache == CacheConfig()
    assert config.output.jsonl == "-"


def test_every_key_is_read(path):
    path.write_text(
        toml(
            source="rate_hz = 2\nstart = 0.25\nend = 0.5",
            model='version = "3"\nthreads = 2\nallow_other = true',
            gate="target_recall = 0.9\nmax_consecutive_filtered = 30\nheartbeat_s = 5\n"
            "enabled = false",
            cache='entries = 10\nmax_bytes = 5000\nmax_age_s = 1.5\neviction = "lru"',
        )
    )
    config = load_config(path)
    assert (config.source.rate_hz, config.source.start, config.source.end) == (2.0, 0.25, 0.5)
    assert (config.model.version, config.model.threads) == ("3", 2)
    assert config.model.allow_other
    assert config.gate.target_recall == 0.9
    assert config.gate.max_consecutive_filtered == 30
    assert config.gate.heartbeat_s == 5.0
    assert not config.gate.enabled
    assert config.cache == CacheConfig(entries=10, max_bytes=5000, max_age_s=1.5, eviction="lru")


def test_paths_are_relative_to_the_file(path, tmp_path, monkeypatch):
    (tmp_path / "clip.mp4").touch()
    (tmp_path / "model.tflite").touch()
    (tmp_path / "yard.infi").touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    path.write_text(
        '[source]\naddress = "clip.mp4"\n[model]\npath = "model.tflite"\n'
        '[gate]\nfilter = "yard.infi"\n'
        '[cache]\nsnapshot = "yard.cache"\n[output]\njsonl = "out.jsonl"\n'
    )
    config = load_config(path)
    assert config.source.address == str(tmp_path / "clip.mp4")
    assert config.model.path == str(tmp_path / "model.tflite")
    assert config.gate.filter == str(tmp_path / "yard.infi")
    assert config.cache.snapshot == str(tmp_path / "yard.cache")
    assert config.output.jsonl == str(tmp_path / "out.jsonl")


def test_absolute_paths_and_what_is_no_path_stay_as_they_are(path):
    path.write_text(toml(output='jsonl = "/var/log/yard.jsonl"', cache='snapshot = "/var/yard"'))
    config = load_config(path)
    assert config.source.address == "camera:0"
    assert config.model.path == "own.model:infer"
    assert config.output.jsonl == "/var/log/yard.jsonl"
    assert config.cache.snapshot == "/var/yard"


@pytest.mark.parametrize(
    ("section", "line", "words"),
    [
        ("source", "colour = 1", "unknown field `colour`"),
        ("gate", "skip_threshold = 0.5", "unknown field"),
        ("gate", '"two\\nlines" = 1', "unknown field"),
        ("web", "port = 80", "unknown field `web`"),
        ("model", 'threads = "two"', "model.threads"),
        ("model", "threads = 1.5", "model.threads"),
        ("model", "allow_other = 1", "allow_other"),
        ("source", "rate_hz = 2024-01-01", "rate_hz"),
        ("cache", 'eviction = "random"', "eviction"),
        ("cache", "snapshot = 5", "snapshot"),
        ("gate", "target_accuracy = 0.9\ntarget_recall = 0.9", "not both"),
        ("model", "threads = 0", "model.threads is 0; it must be above 0"),
        ("cache", "entries = 0", "cache.entries"),
        ("cache", "entries = -5", "cache.entries"),
        ("cache", "max_bytes = 0", "cache.max_bytes"),
        ("cache", "max_age_s = 0.0", "cache.max_age_s"),
        ("cache", "max_age_s = nan", "cache.max_age_s"),
        ("source", "rate_hz = -1", "source.rate_hz"),
        ("source", "rate_hz = inf", "source.rate_hz"),
        ("gate", "heartbeat_s = 0", "gate.heartbeat_s"),
        ("gate", "max_consecutive_filtered = 0", "gate.max_consecutive_filtered"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(path, refuses, section, line, words):
    path.write_text(toml(**{section: line}))
    with refuses(ConfigError, f"^{path}.*{words}"):
        load_config(path)


@pytest.mark.parametrize("gone", ["source", "model", "gate"])
def test_a_section_that_is_missing_is_named(path, refuses, gone):
    path.write_text(toml().replace(f"[{gone}]\n{PARTS[gone]}", ""))
    with refuses(ConfigError, f"`{gone}`"):
        load_config(path)


@pytest.mark.parametrize("gone", ["address", "path", "filter"])
def test_a_key_that_is_missing_is_named(path, refuses, gone):
    path.write_text("\n".join(line for line in toml().splitlines() if not line.startswith(gone)))
    with refuses(ConfigError, f"`{gone}`"):
        load_config(path)


@pytest.mark.parametrize(
    "content",
    [b"[source", b"a = 1\na = 2", b"\xff\xfe", b"address = camera:0", b'a = "two\nlines"'],
)
def test_a_file_that_is_no_toml_is_refused(path, refuses, content):
    path.write_bytes(content)
    with refuses(ConfigError, "is not TOML"):
        load_config(path)


@pytest.mark.parametrize("name", ["absent.toml", ".", "n" * 5000])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, refuses, name):
    with refuses(ConfigError):
        load_config(f"{tmp_path}/{name}")
