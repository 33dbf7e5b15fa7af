"""Every schedule against PyTorch's own scheduler or its closed form, step by step, and inside a Trainer."""

import io
import math
from collections.abc import Callable
from dataclasses import asdict

import lightning
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

from mlp_lab.errors import UserError
from mlp_lab.training.schedules import (
    SCHEDULES,
    FactorScheduler,
    PlateauScheduler,
    ScheduleConfig,
    build_scheduler,
    factor_at,
    warmup_steps,
)

TOTAL = 40
BY_PROGRESS = [name for name, schedule in SCHEDULES.items() if schedule.factor is not None]


def sgd(lr: float = 0.5) -> torch.optim.SGD:
    groups = [{"params": [nn.Parameter(torch.zeros(1))]}, {"params": [nn.Parameter(torch.zeros(1))], "lr": 2 * lr}]
    return torch.optim.SGD(groups, lr=lr)


def run(optimizer: torch.optim.Optimizer, scheduler, steps: int) -> list[list[float]]:
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


def factor_scheduler(optimizer: torch.optim.Optimizer, config: ScheduleConfig, total: float = TOTAL) -> FactorScheduler:
    built = build_scheduler(optimizer, config, total)
    assert built is not None
    assert built["interval"] == "step"
    assert isinstance(built["scheduler"], FactorScheduler)
    return built["scheduler"]


# PyTorch's onecycle ends its phases one step before the ends that it is given, so that its first step is at progress 0
# and its last at progress 1: `TOTAL + 1` steps, of which ours takes all but the last.
PEERS: dict[str, tuple[ScheduleConfig, Callable]] = {
    "cosine": (ScheduleConfig(name="cosine"), lambda optimizer: CosineAnnealingLR(optimizer, T_max=TOTAL)),
    "onecycle": (
        ScheduleConfig(name="onecycle", final_factor=0.01),
        lambda optimizer: OneCycleLR(
            optimizer,
            max_lr=[0.5, 1.0],
            total_steps=TOTAL + 1,
            pct_start=(0.3 * TOTAL + 1) / (TOTAL + 1),
            div_factor=25,
            final_div_factor=0.04 / 0.01,
            cycle_momentum=False,
        ),
    ),
    "equal steps": (
        ScheduleConfig(name="step", milestones=(0.25, 0.5, 0.75), gamma=0.3),
        lambda optimizer: StepLR(optimizer, step_size=TOTAL // 4, gamma=0.3),
    ),
    "milestones": (
        ScheduleConfig(name="step"),
        lambda optimizer: MultiStepLR(optimizer, milestones=[TOTAL // 2, 3 * TOTAL // 4], gamma=0.1),
    ),
}


@pytest.mark.parametrize("name", PEERS)
def test_rates_are_pytorchs(name: str):
    config, peer = PEERS[name]
    ours, theirs = sgd(), sgd()
    mine = torch.tensor(run(ours, factor_scheduler(ours, config), TOTAL), dtype=torch.float64)
    reference = torch.tensor(run(theirs, peer(theirs), TOTAL), dtype=torch.float64)
    # PyTorch's cosine is a recursion that collects rounding errors; ours is the closed form
    torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-14)


def test_coslog4_has_four_cycles_of_doubling_length():
    config = ScheduleConfig(name="coslog4")
    for cycle in range(5):  # zeros at t = (2^k - 1) / 15, maxima halfway on the logarithmic scale
        zero = (2**cycle - 1) / 15
        assert factor_at(round(15_000 * zero), config, 15_000) == pytest.approx(0, abs=1e-12)
    for cycle in range(4):
        peak = (2 ** (cycle + 0.5) - 1) / 15
        assert factor_at(round(1e9 * peak), config, 1e9) == pytest.approx(1, abs=1e-12)


def test_onecycle_starts_peaks_and_ends_where_it_says():
    config = ScheduleConfig(name="onecycle", start_factor=0.2, peak=0.25, final_factor=0.1)
    assert [factor_at(step, config, TOTAL) for step in (0, 10, 40)] == pytest.approx([0.2, 1.0, 0.1])


def test_cosine_ends_at_its_final_factor():
    config = ScheduleConfig(name="cosine", final_factor=0.2)
    assert [factor_at(step, config, TOTAL) for step in (0, 20, 40)] == pytest.approx([1.0, 0.6, 0.2])


@pytest.mark.parametrize("name", BY_PROGRESS)
def test_every_factor_stays_between_zero_and_one_and_past_the_end(name: str):
    config = ScheduleConfig(name=name)
    factors = [factor_at(step, config, 1000) for step in range(1001)]
    assert min(factors) >= 0
    assert max(factors) == pytest.approx(1.0, abs=1e-5)  # coslog4's maxima fall between steps
    assert factor_at(5000, config, 1000) == factors[-1]


@pytest.mark.parametrize(("warmup", "steps"), [(0.1, 4), (4, 4), (0.0, 0), (1, 1), (0.999, 40)])
def test_warmup_is_a_fraction_of_the_run_or_a_number_of_steps(warmup: float, steps: int):
    assert warmup_steps(ScheduleConfig(warmup=warmup), TOTAL) == steps


def test_warmup_rises_linearly_and_hands_over_to_the_whole_schedule():
    config = ScheduleConfig(name="cosine", warmup=4)
    rising = [factor_at(step, config, TOTAL) for step in range(5)]
    assert rising == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    after = [factor_at(step, config, TOTAL) for step in range(4, TOTAL)]
    assert after == [factor_at(step, ScheduleConfig(name="cosine"), TOTAL - 4) for step in range(TOTAL - 4)]


def test_a_run_shorter_than_its_warmup_only_rises():
    config = ScheduleConfig(name="cosine", warmup=100)
    assert [factor_at(step, config, 3) for step in range(3)] == pytest.approx([1 / 101, 2 / 101, 3 / 101])


def test_a_constant_rate_costs_no_scheduler():
    assert build_scheduler(sgd(), ScheduleConfig(), math.inf) is None


def test_warmup_in_steps_needs_no_length():
    optimizer = sgd()
    scheduler = factor_scheduler(optimizer, ScheduleConfig(warmup=3), total=math.inf)
    rates = [first for first, _ in run(optimizer, scheduler, 6)]
    assert rates == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5, 0.5])
    assert scheduler.get_last_lr() == [0.5, 1.0]


