"""What the daemon costs: JPEG frames, memory, idle sources, four sources at once.

`python -m benchmarks.daemon`; with `--soak N`, memory over N tiny inputs instead.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.workloads import ROOT, data_folder
from infi_edge import Gate, InputFilter
from infi_edge.archive import write_atomically
from infi_edge.bundle import WorkloadInfo, read_bundle, write_bundle
from infi_edge.capture.recordings import open_recording
from infi_edge.preprocess import FeaturesSpec
from infi_edge.workload import to_frame

CLIP = data_folder() / "person" / "one-by-one-person.mp4"
MODEL = "benchmarks.daemon:answer"
WORKLOAD = WorkloadInfo(
    model=MODEL, model_identity=f"{MODEL}@", decoder="raw", task="value", same="exact", labels=[]
)


def answer(data: Any) -> int:
    """The model that costs nothing."""
    return 0


def pictures(count: int = 90) -> list[bytes]:
    """1080p JPEGs of a real clip (of made-up noise and a moving square where it is not here)."""
    jpegs = []
    for i, frame in zip(range(count), _frames(), strict=False):
        large = cv2.resize(frame, (1920, 1080), interpolation=cv2.INTER_CUBIC)
        noise = np.random.default_rng(i).normal(0, 2, large.shape)
        large = np.clip(large + noise, 0, 255).astype(np.uint8)
        jpegs.append(cv2.imencode(".jpg", large, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes())
    return jpegs


def _frames() -> Iterator[np.ndarray]:
    if CLIP.exists():
        for sample in open_recording(str(CLIP)).samples(200):
            yield to_frame(sample.data)
        return
    background = np.random.default_rng(0).integers(30, 200, (60, 80, 3), np.uint8)
    for i in range(10_000):
        frame = cv2.resize(background, (640, 480), interpolation=cv2.INTER_CUBIC)
        cv2.rectangle(frame, (5 * i % 600, 100), (5 * i % 600 + 80, 300), (240, 240, 240), -1)
        yield frame


def bundle_for(folder: Path) -> Path:
    """The bundle that ships with the project, for the model that costs nothing."""
    bundle = read_bundle(ROOT / "examples" / "demo.infi")
    path = folder / "nothing.infi"
    write_bundle(path, msgspec.structs.replace(bundle.manifest, workload=WORKLOAD), bundle.members)
    return path


def jpeg_costs(bundle: Path, jpegs: list[bytes]) -> dict[str, float]:
    """CPU milliseconds a 1080p JPEG: the whole gate, against full decode and resize."""
    gate = Gate(InputFilter(read_bundle(bundle)), lambda frame: 0)
    spec = gate.spec
    for jpeg in jpegs[:10]:
        gate(jpeg)
    began = time.process_time()
    for jpeg in jpegs:
        gate(jpeg)
    ours = time.process_time() - began
    inferred = gate.stats["infer"]
    began = time.process_time()
    for jpeg in jpegs:
        frame = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        cv2.resize(frame, (spec.shape[1], spec.shape[0]), interpolation=cv2.INTER_AREA)
    full = time.process_time() - began
    return {
        "gate_ms": 1000 * ours / len(jpegs),
        "full_decode_resize_ms": 1000 * full / len(jpegs),
        "ratio": full / ours,
        "inferred_share": inferred / (len(jpegs) + 10),
        "jpeg_kb": sum(map(len, jpegs)) / len(jpegs) / 1024,
    }


class Stream:
    """A camera: MJPEG over HTTP at `fps`, for any number of viewers. Runs in a process of its own
    (`--serve`), so that what it costs is not the daemon's."""

    def __init__(self, jpegs: list[bytes], fps: float) -> None:
        stream = self
        self.jpegs, self.fps = jpegs, fps

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=part")
                self.end_headers()
                next_s = time.monotonic()
                with contextlib.suppress(OSError):
                    for i in range(1 << 30):
                        jpeg = stream.jpegs[i % len(stream.jpegs)]
                        head = f"--part\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}"
                        self.wfile.write(head.encode() + b"\r\n\r\n" + jpeg + b"\r\n")
                        next_s += 1 / stream.fps
                        time.sleep(max(next_s - time.monotonic(), 0))

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def serve(self) -> None:
        """Serve for ever."""
        self._server.serve_forever()


@contextlib.contextmanager
def camera(fps: float, size: str) -> Iterator[str]:
    """A camera in a process of its own; yields its address."""
    command = [sys.executable, "-m", "benchmarks.daemon", "--serve", str(fps), "--size", size]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


