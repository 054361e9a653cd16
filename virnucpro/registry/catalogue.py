"""The released checkpoints: where they are, how large, under which licence. Data, no behaviour.

Sizes are rounded: the exact one is learnt from the source. No SHA-256 of these files was at hand when this was
written, so none stands here: the hub tells its own at each fetch, the two heads are held against the git object names
of the published repository, and whatever was fetched is recorded and verified from then on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["nucleotide", "protein", "head"]


@dataclass(frozen=True)
class HubSource:
    """A repository on the Hugging Face hub."""

    repo: str  # ``owner/name``
    needed: tuple[str, ...]  # patterns of small files, all taken
    # groups of patterns, best first; the first group of which the repository has a file is taken
    weights: tuple[tuple[str, ...], ...]
    revision: str = "main"  # branch or commit


@dataclass(frozen=True)
class UrlSource:
    """A single file."""

    url: str  # https address
    git_blob: str | None = None  # name of its git object (SHA-1 of size and content), where it is known

    @property
    def file(self) -> str:
        """Its name."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Part:
    """A released checkpoint."""

    name: str  # also its folder's
    role: Role  # its place in a bundle
    licence: str  # SPDX identifier
    about_bytes: int  # size of what is fetched, rounded
    sources: tuple[HubSource | UrlSource, ...]  # tried in order


_SAFETENSORS = ("model*.safetensors", "model.safetensors.index.json")
_PYTORCH = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
_HEADS = "https://github.com/Li-Jing-1997/VirNucPro/raw/0f93f2755a7ea1acd3ff1bcf182892f960ef3326"
_MEGABYTE = 10**6


def _esm2(name: str, megabytes: int) -> Part:
    hub = HubSource(f"facebook/{name}", ("config.json", "vocab.txt"), (_SAFETENSORS, _PYTORCH))
    url = UrlSource(f"https://dl.fbaipublicfiles.com/fair-esm/models/{name}.pt")
    return Part(name, "protein", "MIT", megabytes * _MEGABYTE, (hub, url))


def _head(name: str, git_blob: str) -> Part:
    return Part(name, "head", "MIT", 7 * _MEGABYTE, (UrlSource(f"{_HEADS}/{name}.pth", git_blob=git_blob),))


PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        Part(
            "DNABERT-S",
            "nucleotide",
            "Apache-2.0",
            470 * _MEGABYTE,
            (HubSource("zhihan1996/DNABERT-S", ("config.json", "tokenizer.json"), (_SAFETENSORS, _PYTORCH)),),
        ),
        _esm2("esm2_t6_8M_UR50D", 30),
        _esm2("esm2_t12_35M_UR50D", 135),
        _esm2("esm2_t30_150M_UR50D", 600),
        _esm2("esm2_t33_650M_UR50D", 2_600),
        _esm2("esm2_t36_3B_UR50D", 11_400),
        _esm2("esm2_t48_15B_UR50D", 60_600),
        _head("300_model", "a0b5b85e7c1e44f00cde146d091beb82b2c8e855"),
        _head("500_model", "fc35d5ef9f1f4564eea7036f34f4f8ec6000d33d"),
    )
}

MODELS: dict[str, tuple[str, ...]] = {
    "300": ("DNABERT-S", "esm2_t36_3B_UR50D", "300_model"),
    "500": ("DNABERT-S", "esm2_t36_3B_UR50D", "500_model"),
}
"""Published models and their parts."""
