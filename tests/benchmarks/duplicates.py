"""Half of the reads are copies of others: the program from start to end, against as many distinct reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.made_models import model_named
from benchmarks.measure import Figure, Goal, Settings, ratio_of, take_turns
from benchmarks.program import ProgramRun, reads_for, run_predict

SECTION = "duplicates"
_COPIES = 2
_GOAL = Goal(least_ratio=1.95)


def measure(settings: Settings) -> Iterator[Figure]:
    """Reads a second, and what embedding and all else take of the time."""
    num_distinct = max(1, settings.predict_reads // _COPIES)
    num_reads = num_distinct * _COPIES
    with (
        TemporaryDirectory(prefix="virnucpro-benchmark-") as folder,
        model_named(settings.model, settings.seed) as model,
    ):
        inputs = {
            "copies": reads_for(settings, Path(folder), num_distinct, num_copies=_COPIES),
            "distinct": reads_for(settings, Path(folder), num_reads),
        }
        runs: dict[str, list[ProgramRun]] = {name: [] for name in inputs}

        def predict(name: str) -> Callable[[], float]:
            def work() -> float:
                runs[name].append(run_predict(inputs[name], Path(folder) / name, model, settings.threads))
                return num_reads

            return work

        rates = take_turns({name: predict(name) for name in inputs}, settings.seconds, warm_up=False)
        num_others = _count_other_calls(
            Path(folder) / "copies" / f"{inputs['copies'].stem}.sequences.tsv", num_distinct
        )
    yield Figure(
        SECTION,
        f"{num_reads:,} reads of {settings.read_length} b, half of them copies, model {settings.model}",
        "reads/s",
        rates["copies"],
        "distinct reads",
        rates["distinct"],
        ratio_of(rates["copies"], rates["distinct"]),
        _GOAL,
        num_others,
        0,
        f"start of the program included; threads: {settings.threads}; max diff counts copies called otherwise",
    )
    yield from _stage_figures(runs["copies"], runs["distinct"])


def _stage_figures(copies: list[ProgramRun], distinct: list[ProgramRun]) -> Iterator[Figure]:
    """Embedding is what copies spare; reading, tables and the start are the same for a copy."""
    for stage, seconds in (("embed", _embed_seconds), ("all else", _other_seconds)):
        ours, peer = tuple(map(seconds, copies)), tuple(map(seconds, distinct))
        yield Figure(SECTION, f"  of it {stage}", "s", ours, "distinct reads", peer, ratio_of(ours, peer))


def _embed_seconds(run: ProgramRun) -> float:
    return run.stage_seconds["embed"]


def _other_seconds(run: ProgramRun) -> float:
    return run.seconds - run.stage_seconds["embed"]


def _count_other_calls(table: Path, num_distinct: int) -> int:
    """Copies whose line differs from their original's in more than the name.

    Args:
        table: of sequences, the originals first, then their copies in the same order.
        num_distinct: how many originals.
    """
    with table.open("rb") as stream:
        next(stream)
        results = [line.partition(b"\t")[2] for line in stream]
    originals, copies = results[:num_distinct], results[num_distinct:]
    return sum(original != copy for original, copy in zip(originals, copies, strict=True))
