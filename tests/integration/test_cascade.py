"""Two models, one set of results: every answer is that of one of them, and nothing is lost between the two."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import mixed_records, open_dna, random_dna, read_tsv, result_bytes, start, wait_for_files, write_fasta
from studies.__main__ import main as study
from studies.cascade import Answered, find_limits
from test_poison import POISON
from test_training import write_data
from tiny_models import small_lite, write_tiny_bundle

import virnucpro
from virnucpro import store
from virnucpro.bundles import Bundle, load_bundle
from virnucpro.bundles.rules import DEFAULT_LIMITS, Limits
from virnucpro.heads import load_head, save_head
from virnucpro.results.calls import Call
from virnucpro.run.predict import Results
from virnucpro.training.dev import DevSequences

STEMS = ("a", "b")
TABLES = ("sequences.tsv", "fragments.tsv.gz", "rows.tsv.gz")
FILES = (*TABLES[1:], "virus.fna.gz", "uncertain.fna.gz", "regions.tsv", "regions.gff3", "regions.bed",
         "windows.bedgraph.gz", "proviruses.fna.gz")  # fmt: skip
UNIT_ROWS = 40
SMALL_UNITS = ("--unit-rows", UNIT_ROWS, "--threads", 1, "--no-report", "-q")


def first_model() -> Bundle:
    """The model that looks first here."""
    return load_bundle(str(small_lite()))


def known_cascade(**changed: object) -> dict[str, object]:
    """What a bundle says of that model."""
    known = {"first": str(small_lite()), "first_fingerprint": first_model().fingerprint, "low": 0.3, "high": 0.6}
    return known | {"agreement": 0.99, "share": 0.5} | changed


def write_other(folder: Path, **settings: object) -> Path:
    """A model beside lite: other fragments, other rules, other answers, and as fast."""
    lite = first_model()
    folder.mkdir(parents=True)
    for role in ("nucleotide", "protein", "head"):
        shutil.copyfile(lite.folder / f"{role}.safetensors", folder / f"{role}.safetensors")
    head = load_head(lite.head)
    head.output_layer.weight.data *= 0.8
    save_head(folder / "head.safetensors", head, {})
    ours = yaml.safe_load((lite.folder / "bundle.yaml").read_text())
    del ours["nearest"], ours["evidence"]  # it has no table of proteins
    ours |= {"name": "other", "fragment_length": 300, "min_length": 150, "frameless": "skip", "rows": "max"}
    ours["presets"] = {"sensitive": [0.3, 0.5], "balanced": [0.4, 0.6], "strict": [0.4, 0.8]}
    (folder / "bundle.yaml").write_text(yaml.safe_dump(ours | {"cascade": known_cascade()} | settings))
    return folder


def records() -> dict[str, str]:
    """What either model answers in its own way."""
    odd = {
        "empty": "",
        "tiny": "ACGT" * 10,
        "short_for_other": open_dna(120, seed=1),
        "ambiguous": "N" * 400 + "ACGT" * 10,
        "repeats": "ACCGTA" * 150,
        "long": open_dna(6_000, seed=2) + random_dna(6_000, seed=3),
        "lower": open_dna(700, seed=4).lower(),
    }
    named = mixed_records(60, seed=7)
    names = list(named)
    return {
        **{name: named[name] for name in names[:25]},
        **odd,
        "twin_of_0": named[names[0]],
        **{name: named[name] for name in names[25:]},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two inputs, a model, and what both models answer alone."""
    folder = tmp_path_factory.mktemp("cascade")
    whole = records()
    names = list(whole)
    write_fasta(folder / "a.fasta", {name: whole[name] for name in names[:30]})
    write_fasta(folder / "b.fasta", {name: whole[name] for name in names[30:]})
    write_other(folder / "other")
    run(folder, "alone_first", "lite", fragment_length=300)
    run(folder, "alone_full", "other")
    return folder


def run(folder: Path, out: str, model: str = "other", unit_rows: int = UNIT_ROWS, **science: object) -> Results:
    """Predict both inputs, into ``folder/out``."""
    path = small_lite() if model == "lite" else folder / model
    settings = {"science.model": str(path), "layout.unit_rows": unit_rows}
    settings |= {"runtime.threads": 1, "runtime.device": "cpu"} | {f"science.{k}": v for k, v in science.items()}
    options = virnucpro.Options(keep_intermediate=True, with_report=False, is_length_meant=True)
    inputs = [folder / f"{stem}.fasta" for stem in STEMS]
    return virnucpro.predict(inputs, folder / out, virnucpro.make_settings(None, settings), options=options)


@pytest.fixture(scope="module")
def limits(folder: Path) -> Limits:
    """Such that a good part of the sequences goes each way."""
    p_virus = [float(line["p_virus"]) for line in lines(folder, "alone_first") if line["p_virus"] != "NA"]
    low, high = np.quantile(p_virus, [0.3, 0.75]).tolist()
    return Limits(round(low, 4) + 5e-5, round(high, 4) + 5e-5)  # between two numbers of four decimals, as in tables


@pytest.fixture(scope="module")
def out(folder: Path, limits: Limits) -> Path:
    """A cascade with these limits."""
    run(folder, "out", cascade=True, cascade_low=limits.low, cascade_high=limits.high)
    return folder / "out"


def lines(folder: Path, out: str, table: str = "sequences.tsv") -> list[dict[str, str]]:
    """A table of both inputs."""
    return [line for stem in STEMS for line in read_tsv(folder / out / f"{stem}.{table}")]


def of(line: dict[str, str], *without: str) -> dict[str, str]:
    return {name: value for name, value in line.items() if name not in without}


def fasta_names(path: Path) -> list[str]:
    return [line[1:] for line in gzip.decompress(path.read_bytes()).decode().splitlines() if line.startswith(">")]


@pytest.mark.usefixtures("out")
def test_every_answer_is_that_of_the_model_that_decided(folder):
    """All columns but fdr, which is of the whole list; lines in input order, each sequence once."""
    alone = {name: {line["name"]: line for line in lines(folder, f"alone_{name}")} for name in ("first", "full")}
    found = lines(folder, "out")
    assert [line["name"] for line in found] == list(records())
    assert {line["model"] for line in found} == {"lite", "other"}
    for line in found:
        whose = alone["first" if line["model"] == "lite" else "full"][line["name"]]
        assert of(line, "fdr", "model") == of(whose, "fdr")


@pytest.mark.usefixtures("out")
def test_the_first_decides_what_it_is_sure_of_and_nothing_else(folder, limits):
    """By its probability; what either model finds odd (too short, repetitive) goes on, and keeps the other's status."""
    full = {line["name"]: line for line in lines(folder, "alone_full")}
    first = {line["name"]: line for line in lines(folder, "alone_first")}
    for line in lines(folder, "out"):
        mine, other = first[line["name"]], full[line["name"]]
        is_sure = mine["p_virus"] != "NA" and not limits.low <= float(mine["p_virus"]) <= limits.high
        is_sure &= mine["status"] == "ok" and other["status"] in ("ok", "no_open_frame")
        assert line["model"] == ("lite" if is_sure else "other"), line["name"]
        if other["status"] not in ("ok", "no_open_frame"):
            assert line["status"] == other["status"]
    odd = {line["name"]: line["model"] for line in lines(folder, "out")}
    assert [odd[name] for name in ("empty", "tiny", "short_for_other", "ambiguous", "repeats")] == ["other"] * 5


@pytest.mark.usefixtures("out")
@pytest.mark.parametrize("table", TABLES[1:])
def test_fragments_and_rows_are_of_that_model_too(folder, table):
    """Line by line, in the order of the sequences."""
    models = {line["name"]: line["model"] for line in lines(folder, "out")}
    expected = {name: lines(folder, f"alone_{name}", table) for name in ("first", "full")}

    def of_sequences(kept, model):
        return [line for line in kept if models[line["name"].split("_chunk_")[0]] == model]

    found = lines(folder, "out", table)
    assert of_sequences(found, "lite") == of_sequences(expected["first"], "lite")
    assert of_sequences(found, "other") == of_sequences(expected["full"], "other")
    order = [line["name"].split("_chunk_")[0] for line in found]
    places = {name: place for place, name in enumerate(models)}
    assert [places[name] for name in order] == sorted(places[name] for name in order)


def test_sequences_and_regions_are_written_for_the_joined_calls(folder, out):
    """The bases as they were read, of long sequences too, and a region for each that is called virus."""
    whole = records()
    for stem in STEMS:
        table = read_tsv(out / f"{stem}.sequences.tsv")
        for call in ("virus", "uncertain"):
            path = out / f"{stem}.{call}.fna.gz"
            named = [line["name"] for line in table if line["call"] == call]
            assert fasta_names(path) == named
            text = gzip.decompress(path.read_bytes()).decode()
            assert text == "".join(f">{name}\n{whole[name]}\n" for name in named)
        models = {line["name"]: line["model"] for line in table}
        regions = read_tsv(out / f"{stem}.regions.tsv")
        for model, alone in (("lite", "alone_first"), ("other", "alone_full")):
            expected = [line for line in read_tsv(folder / alone / f"{stem}.regions.tsv")
                        if models[line["sequence"]] == model]  # fmt: skip
            assert [line for line in regions if models[line["sequence"]] == model] == expected


def test_the_rate_of_false_discovery_is_of_the_joined_list(out):
    """The running mean of 1 - p_virus over the sequences of an input, whoever gave them."""
    for stem in STEMS:
        known = [line for line in read_tsv(out / f"{stem}.sequences.tsv") if line["p_virus"] != "NA"]
        p_virus = np.array([float(line["p_virus"]) for line in known])
        for line in known:
            own = float(line["p_virus"])
            # four digits are printed: equal ones may differ
            above, level = p_virus[p_virus > own], p_virus[p_virus >= own]
            least, most = (float(np.mean(1 - some)) for some in (np.append(above, own), level))
            assert least - 2e-4 <= float(line["fdr"]) <= most + 2e-4


def test_counts_say_who_decided_how_much(out):
    """In the summary, the run record and the tables, and they add up."""
    record = json.loads((out / "all.run.json").read_text())
    total = dict.fromkeys(("lite", "other"), 0)
    for stem in STEMS:
        summary = json.loads((out / f"{stem}.summary.json").read_text())
        table = read_tsv(out / f"{stem}.sequences.tsv")
        cascade = summary["cascade"]
        for model in total:
            mine = [line for line in table if line["model"] == model]
            assert cascade["sequences_by_model"][model] == len(mine)
            assert cascade["bases_by_model"][model] == sum(int(line["length"]) for line in mine)
            total[model] += len(mine)
        assert sum(cascade["sequences_by_model"].values()) == summary["num_sequences"] == len(table)
        assert sum(cascade["bases_by_model"].values()) == summary["num_bases"]
        assert (cascade["first"], cascade["first_fingerprint"]) == ("lite", first_model().fingerprint)
    assert record["counts"]["sequences_by_model"] == total
    assert record["cascade"]["model"]["fingerprint"] == first_model().fingerprint
    assert record["cascade"]["num_rows_failed"] == 0


def test_rows_of_twins_are_computed_once(out):
    """Each model computes a sequence that is there twice one time, and the one asked for what the first left."""
    record = json.loads((out / "all.run.json").read_text())
    first, asked = record["cascade"]["num_rows_computed"], record["counts"]["num_rows_computed"]
    assert 0 < asked < first < record["counts"]["num_rows"]


def test_limits_of_0_and_1_give_the_results_of_the_full_model(folder):
    """Byte for byte, but for the column and the counts that say so."""
    run(folder, "all", cascade=True, cascade_low=0.0, cascade_high=1.0)
    for stem in STEMS:
        for name in FILES:
            path = f"{stem}.{name}"
            assert (folder / "all" / path).read_bytes() == (folder / "alone_full" / path).read_bytes(), path
        found = (folder / "all" / f"{stem}.sequences.tsv").read_text()
        expected = (folder / "alone_full" / f"{stem}.sequences.tsv").read_text()
        assert [line.rpartition("\t")[0] for line in found.splitlines()] == expected.splitlines()
        now, then = (json.loads((folder / name / f"{stem}.summary.json").read_text()) for name in ("all", "alone_full"))
        assert now.pop("cascade")["sequences_by_model"]["lite"] == 0
        assert now == then


def test_narrow_limits_give_the_answers_of_the_first(folder):
    """But for what one of the two finds odd."""
    run(folder, "none", cascade=True, cascade_low=0.5, cascade_high=0.5)
    alone = {line["name"]: line for line in lines(folder, "alone_first")}
    mine = [line for line in lines(folder, "none") if line["model"] == "lite"]
    assert len(mine) >= len(records()) - 6
    assert all(of(line, "fdr", "model") == of(alone[line["name"]], "fdr") for line in mine)


def test_narrow_limits_with_fit_sequences_alone_give_the_results_of_the_first(folder, virnucpro, tmp_path):
    """Byte for byte, regions and sequences included; the other model has nothing to do."""
    fasta = write_fasta(tmp_path / "in.fasta", {f"s{i}": open_dna(400 + 37 * i, seed=i) for i in range(12)})
    cascade = ("--cascade", "--cascade-limits", "0.5,0.5", "-m", folder / "other")
    assert virnucpro("predict", fasta, "-o", tmp_path / "both", *cascade, *SMALL_UNITS).code == 0
    alone = ("-m", small_lite(), "--expected-length", 300)
    assert virnucpro("predict", fasta, "-o", tmp_path / "first", *alone, *SMALL_UNITS).code == 0
    for name in ("fragments.tsv.gz", "virus.fna.gz", "regions.tsv", "windows.bedgraph.gz", "proviruses.fna.gz"):
        assert (tmp_path / "both" / f"in.{name}").read_bytes() == (tmp_path / "first" / f"in.{name}").read_bytes()
    record = json.loads((tmp_path / "both/in.run.json").read_text())
    assert record["counts"]["num_rows_computed"] == 0


@pytest.mark.parametrize("unit_rows", [pytest.param(1, marks=pytest.mark.slow), 15, 10_000])
def test_results_do_not_depend_on_the_cut_into_units(folder, out, limits, unit_rows):
    """A sequence may lie in many units of one model and in few of the other."""
    name = f"cut_{unit_rows}"
    run(folder, name, unit_rows=unit_rows, cascade=True, cascade_low=limits.low, cascade_high=limits.high)
    for stem in STEMS:
        files = (*FILES, "sequences.tsv", "summary.json")
        assert {f: (folder / name / f"{stem}.{f}").read_bytes() for f in files} == {
            f: (out / f"{stem}.{f}").read_bytes() for f in files
        }


def asked(folder, out, limits, *more):
    """The command of the cascade."""
    given = f"{limits.low!r},{limits.high!r}"
    inputs = [folder / f"{stem}.fasta" for stem in STEMS]
    options = ("-m", folder / "other", "--cascade", "--cascade-limits", given, "--keep-intermediate", *SMALL_UNITS)
    return ("predict", *inputs, "-o", out, *options, *more)


def all_bytes(directory):
    return {stem: result_bytes(directory, stem, "rows.tsv.gz", "regions.tsv") for stem in STEMS}


@pytest.mark.parametrize(
    "place",
    [
        "run/scores",
        pytest.param("run/first/scores", marks=pytest.mark.slow),
        pytest.param("run/units", marks=pytest.mark.slow),
    ],
)
def test_kill_9_then_the_same_command_gives_the_same_bytes(virnucpro, folder, out, limits, tmp_path, place):
    """Whichever model is at work; what is done is kept, decisions included."""
    arguments = asked(folder, tmp_path / "out", limits, "--keep-embeddings")
    process = start(*arguments)
    wait_for_files(tmp_path / "out" / place, 2, process)
    process.kill()
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("run/**/scores/*.h5")}
    ended = virnucpro(*arguments)
    assert ended.code == 0, ended.err
    assert all_bytes(tmp_path / "out") == all_bytes(out)
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    assert not [*(tmp_path / "out").rglob("*-tmp-*"), *(tmp_path / "out").rglob("rows.npy")]


def test_a_finished_cascade_computes_nothing_again_and_fresh_does(folder, out, limits, virnucpro, tmp_path):
    """As any other run."""
    there = copied(out, tmp_path)
    scores = there / "run/first/scores/unit-00000.h5"
    then = scores.stat().st_mtime_ns
    assert virnucpro(*asked(folder, there, limits)).code == 0
    assert scores.stat().st_mtime_ns == then
    assert virnucpro(*asked(folder, there, limits, "--fresh")).code == 0
    assert scores.stat().st_mtime_ns > then
    assert all_bytes(there) == all_bytes(out)


def copied(out, tmp_path):
    return Path(shutil.copytree(out, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ((), "science.cascade_first"),
        (("--cascade",), "science.cascade_low"),
        (("--cascade", "--cascade-limits", "0.1,0.2"), "science.cascade_high"),
    ],
)
def test_other_limits_or_no_cascade_are_other_settings(folder, out, virnucpro, tmp_path, more, says):
    """Exit 2 with what differs, and nothing is touched."""
    there = copied(out, tmp_path)
    inputs = [folder / f"{stem}.fasta" for stem in STEMS]
    ended = virnucpro("predict", *inputs, "-o", there, "-m", folder / "other", "--unit-rows", UNIT_ROWS, *more)
    assert (ended.code, says in ended.err) == (2, True), ended.err
    assert all_bytes(there) == all_bytes(out)


def test_a_run_of_one_model_does_not_become_a_cascade(folder, virnucpro, tmp_path):
    """Refused in the same way."""
    there = copied(folder / "alone_full", tmp_path)
    ended = virnucpro(*asked(folder, there, Limits(0.1, 0.9)))
    assert (ended.code, "science.cascade_first" in ended.err) == (2, True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--cascade",), "that is the model asked for"),
        (("--cascade-limits", "0.1,0.9"), "ask for one (--cascade)"),
        (("--cascade", "--cascade-limits", "0.9,0.1"), "two ascending probabilities"),
        (("--cascade", "--cascade-limits", "0.9"), "two ascending probabilities"),
        (("--cascade", "--cascade-limits", "nan,0.9"), "two ascending probabilities"),
        (("--cascade", "--legacy-output"), "one model"),
    ],
)
def test_what_makes_no_sense_together_is_refused_in_one_line(folder, virnucpro, tmp_path, options, says):
    """Exit 2 before anything is written."""
    ended = virnucpro("predict", folder / "a.fasta", "-o", tmp_path / "out", *options)
    assert (ended.code, says in ended.err) == (2, True), ended.err
    assert not (tmp_path / "out").exists()


