"""A process that does what the daemon does, but for the expensive model; prints what it took."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import cv2

from infi_edge.capture.recordings import open_recording
from infi_edge.filter import load_filter
from infi_edge.gate import Gate
from infi_edge.sinks import result_record
from infi_edge.workload import Workload, WorkloadSpec


def main() -> None:
    """Arguments: a bundle and a clip. Gates up to 300 inputs with a model that answers 0."""
    cv2.setNumThreads(1)
    recording = open_recording(sys.argv[2])
    workload = Workload(lambda frame: 0, WorkloadSpec("benchmarks.footprint:Zero", "raw"))
    gate = Gate(load_filter(sys.argv[1]), workload)
    first_at = 0.0
    for sample in recording.samples(0, 300):
        json.dumps(result_record(gate(sample)))
        first_at = first_at or time.time()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    pss_kb = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    print(json.dumps({"pss_mb": pss_kb / 1024, "first_decision_at": first_at}))


class Zero:
    """A task whose value is what the model says."""

    empty = 0
    can_skip = False

    def __init__(self, labels: object) -> None:
        pass

    def read(self, decoded: int) -> int:
        """Return it."""
        return decoded

    def is_redundant(self, value: int) -> bool:
        """Never."""
        return False


if __name__ == "__main__":
    main()
