"""Install infi-edge as a systemd service, and take it away again: first a list of steps, then done.

The list is what `--dry-run` prints, so that nothing is done that it does not show.
"""

from __future__ import annotations

import grp
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from infi_edge import service_files as files
from infi_edge.archive import write_atomically
from infi_edge.config import load_config
from infi_edge.errors import ConfigError, InfiEdgeError
from infi_edge.service_config import PlacedFile, config_files, readable_problem
from infi_edge.service_steps import (
    Step,
    copy_step,
    delete_empty_step,
    delete_step,
    delete_tree_step,
    folder_step,
    link_step,
    run_step,
    write_step,
)

RECORD = f"{files.CONFIG_DIR}/.service.json"
SERVICE = "infi-edge.service"
MADE = (files.UNIT, files.UDEV_RULES, files.SYSUSERS, files.TMPFILES)


@dataclass(frozen=True, slots=True)
class Place:
    """Where it is installed. prefix: a folder that stands for /, in which nothing is run; None:
    this machine. environment: the virtual environment whose infi-edge the service runs."""

    prefix: Path | None = None
    environment: Path = Path(sys.prefix)

    def real(self, path: str) -> Path:
        """Return where a path of the installed system is now."""
        return Path(path) if self.prefix is None else self.prefix / path.lstrip("/")


@dataclass(frozen=True, slots=True)
class Record:
    """What install has put into CONFIG_DIR: the configuration's name, and each file's SHA-256."""

    config: str
    files: dict[str, str]


def install(config: Path, place: Place) -> list[Step]:
    """Return the steps that install, or install anew, the service for a configuration.

    Raises ConfigError for a configuration that would not run as a service, InfiEdgeError if
    something of somebody else is in the way.
    """
    config = config.resolve()
    load_config(config)
    record = read_record(place)
    placed, links = config_files(config, installed=place.real(files.CONFIG_DIR))
    _check_environment(place)
    for made in MADE:
        _check_ours(place.real(made))
    for file in placed:
        _check_unchanged(place, file, record)
    for name in links:
        path = place.real(f"{files.CONFIG_DIR}/{name}")
        if path.exists() and not path.is_symlink():
            raise InfiEdgeError(f"{path} is where a link to {files.STATE_DIR} goes; move it away")
    unit = files.Unit(
        command=f"{_as_installed(place.environment, place)}/bin/infi-edge",
        config=f"{files.CONFIG_DIR}/{config.name}",
        groups=_device_groups(place),
        jetson=place.real("/etc/nv_tegra_release").exists(),
    )
    hashes = {file.name: sha256(file.content) for file in placed}
    new = Record(config.name, {**(record.files if record else {}), **hashes})
    steps = [folder_step(place.real(files.CONFIG_DIR), 0o750)]
    steps += [
        copy_step(file.origin, file.content, place.real(f"{files.CONFIG_DIR}/{file.name}"))
        for file in placed
    ]
    steps += [
        link_step(place.real(f"{files.CONFIG_DIR}/{n}"), target) for n, target in links.items()
    ]
    steps += [write_record(place, new)]
    steps += [
        write_step(place.real(files.SYSUSERS), files.SYSUSERS_TEXT),
        write_step(place.real(files.TMPFILES), files.TMPFILES_TEXT),
        write_step(place.real(files.UDEV_RULES), files.UDEV_TEXT),
        write_step(place.real(files.UNIT), files.unit_text(unit)),
    ]
    if place.prefix is not None:
        return [*steps, link_step(place.real(files.ENABLED), files.UNIT)]
    return [
        *steps,
        run_step("systemd-sysusers", files.SYSUSERS),
        run_step("systemd-tmpfiles", "--create", files.TMPFILES),
        run_step("udevadm", "control", "--reload", needed=False),
        run_step(
            "udevadm", "trigger", "--subsystem-match=iio", "--subsystem-match=i2c-dev", needed=False
        ),
        run_step("systemctl", "daemon-reload"),
        run_step("systemctl", "enable", SERVICE),
        run_step("systemctl", "restart", SERVICE),
    ]


def remove(place: Place, purge: bool = False) -> list[Step]:
    """Return the steps that undo `install`.

    Files that were changed since, and the state folder with its user, stay unless `purge`.
    Raises InfiEdgeError if there is nothing to remove.
    """
    record = read_record(place)
    ours = [place.real(made) for made in MADE if _is_ours(place.real(made))]
    data = [place.real(folder) for folder in (files.STATE_DIR, files.CACHE_DIR)]
    if record is None and not ours and not (purge and any(d.exists() for d in data)):
        raise InfiEdgeError(f"no service is installed in {place.real('/etc')}")
    steps: list[Step] = []
    if place.prefix is None:
        steps += [run_step("systemctl", "disable", "--now", SERVICE, needed=False)]
    enabled = place.real(files.ENABLED)
    if enabled.is_symlink() and place.prefix is not None:
        steps += [delete_step(enabled)]
    steps += [delete_step(path) for path in ours]
    if record is not None:
        steps += _remove_files(place, record, purge)
    if place.prefix is None:
        steps += [
            run_step("systemctl", "daemon-reload"),
            run_step("udevadm", "control", "--reload", needed=False),
        ]
    if purge:
        steps += [delete_tree_step(path) for path in data]
        if place.prefix is None:
            steps += [run_step("userdel", files.USER, needed=False)]
    return steps


