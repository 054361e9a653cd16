"""Bringing the parts of a model into the cache."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import is_offline_mode

from virnucpro.errors import ModelError, ResourceError
from virnucpro.progress import Reporter
from virnucpro.registry import hub
from virnucpro.registry.catalogue import MODELS, PARTS, HubSource, Part, UrlSource
from virnucpro.registry.download import Patience, SourceError, download, mirrored
from virnucpro.registry.inventory import check_room, downloads_dir, found_elsewhere
from virnucpro.registry.receipts import FileRecord, Receipt, looks_complete, read_receipt, write_receipt

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fetching:
    """How to fetch."""

    mirror: str | None  # address that takes the place of scheme and host of every source
    patience: Patience  # how long to try
    reporter: Reporter  # progress


def parts_of(name: str) -> list[Part]:
    """The parts of a published model, or the part of that name; empty where it is neither."""
    names = MODELS.get(name, (name,) if name in PARTS else ())
    return [PARTS[part] for part in names]


def fetch(name: str, how: Fetching, *, again: bool = False) -> list[Path]:
    """Fetch what is not there yet of a catalogued model or part.

    Args:
        name: of a published model or a part.
        how: mirror, patience, progress.
        again: also fetch what a cache of the hub or of torch holds.

    Returns:
        where each part is.

    Raises:
        ModelError: a part cannot be had from any source; the others are fetched all the same.
        ResourceError: the disk is too small.
    """
    places = [(part, downloads_dir() / part.name) for part in parts_of(name)]
    failed, there = [], []
    for part, folder in places:
        elsewhere = None if again else found_elsewhere(part)
        if elsewhere is not None:
            _log.info("%s: was found in %s; --again fetches it all the same", part.name, elsewhere)
        there.append(elsewhere or folder)
        try:
            if elsewhere is None:
                fetch_part(part, folder, how)
        except SourceError as error:
            failed.append(f"{part.name} ({_wanted(part)}) from {error}")
    if failed:
        raise ModelError(
            f"{name} could not be fetched: {'; '.join(failed)}. By hand: on a machine with network run 'virnucpro "
            f"models fetch {name}' and 'virnucpro models export FILE {name}', bring FILE here and run 'virnucpro "
            f"models import FILE'; or put the files of each part into {downloads_dir()}/PART and run 'virnucpro "
            "models record PART'."
        )
    return there


def fetch_part(part: Part, folder: Path, how: Fetching) -> None:
    """Fetch one part into ``folder``, from the first source that gives it.

    Raises:
        SourceError: none does; the text has the reason of each.
        ResourceError: the disk is too small.
    """
    receipt = read_receipt(folder)
    if receipt is not None and looks_complete(folder, receipt):
        _log.info("%s: is here already (%s)", part.name, folder)
        return
    failed: list[str] = []
    for source in part.sources:
        if failed:
            _log.warning("%s; trying another source", failed[-1])
        try:
            files = _fetch_from(source, part, folder, how)
        except SourceError as error:
            failed.append(str(error))
        else:
            write_receipt(folder, Receipt(part.name, part.licence, None, files))
            hub.sweep(folder)
            return
    raise SourceError(", or ".join(failed))


def _fetch_from(source: HubSource | UrlSource, part: Part, folder: Path, how: Fetching) -> tuple[FileRecord, ...]:
    if is_offline_mode():
        place = hub.hub_address(how.mirror) + f"/{source.repo}" if isinstance(source, HubSource) else source.url
        raise SourceError(f"{place}: not asked, HF_HUB_OFFLINE is set")
    have = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if isinstance(source, UrlSource):
        check_room(folder, part.about_bytes - have)
        with how.reporter.stage(source.file, None, "bytes") as advance:
            there = replace(source, url=mirrored(source.url, how.mirror))
            return (download(there, folder / source.file, how.patience, advance, 2 * part.about_bytes),)
    files = hub.list_files(source, how.mirror and mirrored("", how.mirror), how.patience)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be written to ({error.strerror}). Set VIRNUCPRO_CACHE.") from error
    check_room(folder, sum(file.size_bytes for file in files) - have)
    records = []
    for file in files:
        with how.reporter.stage(f"{part.name}/{file.name}", file.size_bytes, "bytes") as advance:
            records.append(hub.fetch_file(file, folder, how.patience, advance))
    return tuple(records)


def _wanted(part: Part) -> str:
    files = []
    for source in part.sources:
        if isinstance(source, UrlSource):
            files.append(source.file)
        else:
            weights = " or ".join(group[0] for group in source.weights)
            files.append(f"{', '.join(source.needed)} and {weights} of {source.repo}")
    return ", or ".join(files)
