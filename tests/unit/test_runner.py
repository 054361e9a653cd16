"""The runner: the same embeddings whatever the batches, and a way on when memory or numbers fail."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from virnucpro.encoders.compiled_layers import StoppedError
from virnucpro.encoders.device import default_dtype, parse_dtype
from virnucpro.encoders.esm2 import Esm2
from virnucpro.encoders.runner import AsyncInferenceRunner, NotFiniteError
from virnucpro.engine.loader import pack_unit
from virnucpro.engine.packing import GreedyPacker
from virnucpro.errors import UsageError
from virnucpro.resources import available_cpus
from virnucpro.sequence.ragged import Ragged

CPU = torch.device("cpu")
CONFIG = {"kind": "esm2", "alphabet": "aa", "width": 32, "num_layers": 2, "attention_heads": 4}


def small_tensors(seed=0):
    from virnucpro.encoders.esm2 import _expected_shapes

    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * 0.2 + (1.0 if "norm" in name and "weight" in name else 0.0)
        for name, shape in _expected_shapes(32, 2).items()
    }


@pytest.fixture(scope="module")
def encoder():
    return Esm2.from_tensors(CONFIG, small_tensors())


def proteins(seed=0, num=60):
    rng = np.random.default_rng(seed)
    made = [bytes(rng.choice(list(b"LAGVSERTIDPK"), n).astype(np.uint8)) for n in rng.integers(0, 90, num)]
    return [*made, b"", made[0], b"MKV", b"MKV"]


def unit_of(encoder, number, strings, budget=512):
    return pack_unit(number, Ragged.from_bytes(strings), encoder.tokenizer, GreedyPacker(budget))


def one_by_one(encoder, strings):
    """The slow and obvious way."""
    rows = np.zeros((len(strings), encoder.width), dtype=np.float32)
    for row, string in enumerate(strings):
        if string:
            rows[row] = encoder.embed(next(iter(unit_of(encoder, 0, [string]).batches)))[0].numpy()
    return rows


def run(runner, units):
    return dict(runner.embeddings(units))


class CrampedEsm2(Esm2):
    """Has memory for so many tokens a batch and no more."""

    memory_tokens = 100
    calls = ()
    no_memory: BaseException = torch.OutOfMemoryError("out of memory")

    def embed(self, batch):
        self.calls = (*self.calls, batch.num_tokens)
        if batch.num_tokens > self.memory_tokens:
            raise self.no_memory
        return super().embed(batch)


class OverflowingEsm2(Esm2):
    """Overflows where a protein holds a tryptophan, as 16-bit types may."""

    def embed(self, batch):
        overflows = torch.stack([(ids == 22).any() for ids in batch.input_ids.split(batch.lengths)])
        return super().embed(batch).masked_fill(overflows[:, None], float("inf"))


@pytest.mark.parametrize("budget", [64, 128, 512, 8192])
def test_every_token_budget_gives_the_embeddings_of_one_by_one(encoder, budget):
    written = run(AsyncInferenceRunner(encoder, CPU), [unit_of(encoder, n, proteins(n), budget) for n in range(3)])
    assert list(written) == [0, 1, 2]
    for number, embeddings in written.items():
        assert embeddings.dtype == np.float32
        assert np.abs(embeddings - one_by_one(encoder, proteins(number))).max() <= 1e-5
        assert not embeddings[60].any()  # the empty one


def test_the_order_of_the_input_does_not_matter(encoder):
    strings = proteins()
    order = np.random.default_rng(1).permutation(len(strings))
    runner = AsyncInferenceRunner(encoder, CPU)
    written = run(runner, [unit_of(encoder, 0, strings), unit_of(encoder, 1, [strings[i] for i in order])])
    assert np.abs(written[0][order] - written[1]).max() <= 1e-5


@pytest.mark.parametrize("strings", [[], [b"", b""]])
def test_a_unit_without_anything_to_embed_is_zeros(encoder, strings):
    written = run(AsyncInferenceRunner(encoder, CPU), [unit_of(encoder, 0, strings)])
    assert written[0].shape == (len(strings), 32)
    assert not written[0].any()


@pytest.mark.parametrize(
    "no_memory",
    [
        torch.OutOfMemoryError("out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("could not create a primitive"),  # oneDNN
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.78 GB, other allocations: 1.2 GB)"),
    ],
    ids=["CUDA", "Python", "PyTorch", "oneDNN", "cuBLAS", "Triton", "MPS"],
)
def test_out_of_memory_halves_batches_once_and_remembers(encoder, caplog, no_memory):
    """However it is said."""
    cramped = CrampedEsm2.from_tensors(CONFIG, small_tensors())
    cramped.no_memory = no_memory
    units = [unit_of(encoder, n, proteins(n), 1000) for n in range(2)]
    with caplog.at_level(logging.WARNING):
        written = run(AsyncInferenceRunner(cramped, CPU), units)
    for number in range(2):
        assert np.abs(written[number] - one_by_one(encoder, proteins(number))).max() <= 1e-5
    attempts = [tokens for tokens in cramped.calls if tokens > cramped.memory_tokens]
    assert len(attempts) <= 5, "each failure lowers the budget of all later batches"
    assert len([record for record in caplog.records if "out of memory" in record.message]) == 1


def test_a_sequence_that_does_not_fit_alone_goes_to_the_cpu(encoder):
    cramped = CrampedEsm2.from_tensors(CONFIG, small_tensors())
    cramped.memory_tokens = 50
    loaded = []

    def reload(device, dtype):
        loaded.append((device, dtype))
        return encoder

    written = run(AsyncInferenceRunner(cramped, CPU, reload), [unit_of(encoder, 0, proteins())])
    assert np.abs(written[0] - one_by_one(encoder, proteins())).max() <= 1e-5
    assert loaded == [(CPU, torch.float32)]
    with pytest.raises(torch.OutOfMemoryError, match="one sequence alone"):
        run(AsyncInferenceRunner(cramped, CPU), [unit_of(encoder, 0, proteins())])


def test_only_rows_with_infinities_are_computed_again_in_float32(encoder):
    """Each sequence once, alone, whatever else is in its batch."""
    narrow = OverflowingEsm2.from_tensors(CONFIG, small_tensors())
    wide = CrampedEsm2.from_tensors(CONFIG, small_tensors())
    strings = [b"MKV", b"MKWA", b"", b"LLL", b"MKWA", b"WWWWW"]
    written = run(AsyncInferenceRunner(narrow, CPU, lambda *_: wide), [unit_of(encoder, 0, strings)])
    assert np.abs(written[0] - one_by_one(encoder, strings)).max() <= 1e-5
    assert sorted(wide.calls) == [6, 7]


def test_memory_that_is_short_for_float32_sends_the_rows_to_the_cpu(encoder):
    """Whether the weights do not fit a second time, or the sequence does not."""
    strings, asked = [b"MKV", b"MKWA"], []

    def reload(device, dtype):
        asked.append((device, dtype))
        if len(asked) == 1:
            raise torch.OutOfMemoryError("no room for the weights in float32")
        return encoder

    narrow = OverflowingEsm2.from_tensors(CONFIG, small_tensors())
    written = run(AsyncInferenceRunner(narrow, CPU, reload), [unit_of(encoder, 0, strings)])
    assert np.abs(written[0] - one_by_one(encoder, strings)).max() <= 1e-5
    assert asked == [(CPU, torch.float32)] * 2


def test_embeddings_are_handed_over_as_they_are_stored(encoder):
    """And what overflows only when it is stored is found too."""
    strings = [b"MKV", b"LLL"]
    runner = AsyncInferenceRunner(encoder, CPU, kept_as=torch.float16)
    written = run(runner, [unit_of(encoder, 0, strings)])[0]
    assert written.dtype == np.float16
    assert np.array_equal(written, one_by_one(encoder, strings).astype(np.float16))

    class Large(Esm2):
        def embed(self, batch):
            return super().embed(batch) * 1e6

    large = Large.from_tensors(CONFIG, small_tensors())
    with pytest.raises(NotFiniteError):
        run(AsyncInferenceRunner(large, CPU, lambda *_: large, torch.float16), [unit_of(encoder, 0, strings)])


def test_infinities_that_stay_are_an_error_that_names_the_rows(encoder):
    narrow = OverflowingEsm2.from_tensors(CONFIG, small_tensors())
    with pytest.raises(NotFiniteError) as caught:
        run(
            AsyncInferenceRunner(narrow, CPU, lambda *_: narrow),
            [unit_of(encoder, 7, [b"MKV", b"MKWA", b"", b"LLL", b"MKWA"])],
        )
    assert (caught.value.unit, caught.value.rows) == (7, [1, 4])
    assert "rows 1, 4 of unit 7" in str(caught.value)


def test_an_error_of_the_source_surfaces_after_finished_units_are_given(encoder):
    def units():
        yield unit_of(encoder, 0, [b"MKV"])
        raise KeyboardInterrupt

    given = []
    with pytest.raises(KeyboardInterrupt):
        given.extend(AsyncInferenceRunner(encoder, CPU).embeddings(units()))
    assert [unit for unit, _ in given] == [0]


@pytest.mark.gpu
def test_a_gpu_gives_the_embeddings_of_the_cpu(encoder):
    device = torch.device("cuda")
    there = Esm2.from_tensors(CONFIG, {name: tensor.to(device) for name, tensor in small_tensors().items()})
    units = [unit_of(encoder, n, proteins(n)) for n in range(5)]
    written = run(AsyncInferenceRunner(there, device), [unit.pin_memory() for unit in units])
    for number in range(5):
        assert np.abs(written[number] - one_by_one(encoder, proteins(number))).max() <= 1e-3


def test_precision_by_device():
    assert default_dtype(CPU) == parse_dtype("auto", CPU) == torch.float32
    assert parse_dtype("bfloat16", CPU) == torch.bfloat16
    for name in ("float16", "int3"):
        with pytest.raises(UsageError):
            parse_dtype(name, CPU)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"sys/fs/cgroup/a/cpu.max": "100000 100000\n", "proc/self/cgroup": "0::/a/b\n"}, 1),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, None),
    ],
)
def test_cpus_are_counted_with_the_quota_of_the_container(tmp_path: Path, files, expected):
    everything = available_cpus(tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_cpus(tmp_path) == (expected or everything)


@pytest.fixture
def use_torch_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [2, 3, 20])
def test_threads_take_a_batch_each_and_change_no_bit(encoder, use_torch_threads, threads):
    """Of twenty, eight have a batch at a time; those that are left over would share the work on one."""
    units = [unit_of(encoder, n, proteins(n), 64) for n in range(3)]
    use_torch_threads(1)
    alone = run(AsyncInferenceRunner(encoder, CPU), units)
    use_torch_threads(threads)
    together = run(AsyncInferenceRunner(encoder, CPU), units)
    assert torch.get_num_threads() == threads
    for number in range(3):
        assert len(units[number].batches) > 3
        if threads < 16:
            assert np.array_equal(alone[number], together[number])
        assert np.abs(alone[number] - together[number]).max() <= 1e-6


def test_what_nobody_waits_for_is_not_computed_to_its_end(encoder, use_torch_threads):
    """An error in one batch stops the others at their next layer; the encoder then computes again."""
    use_torch_threads(2)
    failing = CrampedEsm2.from_tensors(CONFIG, small_tensors())
    failing.memory_tokens, failing.no_memory = 0, ValueError("odd")
    with pytest.raises(ValueError, match="odd"):
        run(AsyncInferenceRunner(failing, CPU), [unit_of(encoder, 0, proteins(), 64)])
    with pytest.raises(StoppedError):
        failing.steps(len, [])
    failing.memory_tokens = 10_000
    written = run(AsyncInferenceRunner(failing, CPU), [unit_of(encoder, 0, proteins(), 64)])
    assert np.abs(written[0] - one_by_one(encoder, proteins())).max() <= 1e-5
