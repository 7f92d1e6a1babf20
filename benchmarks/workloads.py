"""The real streams and models of the bench."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from converters.partition import cuts, split
from infi_edge.workload import WorkloadSpec

ROOT = Path(__file__).resolve().parent.parent


def data_folder() -> Path:
    """$INFI_EDGE_DATA, else ../shared/data."""
    return Path(os.environ.get("INFI_EDGE_DATA") or ROOT.parent / "shared" / "data")


def models_folder() -> Path:
    """$INFI_EDGE_MODELS, else ../shared/models."""
    return Path(os.environ.get("INFI_EDGE_MODELS") or ROOT.parent / "shared" / "models")


@dataclass(frozen=True, slots=True)
class BenchWorkload:
    """A clip, a model and what is asked of it.

    partition: the model is cut in two; the filter reads the features between the parts.
    """

    name: str
    clip: Path
    model: Path
    decoder: str
    task: str
    same: str
    partition: bool = False

    @property
    def missing(self) -> str | None:
        """Which file is not here, or None."""
        for path in (self.clip, self.model):
            if not path.exists():
                return str(path)
        return None

    def spec(self, labels: tuple[str, ...]) -> WorkloadSpec:
        """The workload as text."""
        modality = "features" if self.partition else "image"
        return WorkloadSpec(self.task, self.decoder, self.same, labels, modality)

    def parts(self, folder: Path) -> tuple[Path, Path]:
        """Cut the model where most of it is on the device and one tensor passes; write and return
        (head, tail)."""
        content = self.model.read_bytes()
        parts = split(content, cuts(content)[-1].tensor)
        paths = folder / "head.tflite", folder / "tail.tflite"
        for path, part in zip(paths, parts, strict=True):
            path.write_bytes(part)
        return paths


def image_workloads() -> list[BenchWorkload]:
    """The camera streams with YOLOv5n."""
    data, model = data_folder(), models_folder() / "yolov5n" / "yolov5n-fp16.tflite"
    vehicles = "count:car,motorcycle,bus,truck"
    rows = (
        ("person", "person/one-by-one-person.mp4", "presence:person", "exact"),
        ("intersection", "traffic/intersection-60fps.avi", vehicles, "within:1"),
        ("highway", "traffic/highway-15fps.avi", vehicles, "within:1"),
    )
    return [
        BenchWorkload(name, data / clip, model, "yolov5", task, same)
        for name, clip, task, same in rows
    ]


def partition_workloads() -> list[BenchWorkload]:
    """The same with YOLOv5n in two parts, where a model on the device would save something."""
    return [
        replace(bench, name=f"{bench.name}-partition", partition=True)
        for bench in image_workloads()
        if bench.name != "highway"
    ]
