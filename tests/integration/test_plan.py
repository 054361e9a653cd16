"""``virnucpro plan``: counts are exact where everything was read, near where a part was, and nothing stays behind."""

from __future__ import annotations

import gzip
import json
import os
import random
import shlex
import signal
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from conftest import open_dna, random_dna, start, write_fasta
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cascade import write_other

from virnucpro.bundles import load_bundle
from virnucpro.encoders.weights import read_tensors
from virnucpro.machine.forecast import Range, count_sample, foresee
from virnucpro.machine.plan import Need, weights_bytes
from virnucpro.machine.sampling import sample_input
from virnucpro.sequence.extract import Extraction
from virnucpro.sequence.table import are_own_source
from virnucpro.stages.base import ROLES

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("num_sequences", "num_bases", "num_fragments", "num_rows", "num_computed")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No profile of the machine that runs the tests is taken."""
    monkeypatch.setenv("VIRNUCPRO_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return load_bundle(str(tiny_bundle))


@pytest.fixture(scope="module")
def reads(tmp_path_factory):
    """20,000 reads of 100 to 600 bases, half of them open in the first frame."""
    rng = random.Random(1)
    path = tmp_path_factory.mktemp("reads") / "reads.fasta"
    make = (open_dna, random_dna)
    return write_fasta(path, {f"read_{i} sample 7": make[i % 2](rng.randint(100, 600), i) for i in range(20_000)})


@pytest.fixture(scope="module")
def reads_gz(reads):
    path = reads.with_name("packed.fasta.gz")
    path.write_bytes(gzip.compress(reads.read_bytes(), 1, mtime=0))
    return path


@pytest.fixture(scope="module")
def reads_fastq(reads):
    """The same with qualities, of which the first is the letter that begins a record."""
    lines = reads.read_text().splitlines()
    path = reads.with_name("reads.fastq")
    pairs = zip(lines[::2], lines[1::2], strict=True)
    path.write_text("".join(f"@{name[1:]}\n{bases}\n+\n@{'I' * (len(bases) - 1)}\n" for name, bases in pairs))
    return path


def truth(bundle, *sources):
    """Sequences, bases, fragments, rows and computed rows, by reading everything."""
    extraction = Extraction(
        [str(source) for source in sources], bundle.fragment_length, bundle.min_length, 16_384, bundle.scores_frameless
    )
    num_fragments = num_rows = num_computed = 0
    for table in extraction.units():
        num_fragments += len(table.fragments)
        num_rows += len(table.rows)
        num_computed += int(are_own_source(table.rows, table.first_row).sum())
    sums = (sum(item.num_sequences for item in extraction.inputs), sum(item.num_bases for item in extraction.inputs))
    return dict(zip(NAMES, (*sums, num_fragments, num_rows, num_computed), strict=True))


def foreseen(bundle, folder, sample_bytes, *sources):
    folder.mkdir(exist_ok=True)
    inputs = [sample_input(number, str(source), sample_bytes, folder) for number, source in enumerate(sources)]
    return inputs, foresee(inputs, count_sample(inputs, bundle, 16_384, folder / "counted"))


def assert_exact(amounts, expected):
    assert {name: getattr(amounts, name) for name in NAMES} == {k: Range.exactly(v) for k, v in expected.items()}


def assert_near(amounts, expected):
    """Within a tenth, and within the range that is claimed."""
    for name, value in expected.items():
        amount = getattr(amounts, name)
        assert amount.likely == pytest.approx(value, rel=0.1), name
        assert amount.low <= value <= amount.high, name


def test_a_file_that_is_read_whole_is_counted_exactly(bundle, tmp_path, reads, reads_gz):
    for number, source in enumerate((EXAMPLES / "metagenome.fasta", EXAMPLES / "reads.fastq.gz", reads, reads_gz)):
        inputs, amounts = foreseen(bundle, tmp_path / str(number), 1 << 30, source)
        assert inputs[0].is_whole
        assert_exact(amounts, truth(bundle, source))


def test_duplicates_across_inputs_are_found_where_all_is_read(bundle, tmp_path, reads):
    again = tmp_path / "again.fasta"
    again.write_bytes(reads.read_bytes()[:50_000].rpartition(b">")[0])
    _, amounts = foreseen(bundle, tmp_path / "sample", 1 << 30, reads, again)
    assert_exact(amounts, truth(bundle, reads, again))
    assert amounts.num_computed.likely < amounts.num_rows.likely


@pytest.mark.parametrize("name", ["reads", "reads_gz", "reads_fastq"])
def test_a_part_of_a_file_foresees_the_whole_within_a_tenth(bundle, tmp_path, request, name):
    source = request.getfixturevalue(name)
    inputs, amounts = foreseen(bundle, tmp_path / "sample", 500_000, source)
    assert not inputs[0].is_whole
    assert inputs[0].is_beginning == (name == "reads_gz")
    assert_near(amounts, truth(bundle, source))


@pytest.mark.parametrize("width", [60, 0])
def test_long_records_are_foreseen_from_pieces_of_them(bundle, tmp_path, width):
    """Genomes longer than a piece, wrapped or on one line; sequences are too few to be foreseen."""
    genomes = [open_dna(900_000, seed) for seed in range(3)]
    lines = ["\n".join(g[i : i + width] for i in range(0, len(g), width)) if width else g for g in genomes]
    path = write_fasta(tmp_path / "genomes.fasta", {f"genome_{i}": text for i, text in enumerate(lines)})
    _, amounts = foreseen(bundle, tmp_path / "sample", 400_000, path)
    expected = truth(bundle, path)
    del expected["num_sequences"]
    assert_near(amounts, expected)


def test_files_that_differ_all_over_have_a_wide_range(bundle, tmp_path):
    """Short reads first, genomes after: pieces disagree, and the range says so."""
    records = {f"read_{i}": random_dna(100, i) for i in range(5_000)}
    records |= {f"genome_{i}": random_dna(250_000, i) for i in range(4)}
    path = write_fasta(tmp_path / "mixed.fasta", records)
    _, amounts = foreseen(bundle, tmp_path / "sample", 100_000, path)
    assert amounts.num_sequences.low <= 5_004 <= amounts.num_sequences.high
    assert amounts.num_sequences.high > 1.4 * amounts.num_sequences.likely


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 400), min_size=30, max_size=80),
    width=st.integers(5, 100),
    sample_bytes=st.integers(2_000, 6_000),
)
def test_pieces_are_parts_of_the_file(lengths, width, sample_bytes):
    """Every piece lies in the file as it is, and begins with a header or says that it does not."""
    sequences = [random_dna(length, seed) for seed, length in enumerate(lengths)]
    texts = ["\n".join(text[i : i + width] for i in range(0, len(text), width)) for text in sequences]
    with TemporaryDirectory() as name:
        path = write_fasta(Path(name) / "in.fasta", {f"record {i} of some": text for i, text in enumerate(texts)})
        sampled = sample_input(0, str(path), sample_bytes, Path(name))
        whole = path.read_bytes()
        for piece in sampled.pieces if not sampled.is_whole else ():
            body = piece.path.read_bytes().removeprefix(b">begins_inside\n")
            assert body in whole
            assert piece.num_bytes == len(body)
            assert piece.begins_inside == (not body.startswith(b">"))


def test_the_table_ends_with_the_command_to_run(virnucpro, tiny_bundle, tmp_path):
    source = EXAMPLES / "metagenome.fasta"
    command = ("plan", source, "-m", tiny_bundle, "--device", "cpu", "-t", 1, "-o", tmp_path / "out")
    ended = virnucpro(*command)
    assert ended.code == 0, ended.err
    assert "rows to compute" in ended.out
    assert "disk: fits" in ended.out
    *_, last = ended.out.strip().splitlines()
    assert shlex.split(last) == [
        *("virnucpro", "predict", str(source), "-o", str(tmp_path / "out")),
        *("-m", str(tiny_bundle), "--device", "cpu", "-t", "1"),
    ]
    assert not (tmp_path / "out").exists()


def test_the_command_that_is_named_finds_what_was_foreseen(virnucpro, tiny_bundle, tmp_path):
    source = EXAMPLES / "metagenome.fasta"
    options = ("-m", tiny_bundle, "--device", "cpu", "-t", 1, "-o", tmp_path / "out")
    planned = json.loads(virnucpro("plan", source, *options, "--json").out)
    assert virnucpro(*shlex.split(planned["command"])[1:]).code == 0
    record = json.loads((tmp_path / "out" / "metagenome.run.json").read_text())
    for ours, theirs in (("num_rows", "num_rows"), ("num_computed", "num_rows_computed")):
        assert planned["amounts"][ours]["likely"] == record["counts"][theirs]
    assert planned["sampled"] == [1.0]
    parts = ("start", "extract", "embed", "rest")
    total = sum(planned["seconds"][part]["likely"] for part in parts)
    assert planned["total_seconds"]["likely"] == pytest.approx(total)
    for part in parts:
        assert 0 <= planned["seconds"][part]["low"] <= planned["seconds"][part]["likely"]
    stored = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert planned["disk_after"]["needed"]["likely"] == pytest.approx(stored, rel=0.5)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A model that lite may look before, and as fast."""
    return write_other(tmp_path_factory.mktemp("models") / "other")


