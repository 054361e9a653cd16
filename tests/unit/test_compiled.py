"""Compiled and replayed layers: the same embeddings as the plain ones, one graph for all, and a way on without them."""

import logging

import numpy as np
import pytest
import torch
from test_runner import CONFIG, small_tensors
from tiny_models import DNABERT_S, dnabert_s_tensors

from virnucpro.cli.predict import predict
from virnucpro.encoders import layers
from virnucpro.encoders.compiled_layers import LayerSteps, compile_layers, should_compile, steps_of
from virnucpro.encoders.dnabert_s import DnabertS
from virnucpro.encoders.esm2 import Esm2
from virnucpro.engine.batch import collate
from virnucpro.engine.packing import GreedyPacker
from virnucpro.sequence.ragged import Ragged, offsets_of
from virnucpro.settings import make_settings
from virnucpro.stages.embed import GPU_TOKEN_BUDGET, token_budget_for, usual_token_budget

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ENCODERS = {
    "esm2": lambda tensors: Esm2.from_tensors(CONFIG, tensors or small_tensors()),
    "dnabert_s": lambda tensors: DnabertS.from_tensors(DNABERT_S, tensors or dnabert_s_tensors(DNABERT_S, 1), None),
}
LENGTHS = {"one length": [9] * 6, "another": [30] * 4, "mixed": [5, 9, 9, 17, 30, 31], "single": [3]}


def batch_of(lengths, device=CPU, seed=0):
    """Random tokens that every vocabulary has."""
    lengths = np.array(lengths)
    values = np.random.default_rng(seed).integers(4, 30, int(lengths.sum())).astype(np.int32)
    tokens = Ragged(values, offsets_of(lengths))
    return next(iter(collate(tokens, [GreedyPacker(10_000)(lengths)[0]]))).to(device)


@pytest.fixture(params=ENCODERS)
def encoder(request, monkeypatch):
    """Of plain matrices: the compiler does not take those that are laid out for oneDNN."""
    monkeypatch.setattr(layers, "_can_prepack", lambda: False)
    return ENCODERS[request.param](None)


@pytest.fixture
def fresh_compiler():
    """What another test compiled counts neither here nor there."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class CountingCompiler:
    """Torch's own front end, which finds the graphs, without code made of them."""

    def __init__(self):
        self.graphs = []

    def __call__(self, step):
        def keep(graph, _inputs):
            self.graphs.append(graph)
            return graph.forward

        return torch.compile(step, fullgraph=True, dynamic=False, backend=keep)


def broken_compiler(_step):
    """As one without Triton or a C compiler: it fails when the function is called."""

    def fail(*_args):
        raise ImportError("cannot find a working triton installation\nand more")

    return fail


@pytest.mark.usefixtures("fresh_compiler")
def test_two_graphs_serve_all_layers_and_all_batches(encoder):
    """One before attention and one after it; the number of tokens and the weights are open in them."""
    expected = {name: encoder.embed(batch_of(lengths)) for name, lengths in LENGTHS.items()}
    compiler = CountingCompiler()
    assert compile_layers(encoder, CPU, compiler)
    for name, lengths in LENGTHS.items():
        assert (encoder.embed(batch_of(lengths)) - expected[name]).abs().max() <= 1e-5
    assert len(compiler.graphs) == 2


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    "kind",
    ["esm2", pytest.param("dnabert_s", marks=pytest.mark.slow)],  # a minute of gcc on a busy machine each
)
def test_layers_compiled_by_torch_give_the_same_embeddings(kind, monkeypatch):
    """To 1e-5 in float32, as promised of any way to compute them."""
    monkeypatch.setattr(layers, "_can_prepack", lambda: False)
    encoder = ENCODERS[kind](None)
    expected = {name: encoder.embed(batch_of(lengths)) for name, lengths in LENGTHS.items()}
    assert compile_layers(encoder, CPU)
    for name, lengths in LENGTHS.items():
        assert (encoder.embed(batch_of(lengths)) - expected[name]).abs().max() <= 1e-5


def test_without_a_compiler_the_layers_run_as_before_and_one_line_says_so(encoder, caplog):
    expected = encoder.embed(batch_of([5, 9]))
    with caplog.at_level(logging.INFO):
        assert not compile_layers(encoder, CPU, broken_compiler)
    for _ in range(2):
        assert torch.equal(encoder.embed(batch_of([5, 9])), expected)
    (line,) = caplog.messages
    assert "uncompiled" in line
    assert "cannot find a working triton installation" in line


@pytest.mark.usefixtures("fresh_compiler")
def test_weights_that_the_compiler_does_not_take_run_as_before():
    """Float32 on a CPU, where matrices are laid out for oneDNN beforehand."""
    encoder = ENCODERS["esm2"](None)
    expected = encoder.embed(batch_of([5, 9]))
    compile_layers(encoder, CPU)
    assert (encoder.embed(batch_of([5, 9])) - expected).abs().max() <= 1e-5


