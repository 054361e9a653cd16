"""What is there: bundles and checkpoints, by name, with their records."""

from __future__ import annotations

import difflib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from virnucpro.bundles.bundle import BUNDLED, cache_dir, find_bundle, load_bundle
from virnucpro.bundles.checkpoints import find_checkpoint
from virnucpro.errors import ModelError, ResourceError
from virnucpro.registry.catalogue import MODELS, PARTS, HubSource, Part
from virnucpro.registry.receipts import (
    FILE_NAME,
    RECEIPT,
    Problem,
    Receipt,
    check_files,
    looks_complete,
    read_receipt,
    record_file,
    write_receipt,
)

State = Literal["bundled", "here", "elsewhere", "incomplete", "not here"]

_LARGEST_HASHED_BYTES = 1 << 30
"""A listing does not read more than this of a bundle to learn its fingerprint."""

_IN_PROGRESS = re.compile(r".*\.part(\.json)?|\..*")


@dataclass(frozen=True)
class Place:
    """A folder that holds, or would hold, a model or a part of one."""

    name: str  # as users give it
    kind: Literal["bundle", "checkpoint"]  # a bundle, or a released checkpoint
    folder: Path  # where
    part: Part | None = None  # its entry in the catalogue, for a checkpoint


@dataclass(frozen=True)
class Entry:
    """A line of the listing."""

    name: str  # of the model, bundle or checkpoint
    # bundle, checkpoint, or published model (checkpoints, perhaps not yet a bundle)
    kind: Literal["bundle", "checkpoint", "published model"]
    state: State  # bundled, here, elsewhere (in a cache of the hub or of torch), incomplete or not here
    size_bytes: int  # of what is there, else of what would come
    size_is_exact: bool  # false for what would come
    fingerprint: str | None  # of a bundle; None where there is none, or where it would take long to find out
    licence: str  # SPDX identifier, or unknown
    parts: tuple[str, ...]  # of a published model; roles and files of a bundle
    source: str  # where it comes from
    where: Path | None  # its folder; None where it is not here


def bundles_dir() -> Path:
    """Where bundles are that did not come with the program."""
    return cache_dir() / "bundles"


def downloads_dir() -> Path:
    """Where fetched checkpoints are."""
    return cache_dir() / "downloads"


