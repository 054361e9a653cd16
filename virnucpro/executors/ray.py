"""Work on a Ray cluster: an actor for each GPU, or for some CPUs; machines may come and go.

The driver alone decides who does which unit, by ``Dispatch``. Ray restarts no actor and repeats no call: for an actor
that died the driver starts another one, wherever there is room.
"""

from __future__ import annotations

import atexit
import importlib.util
import logging
import os
import secrets
import tempfile
import time
import traceback
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

from virnucpro.errors import UsageError, VirNucProError
from virnucpro.executors.base import Advance, Kept, Outcome, UnitDone, UnitFailed, Work, Worker, ignore_progress
from virnucpro.executors.dispatch import Dispatch
from virnucpro.lifeline import check_interrupt

_log = logging.getLogger(__name__)

_POLL_SECONDS = 2.0
_TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"  # noqa: S105 - names a file
_SURROUNDINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}
"""What Ray must find in its environment: nobody without the token gets in, and a dead machine shows within seconds."""

Files = dict[str, bytes]
"""Name relative to a folder to content."""


@runtime_checkable
class Portable(Protocol):
    """Work that can be done where the files of the driver are not to be seen: they travel with the calls."""

    @property
    def mark(self) -> Path:
        """A file that a machine sees if it shares the driver's files."""
        ...

    def pack(self, unit: int) -> Files:
        """What a unit is made from; called in the driver."""
        ...

    def at(self, folder: Path) -> Work:
        """The same work in another folder."""
        ...

    def collect(self, unit: int) -> Files:
        """What a unit has become; called where it was done."""
        ...

    def install(self, unit: int, files: Files) -> None:
        """Put it in its place; called in the driver."""
        ...


