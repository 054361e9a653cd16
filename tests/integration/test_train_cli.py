"""``virnucpro train``: data sets and their splits, each preset at a tiny size, resume, and what is refused."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from Bio.Seq import Seq
from Bio.SeqFeature import SeqFeature, SimpleLocation
from Bio.SeqIO import write as write_records
from Bio.SeqRecord import SeqRecord
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from test_published import make_esm2
from test_training import write_data
from tiny_models import write_fair_esm, write_tiny_bundle

from virnucpro.bundles import load_bundle
from virnucpro.cli.train import train as command
from virnucpro.encoders import load_encoder, read_config
from virnucpro.engine.batch import collate
from virnucpro.errors import InputError, ModelError, RunMismatchError, UsageError
from virnucpro.progress import Reporter
from virnucpro.sequence.ragged import Ragged
from virnucpro.training.datasets import assign_splits, check_splits, class_of, group_of, load_dataset
from virnucpro.training.fit import training_pools
from virnucpro.training.genomes import LabelledRecord
from virnucpro.training.head import PUBLISHED, Drawing, Examples, HeadFit, HeadRecipe, draw_rows, embed_rows, hold_out
from virnucpro.training.presets import place_encoders, write_truncated

QUICK = ("--dev-share", 0.003, "--device", "cpu", "-q")
RECIPE = HeadRecipe(hidden_width=8, batch=32, epochs=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Features of tests lie in a cache of their own."""
    monkeypatch.setenv("VIRNUCPRO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(*arguments):
    found = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


def write_table(folder, rows, bases_of=None):
    """FASTA and labels; each row is (id, label, group, cluster, genome)."""
    folder.mkdir(exist_ok=True)
    fasta, table = folder / "mine.fasta", folder / "mine.tsv"
    fasta.write_text("".join(f">{row[0]} words\n{bases_of(row) if bases_of else 900 * 'ACGT'}\n" for row in rows))
    lines = ["\t".join(row) for row in [("id", "label", "group", "cluster", "genome"), *rows]]
    table.write_text("\n".join(lines) + "\n")
    return fasta, table


names = st.sampled_from(["", "a", "b", "c", "d", "e", "f"])
records = st.lists(
    st.tuples(st.sampled_from(["virus", "bacteria", "fungi"]), names, names, names, st.integers(1, 50)), max_size=40
)


@given(records, st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_no_group_cluster_or_genome_is_on_both_sides(drawn, seed):
    """Families of ``dev_seen`` are in train, which is what it is for; their clusters and genomes are not."""
    made = [
        LabelledRecord(f"r{i}", np.zeros(length, dtype=np.uint8), label, group or f"r{i}", cluster, genome)
        for i, (label, group, cluster, genome, length) in enumerate(drawn)
    ]
    split = assign_splits(made, seed)
    assert [record.name for record in split] == [record.name for record in made]
    sides = defaultdict(set)
    for record in split:
        is_train = record.split == "train"
        sides["cluster", record.cluster].add(is_train)
        sides["genome", record.genome].add(is_train)
        if record.split != "dev_seen":
            sides["group", record.group].add(is_train)
        assert record.split in (("train", "dev_novel", "dev_seen") if record.label == "virus" else ("train", "dev"))
    assert [key for key, found in sides.items() if key[1] and len(found) > 1] == []
    check_splits(split, "table")


def test_every_class_is_on_both_sides_where_it_has_two_groups(tmp_path):
    rows = [
        (f"{label}{i}", label, f"{label}_{i // 2}", f"{label}c{i}", "")
        for label in ("virus", "fungi")
        for i in range(20)
    ]
    dataset = load_dataset([write_table(tmp_path, rows)[0]], tmp_path / "mine.tsv")
    assert set(dataset.train.splits) == {"train"}
    assert set(dataset.dev.splits) == {"dev", "dev_novel", "dev_seen"}
    assert len(dataset.train) + len(dataset.dev) == 40
    again = load_dataset([tmp_path / "mine.fasta"], tmp_path / "mine.tsv")
    assert again.dev.ids.tolist() == dataset.dev.ids.tolist()


def test_named_splits_are_kept_and_leaks_refused(tmp_path):
    fasta, table = tmp_path / "a.fa.gz", tmp_path / "a.tsv"
    fasta.write_bytes(gzip.compress(b">v1\nACGT\n>v2\nACGTN\n>h1\nAC\nGT\n>h2\nacgt\n"))
    head = "id\tlabel\tsplit\tcluster\n"
    table.write_text(f"{head}v1\tvirus\ttrain\tx\nv2\tvirus\tdev_novel\ty\nh1\tfungi\ttrain\t\nh2\tfungi\tdev\t\n")
    dataset = load_dataset([fasta], table)
    assert dataset.dev.ids.tolist() == ["v2", "h2"]
    assert dataset.dev.codes.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    table.write_text(table.read_text().replace("\ty", "\tx"))
    with pytest.raises(InputError, match="cluster x is in train and in dev"):
        load_dataset([fasta], table)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("id\tgroup\nv1\ta\n", "no column label"),
        ("id\tlabel\nv1\tvirus\nv1\tvirus\n", "twice"),
        ("id\tlabel\tsplit\nv1\tvirus\ttest\n", "none of train"),
        ("id\tlabel\tsplit\nv1\tvirus\ttrain\nh1\tfungi\t\n", "for some records only"),
        ("id\tlabel\nv1\tvirus\n", "h1 is not in"),
        ("id\tlabel\nv1\tvirus\nh1\tvirus\n", "records of hosts"),
        ("id\tlabel\nv1\tvirus\nh1\t\n", "no label"),
    ],
)
def test_labels_that_make_no_sense_are_input_errors(tmp_path, table, said):
    (tmp_path / "a.fa").write_text(">v1\nACGT\n>h1\nACGT\n")
    (tmp_path / "a.tsv").write_text(table)
    with pytest.raises(InputError, match=said):
        load_dataset([tmp_path / "a.fa"], tmp_path / "a.tsv")


