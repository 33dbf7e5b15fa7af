"""Workers of a sweep as the jobs of a cluster: peers on one study, submitted as one array through submitit."""

from __future__ import annotations

import io
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlp_lab.errors import UserError
from mlp_lab.sweep.settings import ClusterSettings

if TYPE_CHECKING:
    from submitit import Job

POLL_SECONDS = 2.0  # between looks at the queue
SETTLE_SECONDS = 20.0  # a job may have left the queue before its result is seen on a shared disk
REMIND_SECONDS = 5.0  # a worker does not hear that it shall end in its first moments
COMMANDS = ("sbatch", "squeue", "scancel")
THREADS = "OMP_NUM_THREADS"  # how many threads torch computes with


class Placed:
    """What a job runs: a worker in the environment that its place in the cluster asks for.

    Args:
        work: Does the worker's work; it is pickled.
        environment: Variables to set first, before torch is imported.
    """

    def __init__(self, work: Callable[[], None], environment: Mapping[str, str]) -> None:
        self.work, self.environment = pickle.dumps(work), dict(environment)  # loaded late, for it may import torch

    def __call__(self) -> None:
        """Works, as one process: Lightning would take the job's tasks for ranks, and requeue it by itself."""
        os.environ.pop("SLURM_NTASKS", None)
        os.environ.update(self.environment)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # submitit would ignore it until the search begins
        pickle.loads(self.work)()

    def checkpoint(self) -> Any:
        """Returns what the job does when it was preempted or its time was up: the same, for the study knows where."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Fleet:
    """The jobs of a sweep's workers.

    Args:
        settings: How many, and what each needs.
        folder: Where their logs are written; every machine must see it under the same path.
        name: Name of the jobs.
    """

    def __init__(self, settings: ClusterSettings, folder: Path, name: str) -> None:
        self.settings, self.folder, self.name = settings, folder, name
        self.jobs: list[Job[None]] = []

    def submit(self, work: Callable[[], None]) -> str:
        """Submits all workers at once and returns what they are called in the queue.

        Raises:
            UserError: The cluster refuses them; the message is its own.
        """
        from submitit import AutoExecutor
        from submitit.core.utils import FailedJobError

        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # it says where the study is, and how to reach it
        executor = AutoExecutor(folder=self.folder.absolute(), cluster=self.settings.executor, **self._python())
        executor.update_parameters(**self._parameters())
        try:
            with _deaf_to_interrupts(), executor.batch():
                self.jobs = [
                    executor.submit(Placed(work, self._environment(index))) for index in range(self.settings.workers)
                ]
        except (FailedJobError, subprocess.CalledProcessError, RuntimeError) as error:
            reason = " ".join((getattr(error, "stderr", None) or str(error)).split())
            raise UserError(f"cluster: the jobs are refused ({reason})") from error
        return ", ".join(sorted({job.job_id.partition("_")[0] for job in self.jobs}))

    def _parameters(self) -> dict[str, Any]:
        settings = self.settings
        parameters: dict[str, Any] = {
            "name": self.name,
            "timeout_min": settings.minutes,
            "gpus_per_node": settings.gpus or None,
            "stderr_to_stdout": True,
        }
        if settings.executor == "slurm":
            parameters |= {"nodes": 1, "tasks_per_node": 1, "cpus_per_task": settings.cpus}
            parameters |= {"slurm_array_parallelism": settings.at_once or settings.workers}
            parameters |= {"slurm_partition": settings.partition, "slurm_account": settings.account}
            parameters |= {"mem_gb": settings.memory, "slurm_additional_parameters": settings.extra or None}
            parameters |= {"slurm_setup": list(settings.setup) or None}
        return {name: value for name, value in parameters.items() if value is not None}

    def _python(self) -> dict[str, str]:
        """Returns how a worker of this machine begins: in a shell for `setup`, which then becomes the worker itself.

        submitit would put its own process under that shell, and a signal to end the job would find the shell alone.
        """
        if self.settings.executor != "local" or not self.settings.setup:
            return {}
        script = " && ".join([*self.settings.setup, 'exec "$@"'])
        return {"local_python": shlex.join(["sh", "-c", script, "sh", sys.executable])}

    def _environment(self, index: int) -> dict[str, str]:
        """Returns a worker's variables: its threads, and on one machine its GPUs, which Slurm would hand out."""
        settings = self.settings
        threads = settings.cpus
        if threads is None and settings.executor == "local" and THREADS not in os.environ:
            threads = max(1, cores() // settings.workers)  # torch would take all cores in each of them
        environment = {THREADS: str(threads)} if threads else {}
        if settings.executor == "local" and settings.gpus:
            mine = range(index * settings.gpus, (index + 1) * settings.gpus)
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(str(device) for device in mine)
        return environment

    def follow(self, look: Callable[[int], None]) -> list[str]:
        """Waits until no worker is left, and calls `look` with their number every few seconds.

        Returns:
            A line for every worker that did not end well.
        """
        while left := self._left():
            look(left)
            time.sleep(POLL_SECONDS)
        return self._troubles()

    def cancel(self) -> None:
        """Ends the workers as Ctrl-C would; waits until they have told the study so, or are killed."""
        if not self.jobs:
            return
        if self.settings.executor == "slurm":
            subprocess.run(["scancel", *{job.job_id.partition("_")[0] for job in self.jobs}], check=False)
        start = told = time.monotonic()
        self._terminate()
        while self._left() and (now := time.monotonic()) < start + 60:
            if now > told + REMIND_SECONDS:
                told = now
                self._terminate()
            time.sleep(POLL_SECONDS / 4)

    def _terminate(self) -> None:
        """Ends workers of this machine; submitit's `cancel` would kill them a second later, told or not."""
        for job in self.jobs if self.settings.executor == "local" else ():
            with suppress(ProcessLookupError):
                if not job.done():
                    os.kill(int(job.job_id), signal.SIGTERM)  # submitit's process, which hands it on

    def _left(self) -> int:
        """Counts the workers that wait or run. submitit would ask `sacct`, which not every cluster has."""
        if self.settings.executor == "local":
            return sum(not job.done() for job in self.jobs)
        number = self.jobs[0].job_id.partition("_")[0]
        command = ["squeue", "--noheader", "--array", "--jobs", number, "--format", "%T"]
        shown = subprocess.run(command, capture_output=True, text=True, check=False)
        if shown.returncode == 0:
            return len(shown.stdout.split())
        return 0 if "nvalid job id" in shown.stderr else len(self.jobs)  # else the controller is away for a moment

    def _troubles(self) -> list[str]:
        deadline = time.monotonic() + (SETTLE_SECONDS if self.settings.executor == "slurm" else 0)
        lines = []
        for index, job in enumerate(self.jobs):
            while not job.paths.result_pickle.exists() and not _ended(job) and time.monotonic() < deadline:
                time.sleep(0.1)
            reason = _reason(job)
            if reason:
                lines.append(f"worker {index} {reason}; its log is {job.paths.stdout}")
        return lines


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Lets processes that begin inside ignore Ctrl-C, which a terminal sends to all: their head will end them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def cores() -> int:
    """Counts the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _ended(job: Job[None]) -> bool:
    """Says whether a job's log tells of its end, so that no result is to be waited for."""
    try:
        log = job.paths.stdout.read_text("utf-8", errors="replace")
    except OSError:
        return False
    return "srun: error:" in log or "CANCELLED AT" in log


class _Plain(pickle.Unpickler):
    """Reads plain types alone: a result is a word and a text, and a file in the folder may be another person's."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Refuses to import anything."""
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")


def _reason(job: Job[None]) -> str | None:
    """Returns why a job has not ended well."""
    if not job.paths.result_pickle.exists():
        return "ended without a result (killed, or its machine was lost)"
    try:
        kind, content = _Plain(io.BytesIO(job.paths.result_pickle.read_bytes())).load()
    except (pickle.UnpicklingError, ValueError, TypeError, EOFError) as error:
        return f"ended with a result that cannot be read ({error})"
    if kind == "success":
        return None
    return f"failed: {([line for line in str(content).splitlines() if line.strip()] or ['no reason'])[-1].strip()}"


def check_cluster(settings: ClusterSettings, found: Callable[[str], str | None] = shutil.which) -> None:
    """Says at once what a cluster lacks.

    Raises:
        UserError: submitit is not installed, or this machine has no Slurm.
    """
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise UserError("backend: slurm needs submitit, which is missing: pip install 'mlp_lab[cluster]'") from error
    missing = [name for name in COMMANDS if found(name) is None] if settings.executor == "slurm" else []
    if missing:
        advice = "submit from a node of the cluster, or set cluster.executor to local"
        raise UserError(f"backend: slurm finds no {', '.join(missing)} on this machine; {advice}")


def check_storage(settings: ClusterSettings, url: str) -> None:
    """Refuses what several machines cannot write at once.

    Raises:
        UserError: The storage is a file, and the workers run on several nodes.
    """
    kind = url.partition(":")[0]
    if settings.executor == "slurm" and kind in ("sqlite", "journal"):
        raise UserError(
            f"study.storage: {kind} is one machine's file, and its locks do not hold between the nodes of a cluster; "
            "use postgresql://USER@HOST/DB"
        )
