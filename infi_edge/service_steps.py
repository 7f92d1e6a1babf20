"""The steps of installing: each says what it does, and does it when told to."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from infi_edge.archive import write_atomically
from infi_edge.errors import InfiEdgeError


@dataclass(frozen=True, slots=True)
class Step:
    """One change: how it reads, and the doing of it."""

    text: str
    do: Callable[[], None]


def folder_step(path: Path, mode: int) -> Step:
    """Make a folder, unless it is there."""

    def do() -> None:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode)

    return Step(f"make folder {path}", do)


def write_step(path: Path, text: str) -> Step:
    """Write a file made by install; its text is shown."""

    def do() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())

    shown = "".join(f"    {line}\n" for line in text.splitlines()).rstrip("\n")
    return Step(f"write {path}:\n{shown}", do)


def copy_step(origin: Path, content: bytes, path: Path) -> Step:
    """Write a file of the user's, which is not shown: it may hold a password."""

    def do() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)

    return Step(f"copy {origin} to {path}", do)


def link_step(path: Path, target: str) -> Step:
    """Make a link, or make it anew."""

    def do() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            path.unlink()
        path.symlink_to(target)

    return Step(f"link {path} to {target}", do)


def delete_step(path: Path) -> Step:
    """Delete a file or link."""
    return Step(f"delete {path}", lambda: path.unlink(missing_ok=True))


def delete_empty_step(folder: Path) -> Step:
    """Delete a folder and those in it as far as nothing is in them."""

    def do() -> None:
        for path, _, _ in os.walk(folder, topdown=False):
            if not os.listdir(path):
                os.rmdir(path)

    return Step(f"delete {folder}, if nothing else is in it", do)


def delete_tree_step(path: Path) -> Step:
    """Delete a folder and all in it."""
    return Step(
        f"delete {path} with all that is in it", lambda: shutil.rmtree(path, ignore_errors=True)
    )


def run_step(*command: str, needed: bool = True) -> Step:
    """A command; what is not `needed` may fail or be absent."""
    text = " ".join(command)

    def do() -> None:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except (FileNotFoundError, PermissionError) as error:
            if needed:
                raise InfiEdgeError(f"{command[0]} is not here; this needs systemd") from error
            return
        if done.returncode and needed:
            why = (done.stderr.strip() or done.stdout.strip()).splitlines()[:1]
            log = "; see: journalctl -u infi-edge -n 50" if "restart" in command else ""
            raise InfiEdgeError(f"`{text}` failed: {' '.join(why) or done.returncode}{log}")

    return Step(f"run {text}", do)
