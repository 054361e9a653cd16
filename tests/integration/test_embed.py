"""``virnucpro embed`` and ``virnucpro.load``: levels, formats, going on, caches, records of other libraries."""

from __future__ import annotations

import gzip
import json
import os
import signal
import time
from functools import cache

import anndata
import dnaio
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pysam
import pytest
from Bio.Seq import Seq
from Bio.SeqRecord import SeqRecord
from conftest import mixed_records, random_dna, read_tsv, start, write_fasta
from test_embeddings import PLUGIN, POISON
from tiny_models import write_tiny_bundle

import virnucpro as package
from virnucpro.embeddings import ModelLoader, ModelValidationError, levels
from virnucpro.embeddings.files import FORMATS, read_embeddings
from virnucpro.errors import InputError, StoreError, UsageError
from virnucpro.sequence.extract import Extraction

RECORDS = mixed_records(16) | {"empty": "", "gaps": "N" * 500, "a name": random_dna(700, 7_000)}


@pytest.fixture(scope="module")
def contigs(tmp_path_factory):
    return write_fasta(tmp_path_factory.mktemp("embed") / "contigs.fasta", RECORDS)


@pytest.fixture(scope="module")
def model(tiny_bundle):
    return package.load(str(tiny_bundle), device="cpu", threads=1)


def arrays_of(path):
    embeddings, about = read_embeddings(path)
    return embeddings, about, dict(embeddings.values)


@cache
def rows_by_hand(tiny_bundle, contigs, role):
    """What is cut from the contigs, and the embedding of each row; None for one without a string."""
    cut = Extraction([str(contigs)], 300, 0, unit_rows=10_000, score_frameless=True, close_gaps=True)
    (table,) = cut.units()
    strings = (table.nucleotides if role == "nucleotide" else table.proteins).to_bytes()
    embedded = iter(ModelLoader(f"{tiny_bundle}:{role}", device="cpu").encode([s.decode() for s in strings if s]))
    return table, [next(embedded) if string else None for string in strings]


def by_hand(tiny_bundle, contigs, level, role):
    """Means of rows, fragment by fragment and sequence by sequence, in plain loops."""
    table, of_rows = rows_by_hand(tiny_bundle, contigs, role)
    if level == "frame":
        return of_rows
    of_fragments, first = [], 0
    for fragment in table.fragments:
        rows = [row for row in of_rows[first : first + fragment["num_rows"]] if row is not None]
        first += fragment["num_rows"]
        of_fragments.append(np.mean(rows, axis=0) if rows else None)
    if level == "fragment":
        return of_fragments
    found = []
    for number in range(len(table.sequences)):
        mine = [row for row, of in zip(of_fragments, table.fragments, strict=True) if of["sequence"] == number]
        mine = [row for row in mine if row is not None]
        found.append(np.mean(mine, axis=0) if mine else None)
    return found


@pytest.mark.parametrize("role", ["nucleotide", "protein"])
@pytest.mark.parametrize("level", levels.LEVELS)
@pytest.mark.parametrize("unit_rows", [7, 4096])
def test_levels_are_means_of_frames_wherever_parts_end(
    model, tiny_bundle, contigs, level, role, unit_rows, monkeypatch
):
    monkeypatch.setattr(levels, "_UNIT_ROWS", unit_rows)
    array, index = model.embed(contigs, level, role)
    expected = by_hand(tiny_bundle, contigs, level, role)
    assert len(array) == len(index) == len(expected)
    for row, wanted in zip(array, expected, strict=True):
        if wanted is None:
            assert np.isnan(row).all()
        else:
            np.testing.assert_allclose(row, wanted, atol=1e-4)
    counts = np.asarray(index.columns[f"num_{role}"])
    assert [number == 0 for number in counts] == [wanted is None for wanted in expected]
    if level == "sequence":
        assert index.ids == [name.split()[0] for name in RECORDS]


