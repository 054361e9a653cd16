"""Fetching over SFTP from real OpenSSH servers: what can go wrong is named, and the same command mends what can be."""

from __future__ import annotations

import asyncio
import getpass
import hashlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from conftest import start
from ssh_servers import PASSWORD, SshServer, Wire, make_key, start_ssh_server

asyncssh = pytest.importorskip("asyncssh", reason="asyncssh is not installed (extra sftp)")


@pytest.fixture
def client(tmp_path, monkeypatch):
    """A home of its own with a key, in an empty working folder; no agent."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    work = tmp_path / "here"
    work.mkdir()
    monkeypatch.chdir(work)
    make_key(home / ".ssh/id_ed25519")
    return home


@pytest.fixture
def serve(tmp_path, client):
    """Start servers; each is known to the client and gone after the test."""
    servers: list[SshServer] = []

    def serve(name="server", **options):
        server = start_ssh_server(tmp_path / name, client / ".ssh/id_ed25519", **options)
        servers.append(server)
        trust(client, server, server.port)
        return server

    yield serve
    for server in servers:
        server.stop()


@pytest.fixture
def remote(tmp_path):
    """A folder of two files and a third that nobody asks for."""
    folder = tmp_path / "remote"
    folder.mkdir()
    for seed, name in enumerate(("cluster1_gpu0.h5", "cluster1_gpu1.h5", "notes.txt")):
        (folder / name).write_bytes(random.Random(seed).randbytes(300_000))
    return folder


def trust(client, server, port):
    with (client / ".ssh/known_hosts").open("a") as file:
        file.write(f"[127.0.0.1]:{port} {server.host_key}\n")


def describe(folder, *ports, **more):
    """A ``clusters.toml`` with a machine for each port: alpha, beta."""
    tables = []
    for name, port in zip(("alpha", "beta"), ports, strict=False):
        settings = {"address": "127.0.0.1", "port": port, "username": getpass.getuser(), "path": str(folder), **more}
        settings.setdefault("patterns", ["cluster*_gpu*.h5"])
        tables.append(f"[clusters.{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in settings.items()))
    Path("clusters.toml").write_text("\n".join(tables))


def write_sums(folder, *names):
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fetched(folder):
    """What is here, without what the program keeps for itself."""
    return {name: value for name, value in content(folder).items() if not Path(name).name.startswith(".")}


def wanted(folder):
    return {name: value for name, value in content(folder).items() if name.startswith("cluster")}


def credentials(name, mode=0o600, **settings):
    Path(".credentials").mkdir(exist_ok=True)
    path = Path(f".credentials/{name}.credentials")
    path.write_text(json.dumps(settings))
    path.chmod(mode)


def test_files_come_once_and_are_mended(virnucpro, serve, remote):
    """What matches comes; again nothing does; a file that is damaged or gone here, or new there, comes again."""
    describe(remote, serve().port)
    ended = virnucpro("sync", "--sync-only", "-q")
    assert (ended.code, ended.out) == (
        0,
        "alpha: 2 fetched (600,000 bytes), 0 were here, 0 failed, 2 without a digest to compare\n",
    )
    assert fetched(Path("shards/alpha")) == wanted(remote)
    assert "0 fetched (0 bytes), 2 were here" in virnucpro("sync", "--sync-only", "-q").out
    damaged = Path("shards/alpha/cluster1_gpu0.h5")
    damaged.write_bytes(bytes(300_000))
    assert "1 fetched (300,000 bytes), 1 were here" in virnucpro("sync", "--sync-only", "-q").out
    (remote / "cluster1_gpu1.h5").write_bytes(b"computed again")
    (remote / "cluster2_gpu0.h5").write_bytes(b"new")
    assert "2 fetched (17 bytes), 1 were here" in virnucpro("sync", "--sync-only", "-q").out
    assert fetched(Path("shards/alpha")) == wanted(remote)


def test_files_in_folders_keep_their_path(virnucpro, serve, remote):
    """A pattern goes down as many folders as it has parts, through links to folders too."""
    (remote / "run/scores").mkdir(parents=True)
    (remote / "run/scores/unit-1.h5").write_bytes(b"one")
    (remote / "linked").symlink_to(remote / "run")
    describe(remote, serve().port)
    ended = virnucpro("sync", "--sync-only", "-q", "--pattern", "*/scores/unit-*.h5", "--output", "out")
    assert ended.code == 0, ended.out
    assert fetched(Path("out")) == {f"alpha/{name}/scores/unit-1.h5": b"one" for name in ("run", "linked")}


def test_a_cut_connection_costs_only_what_was_under_way(virnucpro, serve, client, remote):
    """It is made again, after a pause, and the file continues where it stopped."""
    server = serve()
    (remote / "cluster1_gpu0.h5").write_bytes(random.Random(7).randbytes(24 << 20))
    wire = Wire(server.port, cuts=[16 << 20])
    trust(client, server, wire.port)
    describe(remote, wire.port, patterns=["cluster1_gpu0.h5"])
    ended = virnucpro("sync", "--sync-only", "--no-progress", "--max-concurrent", 1)
    assert ended.code == 0, ended.out
    assert "trying again in 1 s" in ended.err
    assert fetched(Path("shards/alpha")) == {"cluster1_gpu0.h5": (remote / "cluster1_gpu0.h5").read_bytes()}
    assert len(wire.num_bytes) == 2
    assert wire.num_bytes[1] < 16 << 20
    wire.close()


def test_a_machine_that_keeps_failing_is_given_up(virnucpro, serve, client, remote):
    """After the attempts that were allowed; exit 5."""
    server = serve()
    wire = Wire(server.port, cuts=[100, 100, 100])
    trust(client, server, wire.port)
    describe(remote, wire.port)
    ended = virnucpro("sync", "--sync-only", "-q", "--retries", 1)
    assert ended.code == 5
    assert "alpha: given up after 2 attempts in a row" in ended.out
    assert len(wire.num_bytes) == 2
    wire.close()


def test_a_part_of_another_file_is_not_continued(virnucpro, serve, client, remote):
    """The file on the machine was replaced between the two calls."""
    server = serve()
    big = remote / "cluster1_gpu0.h5"
    big.write_bytes(random.Random(7).randbytes(16 << 20))
    wire = Wire(server.port, cuts=[10 << 20])
    trust(client, server, wire.port)
    describe(remote, wire.port, patterns=[big.name])
    assert virnucpro("sync", "--sync-only", "-q", "--retries", 0, "--max-concurrent", 1).code == 5
    assert Path(f"shards/alpha/.{big.name}.part").stat().st_size > 4 << 20
    later = big.stat().st_mtime + 2  # SFTP tells whole seconds
    big.write_bytes(random.Random(8).randbytes(16 << 20))
    os.utime(big, (later, later))
    assert virnucpro("sync", "--sync-only", "-q").code == 0
    assert fetched(Path("shards/alpha")) == {big.name: big.read_bytes()}
    wire.close()


def test_a_part_with_wrong_bytes_is_found_by_the_digest(virnucpro, serve, client, remote):
    """And the file is fetched from its beginning."""
    server = serve()
    big = remote / "cluster1_gpu0.h5"
    big.write_bytes(random.Random(7).randbytes(16 << 20))
    write_sums(remote, big.name)
    wire = Wire(server.port, cuts=[10 << 20])
    trust(client, server, wire.port)
    describe(remote, wire.port, patterns=[big.name])
    assert virnucpro("sync", "--sync-only", "-q", "--retries", 0, "--max-concurrent", 1).code == 5
    with Path(f"shards/alpha/.{big.name}.part").open("r+b") as part:
        part.write(bytes(1000))
    ended = virnucpro("sync", "--sync-only", "--no-progress")
    assert ended.code == 0, ended.out
    assert "came with SHA-256" in ended.err
    assert fetched(Path("shards/alpha")) == {big.name: big.read_bytes()}
    wire.close()


def test_a_file_that_is_damaged_on_the_machine_is_named(virnucpro, serve, remote):
    """It does not take its place; the others do."""
    write_sums(remote, "cluster1_gpu0.h5")
    (remote / "cluster1_gpu0.h5").write_bytes(b"x" + (remote / "cluster1_gpu0.h5").read_bytes()[1:])
    (remote / "cluster1_gpu1.h5.sha256").write_text(
        f"{hashlib.sha256((remote / 'cluster1_gpu1.h5').read_bytes()).hexdigest()}  cluster1_gpu1.h5\n"
    )
    describe(remote, serve().port)
    ended = virnucpro("sync", "--sync-only", "-q")
    assert ended.code == 5
    assert "cluster1_gpu0.h5: is damaged on the machine" in ended.out
    assert "1 fetched" in ended.out
    assert list(fetched(Path("shards/alpha"))) == ["cluster1_gpu1.h5"]


def test_a_password_lets_in_and_a_wrong_one_does_not(virnucpro, serve, remote, client):
    """Neither shows anywhere, however much is logged."""
    server = serve(with_password=True)
    (client / ".ssh/id_ed25519").unlink()
    machine = {"address": "127.0.0.1", "port": server.port, "username": "root", "path": str(remote)}
    credentials("alpha", **machine, password=PASSWORD)
    right = virnucpro("sync", "--sync-only", "-v", "--no-progress", "--pattern", "cluster*.h5")
    assert right.code == 0, right.out
    assert fetched(Path("shards/alpha")) == wanted(remote)
    credentials("alpha", **machine, password="not the password")
    wrong = virnucpro("sync", "--sync-only", "-v", "--no-progress")
    assert wrong.code == 5
    assert "127.0.0.1 refuses root: wrong password, or no key" in wrong.out
    for secret in (PASSWORD, "not the password"):
        assert secret not in right.err + right.out + wrong.err + wrong.out
        assert not any(secret.encode() in value for value in content(Path("shards")).values())


def test_an_unknown_host_is_refused(virnucpro, serve, remote, client):
    """Even where the SSH configuration would not ask."""
    server = serve()
    (client / ".ssh/known_hosts").unlink()
    (client / ".ssh/config").write_text("Host *\n  StrictHostKeyChecking no\n")
    describe(remote, server.port)
    ended = virnucpro("sync", "--sync-only", "-q")
    assert ended.code == 5
    assert "the host key of 127.0.0.1 is not known" in ended.out
    assert not fetched(Path("shards"))
    (client / ".ssh/config").write_text("Host *\n  UserKnownHostsFile none\n")
    ended = virnucpro("sync", "--sync-only", "-q")
    assert (ended.code, fetched(Path("shards"))) == (5, {})
    assert "names no file of known hosts" in ended.out


def test_a_changed_host_key_is_refused(virnucpro, serve, remote, client):
    """And told apart from one that was never seen."""
    server, other = serve(), serve("other")
    (client / ".ssh/known_hosts").write_text(f"[127.0.0.1]:{server.port} {other.host_key}\n")
    describe(remote, server.port)
    ended = virnucpro("sync", "--sync-only", "-q")
    assert ended.code == 5
    assert "shows another host key than" in ended.out
    assert not fetched(Path("shards"))


def test_known_hosts_may_be_a_file_of_its_own(virnucpro, serve, remote, client):
    """Named in ``clusters.toml``."""
    server = serve()
    (client / ".ssh/known_hosts").rename("hosts")
    describe(remote, server.port, known_hosts="hosts")
    assert virnucpro("sync", "--sync-only", "-q").code == 0


def test_ssh_configuration_and_agent_are_used(virnucpro, serve, remote, client, monkeypatch):
    """Host, port and user by the name of a ``Host``; the key from the agent alone."""
    server = serve()
    (client / ".ssh/config").write_text(
        f"Host big\n  HostName 127.0.0.1\n  Port {server.port}\n  User {getpass.getuser()}\n"
    )
    key = client / ".ssh/id_ed25519"
    key.rename(client / "away")
    Path("clusters.toml").write_text(f'[clusters.alpha]\naddress = "big"\npath = "{remote}"\npatterns = ["cl*"]\n')
    assert "refuses" in virnucpro("sync", "--sync-only", "-q").out
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", client / "agent"], stdout=subprocess.DEVNULL)
    try:
        while not (client / "agent").exists():
            time.sleep(0.02)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(client / "agent"))
        subprocess.run(["ssh-add", "-q", client / "away"], check=True, stderr=subprocess.DEVNULL)
        ended = virnucpro("sync", "--sync-only", "-q")
    finally:
        agent.kill()
        agent.wait()
    assert ended.code == 0, ended.out
    assert fetched(Path("shards/alpha")) == wanted(remote)


def test_a_missing_folder_and_a_pattern_without_files_are_named(virnucpro, serve, remote):
    """Nothing matching is not everything being here."""
    describe(remote / "nowhere", serve().port)
    ended = virnucpro("sync", "--sync-only", "-q")
    assert ended.code == 5
    assert f"alpha: folder {remote}/nowhere: No such file" in ended.out
    ended = virnucpro("sync", "--sync-only", "-q", "--path", remote, "--pattern", "shard*.npz")
    assert ended.code == 5
    assert f"alpha: no file in {remote} matches shard*.npz" in ended.out


def test_one_machine_that_fails_does_not_stop_the_others(virnucpro, serve, remote):
    """Two at once, each into its own folder; the summary has a line for each."""
    one, two = serve(), serve("second")
    describe(remote, one.port, two.port)
    assert virnucpro("sync", "--sync-only", "-q").code == 0
    assert fetched(Path("shards")) == {f"{m}/{n}": v for m in ("alpha", "beta") for n, v in wanted(remote).items()}
    one.stop()
    ended = virnucpro("sync", "--sync-only", "-q", "--output", "again", "--retries", 0)
    assert ended.code == 5
    assert "alpha: given up after 1 attempts" in ended.out
    assert "beta: 2 fetched" in ended.out
    assert set(fetched(Path("again"))) == {f"beta/{name}" for name in wanted(remote)}
    assert virnucpro("sync", "--sync-only", "-q", "--clusters", "beta").code == 0


def test_what_came_is_merged(virnucpro, serve, tmp_path):
    """Shards of two machines become one file; ``--merge-only`` needs no machine."""
    import h5py
    import numpy as np

    ports = []
    for name, first in (("one", 0), ("two", 4)):
        (tmp_path / f"made by {name}").mkdir()
        server = serve(name)
        ports.append(server.port)
        np.savez(
            tmp_path / f"made by {name}/cluster_gpu.npz",
            embeddings=np.arange(first, first + 4, dtype=np.float32)[:, None],
            start_index=first,
        )
    describe(tmp_path / "made by one", *ports, patterns=["*.npz"])
    text = Path("clusters.toml").read_text()
    head, tail = text.split("[clusters.beta]")
    Path("clusters.toml").write_text(f"{head}[clusters.beta]{tail.replace('by one', 'by two')}")
    ended = virnucpro("sync", "-q")
    assert ended.code == 0, ended.err
    assert "shards/merged.h5: 8 items" in ended.out
    with h5py.File("shards/merged.h5") as file:
        np.testing.assert_array_equal(file["embeddings"][:, 0], np.arange(8))
    Path("shards/merged.h5").unlink()
    Path("shards/beta/cluster_gpu.npz").unlink()
    ended = virnucpro("sync", "--merge-only", "-q")
    assert ended.code == 2
    assert "no file in it ends" in virnucpro("sync", "--merge-only", "-q", "--clusters", "beta").err
    assert virnucpro("sync", "--merge-only", "-q", "--clusters", "alpha").code == 0
    assert Path("shards/merged.h5").exists()
    assert virnucpro("sync", "--merge-only", "--sync-only").code == 2


class Liar(asyncssh.SFTPServer):
    """Lists names that lead out of the folder."""

    async def scandir(self, path):
        async for entry in super().scandir(path):
            yield entry
        for name in (b"../cluster9_gpu9.h5", b"/tmp/cluster8_gpu8.h5"):
            yield asyncssh.SFTPName(name, attrs=asyncssh.SFTPAttrs(size=1, permissions=0o100644))


@pytest.fixture
def liar(tmp_path, client):
    """A server that does so, in a thread."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    async def listen():
        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[str(make_key(tmp_path / "liar_key"))],
            authorized_client_keys=str(client / ".ssh/id_ed25519.pub"),
            sftp_factory=Liar,
        )

    acceptor = asyncio.run_coroutine_threadsafe(listen(), loop).result(20)
    kind, key, *_ = (tmp_path / "liar_key.pub").read_text().split()
    (client / ".ssh/known_hosts").write_text(f"[127.0.0.1]:{acceptor.get_port()} {kind} {key}\n")
    yield acceptor.get_port()
    loop.call_soon_threadsafe(acceptor.close)
    loop.call_soon_threadsafe(loop.stop)


