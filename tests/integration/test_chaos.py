"""Processes of one run are killed at random moments, again and again; the run ends as if nothing had happened."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from conftest import mixed_records, read_tsv, result_bytes, start, write_fasta
from tiny_models import write_tiny_bundle

NUM_KILLS = 30
SETTINGS = ("--unit-rows", 8, "--no-progress", "--keep-intermediate", "--keep-embeddings")


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A bundle large enough to take its time, an input of many units, and what an undisturbed run makes of it."""
    folder = tmp_path_factory.mktemp("chaos")
    bundle = write_tiny_bundle(folder / "bundle", num_layers=6, protein_width=256)
    fasta = write_fasta(folder / "in.fasta", mixed_records(400, seed=5))
    process = start("predict", fasta, "-o", folder / "out", "--model", bundle, *SETTINGS)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return bundle, fasta, folder / "out"


def descendants(run: psutil.Process) -> dict[str, list[psutil.Process]]:
    """By what they do: loaders are grandchildren, encoder processes own loaders, the rest merge or begin."""
    found: dict[str, list[psutil.Process]] = {"encoder": [], "loader": [], "merger": []}
    for child in run.children():
        if "resource_tracker" in " ".join(child.cmdline()):
            continue
        below = [one for one in child.children() if "resource_tracker" not in " ".join(one.cmdline())]
        found["loader"] += below
        found["encoder" if below else "merger"].append(child)
    return {kind: processes for kind, processes in found.items() if processes}


def victims(run: psutil.Process, rng: random.Random) -> list[tuple[str, psutil.Process]]:
    """Two to four of the processes that there are now, each kind as likely."""
    try:
        alive = descendants(run)
    except psutil.NoSuchProcess:
        return []
    chosen = []
    for _ in range(rng.randint(2, 4)):
        kinds = sorted(kind for kind, processes in alive.items() if processes)
        if kinds:
            kind = rng.choice(kinds)
            chosen.append((kind, alive[kind].pop(rng.randrange(len(alive[kind])))))
    return chosen


def num_finished(out: Path) -> int:
    """Files that only progress adds to."""
    return len(list((out / "run").glob("scores/unit-*.h5")))


def kill_at_random(process, out: Path, rng: random.Random) -> Counter[str]:
    """Kill two to four processes at a time, each time after some progress; returns how many of each kind."""
    run, kills, before = psutil.Process(process.pid), Counter(), 0
    deadline = time.monotonic() + 1200
    while process.poll() is None and kills.total() < NUM_KILLS:
        assert time.monotonic() < deadline
        time.sleep(0.02)
        if num_finished(out) <= before:
            continue
        before = num_finished(out)
        time.sleep(rng.random() * 0.5)
        for kind, victim in victims(run, rng):
            try:
                victim.kill()
            except psutil.NoSuchProcess:
                continue  # it has just ended
            kills[kind] += 1
    return kills


@pytest.mark.slow
def test_thirty_kills_over_one_run_change_nothing(sample, tmp_path):
    """Encoders, DataLoader workers and merge processes die at random; rows in are rows out, bytes are equal."""
    bundle, fasta, undisturbed = sample
    out = tmp_path / "out"
    process = start(
        *("predict", fasta, "-o", out, "--model", bundle, *SETTINGS),
        *("--parallel", "--threads", 2, "--loader-workers", 1, "--merge-threads", 2),
    )
    kills = kill_at_random(process, out, random.Random(11))
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    rows = read_tsv(out / "in.rows.tsv.gz")
    print(  # noqa: T201 - the summary, for those who ask with -s
        f"chaos: {dict(kills)} killed, {err.count('tried alone')} units tried again alone, {len(rows)} rows out"
    )
    assert kills.total() >= NUM_KILLS
    assert set(kills) == {"encoder", "loader", "merger"}
    assert len(rows) == len(read_tsv(undisturbed / "in.rows.tsv.gz"))
    assert result_bytes(out, "in", "rows.tsv.gz") == result_bytes(undisturbed, "in", "rows.tsv.gz")
    assert not list(out.rglob("*-tmp-*"))
