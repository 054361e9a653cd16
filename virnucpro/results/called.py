"""The sequences of an input once they are called: what every result file, page and count is made from."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128

from virnucpro.mapped import chunks, let_go
from virnucpro.results import schema, tables
from virnucpro.results.calls import Call, Calling, call_sequences
from virnucpro.results.formats import arrow_table
from virnucpro.results.fragments import Fragments
from virnucpro.results.prevalence import Prevalence
from virnucpro.results.regions import proviruses, regions
from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.table import UnitTable

if TYPE_CHECKING:
    from virnucpro.results.lineages import Lineages


@dataclass(frozen=True)
class ScoredUnit:
    """A unit with the scores of all its rows."""

    table: UnitTable  # the unit; only the strings that were asked for are in it
    scores: NDArray[np.float32]  # (n, 2) float32, not virus and virus; NaN if a row has none
    failed: NDArray[np.bool_]  # (n,) whether a row could not be computed
    # for each model (f,) what the nearest proteins say of the fragments; None if it does not ask
    nearest: tuple[NDArray[np.float32] | None, ...] = (None,)


class Source:
    """The units of an input, for what is not in the table of fragments; this one has none."""

    def units(self, strings: Collection[str]) -> Iterator[ScoredUnit]:
        """Each with its scores; ``strings`` are the lists that are read."""
        del strings
        return iter(())

    def bases(self) -> Iterator[tuple[Ragged, NDArray[np.int64], Ragged]]:
        """The bases as read, in pieces, with the number of the sequence of each, and its description at its first."""
        return iter(())


@dataclass(frozen=True, eq=False)
class InputResults:
    """What is known of an input, or of some of its sequences, once they are called."""

    table: Fragments  # fragments and sequences
    calls: NDArray[np.void]  # (m,) CALL_DTYPE
    proviruses: NDArray[np.void]  # REGION_DTYPE, the viral parts of longer sequences
    calling: Calling  # what calls were made by
    prevalence: Prevalence  # at which they were made
    source: Source = field(default_factory=Source)  # the units, for what only they hold
    lineages: Lineages | None = None  # of the hits; None if they were not asked for

    @classmethod
    def of(cls, table: Fragments, calling: Calling, source: Source | None = None) -> InputResults:
        """Call the sequences of a table and look for regions."""
        parts = proviruses(table)
        calls, prevalence = call_sequences(table, calling, parts)
        return cls(table, calls, parts, calling, prevalence, source or Source())

    @property
    def models(self) -> list[bytes]:
        """What each model of a cascade is called: its name, with its fingerprint if both have the same; else empty."""
        rules = self.table.rules
        is_same = len({each.name for each in rules}) < len(rules)
        titles = [f"{each.name}@{each.fingerprint[:8]}" if is_same else each.name for each in rules]
        return [title.encode() for title in titles] if len(rules) > 1 else []

    @property
    def regions(self) -> NDArray[np.void]:
        """(r,) REGION_DTYPE in the order of the sequences."""
        return regions(self.table, self.calls["call"] == Call.VIRUS, self.calls["p_virus"], self.proviruses)

    @property
    def digest(self) -> str:
        """Of the calls as they are shown: what each sequence is called, its four decimals, and the proviruses."""
        calls, parts = self.calls, self.proviruses
        added = xxh3_128()
        for span in chunks(len(calls), calls):
            added.update(calls["call"][span].tobytes())
        for name in ("p_virus", "fdr"):
            for span in chunks(len(calls), calls):
                shown = np.nan_to_num(calls[name][span].astype(np.float64), nan=-1)
                added.update(np.rint(10_000 * shown).astype("<i4").tobytes())
        for name in ("sequence", "start", "stop"):
            added.update((parts[name] - (self.table.first if name == "sequence" else 0)).astype("<i8").tobytes())
        return added.hexdigest()

    def parts(self) -> Iterator[InputResults]:
        """Some thousand sequences at a time."""
        for table in self.table.parts():
            calls = self.calls[table.first - self.table.first :][: len(table)]
            low, high = np.searchsorted(self.proviruses["sequence"], (table.first, table.first + len(table)))
            yield replace(self, table=table, calls=calls, proviruses=self.proviruses[low:high])
            let_go(calls)

    def are(self, call: Call) -> NDArray[np.bool_]:
        """(m,) which sequences are called so."""
        return np.concatenate([np.zeros(0, dtype=bool), *(part.calls["call"] == call for part in self.parts())])

    def names_of(self, numbers: NDArray[np.int64]) -> list[bytes]:
        """Ids of sequences by their numbers in the run."""
        unique, places = np.unique(numbers - self.table.first, return_inverse=True)
        names = self.table.names.bytes_at(unique)
        return [names[place] for place in places.tolist()]

    def records(self, are_wanted: NDArray[np.bool_]) -> Iterator[tuple[int, bytes, bytes]]:
        """Number, description and bases, as they were read, of those of the (m,) sequences that are wanted."""
        last, description, parts = -1, b"", list[bytes]()
        for pieces, numbers, descriptions in self.source.bases() if are_wanted.any() else ():
            places = np.flatnonzero(are_wanted[numbers - self.table.first])
            items = zip(numbers[places].tolist(), descriptions.bytes_at(places), pieces.bytes_at(places), strict=True)
            for number, said, piece in items:
                if number != last:
                    if parts:
                        yield last, description, b"".join(parts)
                    last, description, parts = number, said, []
                parts.append(piece)
            self.table.release()  # names are read meanwhile
        if parts:
            yield last, description, b"".join(parts)

    def bases_of(self, found: NDArray[np.void]) -> Iterator[tuple[int, bytes, bytes]]:
        """Place, description of its sequence, and bases of each region; REGION_DTYPE, ascending by sequence."""
        are_wanted = np.zeros(len(self.table), dtype=bool)
        are_wanted[found["sequence"] - self.table.first] = True
        for number, description, bases in self.records(are_wanted):
            low, high = np.searchsorted(found["sequence"], (number, number + 1)).tolist()
            for place in range(low, high):
                yield place, description, bases[found["start"][place] : found["stop"][place]]

    def to_arrow(self) -> Any:  # noqa: ANN401 - pyarrow has no types of its own
        """The table of sequences as a ``pyarrow.Table``, with the columns of ``.sequences.parquet``."""
        table = schema.CASCADE if self.models else schema.SEQUENCES
        return arrow_table(table, tables.sequence_cells(self.table, self.calls, self.models))

    def to_pandas(self) -> Any:  # noqa: ANN401 - pandas is not needed to run
        """The table of sequences as a ``pandas.DataFrame``."""
        return self.to_arrow().to_pandas()
