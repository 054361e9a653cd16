"""What happens when a run is stopped, killed, starved or asked to be another one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import mixed_records, open_dna, result_bytes, start, wait_for_files, write_fasta
from tiny_models import write_tiny_bundle

from virnucpro import Options, lifeline, predict, store
from virnucpro.progress import Reporter
from virnucpro.run_dir import RunDir
from virnucpro.settings import make_settings

SMALL_UNITS = ("--unit-rows", 8, "--token-budget", 900, "--threads", 2, "--no-progress", "--no-report")
KEPT = ("--keep-intermediate", "--keep-embeddings")
"""Embeddings that are not kept are gone a moment after they are there, and nobody can wait for them."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_bundle):
    """An input of many units, and the results of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    fasta = write_fasta(folder / "in.fasta", mixed_records(40))
    settings = {"science.model": str(tiny_bundle), "runtime.device": "cpu", "layout.unit_rows": 8}
    options = Options(keep_intermediate=True, with_report=False)
    predict([fasta], folder / "out", make_settings(None, settings), options=options)
    return fasta, result_bytes(folder / "out", "in", "rows.tsv.gz")


def command(fasta, out, bundle, *more):
    return ("predict", fasta, "-o", out, "--model", bundle, *KEPT, *SMALL_UNITS, *more)


def children_of(process):
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize(
    ("stage", "number", "parallel"),
    [
        pytest.param("units", 3, (), marks=pytest.mark.slow),
        pytest.param("embeddings/nucleotide", 2, ("--parallel",), marks=pytest.mark.slow),
        pytest.param("embeddings/protein", 3, (), marks=pytest.mark.slow),
        ("embeddings/protein", 3, ("--parallel",)),
        pytest.param("scores", 4, (), marks=pytest.mark.slow),
    ],
)
def test_kill_9_then_the_same_command_gives_the_same_bytes(
    virnucpro, undisturbed, tmp_path, tiny_bundle, stage, number, parallel
):
    """A killed run goes on and ends as if nothing had happened; its children do not outlive it."""
    fasta, expected = undisturbed
    process = start(*command(fasta, tmp_path / "out", tiny_bundle, *parallel))
    wait_for_files(tmp_path / "out/run" / stage, number, process)
    children = children_of(process)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    ended = virnucpro(*command(fasta, tmp_path / "out", tiny_bundle))
    assert ended.code == 0, ended.err
    assert result_bytes(tmp_path / "out", "in", "rows.tsv.gz") == expected
    assert not list((tmp_path / "out").rglob("*-tmp-*"))


@pytest.mark.parametrize(
    ("sent", "code", "parallel"),
    [
        pytest.param(signal.SIGINT, 130, (), marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, ("--parallel",), marks=pytest.mark.slow),
        (signal.SIGTERM, 143, ("--parallel",)),
    ],
)
def test_an_interrupt_ends_with_its_code_and_the_run_goes_on(
    virnucpro, undisturbed, tmp_path, tiny_bundle, sent, code, parallel
):
    """Ctrl-C is 130, SIGTERM 143; no process is left, finished units stay, the same command finishes."""
    fasta, expected = undisturbed
    process = start(*command(fasta, tmp_path / "out", tiny_bundle, *parallel))
    wait_for_files(tmp_path / "out/run/embeddings/protein", 2, process)
    children = children_of(process)
    os.killpg(process.pid, sent) if sent == signal.SIGINT else process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "repeat the command to resume" in err
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/run/units").iterdir()}
    ended = virnucpro(*command(fasta, tmp_path / "out", tiny_bundle))
    assert ended.code == 0, ended.err
    assert result_bytes(tmp_path / "out", "in", "rows.tsv.gz") == expected
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "out/run/units").iterdir()}


INTERRUPTED = """
import os, signal, sys
from virnucpro.__main__ import run
from virnucpro.stages.merge import MergeWork

look, at = MergeWork.is_done, int(sys.argv.pop(1))

def is_done(work, unit):
    if unit == at:
        os.kill(os.getpid(), signal.SIGINT)
    return look(work, unit)

