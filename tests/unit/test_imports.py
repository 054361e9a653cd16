"""What may import what: the rooms, the libraries each may use, and what nobody may."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "virnucpro"
LEVELS = (
    {
        "errors",
        "kernels",
        "logs",
        "progress",
        "lifeline",
        "citation",
        "platforms",
        "resources",
        "stored_json",
        "text",
    },
    {
        "atomic",
        "engine",
        "inputs",
        "sequence",
        "store",
        "run_dir",
        "mapped",
        "settings",
        "samples",
        "request",
        "sqlite_file",
    },
    {"encoders", "bundles", "heads", "executors", "nearest", "parallel"},
    {"hierarchy"},
    {"taxonomy"},
    {"stages", "results", "training", "registry", "clusters", "embeddings"},
    {"machine"},
    {"run"},
    {"engines"},
    {"cli"},
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
FRONT = {"virnucpro", "__main__"}  # what users import and run; it leads to every room
COMPUTING = {
    "embeddings",
    "engine",
    "encoders",
    "bundles",
    "heads",
    "stages",
    "run",
    "training",
    "registry",
    "machine",
    "clusters",
}
ROOMS_OF = {
    "torch": COMPUTING,
    "h5py": {"store", "clusters"},
    "msgspec": {"stored_json", "settings"},
    "click": {"cli"},
    "multiprocessing": {"executors", "lifeline"},
    "concurrent.futures.ProcessPoolExecutor": {"executors"},
    "concurrent.futures.process": {"executors"},
    "subprocess": {"machine", "training", "engines"},
    "httpx2": {"registry", "hierarchy"},
    "asyncssh": {"clusters"},
    "ray": {"executors"},
    "pysam": {"sequence", "results"},
    **{name: {"platforms"} for name in ("fcntl", "grp", "msvcrt", "pwd", "resource", "termios")},
    "matplotlib": {"results"},
    "jinja2": {"results", "training"},
    "pyarrow": {"results", "embeddings", "run"},
    "torch.multiprocessing": {"engine"},
    "torch.utils.data": {"engine"},
}
PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
PICKLE_READERS = {"virnucpro/clusters/pickled.py"}
"""Read pickles with every name replaced by an inert object; tests/unit/test_pickled.py holds that they run nothing."""
TENSOR_READERS = {"virnucpro/bundles/foreign.py", "virnucpro/clusters/checkpoints.py"}
"""Read tensors and plain values alone (``weights_only=True``)."""
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "torch.load"),
    *("subprocess.getoutput", "subprocess.getstatusoutput"),
}


@cache
def modules():
    """Every module of the package: its place, its room and its syntax tree."""
    return list(_parsed())


def _parsed():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        room = "virnucpro" if parts == ("__init__",) else parts[0]
        yield path.relative_to(PACKAGE.parent), room, ast.parse(path.read_text())


def imported(tree):
    """Dotted name and line of all that is imported, anywhere in the module; ``import_module("x")`` too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name their module in full"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and dotted(node.func).endswith("import_module"):
            yield from ((arg.value, node.lineno) for arg in node.args if isinstance(arg, ast.Constant))


