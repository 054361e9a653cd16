"""Models as files: fetched from a real server on the loopback, verified, carried in an archive."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import socket
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest
from conftest import mixed_records, start, write_fasta

from virnucpro.bundles import load_bundle
from virnucpro.bundles.catalogue import MODELS, PARTS, HubSource, Part, RemoteFile
from virnucpro.cli import exit_code_of
from virnucpro.errors import ModelError, ResourceError, UsageError
from virnucpro.progress import Reporter
from virnucpro.registry import archive, inventory, receipts
from virnucpro.registry.download import Patience, SourceError, _Transfer, download, mirrored
from virnucpro.registry.fetch import Fetching, fetch_part, list_files

QUICK = Patience(attempts=3, first_wait_seconds=0.01, timeout_seconds=5)
WEIGHTS = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(300_000)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def git_blob(content):
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


class Site(ThreadingHTTPServer):
    """A small file server with faults.

    Attributes:
        files: path to content.
        stall: number of bytes of a body after which nothing comes, until the event ``go_on``.
        cut: connections that are cut, each after so many bytes of the body.
        ranges: whether ``Range`` is honoured.
        statuses: answers given before any other.
        headers: sent with every file.
        asked: (method, path, Range) of every request.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.cut, self.ranges, self.statuses, self.headers, self.asked = {}, [], True, [], {}, []
        self.stall, self.go_on = None, threading.Event()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def url(self, path):
        return self.address + path


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        site = self.server
        path, range_ = self.path, self.headers.get("Range")
        site.asked.append((self.command, path, range_))
        if site.statuses or path.partition("?")[0] not in site.files:
            self.send_response(site.statuses.pop(0) if site.statuses else 404)
            self.send_header("Content-Length", "0")
            if "Location" in site.headers:
                self.send_header("Location", site.headers["Location"])
            self.end_headers()
            return
        content = site.files[path.partition("?")[0]]
        headers = {"ETag": f'"{git_blob(content)}"'} | site.headers
        wanted_version = self.headers.get("If-Range")
        first = 0
        if range_ and site.ranges and wanted_version in (None, headers["ETag"]):
            first = int(range_.removeprefix("bytes=").rstrip("-"))
            if first == len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{first}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self.send_response(206 if "Content-Range" in headers else 200)
        for name, value in {"Content-Length": str(len(content) - first), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = site.stall if site.stall is not None else site.cut.pop(0) if site.cut else None
        self.wfile.write(content[first:][:limit])
        if site.stall is not None:
            site.go_on.wait(30)
        if limit is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format, *args):  # noqa: A002 - the name of the base class
        pass


@pytest.fixture
def site():
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.files["/w.pth"] = WEIGHTS
        yield server
        server.go_on.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty place for models."""
    monkeypatch.setenv("VIRNUCPRO_CACHE", str(tmp_path / "cache"))
    for name in ("HF_HOME", "HF_HUB_CACHE", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "others"))
    return tmp_path / "cache"


def nothing(amount):
    del amount


def closed_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


# Single files


def test_a_file_comes_with_its_size_and_sha256(site, tmp_path):
    record = download(RemoteFile(site.url("/w.pth")), tmp_path / "w.pth", QUICK, nothing)
    assert (tmp_path / "w.pth").read_bytes() == WEIGHTS
    assert (record.size_bytes, record.sha256) == (len(WEIGHTS), sha256(WEIGHTS))
    assert "recorded when it first came" in record.checked
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


def test_a_cut_connection_is_taken_up_where_it_was_cut(site, tmp_path):
    """Within one call, and every byte is asked for once."""
    site.cut = [100_000, 50_000]
    seen = []
    download(RemoteFile(site.url("/w.pth"), git_blob=git_blob(WEIGHTS)), tmp_path / "w.pth", QUICK, seen.append)
    assert (tmp_path / "w.pth").read_bytes() == WEIGHTS
    assert [range_ for _, _, range_ in site.asked] == [None, "bytes=100000-", "bytes=150000-"]
    assert sum(seen) == len(WEIGHTS)


def test_a_stopped_fetch_goes_on_with_the_next_call(site, tmp_path):
    site.cut = [120_000]
    once = Patience(attempts=1)
    with pytest.raises(SourceError, match="120,000 bytes are kept"):
        download(RemoteFile(site.url("/w.pth")), tmp_path / "w.pth", once, nothing)
    assert not (tmp_path / "w.pth").exists()
    assert (tmp_path / "w.pth.part").stat().st_size == 120_000
    download(RemoteFile(site.url("/w.pth")), tmp_path / "w.pth", once, nothing)
    assert (tmp_path / "w.pth").read_bytes() == WEIGHTS
    assert site.asked[-1] == ("GET", "/w.pth", "bytes=120000-")


def test_a_file_that_changed_on_the_server_is_begun_anew(site, tmp_path):
    """The half of one version is never joined with the half of another."""
    site.cut = [120_000]
    with pytest.raises(SourceError):
        download(RemoteFile(site.url("/w.pth")), tmp_path / "w.pth", Patience(attempts=1), nothing)
    site.files["/w.pth"] = OTHER
    download(RemoteFile(site.url("/w.pth")), tmp_path / "w.pth", QUICK, nothing)
    assert (tmp_path / "w.pth").read_bytes() == OTHER


def test_a_part_that_cannot_be_told_apart_is_begun_anew(site, tmp_path):
    """No version of the server's, no checksum known before: what lies there may be of any file."""
    (tmp_path / "w.pth.part").write_bytes(OTHER[:1000])
    download(RemoteFile(site.url("/w.pth")), tmp_path / "w.pth", QUICK, nothing)
    assert (tmp_path / "w.pth").read_bytes() == WEIGHTS