def _remove_files(place: Place, record: Record, purge: bool) -> list[Step]:
    folder = place.real(files.CONFIG_DIR)
    steps, kept = [], {}
    for name, known in record.files.items():
        path = folder / name
        if purge or not path.is_file() or sha256_of(path) == known:
            steps.append(delete_step(path))
        else:
            kept[name] = known
            steps.append(Step(f"keep {path}: it was changed", lambda: None))
    steps += [delete_step(path) for path in _links_to_state(folder)]
    # What stays is remembered, so that a later --purge finds it.
    again = replace(record, files=kept)
    steps += [write_record(place, again) if kept else delete_step(place.real(RECORD))]
    return [*steps, delete_empty_step(folder)]


def read_record(place: Place) -> Record | None:
    """Return what is installed in CONFIG_DIR, or None. Raises InfiEdgeError if it is damaged."""
    path = place.real(RECORD)
    try:
        raw = json.loads(path.read_text())
        return Record(str(raw["config"]), {str(k): str(v) for k, v in raw["files"].items()})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InfiEdgeError(f"{path} is damaged; delete it and install again") from error


def write_record(place: Place, record: Record) -> Step:
    """Return the step that remembers what is installed."""
    text = json.dumps({"config": record.config, "files": record.files}, indent=1, sort_keys=True)
    path = place.real(RECORD)
    return Step(f"write {path}", lambda: write_atomically(path, text.encode()))


def sha256(content: bytes) -> str:
    """Return what tells a file's content apart."""
    return hashlib.sha256(content).hexdigest()


def sha256_of(path: Path) -> str:
    """Return what tells the content of a file apart."""
    return sha256(path.read_bytes())


def _check_environment(place: Place) -> None:
    environment = place.environment
    if not (environment / "bin/infi-edge").is_file():
        raise InfiEdgeError(
            f"{environment}/bin/infi-edge does not exist; install infi-edge in a virtual "
            "environment and use the infi-edge of that"
        )
    if not re.fullmatch(r"[\w./@+-]+", str(environment)):
        raise InfiEdgeError(f"{environment} has a character that systemd reads as its own")
    if place.prefix is not None:
        return
    source = Path(__file__).parent  # elsewhere for an editable installation
    for path in (environment, source, Path(os.path.realpath(environment / "bin/python"))):
        problem = readable_problem(path)
        if problem:
            raise InfiEdgeError(
                f"{path} {problem}; make the virtual environment in /opt/infi-edge with the "
                "system's Python, as docs/install.md says"
            )


def _as_installed(path: Path, place: Place) -> Path:
    if place.prefix is not None and path.is_relative_to(place.prefix.resolve()):
        return Path("/") / path.relative_to(place.prefix.resolve())
    return path


def _is_ours(path: Path) -> bool:
    try:
        return path.read_text(errors="replace").startswith(files.MARK)
    except FileNotFoundError:
        return False


def _check_ours(path: Path) -> None:
    if path.exists() and not _is_ours(path):
        raise InfiEdgeError(
            f"{path} is not from `infi-edge service install`; move it away and try again"
        )


def _check_unchanged(place: Place, file: PlacedFile, record: Record | None) -> None:
    path = place.real(f"{files.CONFIG_DIR}/{file.name}")
    if not path.exists() or (found := sha256_of(path)) == sha256(file.content):
        return
    if record is None or file.name not in record.files:
        raise InfiEdgeError(f"{path} is not from `infi-edge service install`; move it away")
    if found != record.files[file.name]:
        raise InfiEdgeError(
            f"{path} was changed since it was installed; delete it, or install the changed "
            f"configuration itself: infi-edge service install {files.CONFIG_DIR}/{record.config}"
        )


def _device_groups(place: Place) -> tuple[str, ...]:
    # An image has its own groups; a bare folder is taken to become a machine like this one.
    file = place.real("/etc/group")
    if place.prefix is not None and file.is_file():
        known = {line.partition(":")[0] for line in file.read_text().splitlines()}
    else:
        known = {group.gr_name for group in grp.getgrall()}
    return tuple(name for name in files.DEVICE_GROUPS if name in known)


def _links_to_state(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.glob("*")):
        if path.is_symlink() and os.readlink(path) == files.STATE_DIR:
            yield path


def check_allowed(place: Place) -> None:
    """Raise ConfigError unless this process may change the place, and systemd runs on it."""
    if place.prefix is not None:
        return
    if os.geteuid() != 0:
        raise ConfigError(
            f"a service is root's matter; run it as: sudo {sys.prefix}/bin/infi-edge service ..."
        )
    if not Path("/run/systemd/system").is_dir():
        raise ConfigError("systemd does not run here; use --prefix for an image, or --dry-run")
