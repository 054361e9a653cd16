"""Lineages of hits: names, votes, the files, the sunburst, and references of one's own."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from textwrap import wrap

import numpy as np
import pytest
from conftest import read_tsv
from hypothesis import given
from hypothesis import strategies as st
from made_tables import line, table_of, with_genes, write_run

from virnucpro.embeddings.files import About, EncoderFacts, write_embeddings
from virnucpro.embeddings.levels import KEY_DTYPE, Embeddings
from virnucpro.embeddings.taxa import read_reference
from virnucpro.errors import StoreError, UsageError
from virnucpro.hierarchy.tables import read_tsv as read_table
from virnucpro.nearest.table import make_table
from virnucpro.request import Options
from virnucpro.results import sunburst
from virnucpro.results.called import InputResults
from virnucpro.results.calls import Calling
from virnucpro.results.lineages import TaxonCount, find_lineages
from virnucpro.results.outputs import OUTPUTS, TAXONOMY_OUTPUTS
from virnucpro.results.page import Templates
from virnucpro.results.schema import TAXA, TAXONOMY
from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.table import Status
from virnucpro.taxonomy import RANKS, lineages
from virnucpro.taxonomy.lineages import Names, common, ictv
from virnucpro.taxonomy.naming import Votes, name

POTY = ictv().lineage("Potyviridae")
TAILED = ictv().lineage("Caudoviricetes")


def votes(*groups, length=3000):
    """Votes of (group, bits to viruses, bits to cells)."""
    taxa = [ictv().lineage_of_group(group) for group, *_ in groups]
    return Votes(taxa, np.array([bits for _, *bits in groups], dtype=np.float32).reshape(-1, 2), length)


def test_every_bundled_name_has_a_lineage_whose_ranks_descend():
    """From the tree's top to the name itself, each rank once."""
    for taxon in read_table(Path(lineages.__file__).with_name("ictv.tsv")).names.values():
        lineage = ictv().lineage(taxon)
        places = [RANKS.index(rank) for rank, _ in lineage]
        assert places == sorted(set(places))
        assert lineage or taxon == "Viruses"
    assert [taxon for _, taxon in POTY] == [
        *("Riboviria", "Orthornavirae", "Pisuviricota", "Stelpaviricetes", "Patatavirales", "Potyviridae")
    ]


@pytest.mark.parametrize(
    ("group", "deepest"),
    [
        ("Potyviridae", "Potyviridae"),
        ("Lavidaviridae(EMALE)", "Lavidaviridae"),
        ("unclassified Tymovirales", "Tymovirales"),
        ("Asfarviridae-like(Asfuvirales)", "Asfuvirales"),
        ("Iridoviridae_PM_02", "Iridoviridae"),
        ("v1-phylum:Lenarviricota_class:Miaviricetes_order:Ourlivirales_fami", "Ourlivirales"),
        ("Bunyavirales", "Bunyaviricetes"),
        ("Picornavira", "Picornavirales"),
        ("Pico", "Pisuviricota"),
        ("Caud", "Caudoviricetes"),
        ("phage", None),
        ("NA", None),
        ("R", None),
        ("p1 Sp_25 Bacteria_Proteo", None),
    ],
)
def test_a_group_is_its_deepest_known_name_or_what_a_cut_one_may_be(group, deepest):
    """What could be several names is what they share; what is no taxon has no lineage."""
    lineage = ictv().lineage_of_group(group)
    assert (lineage[-1][1] if lineage else None) == deepest


def test_a_circle_ends_where_it_closes(tmp_path):
    """A table that leads in a circle does not hang."""
    (tmp_path / "t.tsv").write_text("name\tparent\trank\na\tb\tfamily\nb\ta\torder\n")
    assert Names(read_table(tmp_path / "t.tsv")).lineage("a") == (("order", "b"), ("family", "a"))
    assert common([]) == ()


