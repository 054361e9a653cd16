"""Building a hierarchy one question after the other, and level by level: seconds of each step, and their ratio.

    python tests/benchmarks/hierarchy_levels.py

Every question takes 50 ms, as a fast server does. Both ways run in this process, in turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

from virnucpro.hierarchy import Claim, HierarchyBuilder, Resolver, UnknownNameError

STEPS = ("hierarchy", "siblings", "reorganising", "evidence")


class Slow(Resolver):
    """A tree of 3 children a name, 4 levels below the root, whose every answer takes its time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def parents(self, name: str) -> Sequence[Claim]:
        """See ``Resolver.parents``."""
        time.sleep(self._seconds)
        if not name.startswith("n"):
            raise UnknownNameError(name)
        return [Claim(name.rpartition("-")[0])] if "-" in name else []

    def siblings(self, parent: str) -> Sequence[str]:
        """See ``Resolver.siblings``."""
        time.sleep(self._seconds)
        return [f"{parent}-{child}" for child in range(3)]

    def accepted(self, names: Sequence[str]) -> Sequence[str]:
        """See ``Resolver.accepted``."""
        time.sleep(self._seconds)
        return names

    def evidence(self, edges: Sequence[tuple[str, str]]) -> Sequence[Claim | None]:
        """See ``Resolver.evidence``."""
        time.sleep(self._seconds)
        return [Claim(parent, "checked") for _, parent in edges]


def terms() -> list[str]:
    """The leaves, but for the last child of each parent, which is left for the step of siblings."""
    names = ["n"]
    for _ in range(4):
        names = [f"{name}-{child}" for name in names for child in range(3)]
    return [name for name in names if not name.endswith("2")]


def measure(max_concurrent: int, seconds: float) -> tuple[list[float], object]:
    """Seconds of each step, and the tree."""
    builder = HierarchyBuilder(terms(), Slow(seconds), max_concurrent=max_concurrent, batch_size=5)
    steps: list[Callable[[], None]] = [builder.climb, builder.find_siblings, builder.reorganise, builder.add_evidence]
    took = []
    for step in steps:
        begun = time.perf_counter()
        step()
        took.append(time.perf_counter() - begun)
    return took, builder.tree()


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-concurrent", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=0.05, help="of a question")
    options = parser.parse_args()
    before, expected = measure(1, options.seconds)
    after, tree = measure(options.max_concurrent, options.seconds)
    if tree != expected:
        raise SystemExit("the two trees differ")
    print(f"| step | one after the other | level by level, {options.max_concurrent} at the same time | ratio |")
    print("|---|---|---|---|")
    for step, old, new in zip((*STEPS, "all"), (*before, sum(before)), (*after, sum(after)), strict=True):
        print(f"| {step} | {old:.2f} s | {new:.2f} s | {old / new:.1f} |")


if __name__ == "__main__":
    main()
