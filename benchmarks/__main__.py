"""`make bench`: run everything, write build/bench/."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import methods, report, speed
from benchmarks.workloads import ROOT, image_workloads, partition_workloads
from infi_edge.capture.recordings import open_recording
from infi_edge.workload import to_frame


def main() -> int:
    """Run the workloads whose files are here; exit code 1 if none is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--workload", action="append", help="only these (repeatable)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench")
    arguments = parser.parse_args()
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.0f} s] {text}", file=sys.stderr, flush=True)

    result: dict[str, Any] = {"rows": [], "frontier": [], "filter": {}, "cache": {}}
    result |= {"process": {}, "machine": report.machine(), "seed": arguments.seed}
    evictions = []
    for bench in [*image_workloads(), *partition_workloads()]:
        if arguments.workload and bench.name not in arguments.workload:
            continue
        if bench.missing:
            say(f"{bench.name} skipped: {bench.missing} is not here (set INFI_EDGE_DATA)")
            continue
        done = methods.run_workload(bench, arguments.seed, say)
        result["rows"] += done.rows
        result["frontier"] += done.frontier
        evictions += done.evictions
        if not result["filter"] and not bench.partition:
            say("timing filter, cache and process")
            frame = to_frame(next(open_recording(str(bench.clip)).samples(0, 1)).data)
            for kind, loaded in done.filters.items():
                result["filter"][kind] = speed.filter_costs(loaded, frame)
            result["cache"] = speed.cache_costs()
            demo = ROOT / "examples" / "demo.infi"
            result["process"] = speed.footprint(demo, bench.clip)
        result["cache"]["evictions"] = evictions
        print(report.write(arguments.output, result), flush=True)
    if not result["rows"]:
        say("no workload could run; nothing written")
        return 1
    say(f"report in {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
