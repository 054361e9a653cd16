"""What is there: bundles and checkpoints, by name, with their records."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from virnucpro.bundles.bundle import BUNDLED, cache_dir, find_bundle, load_bundle
from virnucpro.bundles.catalogue import MODELS, PARTS, Part
from virnucpro.bundles.checkpoints import find_checkpoint
from virnucpro.errors import DiskFullError, ModelError, ResourceError
from virnucpro.registry.receipts import (
    FILE_NAME,
    RECEIPT,
    Problem,
    Receipt,
    read_receipt,
    record_file,
)

State = Literal["bundled", "here", "elsewhere", "incomplete", "not here"]

_LARGEST_HASHED_BYTES = 1 << 30
"""A listing does not read more than this of a bundle to learn its fingerprint."""

ROOM_REMEDY = "Free some space, or set VIRNUCPRO_CACHE to another place."


@dataclass(frozen=True)
class Place:
    """A folder that holds, or would hold, a model or a part of one."""

    name: str  # as users give it
    folder: Path  # where
    part: Part | None = None  # its entry in the catalogue, for a checkpoint; None for a bundle

    @property
    def licence(self) -> str:
        """As far as it is known without a record."""
        if self.part is not None:
            return self.part.licence
        return "MIT" if self.folder.resolve() in [find_bundle(name).resolve() for name in BUNDLED] else "unknown"

    @property
    def files(self) -> list[Path]:
        """Its files, by name: no record, nothing hidden, nothing half fetched, no prose."""
        there = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(
            path
            for path in there
            if path.is_file()
            and FILE_NAME.fullmatch(path.name)
            and path.name != RECEIPT
            and not path.name.endswith((".md", ".part", ".part.json"))
        )


@dataclass(frozen=True)
class Entry:
    """A line of the listing."""

    name: str  # of the model, bundle or checkpoint
    # bundle, checkpoint, or published model (checkpoints, perhaps not yet a bundle)
    kind: Literal["bundle", "checkpoint", "published model"]
    state: State  # bundled, here, elsewhere (in a cache of the hub or of torch), incomplete or not here
    size_bytes: int  # of what is there, else of what would come
    size_is_exact: bool  # false for what would come
    fingerprint: str | None  # of a bundle; None if there is none, or if it would take long to find out
    licence: str  # SPDX identifier, or unknown
    parts: tuple[str, ...]  # of a published model; files of a bundle or checkpoint
    source: str  # where it comes from
    where: Path | None  # its folder; None if it is not here


def bundles_dir() -> Path:
    """Where bundles are that did not come with the program."""
    return cache_dir() / "bundles"


def downloads_dir() -> Path:
    """Where fetched checkpoints are."""
    return cache_dir() / "downloads"


@contextmanager
def cache_errors(path: Path) -> Iterator[None]:
    """Name what cannot be written in the cache, and the way out.

    Raises:
        DiskFullError: no space is left.
        ResourceError: it cannot be written for another reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(path) from error
        reason = error.strerror or error
        raise ResourceError(f"{path}: cannot be written to ({reason}). Set VIRNUCPRO_CACHE.") from error


def list_entries() -> list[Entry]:
    """Everything that is here, then everything that could be."""
    return [
        *(_bundle_entry(place) for place in _bundles()),
        *(_model_entry(name) for name in MODELS if not (bundles_dir() / name / "bundle.yaml").is_file()),
        *(_part_entry(part) for part in PARTS.values()),
    ]


def parts_of(name: str) -> list[Part]:
    """The parts of a published model, or the part of that name; empty if it is neither."""
    names = MODELS.get(name, (name,) if name in PARTS else ())
    return [PARTS[part] for part in names]


def places_of(name: str, *, may_be_empty: bool = False) -> list[Place]:
    """The folders behind a name.

    Args:
        name: a bundle, a published model, a checkpoint, or the path of a bundle folder.
        may_be_empty: also those of checkpoints that are not here.

    Returns:
        the bundle if there is one; else the checkpoints of that name or model.

    Raises:
        ModelError: nothing has this name, or nothing of it is here.
    """
    if "/" in name or name in (".", ".."):
        folder = Path(name)
        if not (folder / "bundle.yaml").is_file():
            raise ModelError(f"{name}: is not a bundle folder (bundle.yaml is missing).")
        return [Place(folder.resolve().name, folder)]
    bundles = _bundles()
    bundle = next((place for place in bundles if place.name == name), None)
    if bundle is not None:
        return [bundle]
    wanted = [_part_place(part) for part in parts_of(name)]
    if not wanted:
        near = difflib.get_close_matches(name, [*(place.name for place in bundles), *MODELS, *PARTS], n=1)
        hint = f"Did you mean {near[0]}?" if near else "See 'virnucpro models list'."
        raise ModelError(f"there is no model {name!r}. {hint}")
    missing = [place.name for place in wanted if not place.files]
    if missing and not may_be_empty:
        raise ModelError(
            f"model {name}: {', '.join(missing)} is not in {downloads_dir()}. Fetch it with 'virnucpro models fetch "
            f"{name}', or bring it in an archive: 'virnucpro models import FILE'."
        )
    return wanted


def places_here() -> list[Place]:
    """Every folder that holds something: bundles, then checkpoints."""
    return [*_bundles(), *(place for place in map(_part_place, PARTS.values()) if place.files)]


