"""The diagnostics of every member against those of the same network alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from mlp_lab.diagnostics.callback import Diagnostics
from mlp_lab.diagnostics.evidence import Measured
from mlp_lab.errors import UserError
from mlp_lab.population.diagnosis import PopulationDiagnostics
from mlp_lab.population.module import PopulationModule
from mlp_lab.population.stopping import MemberStop
from mlp_lab.training.burst import ANY
from mlp_lab.training.optimizers import OptimizerConfig
from mlp_lab.training.schedules import ScheduleConfig
from mlp_lab.training.tracking import MetricsCSV
from tests.population.fits import alone, distance, fit

CLIP = [None, 0.5, None, 0.3, None, 0.5]

EXPLODING: dict[str, Any] = {
    "depth": 2,
    "width": 20,
    "activation": "relu",
    "optimizer": OptimizerConfig(name="sgd", lr=1e200),
}


def watched(members: list[dict[str, Any]], epochs: int = 2, **settings: Any) -> PopulationDiagnostics:
    """Fits a population; member k is `alone(k)` with these settings."""
    diagnostics = PopulationDiagnostics(**settings)
    population = PopulationModule([alone(number, **one) for number, one in enumerate(members)])
    fit(population, epochs, callbacks=[diagnostics])
    return diagnostics


def assert_same(found: list[Measured], expected: list[Measured]) -> None:
    """1e-6: in float64 both differ by rounding only; a rank of singular values magnifies it."""
    assert [(one.step, one.epoch) for one in found] == [(one.step, one.epoch) for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.values.keys() == other.values.keys()
        for name, value in other.values.items():
            assert one.values[name] == pytest.approx(value, rel=1e-6, abs=1e-9, nan_ok=True), (one.step, name)


@pytest.mark.parametrize("settings", [{}, {"linear_bias": False}])
def test_every_members_numbers_and_verdicts_are_those_alone(settings: dict[str, Any]) -> None:
    """Six members of depth 0 to 3, six activations, dropout, clipping, lsuv, max-norm, three optimizers."""
    together = PopulationDiagnostics(every_n_steps=4)
    fit(PopulationModule([alone(number, **settings) for number in range(6)], clip=CLIP), callbacks=[together])
    for number, member in enumerate(together.members):
        one = Diagnostics(every_n_steps=4)
        fit(alone(number, **settings), callbacks=[one], gradient_clip_val=CLIP[number])
        assert_same(member.diagnostics.evidence.steps, one.evidence.steps)
        assert_same(member.diagnostics.evidence.epochs, one.evidence.epochs)
        assert member.diagnostics.evidence.facts == one.evidence.facts
        assert [v.code for v in together.verdicts[number]] == [v.code for v in one.verdicts]
        assert [v.fix for v in together.verdicts[number]] == [v.fix for v in one.verdicts]


@pytest.mark.parametrize("settings", [{"mixup": 0.3, "dropout": 0.0}, {"norm": "batch"}, {"input_dropout": 0.2}])
def test_watching_changes_no_bit_of_the_training(settings: dict[str, Any]) -> None:
    blind = PopulationModule([alone(number, **settings) for number in range(3)])
    fit(blind)
    seen = PopulationModule([alone(number, **settings) for number in range(3)])
    fit(seen, callbacks=[PopulationDiagnostics(every_n_steps=3)])
    for one, other in zip(blind.networks(), seen.networks(), strict=True):
        for before, after in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
            assert before.equal(after)
    assert blind.scores == seen.scores


def test_each_member_is_told_its_own_fault() -> None:
    dead = {"depth": 2, "width": 16, "activation": "relu", "bias": -20.0, "optimizer": OptimizerConfig(name="sgd")}
    slow = {"depth": 1, "width": 16, "activation": "relu", "optimizer": OptimizerConfig(name="adam", lr=1e-7)}
    good = {"depth": 1, "width": 64, "activation": "relu", "optimizer": OptimizerConfig(name="adam", lr=3e-3)}
    found = watched([dead, slow, good], epochs=6).verdicts
    assert [one[0].code for one in found[:2]] == ["dead_units", "update_too_small"]
    assert not any(one.severity == "critical" for one in found[2])


def test_a_member_that_explodes_is_named_and_the_others_go_on() -> None:
    diagnostics = watched([{}, EXPLODING, {}], every_n_steps=5)
    assert "nonfinite" in [one.code for one in diagnostics.verdicts[1]] + [
        one.consequence_of for one in diagnostics.verdicts[1]
    ]
    steps = [member.diagnostics.evidence.steps[-1].step for member in diagnostics.members]
    assert steps[0] == steps[2] > steps[1]


def test_members_that_stop_keep_what_was_known_of_them() -> None:
    stop = MemberStop(patience=1, min_delta=1e-3)
    population = PopulationModule(
        [alone(number, optimizer=OptimizerConfig(name="adam", lr=1e-9 if number else 1e-3)) for number in range(3)],
        stop=stop,
    )
    diagnostics = PopulationDiagnostics(every_n_steps=5)
    fit(population, 6, callbacks=[diagnostics])
    epochs = [len(member.diagnostics.evidence.epochs) for member in diagnostics.members]
    assert epochs[0] == max(epochs) > min(epochs) >= 1


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resumed_population_knows_what_it_knew(tmp_path: Path) -> None:
    def members() -> PopulationModule:  # a cosine schedule would know how long the run is
        return PopulationModule([alone(number, schedule=ScheduleConfig()) for number in range(3)])

    whole = PopulationDiagnostics(every_n_steps=4)
    fit(members(), 4, callbacks=[whole])
    keep, other = (ModelCheckpoint(tmp_path / name, "half", save_on_train_epoch_end=True) for name in ("a", "b"))
    fit(members(), 2, callbacks=[PopulationDiagnostics(every_n_steps=4), keep], enable_checkpointing=True)
    rest = PopulationDiagnostics(every_n_steps=4)
    fit(members(), 4, ckpt_path=str(tmp_path / "a" / "half.ckpt"), callbacks=[rest, other], enable_checkpointing=True)
    for one, other in zip(rest.members, whole.members, strict=True):
        assert_same(one.diagnostics.evidence.steps, other.diagnostics.evidence.steps)
        assert_same(one.diagnostics.evidence.epochs, other.diagnostics.evidence.epochs)


def test_means_are_logged_and_every_members_verdicts_written(tmp_path: Path) -> None:
    metrics = MetricsCSV(tmp_path / "metrics.csv")
    slow = {"depth": 1, "width": 16, "activation": "relu", "optimizer": OptimizerConfig(name="adam", lr=1e-7)}
    diagnostics = PopulationDiagnostics(every_n_steps=5)
    fit(PopulationModule([alone(0), alone(1, **slow)]), 4, callbacks=[diagnostics], logger=metrics, log_every_n_steps=5)
    row = next(row for row in metrics.read() if row["step"] == "5" and row["grad/norm"])
    norms = [
        next(one.values["grad/norm"] for one in member.diagnostics.evidence.steps if one.step == 5)
        for member in diagnostics.members
    ]
    assert float(row["grad/norm"]) == pytest.approx(sum(norms) / 2)
    assert float(row["grad/norm_sd"]) == pytest.approx(abs(norms[0] - norms[1]) / 2**0.5)
    told = json.loads((tmp_path / "diagnosis.json").read_text())
    assert next(one["code"] for one in told if one["member"] == 1) == "update_too_small"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": ["curvature"]}, "diagnostics.groups: 'curvature' is not measured of a population"),
        ({"groups": ["grads"]}, "diagnostics.groups: 'grads'"),
        ({"probe": "train"}, "diagnostics.probe: 'train' is not possible for a population; accepted: val"),
    ],
)
def test_what_is_of_networks_alone_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PopulationDiagnostics(**settings)


def test_one_batch_must_be_one_step() -> None:
    with pytest.raises(UserError, match="accumulate_grad_batches: 2 is not possible"):
        fit(PopulationModule([alone(0)]), callbacks=[PopulationDiagnostics()], accumulate_grad_batches=2)


def test_where_nothing_is_measured_batches_may_be_accumulated() -> None:
    members = [alone(0), alone(1, **EXPLODING)]
    diagnostics = PopulationDiagnostics(groups=[])
    population, blind = PopulationModule(members), PopulationModule([alone(0), alone(1, **EXPLODING)])
    fit(population, callbacks=[diagnostics], accumulate_grad_batches=2)
    fit(blind, accumulate_grad_batches=2)
    assert [[one.code for one in verdicts] for verdicts in diagnostics.verdicts][1] == ["nonfinite"]
    assert diagnostics.quiet_steps(population.trainer) == ANY
    assert population.failed == blind.failed
    assert [distance(*pair) for pair in zip(population.networks(), blind.networks(), strict=True)] == [0.0, 0.0]