def require_ray() -> None:
    """Refuse where Ray is not installed.

    Raises:
        UsageError: it is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise UsageError("the engine ray needs Ray. Install it: pip install 'virnucpro[ray]'")


@dataclass(frozen=True)
class _Answer:
    """What came of a call: an outcome, an error to raise here, or the story of one that nobody foresaw.

    None of them where the place does not see the driver's files, and got none.
    """

    node: str  # where it was done
    outcome: Outcome | None = None
    error: VirNucProError | None = None
    story: str = ""
    files: Files | None = None
    records: tuple[logging.LogRecord, ...] = ()


class _Place:
    """An actor: does one unit at a time, in a process of its own somewhere in the cluster."""

    def __init__(self, index: int, num_threads: int) -> None:
        import ray  # noqa: PLC0415 - an extra

        self._node = ray.get_runtime_context().get_node_id()
        self._kept = Kept()
        self._worker = Worker(index, "cuda:0" if ray.get_gpu_ids() else "cpu", num_threads, kept=self._kept)
        self._records: list[logging.LogRecord] = []
        root = logging.getLogger()
        root.handlers[:] = [_Recorder(self._records)]
        root.setLevel(logging.INFO)

    def do(self, work: Any, unit: int, files: Files | None) -> _Answer:  # noqa: ANN401 - Work, or Portable
        """Do one unit; with ``files`` in a folder of this place."""
        answer = _Answer(self._node)
        try:
            if files is not None:
                with tempfile.TemporaryDirectory(prefix="virnucpro-") as name:
                    write_files(Path(name), files)
                    here = work.at(Path(name))
                    (outcome,) = here.process([unit], self._worker)
                    made = here.collect(unit) if isinstance(outcome, UnitDone) else {}
                    answer = replace(answer, outcome=outcome, files=made)
            elif not isinstance(work, Portable) or work.mark.exists():
                (outcome,) = work.process([unit], self._worker)
                answer = replace(answer, outcome=outcome)
        except VirNucProError as error:
            answer = replace(answer, error=error)
        except Exception:  # noqa: BLE001 - top frame of a worker: the driver gets the whole story
            answer = replace(answer, story=traceback.format_exc())
        answer = replace(answer, records=tuple(self._records))
        self._records.clear()
        return answer

    def close(self) -> None:
        """Close what the work kept."""
        self._kept.close()


class _Recorder(logging.Handler):
    """Keeps records until the call is answered; they cross processes as plain text."""

    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__()
        self._kept = records

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self._kept.append(record)


@dataclass(eq=False)
class _Hand:
    """A place as the driver sees it."""

    actor: Any  # its handle
    node: str = ""  # where it runs; empty until it answered
    shares: bool = True  # whether it sees the driver's files, as far as is known
    nodes: frozenset[str] = frozenset()  # those that lived when it was given what it has in hand


@dataclass
class RayExecutor:
    """An executor over the machines of a Ray cluster; see ``executors.base.Executor``."""

    # HOST:PORT of a cluster that runs, or ``local`` for one on this machine alone, which ends with it
    address: str = "local"
    num_threads: int = 1  # CPU threads of an actor; it takes as many CPUs where the cluster has no GPU
    _hands: list[_Hand] = field(default_factory=list)
    _ray: Any = None
    _calls: dict[Any, tuple[_Hand, int]] = field(default_factory=dict)  # to who does it, and the unit
    _nodes: frozenset[str] = frozenset()
    _looked: float = float("-inf")
    _before: dict[str, str | None] = field(default_factory=dict)

    def __enter__(self) -> Self:
        require_ray()
        surroundings = dict(_SURROUNDINGS)
        if _TOKEN_PATH not in os.environ:
            if self.address != "local":
                raise UsageError(
                    f"a Ray cluster is reached with its token: set {_TOKEN_PATH} to the file that 'ray start' was "
                    "given there (RAY_AUTH_MODE=token)."
                )
            surroundings[_TOKEN_PATH] = str(_own_token())
        self._before = {name: os.environ.get(name) for name in surroundings}
        os.environ.update(surroundings)
        import ray  # noqa: PLC0415 - an extra, and reads its surroundings when it is imported

        self._ray = ray
        is_local = self.address == "local"
        try:
            ray.init(
                self.address,
                include_dashboard=False if is_local else None,
                log_to_driver=False,
                configure_logging=False,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            self._restore()
            raise UsageError(f"no Ray cluster answers at {self.address} ({error}).") from error
        return self

    def __exit__(self, *exception: object) -> None:
        _, error, _ = exception
        idle = [hand.actor.close.remote() for hand in self._hands if hand.node]
        if idle and (error is None or isinstance(error, Exception)):
            self._ray.wait(idle, num_returns=len(idle), timeout=5.0)
        for hand in self._hands:
            self._ray.kill(hand.actor)
        self._hands.clear()
        self._ray.shutdown()
        self._restore()

    @property
    def num_workers(self) -> int:
        """Places that there are now, or that there will be at once."""
        return max(1, len(self._hands), self._capacity())

    def start(self, work: Work) -> None:
        """See ``Executor.start``; inputs are cut before the cluster is reached."""

    def run(self, work: Work, units: Iterable[int], advance: Advance = ignore_progress) -> Iterator[Outcome]:
        """See ``Executor.run``; a unit whose machine dies is done on another, without being blamed."""
        dispatch = Dispatch(units)
        calls = self._calls
        try:
            while not dispatch.is_finished:
                check_interrupt()
                self._look_around()
                for hand in self._idle():
                    call = object()
                    unit = dispatch.take(call, time.monotonic())
                    if unit is None:
                        break
                    self._ask(hand, unit, work, call, dispatch)
                if not calls:
                    if not dispatch.is_finished:
                        time.sleep(0.1)
                    continue
                ready, _ = self._ray.wait([*calls], num_returns=1, timeout=1.0)
                for reference in ready:
                    yield from self._hear(reference, work, dispatch, advance)
        finally:
            for hand, _ in calls.values():  # whoever still has a unit in hand works for nobody
                self._drop(hand)
            calls.clear()

    def _idle(self) -> list[_Hand]:
        busy = {hand for hand, _ in self._calls.values()}
        return [hand for hand in self._hands if hand not in busy]

    def _ask(self, hand: _Hand, unit: int, work: Work, call: Hashable, dispatch: Dispatch) -> None:
        """Have a place do a unit."""
        hand.nodes = self._nodes
        files = work.pack(unit) if isinstance(work, Portable) and not hand.shares else None
        reference = hand.actor.do.remote(work, unit, files)
        dispatch.rename(call, reference)
        self._calls[reference] = hand, unit

    def _hear(
        self,
        reference: Any,  # noqa: ANN401 - Ray's types are not installed everywhere
        work: Work,
        dispatch: Dispatch,
        advance: Advance,
    ) -> Iterator[Outcome]:
        """Act on the end of a call."""
        hand, unit = self._calls.pop(reference)
        try:
            answer: _Answer = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._drop(hand)
            self._looked = float("-inf")  # another one is started at once
            if hand.nodes <= self._living():
                said, *_ = [*str(error).strip().splitlines(), type(error).__name__]
                yield from self._report(dispatch.blame(reference, f"its process was killed ({said})"))
            else:
                _log.warning("a node is gone; the unit of its worker goes back")
                dispatch.lose(reference)
            return
        for record in answer.records:
            logging.getLogger(record.name).handle(record)
        hand.node = answer.node
        if answer.error is not None:
            raise answer.error
        if answer.story:
            yield from self._report(dispatch.blame(reference, answer.story))
        elif answer.outcome is None:
            hand.shares = False
            self._ask(hand, unit, work, reference, dispatch)
        elif dispatch.settle(reference, time.monotonic()):
            if answer.files is not None and isinstance(work, Portable):
                work.install(answer.outcome.unit, answer.files)
            if isinstance(answer.outcome, UnitDone):
                advance(answer.outcome.unit, answer.outcome.num_rows)
            yield answer.outcome

    def _report(self, failed: UnitFailed | None) -> Iterator[Outcome]:
        if failed is None:
            _log.warning("a unit goes back and is tried again")
        else:
            yield failed

    def _look_around(self) -> None:
        """Now and then, start an actor for each place that the cluster has gained, and forget those it has lost."""
        if time.monotonic() < self._looked + _POLL_SECONDS:
            return
        self._looked, self._nodes = time.monotonic(), self._living()
        for hand in [hand for hand in self._idle() if hand.node not in ("", *self._nodes)]:
            self._drop(hand)
        takes = {"num_gpus": 1} if self._ray.cluster_resources().get("GPU") else {"num_cpus": self.num_threads}
        for index in range(len(self._hands), self._capacity()):
            kind = self._ray.remote(max_restarts=0, max_task_retries=0, **takes)(_Place)
            self._hands.append(_Hand(kind.remote(index, self.num_threads)))

    def _drop(self, hand: _Hand) -> None:
        self._hands.remove(hand)
        self._ray.kill(hand.actor)

    def _capacity(self) -> int:
        cluster = self._ray.cluster_resources()
        return int(cluster.get("GPU") or cluster.get("CPU", 0) // self.num_threads)

    def _living(self) -> frozenset[str]:
        return frozenset(str(node["NodeID"]) for node in self._ray.nodes() if node["Alive"])

    def _restore(self) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@cache
def _own_token() -> Path:
    """A file with a token that only this user may read, for as long as this process lives: Ray reads it once."""
    descriptor, name = tempfile.mkstemp(prefix="virnucpro-ray-")
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(secrets.token_hex(32))
    atexit.register(Path(name).unlink, missing_ok=True)
    return Path(name)


def write_files(folder: Path, files: Files) -> None:
    """Write files that travelled below a folder of this machine."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
