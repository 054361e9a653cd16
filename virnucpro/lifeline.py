"""Who ends when: children with their parent, and the program when it is asked to."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

from virnucpro.platforms import ignore_ctrl_c

EXIT_CHILD_KILLED = 75
"""Exit code of a process that ended because a child it cannot do without was killed."""
_SECONDS_TO_END = 5.0
_ALARM: int | None = getattr(signal, "SIGALRM", None)  # Windows has none
received: list[int] = []
"""Signals that asked this process to end."""


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM; not an Exception, so that nothing on the way takes it for a failure."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into :class:`Interrupted` within the block; afterwards every handler is as before."""
    received.clear()
    handlers: dict[int, Any] = {signal.SIGTERM: interrupt, signal.SIGINT: interrupt}
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job ignores Ctrl-C
        del handlers[signal.SIGINT]
    if _ALARM is not None:
        handlers[_ALARM] = interrupt_again
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    hook, sys.unraisablehook = sys.unraisablehook, report_unraisable
    try:
        yield
    finally:
        if _ALARM is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook


def interrupt(number: int, frame: FrameType | None) -> None:
    """Signal handler: end what is being done."""
    del frame
    received.append(number)
    if _ALARM is not None and signal.getsignal(_ALARM) is interrupt_again:
        signal.setitimer(signal.ITIMER_REAL, _SECONDS_TO_END, _SECONDS_TO_END)
    raise Interrupted


def interrupt_again(number: int, frame: FrameType | None) -> None:
    """Handler of the alarm: the interrupt was swallowed, by a callback of C or a finaliser, and comes once more."""
    del number, frame
    raise Interrupted


def check_interrupt() -> None:
    """End if that was asked for: an interrupt that comes within a callback of C is swallowed there."""
    if received:
        raise Interrupted


def report_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Hook for what a callback of C swallows: an interrupt is no error there, for it is raised again."""
    if not isinstance(unraisable.exc_value, Interrupted):
        sys.__unraisablehook__(unraisable)


class Closing(ABC):
    """A context manager that is closed at its end."""

    @abstractmethod
    def close(self) -> None:
        """End what was begun."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def follow_parent() -> None:
    """Make this child deaf to Ctrl-C, and end it at once when its parent is gone, however that came about.

    Ctrl-C reaches the whole process group, and the parent decides what becomes of it. A parent that was
    killed decides nothing: without this its children would work on, side by side with the run that goes on.
    """
    ignore_ctrl_c()
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, name="lifeline", daemon=True).start()