def test_a_server_without_ranges_gives_the_whole_file_again(site, tmp_path):
    site.ranges = False
    site.cut = [100_000]
    download(RemoteFile(site.url("/w.pth")), tmp_path / "w.pth", QUICK, nothing)
    assert (tmp_path / "w.pth").read_bytes() == WEIGHTS


def test_a_server_that_always_cuts_at_the_same_place_is_given_up(site, tmp_path):
    site.ranges = False
    site.cut = [100_000] * 10
    with pytest.raises(SourceError):
        download(RemoteFile(site.url("/w.pth")), tmp_path / "w.pth", QUICK, nothing)
    assert len(site.asked) == QUICK.attempts


def test_a_busy_server_is_asked_again(site, tmp_path):
    site.statuses = [503, 429]
    download(RemoteFile(site.url("/w.pth")), tmp_path / "w.pth", QUICK, nothing)
    assert len(site.asked) == 3


def test_wrong_bytes_never_take_the_place_of_a_file(site, tmp_path):
    """They are deleted, for no further attempt could mend them."""
    site.files["/w.pth"] = OTHER
    with pytest.raises(SourceError, match="expected"):
        download(RemoteFile(site.url("/w.pth"), git_blob=git_blob(WEIGHTS)), tmp_path / "w.pth", QUICK, nothing)
    assert list(tmp_path.iterdir()) == []


def test_a_complete_part_needs_no_byte_more(site, tmp_path):
    """A process killed between the last byte and the renaming."""
    (tmp_path / "w.pth.part").write_bytes(WEIGHTS)
    download(RemoteFile(site.url("/w.pth"), git_blob=git_blob(WEIGHTS)), tmp_path / "w.pth", QUICK, nothing)
    assert (tmp_path / "w.pth").read_bytes() == WEIGHTS
    assert site.asked == [("GET", "/w.pth", f"bytes={len(WEIGHTS)}-")]


def test_a_web_page_is_no_checkpoint(site, tmp_path):
    """The log-in page of a network answers everything with 200."""
    site.headers = {"Content-Type": "text/html; charset=utf-8"}
    with pytest.raises(SourceError, match="web page"):
        download(RemoteFile(site.url("/w.pth")), tmp_path / "w.pth", QUICK, nothing)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/w.pth", "/loop.pth", "gopher://x/"])
def test_a_redirect_to_another_scheme_or_in_a_circle_is_refused(site, tmp_path, target):
    """Nothing of the machine is read, and nothing hangs."""
    site.files["/loop.pth"] = b""
    site.statuses, site.headers = [302] * 50, {"Location": target}
    with pytest.raises(SourceError):
        download(RemoteFile(site.url("/loop.pth")), tmp_path / "w.pth", QUICK, nothing)
    assert list(tmp_path.iterdir()) == []


def test_a_redirect_to_another_host_is_followed_and_only_with_encryption_from_there(site, tmp_path):
    """As hubs redirect to where their files lie."""
    site.statuses, site.headers = [302], {"Location": site.url("/w.pth").replace("127.0.0.1", "localhost")}
    download(RemoteFile(site.url("/x.pth")), tmp_path / "w.pth", QUICK, nothing)
    assert (tmp_path / "w.pth").read_bytes() == WEIGHTS
    first, last = (httpx2.Request("GET", address) for address in ("https://a.org/w.pth", "http://b.org/w.pth"))
    answer = httpx2.Response(200, request=last, history=[httpx2.Response(302, request=first)])
    with pytest.raises(SourceError, match="without encryption"), (tmp_path / "part").open("wb") as stream:
        _Transfer(RemoteFile(str(first.url)), tmp_path / "part", stream, QUICK, nothing)._refuse_wrong(answer)  # noqa: SLF001 - the loopback has no encryption


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ({"Content-Length": "999999"}, "bytes are kept|peer closed"),
        ({"Content-Length": str(10**15)}, "would be many"),
        ({"Content-Length": "100", "Content-Range": f"bytes 0-99/{len(WEIGHTS)}"}, "sent 100 of"),
        ({"Content-Length": str(len(WEIGHTS)), "Content-Range": "bytes 0-99/100"}, "more than 100 bytes"),
        ({"Transfer-Encoding": "chunked"}, "peer closed|protocol|[Ii]llegal|chunk"),
    ],
)
def test_lengths_and_ranges_that_lie_never_make_a_file(site, tmp_path, headers, problem):
    """Also where nobody knows a checksum."""
    site.headers, site.ranges, site.cut = headers, False, [len(WEIGHTS)] * 20
    with pytest.raises(SourceError, match=problem):
        download(RemoteFile(site.url("/w.pth")), tmp_path / "w.pth", QUICK, nothing)
    assert not (tmp_path / "w.pth").exists()


