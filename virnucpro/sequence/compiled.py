"""How the kernels of this room are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def compiled(function: Kernel) -> Kernel:
    """Compile with numba and keep the machine code on disk, so that only the first run waits.

    Trap: numba renews a stored kernel when *its own* file changes, not when a kernel or a table it
    uses from another file does. After editing one, delete ``sequence/__pycache__/*.nb*``.
    """
    try:
        kernel = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither the package nor the home directory can be written
        kernel = numba.njit(nogil=True)(function)
    return cast("Kernel", kernel)
