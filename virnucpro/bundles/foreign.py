"""Tensors out of PyTorch files that are pickles, without unpickling them.

A pickle is a program: loading one runs what it says. The published heads are pickles of a whole module and the ESM-2
``.pt`` files hold an argparse namespace, so ``torch.load`` refuses them or runs them. Here the few instructions that
``torch.save`` writes are carried out on inert values of our own. No class is looked up, no function of the file is
called, and whatever is not on the lists below ends the import, naming it. Storages are mapped where they lie in the
file when a tensor is read, so that a file of any size costs no memory.

Both forms of the format are read: the zip archive (torch 1.6 and later) and the older sequence of pickles.
"""

from __future__ import annotations

import io
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from virnucpro.encoders.weights import StoredTensor, map_values
from virnucpro.errors import ModelError

if TYPE_CHECKING:
    import torch

Plain = bool | int | float | str | None

_MAX_PICKLE_BYTES = 4 << 20  # the names and shapes of 15 B are a tenth of that
_MAX_VISITS = 200_000  # entries of the tree that is read out; 15 B has 1,000 tensors
_MAX_DEPTH = 40
_MAX_DIMENSIONS = 8
_MAX_NAME = 300  # characters of a key
_MAX_TEXT = 1_000  # characters of a plain value that is kept

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

_STORAGES = {  # to torch's name of the dtype, and its size in bytes
    "torch.DoubleStorage": ("float64", 8),
    "torch.FloatStorage": ("float32", 4),
    "torch.HalfStorage": ("float16", 2),
    "torch.BFloat16Storage": ("bfloat16", 2),
    "torch.LongStorage": ("int64", 8),
    "torch.IntStorage": ("int32", 4),
    "torch.ShortStorage": ("int16", 2),
    "torch.CharStorage": ("int8", 1),
    "torch.ByteStorage": ("uint8", 1),
    "torch.BoolStorage": ("bool", 1),
}
_OBJECTS = re.compile(
    r"__main__\.MLPClassifier|argparse\.Namespace|torch\.nn\.modules\.[a-z_]+\.[A-Z][A-Za-z0-9]*", re.ASCII
)
_CONSTANTS: dict[str, Plain] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING"}
    | {"SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"}
)
_DAMAGED = (ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError, struct.error, EOFError)


@dataclass(frozen=True)
class Foreign:
    """What a file holds.

    Attributes:
        tensors: by dotted name, ``model.layers.0.fc1.weight``.
        values: numbers and texts by dotted name, ``args.encoder_layers``.
    """

    tensors: dict[str, StoredTensor]
    values: dict[str, Plain]


@dataclass(frozen=True)
class _Global:
    """A name that the file refers to; it is on a list, and stays a name."""

    name: str


@dataclass
class _Object:
    """Stands for an instance of a listed class: its name and its state, without behaviour."""

    name: str
    state: dict[Any, Any] = field(default_factory=dict)


