"""A real Slurm of two nodes on this machine, for as long as one command runs.

    unshare --net --mount python tests/slurm_cluster.py [--kill-node-when FILE] COMMAND...

Needs root and Debian's packages slurm-wlm and munge; no systemd, no container. Everything lies in the network and the
mounts of this process: the loopback is the only interface, ``/etc/slurm`` is a folder of its own.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ADDRESS = "10.77.1.1"
"""With 127.0.0.1 alone no address counts as configured, and the daemons look for one for ever."""
CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}({address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
AccountingStorageType=accounting_storage/none
MinJobAge=300
SlurmdTimeout=10
KillWait=3
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=2
SlurmdParameters=config_overrides
NodeName=d1 NodeAddr={address} NodeHostname={host} Port=16821 CPUs=2 RealMemory=4000 Gres=gpu:2
NodeName=d2 NodeAddr={address} NodeHostname={host} Port=16822 CPUs=2 RealMemory=4000 Gres=gpu:2
PartitionName=gpu Nodes=d1,d2 Default=YES MaxTime=1:00:00 DefaultTime=10 DefMemPerCPU=500
"""


def main(arguments: list[str]) -> int:
    """Start Slurm, run the command, end what was started."""
    trigger = None
    if arguments[0] == "--kill-node-when":
        trigger, arguments = Path(arguments[1]), arguments[2:]
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "addr", "add", f"{ADDRESS}/32", "dev", "lo"], check=True)
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/run"))  # munge refuses folders that others can write to
    folder.chmod(0o755)
    try:
        start_munge(folder / "munge")
        start_slurm(folder)
        process = subprocess.Popen(arguments)
        while process.poll() is None:
            time.sleep(0.2)
            if trigger is not None and list(trigger.parent.glob(trigger.name)):
                trigger = None
                kill_node(folder)
        return process.returncode
    finally:
        for name in ("d1", "d2", "slurmctld", "munge/daemon"):
            kill(folder / f"{name}.pid")
        time.sleep(1)
        subprocess.run(["umount", "/etc/slurm"], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def start_munge(folder: Path) -> None:
    """Start the daemon that vouches for users."""
    folder.mkdir()
    (folder / "key").write_bytes(secrets.token_bytes(1024))
    (folder / "key").chmod(0o400)
    subprocess.run(["chown", "-R", "munge:munge", folder], check=True)
    folder.chmod(0o755)
    daemon = (
        f"/usr/sbin/munged --key-file={folder}/key --socket={folder}/socket --pid-file={folder}/daemon.pid "
        f"--log-file={folder}/log --seed-file={folder}/seed"
    )
    subprocess.run(["su", "-s", "/bin/sh", "munge", "-c", daemon], check=True)


def start_slurm(folder: Path) -> None:
    """Start the controller and two nodes with two pretended GPUs each, and wait until they are idle."""
    (folder / "state").mkdir()
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(CONFIGURATION.format(host=host, address=ADDRESS, folder=folder))
    (folder / "gres.conf").write_text(
        "NodeName=d1 Name=gpu File=/dev/tty[1-2]\nNodeName=d2 Name=gpu File=/dev/tty[3-4]\n"
    )
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    for node in ("d1", "d2"):
        (folder / node).mkdir()
    # Snakemake's plugin drops SLURM_ variables, so that the configuration must be the usual file.
    Path("/etc/slurm").mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", folder, "/etc/slurm"], check=True)
    for command in (["slurmctld"], ["slurmd", "-N", "d1"], ["slurmd", "-N", "d2"]):
        subprocess.run(command, check=True)
    for _ in range(300):
        nodes = subprocess.run(["sinfo", "-h", "-t", "idle", "-N"], capture_output=True, text=True, check=False)
        if len(nodes.stdout.splitlines()) == 2:
            return
        time.sleep(0.1)
    raise SystemExit(f"the nodes of Slurm are not idle: {nodes.stdout}{nodes.stderr}")


def kill_node(folder: Path) -> None:
    """Let node d2 die, with everything that runs on it."""
    daemon = int((folder / "d2.pid").read_text())
    os.kill(daemon, 9)
    jobs = subprocess.run(["squeue", "-h", "-w", "d2", "-o", "%A"], capture_output=True, text=True, check=False)
    for job in jobs.stdout.split():
        for entry in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"SLURM_JOB_ID={job}".encode() in entry.read_bytes().split(b"\0"):
                    os.kill(int(entry.parent.name), 9)
            except OSError:
                continue
    print(f"node d2 was killed with jobs {jobs.stdout.split()}", file=sys.stderr)  # noqa: T201 - for who reads the test


def kill(pid_file: Path) -> None:
    """End a daemon that was started here, if it still runs."""
    try:
        os.kill(int(pid_file.read_text()), 15)
    except (OSError, ValueError):
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
