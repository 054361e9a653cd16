"""One spawned process for each device, or several on the CPU; units are handed out one by one.

The parent alone decides who does which unit. A worker asks for a unit over its own pipe, and over the
same pipe it reports what is done and what it has to log. Nothing is shared between workers, not even a
lock that a killed one could hold for ever: it takes down nothing but the units in its hands. These go
back to the queue and another process takes its place.
"""

from __future__ import annotations

import logging
import logging.handlers
import multiprocessing
import queue
import signal
import threading
import traceback
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from virnucpro.errors import VirNucProError, WorkerError
from virnucpro.executors.base import UnitDone, Work, Worker

_log = logging.getLogger(__name__)
_MAX_FAILURES = 2
_BEFORE_ANY_UNIT = -1
"""Stands for a unit in the count of failures."""


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

    def run(self, work: Work, units: Sequence[int]) -> Iterator[UnitDone]:
        """See ``Executor.run``."""
        todo = deque(units)
        failures: Counter[int] = Counter()
        context = multiprocessing.get_context("spawn")
        children: list[_Child] = []
        try:
            for worker in self.workers[: len(units)]:
                children.append(_start(context, work, worker))  # noqa: PERF401 - each must be reaped if the next fails
            while children:
                for child in _ready(children):
                    try:
                        message = child.connection.recv()
                    except (EOFError, OSError):  # ended, or killed in the middle of a word
                        children.remove(child)
                        _bury(child, todo, failures)
                        if todo:
                            children.append(_start(context, work, child.worker))
                        continue
                    done = _hear(child, message, todo)
                    if done is not None:
                        yield done
        finally:
            for child in children:
                child.process.kill()
                child.process.join()
                child.connection.close()


def _start(context: Any, work: Work, worker: Worker) -> _Child:  # noqa: ANN401
    connection, theirs = context.Pipe()
    process = context.Process(target=_worker_main, args=(work, worker, theirs), daemon=False)
    process.start()
    theirs.close()
    return _Child(process, connection, worker)


def _ready(children: list[_Child]) -> list[_Child]:
    ready = set(wait([child.connection for child in children]))
    return [child for child in children if child.connection in ready]


def _hear(child: _Child, message: object, todo: deque[int]) -> UnitDone | None:
    """Act on what a worker said; a finished unit is returned, an error is raised."""
    if isinstance(message, logging.LogRecord):
        logging.getLogger(message.name).handle(message)
    elif isinstance(message, UnitDone):
        child.units.remove(message.unit)
        return message
    elif isinstance(message, VirNucProError):
        raise message
    elif isinstance(message, str):
        raise WorkerError(f"a worker on {child.worker.device} failed:\n{message}")
    else:
        _hand_out(child, todo)
    return None


def _hand_out(child: _Child, todo: deque[int]) -> None:
    unit = todo.popleft() if todo else None
    if unit is not None:
        child.units.add(unit)
    try:
        child.connection.send(unit)
    except ConnectionError:
        # It died after asking; the next recv says so and its units go back.
        _log.debug("worker %d died while asking", child.worker.index)


def _bury(child: _Child, todo: deque[int], failures: Counter[int]) -> None:
    """Reap an ended worker and put back what it held."""
    child.process.join()
    child.connection.close()
    code = child.process.exitcode
    if not child.units:
        if code:
            failures[_BEFORE_ANY_UNIT] += 1
        if failures[_BEFORE_ANY_UNIT] > _MAX_FAILURES:
            raise WorkerError(f"workers on {child.worker.device} die before they begin (exit code {code}).")
        return
    _log.warning("a worker on %s died (exit code %s); units %s go back", child.worker.device, code, sorted(child.units))
    failures.update(child.units)
    hopeless = sorted(unit for unit in child.units if failures[unit] >= _MAX_FAILURES)
    if hopeless:
        raise WorkerError(
            f"units {hopeless} killed their worker {_MAX_FAILURES} times (last exit code {code}; "
            "-9 is often the kernel out of memory: use fewer workers or a smaller --token-budget)."
        )
    todo.extendleft(sorted(child.units, reverse=True))


@dataclass
class _Line:
    """A worker's end of its pipe; several threads may speak, one listens."""

    connection: Connection
    lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, message: object) -> None:
        with self.lock:
            self.connection.send(message)

    def asked_units(self) -> Iterator[int]:
        """Ask for a unit each time the work wants one."""
        while True:
            self.send(None)
            unit = self.connection.recv()
            if unit is None:
                return
            yield unit


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    line = _Line(connection)
    root = logging.getLogger()
    root.handlers[:] = [_LineHandler(line)]
    root.setLevel(logging.INFO)
    try:
        for done in work.process(line.asked_units(), worker):
            line.send(done)
    except (EOFError, ConnectionError):
        return  # the parent is gone
    except VirNucProError as error:
        line.send(error)
    except Exception:  # noqa: BLE001 - top frame of a worker: the parent gets the whole story
        line.send(traceback.format_exc())
    finally:
        connection.close()
