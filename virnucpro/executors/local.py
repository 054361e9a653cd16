"""Spawned processes, one for each device or several on the CPU; units are handed out one by one.

The protocol between the parent and a worker's process, over a pipe that only these two hold:

1. The parent alone decides who does which unit. Nothing is shared between workers, not even a lock, so a killed one
   takes down nothing but the units it had.
2. A worker asks for a unit (``_Ask``) and says whether it begins a round, that is, has no unit yet.
3. The parent answers each ``_Ask`` with one ``_Assigned``: a unit, or none. None in the middle of a round means "finish
   what you have, then ask again"; none at the beginning of a round means "there is no more work", and the worker ends.
4. A worker that has its share of the units that are left (their number by that of the workers, rounded up) gets none
   before it has begun a new round: a worker that reads ahead takes no unit that another one could do now.
5. For each unit it was given the worker sends one ``UnitDone`` or ``UnitFailed``. Before that it may send ``_Progress``
   and log records, from any of its threads, at any time.
6. An unforeseen error ends a round: the worker sends ``Raised`` with the units it had. A worker on the CPU begins
   another round; any other one ends its process, since the errors of a device may stay for good (CUDA's do).
7. An error of the program's own (``VirNucProError``) is sent as it is and raised in the parent. An unforeseen one that
   no unit can be blamed for is sent as text.
8. When a pipe ends, its process has ended or was killed: the parent joins it, puts its units under suspicion, and
   starts another one if there is work left.
9. A unit under suspicion is given out alone: to a worker that begins a round, and the round ends with it. After
   ``MAX_FAILURES`` failures it has failed for good.
10. A worker whose parent is gone ends (``lifeline.follow_parent``).
"""

from __future__ import annotations

import logging
import logging.handlers
import multiprocessing
import queue
import threading
import traceback
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from virnucpro.errors import VirNucProError, WorkerError
from virnucpro.executors.base import (
    MAX_FAILURES,
    Advance,
    Kept,
    Outcome,
    Raised,
    UnitDone,
    UnitFailed,
    Work,
    Worker,
    attempt,
    ignore_progress,
)
from virnucpro.executors.serial import SerialExecutor
from virnucpro.lifeline import EXIT_CHILD_KILLED, Closing, follow_parent
from virnucpro.platforms import ctrl_c_held_back

_log = logging.getLogger(__name__)
_MEANING = {
    -9: "signal 9, often the kernel out of memory: use fewer workers or a smaller --token-budget",
    EXIT_CHILD_KILLED: "one of its DataLoader workers was killed",
}
"""Of exit codes."""
_MAX_STILLBORN = 4
"""Processes that may die one after the other before any of them has finished a unit."""


@dataclass(frozen=True)
class _Ask:
    """Sentence 2."""

    begins: bool


@dataclass(frozen=True)
class _Assigned:
    """Sentence 3; ``alone`` when it must be the only one of its round."""

    unit: int | None
    alone: bool = False


@dataclass(frozen=True)
class _Progress:
    """How many more rows of a unit are computed."""

    unit: int
    num_rows: int


@dataclass(eq=False)
class _Child:
    """A worker's process as the parent sees it."""

    process: Any
    connection: Connection
    worker: Worker
    units: set[int] = field(default_factory=set)


