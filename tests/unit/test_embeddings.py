"""Encoders by name, chunks with metadata, and what is refused on the way in and out."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import random
import threading

import numpy as np
import pytest
import torch
from conftest import random_dna
from tiny_models import write_tiny_bundle

from virnucpro import embeddings
from virnucpro.embeddings import (
    EmbeddingGenerator,
    EmbeddingValidator,
    ModelLoader,
    ModelLoadError,
    ModelValidationError,
)
from virnucpro.embeddings.loader import find_encoder, source_of
from virnucpro.encoders import load_encoder
from virnucpro.errors import UsageError

POISON = "GATTACAGATTACA"


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """An encoder that raises at one string of bases."""
    return write_tiny_bundle(tmp_path_factory.mktemp("poisoned"), poison=POISON) / "nucleotide.safetensors"


@pytest.fixture(autouse=True)
def _no_encoders_are_left():
    yield
    ModelLoader.reset_cache()


def dna(number, seed=0):
    rng = random.Random(seed)
    return [random_dna(rng.randint(100, 300), seed * 1000 + index) for index in range(number)]


def test_bundled_encoders_have_names():
    for name, alphabet in (("lite:nucleotide", "nt"), ("lite:protein", "aa")):
        loader = ModelLoader(name)
        assert (loader.alphabet, loader.is_loaded) == (alphabet, False)
        assert loader.width >= 128
        assert len(loader.fingerprint) == 64


@pytest.mark.parametrize("name", ["lite", "lite:other", "nobody:protein", "missing.safetensors", ""])
def test_a_name_that_is_none_is_an_error_with_those_that_are(name):
    with pytest.raises(ModelLoadError) as raised:
        ModelLoader(name)
    assert raised.value.name == name
    assert "lite" in str(raised.value)


def test_one_string_and_a_list_of_them():
    loader = ModelLoader("lite:nucleotide", device="cpu")
    one, several = loader.encode("ACGT" * 30), loader.encode(["ACGT" * 30, "TTTT" * 30])
    assert (one.shape, several.shape, one.dtype) == ((loader.width,), (2, loader.width), np.float32)
    np.testing.assert_allclose(one, several[0], atol=1e-6)
    assert loader.encode([]).shape == (0, loader.width)


def test_loaders_of_one_encoder_precision_and_device_share_it():
    first = ModelLoader("lite:protein", device="cpu").get_model()
    assert ModelLoader("lite:protein", device="cpu").get_model() is first
    assert ModelLoader("lite:protein", "bfloat16", "cpu").get_model() is not first
    ModelLoader.reset_cache()
    assert not ModelLoader("lite:protein", device="cpu").is_loaded
    assert ModelLoader("lite:protein", device="cpu").get_model() is not first


def test_threads_that_ask_together_load_once(poisoned):
    loads, barrier = [], threading.Barrier(8)
    source = find_encoder(str(poisoned))
    counted = dataclasses.replace(source, load=lambda *where: loads.append(where) or source.load(*where))
    found = []

    def ask():
        barrier.wait()
        found.append(ModelLoader(counted, device="cpu").get_model())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert len(set(map(id, found))) == 1


def test_devices_and_folders():
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert ModelLoader.detect_device() == expected
    assert ModelLoader.get_cache_dir().name
    for device, precision in (("cuda:77", "auto"), ("toaster", "auto"), ("cpu", "float7")):
        with pytest.raises(UsageError):
            ModelLoader("lite:protein", precision, device).get_model()


def test_damaged_weights_are_a_load_error(tmp_path):
    path = tmp_path / "e.safetensors"
    path.write_bytes(b"no weights")
    with pytest.raises(ModelLoadError, match=r"e\.safetensors"):
        ModelLoader(path)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_chunks_keep_their_order_and_metadata(tiny_bundle, batch_size, workers):
    texts = dna(20)
    generator = EmbeddingGenerator(tiny_bundle / "nucleotide.safetensors", "cpu", batch_size, workers)
    chunks = generator.process_chunks({"id": number, "text": text, "tags": ["x"]} for number, text in enumerate(texts))
    assert [(chunk["id"], chunk["text"], chunk["tags"]) for chunk in chunks] == [
        (number, text, ["x"]) for number, text in enumerate(texts)
    ]
    expected = ModelLoader(tiny_bundle / "nucleotide.safetensors", device="cpu").encode(texts)
    np.testing.assert_allclose(np.stack([chunk["embedding"] for chunk in chunks]), expected, atol=1e-5)
    assert {chunk["error"] for chunk in chunks} == {None}
    assert {chunk["encoder_fingerprint"] for chunk in chunks} == {generator.loader.fingerprint}
    assert generator.get_statistics()["processed"] == 20
    assert generator.get_statistics()["batches"] == -(-20 // batch_size)


@pytest.mark.parametrize(
    ("chunk", "problem"),
    [
        ({"text": ""}, "is empty"),
        ({"text": "ACGT-ACGT"}, "letter '-' at position 5 is not in the alphabet of nucleotides"),
        ({"text": "ACGTEFIL"}, "letter 'E' at position 5"),
        ({"text": None}, "expected a sequence as text, got NoneType"),
        ({"text": b"ACGT"}, "got bytes"),
        ({"name": "x"}, "neither 'text' nor 'sequence'"),
        ("ACGT", "expected a chunk with a text, got str"),
        ({"text": POISON * 20}, ""),
    ],
)
@pytest.mark.parametrize("retry_failed", [True, False])
def test_a_chunk_that_fails_is_reported_and_not_fatal(poisoned, chunk, problem, retry_failed):
    good = [{"sequence": text} for text in dna(5)]
    generator = EmbeddingGenerator(poisoned, "cpu", batch_size=3, num_workers=2)
    chunks = generator.process_chunks([*good[:2], chunk, *good[2:]], retry_failed=retry_failed)
    assert chunks[2]["embedding"] is None
    assert problem in chunks[2]["error"]
    lost = 3 if problem == "" and not retry_failed else 1  # its batch goes with it
    assert sum(chunk["embedding"] is None for chunk in chunks) == lost
    statistics = generator.get_statistics()
    assert (statistics["processed"], statistics["failed"]) == (6 - lost, lost)
    assert statistics["retried"] == (3 if problem == "" and retry_failed else 0)


def test_what_is_longer_than_the_encoder_reads_is_refused(tiny_bundle):
    loader = ModelLoader(tiny_bundle / "protein.safetensors", device="cpu")
    assert loader.source.max_letters == 1024
    assert loader.encode("M" * 1024).shape == (32,)
    with pytest.raises(ModelValidationError, match="1,025 letters, and the encoder reads 1,024"):
        loader.encode("M" * 1025)


def test_no_chunks_and_no_texts():
    generator = EmbeddingGenerator("lite:protein", "cpu")
    assert generator.process_chunks([]) == []
    assert generator.process_batch([]) == []
    assert generator.generate_embeddings_for_texts([]).shape == (0, generator.loader.width)
    assert generator.get_progress_summary()["percent"] == 100.0
    assert generator.get_statistics()["items_per_second"] == 0.0


def test_texts_become_one_array_or_an_error(tiny_bundle):
    generator = EmbeddingGenerator(tiny_bundle / "nucleotide.safetensors", "cpu", batch_size=2)
    assert generator.generate_embeddings_for_texts(dna(5)).shape == (5, 24)
    with pytest.raises(ModelValidationError, match="text 2 of 3: the sequence is empty"):
        generator.generate_embeddings_for_texts(["ACGT", "", "ACGT"])


def test_progress_is_told_up_to_the_last_chunk(tiny_bundle):
    told = []
    generator = EmbeddingGenerator(tiny_bundle / "nucleotide.safetensors", "cpu", batch_size=4, num_workers=1)
    generator.process_chunks([{"text": text} for text in [*dna(9), ""]], lambda *so_far: told.append(so_far))
    assert told == [(5, 10), (9, 10), (10, 10)]
    summary = generator.get_progress_summary()
    assert (summary["done"], summary["total"], summary["seconds_left"]) == (10, 10, 0.0)


def test_a_callback_that_raises_loses_nothing(tiny_bundle):
    def callback(done, total):
        raise RuntimeError(f"{done} of {total}")

    generator = EmbeddingGenerator(tiny_bundle / "nucleotide.safetensors", "cpu", batch_size=2)
    assert all(chunk["error"] is None for chunk in generator.process_chunks([{"text": t} for t in dna(5)], callback))
    assert generator.process_chunks([], callback) == []


def test_processes_give_what_threads_give(tiny_bundle):
    texts = dna(6)
    threads, processes = (
        EmbeddingGenerator(tiny_bundle / "nucleotide.safetensors", "cpu", 2, 2, use_threading)
        for use_threading in (True, False)
    )
    found = processes.generate_embeddings_for_texts(texts)
    assert not processes.loader.is_loaded
    np.testing.assert_allclose(found, threads.generate_embeddings_for_texts(texts), atol=1e-6)


def test_an_embedding_that_is_none_is_a_failed_chunk(tiny_bundle):
    generator = EmbeddingGenerator(tiny_bundle / "nucleotide.safetensors", "cpu")
    enriched = generator.validate_and_enrich_chunk({"id": 1, "text": "A"}, np.full(24, np.nan, dtype=np.float32))
    assert (enriched["id"], enriched["embedding"]) == (1, None)
    assert "NaN or Inf" in enriched["error"]


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"num_workers": 0}])
def test_numbers_below_one_are_refused(options):
    with pytest.raises(UsageError, match="at least 1"):
        EmbeddingGenerator("lite:protein", **options)


def test_an_encoder_of_ones_own_needs_threads(tiny_bundle):
    path = tiny_bundle / "nucleotide.safetensors"
    mine = source_of(load_encoder(path, torch.device("cpu"), torch.float32), "mine")
    texts = dna(3)
    expected = ModelLoader(path, device="cpu").encode(texts)
    np.testing.assert_allclose(
        EmbeddingGenerator(mine, "cpu").generate_embeddings_for_texts(texts), expected, atol=1e-6
    )
    with pytest.raises(UsageError, match="by its name"):
        EmbeddingGenerator(mine, use_threading=False)


PLUGIN = """
import torch
from virnucpro.encoders.letters import LetterTokenizer
from virnucpro.encoders.profiles import ProfiledEncoder
import numpy as np