def test_call_makes_the_same_bytes_and_follows_the_presets_of_each_model(folder, out, virnucpro, tmp_path):
    """Who decided stays as it is; thresholds are those of the model that did."""
    assert virnucpro("call", out, "-o", tmp_path / "same", "--keep-intermediate", "-q").code == 0
    assert all_bytes(tmp_path / "same") == all_bytes(out)
    assert virnucpro("call", out, "-o", tmp_path / "strict", "--preset", "strict", "-q").code == 0
    assert virnucpro("call", folder / "alone_first", "-o", tmp_path / "first", "--preset", "strict", "-q").code == 0
    assert virnucpro("call", folder / "alone_full", "-o", tmp_path / "full", "--preset", "strict", "-q").code == 0
    alone = {name: {line["name"]: line["call"] for line in lines(tmp_path, name)} for name in ("first", "full")}
    for line, then in zip(lines(tmp_path, "strict"), lines(folder, "out"), strict=True):
        assert line["model"] == then["model"]
        assert line["call"] == alone["first" if line["model"] == "lite" else "full"][line["name"]]
    assert virnucpro("call", out, "-o", tmp_path / "shifted", "--prevalence", 0.1, "--threshold", 0.4, "-q").code == 0
    assert [line["model"] for line in lines(tmp_path, "shifted")] == [line["model"] for line in lines(folder, "out")]
    ended = virnucpro("call", out, "-o", tmp_path / "legacy", "--legacy-output", "-q")
    assert (ended.code, "one model" in ended.err) == (2, True)


def test_every_format_has_the_column(out, virnucpro, tmp_path):
    """JSON lines and Parquet too; the schema says when it is there."""
    assert virnucpro("call", out, "-o", tmp_path / "jsonl", "--format", "jsonl", "-q").code == 0
    found = [json.loads(line)["model"] for line in (tmp_path / "jsonl/a.sequences.jsonl").read_text().splitlines()]
    assert found == [line["model"] for line in read_tsv(out / "a.sequences.tsv")]
    (table,) = json.loads(virnucpro("schema", "--table", "sequences").out)["tables"].values()
    assert [column["name"] for column in table["columns"] if column["written"] == "with --cascade"] == ["model"]
    pytest.importorskip("pyarrow")
    assert virnucpro("call", out, "-o", tmp_path / "parquet", "--format", "parquet", "-q").code == 0
    table = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "parquet/a.sequences.parquet")
    assert table.column("model").to_pylist() == found


def test_the_report_tells_who_decided(out, virnucpro, tmp_path):
    """Counts, settings, and the sentence for a Methods section."""
    there = copied(out, tmp_path)
    assert virnucpro("report", there, "-q").code == 0
    page = (there / "a.report.html").read_text()
    counts = json.loads((out / "a.summary.json").read_text())["cascade"]["sequences_by_model"]
    assert f"{counts['other']:,} decided by other + {counts['lite']:,} decided by lite" in page
    assert "model other after lite" in page
    assert "looked at all sequences first" in page


def flip(path, kind, name):
    """Change one byte of a stored array."""
    array = store.read_arrays(path, kind, name)[name].reshape(-1).view(np.uint8)
    content = bytearray(path.read_bytes())
    content[bytes(content).index(array.tobytes()) + len(array) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("place", "kind", "name"),
    [
        ("run/first/scores/unit-00002.h5", "scores", "scores"),
        ("run/selected/unit-00001.h5", "selection", "rows"),
        ("run/scores/unit-00001.h5", "scores", "scores"),
        ("run/units/unit-00001.h5", "unit", "sequences"),
    ],
)
def test_damage_in_either_run_is_named_and_repaired(out, virnucpro, tmp_path, place, kind, name):
    """A finished cascade is sound; a flipped bit is found, and repair gives the same bytes."""
    there = copied(out, tmp_path)
    assert virnucpro("verify", there, "-q").code == 0
    flip(there / place, kind, name)
    ended = virnucpro("verify", there, "-q")
    assert (ended.code, place in ended.out) == (1, True), ended.out
    assert virnucpro("verify", there, "--repair", "-q").code == 0
    assert all_bytes(there) == all_bytes(out)
    assert virnucpro("verify", there, "-q").code == 0


