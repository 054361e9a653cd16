"""The product of a run: one table of fragments, with the sequences they are of and, where found, their genes.

Calls, regions, tables, tracks, pages and everything else a user sees are functions of it. ``stored_table.py`` has it on
disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from virnucpro.bundles.rules import Rules
from virnucpro.mapped import let_go
from virnucpro.nearest.repeats import SITE_DTYPE
from virnucpro.results.stored_table import FRAGMENT_DTYPE, GENE_DTYPE, read_arrays, read_facts
from virnucpro.sequence.gaps import Gaps
from virnucpro.sequence.ragged import Ragged, offsets_of
from virnucpro.sequence.table import GAP_DTYPE
from virnucpro.settings import make_settings

if TYPE_CHECKING:
    from virnucpro.results.called import InputResults

_CHUNK_ITEMS = 1 << 14


@dataclass(frozen=True, eq=False)
class Fragments:
    """What is known of some consecutive sequences of a run.

    Attributes:
        names: m ids.
        sequences: (m,) SEQUENCE_DTYPE.
        fragments: (f,) FRAGMENT_DTYPE, those of these sequences.
        genes: (g,) GENE_DTYPE, those of these sequences.
        sites: (s,) SITE_DTYPE, likewise.
        gaps: (n,) GAP_DTYPE, likewise.
        organisms: number of an organism to its name and family, for ``genes["nearest"]``.
        rules: of the model asked for; in a cascade followed by those of the model that looked first.
        first: number of the first sequence in the run, which ``fragments["sequence"]`` counts by too.
    """

    names: Ragged
    sequences: NDArray[np.void]
    fragments: NDArray[np.void]
    genes: NDArray[np.void]
    rules: tuple[Rules, ...]
    first: int = 0
    sites: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, dtype=SITE_DTYPE))
    gaps: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, dtype=GAP_DTYPE))
    organisms: Mapping[int, tuple[str, str]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, rules: Sequence[Rules]) -> Self:
        """Map a table on disk, once its digests have been checked.

        Raises:
            StoreError: it is missing, damaged or of another version.
        """
        arrays: dict[str, Any] = read_arrays(folder)
        names = Ragged(arrays.pop("names"), arrays.pop("name_offsets"))
        organisms = {int(number): (name, family) for number, (name, family) in read_facts(folder)["organisms"].items()}
        return cls(names=names, rules=tuple(rules), organisms=organisms, **arrays)

    @classmethod
    def of(
        cls, rules: Sequence[Rules], sequences: NDArray[np.void], names: Ragged, fragments: NDArray[np.void]
    ) -> Fragments:
        """A table in memory; where the fragments of each sequence lie in it is found here."""
        sequences = sequences.copy()
        counts = np.bincount(fragments["sequence"], minlength=len(sequences))
        sequences["num_fragments"], sequences["first_fragment"] = counts, np.cumsum(counts) - counts
        return cls(names, sequences, fragments, np.zeros(0, dtype=GENE_DTYPE), tuple(rules))

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """(m + 1,) where in ``fragments`` those of each sequence begin."""
        counts = self.sequences["num_fragments"].astype(np.int64)
        return np.concatenate([[0], np.cumsum(counts)])

    @property
    def positions(self) -> NDArray[np.int64]:
        """(f,) position in ``sequences`` of the sequence of each fragment."""
        return np.asarray(self.fragments["sequence"] - self.first, dtype=np.int64)

    @cached_property
    def _end_to_end(self) -> tuple[Gaps, NDArray[np.int64], NDArray[np.int64]]:
        """Gaps of these sequences, laid end to end, and where in it each begins, (m + 1,) with gaps and without."""
        offsets = offsets_of(self.sequences["length"].astype(np.int64))
        firsts = offsets[self.gaps["sequence"] - self.first]
        gaps = Gaps(firsts + self.gaps["start"], firsts + self.gaps["stop"])
        return gaps, offsets, gaps.closed(offsets)

    @property
    def closed_lengths(self) -> NDArray[np.int64]:
        """(m,) bases of the sequences without their gaps."""
        return np.diff(self._end_to_end[2])

    def closed(self, items: NDArray[np.void]) -> NDArray[np.void]:
        """Items of these sequences (with sequence, start and stop) as they lie where gaps are closed.

        What calls and regions are made of is counted so: a gap changes neither.
        """
        if not len(self.gaps):
            return items
        gaps, offsets, closed_offsets = self._end_to_end
        items, position = items.copy(), items["sequence"] - self.first
        for name in ("start", "stop"):
            items[name] = gaps.closed(offsets[position] + items[name]) - closed_offsets[position]
        return items

    def opened(self, items: NDArray[np.void]) -> NDArray[np.void]:
        """The other way round."""
        if not len(self.gaps):
            return items
        gaps, offsets, closed_offsets = self._end_to_end
        items, position = items.copy(), items["sequence"] - self.first
        firsts = closed_offsets[position]
        starts, stops = gaps.opened(firsts + items["start"], firsts + items["stop"])
        items["start"], items["stop"] = starts - offsets[position], stops - offsets[position]
        return items

    def slice(self, start: int, stop: int) -> Fragments:
        """The sequences ``start:stop`` with their fragments and genes, as views."""
        sequences = self.sequences[start:stop]
        begin = end = 0
        if len(sequences):
            origin = int(self.sequences["first_fragment"][0])
            begin = int(sequences["first_fragment"][0]) - origin
            end = int(sequences["first_fragment"][-1]) - origin + int(sequences["num_fragments"][-1])
        numbers = (self.first + start, self.first + stop)
        genes, sites, gaps = (
            each[slice(*np.searchsorted(each["sequence"], numbers))] for each in (self.genes, self.sites, self.gaps)
        )
        return replace(
            self,
            names=self.names.view(start, min(stop, len(self))),
            sequences=sequences,
            fragments=self.fragments[begin:end],
            genes=genes,
            sites=sites,
            gaps=gaps,
            first=self.first + start,
        )

    def parts(self, num_items: int = _CHUNK_ITEMS) -> Iterator[Fragments]:
        """All sequences in order, each as a whole, some thousand sequences or fragments at a time.

        Mapped memory is released after each part. A part has more fragments than ``num_items`` only if its last
        sequence has.
        """
        start = 0
        while start < len(self):
            stop = min(start + num_items, len(self))
            places = self.sequences["first_fragment"][start:stop]
            stop = start + max(1, int(np.searchsorted(places, places[0] + num_items)))
            yield self.slice(start, stop)
            self.release()
            start = stop

    def total(self, column: str) -> int:
        """Sum of a column of ``sequences``."""
        return sum(int(part.sequences[column].sum()) for part in self.parts())

    def in_memory(self) -> Fragments:
        """A copy that needs no file."""
        arrays: dict[str, Any] = {
            name: np.array(getattr(self, name)) for name in ("sequences", "fragments", "genes", "sites", "gaps")
        }
        return replace(self, names=Ragged.concatenate([self.names]), **arrays)

    def call(
        self,
        preset: str | None = None,
        *,
        threshold: float | None = None,
        fdr: float | None = None,
        prevalence: float | Literal["auto"] = "auto",
    ) -> InputResults:
        """Call the sequences and look for virus regions.

        Args:
            preset: ``sensitive``, ``balanced`` or ``strict``; balanced if nothing is given.
            threshold: instead of it, the p_virus that parts virus from not virus.
            fdr: instead of it, the highest false discovery rate of what is called virus.
            prevalence: expected share of viral sequences; auto estimates it from the scores.

        Raises:
            UsageError: more than one way to call is given, or a value that makes no sense.
        """
        from virnucpro.results.called import InputResults  # noqa: PLC0415
        from virnucpro.results.calls import Calling  # noqa: PLC0415 - they work on this module's table

        options = {"preset": preset, "threshold": threshold, "fdr": fdr, "prevalence": prevalence}
        settings = make_settings(None, {f"science.{name}": value for name, value in options.items()})
        return InputResults.of(self, Calling.from_settings(settings.science))

    def regions(self, preset: str | None = None) -> NDArray[np.void]:
        """(r,) REGION_DTYPE, the virus regions; see ``call`` for the preset."""
        return self.call(preset).regions

    def to_arrow(self) -> Any:  # noqa: ANN401 - pyarrow has no types of its own
        """The fragments as a ``pyarrow.Table``, with the ids of their sequences."""
        arrow = import_module("pyarrow")
        names = [name.decode(errors="backslashreplace") for name in self.names.to_bytes()]
        columns: dict[str, Any] = {"name": [names[position] for position in self.positions.tolist()]}
        columns |= {name: self.fragments[name] for name in FRAGMENT_DTYPE.names or () if name != "sequence"}
        return arrow.table({name: arrow.array(values, from_pandas=True) for name, values in columns.items()})

    def to_pandas(self) -> Any:  # noqa: ANN401 - pandas is not needed to run
        """The fragments as a ``pandas.DataFrame``."""
        return self.to_arrow().to_pandas()

    def release(self) -> None:
        """Give mapped memory back to the system; the values stay in their files."""
        names = self.names
        tables = (self.sequences, self.fragments, self.genes, self.sites, self.gaps)
        for array in (*tables, names.values, names.offsets):
            let_go(array)