def test_near_proteins_of_one_family_name_it():
    """Down to the family, and not novel."""
    named = name(votes(("Potyviridae", 300, 0), ("Potyviridae", 150, 30)))
    assert (named.lineage, named.is_novel) == (POTY, False)
    assert named.confidence > 0.9


def test_near_proteins_whose_family_nobody_knows_name_what_is_known():
    """A class, and no novelty: the protein is as near as one of the same family."""
    named = name(votes(("Caudoviricetes", 400, 0), ("NA", 200, 0)))
    assert (named.lineage, named.is_novel) == (TAILED, False)


@pytest.mark.parametrize(
    "weak", [votes(), votes(("Potyviridae", 0, 0)), votes(("Potyviridae", 31, 0), ("Circoviridae", 30, 40))]
)
def test_what_is_near_to_nothing_is_novel(weak):
    """Without a name."""
    named = name(weak)
    assert (named.lineage, named.is_novel) == ((), True)
    assert np.isnan(named.confidence)


def test_families_that_disagree_leave_what_they_share():
    """Two families of one order: the order at most."""
    named = name(votes(("Betaflexiviridae", 200, 0), ("Tymoviridae", 200, 0)))
    assert [taxon for _, taxon in named.lineage][-1] == "Tymovirales"


def test_a_hit_that_is_as_near_to_cells_is_named_with_less_confidence():
    """Genes that viruses took from cells tell little."""
    assert name(votes(("Potyviridae", 120, 0))).confidence > 0.9
    assert name(votes(("Potyviridae", 120, 150))).lineage == ()


@given(st.permutations([("Potyviridae", 90, 10), ("Caudoviricetes", 90, 0), ("NA", 60, 0), ("Circoviridae", 35, 0)]))
def test_the_order_of_votes_changes_nothing(groups):
    """Ties go by name."""
    assert repr(name(votes(*groups))) == repr(name(votes(*sorted(groups))))


PROTEIN = "".join(random.Random(3).choices("ACDEFGHIKLMNPQRSTVWY", k=300))
CODONS = dict(
    zip("ACDEFGHIKLMNPQRSTVWY", wrap("GCTTGTGATGAATTTGGTCATATTAAACTTATGAATCCTCAACGTTCTACTGTTTGGTAT", 3), strict=True)
)
SHORT = "".join(CODONS[residue] for residue in PROTEIN)


class Bases:
    """The bases of sequences, cut in two pieces each; 0 is the short one that codes for ``PROTEIN``."""

    def units(self, strings):
        del strings
        return iter(())

    def bases(self):
        for number, bases in enumerate((SHORT, "A" * 4000, "A" * 3000, "ACGT" * 100)):
            pieces = Ragged.from_bytes([bases[:70].encode(), bases[70:].encode()])
            yield pieces, np.array([number, number]), Ragged.from_bytes([b"", b""])


@pytest.fixture
def results():
    """A short virus, a long one with genes, a host, and a short one near to nothing."""
    lines = [line("short", 900, 0.99), line("long", 4000, 0.99), line("host", 3000, 0.01), line("odd", 400, 0.99)]
    table = replace(with_genes(table_of(lines)), organisms={7: ("made phage", "Straboviridae")})
    return InputResults.of(table, Calling(threshold=0.5, prevalence=0.5), Bases())


@pytest.fixture
def proteins():
    """A table of one viral and one cellular protein."""
    cell = "".join(random.Random(4).choices("ACDEFGHIKLMNPQRSTVWY", k=200))
    owners = [("made potyvirus", "Potyviridae", "virus"), ("cell", "Escherichia", "bacteria")]
    return make_table(Ragged.from_bytes([PROTEIN.encode(), cell.encode()]), owners)


def test_genes_name_longer_hits_and_fragments_shorter_ones(results, proteins):
    """One line for each virus region, in their order; hosts have none."""
    found = find_lineages(results, proteins)
    assert [hit.named.lineage[-1][1] if hit.named.lineage else None for hit in found.hits] == [
        *("Potyviridae", "Straboviridae", None)
    ]
    assert [hit.nearest for hit in found.hits] == ["made potyvirus", "made phage", ""]
    assert [hit.named.is_novel for hit in found.hits] == [False, False, True]


