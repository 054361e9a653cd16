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
    TaskID,
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
class _Stage:
    """How far one stage is; amounts of this process, beside what was done before."""

    name: str
    total: int | None
    noun: str
    done: int
    start: float = field(default_factory=time.monotonic)
    count: int = 0

    def rate(self) -> float:
        """Amount a second so far."""
        return self.count / max(time.monotonic() - self.start, 1e-9)

    def sign_of_life(self) -> str:
        """How far, how fast and how long still."""
        rate = self.rate()
        of = "" if self.total is None else f" of {self.total:,}"
        so_far = self.done + self.count
        left = f", about {(self.total - so_far) / rate:,.0f} s left" if self.total and rate > 0 else ""
        return f"{self.name}: {so_far:,}{of} ({rate:,.0f}/s{left})"


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
    _open: list[_Stage] = field(default_factory=list)
    _tasks: dict[int, TaskID] = field(default_factory=dict)
    _screen: Progress | None = None
    _ended: threading.Event = field(default_factory=threading.Event)
    _heart: threading.Thread | None = None
    _clocks: list[str] = field(default_factory=list)
    _since: float = 0.0

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
        for stage in self._open:
            if stage.name == name:
                stage.total = (stage.total or 0) + amount
                if self._screen is not None:
                    self._screen.update(self._tasks[id(stage)], total=stage.total)

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
        stage = _Stage(name, total, noun, done)
        before = self.seconds.setdefault(name, 0.0)
        self._show(stage)

        def advance(amount: int) -> None:
            check_interrupt()
            stage.count += amount
            if self._screen is not None:
                self._screen.update(self._tasks[id(stage)], completed=done + stage.count, rate=f"{stage.rate():,.0f}/s")

        try:
            yield advance
        finally:
            self._hide(stage)
        seconds = self.seconds[name] - before
        if stage.count:
            rate = stage.count / max(seconds, 1e-9)
            _log.info("%s: %s %s in %.1f s (%s/s)", name, f"{stage.count:,}", noun, seconds, f"{rate:,.0f}")

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

    def _show(self, stage: _Stage) -> None:
        self._open.append(stage)
        if self.bars and console.is_terminal:
            if self._screen is None:
                self._screen = _new_screen()
                self._screen.start()
            self._tasks[id(stage)] = self._screen.add_task(stage.name, total=stage.total, completed=stage.done, rate="")
        elif self._heart is None:
            # A thread, so that a unit that takes an hour still gives a sign of life.
            self._ended.clear()
            self._heart = threading.Thread(target=self._beat, daemon=True)
            self._heart.start()

    def _hide(self, stage: _Stage) -> None:
        self._open.remove(stage)
        if self._screen is not None:
            self._screen.remove_task(self._tasks.pop(id(stage)))
        if self._open:
            return
        if self._screen is not None:
            self._screen.stop()
            self._screen = None
        if self._heart is not None:
            self._ended.set()
            self._heart.join()
            self._heart = None

    def _beat(self) -> None:
        while not self._ended.wait(self.heartbeat_seconds):
            _log.info("%s", "; ".join(stage.sign_of_life() for stage in reversed(self._open)))


def _new_screen() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
