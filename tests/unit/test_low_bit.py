"""Linear layers in 8 bits: what they compute, who may use them, and the gate that a model must pass first."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from benchmarks.inputs import esm2_weights, frame_proteins
from conftest import open_dna, write_fasta
from torch.nn.functional import gelu, linear

from virnucpro.bundles import load_bundle
from virnucpro.encoders import load_encoder, low_bit, row_passes, save_encoder
from virnucpro.encoders.device import check_dtype, float_dtype, parse_dtype
from virnucpro.encoders.layers import Linear
from virnucpro.encoders.low_bit import Fp8Linear, Int8Linear, fp8_linear, quantise_fp8, quantise_int8
from virnucpro.encoders.runner import AsyncInferenceRunner
from virnucpro.engine.loader import pack_unit
from virnucpro.engine.packing import GreedyPacker
from virnucpro.errors import UsageError
from virnucpro.machine import parity

CPU = torch.device("cpu")
needs_int8 = pytest.mark.skipif(not low_bit.can_multiply_int8(), reason="this CPU multiplies no 8-bit integers")
BFLOAT16_STEP = 2**-8
"""Largest rounding error of a bfloat16, relative, with one to spare."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Verdicts of tests lie in a cache of their own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("VIRNUCPRO_CACHE", str(folder))
    return folder


def random_layer(num_inputs, num_outputs):
    generator = torch.Generator().manual_seed(num_inputs)
    weight = torch.randn(num_outputs, num_inputs, generator=generator) / num_inputs**0.5
    return weight, torch.randn(num_outputs, generator=generator)


def random_states(num_rows, width):
    """Rows of very different size."""
    generator = torch.Generator().manual_seed(num_rows)
    sizes = torch.logspace(-3, 2, num_rows)[:, None]
    return (torch.randn(num_rows, width, generator=generator) * sizes).bfloat16()


def dequantised(rows):
    return (rows.codes.float() - row_passes.ZERO_CODE) * rows.scales[:, None]


def assert_close(found, expected, share=BFLOAT16_STEP):
    """Equal but for a share of the largest value of the row."""
    assert ((found.float() - expected).abs() <= share * expected.abs().amax(1, keepdim=True)).all()


def test_a_row_is_quantised_by_its_own_largest_value():
    x = random_states(50, 40)
    rows = row_passes.quantise(x)
    assert ((dequantised(rows) - x.float()).abs() <= 0.5001 * rows.scales[:, None]).all()
    assert (rows.codes.int() - row_passes.ZERO_CODE).abs().amax(1).tolist() == [127] * 50


def test_rows_of_zeros_stay_zeros_and_what_is_not_finite_stays_so():
    x = torch.zeros(3, 8, dtype=torch.bfloat16)
    x[1, 2], x[2, 3] = float("nan"), float("inf")
    rows = row_passes.quantise(x)
    assert dequantised(rows)[0].tolist() == [0.0] * 8
    assert not torch.isfinite(rows.scales[1:]).any()


def test_the_pass_after_a_product_is_gelu_with_erf():
    products, scales, bias = random_states(30, 64), torch.rand(30) + 0.5, torch.randn(64)
    wide = products.float() * scales[:, None] + bias
    plain = row_passes.gelu_quantised(products, scales, bias)
    assert ((dequantised(plain) - gelu(wide)).abs() <= 0.501 * plain.scales[:, None] + 1e-6).all()
    gated = row_passes.gated_gelu_quantised(products, scales, bias)
    expected = gelu(wide[:, :32]) * wide[:, 32:]
    assert ((dequantised(gated) - expected).abs() <= 0.501 * gated.scales[:, None] + 1e-6).all()


def test_passes_are_the_same_on_several_threads():
    products, scales, bias = random_states(400, 32), torch.rand(400), torch.randn(32)
    before = torch.get_num_threads()
    found = []
    try:
        for num_threads in (1, 3):
            torch.set_num_threads(num_threads)
            found.append(row_passes.gelu_quantised(products, scales, bias))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0].codes, found[1].codes)
    assert torch.equal(found[0].scales, found[1].scales)


def test_a_weight_is_quantised_by_output_channel():
    weight, _ = random_layer(24, 10)
    weight[3] = 0
    integers, scales = quantise_int8(weight)
    assert ((integers * scales[:, None] - weight).abs() <= 0.5001 * scales[:, None]).all()
    values, scales = quantise_fp8(weight)
    assert ((values.float() * scales - weight).abs() <= weight.abs() * 2**-4 + scales * 2**-9).all()
    assert values.float().abs().amax(1).tolist() == [448.0] * 3 + [0.0] + [448.0] * 6


