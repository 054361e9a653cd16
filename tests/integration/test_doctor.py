"""``virnucpro doctor``: what it says, and that its self-test tells a wrong model from a right one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import write_fasta

from virnucpro.bundles import load_bundle
from virnucpro.cli.doctor import predict_known
from virnucpro.errors import ModelError
from virnucpro.platforms import peak_memory_bytes
from virnucpro.registry import known_answers
from virnucpro.registry.checkup import check_answers
from virnucpro.registry.inventory import places_of, verify
from virnucpro.resources import free_memory_bytes, held_memory_bytes

LITE = Path(load_bundle("lite").folder)
LINES = [
    "virnucpro", "python", "torch", "devices", "attention", "cpus", "memory", "disk, models", "disk, here",
    "libraries", "model lite", "self-test",
]  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty place for models."""
    monkeypatch.setenv("VIRNUCPRO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def lite(tmp_path):
    """A copy of the bundled model."""
    return Path(shutil.copytree(LITE, tmp_path / "lite"))


def change_calibration(folder):
    """Another model: every probability moves."""
    settings = yaml.safe_load((folder / "bundle.yaml").read_text())
    settings["calibration"]["intercept"] = [value + 0.01 for value in settings["calibration"]["intercept"]]
    (folder / "bundle.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))


def test_a_machine_that_works_is_exit_0_with_a_line_for_each_thing(virnucpro):
    ended = virnucpro("doctor")
    assert ended.code == 0, ended.out
    lines = ended.out.splitlines()
    assert [line[6:20].strip() for line in lines] == LINES
    assert {line[:4].strip() for line in lines} <= {"OK", "WARN"}
    assert "known answers" in lines[-1]


def test_a_damaged_model_is_exit_1(virnucpro, cache, tiny_bundle):
    """Every other line is still printed."""
    shutil.copytree(tiny_bundle, cache / "bundles" / "tiny")
    assert virnucpro("models", "record", "tiny").code == 0
    path = cache / "bundles" / "tiny" / "head.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    ended = virnucpro("doctor", "--json")
    findings = json.loads(ended.out)["findings"]
    assert (ended.code, json.loads(ended.out)["ok"]) == (1, False)
    (failed,) = [finding for finding in findings if finding["state"] == "FAIL"]
    assert str(path) in failed["text"]
    assert len(findings) == len(LINES) + 1


def test_the_bundled_model_is_what_its_records_say():
    """After training: ``virnucpro models record --answers virnucpro/bundles/lite``."""
    assert verify(places_of("lite")[0]) == []
    assert known_answers.read_answers(LITE).fingerprint == load_bundle("lite").fingerprint


@pytest.fixture(scope="module")
def predicted(tmp_path_factory):
    """What the bundled model says of the known sequences, for those who ask for its table."""
    folder = tmp_path_factory.mktemp("known")
    fasta = write_fasta(folder / "known.fasta", {f"s{i}": bases for i, bases in enumerate(known_answers.sequences())})
    table = predict_known("lite")(fasta, folder / "out")
    return lambda *_: table


def test_the_known_answers_are_those_of_this_machine(predicted):
    state, text = check_answers(LITE, predicted)
    assert state == "OK", text


def test_answers_of_another_model_are_told_apart(lite):
    """Fingerprint and file do not match: a model that was replaced without its answers."""
    change_calibration(lite)
    state, text = check_answers(lite, predict_known(str(lite)))
    assert state == "FAIL"
    assert f"virnucpro models record --answers {lite}" in text


def test_wrong_numbers_are_found(lite, predicted):
    """The same fingerprint, another answer: what a broken library would give."""
    known = known_answers.read_answers(lite)
    off = known_answers.KnownAnswers(known.fingerprint, (known.p_virus[0] + 0.0003, *known.p_virus[1:]))
    known_answers.write_answers(lite, off)
    state, text = check_answers(lite, predicted)
    assert state == "FAIL"
    assert "report it" in text


def test_a_model_without_answers_is_a_warning(lite):
    (lite / known_answers.FILE).unlink()
    assert check_answers(lite, predict_known(str(lite)))[0] == "WARN"


def test_one_command_records_checksums_and_answers(virnucpro, lite):
    """What the release step runs after training."""
    change_calibration(lite)
    assert virnucpro("models", "verify", lite).code == 6
    ended = virnucpro("models", "record", "--answers", lite)
    assert ended.code == 0, ended.err
    assert virnucpro("models", "verify", lite).code == 0
    assert check_answers(lite, predict_known(str(lite)))[0] == "OK"


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 1}', '{"sequences": {"rule": "x", "seed": 1}}'])
def test_damaged_answers_are_an_error_that_names_them(lite, content):
    (lite / known_answers.FILE).write_text(content)
    with pytest.raises(ModelError, match=known_answers.FILE):
        known_answers.read_answers(lite)


def test_the_sequences_are_the_same_everywhere():
    """A rule of integers alone; the first bases are written down here."""
    made = known_answers.sequences()
    assert [len(sequence) for sequence in made] == [length for length, _ in known_answers.SHAPES]
    assert made[0][:24] == FIRST_BASES
    assert made == known_answers.sequences()
    for sequence, (_, is_open) in zip(made, known_answers.SHAPES, strict=True):
        codons = {sequence[i : i + 3] for i in range(0, len(sequence) - 2, 3)}
        assert bool(codons & {"TAA", "TAG", "TGA"}) != is_open


FIRST_BASES = "CATGGTTCAATTATCTCTGGCAAA"


def test_free_memory_is_the_least_of_machine_and_group(tmp_path):
    """A container may have less than its host."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/job\n")
    (tmp_path / "sys/fs/cgroup/job").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/job/memory.max").write_text("3000000\n")
    (tmp_path / "sys/fs/cgroup/job/memory.current").write_text("1000000\n")
    assert free_memory_bytes(tmp_path) == 2_000_000
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("2500000\n")
    (tmp_path / "sys/fs/cgroup/memory.current").write_text("1000000\n")
    assert free_memory_bytes(tmp_path) == 1_500_000
    for group in ("job/memory.max", "memory.max"):
        (tmp_path / "sys/fs/cgroup" / group).write_text("max\n")
    assert free_memory_bytes(tmp_path) > 3_000_000


def test_the_memory_of_a_process_and_its_children_is_seen():
    """A child of the watched process holds most of it."""
    child = "held = bytearray(b'x' * 200_000_000); print('ready', flush=True); input()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        assert 200_000_000 < held_memory_bytes(process.pid) < 300_000_000
        process.stdin.write(b"\n")
    assert held_memory_bytes(process.pid) == 0
    assert peak_memory_bytes() > 10_000_000