def test_names_that_lead_elsewhere_are_left_alone(virnucpro, liar, remote, tmp_path):
    """``../x`` from a machine, or from the user; nothing is written outside of the folder."""
    before = content(tmp_path).keys()
    describe(remote, liar)
    ended = virnucpro("sync", "--sync-only", "-q")
    assert ended.code == 5
    assert "alpha: ../cluster9_gpu9.h5: is not a name that a file in a folder can have" in ended.out
    new = {name for name in content(tmp_path).keys() - before if not name.startswith("here/shards/alpha/")}
    assert new == {"here/clusters.toml"}
    assert fetched(Path("shards/alpha")) == wanted(remote)
    for pattern in ("../x", "/etc/*", "a/../../b", ""):
        ended = virnucpro("sync", "--sync-only", "-q", "--pattern", pattern)
        assert ended.code == 2, pattern
        assert "must be relative" in ended.err


def test_odd_names_come_as_they_are_and_disturb_no_terminal(virnucpro, serve, remote):
    """Line breaks, colours, bytes that are not UTF-8."""
    names = ["cluster a.h5", "cluster\n\x1b[31m.h5", "cluster-ü.h5", os.fsdecode(b"cluster\xff.h5")]
    for name in names:
        (remote / name).write_bytes(name.encode(errors="surrogateescape"))
    (remote / "cluster\n\x1b[31m.h5").chmod(0)
    (remote / "cluster-gone.h5").symlink_to("nowhere")
    describe(remote, serve().port, patterns=["cluster[!1]*.h5"])
    ended = virnucpro("sync", "--sync-only", "-q")
    assert ended.code == 5
    assert "alpha: cluster-gone.h5: No such file" in ended.out
    assert "\x1b" not in ended.out
    expected = {name for name in names if os.access(remote / name, os.R_OK)}
    assert set(fetched(Path("shards/alpha"))) == expected


