"""The whole daemon for tests: a stream, filters and models whose answers are known, and a look
into a daemon that runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infi_edge.archive import array_bytes
from infi_edge.bundle import (
    Calibration,
    FilterSpec,
    Manifest,
    OperatingPoint,
    ReuseSpec,
    WorkloadInfo,
    write_bundle,
)
from infi_edge.policy import Knobs
from infi_edge.preprocess import FeaturesSpec, ImageSpec, Spec
from infi_edge.preprocess.image import CELLS

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 30.0

MODELS = '''
import itertools, os, time

calls = itertools.count(1)


def level(row):
    return round(float(row[0]))


def other(row):
    return 10 + level(row)


def slow(row):
    time.sleep(0.3)
    return level(row)


def hangs(row):
    """Takes 10 s at level 3."""
    if level(row) == 3:
        open("hanging", "w").close()
        time.sleep(10)
    return level(row)


def thirds(row):
    if next(calls) % 3 == 0:
        raise RuntimeError("no power")
    return level(row)


def broken(row):
    raise RuntimeError("no power")


def bright(frame):
    """Whether a bright spot is in the picture."""
    return int(frame.max() > 200)
'''

TICKS = '''
import os, threading, time
import numpy as np
from infi_edge.capture.address import register_source
from infi_edge.capture.source import Health
from infi_edge.types import Sample


class Ticks:
    """`ticks:HZ`: like a camera, it never ends. The level of its inputs goes round 0, 1, 2, each
    for ten inputs. It hangs while there is a file NAME.hang."""

    def __init__(self, name, hz):
        self.name, self.health, self.hz = name, Health(name), hz
        self.closing = threading.Event()

    def samples(self):
        with open(self.name + ".opened", "a") as file:
            file.write("opened\\n")
        self.health.live()
        index = 0
        while not self.closing.wait(1 / self.hz):
            while os.path.exists(self.name + ".hang"):
                time.sleep(0.02)
            row = np.full(8, index // 10 % 3, np.float32)
            yield Sample(row, self.now_s(), index, self.name)
            index += 1

    def now_s(self):
        return time.monotonic()

    def close(self):
        self.closing.set()


register_source("ticks", lambda name, config, spec, must_open: Ticks(
    name, float(config.address.partition(":")[2])))
'''

ALL = Knobs(reuse_threshold=0.0)
"""Infers everything."""
AGAIN = Knobs(reuse_threshold=0.5)
"""Infers what is unlike everything that was answered before."""


def write_filter(
    path: Path,
    model: str = "daemon_models:level",
    knobs: Knobs = AGAIN,
    spec: Spec | None = None,
    **trained_on: str | int | float,
) -> Path:
    """Write a bundle; its table has `knobs` for an accuracy of 0.9 (chosen), for 0.95 ALL.

    spec None: of rows of eight numbers. An ImageSpec: grey levels of all cells of the picture.
    """
    spec = spec or FeaturesSpec(size=(8,))
    dim, gain = (CELLS, 255) if isinstance(spec, ImageSpec) else (spec.feature_count, 100)
    manifest = Manifest(
        format_version=2,
        modality=str(type(spec).__struct_config__.tag),
        mechanism="reuse",
        preprocess=spec,
        filter=FilterSpec(kind="light", dim=dim, scale=1.0, parameters=dim),
        skip=None,
        reuse=ReuseSpec(distance=0.05, log_age=0.0, age=0.0, bias=-3.0),
        workload=WorkloadInfo(
            model=model,
            model_identity=f"{model}@",
            decoder="raw",
            task="value",
            same="exact",
            labels=[],
        ),
        calibration=Calibration(
            confidence=0.9,
            blocks=8,
            block_inputs=100,
            chosen=0,
            points=[_point(0.9, knobs), _point(0.95, ALL)],
        ),
        trained_on={"source": "nowhere", "inputs": 800, **trained_on},
        parity={},
        versions={"infi-edge": "0.1.0"},
        lowest_runtime="none",
    )
    members = {
        "features.npy": array_bytes(np.arange(dim, dtype=np.int32)),
        "gains.npy": array_bytes(np.full(dim, gain, np.float32)),
        "offsets.npy": array_bytes(np.zeros(dim, np.float32)),
    }
    write_bundle(path, manifest, members)
    return path


def _point(target: float, knobs: Knobs) -> OperatingPoint:
    return OperatingPoint(
        measure="accuracy",
        target=target,
        knobs=knobs,
        accuracy=target,
        recall=None,
        filtering_rate=0.5,
        bound=target,
        kind="estimate",
    )


def write_rows(path: Path, levels: list[int]) -> Path:
    """Write a recording of rows of eight numbers: what a model reads there is the level."""
    np.save(path, np.repeat(np.array(levels, np.float32)[:, None], 8, axis=1))
    return path


Tables = dict[str, Any]


def a_source(address: str, model: str = "m", **settings: Any) -> Tables:
    return {"address": address, "filter": f"{model}.infi", "model": model, **settings}


def prepare(folder: Path, **models: str) -> Tables:
    """Write the models and their filters NAME.infi into a folder; return a configuration without
    sources. models: functions of daemon_models by name; default: m is `level`."""
    (folder / "daemon_models.py").write_text(MODELS)
    (folder / "ticks.py").write_text(TICKS)
    models = models or {"m": "level"}
    for name, function in models.items():
        write_filter(folder / f"{name}.infi", f"daemon_models:{function}")
    return {
        "flush_s": 0.1,
        "plugins": ["ticks.py"],
        "models": {name: {"path": f"daemon_models:{f}"} for name, f in models.items()},
        "sources": {},
        "sinks": {"log": {"kind": "jsonl", "path": "results.jsonl", "max_bytes": 1 << 30}},
        "web": {"bind": "127.0.0.1:0"},
    }


def toml(table: Mapping[str, Any], at: str = "") -> str:
    """Return nested tables as TOML."""
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    lines = [f"[{at}]"] if at else []
    lines += [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for key in table.keys() - plain.keys():
        lines.append(toml(table[key], f"{at}.{key}" if at else key))
    return "\n".join(lines) + "\n"


def write_config(folder: Path, tables: Mapping[str, Any]) -> Path:
    """Write it at once, as an editor that is careful does."""
    path = folder / "daemon.toml"
    part = folder / "daemon.toml.part"
    part.write_text(toml(tables))
    part.replace(path)
    return path


def environment(**more: str) -> dict[str, str]:
    known = {k: v for k, v in os.environ.items() if not k.startswith(("NOTIFY_", "WATCHDOG_"))}
    return {**known, "PYTHONPATH": str(ROOT), **more}


def until(condition: Callable[[], Any], what: str = "", seconds: float = PATIENCE_S) -> Any:
    """Wait until it is true; return what it returned."""
    end_s = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end_s, f"it did not come about: {what or condition}"
        time.sleep(0.02)
    return found


@dataclass(frozen=True)
class Ended:
    """How a daemon ended."""

    code: int
    seconds: float
    log: str

    def count(self, text: str) -> int:
        """How often the log has it."""
        return self.log.count(text)


class Running:
    """`infi-edge run CONFIG` in a process of its own."""

    def __init__(self, folder: Path, *arguments: str, **more: str) -> None:
        self.folder = folder
        self._log = folder / "daemon.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "infi_edge", "run", *(arguments or ["daemon.toml"])],
                cwd=folder,
                env=environment(**more),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                # A job in the background of a shell ignores SIGINT; so would its children.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def until(self, condition: Callable[[], Any], what: str = "") -> Any:
        """Wait until it is true, while the daemon runs."""

        def met() -> Any:
            ended = self.process.poll() is not None
            found = condition()
            assert found or not ended, f"the daemon has ended: {self.log}"
            return found

        try:
            return until(met, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}") from None

    def until_log(self, text: str, count: int = 1) -> str:
        """Wait until the log has a text so often; return the log."""
        self.until(lambda: self.log.count(text) >= count, text)
        return self.log

    def ask(self, path: str) -> bytes:
        """GET from the page."""
        log = self.until_log("the page is at")
        address = log.partition("the page is at ")[2].split()[0]
        with urllib.request.urlopen(address + path, timeout=PATIENCE_S) as answer:
            return bytes(answer.read())

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels."""
        from prometheus_client.parser import text_string_to_metric_families

        families = text_string_to_metric_families(self.ask("/metrics").decode())
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == f"infi_edge_{name}" and labels.items() <= sample.labels.items()
        )

    def source(self, name: str) -> Tables:
        """A source's part of /api/status."""
        found = json.loads(self.ask("/api/status"))["sources"]
        return next(source for source in found if source["name"] == name)  # type: ignore[no-any-return]

    def answered(self, source: str) -> float:
        """How many inputs of a source were answered."""
        return self.metric("inputs_total", source=source)

    def results(self, source: str = "", path: str = "results.jsonl") -> list[Tables]:
        """The results and errors (of one source) in a sink's file, of lines that are whole."""
        file = self.folder / path
        whole = file.read_text().rpartition("\n")[0] if file.exists() else ""
        lines = [json.loads(line) for line in whole.splitlines()]
        found = [line for line in lines if "event" not in line]
        return [line for line in found if not source or line["source"] == source]

    def reload(self) -> None:
        """SIGHUP."""
        self.process.send_signal(signal.SIGHUP)

    def stop(self, how: int = signal.SIGTERM) -> Ended:
        """Stop it; return how it ended."""
        begun_s = time.monotonic()
        self.process.send_signal(how)
        return self.wait(begun_s)

    def wait(self, begun_s: float | None = None) -> Ended:
        """Wait until it ends."""
        begun_s = time.monotonic() if begun_s is None else begun_s
        code = self.process.wait(PATIENCE_S)
        return Ended(code, time.monotonic() - begun_s, self.log)

    def holds(self) -> tuple[int, int]:
        """How many threads it has and files open, once no client of the page is connected."""
        counts: list[tuple[int, int]] = []
        for _ in range(15):
            counts.append((self.threads(), len(os.listdir(f"/proc/{self.process.pid}/fd"))))
            time.sleep(0.02)
        return min(threads for threads, _ in counts), min(files for _, files in counts)

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/task"))

    def children(self) -> list[int]:
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


@contextmanager
def running(folder: Path, tables: Mapping[str, Any], **more: str) -> Iterator[Running]:
    """Run a configuration; it is killed at the end if it still runs."""
    write_config(folder, tables)
    daemon = Running(folder, **more)
    try:
        yield daemon
    finally:
        daemon.process.kill()
        daemon.process.wait()


def command(
    folder: Path, *arguments: str, seconds: float = PATIENCE_S, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run `infi-edge` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "infi_edge", *arguments],
        cwd=folder,
        env=environment(**more),
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )
