"""Pickled PyTorch files are read without being run."""

from __future__ import annotations

import argparse
import builtins
import collections
import contextlib
import io
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from virnucpro.bundles.foreign import read_foreign
from virnucpro.bundles.published import import_head
from virnucpro.errors import ModelError

SAVE_AS_PUBLISHED = """
import sys, torch
from torch import nn
import torch.nn.functional as F

class MLPClassifier(nn.Module):
    def __init__(self, input_dim, hidden_dim, num_class):
        super().__init__()
        self.hidden_layer = nn.Linear(input_dim, hidden_dim)
        self.bn1 = nn.BatchNorm1d(hidden_dim)
        self.output_layer = nn.Linear(hidden_dim, num_class)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.output_layer(self.dropout(F.relu(self.bn1(self.hidden_layer(x)))))

torch.manual_seed(5)
width, folder = int(sys.argv[1]), sys.argv[2]
model = MLPClassifier(width, 8, 2)
with torch.no_grad():
    model.bn1.running_mean.normal_()
    model.bn1.running_var.uniform_(0.5, 2)
    model.hidden_layer.weight.mul_(6)
    model.output_layer.weight.mul_(9)
    model.output_layer.bias[1] += float(sys.argv[3])
torch.save(model, folder + "/module.pth")
torch.save(model, folder + "/legacy.pth", _use_new_zipfile_serialization=False)
torch.save({"epoch": 3, "state": model.state_dict()}, folder + "/state.pth")
torch.save(model.state_dict(), folder + "/old.pth", _use_new_zipfile_serialization=False)
x = torch.randn(6, width)
torch.save({"x": x, "scores": model.eval()(x).softmax(1)}, folder + "/expected.pt")
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A head saved by a program of its own, as the published ones were."""
    folder = tmp_path_factory.mktemp("published")
    subprocess.run([sys.executable, "-c", SAVE_AS_PUBLISHED, "10", str(folder), "0"], check=True)
    return folder


@pytest.mark.parametrize("form", ["module", "state", "old"])
def test_a_head_saved_the_published_way_scores_as_the_original_module(published, form):
    head = import_head(published / f"{form}.pth")
    expected = read_foreign(published / "expected.pt").tensors
    scores = head.scores(expected["x"].read())
    assert torch.allclose(scores, expected["scores"].read(), atol=1e-7)


def test_a_whole_module_of_the_old_form_is_refused_with_what_to_do(published):
    with pytest.raises(ModelError, match=r"before version 1.6.*state_dict"):
        import_head(published / "legacy.pth")


def test_every_dtype_layout_and_plain_value_comes_back_equal(tmp_path):
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    tensors = {
        "view": base[1, :, 1:3],
        "turned": base.permute(2, 0, 1),
        "nothing": torch.zeros(0, 3),
        "one": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(base[0]),
        **{str(kind).removeprefix("torch."): torch.ones(3, dtype=kind) for kind in (torch.half, torch.bfloat16)},
    }
    settings = argparse.Namespace(layers=3, name="x", ratio=0.5, on=True, none=None, many=[1, 2], inner={"a": 1})
    for legacy in (False, True):
        path = tmp_path / "all.pt"
        torch.save({"model": tensors, "args": settings}, path, _use_new_zipfile_serialization=not legacy)
        found = read_foreign(path)
        assert found.tensors.keys() == {f"model.{name}" for name in tensors}
        for name, tensor in tensors.items():
            assert torch.equal(found.tensors[f"model.{name}"].read(), tensor)
            assert found.tensors[f"model.{name}"].shape == tuple(tensor.shape)
        values = {"layers": 3, "name": "x", "ratio": 0.5, "on": True, "none": None, "inner.a": 1}
        assert found.values == {f"args.{name}": value for name, value in values.items()}


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def touch(marker):
    return f"touch {marker}"


