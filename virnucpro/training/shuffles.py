"""Shuffles of a sequence that keep how often each word of k bases occurs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def shuffle_words(codes: NDArray[np.uint8], word: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Shuffle one sequence; every word of ``word`` bases occurs as often as before.

    A sequence is a walk over its words of ``word - 1`` bases, so another walk over the same edges has the same words of
    ``word`` bases. The last edge out of each node is that of a random tree towards the last node (Wilson 1996), all
    others are shuffled: all such walks are equally likely (Altschul and Erickson 1985; Jiang et al. 2008).

    Args:
        codes: (L,) base codes 0..4.
        word: length of the words that are kept, 1 or more.
        generator: of everything random.
    """
    if word == 1 or len(codes) <= word:
        return generator.permutation(codes) if word == 1 else codes.copy()
    nodes = _numbers(codes, word - 1)
    successors: dict[int, list[int]] = {}
    for node, following in zip(nodes[:-1].tolist(), nodes[1:].tolist(), strict=True):
        successors.setdefault(node, []).append(following)
    last_edges = _random_tree(successors, int(nodes[-1]), generator)
    for node, following in successors.items():
        if node in last_edges:
            following.remove(last_edges[node])
        shuffled = [following[i] for i in generator.permutation(len(following))]
        successors[node] = [last_edges[node], *shuffled[::-1]] if node in last_edges else shuffled
    walk = [int(nodes[0])]
    while successors.get(walk[-1]):
        walk.append(successors[walk[-1]].pop())
    ends = np.array(walk[1:], dtype=np.int64) % _NUM_LETTERS
    return np.concatenate([codes[: word - 1], ends.astype(np.uint8)])


_NUM_LETTERS = 5


def _numbers(codes: NDArray[np.uint8], word: int) -> NDArray[np.int64]:
    """(L - word + 1,) number of the word at each place."""
    windows = np.lib.stride_tricks.sliding_window_view(codes.astype(np.int64), word)
    return np.asarray(windows @ _NUM_LETTERS ** np.arange(word)[::-1], dtype=np.int64)


def _random_tree(successors: dict[int, list[int]], root: int, generator: np.random.Generator) -> dict[int, int]:
    """The edge out of each node but ``root``, so that all lead there: Wilson's loop-erased walks."""
    edges: dict[int, int] = {}
    reached = {root}
    for start in successors:
        node = start
        while node not in reached:
            edges[node] = successors[node][int(generator.integers(len(successors[node])))]
            node = edges[node]
        node = start
        while node not in reached:
            reached.add(node)
            node = edges[node]
    return edges
