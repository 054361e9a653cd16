"""Reads that take the call of the contig they align to.

The identity of an alignment is one minus its gap-compressed divergence (tag ``de``) where the aligner gives
that. Else it is one minus the edit distance (tag ``NM``) over the columns of the alignment, and in PAF
without either tag the matches over the columns (columns 10 and 11, which minimap2 estimates unless it is
told ``-c``). The coverage is the aligned part of the read over its length, clipped bases included.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from virnucpro.atomic import write_json
from virnucpro.errors import InputError
from virnucpro.results import schema
from virnucpro.results.called import InputResults
from virnucpro.results.calls import CALLS
from virnucpro.results.formats import decimals, open_output
from virnucpro.results.tables import words
from virnucpro.sequence.alignments import alignment_format, name_of, primary_alignments
from virnucpro.sequence.dedup import SequenceIndex, hash_strings
from virnucpro.sequence.streams import InputStream, shown

if TYPE_CHECKING:
    import pysam

_BATCH_READS = 1 << 14
_PAF_COLUMNS = 12
_NO_CALL = b"no_call"
_DIVERGENCE = re.compile(rb"\tde:f:([^\t]+)")
_DISTANCE = re.compile(rb"\tNM:i:(\d+)")
_MATCH, _INSERTION, _DELETION, _SKIP, _SOFT, _HARD, _PADDING, _EQUAL, _MISMATCH = range(9)


class ReadStatus(StrEnum):
    """What became of a read; the first that holds, in this order."""

    UNMAPPED = "unmapped"
    CONTIG_UNKNOWN = "contig_unknown"
    LOW_IDENTITY = "low_identity"
    LOW_COVERAGE = "low_coverage"
    CONTIG_AMBIGUOUS = "contig_ambiguous"
    CONTIG_NO_CALL = "contig_no_call"
    ASSIGNED = "assigned"


class Alignment(NamedTuple):
    """The best alignment of a read."""

    read: bytes  # name
    contig: bytes  # name; empty where the read is unmapped
    identity: float  # 0 to 1
    coverage: float  # 0 to 1
    num_matches: float  # columns of the alignment that match


class ContigCall(NamedTuple):
    """What a run said of a contig, as it stands in its table."""

    call: bytes
    p_virus: bytes


AMBIGUOUS = ContigCall(b"", b"")
"""Stands for a name that several contigs with different calls have."""


@dataclass
class ReadCounts:
    """What was written."""

    # status to number of reads
    statuses: dict[str, int] = field(default_factory=lambda: dict.fromkeys(map(str, ReadStatus), 0))
    calls: Counter[str] = field(default_factory=Counter)  # call to number of assigned reads

    @property
    def num_reads(self) -> int:
        """Lines of the table."""
        return sum(self.statuses.values())


def assign_reads(
    contigs: InputResults,
    table: str,
    reads: str,
    output: Path,
    *,
    min_identity: float,
    min_coverage: float,
    reference: str | None = None,
) -> ReadCounts:
    """Write a line for each read, and the counts into a JSON file of the same name.

    Args:
        contigs: the results of their run; their calls are kept in memory, reads are streamed.
        table: name of their table, for the record.
        reads: PAF, BAM, CRAM or SAM; ``-`` is stdin.
        output: table to write, packed where its name ends in ``.gz``.
        min_identity: of a read to its contig, 0 to 1, below which it takes no call.
        min_coverage: likewise, of the part of the read that is aligned.
        reference: FASTA file of the contigs, for a CRAM.

    Raises:
        InputError: a file cannot be read, or lines of a read do not stand together in a PAF.
    """
    calls, counts = calls_by_name(contigs), ReadCounts()
    stream = InputStream(reads)
    with open_output(output, schema.READS.header) as stream_out:
        for alignment in best_alignments(stream, reference):
            contig = calls.get(alignment.contig)
            status = _status(alignment, contig, min_identity, min_coverage)
            counts.statuses[status] += 1
            taken = contig if status is ReadStatus.ASSIGNED else None
            if taken is not None:
                counts.calls[taken.call.decode()] += 1
            stream_out.write(_line(alignment, taken, status))
    content = {
        "reads": shown(reads),
        "reads_sha256": stream.sha256,
        "sequences": table,
        "calls": f"virnucpro-calls:{contigs.digest}",
        "min_identity": min_identity,
        "min_coverage": min_coverage,
        "num_reads": counts.num_reads,
        "reads_by_status": counts.statuses,
        "reads_by_call": dict(sorted(counts.calls.items())),
    }
    write_json(summary_path(output), content)
    return counts


def summary_path(output: Path) -> Path:
    """Where the counts of a table are written."""
    return output.with_name(output.name.removesuffix(".gz").removesuffix(".tsv") + ".json")


def calls_by_name(contigs: InputResults) -> dict[bytes, ContigCall]:
    """The call of each contig; ``AMBIGUOUS`` for a name whose contigs have different calls.

    Contigs that share a name and a call count as one, with the p_virus of the first.
    """
    calls: dict[bytes, ContigCall] = {}
    for part in contigs.parts():
        answers = words(CALLS, part.calls["call"]), decimals(part.calls["p_virus"])
        for name, call, p_virus in zip(part.table.names.to_bytes(), *answers, strict=True):
            contig = ContigCall(call, p_virus)
            if calls.setdefault(name, contig).call != call:
                calls[name] = AMBIGUOUS
    return calls


def best_alignments(stream: InputStream, reference: str | None = None) -> Iterator[Alignment]:
    """The best alignment of every read of a PAF, BAM, CRAM or SAM, in file order.

    In PAF that is the one with the most matches, of those the one with the highest identity, of those the
    first. The lines of a read must stand together, as minimap2 writes them; that they do is checked against
    the names of the first three million reads. In the other formats it is the primary alignment.
    """
    if alignment_format(stream.peek()):
        for read in primary_alignments(stream, reference):
            yield _of_segment(read, stream.source)
        return
    yield from _of_paf(stream)


def _of_segment(read: pysam.AlignedSegment, source: str) -> Alignment:
    if read.is_unmapped or not read.cigartuples:
        return Alignment(name_of(read), b"", 0.0, 0.0, 0.0)
    num = read.get_cigar_stats()[0].tolist()  # bases of each operation
    num_columns = num[_MATCH] + num[_EQUAL] + num[_MISMATCH] + num[_INSERTION] + num[_DELETION]
    num_aligned = num[_MATCH] + num[_EQUAL] + num[_MISMATCH] + num[_INSERTION]
    if read.has_tag("NM"):
        num_matches = num_columns - int(read.get_tag("NM"))
    elif not num[_MATCH]:
        num_matches = num[_EQUAL]
    else:
        raise InputError(
            shown(source),
            f"the alignment of {name_of(read).decode()} has no NM tag, which its identity is made from. "
            "Add the tags with `samtools calmd`.",
        )
    identity = 1 - float(read.get_tag("de")) if read.has_tag("de") else _ratio(num_matches, num_columns)
    coverage = _ratio(num_aligned, num_aligned + num[_SOFT] + num[_HARD])
    return Alignment(name_of(read), (read.reference_name or "").encode(), identity, coverage, num_matches)


def _of_paf(stream: InputStream) -> Iterator[Alignment]:
    names: list[bytes] = []
    seen = SequenceIndex(1 << 22)  # three million reads
    num_checked = 0
    for _, alignments in groupby(_paf_alignments(stream), key=itemgetter(0)):
        best = max(alignments, key=lambda alignment: (alignment.num_matches, alignment.identity))
        names.append(best.read)
        if len(names) == _BATCH_READS:
            num_checked = _check_together(names, num_checked, seen, stream.source)
            names = []
        yield best
    _check_together(names, num_checked, seen, stream.source)


def _paf_alignments(stream: InputStream) -> Iterator[Alignment]:
    for number, line in enumerate(_lines(stream), start=1):
        cells = line.split(b"\t", _PAF_COLUMNS)
        try:
            if cells[5] == b"*":  # written with --paf-no-hit
                yield Alignment(cells[0], b"", 0.0, 0.0, 0.0)
                continue
            length, start, stop, num_matches, num_columns = (int(cells[column]) for column in (1, 2, 3, 9, 10))
            if len(cells) > _PAF_COLUMNS and (found := _DIVERGENCE.search(line)):
                identity = 1 - float(found[1])
            elif len(cells) > _PAF_COLUMNS and (found := _DISTANCE.search(line)):
                identity = _ratio(num_columns - int(found[1]), num_columns)
            else:
                identity = _ratio(num_matches, num_columns)
            yield Alignment(cells[0], cells[5], identity, _ratio(stop - start, length), num_matches)
        except (IndexError, ValueError) as error:
            raise InputError(
                shown(stream.source), "is not a PAF line. Give alignments as PAF, BAM, CRAM or SAM.", number
            ) from error


def _lines(stream: InputStream) -> Iterator[bytes]:
    rest = b""
    for chunk in stream.chunks():
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _check_together(names: list[bytes], num_before: int, seen: SequenceIndex, source: str) -> int:
    """Refuse a read that came before, with other reads between; returns how many reads were checked so far."""
    first_seen = seen.find_sources(hash_strings(names), num_before)
    for name, first, number in zip(names, first_seen.tolist(), range(num_before, num_before + len(names)), strict=True):
        if first != number:
            raise InputError(
                shown(source),
                f"the lines of read {name.decode(errors='backslashreplace')} do not stand together. Sort the PAF by "
                "read (sort -k1,1), and give mates names of their own.",
            )
    return num_before + len(names)


def _status(alignment: Alignment, contig: ContigCall | None, min_identity: float, min_coverage: float) -> ReadStatus:
    if not alignment.contig:
        return ReadStatus.UNMAPPED
    if contig is None:
        return ReadStatus.CONTIG_UNKNOWN
    if alignment.identity < min_identity:
        return ReadStatus.LOW_IDENTITY
    if alignment.coverage < min_coverage:
        return ReadStatus.LOW_COVERAGE
    if contig is AMBIGUOUS:
        return ReadStatus.CONTIG_AMBIGUOUS
    return ReadStatus.CONTIG_NO_CALL if contig.call == _NO_CALL else ReadStatus.ASSIGNED


def _line(alignment: Alignment, contig: ContigCall | None, status: ReadStatus) -> bytes:
    """``contig`` is None unless its call is taken."""
    call, p_virus = contig or (b"NA", b"NA")
    if not alignment.contig:
        return b"%b\tNA\tNA\tNA\tNA\tNA\t%b\n" % (alignment.read, status.encode())
    return b"%b\t%b\t%.4f\t%.4f\t%b\t%b\t%b\n" % (*alignment[:4], call, p_virus, status.encode())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