def test_a_body_without_end_is_cut_off(site, tmp_path):
    """By the size that such a file may have."""
    site.headers = {"Content-Length": "", "Connection": "close"}
    with pytest.raises(SourceError, match="more than 1,000 bytes"):
        download(RemoteFile(site.url("/w.pth")), tmp_path / "w.pth", QUICK, nothing, 1000)
    assert list(tmp_path.iterdir()) == []


def test_what_a_server_says_cannot_move_the_cursor(site, tmp_path, capsys, monkeypatch):
    """Its reason is shown escaped, or refused."""
    monkeypatch.setitem(BaseHTTPRequestHandler.responses, 418, ("\x1b[2Jgone\x07", ""))
    site.statuses = [418] * 10
    with pytest.raises(SourceError) as caught:
        download(RemoteFile(site.url("/w.pth")), tmp_path / "w.pth", QUICK, nothing)
    assert exit_code_of(caught.value) == 6
    assert not set("\x1b\x07") & set(capsys.readouterr().err)


def test_a_file_that_is_not_there_is_not_asked_for_twice(site, tmp_path):
    with pytest.raises(SourceError, match="404"):
        download(RemoteFile(site.url("/absent.pth")), tmp_path / "w.pth", QUICK, nothing)
    assert len(site.asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_write_one_part(site, tmp_path):
    import fcntl

    with (tmp_path / "w.pth.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ResourceError, match="another process"):
            download(RemoteFile(site.url("/w.pth")), tmp_path / "w.pth", QUICK, nothing)


def test_a_mirror_takes_the_place_of_scheme_and_host():
    assert mirrored("https://a.org/x/y.pt", "http://m.org:8/base/") == "http://m.org:8/base/x/y.pt"
    assert mirrored("https://a.org/x/y.pt", None) == "https://a.org/x/y.pt"
    for bad in ("m.org", "ftp://m.org", "https://user:word@m.org", "file:///tmp"):
        with pytest.raises(UsageError):
            mirrored("https://a.org/x", bad)


# Parts


def how(**more):
    return Fetching(**({"mirror": None, "patience": QUICK, "reporter": Reporter(bars=False)} | more))


def test_sources_are_tried_in_order(site, tmp_path):
    part = Part(
        "tiny", "head", "MIT", len(WEIGHTS), (RemoteFile(site.url("/gone.pth")), RemoteFile(site.url("/w.pth")))
    )
    fetch_part(part, tmp_path, how())
    receipt = receipts.read_receipt(tmp_path)
    assert [(file.name, file.sha256) for file in receipt.files] == [("w.pth", sha256(WEIGHTS))]
    assert receipt.files[0].source == site.url("/w.pth")
    assert receipt.licence == "MIT"
    asked = len(site.asked)
    fetch_part(part, tmp_path, how())
    assert len(site.asked) == asked, "what is here is not fetched again"


def test_a_disk_too_small_is_known_before_the_first_byte(site, tmp_path):
    part = Part("tiny", "head", "MIT", 10**18, (RemoteFile(site.url("/w.pth")),))
    with pytest.raises(ResourceError, match="are free"):
        fetch_part(part, tmp_path, how())
    assert site.asked == []


def serve_repository(site, repo, files, large, **lies):
    """Serve what ``huggingface_hub`` asks a hub for: the listing at a commit, and files with their headers."""
    listed = [
        {"rfilename": name, "size": len(content), "blobId": git_blob(content)}
        | ({"lfs": {"sha256": sha256(content), "size": len(content), "pointerSize": 130}} if name in large else {})
        for name, content in files.items()
    ]
    listing = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": listed, "tags": [], "downloads": 0}
    site.files[f"/api/models/{repo}/revision/main"] = json.dumps(listing).encode()
    site.files |= {f"/{repo}/resolve/{COMMIT}/{name}": content for name, content in (files | lies).items()}
    site.headers = {"X-Repo-Commit": COMMIT}


DNABERT = {"config.json": b"{}", "tokenizer.json": b'{"a": 1}', "bert_layers.py": b"print('no')", "README.md": b"# x"}


def test_a_repository_comes_from_a_hub(virnucpro, site, cache):
    """Weights and small files, no code; each compared with what the hub lists."""
    serve_repository(site, "zhihan1996/DNABERT-S", DNABERT | {"pytorch_model.bin": WEIGHTS}, {"pytorch_model.bin"})
    ended = virnucpro("models", "fetch", "DNABERT-S", "--mirror", site.address)
    assert ended.code == 0, ended.err
    folder = cache / "downloads" / "DNABERT-S"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "pytorch_model.bin", "receipt.json", "tokenizer.json",
    ]  # fmt: skip
    files = {file.name: file for file in receipts.read_receipt(folder).files}
    assert files["pytorch_model.bin"].sha256 == sha256(WEIGHTS)
    assert files["pytorch_model.bin"].checked == "SHA-256 that its source names"
    assert files["config.json"].checked == "git object that its source names"
    assert virnucpro("models", "verify", "DNABERT-S").code == 0
    assert virnucpro("models", "path", "DNABERT-S").out.strip() == str(folder)


def test_safetensors_are_preferred_to_pickles(site, tmp_path):
    files = {"config.json": b"{}", "model.safetensors": WEIGHTS, "pytorch_model.bin": OTHER}
    serve_repository(site, "some/one", files, {"model.safetensors", "pytorch_model.bin"})
    source = HubSource("some/one", ("config.json",))
    fetch_part(Part("one", "protein", "MIT", 1, (source,)), tmp_path, how(mirror=site.address))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", "receipt.json"]


@pytest.mark.usefixtures("cache")
def test_a_cut_download_of_the_hub_goes_on(virnucpro, site):
    """Like any other file: every byte is asked for once."""
    serve_repository(site, "zhihan1996/DNABERT-S", DNABERT | {"pytorch_model.bin": WEIGHTS}, {"pytorch_model.bin"})
    site.cut = [10**9] * 3 + [150_000]  # listing and the two small files, then the weights
    ended = virnucpro("models", "fetch", "DNABERT-S", "--mirror", site.address)
    assert ended.code == 0, ended.err
    assert {range_ for _, _, range_ in site.asked} - {None} == {"bytes=150000-"}


@pytest.mark.parametrize("file", ["pytorch_model.bin", "config.json"])
def test_other_bytes_than_the_hub_lists_are_refused(virnucpro, site, cache, file):
    """By SHA-256 for large files, by git object for small ones."""
    files = DNABERT | {"pytorch_model.bin": WEIGHTS}
    wrong = bytes(len(files[file]))
    serve_repository(site, "zhihan1996/DNABERT-S", files, {"pytorch_model.bin"}, **{file: wrong})
    ended = virnucpro("models", "fetch", "DNABERT-S", "--mirror", site.address, "--retries", 0)
    assert ended.code == 6
    assert file in ended.err
    assert "it was deleted" in ended.err
    assert not (cache / "downloads" / "DNABERT-S" / "receipt.json").exists()


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/x/model.safetensors", "a/../../pytorch_model.bin", "\x1b.bin"]
)
def test_names_in_a_listing_never_lead_out_of_the_folder(site, name):
    """A hub may list anything; what is no plain name is passed over."""
    files = DNABERT | {name: WEIGHTS, "pytorch_model.bin": WEIGHTS}
    serve_repository(site, "zhihan1996/DNABERT-S", files, {name, "pytorch_model.bin"})
    (source,) = (part.sources[0] for part in PARTS.values() if part.name == "DNABERT-S")
    names = [file.name for file in list_files(source, f"{site.address}/{source.repo}", QUICK)]
    assert "pytorch_model.bin" in names
    assert set(names) <= {*DNABERT, "pytorch_model.bin"}


