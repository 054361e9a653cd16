"""Encoder files: written tensor by tensor, mapped where they lie."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import esm
import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import write_fair_esm

from virnucpro.encoders import load_encoder, read_config
from virnucpro.encoders.esm2 import Esm2, convert_checkpoint, fuse_attention
from virnucpro.encoders.weights import read_tensors, save_encoder, stored_tensors, write_encoder
from virnucpro.engine.batch import collate
from virnucpro.errors import ModelError
from virnucpro.sequence.ragged import Ragged

CONFIG = {"kind": "esm2", "alphabet": "aa", "width": 32, "num_layers": 2, "attention_heads": 4}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tensors():
    torch.manual_seed(4)
    settings, found = convert_checkpoint(esm.ESM2(2, 32, 4).state_dict(), 4)
    assert settings == CONFIG
    return found


@pytest.fixture
def stored(tensors, tmp_path):
    """The same, in a file of the safetensors library."""
    save_file(tensors, tmp_path / "library.safetensors")
    return stored_tensors(tmp_path / "library.safetensors")


def embed(encoder):
    tokens = encoder.tokenizer(Ragged.from_bytes([b"MKVLAXGTR", b"A" * 40]))
    return encoder.embed(next(iter(collate(tokens, [np.array([1, 0])]))))


def test_a_file_written_tensor_by_tensor_is_what_the_library_reads(tensors, stored, tmp_path):
    path = tmp_path / "ours.safetensors"
    digest = write_encoder(path, CONFIG, stored, tokenizer='{"é": 1}')
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    read = load_file(path)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert read_config(path).tokenizer_json == '{"é": 1}'
    save_encoder(tmp_path / "again.safetensors", CONFIG, tensors, '{"é": 1}')
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_matrices_are_kept_in_the_dtype_asked_for_and_vectors_in_float32(tensors, stored, tmp_path, dtype):
    """The file in 16 bit gives the very numbers that the float32 file gives when it is loaded in 16 bit."""
    write_encoder(tmp_path / "narrow", CONFIG, fuse_attention(stored), dtype=dtype)
    write_encoder(tmp_path / "wide", CONFIG, fuse_attention(stored))
    for name, kept in stored_tensors(tmp_path / "narrow").items():
        assert kept.dtype == (dtype if len(kept.shape) > 1 else "float32"), name
    narrow, wide = (read_tensors(tmp_path / name, CPU, getattr(torch, dtype)) for name in ("narrow", "wide"))
    assert all(torch.equal(narrow[name], wide[name]) for name in wide)
    if dtype == "float32":
        fused = embed(load_encoder(tmp_path / "narrow", CPU, torch.float32))
        assert torch.equal(fused, embed(Esm2.from_tensors(CONFIG, tensors)))
    if dtype == "bfloat16":
        assert torch.equal(*(embed(load_encoder(tmp_path / name, CPU, torch.bfloat16)) for name in ("narrow", "wide")))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_a_matrix_in_the_dtype_of_the_file_is_not_copied(stored, tmp_path):
    """They lie in the mapped file, which the processes of a machine share."""
    write_encoder(tmp_path / "file", CONFIG, stored, dtype="bfloat16")
    read = read_tensors(tmp_path / "file", CPU, torch.bfloat16)
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    places = [
        tuple(int(part, 16) for part in line[0].split("-")) for line in lines if line[-1] == str(tmp_path / "file")
    ]
    assert places
    for name, tensor in read.items():
        assert any(start <= tensor.data_ptr() < stop for start, stop in places), name


def test_tensors_of_any_known_type_come_through_the_map(tmp_path):
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8)
    made = {str(kind): torch.ones(3, 2).to(kind) for kind in (*kinds, torch.uint8, torch.bool)}
    made |= {"empty": torch.zeros(0, 4), "scalar": torch.tensor(2.5)}
    save_file(made, tmp_path / "all.safetensors")
    for name, kept in stored_tensors(tmp_path / "all.safetensors").items():
        assert torch.equal(kept.read(), made[name])
        assert kept.shape == tuple(made[name].shape)
    write_encoder(tmp_path / "again", CONFIG, stored_tensors(tmp_path / "all.safetensors"))
    assert all(torch.equal(tensor, made[name]) for name, tensor in load_file(tmp_path / "again").items())


def test_a_file_shorter_than_its_header_says_is_an_error_and_no_crash(stored, tmp_path):
    path = tmp_path / "library.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(ModelError, match="library"):
        stored_tensors(path)
    with pytest.raises(ModelError, match="library"):
        [kept.read() for kept in stored.values()]


def test_writing_to_what_is_mapped_leaves_the_file_alone(stored, tmp_path):
    before = (tmp_path / "library.safetensors").read_bytes()
    stored["layers.0.fc1.weight"].read().zero_()
    assert (tmp_path / "library.safetensors").read_bytes() == before


MEASURE = """
import json, resource, sys
from pathlib import Path
import torch, numpy as np
from virnucpro.engine.batch import collate
from virnucpro.encoders import load_encoder
from virnucpro.sequence.ragged import Ragged
import virnucpro.bundles.published as published

