"""The columns of every result table: what they are called, what they hold, what they mean.

The one source: tables take their headers and types from here, ``virnucpro schema`` prints it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from virnucpro.results.calls import CALLS, EVIDENCE_NAMES, STATUS_NAMES
from virnucpro.settings import TableFormat
from virnucpro.taxonomy import RANKS

VERSION = 1

Type = Literal["string", "integer", "number"]

_CLOSED = "1-based, closed, on the forward strand of the sequence"
_FRAMES = (1, 2, 3, -1, -2, -3)


@dataclass(frozen=True)
class Column:
    """A column."""

    name: str  # in the header
    type: Type  # string, integer or number
    meaning: str  # in words
    unit: str = ""  # of a number; empty where it has none
    coordinates: str = ""  # system of a position; empty for all else
    is_nullable: bool = False  # whether a value may be missing: NA in TSV, null elsewhere
    values: tuple[str | int, ...] = ()  # all that it may hold; empty for free ones
    decimals: int = 4  # of a number that is not whole


@dataclass(frozen=True)
class Table:
    """A table."""

    name: str  # what ``--table`` calls it
    files: Mapping[TableFormat, str]  # format to file; ``<stem>`` stands for that of the input
    written: str  # when
    meaning: str  # what a line is
    columns: tuple[Column, ...]  # in order
    cascade_columns: tuple[Column, ...] = ()  # what stands behind them in runs with ``--cascade``

    @property
    def header(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(column.name for column in self.columns)


def _files(name: str, packed: str = "") -> dict[TableFormat, str]:
    return {
        "tsv": f"<stem>.{name}.tsv{packed}",
        "parquet": f"<stem>.{name}.parquet",
        "jsonl": f"<stem>.{name}.jsonl{packed}",
    }


_NAME = Column("name", "string", "id of the sequence: the header up to the first blank, byte for byte")
_START = Column("start", "integer", "first base", "bases", _CLOSED)
_STOP = Column("stop", "integer", "last base", "bases", _CLOSED)

SEQUENCES = Table(
    "sequences",
    _files("sequences"),
    written="always",
    meaning="a line for every input sequence, in input order",
    columns=(
        _NAME,
        Column("length", "integer", "its bases", "bases"),
        Column("num_fragments", "integer", "windows it was cut into"),
        Column("num_rows", "integer", "kept reading frames of all its fragments"),
        Column("call", "string", "the answer; no_call where nothing was scored", values=CALLS),
        Column("p_virus", "number", "calibrated probability of being viral at the prevalence in use",
               "probability", is_nullable=True),
        Column("fdr", "number", "estimated share of false calls among all sequences of this input with a p_virus "
               "at least as high", "share", is_nullable=True),
        Column("score", "number", "sum of the log-odds of its fragments at equal prevalence; ranks what p_virus rounds "
               "to 1.0000", "nats", is_nullable=True, decimals=2),
        Column("evidence", "string", "what was scored: proteins too where a fragment has an open reading frame",
               is_nullable=True, values=EVIDENCE_NAMES),
        Column("top_region", "string", "start-stop of the fragment with the highest p_virus, where a sequence has "
               "several; of equal ones the first", "bases", _CLOSED, is_nullable=True),
        Column("status", "string", "what became of it", values=tuple(STATUS_NAMES.values())),
        Column("reason", "string", "the status in words, where it is not ok", is_nullable=True),
    ),
    cascade_columns=(
        Column("model", "string", "the model that the whole answer is from"),
    ),
)  # fmt: skip

CASCADE = replace(SEQUENCES, columns=SEQUENCES.columns + SEQUENCES.cascade_columns, cascade_columns=())
"""``SEQUENCES`` as runs with ``--cascade`` write it."""

FRAGMENTS = Table(
    "fragments",
    _files("fragments", ".gz"),
    written="always",
    meaning="a line for every fragment, in input order",
    columns=(
        _NAME,
        Column("fragment", "integer", "number of the fragment in its sequence, from 1"),
        _START,
        _STOP,
        Column("num_rows", "integer", "its kept reading frames"),
        Column("p_virus", "number", "calibrated probability of being viral at the prevalence in use; missing where it "
               "was not scored", "probability", is_nullable=True),
        Column("evidence", "string", "what was scored", is_nullable=True, values=EVIDENCE_NAMES),
    ),
)  # fmt: skip

ROWS = Table(
    "rows",
    _files("rows", ".gz"),
    written="with --keep-intermediate",
    meaning="a line for every kept reading frame, in input order",
    columns=(
        Column("name", "string", "published name of the row: <id>_chunk_<fragment><frame>, frames F1 to R3"),
        Column("frame", "integer", "reading frame; with its sign in TSV", values=_FRAMES),
        _START,
        _STOP,
        Column("nucleotide", "string", "its bases, read in the direction of the frame"),
        Column("protein", "string", "its translation"),
        Column("score_other", "number", "score of not virus, as the head gives it", "share", is_nullable=True),
        Column("score_virus", "number", "score of virus, as the head gives it", "share", is_nullable=True),
    ),
)  # fmt: skip

FAILED_ROWS = Table(
    "failed",
    {"tsv": "<stem>.failed.tsv"},
    written="when some row could not be computed",
    meaning="a line for every row that could not be computed, in input order",
    columns=(
        _NAME,
        Column("frame", "integer", "as in rows; 0 for a whole fragment without an open one", values=(*_FRAMES, 0)),
        _START,
        _STOP,
    ),
)

LEGACY_RESULTS = Table(
    "prediction_results",
    {"tsv": "<stem>_merged/prediction_results.txt"},
    written="with --legacy-output",
    meaning="a line for every kept reading frame, as published",
    columns=(
        Column("Sequence_ID", "string", "name of the row, as in rows"),
        Column("Prediction", "string", "the class with the larger score", values=("virus", "others")),
        Column("score1", "number", "score of not virus", "share"),
        Column("score2", "number", "score of virus", "share"),
    ),
)

LEGACY_HIGHEST = Table(
    "prediction_results_highestscore",
    {"tsv": "<stem>_merged/prediction_results_highestscore.csv"},
    written="with --legacy-output",
    meaning="a line for every window with a kept reading frame, sorted by name, as published (tabs, whatever its name)",
    columns=(
        Column("Modified_ID", "string", "<id>_chunk_<fragment>; quoted where it holds a quotation mark"),
        Column("Is_Virus", "string", "whether the largest score of virus reaches that of not virus",
               values=("True", "False")),
    ),
)  # fmt: skip

REGIONS = Table(
    "regions",
    {"tsv": "<stem>.regions.tsv"},
    written="always",
    meaning="a line for every virus region, in the order of the input",
    columns=(
        Column("region", "string", "its sequence; of a provirus with |provirus_<start>_<stop> behind it"),
        Column("sequence", "string", "id of its sequence"),
        _START,
        _STOP,
        Column("length", "integer", "its bases", "bases"),
        Column("kind", "string", "the whole sequence, or a viral part of a longer one", values=("whole", "provirus")),
        Column("p_virus", "number", "of a whole sequence as in sequences; of a provirus the mean over its "
               "genes", "probability"),
        Column("score", "number", "log-odds: of a provirus the sum over its genes; higher is surer", "nats",
               decimals=2),
        Column("num_fragments", "integer", "windows in it"),
        Column("num_genes", "integer", "genes in it"),
        Column("topology", "string", "of a whole sequence that ends with 20 bases or more that it begins with: DTR "
               "(direct terminal repeat, circular or complete), or with their reverse complement: ITR (inverted); "
               "else circular if its header says so, polyA if it has a tail of 20 A",
               is_nullable=True, values=("DTR", "ITR", "circular", "polyA")),
    ),
)  # fmt: skip

GENES = Table(
    "genes",
    {"tsv": "<stem>.genes.tsv"},
    written="when a sequence is long enough to have genes (1,500 bases)",
    meaning="a line for every gene, in the order of the input",
    columns=(
        _NAME,
        Column("gene", "integer", "number of the gene in its sequence, from 1"),
        _START,
        _STOP,
        Column("strand", "string", "that it is read on", values=("+", "-")),
        Column("bits_virus", "number", "score of its best ungapped alignment to a viral protein", "bits",
               is_nullable=True),
        Column("bits_cell", "number", "the same to a cellular protein", "bits", is_nullable=True),
        Column("nearest_virus", "string", "the virus with that protein", is_nullable=True),
        Column("family", "string", "family of that virus, or the group that is known", is_nullable=True),
        Column("region", "string", "whether it lies in a provirus", is_nullable=True, values=("provirus",)),
    ),
)  # fmt: skip

TAXONOMY = Table(
    "taxonomy",
    {"tsv": "<stem>.taxonomy.tsv"},
    written="with --taxonomy, or by virnucpro taxonomy",
    meaning="a line for every virus region, in the order of regions",
    columns=(
        Column("region", "string", "as in regions"),
        Column("sequence", "string", "id of its sequence"),
        _START,
        _STOP,
        Column("taxon", "string", "the deepest taxon that its confidence allows; missing where none is sure enough",
               is_nullable=True),
        Column("rank", "string", "rank of that taxon", is_nullable=True, values=RANKS),
        Column("confidence", "number", "probability that this taxon is right", "probability", is_nullable=True),
        Column("novel", "string", "whether nothing known is as near as members of one family are",
               values=("yes", "no")),
        *(Column(rank, "string", f"its {rank}, where it is named and has one", is_nullable=True) for rank in RANKS),
        Column("num_matches", "integer", "its genes, or fragments where it has no genes, with a viral protein near "
               "them; of a reference of your own, its neighbours"),
        Column("nearest_virus", "string", "the virus with the best of these", is_nullable=True),
    ),
)  # fmt: skip

TAXA = Table(
    "taxonomy_counts",
    {"tsv": "<stem>.taxonomy.counts.tsv"},
    written="with --taxonomy, or by virnucpro taxonomy",
    meaning="a line for every taxon that hits are named, each below the one it belongs to",
    columns=(
        Column("lineage", "string", "names from the top down, separated by semicolons; hits that are novel below a "
               "taxon are counted as 'novel in' it, those without a name as 'novel' or 'unknown'"),
        Column("rank", "string", "rank of the taxon", is_nullable=True, values=RANKS),
        Column("num_hits", "integer", "virus regions in it"),
        Column("num_bases", "integer", "their bases", "bases"),
        Column("num_here", "integer", "those of the hits that are named no deeper"),
    ),
)  # fmt: skip

SAMPLES = Table(
    "samples",
    {"tsv": "samples.tsv"},
    written="for several samples",
    meaning="a line for every sample, in the order given",
    columns=(
        Column("sample", "string", "its name: of the sheet, or of the input file"),
        Column("sequences", "integer", "how many it has"),
        Column("bases", "integer", "of all its sequences", "bases"),
        *(Column(call, "integer", f"sequences with the call {call}") for call in
          ("virus", "uncertain", "not_virus", "no_call")),
        Column("percent_virus_sequences", "number", "sequences called virus", "percent", is_nullable=True),
        Column("percent_virus_bases", "number", "bases of sequences called virus", "percent", is_nullable=True),
    ),
)  # fmt: skip

READS = Table(
    "reads",
    {"tsv": "<stem>.reads.tsv.gz"},
    written="by virnucpro assign",
    meaning="a line for every read",
    columns=(
        Column("read", "string", "id of the read"),
        Column("contig", "string", "id of the contig of its best alignment", is_nullable=True),
        Column("identity", "number", "of that alignment", "share", is_nullable=True),
        Column("coverage", "number", "part of the read in that alignment", "share", is_nullable=True),
        Column("call", "string", "of the contig, where the read is assigned", is_nullable=True,
               values=CALLS),
        Column("p_virus", "number", "of the contig, where the read is assigned", "probability", is_nullable=True),
        Column("status", "string", "whether it took the call, or why not"),
    ),
)  # fmt: skip

TABLES = {
    table.name: table
    for table in (
        SEQUENCES, FRAGMENTS, ROWS, REGIONS, GENES, TAXONOMY, TAXA, FAILED_ROWS, SAMPLES, READS, LEGACY_RESULTS,
        LEGACY_HIGHEST,
    )
}  # fmt: skip


def described(table: Table) -> dict[str, Any]:
    """A table's schema as JSON takes it."""
    return {
        "meaning": table.meaning,
        "written": table.written,
        "files": dict(table.files),
        "columns": [
            {
                "name": column.name,
                "type": column.type,
                "unit": column.unit or None,
                "coordinates": column.coordinates or None,
                "nullable": column.is_nullable,
                "values": list(column.values) or None,
                "meaning": column.meaning,
                "written": written,
            }
            for columns, written in ((table.columns, table.written), (table.cascade_columns, "with --cascade"))
            for column in columns
        ],
    }
