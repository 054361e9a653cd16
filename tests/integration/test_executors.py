"""One contract for all executors, and what those with processes of their own promise beside it."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import re
import time

import psutil
import pytest
from private_net import is_inside, ray_cluster
from work_samples import (
    Breaks,
    BreaksOnce,
    DiesAlways,
    DiesBeforeItBegins,
    DiesOnce,
    GivesUp,
    Keeps,
    Loads,
    Refuses,
    Slow,
    Square,
    Talks,
    WaitsForTwo,
)

from virnucpro import errors
from virnucpro.errors import (
    DiskFullError,
    InputError,
    InputsError,
    MemoryShortError,
    PlaceError,
    RunMismatchError,
    StoreError,
    VirNucProError,
    WorkerError,
)
from virnucpro.executors.base import UnitDone, UnitFailed, Worker
from virnucpro.executors.local import LocalExecutor, PoolExecutor
from virnucpro.executors.ray import RayExecutor
from virnucpro.executors.serial import SerialExecutor


def local(num_workers):
    return LocalExecutor([Worker(index, f"place:{index}", 1) for index in range(num_workers)])


EXECUTORS = {
    "serial": lambda: SerialExecutor("cpu", 1),
    "pool": lambda: PoolExecutor(2),
    "local": lambda: local(1),
}
WITH_PROCESSES = ("pool", "local")
if is_inside():  # Ray listens on every interface: its tests run where there is none (tests/integration/test_ray.py)
    EXECUTORS = {"ray": lambda: RayExecutor(os.environ["RAY_TESTS"])}
    WITH_PROCESSES = ("ray",)


@pytest.fixture(scope="session", autouse=True)
def _cluster(tmp_path_factory):
    """In a network of its own, a Ray cluster for all tests."""
    if not is_inside():
        yield
        return
    with ray_cluster(tmp_path_factory.mktemp("ray"), 2) as environment:
        os.environ.update(environment)
        yield


@pytest.fixture(params=EXECUTORS)
def executor(request):
    with EXECUTORS[request.param]() as executor:
        yield executor


@pytest.fixture(params=WITH_PROCESSES)
def apart(request):
    """An executor whose work runs in other processes."""
    with EXECUTORS[request.param]() as executor:
        yield executor


def is_worker(process):
    """Whether a process is none that a library keeps for the next time."""
    try:
        command = " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False
    return "ray::_Place" in command if is_inside() else "resource_tracker" not in command


@pytest.fixture(autouse=True)
def _no_process_is_left():
    """Whatever happened, every worker is gone when the executor was left."""
    before = set(psutil.Process().children(recursive=True))
    yield
    for _ in range(100 if is_inside() else 1):  # what Ray kills ends soon afterwards
        left = [child for child in set(psutil.Process().children(recursive=True)) - before if is_worker(child)]
        if not left:
            break
        time.sleep(0.1)
    assert left == []


def written(folder):
    """(unit, content) of each file that the work left."""
    return sorted((int(path.name.split("-")[0]), path.read_text()) for path in folder.glob("*-*"))


def squares(units):
    return sorted((unit, str(unit * unit)) for unit in units)


def dones(units):
    return sorted((unit, unit + 10) for unit in units)


def pairs(finished):
    return sorted((done.unit, done.num_rows) for done in finished)


def test_each_unit_is_done_once(executor, tmp_path):
    """None is lost, none is done twice, and each says how many rows it had."""
    units = [5, 0, 3, 12, 7, 1, 2]
    assert pairs(executor.run(Square(tmp_path), units)) == dones(units)
    assert written(tmp_path) == squares(units)


def test_work_may_read_ahead(executor, tmp_path):
    """Units that were asked for early are done all the same."""
    units = list(range(7))
    assert pairs(executor.run(Square(tmp_path, read_ahead=3), units)) == dones(units)
    assert written(tmp_path) == squares(units)


def test_a_unit_is_there_when_it_is_reported(executor, tmp_path):
    """Its file is in place before it is yielded."""
    for done in executor.run(Square(tmp_path), [4, 2, 9]):
        assert isinstance(done, UnitDone)
        assert list(tmp_path.glob(f"{done.unit}-*"))


def test_no_units_are_no_work(executor, tmp_path):
    """An empty list ends at once."""
    assert list(executor.run(Square(tmp_path), [])) == []


def test_one_unit_is_done(executor, tmp_path):
    """Fewer units than workers."""
    assert pairs(executor.run(Square(tmp_path), [6])) == dones([6])


def test_an_error_of_the_work_surfaces_as_itself(executor, tmp_path):
    """The same class, with its facts and its exit code."""
    with pytest.raises(InputError) as caught:
        list(executor.run(Refuses(tmp_path), [1, 2, 3, 4, 5]))
    error = caught.value
    assert (error.source, error.problem, error.line) == ("reads.fa", "cannot be read. Mend it.", 3)
    assert error.exit_code == 3
    assert str(error) == "reads.fa, line 3: cannot be read. Mend it."


def test_an_error_nobody_foresaw_costs_its_unit_alone(executor, tmp_path):
    """The others are done, whatever was read ahead with it; the reason is the traceback."""
    units = list(range(1, 8))
    outcomes = list(executor.run(Breaks(tmp_path, read_ahead=3), units))
    (failed,) = [outcome for outcome in outcomes if isinstance(outcome, UnitFailed)]
    assert failed.unit == 3
    assert "unit 3 has no rows" in failed.reason
    assert "work_samples.py" in failed.reason
    assert pairs(outcome for outcome in outcomes if outcome is not failed) == dones([1, 2, 4, 5, 6, 7])


def test_what_fails_once_is_done_the_second_time(executor, tmp_path):
    """A file server that hiccups costs nothing."""
    units = list(range(1, 8))
    assert pairs(executor.run(BreaksOnce(tmp_path, read_ahead=2), units)) == dones(units)
    assert (tmp_path / "broke").exists()


def test_what_the_work_gives_up_is_passed_on(executor, tmp_path):
    """Without another attempt, and the others are done."""
    outcomes = list(executor.run(GivesUp(tmp_path), [1, 2, 3, 4]))
    assert UnitFailed(3, "its shard is damaged") in outcomes
    assert pairs(outcome for outcome in outcomes if isinstance(outcome, UnitDone)) == dones([1, 2, 4])


def test_units_may_come_one_by_one(executor, tmp_path):
    """From a generator, as the stage before hands them on."""
    assert pairs(executor.run(Square(tmp_path), (unit for unit in (5, 6, 7)))) == dones([5, 6, 7])


def test_whoever_hands_out_the_units_may_fail(executor, tmp_path):
    """Its error is its own: no unit is blamed for it, and it is no ``UnitFailed``."""

    def units():
        yield from (1, 2)
        raise ZeroDivisionError("the stage before")

    with pytest.raises(ZeroDivisionError, match="the stage before"):
        list(executor.run(Square(tmp_path), units()))


def test_progress_is_told_before_a_unit_is_done(tmp_path):
    """With the unit's number, in this process and from others."""
    for place in (SerialExecutor("cpu", 1), local(2)):
        told = []
        with place as executor:
            for done in executor.run(Square(tmp_path), [1, 2, 3], lambda *now, told=told: told.append(now)):
                assert (done.unit, done.unit + 4) in told
        assert sorted(told) == [(1, 5), (2, 6), (3, 7)]


