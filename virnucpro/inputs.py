"""What is asked of inputs before anything is computed: that they are there, can be read, and stay what they are."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from virnucpro.errors import InputError, InputsError, UsageError, VirNucProError
from virnucpro.request import Request
from virnucpro.run_dir import ALL_SUFFIXES, RunDir
from virnucpro.samples import SUMMARY_NAME, Sample
from virnucpro.sequence.fasta import SequenceFile
from virnucpro.sequence.streams import STDIN, open_source

_LEGACY_NAMES = ("prediction_results.txt", "prediction_results_highestscore.csv")


def check_inputs(
    samples: Sequence[Sample],
    output: Path,
    reference: str | None = None,
    more: Iterable[str | os.PathLike[str] | None] = (),
) -> None:
    """Refuse a run whose inputs cannot be read, or would be replaced.

    Args:
        samples: all of the run.
        output: its directory.
        reference: FASTA that the reads of CRAM inputs were aligned to.
        more: other files that are read.

    Raises:
        UsageError: a result would replace an input.
        InputError: an input cannot be read.
    """
    stems = [sample.name for sample in samples]
    sources = [path for sample in samples for path in sample.paths]
    refuse_overwriting([*sources, reference, *more], results_of(output, stems), output)
    look_at(samples, reference)


def look_at(samples: Iterable[Sample], reference: str | None = None) -> None:
    """Read the start of every input; standard input and pipes, which can be read once only, are left alone.

    Raises:
        InputError: what is wrong with the one that cannot be read, or with all of them.
    """
    errors: list[InputError] = []
    for path in [path for sample in samples for path in sample.paths]:
        if path == STDIN or _is_special(path):
            continue
        try:
            open_source(path).close()
            SequenceFile(path, reference=reference).check_start()
        except InputError as error:
            errors.append(error)
    if len(errors) > 1:
        raise InputsError(errors)
    if errors:
        raise errors[0]


def _is_special(path: str) -> bool:
    try:
        kind = Path(path).stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(kind) or stat.S_ISDIR(kind))


def results_of(output: Path, stems: Iterable[str]) -> list[Path]:
    """Every path in a directory that results of these samples may be written to."""
    names = [f"{stem}{suffix}" for stem in (*stems, "all") for suffix in ALL_SUFFIXES]
    names += [f"{stem}.reads{ending}" for stem in stems for ending in (".tsv.gz", ".json")]
    names += [f"{stem}_merged/{name}" for stem in stems for name in _LEGACY_NAMES]
    return [output / name for name in (*names, SUMMARY_NAME)]


def refuse_overwriting(
    inputs: Iterable[str | os.PathLike[str] | None], written: Iterable[Path], run: Path | None = None
) -> None:
    """Refuse to write where an input is, under whatever name: links count as what they lead to.

    Args:
        inputs: files that are read; None and ``-`` are none.
        written: paths that would be written.
        run: output directory of a run, in whose ``run/`` no input may lie.

    Raises:
        UsageError: a result would replace an input.
    """
    places = {_identity(path): path for path in written}
    for name in inputs:
        if name is None or os.fspath(name) == STDIN or (here := _identity(Path(name))) is None:
            continue
        if (target := places.get(here)) is not None:
            raise UsageError(
                f"{name} is an input, and the result {target} would replace it. Name another output with -o, or "
                "another sample with --name."
            )
        if run is not None and Path(os.path.realpath(name)).is_relative_to(os.path.realpath(RunDir(run).work)):
            raise UsageError(f"{name} is an input, and {RunDir(run).work} is the run's own. Name another -o.")


def read_by_run(run: Path) -> list[str]:
    """Inputs of a finished run, as far as it says."""
    try:
        requests = [Request.read(RunDir(run).request, as_named=named)[0] for named in (False, True)]
        return [source for request in requests for source in request.sources]  # as named, too: both may have moved
    except (VirNucProError, OSError):
        return []  # damaged, or of no run: whoever reads it will say so


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and number of a file; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
