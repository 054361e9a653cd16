"""``virnucpro embed``: a file of sequences in, a file of embeddings out; resumes where it was stopped.

1. The input is cut into parts; what a part holds depends on the input alone.
2. Each part is embedded by one device and kept in ``<OUT>.parts/run/``; a part that is there is not computed again.
3. All parts are put together, in input order, and the folder is removed.
"""

from __future__ import annotations

import logging
import queue
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro import store
from virnucpro.embeddings import levels
from virnucpro.embeddings.cache import EmbeddingCache
from virnucpro.embeddings.files import About, EncoderFacts, write_embeddings, writer_for
from virnucpro.embeddings.inputs import alphabet_of, protein_records
from virnucpro.embeddings.levels import FRAGMENT_LENGTH, Level, Part, PartRows
from virnucpro.embeddings.loader import Alphabet, EncoderSource, LoadedEncoder, ModelLoader, find_encoder
from virnucpro.errors import IncompleteRunError, StoreError, UsageError
from virnucpro.mapped import new_table
from virnucpro.progress import Reporter
from virnucpro.run_dir import RunDir
from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.streams import STDIN, digest_of

_LOG = logging.getLogger(__name__)
PRECISIONS = {"single": np.float32, "half": np.float16}
_NAMED = 5
_PART = "part of embeddings"


@dataclass(frozen=True)
class EmbedRequest:
    """What is asked."""

    source: str  # a file of sequences
    output: Path  # where embeddings go; its name says the format
    encoders: tuple[str, ...] = ()  # names; empty takes the bundled ones that read the input
    level: Level = "sequence"  # what a row is of
    precision: str = "single"  # of the values in the file, ``single`` or ``half``
    alphabet: Alphabet | None = None  # of the input; None tells it by its first records
    fragment_length: int | None = None  # nt; None takes that of the encoders' bundle, else 500
    devices: tuple[str, ...] = ("cpu",)  # torch's names; a part at a time on each
    threads: int = 1  # CPU threads
    dtype: str = "auto"  # type the encoders compute in
    cache: Path | None = None  # where embeddings are kept; None keeps none


class _Embedded(NamedTuple):
    """A part that is embedded."""

    path: Path  # its file
    size: tuple[int, int]  # see ``PartRows.size``
    failed: NDArray[np.void]  # see ``PartRows.failed``


def embed_file(request: EmbedRequest, reporter: Reporter, *, fresh: bool = False) -> tuple[int, About]:
    """Do what is asked; returns the number of rows and what the file is.

    Raises:
        IncompleteRunError: some strings could not be embedded; all else is written.
        VirNucProError: see ``virnucpro.errors`` for the tree.
    """
    writer_for(request.output)
    if request.source == STDIN:
        raise UsageError("embed reads files, so that it can go on where it was stopped; standard input cannot be read.")
    digest = digest_of(request.source)
    alphabet = request.alphabet or alphabet_of(Path(request.source))
    sources = _sources(request, alphabet)
    length = _fragment_length(request, sources)
    run = RunDir(request.output.with_name(f"{request.output.name}.parts"))
    run.prepare()
    with run.locked():
        if fresh:
            run.start_over()
        run.sweep()
        asked = {source.name: source.fingerprint for source in sources}
        run.agree(
            {"format": 1, "input": digest, "alphabet": alphabet, "level": request.level, "fragment_length": length}
            | {"dtype": request.dtype, "encoders": asked}
        )
        cut = _cut(request.source, alphabet, length, sources)
        about, parts = _embed_parts(request, sources, cut, run, reporter)
        num_rows = _put_together(request, about, parts, run.work, reporter)
        failed = np.concatenate([np.zeros(0, dtype=levels.KEY_DTYPE), *(part.failed for part in parts)])
    shutil.rmtree(run.root)
    if len(failed):
        raise IncompleteRunError(f"{request.output} is written; {_described(failed)}.")
    return num_rows, about


def _described(failed: NDArray[np.void]) -> str:
    """What could not be embedded."""
    some = [
        f"sequence {number + 1}, {start + 1} to {stop}"
        for number, start, stop in failed[["sequence", "start", "stop"]][:_NAMED].tolist()
    ]
    more = f" and {len(failed) - _NAMED:,} more" if len(failed) > _NAMED else ""
    return f"an encoder failed at {len(failed):,} of its strings, which means leave out: {'; '.join(some)}{more}"


def _sources(request: EmbedRequest, alphabet: Alphabet) -> list[EncoderSource]:
    bundled = ("lite:nucleotide", "lite:protein") if alphabet == "nt" else ("lite:protein",)
    names = list(dict.fromkeys(request.encoders or bundled))
    sources = [find_encoder(name) for name in names]
    wrong = [source.name for source in sources if alphabet == "aa" and source.alphabet == "nt"]
    if wrong:
        raise UsageError(
            f"{request.source} holds proteins, and {wrong[0]} reads nucleotides. Name a protein encoder, or say "
            "--alphabet nt if these are nucleotides."
        )
    return sources