def test_both_stand_side_by_side(model):
    both, _ = model.embed(RECORDS, "fragment", "both")
    nucleotide, _ = model.embed(RECORDS, "fragment", "nucleotide")
    protein, index = model.embed(RECORDS, "fragment", "protein")
    np.testing.assert_allclose(both[:, :24], nucleotide, atol=1e-5)
    without = np.asarray(index.columns["num_protein"]) == 0
    assert without.any()
    assert (both[without, 24:] == 0).all()
    np.testing.assert_allclose(both[~without, 24:], protein[~without], atol=1e-5)


def test_sequences_come_in_any_form(model, tmp_path):
    some = {name: RECORDS[name] for name in ("seq_1", "seq_2", "empty")}
    path = write_fasta(tmp_path / "some.fasta", some)
    expected, index = model.embed(path)
    with pysam.FastxFile(str(path), persist=True) as records:
        from_pysam = list(records)
    with dnaio.open(path) as records:
        from_dnaio = list(records)
    for form in (
        some,
        iter(some.items()),
        [SeqRecord(Seq(sequence), id=name) for name, sequence in some.items()],
        from_pysam,
        from_dnaio,
        str(path),
        {name: sequence.lower().encode() for name, sequence in some.items()},
    ):
        array, of = model.embed(form)
        np.testing.assert_array_equal(array, expected)
        assert of.ids == index.ids == list(some)
    array, of = model.embed(list(some.values()))
    np.testing.assert_array_equal(array, expected)
    assert of.ids == ["0", "1", "2"]
    assert model.embed({"a name": "ACGT" * 50})[1].ids == ["a name"]
    assert model.embed({})[0].shape == (0, 56)


def test_the_index_as_a_table_of_other_libraries(model):
    _, index = model.embed(RECORDS, "frame", "nucleotide")
    frame = index.to_pandas()
    assert isinstance(frame, pd.DataFrame)
    assert list(frame) == ["id", "length", "fragment", "start", "stop", "frame", "num_nucleotide"]
    assert isinstance(index.to_polars(), pl.DataFrame)
    assert index.to_arrow().to_pandas().equals(frame)
    assert index.to_polars()["start"].to_list() == frame["start"].tolist()


@pytest.mark.parametrize(
    ("sequences", "error", "problem"),
    [
        ({"x": "ACGT-"}, ModelValidationError, "x: letter '-'"),
        ({"x": "MKVLEF"}, ModelValidationError, "x: letter 'L'"),
        ([7], ModelValidationError, "item 1 is no sequence record"),
        ("nowhere.fasta", InputError, "nowhere.fasta"),
    ],
)
def test_what_is_no_sequence_is_refused(model, sequences, error, problem):
    with pytest.raises(error, match=problem):
        model.embed(sequences)
    with pytest.raises(UsageError):
        model.embed({"a": "ACGT"}, "genome")
    with pytest.raises(UsageError, match="threads"):
        package.load("lite", threads=0)


def test_a_loaded_model_predicts_as_the_command_does(model, virnucpro, tiny_bundle, contigs, tmp_path):
    ended = virnucpro("predict", contigs, "-o", tmp_path / "out", "--model", tiny_bundle, "--device", "cpu", "-t", 1)
    assert ended.code == 0
    table = read_tsv(tmp_path / "out" / "contigs.sequences.tsv")
    for predictions in (model.predict(contigs), model.predict(RECORDS)):
        assert [row.call for row in predictions] == [row["call"] for row in table]
        for row, line in zip(predictions, table, strict=True):
            assert (row.p_virus is None) == (line["p_virus"] == "NA")
            assert row.p_virus is None or abs(row.p_virus - float(line["p_virus"])) < 1e-4
    assert [row.name for row in predictions] == list(RECORDS)
    frame = predictions.to_pandas()
    assert frame["length"].tolist() == [len(sequence) for sequence in RECORDS.values()]
    assert predictions.to_polars()["call"].to_list() == predictions.to_arrow()["call"].to_pylist()
    assert len(predictions[:3]) == 3
    assert predictions[0].status == "ok"
    strict = model.predict(RECORDS, threshold=0.999999)
    assert "virus" not in {row.call for row in strict}