def check_room(folder: Path, size_bytes: int) -> None:
    """Refuse before the first byte what the disk of ``folder`` cannot hold.

    Raises:
        ResourceError: it cannot.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    if size_bytes > free:
        raise ResourceError(
            f"{folder}: {size_bytes:,} bytes are to come, {free:,} are free. "
            "Free some space, or set VIRNUCPRO_CACHE to another place."
        )


def list_entries() -> list[Entry]:
    """Everything that is here, then everything that could be."""
    return [
        *(_bundle_entry(place) for place in _bundles()),
        *(_model_entry(name) for name in MODELS if not (bundles_dir() / name / "bundle.yaml").is_file()),
        *(_part_entry(part) for part in PARTS.values()),
    ]


def places_of(name: str) -> list[Place]:
    """The folders behind a name, those that are here only.

    Args:
        name: a bundle, a published model, a checkpoint, or the path of a bundle folder.

    Returns:
        the bundle where there is one; else the checkpoints of that name or model.

    Raises:
        ModelError: nothing has this name, or nothing of it is here.
    """
    if "/" in name or name in (".", ".."):
        folder = Path(name)
        if not (folder / "bundle.yaml").is_file():
            raise ModelError(f"{name}: is not a bundle folder (bundle.yaml is missing).")
        return [Place(folder.resolve().name, "bundle", folder)]
    bundle = next((place for place in _bundles() if place.name == name), None)
    if bundle is not None:
        return [bundle]
    wanted = [_part_place(PARTS[part]) for part in MODELS.get(name, (name,) if name in PARTS else ())]
    if not wanted:
        raise ModelError(_unknown(name))
    missing = [place.name for place in wanted if not _files(place.folder)]
    if missing:
        raise ModelError(
            f"model {name}: {', '.join(missing)} is not in {downloads_dir()}. Fetch it with 'virnucpro models fetch "
            f"{name}', or bring it in an archive: 'virnucpro models import FILE'."
        )
    return wanted


def places_here() -> list[Place]:
    """Every folder that holds something: bundles, then checkpoints."""
    checkpoints = [_part_place(part) for part in PARTS.values()]
    return [*_bundles(), *(place for place in checkpoints if _files(place.folder))]


def verify(place: Place) -> list[Problem]:
    """Hold a folder against its record, and a bundle against its own rules.

    Raises:
        ModelError: its record cannot be read.
    """
    receipt = read_receipt(place.folder)
    if receipt is None:
        command = f"virnucpro models record {place.name if place.kind == 'checkpoint' else place.folder}"
        return [Problem(place.folder, f"has no {RECEIPT} to check against. Make one of what is there: {command}")]
    problems = check_files(place.folder, receipt)
    if place.kind == "bundle" and not problems:
        try:
            fingerprint = load_bundle(str(place.folder)).fingerprint
        except ModelError as error:
            return [Problem(place.folder, f"is not an intact bundle: {error}")]
        if fingerprint != receipt.fingerprint:
            problems.append(Problem(place.folder, f"has fingerprint {fingerprint}, recorded is {receipt.fingerprint}"))
    return problems


def record(place: Place) -> Receipt:
    """Write the record of what is in a folder now: the SHA-256 of every file.

    Raises:
        ModelError: it holds no file, or is no sound bundle.
    """
    receipt = _describe(place, read_receipt(place.folder))
    if not receipt.files:
        raise ModelError(f"{place.folder}: holds no file to record.")
    write_receipt(place.folder, receipt)
    return receipt


def _describe(place: Place, known: Receipt | None) -> Receipt:
    """What is in a folder now, with sources and licence as ``known`` has them."""
    files = []
    for path in _files(place.folder):
        now = record_file(path, "unknown", "nothing: recorded as it was found")
        before = known.file(path.name) if known is not None else None
        files.append(before if before is not None and before.sha256 == now.sha256 else now)
    fingerprint = load_bundle(str(place.folder)).fingerprint if place.kind == "bundle" else None
    licence = known.licence if known is not None else _licence(place)
    return Receipt(place.name, licence, fingerprint, tuple(files))


def sound_receipt(place: Place) -> Receipt:
    """What an archive of this folder holds: its record, just held against the files, else what is there now.

    Raises:
        ModelError: a file is not what its record says, or it is no sound bundle.
    """
    receipt = read_receipt(place.folder)
    if receipt is None:
        return _describe(place, None)
    problems = verify(place)
    if problems:
        raise ModelError("; ".join(map(str, problems)))
    return receipt


def found_elsewhere(part: Part) -> Path | None:
    """A checkpoint that another program brought: in a cache of the hub or of torch, or loose in ours."""
    try:
        found = find_checkpoint(part.name)
    except ModelError:
        return None
    return None if found.is_relative_to(downloads_dir() / part.name) else found


def place_to_record(name: str) -> Place:
    """A folder that ``record`` may describe, with or without a record so far.

    Raises:
        ModelError: nothing of that name is here.
    """
    if name in PARTS and name not in MODELS:
        return _part_place(PARTS[name])
    places = places_of(name)
    if len(places) != 1:
        raise ModelError(f"{name} is several checkpoints: record {', '.join(place.name for place in places)} by name.")
    return places[0]


def _bundles() -> list[Place]:
    there = sorted(path.parent for path in bundles_dir().glob("*/bundle.yaml"))
    return [
        *(Place(name, "bundle", find_bundle(name)) for name in BUNDLED),
        *(Place(folder.name, "bundle", folder) for folder in there if folder.name not in BUNDLED),
    ]


def _part_place(part: Part) -> Place:
    return Place(part.name, "checkpoint", downloads_dir() / part.name, part)


def _files(folder: Path) -> list[Path]:
    """Files of a model folder, by name: no record, nothing hidden, nothing half fetched, no prose."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file()
        and path.name != RECEIPT
        and path.suffix != ".md"
        and FILE_NAME.fullmatch(path.name)
        and not _IN_PROGRESS.fullmatch(path.name)
    )


