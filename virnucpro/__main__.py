"""``python -m virnucpro``, and ``virnucpro``."""

import gc

from virnucpro.cli import main

_NEW_OBJECTS = 200_000


def run() -> None:
    """Run the command line in a process of its own.

    The libraries make half a million objects when they are imported, and these live to the end: looking through them
    for garbage, again and again and once more at the end, would take a second of every command.
    """
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])
    try:
        main()
    finally:
        gc.freeze()


if __name__ == "__main__":
    run()
