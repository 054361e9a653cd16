"""The two small encoders: what they count, and that a row's embedding is its own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from Bio.Seq import Seq

from virnucpro.encoders import load_encoder, load_tokenizer, save_encoder
from virnucpro.encoders.codons import RESIDUES, canonical_kmers
from virnucpro.encoders.conv_tower import ConvTower
from virnucpro.encoders.indices import read_fragments
from virnucpro.encoders.ngram_bag import NgramBag, ngram_index
from virnucpro.encoders.profiles import ProfiledEncoder, ProfiledNetwork, ProfiledShape
from virnucpro.encoders.residue_conv import ResidueConvEncoder, ResidueConvNetwork, ResidueConvShape
from virnucpro.engine.batch import collate
from virnucpro.errors import ModelError
from virnucpro.sequence.ragged import Ragged

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def profiled() -> ProfiledEncoder:
    torch.manual_seed(3)
    network = ProfiledNetwork(ProfiledShape(width=17, hidden_width=24, frame_width=8, profile_frame_width=8))
    network.profiles.stretches.random_(0, 256)
    network.profiles.weights.fill_(1.0)
    return ProfiledEncoder(network)


@pytest.fixture(scope="module")
def residue_conv() -> ResidueConvEncoder:
    torch.manual_seed(2)
    return ResidueConvEncoder(
        ResidueConvNetwork(ResidueConvShape(width=16, ngram_width=4, tower_channels=(8, 8, 8, 12)))
    )


def random_strings(letters: str, lengths: list[int], seed: int = 5) -> list[bytes]:
    generator = np.random.default_rng(seed)
    return ["".join(generator.choice(list(letters), size=length)).encode() for length in lengths]


def embed(encoder, strings: list[bytes]) -> torch.Tensor:
    tokens = encoder.tokenizer(Ragged.from_bytes(strings))
    assert tokens.values.dtype == np.int32
    order = np.argsort(tokens.lengths, kind="stable")
    embeddings = torch.empty(len(strings), encoder.width)
    embeddings[torch.from_numpy(order)] = encoder.embed(next(iter(collate(tokens, [order]))))
    return embeddings


def test_frames_are_those_of_biopython():
    (bases,) = random_strings("ACGTN", [101])
    tokens = ProfiledEncoder.tokenizer_from({})(Ragged.from_bytes([bases]))
    residues = read_fragments(torch.from_numpy(tokens.values.astype(np.int64))[None])[1].numpy()
    letters = np.array([*RESIDUES, "X"])
    for strand, sequence in enumerate((Seq(bases), Seq(bases).reverse_complement())):
        for offset in range(3):
            whole = sequence[offset:]
            expected = [
                str(codon.translate()) if set(str(codon)) <= set("ACGT") else "X"
                for codon in (whole[i : i + 3] for i in range(0, len(whole) - 2, 3))
            ]
            found = letters[residues[3 * strand + offset]].tolist()
            assert found == expected + ["X"] * (33 - len(expected))


def test_an_ngram_with_a_strange_symbol_is_no_ngram():
    assert ngram_index(torch.tensor([[0, 1, 2, 0, 1]]), 2, 2).tolist() == [[2, 0, 0, 2]]


def test_a_kmer_and_its_reverse_complement_are_one():
    numbers, count = canonical_kmers(3)
    assert count == 32 + 1
    for kmer in range(64):
        digits = [(kmer >> shift) & 3 for shift in (4, 2, 0)]
        reverse = sum((3 - digit) << (2 * place) for place, digit in enumerate(digits))
        assert numbers[kmer + 1] == numbers[reverse + 1] > 0
    assert numbers[0] == 0


def test_a_bag_is_the_mean_of_its_vectors_and_its_gradient_that_of_autograd():
    bag = NgramBag(20, 5)
    ngrams = torch.tensor([[1, 2, 2, 0], [0, 0, 0, 0], [19, 0, 3, 3]])
    sums = (bag.weight[ngrams] * (ngrams > 0)[:, :, None]).sum(1)
    expected = sums / (ngrams > 0).sum(1, keepdim=True).clamp(min=1)
    slope = torch.randn(3, 5)
    (wanted,) = torch.autograd.grad((expected * slope).sum(), bag.weight)
    found = bag(ngrams)
    (gradient,) = torch.autograd.grad((found * slope).sum(), bag.weight)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(gradient, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "letters"),
    [("profiled", "ACGTN"), ("residue_conv", "ACDEFGHIKLMNPQRSTVWYX")],
)
def test_an_embedding_does_not_depend_on_its_batch(name, letters, request):
    encoder = request.getfixturevalue(name)
    strings = random_strings(letters, [1, 2, 9, 10, 31, 150, 150, 166, 300, 498, 499, 500, 500, 700])
    together = embed(encoder, strings)
    alone = torch.cat([embed(encoder, [string]) for string in strings])
    assert together.dtype == torch.float32
    assert together.isfinite().all()
    assert torch.allclose(together, alone, atol=1e-6)


def test_both_strands_of_a_fragment_have_one_embedding(profiled):
    (bases,) = random_strings("ACGT", [300])
    reverse = str(Seq(bases).reverse_complement()).encode()
    assert torch.allclose(embed(profiled, [bases]), embed(profiled, [reverse]), atol=1e-5)


@pytest.mark.parametrize("name", ["profiled", "residue_conv"])
def test_a_stored_encoder_loads_by_its_kind(name, request, tmp_path: Path):
    encoder = request.getfixturevalue(name)
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, encoder.config(), encoder.stored_tensors())
    loaded = load_encoder(path, CPU, torch.float32)
    strings = random_strings("ACGT" if encoder.alphabet == "nt" else RESIDUES[:20], [40, 120, 333])
    difference = (embed(loaded, strings) - embed(encoder, strings)).abs().max()
    assert (loaded.kind, loaded.alphabet, loaded.width) == (encoder.kind, encoder.alphabet, encoder.width)
    assert difference < 0.01  # tables are stored in 8 bits
    assert type(load_tokenizer(path)) is type(encoder.tokenizer)


def test_tensors_that_do_not_fit_are_a_model_error(profiled, tmp_path: Path):
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, profiled.config() | {"width": 18}, profiled.stored_tensors())
    with pytest.raises(ModelError, match="do not fit"):
        load_encoder(path, CPU, torch.float32)


@pytest.mark.parametrize("kernel", [1, 3, 5, 9])
def test_pairs_looked_up_are_the_first_convolution(kernel):
    """Sequences of one symbol, of even and odd lengths, with symbols that are none."""
    torch.manual_seed(kernel)
    plain, tabulated = (ConvTower(20, (6, 10, 7), (kernel, 3)).eval() for _ in range(2))
    tabulated.load_state_dict(plain.state_dict())
    tabulated.tabulate()
    with torch.inference_mode():
        for length in (*range(1, 12), 166):
            symbols = torch.randint(0, 21, (70, length))
            expected = plain(symbols)
            assert torch.allclose(tabulated(symbols), expected, atol=2e-6)
            assert expected.abs().sum() > 0


def test_a_tower_in_training_takes_its_weights_as_they_are():
    """Tables of earlier weights are for an encoder, which has them for good."""
    torch.manual_seed(1)
    tower = ConvTower(20, (6, 10), (5,))
    symbols = torch.randint(0, 20, (3, 30))
    tower.tabulate()
    tower.train()
    tower.convolutions[0].weight.data.mul_(2)
    tower(symbols).sum().backward()
    assert tower.convolutions[0].weight.grad is not None
    trained = tower(symbols)
    tower.eval().tabulate()
    assert torch.allclose(tower(symbols), trained, atol=2e-6)
