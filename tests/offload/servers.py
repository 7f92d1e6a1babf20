"""Real inference servers for tests and benchmarks: started on free ports of loopback, and ended."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest import SkipTest

from benchmarks.netdelay import DelayProxy

__all__ = ["DelayProxy", "MLServer", "Triton", "tflite_folder", "triton_folder"]

ROOT = Path(__file__).resolve().parents[2]
SERVER_ENV = ROOT / ".venv-server"
TRITON_ENV = ROOT / ".venv-triton"
TRITON_MODEL = ROOT / "deploy/server/triton/tflite"
START_S = 120.0


class Server:
    """A server in a process group of its own. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._http, self._grpc, self._metrics = _free_ports(3)
        self.grpc, self.http, self.metrics = (
            f"127.0.0.1:{port}" for port in (self._grpc, self._http, self._metrics)
        )
        self._log = folder.parent / f"{folder.name}.{self._http}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Any:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            print(f"--- {self._log}\n{self.log[-4000:]}")
        self.kill()

    @property
    def log(self) -> str:
        """What it has said so far, over all its starts."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def pid(self) -> int:
        """Of the process as it was last started."""
        assert self._process is not None
        return self._process.pid

    def start(self, wait: bool = True) -> None:
        """Start it, on the same ports each time, and wait until it is ready."""
        command, environment = self._command()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until it can be used. Raises AssertionError with its log if it ends before."""
        end = time.monotonic() + START_S
        while not self.is_ready():
            assert self._process is not None
            assert self._process.poll() is None, f"{self.folder} does not serve:\n{self.log}"
            assert time.monotonic() < end, f"{self.folder} is not ready:\n{self.log}"
            time.sleep(0.05)

    def is_ready(self) -> bool:
        """Whether it, and each of its models, can be used now."""
        url = f"http://{self.http}/v2/health/ready"
        try:
            socket.create_connection(("127.0.0.1", self._grpc), timeout=5).close()
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:  # refused, reset, timed out, or an error status
            return False

    def kill(self) -> None:
        """SIGKILL, to all its processes."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait(30)

    def restart(self, wait: bool = True) -> None:
        """Kill it, and start it again."""
        self.kill()
        self.start(wait)

    def pause(self) -> None:
        """SIGSTOP: connections stay, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def _command(self) -> tuple[list[str], dict[str, str]]:
        raise NotImplementedError


class MLServer(Server):
    """`mlserver start FOLDER`; its settings.json gets ports of loopback."""

    def _command(self) -> tuple[list[str], dict[str, str]]:
        program = SERVER_ENV / "bin/mlserver"
        if not program.exists():
            raise SkipTest(f"{program} is not here; make .venv-server/.installed")
        path = self.folder / "settings.json"
        settings = json.loads(path.read_text()) if path.exists() else SETTINGS
        ports = {"http_port": self._http, "grpc_port": self._grpc, "metrics_port": self._metrics}
        path.write_text(json.dumps({**settings, "host": "127.0.0.1", **ports}))
        return [str(program), "start", str(self.folder)], {**os.environ, "PYTHONPATH": str(ROOT)}


SETTINGS = {"parallel_workers": 0, "debug": False, "grpc_max_message_length": 64 << 20}


class Triton(Server):
    """`tritonserver` of .venv-triton over a model repository."""

    def _command(self) -> tuple[list[str], dict[str, str]]:
        start = TRITON_MODEL.parent / "start"
        if not (TRITON_ENV / ".installed").exists():
            raise SkipTest(f"{TRITON_ENV} is not here; make .venv-triton/.installed")
        command = [str(start), str(self.folder), "--http-address=127.0.0.1"]
        command += ["--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1"]
        command += [f"--http-port={self._http}", f"--grpc-port={self._grpc}"]
        command += [f"--metrics-port={self._metrics}"]
        command += [f"--backend-config=python,shm-region-prefix-name={self.shared}"]
        environment = {**os.environ, "TRITON_ENV": str(TRITON_ENV)}
        return command, environment

    def kill(self) -> None:
        """SIGKILL, to all its processes; the shared memory they leave behind is removed."""
        super().kill()
        for left in Path("/dev/shm").glob(f"{self.shared}*"):
            left.unlink(missing_ok=True)

    @property
    def shared(self) -> str:
        """How the names of its shared memory begin."""
        return f"infi_edge_{self._grpc}_"


def tflite_folder(folder: Path, name: str, tflite: Path, **extra: Any) -> Path:
    """Make folder/name, a model of MLServer; extra: of ServingOptions. Returns `folder`."""
    place = folder / name
    place.mkdir(parents=True)
    settings = {
        "name": name,
        "implementation": "infi_edge.serving.tflite.TFLiteRuntime",
        "parameters": {"uri": str(tflite), "extra": extra},
    }
    (place / "model-settings.json").write_text(json.dumps(settings))
    return folder


def triton_folder(folder: Path, name: str, tflite: Path, **parameters: str) -> Path:
    """Make folder/name, a model of Triton, as deploy/server/README.md says. Returns `folder`."""
    place = folder / name
    shutil.copytree(TRITON_MODEL, place)
    given = {"file": str(tflite), **parameters}
    digest = hashlib.sha256(tflite.read_bytes()).hexdigest()
    lines = [f'platform: "tflite-sha256-{digest}"', 'backend: "python"', "max_batch_size: 0"]
    for key, value in given.items():
        lines.append(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}')
    (place / "config.pbtxt").write_text("\n".join(lines) + "\n")
    return folder


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(socket.socket()) for _ in range(count)]
        for end in ends:
            end.bind(("127.0.0.1", 0))
        return [int(end.getsockname()[1]) for end in ends]