class Running:
    """`infi-edge run` on a configuration, in a process of its own."""

    def __init__(self, folder: Path, bundle: Path, addresses: list[str], plugin: str = "") -> None:
        self._port = _free_port()
        lines = [f'plugins = ["{plugin}"]'] if plugin else []
        lines += [f'[models.m]\npath = "{MODEL}"\n[web]\nbind = "127.0.0.1:{self._port}"']
        lines += ['[sinks.log]\nkind = "jsonl"\npath = "results.jsonl"\nmax_bytes = 1000000']
        for i, address in enumerate(addresses):
            lines.append(f'[sources.s{i}]\naddress = "{address}"\nfilter = "{bundle}"')
            lines.append('model = "m"')
        config = folder / "bench.toml"
        config.write_text("\n".join(lines))
        self._log = (folder / "daemon.log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "infi_edge", "run", str(config)],
            cwd=ROOT,
            stderr=self._log,
            stdout=subprocess.DEVNULL,
        )

    def metrics(self) -> dict[str, list[Any]]:
        """Samples by name, of /metrics."""
        url = f"http://127.0.0.1:{self._port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        found: dict[str, list[Any]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append(sample)
        return found

    def inputs(self) -> float:
        """How many inputs were answered so far."""
        return sum(s.value for s in self.metrics().get("infi_edge_inputs_total", []))

    def wait_for(self, inputs: float, timeout_s: float = 60.0) -> None:
        """Wait until so many inputs were answered."""
        until_s = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(OSError):
                if self.inputs() >= inputs:
                    return
            if self.process.poll() is not None or time.monotonic() > until_s:
                raise SystemExit(
                    f"the daemon did not get there: {Path(self._log.name).read_text()}"
                )
            time.sleep(0.2)

    def pss_mb(self) -> float:
        """PSS of the daemon and its children."""
        return sum(_kb(pid, "Pss") for pid in _family(self.process.pid)) / 1024

    def private_mb(self) -> float:
        """What the daemon and its children have written to and share with nobody: unlike PSS it
        does not change when other processes that use the same libraries come and go."""
        return sum(_kb(pid, "Private_Dirty") for pid in _family(self.process.pid)) / 1024

    def cpu_s(self) -> float:
        """CPU seconds of the daemon and its children so far."""
        ticks = 0
        for pid in _family(self.process.pid):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def cores(self, seconds: float) -> float:
        """Cores used over some seconds from now."""
        began_s, cpu_s = time.monotonic(), self.cpu_s()
        time.sleep(seconds)
        return (self.cpu_s() - cpu_s) / (time.monotonic() - began_s)

    def ages_p99(self) -> dict[str, float]:
        """The 99th percentile of frame age by source, from the histogram, interpolated."""
        buckets: dict[str, list[tuple[float, float]]] = {}
        for sample in self.metrics()["infi_edge_frame_age_seconds_bucket"]:
            pair = (float(sample.labels["le"]), sample.value)
            buckets.setdefault(sample.labels["source"], []).append(pair)
        return {source: _quantile(sorted(pairs), 0.99) for source, pairs in buckets.items()}

    def stop(self) -> None:
        """SIGTERM."""
        self.process.terminate()
        self.process.wait(10)
        self._log.close()


def _quantile(buckets: list[tuple[float, float]], share: float) -> float:
    wanted, low_s, below = share * buckets[-1][1], 0.0, 0.0
    for high_s, count in buckets:
        if count >= wanted and count > below:
            return low_s + (high_s - low_s) * (wanted - below) / (count - below)
        low_s, below = high_s, count
    return float("nan")


def _family(pid: int) -> list[int]:
    family = [pid]
    for found in family:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{found}/task").iterdir():
                family += map(int, (task / "children").read_text().split())
    return family


