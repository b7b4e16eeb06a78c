"""A one-node SLURM cluster on this machine, from the programs of the Debian packages.

Configuration, keys, state and sockets are in one folder; the machine is not changed.
"""

import contextlib
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")


class NoSlurm(Exception):
    """SLURM cannot be started here; the message says what is missing."""


@contextlib.contextmanager
def one_node_slurm(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Starts the cluster and yields its slurm.conf; jobs in `high` preempt those in `low`.

    Raises:
      NoSlurm: if programs are missing (apt-get install slurm-wlm munge) or do not start.
    """
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        raise NoSlurm(f"no {', '.join(missing)}: apt-get install slurm-wlm munge")
    folder.chmod(0o755)
    conf = folder / "slurm.conf"
    conf.write_text(_configuration(folder))
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    munged = [
        "munged",
        "--force",
        "--foreground",
        f"--key-file={key}",
        f"--socket={folder}/munge.socket",
        f"--pid-file={folder}/munge.pid",
        f"--log-file={folder}/munged.log",
        f"--seed-file={folder}/munge.seed",
    ]
    environment = {**os.environ, "PATH": path, "SLURM_CONF": str(conf)}
    daemons: list[subprocess.Popen] = []

    def start(*command: str) -> None:
        with (folder / f"{command[0]}.out").open("ab") as out:
            daemons.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))

    try:
        start(*munged)
        _until(lambda: (folder / "munge.socket").exists(), "munged does not start", folder)
        start("slurmctld", "-D")
        start("slurmd", "-D", "-N", socket.gethostname().split(".")[0])

        def idle() -> bool:
            result = subprocess.run(
                ["sinfo", "--noheader", "--format=%t"],
                env=environment,
                capture_output=True,
                text=True,
            )
            return "idle" in result.stdout.split()

        _until(idle, "the node does not come up", folder)
        yield conf
    finally:
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(daemons):
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _configuration(folder: pathlib.Path) -> str:
    host, user = socket.gethostname().split(".")[0], _user()
    controller, daemon = _free_port(), _free_port()
    return f"""\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller}
SlurmdPort={daemon}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} State=UNKNOWN
PartitionName=low Nodes={host} Default=YES State=UP PriorityTier=1 GraceTime=60
PartitionName=high Nodes={host} State=UP PriorityTier=10 PreemptMode=OFF
"""


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _until(holds, complaint: str, folder: pathlib.Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            tails = [p.read_text(errors="replace")[-300:] for p in sorted(folder.glob("*.out"))]
            raise NoSlurm(f"{complaint}: {' | '.join(tails)}")
        time.sleep(0.2)
