"""The cache of embeddings: found by content, bounded, shared by processes, never serving what is damaged."""

from __future__ import annotations

import logging
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.embeddings.cache import EmbeddingCache, remove_cache, sequence_digest
from virnucpro.embeddings.levels import embed_strings
from virnucpro.embeddings.loader import ModelLoader
from virnucpro.errors import ResourceError, StoreError, UsageError
from virnucpro.hierarchy import AnswerCache
from virnucpro.sequence.ragged import Ragged


def rows(number, width=8, seed=0):
    rng = np.random.default_rng(seed)
    digests = [sequence_digest(b"%d %d" % (seed, index)) for index in range(number)]
    return digests, rng.standard_normal((number, width), dtype=np.float32)


def edit(folder, statement, *values):
    database = sqlite3.connect(folder / "embeddings.sqlite")
    with database:
        database.execute(statement, values)
    database.close()


def test_what_is_put_is_found_bit_for_bit(tmp_path):
    digests, values = rows(1200)
    values[0] = [np.inf, -0.0, np.float32(1e-42), 3, 4, 5, 6, 7]
    with EmbeddingCache(tmp_path) as cache:
        cache.put("f", "float32", "lite", digests, values)
    with EmbeddingCache(tmp_path) as cache:
        found = cache.get("f", "float32", 8, digests)
        assert np.stack([found[digest] for digest in digests]).tobytes() == values.tobytes()
        for other in (("g", "float32", 8), ("f", "bfloat16", 8), ("f", "float32", 9)):
            assert cache.get(*other, digests) == {}
        assert cache.get("f", "float32", 8, [sequence_digest(b"x")]) == {}
        assert (cache.num_hits, cache.num_misses) == (1200, 3 * 1200 + 1)
        (use,) = cache.encoders()
        assert (use.name, use.num_rows, use.width) == ("lite", 1200, 8)


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_digests_tell_sequences_apart(one, other):
    assert (sequence_digest(one) == sequence_digest(other)) == (one == other)


@pytest.mark.parametrize(
    "damage", ["zeroblob(40)", "x'00'", "NULL", "'text'", "substr(value, 1, 39)", "randomblob(40)"]
)
def test_a_damaged_entry_is_not_served_and_is_replaced(tmp_path, damage):
    digests, values = rows(3)
    with EmbeddingCache(tmp_path) as cache:
        cache.put("f", "float32", "lite", digests, values)
    edit(tmp_path, f"UPDATE embeddings SET value={damage} WHERE id=2")  # noqa: S608 - SQL of this file
    with EmbeddingCache(tmp_path) as cache:
        assert set(cache.get("f", "float32", 8, digests)) == {digests[0], digests[2]}
        cache.put("f", "float32", "lite", digests, values)
        np.testing.assert_array_equal(cache.get("f", "float32", 8, digests)[digests[1]], values[1])


def test_an_entry_under_another_key_is_damaged(tmp_path):
    """The digest of an entry covers what it was computed from."""
    digests, values = rows(1)
    with EmbeddingCache(tmp_path) as cache:
        cache.put("f", "float32", "lite", digests, values)
    other = sequence_digest(b"other")
    edit(tmp_path, "UPDATE embeddings SET sequence=?", other)
    with EmbeddingCache(tmp_path) as cache:
        assert cache.get("f", "float32", 8, [other]) == {}


def test_damaged_pages_end_no_run(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("virnucpro"), "propagate", True)
    digests, values = rows(5000)
    with EmbeddingCache(tmp_path) as cache:
        cache.put("f", "float32", "lite", digests, values)
    path = tmp_path / "embeddings.sqlite"
    content = bytearray(path.read_bytes())
    content[5 * 16_384 : 9 * 16_384] = b"\xff" * (4 * 16_384)
    path.write_bytes(content)
    with EmbeddingCache(tmp_path) as cache:
        found = cache.get("f", "float32", 8, digests)
        expected = dict(zip(digests, values, strict=True))
        assert all(np.array_equal(row, expected[digest]) for digest, row in found.items())
        assert len(found) < 5000
    assert "cannot be read" in caplog.text or "are damaged" in caplog.text