def test_a_loaded_model_keeps_its_encoders_until_it_is_closed(tiny_bundle):
    """Calls after the first one load nothing."""
    loaded = package.load(str(tiny_bundle), device="cpu", threads=1)

    first = loaded.predict(RECORDS)
    (worker,) = loaded._kept._made.values()  # noqa: SLF001
    kept = dict(worker._kept._made)  # noqa: SLF001
    assert any(isinstance(key, tuple) and key[0] == "encoders" for key in kept)
    assert loaded.predict(RECORDS) == first
    assert {key: id(made) for key, made in worker._kept._made.items()} == {  # noqa: SLF001
        key: id(made) for key, made in kept.items()
    }
    loaded.close()
    assert worker._kept._made == {}  # noqa: SLF001


@pytest.mark.parametrize("cache", [(), ("--cache", "kept")])
def test_strings_that_an_encoder_fails_at_are_named_and_left_out_of_means(virnucpro, tmp_path, cache, monkeypatch):
    """Exit 5; all else is there, and is what it is without them."""
    monkeypatch.chdir(tmp_path)
    poisoned = f"{write_tiny_bundle(tmp_path / 'poisoned', poison=POISON)}:nucleotide"
    bases = {name: random_dna(900, seed) for seed, name in enumerate("abc")}
    bases["b"] = bases["b"][:400] + POISON + bases["b"][400 + len(POISON) :]
    asked = ("-e", poisoned, "--device", "cpu", "--level", "fragment", "-q", *cache)
    ended = virnucpro("embed", write_fasta(tmp_path / "in.fasta", bases), "-o", tmp_path / "out.npz", *asked)
    assert (ended.code, "out.npz is written; an encoder failed" in ended.err, "sequence 2, " in ended.err) == (
        5,
        True,
        True,
    )
    found, _ = read_embeddings(tmp_path / "out.npz")
    rows, counts = found.joined(), found.counts[poisoned]
    assert np.isfinite(rows[counts > 0]).all()
    assert np.isnan(rows[counts == 0]).all()
    assert set(np.array(found.columns()["id"])[counts == 0]) == {"b"}
    del bases["b"]
    assert virnucpro("embed", write_fasta(tmp_path / "2.fasta", bases), "-o", tmp_path / "2.npz", *asked).code == 0
    expected = read_embeddings(tmp_path / "2.npz")[0].joined()
    np.testing.assert_allclose(rows[np.array(found.columns()["id"]) != "b"], expected, atol=1e-6)
    assert not (tmp_path / "out.npz.parts").exists()


def test_a_loaded_model_uses_a_cache(tiny_bundle, tmp_path):
    first = package.load(str(tiny_bundle), device="cpu", cache=tmp_path)
    expected, _ = first.embed(RECORDS)
    first.close()
    second = package.load(str(tiny_bundle), device="cpu", cache=tmp_path)
    found, _ = second.embed(RECORDS)
    np.testing.assert_array_equal(found, expected)
    assert second._cache.num_misses == 0  # noqa: SLF001
    second.close()


@pytest.mark.parametrize("suffix", FORMATS)
def test_formats_hold_the_same(virnucpro, model, tiny_bundle, contigs, tmp_path, suffix):
    out = tmp_path / f"out{suffix}"
    names = [f"{tiny_bundle}:nucleotide", f"{tiny_bundle}:protein"]
    ended = virnucpro(
        *("embed", contigs, "-o", out, "-e", names[0], "-e", names[1], "--level", "fragment", "--device", "cpu", "-q")
    )
    assert (ended.code, ended.err, ended.out) == (0, "", "")
    expected, index = model.embed(contigs, "fragment")
    ids, starts = index.ids, index.columns["start"]
    if suffix == ".h5ad":
        read = anndata.read_h5ad(out)
        np.testing.assert_allclose(read.X, expected, atol=1e-5)
        assert (read.obs["id"].tolist(), read.obs["start"].tolist()) == (ids, list(starts))
        about = read.uns["about"]
    elif suffix == ".parquet":
        read = pq.read_table(out)
        values = [np.stack(read[f"embedding/{name.replace('/', '_')}"].to_pylist()) for name in names]
        np.testing.assert_allclose(np.nan_to_num(np.hstack(values)), np.nan_to_num(expected), atol=1e-5)
        assert (read["id"].to_pylist(), read["start"].to_pylist()) == (ids, list(starts))
        about = read.schema.metadata[b"about"]
    else:
        read, about = read_embeddings(out)
        np.testing.assert_allclose(read.joined(), expected, atol=1e-5)
        assert (read.ids, read.keys["start"].tolist()) == (ids, list(starts))
        assert [facts.name for facts in about.encoders] == names
        about = about.to_json()
    said = json.loads(about)
    assert (said["format"], said["version"], said["level"]) == ("virnucpro embeddings", 1, "fragment")
    assert not (tmp_path / f"out{suffix}.parts").exists()


