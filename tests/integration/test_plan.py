"""``virnucpro plan``: exact if everything was read, near if a part was, and nothing is left behind."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import random
import shlex
import signal
import time
from pathlib import Path

import pytest
import torch
import zstandard
from conftest import mixed_records, open_dna, random_dna, start, write_fasta
from hypothesis import given
from hypothesis import strategies as st
from test_cascade import write_other

from virnucpro.bundles import load_bundle
from virnucpro.encoders.weights import read_tensors
from virnucpro.errors import InputError
from virnucpro.machine.plan import AMOUNTS, InputHead, Need, PlanSettings, Range, make_plan, weights_bytes
from virnucpro.stages.base import ROLES

EXAMPLES = Path(__file__).parents[2] / "examples"
PACKERS = {
    "fasta": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor().compress,
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No profile of the machine that runs the tests is taken."""
    monkeypatch.setenv("VIRNUCPRO_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def text():
    """4,000 reads of 100 to 600 bases as FASTA."""
    rng = random.Random(1)
    make = (open_dna, random_dna)
    return "".join(f">read_{i}\n{make[i % 2](rng.randint(100, 600), i)}\n" for i in range(4_000)).encode()


def as_fastq(text):
    """With qualities, of which the first is the letter that begins a record."""
    names, sequences = text.decode().split("\n")[:-1:2], text.decode().split("\n")[1::2]
    return "".join(f"@{n[1:]}\n{s}\n+\n@{'I' * (len(s) - 1)}\n" for n, s in zip(names, sequences, strict=True)).encode()


def records_of(text):
    """Lines of names and bases, a continued record joined to its first part."""
    parts = [part.split(b"\n", 1) for part in text.split(b">") if part]
    records = []
    for name, bases in parts:
        if name == b"continued":
            records[-1][1] += bases.replace(b"\n", b"")
        else:
            records.append([name, bases.replace(b"\n", b"")])
    return records


@pytest.mark.parametrize("packing", PACKERS)
def test_a_head_is_the_beginning_in_whole_records(tmp_path, text, packing):
    path = tmp_path / f"reads.{packing}"
    path.write_bytes(PACKERS[packing](text))
    head = InputHead(str(path))
    first, second = head.read(10_000), head.read(20_000)
    assert text.startswith(first + second)
    assert 5_000 < len(first) <= 10_000
    assert second.startswith(b">read_")
    assert not head.is_over
    assert head.num_read == len(first + second)
    rest = head.read(1 << 30)
    assert first + second + rest == text
    assert head.is_over
    assert head.total == head.num_read == len(text)


def test_a_head_of_fastq_is_read_as_fasta(tmp_path, text):
    path = tmp_path / "reads.fastq"
    path.write_bytes(as_fastq(text))
    head = InputHead(str(path))
    assert text.startswith(head.read(10_000) + head.read(20_000))
    assert head.num_read > 25_000


@given(
    lengths=st.lists(st.integers(1, 900), min_size=1, max_size=12),
    width=st.integers(5, 100),
    sizes=st.lists(st.integers(20, 700), min_size=1, max_size=30),
)
def test_a_record_that_is_longer_than_a_part_is_continued(tmp_path_factory, lengths, width, sizes):
    """All parts together hold every base of every record, in order."""
    sequences = [random_dna(length, seed) for seed, length in enumerate(lengths)]
    wrapped = ["\n".join(text[i : i + width] for i in range(0, len(text), width)) for text in sequences]
    path = write_fasta(tmp_path_factory.mktemp("in") / "in.fasta", {f"r{i}": lines for i, lines in enumerate(wrapped)})
    head = InputHead(str(path))
    parts = [head.read(size) for size in sizes]
    parts.append(head.read(1 << 30))
    found = records_of(b"".join(parts))
    assert [(name.decode(), bases.decode()) for name, bases in found] == [(f"r{i}", s) for i, s in enumerate(sequences)]


def test_the_size_of_a_compressed_input_is_estimated_from_its_head(tmp_path, text):
    path = tmp_path / "reads.gz"
    path.write_bytes(gzip.compress(text))
    head = InputHead(str(path))
    head.read(len(text) // 2)
    assert head.total == pytest.approx(len(text), rel=0.25)


def test_reads_of_a_bam_are_read_as_fasta(tmp_path):
    pysam = pytest.importorskip("pysam")
    path = tmp_path / "reads.bam"
    sequences = [random_dna(200, seed) for seed in range(50)]
    with pysam.AlignmentFile(str(path), "wb", header={"HD": {"VN": "1.6"}}) as bam:
        for number, sequence in enumerate(sequences):
            read = pysam.AlignedSegment()
            read.query_name, read.flag, read.query_sequence = f"r{number}", 4, sequence
            bam.write(read)
    head = InputHead(str(path))
    part = head.read(1_000)
    assert part.startswith(b">r0\n")
    assert head.total == sum(len(f">r{i}\n{s}\n") for i, s in enumerate(sequences))


def fake_program(seconds_a_byte=0.0):
    """A program that is as large as its input; it takes no time by the clock and reads no model."""

    def predict(paths, folder):
        folder.mkdir()
        num_bytes = sum(path.stat().st_size for path in paths)
        (folder / "results").write_bytes(b"x" * (100 + 2 * num_bytes))
        time.sleep(seconds_a_byte * num_bytes)
        counts = {"num_sequences": num_bytes / 10, "num_fragments": num_bytes / 5, "num_rows": num_bytes / 4}
        counts["num_rows_computed"] = num_bytes / 4
        return {"counts": counts, "inputs": [{"num_bases": num_bytes}], "seconds": {"embed": 1.0, "total": 2.0}}

    return predict


def planned(tiny_bundle, tmp_path, *inputs, seconds=1.0):
    bundle = load_bundle(str(tiny_bundle))
    given = tuple(map(str, inputs))
    settings = PlanSettings(given, bundle, ("cpu",), "float32", tmp_path, 16_384, seconds, 0.5)
    return make_plan(settings, fake_program())


def test_a_part_is_scaled_to_the_whole(tiny_bundle, tmp_path, text):
    """Of several inputs, compressed ones among them; what is scaled is what grows with the text."""
    paths = [tmp_path / f"reads-{k}.{packing}" for k, packing in enumerate(("fasta", "gz", "fasta"))]
    for k, path in enumerate(paths):
        path.write_bytes(PACKERS[path.suffix[1:]](text * (k + 3)))
    whole = 12 * len(text)
    plan = planned(tiny_bundle, tmp_path, *paths, seconds=0.2)
    assert 0 < plan.share_read < 1
    for name, a_byte in zip(AMOUNTS, (1 / 10, 1, 1 / 5, 1 / 4, 1 / 4), strict=True):
        assert plan.amounts[name].likely == pytest.approx(whole * a_byte, rel=0.1)
        assert plan.amounts[name].low < whole * a_byte < plan.amounts[name].high
    assert plan.disk_after.needed.likely == pytest.approx(2 * whole, rel=0.1)
    assert plan.disk_kept.needed.likely > plan.disk.needed.likely > plan.disk_after.needed.likely


def test_many_inputs_are_estimated_from_some_of_them(tiny_bundle, tmp_path, text):
    """Eight at most are opened; the others count by their size."""
    paths = [tmp_path / f"reads-{k}.fasta" for k in range(20)]
    for path in paths:
        path.write_bytes(text[: text.rindex(b">", 0, 30_000)])
    whole = sum(path.stat().st_size for path in paths)
    plan = planned(tiny_bundle, tmp_path, *paths)
    assert plan.share_read < 1
    assert plan.amounts["bases"].likely == pytest.approx(whole, rel=0.01)


def test_the_table_ends_with_the_command_to_run(virnucpro, tiny_bundle, tmp_path):
    source = EXAMPLES / "metagenome.fasta"
    options = ("-m", tiny_bundle, "--device", "cpu", "-t", 1, "-o", tmp_path / "out")
    ended = virnucpro("plan", source, *options, "--seconds", 1)
    assert ended.code == 0, ended.err
    assert "rows computed" in ended.out
    assert "disk: fits" in ended.out
    *_, last = ended.out.strip().splitlines()
    assert shlex.split(last) == [
        *("virnucpro", "predict", str(source), "-o", str(tmp_path / "out")),
        *("-m", str(tiny_bundle), "--device", "cpu", "-t", "1"),
    ]
    assert not (tmp_path / "out").exists()


def test_what_is_read_whole_is_counted_exactly(virnucpro, tiny_bundle, tmp_path):
    source = write_fasta(tmp_path / "in.fasta", {f"r{i}": open_dna(400, i % 30) for i in range(40)})
    options = ("-m", tiny_bundle, "--device", "cpu", "-t", 1, "-o", tmp_path / "out")
    plan = json.loads(virnucpro("plan", source, *options, "--json").out)
    assert virnucpro(*shlex.split(plan["command"])[1:]).code == 0
    record = json.loads((tmp_path / "out" / "in.run.json").read_text())
    assert plan["share_read"] == 1
    for name in ("sequences", "fragments", "rows", "rows_computed"):
        value = record["counts"][f"num_{name}"]
        assert plan["amounts"][name] == dict.fromkeys(("low", "likely", "high"), value)
    total = plan["start_seconds"]["likely"] + plan["work_seconds"]["likely"]
    assert plan["total_seconds"]["likely"] == pytest.approx(total)
    stored = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert plan["disk_after"]["needed"]["likely"] == pytest.approx(stored, rel=0.5)


def test_a_cascade_is_planned_with_the_shares_of_both_models(virnucpro, tmp_path):
    other = write_other(tmp_path / "other")
    source = write_fasta(tmp_path / "in.fasta", mixed_records(8))
    options = ("-m", other, "--device", "cpu", "-t", 1, "-o", tmp_path / "out", "--cascade")
    limits = ("--cascade-limits", "0.3,0.7")
    plan = json.loads(virnucpro("plan", source, *options, *limits, "--seconds", 30, "--json").out)
    words = shlex.split(plan["command"])
    assert words[words.index("--cascade") :] == ["--cascade", *limits]
    assert set(plan["shares_by_model"]) <= {"lite", "other"}
    assert sum(plan["shares_by_model"].values()) == pytest.approx(1)


def test_an_input_without_records_is_planned_too(virnucpro, tiny_bundle, tmp_path):
    path = tmp_path / "empty.fasta"
    path.touch()
    ended = virnucpro("plan", path, "-m", tiny_bundle, "--device", "cpu", "-t", 1, "--json")
    plan = json.loads(ended.out)
    assert plan["amounts"]["rows"]["likely"] == plan["work_seconds"]["likely"] == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_are_known_from_the_headers(tiny_bundle, dtype):
    for of_bundle in (load_bundle(str(tiny_bundle)), load_bundle("lite")):
        for role in ROLES:
            path = of_bundle.encoder(role)
            tensors = read_tensors(path, torch.device("cpu"), getattr(torch, dtype))
            sizes = {
                name: 4 if tensor.dtype == torch.int8 else tensor.element_size() for name, tensor in tensors.items()
            }
            assert weights_bytes(path, dtype) == sum(tensors[name].numel() * size for name, size in sizes.items())


@pytest.mark.parametrize(("free", "verdict"), [(30, "fits"), (29, "may not fit"), (19, "does not fit")])
def test_a_verdict_is_plain(free, verdict):
    assert Need(Range(10, 20, 30), free).verdict == verdict


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b">p\nMKVLEFILPQ\n", "nucleotide"),
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


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((), 2),
        (("-",), 3),
        (("in.fa", "--cascade-limits", "0.1,0.9"), 2),
        (("in.fa", "-m", "nowhere"), 6),
        (("in.fa", "--seconds", "0"), 2),
    ],
)
def test_wrong_use_is_one_line_and_its_exit_code(virnucpro, tmp_path, monkeypatch, arguments, code):
    monkeypatch.chdir(tmp_path)
    write_fasta(tmp_path / "in.fa", {"a": random_dna(300, 1)})
    ended = virnucpro("plan", *arguments)
    assert (ended.code, ended.out) == (code, "")
    assert ended.err.strip().splitlines()[-1].startswith("Error: ")


def test_a_pipe_is_not_drained(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a pipe"):
        InputHead(str(tmp_path / "pipe"))


def test_ctrl_c_leaves_nothing_behind(tiny_bundle, tmp_path, text):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    path = tmp_path / "reads.fasta"
    path.write_bytes(text)
    process = start(
        *("plan", path, "-m", tiny_bundle, "--device", "cpu", "-t", 1, "--seconds", 600),
        env=os.environ | {"TMPDIR": str(temporary)},
    )
    deadline = time.monotonic() + 120
    while not list(temporary.glob("virnucpro-plan-*/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert list(temporary.glob("virnucpro-*")) == []
