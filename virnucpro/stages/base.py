"""What every stage is given: the run, and the index of its units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from virnucpro import store
from virnucpro.atomic import read_json, write_json
from virnucpro.bundles import Bundle
from virnucpro.bundles.rules import Rules
from virnucpro.errors import CountError, UsageError
from virnucpro.progress import Reporter
from virnucpro.run_dir import RunDir
from virnucpro.sequence.table import are_own_source
from virnucpro.store import StoredArray
from virnucpro.stored_json import Count

ROLES = ("nucleotide", "protein")


def fingerprint_of(digest: str, dtype: str) -> str:
    """What stored numbers carry of how they were computed: by an encoder or a whole model, in which float type."""
    return f"{digest}/{dtype}"


def shard_made_from(bundle: Bundle, role: str, dtype: str, unit_digest: str) -> dict[str, str]:
    """What an embedding shard must carry."""
    return {"unit_digest": unit_digest, "fingerprint": fingerprint_of(bundle.digests[role], dtype)}


def features_made_from(bundle: Bundle, dtype: str, unit_digest: str) -> dict[str, str]:
    """What a merged file and a scores file must carry."""
    return {"unit_digest": unit_digest, "fingerprint": fingerprint_of(bundle.fingerprint, dtype)}


def unit_digest(run_dir: RunDir, unit: int) -> str:
    """Digest of a unit, which whatever is made from it carries.

    Raises:
        StoreError: the unit is missing or damaged.
    """
    return str(store.read_attributes(run_dir.unit(unit), "unit")["digest"])


@contextmanager
def open_shards(run_dir: RunDir, unit: int, fingerprints: Mapping[str, str]) -> Iterator[list[StoredArray]]:
    """The nucleotide and the protein embeddings of a unit; ``fingerprints`` (by role) must have made them.

    Raises:
        StoreError: they are missing, damaged or of another unit or encoder; damage may show when the block ends.
        CountError: there are more of one kind than of the other.
    """
    digest = unit_digest(run_dir, unit)
    with ExitStack() as files:
        shards = []
        for role in ROLES:
            made_from = {"unit_digest": digest, "fingerprint": fingerprints[role]}
            path = run_dir.embedding(role, unit)
            shards.append(files.enter_context(store.open_array(path, "embedding", made_from, "embedding")))
        num_nucleotide, num_protein = (shard.shape[0] for shard in shards)
        if num_nucleotide != num_protein:
            raise CountError(f"unit {unit}: {num_nucleotide} nucleotide and {num_protein} protein embeddings")
        yield shards


def computed_rows(run_dir: RunDir, unit: int, rows: NDArray[np.void], first_row: int) -> NDArray[np.bool_]:
    """(n,) which rows of a unit a model computes: those that are their own source, in a cascade some of them.

    Raises:
        StoreError: the selection of rows is damaged.
    """
    are_computed = are_own_source(rows, first_row)
    path = run_dir.selection(unit)
    return are_computed & store.read_arrays(path, "selection", "rows")["rows"] if path.exists() else are_computed


@dataclass(frozen=True)
class Run:
    """One run: where it lives, what model, how it is cut, and who is told how far it is."""

    dir: RunDir  # its paths
    inputs: tuple[str, ...]  # files as the user named them; ``-`` is stdin
    bundle: Bundle
    fragment_length: int  # nt
    unit_rows: int  # most rows in a unit
    dtype: str  # float32, bfloat16 or float16
    reporter: Reporter  # progress

    @property
    def rules(self) -> Rules:
        """What turns scores into calls."""
        return self.bundle.rules


@dataclass(frozen=True)
class IndexedInput:
    """One input, a file or the two files of a pair, as extraction found it."""

    source: str  # as the user named it
    stem: str  # prefix of its result files
    format: str  # fasta, fastq, bam, cram, sam or empty
    compression: str  # none, gzip, bzip2, xz or zstd
    sha256: str  # of the bytes as they are in the file
    first_sequence: Count  # number of its first sequence in the run
    num_sequences: Count  # how many
    num_bases: Count  # of all its sequences
    mate_source: str = ""  # second file of a pair; empty where there is none
    mate_sha256: str = ""  # of its bytes


@dataclass(frozen=True)
class IndexedUnit:
    """One unit as extraction wrote it."""

    first_row: Count  # number of its first row
    num_rows: Count  # how many rows
    num_sources: Count  # how many of them are not duplicates of an earlier row: only these are computed
    first_sequence: Count  # number of the first sequence with a fragment or a beginning in it
    stop_sequence: Count  # one after the last
    longest_nt: Count  # length of the longest of these sequences, wherever its bases lie


@dataclass(frozen=True)
class Index:
    """What extraction found: the inputs and the units, in order."""

    inputs: tuple[IndexedInput, ...]
    units: tuple[IndexedUnit, ...]
    num_fragments: Count

    @property
    def num_sequences(self) -> int:
        """Sequences of all inputs."""
        return sum(item.num_sequences for item in self.inputs)

    @property
    def run_stem(self) -> str:
        """Prefix of the files of the run as a whole."""
        return self.inputs[0].stem if len(self.inputs) == 1 else "all"

    @property
    def num_rows(self) -> int:
        """Rows of all units."""
        return sum(unit.num_rows for unit in self.units)

    def write(self, run_dir: RunDir) -> None:
        """Write ``run/index.json``; from then on extraction is done."""
        write_json(run_dir.index, asdict(self))

    @classmethod
    def read(cls, run_dir: RunDir) -> Index:
        """Read ``run/index.json``.

        Raises:
            UsageError: the inputs were not cut to the end.
            StoreError: it is damaged.
        """
        if not run_dir.index.exists():
            raise UsageError(
                f"{run_dir.root}: the run is not complete, its inputs were not cut to the end. Run the same predict "
                "command again: finished work is kept."
            )
        return read_json(run_dir.index, cls)