@pytest.mark.parametrize("limits", [(), ("--cascade-limits", "0.3,0.7"), ("--cascade-limits", "0,1")])
def test_a_cascade_that_is_read_whole_finds_what_was_foreseen(virnucpro, other, tmp_path, limits):
    """Both models' rows, and which sequences go on; the last limits leave everything to the model asked for."""
    source = EXAMPLES / "metagenome.fasta"
    options = ("-m", other, "--device", "cpu", "-t", 1, "-o", tmp_path / "out", "--cascade", *limits)
    planned = json.loads(virnucpro("plan", source, *options, "--json").out)
    words = shlex.split(planned["command"])
    assert words[words.index("--cascade") :] == ["--cascade", *limits]
    assert virnucpro(*words[1:]).code == 0
    record = json.loads((tmp_path / "out" / "metagenome.run.json").read_text())
    first = planned["first"]
    for amounts, counts in ((planned["amounts"], record["counts"]), (first["amounts"], record["cascade"])):
        found = {name: counts[name] for name in ("num_fragments", "num_rows", "num_rows_computed")}
        assert [amounts[name]["likely"] for name in ("num_fragments", "num_rows", "num_computed")] == [*found.values()]
    assert (first["model"], first["low"], first["high"]) == (
        "lite",
        record["cascade"]["low"],
        record["cascade"]["high"],
    )
    num_going_on = record["counts"]["sequences_by_model"]["other"]
    assert planned["amounts"]["num_sequences"]["likely"] == num_going_on
    assert planned["amounts"]["num_bases"]["likely"] == record["counts"]["bases_by_model"]["other"]
    assert first["amounts"]["num_sequences"]["likely"] == record["counts"]["num_sequences"]
    assert first["share"] == dict.fromkeys(("low", "likely", "high"), num_going_on / record["counts"]["num_sequences"])
    assert (first["share"]["likely"] == 1) == (limits[1:] == ("0,1",))
    assert 0 < first["embed_seconds"]["likely"] < planned["seconds"]["embed"]["likely"]
    stored = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert planned["disk_after"]["needed"]["likely"] == pytest.approx(stored, rel=0.5)