def test_the_size_is_bounded_and_the_unused_goes_first(tmp_path):
    digests, values = rows(400, width=1000)
    with EmbeddingCache(tmp_path, max_bytes=1 << 20) as cache:
        cache.put("f", "float32", "lite", digests[:200], values[:200])
        edit(tmp_path, "UPDATE embeddings SET used=1 WHERE id<=100")
        cache.get("f", "float32", 1000, digests[:10])  # these are asked for today
        for start in range(200, 400, 20):
            cache.put("f", "float32", "lite", digests[start : start + 20], values[start : start + 20])
            assert cache.num_bytes() <= 1 << 20
        assert len(cache.get("f", "float32", 1000, digests[380:])) == 20
        assert cache.get("f", "float32", 1000, digests[10:100]) == {}
    assert (tmp_path / "embeddings.sqlite").stat().st_size <= (1 << 20) + 20 * 16_384, "a batch more"


def test_pruning_by_size_and_by_days(tmp_path):
    digests, values = rows(50, width=1000)
    with EmbeddingCache(tmp_path) as cache:
        cache.put("f", "float32", "lite", digests, values)
        edit(tmp_path, "UPDATE embeddings SET used=used-40 WHERE id<=20")
        assert cache.prune(unused_days=50) == 0
        assert cache.prune(unused_days=30) == 20
        assert cache.prune(max_bytes=0) == 30
        cache.put("f", "float32", "lite", digests, values)
        assert len(cache.get("f", "float32", 1000, digests)) == 50


WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from virnucpro.embeddings.cache import EmbeddingCache, sequence_digest
folder, writer, number = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
with EmbeddingCache(folder) as cache:
    for start in range(0, number, 10):
        names = [b"%d" % (index if index % 2 else writer * 10_000 + index) for index in range(start, start + 10)]
        values = np.array([[float(name)] * 300 for name in names], dtype=np.float32)
        cache.put("f", "float32", "lite", [sequence_digest(name) for name in names], values)
        print(start, flush=True)
