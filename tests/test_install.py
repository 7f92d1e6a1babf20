"""docs/install.md, carried out: the Debian 12 command in a clean virtual environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs/install.md"
SYSTEM_PYTHON = Path("/usr/bin/python3")

pytestmark = pytest.mark.slow

CONFIG = """
[models.toy]
path = "toy_model:brightest"
[sources.yard]
address = "{address}"
filter = "toy.infi"
model = "toy"
fast = true
[sinks.results]
kind = "jsonl"
path = "{path}"
"""


def commands(heading: str) -> str:
    """The first block of commands under a heading."""
    section = DOCUMENT.read_text().partition(f"\n## {heading}")[2]
    found = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert found, heading
    return found[1]


def missing_packages(block: str) -> list[str]:
    """The Debian packages of the block that are not installed here."""
    line = re.search(r"apt-get install -y --no-install-recommends (.*?)&&", block, re.DOTALL)
    assert line
    wanted = line[1].replace("\\\n", " ").split()
    known = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Package}\n"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [package for package in wanted if f"installed {package}" not in known]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the repository in `checkout`, and a `sudo` in `bin`."""
    if not SYSTEM_PYTHON.exists() or shutil.which("dpkg-query") is None:
        pytest.skip("this is not Debian")
    missing = missing_packages(commands("Raspberry Pi OS 12"))
    if missing and os.geteuid() != 0:
        pytest.skip(f"only root can install {', '.join(missing)}")
    home = tmp_path_factory.mktemp("install")
    checkout = home / "checkout"
    checkout.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    for name in ("infi_edge", "converters"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, checkout / name, ignore=ignored)
    (home / "bin").mkdir()
    sudo = home / "bin/sudo"
    # Root needs no sudo; packages that are here need no network.
    skip = "" if missing else '[ "$1" = apt-get ] && exit 0\n'
    sudo.write_text(f'#!/bin/sh\n{skip}exec "$@"\n')
    sudo.chmod(0o755)
    return home


def clean(**more: str) -> dict[str, str]:
    """The environment of a user who has nothing to do with the one that runs the tests."""
    unwanted = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "INFI_EDGE_RUNTIME")
    return {k: v for k, v in os.environ.items() if k not in unwanted} | more


