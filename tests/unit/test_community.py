"""``examples/community.py``: contigs of real genomes whose origin is known; here of made ones, from files."""

from __future__ import annotations

import gzip
import random
import runpy
from pathlib import Path

import pytest

COMMUNITY = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "community.py"))
main, KINDS = COMMUNITY["main"], COMMUNITY["KINDS"]
CALLS = {
    "virus": "virus",
    "bacterium": "not_virus",
    "archaeon": "not_virus",
    "yeast": "uncertain",
    "plasmid": "no_call",
}


@pytest.fixture
def made(tmp_path):
    """Genomes in lines of 60 bases, half of them in a gzip file."""
    chance = random.Random(0)
    genomes = {accession: "".join(chance.choices("ACGTN", [9, 9, 9, 9, 1], k=30_000)) for accession in KINDS}
    for half, name in enumerate(("a.fasta", "b.fna.gz")):
        text = ""
        for accession in list(genomes)[half::2]:
            lines = [genomes[accession][start : start + 60] for start in range(0, 30_000, 60)]
            text += f">{accession} a made genome\n" + "\n".join(lines).lower() + "\n"
        (tmp_path / name).write_bytes(gzip.compress(text.encode()) if half else text.encode())
    return tmp_path, genomes


def test_contigs_are_pieces_of_the_genomes_they_name(made):
    """By coordinates from 1, on the strand that the header says; the same seed gives the same bytes."""
    folder, genomes = made
    files = ["--genomes", str(folder / "a.fasta"), str(folder / "b.fna.gz")]
    for name in ("one.fasta", "two.fasta"):
        main([str(folder / name), "--contigs", "60", *files])
    text = (folder / "one.fasta").read_text()
    assert text == (folder / "two.fasta").read_text()
    headers = text.splitlines()[::2]
    assert len(headers) == 60
    for header, bases in zip(headers, text.splitlines()[1::2], strict=True):
        _, place, kind = header.split()
        accession, span = place.split(":")
        start, stop = map(int, span[:-3].split("-"))
        piece = genomes[accession][start - 1 : stop]
        assert kind == f"kind={KINDS[accession]}"
        assert bases == (piece if span.endswith("(+)") else piece[::-1].translate(str.maketrans("ACGT", "TGCA")))


def test_calls_are_counted_by_kind(made, capsys):
    """A row a kind of genome; each sequence is counted once."""
    folder, _ = made
    main([str(folder / "c.fasta"), "--contigs", "80", "--genomes", str(folder / "a.fasta"), str(folder / "b.fna.gz")])
    rows = ["name\tcall"]
    for header in (folder / "c.fasta").read_text().splitlines()[::2]:
        name, _, kind = header[1:].split()
        rows.append(f"{name}\t{CALLS[kind.removeprefix('kind=')]}")
    (folder / "t.tsv").write_text("\n".join(rows) + "\n")
    main([str(folder / "c.fasta"), "--compare", str(folder / "t.tsv")])
    head, *counted = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert sum(int(cell) for _, *cells in counted for cell in cells) == 80
    for kind, *cells in counted:
        assert [call for call, cell in zip(head[1:], cells, strict=True) if cell != "0"] == [CALLS[kind]]