"""


def start_writer(folder, writer, number):
    command = [sys.executable, "-c", WRITER, str(folder), str(writer), str(number)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def check_rows(folder, numbers):
    with EmbeddingCache(folder) as cache:
        found = cache.get("f", "float32", 300, [sequence_digest(b"%d" % number) for number in numbers])
        for number in numbers:
            row = found.get(sequence_digest(b"%d" % number))
            assert row is None or (row == number).all()
        return len(found)


def test_processes_that_write_together_lose_nothing(tmp_path):
    """Half of what each writes is the same."""
    writers = [start_writer(tmp_path, writer, 200) for writer in range(1, 4)]
    for writer in writers:
        writer.communicate(timeout=120)
        assert writer.returncode == 0
    shared = range(1, 200, 2)
    own = [writer * 10_000 + index for writer in range(1, 4) for index in range(0, 200, 2)]
    assert check_rows(tmp_path, shared) == 100
    assert check_rows(tmp_path, own) == 300
    with EmbeddingCache(tmp_path) as cache:
        assert [use.num_rows for use in cache.encoders()] == [400]


def test_a_killed_writer_leaves_whole_entries(tmp_path):
    writer = start_writer(tmp_path, 1, 100_000)
    for _ in range(20):
        assert writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    writer.wait(timeout=20)
    assert check_rows(tmp_path, range(1, 200, 2)) >= 95
    again = start_writer(tmp_path, 1, 200)
    again.communicate(timeout=60)
    assert again.returncode == 0
    assert check_rows(tmp_path, range(1, 200, 2)) == 100


def test_threads_share_a_cache(tmp_path):
    with EmbeddingCache(tmp_path) as cache:

        def write(seed):
            digests, values = rows(100, seed=seed)
            cache.put("f", "float32", "lite", digests, values)
            assert len(cache.get("f", "float32", 8, digests)) == 100

        threads = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert cache.encoders()[0].num_rows == 400


def test_a_full_disk_costs_time_and_no_run(tmp_path, caplog, monkeypatch):
    """SQLite is given no further page."""
    monkeypatch.setattr(logging.getLogger("virnucpro"), "propagate", True)
    digests, values = rows(100, width=1000)
    with EmbeddingCache(tmp_path) as cache:
        cache.put("f", "float32", "lite", digests[:10], values[:10])
        pages = cache._database.execute("PRAGMA page_count").fetchone()[0]  # noqa: SLF001
        cache._database.execute(f"PRAGMA max_page_count={pages}")  # noqa: SLF001
        cache.put("f", "float32", "lite", digests, values)
        cache.put("f", "float32", "lite", digests, values)
        assert len(cache.get("f", "float32", 1000, digests)) == 10
    assert caplog.text.count("cannot be written") == 1


def test_other_versions_other_files_and_places_are_refused(tmp_path):
    EmbeddingCache(tmp_path / "a").close()
    edit(tmp_path / "a", "PRAGMA user_version=7")
    with pytest.raises(StoreError, match="version 7"):
        EmbeddingCache(tmp_path / "a")
    with pytest.raises(StoreError, match="version 7"):
        AnswerCache(tmp_path / "a" / "embeddings.sqlite")
    remove_cache(tmp_path / "a")
    EmbeddingCache(tmp_path / "a").close()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "embeddings.sqlite").write_bytes(b"something else" * 2000)
    with pytest.raises(StoreError, match="damaged"):
        EmbeddingCache(tmp_path / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError):
        EmbeddingCache(tmp_path / "file")
    with pytest.raises(UsageError):
        EmbeddingCache(tmp_path / "c", max_bytes=0)


def test_only_what_is_missing_is_computed(tmp_path, tiny_bundle):
    """Repeated strings are one entry; an overlapping set takes what it lacks."""
    model = ModelLoader(tiny_bundle / "nucleotide.safetensors", device="cpu").get_model()
    strings = Ragged.from_bytes([b"ACGT" * 30, b"TTTTA" * 20, b"ACGT" * 30, b""])
    expected = model.embed(strings)
    with EmbeddingCache(tmp_path) as cache:
        np.testing.assert_allclose(embed_strings(model, strings, cache), expected, atol=1e-6)
        assert (cache.num_hits, cache.num_misses) == (0, 3)
        more = Ragged.from_bytes([b"TTTTA" * 20, b"GGGGA" * 20])
        first = embed_strings(model, more, cache)
        assert (cache.num_hits, cache.num_misses) == (1, 4)
        np.testing.assert_array_equal(first, embed_strings(model, more, cache))
        assert embed_strings(model, Ragged.from_bytes([]), cache).shape == (0, 24)


def test_commands(virnucpro, tmp_path):
    digests, values = rows(100, width=1000)
    with EmbeddingCache(tmp_path / "c") as cache:
        cache.put("fingerprint", "float32", "my encoder", digests, values)
    ended = virnucpro("cache", "info", tmp_path / "c")
    assert (ended.code, ended.err) == (0, "")
    assert "my encoder  100 embeddings of width 1000 in float32  fingerprint" in ended.out
    assert '"num_rows": 100' in virnucpro("cache", "info", tmp_path / "c", "--json").out
    assert virnucpro("cache", "prune", tmp_path / "c", "--max-size", "1G").out.startswith("0 embeddings removed")
    assert virnucpro("cache", "prune", tmp_path / "c", "--max-size", "200K").code == 0
    with EmbeddingCache(tmp_path / "c") as cache:
        assert 0 < cache.encoders()[0].num_rows < 50
    for wrong in (("prune", tmp_path / "c"), ("prune", tmp_path / "c", "--max-size", "big"), ("info", tmp_path)):
        ended = virnucpro("cache", *wrong)
        assert ended.code == 2
        assert len(ended.err.strip().splitlines()) == 1
    assert virnucpro("cache", "clear", tmp_path / "c").code == 0
    assert list((tmp_path / "c").iterdir()) == []


def test_days_are_counted_from_today(tmp_path):
    digests, values = rows(1)
    with EmbeddingCache(tmp_path) as cache:
        cache.put("f", "float32", "lite", digests, values)
        (used,) = cache._database.execute("SELECT used FROM embeddings").fetchone()  # noqa: SLF001
        assert abs(used - time.time() / 86_400) < 2