def test_a_link_here_does_not_lead_out(virnucpro, serve, remote, tmp_path):
    """What is written stays below the folder of the machine."""
    (remote / "deep").mkdir()
    (remote / "deep/cluster.h5").write_bytes(b"x")
    (tmp_path / "elsewhere").mkdir()
    Path("shards/alpha").mkdir(parents=True)
    Path("shards/alpha/deep").symlink_to(tmp_path / "elsewhere")
    describe(remote, serve().port, patterns=["deep/*"])
    ended = virnucpro("sync", "--sync-only", "-q")
    assert ended.code == 5
    assert "leads out of the folder" in ended.out
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_disk_that_fills_is_exit_4_and_the_rest_comes_when_there_is_room(virnucpro, serve, remote, small_disk):
    """One line; what came is kept."""
    disk, resize = small_disk
    for number in range(3):
        (remote / f"cluster1_gpu{number}.h5").write_bytes(random.Random(number).randbytes(6 << 20))
    resize("10m")
    describe(remote, serve().port)
    ended = virnucpro("sync", "--sync-only", "-q", "--output", disk / "out", "--max-concurrent", 1)
    assert ended.code == 4
    assert "no space left" in ended.err
    assert "Traceback" not in ended.err
    assert list(fetched(disk / "out/alpha")) == ["cluster1_gpu0.h5"]
    resize("64m")
    ended = virnucpro("sync", "--sync-only", "-q", "--output", disk / "out")
    assert ended.code == 0, ended.out
    assert "2 fetched" in ended.out
    assert "1 were here" in ended.out
    assert fetched(disk / "out/alpha") == wanted(remote)