def test_a_mirror_that_is_no_hub_still_gives_single_files(virnucpro, site, cache):
    """ESM-2 has two sources; the second is a plain file."""
    site.files["/fair-esm/models/esm2_t6_8M_UR50D.pt"] = WEIGHTS
    ended = virnucpro("models", "fetch", "esm2_t6_8M_UR50D", "--mirror", site.address)
    assert ended.code == 0, ended.err
    assert (cache / "downloads/esm2_t6_8M_UR50D/esm2_t6_8M_UR50D.pt").read_bytes() == WEIGHTS


def test_a_fetch_that_was_killed_goes_on(virnucpro, site, cache):
    """``kill -9`` in the middle of a file, then the same command: only the rest is asked for."""
    site.files["/fair-esm/models/esm2_t6_8M_UR50D.pt"] = WEIGHTS
    site.stall = 200_000
    command = ("models", "fetch", "esm2_t6_8M_UR50D", "--mirror", site.address)
    process = start(*command, env=dict(os.environ))
    part = cache / "downloads/esm2_t6_8M_UR50D/esm2_t6_8M_UR50D.pt.part"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (part.exists() and part.stat().st_size > 100_000):
        time.sleep(0.02)
    process.kill()
    process.communicate()
    have = part.stat().st_size
    assert 100_000 < have <= 200_000
    site.stall = None
    site.go_on.set()
    assert virnucpro(*command).code == 0
    assert site.asked[-1][2] == f"bytes={have}-"
    assert part.with_suffix("").read_bytes() == WEIGHTS