MergeWork.is_done = is_done
run()
"""


def ends_with_130(fasta, out, bundle, unit):
    """Run the program, interrupted while its merge stage looks at ``unit``."""
    arguments = command(fasta, out, bundle, "--parallel", "--merge-threads", 2)
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(unit), *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _, err = process.communicate(timeout=300)  # for ever where a child is waited for
    assert process.returncode == 130, err
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(session_of(process), timeout=10)
    assert not alive


def session_of(process):
    """Who is left of the session that ``process`` began, whether or not it has ended itself."""
    left = []
    for pid in psutil.pids():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(pid) == process.pid:
                left.append(psutil.Process(pid))
    return left


def test_an_interrupt_while_the_merge_stage_looks_at_a_unit_ends_the_run(undisturbed, tmp_path, tiny_bundle):
    """The stages pull from one another, so this comes in the middle of three executors: all of them end."""
    ends_with_130(undisturbed[0], tmp_path / "out", tiny_bundle, 1)


@pytest.mark.slow
@pytest.mark.parametrize("unit", range(12))
def test_an_interrupt_at_any_unit_of_the_merge_stage_ends_the_run(undisturbed, tmp_path, tiny_bundle, unit):
    """The same, many times."""
    ends_with_130(undisturbed[0], tmp_path / "out", tiny_bundle, unit)


def test_a_killed_worker_costs_at_most_its_units(undisturbed, tmp_path, tiny_bundle):
    """The run notices, hands the units to another process and ends with exit 0 and the same bytes."""
    fasta, expected = undisturbed
    process = start(*command(fasta, tmp_path / "out", tiny_bundle, "--parallel"))
    wait_for_files(tmp_path / "out/run/embeddings/protein", 2, process)
    workers = [child for child in children_of(process) if "spawn_main" in " ".join(child.cmdline())]
    workers[0].kill()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert result_bytes(tmp_path / "out", "in", "rows.tsv.gz") == expected


def test_a_full_disk_is_exit_4_and_the_run_goes_on_when_there_is_room(virnucpro, undisturbed, small_disk, tiny_bundle):
    """No space left: one line with the file, and finished work is kept."""
    fasta, expected = undisturbed
    disk, resize = small_disk
    resize("200k")
    arguments = command(fasta, disk / "out", tiny_bundle)
    ended = virnucpro(*arguments)
    assert ended.code == 4, ended.err
    assert "no space left" in ended.err
    assert "Traceback" not in ended.err
    resize("64m")
    assert virnucpro(*arguments).code == 0
    assert result_bytes(disk / "out", "in", "rows.tsv.gz") == expected


def test_a_disk_on_which_the_run_cannot_end_is_refused_before_anything_is_embedded(virnucpro, small_disk, tmp_path):
    """Exit 4 with what is needed and what is there; when there is room the same command goes on."""
    disk, resize = small_disk
    bundle = write_tiny_bundle(tmp_path / "bundle", protein_width=512, num_layers=1)
    fasta = write_fasta(tmp_path / "in.fasta", {f"s{i}": open_dna(100, seed=i) for i in range(400)})
    resize("1600k")
    arguments = ("predict", fasta, "-o", disk / "out", "--model", bundle, "--no-progress", "--no-report")
    ended = virnucpro(*arguments)
    assert ended.code == 4, ended.err
    assert "MB more" in ended.err
    assert not list((disk / "out/run").glob("embeddings/*/*"))
    resize("64m")
    assert virnucpro(*arguments).code == 0


def test_one_directory_takes_one_run_at_a_time(virnucpro, undisturbed, tmp_path, tiny_bundle):
    """A second run on a directory in use is refused with exit 4 and the process that holds it."""
    fasta, expected = undisturbed
    arguments = command(fasta, tmp_path / "out", tiny_bundle)
    first = start(*arguments)
    wait_for_files(tmp_path / "out/run/embeddings/nucleotide", 1, first)
    first.send_signal(signal.SIGSTOP)
    try:
        ended = virnucpro(*arguments)
        assert ended.code == 4
        assert str(first.pid) in ended.err
    finally:
        first.send_signal(signal.SIGCONT)
    assert first.wait(timeout=300) == 0
    assert result_bytes(tmp_path / "out", "in", "rows.tsv.gz") == expected


@pytest.fixture
def finished(virnucpro, tmp_path, tiny_bundle):
    """A small finished run that kept everything."""
    fasta = write_fasta(tmp_path / "in.fasta", mixed_records(20))
    arguments = command(fasta, tmp_path / "out", tiny_bundle)
    assert virnucpro(*arguments).code == 0
    return fasta, tmp_path / "out", arguments


def test_a_finished_run_is_not_computed_again(virnucpro, finished):
    """The same command again writes the same results from what is stored."""
    _, out, arguments = finished
    before = result_bytes(out, "in")
    stored = {path: path.stat().st_mtime_ns for path in (out / "run").rglob("unit-*.h5")}
    assert virnucpro(*arguments).code == 0
    assert result_bytes(out, "in") == before
    assert {path: path.stat().st_mtime_ns for path in (out / "run").rglob("unit-*.h5")} == stored


def test_other_settings_are_refused_with_what_differs(virnucpro, finished):
    """Going on with other science or layout settings is an error that lists setting, then, now."""
    _, _, arguments = finished
    ended = virnucpro(*arguments, "--expected-length", 500)
    assert ended.code == 2
    assert "science.fragment_length" in ended.err
    assert "300" in ended.err
    assert "500" in ended.err
    assert virnucpro(*arguments, "--dtype", "bfloat16").code == 2
    assert virnucpro(*arguments, "--expected-length", 500, "--fresh").code == 0


def test_changed_input_under_the_same_name_is_refused(virnucpro, finished):
    """A run is keyed on content, not on names."""
    fasta, _, arguments = finished
    write_fasta(fasta, mixed_records(20, seed=99))
    ended = virnucpro(*arguments)
    assert ended.code == 2
    assert "content of" in ended.err


@pytest.mark.parametrize("kind", ["truncated", "flipped", "foreign"])
def test_a_damaged_or_foreign_shard_is_an_error_and_never_a_number(virnucpro, finished, kind):
    """Truncated, bit-flipped or from another run: named, refused, exit 1."""
    _, out, arguments = finished
    run_dir = RunDir(out)
    for unit in range(3):
        run_dir.scores(unit).unlink()
        run_dir.merged(unit).unlink()
    path = run_dir.embedding("protein", 1)
    content = bytearray(path.read_bytes())
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "flipped":
        embedding = store.read_arrays(path, "embedding", "embedding")["embedding"]
        position = bytes(content).index(embedding.tobytes())
        content[position + 5] ^= 0x10
        path.write_bytes(content)
    else:
        shutil.copy(run_dir.embedding("protein", 2), path)
    ended = virnucpro(*arguments)
    assert ended.code == 1
    assert str(path) in ended.err
    assert "Traceback" not in ended.err
    path.unlink()
    assert virnucpro(*arguments).code == 0


STARVED = """
import resource, sys
from pathlib import Path
import torch
from virnucpro import Options, predict
from virnucpro.settings import make_settings
from virnucpro.logs import start_logging

