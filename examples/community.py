"""A small community of real genomes: fetched from NCBI by accession, cut into contigs whose origin is known.

python examples/community.py community.fasta                             # fetches some 11 MB
python examples/community.py community.fasta --genomes a.fasta b.fna.gz  # takes what is here, fetches the rest
python examples/community.py community.fasta --compare results/community.sequences.tsv
"""

from __future__ import annotations

import argparse
import csv
import gzip
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

KINDS = {
    "NC_001416.1": "virus",  # Enterobacteria phage lambda
    "NC_000866.4": "virus",  # Enterobacteria phage T4
    "NC_001604.1": "virus",  # Enterobacteria phage T7
    "NC_045512.2": "virus",  # Severe acute respiratory syndrome coronavirus 2
    "NC_001699.1": "virus",  # JC polyomavirus
    "NC_000913.3": "bacterium",  # Escherichia coli K-12, with remains of proviruses
    "NC_000964.3": "bacterium",  # Bacillus subtilis 168, with SPbeta
    "NC_000909.1": "archaeon",  # Methanocaldococcus jannaschii
    "NC_001133.9": "yeast",  # Saccharomyces cerevisiae, chromosome I
    "NC_002483.1": "plasmid",  # F of Escherichia coli K-12
}
EFETCH = "https://eutils.ncbi.nlm.nih.gov/entrez/eutils/efetch.fcgi"
SHORTEST_NT, LONGEST_NT = 500, 20_000


def records(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Accession and bases of each record of FASTA."""
    name, parts = "", []
    for line in [*lines, ">"]:
        if line.startswith(">"):
            if name:
                yield name, "".join(parts).upper()
            name, parts = line[1:].split(maxsplit=1)[0] if line[1:].strip() else "", []
        else:
            parts.append(line.strip())


def genomes(files: Iterable[Path]) -> dict[str, str]:
    """All genomes: of files where they are there, else fetched."""
    found: dict[str, str] = {}
    for file in files:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="ascii") as lines:
            found.update(records(lines))
    missing = [accession for accession in KINDS if accession not in found]
    if missing:
        import httpx2  # noqa: PLC0415 - not for files

        asked = {"db": "nuccore", "id": ",".join(missing), "rettype": "fasta", "retmode": "text"}
        answer = httpx2.get(EFETCH, params=asked, timeout=600, follow_redirects=True).raise_for_status()
        found.update(records(answer.text.splitlines()))
    lost = [accession for accession in KINDS if accession not in found]
    if lost:
        sys.exit(f"NCBI did not send {', '.join(lost)}. Try again, or name files of them with --genomes.")
    return {accession: found[accession] for accession in KINDS}


def contigs(community: dict[str, str], number: int, seed: int) -> Iterator[tuple[str, str]]:
    """Header and bases of each contig: a genome at random, a length as assemblers give them, a place, a strand."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    for contig in range(1, number + 1):
        accession, genome = chance.choice(list(community.items()))
        length = min(len(genome), round(SHORTEST_NT * (LONGEST_NT / SHORTEST_NT) ** chance.random()))
        start = chance.randrange(len(genome) - length + 1)
        bases = genome[start : start + length]
        strand = chance.choice("+-")
        if strand == "-":
            bases = bases[::-1].translate(str.maketrans("ACGT", "TGCA"))
        place = f"{accession}:{start + 1}-{start + length}({strand})"
        yield f"contig_{contig:04d} {place} kind={KINDS[accession]}", bases


def compare(fasta: Path, table: Path) -> str:
    """Calls by kind of genome, as a table."""
    kinds = dict(re.findall(r"^>(\S+) .*kind=(\w+)", fasta.read_text(encoding="ascii"), re.MULTILINE))
    with table.open(newline="", encoding="utf-8") as lines:
        counts = Counter((kinds[row["name"]], row["call"]) for row in csv.DictReader(lines, delimiter="\t"))
    calls = ("virus", "uncertain", "not_virus", "no_call")
    rows = [("kind", *calls)]
    rows += [(kind, *(str(counts[kind, call]) for call in calls)) for kind in dict.fromkeys(KINDS.values())]
    return "".join("\t".join(row) + "\n" for row in rows)


def main(arguments: list[str] | None = None) -> None:
    """Write the community, or compare a table with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fasta", type=Path)
    parser.add_argument("--genomes", type=Path, nargs="+", default=[], help="FASTA files of genomes, plain or gzip")
    parser.add_argument("--contigs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compare", type=Path, metavar="TABLE", help="a .sequences.tsv of the community")
    options = parser.parse_args(arguments)
    if options.compare:
        sys.stdout.write(compare(options.fasta, options.compare))
        return
    made = contigs(genomes(options.genomes), options.contigs, options.seed)
    options.fasta.write_text("".join(f">{header}\n{bases}\n" for header, bases in made), encoding="ascii")


if __name__ == "__main__":
    main()
