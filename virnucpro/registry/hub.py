"""Files of a repository on the Hugging Face hub, through ``huggingface_hub``.

The hub keeps large files under their SHA-256 and small ones under the name of their git object, and tells both in its
listing: what comes is held against it. Never a token: the repositories are public, and ``--mirror`` may be anybody's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from shutil import rmtree
from typing import Any

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, tqdm

from virnucpro.atomic import file_digest
from virnucpro.errors import DiskFullError
from virnucpro.progress import Advance
from virnucpro.registry.catalogue import HubSource
from virnucpro.registry.download import NO_ROOM, Patience, SourceError
from virnucpro.registry.receipts import FILE_NAME, FileRecord, git_blob_name

_log = logging.getLogger(__name__)
_HUB_ERRORS = (httpx2.HTTPError, OSError, ValueError)


@dataclass(frozen=True)
class HubFile:
    """A file as the hub lists it."""

    repo: str  # ``owner/name``
    commit: str  # the hub's
    endpoint: str  # the hub's address
    name: str  # within the repository
    size_bytes: int  # exact
    sha256: str | None  # of a large file; None for a small one
    git_blob: str | None  # name of a small file's git object; for a large one that of its pointer

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{self.endpoint}/{self.repo}/resolve/{self.commit}/{self.name}"


def hub_address(mirror: str | None) -> str:
    """The hub's address: the mirror, else ``HF_ENDPOINT``, else the hub itself."""
    return (mirror or constants.ENDPOINT).rstrip("/")


def list_files(source: HubSource, mirror: str | None, patience: Patience) -> list[HubFile]:
    """Ask the hub what the repository holds, and choose.

    Raises:
        SourceError: no answer, or the repository holds no weights.
    """
    endpoint = hub_address(mirror)
    place = f"{endpoint}/{source.repo}"
    api = HfApi(endpoint=endpoint, token=False)
    try:
        found = api.model_info(
            source.repo, revision=source.revision, files_metadata=True, timeout=patience.timeout_seconds
        )
    except _HUB_ERRORS as error:
        raise SourceError(f"{place}: {_reason(error)}") from error
    if found.sha is None:
        raise SourceError(f"{place}: the server does not name a commit, so it is not a hub")
    files = [
        HubFile(
            *(source.repo, found.sha, endpoint, item.rfilename, item.size or 0),
            sha256=item.lfs.sha256 if item.lfs else None,
            git_blob=item.blob_id,
        )
        for item in found.siblings or []
        if FILE_NAME.fullmatch(item.rfilename)
    ]

    def matching(patterns: Sequence[str]) -> list[HubFile]:
        return [file for file in files if any(fnmatchcase(file.name, pattern) for pattern in patterns)]

    weights = next((group for group in map(matching, source.weights) if group), None)
    if weights is None:
        raise SourceError(f"{place}: holds no weights named {' or '.join(group[0] for group in source.weights)}")
    return [*matching(source.needed), *weights]


def fetch_file(file: HubFile, folder: Path, patience: Patience, advance: Advance) -> FileRecord:
    """Bring one file into ``folder``, unless an earlier call did; a part of it is kept in ``folder/.hub``.

    Raises:
        SourceError: it does not come, or is not what the hub says it is.
        DiskFullError: no space is left.
    """
    target = folder / file.name
    if target.is_file() and _problem(file, target) is None:
        return _record(file, target)
    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        came = hf_hub_download(
            file.repo,
            file.name,
            revision=file.commit,
            local_dir=folder / ".hub",
            endpoint=file.endpoint,
            etag_timeout=patience.timeout_seconds,
            token=False,
            tqdm_class=_bar(advance),
        )
    except _HUB_ERRORS as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise DiskFullError(target) from error
        raise SourceError(f"{file.url}: {_reason(error)}") from error
    finally:
        if not before:
            enable_progress_bars()
    path = Path(came)
    problem = _problem(file, path)
    if problem is not None:
        path.unlink()
        raise SourceError(f"{file.url}: came with {problem}; it was deleted")
    path.replace(target)
    return _record(file, target)


def sweep(folder: Path) -> None:
    """Delete what the hub's library keeps beside finished downloads."""
    rmtree(folder / ".hub", ignore_errors=True)


def _problem(file: HubFile, path: Path) -> str | None:
    """What is wrong with a file, if anything."""
    if path.stat().st_size != file.size_bytes:
        return f"{path.stat().st_size} bytes, the hub lists {file.size_bytes}"
    if file.sha256 is not None and file.sha256 != file_digest(path):
        return f"another SHA-256 than the hub lists ({file.sha256})"
    if file.sha256 is None and file.git_blob is not None and git_blob_name(path) != file.git_blob:
        return f"another content than the hub lists (git object {file.git_blob})"
    return None


def _record(file: HubFile, path: Path) -> FileRecord:
    checked = "SHA-256 of the hub" if file.sha256 else "git object of the hub" if file.git_blob else "size of the hub"
    # A digest that was just compared is not computed again.
    return FileRecord(path.name, file.size_bytes, file.sha256 or file_digest(path), file.url, checked)


def _reason(error: Exception) -> str:
    """The first line of what a library says, or its name."""
    cause = error.__cause__ if isinstance(error.__cause__, httpx2.HTTPError) else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _bar(advance: Advance) -> type[tqdm]:
    """A bar of the hub's library that tells our reporter instead of drawing."""

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - tqdm's own
            advance(int(kwargs.get("initial") or 0))
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            advance(int(n or 0))
            return None

    return Silent