@needs_int8
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(7, 5), (24, 72), (320, 1280)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_int8_is_the_product_of_the_quantised_matrices(num_inputs, num_outputs, has_bias):
    weight, bias = random_layer(num_inputs, num_outputs)
    x = random_states(20, num_inputs)
    integers, scales = quantise_int8(weight)
    exact = linear(dequantised(row_passes.quantise(x)), integers * scales[:, None])
    layer = Int8Linear(weight, bias if has_bias else None)
    expected = exact + bias if has_bias else exact
    found = layer(x)
    assert found.dtype == torch.bfloat16
    assert_close(found, expected, 2 * BFLOAT16_STEP)
    assert_close(layer.onto(x[:, :1].expand(-1, num_outputs), x), expected + x[:, :1].float(), 3 * BFLOAT16_STEP)


@needs_int8
@pytest.mark.parametrize("kind", ["feed_forward", "gated_feed_forward"])
def test_int8_feeds_forward_as_its_steps_do(kind):
    num_inner = {"feed_forward": 96, "gated_feed_forward": 48}[kind]
    up, down = Int8Linear(*random_layer(48, 96)), Int8Linear(*random_layer(num_inner, 48))
    states, x = random_states(20, 48), random_states(20, 48).flip(0)
    found = getattr(up, kind)(down, states, x)
    steps = getattr(super(Int8Linear, up), kind)(down, states, x)
    assert_close(found, steps.float(), 0.02)
    wide_down = Linear(*(part.bfloat16() for part in random_layer(num_inner, 48)))
    assert_close(found, getattr(up, kind)(wide_down, states, x).float(), 0.05)


def test_fp8_is_the_product_of_the_quantised_matrices():
    weight, bias = random_layer(64, 48)
    x = random_states(20, 64)
    (values, scales), (rows, row_scales) = quantise_fp8(weight), quantise_fp8(x)
    expected = linear(rows.float() * row_scales, values.float() * scales, bias.bfloat16().float())
    layer = fp8_linear(weight, bias)
    assert isinstance(layer, Fp8Linear)
    assert_close(layer(x), expected)


def test_shapes_that_fp8_cannot_multiply_stay_in_bfloat16():
    weight, bias = random_layer(24, 48)
    layer = fp8_linear(weight, bias)
    assert isinstance(layer, Linear)
    assert layer(random_states(3, 24)).dtype == torch.bfloat16


@needs_int8
def test_a_row_in_8_bits_does_not_depend_on_its_batch():
    layer, x = Int8Linear(*random_layer(320, 960)), random_states(100, 320)
    alone = torch.cat([layer(row[None]) for row in x])
    assert torch.equal(layer(x), alone)


@needs_int8
def test_esm2_in_int8_stays_close_to_float32(tmp_path):
    config, tensors = esm2_weights("8M", 0)
    save_encoder(tmp_path / "esm2", config, tensors)
    proteins = frame_proteins(np.random.default_rng(0), 4)
    wide, narrow = (load_encoder(tmp_path / "esm2", CPU, dtype) for dtype in (torch.float32, torch.int8))
    expected, found = (embed(encoder, proteins) for encoder in (wide, narrow))
    assert found.dtype == np.float32
    assert torch.cosine_similarity(torch.from_numpy(found), torch.from_numpy(expected)).min() >= 0.999


def embed(encoder, strings):
    unit = pack_unit(0, strings, encoder.tokenizer, GreedyPacker(encoder.cpu_token_budget))
    ((_, embeddings),) = AsyncInferenceRunner(encoder, CPU).embeddings([unit])
    return embeddings


def test_each_dtype_has_its_devices():
    with pytest.raises(UsageError, match="fp8 is for CUDA"):
        parse_dtype("fp8", CPU)
    with pytest.raises(UsageError, match="int8 is for CPUs"):
        check_dtype(torch.device("cuda"), torch.int8)
    assert float_dtype(torch.int8) == float_dtype(torch.float8_e4m3fn) == torch.bfloat16
    assert float_dtype(torch.float32) == torch.float32


def key_of(bundle):
    return parity.ParityKey(bundle.fingerprint, parity.device_name(CPU), "int8", str(torch.__version__))


def verdict_of(bundle, cosine, agreement, num_virus=200):
    cosines = dict.fromkeys(parity.ROLES, cosine)
    return parity.Verdict(key_of(bundle), "float32", parity.NUM_ROWS, cosines, cosines, agreement, num_virus, 0.01)


def keep(verdict):
    path = parity.path_of(verdict.key)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"schema": parity.SCHEMA, **dataclasses.asdict(verdict)}))


@pytest.fixture
def reads(tmp_path):
    return write_fasta(tmp_path / "reads.fasta", {f"r{number}": open_dna(300, number) for number in range(6)})