def genbank_record(name, lineage, organism, translation=""):
    bases = "".join(np.random.default_rng(len(name)).choice(list("ACGT"), size=300))
    record = SeqRecord(Seq(bases), id=name, name=name, annotations={"molecule_type": "DNA"})
    record.annotations |= {"taxonomy": lineage, "organism": organism}
    if translation:
        place = SimpleLocation(0, 300)
        record.features.append(SeqFeature(place, type="CDS", qualifiers={"translation": [translation]}))
    return record


def test_genbank_is_labelled_by_its_lineage(tmp_path):
    made = [
        genbank_record(f"V{i}", ["Viruses", "Duplodnaviria", f"F{i}viridae"], f"virus {i}", "MKL") for i in range(4)
    ] + [genbank_record(f"B{i}", ["Bacteria", "Bacillota"], f"Genus{i} species") for i in range(4)]
    path = tmp_path / "mine.gb"
    write_records(made, path, "genbank")
    dataset = load_dataset([path])
    assert set(dataset.train.classes) == set(dataset.dev.classes) == {"virus", "bacteria"}
    groups = {*dataset.train.groups.tolist(), *dataset.dev.groups.tolist()}
    assert groups == {f"F{i}viridae" for i in range(4)} | {f"Genus{i}" for i in range(4)}
    assert set(dataset.proteins.values()) == {(b"MKL",)}
    write_records([genbank_record("X", [], "unknown")], path, "genbank")
    with pytest.raises(InputError, match="tells no class"):
        load_dataset([path])
    path.write_text("no record")
    with pytest.raises(InputError, match="holds no GenBank record"):
        load_dataset([path])


def test_classes_of_lineages():
    assert class_of(["Eukaryota", "Metazoa", "Chordata", "Vertebrata"]) == "vertebrate"
    assert class_of(["Eukaryota", "Metazoa", "Arthropoda"]) == "invertebrate"
    assert class_of(["Eukaryota", "Viridiplantae"], ["plastid:chloroplast"]) == "organelle"
    assert class_of(["Bacteria"], plasmids=["pX"]) == "plasmid"
    assert group_of("bacteria", [], "Candidatus Pelagibacter ubique") == "Pelagibacter"


def examples_of(labels, width=6, seed=1):
    generator = np.random.default_rng(seed)
    features = generator.normal(labels[:, None] * 0.8, 1, size=(len(labels), width)).astype(np.float32)
    weights = torch.ones(len(labels))
    return Examples(torch.from_numpy(features), torch.from_numpy(labels), weights)


@pytest.mark.parametrize("recipe", [RECIPE, PUBLISHED])
def test_a_resumed_head_is_the_same(tmp_path, recipe):
    recipe = HeadRecipe(**{**vars(recipe), "epochs": 4, "hidden_width": 8})
    labels = np.random.default_rng(2).integers(0, 2, size=333)
    parts = (examples_of(labels), examples_of(labels[:90], seed=3))
    whole = HeadFit(recipe, *parts, tmp_path / "whole", "x").run(Reporter(bars=False))
    first = HeadFit(recipe, *parts, tmp_path / "parts", "x")
    first.take_epoch()
    first.take_epoch()
    first.save()
    resumed = HeadFit(recipe, *parts, tmp_path / "parts", "x")
    assert resumed.epoch == 2
    for name, tensor in resumed.run(Reporter(bars=False)).state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name]), name
    with pytest.raises(ModelError, match="another recipe"):
        HeadFit(recipe, *parts, tmp_path / "parts", "y")