def test_half_precision(virnucpro, tiny_bundle, contigs, tmp_path):
    for precision in ("single", "half"):
        out = tmp_path / f"{precision}.h5"
        options = ("-e", f"{tiny_bundle}:nucleotide", "--precision", precision, "--device", "cpu")
        assert virnucpro("embed", contigs, "-o", out, *options).code == 0
    (single,), (half,) = (arrays_of(tmp_path / f"{p}.h5")[2].values() for p in ("single", "half"))
    assert (single.dtype, half.dtype) == (np.float32, np.float16)
    np.testing.assert_array_equal(half, single.astype(np.float16))


def test_proteins(virnucpro, tiny_bundle, tmp_path):
    proteins = {"p1": "MKTAYIAKQR", "p2": "MLSDEDFKAVFGMTRSAFANLPLWKQQNLKKEKGLF*", "long": "MKV" * 700, "none": ""}
    path = tmp_path / "p.faa.gz"
    path.write_bytes(gzip.compress("".join(f">{n} x\n{p}\n" for n, p in proteins.items()).encode()))
    out = tmp_path / "p.npz"
    assert virnucpro("embed", path, "-o", out, "-e", f"{tiny_bundle}:protein", "--device", "cpu").code == 0
    embeddings, _, (values,) = (*arrays_of(out)[:2], arrays_of(out)[2].values())
    assert embeddings.ids == list(proteins)
    loader = ModelLoader(f"{tiny_bundle}:protein", device="cpu")
    np.testing.assert_allclose(values[1], loader.encode(proteins["p2"][:-1]), atol=1e-5)
    windows = [proteins["long"][:700], proteins["long"][700:1400], proteins["long"][1400:]]
    np.testing.assert_allclose(values[2], loader.encode(windows).mean(axis=0), atol=1e-5)
    assert np.isnan(values[3]).all()
    ended = virnucpro("embed", path, "-o", out, "-e", f"{tiny_bundle}:nucleotide", "--device", "cpu")
    assert (ended.code, "holds proteins" in ended.err) == (2, True)
    (tmp_path / "wrong.faa").write_text(">a\nMKF\n>b\nMK-F\n")
    ended = virnucpro("embed", tmp_path / "wrong.faa", "-o", out, "-e", f"{tiny_bundle}:protein", "--device", "cpu")
    assert (ended.code, "b: letter '-'" in ended.err) == (3, True)


def test_several_devices_change_nothing(tiny_bundle, contigs, tmp_path, monkeypatch):
    """Two places of work on this CPU, as two GPUs would be."""
    from virnucpro.embeddings.job import EmbedRequest, embed_file
    from virnucpro.progress import Reporter

    monkeypatch.setattr(levels, "_UNIT_ROWS", 20)
    for name, devices in (("one.h5", ("cpu",)), ("two.h5", ("cpu", "cpu"))):
        request = EmbedRequest(str(contigs), tmp_path / name, (f"{tiny_bundle}:nucleotide",), devices=devices)
        embed_file(request, Reporter(bars=False))
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


