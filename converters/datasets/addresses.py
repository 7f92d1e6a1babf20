"""Where data sets are published, and their download into a folder that a loader reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from converters.datasets.archives import ENDINGS, unpack
from converters.download import download
from infi_edge.errors import ConfigError
from infi_edge.labels import Progress


@dataclass(frozen=True, slots=True)
class Address:
    """url: as the publisher gives it. file: its name here. sha256: None where nobody knows it."""

    url: str
    file: str
    sha256: str | None = None


_ESC = Address("https://github.com/karolpiczak/ESC-50/archive/master.zip", "ESC-50-master.zip")
_WNUT = (
    "https://raw.githubusercontent.com/leondz/emerging_entities_17/"
    "e52a2d2a71ac1a051ca2d532eef28653c5c02603/"
)

ADDRESSES: dict[str, tuple[Address, ...]] = {
    "uci-har": (
        Address(
            "https://archive.ics.uci.edu/static/public/240/"
            "human+activity+recognition+using+smartphones.zip",
            "uci-har.zip",
            # UCI publishes no checksum; independent projects have pinned this same one.
            "c00b803081a5c797cd5e4b83700a9810b38d53d9d84e01917e090e1fdbc81031",
        ),
    ),
    "postures": (
        Address(
            "https://archive.ics.uci.edu/ml/machine-learning-databases/00405/Postures.zip",
            "Postures.zip",
        ),
    ),
    # GitHub packs a branch anew when it likes: the content stays, the archive's bytes may not.
    "esc-50": (_ESC,),
    "esc-10": (_ESC,),
    "spoken-digits": (
        Address(
            "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/v1.0.9.tar.gz",
            "free-spoken-digit-dataset-1.0.9.tar.gz",
            # As TensorFlow Datasets pins it (spoken_digit/checksums.tsv).
            "8bc44cde129d505cbbb6b365c09f80c663f2aa77578afc634e6141a2f87100c0",
        ),
    ),
    "wnut17": (
        Address(
            _WNUT + "wnut17train.conll",
            "wnut17train.conll",
            "731820e13f71af324c6b55a1575ec2ce59fbaa2a0806f8f0400b98d56cd6a7a5",
        ),
        Address(
            _WNUT + "emerging.dev.conll",
            "emerging.dev.conll",
            "e053b752b8155113ca66e7db08af5f2f5f43ab993694e4774f1ec5bad42312d8",
        ),
        Address(
            _WNUT + "emerging.test.annotated",
            "emerging.test.annotated",
            "2aa79b764e56ec9264a1b30fdd9b70195bd00ff400b62edd8f399d5f13c178f0",
        ),
    ),
}


def fetch(
    addresses: Sequence[Address],
    folder: Path,
    sha256: str | None = None,
    accept_any: bool = False,
    progress: Callable[[str], Progress] | None = None,
) -> list[Path]:
    """Download into a folder, which is made if need be, and unpack archives there.

    sha256: of the one file, instead of the known one. accept_any: check nothing. progress: from a
    file's name to what is told of its bytes. Returns the downloaded files.
    Raises ConfigError if a file's hash is neither known nor given nor waived, SourceError if it
    cannot be had whole.
    """
    if sha256 is not None and (len(addresses) > 1 or accept_any):
        raise ConfigError(
            "--sha256 is for a set of one file, and not together with --accept-any-content"
        )
    unknown = next((a for a in addresses if a.sha256 is None), None)
    if unknown is not None and sha256 is None and not accept_any:
        raise ConfigError(
            f"no SHA-256 is known for {unknown.url}, so nobody could tell whether the right "
            "content came; give --sha256 from a source you trust, or --accept-any-content"
        )
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for address in addresses:
        wanted = None if accept_any else sha256 or address.sha256
        told = progress(address.file) if progress is not None else None
        file = download(address.url, folder / address.file, wanted, told)
        if file.name.endswith(ENDINGS):
            unpack(file, folder)
        files.append(file)
    return files