def test_a_head_without_gain_stops_early(tmp_path):
    labels = np.tile([0, 1], 60)
    noise = Examples(torch.randn(120, 4), torch.from_numpy(labels), torch.ones(120))
    recipe = HeadRecipe(hidden_width=64, batch=8, learning_rate=0.05, epochs=300, patience=3)
    fit = HeadFit(recipe, noise, examples_of(labels, width=4), tmp_path / "c", "x")
    fit.run(Reporter(bars=False))
    assert fit.epoch == fit.best_epoch + 3 < 300


def test_whole_groups_tell_when_to_stop_and_the_published_rule_splits_rows(data):
    genomes = load_dataset([data]).train
    rows = np.arange(len(genomes)).repeat(50)
    is_held_out = hold_out(rows, genomes, RECIPE)
    kinds = {(genomes.classes[r], genomes.groups[r]): set() for r in range(len(genomes))}
    for row, held in zip(rows, is_held_out, strict=True):
        kinds[genomes.classes[row], genomes.groups[row]].add(bool(held))
    assert all(len(found) == 1 for found in kinds.values())
    assert 0 < is_held_out.sum() < len(rows)
    by_row = hold_out(rows, genomes, PUBLISHED)
    assert by_row.mean() == pytest.approx(0.1, abs=0.05)


def test_rows_are_drawn_by_chunk_and_balanced(data):
    dataset = load_dataset([data])
    pools = training_pools(dataset.train)
    rows = draw_rows(dataset.train, pools, Drawing(500), 3, {})
    again = draw_rows(dataset.train, pools, Drawing(500), 3, {})
    assert rows.nucleotides.to_bytes() == again.nucleotides.to_bytes()
    assert rows.weights[rows.labels == 1].sum() == pytest.approx(rows.weights[rows.labels == 0].sum(), rel=0.05)
    assert rows.nucleotides.lengths.max() <= 500
    assert b"N" in rows.nucleotides.values.tobytes()
    assert (dataset.train.classes[rows.records] == "virus").tolist() == (rows.labels == 1).tolist()


def test_the_published_drawing_is_clear_and_annotated(data):
    dataset = load_dataset([data])
    genomes, pools = dataset.train, training_pools(dataset.train)
    published = Drawing(150, 150, 150, 0.05, scores_frameless=False, only_clear=True, only_annotated=True)
    every = draw_rows(genomes, pools, published, 0, {})
    assert b"N" not in every.nucleotides.values.tobytes()
    assert every.proteins.lengths.min() > 0
    first = next(iter(every.proteins.to_bytes()))
    annotations = {str(name): () for name in genomes.ids} | {str(genomes.ids[every.records[0]]): (b"M" + first,)}
    kept = draw_rows(genomes, pools, published, 0, annotations)
    assert kept.proteins.to_bytes() == [first]
    equal = draw_rows(genomes, pools, replace(published, equal_rows=True), 0, {})
    least = np.bincount(every.labels).min()
    assert np.bincount(equal.labels).tolist() == [least, least]
    assert set(equal.proteins.to_bytes()) <= set(every.proteins.to_bytes())


def test_features_are_computed_once_and_found_by_content(data, cache, tiny_bundle):
    bundle = load_bundle(str(tiny_bundle))
    dataset = load_dataset([data])
    rows = draw_rows(dataset.train, training_pools(dataset.train), Drawing(300, 150, 200), 0, {})
    files, cpu = {"nucleotide": bundle.nucleotide, "protein": bundle.protein}, torch.device("cpu")
    found = embed_rows([rows], files, bundle.digests, cpu, cache, Reporter(bars=False))
    assert found.shape == (len(rows.labels), 24 + 32)
    gone = {role: path.with_name("gone") for role, path in files.items()}
    again = embed_rows([rows], gone, bundle.digests, cpu, cache, Reporter(bars=False))
    assert np.array_equal(found, again)
    assert len(list(cache.glob("*.safetensors"))) == 2


