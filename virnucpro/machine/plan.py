"""Time, memory and disk of a run that has not started: the program runs on the head of the inputs, and is scaled up."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from virnucpro.bundles import Bundle
from virnucpro.encoders import read_config
from virnucpro.encoders.weights import stored_tensors
from virnucpro.errors import InputError, ResourceError
from virnucpro.platforms import peak_memory_bytes
from virnucpro.resources import free_memory_bytes
from virnucpro.sequence.alignments import alignment_format
from virnucpro.sequence.fasta import SequenceFile
from virnucpro.sequence.streams import STDIN, STDIN_NAME, InputStream
from virnucpro.stages.base import ROLES
from virnucpro.stages.embed import UNITS_ON_DISK
from virnucpro.text import aligned, duration, size

Predict = Callable[[Sequence[Path], Path], Mapping[str, Any]]
"""Runs the program as it is planned on files, into a folder; returns the run record."""

AMOUNTS = ("sequences", "bases", "fragments", "rows", "rows_computed")
_MOST_INPUTS = 8
_FIRST_BYTES, _NUM_PARTS = 100_000, 2
_EXACT_MARGIN, _HEAD_MARGIN, _MEMORY_MARGIN = 0.15, 0.3, 0.25
"""What a figure may be off: of inputs that were read whole (the machine varies), of heads (the rest varies too)."""
_EMBEDDING_COPIES = 6
"""Embeddings of a unit in memory: being computed, waiting to be written, and in the image of a file."""
_BLOCK_BYTES = 1 << 13  # read at once: the estimate of the whole is off by no more


@dataclass(frozen=True)
class Range:
    """An amount that is not known exactly."""

    low: float  # at least about this
    likely: float  # the best guess
    high: float  # at most about this

    @classmethod
    def around(cls, values: Sequence[float], margin: float) -> Range:
        """From the smallest to the largest of some measurements, widened by a share; likely is their mean."""
        return cls(min(values) * (1 - margin), sum(values) / len(values), max(values) * (1 + margin))

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def __mul__(self, factor: float) -> Range:
        return Range(self.low * factor, self.likely * factor, self.high * factor)


@dataclass(frozen=True)
class Need:
    """Bytes that are needed, and those that can be had."""

    needed: Range  # estimate
    free: int  # now

    @property
    def verdict(self) -> str:
        """Whether it will fit, in words."""
        if self.needed.high <= self.free:
            return "fits"
        return "may not fit" if self.needed.likely <= self.free else "does not fit"


@dataclass(frozen=True)
class PlanSettings:
    """The run that is planned."""

    inputs: tuple[str, ...]  # paths
    bundle: Bundle
    devices: tuple[str, ...]  # torch's names of them, at least one
    dtype: str  # torch's name of the float type
    output: Path  # where results would go; its disk is looked at
    unit_rows: int  # most rows in a unit
    seconds: float  # about how long to run the program on the heads
    import_seconds: float  # that the program took to start
    reference: str | None = None  # FASTA that the reads of CRAM inputs were aligned to


@dataclass(frozen=True)
class Plan:
    """Estimates for a run."""

    model: str  # name of the bundle
    devices: tuple[str, ...]  # torch's names
    dtype: str  # torch's name of the float type
    share_read: float  # of the text of all inputs, by the largest run that was measured; 1 if everything was read
    amounts: dict[str, Range]  # ``AMOUNTS`` to estimates; exact if everything was read
    start_seconds: Range  # libraries, model, and everything else that is done once
    work_seconds: Range  # the rest
    stage_seconds: dict[str, float]  # stage to its share of ``work_seconds``, as in the measured runs; stages overlap
    weights_bytes: int  # of both encoders in the float type of the run
    memory: Need  # of the host, largest process
    device_memory: Need | None  # of each GPU; None on the CPU
    disk: Need  # while it runs
    disk_after: Need  # of results and stored run
    disk_kept: Need  # the same with ``--keep-embeddings``
    shares_by_model: dict[str, float]  # of a cascade, model to the share of sequences that it decides; empty otherwise

    @property
    def total_seconds(self) -> Range:
        """From start to end."""
        return self.start_seconds + self.work_seconds


@dataclass(frozen=True)
class _Measured:
    """One run of the program."""

    num_bytes: int  # of text that it read
    seconds: float  # wall time
    stored_bytes: int  # of all files that it left
    record: Mapping[str, Any]  # of the run

    def amounts(self) -> dict[str, float]:
        counts = self.record["counts"]
        bases = sum(item["num_bases"] for item in self.record["inputs"])
        values = (counts["num_sequences"], bases, *(counts[f"num_{name}"] for name in AMOUNTS[2:]))
        return dict(zip(AMOUNTS, map(float, values), strict=True))


class InputHead:
    """Reads an input from its beginning, as FASTA.

    Args:
        source: a file.
        reference: of CRAM.

    Attributes:
        num_read: bytes of FASTA that were read so far.
        total: bytes of FASTA of the whole input; estimated from how much of the file was read until ``is_over``.

    Raises:
        InputError: it is stdin or a pipe.
    """

    def __init__(self, source: str, reference: str | None = None) -> None:
        if source == STDIN:
            raise InputError(STDIN_NAME, "what a plan reads of it is lost for the run. Write it to a file first.")
        path = Path(source)
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(source, "is a pipe: what a plan reads of it is lost for the run. Name a file.")
        self.source, self.num_read, self.total = source, 0, 0.0
        self._reference, self._rest, self._is_at_end = reference, b"", False
        self._texts = self._read()

    @property
    def is_over(self) -> bool:
        """Whether everything was read."""
        return self._is_at_end and not self._rest

    def read(self, num_bytes: int) -> bytes:
        """The next records, about ``num_bytes``; a longer one is cut and continued under a new header.

        Returns:
            FASTA, a line a sequence; empty at the end.

        Raises:
            InputError: the input cannot be read as nucleotide sequences.
        """
        text = self._rest
        while len(text) < num_bytes and (more := next(self._texts, b"")):
            text += more
        stop = len(text) if len(text) <= num_bytes else text.rfind(b"\n>", 0, num_bytes) + 1 or num_bytes
        text, self._rest = text[:stop], text[stop:]
        if self._rest and not self._rest.startswith(b">"):
            self._rest = b">continued\n" + self._rest.removeprefix(b"\n")
        self.num_read += len(text)
        return text

    def _read(self) -> Iterator[bytes]:
        """The text; what reads alignments runs ahead of it by an unknown amount, so these are counted first."""
        is_counted = bool(alignment_format(InputStream(self.source).peek()))
        if is_counted:
            self.total = float(sum(len(text) for text, _ in self._fasta()))
        num_bytes, num_read = Path(self.source).stat().st_size, 0
        for text, num_raw in self._fasta():
            num_read += len(text)
            if not is_counted:
                self.total = num_read * num_bytes / num_raw
            yield text
        self.total, self._is_at_end = float(num_read), True

    def _fasta(self) -> Iterator[tuple[bytes, int]]:
        """Records, and how many bytes of the file were read for them and those before."""
        file = SequenceFile(self.source, _BLOCK_BYTES, self._reference)
        for block in file.blocks():
            records = zip(block.names.to_bytes(), block.bases.to_bytes(), strict=True)
            yield b"".join(b">%b\n%b\n" % record for record in records), file.num_raw_bytes


def make_plan(settings: PlanSettings, predict: Predict) -> Plan:
    """Run the program on little more than nothing, then on parts of the heads of the inputs; scale up.

    Raises:
        InputError: an input is stdin or a pipe, or cannot be read as nucleotide sequences.
        ModelError: an encoder cannot be loaded.
        ResourceError: the model alone does not fit the memory.
    """
    num_weight_bytes = sum(weights_bytes(settings.bundle.encoder(role), settings.dtype) for role in ROLES)
    _check_room(settings, num_weight_bytes)
    heads = [InputHead(source, settings.reference) for source in settings.inputs]
    with TemporaryDirectory(prefix="virnucpro-plan-") as name:
        folder = Path(name)
        one = _measure(predict, folder / "one", {"one": b">one\n%b\n" % (b"GCAT" * settings.bundle.fragment_length)})
        parts, is_whole = _measure_heads(settings, heads, predict, one, folder)
    total_bytes = _total_bytes(heads, settings.inputs)
    shares = [1.0 if is_whole else part.num_bytes / max(1.0, total_bytes) for part in parts]
    largest, share = max(zip(parts, shares, strict=True), key=lambda pair: pair[1])

    def of_whole(amounts: Iterable[float], margin: float) -> Range:
        """The amounts of the parts, each scaled up to all inputs."""
        scaled = [max(0.0, amount) / max(of, 1e-12) for amount, of in zip(amounts, shares, strict=True)]
        return Range.around(scaled, margin)

    counts_margin, margin = (0.0, _EXACT_MARGIN) if is_whole else (_HEAD_MARGIN, _HEAD_MARGIN)
    counted = [part.amounts() for part in parts]
    amounts = {name: of_whole((found[name] for found in counted), counts_margin) for name in AMOUNTS}
    work = of_whole((part.seconds - one.seconds for part in parts), margin)
    start = Range.around([settings.import_seconds + one.seconds], _HEAD_MARGIN)
    stages = {stage: seconds for stage, seconds in largest.record["seconds"].items() if stage != "total"}
    after = of_whole((part.stored_bytes - one.stored_bytes for part in parts), margin) + Range.around(
        [one.stored_bytes], 0
    )
    during, kept = _with_embeddings(settings, after, amounts["rows_computed"])
    free = shutil.disk_usage(_existing(settings.output)).free
    by_model = largest.record["counts"].get("sequences_by_model", {})
    return Plan(
        model=settings.bundle.name,
        devices=settings.devices,
        dtype=settings.dtype,
        share_read=share,
        amounts=amounts,
        start_seconds=start,
        work_seconds=work,
        stage_seconds={stage: seconds / max(share, 1e-12) for stage, seconds in stages.items()},
        weights_bytes=num_weight_bytes,
        memory=Need(_memory(settings, largest, amounts["rows_computed"]), free_memory_bytes()),
        device_memory=_device_memory(torch.device(settings.devices[0])),
        disk=Need(during, free),
        disk_after=Need(after, free),
        disk_kept=Need(kept, free),
        shares_by_model={model: count / max(1, sum(by_model.values())) for model, count in by_model.items()},
    )


def _measure_heads(
    settings: PlanSettings, heads: Sequence[InputHead], predict: Predict, one: _Measured, folder: Path
) -> tuple[list[_Measured], bool]:
    """Run on a little text, and by that rate on parts that take the time asked for; whether one run read everything.

    Every input is looked at, in at most ``_MOST_INPUTS`` evenly chosen ones.
    """
    step = max(1, -(-len(heads) // _MOST_INPUTS))
    chosen = heads[::step]
    first = _read(chosen, _FIRST_BYTES)
    small = _measure(predict, folder / "small", first)
    if len(chosen) == len(heads) and all(head.is_over for head in heads):
        return [small], True
    # What is too fast for the clock is taken as a hundredth of the time that is allowed.
    a_byte = max(small.seconds - one.seconds, settings.seconds / 100) / max(1, small.num_bytes)
    wanted = max(small.num_bytes, int((settings.seconds - _NUM_PARTS * one.seconds) / a_byte))
    parts = [_read(chosen, wanted // _NUM_PARTS) for _ in range(_NUM_PARTS)]
    if len(chosen) == len(heads) and all(head.is_over for head in heads):  # in one run, so that counts are exact
        whole = {source: b"".join(part[source] for part in (first, *parts)) for source in first}
        return [_measure(predict, folder / "whole", whole)], True
    return [_measure(predict, folder / f"part-{k}", part) for k, part in enumerate(parts) if any(part.values())], False


def _read(heads: Sequence[InputHead], num_bytes: int) -> dict[str, bytes]:
    """The next text of each head, by its source."""
    return {head.source: head.read(num_bytes // len(heads) + 1) for head in heads}


def _measure(predict: Predict, folder: Path, texts: Mapping[str, bytes]) -> _Measured:
    """Run on texts, each in a file of its own.

    Raises:
        InputError: one is not what predict reads; it names the source of the text.
    """
    folder.mkdir()
    sources = {folder / f"head-{k}.txt": source for k, source in enumerate(texts)}
    for path, source in sources.items():
        path.write_bytes(texts[source])
    start = time.perf_counter()
    try:
        record = predict(list(sources), folder / "out")
    except InputError as error:
        raise InputError(sources.get(Path(error.source), error.source), error.problem) from error
    seconds = time.perf_counter() - start
    stored = sum(item.stat().st_size for item in (folder / "out").rglob("*") if item.is_file())
    shutil.rmtree(folder)
    return _Measured(sum(map(len, texts.values())), seconds, stored, record)


def _total_bytes(heads: Sequence[InputHead], inputs: Sequence[str]) -> float:
    """Text of all inputs; those that were not looked at are taken to unpack as the others do."""
    seen = {head.source: head.total for head in heads if head.num_read or head.is_over}
    sizes = {source: Path(source).stat().st_size for source in inputs}
    text_per_byte = sum(seen.values()) / max(1, sum(sizes[source] for source in seen))
    return sum(seen.get(source, sizes[source] * text_per_byte) for source in inputs)


def weights_bytes(path: Path, dtype: str) -> int:
    """Memory of an encoder's weights: matrices in ``dtype``, vectors and unpacked 8-bit tables in float32, bits packed.

    Raises:
        ModelError: the file is missing or damaged.
    """
    return sum(
        prod(tensor.shape) * _item_bytes(len(tensor.shape), tensor.dtype, dtype)
        for tensor in stored_tensors(path).values()
    )


def _item_bytes(num_dimensions: int, stored: str, dtype: str) -> int:
    """Bytes in memory of a number that is ``stored`` so in the file."""
    if stored == "uint8":
        return 1
    return int(getattr(torch, dtype).itemsize) if num_dimensions > 1 and "float" in stored else 4


def _check_room(settings: PlanSettings, weights: int) -> None:
    is_cuda = settings.devices[0].startswith("cuda")
    free = torch.cuda.mem_get_info(settings.devices[0])[0] if is_cuda else free_memory_bytes()
    if weights > free:
        raise ResourceError(
            f"model {settings.bundle.name} takes {size(weights)} in {settings.dtype}, but only {size(free)} of memory "
            f"is free on {settings.devices[0]}: it will not run there. Take a smaller model or another --device."
        )


def _memory(settings: PlanSettings, largest: _Measured, rows: Range) -> Range:
    """The peak of this process, which ran the program, and the embeddings of units that were not full."""
    width, kept_bytes = _feature(settings)
    in_unit = min(float(settings.unit_rows), rows.likely)
    missing_rows = max(0.0, in_unit - min(in_unit, largest.amounts()["rows_computed"]))
    measured = float(peak_memory_bytes())
    likely = measured + missing_rows * width * kept_bytes * _EMBEDDING_COPIES
    return Range(measured, likely, likely * (1 + _MEMORY_MARGIN))


def _device_memory(device: torch.device) -> Need | None:
    if device.type != "cuda":
        return None
    used = float(torch.cuda.max_memory_reserved(device))
    free, _ = torch.cuda.mem_get_info(device)
    return Need(Range(used, used, used * (1 + _MEMORY_MARGIN)), free + torch.cuda.memory_reserved(device))


def _with_embeddings(settings: PlanSettings, after: Range, rows: Range) -> tuple[Range, Range]:
    """Disk while the run goes on, and afterwards if embeddings are kept (in their shards and merged)."""
    width, kept_bytes = _feature(settings)
    most = float(UNITS_ON_DISK * len(settings.devices) * settings.unit_rows)
    alive = Range(min(rows.low, most), min(rows.likely, most), min(rows.high, most))
    return after + alive * (width * kept_bytes), after + rows * (2 * width * kept_bytes)


def _feature(settings: PlanSettings) -> tuple[int, int]:
    """Width of a feature, and bytes of a number of it on disk."""
    width = sum(read_config(settings.bundle.encoder(role)).width for role in ROLES)
    return width, np.dtype(np.float32 if settings.dtype == "float32" else np.float16).itemsize


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest existing one above it."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())


def plan_text(plan: Plan) -> str:
    """The table, and how its ranges are found."""
    rows = [
        ("", "low", "likely", "high"),
        *(_row(name.replace("_", " "), amount, "{:,.0f}".format) for name, amount in plan.amounts.items()),
        _row("time: start", plan.start_seconds, duration),
        _row("time: work", plan.work_seconds, duration),
        _row("time in all", plan.total_seconds, duration),
        _row("memory", plan.memory.needed, size),
        *([_row("memory of a GPU", plan.device_memory.needed, size)] if plan.device_memory else []),
        _row("disk while it runs", plan.disk.needed, size),
        _row("disk afterwards", plan.disk_after.needed, size),
        _row("... --keep-embeddings", plan.disk_kept.needed, size),
    ]
    head = f"model {plan.model}, {plan.dtype}, on {', '.join(plan.devices)}; weights {size(plan.weights_bytes)}"
    stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in plan.stage_seconds.items())
    parts = [head, aligned(rows), f"by stage, which overlap: {stages}"]
    if plan.shares_by_model:
        shares = ", ".join(f"{model} {share:.1%}" for model, share in plan.shares_by_model.items())
        parts.append(f"sequences decided by each model: {shares}")
    parts.append(
        "Everything was read: counts are exact, times are of this run with 15 % either way."
        if plan.share_read == 1
        else f"The first {plan.share_read:.2%} of the text were run in two parts. Ranges go from the lower to the "
        "higher of the two, with 30 % either way, since the rest may differ. Memory high is a quarter above likely."
    )
    needs = {"memory": plan.memory, "memory of a GPU": plan.device_memory, "disk": plan.disk}
    needs["disk with --keep-embeddings"] = plan.disk_kept
    verdicts = (f"{name}: {need.verdict} ({size(need.free)} free)" for name, need in needs.items() if need is not None)
    return "\n\n".join([*parts, "\n".join(verdicts)])


def _row(name: str, amount: Range, shown: Callable[[float], str]) -> tuple[str, str, str, str]:
    if amount.low == amount.high:
        return name, "", shown(amount.likely), ""
    return name, shown(amount.low), shown(amount.likely), shown(amount.high)