def test_ctrl_c_and_the_same_command_again(virnucpro, serve, client, remote):
    """Exit 130 with the part kept, and it is continued."""
    server = serve()
    big = remote / "cluster1_gpu0.h5"
    big.write_bytes(random.Random(7).randbytes(32 << 20))
    wire = Wire(server.port, bytes_a_second=12 << 20)
    trust(client, server, wire.port)
    describe(remote, wire.port, patterns=[big.name])
    part = Path(f"shards/alpha/.{big.name}.part")
    process = start("sync", "--sync-only", "-q")
    while process.poll() is None and not (part.exists() and part.stat().st_size > 8 << 20):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert part.stat().st_size > 4 << 20
    wire.bytes_a_second = None
    ended = virnucpro("sync", "--sync-only", "-q")
    assert (ended.code, "1 fetched" in ended.out) == (0, True), ended.err
    assert wire.num_bytes[-1] < 29 << 20
    assert fetched(Path("shards/alpha")) == {big.name: big.read_bytes()}
    wire.close()


def test_two_at_once_into_one_folder_are_refused(virnucpro, serve, remote):
    """Exit 4 for the second."""
    import fcntl

    describe(remote, serve().port)
    Path("shards/alpha").mkdir(parents=True)
    with Path("shards/alpha/.sync.jsonl").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        ended = virnucpro("sync", "--sync-only", "-q")
    assert ended.code == 4
    assert "another process fetches" in ended.err


