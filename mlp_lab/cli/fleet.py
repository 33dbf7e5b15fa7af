"""`sweep --backend slurm`: submits the workers, follows their study, and ends with the results of all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlp_lab.sweep.cluster import Fleet
from mlp_lab.sweep.facts import count_trials
from mlp_lab.sweep.interrupts import terminable
from mlp_lab.sweep.progress import Progress, say
from mlp_lab.sweep.results import print_top, write_results
from mlp_lab.sweep.search import prepare, trials_to_finish
from mlp_lab.sweep.settings import SweepSettings
from mlp_lab.sweep.space import Space
from mlp_lab.sweep.storage import PASSWORD, split_password
from mlp_lab.sweep.weights_and_biases import check_login
from mlp_lab.text import printable


class Worker:
    """One worker: the same command, in the folder it was typed in.

    Args:
        command: Runs a sweep by its arguments.
        words: The arguments.
        folder: Where it was typed.
    """

    def __init__(self, command: Callable[[Sequence[str]], None], words: Sequence[str], folder: Path) -> None:
        self.command, self.words, self.folder = command, tuple(words), folder

    def __call__(self) -> None:
        """Runs the sweep."""
        os.chdir(self.folder)
        self.command(self.words)


def run_fleet(
    settings: SweepSettings,
    space: Space,
    directory: Path,
    base: Mapping[str, Any],
    data: Mapping[str, str],
    command: Callable[[Sequence[str]], None],
    arguments: Sequence[str],
) -> None:
    """Submits the workers of a sweep and waits for them.

    Args:
        settings: The sweep.
        space: Its space.
        directory: Where its results and the workers' logs are written.
        base: The resolved config that every trial starts from.
        data: What is compared of its data.
        command: Runs a sweep by its arguments.
        arguments: Those of this one; each worker runs them with another backend.

    Raises:
        UserError: The study is another one, or the cluster refuses the jobs.
        SystemExit: No worker is left and trials are missing.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the jobs are cancelled, and their trials wait to be asked again.
    """
    directory = directory.absolute()
    check_login(settings.wandb)
    fleet = Fleet(settings.cluster, directory / "workers", settings.study.name)
    study, _, _ = prepare(settings, space, directory, base=base, data=data)
    metrics, budget = settings.study.metric, trials_to_finish(settings, space)
    troubles = []
    if budget is None or count_trials(study).finished < budget:
        words = hand_over_password(settings, arguments)
        words += ["--backend", settings.cluster.backend, "--run.dir", str(directory)]
        with terminable():
            troubles = _work(fleet, Progress(study, metrics, budget), Worker(command, words, Path.cwd()))
    for line in troubles:
        print(printable(line))
    write_results(directory, study, space, base, metrics)
    print_top(study, space, metrics, directory)
    print(printable(str(directory)))
    finished = count_trials(study).finished
    if troubles and (budget is None or finished < budget):
        of = f" of {budget:,}" if budget else ""
        raise SystemExit(f"error: the workers have ended with {finished:,}{of} trials: go on with the same command")


def hand_over_password(settings: SweepSettings, arguments: Sequence[str]) -> list[str]:
    """Returns the arguments without the storage's password, which the workers inherit by the environment.

    Arguments of a process, and the file from which a job reads what it runs, can be read by others.
    """
    url, password = split_password(settings.study.storage or "")
    if password is None or settings.study.storage is None:
        return list(arguments)
    os.environ[PASSWORD] = password
    return [word.replace(settings.study.storage, url) for word in arguments]


def _work(fleet: Fleet, progress: Progress, worker: Worker) -> list[str]:
    """Submits the workers and says how far they are until none is left; returns what became of the others."""
    study = progress.study
    before = progress.finished

    def look(left: int) -> None:
        progress.refresh()
        progress.ended = progress.finished - before

    try:
        queued = fleet.submit(worker)
        count = fleet.settings.workers
        say(f"{count} worker{'s' if count != 1 else ''} submitted as job {queued}; their logs: {fleet.folder}")
        with progress:
            return fleet.follow(look)
    except KeyboardInterrupt as error:
        fleet.cancel()
        kept = count_trials(study).finished
        raise KeyboardInterrupt(
            f"the workers are cancelled and {kept} trials are kept: go on with the same command"
        ) from error