@pytest.mark.parametrize("command", ["call", "verify", "merge"])
def test_a_cascade_that_was_stopped_early_is_refused_in_one_line(out, virnucpro, tmp_path, command):
    """The same predict command finishes it."""
    there = copied(out, tmp_path)
    (there / "run/index.json").unlink()
    ended = virnucpro(command, there, "-q")
    assert (ended.code, len(ended.err.strip().splitlines())) == (2, 1), ended.err
    assert "predict command again" in ended.err


def test_merge_looks_after_both_runs(folder, limits, virnucpro, tmp_path):
    """Kept embeddings of either model are merged."""
    assert virnucpro(*asked(folder, tmp_path / "out", limits, "--keep-embeddings")).code == 0
    merged = sorted((tmp_path / "out").glob("run/**/merged/*.h5"))
    sizes = [path.read_bytes() for path in merged]
    assert {path.relative_to(tmp_path / "out").parts[1] for path in merged} == {"first", "merged"}
    for path in merged:
        path.unlink()
    ended = virnucpro("merge", tmp_path / "out", "--merge-threads", 1, "-q")
    assert f"{len(merged)} merged now" in ended.out
    assert [path.read_bytes() for path in merged] == sizes


def test_a_cascade_is_repeated_with_the_limits_of_then(folder, virnucpro, tmp_path, monkeypatch):
    """Though the bundle names others by now; a first model that is another one is refused."""
    monkeypatch.chdir(tmp_path)
    write_other(tmp_path / "model")
    shutil.copyfile(folder / "a.fasta", "a.fasta")
    assert virnucpro("predict", "a.fasta", "-o", "out", "-m", "model", "--cascade", "--no-report", "-q").code == 0
    record = json.loads(Path("out/a.run.json").read_text())
    assert (record["cascade"]["low"], record["cascade"]["high"], record["warnings"]) == (0.3, 0.6, [])
    shutil.rmtree("model")
    write_other(tmp_path / "model", cascade=known_cascade(low=0.1, high=0.2))
    ended = virnucpro("rerun", "out", "-q")
    assert (ended.code, "result files are identical" in ended.out) == (0, True), ended.err
    record["cascade"]["model"]["fingerprint"] = "0" * 64
    Path("out/a.run.json").write_text(json.dumps(record))
    ended = virnucpro("rerun", "out", "-o", "again", "-q")
    assert (ended.code, "model lite" in ended.err) == (6, True)


def test_limits_found_with_another_first_model_are_not_used(folder, virnucpro, tmp_path):
    """The usual ones are, with a warning in the log and in the record; a user's own need none."""
    model = write_other(tmp_path / "model", cascade=known_cascade(first_fingerprint="0" * 64))
    ended = virnucpro("predict", folder / "a.fasta", "-o", tmp_path / "out", "-m", model, "--cascade", "--no-report")
    assert (ended.code, "found with another lite" in ended.err) == (0, True)
    record = json.loads((tmp_path / "out/a.run.json").read_text())
    assert (record["cascade"]["low"], record["cascade"]["high"]) == DEFAULT_LIMITS
    assert "another lite" in record["warnings"][0]
    given = ("--cascade-limits", "0.2,0.8", "-o", tmp_path / "given")
    ended = virnucpro("predict", folder / "a.fasta", "-m", model, "--cascade", "--no-report", *given)
    assert (ended.code, "another lite" in ended.err) == (0, False)


@pytest.mark.parametrize("cascade", [{"first": "lite"}, {"low": 0.9, "high": 0.1}, []])
def test_limits_in_a_bundle_that_make_no_sense_are_refused(tmp_path, cascade):
    """As all else in it."""
    known = {"first": "lite", "first_fingerprint": "0", "low": 0.1, "high": 0.9, "agreement": 1, "share": 1}
    full = known | cascade if isinstance(cascade, dict) and "low" in cascade else cascade
    with pytest.raises(virnucpro.errors.ModelError, match="cannot be understood"):
        load_bundle(str(write_other(tmp_path / "model", cascade=full)))


@pytest.fixture
def poisoned(tmp_path):
    """An input with a row that no model of ``POISON`` can compute, and such a model."""
    records = {"bad": POISON + open_dna(276, seed=50)[len(POISON) :], **mixed_records(6)}
    (tmp_path / "poisoned").mkdir()
    model = write_tiny_bundle(tmp_path / "poisoned", poison=POISON)
    return write_fasta(tmp_path / "in.fasta", records), model


