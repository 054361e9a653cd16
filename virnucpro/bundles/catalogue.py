"""The released checkpoints: where they are, how large, under which licence. Data, no behaviour.

Sizes are rounded: the exact one is learnt from the source. No SHA-256 of these files was at hand when this was
written, so none stands here: the hub tells its own at each fetch, the two heads are compared with the git object names
of the published repository, and whatever was fetched is recorded and verified from then on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["nucleotide", "protein", "head"]


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server, and what is known of it before it comes."""

    url: str  # http or https
    size_bytes: int | None = None  # exact
    sha256: str | None = None  # of its content
    git_blob: str | None = None  # name of its git object (SHA-1 of size and content)

    @property
    def name(self) -> str:
        """Its own, without a path."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class HubSource:
    """A repository on the Hugging Face hub."""

    repo: str  # ``owner/name``
    needed: tuple[str, ...]  # names of small files, all taken
    # groups of patterns, best first; the first group of which the repository has a file is taken
    weights: tuple[tuple[str, ...], ...] = (
        ("model*.safetensors", "model.safetensors.index.json"),
        ("pytorch_model*.bin", "pytorch_model.bin.index.json"),
    )


@dataclass(frozen=True)
class Part:
    """A released checkpoint."""

    name: str  # also its folder's
    role: Role  # its place in a bundle
    licence: str  # SPDX identifier
    about_bytes: int  # size of what is fetched, rounded
    sources: tuple[HubSource | RemoteFile, ...]  # tried in order
    width: int = 0  # of the embeddings of an encoder

    @property
    def repo(self) -> str | None:
        """Its repository on the hub, if it has one."""
        return next((source.repo for source in self.sources if isinstance(source, HubSource)), None)

    @property
    def addresses(self) -> str:
        """Where it comes from, for people."""
        return " or ".join(
            f"https://huggingface.co/{source.repo}" if isinstance(source, HubSource) else source.url
            for source in self.sources
        )

    @property
    def files(self) -> str:
        """Which files it consists of, for people who carry them by hand."""
        return ", or ".join(
            source.name
            if isinstance(source, RemoteFile)
            else f"{', '.join(source.needed)} and {' or '.join(group[0] for group in source.weights)} of {source.repo}"
            for source in self.sources
        )


_HEADS = "https://github.com/Li-Jing-1997/VirNucPro/raw/0f93f2755a7ea1acd3ff1bcf182892f960ef3326"
_MEGABYTE = 10**6


def _esm2(name: str, width: int, megabytes: int) -> Part:
    hub = HubSource(f"facebook/{name}", ("config.json",))
    file = RemoteFile(f"https://dl.fbaipublicfiles.com/fair-esm/models/{name}.pt")
    return Part(name, "protein", "MIT", megabytes * _MEGABYTE, (hub, file), width)


def _head(name: str, git_blob: str) -> Part:
    return Part(name, "head", "MIT", 7 * _MEGABYTE, (RemoteFile(f"{_HEADS}/{name}.pth", git_blob=git_blob),))


NUCLEOTIDE = "DNABERT-S"
NUCLEOTIDE_WIDTH = 768
_HUB = HubSource("zhihan1996/DNABERT-S", ("config.json", "tokenizer.json"))
PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        Part(NUCLEOTIDE, "nucleotide", "Apache-2.0", 470 * _MEGABYTE, (_HUB,), NUCLEOTIDE_WIDTH),
        _esm2("esm2_t6_8M_UR50D", 320, 30),
        _esm2("esm2_t12_35M_UR50D", 480, 135),
        _esm2("esm2_t30_150M_UR50D", 640, 600),
        _esm2("esm2_t33_650M_UR50D", 1280, 2_600),
        _esm2("esm2_t36_3B_UR50D", 2560, 11_400),
        _esm2("esm2_t48_15B_UR50D", 5120, 60_600),
        _head("300_model", "a0b5b85e7c1e44f00cde146d091beb82b2c8e855"),
        _head("500_model", "fc35d5ef9f1f4564eea7036f34f4f8ec6000d33d"),
    )
}
PROTEIN_OF_WIDTH = {part.width: part.name for part in PARTS.values() if part.role == "protein"}
PUBLISHED_PROTEIN = PROTEIN_OF_WIDTH[2560]

MODELS: dict[str, tuple[str, ...]] = {
    model: (NUCLEOTIDE, PUBLISHED_PROTEIN, f"{model}_model") for model in ("300", "500")
}
"""Published models and their parts."""