def peak():
    # VmHWM and not ru_maxrss, which a child begins with what its parent had
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

torch.set_num_threads(1)
start = peak()
name, dtype, action = sys.argv[1:]
if action == "convert":
    published.convert_encoder(name, dtype)
    print(json.dumps({"start": start, "peak": peak()}))
else:
    path = published.convert_encoder(name, dtype)
    encoder = load_encoder(path, torch.device("cpu"), getattr(torch, action))
    loaded = peak()
    tokens = encoder.tokenizer(Ragged.from_bytes([b"MKVLAXGTR" * 11] * 4))
    embedding = encoder.embed(next(iter(collate(tokens, [np.arange(4)]))))
    assert torch.isfinite(embedding).all()
    print(json.dumps({"start": start, "loaded": loaded, "peak": peak(), "width": embedding.shape[1]}))
"""


def measure(*arguments):
    made = subprocess.run([sys.executable, "-c", MEASURE, *arguments], check=True, capture_output=True, text=True)
    return json.loads(made.stdout)


SIZES = [("esm2_t33_650M_UR50D", 33, 1280, 20), ("esm2_t36_3B_UR50D", 36, 2560, 40)]


@pytest.fixture
def large_cache(tmp_path, monkeypatch):
    """A cache whose gigabytes do not outlive the test."""
    monkeypatch.setenv("VIRNUCPRO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    yield tmp_path / "cache"
    shutil.rmtree(tmp_path / "cache")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layers", "width", "heads"), SIZES, ids=["650M", "3B"])
def test_loading_in_16_bit_takes_at_most_a_fifth_more_than_the_weights(large_cache, name, layers, width, heads):
    """Random weights in the fair-esm form: converting holds one matrix, loading the 16-bit weights once."""
    num_values = layers * 12 * width * width
    if psutil.virtual_memory().available < 5 * num_values or shutil.disk_usage(large_cache).free < 14 * num_values:
        pytest.skip("needs more memory or disk")
    write_random_checkpoint(large_cache / f"{name}.pt", layers, width, heads)
    converted = measure(name, "bfloat16", "convert")
    # Three square matrices are joined at a time, beside their mapped sources and their copy in 16 bit.
    assert converted["peak"] - converted["start"] <= 4 * 3 * 4 * width * width + 50e6
    num_bytes = (large_cache / "encoders" / f"{name}-bfloat16.safetensors").stat().st_size
    used = measure(name, "bfloat16", "bfloat16")
    assert used["width"] == width
    assert used["peak"] - used["start"] <= 1.2 * num_bytes
    # From the float32 file every matrix is narrowed on its way in.
    measure(name, "float32", "convert")
    narrowed = measure(name, "float32", "bfloat16")
    assert narrowed["peak"] - narrowed["start"] <= 1.2 * num_bytes
    print(json.dumps({"bytes": num_bytes, "convert": converted, "load": used, "narrow": narrowed}))  # noqa: T201


def write_random_checkpoint(path, layers, width, heads):
    """A fair-esm file of random weights, in the form of the published ones."""
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in esm.ESM2(layers, width, heads).state_dict().items()}
    state = {name: torch.empty(shape).normal_(0, 0.02) for name, shape in shapes.items()}
    write_fair_esm(path, state, heads)
