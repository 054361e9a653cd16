"""An asynchronous DataLoader whose items are whole units, read, tokenised and packed in its workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, repeat
from types import FrameType

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from virnucpro.engine.batch import Packing, collate
from virnucpro.engine.threads import use_threads
from virnucpro.errors import VirNucProError
from virnucpro.lifeline import EXIT_CHILD_KILLED, follow_parent
from virnucpro.sequence.dedup import distinct
from virnucpro.sequence.ragged import Ragged

Tokenise = Callable[[Ragged], Ragged]
"""An encoder's :class:`~virnucpro.encoders.base.Tokenizer`."""
Packer = Callable[[NDArray[np.int64]], list[NDArray[np.int64]]]

_READY = -1
"""In the place of a unit: whoever is given it is ready to read units."""


@dataclass(frozen=True)
class PackedUnit:
    """One unit, ready for an encoder."""

    unit: int  # its number
    inverse: NDArray[np.int64]  # (num_rows,) int64, which distinct sequence each row has
    batches: Packing  # the distinct sequences that are not empty, in packed batches

    @property
    def num_rows(self) -> int:
        """Rows of the unit, empty and repeated ones included."""
        return len(self.inverse)

    @property
    def num_tokens(self) -> int:
        """Tokens an encoder has to work through."""
        return len(self.batches.input_ids)

    def pin_memory(self) -> PackedUnit:
        """The same unit in page-locked memory (DataLoader calls this)."""
        return PackedUnit(self.unit, self.inverse, self.batches.pin_memory())


@dataclass(frozen=True)
class UnitDataset(Dataset[PackedUnit | VirNucProError | None]):
    """Item ``k`` is unit ``k``, packed; that of ``_READY`` is None."""

    source: Callable[[int], Ragged]  # reads the strings of a unit; must be picklable
    tokenizer: Tokenise  # weight-free
    packer: Packer  # lengths in tokens to groups

    def __getitem__(self, unit: int) -> PackedUnit | VirNucProError | None:
        if unit == _READY:
            return None
        # DataLoader rebuilds a worker's exception from its text alone, which loses ours: it travels as an item.
        try:
            return pack_unit(unit, self.source(unit), self.tokenizer, self.packer)
        except VirNucProError as error:
            return error


def pack_unit(unit: int, strings: Ragged, tokenizer: Tokenise, packer: Packer) -> PackedUnit:
    """Find the distinct strings of a unit, tokenise and pack them; empty ones are left out."""
    first, inverse = distinct(strings)
    occupied = np.flatnonzero(strings.lengths[first])
    tokens = tokenizer(strings.take(first[occupied]))
    packing = collate(tokens, packer(tokens.lengths))
    return PackedUnit(unit, inverse, replace(packing, rows=occupied[packing.rows]))


def unit_loader(
    source: Callable[[int], Ragged],
    tokenizer: Tokenise,
    packer: Packer,
    units: Iterable[int],
    num_workers: int,
    *,
    pin_memory: bool = False,
) -> Iterator[PackedUnit]:
    """Prepare units ahead of the device, in the order asked for; errors of the workers surface as themselves.

    Workers are started at once, and no unit is asked for until the first is. They belong in a process of its own, which
    ends when one of them is killed.

    Args:
        source: reads the strings of a unit; must be picklable when there are workers.
        tokenizer: the encoder's.
        packer: decides the batches.
        units: unit numbers; may be lazy, and is read only as far as there are workers to keep busy.
        num_workers: processes; 0 does it in this one.
        pin_memory: page-lock, for copies to a CUDA device beside its work.
    """
    loader = DataLoader(
        UnitDataset(source, tokenizer, packer),
        batch_size=None,
        sampler=chain(repeat(_READY, num_workers), units),  # as many as are asked for at once
        num_workers=num_workers,
        prefetch_factor=1 if num_workers else None,
        multiprocessing_context="spawn" if num_workers else None,
        pin_memory=pin_memory,
        worker_init_fn=_begin_worker if num_workers else None,
    )
    items = iter(loader)
    if num_workers:
        _end_with_workers()
    return _units_among(items)


def _units_among(items: Iterator[PackedUnit | VirNucProError | None]) -> Iterator[PackedUnit]:
    for item in items:
        if isinstance(item, VirNucProError):
            raise item
        if item is not None:
            yield item


def _end_with_workers() -> None:
    """From here on, end this process when one of its DataLoader workers is killed.

    DataLoader's own signal handler raises wherever the main thread happens to be, in the middle of a message to
    the parent too; without it, a worker killed in the middle of a message would leave this process waiting for ever.
    """
    if not hasattr(signal, "SIGCHLD"):  # Windows, where DataLoader has no such handler
        return
    theirs = signal.getsignal(signal.SIGCHLD)
    if not callable(theirs) or getattr(theirs, "ends_process", False):
        return

    def end_if_killed(number: int, frame: FrameType | None) -> None:
        try:
            theirs(number, frame)
        except RuntimeError:
            os._exit(EXIT_CHILD_KILLED)

    end_if_killed.ends_process = True  # type: ignore[attr-defined]
    signal.signal(signal.SIGCHLD, end_if_killed)


def _begin_worker(worker: int) -> None:
    del worker
    follow_parent()
    use_threads(1)  # there are as many of these processes as CPUs suffice for
