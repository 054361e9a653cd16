"""Which machines there are, and how to log in: ``clusters.toml`` and ``.credentials/NAME.credentials``.

A machine is a table of ``clusters.toml``, a credentials file, or both::

    [clusters.alpha]
    address = "alpha.example.org"        # or a Host of ~/.ssh/config
    path = "/scratch/me/embeddings"      # folder there
    patterns = ["cluster*_gpu*.h5"]

    .credentials/alpha.credentials       # JSON, readable by its owner alone
    {"address": "alpha.example.org", "username": "me", "password": "..."}

Passwords stand in credentials files only. They are neither logged nor part of any error.
"""

from __future__ import annotations

import json
import re
import stat
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from virnucpro.errors import UsageError
from virnucpro.platforms import is_private

PATTERNS = ("*.h5", "*.hdf5", "*.npz")
"""What is fetched where nothing else is asked for."""
DEFAULT_CONFIG = Path("clusters.toml")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*", re.ASCII)
_ENDING = ".credentials"


@dataclass(frozen=True)
class Machine:
    """A machine that files are fetched from."""

    name: str  # what it is called here; also the folder its files go to
    address: str  # host name, IP address or a ``Host`` of the SSH configuration
    port: int | None = None  # None where the SSH configuration, or 22, decides
    username: str | None = None  # None where the SSH configuration, or the local name, decides
    password: str | None = field(default=None, repr=False)  # of the user; None for keys and agent
    key_file: Path | None = None  # private key; None for the usual ones and the agent
    passphrase: str | None = field(default=None, repr=False)  # of the key file
    known_hosts: Path | None = None  # file of trusted host keys; None for the usual ones
    path: str = "."  # folder on the machine, absolute or relative to the login folder
    # what is fetched from it, relative to ``path``; ``*`` and ``?`` do not cross a ``/``
    patterns: tuple[str, ...] = PATTERNS


_SECRETS = ("password", "passphrase")
_PATHS = ("key_file", "known_hosts")
_KEYS = {item.name for item in fields(Machine)} - {"name"}


def chosen_machines(
    config: Path | None, credentials: Path, names: str, path: str | None, patterns: Sequence[str]
) -> list[Machine]:
    """The machines of a command line, in order of name.

    Args:
        config: description of the machines; ``clusters.toml`` where None, if there is one.
        credentials: folder of credentials files; it may be missing.
        names: of those asked for, separated by spaces or commas; all where empty.
        path: folder on the machines; the one described where None.
        patterns: of files; those described where empty.

    Raises:
        UsageError: a file cannot be read or followed, its secrets are open to others, or a name is unknown.
    """
    if config is None and DEFAULT_CONFIG.is_file():
        config = DEFAULT_CONFIG
    described = {} if config is None else _read_toml(config)
    files = {file.stem: file for file in credentials.glob(f"*{_ENDING}")}
    known = sorted(described.keys() | files.keys())
    if not known:
        raise UsageError(
            f"no machine is described. Write a clusters.toml with a table [clusters.NAME], "
            f"or {credentials}/NAME{_ENDING}."
        )
    wanted = names.replace(",", " ").split() or known
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UsageError(f"no machine is called {', '.join(unknown)}. There are: {', '.join(known)}.")
    changes: dict[str, Any] = {} if path is None else {"path": path}
    if patterns:
        changes["patterns"] = tuple(check_pattern(item, "--pattern") for item in patterns)
    machines = []
    for name in sorted(set(wanted)):
        settings = dict(described.get(name, {}))
        for key, value in (_read_credentials(files[name]) if name in files else {}).items():
            if settings.setdefault(key, value) != value:
                raise UsageError(f"{config} and {files[name]} give two values for {key} of {name}. Keep one.")
        source = config if name in described else files[name]
        machines.append(replace(_machine(name, settings, str(source)), **changes))
    return machines


def check_pattern(pattern: str, source: str) -> str:
    """Give back a pattern that stays below the folder of its machine.

    Raises:
        UsageError: it is empty, absolute or leads elsewhere.
    """
    parts = PurePosixPath(pattern).parts
    if not parts or pattern.startswith("/") or ".." in parts:
        raise UsageError(f"{source}: pattern {pattern!r} must be relative to the machine's path, without '..'.")
    return pattern


def _read_toml(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise UsageError(f"{path}: is not TOML ({error}).") from error
    tables = content.get("clusters")
    if (
        set(content) != {"clusters"}
        or not isinstance(tables, dict)
        or not all(isinstance(table, dict) for table in tables.values())
    ):
        raise UsageError(f"{path}: must hold tables [clusters.NAME] and nothing else.")
    for name, table in tables.items():
        for key in _SECRETS:
            if key in table:
                raise UsageError(f"{path}: the {key} of {name} belongs in .credentials/{name}{_ENDING} (chmod 600).")
    return tables


def _read_credentials(path: Path) -> dict[str, Any]:
    """The content of a credentials file; errors quote nothing of it."""
    try:
        status = path.stat()
        if not is_private(status):
            mode = f"{stat.S_IMODE(status.st_mode):o}"
            raise UsageError(f"{path}: others can read or change it (mode {mode}). Make it yours and chmod 600 it.")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError:
        raise UsageError(f"{path}: is not JSON.") from None  # the error of json holds the document
    if not isinstance(content, dict):
        raise UsageError(f"{path}: must be a JSON object with address, username and password or key_file.")
    return content


def _machine(name: str, settings: Mapping[str, Any], source: str) -> Machine:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{source}: {name!r} cannot be the name of a folder; use letters, digits, '-' and '_'.")
    unknown = sorted(settings.keys() - _KEYS)
    if unknown:
        raise UsageError(
            f"{source}: {name} has no setting {', '.join(unknown)}. There are: {', '.join(sorted(_KEYS))}."
        )
    if "address" not in settings:
        raise UsageError(f"{source}: {name} has no address.")
    return Machine(
        name=name, **{key: _checked(key, value, f"{source}: {key} of {name}") for key, value in settings.items()}
    )


def _checked(key: str, value: object, what: str) -> Any:  # noqa: ANN401 - of the type that the setting has
    """The value of a setting in the type it has in ``Machine``."""
    if key == "port":
        if not isinstance(value, int) or not 0 < value < 65536:
            raise UsageError(f"{what} must be a number from 1 to 65535.")
        return value
    if key == "patterns":
        if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
            raise UsageError(f"{what} must be a list of texts.")
        return tuple(check_pattern(item, what) for item in value)
    if not isinstance(value, str) or not value:
        raise UsageError(f"{what} must be a text.")
    if key not in _PATHS:
        return value
    path = Path(value).expanduser()
    if not path.is_file():
        raise UsageError(f"{what}: there is no file {path}.")
    return path