def test_without_bases_shorter_hits_are_unknown_and_not_novel(results, proteins):
    """Nobody looked."""
    found = find_lineages(InputResults.of(results.table, results.calling), proteins)
    assert [hit.named.is_novel for hit in found.hits] == [False] * 3
    assert ("unknown",) in [taxon.lineage for taxon in found.counts]


def test_the_files_agree(results, proteins, tmp_path):
    """Lines, counts, the tree and Krona's text; they go where nobody asks."""
    asked = replace(results, lineages=find_lineages(results, proteins))
    for output in TAXONOMY_OUTPUTS:
        output.write(asked, tmp_path, "in", Options())
    lines = read_tsv(tmp_path / "in.taxonomy.tsv")
    assert tuple(lines[0]) == TAXONOMY.header
    assert [hit["family"] for hit in lines] == ["Potyviridae", "Straboviridae", "NA"]
    assert [hit["novel"] for hit in lines] == ["no", "no", "yes"]
    counts = read_tsv(tmp_path / "in.taxonomy.counts.tsv")
    assert tuple(counts[0]) == TAXA.header
    assert sum(int(taxon["num_here"]) for taxon in counts) == len(lines)
    assert sum(int(taxon["num_hits"]) for taxon in counts if ";" not in taxon["lineage"]) == len(lines)
    krona = [row.split("\t") for row in (tmp_path / "in.taxonomy.krona.txt").read_text().splitlines()]
    assert sorted(";".join(row[1:]) for row in krona) == sorted(t["lineage"] for t in counts if t["num_here"] != "0")
    newick = (tmp_path / "in.taxonomy.nwk").read_text()
    assert sorted(re.findall("'([^']+)'", newick)) == sorted(t["lineage"].split(";")[-1] for t in counts)
    assert newick.count("(") == newick.count(")")
    assert sunburst.read_counts(tmp_path / "in.taxonomy.counts.tsv") == asked.lineages.counts
    for output in OUTPUTS:
        output.write(results, tmp_path, "in", Options())
    assert not list(tmp_path.glob("*taxonomy*"))


def test_the_sunburst_leads_everywhere_and_runs_nothing():
    """A view for each taxon that has others below it; names are text; no script, no address but of the page."""
    evil = '<script>"&'
    counts = [
        TaxonCount(("A",), "realm", 5, 50, 1),
        TaxonCount(("A", "B"), "class", 3, 30, 0),
        TaxonCount(("A", "B", evil), "family", 3, 30, 3),
        TaxonCount(("A", "novel in A"), "", 1, 10, 1),
        TaxonCount(("novel",), "", 2, 20, 2),
    ]
    template = Templates("virnucpro.results").get_template("sunburst.html.j2")
    drawn = template.render(sunburst=sunburst.views(counts))
    views = re.findall('id="(taxon-[0-9]+)"', drawn)
    assert len(views) == 3
    assert set(re.findall('href="#([^"]+)"', drawn)) <= set(views)
    assert "<script" not in drawn
    assert "&lt;script&gt;&#34;&amp;" in drawn
    assert "http" not in drawn
    assert "NaN" not in drawn
    assert sunburst.views([]) == []


@pytest.mark.parametrize("content", ["", "lineage\n", "\t".join(TAXA.header) + "\nA\tclass\tx\t1\t1\n", "\xff"])
def test_counts_that_are_damaged_are_named(content, tmp_path):
    """With the file."""
    path = tmp_path / "in.taxonomy.counts.tsv"
    path.write_text(content, encoding="latin1")
    with pytest.raises(StoreError, match=re.escape(str(path))):
        sunburst.read_counts(path)