SLOW = (
    PLUGIN
    + """
import time
from pathlib import Path

class Slow(Counts):
    cpu_token_budget = 100_000

    def embed(self, batch):
        with Path(__file__).with_name("calls").open("a") as calls:
            calls.write(".")
        if Path(__file__).with_name("sleepy").exists():
            time.sleep(0.3)
        return super().embed(batch)

def slow(device, dtype):
    return Slow()

slow.alphabet, slow.width, slow.fingerprint = "nt", 4, "slow"
"""
)


def test_kill_9_then_the_same_command_computes_the_rest(virnucpro, tmp_path, monkeypatch):
    (tmp_path / "plugged_in_slow.py").write_text(SLOW)
    folder = tmp_path / "plugged_in_slow-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged-in-slow\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[virnucpro.encoders]\nslow = plugged_in_slow:slow\n")
    (tmp_path / "sleepy").touch()
    place = os.pathsep.join([str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    contigs = write_fasta(tmp_path / "c.fasta", {f"s{k}": random_dna(60, k) for k in range(6000)})
    command = ("embed", contigs, "-e", "slow", "--device", "cpu", "-t", 1)
    killed = start(*command, "-o", tmp_path / "a.npz", env={**os.environ, "PYTHONPATH": place})
    while not (tmp_path / "a.npz.parts" / "run" / "part_0.h5").exists():
        assert killed.poll() is None, killed.stderr.read()
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait(timeout=20)
    assert not (tmp_path / "a.npz").exists()
    (tmp_path / "sleepy").unlink()
    monkeypatch.syspath_prepend(tmp_path)
    num_calls = {}
    for name in ("a", "b"):
        (tmp_path / "calls").write_text("")
        assert virnucpro(*command, "-o", tmp_path / f"{name}.npz").code == 0
        num_calls[name] = len((tmp_path / "calls").read_text())
    assert 0 < num_calls["a"] < num_calls["b"], "a part that was there was computed again"
    with np.load(tmp_path / "a.npz") as one, np.load(tmp_path / "b.npz") as other:
        assert one.files == other.files
        assert all(np.array_equal(one[name], other[name]) for name in one.files)


def test_another_request_does_not_go_on_from_it(virnucpro, tiny_bundle, contigs, tmp_path, monkeypatch):
    """And a damaged part is computed again."""
    monkeypatch.setattr(levels, "_UNIT_ROWS", 20)
    name = f"{tiny_bundle}:nucleotide"
    command = ("embed", contigs, "-o", tmp_path / "a.h5", "-e", name, "--device", "cpu")
    assert virnucpro("embed", contigs, "-o", tmp_path / "b.h5", "-e", name, "--device", "cpu").code == 0
    monkeypatch.setattr("virnucpro.embeddings.job.write_embeddings", lambda *_: (_ for _ in ()).throw(OSError(28, "")))
    assert virnucpro(*command).code != 0
    monkeypatch.undo()
    monkeypatch.setattr(levels, "_UNIT_ROWS", 20)
    ended = virnucpro(*command, "--level", "frame")
    assert (ended.code, "level" in ended.err, "--fresh" in ended.err) == (2, True, True)
    part = tmp_path / "a.h5.parts" / "run" / "part_1.h5"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 0xFF
    part.write_bytes(content)
    ended = virnucpro(*command)
    assert (ended.code, "damaged" in ended.err) == (0, True)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_second_run_with_a_cache_computes_nothing(virnucpro, tiny_bundle, contigs, tmp_path):
    command = ("embed", contigs, "-e", f"{tiny_bundle}:nucleotide", "--device", "cpu", "--cache", tmp_path / "c")
    first = virnucpro(*command, "-o", tmp_path / "a.h5")
    second = virnucpro(*command, "-o", tmp_path / "b.h5")
    assert "cache: 0 of" in first.err
    found = second.err.partition("cache: ")[2].split()
    assert found[0] == found[2]
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (("contigs.fasta", "-o", "x.txt"), 2, ".parquet"),
        (("-", "-o", "x.h5"), 2, "standard input"),
        (("missing.fasta", "-o", "x.h5"), 3, "missing.fasta"),
        (("contigs.fasta", "-o", "x.h5", "-e", "nobody"), 6, "nobody"),
        (("contigs.fasta", "-o", "x.h5", "--device", "toaster"), 2, "toaster"),
        (("contigs.fasta", "-o", "x.h5", "--level", "gene"), 2, "gene"),
    ],
)
def test_what_cannot_be_followed_is_one_line(virnucpro, contigs, monkeypatch, arguments, code, problem):
    monkeypatch.chdir(contigs.parent)
    ended = virnucpro("embed", *arguments)
    assert ended.code == code
    assert problem in ended.err
    assert len([line for line in ended.err.splitlines() if "INFO" not in line]) == 1