@pytest.mark.parametrize("name", EXECUTORS)
def test_leaving_an_executor_half_way_ends_its_workers(name, tmp_path):
    """As Ctrl-C does, although the outcomes are still referred to: no generator has to be collected for it."""
    with EXECUTORS[name]() as executor:
        outcomes = executor.run(Slow(tmp_path), range(50))
        next(outcomes)
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(written(tmp_path)) < 50
    del outcomes


@pytest.mark.parametrize("name", EXECUTORS)
def test_what_a_worker_keeps_is_closed_with_it(name, tmp_path):
    """Opened once in each process, at the first round of work or at a later one, and closed however it ends."""
    with EXECUTORS[name]() as executor:
        list(executor.run(Keeps(tmp_path), [1, 2, 3]))
        list(executor.run(Keeps(tmp_path), [4]))
    opened, closed = ({path.suffix for path in tmp_path.glob(f"{what}.*")} for what in ("opened", "closed"))
    assert opened
    assert opened == closed
    with pytest.raises(InputError), EXECUTORS[name]() as executor:
        list(executor.run(Keeps(tmp_path, refuses=5), [5]))
    assert len(list(tmp_path.glob("opened.*"))) == len(list(tmp_path.glob("closed.*")))


def test_the_next_run_is_none_the_worse(executor, tmp_path):
    """An executor holds nothing between runs."""
    with pytest.raises(InputError):
        list(executor.run(Refuses(tmp_path, at=1), [1, 2]))
    assert pairs(executor.run(Square(tmp_path), [7, 8, 9])) == dones([7, 8, 9])