def test_a_finished_run_is_named_and_its_page_shows_it(virnucpro, tmp_path):
    """``virnucpro taxonomy``, which leaves digests of other inputs alone; ``call`` names the new hits as well."""
    root = write_run(tmp_path / "run", [line("long", 4000, 0.99), line("host", 3000, 0.01, Status.OK)])
    assert virnucpro("report", root, "-q").code == 0
    assert 'id="taxonomy"' not in (root / "in.report.html").read_text()
    record = root / "in.run.json"
    record.write_text('{"outputs": {"other.taxonomy.tsv": "sha256:0"}}')
    ended = virnucpro("taxonomy", root, "-q", "-t", "1")
    assert (ended.code, ended.out) == (0, "in: 1 hits, 0 named, 0 novel\n")
    assert json.loads(record.read_text())["outputs"].keys() >= {"other.taxonomy.tsv", "in.taxonomy.tsv"}
    page = (root / "in.report.html").read_text()
    assert 'id="taxonomy"' in page
    assert page.count("<script") == 1  # that of the search box
    assert virnucpro("call", root, "--threshold", "0.999", "--prevalence", "0.5", "-q").code == 0
    assert len((root / "in.taxonomy.tsv").read_text().splitlines()) == 1
    refused = virnucpro("taxonomy", root, "--reference", "x.h5")
    assert (refused.code, "go together" in refused.err) == (2, True)


TAXDUMP = {1: ("root", 1, "no rank"), 2: ("Madevirales", 1, "order"), 3: ("Madeviridae", 2, "family")} | {
    4: ("Otherviridae", 2, "family"), 5: ("Made virus", 3, "species"), 6: ("Other virus", 4, "species")
}  # fmt: skip


@pytest.fixture
def taxdump(tmp_path):
    """Two families of one order, as NCBI writes them."""
    folder = tmp_path / "taxdump"
    folder.mkdir()
    nodes = "".join(f"{n}\t|\t{parent}\t|\t{rank}\t|\n" for n, (_, parent, rank) in TAXDUMP.items())
    (folder / "nodes.dmp").write_text(nodes)
    names = "".join(f"{n}\t|\t{taxon}\t|\t\t|\tscientific name\t|\n" for n, (taxon, *_) in TAXDUMP.items())
    (folder / "names.dmp").write_text(names)
    return folder


def embeddings(path, ids, rows):
    """A file of embeddings, a row a sequence."""
    keys = np.zeros(len(ids), dtype=KEY_DTYPE)
    keys["sequence"] = np.arange(len(ids))
    counts, values = np.ones(len(ids), np.int32), np.array(rows, dtype=np.float32)
    made = Embeddings(ids, np.full(len(ids), 9), "sequence", keys, {"e": counts}, {"e": values})
    write_embeddings(path, made, About("sequence", "single", (EncoderFacts("e", "f", "float32", values.shape[1]),)))
    return path


def test_a_reference_of_ones_own_names_by_the_nearest_as_deep_as_it_is_right_itself(tmp_path, taxdump):
    """Ids are names of the taxonomy, also behind bars; what lies beyond its own neighbours is not named."""
    ids = ["x1|Made_virus", "x2|Made_virus", "Other_virus", "y2|Other virus", "unheard"]
    rows = [[1, 0, 0.1], [1, 0.1, 0], [0, 1, 0.1], [0.1, 1, 0], [0, 0, -1]]
    reference = read_reference(embeddings(tmp_path / "known.npz", ids, rows), taxdump)
    assert reference.name(0, 0.995).lineage == (
        *(("order", "Madevirales"), ("family", "Madeviridae"), ("species", "Made virus")),
    )
    far = reference.name(0, 0.3)
    assert (far.lineage, far.is_novel) == ((), True)
    assert reference.name(4, 0.99).lineage == ()
    assert not reference.name(-1, float("nan")).is_novel
    with pytest.raises(UsageError, match="no id is a name"):
        read_reference(embeddings(tmp_path / "odd.npz", ["a", "b"], [[1, 0], [0, 1]]), taxdump)
