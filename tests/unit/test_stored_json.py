"""What is read from disk is checked: whatever a file holds, the answer is the content or one line that names it."""

from __future__ import annotations

import json
import os
import random
from dataclasses import asdict

import pytest

from virnucpro import stored_json
from virnucpro.errors import StoreError
from virnucpro.run_dir import RunDir
from virnucpro.stages.base import Index, IndexedInput, IndexedUnit

GOOD = Index(
    (IndexedInput("in.fasta", "in", "fasta", "none", "0" * 64, 0, 3, 900),),
    (IndexedUnit(0, 5, 5, 0, 3, 500),),
    3,
)
WRONG = (None, [], {}, "text", -1, 1e300, 10**40, True, [[[]]], {"a": {}}, "\x00")


def mutations(content, generator):
    """Copies of JSON content with one value replaced or one key left out."""
    text = json.dumps(content)

    def places(node, path=()):
        yield path
        if isinstance(node, (dict, list)):
            items = node.items() if isinstance(node, dict) else enumerate(node)
            for key, value in items:
                yield from places(value, (*path, key))

    for path in places(content):
        for wrong in generator.sample(WRONG, 4):
            copy = json.loads(text)
            if not path:
                yield wrong
                continue
            node = copy
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = wrong
            yield copy
        if path and isinstance(path[-1], str):
            copy = json.loads(text)
            node = copy
            for key in path[:-1]:
                node = node[key]
            del node[path[-1]]
            yield copy


def test_an_index_is_read_or_called_damaged_whatever_it_holds(tmp_path):
    """Hundreds of wrong types, missing keys, huge and negative numbers: never another exception."""
    run_dir = RunDir(tmp_path)
    run_dir.work.mkdir()
    messages = []
    tries = list(mutations(json.loads(json.dumps(asdict(GOOD))), random.Random(1)))
    for content in tries:
        run_dir.index.write_text(json.dumps(content))
        try:
            Index.read(run_dir)
        except StoreError as error:
            messages.append(str(error))
    assert len(tries) > 80
    assert len(messages) > 0.7 * len(tries)
    assert all(str(run_dir.index) in text and "damaged" in text for text in messages)


def test_the_key_at_fault_is_named(tmp_path):
    """File, key and what was expected."""
    run_dir = RunDir(tmp_path)
    run_dir.work.mkdir()
    content = json.loads(json.dumps(asdict(GOOD)))
    content["units"][0]["num_rows"] = -5
    run_dir.index.write_text(json.dumps(content))
    with pytest.raises(StoreError, match=r"\$\.units\[0\]\.num_rows: Expected `int` >= 0"):
        Index.read(run_dir)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": ' * 50_000])
def test_what_is_not_json_is_damaged(tmp_path, content):
    """Empty, cut, other encodings, nested without end."""
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        stored_json.read(path, dict[str, object])


def test_links_fifos_folders_and_huge_files_are_refused_at_once(tmp_path, monkeypatch):
    """Nothing is waited for, followed or read without end."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    (tmp_path / "folder").mkdir()
    (tmp_path / "big").write_bytes(b" " * 2_000)
    monkeypatch.setattr(stored_json, "MAX_BYTES", 1_000)
    for name in ("fifo", "itself", "folder", "big"):
        with pytest.raises(StoreError, match="damaged"):
            stored_json.read(tmp_path / name, dict[str, object])
    with pytest.raises(FileNotFoundError):
        stored_json.read(tmp_path / "nowhere", dict[str, object])
