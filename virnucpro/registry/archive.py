"""One file that carries models to a machine without a network: a plain tar with a manifest first.

::

    manifest.json                     {"schema": 1, "program": "virnucpro", "folders": [...]}
    bundles/<name>/<file> ...
    downloads/<part>/<file> ...

A folder's entry in the manifest is its receipt without the date, and its place in the cache. The same models give the
same bytes. An archive may come from anybody: every name, kind, size and SHA-256 is checked before anything takes its
place, and a file that is here and good is never replaced by another.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

from virnucpro import stored_json
from virnucpro.atomic import atomic_write, file_digest
from virnucpro.bundles.bundle import BUNDLED, cache_dir, load_bundle
from virnucpro.errors import DiskFullError, ModelError, ResourceError, StoreError, UsageError
from virnucpro.progress import Advance, Reporter
from virnucpro.registry.inventory import Place, check_room, places_of, sound_receipt
from virnucpro.registry.receipts import FILE_NAME, RECEIPT, FileRecord, Receipt, read_receipt, write_receipt
from virnucpro.stored_json import Limits

MANIFEST = "manifest.json"

_MAX_MANIFEST_BYTES = 4 << 20
_MAX_FILES = 10_000


@dataclass(frozen=True, kw_only=True)
class Folder(Receipt):
    """A folder of an archive: its receipt, and its place in the cache, ``bundles/<name>`` or ``downloads/<part>``."""

    place: Annotated[str, Limits(pattern=rf"^(bundles|downloads)/{FILE_NAME.pattern}\Z")]

    def member(self, file: FileRecord) -> str:
        """Name of a file in the archive."""
        return f"{self.place}/{file.name}"

    def receipt(self) -> Receipt:
        """What the folder will hold."""
        return Receipt(self.name, self.licence, self.fingerprint, self.files)


@dataclass(frozen=True)
class Manifest:
    """First file of an archive."""

    folders: tuple[Folder, ...]
    program: str = "virnucpro"
    schema: Literal[1] = 1


@dataclass(frozen=True)
class Imported:
    """What an import did."""

    folder: Path  # where a model is now
    num_new: int  # files that came
    num_here: int  # files that were here already


def export_archive(names: Sequence[str], target: Path, reporter: Reporter, *, force: bool = False) -> list[Folder]:
    """Write an archive of models.

    Args:
        names: as ``places_of`` takes them.
        target: the archive.
        reporter: progress.
        force: replace a file that is there.

    Raises:
        ModelError: a model is not here, or is damaged.
        UsageError: the target is there.
        DiskFullError: no space is left.
    """
    if target.exists() and not force:
        raise UsageError(f"{target} is there already. Name another file, or replace it with --force.")
    places = {place.folder.resolve(): place for name in names for place in places_of(name)}
    packed = sorted(((_pack(place), place.folder) for place in places.values()), key=lambda item: item[0].place)
    folders = [folder for folder, _ in packed]
    if len({folder.place.casefold() for folder in folders}) < len(folders):
        raise UsageError("two of these models have folders of the same name: export them to two files.")
    manifest = asdict(Manifest(tuple(folders)))
    text = (json.dumps(manifest, indent=1, ensure_ascii=True, sort_keys=True) + "\n").encode()
    try:
        with (
            atomic_write(target) as temporary,
            tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar,
            reporter.stage("export", sum(folder.size_bytes for folder in folders), "bytes") as advance,
        ):
            tar.addfile(_tar_entry(MANIFEST, len(text)), io.BytesIO(text))
            for folder, here in packed:
                for file in folder.files:
                    with (here / file.name).open("rb") as stream:
                        tar.addfile(_tar_entry(folder.member(file), file.size_bytes), stream)
                    advance(file.size_bytes)
    except OSError as error:
        raise UsageError(f"{target}: cannot be written ({error.strerror or error}).") from error
    return folders


def import_archive(archive: Path, reporter: Reporter) -> list[Imported]:
    """Bring the models of an archive into the cache; all of them, or nothing.

    Raises:
        ModelError: it is no such archive, it is damaged, it holds what it must not, or another file is in its place.
        ResourceError: the disk is too small.
    """
    cache = cache_dir()
    try:
        with archive.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            folders = _read_manifest(archive, tar)
            members = _check_members(archive, tar, folders)
            new = {folder.place: _missing(archive, folder, cache / folder.place) for folder in folders}
            check_room(cache, sum(file.size_bytes for files in new.values() for file in files))
            num_bytes = sum(folder.size_bytes for folder in folders)
            with (
                _staging(cache) as name,  # in the cache, so that moving out of it is a renaming
                reporter.stage("import", num_bytes, "bytes") as advance,
            ):
                staged = Path(name)
                for folder in folders:
                    _unpack(archive, tar, members, folder, staged, advance)
                for folder in folders:
                    _check_bundle(archive, folder, staged)
                return [_put(folder, new[folder.place], staged, cache) for folder in folders]
    except (tarfile.TarError, EOFError, OverflowError, UnicodeError) as error:
        raise ModelError(f"{archive}: is not an archive of models, or is damaged ({error}). Bring it again.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(cache) from error
        raise ModelError(f"{error.filename or archive}: {error.strerror or error}.") from error


def _pack(place: Place) -> Folder:
    receipt = replace(sound_receipt(place), date="")
    if place.kind == "checkpoint":
        return Folder(place=f"downloads/{place.name}", **vars(receipt))
    if not FILE_NAME.fullmatch(place.name):
        raise UsageError(f"{place.folder}: rename the folder to letters, digits, '.', '_' and '-' to export it.")
    # A bundled model of another release must not stand in for the one of this program.
    name = f"{place.name}-{str(receipt.fingerprint)[:8]}" if place.name in BUNDLED else place.name
    return Folder(place=f"bundles/{name}", **vars(receipt))


def _tar_entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = size
    entry.mode = 0o644
    return entry


def _read_manifest(archive: Path, tar: tarfile.TarFile) -> tuple[Folder, ...]:
    first = tar.next()
    if first is None or first.name != MANIFEST or not first.isreg() or first.size > _MAX_MANIFEST_BYTES:
        raise ModelError(f"{archive}: is not an archive of models: {MANIFEST} is not its first file.")
    stream = tar.extractfile(first)
    try:
        folders = stored_json.decode(stream.read() if stream is not None else b"", Manifest, archive).folders
        for folder in folders:
            folder.check(archive)
    except StoreError as error:
        raise ModelError(f"{archive}: its {MANIFEST} {error.problem}. Nothing was changed.") from error
    if any(folder.file(RECEIPT) is not None for folder in folders):
        raise ModelError(f"{archive}: brings a {RECEIPT} of its own. Nothing was changed.")
    if len({folder.place.casefold() for folder in folders}) < len(folders):
        raise ModelError(f"{archive}: names a folder twice.")
    return folders


def _check_members(archive: Path, tar: tarfile.TarFile, folders: Sequence[Folder]) -> dict[str, tarfile.TarInfo]:
    """Compare every header with the manifest; nothing is written yet."""
    wanted = {folder.member(file): file for folder in folders for file in folder.files}
    if len(wanted) > _MAX_FILES:
        raise ModelError(f"{archive}: names {len(wanted):,} files, which no set of models has.")
    found: dict[str, tarfile.TarInfo] = {}
    while (member := tar.next()) is not None:
        problem = None
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
            problem = "is not a plain file"
        elif member.name not in wanted:
            problem = f"is not in its {MANIFEST}"
        elif member.name in found:
            problem = "is in it twice"
        elif member.size != wanted[member.name].size_bytes:
            problem = f"has {member.size:,} bytes, its {MANIFEST} says {wanted[member.name].size_bytes:,}"
        if problem is not None:
            raise ModelError(f"{archive}: refused: {member.name!r} {problem}. Nothing was changed.")
        found[member.name] = member
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise ModelError(f"{archive}: {missing[0]} is missing from it ({len(missing)} in all). Bring it again.")
    return found


def _missing(archive: Path, packed: Folder, folder: Path) -> list[FileRecord]:
    """Files of the archive that are not here, or are damaged by their own record.

    Raises:
        ModelError: another file is in the place of one of the archive.
    """
    if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
        raise ModelError(f"{folder}: is not a folder. Move it away, then import again.")
    recorded = read_receipt(folder)
    new = []
    for file in packed.files:
        path = folder / file.name
        if path.is_file() and file_digest(path) == file.sha256:
            continue
        if path.exists() or path.is_symlink():
            before = recorded.file(file.name) if recorded is not None else None
            if before is None or before.sha256 != file.sha256 or not path.is_file():
                raise ModelError(
                    f"{archive}: {path} is here and is another file than the archive's. Nothing was changed: "
                    f"move {folder} away to take the archive's."
                )
        new.append(file)
    return new


def _staging(cache: Path) -> TemporaryDirectory[str]:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        return TemporaryDirectory(prefix=".import-", dir=cache, ignore_cleanup_errors=True)
    except OSError as error:
        raise ResourceError(f"{cache}: cannot be written to ({error.strerror}). Set VIRNUCPRO_CACHE.") from error


def _unpack(
    archive: Path,
    tar: tarfile.TarFile,
    members: Mapping[str, tarfile.TarInfo],
    folder: Folder,
    staged: Path,
    advance: Advance,
) -> None:
    """Stage every file of a folder and check its SHA-256."""
    (staged / folder.place).mkdir(parents=True)
    for file in folder.files:
        name = folder.member(file)
        source = tar.extractfile(members[name])
        with (staged / name).open("xb") as stream:
            if source is not None:
                shutil.copyfileobj(source, stream)
            stream.flush()
            os.fsync(stream.fileno())
        if (digest := file_digest(staged / name)) != file.sha256:
            raise ModelError(
                f"{archive}: {name} has SHA-256 {digest}, its {MANIFEST} says {file.sha256}. "
                "Nothing was changed. Bring the archive again."
            )
        advance(file.size_bytes)


def _check_bundle(archive: Path, packed: Folder, staged: Path) -> None:
    """A bundle must load from the files of the archive alone, with the fingerprint it claims."""
    if not packed.place.startswith("bundles/"):
        return
    folder = staged / packed.place
    try:
        fingerprint = load_bundle(str(folder)).fingerprint
    except ModelError as error:
        text = str(error).replace(f"{folder}{os.sep}", "")
        raise ModelError(f"{archive}: {packed.place} is not an intact bundle: {text}") from error
    if fingerprint != packed.fingerprint:
        raise ModelError(
            f"{archive}: {packed.place} has fingerprint {fingerprint}, its {MANIFEST} says {packed.fingerprint}. "
            "Nothing was changed."
        )


def _put(packed: Folder, new: Sequence[FileRecord], staged: Path, cache: Path) -> Imported:
    """Move what is new into its place; the record last."""
    folder = cache / packed.place
    folder.mkdir(parents=True, exist_ok=True)
    for file in new:
        (staged / packed.member(file)).replace(folder / file.name)
    if new or read_receipt(folder) is None:
        write_receipt(folder, packed.receipt())
    return Imported(folder, len(new), len(packed.files) - len(new))