def test_too_little_memory_is_left_to_the_runner():
    """It halves the batch; the compiler is not to blame."""

    def fill_memory(_step):
        def fail(*_args):
            raise torch.OutOfMemoryError("out of memory")

        return fail

    steps = LayerSteps("ESM-2", 1)
    steps.compile(fill_memory)
    with pytest.raises(torch.OutOfMemoryError):
        steps(torch.neg, torch.ones(2))
    assert steps.are_compiled
    encoder = ENCODERS["esm2"](None)
    assert not compile_layers(encoder, CPU, fill_memory), "no memory for the trial: the run goes on without"


def test_an_error_that_is_not_the_compilers_comes_out():
    steps = LayerSteps("ESM-2", 1)
    steps.compile(lambda step: step)
    with pytest.raises(IndexError):
        steps(lambda states: states[5], torch.ones(2))


def test_auto_compiles_on_cuda_where_the_work_repays_it():
    esm2 = ENCODERS["esm2"](None)
    esm2.steps.num_weights = 36 * 12 * 2560**2
    tokens_of_300_bases = 102
    assert not should_compile("auto", esm2, CUDA, 100_000 * tokens_of_300_bases)
    assert should_compile("auto", esm2, CUDA, 150_000 * tokens_of_300_bases)
    assert not should_compile("auto", esm2, CPU, 1e12)
    assert should_compile("always", esm2, CPU, 0)
    assert not should_compile("never", esm2, CUDA, 1e12)
    assert not should_compile("always", object(), CUDA, 1e12), "nothing to compile in an encoder without layers"


@pytest.mark.parametrize(("given", "choice"), [([], None), (["--compile"], "always"), (["--no-compile"], "never")])
def test_the_option_names_the_choice(given, choice):
    """Without it the settings file, or auto, decides."""
    context = predict.make_context("predict", ["in.fasta", "-o", "out", *given])
    assert context.params["compile"] == choice
    assert make_settings(None, {"runtime.compile": choice}).runtime.compile == (choice or "auto")


def test_weights_of_the_layers_are_counted():
    assert steps_of(ENCODERS["esm2"](None)).num_weights == 2 * 12 * 32**2
    assert steps_of(ENCODERS["dnabert_s"](None)).num_weights == 2 * (4 * 24**2 + 3 * 24 * 40)


@pytest.mark.parametrize(
    ("card_gb", "width", "item_bytes", "budget"),
    [
        (80, 2560, 2, GPU_TOKEN_BUDGET),
        (24, 2560, 2, GPU_TOKEN_BUDGET),
        (12, 2560, 2, 16_384),
        (8, 2560, 2, 1_024),
        (24, 2560, 4, 32_768),
        (8, 768, 2, GPU_TOKEN_BUDGET),
    ],
)
def test_the_token_budget_follows_from_the_memory_that_weights_leave(card_gb, width, item_bytes, budget):
    """DNABERT-S (0.11 G weights), and with width 2560 ESM-2 3B (2.84 G); half a gigabyte is the driver's."""
    weights = 0.113 + (2.84 if width == 2560 else 0)
    free = int((card_gb - 0.5 - weights * item_bytes) * 1e9)
    chosen = token_budget_for(free, width, item_bytes)
    assert chosen == budget
    assert chosen == 1024 or chosen * 22 * width * item_bytes < 0.8 * free


def test_however_little_memory_there_is_a_budget_is_positive():
    assert token_budget_for(0, 2560, 2) == 1_024


def test_a_cpu_takes_the_encoders_own_budget(encoder):
    assert usual_token_budget(encoder, CPU, "float32") == encoder.cpu_token_budget


def on_gpu(kind, dtype):
    """The encoder as it is loaded on a GPU: matrices in ``dtype``, vectors in float32."""
    tensors = small_tensors() if kind == "esm2" else dnabert_s_tensors(DNABERT_S, 1)
    return ENCODERS[kind](
        {name: tensor.to(CUDA, dtype if tensor.ndim == 2 else torch.float32) for name, tensor in tensors.items()}
    )


@pytest.mark.gpu
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 0.99999), (torch.bfloat16, 0.999)])
def test_on_a_gpu_compiled_layers_give_the_embeddings_of_the_cpu(kind, dtype, least):
    plain, there = ENCODERS[kind](None), on_gpu(kind, dtype)
    assert compile_layers(there, CUDA)
    for seed in range(4):
        for lengths in LENGTHS.values():
            expected = plain.embed(batch_of(lengths, seed=seed))
            embeddings = there.embed(batch_of(lengths, CUDA, seed)).cpu()
            assert torch.cosine_similarity(embeddings, expected).min() >= least


@pytest.mark.gpu
def test_on_a_gpu_the_budget_fits_the_free_memory():
    free, _ = torch.cuda.mem_get_info(CUDA)
    budget = usual_token_budget(on_gpu("esm2", torch.bfloat16), CUDA, "bfloat16")
    assert 1_024 <= budget <= GPU_TOKEN_BUDGET
    assert budget * 22 * 32 * 2 < free
