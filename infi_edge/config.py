"""The daemon's settings, from TOML."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import msgspec

from infi_edge.cache import Eviction
from infi_edge.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class SourceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """address: a recording (file or folder), or `camera:0`. rate_hz: of what has no times: images
    in a folder, lines, arrays; or samples a second of a signal.
    start, end: the part of a clip, as fractions."""

    address: str
    rate_hz: float | None = None
    start: float = 0.0
    end: float = 1.0


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """path: a .tflite file or `package.module:function`. version: of a callable. threads: CPU."""

    path: str
    version: str = ""
    threads: int = 1
    allow_other: bool = False


class GateConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """filter: the bundle. target_accuracy, target_recall: another row of its table.
    enabled false: everything is inferred. max_consecutive_filtered: inputs. heartbeat_s: seconds.
    """

    filter: str
    enabled: bool = True
    target_accuracy: float | None = None
    target_recall: float | None = None
    max_consecutive_filtered: int | None = None
    heartbeat_s: float | None = None


class CacheConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """entries, max_bytes, max_age_s: the bounds. snapshot: file kept across restarts."""

    entries: int = 4096
    max_bytes: int = 8 << 20
    max_age_s: float | None = None
    eviction: Eviction = "oldest"
    snapshot: str | None = None


class OutputConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """jsonl: file for the results; `-` for standard output."""

    jsonl: str = "-"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All of it. Paths are relative to the configuration file.

    plugins: modules or .py files of one's own, imported first.
    """

    source: SourceConfig
    model: ModelConfig
    gate: GateConfig
    cache: CacheConfig = CacheConfig()
    output: OutputConfig = OutputConfig()
    plugins: tuple[str, ...] = ()


def load_config(path: str | Path) -> Config:
    """Read a TOML file. Raises ConfigError for an unknown key, a wrong type or impossible value."""
    try:
        raw = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    try:
        config = msgspec.convert(raw, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}; see README for the keys") from error
    return check_config(_relative_to(config, Path(path).parent), str(path))


def _relative_to(config: Config, folder: Path) -> Config:
    def near(text: str) -> str:
        return str(folder / text) if (folder / text).exists() else text

    replace = msgspec.structs.replace
    output = config.output.jsonl
    snapshot = config.cache.snapshot
    return replace(
        config,
        plugins=tuple(near(plugin) for plugin in config.plugins),
        source=replace(config.source, address=near(config.source.address)),
        model=replace(config.model, path=near(config.model.path)),
        gate=replace(config.gate, filter=near(config.gate.filter)),
        output=replace(config.output, jsonl=output if output == "-" else str(folder / output)),
        cache=replace(config.cache, snapshot=snapshot and str(folder / snapshot)),
    )


def check_config(config: Config, name: str) -> Config:
    """Return the config if its numbers make sense. Raises ConfigError."""
    positive = {
        "model.threads": config.model.threads,
        "cache.entries": config.cache.entries,
        "cache.max_bytes": config.cache.max_bytes,
        "cache.max_age_s": config.cache.max_age_s,
        "source.rate_hz": config.source.rate_hz,
        "gate.heartbeat_s": config.gate.heartbeat_s,
        "gate.max_consecutive_filtered": config.gate.max_consecutive_filtered,
    }
    for key, value in positive.items():
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name}: {key} is {value}; it must be above 0")
    if config.gate.target_accuracy is not None and config.gate.target_recall is not None:
        raise ConfigError(f"{name}: give gate.target_accuracy or gate.target_recall, not both")
    return config
