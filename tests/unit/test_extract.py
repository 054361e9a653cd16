"""Units hold exactly what the published rules give, cut where the unit rule says."""

import gzip
import hashlib
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_extraction import count_clear, cut_windows, extract, reverse_complement

from virnucpro.errors import InputError, UsageError
from virnucpro.sequence.extract import Extraction
from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.table import FRAME_NAMES, Status

GOLDEN = Path(__file__).parents[1] / "golden"


def run(path, **settings):
    """The extraction of one or more paths, and its units."""
    items = path if isinstance(path, list) else [path]
    paths = [tuple(map(str, item)) if isinstance(item, tuple) else str(item) for item in items]
    extraction = Extraction(paths, **({"fragment_length": 30, "min_length": 1, "unit_rows": 8} | settings))
    return extraction, list(extraction.units())


def joined(units, part):
    """One column of all units, end to end."""
    if isinstance(getattr(units[0], part), Ragged):
        return Ragged.concatenate(getattr(unit, part) for unit in units).to_bytes()
    return np.concatenate([getattr(unit, part) for unit in units]).tolist()


def described(units):
    """Fragments and rows of all units as the oracle gives them."""
    if not units:
        return [], []
    strings = zip(joined(units, "nucleotides"), joined(units, "proteins"), strict=True)
    rows = [(*row, nt.decode(), aa.decode()) for row, (nt, aa) in zip(joined(units, "rows"), strings, strict=True)]
    return joined(units, "fragments"), rows


def rejoined(units):
    """Each record's bases, from the pieces."""
    records = {}
    for unit in units:
        for number, piece in zip(unit.piece_sequences.tolist(), unit.pieces.to_bytes(), strict=True):
            records[number] = records.get(number, b"") + piece
    return records


def fasta(records):
    return "".join(f">{name}\n{bases}\n" for name, bases in records).encode()


any_bases = (
    st.text("ACGT", max_size=200) | st.text("ACGTUNRYacgtunryX", max_size=100) | st.sampled_from(["", "A", "ac"])
)
records = st.lists(any_bases, max_size=12).map(
    lambda items: [(f"r{i}", bases) for i, bases in enumerate([*items, *items[:2]])]
)


@pytest.mark.parametrize("fragment_length", [300, 500])
@pytest.mark.parametrize("unit_rows", [7, 16384])
def test_golden_tables(fragment_length, unit_rows):
    """Fragments and kept rows of the golden input are those of the reference scripts, byte for byte."""
    _, units = run(GOLDEN / "golden_input.fasta", fragment_length=fragment_length, min_length=0, unit_rows=unit_rows)
    names = [name.decode() for name in joined(units, "names")]
    bases = rejoined(units)
    fragments, rows = described(units)
    found = {number: [] for number in range(len(names))}
    remaining = iter(rows)
    for sequence, index, start, stop, num_rows, *_ in fragments:
        fragment = (f"_chunk_{index + 1}", bases[sequence][start:stop].decode().upper())
        found[sequence] += [
            (*fragment, FRAME_NAMES[frame], nt, aa)
            for _, _, frame, _, _, _, nt, aa in (next(remaining) for _ in range(num_rows))
        ] or [(*fragment, "", "", "")]
    table = gzip.decompress((GOLDEN / f"golden_frames_{fragment_length}.tsv.gz").read_bytes()).decode()
    lines = []
    for number, name in enumerate(names):
        for chunk, fragment, frame, nt, aa in found[number]:
            lines.append("\t".join([name + chunk, fragment, (name + chunk + frame) if frame else "", nt, aa]))
    assert lines == table.splitlines()[1:]