@pytest.mark.parametrize("total", [math.inf, -1])
@pytest.mark.parametrize(
    ("config", "key"),
    [
        (ScheduleConfig(name="cosine"), "name: 'cosine'"),
        (ScheduleConfig(name="onecycle"), "name: 'onecycle'"),
        (ScheduleConfig(name="step"), "name: 'step'"),
        (ScheduleConfig(name="coslog4"), "name: 'coslog4'"),
        (ScheduleConfig(warmup=0.1), "warmup: 0.1"),
    ],
)
def test_an_endless_run_is_refused_where_its_length_matters(config: ScheduleConfig, key: str, total: float):
    with pytest.raises(UserError) as error:
        build_scheduler(sgd(), config, total)
    expected = f"model.schedule.{key} needs a run of known length; set trainer.max_epochs or trainer.max_steps"
    assert str(error.value) == expected


LOSSES = [1.0, 0.9, 0.95, 0.93, 0.92, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.4, float("nan"), 0.4, 0.4, 0.4]


def test_plateau_is_pytorchs_per_epoch_on_the_validation_loss():
    ours, theirs = sgd(), sgd()
    built = build_scheduler(ours, ScheduleConfig(name="plateau", gamma=0.5, patience=2), math.inf)
    assert built is not None
    assert (built["interval"], built["monitor"]) == ("epoch", "val/loss")
    reference = ReduceLROnPlateau(theirs, factor=0.5, patience=2)
    rates = []
    for loss in LOSSES:
        built["scheduler"].step(loss)
        reference.step(loss)
        rates.append(ours.param_groups[0]["lr"])
        assert [group["lr"] for group in ours.param_groups] == [group["lr"] for group in theirs.param_groups]
    assert rates[-1] <= 0.125  # it did act, more than once


