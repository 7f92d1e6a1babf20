"""The real streams and models of the bench."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

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
    """A clip, a model and what is asked of it."""

    name: str
    clip: Path
    model: Path
    decoder: str
    task: str
    same: str

    @property
    def missing(self) -> str | None:
        """Which file is not here, or None."""
        for path in (self.clip, self.model):
            if not path.exists():
                return str(path)
        return None

    def spec(self, labels: tuple[str, ...]) -> WorkloadSpec:
        """The workload as text."""
        return WorkloadSpec(self.task, self.decoder, self.same, labels)


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
