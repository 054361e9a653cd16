"""Viruses put into host genomes of the dev part: how many are found, with which borders, and what is found besides.

Protocol: the pieces of a host genus are laid end to end and cut into contigs; pieces of viruses, or whole ones, of
either strand are put between their bases, families as likely as each other. Hosts are dealt to two folds by genus
and viruses by record, so that settings can be chosen on one fold and looked at on the other.

Real genomes hold real proviruses. A region that is also found in the unmodified host is counted as false all the same,
and once more apart (``false_not_in_host`` are the others).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.bundles import Bundle, load_bundle
from virnucpro.results.regions import Region, find_proviruses
from virnucpro.run_dir import write_json
from virnucpro.sequence.fragments import windows
from virnucpro.training.dev import LETTERS, Model, cut_rows, join_rows, load_model
from virnucpro.training.genomes import VIRUS, Genomes, load_genomes, select
from virnucpro.training.sampling import reverse_complement

_LOG = logging.getLogger(__name__)

PROKARYOTES = ("bacteria", "archaea")
EUKARYOTES = ("fungi", "invertebrate", "plant", "protozoa", "vertebrate")
PHAGES = (
    "Autotranscriptaviridae",
    "Caudoviricetes",
    "Crassvirales(order)",
    "Drexlerviridae",
    "Herelleviridae",
    "Mesyanzhinovviridae",
    "Straboviridae",
)
EUKARYOTIC_DNA_VIRUSES = ("Adenoviridae", "Baculoviridae", "Lavidaviridae", "Lavidaviridae(EMALE)", "Mimiviridae")
GUESTS = {
    **dict.fromkeys(PROKARYOTES, PHAGES),
    **dict.fromkeys(EUKARYOTES, EUKARYOTIC_DNA_VIRUSES),
}
"""Host class to the families that are put into it."""
BORDER_NT = 1000
"""An insertion counts as found exactly when both borders are at most so far off."""


@dataclass(frozen=True)
class Plan:
    """What is simulated.

    Attributes:
        shortest_contig_nt: host bases of the shortest contig; lengths are log-uniform up to
        longest_contig_nt: the longest.
        shortest_insertion_nt: bases of the shortest insertion; lengths are log-uniform up to
        longest_insertion_nt: the longest. A virus that is shorter is put in whole.
        host_nt_an_insertion: host bases for each insertion, on average.
        margin_nt: host bases between an insertion and the next, or an end of the contig.
    """

    shortest_contig_nt: int = 100_000
    longest_contig_nt: int = 500_000
    shortest_insertion_nt: int = 10_000
    longest_insertion_nt: int = 60_000
    host_nt_an_insertion: int = 70_000
    margin_nt: int = 10_000


@dataclass(frozen=True)
class Insertion:
    """A virus within a contig.

    Attributes:
        start: 0-based, on the contig.
        stop: one after its last base.
        virus: id of its record.
        family: of the virus.
        split: ``dev_novel`` or ``dev_seen``.
    """

    start: int
    stop: int
    virus: str
    family: str
    split: str


@dataclass(frozen=True)
class Contig:
    """A host contig with its insertions.

    Attributes:
        name: unique.
        host: class of the host.
        genus: of the host.
        codes: (n,) uint8 base codes.
        insertions: in order of their starts.
    """

    name: str
    host: str
    genus: str
    codes: NDArray[np.uint8]
    insertions: tuple[Insertion, ...]

    @property
    def host_nt(self) -> int:
        """Bases that are not of an insertion."""
        return len(self.codes) - sum(item.stop - item.start for item in self.insertions)

    def without_insertions(self) -> Contig:
        """The host as it was."""
        is_host = np.ones(len(self.codes), dtype=bool)
        for item in self.insertions:
            is_host[item.start : item.stop] = False
        return Contig(self.name, self.host, self.genus, self.codes[is_host], ())

    def host_position(self, position: int) -> int:
        """Where a position of this contig is on the contig without insertions."""
        return position - sum(
            min(item.stop, position) - item.start for item in self.insertions if item.start < position
        )


def simulate(genomes: Genomes, plan: Plan, seed: int, fold: int) -> list[Contig]:
    """Contigs of every genus of a fold (0 or 1), with insertions of that fold's viruses."""
    contigs: list[Contig] = []
    for host, families in GUESTS.items():
        genera = sorted(set(genomes.groups[genomes.classes == host].tolist()))
        for number in range(fold, len(genera), 2):
            generator = np.random.default_rng([seed, len(contigs)])
            for stretch in _host_contigs(genomes, host, genera[number], plan, generator):
                name = f"{host}_{len(contigs) + 1:03d}"
                codes, insertions = _insert(genomes, stretch, families, plan, fold, generator)
                contigs.append(Contig(name, host, genera[number], codes, insertions))
    return contigs


