"""Small pieces of real work for executors; spawned processes import them from here."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from virnucpro.errors import InputError
from virnucpro.executors.base import Outcome, UnitDone, UnitFailed, Worker

if TYPE_CHECKING:
    from virnucpro.stages.merge import MergeWork

_log = logging.getLogger("virnucpro.work_samples")


@dataclass(frozen=True)
class Square:
    """Writes the square of each unit; reports ``unit + 10`` rows.

    Attributes:
        folder: where the files go; the name holds unit and process.
        read_ahead: units asked for before the first of them is done.
    """

    folder: Path
    read_ahead: int = 1

    def process(self, units: Iterable[int], worker: Worker) -> Iterator[Outcome]:
        waiting: list[int] = []
        for unit in units:
            waiting.append(unit)
            if len(waiting) >= self.read_ahead:
                yield self._do(waiting.pop(0), worker)
        for unit in waiting:
            yield self._do(unit, worker)

    def _do(self, unit: int, worker: Worker) -> Outcome:
        self.before(unit)
        worker.advance(unit, unit + 4)
        name = f"{unit}-{os.getpid()}-{worker.device}-{worker.index}"
        (self.folder / name).write_text(str(unit * unit))
        return UnitDone(unit, unit + 10)

    def before(self, unit: int) -> None:
        """What happens before a unit is done."""


@dataclass(frozen=True)
class Loads(Square):
    """Loads something, before it asks for a unit."""

    def process(self, units: Iterable[int], worker: Worker) -> Iterator[Outcome]:
        (self.folder / f"loaded by {os.getpid()}").touch()
        yield from super().process(units, worker)


@dataclass(frozen=True)
class Slow(Square):
    """A tenth of a second a unit, so that every worker gets some."""

    def before(self, unit: int) -> None:
        del unit
        time.sleep(0.1)


@dataclass(frozen=True)
class Refuses(Square):
    """Raises one of our errors at one unit."""

    at: int = 3

    def before(self, unit: int) -> None:
        if unit == self.at:
            raise InputError("reads.fa", "cannot be read. Mend it.", line=unit)


@dataclass(frozen=True)
class Breaks(Square):
    """Raises an error nobody foresaw at one unit."""

    at: int = 3

    def before(self, unit: int) -> None:
        if unit == self.at:
            raise ZeroDivisionError(f"unit {unit} has no rows")


@dataclass(frozen=True)
class BreaksOnce(Square):
    """Raises an error nobody foresaw at one unit, the first time."""

    at: int = 3

    def before(self, unit: int) -> None:
        mark = self.folder / "broke"
        if unit == self.at and not mark.exists():
            mark.touch()
            raise OSError("the file server hiccups")


@dataclass(frozen=True)
class GivesUp(Square):
    """Says of one unit that it cannot be done."""

    at: int = 3

    def _do(self, unit: int, worker: Worker) -> Outcome:
        return UnitFailed(unit, "its shard is damaged") if unit == self.at else super()._do(unit, worker)


@dataclass(frozen=True)
class DiesOnce(Square):
    """Kills its process at one unit, the first time."""

    at: int = 3

    def before(self, unit: int) -> None:
        mark = self.folder / "died"
        if unit == self.at and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class DiesAlways(Square):
    """Kills its process at one unit, every time."""

    at: int = 3

    def before(self, unit: int) -> None:
        if unit == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class DiesBeforeItBegins(Square):
    """Kills its process before it asks for a unit, as one that cannot load its model."""

    def process(self, units: Iterable[int], worker: Worker) -> Iterator[UnitDone]:
        del units, worker
        os.kill(os.getpid(), signal.SIGKILL)
        yield UnitDone(0, 0)


@dataclass(frozen=True)
class Talks(Square):
    """Logs from two threads at a time."""

    def before(self, unit: int) -> None:
        other = threading.Thread(target=_log.warning, args=("unit %d, the other thread", unit))
        other.start()
        _log.info("unit %d begins", unit)
        other.join()


@dataclass(frozen=True)
class Keeps(Square):
    """Opens something once in a process, and writes down that it was opened and that it was closed."""

    refuses: int = 0

    def process(self, units: Iterable[int], worker: Worker) -> Iterator[Outcome]:
        worker.kept.once("file", lambda: self._open(worker))
        yield from super().process(units, worker)

    def _open(self, worker: Worker) -> None:
        name = f"{os.getpid()}_{time.monotonic_ns()}"
        (self.folder / f"opened.{name}").touch()
        worker.kept.callback((self.folder / f"closed.{name}").touch)

    def before(self, unit: int) -> None:
        if unit == self.refuses:
            raise InputError("reads.fa", "cannot be read. Mend it.", line=unit)


@dataclass(frozen=True)
class WaitsForTwo(Square):
    """Does nothing before two processes have a unit."""

    def process(self, units: Iterable[int], worker: Worker) -> Iterator[Outcome]:
        def marked() -> Iterator[int]:
            for unit in units:
                (self.folder / f"has.{worker.index}").touch()
                yield unit

        yield from super().process(marked(), worker)

    def before(self, unit: int) -> None:
        del unit
        while len(list(self.folder.glob("has.*"))) < 2:
            time.sleep(0.01)


@dataclass(frozen=True)
class DiesAtRows:
    """Kills its process in every part that holds one of its rows."""

    parts: tuple[range, ...]
    rows: frozenset[int]

    def process(self, units: Iterable[int], worker: Worker) -> Iterator[Outcome]:
        del worker
        for unit in units:
            if self.rows & set(self.parts[unit]):
                os.kill(os.getpid(), signal.SIGKILL)
            yield UnitDone(unit, len(self.parts[unit]))


@dataclass(frozen=True)
class Timed:
    """Merges, takes its time over it, and writes down when and where."""

    merge: MergeWork
    folder: Path

    def is_done(self, unit: int) -> bool:
        return self.merge.is_done(unit)

    def process(self, units: Iterable[int], worker: Worker) -> Iterator[Outcome]:
        for unit in units:
            start = time.monotonic()
            time.sleep(0.2)
            (outcome,) = self.merge.process([unit], worker)
            record = {"process": os.getpid(), "start": start, "stop": time.monotonic()}
            (self.folder / f"{unit}.json").write_text(json.dumps(record))
            yield outcome