def test_a_part_of_a_file_foresees_what_goes_on(virnucpro, other, tmp_path):
    """Within the range that is claimed; the text says the share."""
    make = (open_dna, random_dna)
    source = write_fasta(tmp_path / "reads.fasta", {f"r{i}": make[i % 2](200 + i % 400, i) for i in range(2_000)})
    options = ("-m", other, "--device", "cpu", "-t", 1, "-o", tmp_path / "out", "--cascade")
    planned = json.loads(virnucpro("plan", source, *options, "--sample-mb", 0.2, "--json").out)
    assert planned["sampled"][0] < 0.5
    assert virnucpro("predict", source, *options, "--no-report", "-q").code == 0
    record = json.loads((tmp_path / "out" / "reads.run.json").read_text())
    share = record["counts"]["sequences_by_model"]["other"] / 2_000
    assert planned["first"]["share"]["low"] <= share <= planned["first"]["share"]["high"]
    for amounts, counts in ((planned["amounts"], record["counts"]), (planned["first"]["amounts"], record["cascade"])):
        assert amounts["num_rows"]["low"] <= counts["num_rows"] <= amounts["num_rows"]["high"]
    said = virnucpro("plan", source, *options, "--sample-mb", 0.2).out
    assert "lite looks first" in said
    assert "of the sequences go on to other" in said
    assert "rows to compute, lite" in said


