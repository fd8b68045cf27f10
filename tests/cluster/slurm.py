"""A real SLURM on this machine, as root, without systemd or cgroups: munge, MariaDB, slurmdbd, slurmctld and slurmd."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ETC = Path("/etc/slurm")  # compiled in; Snakemake's plugin removes SLURM_CONF from a job's environment
MARK = "ClusterName=wmdd"
PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmdbd", "sbatch", "sacct", "mariadbd", "mariadb-install-db")
PACKAGES = "slurm-wlm munge slurmdbd mariadb-server"
DEAD = ("CANCELLED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED")


class NoSlurmError(Exception):
    """There is no SLURM to be had; says why."""


def why_not() -> str | None:
    """Return why SLURM cannot be started here, if it can't."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"{missing[0]} is not installed; apt-get install --no-install-recommends {PACKAGES}"
    if os.geteuid() != 0:
        return "SLURM's daemons switch users; run the tests as root"
    conf = ETC / "slurm.conf"
    if conf.exists() and MARK not in conf.read_text():
        return f"{conf} is of another cluster, which is left alone"
    if running := [name for name in ("slurmctld", "slurmd", "slurmdbd") if _process(name)]:
        return f"{running[0]} runs already"
    return None


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _process(name: str) -> bool:
    found = [process.info for process in psutil.process_iter(["name", "status"])]
    return any(each["name"] == name and each["status"] != psutil.STATUS_ZOMBIE for each in found)


def wait(what: str, true: Callable[[], object], seconds: float = 60) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not happen within {seconds} s")
        time.sleep(0.2)


@dataclass(frozen=True)
class Record:
    """What SLURM's accounts say of a job."""

    id: int
    rule: str
    state: str
    partition: str
    start: int  # seconds since the epoch
    end: int
    gpus: int
    cpus: int
    memory: int  # MB asked for
    minutes: int  # asked for
    name: str


