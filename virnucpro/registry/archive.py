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
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import yaml

from virnucpro import stored_json
from virnucpro.bundles.bundle import BUNDLED, cache_dir, load_bundle
from virnucpro.errors import DiskFullError, ModelError, ResourceError, StoreError, UsageError
from virnucpro.progress import Advance, Reporter
from virnucpro.registry.inventory import Place, places_of, sound_receipt
from virnucpro.registry.receipts import (
    FILE_NAME,
    RECEIPT,
    FileRecord,
    Receipt,
    read_receipt,
    write_receipt,
)
from virnucpro.run_dir import atomic_write, file_digest
from virnucpro.stored_json import Limits

MANIFEST = "manifest.json"

_MAX_MANIFEST_BYTES = 4 << 20
_MAX_FILES = 10_000
_BLOCK_BYTES = 1 << 20
_STAGING = ".import-"


@dataclass(frozen=True)
class Packed:
    """A folder in an archive."""

    place: str  # its path in the cache, ``bundles/<name>`` or ``downloads/<part>``
    receipt: Receipt  # what it holds

    def member(self, file: FileRecord) -> str:
        """Name of a file in the archive."""
        return f"{self.place}/{file.name}"


@dataclass(frozen=True, kw_only=True)
class Folder(Receipt):
    """A folder as the manifest has it."""

    place: Annotated[str, Limits(pattern=rf"^(bundles|downloads)/{FILE_NAME.pattern}\Z")]  # see ``Packed``


@dataclass(frozen=True)
class Manifest:
    """First file of an archive."""

    folders: tuple[Folder, ...]  # that it holds
    program: str = "virnucpro"  # that wrote it
    schema: Literal[1] = 1  # of the archive


@dataclass(frozen=True)
class Imported:
    """What an import did."""

    folder: Path  # where a model is now
    num_new: int  # files that came
    num_here: int  # files that were here already


def export_archive(names: Sequence[str], target: Path, reporter: Reporter, *, force: bool = False) -> list[Packed]:
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
    folders = {place.folder.resolve(): place for name in names for place in places_of(name)}
    packed = [(_pack(place), place.folder) for place in folders.values()]
    packed.sort(key=lambda item: item[0].place)
    if len({item.place.casefold() for item, _ in packed}) < len(packed):
        raise UsageError("two of these models have folders of the same name: export them to two files.")
    manifest = _manifest([item for item, _ in packed])
    total = sum(item.receipt.size_bytes for item, _ in packed)
    try:
        with (
            atomic_write(target) as temporary,
            tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar,
            reporter.stage("export", total, "bytes") as advance,
        ):
            tar.addfile(_tar_entry(MANIFEST, len(manifest)), io.BytesIO(manifest))
            for item, folder in packed:
                for file in item.receipt.files:
                    with (folder / file.name).open("rb") as stream:
                        tar.addfile(_tar_entry(item.member(file), file.size_bytes), stream)
                    advance(file.size_bytes)
    except OSError as error:
        raise UsageError(f"{target}: cannot be written ({error.strerror or error}).") from error
    return [item for item, _ in packed]


