"""How many CPUs this process keeps busy when it computes or tokenises."""

from __future__ import annotations

import os

import torch


def use_threads(number: int) -> None:
    """Let each operation of torch, and the byte-pair tokenizers, use so many; with several, last bits may differ.

    The tokenizers are told before they first see a batch, or not at all: they start their threads then, one for each
    CPU of the machine unless this is set, and keep them.
    """
    torch.set_num_threads(number)
    os.environ["RAYON_NUM_THREADS"] = str(number)