ATTACKS = {
    "os.system": lambda marker: Call(os.system, touch(marker)),
    "nested in a state dict": lambda marker: {
        "hidden_layer.weight": torch.zeros(2, 2),
        "hidden_layer.bias": [{"deep": (Call(os.system, touch(marker)),)}],
    },
    "as a key": lambda marker: {Call(os.system, touch(marker)): 1},
    "eval": lambda marker: Call(eval, f"open({str(marker)!r}, 'w')"),
    "exec": lambda marker: Call(exec, f"open({str(marker)!r}, 'w')"),
    "getattr": lambda marker: Call(getattr, touch(marker), "upper"),
    "open": lambda marker: Call(open, str(marker), "w"),
    "import": lambda _: Call(builtins.__import__, "antigravity"),
    "Popen": lambda marker: Call(subprocess.Popen, ["touch", str(marker)]),
    "numpy": lambda _: np.arange(3),
    "numpy scalar": lambda _: np.float64(1),
    "torch.load inside": lambda _: Call(torch.storage._load_from_bytes, b"x"),  # noqa: SLF001
    "another module class": lambda _: argparse.ArgumentParser,
    "namespace called": lambda marker: Call(argparse.Namespace, touch(marker)),
    "ordered dict of a call": lambda marker: Call(collections.OrderedDict, [("a", Call(os.system, touch(marker)))]),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_file_that_asks_to_run_something_is_refused_and_nothing_runs(tmp_path, attack, legacy):
    marker = tmp_path / "marker"
    path = tmp_path / "evil.pth"
    torch.save(ATTACKS[attack](marker), path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ModelError, match="refused") as caught:
        read_foreign(path)
    assert str(path) in str(caught.value)
    assert not marker.exists()
    assert "antigravity" not in sys.modules


def test_the_refusal_names_what_the_file_asks_for(tmp_path):
    torch.save(Call(os.system, "true"), tmp_path / "evil.pth")
    with pytest.raises(ModelError, match=r"refused: the file asks to run posix\.system"):
        import_head(tmp_path / "evil.pth")


def archive(path, program, members=None, **options):
    """A zip as torch.save writes it, of any pickle."""
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("a/data.pkl", program)
        file.writestr("a/version", b"3\n")
        for name, content in (members or {}).items():
            file.writestr(name, content)
    return path


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def storage(numel, key="0", kind=b"FloatStorage"):
    """Instructions that push a storage."""
    number = b"\x8a\x08" + struct.pack("<q", numel)
    return b"(" + text("storage") + b"ctorch\n" + kind + b"\n" + text(key) + text("cpu") + number + b"tQ"


def tensor(numel, offset, size, stride):
    """Instructions that push a tensor."""
    pushed = [b"J" + struct.pack("<i", number) for number in (offset, *size, *stride)]
    shape, steps = pushed[1 : 1 + len(size)], pushed[1 + len(size) :]
    inner = storage(numel) + pushed[0] + b"(" + b"".join(shape) + b"t(" + b"".join(steps) + b"t\x89}"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + inner + b"tR"


RUN = b"X\x04\x00\x00\x00true"  # the argument of a call that must not come about
PROGRAMS = {
    "posix": b"cposix\nsystem\n(" + RUN + b"tR.",
    "stack global": text("posix") + text("system") + b"\x93(" + RUN + b"tR.",
    "dotted stack global": text("torch.nn.modules.linear") + text("Linear.__init__.__globals__") + b"\x93.",
    "instance": b"(" + RUN + b"iposix\nsystem\n.",
    "object": b"(cposix\nsystem\n" + RUN + b"o.",
    "object of a listed class": b"(ctorch.nn.modules.linear\nLinear\n" + RUN + b"o.",
    "instance of a listed class": b"(" + RUN + b"iargparse\nNamespace\n.",
    "call of a listed class": b"ctorch.nn.modules.linear\nLinear\n(" + RUN + b"tR.",
    "listed class with arguments": b"cargparse\nNamespace\n(" + RUN + b"t\x81.",
    "state of a class": b"ctorch.nn.modules.linear\nLinear\n}" + text("__setstate__") + text("x") + b"sb.",
    "extension": b"\x82\x01.",
    "out-of-band buffer": b"\x97.",
    "number too long to be one": b"\x8b\xff\xff\xff\x7f\x01.",
    "reference outside": b"(" + text("file") + text("/etc/passwd") + b"NNNtQ.",
    "nested persistent": b"(" + b"(" + text("storage") + b"tt" + b"NNNNtQ.",
    "offset beyond": tensor(4, 3, (2,), (1,)) + b".",
    "negative offset": tensor(4, -1, (2,), (1,)) + b".",
    "stride beyond": tensor(4, 0, (2, 2), (3, 1)) + b".",
    "negative stride": tensor(4, 3, (2,), (-1,)) + b".",
    "size without end": tensor(4, 0, (2**31 - 1, 2**31 - 1), (0, 0)) + b".",
    "sizes without strides": tensor(4, 0, (2, 2), (1,)) + b".",
    "storage larger than its member": storage(5) + b".",
    "storage of terabytes": storage(1 << 42) + b".",
    "storage of negative size": storage(-4) + b".",
    "storage by another type": storage(4, kind=b"DoubleStorage") + b".",
    "storage by a path": storage(4, key="../data.pkl") + b".",
    "storage that is missing": storage(4, key="7") + b".",
    "storage of objects": storage(4, kind=b"UntypedStorage") + b".",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_trick_of_the_instructions_gets_through(tmp_path, program):
    path = archive(tmp_path / "evil.pth", b"\x80\x02" + PROGRAMS[program], {"a/data/0": bytes(16)})
    with pytest.raises(ModelError, match=r"refused|damaged"):
        read_foreign(path)


def test_state_set_on_an_object_stays_inert(tmp_path):
    """BUILD with ``__class__`` or ``__dict__`` is a dictionary entry and nothing else."""
    state = b"}(" + text("__class__") + text("os") + text("_parameters") + text("x") + text("n") + b"K\x05ub"
    found = read_foreign(archive(tmp_path / "odd.pth", b"\x80\x02c__main__\nMLPClassifier\n)\x81" + state + b"."))
    assert found.values == {"__class__": "os", "n": 5}
    assert found.tensors == {}


def remembered(number):
    return b"h" + bytes([number])


def keep(number):
    return b"q" + bytes([number])


def doubled_dicts():
    """Each holds the one before twice: 2 ** 40 entries to a walk."""
    program = b"}" + text("d0") + b"}" + keep(0) + b"s"
    for n in range(1, 40):
        both = text("a") + remembered(n - 1) + text("b") + remembered(n - 1)
        program += text(f"d{n}") + b"}" + keep(n) + b"(" + both + b"us"
    return program + b"."


def doubled_key():
    """A key of nested tuples, each twice the one before: 2 ** 60 steps to a hash."""
    tuples = b"".join(remembered(n - 1) * 2 + b"\x86" + keep(n) for n in range(1, 60))
    return b"](" + b")" + keep(0) + tuples + b"e}" + remembered(59) + b"K\x01sa."


BOMBS = {
    "doubled dicts": doubled_dicts(),
    "doubled key": doubled_key(),
    "doubled state": doubled_key().replace(b"K\x01sa.", b"ba."),
    "loop": b"}" + keep(0) + text("self") + remembered(0) + b"s.",
    "deep": b"}" + (text("a") + b"}") * 9000 + b"s" * 9000 + b".",
    "long names": b"}" + text("a" * 100_000) + b"K\x01s.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_ends_soon(tmp_path, bomb):
    """What is linear to build may be exponential to walk, hash, compare or print: nothing here does."""
    path = archive(tmp_path / "bomb.pth", b"\x80\x02" + BOMBS[bomb])
    start = time.process_time()
    with pytest.raises(ModelError) as caught:
        read_foreign(path)
    assert time.process_time() - start < 10
    assert len(str(caught.value)) < 1000


def test_a_far_slot_of_the_memo_costs_nothing(tmp_path):
    """The standard library would make room for two thousand million entries."""
    assert read_foreign(archive(tmp_path / "far.pth", b"\x80\x02]r\xff\xff\xff\x7f.")).values == {}


def test_an_archive_that_torch_would_not_write_is_refused(tmp_path):
    program = b"\x80\x02}."
    evil = tmp_path / "evil.pth"
    archive(evil, program, {"a/data/0": bytes(10**6)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelError, match=r"refused: member .* is compressed"):
        read_foreign(evil)
    for name in ("../x", "/etc/x", "a\\..\\x"):
        with pytest.raises(ModelError, match="refused: a member"):
            read_foreign(archive(evil, program, {name: b"x"}))
    with pytest.warns(UserWarning, match="Duplicate"):
        archive(evil, program, {"a/data.pkl": program})
    with pytest.raises(ModelError, match="one name"):
        read_foreign(evil)
    with pytest.raises(ModelError):
        read_foreign(archive(evil, program, {"b/data.pkl": program}))
    with pytest.raises(ModelError, match="larger than"):
        read_foreign(archive(evil, program + bytes(5 << 20)))
    with zipfile.ZipFile(evil, "w") as file:
        file.writestr("x", b"x")
    with pytest.raises(ModelError, match="not one that torch"):
        read_foreign(evil)


@pytest.mark.parametrize("form", ["module", "old"])
def test_a_file_cut_anywhere_or_with_a_byte_changed_is_an_error_or_harmless(published, tmp_path, form):
    whole = (published / f"{form}.pth").read_bytes()
    path = tmp_path / "cut.pth"
    for stop in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:stop])
        with pytest.raises(ModelError):
            import_head(path)
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 300):
        changed = bytearray(whole)
        changed[place] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        with contextlib.suppress(ModelError):
            import_head(path)


def test_what_is_no_pytorch_file_is_an_error(tmp_path):
    path = tmp_path / "x.pth"
    for content in (b"", b"hello", b"PK", b"\x80", pickle.dumps({"a": 1}, 2), pickle.dumps([1], 4) * 5):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"x\.pth"):
            read_foreign(path)
    with pytest.raises(ModelError, match="No such file"):
        read_foreign(tmp_path / "none.pth")
    with pytest.raises(ModelError, match="no such head"):
        import_head(tmp_path / "none.pth")


def test_a_module_of_another_shape_is_no_head(tmp_path):
    torch.save(torch.nn.Linear(3, 2), tmp_path / "linear.pth")
    with pytest.raises(ModelError, match="not a head"):
        import_head(tmp_path / "linear.pth")
    buffer = io.BytesIO()
    torch.save(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()), buffer)
    Path(tmp_path / "s.pth").write_bytes(buffer.getvalue())
    assert read_foreign(tmp_path / "s.pth").tensors.keys() == {"0.weight", "0.bias"}
