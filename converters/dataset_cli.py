"""The command `infi-convert dataset`: a published data set becomes recordings."""

from __future__ import annotations

from pathlib import Path

import click

from converters.datasets import LOADERS, PACKAGED, load_dataset
from converters.datasets.addresses import ADDRESSES, fetch
from converters.datasets.write import Written, write_recordings
from infi_edge.capture.replay import file_hash
from infi_edge.cli import Bar
from infi_edge.errors import ConfigError


@click.command("dataset")
@click.argument("name", required=False)
@click.argument("folder", required=False)
@click.option("-o", "--output", metavar="OUT", help="A new folder for the recordings.")
@click.option("--list", "show_list", is_flag=True, help="The data sets that are known.")
@click.option("--group", "groups", multiple=True, help="Only this subject, ...; may be repeated.")
@click.option("--split", help="Only this split, as published: train, test, ...")
@click.option(
    "--shuffle",
    "seed",
    type=click.IntRange(0),
    metavar="SEED",
    help="For sets that are sorted by label; time within a label stays.",
)
@click.option("--download", "download_to", metavar="FOLDER", help="Fetch it there first.")
@click.option("--sha256", metavar="HEX", help="What the downloaded file must have.")
@click.option("--accept-any-content", is_flag=True, help="Download without a known SHA-256.")
def dataset_command(
    name: str | None,
    folder: str | None,
    output: str | None,
    show_list: bool,
    groups: tuple[str, ...],
    split: str | None,
    seed: int | None,
    download_to: str | None,
    sha256: str | None,
    accept_any_content: bool,
) -> None:
    """Turn data set NAME, as published in FOLDER, into recordings and their labels in OUT."""
    if show_list:
        click.echo("\n".join(_lines()))
        return
    if name is None:
        raise ConfigError("name a data set; infi-convert dataset --list shows them")
    if download_to is not None:
        if folder is not None:
            raise ConfigError("give the FOLDER where the files are, or --download, not both")
        _download(name, Path(download_to), sha256, accept_any_content)
        folder = download_to
        if output is None:
            click.echo(f"next: infi-convert dataset {name} {folder} -o OUT")
            return
    elif sha256 is not None or accept_any_content:
        raise ConfigError("--sha256 and --accept-any-content go with --download")
    if output is None:
        raise ConfigError("give the new folder for the recordings with -o OUT")
    dataset = load_dataset(name, folder).part(groups, split)
    _report(output, write_recordings(dataset, output, seed))


def _lines() -> list[str]:
    lines = []
    for name, loader in LOADERS.items():
        what = (loader.__doc__ or "").splitlines()[0]
        where = " (--download)" if name in ADDRESSES else ""
        where = " (in an installed package)" if name in PACKAGED else where
        lines.append(f"{name:<22}{what}{where}")
    return lines


def _download(name: str, folder: Path, sha256: str | None, accept_any: bool) -> None:
    if name not in LOADERS:
        raise ConfigError(f"data set {name!r} is unknown; it is one of {', '.join(LOADERS)}")
    if name not in ADDRESSES:
        raise ConfigError(
            f"{name} has no public address that stays; get its files yourself and give the folder"
        )
    for file in fetch(ADDRESSES[name], folder, sha256, accept_any, Bar):
        unchecked = ", unchecked" if accept_any else ""
        click.echo(f"{file}: sha256 {file_hash(file)}{unchecked}")


def _report(output: str, written: Written) -> None:
    first = written.recordings[0]
    more = len(written.recordings) - 1
    others = f" and {more} more" if more else ""
    click.echo(f"{written.rows} inputs or files in {first}{others}; labels in {written.labels}")
    click.echo(
        f"next: infi-convert train {first} {' '.join(written.options)} "
        f"--model MODEL --task TASK --target-accuracy 0.95 -o {Path(output).name}.infi"
    )
