"""Which files a configuration needs as a service, and whether the service can reach them."""

from __future__ import annotations

import grp
import importlib.util
import os
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from infi_edge.capture.address import public_address, scheme_of
from infi_edge.config import Config, JsonlSinkConfig, SnapshotSinkConfig
from infi_edge.errors import ConfigError
from infi_edge.plugins import names_object
from infi_edge.service_files import CACHE_DIR, CONFIG_DIR, DEVICE_GROUPS, HIDDEN, STATE_DIR, USER

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, slots=True)
class PlacedFile:
    """A file to copy into CONFIG_DIR. name: its path in there."""

    name: str
    origin: Path
    content: bytes


def config_files(config: Path, installed: Path) -> tuple[list[PlacedFile], dict[str, str]]:
    """Return what is copied into CONFIG_DIR (nothing for what is there), and the links made there.

    config: a valid file, resolved. installed: CONFIG_DIR. What the configuration names by a
    relative path is copied with it; an absolute path stays where it is. The one link is the
    relative state folder's: it leads to STATE_DIR.
    Raises ConfigError for a file that the service could not read, or a place it could not write.
    """
    written = msgspec.convert(tomllib.loads(config.read_text(encoding="utf-8")), Config)
    if not re.fullmatch(r"[\w.@+-]+", config.name) or config.name.startswith("."):
        raise ConfigError(f"{config.name} is no name for a service's file; use letters and digits")
    here = config.parent == installed.resolve()
    placed = {config.name: config}
    for key, text in _named(written, config.parent):
        if os.path.isabs(text):
            if not here and Path(text).is_relative_to(config.parent):
                raise ConfigError(
                    f"{key} is {text}, beside the configuration; name it without the folder, so "
                    "that it is installed with it"
                )
            if problem := readable_problem(Path(text)):
                raise ConfigError(f"{key}: {text} {problem}; put it into {CONFIG_DIR}")
            continue
        name = os.path.normpath(text)
        if name.startswith(".."):
            raise ConfigError(f"{key} is {text}, outside the configuration's folder; move it there")
        placed[name] = config.parent / text
        if here and (problem := _right_problem(placed[name], stat.S_IROTH)):
            raise ConfigError(f"{key}: {text} {problem}")
    links = _check_written(written)
    if here:
        return [], links
    return [PlacedFile(n, path, path.read_bytes()) for n, path in placed.items()], links


def readable_problem(path: Path) -> str:
    """Return why the service's user cannot read a file or folder; empty if it can.

    It can by the rights of all, or of the groups it is in.
    """
    for hidden in HIDDEN:
        if path.is_relative_to(hidden):
            return f"is under {hidden}, which a service does not see"
    problems = (_right_problem(part, stat.S_IXOTH) for part in path.parents)
    return _right_problem(path, stat.S_IROTH) or next(filter(None, problems), "")


def _right_problem(path: Path, needed: int) -> str:
    try:
        status = path.stat()
    except OSError as error:
        return f"cannot be read: {(error.strerror or '').lower()}"
    theirs = needed << 3 if _group(status.st_gid) in (USER, *DEVICE_GROUPS) else 0
    if status.st_mode & (needed | theirs):
        return ""
    return f"cannot be read by the user {USER}; see the rights of {path}"


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return ""


def _named(config: Config, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (key, path) of every file that is read, as it is written."""
    for name, source in config.sources.items():
        for key, text in (("filter", source.filter), ("head", source.head)):
            if text:  # a source that learns may do without a filter
                yield f"sources.{name}.{key}", text
        if scheme_of(source.address) is None and (folder / source.address).exists():
            if not os.path.isabs(source.address):
                raise ConfigError(
                    f"sources.{name}.address is {public_address(source.address)}, a recording; "
                    "give its whole path, it is not copied"
                )
            yield f"sources.{name}.address", source.address
    for name, model in config.models.items():
        if not model.path:  # it is on a server
            continue
        if names_object(model.path) and not (folder / model.path).exists():
            yield from _module(f"models.{name}.path", model.path.partition(":")[0], folder)
        else:
            yield f"models.{name}.path", model.path
    for plugin in config.plugins:
        if plugin.endswith(".py"):
            yield "plugins", plugin
        else:
            yield from _module("plugins", plugin, folder)
    yield from _secrets(config)


def _secrets(config: Config) -> Iterator[tuple[str, str]]:
    tables: dict[str, object] = {f"sinks.{name}": sink for name, sink in config.sinks.items()}
    tables |= {f"models.{name}.offload": model.offload for name, model in config.models.items()}
    for at, table in {**tables, "web": config.web}.items():
        for key in ("password_file", "token_file", "ca_file", "cert_file", "key_file"):
            if text := getattr(table, key, None):
                yield f"{at}.{key}", text


def _module(key: str, name: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the file of a module that lies beside the configuration."""
    top = name.partition(".")[0]
    if (folder / f"{top}.py").is_file():
        yield key, f"{top}.py"
    elif (folder / top).is_dir() or importlib.util.find_spec(top) is None:
        raise ConfigError(
            f"{key} names {name}, which is neither a file {top}.py beside the configuration nor "
            f"installed; pip install it into {sys.prefix}"
        )


def _check_written(config: Config) -> dict[str, str]:
    """Return the links that make the relative places to write lead to STATE_DIR."""
    links = {}
    places = [("state", config.state)]
    for name, sink in config.sinks.items():
        if isinstance(sink, JsonlSinkConfig) and sink.path != "-":
            places.append((f"sinks.{name}.path", sink.path))
        if isinstance(sink, SnapshotSinkConfig):
            places.append((f"sinks.{name}.folder", sink.folder))
    state = os.path.normpath(config.state)
    if not os.path.isabs(state):
        if "/" in state or state.startswith("."):
            raise ConfigError(
                f"state is {config.state}; as a service it is one word, or {STATE_DIR}"
            )
        links[state] = STATE_DIR
    for key, text in places:
        place = Path(os.path.normpath(text))
        if not any(place.is_relative_to(p) for p in (STATE_DIR, CACHE_DIR, *links)):
            raise ConfigError(
                f"{key} is {text}, where a service may not write; "
                f"put it below {STATE_DIR}" + (f", or below {state}/" if links else "")
            )
    return links
