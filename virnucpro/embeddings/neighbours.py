"""Nearest neighbours by cosine similarity, exact, in blocks that fit any memory."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from virnucpro.embeddings.files import About, read_embeddings
from virnucpro.embeddings.job import EmbedRequest, embed_file
from virnucpro.embeddings.levels import Embeddings
from virnucpro.errors import UsageError
from virnucpro.progress import Reporter

_QUERIES_A_BLOCK = 512
_ROWS_A_BLOCK = 32_768
FILES = (".h5", ".npz")
"""Files of embeddings; all others hold sequences."""


def nearest(
    queries: NDArray[np.floating], rows: NDArray[np.floating], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The ``k`` rows most similar to each query.

    Args:
        queries: (q, width).
        rows: (n, width).
        k: how many.

    Returns:
        (q, k) numbers of rows, most similar first, of equal ones the first; and their cosine similarities. -1 and NaN
        where there are fewer rows, and for queries and rows without a direction (zero, NaN or infinite).

    Raises:
        UsageError: ``k`` is below 1, or the widths differ.
    """
    if k < 1:
        raise UsageError(f"k: at least 1, not {k}.")
    if queries.shape[1] != rows.shape[1]:
        raise UsageError(f"queries are {queries.shape[1]} wide, and what they are compared with {rows.shape[1]}.")
    found = np.full((len(queries), k), -1, dtype=np.int64)
    similarities = np.full((len(queries), k), np.nan, dtype=np.float32)
    for first in range(0, len(queries), _QUERIES_A_BLOCK):
        block = slice(first, first + _QUERIES_A_BLOCK)
        directions, is_direction = _directions(queries[block])
        best = np.full((len(directions), 0), -np.inf, dtype=np.float32), np.empty((len(directions), 0), dtype=np.int64)
        for start in range(0, len(rows), _ROWS_A_BLOCK):
            others, are_directions = _directions(rows[start : start + _ROWS_A_BLOCK])
            products = directions @ others.T
            products[:, ~are_directions] = -np.inf
            best = _merged(best, products, start, k)
        kept = best[0] > -np.inf
        kept[~is_direction] = False
        width = best[0].shape[1]
        found[block, :width] = np.where(kept, best[1], -1)
        similarities[block, :width] = np.where(kept, np.clip(best[0], -1, 1), np.nan)
    return found, similarities


def _directions(rows: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Rows of length 1, and which of them have a direction; the others are zero."""
    wide = rows.astype(np.float32)
    is_finite = np.isfinite(wide).all(axis=1)
    wide[~is_finite] = 0
    norms = np.linalg.norm(wide.astype(np.float64), axis=1)
    is_direction = norms > 0
    wide /= np.where(is_direction, norms, 1)[:, None].astype(np.float32)
    return wide, is_direction


_Best = tuple[NDArray[np.float32], NDArray[np.int64]]


def _merged(best: _Best, products: NDArray[np.float32], start: int, k: int) -> _Best:
    """The best of those so far and of a block of rows."""
    num = min(k, products.shape[1])
    # The k-th value of each query, and all that are as large: cutting among equals would depend on the blocks.
    limit = -np.partition(-products, num - 1, axis=1)[:, num - 1]
    values = np.full((len(products), num), -np.inf, dtype=np.float32)
    numbers = np.zeros((len(products), num), dtype=np.int64)
    for query in range(len(products)):
        candidates = np.flatnonzero(products[query] >= limit[query])
        order = np.argsort(-products[query, candidates], kind="stable")[:num]
        values[query], numbers[query] = products[query, candidates[order]], candidates[order] + start
    values, numbers = np.hstack([best[0], values]), np.hstack([best[1], numbers])
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(numbers, order, axis=1)


def read_query(path: Path, about: About, devices: tuple[str, ...], threads: int, reporter: Reporter) -> Embeddings:
    """Embeddings of a query: from a file of them, or of sequences that are embedded as those of ``about`` were.

    Raises:
        UsageError: they are of other encoders or of another level.
    """
    if path.suffix in FILES:
        embeddings, of_query = read_embeddings(path)
        _check(path, of_query, about)
        return embeddings
    names = tuple(facts.name for facts in about.encoders)
    dtypes = {facts.dtype for facts in about.encoders}
    with TemporaryDirectory(prefix="virnucpro-") as folder:
        output = Path(folder) / "query.npz"
        request = EmbedRequest(
            str(path), output, names, about.level, devices=devices, threads=threads, dtype=dtypes.pop()
        )
        embed_file(request, reporter)
        embeddings, of_query = read_embeddings(output)
    _check(path, of_query, about)
    return embeddings


def _check(path: Path, of_query: About, about: About) -> None:
    if of_query.level != about.level:
        raise UsageError(f"{path} has a row a {of_query.level}, what it is compared with a row a {about.level}.")
    mine, theirs = ([facts.fingerprint for facts in each.encoders] for each in (of_query, about))
    if mine != theirs:
        names = [", ".join(facts.name for facts in each.encoders) for each in (of_query, about)]
        raise UsageError(
            f"{path} is embedded with {names[0]}, what it is compared with by other weights ({names[1]}): embed both "
            "with the same encoders."
        )
