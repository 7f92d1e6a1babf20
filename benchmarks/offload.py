"""What offloading costs: a request beside a bare one, a window on a slow link, an outage.

`python -m benchmarks.offload`; with `--outage SECONDS`, an outage so long in the middle of a replay
three times as long, under each policy. The bandwidth is in `python -m benchmarks`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput

from benchmarks.daemon import tiny_bundle
from benchmarks.echo_server import PICTURE, ROW
from benchmarks.netdelay import DelayProxy
from benchmarks.workloads import ROOT
from infi_edge.archive import write_atomically
from infi_edge.bundle import read_bundle, write_bundle
from infi_edge.config import (
    Config,
    JsonlSinkConfig,
    ModelConfig,
    OffloadConfig,
    SourceConfig,
    check_config,
)
from infi_edge.daemon import Daemon
from infi_edge.executors.remote import RemoteModel
from infi_edge.policy import Knobs
from infi_edge.preprocess import FeaturesSpec

Say = Callable[[str], None]
ENDS = ("infer", "skip", "reuse", "local", "queued", "link_down", "error", "abandoned")


@contextlib.contextmanager
def echo_server() -> Iterator[str]:
    """Run the server in a process of its own; yield HOST:PORT."""
    command = [sys.executable, "-m", "benchmarks.echo_server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def overhead(calls: int = 2000) -> dict[str, float]:
    """Milliseconds a request, ours and a bare tritonclient's, turn by turn. The executor connects,
    retries, breaks the circuit, checks and counts bytes; the bare call does none of it."""
    picture = np.zeros(PICTURE, np.uint8)
    with echo_server() as address:
        remote = RemoteModel(f"grpc://{address}/picture", OffloadConfig())
        inputs = [(remote.metadata.inputs[0], picture)]
        bare = InferenceServerClient(address)
        given, wanted = InferInput("in", list(PICTURE), "UINT8"), [InferRequestedOutput("out")]

        def ask_bare() -> Any:
            given.set_data_from_numpy(picture)
            return bare.infer("picture", [given], outputs=wanted).as_numpy("out")

        spent: dict[str, list[float]] = {"ours": [], "bare": []}
        for turn in range(calls + 50):
            for name, call in (("ours", lambda: remote.run(inputs)), ("bare", ask_bare)):
                begun_s = time.perf_counter()
                call()
                if turn >= 50:
                    spent[name].append(time.perf_counter() - begun_s)
        remote.close()
        bare.close()
    ours, plain = (1e3 * float(np.median(spent[name])) for name in ("ours", "bare"))
    return {"ours_p50_ms": ours, "bare_p50_ms": plain, "overhead_p50_ms": ours - plain}


def window(folder: Path, inputs: int = 400) -> dict[str, float]:
    """Inputs a second through the whole daemon over a link of 20 ms there and back, everything
    inferred, one at a time and four at a time."""
    found: dict[str, float] = {}
    with echo_server() as address, DelayProxy(address, 0.01) as proxy:
        for size in (1, 4):
            np.save(folder / "rows.npy", np.zeros((inputs, ROW), np.float32))
            daemon = _daemon(folder, f"grpc://{proxy.address}/row", window=size)
            begun_s = time.monotonic()
            daemon.run()
            counts = daemon.status().sources[0].counts
            assert counts["infer"] == inputs, counts
            found[f"window_{size}_inputs_per_s"] = inputs / (time.monotonic() - begun_s)
    found["ratio"] = found["window_4_inputs_per_s"] / found["window_1_inputs_per_s"]
    return found


def _daemon(folder: Path, url: str, fast: bool = True, **offload: Any) -> Daemon:
    """A daemon that infers every row of rows.npy on a server."""
    bundle = tiny_bundle(folder / "rows.infi", FeaturesSpec(size=(ROW,)), "features")
    _infer_everything(bundle)
    return Daemon(
        check_config(
            Config(
                sources={
                    "rows": SourceConfig(
                        address=str(folder / "rows.npy"),
                        filter=str(bundle),
                        model="m",
                        fast=fast,
                        rate_hz=30.0,
                    )
                },
                models={
                    "m": ModelConfig(
                        executor=url, allow_other=True, offload=OffloadConfig(**offload)
                    ),
                    "small": ModelConfig(path="benchmarks.daemon:answer", allow_other=True),
                },
                sinks={"results": JsonlSinkConfig(path=str(folder / "out.jsonl"))},
                state=str(folder / "state"),
            )
        )
    )


def _infer_everything(path: Path) -> None:
    bundle = read_bundle(path)
    table = bundle.manifest.calibration
    points = [msgspec.structs.replace(p, knobs=Knobs()) for p in table.points]
    manifest = msgspec.structs.replace(
        bundle.manifest, calibration=msgspec.structs.replace(table, points=points)
    )
    write_bundle(path, manifest, bundle.members)


def outage(folder: Path, seconds: float, how: str) -> dict[str, Any]:
    """A replay at 30 Hz whose link is cut in the middle third; what became of every input."""
    inputs = int(3 * seconds * 30)
    np.save(folder / "rows.npy", np.arange(inputs, dtype=np.float32)[:, None].repeat(ROW, 1))
    (folder / "out.jsonl").unlink(missing_ok=True)
    more = {"local": "small"} if how == "local" else {}
    with echo_server() as address, DelayProxy(address, 0.005) as proxy:
        daemon = _daemon(
            folder, f"grpc://{proxy.address}/row", fast=False, when_down=how, deadline_s=1.0, **more
        )
        cuts = [threading.Timer(seconds, proxy.cut), threading.Timer(2 * seconds, proxy.heal)]
        for timer in cuts:
            timer.start()
        daemon.run()
        for timer in cuts:
            timer.join()
        counts = daemon.status().sources[0].counts
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    answered = [line["index"] for line in lines if "action" in line]
    return {
        "inputs": inputs,
        "counts": {name: counts[name] for name in (*ENDS, "late", "stale")},
        "adds_up": sum(counts[end] for end in ENDS) == inputs,
        "answered": len(answered),
        "answered_twice": len(answered) - len(set(answered)),
        "unanswered": inputs - len(set(answered)),
    }


def main() -> None:
    """Measure, print, and write build/bench/offload.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.offload")
    parser.add_argument("--outage", type=float, help="seconds")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.outage:
            for how in ("queue", "local", "reuse", "drop"):
                print(f"an outage of {arguments.outage:g} s, {how}", file=sys.stderr, flush=True)
                found[how] = outage(folder, arguments.outage, how)
        else:
            print("a request, and a bare one", file=sys.stderr, flush=True)
            found["overhead"] = overhead()
            print("a window on a link of 20 ms", file=sys.stderr, flush=True)
            found["window"] = window(folder)
    text = json.dumps(found, indent=1)
    print(text)
    output = ROOT / "build" / "bench" / ("outage.json" if arguments.outage else "offload.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, text.encode())
    bad = [how for how, row in found.items() if "adds_up" in row and not row["adds_up"]]
    twice = [how for how, row in found.items() if row.get("answered_twice")]
    lost = arguments.outage and found["queue"]["unanswered"]
    if bad or twice or lost:
        sys.exit(f"inputs are lost or answered twice: {bad + twice}")


if __name__ == "__main__":
    main()