class LocalExecutor(Closing):
    """Spawned, non-daemonic processes: they own DataLoader workers, which a daemon may not."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = workers
        self._children: list[_Child] = []
        self._is_used = False  # whether units were handed out since work began
        self._begin(None)

    @property
    def num_workers(self) -> int:
        """See ``Executor.num_workers``."""
        return len(self.workers)

    def start(self, work: Work) -> None:
        """See ``Executor.start``: all processes start, and wait for their first unit once they have loaded."""
        self._begin(work)
        for worker in self.workers:
            self._start(worker)

    def run(self, work: Work, units: Iterable[int], advance: Advance = ignore_progress) -> Iterator[Outcome]:
        """See ``Executor.run``. Lazy ``units`` are read only when a worker asks and there is nothing else to do."""
        if self._is_used or self._work != work:
            self._begin(work)
        self._is_used = True
        self._units, self._advance = iter(units), advance
        # Waiting to be handed out, and without an outcome; None where that is not known beforehand.
        self._num_waiting = self._num_left = len(units) if isinstance(units, Sequence) else None
        self._is_exhausted = self._num_waiting == 0
        for worker in [] if self._children else self.workers[: self._num_left]:
            self._start(worker)
        while self._children:
            ready = set(wait([child.connection for child in self._children], timeout=0 if self._asking else None))
            if not ready:  # nobody has anything to say: time to look for another unit, which may take long
                self._answer(*self._asking.popleft())
            for child in [child for child in self._children if child.connection in ready]:
                try:
                    message = child.connection.recv()
                except (EOFError, OSError):  # ended, or killed in the middle of a message
                    yield from self._retire(child)
                else:
                    yield from self._handle(child, message)

    def _begin(self, work: Work | None) -> None:
        """Forget the run before, and kill what is left of it."""
        self.close()
        self._work, self._is_used = work, False
        self._suspects: deque[int] = deque()
        self._failures: Counter[int] = Counter()
        self._num_stillborn = 0
        self._asking: deque[tuple[_Child, _Ask]] = deque()

    def close(self) -> None:
        """Kill every process and wait until it is gone."""
        children, self._children = self._children, []
        for child in children:
            if child.process.pid is not None:
                child.process.kill()
        for child in children:
            if child.process.pid is not None:
                child.process.join()
            child.connection.close()

    def _start(self, worker: Worker) -> None:
        context = multiprocessing.get_context("spawn")
        connection, theirs = context.Pipe()
        process = context.Process(target=_worker_main, args=(self._work, worker, theirs), daemon=False)
        # In the list before it runs: an interrupt in the middle of the start leaves no process that nobody knows.
        self._children.append(_Child(process, connection, worker))
        # Ctrl-C reaches the child too; it waits until the child can ignore it (``follow_parent``).
        resource_tracker.ensure_running()  # unblocks the signal as it starts, so it must be there before
        with ctrl_c_held_back():
            process.start()
        theirs.close()

    def _handle(self, child: _Child, message: object) -> Iterator[Outcome]:
        """Act on what a worker said."""
        if isinstance(message, logging.LogRecord):
            logging.getLogger(message.name).handle(message)
        elif isinstance(message, _Progress):
            self._advance(message.unit, message.num_rows)
        elif isinstance(message, _Ask):
            self._asking.append((child, message))
        elif isinstance(message, UnitDone | UnitFailed):
            child.units.remove(message.unit)
            self._num_stillborn = 0
            yield self._settled(message)
        elif isinstance(message, Raised):
            child.units.difference_update(message.units)
            for unit in message.units:
                yield from self._fail(unit, message.reason)
        elif isinstance(message, VirNucProError):
            raise message
        else:
            raise WorkerError(f"a worker on {child.worker.device} failed before it had a unit:\n{message}")

    def _answer(self, child: _Child, ask: _Ask) -> None:
        """Hand out a unit, or none."""
        if child not in self._children:
            return  # it died after asking
        alone = ask.begins and bool(self._suspects)
        unit = self._suspects.popleft() if alone else self._next_for(child)
        if unit is not None:
            child.units.add(unit)
        try:
            child.connection.send(_Assigned(unit, alone))
        except ConnectionError:
            _log.debug("worker %d died after asking", child.worker.index)  # the next recv says so; its units go back

    def _next_for(self, child: _Child) -> int | None:
        if self._num_left is not None and len(child.units) * len(self.workers) >= self._num_left > 0:
            return None  # it has its share
        unit = next(self._units, None)
        if self._num_waiting is not None:
            self._num_waiting -= unit is not None
        self._is_exhausted = unit is None or self._num_waiting == 0
        return unit

    def _settled(self, outcome: Outcome) -> Outcome:
        if self._num_left is not None:
            self._num_left -= 1
        return outcome

    def _fail(self, unit: int, reason: str) -> Iterator[Outcome]:
        self._failures[unit] += 1
        if self._failures[unit] >= MAX_FAILURES:
            yield self._settled(UnitFailed(unit, reason))
        else:
            _log.warning("unit %d goes back and is tried alone: %s", unit, reason.strip().splitlines()[-1])
            self._suspects.append(unit)

    def _retire(self, child: _Child) -> Iterator[Outcome]:
        """Join an ended worker, put what it had under suspicion, and start another one if there is work left."""
        child.process.join()
        child.connection.close()
        self._children.remove(child)
        code, device = child.process.exitcode, child.worker.device
        if code and not child.units:
            self._num_stillborn += 1
            if self._num_stillborn > _MAX_STILLBORN:
                raise WorkerError(f"workers on {device} die before they begin (exit code {code}).")
        reason = f"its process on {device} was killed ({_MEANING.get(code or 0, f'exit code {code}')})"
        for unit in sorted(child.units):
            yield from self._fail(unit, reason)
        if self._suspects or not self._is_exhausted:
            self._start(child.worker)


@dataclass
class _Line:
    """A worker's end of its pipe; several threads may speak, one listens."""

    connection: Connection
    is_over: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, message: object) -> None:
        with self.lock:
            self.connection.send(message)

    def advance(self, unit: int, num_rows: int) -> None:
        """Tell the parent how far a unit is."""
        self.send(_Progress(unit, num_rows))

    def round_of_units(self) -> Iterator[int]:
        """Ask for a unit each time the work wants one, until there is none or one must be done alone."""
        begins = True
        while True:
            self.send(_Ask(begins))
            assigned: _Assigned = self.connection.recv()
            if assigned.unit is None:
                self.is_over = begins
                return
            yield assigned.unit
            if assigned.alone:
                return
            begins = False