def dotted(node):
    """``a.b.c`` of an expression that is a plain name, else what of it is."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def room_edges():
    """(room, room it imports, place) of all imports within the package."""
    for path, room, tree in modules():
        for name, line in imported(tree):
            first, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if first == "virnucpro" and target in LEVEL and room in LEVEL:
                yield room, target, f"{path}:{line}"


def test_every_module_is_in_a_room_that_has_a_level():
    """A new room is given its level here."""
    assert {room for _, room, _ in modules()} <= LEVEL.keys() | FRONT


def test_imports_point_down_or_stay_on_their_level():
    """``cli -> pipeline -> stages, report, training -> ... -> errors, logs, progress``, type imports included."""
    assert [edge for edge in room_edges() if LEVEL[edge[1]] > LEVEL[edge[0]]] == []


def test_rooms_on_one_level_do_not_import_each_other_in_a_circle():
    """The rooms can be read one after the other."""
    needs = {room: set() for room in LEVEL}
    for room, target, _ in room_edges():
        if room != target:
            needs[room].add(target)
    while free := [room for room, targets in needs.items() if not targets]:
        needs = {room: targets - set(free) for room, targets in needs.items() if room not in free}
    assert needs == {}


def test_nobody_imports_the_front_door_but_for_the_version():
    """Rooms import each other, not the package that shows them to users."""
    found, rooms = [], {room for _, room, _ in modules()}
    for path, room, tree in modules():
        if room in FRONT:
            continue
        for name, line in imported(tree):
            first, _, rest = name.partition(".")
            if first == "virnucpro" and rest != "__version__" and rest.partition(".")[0] not in rooms:
                found.append(f"{path}:{line} {name}")
    assert found == []


def test_nothing_that_predicts_imports_training():
    """The training room can be left out."""
    assert [
        place for room, target, place in room_edges() if target == "training" and room not in ("training", "cli")
    ] == []


@pytest.mark.parametrize("library", ROOMS_OF)
def test_a_library_is_imported_in_its_rooms_only(library):
    """PyTorch where there is computing, h5py in the store, Click in the command line, and so on."""
    found = []
    for path, room, tree in modules():
        for name, line in imported(tree):
            if f"{name}.".startswith(f"{library}.") and room not in ROOMS_OF[library]:
                found.append(f"{path}:{line} {name}")
    assert found == []


def test_this_file_sees_what_is_imported():
    """Were it blind, all its rules would hold."""
    seen = {name.split(".")[0] for _, _, tree in modules() for name, _ in imported(tree)}
    assert {"torch", "h5py", "click", "multiprocessing", "concurrent", "virnucpro"} <= seen
    assert len(list(room_edges())) > 100


def test_no_process_is_forked_by_hand():
    """Executors, the DataLoader and, in the benchmark, ``subprocess`` start processes; nothing else does."""
    starts = ("os.fork", "os.spawn", "os.posix_spawn", "os.exec")
    found = []
    for path, _, tree in modules():
        calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
        found += [f"{path}:{call.lineno}" for call in calls if dotted(call.func).startswith(starts)]
    assert found == []


def test_no_module_reads_foreign_code():
    """No pickle, no ``torch.load`` (but for one), ``eval``, ``exec``, shell strings or remote code."""
    found = []
    for path, _, tree in modules():
        if str(path) not in PICKLE_READERS:
            found += [f"{path}:{line} {name}" for name, line in imported(tree) if name.split(".")[0] in PICKLES]
        for node in ast.walk(tree):
            called = dotted(node.func) if isinstance(node, ast.Call) else ""
            if called in FORBIDDEN_CALLS and not (called == "torch.load" and is_restricted(path, node)):
                found.append(f"{path}:{node.lineno} {called}")
            if isinstance(node, ast.keyword) and node.arg in ("shell", "trust_remote_code", "allow_pickle"):
                found.append(f"{path}:{node.lineno} {node.arg}")
    assert found == []


def is_restricted(path, call):
    """The readers of PyTorch files let torch read tensors and plain values only."""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    weights_only = given.get("weights_only")
    return str(path) in TENSOR_READERS and isinstance(weights_only, ast.Constant) and weights_only.value


WITHOUT_TORCH = """
import sys
import virnucpro.cli
virnucpro.make_settings(None, {})
virnucpro.errors.UsageError
import virnucpro.encoders, virnucpro.executors.local, virnucpro.store
import virnucpro.embeddings, virnucpro.parallel, virnucpro.hierarchy
sys.exit(17 if "torch" in sys.modules else 0)
"""


def test_torch_is_loaded_by_work_alone():
    """Importing the package does not wait for torch."""
    ended = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"]])
def test_help_of_the_program_loads_no_torch(arguments):
    """What the interpreter itself lists as imported, for the program as users start it."""
    command = [sys.executable, "-X", "importtime", "-m", "virnucpro", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0
    assert "Usage:" in ended.stdout
    loaded = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "virnucpro.cli" in loaded
    assert "torch" not in loaded
