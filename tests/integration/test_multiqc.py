"""What MultiQC is given, and that it shows it."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from made_tables import line, write_run

from virnucpro.results.finished import open_run
from virnucpro.results.pages import write_multiqc


def run_of(root, stem, num_virus):
    """MultiQC's files of a finished run with so many virus calls among ten."""
    lines = [line(f"s{place}", 1000, 0.95 if place < num_virus else 0.1) for place in range(10)]
    return written(write_run(root, lines, stem=stem), stem)


def written(root, stem):
    return write_multiqc(open_run(root, stem))


def test_each_input_has_bars_and_columns(tmp_path):
    """Two files, since MultiQC takes one plot from a file; the same run gives the same bytes."""
    calls, columns, versions = run_of(tmp_path / "run", "gut", 4)
    assert versions.read_text().splitlines()[-1] == 'VirNucPro: "unknown"'
    assert (calls.name, columns.name) == ("gut.virnucpro_mqc.json", "gut.virnucpro_stats_mqc.json")
    expected = {"virus": 4, "uncertain": 0, "not_virus": 6, "no_call": 0}
    assert json.loads(calls.read_text())["data"] == {"gut": expected}
    expected = {
        "num_sequences": 10,
        "num_proviruses": 0,
        "percent_viral_bases": 40.0,
        "percent_virus": 40.0,
        "bases_virus": 4000,
    }
    assert json.loads(columns.read_text())["data"] == {"gut": expected}
    first = calls.read_bytes() + columns.read_bytes()
    written(tmp_path / "run", "gut")
    assert calls.read_bytes() + columns.read_bytes() == first


def test_an_empty_input_is_zero_percent(tmp_path):
    """Nothing is divided by no sequences."""
    root = write_run(tmp_path / "run", [])
    _, columns, _ = written(root, "in")
    values = json.loads(columns.read_text())["data"]["in"]
    assert (values["percent_virus"], values["percent_viral_bases"]) == (0, 0)


def test_proviruses_and_their_bases_are_counted(tmp_path):
    """A host with a viral part is no virus, its part is viral; the version is that of the run."""
    hosts = [line("host", 60_000, [0.02] * 40 + [0.99] * 40 + [0.02] * 40), line("virus", 20_000, 0.99)]
    root = write_run(tmp_path / "run", hosts, record={"version": "1.2.3"})
    _, columns, versions = written(root, "in")
    values = json.loads(columns.read_text())["data"]["in"]
    (part,) = open_run(root, "in").results.proviruses
    assert values["num_proviruses"] == 1
    assert values["percent_viral_bases"] == 100 * (20_000 + part["stop"] - part["start"]) / 80_000
    assert versions.read_text().splitlines()[-1] == 'VirNucPro: "1.2.3"'


@pytest.mark.skipif(shutil.which("multiqc") is None, reason="needs multiqc")
def test_multiqc_shows_all_inputs_side_by_side(tmp_path):
    """Two runs become two samples, named as they were given, in the general statistics and in the bars."""
    for stem, num_virus in (("gut.day_1_R1", 4), ("soil", 1)):
        run_of(tmp_path / stem.partition(".")[0], stem, num_virus)
    command = ["multiqc", tmp_path, "--strict", "--outdir", tmp_path / "out"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr
    folder = tmp_path / "out" / "multiqc_data"
    head, *statistics = (folder / "multiqc_general_stats.txt").read_text().splitlines()
    columns = [name.rpartition("-")[2] for name in head.split("\t")]
    found = [dict(zip(columns, line.split("\t"), strict=True)) for line in statistics]
    assert found == [statistics_of("gut.day_1_R1", 4), statistics_of("soil", 1)]
    bars = (folder / "multiqc_virnucpro_calls_plot.txt").read_text().splitlines()
    assert [[float(cell) for cell in line.split("\t")[1:]] for line in bars[1:]] == [[4, 0, 6, 0], [1, 0, 9, 0]]
    assert "VirNucPro" in (tmp_path / "out" / "multiqc_report.html").read_text()
    assert "VirNucPro" in (folder / "multiqc_software_versions.txt").read_text()


def statistics_of(stem, num_virus):
    """The columns as MultiQC writes them."""
    share = f"{10.0 * num_virus}"
    return {
        "Sample": stem,
        "num_sequences": "10",
        "num_proviruses": "0",
        "percent_viral_bases": share,
        "percent_virus": share,
        "bases_virus": str(1000 * num_virus),
    }
