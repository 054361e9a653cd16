"""Every path of a run by name, the manifest and the single-writer lock.

A run lives in the folder ``run/`` of the output directory::

    run/manifest.json                     what was asked: science and layout settings
    run/request.json                      inputs, settings and options of the last command
    run/rules.json                        what of the bundle turns scores into calls
    run/index.json                        what extraction found; exists when extraction is done
    run/left_over_rows.bin                digests of rows that memory had no room for, while extraction runs
    run/units/unit-00042.h5               a unit: sequences, fragments, rows and their strings
    run/embeddings/nucleotide/unit-00042.h5
    run/embeddings/protein/unit-00042.h5
    run/merged/unit-00042.h5              features
    run/scores/unit-00042.h5              scores; when it exists the three above may be gone
    run/nearest/unit-00042.h5             what the nearest proteins say of fragments; only where the model asks
    run/genes/unit-00042.h5               genes of the records that end in the unit; only with a table of proteins
    run/genes/organisms.json              names and families of the organisms of the nearest viral proteins
    run/failed/unit-00042.json            rows that cannot be computed, with the reason; only if there are any
    run/computed_on/HOST-cuda-0.json      how a device computed embeddings, for people
    run/receipts/unit-00042.json          of which run a finished unit is; where several programs share the work
    run/table/                            the table of fragments, of sequences and of genes: the product of the run
    run/rows.npy                          scores of all rows, while they are turned into results
    run/selected/unit-00042.h5            in a cascade, the rows that the model asked for computes
    run/first/...                         in a cascade, the same from run/rules.json on for the model that looks first

A file that exists is done (``atomic``).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TextIO, TypedDict

from virnucpro import stored_json
from virnucpro.atomic import TEMPORARY_MARK, check_json, machine_errors_at, read_json, write_json
from virnucpro.errors import ResourceError, RunMismatchError, StoreError, UsageError
from virnucpro.platforms import PLAIN_FILE, lock

MANIFEST_SCHEMA = 3
"""Of the run directories that this version writes and reads."""
RESULT_SUFFIXES = (
    *(f"{table}.{ending}" for table in ("sequences", "fragments", "rows") for ending in ("parquet", "jsonl", "tsv")),
    *(f"{table}.{ending}.gz" for table in ("fragments", "rows") for ending in ("tsv", "jsonl")),
    *("virus.fna.gz", "uncertain.fna.gz", "failed.tsv", "summary.json"),
    *("regions.tsv", "genes.tsv", "regions.gff3", "regions.bed", "windows.bedgraph.gz", "proviruses.fna.gz"),
    *("taxonomy.tsv", "taxonomy.counts.tsv", "taxonomy.nwk", "taxonomy.krona.txt"),
)
"""Endings of all files that ``predict`` and ``call`` write for an input; its other neighbours are none of theirs."""

MULTIQC_SUFFIXES = ("virnucpro_mqc.json", "virnucpro_stats_mqc.json", "virnucpro_mqc_versions.yml")

ALL_SUFFIXES = tuple(f".{suffix}" for suffix in (*RESULT_SUFFIXES, "run.json", "log", "report.html", *MULTIQC_SUFFIXES))
"""The same, and what is made of them."""


_Manifest = TypedDict(
    "_Manifest",
    {
        "science.model": str,
        "science.model_fingerprint": str,
        "science.nucleotide_digest": str,
        "science.protein_digest": str,
        "science.fragment_length": stored_json.Count,
        "science.dtype": str,
        "science.cascade_low": NotRequired[float],
        "science.cascade_high": NotRequired[float],
        "layout.unit_rows": stored_json.Count,
    },
)


class _Place:
    """A path in ``run/``; with ``of_model`` each model of a cascade has its own."""

    def __init__(self, name: str, *, of_model: bool = False) -> None:
        self._name, self._of_model = name, of_model

    def __get__(self, run_dir: RunDir, _kind: type) -> Path:
        return run_dir.work / (run_dir.part if self._of_model else "") / self._name


class _UnitPlace:
    """The same for files that each unit has; called with its number."""

    def __init__(self, folder: str, ending: str = ".h5", *, of_model: bool = False) -> None:
        self._folder, self._ending = _Place(folder, of_model=of_model), ending

    def __get__(self, run_dir: RunDir, kind: type) -> Callable[[int], Path]:
        folder = self._folder.__get__(run_dir, kind)
        return lambda unit: folder / f"unit-{unit:05d}{self._ending}"


@dataclass(frozen=True)
class RunDir:
    """The paths of one run; the head of this module says what each of them is.

    Attributes:
        root: the output directory; results go here, the run itself into ``root/run``.
        part: folder in ``root/run`` of what one model makes of the units; empty for the model asked for.
    """

    root: Path
    part: str = ""

    manifest = _Place("manifest.json")
    request = _Place("request.json")
    index = _Place("index.json")
    left_over_rows = _Place("left_over_rows.bin")
    organisms = _Place("genes/organisms.json")
    unit = _UnitPlace("units")
    genes = _UnitPlace("genes")
    receipt = _UnitPlace("receipts", ".json")
    _lock = _Place("lock")

    rules = _Place("rules.json", of_model=True)
    table = _Place("table", of_model=True)
    row_scores = _Place("rows.npy", of_model=True)
    computed_on = _Place("computed_on", of_model=True)
    selection = _UnitPlace("selected", of_model=True)
    merged = _UnitPlace("merged", of_model=True)
    scores = _UnitPlace("scores", of_model=True)
    nearest = _UnitPlace("nearest", of_model=True)
    failed = _UnitPlace("failed", ".json", of_model=True)

    def embedding(self, role: str, unit: int) -> Path:
        """Shard of one encoder, ``role`` nucleotide or protein."""
        return self.work / self.part / "embeddings" / role / f"unit-{unit:05d}.h5"

    @property
    def work(self) -> Path:
        """Folder of everything that is not a result."""
        return self.root / "run"

    @property
    def first(self) -> RunDir:
        """In a cascade, what the model that looks first makes of the same units."""
        return RunDir(self.root, "first")

    @property
    def is_cascade(self) -> bool:
        """Whether two models share the sequences of this run."""
        return self.first.rules.is_file()

    @property
    def models(self) -> tuple[RunDir, ...]:
        """In a cascade the model that looks first; then, as in any run, the model asked for."""
        return (self.first, self) if self.is_cascade else (self,)

    def read_manifest(self) -> dict[str, Any]:
        """What was asked of this run, in any version that has these keys.

        Raises:
            StoreError: it is missing or damaged.
        """
        return check_json(self.manifest, _Manifest)

    def result(self, stem: str, suffix: str) -> Path:
        """A result file, prefixed by the input's stem."""
        return self._inside(f"{stem}.{suffix}")

    def _inside(self, name: str) -> Path:
        """A file of the output directory; stems are read from stored files, which may name anything.

        Raises:
            StoreError: the name would lead elsewhere.
        """
        if "/" in name or name.startswith(".") or not name.isprintable():
            raise StoreError(self.index, f"is damaged (it names the file {name!r})")
        return self.root / name

    def named(self, stem: str, name: str) -> Path:
        """A result file by its name, in which ``<stem>`` stands for that of the input."""
        return self._inside(stem).parent / name.replace("<stem>", stem)

    def results(self, stem: str) -> list[Path]:
        """The result files of an input that are there; log, run record and what is made from it are none."""
        ours = (self.result(stem, suffix) for suffix in RESULT_SUFFIXES)
        return sorted([*(path for path in ours if path.is_file()), *self._inside(f"{stem}_merged").glob("*")])

    def prepare(self, stems: Collection[str] = (), *, force: bool = False) -> None:
        """Make the directory; other files in it stay as they are.

        Args:
            stems: prefixes of the results that will be written.
            force: also replace files of their names that are not of a run of this program.

        Raises:
            UsageError: the path is a file, its ``run/`` is not one of ours, or a result would replace a foreign file
                and not ``force``.
            PlaceError: it cannot be written to.
        """
        if self.root.exists() and not self.root.is_dir():
            raise UsageError(f"{self.root} is a file. Name another directory with --output.")
        with machine_errors_at(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            if folder := self._in_the_way(stems, Path.is_dir):
                raise UsageError(f"{folder} is a folder, where a result belongs. Move it, or name another --output.")
            if not self.work.is_dir() and not force and (foreign := self._in_the_way(stems, os.path.lexists)):
                raise UsageError(
                    f"{foreign} is there and is not of a run in {self.root}. "
                    "Name another directory with --output, or use --force to replace it."
                )
            self.work.mkdir(exist_ok=True)
            ours = self._lock.exists() or self.manifest.exists() or not any(self.work.iterdir())
            if not ours:
                raise UsageError(
                    f"{self.work} holds files that are not of this program. Name another directory with --output."
                )

    def _in_the_way(self, stems: Iterable[str], is_there: Callable[[Path], bool]) -> Path | None:
        """The first that has the name of a result."""
        names = (f"{stem}{suffix}" for stem in stems for suffix in ALL_SUFFIXES)
        return next((self.root / name for name in names if is_there(self.root / name)), None)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for this process alone; the lock goes with the process.

        Raises:
            ResourceError: another process holds it, or it cannot be written to.
            StoreError: something in it leads elsewhere.
        """
        flags = os.O_RDWR | os.O_CREAT | PLAIN_FILE
        with machine_errors_at(self._lock):
            descriptor = os.open(self._lock, flags, 0o666)
        # The file stays: unlinking a locked file lets two later runs lock two different ones.
        with os.fdopen(descriptor, "r+", encoding="ascii", errors="replace") as stream:
            self._take(stream)
            stream.truncate(0)
            stream.write(f"{os.getpid()}\n")
            stream.flush()
            self._refuse_links()
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep others from changing the run while it is read; a run that cannot be written to is read all the same.

        Raises:
            ResourceError: another process works in it.
            StoreError: something in it leads elsewhere.
        """
        try:
            descriptor = os.open(self._lock, os.O_RDONLY | PLAIN_FILE)
        except OSError:
            self._refuse_links()
            yield  # no lock of ours, or none that this user may open
            return
        with os.fdopen(descriptor, encoding="ascii", errors="replace") as stream:
            self._take(stream, shared=True)
            self._refuse_links()
            yield

    def _take(self, stream: TextIO, *, shared: bool = False) -> None:
        try:
            lock(stream, shared=shared)
        except BlockingIOError as error:
            holder = stream.read(32).strip() or "unknown"
            raise ResourceError(
                f"{self.root} is in use by another run (process {holder}). "
                "Wait for it to end, or name another directory with --output."
            ) from error
        except OSError as error:
            if shared:
                return  # a file system without locks, which nobody can lock either
            raise ResourceError(
                f"{self.root}: its file system cannot lock files ({error.strerror}). Name a --output on another."
            ) from error

    def _refuse_links(self) -> None:
        """Runs are handed from person to person: a link in one could lead a write to any file of its next user.

        Raises:
            StoreError: there is a link, or something that is neither a file nor a folder.
        """
        folders = [self.work]
        if self.work.is_symlink():
            raise StoreError(self.work, "is a symbolic link, which is not followed in a run")
        while folders:
            with machine_errors_at(folders[-1]), os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
                    elif not entry.is_file(follow_symlinks=False):
                        raise StoreError(
                            Path(entry.path), "is neither a file nor a folder; links are not followed in a run"
                        )

    def start_over(self) -> None:
        """Drop the stored run; results stay until they are replaced. Call it with the lock held."""
        for path in self.work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != self._lock:
                path.unlink()

    def sweep(self) -> None:
        """Delete temporary files that a killed run left behind. Call it with the lock held."""
        name = f".*{TEMPORARY_MARK}*"
        for path in (*self.root.glob(name), *self.root.glob(f"*_merged/{name}"), *self.work.rglob(name)):
            path.unlink(missing_ok=True)

    def check_is_run(self) -> None:
        """Refuse a directory without a run, or with one of another format.

        Raises:
            UsageError: it is one.
        """
        if not self.manifest.is_file():
            raise UsageError(
                f"{self.root} holds no run of this program. Name the directory that predict wrote with -o."
            )
        if read_json(self.manifest).get("schema") != MANIFEST_SCHEMA:
            raise UsageError(
                f"{self.root} holds a run of another version of this program. Start over with predict --fresh, or use "
                "the version that made it."
            )

    def agree(self, settings: dict[str, Any]) -> None:
        """Write the manifest, or hold ``settings`` against the one that is there.

        Args:
            settings: dotted name to value, all that changes numbers or the cut into units.

        Raises:
            RunMismatchError: a setting differs.
        """
        settings = {"schema": MANIFEST_SCHEMA, **settings}
        if not self.manifest.exists():
            write_json(self.manifest, settings)
            return
        self.check_is_run()
        then = read_json(self.manifest)
        differences = [
            (name, then.get(name), settings.get(name))
            for name in sorted(then.keys() | settings.keys())
            if then.get(name) != settings.get(name)
        ]
        if differences:
            raise RunMismatchError(self.root, differences)