def test_a_head_that_is_not_the_published_one_is_refused(virnucpro, site, cache):
    """Their git objects are known, so a mirror cannot slip in another."""
    site.files["/" + PARTS["500_model"].sources[0].url.split("/", 3)[3]] = WEIGHTS
    ended = virnucpro("models", "fetch", "500_model", "--mirror", site.address)
    assert ended.code == 6
    assert PARTS["500_model"].sources[0].git_blob in ended.err
    assert not (cache / "downloads/500_model/500_model.pth").exists()


def test_what_another_program_fetched_is_not_fetched_again(virnucpro, site, cache, tmp_path):
    """The torch hub's cache holds ESM-2 for many; ``--again`` fetches it all the same."""
    name = "esm2_t6_8M_UR50D"
    theirs = tmp_path / "others" / "hub" / "checkpoints" / f"{name}.pt"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    site.files[f"/fair-esm/models/{name}.pt"] = WEIGHTS
    entries = {entry["name"]: entry for entry in json.loads(virnucpro("models", "list", "--json").out)}
    assert (entries[name]["state"], entries[name]["where"]) == ("elsewhere", str(theirs))
    assert virnucpro("models", "fetch", name, "--mirror", site.address).out.strip() == str(theirs)
    assert site.asked == []
    assert virnucpro("models", "fetch", name, "--mirror", site.address, "--again").code == 0
    assert (cache / "downloads" / name / f"{name}.pt").read_bytes() == WEIGHTS


@pytest.mark.parametrize("mirror", ["closed", "http://no-such-host.invalid"])
def test_without_a_network_one_line_says_what_from_where_and_how_by_hand(virnucpro, cache, mirror):
    """A refused connection, a name that is not known."""
    mirror = f"http://127.0.0.1:{closed_port()}" if mirror == "closed" else mirror
    ended = virnucpro("models", "fetch", "500", "--mirror", mirror, "-q")
    assert ended.code == 6
    error = next(line for line in ended.err.splitlines() if line.startswith("Error: "))
    for wanted in ("tokenizer.json", "esm2_t36_3B_UR50D.pt", "500_model.pth", mirror, "models import FILE"):
        assert wanted in error
    assert str(cache / "downloads") in error
    assert "Traceback" not in ended.err