@pytest.mark.parametrize("role", ["nucleotide", "protein"])
def test_a_cut_encoder_gives_the_states_of_that_layer(tmp_path, role):
    """ESM-2 without its final LayerNorm, as in its own ``repr_layers``; the file holds no layer that is not needed."""
    bundle = load_bundle(str(write_tiny_bundle(tmp_path, num_layers=3)))
    source, cut = bundle.encoder(role), tmp_path / "cut.safetensors"
    write_truncated(source, 1, cut)
    cpu = torch.device("cpu")
    whole, early = (load_encoder(path, cpu, torch.float32) for path in (source, cut))
    tokens = early.tokenizer(Ragged.from_bytes([b"ACGTACGTAC"]))
    batch = next(iter(collate(tokens, [np.array([0])])))
    whole._layers = whole._layers[:1]  # noqa: SLF001 - the oracle is the same network, stopped early
    if role == "protein":
        whole._final_norm = None  # noqa: SLF001
    assert torch.equal(early.embed(batch), whole.embed(batch))
    assert read_config(cut).width == read_config(source).width
    assert cut.stat().st_size < source.stat().st_size


def test_a_layer_that_is_not_there_is_a_usage_error(tmp_path, tiny_bundle):
    with pytest.raises(UsageError, match="has 2 layers"):
        write_truncated(load_bundle(str(tiny_bundle)).protein, 9, tmp_path / "x")
    with pytest.raises(UsageError, match="cannot be cut"):
        write_truncated(load_bundle("lite").protein, 1, tmp_path / "x")


@pytest.mark.parametrize("preset", ["head", "published"])
def test_one_command_trains_a_head_on_the_encoders_of_a_bundle(data, tmp_path, tiny_bundle, preset):
    """It predicts what virus is in the tiny data, says what was done, and the same command again changes nothing."""
    output = tmp_path / preset
    asked = ["--data", data, "-o", output, "--preset", preset, "--encoder", tiny_bundle, "--fragments", 1000]
    asked += ["--fragment-length", 150, "--layer", 1, *QUICK]
    said = run(*asked).stdout
    assert "AUROC" in said
    assert f"--model {output}" in said
    bundle = load_bundle(str(output))
    assert bundle.scores_frameless == (preset == "head")
    report = json.loads((output / "training.json").read_text())
    assert report["request"]["preset"] == preset
    assert report["dev"]["500"]["auroc"] > 0.6
    assert report["recipe"]["head"]["optimizer"] == ("adamw" if preset == "head" else "sgd")
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    assert "checkpoint.safetensors" not in before
    assert run(*asked).stdout == said
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    with pytest.raises(RunMismatchError, match="seed"):
        run(*asked, "--seed", 9)
    run(*asked, "--fresh")
    weights = ("head.safetensors", "nucleotide.safetensors", "protein.safetensors")
    assert load_bundle(str(output)).fingerprint == bundle.fingerprint
    assert {name: (output / name).stat().st_size for name in weights} == {n: len(before[n]) for n in weights}


@pytest.fixture
def esm2_file(tmp_path):
    """An ESM-2 of three layers as fair-esm has it, and its file."""
    model, path = make_esm2(layers=3, width=320, heads=20), tmp_path / "esm2_t6_8M_UR50D.pt"
    write_fair_esm(path, model.state_dict(), heads=20)
    return model, path


def check_states(path, model, layer):
    """An encoder file gives the means of what fair-esm has after ``layer`` layers."""
    encoder = load_encoder(path, torch.device("cpu"), torch.float32)
    tokens = encoder.tokenizer(Ragged.from_bytes([b"MKVLEFILPQ"]))
    with torch.inference_mode():
        states = model(torch.from_numpy(tokens.values).long()[None], repr_layers=[layer])
    expected = states["representations"][layer][0, 1:-1].mean(dim=0)
    found = encoder.embed(next(iter(collate(tokens, [np.array([0])]))))[0]
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 2])
def test_an_esm2_on_disk_is_placed_next_to_another_nucleotide_encoder(tmp_path, cache, esm2_file, layer):
    """As fair-esm has it, whole or cut; it is converted once."""
    model, path = esm2_file
    placed = place_encoders(("lite", str(path)), layer, tmp_path)
    assert placed["nucleotide"].read_bytes() == load_bundle("lite").nucleotide.read_bytes()
    check_states(placed["protein"], model, layer or 3)
    (converted,) = (cache / "encoders").glob("esm2_t6_8M_UR50D-*-float32.safetensors")
    written = converted.stat().st_mtime_ns
    place_encoders((str(path), "lite", str(path)), layer, tmp_path)
    assert converted.stat().st_mtime_ns == written


