"""``known_answers.json`` of a bundle: what it answers for a few sequences made by rule.

::

    {"schema": 1, "fingerprint": "...", "seed": 20260101, "p_virus": [0.1234, ...]}

``virnucpro models record --answers FOLDER`` writes it, ``virnucpro doctor`` asks the same on the user's machine. The
answers are those of the table ``.sequences.tsv``, in float32 on the CPU: the whole way from FASTA to probability.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from virnucpro import stored_json
from virnucpro.atomic import write_json
from virnucpro.errors import ModelError, StoreError

FILE = "known_answers.json"
TOLERANCE = 1e-4
"""Largest difference of a probability; the table has four decimals."""

SEED = 20_260_101
SHAPES = ((150, True), (150, False), (300, True), (300, False), (500, True), (500, False), (1200, True), (3000, False))
"""Length (nt) of each sequence, and whether its first frame is open."""

_STOP_CODONS = ("TAA", "TAG", "TGA")

Predict = Callable[[Path, Path], Path]
"""From a FASTA file and an empty folder to the table ``.sequences.tsv``, in float32 on the CPU."""


@dataclass(frozen=True)
class KnownAnswers:
    """What a bundle is known to answer."""

    fingerprint: str  # of the bundle that answered
    p_virus: tuple[float, ...]  # of each sequence
    seed: int = SEED  # of the sequences
    schema: Literal[1] = 1  # of the file


def sequences() -> list[str]:
    """The sequences, the same on every machine and in every release."""
    draw = _numbers(SEED)
    made = []
    for length, is_open in SHAPES:
        codons: list[str] = []
        while 3 * len(codons) < length:
            codon = "".join("ACGT"[number] for number in islice(draw, 3))
            if not (is_open and codon in _STOP_CODONS):
                codons.append(codon)
        made.append("".join(codons)[:length])
    return made


def ask(predict: Predict) -> list[float]:
    """Let a model answer.

    Raises:
        ModelError: it gives no probability for a sequence.
    """
    with tempfile.TemporaryDirectory(prefix="virnucpro-known-answers-") as folder:
        fasta = Path(folder, "known.fasta")
        lines = (f">known_{number}\n{sequence}\n" for number, sequence in enumerate(sequences(), 1))
        fasta.write_text("".join(lines), encoding="ascii")
        with predict(fasta, Path(folder, "results")).open(encoding="ascii", newline="") as table:
            answers = [row["p_virus"] for row in csv.DictReader(table, delimiter="\t")]
    if len(answers) != len(SHAPES) or "NA" in answers:
        raise ModelError(f"the model gives no probability for all of {len(SHAPES)} sequences: {', '.join(answers)}.")
    return [float(answer) for answer in answers]


def write_answers(folder: Path, answers: KnownAnswers) -> None:
    """Write ``known_answers.json`` into a bundle folder."""
    write_json(folder / FILE, asdict(answers))


def read_answers(folder: Path) -> KnownAnswers | None:
    """The known answers of a bundle folder; None if there are none.

    Raises:
        ModelError: they are damaged, or are of other sequences than this program makes.
    """
    path = folder / FILE
    try:
        known = stored_json.read(path, KnownAnswers)
    except FileNotFoundError:
        return None
    except StoreError as error:
        raise ModelError(f"{path}: {error.problem}.") from error
    if known.seed != SEED or len(known.p_virus) != len(SHAPES):
        raise ModelError(f"{path}: is about other sequences than this program makes.")
    return known


def _numbers(seed: int) -> Iterator[int]:
    """Numbers 0 to 3: the two highest bits of a 64-bit linear congruential generator.

    Source: multiplier and increment of Knuth's MMIX.
    """
    state = seed
    while True:
        state = (6_364_136_223_846_793_005 * state + 1_442_695_040_888_963_407) % 2**64
        yield state >> 62
