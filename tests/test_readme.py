"""Every example in the README runs, and every command line in it parses."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.offload import echo_server
from converters import cli as convert_cli
from infi_edge import Action, Gate, load_filter
from infi_edge import cli as edge_cli
from infi_edge.capture.recordings import open_recording
from infi_edge.config import load_config
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def command_lines() -> list[str]:
    """The lines that call the project's own commands."""
    pages = [
        README,
        *((ROOT / "docs" / f"{name}.md").read_text() for name in ("daemon", "offload", "learning")),
    ]
    shell = [block for page in pages for block in blocks("", page)]
    text = "\n".join(shell).replace("\\\n", " ")
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return [line for line in lines if re.match(r"infi-(edge|convert) (--plugin|[a-z])", line)]


def test_the_python_example_gates_a_camera(
    toy: Path, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy)
    sys.path.insert(0, str(toy))
    from toy_model import brightest

    (toy / "yard.infi").write_bytes(toy_bundle.read_bytes())
    clip = open_recording(str(toy / "toy.avi"))
    seen: dict[str, object] = {
        "my_model": brightest,
        "camera": [sample.data for sample in clip.samples(120, 130)],
    }
    example, _ = blocks("python")
    exec(example, seen)
    assert seen["result"].action in Action  # type: ignore[attr-defined]


def test_the_python_examples_of_learning_run(tmp_path: Path) -> None:
    """The two lines of the README, and the loop of docs/learning.md."""
    _, line = blocks("python")
    [loop] = blocks("python", (ROOT / "docs" / "learning.md").read_text())
    for example, folder in ((line, "a"), (loop, "b")):
        seen: dict[str, Any] = {
            "Gate": Gate,
            "my_model": lambda frame: ["person"] if frame[0, 0, 0] > 99 else [],
            "camera": [np.full((96, 128, 3), 200 * (i // 50 % 2), np.uint8) for i in range(120)],
        }
        exec(example.replace('"yard"', repr(str(tmp_path / folder))), seen)
        if "result" not in seen:
            seen["result"] = seen["gate"](seen["camera"][0])
        assert isinstance(seen["result"].value, bool)
        seen["gate"].close()


@pytest.mark.parametrize("page", ["README.md", "docs/daemon.md"])
def test_the_settings_example_is_accepted(page: str, tmp_path: Path) -> None:
    [example] = blocks("toml", (ROOT / page).read_text())
    (tmp_path / "yard.toml").write_text(example)
    for name in ("yolov5n.tflite", "yard.infi"):
        (tmp_path / name).touch()
    assert load_config(tmp_path / "yard.toml").sources["yard"].model == "detector"


def test_the_settings_of_offloading_are_accepted(tmp_path: Path) -> None:
    [example] = blocks("toml", (ROOT / "docs" / "offload.md").read_text())
    example += '[sources.yard]\naddress = "camera:0"\nfilter = "yard.infi"\nmodel = "detector"\n'
    (tmp_path / "yard.toml").write_text(example)
    for name in ("ca.pem", "token", "yard.infi"):
        (tmp_path / name).touch()
    assert load_config(tmp_path / "yard.toml").models["detector"].offload.when_down == "queue"


def test_the_python_example_of_offloading_asks_a_server(
    toy: Path, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy)
    monkeypatch.syspath_prepend(str(toy))
    (toy / "yard.infi").write_bytes(toy_bundle.read_bytes())
    [example] = blocks("python", (ROOT / "docs" / "offload.md").read_text())
    with echo_server() as address:
        example = example.replace("edge:8001/detector", f"{address}/picture")
        seen: dict[str, Any] = {"Gate": Gate, "load_filter": load_filter}
        exec(example, seen)
        bright, dark = np.full((2, 240, 320, 3), [[[[255]]], [[[0]]]], np.uint8)
        assert seen["gate"](bright).value is True
        assert seen["gate"](dark).value is False


def test_there_are_command_lines_to_check() -> None:
    assert len(command_lines()) >= 5


@pytest.mark.parametrize("line", command_lines())
def test_the_command_lines_parse(line: str) -> None:
    name, command, *arguments = shlex.split(line)
    if command == "--plugin":
        _, command, *arguments = arguments
    group = {"infi-edge": edge_cli.cli, "infi-convert": convert_cli.cli}[name]
    group.commands[command].make_context(command, arguments)


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?<!\.py )make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
