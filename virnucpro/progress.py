"""Signs of life: bars with rate and time left on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)

from virnucpro.lifeline import check_interrupt
from virnucpro.logs import console

_log = logging.getLogger(__name__)
_HEARTBEAT_SECONDS = 60.0

Advance = Callable[[int], None]
Item = TypeVar("Item")


def in_notebook() -> bool:
    """Whether this is a kernel of a notebook, not merely a program that has one imported."""
    kernel = sys.modules.get("ipykernel.kernelapp")
    return kernel is not None and bool(kernel.IPKernelApp.initialized())


@dataclass
class Reporter:
    """Shows how far each stage is, and remembers how long each took. Stages may overlap.

    Attributes:
        bars: draw bars (only on a terminal); heartbeat lines otherwise.
        heartbeat_seconds: seconds between two heartbeat lines.
        seconds: stage name to wall seconds this process spent in it; of stages that overlap, each second is
            counted for the innermost.
    """

    bars: bool
    heartbeat_seconds: float = _HEARTBEAT_SECONDS
    seconds: dict[str, float] = field(default_factory=dict)
    _screen: Progress = field(init=False)  # counts where it draws nothing, too
    _ended: threading.Event = field(default_factory=threading.Event)
    _heart: threading.Thread | None = None
    _clocks: list[str] = field(default_factory=list)
    _since: float = 0.0

    def __post_init__(self) -> None:
        self._screen = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:,.0f}/s"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not (self.bars and console.is_terminal),
        )

    @contextmanager
    def stage(self, name: str, total: int | None, noun: str, *, done: int = 0) -> Iterator[Advance]:
        """Report one stage; the block calls the function it is given with each amount done.

        Args:
            name: of the stage.
            total: amount in all, or None while it is not known.
            noun: what is counted, in the plural.
            done: amount done before (a run that goes on).
        """
        with self._reported(name, total, noun, done) as advance, self._clock(name):
            yield advance

    def expect(self, name: str, amount: int) -> None:
        """Add to the amount in all of an open stage, which was not known when it began."""
        for task in self._screen.tasks:
            if task.description == name:
                self._screen.update(task.id, total=(task.total or 0) + amount)

    def stream(
        self, name: str, total: int | None, noun: str, start: Callable[[Advance], Iterable[Item]]
    ) -> Iterator[Item]:
        """Report a stage that hands each item on as it is finished; its clock stands while nobody asks for the next.

        Args:
            name: of the stage.
            total: amount in all.
            noun: what is counted, in the plural.
            start: given the function that takes each amount done, returns the items.
        """
        with self._reported(name, total, noun, 0) as advance:
            items = iter(start(advance))
            while True:
                with self._clock(name):
                    try:
                        item = next(items)
                    except StopIteration:
                        return
                yield item

    @contextmanager
    def _reported(self, name: str, total: int | None, noun: str, done: int) -> Iterator[Advance]:
        before, start, count = self.seconds.setdefault(name, 0.0), time.monotonic(), 0
        self._begin()
        task = self._screen.add_task(name, total=total, completed=done, done=done, rate=0.0)

        def advance(amount: int) -> None:
            nonlocal count
            check_interrupt()
            count += amount
            self._screen.update(task, advance=amount, rate=count / max(time.monotonic() - start, 1e-9))

        try:
            yield advance
        finally:
            self._screen.remove_task(task)
            self._end()
        if count:
            seconds = self.seconds[name] - before
            rate = count / max(seconds, 1e-9)
            shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
            _log.info("%s: %s %s in %.1f s (%s/s)", name, f"{count:,}", noun, seconds, shown)

    @contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        """Count time for ``name``, and for nobody else, while the block runs."""
        check_interrupt()
        self._stop_watch(name)
        self._clocks.append(name)
        try:
            yield
        finally:
            self._stop_watch(name)
            self._clocks.pop()

    def _stop_watch(self, name: str) -> None:
        now = time.monotonic()
        self.seconds.setdefault(name, 0.0)
        if self._clocks:
            self.seconds[self._clocks[-1]] += now - self._since
        self._since = now

    def _begin(self) -> None:
        """Before the first of the open stages: draw bars, or let the heart beat."""
        if self._screen.tasks:
            return
        self._screen.start()
        if self._screen.disable:
            # A thread, so that a unit that takes an hour still gives a sign of life.
            self._ended.clear()
            self._heart = threading.Thread(target=self._beat, daemon=True)
            self._heart.start()

    def _end(self) -> None:
        """After the last of the open stages."""
        if self._screen.tasks:
            return
        self._screen.stop()
        if self._heart is not None:
            self._ended.set()
            self._heart.join()
            self._heart = None

    def _beat(self) -> None:
        while not self._ended.wait(self.heartbeat_seconds):
            _log.info("%s", "; ".join(map(_sign_of_life, reversed(self._screen.tasks))))


def _sign_of_life(task: Task) -> str:
    """How far a stage is, how fast and how long still."""
    of, count = "" if task.total is None else f" of {task.total:,}", task.completed - task.fields["done"]
    rate = count / max(task.elapsed or 0, 1e-9)
    left = f", about {(task.total - task.completed) / rate:,.0f} s left" if task.total and rate > 0 else ""
    return f"{task.description}: {task.completed:,}{of} ({rate:,.0f}/s{left})"
