"""Searches on offline W&B runs, read back with W&B's own tool and compared with the study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from mlp_lab.cli.main import main
from mlp_lab.errors import UserError
from mlp_lab.sweep.search import run_sweep
from mlp_lab.sweep.space import Space
from mlp_lab.sweep.storage import open_storage, storage_url
from tests.sweep.quadratic import ROOT, Quadratic, outcome, sweep, worker
from tests.training.test_weights_and_biases import records

WORDS = ["sweep", "--config", str(ROOT / "sweeps" / "digits.yaml"), "--trials", "4", "--population", "4"]
WORDS += ["--trainer.max_epochs", "2", "--study.pruner", "none", "--diagnosis.prune", "[]"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def logs(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns the records of every run, by its id."""
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    return {file.stem.removeprefix("run-"): records(file) for file in files}


def of_kind(log: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in log if record["type"] == kind]


def summary(log: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the last value of every key of a run's summary."""
    kept: dict[str, Any] = {}
    for update in of_kind(log, "summary"):
        kept |= update["update"]
    return kept


def rows(log: list[dict[str, Any]], metric: str) -> dict[int, float]:
    items = [one["item"] for one in of_kind(log, "history")]
    return {int(item["epoch"]): item[metric] for item in items if metric in item}


def search(folder: Path, wandb: Any, backend: Any = None, **changes: Any) -> optuna.Study:
    settings = sweep(wandb=wandb, **changes)
    return run_sweep(settings, Space.read(settings.space), backend or Quadratic(), folder)


@pytest.mark.slow
def test_a_run_per_trial_has_its_course_and_its_best_value(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    study = search(tmp_path, "auto", trials=6)
    printed = capfd.readouterr()
    assert "WARNING" not in printed.err
    (where,) = [line for line in printed.out.splitlines() if line.startswith("wandb: ")]
    upload = f"upload them with: wandb sync {tmp_path}/wandb/offline-run-*"
    assert where == f"wandb: offline, the runs are kept in {tmp_path}/wandb; {upload}"
    kept = logs(tmp_path)
    assert len(kept) == len(study.trials) == 6
    for trial in study.trials:
        log = kept[f"parabola-{trial.number}-{trial.datetime_start:%Y%m%d%H%M%S}"]
        assert rows(log, "val/loss") == trial.intermediate_values
        assert summary(log)["val/loss"] == trial.value
        assert summary(log)["state"] == "complete"
        (run,) = of_kind(log, "run")[:1]
        assert (run["display_name"], run["run_group"], run["project"]) == (
            f"trial {trial.number}",
            "parabola",
            "mlp_lab",
        )


def test_a_run_per_population_has_a_line_per_trial(tmp_path: Path) -> None:
    study = search(tmp_path, {"runs": "population", "project": "lessons"}, trials=6)
    kept = list(logs(tmp_path).values())
    assert len(kept) == 2
    assert [of_kind(log, "run")[0]["display_name"] for log in kept] == ["trials 0 to 3", "trials 4 to 5"]
    assert {of_kind(log, "run")[0]["project"] for log in kept} == {"lessons"}
    for log, part in zip(kept, (study.trials[:4], study.trials[4:]), strict=True):
        for trial in part:
            assert rows(log, f"val/loss/trial {trial.number}") == trial.intermediate_values
            assert summary(log)[f"val/loss/trial {trial.number}"] == trial.value
        best = min(part, key=lambda trial: trial.value)
        assert (summary(log)["val/loss"], summary(log)["best trial"]) == (best.value, best.number)


@pytest.mark.slow
def test_auto_keeps_a_long_search_to_a_run_per_population(tmp_path: Path) -> None:
    search(tmp_path, "auto", backend=Quadratic(batch=17), trials=51)
    assert len(logs(tmp_path)) == 3


def test_a_failed_trial_is_a_failed_run(tmp_path: Path) -> None:
    class Failing(Quadratic):
        def train(self, points: Any, judge: Any, tell: Any) -> None:
            for point in points:
                verdicts = [{"code": "nonfinite"}]
                tell(outcome(point.number, {}, state="failed", error="it broke", verdicts=verdicts))

    search(tmp_path, "trial", backend=Failing(), trials=1)
    (log,) = logs(tmp_path).values()
    assert of_kind(log, "exit")[0]["exit_code"] == 1
    assert summary(log)["state"] == "failed"
    assert summary(log)["diagnosis/first"] == "nonfinite"


@pytest.mark.slow
@pytest.mark.parametrize(("runs", "count"), [("trial", 4), ("population", 1)])
def test_what_a_dead_worker_has_told_and_not_shown_is_shown_once(runs: str, count: int, tmp_path: Path) -> None:
    with worker(tmp_path, 4, 0.0) as process:  # it shows nothing, as one that is killed in between
        told = process.communicate()[0]
    assert process.returncode == 0, told
    for trials, more in ((4, 0), (5, 1), (5, 0)):
        before = len(logs(tmp_path)) or count
        study = search(tmp_path, runs, trials=trials)
        assert len(logs(tmp_path)) == before + more
    first = next(log for name, log in logs(tmp_path).items() if "-parabola-0-" in f"-{name}")
    best = study.trials[0] if runs == "trial" else min(study.trials[:4], key=lambda trial: trial.value)
    assert summary(first)["val/loss"] == best.value


def test_no_run_is_written_unless_asked(tmp_path: Path) -> None:
    search(tmp_path, "none", trials=2)
    assert logs(tmp_path) == {}


def test_a_run_that_cannot_be_written_costs_the_search_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wandb").write_text("no folder")
    study = search(tmp_path, "trial", trials=3)
    assert len(study.trials) == 3
    told = capsys.readouterr().out
    assert told.count("is not shown") == 3
    assert "it is kept in the study" in told


@pytest.mark.slow
def test_the_command_shows_each_trial_with_the_config_that_fit_takes(tmp_path: Path) -> None:
    assert main([*WORDS, "--wandb", "trial", "--wandb.project", "course", "--run.dir", str(tmp_path)]) == 0
    study = optuna.load_study(study_name="digits", storage=open_storage(storage_url(None, tmp_path), 1))
    kept = list(logs(tmp_path).values())
    assert len(kept) == len(study.trials) == 4
    for log, trial in zip(kept, sorted(study.trials, key=lambda one: one.datetime_complete), strict=True):
        config = of_kind(log, "run")[0]["config"]["update"]
        assert config["trial"] == trial.number
        assert config["model"]["depth"] == trial.params["model.depth"]
        assert config["seed_everything"] == trial.user_attrs["seed"]


def test_without_a_login_nothing_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    wandb.teardown()
    backend = Quadratic()
    with pytest.raises(UserError, match=r"^wandb\.runs: there is no login \(.*\); use `wandb login`, or set"):
        search(tmp_path / "it", "trial", backend=backend, trials=1)
    wandb.teardown()
    assert backend.seen == []
    assert not (tmp_path / "it").exists()


def test_an_unknown_kind_of_runs_is_refused() -> None:
    with pytest.raises(UserError, match=r"^wandb\.runs: 'member' is unknown; accepted: none, auto, trial, population"):
        sweep(wandb="member")
