"""Tensors out of PyTorch files that are pickles, without running what the files say.

A pickle is a program: loading one runs what it says. The published heads are pickles of a whole module and the ESM-2
``.pt`` files hold an argparse namespace, so plain ``torch.load`` runs them or refuses them. Here:

1. A bounded look at the instructions refuses a file that is larger, names other things or uses other instructions than
   ``torch.save`` writes for tensors, layers of ``torch.nn`` and plain values. What torch itself allows is more: it
   would make a ``bytearray`` of any size.
2. ``torch.load(weights_only=True)`` reads it, with an inert class of our own in the place of every class it names.
3. The result is walked within bounds; every tensor has to lie in its own part of the file.

Tensors of the zip form (torch 1.6 and later) are mapped, so that a file of any size costs no memory.
"""

from __future__ import annotations

import io
import pickletools
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from virnucpro.encoders.weights import StoredTensor
from virnucpro.errors import ModelError

if TYPE_CHECKING:
    import torch

Plain = bool | int | float | str | None

_MAX_PICKLE_BYTES = 4 << 20  # the names and shapes of 15 B are a tenth of that
_MAX_LEGACY_BYTES = 1 << 30  # read into memory; a head has 40 MB
_MAX_VISITS = 200_000  # entries of the tree that is read out; 15 B has 1,000 tensors
_MAX_DEPTH = 40
_MAX_NAME = 300  # characters of a key
_MAX_TEXT = 1_000  # characters of a plain value that is kept
_MAX_SHARED_TUPLES = 40
"""Uses of a tuple that came before. Tuples of twice the same tuple would take for ever to hash, compare or print."""

_OBJECTS = re.compile(
    r"__main__\.MLPClassifier|argparse\.Namespace|torch\.nn\.modules\.[a-z_]+\.[A-Z][A-Za-z0-9]*", re.ASCII
)
"""Classes that are replaced by an inert one."""
_KNOWN = re.compile(
    r"collections\.OrderedDict|(builtins|__builtin__)\.set"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|parameter)"
    r"|torch\.(Double|Float|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage",
    re.ASCII,
)
"""What else ``torch.save`` names; torch reads these itself."""
_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_INSTRUCTIONS = {
    "PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID", "BINPUT", "LONG_BINPUT", "BINGET",
    "LONG_BINGET", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET", "EMPTY_TUPLE", "APPEND", "APPENDS", "SETITEM", "SETITEMS",
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", *_TUPLES,
}  # fmt: skip


@dataclass(frozen=True)
class Foreign:
    """What a file holds."""

    tensors: dict[str, StoredTensor]  # by dotted name, ``model.layers.0.fc1.weight``
    values: dict[str, Plain]  # numbers and texts by dotted name, ``args.encoder_layers``


class _Inert:
    """Stands for an instance of a class that a file names: its state, without behaviour."""

    def __new__(cls, *arguments: object) -> Self:
        if arguments:
            raise ModelError("refused: the file asks to call a class, which torch.save never does.")
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        if type(state) is not dict:
            raise TypeError("the state of an object is not a dictionary")
        self.__dict__.update(state)


def read_foreign(path: Path) -> Foreign:
    """List the tensors and plain values of a file made by ``torch.save``; nothing in it is run.

    Raises:
        ModelError: it is refused, because it asks for more than tensors and plain values; or it is damaged, or there is
            no such file.
    """
    try:
        with path.open("rb") as file:
            is_archive = file.read(2) == b"PK"
            file.seek(0)
            names, sizes = _look_at_archive(file) if is_archive else _look_at_legacy(path, file)
        return _read_out(_load(path, names, is_mapped=is_archive), sizes)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except MemoryError:
        raise
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except Exception as error:
        raise ModelError(f"{path}: is damaged or not a PyTorch file ({_reason(error)}). Fetch it again.") from error


def _reason(error: Exception) -> str:
    """One line of what torch says; not its advice to load the file without the restriction."""
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
    return f"{type(error).__name__}: {text[:200]}" if "weights_only" not in text else type(error).__name__


def _load(path: Path, names: set[str], *, is_mapped: bool) -> object:
    import torch  # noqa: PLC0415 - the look needs none

    stubs: list[Any] = [(_Inert, name) for name in names if _OBJECTS.fullmatch(name)]
    with torch.serialization.safe_globals(stubs), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)