@settings(deadline=None)
@given(records, st.integers(3, 80), st.integers(0, 40), st.integers(1, 40), st.booleans())
def test_units_agree_with_oracle(tmp_path_factory, items, fragment_length, min_length, unit_rows, score_frameless):
    """Fragments, rows, strings, coordinates, names, statuses and pieces are those of the plain rules."""
    path = tmp_path_factory.getbasetemp() / "oracle.fasta"
    path.write_bytes(fasta(items))
    extraction, units = run(
        path,
        fragment_length=fragment_length,
        min_length=min_length,
        unit_rows=unit_rows,
        score_frameless=score_frameless,
    )
    assert described(units) == extract(items, fragment_length, score_frameless, min_length)
    assert rejoined(units) == {number: bases.encode() for number, (_, bases) in enumerate(items)}
    assert [summary.num_sequences for summary in extraction.inputs] == [len(items)]
    if not units:
        assert items == []
        return
    assert joined(units, "names") == [name.encode() for name, _ in items]
    contents = [bases.upper().replace("U", "T") for _, bases in items]
    for number, (found, content) in enumerate(zip(joined(units, "sequences"), contents, strict=True)):
        status = Status.EMPTY if not content else Status.TOO_SHORT if len(content) < min_length else Status.OK
        if status == Status.OK and count_clear(content) < min_length:
            status = Status.AMBIGUOUS
        least = min(min_length, (fragment_length + 1) // 2)
        parts = [content[start:stop] for start, stop in cut_windows(len(content), fragment_length)] if content else []
        if status == Status.OK and all(count_clear(part) < least for part in parts):
            status = Status.AMBIGUOUS
        assert found == (number, len(content), status)


@settings(deadline=None)
@given(records, st.integers(3, 60), st.integers(1, 30), st.integers(1, 300))
def test_units_do_not_depend_on_reading(tmp_path_factory, items, fragment_length, unit_rows, block_bytes):
    """What a unit holds is the same whatever is read at once."""
    path = tmp_path_factory.getbasetemp() / "blocks.fasta"
    path.write_bytes(fasta(items))
    _, expected = run(path, fragment_length=fragment_length, unit_rows=unit_rows)
    _, found = run(path, fragment_length=fragment_length, unit_rows=unit_rows, block_bytes=block_bytes)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.first_row == other.first_row
        for part in ("sequences", "fragments", "rows", "piece_sequences"):
            assert getattr(one, part).tolist() == getattr(other, part).tolist()
        for part in ("names", "nucleotides", "proteins", "pieces"):
            assert getattr(one, part).to_bytes() == getattr(other, part).to_bytes()


@settings(deadline=None)
@given(records, st.integers(3, 60), st.integers(1, 12))
def test_unit_rule(tmp_path_factory, items, fragment_length, unit_rows):
    """A unit is closed by the next fragment's rows or by its 4 * unit_rows fragments or records, never else."""
    path = tmp_path_factory.getbasetemp() / "rule.fasta"
    path.write_bytes(fasta(items))
    _, units = run(path, fragment_length=fragment_length, unit_rows=unit_rows)
    first_row = 0
    for i, unit in enumerate(units):
        assert unit.first_row == first_row
        first_row += len(unit)
        assert len(unit.rows) == unit.fragments["num_rows"].sum() == len(unit.nucleotides) == len(unit.proteins)
        assert len(unit.sequences) == len(unit.names)
        assert np.all(np.diff(unit.piece_sequences) > 0)
        assert len(unit.pieces) == len(unit.piece_sequences)
        assert len(unit) <= unit_rows or np.count_nonzero(unit.fragments["num_rows"]) == 1
        assert max(len(unit.fragments), len(unit.sequences)) <= 4 * unit_rows
        is_last = i == len(units) - 1
        if not is_last and max(len(unit.fragments), len(unit.sequences)) < 4 * unit_rows:
            assert len(unit) + units[i + 1].fragments["num_rows"][0] > unit_rows


def test_coordinates_cut_the_record(tmp_path):
    """Cutting a record at a row's start:stop, on the frame's strand, gives the row's nucleotide string."""
    generator = random.Random(3)
    codons = [a + b + c for a in "ACG" for b in "ACGT" for c in "ACGT"]
    bases = ["".join(generator.choices(codons, k=generator.randint(20, 300))) for _ in range(20)]
    path = tmp_path / "input.fasta"
    path.write_bytes(fasta([(f"r{i}", item) for i, item in enumerate(bases)]))
    _, units = run(path, fragment_length=90, unit_rows=20)
    _, rows = described(units)
    assert {frame for _, _, frame, *_ in rows} == {1, 2, 3, -1, -2, -3}
    for sequence, _, frame, start, stop, _, nucleotide, _ in rows:
        cut = bases[sequence][start:stop]
        assert (cut if frame > 0 else reverse_complement(cut)) == nucleotide


def test_duplicates_across_inputs(tmp_path):
    """A row like an earlier one, of any input, in other case or as RNA, names the first as its source."""
    one, two = tmp_path / "one.fasta", tmp_path / "two.fastq"
    one.write_bytes(b">a\nACGTTTGCATGCATGC\n>b\nAC\n>a\nAC\n")
    two.write_bytes(
        b"@b\nacguuugcaugcaugc\n+\nIIIIIIIIIIIIIIII\n@c\nGGGTTTGCATGCATGC\n+\nIIIIIIIIIIIIIIII\n@c\n\n+\n\n"
    )
    extraction, units = run([one, two], min_length=3)
    assert joined(units, "sequences") == [
        (0, 16, Status.OK),
        (1, 2, Status.TOO_SHORT),
        (2, 2, Status.TOO_SHORT),
        (3, 16, Status.OK),
        (4, 16, Status.OK),
        (5, 0, Status.EMPTY),
    ]
    _, rows = described(units)
    rows_of = {number: [row for row in rows if row[0] == number] for number in range(6)}
    assert len(rows_of[0]) == len(rows_of[3]) > 0
    assert [row[5] for row in rows_of[3]] == [row[5] for row in rows_of[0]] == list(range(len(rows_of[0])))
    assert rejoined(units)[3] == b"acguuugcaugcaugc"
    first, second = extraction.inputs
    assert (first.source, first.format, first.num_sequences, first.num_bases) == (str(one), "fasta", 3, 20)
    assert (second.format, second.num_sequences, second.num_bases) == ("fastq", 3, 32)
    assert (first.first_sequence, second.first_sequence) == (0, 3)
    assert first.sha256 == hashlib.sha256(one.read_bytes()).hexdigest()
    assert (extraction.num_duplicate_names, extraction.duplicate_names) == (2, [b"a", b"c"])


def fastq(names, bases="ACGTACGTACGT"):
    return "".join(f"@{name}\n{bases}\n+\n{'I' * len(bases)}\n" for name in names).encode()


@pytest.fixture
def pair(tmp_path):
    """Write the two files of a pair."""

    def write(first, second):
        paths = tmp_path / "reads_1.fastq", tmp_path / "reads_2.fastq"
        for path, names in zip(paths, (first, second), strict=True):
            path.write_bytes(names if isinstance(names, bytes) else fastq(names))
        return paths

    return write


@pytest.mark.parametrize("block_bytes", [1, 20, 1 << 20])
def test_a_pair_is_read_file_by_file_and_its_mates_are_told_apart(pair, block_bytes):
    """Names get ``/1`` and ``/2`` where they lack them; the rest of the header is no part of them."""
    paths = pair(["a 1:N:0", "b/1", "c/3"], ["a 2:N:0", "b/2", "c/3"])
    extraction, units = run([paths], block_bytes=block_bytes)
    assert joined(units, "names") == [b"a/1", b"b/1", b"c/3/1", b"a/2", b"b/2", b"c/3/2"]
    (found,) = extraction.inputs
    assert (found.source, found.mate_source, found.num_sequences) == (*map(str, paths), 6)
    assert [found.sha256, found.mate_sha256] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert extraction.num_duplicate_names == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("SRR1.{}.1", "SRR1.{}.2"),
        ("r{}_1", "r{}_2"),
        ("r{}.R1", "r{}.R2"),
        ("r{}:1", "r{}:2"),
        ("SRR1.{}", "SRR1.{}"),
        ("a:b:{} 1:N:0:ACGT", "a:b:{} 2:N:0:ACGT"),
        ("r{}/1", "r{}/2"),
        ("r{}", "r{}"),
    ],
)
def test_mates_are_known_by_any_usual_naming(pair, one, other):
    """SRA's, Illumina's old and new ones, and names that are the same; numbers of reads are no mates' numbers."""
    paths = pair(*([name.format(i) for i in range(1, 40)] for name in (one, other)))
    extraction, units = run([paths])
    assert extraction.inputs[0].num_sequences == 78
    assert len(set(joined(units, "names"))) == 78


