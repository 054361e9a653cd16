"""Signs of life: a bar with rate and time left on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from virnucpro.logs import console

_log = logging.getLogger(__name__)
_HEARTBEAT_SECONDS = 60.0

Advance = Callable[[int], None]


@dataclass
class Reporter:
    """Shows how far each stage is, and remembers how long each took.

    Attributes:
        bars: draw bars (only on a terminal); heartbeat lines otherwise.
        heartbeat_seconds: seconds between two heartbeat lines.
        seconds: stage name to wall seconds spent in it by this process.
    """

    bars: bool
    heartbeat_seconds: float = _HEARTBEAT_SECONDS
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, total: int | None, noun: str, *, done: int = 0) -> Iterator[Advance]:
        """Report one stage; the block calls the function it is given with each amount done.

        Args:
            name: of the stage.
            total: amount in all, or None while it is not known.
            noun: what is counted, in the plural.
            done: amount done before (a run that goes on).
        """
        start = time.monotonic()
        count = 0

        with self._shown(name, total, done) as show:

            def advance(amount: int) -> None:
                nonlocal count
                count += amount
                show(count)

            yield advance
        seconds = time.monotonic() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if count:
            _log.info(
                "%s: %s %s in %.1f s (%s/s)", name, f"{count:,}", noun, seconds, f"{count / max(seconds, 1e-9):,.0f}"
            )

    @contextmanager
    def _shown(self, name: str, total: int | None, done: int) -> Iterator[Callable[[int], None]]:
        if self.bars and console.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description:<9}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
            )
            start = time.monotonic()
            with Progress(*columns, console=console, transient=True) as progress:
                task = progress.add_task(name, total=total, completed=done, rate="")
                yield lambda count: progress.update(
                    task, completed=done + count, rate=f"{count / max(time.monotonic() - start, 1e-9):,.0f}/s"
                )
            return
        start = time.monotonic()
        counted = 0
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(self.heartbeat_seconds):
                rate = counted / (time.monotonic() - start)
                of = "" if total is None else f" of {total:,}"
                left = "" if not total or not rate else f", about {(total - done - counted) / rate:,.0f} s left"
                _log.info("%s: %s%s (%s/s%s)", name, f"{done + counted:,}", of, f"{rate:,.0f}", left)

        def show(count: int) -> None:
            nonlocal counted
            counted = count

        # A thread, so that a unit that takes an hour still gives a sign of life.
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield show
        finally:
            ended.set()
            thread.join()