def test_rows_that_the_full_model_cannot_compute_are_listed(poisoned, virnucpro, tmp_path):
    """Exit 5, as without a cascade."""
    fasta, model = poisoned
    limits = ("--cascade", "--cascade-limits", "0,1")
    ended = virnucpro("predict", fasta, "-o", tmp_path / "out", "-m", model, *limits, *SMALL_UNITS)
    assert (ended.code, "in.failed.tsv" in ended.err) == (5, True), ended.err
    assert {line["name"] for line in read_tsv(tmp_path / "out/in.failed.tsv")} == {"bad"}
    table = {line["name"]: line for line in read_tsv(tmp_path / "out/in.sequences.tsv")}
    assert (table["bad"]["status"], table["bad"]["model"]) == ("failed", "tiny")


def test_rows_that_the_first_model_cannot_compute_are_told_of_and_their_sequences_go_on(poisoned, virnucpro, tmp_path):
    """Exit 5 with the place of the reasons; the answer is the whole one of the other model."""
    fasta, first = poisoned
    known = {"first": str(first), "first_fingerprint": load_bundle(str(first)).fingerprint}
    model = write_other(tmp_path / "model", cascade=known | {"low": 0.5, "high": 0.5, "agreement": 1, "share": 1})
    ended = virnucpro("predict", fasta, "-o", tmp_path / "out", "-m", model, "--cascade", *SMALL_UNITS)
    assert (ended.code, "by model tiny" in ended.err, "run/first/failed" in ended.err) == (5, True, True)
    assert not (tmp_path / "out/in.failed.tsv").exists()
    table = {line["name"]: line for line in read_tsv(tmp_path / "out/in.sequences.tsv")}
    assert (table["bad"]["status"], table["bad"]["model"]) == ("ok", "other")
    assert json.loads((tmp_path / "out/in.run.json").read_text())["cascade"]["num_rows_failed"] >= 1
    ended = virnucpro("verify", tmp_path / "out", "-q")
    assert (ended.code, "first/failed" in ended.out) == (5, True)


def test_stdin_pairs_sheets_and_nothing_at_all(virnucpro, folder, out, limits, tmp_path, monkeypatch):
    """Inputs are read once, by the first model; the other takes the sequences from what that stored."""
    given = ("--cascade", "--cascade-limits", f"{limits.low!r},{limits.high!r}", "-m", str(folder / "other"))
    with Path(os.devnull).open() as empty:
        monkeypatch.setattr(sys, "stdin", empty)
        ended = virnucpro("predict", "-", "-o", tmp_path / "stdin", *given, *SMALL_UNITS)
    assert ended.code == 0, ended.err  # header-only tables
    assert read_tsv(tmp_path / "stdin/stdin.sequences.tsv") == []
    assert (tmp_path / "stdin/stdin.sequences.tsv").read_text().endswith("reason\tmodel\n")
    reads = {f"r{i}": open_dna(200, seed=i) for i in range(8)}
    for mate in (1, 2):
        write_fasta(tmp_path / f"r{mate}.fa", reads)
    (tmp_path / "sheet.csv").write_text(f"sample,path,path2\npair,r1.fa,r2.fa\nsingle,{folder / 'a.fasta'},\n")
    sheet = ("--samplesheet", tmp_path / "sheet.csv", "-o", tmp_path / "sheet")
    ended = virnucpro("predict", *sheet, *given, *SMALL_UNITS, "--keep-intermediate")
    assert ended.code == 0, ended.err
    pair = read_tsv(tmp_path / "sheet/pair.sequences.tsv")
    assert [line["name"] for line in pair] == [f"r{i}/{mate}" for mate in (1, 2) for i in range(8)]
    assert [line["model"] for line in pair[:8]] == [line["model"] for line in pair[8:]]
    assert (tmp_path / "sheet/single.sequences.tsv").read_bytes() == (out / "a.sequences.tsv").read_bytes()
    assert len(read_tsv(tmp_path / "sheet/samples.tsv")) == 2


def test_two_models_of_one_name_are_told_apart(folder, virnucpro, tmp_path):
    """By their fingerprints."""
    model = write_other(tmp_path / "model")
    settings = yaml.safe_load((model / "bundle.yaml").read_text())
    (model / "bundle.yaml").write_text(yaml.safe_dump(settings | {"name": "lite"}))
    limits = ("--cascade", "--cascade-limits", "0.4,0.6")
    assert virnucpro("predict", folder / "a.fasta", "-o", tmp_path / "o", "-m", model, *limits, *SMALL_UNITS).code == 0
    expected = {f"lite@{load_bundle(name).fingerprint[:8]}" for name in (str(small_lite()), str(model))}
    assert {line["model"] for line in read_tsv(tmp_path / "o/a.sequences.tsv")} == expected


