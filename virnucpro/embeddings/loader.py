"""Encoders by name, loaded when they are first used, once for each precision and device.

A name is one of

- ``lite:nucleotide``, ``300:protein``: an encoder of a bundle;
- a path: an encoder file (``.safetensors``);
- the name of an entry point in the group ``virnucpro.encoders`` (:mod:`virnucpro.encoders`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, overload

import numpy as np
from numpy.typing import NDArray

from virnucpro.atomic import file_digest
from virnucpro.bundles.bundle import cache_dir, load_bundle
from virnucpro.embeddings.validation import check_text
from virnucpro.encoders import load_encoder, load_tokenizer, plugin, plugin_names, read_config
from virnucpro.errors import ModelError, UsageError, VirNucProError
from virnucpro.sequence.ragged import Ragged

if TYPE_CHECKING:
    import torch

    from virnucpro.encoders.base import Encoder

Alphabet = Literal["nt", "aa"]
_ROLES = ("nucleotide", "protein")


class ModelLoadError(ModelError):
    """An encoder that cannot be found or loaded.

    Args:
        name: as it was asked for.
        problem: what is wrong.
    """

    def __init__(self, name: str, problem: str) -> None:
        self.name = name
        self.problem = problem
        super().__init__(name, problem)

    def __str__(self) -> str:
        return f"encoder {self.name}: {self.problem}"


@dataclass(frozen=True)
class EncoderSource:
    """Where an encoder comes from, and what is known before a weight is read."""

    name: str  # as it was asked for
    alphabet: Alphabet
    width: int  # of an embedding
    max_letters: int | None  # the most it reads of a sequence; None for any number
    fingerprint: str  # identity of its weights; empty if nothing tells it
    load: Callable[[torch.device, torch.dtype], Encoder]
    fragment_length: int | None = None  # nt, of the bundle it belongs to; None if it belongs to none
    is_named: bool = True  # whether another process finds it by its name


def find_encoder(name: str) -> EncoderSource:
    """Find an encoder by its name; see the module's text.

    Raises:
        ModelLoadError: there is none.
    """
    bundle_name, _, role = name.rpartition(":")
    try:
        if role in _ROLES:
            bundle = load_bundle(bundle_name)
            source = _in_file(name, bundle.encoder(role), bundle.digests[role])
            return replace(source, fragment_length=bundle.fragment_length)
        if Path(name).is_file():
            return _in_file(name, Path(name), None)
        made = plugin(name)
    except ModelError as error:
        raise ModelLoadError(name, str(error)) from error
    if made is None:
        known = ", ".join(["lite:nucleotide", "lite:protein", *plugin_names()])
        raise ModelLoadError(name, f"is neither BUNDLE:nucleotide, BUNDLE:protein, a file nor a plug-in ({known}).")
    return _plugged_in(name, made)


def _in_file(name: str, path: Path, digest: str | None) -> EncoderSource:
    config = read_config(path)
    load_tokenizer(path)  # its kind is known
    longest = config.settings.get("max_residues")
    max_letters = longest if isinstance(longest, int) else 1024 if config.kind == "esm2" else None
    fingerprint = digest or file_digest(path)
    return EncoderSource(name, config.alphabet, config.width, max_letters, fingerprint, partial(load_encoder, path))


def _plugged_in(name: str, made: Callable[[torch.device, torch.dtype], Encoder]) -> EncoderSource:
    try:
        return EncoderSource(
            name,
            made.alphabet,  # type: ignore[attr-defined]  # what the entry point promises
            int(made.width),  # type: ignore[attr-defined]
            getattr(made, "max_letters", None),
            str(getattr(made, "fingerprint", "")),
            made,
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelLoadError(name, f"its plug-in does not say alphabet and width ({error}).") from error


def source_of(encoder: Encoder, name: str = "given", fingerprint: str = "") -> EncoderSource:
    """An encoder that is loaded already."""
    return EncoderSource(name, encoder.alphabet, encoder.width, None, fingerprint, lambda *_: encoder, is_named=False)


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch use so many threads for the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class LoadedEncoder:
    """An encoder on its device, that takes strings. Several threads may use it at the same time."""

    source: EncoderSource
    encoder: Encoder  # with its weights
    device: str  # torch's name of it
    dtype: str  # torch's name of the type it computes in

    def embed(self, strings: Ragged) -> NDArray[np.float32]:
        """(n, width) embeddings of n upper-case strings; zero for one that is empty.

        Raises:
            ModelError: values are not finite, in float32 too.
        """
        import torch

        from virnucpro.encoders.runner import AsyncInferenceRunner
        from virnucpro.engine.loader import pack_unit
        from virnucpro.engine.packing import GreedyPacker
        from virnucpro.stages.embed import usual_token_budget

        device = torch.device(self.device)
        packer = GreedyPacker(usual_token_budget(self.encoder, device, self.dtype))
        unit = pack_unit(0, strings, self.encoder.tokenizer, packer)
        with AsyncInferenceRunner(self.encoder, device, self.source.load) as runner:
            ((_, embeddings),) = runner.embeddings([unit])
        return embeddings


class ModelLoader:
    """An encoder that is loaded when it is first used; all loaders of one encoder, precision and device share it.

    Args:
        encoder: its name (see the module's text), or one that is loaded already.
        precision: ``auto`` (float32 on a CPU, bfloat16 on a GPU), ``float32``, ``bfloat16`` ...
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; None takes the best that there is.

    Raises:
        ModelLoadError: there is no such encoder. Weights are read later.
    """

    _loaded: ClassVar[dict[tuple[str, str, str], LoadedEncoder]] = {}
    _lock: ClassVar[threading.RLock] = threading.RLock()

    def __init__(
        self,
        encoder: str | Path | EncoderSource = "lite:nucleotide",
        precision: str = "auto",
        device: str | None = None,
    ) -> None:
        self.source = encoder if isinstance(encoder, EncoderSource) else find_encoder(str(encoder))
        self.precision = precision
        self.device = device

    @property
    def name(self) -> str:
        """Of the encoder, as it was asked for."""
        return self.source.name

    @property
    def width(self) -> int:
        """Of an embedding."""
        return self.source.width

    @property
    def alphabet(self) -> Alphabet:
        """What it reads, ``nt`` or ``aa``."""
        return self.source.alphabet

    @property
    def fingerprint(self) -> str:
        """Identity of the weights; empty where nothing tells it."""
        return self.source.fingerprint

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._key() in self._loaded

    def get_model(self) -> LoadedEncoder:
        """The encoder with its weights; the first call loads them.

        Raises:
            ModelLoadError: they cannot be loaded.
            UsageError: there is no such device or precision.
        """
        import torch

        from virnucpro.encoders.device import choose_devices, parse_dtype

        with self._lock:
            key = self._key()
            if key not in self._loaded:
                (name, *_) = choose_devices(self.device or "auto")
                dtype = parse_dtype(self.precision, torch.device(name))
                try:
                    encoder = self.source.load(torch.device(name), dtype)
                except UsageError:
                    raise
                except (VirNucProError, OSError, RuntimeError) as error:
                    raise ModelLoadError(self.name, str(error)) from error
                self._loaded[key] = LoadedEncoder(self.source, encoder, name, str(dtype).removeprefix("torch."))
            loaded = self._loaded[key]
            # The same weights may have several names.
            return loaded if loaded.source.name == self.name else replace(loaded, source=self.source)

    @overload
    def encode(self, text: str) -> NDArray[np.float32]: ...

    @overload
    def encode(self, text: Sequence[str]) -> NDArray[np.float32]: ...

    def encode(self, text: str | Sequence[str]) -> NDArray[np.float32]:
        """Embed one sequence, (width,), or n of them, (n, width).

        Raises:
            ModelValidationError: one is empty, too long, or holds letters outside the alphabet.
        """
        texts = [text] if isinstance(text, str) else list(text)
        checked = [check_text(each, self.alphabet, self.source.max_letters).encode() for each in texts]
        if not checked:
            return np.empty((0, self.width), dtype=np.float32)
        embeddings = self.get_model().embed(Ragged.from_bytes(checked))
        return embeddings[0] if isinstance(text, str) else embeddings

    @staticmethod
    def detect_device() -> str:
        """The best device that there is: ``cuda``, ``mps`` or ``cpu``."""
        from virnucpro.encoders.device import choose_devices

        return choose_devices()[0].partition(":")[0]

    @staticmethod
    def get_cache_dir() -> Path:
        """Where models are kept."""
        return cache_dir()

    @classmethod
    def reset_cache(cls) -> None:
        """Let go of all loaded encoders; who uses one keeps it."""
        with cls._lock:
            cls._loaded.clear()

    def _key(self) -> tuple[str, str, str]:
        # An encoder without a fingerprint is known by the object that makes it.
        identity = self.source.fingerprint or f"{self.name}:{id(self.source.load)}"
        return identity, self.precision, self.device or "auto"
