"""Small real models and the real command line, for all tests."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does it, before torch is imported

from tiny_models import write_tiny_bundle

from virnucpro.cli import main

settings.register_profile("any_speed", deadline=None)
settings.load_profile("any_speed")  # no test depends on how fast the machine is

GOLDEN = Path(__file__).parent / "golden"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Tests that a shell starts in the background ignore Ctrl-C, and what they start would do so too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


MISSING = [name for name in ("esm", "Bio", "isal", "zstandard", "pysam") if find_spec(name) is None]


def pytest_report_header() -> str:
    """What is left out where only what computes is installed."""
    return f"left out: tests that import {', '.join(MISSING)}" if MISSING else ""


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Whether a file of tests imports what is not installed here."""
    if not MISSING or collection_path.suffix != ".py":
        return None
    imports = rf"(?m)^(import|from) ({'|'.join(MISSING)})\b"
    return True if re.search(imports, collection_path.read_text(encoding="utf-8")) else None


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    err: str
    out: str


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the published architectures, tiny, with seeded random weights and the published rules."""
    pytest.importorskip("esm")
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def _log_as_before():
    """What a command set up in this process writes to a stream that pytest closes, and hides records from pytest."""
    yield
    _forget_logging()


def _forget_logging() -> None:
    logger = logging.getLogger("virnucpro")
    logger.handlers.clear()
    logger.propagate = True


def call_main(*args: object) -> int:
    """Run the command line in this process, and return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["virnucpro", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


@pytest.fixture
def virnucpro(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run the command line in this process: ``virnucpro("predict", path, "-o", out)``."""

    def run(*args: object) -> Ended:
        capfd.readouterr()
        code = call_main(*args)
        captured = capfd.readouterr()
        return Ended(code, captured.err, captured.out)

    return run


@pytest.fixture(scope="session")
def virnucpro_once() -> Callable[..., Ended]:
    """The same for fixtures that make something for all tests of a file; standard input is empty."""

    def run(*args: object) -> Ended:
        err, out = io.StringIO(), io.StringIO()
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
            code = call_main(*args)
        _forget_logging()
        return Ended(code, err.getvalue(), out.getvalue())

    return run


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own, and how to make it another size."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def resize(size):
        subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)

    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a small disk")
    yield disk, resize
    subprocess.run(["umount", "--lazy", disk], check=True)  # a log of this process may still be open there


def start(*args: object, **options: object) -> subprocess.Popen[str]:
    """Start the command line as a process of its own, in its own group, as a shell would."""
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-m", "virnucpro", *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def wait_for_files(folder: Path, number: int, process: subprocess.Popen[str]) -> None:
    """Wait until a run has written ``number`` files of units into ``folder``."""
    while len(list(folder.glob("unit-*.h5"))) < number:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)


def random_dna(length: int, seed: int) -> str:
    """Random bases, half of them G or C."""
    return "".join(random.Random(seed).choices("ACGT", k=length))


def open_dna(length: int, seed: int) -> str:
    """Random bases whose first frame is open."""
    codons = [a + b + c for a in "ACGT" for b in "ACGT" for c in "ACGT" if a + b + c not in ("TAA", "TAG", "TGA")]
    return "".join(random.Random(seed).choices(codons, k=length // 3 + 1))[:length]


def write_fasta(path: Path, records: dict[str, str]) -> Path:
    """A FASTA file, one line a sequence."""
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in records.items()))
    return path


def mixed_records(num: int, seed: int = 0) -> dict[str, str]:
    """Open and random records of 90 to 2,400 bases."""
    rng = random.Random(seed)
    make = (open_dna, random_dna)
    return {f"seq_{i}": make[i % 2](rng.randint(90, 2400), seed + i) for i in range(num)}


def read_tsv(path: Path) -> list[dict[str, str]]:
    """A table as a list of rows."""
    import gzip

    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    header, *lines = text.splitlines()
    return [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]


RESULTS = ("sequences.tsv", "fragments.tsv.gz", "virus.fna.gz", "uncertain.fna.gz", "summary.json")


def result_bytes(directory: Path, stem: str, *more: str) -> dict[str, bytes]:
    """The result files that must be the same byte for byte whenever a run is."""
    return {suffix: (directory / f"{stem}.{suffix}").read_bytes() for suffix in (*RESULTS, *more)}
