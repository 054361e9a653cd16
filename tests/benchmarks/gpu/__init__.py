"""What a GPU can do, and how near the encoders come to it, rung by rung: eager, compiled.

Weights and tokens are random and made on the device. A time budget holds for all of it: what is not measured by then is
listed as such, and so is a rung that fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.gpu import attention, end_to_end, ladder, products
from benchmarks.gpu.bench import SECTION, Bench, Sizes
from benchmarks.gpu.models import Shape, dnabert_s_shape, esm2_shape
from benchmarks.measure import Figure, Settings
from virnucpro.encoders.compiled_layers import Compiler

__all__ = ["SECTION", "Sizes", "is_there", "measure", "measure_on"]

_POINT_SHARE = 0.1  # of what a contestant of another section gets, for each of some sixty points

Rung = tuple[str, Callable[[], Iterator[Figure]]]


def is_there() -> bool:
    """Whether there is a GPU that this section measures."""
    return torch.cuda.is_available()


def measure(settings: Settings) -> Iterator[Figure]:
    """All rungs on the first CUDA device; one line where there is none."""
    if not is_there():
        yield Figure(SECTION, "NVIDIA GPU", "", (), note="no CUDA device is here, or torch is built without CUDA")
        return
    sizes = Sizes(
        loader_workers=min(4, max(1, settings.threads // 2)),
        seconds=_POINT_SHARE * settings.seconds,
        seed=settings.seed,
    )
    yield from measure_on(torch.device("cuda", 0), sizes)


def measure_on(device: torch.device, sizes: Sizes, compiler: Compiler | None = None) -> Iterator[Figure]:
    """All rungs on a device, the most important ones first.

    Args:
        device: where; what only CUDA has is said to be missing elsewhere.
        sizes: how large.
        compiler: of layers; torch's, where None.
    """
    bench = Bench(device, sizes, compiler)
    yield Figure(SECTION, "device", "", (), note=bench.describe())
    for what, rung in _rungs(bench):
        if bench.is_over():
            yield bench.unmeasured_for_time(what)
            continue
        try:
            yield from rung()
        except Exception as error:  # noqa: BLE001 - on a card nobody has tried, the other rungs are still worth having
            first, *_ = str(error).strip().splitlines() or [""]
            yield bench.unmeasured(what, f"failed: {type(error).__name__}: {first:.200}")
        bench.free_memory()


def _rungs(bench: Bench) -> list[Rung]:
    sizes = bench.sizes
    large, small = esm2_shape(sizes.largest), esm2_shape(sizes.smaller)
    dna = dnabert_s_shape(sizes.dnabert_layers)

    def climb(shape: Shape) -> list[Rung]:
        return [
            (f"matrix products of {shape.name}", partial(products.measure, bench, shape)),
            (f"ladder of {shape.name}", partial(ladder.measure, bench, shape)),
        ]

    return [
        *climb(large),
        (f"peak memory of {large.name}", partial(ladder.measure_memory, bench, large)),
        *climb(dna),
        ("frames of 150 bases", partial(ladder.foresee, bench, large, dna)),
        ("both encoders from end to end", partial(end_to_end.measure, bench, large, dna)),
        ("attention", partial(attention.measure, bench)),
        *climb(small),
    ]
