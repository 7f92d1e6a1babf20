"""The commands `infi-edge service ...`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from infi_edge import service as installed
from infi_edge import service_upgrade
from infi_edge.errors import InfiEdgeError
from infi_edge.service import Place, check_allowed
from infi_edge.service_steps import Step

F = TypeVar("F", bound=Callable[..., Any])


def place_options(command: F) -> F:
    """Add --prefix and --dry-run: the same meaning in every command."""
    command = click.option(
        "--dry-run", is_flag=True, help="Only print what would be written and run."
    )(command)
    return click.option(
        "--prefix",
        type=click.Path(file_okay=False),
        help="A folder that stands for /, as of an image; nothing is run in it.",
    )(command)


def _go(prefix: str | None, dry_run: bool, steps: Callable[[Place], list[Step]], done: str) -> None:
    """Make the list of steps; print it, or do it."""
    # sys.prefix names the environment as it was called; a prefix is compared with its real place.
    place = Place(None if prefix is None else Path(prefix).resolve(), Path(sys.prefix).absolute())
    if not dry_run:
        check_allowed(place)
    try:
        for step in steps(place):
            if not dry_run:
                step.do()
            click.echo(step.text if dry_run else step.text.partition(":\n")[0])
    except PermissionError as error:
        raise InfiEdgeError(f"{error.filename}: permission denied; run it with sudo") from error
    if not dry_run:
        click.echo(done)


@click.group()
def service() -> None:
    """Install, upgrade, roll back or remove the systemd service."""


@service.command()
@click.argument("config", type=click.Path(path_type=Path))
@place_options
def install(config: Path, prefix: str | None, dry_run: bool) -> None:
    """Run CONFIG (TOML) as a service from now on, and after every start of the machine.

    CONFIG and the files it names by relative paths are copied into /etc/infi-edge; a user
    infi-edge, a unit and a udev rule are made. Doing it again renews them.
    """
    done = "installed" if prefix else "installed and started; see: systemctl status infi-edge"
    _go(prefix, dry_run, lambda place: installed.install(config, place), done)


@service.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--source", help="The source whose bundle it is, where there are several.")
@place_options
def upgrade(bundle: Path, source: str | None, prefix: str | None, dry_run: bool) -> None:
    """Use BUNDLE in place of the installed one of the same model and task."""
    done = "upgraded; the daemon takes it up by itself; back: infi-edge service rollback"
    _go(prefix, dry_run, lambda place: service_upgrade.upgrade(bundle, place, source), done)


@service.command()
@click.option("--source", help="The source whose bundle it is, where there are several.")
@place_options
def rollback(source: str | None, prefix: str | None, dry_run: bool) -> None:
    """Use the bundle before the last upgrade again."""
    done = "rolled back; the daemon takes it up by itself"
    _go(prefix, dry_run, lambda place: service_upgrade.rollback(place, source), done)


@service.command()
@click.option("--purge", is_flag=True, help="Also what was changed, the state and the user.")
@place_options
def remove(purge: bool, prefix: str | None, dry_run: bool) -> None:
    """Stop the service and undo `install`; the state folder stays."""
    _go(prefix, dry_run, lambda place: installed.remove(place, purge), "removed")
