"""Reads to units on one core, against the published rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import plain_extraction as plain
from benchmarks.measure import Figure, Goal, Settings, one_core, ratio_of, take_turns
from virnucpro.machine.reads import write_reads
from virnucpro.results.tables import row_names
from virnucpro.sequence.extract import Extraction
from virnucpro.settings import Layout

SECTION = "extraction"
_LENGTH_NT = 300
_PEER_SHARE = 50  # the peers get one read in so many
_MIN_PEER_READS = 100
_KINDS = {"random": 0.0, "coding": 1.0}


def measure(settings: Settings) -> Iterator[Figure]:
    """Random and coding reads, each against the plain rule and against Biopython."""
    with TemporaryDirectory(prefix="virnucpro-benchmark-") as folder:
        for kind, share in _KINDS.items():
            yield from _measure_kind(settings, Path(folder), kind, share)


def _measure_kind(settings: Settings, folder: Path, kind: str, coding_share: float) -> Iterator[Figure]:
    num_peer = min(settings.num_records, max(_MIN_PEER_READS, settings.num_records // _PEER_SHARE))
    reads = write_reads(folder / "reads.fasta", settings.num_records, _LENGTH_NT, coding_share, settings.seed)
    few = write_reads(folder / "few.fasta", num_peer, _LENGTH_NT, coding_share, settings.seed + 1)
    contestants = {"ours": lambda: float(_count_fragments(reads)), "plain": _counted(plain.plain_rows, few, num_peer)}
    if plain.has_biopython():
        contestants["biopython"] = _counted(plain.biopython_rows, few, num_peer)
    with one_core() as is_pinned:
        rates = take_turns(contestants, settings.seconds)
    expected = plain.plain_rows(few, _LENGTH_NT)
    what = f"{settings.num_records:,} {kind} reads of {_LENGTH_NT} b, one core"
    note = "" if is_pinned else "not kept on one core: this system cannot"
    ratio = ratio_of(rates["ours"], rates["plain"])
    goal = Goal(least=1e6, least_ratio=60)
    difference = _count_differences(_our_rows(few), expected)
    yield Figure(
        SECTION, what, "fragments/s", rates["ours"], "plain Python", rates["plain"], ratio, goal, difference, 0, note
    )
    if not plain.has_biopython():
        yield Figure(SECTION, what, "fragments/s", (), "Biopython", note="Biopython is not installed")
        return
    ratio = ratio_of(rates["ours"], rates["biopython"])
    difference = _count_differences(plain.biopython_rows(few, _LENGTH_NT), expected)
    yield Figure(
        SECTION, what, "fragments/s", rates["ours"], "Biopython", rates["biopython"], ratio, Goal(), difference, 0, note
    )


def _counted(rows: Callable[[Path, int], list[plain.Row]], path: Path, num_reads: int) -> Callable[[], float]:
    """A read of 300 bases is one fragment of 300."""

    def work() -> float:
        rows(path, _LENGTH_NT)
        return num_reads

    return work


def _extraction(path: Path) -> Extraction:
    return Extraction([str(path)], _LENGTH_NT, min_length=0, unit_rows=Layout().unit_rows)


def _count_fragments(path: Path) -> int:
    return sum(len(table.fragments) for table in _extraction(path).units())


def _our_rows(path: Path) -> list[plain.Row]:
    rows: list[plain.Row] = []
    for table in _extraction(path).units():
        ids = table.names.take(table.rows["sequence"] - table.sequences["number"][0]).to_bytes()
        columns = zip(row_names(ids, table.rows), table.nucleotides.to_bytes(), table.proteins.to_bytes(), strict=True)
        rows += [(name.decode(), nucleotides.decode(), protein.decode()) for name, nucleotides, protein in columns]
    return rows


def _count_differences(rows: list[plain.Row], expected: list[plain.Row]) -> int:
    """Rows that only one side has."""
    return len(set(rows) ^ set(expected))