def _kb(pid: int, field: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
    return 0


def _free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def measure(folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """All figures of the section, as a dictionary."""
    bundle, found = bundle_for(folder), {}
    say("1080p JPEG: the gate against full decode and resize")
    found["jpeg_1080p"] = jpeg_costs(bundle, pictures())
    say("one 1080p camera at 30 fps")
    with camera(30, "1920x1080") as url:
        running = Running(folder, bundle, [url])
        try:
            running.wait_for(300)
            found["one_camera"] = {"cores": running.cores(10), "pss_mb": running.pss_mb()}
            found["one_camera"]["filtered"] = _filtered(running)
        finally:
            running.stop()
    say("idle sources")
    fifos = [folder / f"idle{i}" for i in range(4)]
    for fifo in fifos:
        os.mkfifo(fifo)
    text = text_bundle(folder)
    running = Running(folder, text, [f"lines:{fifo}" for fifo in fifos])
    try:
        time.sleep(5)
        found["idle"] = {"sources": len(fifos), "cores": running.cores(20)}
    finally:
        running.stop()
    say("one and four 640x480 cameras at 15 fps")
    ages = {}
    for count in (1, 4):
        with contextlib.ExitStack() as stack:
            urls = [stack.enter_context(camera(15, "640x480")) for _ in range(count)]
            running = Running(folder, bundle, urls)
            try:
                running.wait_for(300 * count, 120)
                ages[count] = max(running.ages_p99().values())
                cores = running.cores(5)
            finally:
                running.stop()
    found["four_sources"] = {
        "frame_age_p99_ms_alone": 1000 * ages[1],
        "frame_age_p99_ms_of_four": 1000 * ages[4],
        "ratio": ages[4] / ages[1],
        "cores_of_four": cores,
    }
    return found


def _filtered(running: Running) -> float:
    counts = {s.labels["action"]: s.value for s in running.metrics()["infi_edge_inputs_total"]}
    return 1 - counts.get("infer", 0) / max(sum(counts.values()), 1)


def text_bundle(folder: Path) -> Path:
    """A light filter of text for the model that costs nothing."""
    from infi_edge.preprocess import TextSpec

    return tiny_bundle(folder / "text.infi", TextSpec(length=16, buckets=256), "text")


def tiny_bundle(path: Path, spec: Any, modality: str) -> Path:
    """A light filter whose embedding is the first of its features, as they are."""
    from infi_edge.archive import array_bytes
    from infi_edge.bundle import FilterSpec, ReuseSpec
    from infi_edge.policy import Knobs

    manifest = read_bundle(ROOT / "examples" / "demo.infi").manifest
    count = min(spec.feature_count, 16)
    knobs = Knobs(reuse_threshold=0.5, max_since_inference=50)
    points = [msgspec.structs.replace(p, knobs=knobs) for p in manifest.calibration.points]
    manifest = msgspec.structs.replace(
        manifest,
        modality=modality,
        mechanism="reuse",
        preprocess=spec,
        filter=FilterSpec(kind="light", dim=count, scale=1.0, parameters=count),
        skip=None,
        reuse=ReuseSpec(distance=0.05, log_age=0.0, age=0.0, bias=-3.0),
        calibration=msgspec.structs.replace(manifest.calibration, points=points),
        workload=WORKLOAD,
    )
    members = {
        "features.npy": array_bytes(np.arange(count, dtype=np.int32)),
        "gains.npy": array_bytes(np.full(count, 100, np.float32)),
        "offsets.npy": array_bytes(np.zeros(count, np.float32)),
    }
    write_bundle(path, manifest, members)
    return path


def soak(folder: Path, inputs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Private memory of the daemon over `inputs` tiny inputs, played as fast as possible."""
    spec = FeaturesSpec(size=(8,))
    bundle = tiny_bundle(folder / "features.infi", spec, "features")
    running = Running(folder, bundle, [f"walk:{inputs}"], plugin="benchmarks.endless")
    series: list[tuple[float, float]] = []
    try:
        while running.process.poll() is None:
            with contextlib.suppress(OSError):
                done = running.inputs()
                series.append((done, running.private_mb()))
                say(f"{done:,.0f} inputs, {series[-1][1]:.1f} MB")
            time.sleep(5)
    finally:
        if running.process.poll() is None:
            running.stop()
    settled = [mb for done, mb in series if done >= inputs / 10]
    return {
        "inputs": inputs,
        "private_mb_after_a_tenth": settled[0],
        "private_mb_at_the_end": settled[-1],
        "growth_mb": settled[-1] - settled[0],
        "exit_code": running.process.returncode,
    }


def main() -> None:
    """Measure, print, and write build/bench/daemon.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.daemon")
    parser.add_argument("--soak", type=int, help="memory over so many inputs")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--size", default="1920x1080", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    if arguments.serve:
        width, height = map(int, arguments.size.split("x"))
        jpegs = [_smaller(jpeg, width, height) for jpeg in pictures()]
        stream = Stream(jpegs, arguments.serve)
        print(stream.url, flush=True)
        stream.serve()
        return

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = soak(folder, arguments.soak, say) if arguments.soak else measure(folder, say)
    text = json.dumps(found, indent=1)
    print(text)
    output = ROOT / "build" / "bench" / ("soak.json" if arguments.soak else "daemon.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, text.encode())


def _smaller(jpeg: bytes, width: int, height: int) -> bytes:
    if (width, height) == (1920, 1080):
        return jpeg
    frame = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", frame)[1].tobytes()


if __name__ == "__main__":
    main()