def test_the_hub_s_offline_switch_is_honoured(cache, site):
    """``HF_HUB_OFFLINE=1``: nothing is asked, of any source."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "VIRNUCPRO_CACHE": str(cache), "HF_ENDPOINT": site.address}
    process = start("models", "fetch", "500", "--mirror", site.address, env=environment)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (6, "")
    assert len([line for line in err.splitlines() if line.startswith("Error: ")]) == 1
    assert "HF_HUB_OFFLINE is set" in err
    assert "500_model.pth" in err
    assert site.asked == []


def test_what_the_catalogue_says_makes_sense():
    """Every model is three known parts with licences; addresses are https."""
    for parts in MODELS.values():
        assert [PARTS[part].role for part in parts] == ["nucleotide", "protein", "head"]
    for part in PARTS.values():
        assert part.licence in ("MIT", "Apache-2.0")
        assert part.about_bytes > 0
        assert all(source.url.startswith("https://") for source in part.sources if isinstance(source, RemoteFile))


# What is here


def test_the_list_names_all_that_is_and_could_be_here(virnucpro, cache, tiny_bundle):
    shutil.copytree(tiny_bundle, cache / "bundles" / "tiny")
    table = virnucpro("models", "list")
    assert table.code == 0
    names = [line.split()[0] for line in table.out.splitlines()]
    assert names == ["name", "lite", "tiny", *MODELS, *PARTS]
    entries = {entry["name"]: entry for entry in json.loads(virnucpro("models", "list", "--json").out)}
    assert entries["lite"]["state"] == "bundled"
    assert entries["lite"]["licence"] == "MIT"
    assert entries["tiny"]["state"] == "here"
    assert len(entries["tiny"]["fingerprint"]) == 64
    assert entries["500"]["state"] == "not here"
    assert entries["500"]["parts"] == list(MODELS["500"])
    assert entries["DNABERT-S"]["licence"] == "Apache-2.0"
    assert not entries["DNABERT-S"]["size_is_exact"]


def test_verify_says_which_file_is_wrong(virnucpro, cache, tiny_bundle):
    """Another byte, another size, a file gone; exit 6."""
    folder = cache / "bundles" / "tiny"
    shutil.copytree(tiny_bundle, folder)
    assert virnucpro("models", "verify", "tiny").code == 6, "nothing is recorded yet"
    assert virnucpro("models", "record", "tiny").code == 0
    assert virnucpro("models", "verify", "tiny").code == 0
    head = (folder / "head.safetensors").read_bytes()
    (folder / "head.safetensors").write_bytes(head[:-1] + bytes([head[-1] ^ 1]))
    (folder / "protein.safetensors").unlink()
    ended = virnucpro("models", "verify")
    assert ended.code == 6
    lines = [line for line in ended.out.splitlines() if line.startswith("wrong")]
    assert len(lines) == 2
    assert "head.safetensors: has SHA-256" in lines[0]
    assert "protein.safetensors: is missing" in lines[1]


def test_files_brought_by_hand_are_recorded_and_verified(virnucpro, cache):
    folder = cache / "downloads" / "DNABERT-S"
    folder.mkdir(parents=True)
    (folder / "pytorch_model.bin").write_bytes(WEIGHTS)
    assert virnucpro("models", "record", "DNABERT-S").out.split() == [sha256(WEIGHTS), "pytorch_model.bin"]
    assert virnucpro("models", "verify", "DNABERT-S").code == 0
    (folder / "pytorch_model.bin").write_bytes(OTHER)
    assert virnucpro("models", "verify", "DNABERT-S").code == 6


@pytest.mark.usefixtures("cache")
def test_an_unknown_name_is_exit_6_with_a_suggestion(virnucpro):
    ended = virnucpro("models", "path", "DNABERT")
    assert ended.code == 6
    assert "Did you mean DNABERT-S?" in ended.err


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", ["../lite", "/etc", ".."])
def test_a_name_is_not_a_way_out_of_the_cache(virnucpro, name):
    assert virnucpro("models", "path", name).code == 6


# Archives


@pytest.fixture
def models(virnucpro, cache, tiny_bundle):
    """A bundle and a checkpoint in the cache."""
    shutil.copytree(tiny_bundle, cache / "bundles" / "tiny")
    (cache / "downloads" / "500_model").mkdir(parents=True)
    (cache / "downloads" / "500_model" / "500_model.pth").write_bytes(WEIGHTS)
    assert virnucpro("models", "record", "500_model").code == 0
    return cache


@pytest.fixture
def carried(virnucpro, models, tmp_path):
    """An archive of both; the cache is then empty again."""
    path = tmp_path / "models.tar"
    ended = virnucpro("models", "export", path, "tiny", "500_model")
    assert ended.code == 0, ended.err
    shutil.rmtree(models)
    return path


@pytest.mark.usefixtures("models")
def test_models_travel_in_an_archive_and_run(virnucpro, cache, tmp_path):
    """Export all that is here, import into an empty cache, verify, predict: files are those of the originals."""
    path, again = tmp_path / "models.tar", tmp_path / "again.tar"
    assert virnucpro("models", "export", path).code == 0
    assert virnucpro("models", "export", again, "500_model", "tiny", "lite").code == 0
    assert path.read_bytes() == again.read_bytes(), "the same models give the same bytes"
    shutil.rmtree(cache)
    ended = virnucpro("models", "import", path)
    assert ended.code == 0, ended.err
    places = sorted(str(path.relative_to(cache)) for path in cache.glob("*/*"))
    lite = next(place for place in places if place.startswith("bundles/lite-"))
    assert places == [lite, "bundles/tiny", "downloads/500_model"]
    assert virnucpro("models", "verify").code == 0
    assert load_bundle(str(cache / lite)).fingerprint == load_bundle("lite").fingerprint
    fasta = write_fasta(tmp_path / "in.fasta", mixed_records(2))
    options = ("--model", cache / "bundles/tiny", "--threads", 1, "--no-report")
    assert virnucpro("predict", fasta, "-o", tmp_path / "out", *options).code == 0
    ended = virnucpro("models", "import", path)
    assert ended.code == 0
    assert "0 new files" in ended.out


def test_an_import_mends_a_damaged_file_and_replaces_no_good_one(virnucpro, carried, cache):
    assert virnucpro("models", "import", carried).code == 0
    path = cache / "downloads/500_model/500_model.pth"
    path.write_bytes(OTHER)
    assert virnucpro("models", "verify").code == 6
    assert virnucpro("models", "import", carried).code == 0
    assert path.read_bytes() == WEIGHTS
    path.write_bytes(OTHER)
    assert virnucpro("models", "record", "500_model").code == 0  # now it is good, and another
    (cache / "bundles/tiny/head.safetensors").unlink()
    ended = virnucpro("models", "import", carried)
    assert ended.code == 6
    assert str(path) in ended.err
    assert path.read_bytes() == OTHER
    assert not (cache / "bundles/tiny/head.safetensors").exists(), "nothing was changed"


def test_a_damaged_model_is_not_exported(virnucpro, cache, tmp_path):
    folder = cache / "downloads" / "500_model"
    folder.mkdir(parents=True)
    (folder / "500_model.pth").write_bytes(WEIGHTS)
    assert virnucpro("models", "record", "500_model").code == 0
    (folder / "500_model.pth").write_bytes(OTHER)
    ended = virnucpro("models", "export", tmp_path / "x.tar", "500_model")
    assert ended.code == 6
    assert "500_model.pth" in ended.err
    assert not (tmp_path / "x.tar").exists()


def test_an_export_replaces_a_file_only_with_force(virnucpro, carried):
    before = carried.read_bytes()
    assert virnucpro("models", "export", carried, "lite").code == 2
    assert carried.read_bytes() == before
    assert virnucpro("models", "export", carried, "lite", "--force").code == 0


def entry(name, content=b"", **settings):
    """A member of a tar, and its content."""
    made = tarfile.TarInfo(name)
    made.size = len(content)
    for key, value in settings.items():
        setattr(made, key, value)
    return made, content


PLACE = "downloads/500_model"
GOOD = {"a.bin": b"content"}


def receipt_of(files, **more):
    """The receipt of a folder of an archive."""
    listed = [
        {"name": n, "size_bytes": len(c), "sha256": sha256(c), "source": "s", "checked": "c"} for n, c in files.items()
    ]
    return {"schema": 1, "name": "x", "licence": "MIT", "fingerprint": None, "files": listed} | more


def folder_of(files=GOOD, place=PLACE, members=None, **more):
    """Members of an archive: a receipt, and the files it names or others."""
    receipt = entry(f"{place}/receipt.json", json.dumps(receipt_of(files, **more)).encode())
    return [receipt, *([entry(f"{place}/{n}", c) for n, c in files.items()] if members is None else members)]


def receipt_and(text):
    """A receipt of any text, and the file."""
    return [entry(f"{PLACE}/receipt.json", text), entry(f"{PLACE}/a.bin", b"content")]


def odd_file(content=b"", **settings):
    """A folder whose file is something else."""
    return folder_of({"a.bin": content}, members=[entry(f"{PLACE}/a.bin", content, **settings)])


def write_tar(path, members):
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for made, content in members:
            tar.addfile(made, io.BytesIO(content))
    return path


ATTACKS = {
    "absolute member": [*folder_of(), entry("/tmp/evil", b"x")],  # noqa: S108
    "member above": [*folder_of(), entry("../evil", b"x")],
    "member that no receipt names": [*folder_of(), entry(f"{PLACE}/b.bin", b"x")],
    "place above": folder_of(place="../../evil"),
    "place above within": folder_of(place="downloads/.."),
    "place absolute": folder_of(place="/tmp/evil"),  # noqa: S108
    "place elsewhere": folder_of(place="other/500_model"),
    "place that no model has": folder_of(place="downloads/x"),
    "file above": folder_of({"../a.bin": b"content"}),
    "file hidden": folder_of({".a": b"content"}),
    "file with a newline": folder_of({"a\nb": b""}),
    "escape in a text": folder_of(licence="\x1b[2J"),
    "symbolic link": odd_file(type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "hard link": odd_file(type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "linked folder first": [entry(PLACE, type=tarfile.SYMTYPE, linkname="/tmp"), *folder_of()],  # noqa: S108
    "device": odd_file(type=tarfile.CHRTYPE),
    "pipe": odd_file(type=tarfile.FIFOTYPE),
    "folder": [entry(PLACE, type=tarfile.DIRTYPE), *folder_of()],
    "sparse file": odd_file(b"content", pax_headers={"GNU.sparse.map": "0,7", "GNU.sparse.size": "7"}),
    "size below zero": odd_file(b"content", pax_headers={"size": "-1024"}),
    "size past the end": odd_file(b"content", pax_headers={"size": "9" * 30}),
    "size that is none": odd_file(b"content", pax_headers={"size": "x"}),
    "member twice": [*folder_of(), *folder_of()],
    "names that differ in case": folder_of({"a.bin": b"1", "A.bin": b"2"}),
    "another size": folder_of(members=[entry(f"{PLACE}/a.bin", b"content, longer")]),
    "another content": folder_of(members=[entry(f"{PLACE}/a.bin", b"cOntent")]),
    "missing member": folder_of(members=[]),
    "no member": [],
    "no receipt": folder_of()[1:],
    "receipt no JSON": receipt_and(b"{"),
    "receipt another shape": receipt_and(b"[1, 2]"),
    "receipt deep": receipt_and(b"[" * 100_000),
    "receipt of a later schema": folder_of(schema=2),
    "bundle that does not load": folder_of(place="bundles/x"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_archive_that_is_not_ours_changes_nothing(virnucpro, cache, tmp_path, attack):
    """Exit 6, one line, and the cache as it was."""
    cache.mkdir()
    path = write_tar(tmp_path / "evil.tar", ATTACKS[attack])
    before = {str(file) for file in tmp_path.rglob("*")}
    ended = virnucpro("models", "import", path, "-q")
    assert ended.code == 6, ended.err
    assert len(ended.err.splitlines()) == 1
    assert "\x1b" not in ended.err
    assert {str(file) for file in tmp_path.rglob("*")} == before


def test_the_archive_that_the_attacks_are_made_from_is_accepted(virnucpro, cache, tmp_path):
    """So each of them is refused for its own fault."""
    path = write_tar(tmp_path / "good.tar", folder_of())
    assert virnucpro("models", "import", path, "-q").code == 0
    assert (cache / PLACE / "a.bin").read_bytes() == b"content"


@pytest.mark.parametrize("damage", ["cut", "gzip", "text", "bit"])
def test_a_damaged_archive_changes_nothing(virnucpro, carried, cache, damage):
    import gzip

    whole = carried.read_bytes()
    bit = bytearray(whole)
    bit[len(bit) // 2] ^= 1
    damaged = {"cut": whole[: len(whole) // 2], "gzip": gzip.compress(whole, 1), "text": b">seq\nACGT\n", "bit": bit}
    carried.write_bytes(damaged[damage])
    assert virnucpro("models", "import", carried, "-q").code == 6
    assert not list(cache.rglob("*.safetensors"))
    assert not list(cache.glob(".import-*"))


@pytest.mark.usefixtures("cache")
def test_an_archive_that_cannot_be_read_is_exit_6(virnucpro, tmp_path):
    """Not there; a folder."""
    for path in (tmp_path / "absent.tar", tmp_path):
        ended = virnucpro("models", "import", path)
        assert ended.code == 6
        assert str(path) in ended.err


def test_a_place_that_cannot_be_written_to_is_said(virnucpro, site, tmp_path, monkeypatch):
    """The cache below a file: exit 4."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("VIRNUCPRO_CACHE", str(tmp_path / "file" / "cache"))
    site.files["/fair-esm/models/esm2_t6_8M_UR50D.pt"] = WEIGHTS
    ended = virnucpro("models", "fetch", "esm2_t6_8M_UR50D", "--mirror", site.address)
    assert (ended.code, "Set VIRNUCPRO_CACHE" in ended.err) == (4, True), ended.err
    ended = virnucpro("models", "export", tmp_path / "file" / "a.tar", "lite")
    assert (ended.code, "a.tar: is not in a folder" in ended.err) == (4, True), ended.err