@dataclass
class Cluster:
    """The daemons, each with its pid file in `folder`."""

    folder: Path

    @property
    def host(self) -> str:
        return socket.gethostname().partition(".")[0]

    def start(self) -> None:
        """Start everything and see that a job runs."""
        for name in ("munge", "database", "controller", "node"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        self._configure()
        self._munge()
        self._database()
        self.run("slurmdbd")
        wait("slurmdbd", lambda: self._answers("sacctmgr", "-n", "show", "cluster"))
        subprocess.run(["sacctmgr", "-i", "add", "cluster", "wmdd"], capture_output=True, check=False)
        self.start_controller("-i")
        self.start_node()
        self.idle()
        subprocess.run(["srun", "-n1", "true"], check=True, timeout=60)

    def _configure(self) -> None:
        ports = {"PORT": 16817, "PORT_OF_NODE": 16818}
        text = (Path(__file__).parent / "slurm.conf").read_text()
        for key, value in {"HOST": self.host, "FOLDER": self.folder, **ports}.items():
            text = text.replace(f"@{key}@", str(value))
        ETC.mkdir(parents=True, exist_ok=True)
        (ETC / "slurm.conf").write_text(text)
        devices = "".join(f"Name=gpu Type=fake File={device}\n" for device in ("/dev/null", "/dev/zero"))
        (ETC / "gres.conf").write_text("AutoDetect=off\n" + devices)
        dbd = ETC / "slurmdbd.conf"
        dbd.touch(0o600)
        dbd.write_text(
            f"AuthType=auth/munge\nAuthInfo=socket={self.folder}/munge/socket\nDbdHost={self.host}\nDbdAddr=127.0.0.1\n"
            "DbdPort=16819\nSlurmUser=root\nStorageType=accounting_storage/mysql\nStorageHost=127.0.0.1\n"
            f"StoragePort=13307\nStorageUser=slurm\nStoragePass=slurm\nLogFile={self.folder}/slurmdbd.log\n"
            f"PidFile={self.folder}/slurmdbd.pid\nCommunicationParameters=NoInAddrAny\n"
        )
        (ETC / "slurm.conf").write_text(text + "AccountingStoragePort=16819\n")

    def _munge(self) -> None:
        key, at = self.folder / "munge/key", self.folder / "munge"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        self.run(
            "munged", f"--key-file={key}", f"--socket={at}/socket", f"--pid-file={self.folder}/munged.pid",
            f"--log-file={at}/log", f"--seed-file={at}/seed", "--num-threads=2",
        )  # fmt: skip

    def _database(self) -> None:
        at = self.folder / "database"
        shutil.chown(at, "mysql")
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        install = ["mariadb-install-db", "--no-defaults", "--user=mysql", f"--datadir={at}/data"]
        subprocess.run([*install, "--auth-root-authentication-method=normal"], check=True, **quiet)
        small = ("--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M")
        subprocess.Popen(
            ["mariadbd", "--no-defaults", "--user=mysql", f"--datadir={at}/data", f"--socket={at}/socket",
             f"--pid-file={at}/mariadbd.pid", "--bind-address=127.0.0.1", "--port=13307", *small],
            env=os.environ | {"PATH": _path()}, **quiet,
        )  # fmt: skip
        client = ["mariadb", "--no-defaults", "-S", f"{at}/socket"]
        wait("the database", lambda: self._answers(*client, "-e", "select 1"))
        grant = "create user slurm@'127.0.0.1' identified by 'slurm'; grant all on slurm_acct_db.* to slurm@'127.0.0.1'"
        subprocess.run([*client, "-e", f"create database slurm_acct_db; {grant}"], check=True)

    @staticmethod
    def _answers(*command: str) -> bool:
        with suppress(subprocess.TimeoutExpired):
            return subprocess.run(command, capture_output=True, check=False, timeout=10).returncode == 0
        return False

    @staticmethod
    def run(*command: str) -> None:
        """Start a daemon, which goes to the background by itself."""
        subprocess.run(command, check=True, env=os.environ | {"PATH": _path()}, timeout=60)

    def start_controller(self, *flags: str) -> None:
        self.run("slurmctld", *flags)
        wait("the controller", lambda: self._answers("scontrol", "ping") and self._answers("sinfo"))

    def start_node(self) -> None:
        self.run("slurmd", "-N", self.host)

    def idle(self) -> None:
        """Wait until the node takes jobs."""
        wait("the node", lambda: _output("sinfo", "-h", "-o", "%T").split()[:1] in (["idle"], ["mixed"]), 90)

    def stop_daemon(self, name: str, with_signal: int = signal.SIGTERM) -> None:
        """Stop one daemon and wait until it is gone."""
        folder = self.folder / "database" if name == "mariadbd" else self.folder
        pid = int((folder / f"{name}.pid").read_text())
        with suppress(ProcessLookupError):
            os.kill(pid, with_signal)
        wait(f"the end of {name}", lambda: _gone(pid))

    def stop(self) -> None:
        """Stop whatever runs, the jobs first."""
        with suppress(subprocess.SubprocessError, TimeoutError):
            subprocess.run(["scancel", "--full", "-u", "root"], timeout=10, capture_output=True, check=False)
            wait("the end of all jobs", lambda: not _output("squeue", "-h"), 40)
        for name in ("slurmd", "slurmctld", "slurmdbd", "mariadbd", "munged"):
            with suppress(FileNotFoundError, TimeoutError, ValueError):
                self.stop_daemon(name)
        for name in ("slurm.conf", "gres.conf", "slurmdbd.conf"):
            (ETC / name).unlink(missing_ok=True)

    def jobs(self, *states: str) -> dict[int, str]:
        """Return the rules of the jobs in the queue, by id."""
        rows = _output("squeue", "-h", "-o", "%i %k", "-t", ",".join(states or ("RUNNING",))).splitlines()
        return {int(job): _rule(comment) for job, comment in (row.split(None, 1) for row in rows)}

    def records(self, since: str = "now-1hours") -> list[Record]:
        """Return the accounts of all jobs of Snakemake, whatever became of them; a requeued job has several."""
        fields = "JobIDRaw,Comment,State,Partition,Start,End,AllocTRES,AllocCPUS,ReqMem,TimelimitRaw,JobName"
        rows = _output(
            "sacct", "-X", "-D", "-n", "-P", "-S", since, f"--format={fields}", env={"SLURM_TIME_FORMAT": "%s"}
        ).splitlines()
        return [_record(row.split("|")) for row in rows if "|rule_" in row]

    def cancel(self, job: int, *flags: str) -> None:
        subprocess.run(["scancel", *flags, str(job)], check=False, timeout=30)


def _record(row: Sequence[str]) -> Record:
    job, comment, state, partition, start, end, tres, cpus, memory, minutes, name = row
    gpus = re.search(r"gres/gpu=(\d+)", tres)
    unit = {"M": 1, "G": 1024}[memory.rstrip("nc")[-1]]
    return Record(
        int(job), _rule(comment), state.split()[0], partition, *(int(t) if t.isdigit() else 0 for t in (start, end)),
        int(gpus[1]) if gpus else 0, int(cpus), int(float(memory.rstrip("nc")[:-1]) * unit), int(minutes), name,
    )  # fmt: skip


def _rule(comment: str) -> str:
    return comment.removeprefix("rule_").split("_wildcards_")[0]


def _output(*command: str, env: dict[str, str] | None = None) -> str:
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=30, env=os.environ | (env or {})
        )
    except subprocess.TimeoutExpired:
        return ""
    return result.stdout


def _gone(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start a cluster, and stop it in the end.

    Raises:
        NoSlurmError: it does not start.
    """
    made = Cluster(folder)
    try:
        try:
            made.start()
        except (OSError, subprocess.SubprocessError) as error:  # TimeoutError is an OSError
            raise NoSlurmError(f"SLURM does not start here: {' '.join(str(error).split())}") from None
        yield made
    finally:
        made.stop()