def verify(place: Place) -> list[Problem]:
    """Compare a folder with its record, and a bundle with its own rules.

    Raises:
        ModelError: its record cannot be read.
    """
    receipt = read_receipt(place.folder)
    if receipt is None:
        command = f"virnucpro models record {place.name if place.part else place.folder}"
        return [Problem(place.folder, f"has no {RECEIPT} to check against. Make one of what is there: {command}")]
    problems = receipt.problems(place.folder)
    if place.part is None and not problems:
        try:
            fingerprint = load_bundle(str(place.folder)).fingerprint
        except ModelError as error:
            return [Problem(place.folder, f"is not an intact bundle: {error}")]
        if fingerprint != receipt.fingerprint:
            return [Problem(place.folder, f"has fingerprint {fingerprint}, recorded is {receipt.fingerprint}")]
    return problems


def describe(place: Place) -> Receipt:
    """What is in a folder now: the SHA-256 of every file, with sources and licence as its record has them.

    Raises:
        ModelError: it holds no file, is not a sound bundle, or its record cannot be read.
    """
    known, files = read_receipt(place.folder), []
    for path in place.files:
        now = record_file(path, "unknown", "nothing: recorded as it was found")
        before = known.file(path.name) if known is not None else None
        files.append(before if before is not None and before.sha256 == now.sha256 else now)
    if not files:
        raise ModelError(f"{place.folder}: holds no file to record.")
    fingerprint = None if place.part else load_bundle(str(place.folder)).fingerprint
    return Receipt(place.name, known.licence if known is not None else place.licence, fingerprint, tuple(files))


def place_to_record(name: str) -> Place:
    """The folder of a name that stands for one.

    Raises:
        ModelError: it stands for several, or nothing of that name is here.
    """
    places = places_of(name, may_be_empty=name in PARTS)
    if len(places) != 1:
        raise ModelError(f"{name} is several checkpoints: record {', '.join(place.name for place in places)} by name.")
    return places[0]


def found_elsewhere(part: Part) -> Path | None:
    """A checkpoint that another program brought: in a cache of the hub or of torch, or loose in ours."""
    try:
        found = find_checkpoint(part.name)
    except ModelError:
        return None
    return None if found.is_relative_to(downloads_dir() / part.name) else found


def _bundles() -> list[Place]:
    there = sorted(path.parent for path in bundles_dir().glob("*/bundle.yaml"))
    return [
        *(Place(name, find_bundle(name)) for name in BUNDLED),
        *(Place(folder.name, folder) for folder in there if folder.name not in BUNDLED),
    ]


def _part_place(part: Part) -> Place:
    return Place(part.name, downloads_dir() / part.name, part)


def _bundle_entry(place: Place) -> Entry:
    receipt, files = _receipt(place.folder), place.files
    size_bytes, is_bundled = sum(path.stat().st_size for path in files), place.name in BUNDLED
    state: State = "bundled" if is_bundled else "here"
    fingerprint = receipt.fingerprint if receipt is not None else None
    if receipt is not None and receipt.problems(place.folder, reads_content=False):
        state = "incomplete"
    elif receipt is None and size_bytes <= _LARGEST_HASHED_BYTES:
        try:
            fingerprint = load_bundle(str(place.folder)).fingerprint
        except ModelError:
            state = "incomplete"
    sources = {file.source for file in receipt.files} - {"unknown"} if receipt is not None else set()
    return Entry(
        name=place.name,
        kind="bundle",
        state=state,
        size_bytes=size_bytes,
        size_is_exact=True,
        fingerprint=fingerprint,
        licence=receipt.licence if receipt is not None else place.licence,
        parts=tuple(path.name for path in files),
        source="this program" if is_bundled else "; ".join(sorted(sources)) or "unknown",
        where=place.folder,
    )


def _model_entry(name: str) -> Entry:
    parts = [_part_entry(part) for part in parts_of(name)]
    states = {entry.state for entry in parts}
    return Entry(
        name=name,
        kind="published model",
        state="here" if states <= {"here", "elsewhere"} else "not here" if states == {"not here"} else "incomplete",
        size_bytes=sum(entry.size_bytes for entry in parts),
        size_is_exact=all(entry.size_is_exact for entry in parts),
        fingerprint=None,
        licence=", ".join(dict.fromkeys(entry.licence for entry in parts)),
        parts=MODELS[name],
        source="its parts",
        where=downloads_dir() if states == {"here"} else None,
    )


def _part_entry(part: Part) -> Entry:
    place = _part_place(part)
    receipt = _receipt(place.folder)
    is_here = receipt is not None and not receipt.problems(place.folder, reads_content=False)
    where = place.folder if is_here else found_elsewhere(part)
    is_begun = place.folder.is_dir() and any(place.folder.iterdir())
    return Entry(
        name=part.name,
        kind="checkpoint",
        state="here" if is_here else "elsewhere" if where else "incomplete" if is_begun else "not here",
        size_bytes=receipt.size_bytes if receipt is not None and is_here else part.about_bytes,
        size_is_exact=is_here,
        fingerprint=None,
        licence=part.licence,
        parts=tuple(path.name for path in place.files),
        source=part.addresses,
        where=where,
    )


def _receipt(folder: Path) -> Receipt | None:
    """For a listing, a damaged record is as good as none; ``verify`` says more."""
    try:
        return read_receipt(folder)
    except ModelError:
        return None
