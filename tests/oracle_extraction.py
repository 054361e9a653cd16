"""The slow and obvious extraction: the published rules in plain Python, one letter at a time."""

from __future__ import annotations

BASES = "TCAG"
AMINO_ACIDS = "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
CODONS = dict(zip([a + b + c for a in BASES for b in BASES for c in BASES], AMINO_ACIDS, strict=True))
COMPLEMENT = {"A": "T", "C": "G", "G": "C", "T": "A"}


def cut_windows(length, fragment_length):
    """Start and stop of each window, from the gap list as published."""
    k = -(-length // fragment_length)
    surplus = k * fragment_length - length
    lower = surplus // k
    upper = lower + 1
    u = surplus - lower * (k - 1)
    gaps = [upper] * u + [lower] * max(0, k - 1 - u) + [0]
    bounds = []
    taken = 0
    for i in range(k):
        start = i * fragment_length - taken
        bounds.append((start, min(start + fragment_length, length)))
        taken += gaps[i]
    return bounds


def reverse_complement(strand):
    return "".join(COMPLEMENT.get(letter, letter) for letter in reversed(strand))


def keep_frames(fragment):
    """(frame, nucleotide, protein, start, stop) of each kept frame; start and stop on the fragment."""
    forward = fragment.upper().replace("U", "T")
    kept = []
    for sign, strand in ((1, forward), (-1, reverse_complement(forward))):
        for f in range(3):
            codons = [strand[i : i + 3] for i in range(f, len(strand) - 2, 3)]
            protein = "".join(CODONS.get(codon, "") for codon in codons)
            if not protein or "*" in protein:
                continue
            nucleotide = strand[f : f + 3 * len(protein) + 1]
            start, stop = f, f + len(nucleotide)
            if sign < 0:
                start, stop = len(strand) - stop, len(strand) - start
            kept.append((sign * (f + 1), nucleotide, protein, start, stop))
    return kept


def count_clear(bases):
    return sum(map(bases.count, "ACGT"))


def extract(records, fragment_length, score_frameless=False, min_length=1):
    """Fragments and rows of ``(name, bases)`` records.

    Returns:
        fragments: (sequence, index, start, stop, number of rows, masked, length) each; rows: (sequence, index, frame,
        start, stop, source, nucleotide, protein) each.
    """
    first_rows = {}
    fragments, rows = [], []
    for number, (_, bases) in enumerate(records):
        content = bases.upper().replace("U", "T")
        if not bases:
            continue
        windows = cut_windows(len(bases), fragment_length)
        least = min(min_length, (fragment_length + 1) // 2)
        has_few = [count_clear(content[start:stop]) < least for start, stop in windows]
        is_unfit = all(has_few) or count_clear(content) < min_length
        for index, (start, stop) in enumerate(windows):
            is_masked = is_unfit or has_few[index]
            kept = [] if is_masked else keep_frames(bases[start:stop])
            if not kept and score_frameless and not is_masked:
                kept = [(0, content[start:stop], "", 0, stop - start)]
            fragments.append((number, index, start, stop, len(kept), int(is_masked), stop - start))
            for frame, nt, aa, a, b in kept:
                source = first_rows.setdefault(nt, len(rows))
                rows.append((number, index, frame, start + a, start + b, source, nt, aa))
    return fragments, rows
