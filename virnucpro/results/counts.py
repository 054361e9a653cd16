"""What the results of an input add up to, and its summary."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from virnucpro.results.called import InputResults
from virnucpro.results.calls import CALLS, STATUS_NAMES, Call
from virnucpro.results.formats import Cells
from virnucpro.results.outputs import PROVIRUS, WHOLE
from virnucpro.results.prevalence import Prevalence


@dataclass
class Counts:
    """What was found in an input."""

    # call to number of sequences
    calls: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CALLS, 0))
    # status to number of sequences
    statuses: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATUS_NAMES.values(), 0))
    # call to number of bases
    bases: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CALLS, 0))
    fragments: int = 0  # all of them
    scored_fragments: int = 0  # how many of them have a score
    masked_fragments: int = 0  # how many of them are masked
    # frame name to number of rows (``N0``: scored from nucleotides alone)
    frames: dict[str, int] = field(default_factory=dict)
    num_failed_rows: int = 0  # rows that could not be computed
    regions: dict[str, int] = field(default_factory=lambda: {WHOLE: 0, PROVIRUS: 0})  # kind to number of virus regions
    # kind to number of bases in them
    region_bases: dict[str, int] = field(default_factory=lambda: {WHOLE: 0, PROVIRUS: 0})
    virus_fdr: float = math.nan  # estimated share of false calls among what is called virus; NaN if nothing is
    # in a cascade, model to number of sequences that it decided
    sequences_by_model: dict[str, int] = field(default_factory=dict)
    bases_by_model: dict[str, int] = field(default_factory=dict)  # in a cascade, model to number of bases in them

    @property
    def num_sequences(self) -> int:
        """Of all calls."""
        return sum(self.calls.values())

    @property
    def num_bases(self) -> int:
        """Of all calls."""
        return sum(self.bases.values())

    @classmethod
    def of(cls, results: InputResults, frames: Mapping[str, int]) -> Counts:
        """Count an input; ``frames`` are its rows by frame, which the table of fragments does not hold."""
        counts = cls(frames=dict(frames))
        for model in results.models:
            counts.sequences_by_model[model.decode()] = counts.bases_by_model[model.decode()] = 0
        for part in results.parts():
            counts._add(part)
        virus = np.unique(results.proviruses["sequence"]) - results.table.first
        virus = virus[results.calls["call"][virus] == Call.VIRUS]  # those that have proviruses
        counts.regions[PROVIRUS] = len(results.proviruses)
        counts.regions[WHOLE] = counts.calls["virus"] - len(virus)
        counts.region_bases[PROVIRUS] = int((results.proviruses["stop"] - results.proviruses["start"]).sum())
        counts.region_bases[WHOLE] = counts.bases["virus"] - int(results.table.sequences["length"][virus].sum())
        return counts

    def _add(self, part: InputResults) -> None:
        sequences, fragments, calls = part.table.sequences, part.table.fragments, part.calls
        lengths = sequences["length"]
        for call, name in enumerate(CALLS):
            is_its = calls["call"] == call
            self.calls[name] += int(is_its.sum())
            self.bases[name] += int(lengths[is_its].sum())
        # The rate of the least likely sequence that is called virus is that of all of them.
        rates = calls["fdr"][calls["call"] == Call.VIRUS]
        self.virus_fdr = float(np.fmax.reduce(rates, initial=self.virus_fdr))
        for status, name in STATUS_NAMES.items():
            self.statuses[name] += int((calls["status"] == status).sum())
        for model, title in enumerate(part.models):
            is_its = sequences["model"] == model
            self.sequences_by_model[title.decode()] += int(is_its.sum())
            self.bases_by_model[title.decode()] += int(lengths[is_its].sum())
        self.fragments += len(fragments)
        self.scored_fragments += int((~np.isnan(fragments["log_odds"])).sum())
        self.masked_fragments += int((fragments["masked"] > 0).sum())
        self.num_failed_rows += int(sequences["num_failed"].sum())


def sample_cells(counted: Mapping[str, Counts]) -> Cells:
    """A line for each sample, ``schema.SAMPLES``; percentages are NaN where there is nothing to divide by.

    Args:
        counted: name of each sample to what was found in it.
    """
    sequences, bases = (
        np.array([list(of_call.values()) for of_call in amounts])
        for amounts in ([each.calls for each in counted.values()], [each.bases for each in counted.values()])
    )
    with np.errstate(invalid="ignore"):
        percent = [100 * each[:, 0] / each.sum(axis=1) for each in (sequences, bases)]
    return [name.encode() for name in counted], sequences.sum(axis=1), bases.sum(axis=1), *sequences.T, *percent


def total(counted: Iterable[Counts]) -> Counts:
    """What was found in all inputs; ``virus_fdr`` is of one input alone and stays out."""
    whole = Counts()
    for counts in counted:
        for name, value in vars(counts).items():
            ours = getattr(whole, name)
            if isinstance(value, dict):
                for key, number in value.items():
                    ours[key] = ours.get(key, 0) + number
            elif isinstance(value, int):
                setattr(whole, name, ours + value)
    return whole


def summary(results: InputResults, counts: Counts, source: str, cascade: Mapping[str, Any] | None) -> dict[str, Any]:
    """What ``.summary.json`` holds."""
    rules = results.table.rules[0]
    by_model = {"sequences_by_model": counts.sequences_by_model, "bases_by_model": counts.bases_by_model}
    return {
        "input": source,
        "model": rules.name,
        "model_fingerprint": rules.fingerprint,
        "calls_digest": results.digest,
        **results.calling.described(rules),
        **_described(results.prevalence),
        "num_sequences": len(results.table),
        "sequences_by_call": counts.calls,
        "sequences_by_status": counts.statuses,
        "fdr_of_virus": None if math.isnan(counts.virus_fdr) else round(counts.virus_fdr, 4),
        "num_bases": counts.num_bases,
        "bases_by_call": counts.bases,
        "num_fragments": counts.fragments,
        "num_fragments_scored": counts.scored_fragments,
        "num_fragments_masked": counts.masked_fragments,
        "num_rows": sum(counts.frames.values()),
        "rows_by_frame": counts.frames,
        "num_rows_failed": counts.num_failed_rows,
        "regions_by_kind": counts.regions,
        "bases_by_region_kind": counts.region_bases,
        **({} if cascade is None else {"cascade": {**cascade, **by_model}}),
    }


def _described(prevalence: Prevalence) -> dict[str, Any]:
    """The share of viruses that p_virus and fdr are at; its 95 % interval where it is estimated."""
    is_estimated = prevalence.how == "estimated"
    return {
        "prevalence": round(prevalence.value, 6),
        "prevalence_is": prevalence.how,
        "prevalence_low": round(prevalence.low, 6) if is_estimated else None,
        "prevalence_high": round(prevalence.high, 6) if is_estimated else None,
    }
