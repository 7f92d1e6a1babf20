"""The report as JSON, Markdown and a plot."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np

from infi_edge.archive import write_atomically
from infi_edge.interpreter import found_runtimes

mpl.use("Agg")
import matplotlib.pyplot as plt


def machine() -> dict[str, Any]:
    """What this ran on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.lower().startswith(("model name", "hardware")):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "arch": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "runtimes": found_runtimes(),
    }


def write(folder: Path, report: dict[str, Any]) -> str:
    """Write report.json, report.md and frontier.png; return the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "report.json", json.dumps(report, indent=1).encode())
    text = markdown(report)
    write_atomically(folder / "report.md", text.encode())
    _plot(report["frontier"], folder / "frontier.png")
    return text


def markdown(report: dict[str, Any]) -> str:
    """The tables a reader wants."""
    lines = [
        "| workload | target | method | filtering rate | accuracy (95 % CI) | recall | "
        "throughput ratio | infi-edge against it |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["rows"]:
        if row["accuracy"] is None:
            cells = ["-"] * 4
        else:
            interval = f"{row['accuracy']:.3f} ({row['ci_low']:.3f}-{row['ci_high']:.3f})"
            cells = [
                f"{row['filtering_rate']:.3f}",
                interval,
                _number(row["recall"]),
                _number(row["throughput_ratio"], 1),
            ]
        name = f"{row['method']} ({row['filter']})" if row["filter"] else row["method"]
        against = ""
        if "infi_edge_verdict" in row:
            against = f"{row['infi_edge_verdict']} ({row['infi_edge_gain']:+.3f})"
        target = f"{row['target_accuracy']:g}"
        lines.append("| " + " | ".join([row["workload"], target, name, *cells, against]) + " |")
    lines += ["", "Best point of each method swept on the reported part (no promise):", ""]
    lines += ["| workload | method | at 0.90 | at 0.95 |", "| --- | --- | --- | --- |"]
    for workload, method in dict.fromkeys(
        (p["workload"], f"{p['method']}|{p['filter'] or ''}") for p in report["frontier"]
    ):
        name, _, kind = method.partition("|")
        mine = [
            p
            for p in report["frontier"]
            if (p["workload"], p["method"], p["filter"] or "") == (workload, name, kind)
        ]
        best = [
            max((p["filtering_rate"] for p in mine if p["accuracy"] >= t), default=0.0)
            for t in (0.9, 0.95)
        ]
        label = f"{name} ({kind})" if kind else name
        lines.append(f"| {workload} | {label} | {best[0]:.3f} | {best[1]:.3f} |")
    lines += ["", "Bandwidth saved, of sending every input the same way (a JPEG of quality 90, or"]
    lines += ["the int8 features of a partitioned model), and the accuracy it costs:", ""]
    lines += bandwidth_table(report["rows"])
    lines += ["", "Filter, cache, process:", "", "```"]
    lines += [json.dumps({key: report[key]}, indent=1) for key in ("filter", "cache", "process")]
    return "\n".join([*lines, "```", ""])


def bandwidth_table(rows: list[dict[str, Any]]) -> list[str]:
    """One line a workload and target, one column a method."""
    methods = list(
        dict.fromkeys(row["method"] for row in rows if row["method"] != "run-everything")
    )
    lines = [
        "| workload | target | " + " | ".join(methods) + " |",
        "| --- | --- |" + " --- |" * len(methods),
    ]
    for workload, target in dict.fromkeys((r["workload"], r["target_accuracy"]) for r in rows):
        cells = []
        for method in methods:
            row = next(
                (
                    r
                    for r in rows
                    if (r["workload"], r["target_accuracy"], r["method"])
                    == (workload, target, method)
                ),
                None,
            )
            if row is None or row["bandwidth_saved"] is None:
                cells.append("-")
                continue
            accuracy = f"({row['accuracy']:.3f})"
            if row.get("target_missed"):
                accuracy = f"**{accuracy}**"
            cells.append(f"{row['bandwidth_saved']:.3f} {accuracy}")
        lines.append(f"| {workload} | {target:g} | " + " | ".join(cells) + " |")
    return lines


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _plot(frontier: list[dict[str, Any]], path: Path) -> None:
    workloads = list(dict.fromkeys(p["workload"] for p in frontier))
    figure, axes = plt.subplots(
        1, max(len(workloads), 1), figsize=(6 * max(len(workloads), 1), 5), squeeze=False
    )
    for axis, workload in zip(axes[0], workloads, strict=False):
        curves = dict.fromkeys(
            (p["method"], p["filter"]) for p in frontier if p["workload"] == workload
        )
        for method, kind in curves:
            points = [
                (p["filtering_rate"], p["accuracy"])
                for p in frontier
                if (p["workload"], p["method"], p["filter"]) == (workload, method, kind)
            ]
            ours = method == "infi-edge"
            axis.plot(
                *zip(*sorted(points), strict=True),
                label=f"{method} ({kind})" if kind else method,
                linewidth=2.5 if ours else 1,
                linestyle="-" if method.startswith("infi") else "--",
            )
        axis.set(title=workload, xlabel="filtering rate", ylabel="accuracy", ylim=(0.7, 1.005))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
