"""A step as a graph. Without a GPU: with a tape that stands in for the graph, and on a device that holds no data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import mlp_lab.population.graph as graph
import mlp_lab.population.masks as masks
import mlp_lab.population.steps as steps
import mlp_lab.training.burst as burst
from mlp_lab.data.loader import Batch
from mlp_lab.population.diagnosis import PopulationDiagnostics
from mlp_lab.population.module import PopulationModule
from mlp_lab.population.stopping import MemberStop
from tests.population import tape
from tests.population.fits import alone, digits, distance, fit
from tests.population.test_steps import CLIP, SavesAt, equal, exploding, mixed, stopping

BATCH = (torch.randn(4, 3), None, torch.tensor([0, 1, 2, 0]))


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine ends no burst early."""
    monkeypatch.setattr(burst, "SECONDS", 600.0)


class Counting:
    """Counts what stands in for CUDA."""

    def __init__(self) -> None:
        self.captures = self.replays = self.eager = 0


@pytest.fixture
def taped(monkeypatch: pytest.MonkeyPatch) -> Counting:
    """Populations take the path of CUDA, and their graphs are tapes."""
    count = Counting()

    def capture(step: Any, batch: Any) -> Any:
        count.captures += 1
        replay = tape.capture(step, batch)

        def counted() -> None:
            count.replays += 1
            replay()

        return counted

    def eager(step: Any, batch: Any) -> None:
        count.eager += 1
        step(batch)

    monkeypatch.setattr(graph, "capture", capture)
    monkeypatch.setattr(graph, "on_side_stream", eager)
    monkeypatch.setattr(steps, "can_capture", lambda device: True)
    monkeypatch.setattr(masks, "by_numpy", lambda device: False)
    monkeypatch.setattr(PopulationModule, "deferred", True)
    return count


CASES: dict[str, Any] = {
    "all rules, dropout, schedules with warm-up, max-norm": lambda: PopulationModule(mixed()),
    "clipping": lambda: PopulationModule(mixed(), clip=CLIP),
    "batch norm": lambda: PopulationModule(mixed(norm="batch")),
    "layer norm and input dropout": lambda: PopulationModule(mixed(norm="layer", input_dropout=0.2)),
    "early stops": lambda: PopulationModule(stopping(), stop=MemberStop(patience=1)),
    "a member that explodes": lambda: PopulationModule(exploding()),
}