def shell(home: Path, block: str) -> subprocess.CompletedProcess[str]:
    """Run commands of the document as a user would, with /opt/infi-edge in the home."""
    block = block.replace("/opt/infi-edge", str(home / "venv"))
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=home / "checkout",
        env=clean(PATH=f"{home}/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


@pytest.fixture(scope="module")
def venv(home: Path) -> Path:
    """The virtual environment that the document's command makes."""
    done = shell(home, commands("Raspberry Pi OS 12"))
    assert done.returncode == 0, done.stderr[-2000:]
    return home / "venv"


@pytest.fixture
def folder(venv: Path, toy: Path, toy_bundle: Path, tmp_path: Path) -> Path:
    """A user's folder with a model, a bundle, and configurations that name them."""
    folder = tmp_path / "user"
    folder.mkdir()
    shutil.copy(toy / "toy_model.py", folder)
    shutil.copy(toy_bundle, folder / "toy.infi")
    replay, service = folder / "replay.toml", folder / "yard.toml"
    replay.write_text(CONFIG.format(address=toy / "toy.avi", path="results.jsonl"))
    text = CONFIG.format(address="camera:0", path="state/results.jsonl")
    service.write_text(text.replace("fast = true\n", ""))
    return folder


def call(venv: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [venv / "bin/infi-edge", *arguments],
        cwd=folder,
        env=clean(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_numpy_1_and_every_extra_are_there_without_tensorflow(venv):
    code = """
import importlib.util, json, cv2, numpy
names = ("sounddevice", "smbus2", "serial", "paho.mqtt", "waitress", "prometheus_client")
missing = [name for name in names if importlib.util.find_spec(name) is None]
print(json.dumps([numpy.__version__, cv2.__version__, missing,
                  importlib.util.find_spec("tensorflow") is not None]))
"""
    python = [str(venv / "bin/python"), "-c", code]
    numpy, opencv, missing, heavy = json.loads(
        subprocess.check_output(python, cwd="/", env=clean())
    )
    assert numpy.startswith("1.")
    assert opencv.startswith("4.11")
    assert missing == []
    assert not heavy


def test_the_doctor_finds_the_runtime_and_portaudio(venv, folder):
    output = call(venv, folder, "doctor").stdout
    assert "ok        TFLite runtime" in output
    assert "ok        PortAudio" in output
    assert "is missing" not in output


def test_a_configuration_is_checked_and_runs(venv, folder):
    checked = call(venv, folder, "check", "replay.toml")
    assert checked.returncode == 0, checked.stderr
    done = call(venv, folder, "run", "replay.toml")
    assert done.returncode == 0, done.stderr
    lines = (folder / "results.jsonl").read_text().splitlines()
    actions = {json.loads(line).get("action") for line in lines}
    assert "infer" in actions
    assert actions & {"skip", "reuse"}


def test_the_service_commands_of_the_document_work_in_a_prefix(home, folder, tmp_path):
    image = tmp_path / "image"
    unit = image / "etc/systemd/system/infi-edge.service"

    def run(heading: str, lines: slice) -> None:
        """Run those of its lines that are about the service, below the image."""
        ours = [line for line in commands(heading).splitlines() if "infi-edge service" in line]
        block = re.sub(r"service (\w+)", rf"service \1 --prefix {image}", "\n".join(ours[lines]))
        done = shell(home, f"cd {folder}\n{block}")
        assert done.returncode == 0, done.stderr

    run("As a service", slice(0, 1))  # --dry-run
    assert not image.exists()
    run("As a service", slice(1, None))
    [start] = [line for line in unit.read_text().splitlines() if line.startswith("ExecStart=")]
    assert start == f"ExecStart={home}/venv/bin/infi-edge run /etc/infi-edge/yard.toml"
    assert (image / "etc/infi-edge/toy_model.py").is_file()
    run("Remove", slice(0, 1))
    assert [path for path in image.rglob("*") if path.is_file()] == []


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket as systemd's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(60)
        yield receiver


def test_the_installed_daemon_is_ready_alive_and_stops_when_told(venv, folder, tmp_path, systemd):
    """Started as the unit does: from /etc/infi-edge, with a socket to tell how it is."""
    image = tmp_path / "image"
    done = call(venv, folder, "service", "install", "yard.toml", "--prefix", str(image))
    assert done.returncode == 0, done.stderr
    config = image / "etc/infi-edge/yard.toml"
    (image / "var/lib/infi-edge").mkdir(parents=True)
    state = config.parent / "state"
    state.unlink()
    state.symlink_to(image / "var/lib/infi-edge")
    process = subprocess.Popen(
        [venv / "bin/infi-edge", "run", str(config)],
        cwd=config.parent,
        env=clean(NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="30000000"),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        messages = []
        while "READY=1" not in messages or "WATCHDOG=1" not in messages:
            messages += systemd.recv(4096).decode().splitlines()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        while "STOPPING=1" not in messages:
            messages += systemd.recv(4096).decode().splitlines()
    finally:
        process.kill()
        _, errors = process.communicate()
    assert "Traceback" not in errors


def test_every_command_of_the_document_is_one_there_is(venv):
    text = DOCUMENT.read_text()
    used = set(re.findall(r"bin/infi-edge ((?:service )?\w+)", text))
    assert {"doctor", "check", "run", "service install", "service rollback"} <= used
    for name in sorted(used):
        help_of = [str(venv / "bin/infi-edge"), *name.split(), "--help"]
        done = subprocess.run(help_of, capture_output=True, text=True, env=clean(), check=False)
        assert done.returncode == 0, done.stderr
