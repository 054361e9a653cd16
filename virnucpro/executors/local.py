"""One spawned process for each device, or several on the CPU; units are handed out one by one.

The parent alone decides who does which unit. A worker asks for a unit over its own pipe, and over the
same pipe it reports what is done and what it has to log. Nothing is shared between workers, not even a
lock that a killed one could hold for ever: it takes down nothing but the units in its hands. These are
tried again, each alone in a worker's hands, and another process takes the dead one's place.
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
from multiprocessing.connection import Connection, wait
from typing import Any

from virnucpro.errors import VirNucProError, WorkerError
from virnucpro.executors.attempts import InHand
from virnucpro.executors.base import (
    MAX_FAILURES,
    Advance,
    Outcome,
    UnitDone,
    UnitFailed,
    Work,
    Worker,
    ignore_progress,
)
from virnucpro.lifeline import EXIT_CHILD_KILLED, follow_parent

_log = logging.getLogger(__name__)
_MAX_STILLBORN = 4
"""Processes that may die one after the other before any of them has finished a unit."""


@dataclass(frozen=True)
class _Ask:
    """A worker wants a unit; ``begins`` when it has nothing in hand and starts a new round of work."""

    begins: bool


@dataclass(frozen=True)
class _Assigned:
    """The answer: a unit, and whether it must be the only one of its round; None when there is none."""

    unit: int | None
    alone: bool = False


@dataclass(frozen=True)
class _Raised:
    """A round ended with an error nobody foresaw, with these units in hand."""

    units: tuple[int, ...]
    story: str


@dataclass(frozen=True)
class _Progress:
    """How many more rows of a unit are computed."""

    unit: int
    num_rows: int


@dataclass
class _Child:
    """A worker process as the parent sees it."""

    process: Any
    connection: Connection
    worker: Worker
    units: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class LocalExecutor:
    """Spawned, non-daemonic processes: they own DataLoader workers, which a daemon may not.

    Attributes:
        workers: one place for each process.
    """

    workers: Sequence[Worker]

    @property
    def num_workers(self) -> int:
        """See ``Executor.num_workers``."""
        return len(self.workers)

    def run(self, work: Work, units: Iterable[int], advance: Advance = ignore_progress) -> Iterator[Outcome]:
        """See ``Executor.run``."""
        return _Crew(work, deque(units), advance).outcomes(self.workers)


@dataclass
class _Crew:
    """The processes of one run, and the units that wait."""

    work: Work
    todo: deque[int]
    advance: Advance
    suspects: deque[int] = field(default_factory=deque)
    failures: Counter[int] = field(default_factory=Counter)
    num_stillborn: int = 0
    children: list[_Child] = field(default_factory=list)

    def outcomes(self, workers: Sequence[Worker]) -> Iterator[Outcome]:
        """Start the workers, serve them, and yield what becomes of each unit."""
        try:
            for worker in workers[: len(self.todo)]:
                self._start(worker)
            while self.children:
                for child in self._ready():
                    try:
                        message = child.connection.recv()
                    except (EOFError, OSError):  # ended, or killed in the middle of a word
                        yield from self._bury(child)
                        continue
                    yield from self._hear(child, message)
        finally:
            for child in self.children:
                child.process.kill()
                child.process.join()
                child.connection.close()

    def _start(self, worker: Worker) -> None:
        context = multiprocessing.get_context("spawn")
        connection, theirs = context.Pipe()
        process = context.Process(target=_worker_main, args=(self.work, worker, theirs), daemon=False)
        process.start()
        theirs.close()
        self.children.append(_Child(process, connection, worker))

    def _ready(self) -> list[_Child]:
        ready = set(wait([child.connection for child in self.children]))
        return [child for child in self.children if child.connection in ready]

    def _hear(self, child: _Child, message: object) -> Iterator[Outcome]:
        """Act on what a worker said."""
        if isinstance(message, logging.LogRecord):
            logging.getLogger(message.name).handle(message)
        elif isinstance(message, _Progress):
            self.advance(message.unit, message.num_rows)
        elif isinstance(message, _Ask):
            self._answer(child, message)
        elif isinstance(message, UnitDone | UnitFailed):
            child.units.remove(message.unit)
            self.num_stillborn = 0
            yield message
        elif isinstance(message, _Raised):
            child.units.difference_update(message.units)
            for unit in message.units:
                yield from self._fail(unit, message.story)
        elif isinstance(message, VirNucProError):
            raise message
        else:
            raise WorkerError(f"a worker on {child.worker.device} failed before it had a unit:\n{message}")

    def _answer(self, child: _Child, ask: _Ask) -> None:
        """Hand out a unit. A suspect goes to a worker with empty hands, and nothing goes with it."""
        alone = ask.begins and bool(self.suspects)
        waiting = self.suspects if alone else self.todo
        unit = waiting.popleft() if waiting else None
        if unit is not None:
            child.units.add(unit)
        try:
            child.connection.send(_Assigned(unit, alone))
        except ConnectionError:
            # It died after asking; the next recv says so and its units go back.
            _log.debug("worker %d died while asking", child.worker.index)

    def _fail(self, unit: int, reason: str) -> Iterator[Outcome]:
        self.failures[unit] += 1
        if self.failures[unit] >= MAX_FAILURES:
            yield UnitFailed(unit, reason)
        else:
            _log.warning("unit %d goes back and is tried alone: %s", unit, reason.strip().splitlines()[-1])
            self.suspects.append(unit)

    def _bury(self, child: _Child) -> Iterator[Outcome]:
        """Reap an ended worker, put what it held under suspicion, and start another where there is work."""
        self.children.remove(child)
        child.process.join()
        child.connection.close()
        code, device = child.process.exitcode, child.worker.device
        if code and not child.units:
            self.num_stillborn += 1
            if self.num_stillborn > _MAX_STILLBORN:
                raise WorkerError(f"workers on {device} die before they begin (exit code {code}).")
        for unit in sorted(child.units):
            yield from self._fail(unit, f"its process on {device} was killed ({_meaning(code)})")
        if self.todo or self.suspects:
            self._start(child.worker)


def _meaning(exit_code: int | None) -> str:
    if exit_code == -9:
        return "signal 9, often the kernel out of memory: use fewer workers or a smaller --token-budget"
    if exit_code == EXIT_CHILD_KILLED:
        return "one of its DataLoader workers was killed"
    return f"exit code {exit_code}"


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
    """Body of a worker process."""
    follow_parent()
    line = _Line(connection)
    root = logging.getLogger()
    root.handlers[:] = [_LineHandler(line)]
    root.setLevel(logging.INFO)
    try:
        while not line.is_over:
            _work_a_round(work, replace(worker, advance=line.advance), line)
    except (EOFError, ConnectionError):
        return  # the parent is gone
    except VirNucProError as error:
        line.send(error)
    except Exception:  # noqa: BLE001 - top frame of a worker: the parent gets the whole story
        line.send(traceback.format_exc())
    finally:
        connection.close()


def _work_a_round(work: Work, worker: Worker, line: _Line) -> None:
    """Process units until there is none, or until an error that is not ours; the latter costs what was in hand."""
    in_hand = InHand(line.round_of_units())
    try:
        for outcome in work.process(in_hand, worker):
            in_hand.give_back(outcome.unit)
            line.send(outcome)
    except VirNucProError:
        raise
    except Exception:
        units = in_hand.take_all()
        if in_hand.source_error is not None or not units:
            raise
        line.send(_Raised(tuple(units), traceback.format_exc()))
