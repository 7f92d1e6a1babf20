"""Put another bundle under a service that is installed, and the one before back."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from infi_edge.archive import write_atomically
from infi_edge.bundle import Bundle, operating_point, read_bundle
from infi_edge.config import SourceConfig, load_config
from infi_edge.errors import ConfigError, InfiEdgeError
from infi_edge.filter import InputFilter
from infi_edge.service import Place, Record, read_record, sha256, sha256_of, write_record
from infi_edge.service_files import CONFIG_DIR
from infi_edge.service_steps import Step

PREVIOUS = ".previous"


def upgrade(bundle: Path, place: Place, source: str | None = None) -> list[Step]:
    """Return the steps that replace the bundle of a source; the old one stays as NAME.previous.

    source: its name; None: the only one's. The daemon sees that the file has changed.
    Raises BundleError if the bundle is damaged or does not load here, ConfigError if it is for
    other inputs, another model or task, or has no row for the target that is configured.
    """
    record, path, sources = _installed(place, source)
    new = read_bundle(bundle)
    InputFilter(new)
    _check_fits(new, read_bundle(path), bundle)
    for name, settings in sources.items():
        try:
            operating_point(new.manifest, settings.target_accuracy, settings.target_recall)
        except ConfigError as error:
            raise ConfigError(f"sources.{name}: {error}") from error
    if sha256_of(path) == sha256_of(bundle):
        raise ConfigError(f"{bundle} is the bundle that is installed already")
    return _replace(place, record, path, bundle.read_bytes(), f"copy {bundle} to {path}")


def rollback(place: Place, source: str | None = None) -> list[Step]:
    """Return the steps that put the bundle before back; the present one becomes NAME.previous, so
    that a second rollback undoes the first.

    Raises BundleError if it is damaged, ConfigError if there is none.
    """
    record, path, _ = _installed(place, source)
    previous = path.with_name(path.name + PREVIOUS)
    if not previous.is_file():
        raise ConfigError(f"there is no bundle before {path}; it was never upgraded")
    InputFilter(read_bundle(previous))
    text = f"put the bundle before back as {path}"
    return _replace(place, record, path, previous.read_bytes(), text)


def _installed(place: Place, source: str | None) -> tuple[Record, Path, dict[str, SourceConfig]]:
    """Return the record, the bundle of a source, and all sources that use that bundle."""
    record = read_record(place)
    if record is None:
        raise InfiEdgeError("no service is installed; see infi-edge service install --help")
    folder = place.real(CONFIG_DIR)
    sources = load_config(folder / record.config).sources
    if source is not None and source not in sources:
        raise ConfigError(f"there is no source {source!r}; it is one of {', '.join(sources)}")
    with_filter = {name: settings for name, settings in sources.items() if settings.filter}
    if not with_filter or (source is not None and source not in with_filter):
        name = source or next(iter(sources))
        raise ConfigError(f"source {name} has no filter to upgrade; it learns its own")
    filters = {settings.filter for settings in with_filter.values()}
    if source is None and len(filters) > 1:
        raise ConfigError(f"say whose bundle with --source: {', '.join(with_filter)}")
    path = filters.pop() if source is None else sources[source].filter
    users = {name: settings for name, settings in sources.items() if settings.filter == path}
    return record, Path(path), users


def _check_fits(new: Bundle, old: Bundle, path: Path) -> None:
    ours, theirs = old.manifest, new.manifest
    pairs = {
        "inputs": (ours.modality, theirs.modality),
        "model": (ours.workload.model_identity, theirs.workload.model_identity),
        "decoder": (ours.workload.decoder, theirs.workload.decoder),
        "task": (ours.workload.task, theirs.workload.task),
        "same rule": (ours.workload.same, theirs.workload.same),
        "labels": (ours.workload.labels, theirs.workload.labels),
    }
    for what, (before, after) in pairs.items():
        if before != after:
            shown = "" if what == "labels" else f" ({_short(after)}, not {_short(before)})"
            raise ConfigError(
                f"{path} is for another {what} than the bundle that is installed{shown}; "
                "install it with its own configuration: infi-edge service install CONFIG"
            )


def _short(text: object) -> str:
    return str(text)[:12] if len(str(text)) > 40 else str(text)


def _replace(place: Place, record: Record, path: Path, content: bytes, text: str) -> list[Step]:
    """The present bundle is kept first: at no moment is there none."""
    previous = path.with_name(path.name + PREVIOUS)
    present = path.read_bytes()
    folder = place.real(CONFIG_DIR)
    hashes = {
        os.path.relpath(file, folder): sha256(data)
        for file, data in ((path, content), (previous, present))
        if file.is_relative_to(folder)
    }
    return [
        Step(f"keep the present bundle as {previous}", lambda: write_atomically(previous, present)),
        Step(text, lambda: write_atomically(path, content)),
        write_record(place, replace(record, files={**record.files, **hashes})),
    ]
