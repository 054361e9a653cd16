"""One file that carries models to a machine without a network: a plain tar of model folders, each with its receipt.

::

    bundles/<name>/receipt.json     first in its folder
    bundles/<name>/<file> ...
    downloads/<part>/receipt.json
    downloads/<part>/<file> ...

Receipts are without a date: the same models give the same bytes. An archive may come from anybody: its folders are
unpacked next to the cache's own and checked like any model (``inventory.verify``) before anything takes its place, and
a file that is here and good is never replaced by another.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, cast

from virnucpro import stored_json
from virnucpro.atomic import atomic_write
from virnucpro.bundles.bundle import BUNDLED, cache_dir
from virnucpro.bundles.catalogue import PARTS
from virnucpro.errors import ModelError, StoreError, UsageError
from virnucpro.progress import Reporter
from virnucpro.registry.inventory import ROOM_REMEDY, Place, cache_errors, describe, places_of, verify
from virnucpro.registry.receipts import FILE_NAME, RECEIPT, FileRecord, Receipt, read_receipt, write_receipt
from virnucpro.resources import check_room

_MEMBER = re.compile(rf"((bundles|downloads)/{FILE_NAME.pattern})/({FILE_NAME.pattern})")
_MAX_FILES = 10_000


@dataclass(frozen=True)
class Exported:
    """A folder of an archive."""

    place: str  # in the cache, ``bundles/<name>`` or ``downloads/<part>``
    folder: Path  # where it was read
    receipt: Receipt  # of what it holds, without a date


@dataclass(frozen=True)
class Imported:
    """What an import did."""

    folder: Path  # where a model is now
    num_new: int  # files that came
    num_here: int  # files that were here already


def export_archive(names: Sequence[str], target: Path, reporter: Reporter, *, force: bool = False) -> list[Exported]:
    """Write an archive of models.

    Args:
        names: as ``places_of`` takes them.
        target: the archive.
        reporter: progress.
        force: replace a file that is there.

    Raises:
        ModelError: a model is not here, or is damaged.
        UsageError: the target is there, or two folders would have one name.
        PlaceError: the target cannot be written, for want of space or the like.
    """
    if target.exists() and not force:
        raise UsageError(f"{target} is there already. Name another file, or replace it with --force.")
    places = {place.folder.resolve(): place for name in names for place in places_of(name)}
    folders = sorted(map(_sound, places.values()), key=lambda folder: folder.place)
    if len({folder.place.casefold() for folder in folders}) < len(folders):
        raise UsageError("two of these models have folders of the same name: export them to two files.")
    num_bytes = sum(folder.receipt.size_bytes for folder in folders)
    with (
        atomic_write(target) as temporary,
        tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar,
        reporter.stage("export", num_bytes, "bytes") as advance,
    ):
        for folder in folders:
            text = (json.dumps(asdict(folder.receipt), indent=1, sort_keys=True) + "\n").encode()
            tar.addfile(_member(f"{folder.place}/{RECEIPT}", len(text)), io.BytesIO(text))
            for file in folder.receipt.files:
                with (folder.folder / file.name).open("rb") as stream:
                    tar.addfile(_member(f"{folder.place}/{file.name}", file.size_bytes), stream)
                advance(file.size_bytes)
    return folders


def import_archive(archive: Path, reporter: Reporter) -> list[Imported]:
    """Bring the models of an archive into the cache; all of them, or nothing.

    Raises:
        ModelError: it is not such an archive, it is damaged, holds what it must not, or another file is in its place.
        ResourceError: the disk is too small.
    """
    cache = cache_dir()
    try:
        with archive.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            members = _checked_members(tar)
            check_room(cache, sum(member.size for member in members), ROOM_REMEDY)
            with cache_errors(cache):
                return _unpack(tar, members, cache, reporter)
    except ModelError as error:
        raise ModelError(f"{archive}: refused, nothing was changed: {error}") from error
    except (tarfile.TarError, EOFError, OverflowError, ValueError) as error:
        raise ModelError(f"{archive}: is not an archive of models, or is damaged ({error}). Bring it again.") from error
    except OSError as error:
        raise ModelError(f"{error.filename or archive}: {error.strerror or error}.") from error


def _sound(place: Place) -> Exported:
    """What an archive says of a folder: its record, just compared with the files, else what is there now."""
    receipt = read_receipt(place.folder)
    if receipt is None:
        receipt = describe(place)
    elif problems := verify(place):
        raise ModelError("; ".join(map(str, problems)))
    receipt = replace(receipt, date="")
    if place.part is not None:
        return Exported(f"downloads/{place.name}", place.folder, receipt)
    if not FILE_NAME.fullmatch(place.name):
        raise UsageError(f"{place.folder}: rename the folder to letters, digits, '.', '_' and '-' to export it.")
    # A bundled model of another release must not stand in for the one of this program.
    name = f"{place.name}-{str(receipt.fingerprint)[:8]}" if place.name in BUNDLED else place.name
    return Exported(f"bundles/{name}", place.folder, receipt)


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    return member


def _checked_members(tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """Every header; nothing is written yet."""
    members: dict[str, tarfile.TarInfo] = {}
    while (member := tar.next()) is not None:
        problem = None
        if not member.isreg() or member.issparse() or member.size < 0:
            problem = "is not a plain file"
        elif not _MEMBER.fullmatch(member.name):
            problem = "is not a file of a model"
        elif member.name.casefold() in members:
            problem = "is in it twice"
        elif len(members) == _MAX_FILES:
            problem = f"is one more file than the {_MAX_FILES:,} that a set of models may have"
        if problem is not None:
            raise ModelError(f"{member.name!r} {problem}")
        members[member.name.casefold()] = member
    if not members:
        raise ModelError("it holds no model")
    return list(members.values())


def _unpack(
    tar: tarfile.TarFile, members: Sequence[tarfile.TarInfo], cache: Path, reporter: Reporter
) -> list[Imported]:
    """Unpack into a folder of the cache, so that moving out of it is a renaming; check; then move what is new."""
    cache.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory(prefix=".import-", dir=cache, ignore_cleanup_errors=True) as name,
        reporter.stage("import", sum(member.size for member in members), "bytes") as advance,
    ):
        staged = Path(name)
        for member in members:
            path = staged / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            with cast("IO[bytes]", tar.extractfile(member)) as source, path.open("wb") as target:  # it is a plain file
                shutil.copyfileobj(source, target)
            advance(member.size)
        arrived = {folder: _checked(folder, staged) for folder in sorted(staged.glob("*/*"))}
        places = {folder: cache / folder.relative_to(staged) for folder in arrived}
        new = {folder: _missing(receipt, places[folder]) for folder, receipt in arrived.items()}
        return [_put(folder, receipt, new[folder], places[folder]) for folder, receipt in arrived.items()]


def _checked(folder: Path, staged: Path) -> Receipt:
    """The receipt of a folder that was unpacked, once the folder is known to hold just what it says."""
    name = folder.relative_to(staged).as_posix()
    part = PARTS.get(folder.name)
    try:
        receipt = stored_json.read(folder / RECEIPT, Receipt)
    except (FileNotFoundError, StoreError) as error:
        raise ModelError(f"{name}/{RECEIPT} {getattr(error, 'problem', 'is missing')}") from error
    if name.startswith("bundles/"):
        part = None
    elif part is None:
        raise ModelError(f"{name} is not a checkpoint that this program knows")
    problems = [str(problem) for problem in verify(Place(folder.name, folder, part))]
    if sorted(path.name for path in folder.iterdir()) != sorted([RECEIPT, *(file.name for file in receipt.files)]):
        problems.append(f"{name} holds other files than its {RECEIPT} names")
    if problems:
        raise ModelError(problems[0].replace(f"{staged}{os.sep}", ""))
    return receipt


def _missing(receipt: Receipt, folder: Path) -> list[FileRecord]:
    """Files that are not here, or are damaged by their own record.

    Raises:
        ModelError: another file is in the place of one of them.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise ModelError(f"{folder} is not a folder. Move it away, then import again")
    recorded = read_receipt(folder)
    new = [file for file in receipt.files if file.problem(folder) is not None]
    for file in new:
        path, before = folder / file.name, recorded.file(file.name) if recorded is not None else None
        is_damaged = path.is_file() and before is not None and before.sha256 == file.sha256
        if os.path.lexists(path) and not is_damaged:
            raise ModelError(f"{path} is another file than the archive's. To take the archive's, move {folder} away")
    return new


def _put(staged: Path, receipt: Receipt, new: Sequence[FileRecord], folder: Path) -> Imported:
    """Move what is new into its place; the record last."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in new:
        (staged / file.name).replace(folder / file.name)
    if new or read_receipt(folder) is None:
        write_receipt(folder, receipt)
    return Imported(folder, len(new), len(receipt.files) - len(new))
