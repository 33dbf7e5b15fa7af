"""A population under `L.Trainer`: every member as its own `MLPModule` would train it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric

from mlp_lab.errors import NonFiniteError, UserError
from mlp_lab.population.module import PopulationModule
from mlp_lab.population.stopping import MemberStop
from mlp_lab.training.checkpoints import EarlyStop
from mlp_lab.training.module import MLPModule
from mlp_lab.training.optimizers import OptimizerConfig
from mlp_lab.training.schedules import ScheduleConfig
from tests.population.fits import alone, distance, fit

CLIP = [None, 0.5, None, 0.3, None, 0.5]


def states(population: PopulationModule) -> list[dict[str, Tensor]]:
    return [mlp.state_dict() for mlp in population.networks()]


def test_every_member_trains_as_alone() -> None:
    """Float64: sums of some 100 terms in another order, over 30 steps, stay far below the promised 1e-9."""
    population = PopulationModule([alone(number) for number in range(6)], clip=CLIP)
    together = fit(population)
    for number, network in enumerate(population.networks()):
        module = alone(number)
        one = fit(module, gradient_clip_val=CLIP[number])
        assert one.global_step == together.global_step
        assert distance(module.model, network) < 1e-12, number
        for name, value in population.scores[number].items():
            assert value == pytest.approx(float(one.callback_metrics[f"val/{name}"]), rel=1e-6), (number, name)


def test_members_without_biases_train_as_alone() -> None:
    population = PopulationModule([alone(number, linear_bias=False) for number in range(6)], clip=CLIP)
    fit(population)
    for number, network in enumerate(population.networks()):
        module = alone(number, linear_bias=False)
        fit(module, gradient_clip_val=CLIP[number])
        assert distance(module.model, network) < 1e-9, number


@pytest.mark.parametrize("settings", [{"mixup": 0.3, "dropout": 0.0}, {"input_dropout": 0.2}, {"norm": "batch"}])
def test_one_member_is_its_module(settings: dict[str, Any]) -> None:
    population = PopulationModule([alone(1, **settings)])
    fit(population)
    module = alone(1, **settings)
    fit(module)
    assert distance(module.model, population.networks()[0]) < 1e-9


def deep(lr: float) -> dict[str, Any]:
    """A net whose products overflow where its weights are near the largest numbers."""
    return {"depth": 2, "width": 20, "activation": "relu", "optimizer": OptimizerConfig(name="sgd", lr=lr)}


def test_a_member_that_explodes_changes_no_bit_of_another() -> None:
    calm = PopulationModule([alone(number, **(deep(1e-3) if number == 1 else {})) for number in range(4)])
    wild = PopulationModule([alone(number, **(deep(1e200) if number == 1 else {})) for number in range(4)])
    fit(calm)
    fit(wild)
    assert list(wild.failed) == [1]
    assert 1 < wild.failed[1] < 10
    for number, (one, other) in enumerate(zip(states(calm), states(wild), strict=True)):
        equal = all(torch.equal(one[name], other[name]) for name in one)
        assert equal == (number != 1)
    assert all(bool(value.isfinite().all()) for value in states(wild)[1].values())


def test_where_all_explode_the_run_stops() -> None:
    with pytest.raises(NonFiniteError, match="the losses of all 2 members are not finite"):
        fit(PopulationModule([alone(number, **deep(1e200)) for number in (1, 2)]))


def rates() -> list[dict[str, Any]]:
    """Learning rates of which some stop improving at once."""
    rates = (1e-3, 0.5, 1e-3, 0.7, 0.9, 1e-3)
    return [{"optimizer": OptimizerConfig(name="adam", lr=lr), "schedule": ScheduleConfig()} for lr in rates]


def test_members_stop_and_leave_the_stack_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = rates()
    members = [alone(number, **settings[number]) for number in range(6)]
    stop, passes = MemberStop(patience=1), Counter[int]()
    update = stop.update
    monkeypatch.setattr(stop, "update", lambda number, scores: (passes.update([number]), update(number, scores))[1])
    population = PopulationModule(members, stop=stop)
    together = fit(population, epochs=12)
    assert {1, 3, 4} <= set(population.finished)
    assert set(population.finished) | set(population.numbers) == set(range(6))
    for number, network in enumerate(population.networks()):
        module = alone(number, **settings[number])
        one = fit(module, epochs=12, callbacks=[EarlyStop(patience=1)])
        assert one.current_epoch == passes[number]
        if number not in (1, 3, 4):  # a rate far too high amplifies rounding
            assert distance(module.model, network) < 1e-9, number
    assert together.current_epoch == max(passes.values())


def test_a_member_that_has_stopped_keeps_its_statistics_and_counters() -> None:
    """Others go on in its stack, whose normalisation goes over all of it."""
    rates, stop = (1e-9, 0.1, 0.2), {"patience": 1, "min_delta": 0.05}

    def member(rate: float) -> MLPModule:
        sgd = OptimizerConfig(name="sgd", lr=rate)
        return alone(2, norm="batch", input_dropout=0.1, optimizer=sgd, schedule=ScheduleConfig())

    population = PopulationModule([member(rate) for rate in rates], stop=MemberStop(**stop))  # type: ignore[arg-type]
    fit(population, epochs=5)
    epochs = []
    for rate, network in zip(rates, population.networks(), strict=True):
        module = member(rate)
        epochs.append(fit(module, epochs=5, callbacks=[EarlyStop(**stop)]).current_epoch)  # type: ignore[arg-type]
        assert distance(module.model, network) < 1e-9
    assert epochs[0] < min(epochs[1:])


def test_a_norm_of_all_members_together_is_no_limit() -> None:
    with pytest.raises(
        UserError,
        match=r"^trainer.gradient_clip_val: 0.5 would be .* members together; .*clip=\[0.5\] \* 2\), a limit for each$",
    ):
        fit(PopulationModule([alone(0), alone(1)]), gradient_clip_val=0.5)


def test_a_device_without_float64_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mps = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("mps")))
    population = PopulationModule([alone(0)])
    monkeypatch.setattr(population, "_trainer", mps)
    with pytest.raises(UserError, match=r"^trainer.accelerator: mps has no float64.*; use --trainer.accelerator cpu$"):
        population.setup("fit")
    population.setup("test")


def test_max_steps_is_exact() -> None:
    assert fit(PopulationModule([alone(0), alone(1)]), epochs=-1, max_steps=17).global_step == 17


@pytest.mark.parametrize("cut", [2, 5])
def test_a_resumed_population_is_one_that_never_stopped(cut: int, tmp_path: Path) -> None:
    def build() -> PopulationModule:
        settings = rates()
        return PopulationModule(
            [alone(number, **settings[number]) for number in range(6)], clip=CLIP, stop=MemberStop(patience=1)
        )

    whole, first, second = build(), build(), build()
    fit(whole, epochs=8)
    fit(first, epochs=cut).save_checkpoint(tmp_path / "cut.ckpt")
    fit(second, epochs=8, ckpt_path=str(tmp_path / "cut.ckpt"))
    assert whole.scores == second.scores
    for one, other in zip(states(whole), states(second), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_built_for_a_smaller_stack_is_where_the_stack_is() -> None:
    """Without a GPU: the meta device stands for one."""
    members = [alone(number, dropout=0.0, label_smoothing=0.1 * number, norm="batch") for number in range(3)]
    population = PopulationModule(members).to("meta")
    population.leave([0, 1])
    tensors = [*population.buffers(), *population.population.keep([0, 1]).buffers()]
    for metric in population.modules():
        if isinstance(metric, Metric):
            tensors += [value for name in metric._defaults if isinstance(value := getattr(metric, name), Tensor)]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_losses_of_a_smaller_stack_are_of_its_type() -> None:
    members = [alone(number, dropout=0.0, class_weights=[2.0] * 10) for number in (0, 2, 4)]  # one speaks for all
    population = PopulationModule(members).double()
    population.leave([1, 2])
    assert {weights.dtype for weights in population.train_loss.buffers() if weights.is_floating_point()} == {
        torch.float64
    }


def test_networks_are_together_wherever_members_have_ended() -> None:
    population = PopulationModule([alone(number, dropout=0.0) for number in range(3)])
    population.finished[2] = population.networks()[2]
    population.leave([0, 1])
    population.population = population.population.keep([0, 1])
    population.to("meta")
    assert {p.device.type for network in population.networks() for p in network.parameters()} == {"meta"}
    assert {p.device.type for p in population.finished[2].parameters()} == {"cpu"}