def _fragment_length(request: EmbedRequest, sources: Sequence[EncoderSource]) -> int:
    if request.fragment_length is not None:
        return request.fragment_length
    lengths = {source.fragment_length for source in sources} - {None}
    if len(lengths) > 1:
        raise UsageError("these encoders belong to models with fragments of different lengths: say --fragment-length.")
    return next(iter(lengths), None) or FRAGMENT_LENGTH


def _cut(path: str, alphabet: Alphabet, length: int, sources: Sequence[EncoderSource]) -> Iterator[Part]:
    if alphabet == "nt":
        return levels.parts_of_dna(path, length)
    limits = [source.max_letters for source in sources if source.max_letters is not None]
    return levels.parts_of_proteins(protein_records(Path(path)), min(limits, default=None))


def _embed_parts(
    request: EmbedRequest, sources: Sequence[EncoderSource], cut: Iterable[Part], run: RunDir, reporter: Reporter
) -> tuple[About, list[_Embedded]]:
    """Embed all parts that are not there; returns what they are, and each of them."""
    import torch

    from virnucpro.engine.threads import ComputeThreads, use_threads

    use_threads(request.threads)
    free: queue.SimpleQueue[list[LoadedEncoder]] = queue.SimpleQueue()
    for device in request.devices:
        models = [ModelLoader(source, request.dtype, device).get_model() for source in sources]
        free.put(models)
    facts = tuple(EncoderFacts(m.source.name, m.source.fingerprint, m.dtype, m.source.width) for m in models)
    about = About(request.level, request.precision, facts)
    parts = []

    def embed(part: Part) -> _Embedded:
        path = run.work / f"part_{part.number}.h5"
        rows = _read_if_there(path, about)
        if rows is None:
            mine = free.get()
            try:
                rows = levels.embed_part(part, mine, request.level, cache)
            finally:
                free.put(mine)
            _write_part(path, rows)
        return _Embedded(path, rows.size, rows.failed)

    num_devices = len(request.devices)  # of one its own threads share a part's batches
    each = max(1, torch.get_num_threads() // num_devices) if num_devices > 1 else torch.get_num_threads()
    with (
        nullcontext() if request.cache is None else EmbeddingCache(request.cache) as cache,
        ComputeThreads(num_devices, threads_each=each) as threads,
        reporter.stage("embed", None, "sequences") as advance,
    ):
        for part in threads.map(embed, cut):
            parts.append(part)
            advance(part.size[0])
        if cache is not None:
            asked = cache.num_hits + cache.num_misses
            _LOG.info("cache: %s of %s embeddings were there", f"{cache.num_hits:,}", f"{asked:,}")
    return about, parts


def _read_if_there(path: Path, about: About) -> PartRows | None:
    """A part that was written before; None if there is none, or one that cannot be read."""
    if not path.exists():
        return None
    try:
        return _read_part(path, about)
    except StoreError as error:
        _LOG.warning("%s %s; it is computed again", path.name, error.problem)
        return None


def _write_part(path: Path, rows: PartRows) -> None:
    arrays = {
        "number": np.array([rows.number, rows.first_sequence]),
        "names": rows.names.values,
        "offsets": rows.names.offsets,
        "lengths": rows.lengths,
        "keys": rows.keys,
        "failed": rows.failed,
    }
    for position, name in enumerate(rows.values):
        arrays |= {f"count/{position}": rows.counts[name], f"value/{position}": rows.values[name]}
    store.write_arrays(path, _PART, arrays, {})


def _read_part(path: Path, about: About) -> PartRows:
    arrays = store.verify(path, _PART, {})
    number, first_sequence = arrays["number"].tolist()
    names = [facts.name for facts in about.encoders]
    counts, values = (
        {name: arrays[f"{what}/{position}"] for position, name in enumerate(names)} for what in ("count", "value")
    )
    strings = Ragged(arrays["names"], arrays["offsets"])
    return PartRows(
        number, first_sequence, strings, arrays["lengths"], arrays["keys"], counts, values, arrays["failed"]
    )


def _put_together(
    request: EmbedRequest, about: About, parts: Sequence[_Embedded], folder: Path, reporter: Reporter
) -> int:
    """Write the file; values lie in mapped files until then, so that memory does not grow with the input."""
    numbers = count()

    def make(shape: tuple[int, int]) -> NDArray[np.floating]:
        return new_table(folder / f"values_{next(numbers)}.npy", PRECISIONS[request.precision], shape)

    widths = {facts.name: facts.width for facts in about.encoders}
    room = levels.room_for([part.size for part in parts], request.level, widths, make)
    with reporter.stage("write", len(parts), "parts") as advance:

        def rows_of_parts() -> Iterator[PartRows]:
            for part in parts:
                yield _read_part(part.path, about)
                advance(1)

        levels.fill(room, rows_of_parts())
        write_embeddings(request.output, room, about)
    return len(room)