def _licence(place: Place) -> str:
    if place.part is not None:
        return place.part.licence
    return "MIT" if place.name in BUNDLED or place.folder.resolve() == find_bundle("lite").resolve() else "unknown"


def _bundle_entry(place: Place) -> Entry:
    receipt = _receipt(place.folder)
    files = _files(place.folder)
    size = sum(path.stat().st_size for path in files)
    bundled = place.name in BUNDLED
    fingerprint = receipt.fingerprint if receipt is not None else None
    state: State = "bundled" if bundled else "here"
    try:
        if receipt is None and size <= _LARGEST_HASHED_BYTES:
            fingerprint = load_bundle(str(place.folder)).fingerprint
        elif receipt is not None and not looks_complete(place.folder, receipt):
            state = "incomplete"
    except ModelError:
        state = "incomplete"
    sources = {file.source for file in receipt.files} - {"unknown"} if receipt is not None else set()
    return Entry(
        name=place.name,
        kind="bundle",
        state=state,
        size_bytes=size,
        size_is_exact=True,
        fingerprint=fingerprint,
        licence=receipt.licence if receipt is not None else _licence(place),
        parts=tuple(path.name for path in files),
        source="this program" if bundled else "; ".join(sorted(sources)) or "unknown",
        where=place.folder,
    )


def _model_entry(name: str) -> Entry:
    parts = [_part_entry(PARTS[part]) for part in MODELS[name]]
    states = {entry.state for entry in parts}
    return Entry(
        name=name,
        kind="published model",
        state="here" if states <= {"here", "elsewhere"} else "not here" if states == {"not here"} else "incomplete",
        size_bytes=sum(entry.size_bytes for entry in parts),
        size_is_exact=all(entry.size_is_exact for entry in parts),
        fingerprint=None,
        licence=", ".join(dict.fromkeys(entry.licence for entry in parts)),
        parts=tuple(MODELS[name]),
        source="its parts",
        where=downloads_dir() if states == {"here"} else None,
    )


def _part_entry(part: Part) -> Entry:
    folder = downloads_dir() / part.name
    receipt = _receipt(folder)
    where: Path | None = folder
    state: State = "here"
    if receipt is None or not looks_complete(folder, receipt):
        where = found_elsewhere(part)
        is_begun = folder.is_dir() and any(folder.iterdir())
        state = "elsewhere" if where is not None else "incomplete" if is_begun else "not here"
    exact = receipt.size_bytes if receipt is not None and state == "here" else None
    sources: list[str] = [source.repo if isinstance(source, HubSource) else source.url for source in part.sources]
    return Entry(
        name=part.name,
        kind="checkpoint",
        state=state,
        size_bytes=part.about_bytes if exact is None else exact,
        size_is_exact=exact is not None,
        fingerprint=None,
        licence=part.licence,
        parts=tuple(path.name for path in _files(folder)),
        source="; or ".join(sources),
        where=where,
    )


def _receipt(folder: Path) -> Receipt | None:
    """For a listing, a damaged record is as good as none; ``verify`` says more."""
    try:
        return read_receipt(folder)
    except ModelError:
        return None


def _unknown(name: str) -> str:
    known = [*(place.name for place in _bundles()), *MODELS, *PARTS]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]}?" if near else " See 'virnucpro models list'."
    return f"there is no model {name!r}.{hint}"
