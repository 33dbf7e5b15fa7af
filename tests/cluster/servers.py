"""A PostgreSQL server and a Slurm cluster of one node, each under a temporary folder, started for the tests."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

SECONDS = 60  # to start within
CPUS = 4
CONF = """\
ClusterName=mlp_lab_tests
SlurmctldHost=localhost
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={controller}
SlurmdPort={node}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=10
NodeName=localhost CPUs={cpus} RealMemory=4000
PartitionName=main Nodes=localhost Default=YES MaxTime=60
"""


def missing(programs: Sequence[str]) -> list[str]:
    """Returns the programs that this machine does not have, in their Debian folders too."""
    return [name for name in programs if program(name) is None]


def program(name: str) -> str | None:
    """Returns where a program is."""
    folders = ["/usr/sbin", "/usr/local/sbin", *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin")))]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(folders))


def free_port() -> int:
    """Returns a port that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def wait_until(ready: Callable[[], bool], what: str) -> None:
    """Waits for a server."""
    deadline = time.monotonic() + SECONDS
    while not ready():
        assert time.monotonic() < deadline, f"{what} did not start within {SECONDS} s"
        time.sleep(0.1)


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Starts PostgreSQL and yields the address of an empty database."""
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    owner = "postgres" if user else pwd.getpwuid(os.geteuid()).pw_name
    data = folder / "postgres"
    data.mkdir()
    if user:
        shutil.chown(data, owner, owner)
    port = free_port()
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "cwd": data}
    subprocess.run([*user, str(program("initdb")), "-D", str(data), "--auth=trust", "--no-sync"], **quiet)  # type: ignore[call-overload]
    options = ["-c", "listen_addresses=localhost", "-c", f"unix_socket_directories={data}", "-c", "fsync=off"]
    command = [*user, str(program("postgres")), "-D", str(data), "-p", str(port), *options]
    with (folder / "postgres.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=data)
        ask = [str(program("pg_isready")), "-q", "-h", "localhost", "-p", str(port)]
        try:
            wait_until(lambda: subprocess.run(ask, check=False).returncode == 0, "PostgreSQL")
            yield f"postgresql://{owner}@localhost:{port}/postgres"
        finally:
            subprocess.run([*user, str(program("pg_ctl")), "-D", str(data), "stop", "-m", "immediate"], **quiet)  # type: ignore[call-overload]
            server.wait()


@contextmanager
def slurm(folder: Path) -> Iterator[Path]:
    """Starts munge, a Slurm controller and one node; yields the configuration, for SLURM_CONF."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    socket_file = folder / "munge.socket"
    conf = folder / "slurm.conf"
    user = pwd.getpwuid(os.geteuid()).pw_name
    conf.write_text(CONF.format(folder=folder, user=user, controller=free_port(), node=free_port(), cpus=CPUS))
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    files = ["--socket", socket_file, "--key-file", key, "--pid-file", folder / "munge.pid"]
    files += ["--log-file", folder / "munged.log", "--seed-file", folder / "munge.seed"]
    munged = [str(program("munged")), "--foreground", "--force", *map(str, files)]
    with ExitStack() as stack, (folder / "servers.log").open("w") as log:

        def start(command: list[str]) -> None:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            stack.callback(process.wait)
            stack.callback(process.terminate)

        def idle() -> bool:
            shown = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True)
            return shown.stdout.strip() == "idle"

        start(munged)
        wait_until(socket_file.exists, "munge")
        start([str(program("slurmctld")), "-D", "-i", "-f", str(conf)])
        start([str(program("slurmd")), "-D", "-N", "localhost", "-f", str(conf)])
        wait_until(idle, "Slurm")
        yield conf
