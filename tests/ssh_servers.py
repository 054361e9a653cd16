"""Real OpenSSH servers on the loopback, and a wire between them and the client that can be slow or cut."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
PASSWORD = "correct horse battery"  # noqa: S105 - of a server that lives for one test


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def make_key(path: Path) -> Path:
    """A new key pair; gives the private one."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@dataclass
class SshServer:
    """A running ``sshd``; it lets the present user in with one key, and, where it may, root with a password."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def host_key(self) -> str:
        """Public host key, as ``known_hosts`` has it."""
        kind, key, *_ = (self.folder / "host_key.pub").read_text().split()
        return f"{kind} {key}"

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def start_ssh_server(folder: Path, client_key: Path, *, with_password: bool = False) -> SshServer:
    """Start a server; the test is skipped where none can be started."""
    if SSHD is None:
        pytest.skip("there is no sshd here (Debian: openssh-server)")
    folder.mkdir()
    make_key(folder / "host_key")
    port = free_port()
    lines = (
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {folder / 'host_key'}",
        f"AuthorizedKeysFile {client_key}.pub",
        f"PidFile {folder / 'pid'}",
        "StrictModes no",
        "UsePAM no",
        "PermitRootLogin yes",
        f"PasswordAuthentication {'yes' if with_password else 'no'}",
        "Subsystem sftp internal-sftp",
    )
    (folder / "sshd_config").write_text("\n".join(lines) + "\n")
    command = [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")]
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    if with_password:
        command = _with_own_passwords(folder, command)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
    server = SshServer(folder, port, process)
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return server
        time.sleep(0.05)
    server.stop()
    raise AssertionError((folder / "log").read_text())


def _with_own_passwords(folder: Path, command: list[str]) -> list[str]:
    """Run a command where ``/etc/shadow`` is another file, for this command alone."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("only root can give a server passwords of its own")
    hashed = subprocess.run(["openssl", "passwd", "-6", PASSWORD], capture_output=True, text=True, check=True)
    shadow = folder / "shadow"
    shadow.write_text(f"root:{hashed.stdout.strip()}:19000:0:99999:7:::\nsshd:*:19000:0:99999:7:::\n")
    shadow.chmod(0o600)
    script = 'mount --bind "$0" /etc/shadow && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, str(shadow), *command]


@dataclass
class Wire:
    """Passes bytes on to a server, counts those that come back, and can be cut or slow.

    Attributes:
        port: where it listens.
        to_port: of the server.
        cuts: bytes after which each connection is cut, one after the other; later ones are not.
        bytes_a_second: of each connection; None for as fast as it goes.
        num_bytes: that came back over each connection.
    """

    to_port: int
    cuts: list[int] = field(default_factory=list)
    bytes_a_second: float | None = None
    num_bytes: list[int] = field(default_factory=list)
    port: int = 0

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.to_port))
            except OSError:
                client.close()
                continue
            number = len(self.num_bytes)
            self.num_bytes.append(0)
            threading.Thread(target=self._there, args=(client, server), daemon=True).start()
            threading.Thread(target=self._back, args=(client, server, number), daemon=True).start()

    @staticmethod
    def _there(client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := client.recv(1 << 16):
                server.sendall(block)
            server.shutdown(socket.SHUT_WR)

    def _back(self, client: socket.socket, server: socket.socket, number: int) -> None:
        limit = self.cuts[number] if number < len(self.cuts) else None
        with contextlib.suppress(OSError):
            while block := server.recv(1 << 16):
                client.sendall(block)
                self.num_bytes[number] += len(block)
                if self.bytes_a_second is not None:
                    time.sleep(len(block) / self.bytes_a_second)
                if limit is not None and self.num_bytes[number] >= limit:
                    break
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