@pytest.mark.parametrize("block_bytes", [100, 1 << 20])
@pytest.mark.parametrize(
    ("first", "second", "advice"),
    [
        (["a", "b", "c"], ["a", "c", "b"], "record 2, c, has another id than record 2"),
        (["a/2"], ["a/1"], "record 1, a/1, has another id"),
        (["a.2"], ["a.1"], "record 1, a.1, has another id"),
        (["a/2"], ["a/2"], "record 1, a/2, has another id"),
        (["a/1"], ["a/1"], "record 1, a/1, has another id"),
        (["a", "b"], ["a"], "holds 1 records, and"),
        (["a"], ["a", "b"], "ends after 1"),
        ([], ["a"], "ends after 0"),
        (["a"], [], "holds 0 records, and"),
        ([f"r{i}" for i in range(2000)], [f"r{i + (i > 1700)}" for i in range(2000)], "record 1,702, r1702,"),
    ],
)
def test_files_that_do_not_hold_mates_are_refused(pair, first, second, advice, block_bytes):
    """A pair has the same reads in the same order in both files, and they are in the right order themselves."""
    paths = pair(first, second)
    with pytest.raises(InputError) as caught:
        run([paths], block_bytes=block_bytes)
    assert caught.value.source == str(paths[1])
    assert advice in caught.value.problem
    assert str(paths[0]) in caught.value.problem


