"""Chunks a second through an ESM-2 of 150 M (random weights) on this CPU, and what the cache saves the second time.

python tests/benchmarks/embedding_speed.py [--chunks 60] [--threads 2]
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

import esm
import torch

from virnucpro.embeddings import EmbeddingGenerator
from virnucpro.embeddings.cache import EmbeddingCache
from virnucpro.embeddings.levels import embed_strings
from virnucpro.encoders import save_encoder
from virnucpro.sequence.ragged import Ragged

SHAPE = {"num_layers": 30, "attention_heads": 20}
WIDTH = 640


def write_encoder(path: Path) -> None:
    """An encoder of this size with random weights."""
    torch.manual_seed(1)
    model = esm.ESM2(num_layers=30, embed_dim=WIDTH, attention_heads=20)
    unused = ("lm_head", "contact_head")
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(unused)}
    save_encoder(path, {"kind": "esm2", "alphabet": "aa", "width": WIDTH, **SHAPE}, tensors, None)


def main() -> None:
    """Print three lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    rng = random.Random(1)
    texts = ["".join(rng.choices("ACDEFGHIKLMNPQRSTVWY", k=rng.randint(100, 300))) for _ in range(options.chunks)]
    with tempfile.TemporaryDirectory() as folder:
        write_encoder(Path(folder) / "esm2_150M.safetensors")
        generator = EmbeddingGenerator(
            Path(folder) / "esm2_150M.safetensors", "cpu", batch_size=4, num_workers=options.threads
        )
        model = generator.loader.get_model()
        cpu = time.process_time()
        generator.generate_embeddings_for_texts(texts)
        rate = generator.get_statistics()["items_per_second"]
        print(f"{rate:.1f} chunks a second by the clock, {len(texts) / (time.process_time() - cpu):.1f} a CPU second")
        strings = Ragged.from_bytes(text.encode() for text in texts)
        seconds = []
        with EmbeddingCache(Path(folder) / "cache") as cache:
            for _ in range(2):
                begun = time.perf_counter()
                embed_strings(model, strings, cache)
                seconds.append(time.perf_counter() - begun)
        print(
            f"first {seconds[0]:.2f} s, from the cache {seconds[1]:.4f} s: {seconds[0] / seconds[1]:.0f} times faster"
        )


if __name__ == "__main__":
    main()