MACHINE = {"address": "127.0.0.1", "username": "me"}


@pytest.mark.parametrize(
    ("mode", "settings", "expected"),
    [
        (0o644, {**MACHINE, "password": "s3cret"}, "others can read or change it (mode 644)"),
        (0o600, {**MACHINE, "password": ["s3cret"]}, "password of alpha must be a text"),
        (0o600, {**MACHINE, "passwort": "s3cret"}, "alpha has no setting passwort"),
        (0o600, {"username": "s3cret"}, "alpha has no address"),
        (0o600, {**MACHINE, "port": 0}, "port of alpha must be a number"),
        (0o600, {**MACHINE, "key_file": "nowhere"}, "there is no file nowhere"),
        (0o600, {**MACHINE, "patterns": ["../x"]}, "must be relative"),
        (0o600, ["s3cret"], "must be a JSON object"),
    ],
)
@pytest.mark.usefixtures("client")
def test_credentials_that_cannot_be_used_are_exit_2(virnucpro, mode, settings, expected):
    """In one line that does not tell the secret."""
    credentials("alpha", mode)
    Path(".credentials/alpha.credentials").write_text(json.dumps(settings))
    ended = virnucpro("sync", "--sync-only", "-v")
    assert ended.code == 2
    assert expected in ended.err
    assert "s3cret" not in ended.err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "must hold tables [clusters.NAME]"),
        ("[clusters.alpha]\npassword = 's3cret'", "belongs in .credentials/alpha.credentials"),
        ("[clusters.'a/b']\naddress = 'x'", "cannot be the name of a folder"),
        ("[clusters", "is not TOML"),
        ("[clusters.alpha]\naddress = 'other'\n", "give two values for address of alpha"),
    ],
)
@pytest.mark.usefixtures("client")
def test_a_description_that_cannot_be_used_is_exit_2(virnucpro, text, expected):
    """With the file and what to change."""
    Path("clusters.toml").write_text(text)
    credentials("alpha", address="127.0.0.1", password="s3cret")
    ended = virnucpro("sync", "--sync-only")
    assert ended.code == 2
    assert expected in ended.err
    assert "s3cret" not in ended.err


@pytest.mark.usefixtures("client")
def test_unknown_machines_and_no_machine_are_exit_2(virnucpro):
    """The names that there are, are said."""
    ended = virnucpro("sync", "--sync-only")
    assert (ended.code, "no machine is described" in ended.err) == (2, True)
    credentials("alpha", **MACHINE)
    ended = virnucpro("sync", "--sync-only", "--clusters", "alpha, gamma")
    assert ended.code == 2
    assert "no machine is called gamma. There are: alpha." in ended.err