def import_archive(archive: Path, reporter: Reporter) -> list[Imported]:
    """Bring the models of an archive into the cache; all of them, or nothing.

    Raises:
        ModelError: it is no such archive, it is damaged, it holds what it must not, or another file is in its place.
        ResourceError: the disk is too small.
    """
    cache = cache_dir()
    try:
        with archive.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            packed = _read_manifest(archive, tar)
            members = _check_members(archive, tar, packed)
            plans = [_plan(archive, item, cache / item.place) for item in packed]
            _check_room(cache, sum(file.size_bytes for plan in plans for file in plan.new))
            with (
                _staging(cache) as staged,
                reporter.stage("import", sum(i.receipt.size_bytes for i in packed), "bytes") as advance,
            ):
                for plan in plans:
                    _unpack(archive, tar, members, plan, staged, advance)
                for plan in plans:
                    _check_bundle(archive, plan, staged)
                return [_put(plan, staged) for plan in plans]
    except (tarfile.TarError, EOFError, OverflowError, UnicodeError) as error:
        raise ModelError(f"{archive}: is not an archive of models, or is damaged ({error}). Bring it again.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(cache) from error
        raise ModelError(f"{error.filename or archive}: {error.strerror or error}.") from error


def _pack(place: Place) -> Packed:
    receipt = sound_receipt(place)
    if place.kind == "checkpoint":
        return Packed(f"downloads/{place.name}", receipt)
    name = place.name
    if not FILE_NAME.fullmatch(name):
        raise UsageError(f"{place.folder}: rename the folder to letters, digits, '.', '_' and '-' to export it.")
    if name in BUNDLED:
        # A bundled model of another release must not stand in for the one of this program.
        name = f"{name}-{str(receipt.fingerprint)[:8]}"
    return Packed(f"bundles/{name}", receipt)


def _manifest(packed: Sequence[Packed]) -> bytes:
    folders = tuple(Folder(place=item.place, **vars(replace(item.receipt, date=""))) for item in packed)
    return (json.dumps(asdict(Manifest(folders)), indent=1, ensure_ascii=True, sort_keys=True) + "\n").encode()


def _tar_entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = size
    entry.mode = 0o644
    return entry


def _read_manifest(archive: Path, tar: tarfile.TarFile) -> tuple[Packed, ...]:
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
    packed = tuple(
        Packed(folder.place, Receipt(folder.name, folder.licence, folder.fingerprint, folder.files))
        for folder in folders
    )
    if any(item.receipt.file(RECEIPT) is not None for item in packed):
        raise ModelError(f"{archive}: brings a {RECEIPT} of its own. Nothing was changed.")
    if len({item.place.casefold() for item in packed}) < len(packed):
        raise ModelError(f"{archive}: names a folder twice.")
    return packed


def _check_members(archive: Path, tar: tarfile.TarFile, packed: Sequence[Packed]) -> dict[str, tarfile.TarInfo]:
    """Hold every header against the manifest; nothing is written yet."""
    wanted = {item.member(file): file for item in packed for file in item.receipt.files}
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


@dataclass(frozen=True)
class _Plan:
    """What is to happen to one folder."""

    packed: Packed
    folder: Path
    new: tuple[FileRecord, ...]


def _plan(archive: Path, packed: Packed, folder: Path) -> _Plan:
    """Compare with what is here.

    Raises:
        ModelError: another file is in the place of one of the archive.
    """
    if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
        raise ModelError(f"{folder}: is not a folder. Move it away, then import again.")
    recorded = read_receipt(folder)
    new = []
    for file in packed.receipt.files:
        path = folder / file.name
        if not path.exists() and not path.is_symlink():
            new.append(file)
            continue
        before = recorded.file(file.name) if recorded is not None else None
        if path.is_file() and file_digest(path) == file.sha256:
            continue
        if before is None or before.sha256 != file.sha256 or not path.is_file():
            raise ModelError(
                f"{archive}: {path} is here and is another file than the archive's. Nothing was changed: "
                f"move {folder} away to take the archive's."
            )
        new.append(file)  # ours is damaged by its own record, the archive's is what it should be
    return _Plan(packed, folder, tuple(new))


def _check_room(cache: Path, size_bytes: int) -> None:
    there = next(place for place in (cache, *cache.resolve().parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    if size_bytes > free:
        raise ResourceError(
            f"{cache}: {size_bytes:,} bytes are to come, {free:,} are free. "
            "Free some space, or set VIRNUCPRO_CACHE to another place."
        )


@contextmanager
def _staging(cache: Path) -> Iterator[Path]:
    """A folder in the cache, so that moving out of it is a renaming."""
    staged = cache / f"{_STAGING}{os.getpid()}"
    shutil.rmtree(staged, ignore_errors=True)
    try:
        staged.mkdir(parents=True)
    except OSError as error:
        raise ResourceError(f"{cache}: cannot be written to ({error.strerror}). Set VIRNUCPRO_CACHE.") from error
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _unpack(
    archive: Path,
    tar: tarfile.TarFile,
    members: dict[str, tarfile.TarInfo],
    plan: _Plan,
    staged: Path,
    advance: Advance,
) -> None:
    """Read every file of a folder, hold it against its SHA-256, and stage those that are new."""
    for file in plan.packed.receipt.files:
        name = plan.packed.member(file)
        target = staged / name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = tar.extractfile(members[name])
        digest = hashlib.sha256()
        with target.open("xb") as stream:
            while source is not None and (block := source.read(_BLOCK_BYTES)):
                digest.update(block)
                stream.write(block)
                advance(len(block))
            stream.flush()
            os.fsync(stream.fileno())
        if digest.hexdigest() != file.sha256:
            raise ModelError(
                f"{archive}: {name} has SHA-256 {digest.hexdigest()}, its {MANIFEST} says {file.sha256}. "
                "Nothing was changed. Bring the archive again."
            )


def _check_bundle(archive: Path, plan: _Plan, staged: Path) -> None:
    """A bundle must load, with the fingerprint it claims."""
    if not plan.packed.place.startswith("bundles/"):
        return
    folder = staged / plan.packed.place
    try:
        settings = yaml.safe_load((folder / "bundle.yaml").read_text(encoding="utf-8"))
        roles = ("nucleotide", "protein", "head", *(("nearest",) if "nearest" in settings else ()))
        files = [str(settings[role]) for role in roles]
    except (FileNotFoundError, KeyError, TypeError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ModelError(f"{archive}: {plan.packed.place} has no bundle.yaml that can be understood.") from error
    for file in files:
        if plan.packed.receipt.file(file) is None:
            raise ModelError(f"{archive}: refused: {plan.packed.place} wants {file!r}, which is not in the archive.")
    try:
        fingerprint = load_bundle(str(folder)).fingerprint
    except ModelError as error:
        text = str(error).replace(f"{folder}{os.sep}", "")
        raise ModelError(f"{archive}: {plan.packed.place} is not an intact bundle: {text}") from error
    if fingerprint != plan.packed.receipt.fingerprint:
        raise ModelError(
            f"{archive}: {plan.packed.place} has fingerprint {fingerprint}, its {MANIFEST} says "
            f"{plan.packed.receipt.fingerprint}. Nothing was changed."
        )


def _put(plan: _Plan, staged: Path) -> Imported:
    """Move what is new into its place; the record last."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    for file in plan.new:
        (staged / plan.packed.member(file)).replace(plan.folder / file.name)
    if plan.new or read_receipt(plan.folder) is None:
        write_receipt(plan.folder, plan.packed.receipt)
    return Imported(plan.folder, len(plan.new), len(plan.packed.receipt.files) - len(plan.new))