def test_a_pair_of_empty_files_has_no_records(pair):
    """Nothing on both sides is a pair."""
    extraction, units = run([pair([], [])])
    assert (units, extraction.inputs[0].num_sequences) == ([], 0)


def test_a_pair_is_no_place_for_alignments(pair):
    """BAM, CRAM and SAM hold both mates."""
    sam = b"@HD\tVN:1.6\nr1\t4\t*\t0\t0\t*\t*\t0\t0\tACGT\tIIII\n"
    with pytest.raises(InputError, match="Give it alone"):
        run([pair(sam, sam)])


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_no_records_no_units(tmp_path, content):
    """Inputs without records give no unit, and still a summary."""
    path = tmp_path / "empty.fasta"
    path.write_bytes(content)
    extraction, units = run([path, path])
    assert units == []
    assert [(summary.format, summary.num_sequences) for summary in extraction.inputs] == [("empty", 0)] * 2


def test_one_base_records(tmp_path):
    """Records of one base are fragments without rows, and pieces."""
    path = tmp_path / "one_base.fasta"
    path.write_bytes(fasta([(f"r{i}", base) for i, base in enumerate("ACGTN")]))
    _, units = run(path, unit_rows=1)
    assert [len(unit.sequences) for unit in units] == [4, 1]
    assert joined(units, "fragments") == [(i, 0, 0, 1, 0, int(i == 4), 1) for i in range(5)]
    assert rejoined(units) == {i: base.encode() for i, base in enumerate("ACGTN")}


@pytest.mark.parametrize("unit_rows", [1, 5, 6, 7])
def test_fragments_of_six_rows(tmp_path, unit_rows):
    """A fragment with more rows than a unit may hold is a unit of its own."""
    items = [(f"r{i}", "GCC" * (10 + i)) for i in range(9)]
    path = tmp_path / "six.fasta"
    path.write_bytes(fasta(items))
    _, units = run(path, fragment_length=60, unit_rows=unit_rows)
    assert [len(unit) for unit in units] == [6] * 9
    assert described(units) == extract(items, 60)


def test_missing_input_is_found_first(tmp_path):
    """A missing file stops the run before the first unit of the files before it."""
    path = tmp_path / "input.fasta"
    path.write_bytes(b">a\nACGTACGTACGT\n")
    extraction = Extraction([str(path), str(tmp_path / "missing")], fragment_length=30, min_length=1, unit_rows=1)
    with pytest.raises(InputError, match="no such file"):
        next(extraction.units())


def test_settings_that_cannot_be_followed():
    """Standard input is read once; lengths and unit sizes are positive."""
    with pytest.raises(InputError, match="only once"):
        run(["-", "-"])
    with pytest.raises(UsageError, match="fragment length"):
        run([], fragment_length=2)
    with pytest.raises(UsageError, match="at least 1 row"):
        run([], unit_rows=0)


def test_standard_input():
    """'-' is standard input, packed or not."""
    program = (
        "from virnucpro.sequence.extract import Extraction\n"
        "e = Extraction(['-'], fragment_length=30, min_length=1, unit_rows=8)\n"
        "print(sum(len(u.fragments) for u in e.units()), e.inputs[0].source, e.inputs[0].compression)"
    )
    packed = gzip.compress(b">a\n" + b"ACGT" * 30)
    done = subprocess.run([sys.executable, "-c", program], input=packed, capture_output=True, check=True)
    assert done.stdout == b"4 <stdin> gzip\n"


def test_long_record_spans_units(tmp_path):
    """A record of 12 Mb spans many units, none of which holds more than its share."""
    path = tmp_path / "long.fasta"
    bases = np.frombuffer(b"ACGT", dtype=np.uint8)[np.random.default_rng(1).integers(0, 4, 12_000_000, dtype=np.uint8)]
    lines = np.full((200_000, 61), ord("\n"), dtype=np.uint8)
    lines[:, :60] = bases.reshape(-1, 60)
    path.write_bytes(b">long\n" + lines.tobytes())
    digest = hashlib.sha256()
    extraction = Extraction([str(path)], fragment_length=300, min_length=1, unit_rows=1024)
    num_units = num_fragments = num_begun = 0
    for unit in extraction.units():
        num_units += 1
        num_fragments += len(unit.fragments)
        num_begun += len(unit.sequences)
        digest.update(unit.pieces.values)
        assert len(unit.pieces.values) <= 4 * 1024 * 300
    assert (num_fragments, num_begun) == (40_000, 1)
    assert num_units >= 8
    assert digest.digest() == hashlib.sha256(bases).digest()
