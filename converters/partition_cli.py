"""The command `infi-convert split`: a model cut into the device's head and the server's tail."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from converters.flatgraph import read_graph
from converters.partition import Cut, find_cut, find_cuts, need_cuts, split_at
from converters.partition_cost import Bench, Cost, Link, Sent, choose, measure
from infi_edge.cli import Bar
from infi_edge.errors import ConfigError

HEAD, TAIL = "head.tflite", "tail.tflite"
LEFT_BEHIND = re.compile(rf"\.({re.escape(HEAD)}|{re.escape(TAIL)})\.\w+")
"""What an earlier run may have left of itself when the power went."""
NAME_WIDTH = 44


@click.command("split")
@click.argument("model")
@click.option(
    "--at",
    default="auto",
    show_default=True,
    metavar="TENSOR",
    help="Where to cut: a tensor's name, its number in --list, or auto.",
)
@click.option("-o", "--output", metavar="DIR", help=f"Write {HEAD} and {TAIL} into this folder.")
@click.option("--list", "list_only", is_flag=True, help="List the possible cuts, write nothing.")
@click.option(
    "--bandwidth",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0.001),
    metavar="MBIT",
    help="Of the link to the server, in Mbit/s; auto takes the least time from input to answer.",
)
@click.option(
    "--budget-ms",
    type=click.FloatRange(0.0, min_open=True),
    metavar="MS",
    help="auto takes the fewest bytes among the cuts whose head takes at most this.",
)
@click.option(
    "--sent",
    type=click.Choice(["int8", "asis"]),
    default="int8",
    show_default=True,
    help="How float features are sent: as 8-bit numbers, or as they are.",
)
@click.option(
    "--server-speedup",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.0, min_open=True),
    help="How many times faster than this machine the server is.",
)
@click.option("--sample", metavar="FILE", help="Measure on an image or a .npy, not on noise.")
@click.option("--json", "as_json", is_flag=True, help="Print the cuts and the choice as JSON.")
def split_command(
    model: str,
    at: str,
    output: str | None,
    list_only: bool,
    bandwidth: float,
    budget_ms: float | None,
    sent: Sent,
    server_speedup: float,
    sample: str | None,
    as_json: bool,
) -> None:
    """Cut MODEL (.tflite, one input) into a head for the device and a tail for a server.

    Head and tail together answer bit for bit as the whole, which is checked before they are
    written. What is timed is timed on this machine, with one thread.
    """
    if list_only == (output is not None):
        raise ConfigError("give either -o DIR, to write head and tail there, or --list")
    for name, value in (("bandwidth", bandwidth), ("server-speedup", server_speedup)):
        if not math.isfinite(value):
            raise ConfigError(f"--{name} {value} is no number; give one above 0")
    content = _read(model)
    graph = read_graph(content)
    found = find_cuts(graph)
    need_cuts(found)
    wanted = None if at == "auto" else find_cut(found, at)
    if output is not None:
        _check_folder(Path(output), Path(model))
    link = Link(bandwidth, sent, server_speedup)
    bench = Bench(graph, content, sample)
    try:
        costs, refused = measure(bench, found, Bar("measuring the cuts"))
        for sentence in refused:
            click.echo(sentence, err=True)
        chosen = _chosen(wanted, costs, link, budget_ms)
        # Also tells whether this very cut answers as the whole does.
        if not chosen.is_measured:
            chosen = bench.cost(chosen.cut)
            costs = [chosen if cost.cut == chosen.cut else cost for cost in costs]
    finally:
        bench.close()
    written = None
    if output is not None:
        written = write_parts(Path(output), *split_at(graph, chosen.cut, content))
    report = _report(model, costs, chosen, bench, link, sample)
    report["written"] = None if written is None else [str(path) for path in written]
    click.echo(json.dumps(report, indent=1) if as_json else _text(report))


def write_parts(folder: Path, head: bytes, tail: bytes) -> tuple[Path, Path]:
    """Write both files into the folder, or neither; the folder is made if need be.

    An earlier tail goes before the new head comes: a pair that does not fit is never there.
    Raises OSError.
    """
    folder = folder.absolute()  # as mkstemp gives names
    made, replacing = not folder.exists(), False
    folder.mkdir(parents=True, exist_ok=True)
    paths, new = (folder / HEAD, folder / TAIL), []
    try:
        for path, content in zip(paths, (head, tail), strict=True):
            handle, name = tempfile.mkstemp(dir=folder, prefix=f".{path.name}.")
            new.append(Path(name))
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
        for left in folder.iterdir():
            if LEFT_BEHIND.fullmatch(left.name) and left not in new:
                left.unlink()
        replacing = True
        paths[1].unlink(missing_ok=True)
        for path, temporary in zip(paths, new, strict=True):
            os.replace(temporary, path)
    except BaseException:
        for path in (*new, *(paths if replacing else ())):
            path.unlink(missing_ok=True)
        if made:
            folder.rmdir()
        raise
    return paths


def _chosen(wanted: Cut | None, costs: Sequence[Cost], link: Link, budget_ms: float | None) -> Cost:
    if wanted is None:
        return choose(costs, link, budget_ms)
    for cost in costs:
        if cost.cut == wanted:
            return cost
    raise ConfigError(f"cut {wanted.number} ({wanted.tensor}) is refused; choose another in --list")


def _read(model: str) -> bytes:
    try:
        return Path(model).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{model} cannot be read: {reason}; give a .tflite file") from error


def _check_folder(folder: Path, model: Path) -> None:
    """Raise ConfigError if head and tail cannot, or should not, be written there."""
    try:
        names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"{folder} cannot be used: {reason}; name a folder") from error
    if model.resolve() in [folder.resolve() / name for name in (HEAD, TAIL)]:
        raise ConfigError(f"{model} would be overwritten; name another folder")
    others = [n for n in names if n not in (HEAD, TAIL) and not LEFT_BEHIND.fullmatch(n)]
    if others:
        raise ConfigError(
            f"{folder} has other files in it ({others[0]}); name a new or an empty folder"
        )
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"{folder} cannot be made: {there} is a file; name another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder} cannot be written: no permission in {there}; write elsewhere")


def _report(
    model: str, costs: Sequence[Cost], chosen: Cost, bench: Bench, link: Link, sample: str | None
) -> dict[str, Any]:
    return {
        "model": model,
        "measured_on": sample or "noise",
        "bandwidth_mbit": link.bandwidth_mbit,
        "sent": link.sent,
        "server_speedup": link.server_speedup,
        "whole_here_ms": round(bench.whole_ms, 4),
        "input": {
            "bytes": bench.input_bytes,
            "total_ms": round(link.total_ms(0.0, bench.input_bytes, bench.whole_ms), 4),
        },
        "cuts": [_row(cost, link) for cost in costs],
        "chosen": _row(chosen, link),
    }


def _row(cost: Cost, link: Link) -> dict[str, Any]:
    cut: Cut = cost.cut
    return {
        "number": cut.number,
        "tensor": cut.tensor,
        "shape": list(cut.shape),
        "dtype": str(cut.dtype),
        "scale": cut.scale,
        "zero_point": cut.zero_point,
        "bytes_as_is": cut.bytes_as_is,
        "bytes_int8": cut.bytes_int8,
        "bytes_compressed": cost.compressed_bytes,
        "head_ms": round(cost.head_ms, 4),
        "tail_ms": round(cost.tail_ms, 4),
        "total_ms": round(link.cut_ms(cost), 4),
        "measured": cost.is_measured,
    }


def _text(report: dict[str, Any]) -> str:
    titles = ("cut", "as is", "int8", "zlib", "head ms", "tail ms", "total ms")
    lines = ["{:>4} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}  tensor".format(*titles)]
    lines += [_line(row) for row in report["cuts"]]
    if not all(row["measured"] for row in report["cuts"]):
        lines.append("~ interpolated between cuts that were measured")
    chosen, whole = report["chosen"], report["input"]
    lines.append(
        f"zlib's bytes are of the int8 features of {_what(report['measured_on'])}; total: head, "
        f"{report['sent']} bytes over {report['bandwidth_mbit']:g} Mbit/s, tail on a server "
        f"{report['server_speedup']:g} times as fast"
    )
    lines.append(
        f"cut {chosen['number']} at {_short(chosen['tensor'])}: {chosen['total_ms']:.3g} ms; "
        f"sending the input's {whole['bytes']} bytes: {whole['total_ms']:.3g} ms; the whole model "
        f"here: {report['whole_here_ms']:.3g} ms"
    )
    least = min(whole["total_ms"], report["whole_here_ms"])
    if chosen["total_ms"] > least:
        better = "sending the input" if least == whole["total_ms"] else "the whole model here"
        lines.append(f"a partition does not pay in time: {better} is quicker")
    if report["written"]:
        lines.append(f"wrote {' and '.join(report['written'])}")
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    mark = " " if row["measured"] else "~"
    zlib_bytes = "-" if row["bytes_compressed"] is None else str(row["bytes_compressed"])
    shape = "x".join(str(side) for side in row["shape"])
    return (
        f"{row['number']:>4} {row['bytes_as_is']:>9} {row['bytes_int8']:>9} {zlib_bytes:>9} "
        f"{mark}{row['head_ms']:>8.3f} {mark}{row['tail_ms']:>8.3f} {mark}{row['total_ms']:>8.2f}"
        f"  {_short(row['tensor'])} {row['dtype']} {shape}"
    )


def _what(sample: str) -> str:
    return "random noise" if sample == "noise" else sample


def _short(name: str) -> str:
    """A name's end, which tells names apart, without what would move the terminal's cursor."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
    return shown if len(shown) <= NAME_WIDTH else f"...{shown[3 - NAME_WIDTH :]}"