@pytest.mark.parametrize("build", CASES.values(), ids=CASES.keys())
def test_replays_are_the_steps(build: Any, taped: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    early = build is CASES["early stops"]
    with_graph, without = build(), build()
    trainer = fit(with_graph, epochs=8 if early else 2, log_every_n_steps=1000)
    assert taped.replays + taped.eager == trainer.global_step - trainer.current_epoch  # one with hooks per epoch
    assert taped.captures == 1 + sum(len(with_graph.numbers) < 6 for _ in range(early))
    assert taped.eager == graph.WARM_UP * taped.captures
    monkeypatch.setattr(steps, "can_capture", lambda device: False)
    fit(without, epochs=8 if early else 2, log_every_n_steps=1000)
    assert all(equal(with_graph, without))
    assert with_graph.failed == without.failed
    assert with_graph.scores == without.scores


def test_bfloat16_is_captured(taped: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    with_graph, without = PopulationModule(mixed()), PopulationModule(mixed())
    fit(with_graph, precision="bf16-mixed", log_every_n_steps=1000)
    assert taped.replays > 0
    monkeypatch.setattr(steps, "can_capture", lambda device: False)
    fit(without, precision="bf16-mixed", log_every_n_steps=1000)
    assert all(equal(with_graph, without))


def test_max_steps_and_measured_steps_are_exact(taped: Counting) -> None:
    population = PopulationModule(mixed())
    diagnostics = PopulationDiagnostics(every_n_steps=9)
    trainer = fit(population, epochs=-1, max_steps=22, callbacks=[diagnostics])
    assert trainer.global_step == 22
    assert taped.replays + taped.eager == 22 - 10 - 3  # steps 1 to 10, 15, 18 and 22 have hooks
    measured = [one.step for one in diagnostics.members[0].diagnostics.evidence.steps]
    assert measured == [*range(1, 11), 18]


def test_a_graph_goes_on_within_an_epoch(taped: Counting, tmp_path: Path) -> None:
    whole, first, second = (PopulationModule(exploding()) for _ in range(3))
    fit(whole, log_every_n_steps=1000)
    fit(first, callbacks=[SavesAt(20, tmp_path / "cut.ckpt")], log_every_n_steps=1000)
    fit(second, ckpt_path=str(tmp_path / "cut.ckpt"), log_every_n_steps=1000)
    assert all(equal(whole, second))
    assert whole.failed == second.failed


def test_what_no_graph_can_repeat_is_not_captured(taped: Counting) -> None:
    fit(PopulationModule(mixed(mixup=0.3)))
    assert taped.eager == taped.captures == 0


def test_where_nothing_can_be_captured_it_goes_on_with_a_warning(
    taped: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(step: Any, batch: Any) -> Any:
        step(batch)
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(graph, "capture", refuse)
    steps_taken: list[Any] = []
    one = graph.StepGraph(steps_taken.append)
    batch = Batch(*BATCH, 4)  # type: ignore[arg-type]
    assert [one.take(batch) for _ in range(graph.WARM_UP)] == [True] * graph.WARM_UP
    with pytest.warns(UserWarning, match="kernel by kernel, for operation not permitted when stream is capturing"):
        assert not one.take(batch)
    assert not one.take(batch)  # told once


def test_a_batch_of_another_shape_is_left_alone(taped: Counting) -> None:
    seen: list[Tensor] = []
    one = graph.StepGraph(lambda batch: seen.append(batch.numeric.clone()))
    first, second = Batch(*BATCH, 4), Batch(BATCH[0] + 1, None, BATCH[2], 4)  # type: ignore[arg-type]
    assert one.take(first)
    assert one.take(second)
    assert not one.take(Batch(BATCH[0][:3], None, BATCH[2][:3], 3))  # type: ignore[index]
    assert [torch.equal(a, b) for a, b in zip(seen, (first.numeric, second.numeric), strict=True)] == [True, True]


# ---- a device without data: `meta` is not the CPU, so that the path of accelerators is taken -------------------------


class NothingFromTheHost(TorchDispatchMode):
    """Fails where a value is read, or where data of the host meets the device's."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in tape.FORBIDDEN, func
        out = func(*args, **(kwargs or {}))
        devices = {one.device.type for one in tape.tensors((args, kwargs, out))}
        assert devices <= {"meta"}, (func, devices)
        return out


@pytest.fixture
def no_host_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A tensor of data of the host has no kernel on `meta` that could be seen: it fails here."""

    def refused(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("data come from the host")

    for name in ("tensor", "as_tensor", "from_numpy", "arange"):
        monkeypatch.setattr(torch, name, refused)
    with NothingFromTheHost():
        yield


def on_meta(members: list[Any]) -> tuple[PopulationModule, Batch]:
    """Returns a population that is about to take a step, and a batch."""
    population = PopulationModule(members, clip=[0.5, *[None] * (len(members) - 1)]).to("meta").train()
    optimizer = population.configure_optimizers()
    strategy = SimpleNamespace(optimizers=[optimizer])
    population._trainer = SimpleNamespace(  # type: ignore[assignment]
        strategy=strategy,
        precision_plugin=Precision(),
        estimated_stepping_batches=10,
        global_step=0,
    )
    population._running.sums = population._running.sums.to("meta")
    population._plan()
    part = digits().part("train")
    assert part.target is not None
    return population, Batch(part.numeric[:32].to("meta"), None, part.target[:32].to("meta"), 32)


@pytest.mark.parametrize(
    "members",
    [
        mixed(),
        mixed(norm="batch"),
        mixed(norm="rms", input_dropout=0.2),
        [
            alone(number, activation=name, depth=2, width=9)
            for number, name in enumerate(["prelu", "relu", "prelu", "mish"])
        ],
        [alone(number, loss="brier", dropout=0.2) for number in range(3)],
        [alone(number, dropout=0.2, activation="selu") for number in range(3)],
    ],
    ids=["mixed", "batch norm", "rms norm", "prelu", "brier", "alpha dropout"],
)
def test_a_step_neither_waits_for_the_device_nor_copies_to_it(
    members: list[Any], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)  # which knows nothing of `meta`
    population, batch = on_meta(members)
    assert population.stack_optimizer.joint
    population.stack_optimizer.sync()
    population._whole_step(batch)  # what is made once
    request.getfixturevalue("no_host_data")
    population._whole_step(batch)
    population._whole_step(batch)


def test_the_check_finds_what_it_is_for(no_host_data: None) -> None:
    x = torch.zeros(3, device="meta")
    for wrong in (
        lambda: torch.tensor([1.0]),
        lambda: x[[1, 0]],
        lambda: x + torch.zeros(3),
        lambda: bool(x.sum() > 0),
    ):
        with pytest.raises((AssertionError, RuntimeError)):
            wrong()


# ---- on a GPU --------------------------------------------------------------------------------------------------------


def on_gpu(build: Any, *, captured: bool, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[Any, Any, int]:
    """Returns a population trained on the GPU, its trainer, and how many of its steps were graphs."""
    replays = 0
    capture = graph.capture

    def counted(step: Any, batch: Any) -> Any:
        replay = capture(step, batch)

        def one() -> None:
            nonlocal replays
            replays += 1
            replay()

        return one

    with monkeypatch.context() as patch:
        patch.setattr(graph, "capture", counted)
        patch.setattr(steps, "can_capture", lambda device: captured)
        population = build()
        trainer = fit(population, accelerator="gpu", devices=1, log_every_n_steps=1000, **settings)
    population.cpu()
    return population, trainer, replays


@pytest.mark.gpu
@pytest.mark.parametrize("build", CASES.values(), ids=CASES.keys())
def test_on_a_gpu_replays_are_the_steps(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = 8 if build is CASES["early stops"] else 2
    with_graph, trainer, replays = on_gpu(build, captured=True, monkeypatch=monkeypatch, epochs=epochs)
    without, other, none = on_gpu(build, captured=False, monkeypatch=monkeypatch, epochs=epochs)
    assert replays > trainer.global_step / 2
    assert none == 0
    assert trainer.global_step == other.global_step
    assert with_graph.failed == without.failed
    assert list(with_graph.finished) == list(without.finished)
    for number, (one, two) in enumerate(zip(with_graph.networks(), without.networks(), strict=True)):
        wild = epochs == 8 and number in (1, 3, 4)  # a rate far too high amplifies rounding
        assert wild or number in without.failed or distance(one.cpu(), two.cpu()) < 1e-9, number


@pytest.mark.gpu
def test_on_a_gpu_a_population_is_that_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout, clipping, schedules and all three rules, in float64."""
    build = CASES["clipping"]
    population, trainer, replays = on_gpu(build, captured=True, monkeypatch=monkeypatch)
    here = build()
    assert fit(here, log_every_n_steps=1000).global_step == trainer.global_step
    assert replays > 0
    for number, (one, two) in enumerate(zip(population.networks(), here.networks(), strict=True)):
        assert distance(one.cpu(), two) < 1e-9, number


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_on_a_gpu_steps_are_exact_in_every_precision(precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    build = CASES["all rules, dropout, schedules with warm-up, max-norm"]
    settings: dict[str, Any] = {"precision": precision, "max_steps": 22, "epochs": -1}
    population, trainer, replays = on_gpu(build, captured=True, monkeypatch=monkeypatch, **settings)
    assert trainer.global_step == 22
    assert replays == 22 - 2 - graph.WARM_UP
    assert all(bool(value.isfinite().all()) for value in population.state_dict().values())