@needs_int8
def test_the_gate_compares_once_and_keeps_the_verdict(tiny_bundle, caplog):
    bundle = load_bundle(str(tiny_bundle))
    verdict = parity.compare(bundle, CPU, key_of(bundle))
    assert verdict.num_rows == parity.NUM_ROWS
    assert all(0.98 < verdict.lowest_cosines[role] <= verdict.cosines[role] < 1 for role in parity.ROLES)
    caplog.set_level("INFO")
    outcomes = []
    for _ in range(2):
        try:
            outcomes.append(parity.require(bundle, "cpu", "int8", 1))
        except UsageError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]
    assert caplog.text.count("comparing 512 rows") == 1
    kept = parity.find(verdict.key)
    assert kept is not None
    assert kept.cosines == pytest.approx(verdict.cosines, abs=1e-6)  # the last bits depend on threads
    assert kept.label_agreement == verdict.label_agreement


def test_a_float_type_passes_no_gate(tiny_bundle, cache):
    assert parity.require(load_bundle(str(tiny_bundle)), "cpu", "bfloat16", 1) is None
    assert not cache.exists()


@pytest.mark.parametrize(
    ("cosine", "agreement", "holds"), [(0.9995, 0.9981, True), (0.998, 1.0, False), (1.0, 0.997, False)]
)
def test_both_figures_must_be_reached(tiny_bundle, cosine, agreement, holds):
    assert verdict_of(load_bundle(str(tiny_bundle)), cosine, agreement).holds is holds


@needs_int8
def test_a_model_that_fails_ends_the_run_before_anything_is_pinned(virnucpro, tiny_bundle, reads, tmp_path):
    keep(verdict_of(load_bundle(str(tiny_bundle)), 0.991234, 0.95))
    command = ("predict", reads, "-m", tiny_bundle, "--device", "cpu", "-o", tmp_path / "out", "--dtype")
    ended = virnucpro(*command, "int8")
    assert ended.code == 2
    assert "0.99123" in ended.err
    assert "95.00%" in ended.err
    assert "--dtype bfloat16" in ended.err
    assert virnucpro(*command, "bfloat16").code == 0


@needs_int8
def test_a_run_in_int8_says_so_everywhere_and_goes_on_in_int8_alone(virnucpro, tiny_bundle, reads, tmp_path):
    keep(verdict_of(load_bundle(str(tiny_bundle)), 0.9999, 1.0))
    out = tmp_path / "out"
    command = ("predict", reads, "-m", tiny_bundle, "--device", "cpu", "-o", out, "--keep-embeddings", "--dtype")
    ended = virnucpro(*command, "int8")
    assert ended.code == 0, ended.err
    record = json.loads((out / "reads.run.json").read_text())
    assert record["parameters"]["dtype"] == "int8"
    assert record["parity"]["cosines"] == {"nucleotide": 0.9999, "protein": 0.9999}
    assert "mean cosine nucleotide 0.99990" in (out / "reads.log").read_text()
    before = (out / "reads.sequences.tsv").read_bytes()
    assert virnucpro("verify", out).code == 0
    assert virnucpro(*command, "int8").code == 0
    assert (out / "reads.sequences.tsv").read_bytes() == before
    other = virnucpro(*command, "bfloat16")
    assert other.code == 2
    assert "science.dtype" in other.err


@needs_int8
@pytest.mark.parametrize(("num_virus", "warns"), [(0, True), (25, True), (26, False), (486, False), (512, True)])
def test_labels_that_are_nearly_all_the_same_are_not_taken_for_evidence(tiny_bundle, caplog, num_virus, warns):
    bundle = load_bundle(str(tiny_bundle))
    keep(verdict_of(bundle, 0.9999, 1.0, num_virus))
    assert parity.require(bundle, "cpu", "int8", 1).num_virus == num_virus
    assert ("labels say little" in caplog.text) is warns


def test_a_verdict_that_cannot_be_used_is_as_good_as_none(tiny_bundle):
    verdict = verdict_of(load_bundle(str(tiny_bundle)), 1.0, 1.0)
    keep(verdict)
    assert parity.find(verdict.key) == verdict
    other = dataclasses.replace(verdict.key, dtype="float8_e4m3fn")
    parity.path_of(other).write_text(parity.path_of(verdict.key).read_text())
    assert parity.find(other) is None
    parity.path_of(verdict.key).write_text("{")
    assert parity.find(verdict.key) is None


@needs_int8
def test_a_model_without_linear_layers_is_refused_in_one_line(virnucpro, reads, tmp_path):
    ended = virnucpro("predict", reads, "-m", "lite", "--device", "cpu", "--dtype", "int8", "-o", tmp_path / "out")
    assert ended.code == 2
    assert "8 bits are for the linear layers of dnabert_s and esm2" in ended.err
    assert not (tmp_path / "out").exists()