class Counts:
    kind, alphabet, width, cpu_token_budget = "counts", "nt", 4, 1000
    tokenizer = LetterTokenizer(np.arange(256, dtype=np.int32))

    def embed(self, batch):
        rows = []
        for start, length in zip(batch.cu_seqlens.tolist(), batch.lengths):
            letters = batch.input_ids[start : start + length]
            rows.append(torch.stack([(letters == ord(base)).float().mean() for base in "ACGT"]))
        return torch.stack(rows)

def load(device, dtype):
    return Counts()

load.alphabet, load.width, load.fingerprint, load.max_letters = "nt", 4, "counts-1", 1000

def silent(device, dtype):
    return Counts()

class MyKind(ProfiledEncoder):
    kind = "my_kind"
"""
ENTRY_POINTS = """
[virnucpro.encoders]
counts = plugged_in:load
silent = plugged_in:silent
broken = plugged_in:not_there
my_kind = plugged_in:MyKind
"""


@pytest.fixture
def _plugged_in(tmp_path, monkeypatch):
    """A package of somebody else, as installed."""
    (tmp_path / "plugged_in.py").write_text(PLUGIN)
    folder = tmp_path / "plugged_in-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged-in\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()


@pytest.mark.usefixtures("_plugged_in")
def test_encoders_of_other_packages_are_asked_for_by_name():
    loader = ModelLoader("counts", device="cpu")
    assert (loader.fingerprint, loader.width) == ("counts-1", 4)
    np.testing.assert_allclose(loader.encode(["AAAA", "acgt"]), [[1, 0, 0, 0], [0.25] * 4])
    with pytest.raises(ModelValidationError, match="reads 1,000"):
        loader.encode("A" * 1001)
    with pytest.raises(ModelLoadError, match="does not say alphabet"):
        ModelLoader("silent")
    with pytest.raises(ModelLoadError, match="cannot be imported"):
        ModelLoader("broken")
    with pytest.raises(ModelLoadError, match="counts"):
        ModelLoader("nobody")


@pytest.mark.usefixtures("_plugged_in")
def test_a_kind_of_other_packages_is_read_from_its_files(tmp_path):
    from virnucpro.encoders import save_encoder
    from virnucpro.encoders.profiles import ProfiledEncoder, ProfiledNetwork, ProfiledShape

    made = ProfiledEncoder(ProfiledNetwork(ProfiledShape(8, 2, 2, 2, 2, 4, 4, 2, 4, 4)))
    save_encoder(tmp_path / "mine.safetensors", {**made.config(), "kind": "my_kind"}, made.stored_tensors(), None)
    loader = ModelLoader(tmp_path / "mine.safetensors", device="cpu")
    assert loader.get_model().encoder.kind == "my_kind"
    assert loader.encode("ACGT" * 20).shape == (8,)


def test_what_an_embedding_must_be():
    validator = EmbeddingValidator(3, "float32", norm_range=(0.5, 2.0))
    good = np.array([1, 0, 0], dtype=np.float32)
    assert validator.problems(good) == []
    validator.validate(good)
    for wrong, problem in (
        (good[:2], "shape"),
        (good.astype(np.float64), "float32"),
        (np.array([1, 2, 3]), "float32"),
        (good * np.nan, "NaN"),
        (np.array([np.inf, 0, 0], dtype=np.float32), "NaN or Inf"),
        (good * 3, "norm 3 is not from 0.5 to 2"),
        (good * 0, "norm 0"),
    ):
        with pytest.raises(ModelValidationError, match=problem):
            validator.validate(wrong)


def test_what_a_batch_of_embeddings_must_be():
    validator = EmbeddingValidator(2)
    batch = np.array([[1, 0], [np.nan, 0], [0, np.inf]], dtype=np.float16)
    assert [len(found) for found in validator.problems_of_batch(batch)] == [0, 1, 1]
    validator.validate_batch(batch[:1])
    validator.validate_batch(np.empty((0, 2), dtype=np.float32))
    with pytest.raises(ModelValidationError, match="2 are not embeddings: row 1"):
        validator.validate_batch(batch)
    with pytest.raises(ModelValidationError, match="shape"):
        validator.validate_batch(np.zeros(2))


def test_the_example_of_the_package_is_true():
    assert doctest.testmod(embeddings) == (0, 3)