@pytest.mark.slow
def test_a_head_is_trained_on_an_esm2_on_disk(data, tmp_path, esm2_file):
    """Its embeddings are what the bundle computes."""
    model, path = esm2_file
    output = tmp_path / "mine"
    asked = ["--data", data, "-o", output, "--preset", "head", "--encoder", "lite", "--encoder", path, "--layer", 2]
    assert "AUROC" in run(*asked, "--fragments", 200, "--fragment-length", 150, *QUICK).stdout
    bundle = load_bundle(str(output))
    assert bundle.digests["nucleotide"] == load_bundle("lite").digests["nucleotide"]
    check_states(bundle.protein, model, 2)


def test_an_esm2_is_found_by_its_name_and_other_weights_under_a_name_are_others(tmp_path, cache):
    """In the places where released checkpoints are looked for; a file of the user's own goes by its content."""
    for seed, folder in enumerate((cache / "downloads" / "esm2_t6_8M_UR50D", tmp_path / "own")):
        model = make_esm2(layers=1, width=320, heads=20)
        torch.nn.init.normal_(model.embed_tokens.weight, std=seed + 1.0)
        write_fair_esm(folder / "esm2_t6_8M_UR50D.pt", model.state_dict(), heads=20)
    digests = set()
    for name in ("esm2_t6_8M_UR50D", tmp_path / "own" / "esm2_t6_8M_UR50D.pt"):
        output = tmp_path / f"placed-{len(digests)}"
        output.mkdir()
        digests.add(place_encoders(("lite", str(name)), 0, output)["protein"].read_bytes())
    assert len(digests) == 2


def test_a_pickle_that_is_no_esm2_is_refused(tmp_path):
    torch.save({"model": {"weight": torch.zeros(3)}}, tmp_path / "other.pt")
    with pytest.raises(ModelError, match="not the tensors of an ESM-2"):
        place_encoders(("lite", str(tmp_path / "other.pt")), 0, tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--encoder", "lite"], "lite trains its own"),
        (["--preset", "head", "--encoder", "lite", "--start", "lite"], "for --preset lite"),
        (["--preset", "head"], "needs --encoder"),
        (["--preset", "head", "--encoder", "lite", "--minutes", 1], "for --preset lite"),
        (["--preset", "head", "--encoder", "lite", "--layer", 3], "no encoder has more layers"),
        (["--labels", __file__], "goes with FASTA"),
        (["--final"], "for --preset nearest"),
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(data, tmp_path, options, said):
    with pytest.raises(UsageError, match=said):
        run("--data", data, "-o", tmp_path / "x", *options)


def test_a_folder_with_a_bundle_of_another_origin_is_left_alone(data, tmp_path):
    (tmp_path / "bundle.yaml").write_text("mine")
    with pytest.raises(UsageError, match="holds a bundle already"):
        run("--data", data, "-o", tmp_path, "--fragments", 1, "--fresh")
    assert (tmp_path / "bundle.yaml").read_text() == "mine"


def test_kill_9_then_the_same_command_gives_the_same_head(data, tmp_path, tiny_bundle):
    def asked(output):
        options = ["--preset", "head", "--encoder", tiny_bundle, "--fragments", 400, "--fragment-length", 150, *QUICK]
        return [str(word) for word in ("--data", data, "-o", output, *options)]

    killed, whole = tmp_path / "a" / "mine", tmp_path / "b" / "mine"
    code = "from virnucpro.cli.train import train; train()"
    process = subprocess.Popen([sys.executable, "-c", code, *asked(killed)], stdout=subprocess.DEVNULL)
    while not (killed / "checkpoint.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "training.json").exists()
    for output in (killed, whole):
        run(*asked(output))
    assert load_bundle(str(killed)).fingerprint == load_bundle(str(whole)).fingerprint
    assert (killed / "training.json").read_bytes() == (whole / "training.json").read_bytes()


def test_a_table_and_fasta_make_a_bundle(tmp_path, tiny_bundle):
    generator = np.random.default_rng(4)

    def bases_of(row):
        weights = [0.4, 0.2, 0.2, 0.2] if row[1] == "virus" else [0.2, 0.4, 0.2, 0.2]
        return "".join(generator.choice(list("ACGT"), size=3600, p=weights))

    rows = [
        (f"{label}{i}", label, f"{label}_{i // 2}", f"{label}c{i}", "")
        for label in ("virus", "fungi")
        for i in range(12)
    ]
    fasta, table = write_table(tmp_path / "in", rows, bases_of)
    output = tmp_path / "mine"
    asked = ("--preset", "head", "--encoder", tiny_bundle, "--fragments", 192, *QUICK)
    run("--data", fasta, "--labels", table, "-o", output, *asked)
    assert load_bundle(str(output)).presets
    assert json.loads((output / "training.json").read_text())["request"]["preset"] == "head"