class _LineHandler(logging.handlers.QueueHandler):
    """Sends a worker's log records to the parent."""

    def __init__(self, line: _Line) -> None:
        super().__init__(queue.SimpleQueue())  # it wants one; nothing is ever put there
        self._line = line

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self._line.send(record)
        except OSError:
            return  # the parent is gone, and the next thing this worker says ends it


def _worker_main(work: Work, worker: Worker, connection: Connection) -> None:
    """Body of a worker's process."""
    follow_parent()
    line = _Line(connection)
    root = logging.getLogger()
    root.handlers[:] = [_LineHandler(line)]
    root.setLevel(logging.INFO)
    try:
        with Kept() as kept:
            while not line.is_over:
                for said in attempt(work, line.round_of_units(), replace(worker, advance=line.advance, kept=kept)):
                    line.send(said)
                    line.is_over = line.is_over or (isinstance(said, Raised) and worker.device != "cpu")
    except (EOFError, ConnectionError):
        return  # the parent is gone
    except VirNucProError as error:
        line.send(error)
    except Exception:  # noqa: BLE001 - top frame of a worker: the parent gets the whole story
        line.send(traceback.format_exc())
    finally:
        connection.close()


class PoolExecutor(LocalExecutor):
    """Spawned processes on the CPU. With one process, or for one unit, the work is done in this process instead."""

    def __init__(self, num_processes: int) -> None:
        super().__init__([Worker(index, "cpu", 1) for index in range(num_processes)])

    def run(self, work: Work, units: Iterable[int], advance: Advance = ignore_progress) -> Iterator[Outcome]:
        """See ``Executor.run``. ``units`` is read no further ahead than keeps every process busy."""
        units = iter(units)
        first = list(islice(units, 2)) if self.num_workers > 1 else []
        if self.num_workers > 1 and len(first) == 2:
            yield from super().run(work, chain(first, units), advance)
            return
        with SerialExecutor("cpu", 1) as here:
            yield from here.run(work, chain(first, units), advance)