start_logging(0)
fasta, out, model, spare = sys.argv[1:]
options = Options(with_report=False)
settings = {"science.model": model, "runtime.device": "cpu", "runtime.threads": 1, "runtime.token_budget": 10_000_000}
predict([fasta], Path(out) / "warm", make_settings(None, settings | {"runtime.token_budget": 4000}), options=options)
mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + int(spare), resource.RLIM_INFINITY))
predict([fasta], Path(out) / "starved", make_settings(None, settings), options=options)
"""


def test_an_interrupt_that_a_callback_swallows_ends_the_stage_all_the_same():
    """As one that comes while a weak reference dies: it is raised again at the next sign of progress."""
    try:
        with Reporter(bars=False).stage("embed", 2, "rows") as advance:
            advance(1)
            with contextlib.suppress(lifeline.Interrupted):
                lifeline.interrupt(signal.SIGTERM, None)
            with pytest.raises(lifeline.Interrupted):
                advance(1)
    finally:
        lifeline.received.clear()


@pytest.mark.parametrize(("error", "is_told"), [("lifeline.Interrupted", False), ("ValueError", True)])
def test_an_interrupt_that_a_callback_swallows_is_no_error_to_tell_of(error, is_told):
    """It comes again; any other error in such a place is told of as ever."""
    code = (
        "import sys, weakref\nfrom virnucpro import lifeline\nsys.unraisablehook = lifeline.report_unraisable\n"
        f"class Thing: pass\ndef dies(_): raise {error}\nthing = Thing()\nlast = weakref.ref(thing, dies)\ndel thing"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0
    assert ("Traceback" in ended.stderr) == is_told, ended.stderr


def test_a_program_that_ended_leaves_no_handler_to_who_called_it(virnucpro):
    """An interpreter that ran it is interrupted as before."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before, hook = [signal.getsignal(number) for number in numbers], sys.unraisablehook
    assert virnucpro("--version").code == 0
    assert sys.unraisablehook is hook
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs the size of this process from /proc")
def test_a_batch_that_does_not_fit_the_memory_is_halved_and_the_run_completes(tmp_path):
    """The allocator itself refuses: said once, and every score is there."""
    bundle = write_tiny_bundle(tmp_path / "bundle", protein_width=256, num_layers=1)
    fasta = write_fasta(tmp_path / "in.fasta", {f"s{i}": open_dna(300, seed=i) for i in range(900)})
    command = [sys.executable, "-c", STARVED, fasta, tmp_path, bundle, str(600 << 20)]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("out of memory; batches are halved") >= 1
    warm, starved = (
        store.read_arrays(RunDir(tmp_path / name).scores(0), "scores", "scores")["scores"]
        for name in ("warm", "starved")
    )
    np.testing.assert_allclose(starved, warm, rtol=0, atol=1e-5)
