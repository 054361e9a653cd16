"""Bringing the parts of a model into the cache.

The hub's own library tells what a repository holds: sizes, the SHA-256 of large files and the git object of small ones.
Never a token: the repositories are public, and ``--mirror`` may be anybody's.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, is_offline_mode

from virnucpro.bundles.catalogue import HubSource, Part, RemoteFile
from virnucpro.errors import ModelError
from virnucpro.progress import Reporter
from virnucpro.registry.download import Patience, SourceError, download, mirrored
from virnucpro.registry.inventory import ROOM_REMEDY, downloads_dir, found_elsewhere, parts_of
from virnucpro.registry.receipts import FILE_NAME, FileRecord, Receipt, read_receipt, write_receipt
from virnucpro.resources import check_room

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fetching:
    """How to fetch."""

    mirror: str | None  # address that takes the place of scheme and host of every source
    patience: Patience  # how long to try
    reporter: Reporter  # progress


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
    failed, there = [], []
    for part in parts_of(name):
        folder = downloads_dir() / part.name
        elsewhere = None if again else found_elsewhere(part)
        there.append(elsewhere or folder)
        if elsewhere is not None:
            _log.info("%s: was found in %s; --again fetches it all the same", part.name, elsewhere)
            continue
        try:
            fetch_part(part, folder, how)
        except SourceError as error:
            failed.append(f"{part.name} ({part.files}) from {error}")
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
    if receipt is not None and not receipt.problems(folder, reads_content=False):
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
            return
    raise SourceError(", or ".join(failed))


def _fetch_from(source: HubSource | RemoteFile, part: Part, folder: Path, how: Fetching) -> tuple[FileRecord, ...]:
    url = source.url if isinstance(source, RemoteFile) else f"{constants.ENDPOINT.rstrip('/')}/{source.repo}"
    place = mirrored(url, how.mirror)
    if is_offline_mode():
        raise SourceError(f"{place}: not asked, HF_HUB_OFFLINE is set")
    files = [replace(source, url=place)] if isinstance(source, RemoteFile) else list_files(source, place, how.patience)
    have = sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
    sizes = [file.size_bytes for file in files if file.size_bytes is not None]
    check_room(folder, (sum(sizes) if sizes else part.about_bytes) - have, ROOM_REMEDY)
    records = []
    for file in files:
        with how.reporter.stage(f"{part.name}/{file.name}", file.size_bytes, "bytes") as advance:
            most_bytes = 2 * part.about_bytes if file.size_bytes is None else file.size_bytes
            records.append(download(file, folder / file.name, how.patience, advance, most_bytes))
    return tuple(records)


def list_files(source: HubSource, place: str, patience: Patience) -> list[RemoteFile]:
    """Ask a hub what the repository at the address ``place`` holds, and choose.

    Raises:
        SourceError: no answer, or the repository holds no weights.
    """
    api = HfApi(endpoint=place.removesuffix(f"/{source.repo}"), token=False)
    try:
        found = api.model_info(source.repo, revision="main", files_metadata=True, timeout=patience.timeout_seconds)
    except (httpx2.HTTPError, OSError, ValueError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, httpx2.HTTPError) else error
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        raise SourceError(f"{place}: {lines[0].rstrip('.') if lines else type(error).__name__}") from error
    if found.sha is None:
        raise SourceError(f"{place}: the server does not name a commit, so it is not a hub")
    files = [
        RemoteFile(
            f"{place}/resolve/{found.sha}/{item.rfilename}",
            item.size,
            sha256=item.lfs.sha256 if item.lfs else None,
            git_blob=None if item.lfs else item.blob_id,
        )
        for item in found.siblings or []
        if FILE_NAME.fullmatch(item.rfilename)
    ]
    for patterns in source.weights:
        weights = [file for file in files if any(fnmatchcase(file.name, pattern) for pattern in patterns)]
        if weights:
            return [*(file for file in files if file.name in source.needed), *weights]
    raise SourceError(f"{place}: holds no weights named {' or '.join(group[0] for group in source.weights)}")
