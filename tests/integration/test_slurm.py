"""A run over Slurm: two nodes on this machine, one of which dies; and what is said where there is none."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import mixed_records, result_bytes, write_fasta
from private_net import need_root

HAS_SNAKEMAKE = importlib.util.find_spec("snakemake_executor_plugin_slurm") is not None
ENGINE = ("--engine", "slurm", "--jobs", 4, "--parts", 4)
SNAKEMAKE = (
    *("--slurm-status-command=squeue", "--default-resources", "mem_mb=900", "runtime=5"),
    "--latency-wait=10",
)


@pytest.mark.cluster
@pytest.mark.skipif(not HAS_SNAKEMAKE, reason="Snakemake's plugin for Slurm is not installed (extra slurm)")
@pytest.mark.parametrize("dies", [False, True])
def test_results_are_those_of_this_machine(virnucpro, tmp_path, tiny_bundle, dies):
    """Byte for byte, also when a node dies while it works: Slurm starts its jobs again."""
    need_root("slurmctld", "slurmd", "munged", "squeue")
    fasta = write_fasta(tmp_path / "in.fasta", mixed_records(16))
    arguments = ("predict", fasta, "--model", tiny_bundle, "--unit-rows", 8, "--device", "cpu", "--no-progress")
    assert virnucpro(*arguments, "-o", tmp_path / "here").code == 0
    cluster = ("unshare", "--net", "--mount", sys.executable, Path(__file__).parents[1] / "slurm_cluster.py")
    if dies:
        cluster = (*cluster, "--kill-node-when", tmp_path / "there/run/logs/work-*")
    passed = [f"--engine-arg={argument}" for argument in SNAKEMAKE]
    command = (*cluster, sys.executable, "-m", "virnucpro", *arguments, "-o", tmp_path / "there", *ENGINE, *passed)
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    ended = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env=os.environ | {"PATH": path},
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert ("node d2 was killed" in ended.stderr) == dies
    assert result_bytes(tmp_path / "there", "in") == result_bytes(tmp_path / "here", "in")


@pytest.mark.skipif(HAS_SNAKEMAKE, reason="Snakemake is installed")
def test_without_snakemake_a_line_says_what_to_install(virnucpro, tmp_path):
    """Before anything is read; exit 2."""
    fasta = write_fasta(tmp_path / "in.fasta", mixed_records(2))
    ended = virnucpro("predict", fasta, "-o", tmp_path / "out", *ENGINE)
    assert ended.code == 2
    assert "pip install 'virnucpro[slurm]'" in ended.err
    assert not (tmp_path / "out").exists()


def test_standard_input_is_refused_with_an_engine(virnucpro, tmp_path):
    """It could be read once only."""
    if not HAS_SNAKEMAKE:
        pytest.skip("Snakemake is not installed (extra slurm)")
    ended = virnucpro("predict", "-", "-o", tmp_path / "out", *ENGINE)
    assert (ended.code, "Write stdin to a file first" in ended.err) == (2, True)
