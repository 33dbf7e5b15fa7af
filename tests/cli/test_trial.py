from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch

from mlp_lab.cli.trial import TrialBuilder, build_backend
from mlp_lab.errors import UserError
from mlp_lab.sweep.population import Together
from mlp_lab.sweep.serial import Alone
from mlp_lab.sweep.settings import SweepSettings
from tests.cli.conftest import write_config, write_table

SPACE = {"model.width": {"type": "int", "low": 4, "high": 16}}


@pytest.fixture
def builder(here: Path) -> TrialBuilder:
    write_table(here / "table.csv")
    write_config(here / "config.yaml")
    return TrialBuilder(["--config", "config.yaml", "--seed_everything", "5"])


def test_the_base_is_known(builder: TrialBuilder) -> None:
    assert builder.depth == 1
    assert builder.metrics[:2] == ["val/loss", "val/accuracy"]
    assert builder.config["data"]["init_args"]["seed"] == 5  # every trial has the same rows to validate on
    assert Path(builder.config["data"]["init_args"]["path"]).is_absolute()


def test_a_trial_has_its_settings_and_its_seed(builder: TrialBuilder) -> None:
    settings = {"model.depth": 2, "model.width": [8, 4], "model.optimizer.lr": 0.5, "trainer.max_epochs": 7}
    run, again, other = (builder.build(settings, seed) for seed in (1, 1, 2))
    assert run.module.model.widths == [8, 4] or tuple(run.module.model.widths) == (8, 4)
    assert run.module.optimizer_config.lr == 0.5
    assert run.trainer["max_epochs"] == 7
    first, same, apart = (torch.cat([p.flatten() for p in one.module.parameters()]) for one in (run, again, other))
    assert torch.equal(first, same)
    assert not torch.equal(first, apart)
    assert run.data is other.data


def test_data_settings_make_data_of_their_own(builder: TrialBuilder) -> None:
    run, other = builder.build({}, 0), builder.build({"data.batch_size": 4}, 0)
    assert (run.data.batch_size, other.data.batch_size) == (8, 4)
    assert run.data is builder.data


def test_data_of_a_trial_is_not_described_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(here / "table.csv")
    config = write_config(here / "config.yaml")
    config.write_text(config.read_text().replace("verbose: false", "verbose: true"))
    builder = TrialBuilder(["--config", "config.yaml"])
    for rows in (20, 30):
        assert builder.build({"data.train_rows": rows}, 0).data.part("train").rows == rows
    assert capsys.readouterr().out.count("feature columns") == 1


def test_batch_of_a_trial_is_at_most_the_training_rows(builder: TrialBuilder) -> None:
    builder.check({"data.batch_size": 1000})
    assert builder.build({"data.batch_size": 1000}, 0).data.train_batch_size == 48


def test_a_trial_can_be_trained(builder: TrialBuilder) -> None:
    run = builder.build({"model.width": 4}, 0)
    trainer = L.Trainer(**run.trainer)
    trainer.fit(run.module, run.data)
    assert trainer.global_step > 0


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"model.dept": 3}, "model.dept: no such key; did you mean model.depth?"),
        ({"model.depth": "deep"}, "model.depth: 'deep' is not accepted; use an integer"),
        ({"model.activation": "rellu"}, "model.activation: 'rellu' is unknown (did you mean 'relu'?)"),
        ({"model.depth": 2, "model.width": [8]}, "width"),
        ({"trainer.gradient_clip_val": -1.0}, "trainer.gradient_clip_val: -1 is negative"),
    ],
)
def test_settings_that_do_not_fit(builder: TrialBuilder, settings: dict[str, object], line: str) -> None:
    with pytest.raises(UserError) as caught:
        builder.check(settings)
    assert line in str(caught.value).splitlines()[0]


@pytest.mark.parametrize(
    ("settings", "quick"),
    [
        ({"model.depth": 3, "model.width": 9, "model.optimizer.lr": 0.01}, True),
        ({"model.width": [8, 4], "model.optimizer.betas": [0.9, 0.99]}, True),
        ({"model.activation": "gelu", "model.residual": True, "model.schedule.name": "cosine"}, True),
        ({"trainer.max_epochs": 7, "trainer.precision": "16", "trainer.gradient_clip_val": 1}, True),
        ({"diagnostics.groups": [], "early_stopping.monitor": "val/accuracy"}, True),
        ({"model.activation": "null"}, True),
        ({"model.optimizer.lr": -1.0}, True),
        ({"data.batch_size": 4, "model.depth": 3}, False),
        ({"trainer.logger": False}, False),
        ({"model.optimizer": {"name": "sgd"}}, False),
        ({"model.depth": 2.0}, False),
        ({"model.max_norm": None}, False),
        ({"trainer.max_epoch": 3}, False),
    ],
)
def test_the_quick_parse_is_the_whole_one(
    settings: dict[str, object], quick: bool, builder: TrialBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[object] = []
    base = str(builder._parsed)
    upon_base = builder._parse_upon_base
    monkeypatch.setattr(builder, "_parse_upon_base", lambda words: parsed.append(upon_base(words)) or parsed[-1])
    first = attempt(builder, settings)
    assert any(parsed) == quick
    monkeypatch.setattr(builder, "_parse_upon_base", lambda words: None)
    assert attempt(builder, settings) == first
    assert str(builder._parsed) == base  # nothing was written into it


def attempt(builder: TrialBuilder, settings: dict[str, object]) -> str:
    try:
        return str(builder.parse(settings))
    except UserError as error:
        return f"error: {error}"


def test_backends_by_name(builder: TrialBuilder) -> None:
    def backend(**changes: object) -> object:
        settings = SweepSettings.read({"base": "x", "trials": 1, "space": SPACE, **changes})
        return build_backend(settings, builder, Path("runs"))

    assert isinstance(backend(), Together)
    assert type(backend(backend="serial")) is Alone
    assert type(backend(population=1)) is Alone
