"""With how many threads the commands compute."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mlp_lab.cli.threads import repeated_run
from mlp_lab.training import threads
from mlp_lab.training.module import MLPModule
from tests.cli.conftest import Bench, write_config, write_table

FIT = ["fit", "--config", "config.yaml"]


@pytest.fixture(autouse=True)
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which torch would take three threads, and a rule by which the table's network deserves two."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setenv(threads.VARIABLE, "3")
    monkeypatch.setattr(threads, "WORK_PER_THREAD", 8 * (5 * 8 + 8) // 2)
    yield
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


@pytest.fixture
def seen(here: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of threads of every step, in a working directory with `table.csv` and `config.yaml`."""
    write_table(here / "table.csv")
    write_config(here / "config.yaml")
    found: list[int] = []
    for name in ("training_step", "validation_step", "test_step"):
        real = getattr(MLPModule, name)

        def step(self: MLPModule, *arguments: Any, real: Any = real) -> Any:
            found.append(torch.get_num_threads())
            return real(self, *arguments)

        monkeypatch.setattr(MLPModule, name, step)
    return found


def provenance(run: str) -> dict[str, Any]:
    return json.loads((Path(run) / "provenance.json").read_text())


def forget(run: str) -> None:
    """Makes the run one of a version that had no such key and recorded no number."""
    values = provenance(run)
    del values["threads"], values["multiplications"]
    (Path(run) / "provenance.json").write_text(json.dumps(values))
    config = yaml.safe_load((Path(run) / "config.yaml").read_text())
    del config["run"]["threads"]
    (Path(run) / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [([], 2), (["--model.width", "2"], 1), (["--model.width", "800"], 3), (["--run.threads", "4"], 4)],
)
def test_fit_takes_the_threads_of_the_rule_or_the_named_ones_and_records_them(
    flags: list[str], expected: int, seen: list[int], bench: Bench
) -> None:
    answer = bench(*FIT, *flags)
    assert answer.status == 0, answer.err
    assert set(seen) == {expected}
    assert provenance(answer.last_line)["threads"] == expected


def test_run_that_is_repeated_resumed_or_measured_keeps_its_number(seen: list[int], bench: Bench) -> None:
    run = bench(*FIT).last_line
    torch.set_num_threads(1)  # as OMP_NUM_THREADS=1 would
    for words in (
        ["fit", "--config", f"{run}/config.yaml"],
        ["fit", "--resume", run, "--trainer.max_epochs", "2"],
        ["validate", "--run", run],
        ["test", "--run", run],
    ):
        seen.clear()
        assert bench(*words).status == 0
        assert set(seen) == {2}, words
    seen.clear()
    assert bench("fit", "--config", f"{run}/config.yaml", "--model.width", "800").status == 0
    assert set(seen) == {1}  # another network goes by the rule, within what this process may take
    assert bench("fit", "--resume", run, "--trainer.max_epochs", "3", "--run.threads", "4").status == 0
    seen.clear()
    assert bench("fit", "--resume", run, "--trainer.max_epochs", "4").status == 0
    assert set(seen) == {4}
    torch.set_num_threads(3)


def test_run_of_an_older_version_keeps_the_number_of_torch(seen: list[int], bench: Bench) -> None:
    run = bench(*FIT).last_line
    forget(run)
    for words in (["fit", "--config", f"{run}/config.yaml"], ["fit", "--resume", run, "--trainer.max_epochs", "2"]):
        seen.clear()
        assert bench(*words).status == 0
        assert set(seen) == {3}, words


def test_replicates_count_as_one_network_of_their_size(seen: list[int], bench: Bench) -> None:
    answer = bench(*FIT, "--model.width", "4", "--replicates", "2")
    assert answer.status == 0, answer.err
    assert provenance(answer.last_line)["threads"] == 2


@pytest.mark.parametrize("backend", ["serial", "population"])
def test_trials_of_a_sweep_go_by_the_rule_within_the_share_of_their_worker(
    backend: str, here: Path, seen: list[int], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []
    real = threads.computing_with

    def computing_with(count: int | None) -> Any:
        found.append(count or 0)
        return real(count)

    for module in ("serial", "population"):
        monkeypatch.setattr(f"mlp_lab.sweep.{module}.computing_with", computing_with)
    (here / "sweep.yaml").write_text(
        f"base: config.yaml\ntrials: 3\nbackend: {backend}\npopulation: 3\nstudy: {{pruner: none}}\n"
        "space:\n  model.optimizer.lr: {type: float, low: 0.001, high: 0.01}\n"
    )
    assert bench("sweep", "--config", "sweep.yaml").status == 0
    assert found == ([2, 2, 2] if backend == "serial" else [3])


def test_repeated_run_is_found_through_a_variable(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("config.yaml", "provenance.json"):
        (here / "run" / name).parent.mkdir(exist_ok=True)
        (here / "run" / name).write_text("{}")
    monkeypatch.setenv("RUNS", str(here))
    run = repeated_run(["fit", "--config", "-", "--config", "$RUNS/run/config.yaml"])
    assert run is not None
    assert run.path == (here / "run").resolve()