def through_a_checkpoint(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", BY_PROGRESS)
def test_a_resumed_schedule_goes_on_exactly(name: str):
    config = ScheduleConfig(name=name, warmup=3 if "warmup" in SCHEDULES[name].uses else 0)
    whole = sgd()
    rates = run(whole, factor_scheduler(whole, config), TOTAL)
    first = sgd()
    scheduler = factor_scheduler(first, config)
    run(first, scheduler, 17)
    saved = through_a_checkpoint({"scheduler": scheduler.state_dict(), "optimizer": first.state_dict()})
    second = sgd()
    scheduler = factor_scheduler(second, config)
    second.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    assert run(second, scheduler, TOTAL - 17) == rates[17:]


def test_a_resumed_plateau_goes_on_exactly():
    config = ScheduleConfig(name="plateau", gamma=0.5, patience=2)
    whole, first, second = sgd(), sgd(), sgd()
    schedulers = [build_scheduler(optimizer, config, math.inf)["scheduler"] for optimizer in (whole, first, second)]
    for loss in LOSSES:
        schedulers[0].step(loss)
    for loss in LOSSES[:7]:
        schedulers[1].step(loss)
    assert isinstance(schedulers[2], PlateauScheduler)
    schedulers[2].load_state_dict(through_a_checkpoint(schedulers[1].state_dict()))
    assert second.param_groups[1]["lr"] == first.param_groups[1]["lr"] < 1.0
    for loss in LOSSES[7:]:
        schedulers[2].step(loss)
    assert second.param_groups[0]["lr"] == whole.param_groups[0]["lr"]


def test_a_changed_config_takes_effect_on_resume():
    first, second = sgd(lr=0.5), sgd(lr=0.2)
    scheduler = factor_scheduler(first, ScheduleConfig(name="cosine"))
    run(first, scheduler, TOTAL // 2)
    resumed = factor_scheduler(second, ScheduleConfig(name="cosine"), total=2 * TOTAL)
    resumed.load_state_dict(scheduler.state_dict())
    assert second.param_groups[0]["lr"] == 0.2 * factor_at(TOTAL // 2, ScheduleConfig(name="cosine"), 2 * TOTAL)


class Line(lightning.LightningModule):
    def __init__(self, config: ScheduleConfig) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.config = config
        self.rates: list[float] = []

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return self.layer(batch).square().mean()

    def validation_step(self, batch: torch.Tensor) -> None:
        self.log("val/loss", 1.0)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        scheduler = build_scheduler(optimizer, self.config, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def fit(config: ScheduleConfig, **flags) -> list[float]:
    module = Line(config)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **flags)
    loader = DataLoader(torch.ones(8, 1), batch_size=1)
    trainer.fit(module, loader, loader)
    return module.rates


@pytest.mark.filterwarnings("ignore:.isinstance\\(treespec, LeafSpec:FutureWarning")  # in Lightning 2.6
class TestInATrainer:
    def test_one_schedule_step_per_optimizer_step_under_accumulation(self):
        config = ScheduleConfig(name="cosine", warmup=2)
        rates = fit(config, max_epochs=2, accumulate_grad_batches=2)
        assert rates == [factor_at(step, config, 8) for step in range(8)]

    def test_plateau_acts_after_validation(self):
        rates = fit(ScheduleConfig(name="plateau", gamma=0.5, patience=0), max_epochs=3)
        assert rates == [1.0] * 16 + [0.5] * 8  # the first epoch sets the best, the second is no better

    def test_an_endless_trainer_is_refused(self):
        with pytest.raises(UserError, match=r"model\.schedule\.name: 'cosine'"):
            fit(ScheduleConfig(name="cosine"), max_epochs=-1)


def test_a_config_survives_plain_values():
    config = ScheduleConfig(name="step", milestones=(0.3, 0.6))
    assert ScheduleConfig(**{**asdict(config), "milestones": [0.3, 0.6]}) == config
    assert ScheduleConfig(**{**asdict(ScheduleConfig()), "milestones": [0.5, 0.75]}) == ScheduleConfig()


MISTAKES = [
    (
        {"name": "cosin"},
        "model.schedule.name: 'cosin' is unknown (did you mean 'cosine'?); accepted: constant, cosine,",
    ),
    (
        {"warmup": -0.1},
        "model.schedule.warmup: -0.1 is out of range; accepted: a fraction of the run in [0, 1) or a whole",
    ),
    ({"warmup": 2.5}, "model.schedule.warmup: 2.5 is out of range"),
    ({"warmup": -1}, "model.schedule.warmup: -1 is out of range"),
    ({"warmup": math.inf}, "model.schedule.warmup: inf is out of range"),
    ({"name": "onecycle", "warmup": 0.1}, "model.schedule.warmup: 0.1 has no effect on 'onecycle'; it belongs to"),
    (
        {"name": "plateau", "warmup": 5},
        "model.schedule.warmup: 5 has no effect on 'plateau'; it belongs to constant, cos",
    ),
    ({"name": "cosine", "final_factor": 1.5}, "model.schedule.final_factor: 1.5 is out of range"),
    (
        {"name": "cosine", "gamma": 0.5},
        "model.schedule.gamma: 0.5 has no effect on 'cosine'; it belongs to step, plateau",
    ),
    ({"name": "onecycle", "peak": 1.0}, "model.schedule.peak: 1.0 is out of range"),
    ({"name": "onecycle", "start_factor": -1.0}, "model.schedule.start_factor: -1.0 is out of range"),
    (
        {"name": "step", "milestones": (0.5, 0.5)},
        "model.schedule.milestones: (0.5, 0.5) is out of range; accepted: incr",
    ),
    ({"name": "step", "milestones": (30.0, 60.0)}, "model.schedule.milestones: (30.0, 60.0) is out of range"),
    ({"name": "step", "gamma": 1.0}, "model.schedule.gamma: 1.0 is out of range; accepted: a number in (0, 1)"),
    ({"name": "plateau", "patience": -1}, "model.schedule.patience: -1 is out of range; accepted: an integer >= 0"),
]


@pytest.mark.parametrize(("settings", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_mistakes_name_the_key_and_what_would_do(settings: dict, message: str):
    with pytest.raises(UserError) as error:
        ScheduleConfig(**settings)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
