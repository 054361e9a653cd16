"""What the first model of a cascade leaves to the other, found by letting it look at the sample."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from virnucpro.config import LayoutConfig, RuntimeConfig
from virnucpro.executors.serial import SerialExecutor
from virnucpro.machine.forecast import Counted, count_units
from virnucpro.progress import Reporter
from virnucpro.run_dir import RunDir
from virnucpro.sequence.dedup import SequenceIndex
from virnucpro.sequence.extract import Extraction
from virnucpro.stages import cascade, classify, embed, extract
from virnucpro.stages.base import Index, IndexedInput, Run


@dataclass(frozen=True)
class Place:
    """Where a model computes.

    Attributes:
        device: torch's name of it.
        dtype: torch's name of the float type.
        threads: CPU threads in all.
    """

    device: str
    dtype: str
    threads: int


def count_going_on(looked_at: Counted, first: cascade.FirstModel, asked: Run, place: Place) -> Counted:
    """Score the pieces of a sample with the first model, cut what it is not sure of for the model asked for, and count.

    It is done by the stages of a run, so where whole inputs are the sample, a run finds the very same. A record that
    begins or ends outside a piece is judged by what of it lies inside.

    Args:
        looked_at: the pieces, as cut for the first model.
        first: it, and its limits.
        asked: run of the model asked for; its folder takes the units, its neighbour the run of the first model.
        place: of the first model.
    """
    root = asked.dir.root
    run = replace(
        asked,
        dir=RunDir(root.with_name(f"{root.name}-first")),
        bundle=first.bundle,
        fragment_length=first.bundle.fragment_length,
        dtype=place.dtype,
    )
    index = _extract(run, [piece.path for piece in looked_at.pieces])
    settings = embed.settings_for([place.device], {}, 0, place.threads)
    units = embed.run(run, index, range(len(index.units)), SerialExecutor(place.device, place.threads), settings)
    scorer = SerialExecutor("cpu", place.threads)
    classify.run(run, index, units, scorer, batch_size=RuntimeConfig().batch_size, keep_embeddings=False)
    with cascade.first_look(run, index, first.limits) as look:
        begun = time.perf_counter()
        chosen = cascade.extract(asked, look)
        seconds = time.perf_counter() - begun
    bounds = [item.first_sequence for item in index.inputs] + [index.num_sequences]
    return count_units(asked.dir, len(chosen.units), looked_at.pieces, bounds, seconds)


def _extract(run: Run, paths: list[Path]) -> Index:
    """Without the warnings of a run: pieces that begin inside a record have headers alike."""
    contents = SequenceIndex(left_over=run.dir.left_over_rows)
    extraction = Extraction(
        [str(path) for path in paths],
        fragment_length=run.fragment_length,
        min_length=run.bundle.min_length,
        unit_rows=LayoutConfig().unit_rows,
        score_frameless=run.bundle.scores_frameless,
        find_repetitive=run.bundle.doubts_repetitive,
        contents=contents,
    )
    with Reporter(bars=False).stage("extract", None, "sequences") as advance:
        units, num_fragments = extract.write_units(run, extraction.units(), contents, advance)
    inputs = tuple(IndexedInput(stem=str(number), **asdict(item)) for number, item in enumerate(extraction.inputs))
    return extract.write_index(run, Index(inputs, units, num_fragments))
