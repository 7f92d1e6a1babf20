"""deploy/server/README.md, carried out."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import MODELS, ROOT, need
from tests.offload.bare_client import ask_grpc, declared, metadata, picture
from tests.offload.servers import TRITON_ENV, MLServer, Server, Triton

README = ROOT / "deploy/server/README.md"
YOLO = MODELS / "yolov5n/yolov5n-int8.tflite"


def follow(heading: str, home: Path, ours: str) -> None:
    """Run the commands under a heading, but for those that install or start a server."""
    section = README.read_text().partition(f"\n## {heading}\n")[2]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block
    lines = block[1].replace("\\\n", " ").splitlines()
    assert any(re.search(r"(mlserver |/)start ", line) for line in lines)
    kept = [line for line in lines if line.startswith(("cp ", "mkdir "))]
    environment = {**os.environ, "HOME": str(home)}
    (home / "yolov5n.tflite").symlink_to(need(YOLO))
    script = "\n".join(kept).replace("cp yolov5n", f"cp {home}/yolov5n")
    subprocess.run(["sh", "-euc", script], cwd=ROOT, env=environment, check=True)
    assert (home / ours).is_dir()


def check_detector(server: Server) -> None:
    assert declared(metadata(server, "detector")["inputs"])[0][:2] == ("image", "BYTES")
    answer = ask_grpc(server, "detector", image=picture())
    np.testing.assert_array_equal(answer["fit"][4:], [640, 640])


def test_a_second_machine_serves_a_detector_with_mlserver(tmp_path: Path) -> None:
    follow("MLServer", tmp_path, "models/detector")
    settings = json.loads((tmp_path / "models/settings.json").read_text())
    assert settings["host"] == "127.0.0.1"
    assert f"127.0.0.1:{settings['grpc_port']}/detector" in README.read_text()
    with MLServer(tmp_path / "models") as server:
        check_detector(server)


@pytest.mark.triton
def test_a_second_machine_serves_a_detector_with_triton(tmp_path: Path) -> None:
    follow("Triton", tmp_path, "repository/detector")
    config = tmp_path / "repository/detector/config.pbtxt"
    shown = re.findall(r"# (parameters .*)", config.read_text())
    assert len(shown) == 2
    config.write_text(config.read_text().replace("# parameters", "parameters"))
    with Triton(tmp_path / "repository") as server:
        check_detector(server)


@pytest.mark.triton
def test_the_start_script_says_what_it_needs(tmp_path: Path) -> None:
    start = ROOT / "deploy/server/triton/start"
    ran = subprocess.run(
        ["sh", str(start), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert "TRITON_ENV=DIR" in ran.stderr
    assert TRITON_ENV.is_dir()
