"""One spawned process for each device, or several on the CPU; units are handed out one by one.

The parent alone decides who does which unit. A worker asks for a unit over its own pipe and reports
it done over the same pipe, so a worker that is killed takes down nothing but the units in its hands:
these go back to the queue and another process takes its place.
"""

from __future__ import annotations

import logging
import logging.handlers
import multiprocessing
import signal
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
        records: Any = context.Queue()
        listener = logging.handlers.QueueListener(records, _Relay())
        listener.start()
        children = [_start(context, work, worker, records) for worker in self.workers[: len(units)]]
        try:
            while children:
                for child in _ready(children):
                    try:
                        message = child.connection.recv()
                    except (EOFError, ConnectionError):
                        children.remove(child)
                        _bury(child, todo, failures)
                        if todo:
                            children.append(_start(context, work, child.worker, records))
                        continue
                    if isinstance(message, UnitDone):
                        child.units.remove(message.unit)
                        yield message
                    elif isinstance(message, VirNucProError):
                        raise message
                    elif isinstance(message, str):
                        raise WorkerError(f"a worker on {child.worker.device} failed:\n{message}")
                    else:
                        _hand_out(child, todo)
        finally:
            for child in children:
                child.process.kill()
                child.process.join()
                child.connection.close()
            listener.stop()
            records.close()


def _start(context: Any, work: Work, worker: Worker, records: Any) -> _Child:  # noqa: ANN401
    connection, theirs = context.Pipe()
    process = context.Process(target=_worker_main, args=(work, worker, theirs, records), daemon=False)
    process.start()
    theirs.close()
    return _Child(process, connection, worker)


def _ready(children: list[_Child]) -> list[_Child]:
    ready = set(wait([child.connection for child in children]))
    return [child for child in children if child.connection in ready]


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
    if not child.units:
        return
    code = child.process.exitcode
    _log.warning("a worker on %s died (exit code %s); units %s go back", child.worker.device, code, sorted(child.units))
    failures.update(child.units)
    hopeless = sorted(unit for unit in child.units if failures[unit] >= _MAX_FAILURES)
    if hopeless:
        raise WorkerError(
            f"units {hopeless} killed their worker {_MAX_FAILURES} times (last exit code {code}; "
            "-9 is often the kernel out of memory: use fewer workers or a smaller --token-budget)."
        )
    todo.extendleft(sorted(child.units, reverse=True))


class _Relay(logging.Handler):
    """Gives a child's records to the parent's loggers."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger(record.name).handle(record)


def _worker_main(work: Work, worker: Worker, connection: Connection, records: Any) -> None:  # noqa: ANN401
    """Body of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    root = logging.getLogger()
    root.handlers[:] = [logging.handlers.QueueHandler(records)]
    root.setLevel(logging.INFO)
    try:
        for done in work.process(_asked_units(connection), worker):
            connection.send(done)
    except (EOFError, ConnectionError):
        return  # the parent is gone
    except VirNucProError as error:
        connection.send(error)
    except Exception:  # noqa: BLE001 - top frame of a worker: the parent gets the whole story
        connection.send(traceback.format_exc())
    finally:
        connection.close()


def _asked_units(connection: Connection) -> Iterator[int]:
    while True:
        connection.send(None)
        unit = connection.recv()
        if unit is None:
            return
        yield unit
