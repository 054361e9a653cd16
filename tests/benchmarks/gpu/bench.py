"""What the rungs share: the device, its clock, the models made so far, and what was measured on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

from benchmarks.gpu.models import Shape, dense_batch, random_encoder
from benchmarks.measure import Figure, take_turns
from virnucpro.encoders.base import Encoder
from virnucpro.encoders.compiled_layers import Compiler
from virnucpro.engine.batch import PackedBatch

SECTION = "gpu"
DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Sizes:
    """How large it all is; the tests take small ones.

    Attributes:
        largest: size of the ESM-2 that is measured in everything.
        smaller: size of one that climbs the ladder only.
        dnabert_layers: 12 is the published depth.
        token_counts: tokens in a batch, ascending.
        usual_tokens: in a batch of all other measurements.
        unit_rows: frames of a unit of the run from end to end.
        num_units: of that run; three at least.
        loader_workers: processes that prepare its units, for each encoder.
        seconds: of each point; every one has three runs at least.
        run_seconds: of a run; where a call takes less, a run is many. Below 0.2 the clock decides.
        budget_seconds: after which nothing more is begun.
        seed: of all that is generated.
    """

    largest: str = "3B"
    smaller: str = "650M"
    dnabert_layers: int = 12
    token_counts: tuple[int, ...] = tuple(8192 << power for power in range(5))
    usual_tokens: int = 65_536
    unit_rows: int = 4_096
    num_units: int = 8
    loader_workers: int = 4
    seconds: float = 0.5
    run_seconds: float = 0.2
    budget_seconds: float = 480.0
    seed: int = 1


class Bench:
    """A device that is measured.

    Args:
        device: where.
        sizes: how large.
        compiler: of layers; torch's, where None.

    Attributes:
        ceilings: name of a model, to operations a second that the device reaches in its matrices.
        best: name of a model and length of its sequences, to the most tokens a second so far.
    """

    def __init__(self, device: torch.device, sizes: Sizes, compiler: Compiler | None) -> None:
        self.device, self.sizes, self.compiler = device, sizes, compiler
        self.ceilings: dict[str, float] = {}
        self.best: dict[tuple[str, int], float] = {}
        self._encoders: dict[str, Encoder] = {}
        self._deadline = time.perf_counter() + sizes.budget_seconds

    @property
    def is_cuda(self) -> bool:
        """Whether the device has what only CUDA has."""
        return self.device.type == "cuda"

    def describe(self) -> str:
        """Name and memory of the device, and the torch that drives it."""
        if not self.is_cuda:
            return f"{self.device}, torch {torch.__version__}"
        found = torch.cuda.get_device_properties(self.device)
        memory = f"{found.total_memory / (1 << 30):.0f} GiB, {found.multi_processor_count} multiprocessors"
        return f"{found.name}, {memory}, torch {torch.__version__}, CUDA {torch.version.cuda}"

    def is_over(self) -> bool:
        """Whether the time budget is spent."""
        return time.perf_counter() > self._deadline

    def unmeasured(self, what: str, reason: str) -> Figure:
        """A line that says why there is no figure."""
        return Figure(SECTION, what, "", (), note=f"not measured: {reason}")

    def unmeasured_for_time(self, what: str) -> Figure:
        """The same where the time budget is the reason."""
        return self.unmeasured(what, f"the {self.sizes.budget_seconds / 60:.0f} minutes of this section were over")

    def encoder(self, shape: Shape) -> Encoder:
        """The model of that shape; made when it is first asked for, and kept."""
        if shape.name not in self._encoders:
            self._encoders[shape.name] = random_encoder(shape, self.device, DTYPE, self.sizes.seed)
        return self._encoders[shape.name]

    def dense_batch(self, length_tokens: int, num_tokens: int) -> PackedBatch:
        """Random tokens in sequences of one length, on the device."""
        return dense_batch(length_tokens, num_tokens, self.device, self.sizes.seed)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def free_memory(self) -> None:
        """Give back what the allocator keeps."""
        if self.is_cuda:
            torch.cuda.empty_cache()

    def rates(
        self, contestants: Mapping[str, Callable[[], object]], amount: float, *, num_warm_up: int = 1
    ) -> dict[str, tuple[float, ...]]:
        """Amount a second of each contestant, in turns, called so often a run that the clock is of no account.

        Args:
            contestants: name to what gives the device its work, and need not wait for it.
            amount: of work a call.
            num_warm_up: calls before.
        """
        runs = {name: self._run(call, amount, num_warm_up) for name, call in contestants.items()}
        return take_turns(runs, self.sizes.seconds, warm_up=False)

    @torch.inference_mode()
    def _run(self, call: Callable[[], object], amount: float, num_warm_up: int) -> Callable[[], float]:
        for _ in range(num_warm_up):
            call()
        self.wait()
        begun = time.perf_counter()
        call()
        self.wait()
        num_calls = max(1, round(self.sizes.run_seconds / (time.perf_counter() - begun)))
        return partial(self._call, call, num_calls, amount)

    @torch.inference_mode()
    def _call(self, call: Callable[[], object], num_calls: int, amount: float) -> float:
        for _ in range(num_calls):
            call()
        self.wait()
        return num_calls * amount


def against(
    what: str,
    unit: str,
    rates: Mapping[str, tuple[float, ...]],
    peer: str,
    max_difference: float | None = None,
    tolerance: float | None = None,
) -> Figure:
    """Two contestants as one figure; ours is the one that is not ``peer``."""
    (ours,) = (name for name in rates if name != peer)
    ratio = median(rates[ours]) / median(rates[peer])
    return Figure(
        SECTION, what, unit, rates[ours], peer, rates[peer], ratio, max_difference=max_difference, tolerance=tolerance
    )