def test_a_cascade_without_records_is_planned_too(virnucpro, other, tmp_path):
    path = tmp_path / "empty.fasta"
    path.touch()
    ended = virnucpro("plan", path, "-m", other, "--device", "cpu", "-t", 1, "--cascade", "--json")
    planned = json.loads(ended.out)
    assert planned["first"]["share"]["likely"] == planned["seconds"]["embed"]["likely"] == 0


def test_an_input_without_records_is_planned_too(virnucpro, tiny_bundle, tmp_path):
    path = tmp_path / "empty.fasta"
    path.touch()
    planned = json.loads(virnucpro("plan", path, "-m", tiny_bundle, "--device", "cpu", "-t", 1, "--json").out)
    assert planned["amounts"]["num_rows"]["likely"] == 0
    assert planned["seconds"]["embed"]["likely"] == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_are_known_from_the_headers(bundle, dtype):
    for of_bundle in (bundle, load_bundle("lite")):
        for role in ROLES:
            path = of_bundle.encoder(role)
            tensors = read_tensors(path, torch.device("cpu"), getattr(torch, dtype))
            sizes = {
                name: 4 if tensor.dtype == torch.int8 else tensor.element_size() for name, tensor in tensors.items()
            }
            assert weights_bytes(path, dtype) == sum(tensors[name].numel() * size for name, size in sizes.items())


@pytest.mark.parametrize(
    ("free", "verdict"), [(30, "fits"), (29, "may not fit"), (19, "does not fit"), (None, "free amount unknown")]
)
def test_a_verdict_is_plain(free, verdict):
    assert Need(Range(10, 20, 30), free).verdict == verdict


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b">p\nMKVLEFILPQ\n", "is no nucleotide letter"),
        (b"LOCUS       X", "GenBank"),
        (b"\x1f\x8b\x08\x00nonsense", "the gzip data is"),
        (None, "no such file"),
    ],
)
def test_input_that_predict_refuses_is_refused(virnucpro, tiny_bundle, tmp_path, content, words):
    path = tmp_path / "input.fa"
    if content is not None:
        path.write_bytes(content)
    ended = virnucpro("plan", path, "-m", tiny_bundle, "--device", "cpu", "-t", 1)
    assert (ended.code, ended.out) == (3, "")
    assert words in ended.err.splitlines()[-1]
    assert str(path) in ended.err.splitlines()[-1]


def test_a_wrong_letter_in_a_piece_is_told_of_the_file(virnucpro, tiny_bundle, tmp_path):
    path = write_fasta(tmp_path / "reads.fa", {f"r{i}": random_dna(500, i) + "*" for i in range(300)})
    ended = virnucpro("plan", path, "-m", tiny_bundle, "--device", "cpu", "-t", 1, "--sample-mb", 0.05)
    assert ended.code == 3
    assert ended.err.splitlines()[-1].startswith(f"Error: {path}: '*'")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((), 2),
        (("-",), 3),
        (("in.fa", "--cascade-limits", "0.1,0.9"), 2),
        (("in.fa", "--cascade"), 2),
        (("in.fa", "-m", "nowhere"), 6),
        (("in.fa", "--sample-mb", "0"), 2),
    ],
)
def test_wrong_use_is_one_line_and_its_exit_code(virnucpro, arguments, code):
    ended = virnucpro("plan", *arguments)
    assert (ended.code, ended.out) == (code, "")
    assert ended.err.strip().splitlines()[-1].startswith("Error: ")


def test_a_pipe_is_not_drained(virnucpro, tiny_bundle, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    ended = virnucpro("plan", tmp_path / "pipe", "-m", tiny_bundle, "--device", "cpu")
    assert ended.code == 3
    assert "is a pipe" in ended.err


def test_ctrl_c_leaves_nothing_behind(tiny_bundle, tmp_path, reads):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = ("plan", reads, "-m", tiny_bundle, "--device", "cpu", "-t", 1)
    process = start(*command, env=os.environ | {"TMPDIR": str(temporary)})
    deadline = time.monotonic() + 60
    while not list(temporary.glob("virnucpro-plan-*/one")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert list(temporary.glob("virnucpro-*")) == []