def _host_contigs(
    genomes: Genomes, host: str, genus: str, plan: Plan, generator: np.random.Generator
) -> Iterator[NDArray[np.uint8]]:
    """All pieces of a genus end to end, cut by ``plan``; what is left over and too short for a contig is dropped."""
    records = np.flatnonzero((genomes.classes == host) & (genomes.groups == genus))
    whole = np.concatenate([_codes(genomes, record) for record in records.tolist()])
    start = 0
    while len(whole) - start >= plan.shortest_contig_nt:
        length = _log_uniform(generator, plan.shortest_contig_nt, plan.longest_contig_nt)
        yield whole[start : start + length]
        start += length


def _insert(
    genomes: Genomes,
    host: NDArray[np.uint8],
    families: Sequence[str],
    plan: Plan,
    fold: int,
    generator: np.random.Generator,
) -> tuple[NDArray[np.uint8], tuple[Insertion, ...]]:
    """Put viruses between the bases of ``host``."""
    room = len(host) - plan.margin_nt
    expected = len(host) / plan.host_nt_an_insertion
    count = min(int(expected + generator.random()), room // plan.margin_nt)
    # Drawn with their margins taken away and put back: every legal set of places is as likely.
    free = np.sort(generator.integers(room - count * plan.margin_nt + 1, size=count))
    places = free + plan.margin_nt * np.arange(1, count + 1)
    parts, insertions, length, last = [], [], 0, 0
    for place in places.tolist():
        virus, record = _draw_virus(genomes, families, plan, fold, generator)
        parts += [host[last:place], virus]
        length += place - last
        insertions.append(
            Insertion(
                length,
                length + len(virus),
                str(genomes.ids[record]),
                str(genomes.groups[record]),
                str(genomes.splits[record]),
            )
        )
        length += len(virus)
        last = place
    return np.concatenate([*parts, host[last:]]), tuple(insertions)


def _draw_virus(
    genomes: Genomes, families: Sequence[str], plan: Plan, fold: int, generator: np.random.Generator
) -> tuple[NDArray[np.uint8], int]:
    """A piece of a virus, families as likely as each other, either strand; and its record."""
    records = select(genomes, lambda kind, group, _split: kind == VIRUS and group in families)
    records = records[genomes.lengths[records] >= plan.shortest_insertion_nt][fold::2]
    family = generator.choice(np.unique(genomes.groups[records]))
    record = int(generator.choice(records[genomes.groups[records] == family]))
    codes = _codes(genomes, record)
    length = min(_log_uniform(generator, plan.shortest_insertion_nt, plan.longest_insertion_nt), len(codes))
    start = int(generator.integers(len(codes) - length + 1))
    piece = codes[start : start + length]
    return (reverse_complement(piece[None])[0] if generator.random() < 0.5 else piece), record


def _codes(genomes: Genomes, record: int) -> NDArray[np.uint8]:
    return genomes.codes[genomes.offsets[record] : genomes.offsets[record + 1]]


def _log_uniform(generator: np.random.Generator, low: int, high: int) -> int:
    return int(np.exp(generator.uniform(np.log(low), np.log(high + 1))))


@dataclass(frozen=True)
class Finding:
    """What was found in one contig.

    Attributes:
        contig: with insertions.
        regions: in it.
        host_regions: in the same contig without insertions.
    """

    contig: Contig
    regions: list[Region]
    host_regions: list[Region]


@dataclass(frozen=True)
class Match:
    """An insertion and the region that covers more than half of it.

    Attributes:
        contig: that it is in.
        insertion: the truth.
        region: None where the insertion was missed.
    """

    contig: Contig
    insertion: Insertion
    region: Region | None

    @property
    def errors_nt(self) -> tuple[int, int]:
        """How far start and stop of the region are from the truth; positive is to the right."""
        if self.region is None:
            raise ValueError("a missed insertion has no borders")
        return self.region.start - self.insertion.start, self.region.stop - self.insertion.stop

    def is_within(self, nt: int) -> bool:
        """Whether it was found and both borders are at most ``nt`` off."""
        return self.region is not None and max(map(abs, self.errors_nt)) <= nt


def find_in_contig(bundle: Bundle, model: Model, contig: Contig) -> Finding:
    """Regions of a contig with and without its insertions."""
    host = contig.without_insertions()
    return Finding(contig, _find(bundle, model, contig.codes), _find(bundle, model, host.codes))


def _find(bundle: Bundle, model: Model, codes: NDArray[np.uint8]) -> list[Region]:
    """Cut, score and find as the pipeline does."""
    rows = cut_rows(LETTERS[codes][None], bundle.fragment_length)
    joined = join_rows(rows, model.log_odds(rows), bundle.row_rule)
    log_odds = bundle.calibration.fragment_log_odds(joined, rows.lengths)
    return find_proviruses(windows(len(codes), bundle.fragment_length), log_odds)


def match_insertions(finding: Finding) -> list[Match]:
    """Each insertion with its region."""
    matches = []
    for insertion in finding.contig.insertions:
        covering = [r for r in finding.regions if 2 * _overlap_nt(r, insertion) > insertion.stop - insertion.start]
        matches.append(Match(finding.contig, insertion, covering[0] if covering else None))
    return matches


def false_regions(finding: Finding) -> list[Region]:
    """Regions less than half of which is inserted."""
    insertions = finding.contig.insertions
    return [r for r in finding.regions if 2 * sum(_overlap_nt(r, item) for item in insertions) < r.stop - r.start]


def is_in_host(finding: Finding, region: Region) -> bool:
    """Whether a region overlaps one that was found without insertions."""
    start, stop = finding.contig.host_position(region.start), finding.contig.host_position(region.stop)
    return any(start < other.stop and other.start < stop for other in finding.host_regions)


def _overlap_nt(region: Region, insertion: Insertion) -> int:
    return max(0, min(region.stop, insertion.stop) - max(region.start, insertion.start))


def describe(findings: Sequence[Finding], strongest: int = 10) -> dict[str, Any]:
    """Figures of some contigs; ``strongest`` is how many of the false regions are listed."""
    matches = [match for finding in findings for match in match_insertions(finding)]
    false = [(finding, region) for finding in findings for region in false_regions(finding)]
    host_nt = sum(finding.contig.host_nt for finding in findings)
    errors = np.abs([match.errors_nt for match in matches if match.region is not None]).ravel()
    num_new = sum(not is_in_host(finding, region) for finding, region in false)

    def per_5_mb(count: int) -> float:
        return round(count * 5_000_000 / max(host_nt, 1), 2)

    return {
        "host_nt": host_nt,
        **_recall(matches),
        "by_split": _recall_by(matches, lambda match: match.insertion.split),
        "by_length": _recall_by(matches, _length_class),
        "by_genus": _recall_by(matches, lambda match: match.contig.genus),
        "border_error_nt": {
            f"quantile_{share}": float(np.quantile(errors, share)) for share in (0.5, 0.75, 0.9) if len(errors)
        },
        "false": len(false),
        "false_per_5_mb": per_5_mb(len(false)),
        "false_not_in_host": num_new,
        "false_not_in_host_per_5_mb": per_5_mb(num_new),
        "in_unmodified_host_per_5_mb": per_5_mb(sum(len(finding.host_regions) for finding in findings)),
        "strongest_false": [
            {
                "contig": finding.contig.name,
                "genus": finding.contig.genus,
                "in_unmodified_host": is_in_host(finding, region),
                **asdict(region),
            }
            for finding, region in sorted(false, key=lambda item: -item[1].score)[:strongest]
        ],
    }


def _recall(matches: Sequence[Match]) -> dict[str, float]:
    found = sum(match.region is not None for match in matches)
    exact = sum(match.is_within(BORDER_NT) for match in matches)
    return {
        "insertions": len(matches),
        "found": found,
        "missed": len(matches) - found,
        "both_borders_within_1_kb": exact,
        "share_within_1_kb": round(exact / max(len(matches), 1), 3),
    }


def _recall_by(matches: Sequence[Match], group: Callable[[Match], str]) -> dict[str, dict[str, float]]:
    names = sorted({group(match) for match in matches})
    return {name: _recall([match for match in matches if group(match) == name]) for name in names}


def _length_class(match: Match) -> str:
    length = match.insertion.stop - match.insertion.start
    return "10-15 kb" if length < 15_000 else "15-30 kb" if length < 30_000 else "30 kb and more"


def measure_insertions(data: Path, bundle_folder: Path, output: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Simulate, find and count, a part for each fold and each kind of host; writes ``output/insertions.json``."""
    genomes = load_genomes(data, "dev")
    bundle = load_bundle(str(bundle_folder))
    model = load_model(bundle)
    figures: dict[str, Any] = {"model_fingerprint": bundle.fingerprint, "seeds": list(seeds)}
    for fold in (0, 1):
        findings = []
        for seed in seeds:
            contigs = simulate(genomes, Plan(), seed, fold)
            findings += [find_in_contig(bundle, model, contig) for contig in contigs]
            _LOG.info("fold %d, seed %d: %d contigs", fold, seed, len(contigs))
        for name, hosts in (("prokaryotes", PROKARYOTES), ("eukaryotes", EUKARYOTES)):
            figures[f"{name}_fold_{fold}"] = describe([item for item in findings if item.contig.host in hosts])
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "insertions.json", figures)
    return figures