def _look_at_archive(file: BinaryIO) -> tuple[set[str], Counter[int]]:
    """Names in ``data.pkl`` of the zip form, and the sizes of its storages: ``NAME/data.pkl``, ``NAME/data/0`` ..."""
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise ModelError("refused: two members of the archive have one name.")
        for info in members.values():
            _check_member(info)
        programs = [name for name in members if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(programs) != 1:
            raise ModelError("is a zip archive, but not one that torch.save makes (no data.pkl).")
        if members[programs[0]].file_size > _MAX_PICKLE_BYTES:
            raise ModelError("refused: its pickle is larger than names and shapes can be.")
        names = _look(io.BytesIO(archive.read(programs[0])))
    storages = f"{programs[0].removesuffix('data.pkl')}data/"
    return names, Counter(info.file_size for name, info in members.items() if name.startswith(storages))


def _check_member(info: zipfile.ZipInfo) -> None:
    parts = info.filename.split("/")
    if info.filename.startswith("/") or "\\" in info.filename or ".." in parts:
        raise ModelError(f"refused: a member of the archive is called {info.filename!r}.")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
        raise ModelError(f"refused: member {info.filename} is compressed or encrypted, which torch.save never does.")


def _look_at_legacy(path: Path, file: BinaryIO) -> tuple[set[str], None]:
    """Names in the older form: five pickles (magic number, version, system, the object, keys), then the storages."""
    if path.stat().st_size > _MAX_LEGACY_BYTES:
        raise ModelError(
            "refused: files of this size are saved in the newer form. Save it again with torch 1.6 or later."
        )
    programs = io.BytesIO(file.read(_MAX_PICKLE_BYTES))
    if not programs.getvalue().startswith(b"\x80"):
        raise ModelError("is not a PyTorch file.")
    names = set[str]().union(*(_look(programs) for _ in range(5)))
    if any(name.startswith(("__main__.", "torch.nn.")) for name in names):
        raise ModelError(
            "refused: a whole module in the form that torch wrote before version 1.6. Load it with the program it "
            "comes from and save its state_dict() with torch 1.6 or later."
        )
    return names, None


def _look(stream: BinaryIO) -> set[str]:
    """Look at the instructions of one pickle; the stream is behind it afterwards.

    Returns:
        What it names.

    Raises:
        ModelError: it names or does something else than ``torch.save``.
    """
    names: set[str] = set()
    tuples: set[int] = set()
    before, num_shared = "", 0
    argument: Any
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name not in _INSTRUCTIONS:
            raise ModelError(f"refused: the file uses the instruction {opcode.name}, which torch.save never writes.")
        if opcode.name == "GLOBAL":
            names.add(_listed(argument.replace(" ", ".", 1)))
        elif opcode.name.endswith("BINPUT"):
            (tuples.add if before in _TUPLES else tuples.discard)(argument)
        elif opcode.name.endswith("BINGET") and argument in tuples:
            num_shared += 1
        elif opcode.name == "BINUNICODE" and len(argument) > _MAX_PICKLE_BYTES // 8:
            raise ModelError("refused: a text in it is longer than a name can be.")
        if num_shared > _MAX_SHARED_TUPLES:
            raise ModelError("refused: it uses the same tuples again and again, which torch.save never does.")
        before = opcode.name
    return names


def _listed(name: str) -> str:
    if _OBJECTS.fullmatch(name) or _KNOWN.fullmatch(name):
        return name
    raise ModelError(
        f"refused: the file asks to run {name[:_MAX_NAME]}. A head holds tensors and layers of torch.nn only; whoever "
        "made this file can save its state_dict() as safetensors."
    )


def _read_out(root: object, sizes: Counter[int] | None) -> Foreign:
    """Walk what was loaded, and keep its tensors and plain values under dotted names.

    Args:
        root: of the tree.
        sizes: of the storages in the file, in bytes; None if torch has checked them.
    """
    import torch  # noqa: PLC0415

    found = Foreign({}, {})
    storages: dict[int, int] = {}
    for number, (name, value) in enumerate(_walk("", root, 0)):
        if number >= _MAX_VISITS:
            raise ModelError("refused: it holds more entries than a model has.")
        if isinstance(value, torch.Tensor):
            found.tensors[name] = _stored(value.detach())
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif value is None or (isinstance(value, bool | int | float | str) and len(str(value)) <= _MAX_TEXT):
            found.values[name] = value
        elif not isinstance(value, str | dict | list | tuple | set | _Inert):
            raise ModelError(
                f"refused: it holds a {type(value).__name__}, which is neither a tensor nor a plain value."
            )
    if sizes is not None and Counter(size for size in storages.values() if size) - sizes:
        raise ModelError("refused: a tensor claims more or less of the file than its storage has.")
    return found


def _stored(tensor: torch.Tensor) -> StoredTensor:
    """Raises ModelError for a tensor that is larger than the values it is made of."""
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ModelError(f"refused: a tensor of shape {tuple(tensor.shape)} is larger than its storage.")
    return StoredTensor(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), lambda: tensor)


def _walk(name: str, value: object, depth: int) -> Iterator[tuple[str, object]]:
    """Yield every entry below ``value``, inner ones too, so that the caller can count them."""
    yield name, value
    if depth > _MAX_DEPTH:
        raise ModelError("refused: it is nested more deeply than a model is.")
    if isinstance(value, _Inert):
        # A module keeps what its state_dict() names in three dictionaries of its own.
        value = dict(vars(value))
        for kind in ("_parameters", "_buffers", "_modules"):
            inner = value.pop(kind, None)
            value |= inner if isinstance(inner, dict) else {}
    if isinstance(value, dict):
        for key, item in value.items():
            if type(key) not in (str, int) or len(str(key)) > _MAX_NAME:
                raise ModelError("refused: it has a key that is not a name.")
            yield from _walk(f"{name}.{key}" if name else str(key), item, depth + 1)