def test_a_killed_worker_costs_no_unit(apart, tmp_path, caplog, monkeypatch):
    """Its units go back, another process does them, and the log says so."""
    caplog.set_level(logging.WARNING, "virnucpro.executors")
    monkeypatch.setattr(logging.getLogger("virnucpro"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("virnucpro"), "handlers", [])
    units = list(range(8))
    assert pairs(apart.run(DiesOnce(tmp_path), units)) == dones(units)
    assert dict(written(tmp_path)) == dict(squares(units))
    assert (tmp_path / "died").exists()
    assert re.search("go(es)? back", caplog.text)


def test_a_killed_worker_that_read_ahead_costs_no_unit(apart, tmp_path):
    """All the units in its hands go back."""
    units = list(range(8))
    assert pairs(apart.run(DiesOnce(tmp_path, read_ahead=3), units)) == dones(units)


@pytest.mark.parametrize("units", [[0, 1, 2, 3], [3, 4], [3, 3 + 1, 5, 6, 7]])
def test_a_unit_that_always_kills_its_worker_is_named_and_the_others_are_done(apart, tmp_path, units):
    """Also the last one, when the other workers have gone home already."""
    outcomes = list(apart.run(DiesAlways(tmp_path, read_ahead=2), units))
    (failed,) = [outcome for outcome in outcomes if isinstance(outcome, UnitFailed)]
    assert failed.unit == 3
    assert "killed" in failed.reason
    others = [unit for unit in units if unit != 3]
    assert pairs(outcome for outcome in outcomes if outcome is not failed) == dones(others)


def test_workers_that_die_before_they_begin_are_not_started_for_ever(tmp_path):
    """As when the model does not fit the memory: no unit can be blamed, and the run ends."""
    with pytest.raises(WorkerError, match="before they begin"), local(2) as executor:
        list(executor.run(DiesBeforeItBegins(tmp_path), [0, 1, 2, 3]))


def test_work_runs_outside_this_process(apart, tmp_path):
    """In no more processes than asked for."""
    list(apart.run(Slow(tmp_path), range(4)))
    processes = {int(path.name.split("-")[1]) for path in tmp_path.glob("*-*")}
    assert os.getpid() not in processes
    assert len(processes) <= 2


def test_each_worker_is_told_its_own_place(tmp_path):
    """Both places are used, and a process stays in the one it was given."""
    with local(2) as executor:
        list(executor.run(Slow(tmp_path), range(20)))
    places = {tuple(path.name.split("-")[1:]) for path in tmp_path.glob("*-*")}
    assert {(device, index) for _, device, index in places} == {("place:0", "0"), ("place:1", "1")}
    assert len(places) == 2


def test_a_worker_that_reads_ahead_takes_no_unit_that_another_one_could_do(tmp_path):
    """Of four units one device takes two at most, although it asks for all at once."""
    with local(2) as executor:
        outcomes = list(executor.run(WaitsForTwo(tmp_path, read_ahead=4), range(4)))
    assert pairs(outcomes) == dones(range(4))
    assert {path.name.split("-")[2] for path in tmp_path.glob("*-*")} == {"place:0", "place:1"}


@pytest.mark.parametrize(("device", "num_processes"), [("cpu", 1), ("cuda:0", 2)])
def test_after_an_unforeseen_error_on_a_device_its_process_ends(tmp_path, device, num_processes):
    """Errors of a device may stay: another process does the rest. On a CPU they do not, and the process goes on."""
    with LocalExecutor([Worker(0, device, 1)]) as executor:
        assert pairs(executor.run(BreaksOnce(tmp_path), range(1, 6))) == dones(range(1, 6))
    assert len({path.name.split("-")[1] for path in tmp_path.glob("*-*")}) == num_processes


def test_work_may_be_started_before_it_has_units(executor, tmp_path):
    executor.start(Square(tmp_path))
    assert pairs(executor.run(Square(tmp_path), range(5))) == dones(range(5))
    assert written(tmp_path) == squares(range(5))


def test_started_workers_load_before_there_are_units(tmp_path):
    """And those that have loaded do them: no other is started."""
    with local(2) as executor:
        executor.start(Loads(tmp_path))
        while len(loaded := list(tmp_path.glob("loaded *"))) < 2:
            time.sleep(0.01)
        assert pairs(executor.run(Loads(tmp_path), range(5))) == dones(range(5))
    assert sorted(tmp_path.glob("loaded *")) == sorted(loaded)
    assert {path.name.split("-")[1] for path in tmp_path.glob("*-*")} <= {path.name.split()[-1] for path in loaded}


def test_without_processes_the_order_is_kept(tmp_path):
    """Units are done as they were given; a pool of one process needs none."""
    for place in (SerialExecutor("cpu", 1), PoolExecutor(1)):
        with place as executor:
            assert [done.unit for done in executor.run(Square(tmp_path), [4, 1, 3])] == [4, 1, 3]
    assert {path.name.split("-")[1] for path in tmp_path.glob("*-*")} == {str(os.getpid())}


def test_what_a_worker_logs_arrives_here(tmp_path, caplog, monkeypatch):
    """From every thread of it, once each, under the name it was logged with."""
    caplog.set_level(logging.INFO, "virnucpro.work_samples")
    monkeypatch.setattr(logging.getLogger("virnucpro"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("virnucpro"), "handlers", [])
    units = range(6)
    with local(2) as executor:
        list(executor.run(Talks(tmp_path), units))
    texts = sorted(record.getMessage() for record in caplog.records if record.name == "virnucpro.work_samples")
    assert texts == sorted(f"unit {unit}{text}" for unit in units for text in (" begins", ", the other thread"))


@pytest.mark.parametrize(
    "error",
    [
        *(getattr(errors, name)("what, where and what to do") for name in (
            "UsageError", "ResourceError", "IncompleteRunError", "ModelError", "CountError", "WorkerError",
        )),
        InputError("a.fa", "bad.", 3),
        InputError("a.fa", "bad."),
        StoreError("unit.h5", "is damaged"),
        DiskFullError("unit.h5"),
        PlaceError("unit.h5", errno.EROFS),
        MemoryShortError("4 GB asked for"),
        RunMismatchError("out", [("a", 1, 2)]),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_every_error_crosses_processes_unchanged(error):
    """Class, facts, text and exit code."""
    arrived = pickle.loads(pickle.dumps(error))  # noqa: S301 - what multiprocessing does with our own errors
    assert type(arrived) is type(error)
    assert (vars(arrived), str(arrived), arrived.exit_code) == (vars(error), str(error), error.exit_code)


def test_several_errors_cross_processes_as_one():
    """Each with its place."""
    error = InputsError([InputError("a.fa", "bad.", 3), InputError("b.fa", "bad.")])
    arrived = pickle.loads(pickle.dumps(error))  # noqa: S301 - as above
    assert (type(arrived), str(arrived), arrived.exit_code) == (InputsError, str(error), 3)
    assert [vars(one) for one in arrived.errors] == [vars(one) for one in error.errors]


def test_no_error_class_was_forgotten():
    """The list above is the whole tree."""
    tree, todo = set(), [VirNucProError]
    while todo:
        found = todo.pop().__subclasses__()
        todo += found
        tree |= {error.__name__ for error in found if error.__module__ == "virnucpro.errors"}
    assert tree == {
        *("UsageError", "RunMismatchError", "InputError", "ResourceError", "DiskFullError", "IncompleteRunError"),
        *("InputsError", "PlaceError", "MemoryShortError"),
        *("ModelError", "StoreError", "CountError", "WorkerError"),
    }