def answered(first: list[float], full: list[float]) -> Answered:
    """Sequences of which each host and each virus weighs the same, called by 0.5."""
    num = len(first)
    origins = np.array(["dev_novel", "bacteria"] * (num // 2))
    dev = DevSequences(np.zeros((num, 1), np.uint8), origins, origins)
    log_odds = [np.log(p) - np.log1p(-p) for p in (np.array(first), np.array(full))]
    calls = [np.where(np.array(p) >= 0.5, Call.VIRUS, Call.NOT_VIRUS).astype(np.int64) for p in (first, full)]
    return Answered(dev, *log_odds, *calls, np.zeros(num, dtype=np.bool_))


def test_limits_are_the_narrowest_that_agree_often_enough():
    """At every length: here one errs at 0.30 and 0.90, the other at 0.10."""
    one = answered([0.05, 0.2, 0.3, 0.6, 0.9, 0.95], [0.1, 0.1, 0.9, 0.9, 0.1, 0.9])
    limits = find_limits({150: one}, 1.0)
    assert one.decided(limits).tolist() == [True, True, False, False, False, True]
    assert one.described(limits)["agreement"] == 1
    assert find_limits({150: one}, 0.0).low == find_limits({150: one}, 0.0).high
    other = answered([0.05, 0.1, 0.3, 0.6, 0.9, 0.95], [0.1, 0.9, 0.1, 0.9, 0.9, 0.9])
    limits = find_limits({150: one, 300: other}, 1.0)
    assert limits.low <= 0.1
    assert all(item.described(limits)["agreement"] == 1 for item in (one, other))


def test_no_limits_escalate_less_and_agree_as_well():
    """Held against all pairs of a coarser grid."""
    generator = np.random.default_rng(5)
    items = {}
    for length in (150, 500):
        first = np.clip(generator.beta(0.5, 0.5, 200), 1e-6, 1 - 1e-6).round(2).clip(0.01, 0.99)
        full = np.where(generator.random(200) < np.abs(first - 0.5) + 0.45, first, 1 - first)
        items[length] = answered(first.tolist(), full.tolist())
    limits = find_limits(items, 0.97)
    best = np.mean([item.described(limits)["share"] for item in items.values()])
    assert min(item.described(limits)["agreement"] for item in items.values()) >= 0.97 - 1e-6
    grid = [Limits(low / 25, high / 25) for low in range(26) for high in range(low, 26)]
    for pair in grid:
        found = [item.described(pair) for item in items.values()]
        if min(figures["agreement"] for figures in found) >= 0.97:
            assert np.mean([figures["share"] for figures in found]) >= best - 1e-9


def test_sequences_that_are_doubted_or_unscored_always_go_on():
    """They are no loss either."""
    item = answered([0.01, 0.01, 0.99, 0.99], [0.9, 0.9, 0.9, 0.9])
    item = replace(item, is_repetitive=np.array([True, False, False, False]))
    assert item.decided(Limits(0.5, 0.5)).tolist() == [False, True, True, True]
    unscored = replace(item, first=np.array([np.nan, -5.0, 5.0, 5.0]))
    assert unscored.decided(Limits(0.5, 0.5)).tolist() == [False, True, True, True]


def test_limits_are_measured_written_and_used(virnucpro, tmp_path, capfd):
    """The command prints figures by length; what it stores is what predict takes, and no other identity."""
    data, model = write_data(tmp_path / "data"), write_other(tmp_path / "model", cascade=None)
    before = load_bundle(str(model)).fingerprint
    arguments = ["cascade", "--data", str(data), "--model", str(model), "--dev-share", "0.002"]
    assert study(arguments) == 0
    assert load_bundle(str(model)).cascade is None
    printed = capfd.readouterr().out
    assert all(word in printed for word in ("agreement", "goes on", "AUROC cascade", "3000"))
    assert study([*arguments, "--write", "--agreement", "0.9"]) == 0
    bundle = load_bundle(str(model))
    assert bundle.fingerprint == before
    assert bundle.cascade is not None
    assert bundle.cascade.agreement >= 0.9 - 1e-4
    assert bundle.cascade.first_fingerprint == load_bundle("lite").fingerprint
    fasta = write_fasta(tmp_path / "in.fasta", mixed_records(4))
    command = ("predict", fasta, "-o", tmp_path / "out", "-m", model, "--cascade", *SMALL_UNITS)
    assert virnucpro(*command).code == 0
    manifest = json.loads((tmp_path / "out/run/manifest.json").read_text())
    assert (manifest["science.cascade_low"], manifest["science.cascade_high"]) == bundle.cascade.limits
    assert study(["cascade", "--data", str(data), "--model", "lite", "--dev-share", "0.002"]) == 2