@pytest.mark.parametrize("way", ["../..", "../../..", "/"])
def test_a_bundle_that_points_outside_its_folder_is_not_imported(cache, tmp_path, tiny_bundle, way):
    """``head: ../../elsewhere`` in a stranger's bundle.yaml."""
    files = {path.name: path.read_bytes() for path in tiny_bundle.iterdir()}
    files["bundle.yaml"] = files["bundle.yaml"].replace(b"head: head", f"head: {way}/head".encode())
    cache.mkdir()
    (cache / "head.safetensors").write_bytes(files["head.safetensors"])
    path = write_tar(tmp_path / "x.tar", folder_of(files, "bundles/x"))
    with pytest.raises(ModelError, match="not a plain file name"):
        archive.import_archive(path, Reporter(bars=False))
    assert not (cache / "bundles").exists()


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"schema": 1}',
        json.dumps(receipt_of(GOOD, schema=2)),
        json.dumps(receipt_of(GOOD, name=5)),
        json.dumps(receipt_of(GOOD, name="\x1b[31m")),
        json.dumps(receipt_of(GOOD, name="\u202e")),
        json.dumps(receipt_of({"../x": b""})),
        json.dumps(receipt_of(GOOD) | {"files": 7}),
    ],
)
def test_a_receipt_of_any_other_content_is_damaged(tmp_path, content):
    """And says what to do."""
    (tmp_path / "receipt.json").write_text(content)
    with pytest.raises(ModelError, match=r"is damaged.*models record"):
        receipts.read_receipt(tmp_path)


def test_nothing_half_fetched_is_taken_for_a_model(cache):
    folder = cache / "downloads" / "500_model"
    folder.mkdir(parents=True)
    (folder / "500_model.pth.part").write_bytes(b"x")
    assert [place.name for place in inventory.places_here()] == ["lite"]
    entry_ = next(entry for entry in inventory.list_entries() if entry.name == "500_model")
    assert entry_.state == "incomplete"


def test_a_place_is_a_path_where_there_is_a_slash(tiny_bundle):
    assert inventory.places_of(str(tiny_bundle))[0].folder == Path(tiny_bundle)