@dataclass
class _Storage:
    """Values in a row in the file."""

    path: Path
    dtype: str
    num_values: int
    start: int = -1  # first byte; known late in the older form

    def read(self, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
        """Map the values and lay a shape over them; the bounds were checked when the tensor was declared."""
        return map_values(self.path, self.start, self.dtype, self.num_values).as_strided(shape, stride, offset)


Locate = Callable[[str, str, int, int], _Storage]
"""From key, dtype, size of a value and number of values to the storage."""


def read_foreign(path: Path) -> Foreign:
    """List the tensors and plain values of a file made by ``torch.save``; nothing in it is run.

    Raises:
        ModelError: it is refused, because it asks for more than tensors and plain values; or it is damaged, or no such
            file.
    """
    try:
        with path.open("rb") as file:
            beginning = file.read(2)
            read = _read_archive if beginning == b"PK" else _read_legacy
            return _read_out(read(path, file))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (zipfile.BadZipFile, NotImplementedError, RecursionError, *_DAMAGED) as error:
        raise ModelError(f"{path}: is damaged or no PyTorch file ({error!r}). Fetch it again.") from error


def _read_archive(path: Path, file: BinaryIO) -> object:
    """Carry out ``data.pkl`` of the zip form; the archive is ``NAME/data.pkl``, ``NAME/data/0``, ..."""
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise ModelError("refused: two members of the archive have one name.")
        for info in members.values():
            _check_member(info)
        programs = [name for name in members if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(programs) != 1:
            raise ModelError("is a zip archive, but none that torch.save makes (no data.pkl).")
        top = programs[0].removesuffix("data.pkl")
        order = members.get(f"{top}byteorder")
        if order is not None and order.file_size < 100 and archive.read(order) != b"little":
            raise ModelError("was written on a machine with the other byte order: save it again on a common one.")
        if members[programs[0]].file_size > _MAX_PICKLE_BYTES:
            raise ModelError("refused: its pickle is larger than names and shapes can be.")
        program = archive.read(programs[0])
    num_bytes = path.stat().st_size

    def locate(key: str, dtype: str, value_bytes: int, num_values: int) -> _Storage:
        info = members.get(f"{top}data/{key}")
        if info is None or not re.fullmatch(r"\w+", key, re.ASCII):
            raise ModelError(f"refused: it names a storage {key!r} that is not in the archive.")
        start = _first_byte(file, info)
        if info.file_size != num_values * value_bytes or start + info.file_size > num_bytes:
            raise ModelError(f"refused: storage {key} claims {num_values} values and has {info.file_size} bytes.")
        return _Storage(path, dtype, num_values, start)

    return _Interpreter(locate).run(io.BytesIO(program))


def _check_member(info: zipfile.ZipInfo) -> None:
    parts = info.filename.split("/")
    if info.filename.startswith("/") or "\\" in info.filename or ".." in parts:
        raise ModelError(f"refused: a member of the archive is called {info.filename!r}.")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
        raise ModelError(f"refused: member {info.filename} is compressed or encrypted, which torch.save never does.")


def _first_byte(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Where the content of a member begins: behind its local header, which has its own lengths."""
    file.seek(info.header_offset)
    signature, name_bytes, extra_bytes = struct.unpack("<4s22xHH", file.read(30))
    if signature != b"PK\x03\x04":
        raise ModelError(f"is damaged: no content where member {info.filename} should be.")
    return info.header_offset + 30 + int(name_bytes) + int(extra_bytes)


def _read_legacy(path: Path, file: BinaryIO) -> object:
    """Carry out the older form: magic number, version, system, the object, keys; then each storage after its size."""
    file.seek(0)
    programs = file.read(_MAX_PICKLE_BYTES)
    if not programs.startswith(b"\x80"):
        raise ModelError("is no PyTorch file.")
    stream = io.BytesIO(programs)
    storages: dict[str, tuple[_Storage, int]] = {}

    def locate(key: str, dtype: str, value_bytes: int, num_values: int) -> _Storage:
        storage, _ = storages.setdefault(key, (_Storage(path, dtype, num_values), value_bytes))
        if (storage.dtype, storage.num_values) != (dtype, num_values):
            raise ModelError(f"refused: storage {key} is claimed twice, with two sizes.")
        return storage

    interpreters = [_Interpreter(locate) for _ in range(5)]
    magic, version, system, root, keys = (interpreter.run(stream) for interpreter in interpreters)
    if magic != _LEGACY_MAGIC or version != _LEGACY_PROTOCOL:
        raise ModelError("is a pickle, but none that torch.save makes.")
    if isinstance(system, dict) and system.get("little_endian") is not True:
        raise ModelError("was written on a machine with the other byte order: save it again on a common one.")
    # Only texts may be compared: nested tuples can draw a comparison, a hash or a repr out for ever.
    is_text = isinstance(keys, list) and all(type(key) is str for key in keys)
    if not isinstance(keys, list) or not is_text or sorted(keys) != sorted(storages):
        raise ModelError("refused: its storages are not those that its tensors name.")
    start, num_bytes = stream.tell(), path.stat().st_size
    for key in keys:
        storage, value_bytes = storages[key]
        file.seek(start)
        (num_values,) = struct.unpack("<q", file.read(8))
        storage.start = start + 8
        start = storage.start + storage.num_values * value_bytes
        if num_values != storage.num_values or start > num_bytes:
            raise ModelError(f"refused: storage {key} claims {storage.num_values} values, which are not in the file.")
    return root


class _Interpreter:
    """Carries out the instructions that ``torch.save`` writes, on a stack of inert values.

    Args:
        locate: finds a storage.
    """

    def __init__(self, locate: Locate) -> None:
        self._locate = locate
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, stream: BinaryIO) -> object:
        """Carry out one pickle; the stream stands behind it afterwards."""
        for opcode, argument, _ in pickletools.genops(stream):
            self._step(opcode.name, argument)
        (result,) = self._stack
        return result

    def _step(self, name: str, argument: Any) -> None:  # noqa: ANN401  (whatever the instruction carries)
        if name in _LITERALS:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        elif name in ("GLOBAL", "INST"):
            self._stack.append(_listed(*argument.split(" ", 1)))
            if name == "INST":
                raise ModelError("refused: the file makes an object in a way that torch.save never does.")
        elif name not in ("PROTO", "FRAME", "STOP"):
            if name not in _STEPS:
                raise ModelError(f"refused: the file uses the instruction {name}, which torch.save never writes.")
            _STEPS[name](self)

    def _pop(self) -> Any:  # noqa: ANN401  (any inert value)
        if self._marks and self._marks[-1] >= len(self._stack):
            raise ValueError("nothing on the stack")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def push_new(self, make: type[Any]) -> None:
        self._stack.append(make())

    def tuple_(self) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def tuple_of(self, size: int) -> None:
        items = [self._pop() for _ in range(size)]
        self._stack.append(tuple(reversed(items)))

    def append(self) -> None:
        item = self._pop()
        _plain(self._stack[-1], list).append(item)

    def appends(self) -> None:
        items = self._pop_to_mark()
        _plain(self._stack[-1], list).extend(items)

    def setitem(self) -> None:
        value, key = self._pop(), self._pop()
        _set(_plain(self._stack[-1], dict), key, value)

    def setitems(self) -> None:
        items = self._pop_to_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            _set(_plain(self._stack[-1], dict), key, value)

    def stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._stack.append(_listed(_plain(module, str), _plain(name, str)))

    def newobj(self) -> None:
        arguments, made = self._pop(), _plain(self._pop(), _Global)
        if arguments != () or not _OBJECTS.fullmatch(made.name):
            raise ModelError(f"refused: the file asks to make a {made.name}.")
        self._stack.append(_Object(made.name))

    def build(self) -> None:
        state, made = _plain(self._pop(), dict), self._stack[-1]
        if isinstance(made, _Object):
            made.state.update(state)
        elif type(made) is not dict:  # the attributes of an ordered dictionary (`_metadata`) are not needed
            raise ModelError("refused: the file sets the state of something that has none.")

    def reduce(self) -> None:
        arguments, called = _plain(self._pop(), tuple), _plain(self._pop(), _Global)
        step = _CALLS.get(called.name)
        if step is None:
            raise ModelError(f"refused: the file asks to run {called.name}.")
        self._stack.append(step(*arguments))

    def binpersid(self) -> None:
        """Take up a reference to a storage, or in the older form to a class and its source text."""
        reference = _plain(self._pop(), tuple)
        if reference[0] == "module" and isinstance(reference[1], _Global):
            self._stack.append(reference[1])
            return
        kind, stored_as, key, _, num_values, *view = reference
        if kind != "storage" or any(item is not None for item in view):
            raise ModelError("refused: the file refers to something outside itself.")
        name = _plain(stored_as, _Global).name
        if name not in _STORAGES or _plain(num_values, int) < 0:
            raise ModelError(f"refused: the file claims a storage of {num_values} {name}.")
        dtype, value_bytes = _STORAGES[name]
        self._stack.append(self._locate(_plain(key, str), dtype, value_bytes, num_values))


_STEPS: dict[str, Callable[[_Interpreter], None]] = {
    "MARK": _Interpreter.mark,
    "EMPTY_DICT": partial(_Interpreter.push_new, make=dict),
    "EMPTY_LIST": partial(_Interpreter.push_new, make=list),
    "EMPTY_SET": partial(_Interpreter.push_new, make=list),
    "EMPTY_TUPLE": partial(_Interpreter.push_new, make=tuple),
    "TUPLE": _Interpreter.tuple_,
    "TUPLE1": partial(_Interpreter.tuple_of, size=1),
    "TUPLE2": partial(_Interpreter.tuple_of, size=2),
    "TUPLE3": partial(_Interpreter.tuple_of, size=3),
    "APPEND": _Interpreter.append,
    "APPENDS": _Interpreter.appends,
    "ADDITEMS": _Interpreter.appends,
    "SETITEM": _Interpreter.setitem,
    "SETITEMS": _Interpreter.setitems,
    "STACK_GLOBAL": _Interpreter.stack_global,
    "NEWOBJ": _Interpreter.newobj,
    "BUILD": _Interpreter.build,
    "REDUCE": _Interpreter.reduce,
    "BINPERSID": _Interpreter.binpersid,
}


def _listed(module: str, name: str) -> _Global:
    """Let a name pass that is on the lists.

    Raises:
        ModelError: it is not.
    """
    full = f"{module}.{name}"[:_MAX_NAME]
    if full in _CALLS or full in _STORAGES or _OBJECTS.fullmatch(full):
        return _Global(full)
    raise ModelError(
        f"refused: the file asks to run {full}. A head holds tensors and layers of torch.nn only; whoever made this "
        "file can save its state_dict() as safetensors."
    )


def _plain(value: Any, wanted: type[Any]) -> Any:  # noqa: ANN401  (checked here)
    """Return ``value``, which must be exactly of one type: a bool is no number."""
    if type(value) is not wanted:
        raise TypeError(f"{wanted.__name__} expected, {type(value).__name__} found")
    return value


def _set(target: dict[Any, Any], key: object, value: object) -> None:
    # Keys of other types would have to be hashed, which nested tuples can draw out for ever.
    if type(key) not in (str, int) or len(str(key)) > _MAX_NAME:
        raise TypeError(f"a key of type {type(key).__name__}, or too long")
    target[key] = value


def _rebuild_tensor(storage: object, offset: object, shape: object, stride: object, *unused: object) -> StoredTensor:
    """Declare a tensor: every element it can reach must be in its storage, and it may not be larger."""
    del unused  # whether it had a gradient, and hooks
    values: _Storage = _plain(storage, _Storage)
    numbers = [offset, *_plain(shape, tuple), *_plain(stride, tuple)]
    sizes: tuple[int, ...] = shape  # type: ignore[assignment]
    steps: tuple[int, ...] = stride  # type: ignore[assignment]
    odd = any(type(number) is not int or not 0 <= number < 1 << 48 for number in numbers)
    if odd or len(sizes) != len(steps) or len(sizes) > _MAX_DIMENSIONS:
        raise ModelError("refused: a tensor has a shape that makes no sense.")
    first: int = offset  # type: ignore[assignment]
    last = first + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
    outside = 0 not in sizes and (last >= values.num_values or prod(sizes) > values.num_values)
    if outside:
        raise ModelError(f"refused: a tensor of shape {sizes}, stride {steps} reads beyond its storage.")
    return StoredTensor(sizes, values.dtype, partial(values.read, first, sizes, steps))


def _rebuild_parameter(tensor: object, *unused: object) -> StoredTensor:
    del unused
    found: StoredTensor = _plain(tensor, StoredTensor)
    return found


def _ordered_dict(items: object = ()) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for key, value in items:  # type: ignore[attr-defined]
        _set(made, key, value)
    return made


def _set_of(items: object = ()) -> list[Any]:
    return list(items)  # type: ignore[call-overload,no-any-return]


_CALLS: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "builtins.set": _set_of,
    "__builtin__.set": _set_of,
}


def _read_out(root: object) -> Foreign:
    """Walk the tree that was built, and keep its tensors and plain values under dotted names."""
    found = Foreign({}, {})
    for number, (name, value) in enumerate(_walk("", root, 0)):
        if number >= _MAX_VISITS:
            raise ModelError("refused: it holds more entries than a model has.")
        if isinstance(value, StoredTensor):
            found.tensors[name] = value
        elif value is None or (isinstance(value, bool | int | float | str) and len(str(value)) <= _MAX_TEXT):
            found.values[name] = value
    return found


def _walk(name: str, value: object, depth: int) -> Iterator[tuple[str, object]]:
    """Yield every entry below ``value``, inner ones too, so that the caller can count them."""
    yield name, value
    if depth > _MAX_DEPTH:
        raise ModelError("refused: it is nested more deeply than a model is.")
    if isinstance(value, _Object):
        # A module keeps what its state_dict() names in three dictionaries of its own.
        value = dict(value.state)
        for kind in ("_parameters", "_buffers", "_modules"):
            inner = value.pop(kind, None)
            value |= inner if type(inner) is dict else {}
    if type(value) is dict:
        for key, item in value.items():
            yield from _walk(f"{name}.{key}" if name else str(key), item, depth + 1)
