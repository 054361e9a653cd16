"""The workflows of ``workflows/`` run: what they start is started here, and what checks them where it is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import mixed_records, read_tsv, write_fasta

WORKFLOWS = Path(__file__).parents[2] / "workflows"
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def run(command, folder, **variables):
    """Run a command as a workflow would, with the program on its path."""
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": PATH, **variables}, capture_output=True, text=True, check=False
    )


def needs(program):
    """Skip where a runner or linter is not installed."""
    return pytest.mark.skipif(shutil.which(program, path=PATH) is None, reason=f"{program} is not installed")


@pytest.fixture
def samples(tmp_path):
    """Two samples: contigs, and a pair of reads."""
    write_fasta(tmp_path / "contigs.fasta", mixed_records(3))
    reads = {f"read{i}": sequence[:150] for i, sequence in enumerate(mixed_records(4, seed=9).values())}
    write_fasta(tmp_path / "r_1.fasta", {f"{name}/1": sequence for name, sequence in reads.items()})
    write_fasta(tmp_path / "r_2.fasta", {f"{name}/2": sequence for name, sequence in reads.items()})
    return tmp_path


def test_the_slurm_array_runs_the_sample_of_its_number(samples):
    """A pair as a pair; the name of the sample begins the names of its files."""
    sheet = samples / "samples.tsv"
    sheet.write_text("sample\tpath\tpath2\ngut\tcontigs.fasta\nlung\tr_1.fasta\tr_2.fasta\n")
    script = WORKFLOWS / "slurm" / "predict_array.sh"
    ended = run(["bash", script, sheet, "out"], samples, SLURM_ARRAY_TASK_ID="2", SLURM_CPUS_PER_TASK="1")
    assert ended.returncode == 0, ended.stderr
    assert len(read_tsv(samples / "out" / "lung" / "lung.sequences.tsv")) == 8


@pytest.mark.parametrize(("reads", "rows"), [("contigs.fasta", 3), ("r_1.fasta r_2.fasta", 8), ("empty.fasta", 0)])
def test_the_script_of_the_nextflow_module_gives_its_outputs(samples, reads, rows):
    """Nextflow itself cannot be installed here: its script block is filled in as Groovy would."""
    (samples / "empty.fasta").write_text("")
    text = (WORKFLOWS / "nextflow" / "virnucpro" / "predict" / "main.nf").read_text()
    script = text.partition("    script:")[2].split('"""')[1].replace("\\$", "$")
    files = reads.split()
    filled = {
        "${input}": f"-1 {files[0]} -2 {files[1]}" if len(files) == 2 else files[0],
        "${prefix}": "gut", "${task.cpus}": "1", "${args}": "--no-report" if rows == 8 else "",
        "${task.process}": "PREDICT",
    }  # fmt: skip
    for name, value in filled.items():
        script = script.replace(name, value)
    ended = run(["bash", "-euo", "pipefail", "-c", script], samples)
    assert ended.returncode == 0, ended.stderr
    assert len(read_tsv(samples / "gut.sequences.tsv")) == rows
    outputs = [line for line in text.splitlines() if ", emit: " in line]
    assert len(outputs) == 6
    for line in outputs:
        name = re.search(r'path[ (]"(.+?)"', line)[1].replace("${prefix}", "gut")
        assert list(samples.glob(name)) or ("optional: true" in line and rows == 8), line
    assert "virnucpro: 0." in (samples / "versions.yml").read_text()


@pytest.mark.slow
@needs("snakemake")
def test_the_snakemake_workflow_runs_all_samples(samples):
    """Through its wrapper; without the MultiQC page, which takes a gigabyte to install."""
    (samples / "samples.csv").write_text("sample,path,path2\ngut,contigs.fasta,\nlung,r_1.fasta,r_2.fasta\n")
    command = ["snakemake", "--snakefile", WORKFLOWS / "snakemake" / "Snakefile", "--cores", "2"]
    ended = run([*command, "--config", "multiqc=false", "outdir=out"], samples)
    assert ended.returncode == 0, ended.stderr
    for name, rows in (("gut", 3), ("lung", 8)):
        assert len(read_tsv(samples / "out" / name / f"{name}.sequences.tsv")) == rows


@needs("miniwdl")
def test_the_wdl_is_valid():
    """Task and workflow, strictly."""
    ended = run(["miniwdl", "check", "--strict", WORKFLOWS / "wdl" / "virnucpro.wdl"], WORKFLOWS)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@needs("planemo")
def test_the_galaxy_tool_passes_the_linter():
    """Also its test's input is there."""
    ended = run(["planemo", "lint", "virnucpro_predict.xml"], WORKFLOWS / "galaxy")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (WORKFLOWS / "galaxy" / "test-data" / "metagenome.fasta").is_file()