def test_an_empty_input_is_an_empty_file(virnucpro, tiny_bundle, tmp_path):
    (tmp_path / "none.fasta").write_text("")
    for suffix in FORMATS:
        out = tmp_path / f"none{suffix}"
        ended = virnucpro(
            "embed", tmp_path / "none.fasta", "-o", out, "-e", f"{tiny_bundle}:nucleotide", "--device", "cpu"
        )
        assert (ended.code, "0 rows" in ended.out) == (0, True)
    (values,) = arrays_of(tmp_path / "none.npz")[2].values()
    assert values.shape == (0, 24)


def test_damaged_files_of_embeddings_are_named(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK nothing")
    np.savez(tmp_path / "b.npz", x=np.zeros(1))
    (tmp_path / "c.h5").write_bytes(b"nothing")
    for name in ("a.npz", "b.npz", "c.h5", "missing.npz"):
        with pytest.raises(StoreError, match=name):
            read_embeddings(tmp_path / name)
    with pytest.raises(UsageError):
        read_embeddings(tmp_path / "d.parquet")


@pytest.mark.parametrize("level", ["sequence", "fragment"])
def test_sequences_are_nearest_to_themselves(virnucpro, tiny_bundle, contigs, tmp_path, level):
    known = tmp_path / "known.h5"
    options = ("-e", f"{tiny_bundle}:nucleotide", "--level", level, "--device", "cpu", "-q")
    assert virnucpro("embed", contigs, "-o", known, *options).code == 0
    ended = virnucpro("nearest", contigs, "--against", known, "-k", 2, "--device", "cpu", "-q")
    assert ended.code == 0
    header, *lines = [line.split("\t") for line in ended.out.splitlines()]
    mine = 1 if level == "sequence" else 3
    assert header[mine] == "rank"
    best = [line for line in lines if line[mine] == "1" and line[0] != "gaps"]  # whose fragments are all the same
    assert best
    assert all(line[:mine] == line[mine + 1 : -1] and float(line[-1]) > 0.9999 for line in best)
    assert "empty" not in {line[0] for line in lines}
    out = tmp_path / "nearest.tsv"
    ended = virnucpro("nearest", known, "--against", known, "-k", 1, "--skip-self", "-o", out, "-q")
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    others = [line.split("\t") for line in out.read_text().splitlines()[1:]]
    assert all(line[0] != line[mine + 1] for line in others)
    assert {line[0] for line in others} == {line[0] for line in lines}


def test_only_embeddings_of_the_same_encoders_are_compared(virnucpro, tiny_bundle, contigs, tmp_path):
    for role, level in (("nucleotide", "sequence"), ("protein", "sequence"), ("nucleotide", "fragment")):
        out = tmp_path / f"{role}_{level}.npz"
        options = ("-e", f"{tiny_bundle}:{role}", "--level", level, "--device", "cpu", "-q")
        assert virnucpro("embed", contigs, "-o", out, *options).code == 0
    known = tmp_path / "nucleotide_sequence.npz"
    for other, problem in (("protein_sequence", "other weights"), ("nucleotide_fragment", "a row a fragment")):
        ended = virnucpro("nearest", tmp_path / f"{other}.npz", "--against", known)
        assert (ended.code, problem in ended.err) == (2, True)
