"""Every optimizer against PyTorch's own in float64, its parameter groups, its state on resume, and its user errors."""

import io
from dataclasses import asdict
from itertools import pairwise

import pytest
import torch
from torch import nn

from mlp_lab.errors import UserError
from mlp_lab.model.mlp import MLP
from mlp_lab.training.optimizers import OPTIMIZERS, OptimizerConfig, build_optimizer, is_decayed, parameter_groups


class Block(nn.Module):
    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(fan_in, fan_out)
        self.norm = nn.LayerNorm(fan_out)
        self.activation = nn.PReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.norm(self.linear(x)))


class Net(nn.Module):
    """The names of `MLP`'s parameters, in float64."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        widths = [4, *[6] * depth]
        self.encoder = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(Block(*pair) for pair in pairwise(widths))
        self.head = nn.Linear(widths[-1], 3)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.encoder(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def net(depth: int = 2) -> Net:
    torch.manual_seed(0)
    return Net(depth)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 4, dtype=torch.float64, generator=generator)
        optimizer.zero_grad()
        model(x).sin().square().mean().backward()
        optimizer.step()


def assert_equal_weights(one: nn.Module, other: nn.Module, tolerance: float = 0.0) -> None:
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


CASES = {
    "sgd": ({"lr": 0.1}, torch.optim.SGD, {"lr": 0.1}),
    "sgd with momentum": (
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    ),
    "sgd with nesterov": (
        {"lr": 0.1, "momentum": 0.9, "nesterov": True},
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    ),
    "adam": (
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1},
        torch.optim.Adam,
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1},
    ),
    "adamw": ({"lr": 0.01, "weight_decay": 0.1}, torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "rmsprop": (
        {"lr": 0.01, "alpha": 0.9, "eps": 1e-6, "momentum": 0.5, "weight_decay": 0.1},
        torch.optim.RMSprop,
        {"lr": 0.01, "alpha": 0.9, "eps": 1e-6, "momentum": 0.5, "weight_decay": 0.1},
    ),
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_steps_are_pytorchs(case: str, fused: bool):
    settings, reference, arguments = CASES[case]
    config = OptimizerConfig(name=case.split()[0], decay_bias_and_norm=True, **settings)
    ours, theirs = net(), net()
    train(ours, build_optimizer(ours, config, fused=fused), range(20))
    train(theirs, reference(theirs.parameters(), foreach=False, **arguments), range(20))
    assert_equal_weights(ours, theirs, tolerance=1e-12)  # float64; the fused kernels order operations differently


def test_muon_is_pytorchs_muon_on_hidden_matrices_and_adamw_elsewhere():
    ours, theirs = net().float(), net().float()
    start = [parameter.detach().clone() for parameter in ours.parameters()]
    optimizer = build_optimizer(ours, OptimizerConfig(name="muon", lr=0.02, weight_decay=0.1))
    hidden = [block.linear.weight for block in theirs.blocks]
    rest = [p for p in theirs.parameters() if all(p is not weight for weight in hidden)]
    references = (
        torch.optim.Muon(hidden, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [
                {"params": [p for p in rest if p.ndim > 1], "weight_decay": 0.1},
                {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=0.02,
        ),
    )
    for step in range(5):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        for model, optimizers in ((ours, (optimizer,)), (theirs, references)):
            model.zero_grad()
            model(x).sin().square().mean().backward()
            for each in optimizers:
                each.step()
    for mine, reference, before in zip(ours.parameters(), theirs.parameters(), start, strict=True):
        moved = torch.linalg.vector_norm(reference - before)
        assert moved > 0
        assert torch.linalg.vector_norm(mine - reference) < 0.03 * moved  # PyTorch's Muon iterates in bfloat16


def names(groups: list[dict], model: nn.Module) -> list[tuple[str, float, set[str]]]:
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    return [(group["rule"], group["weight_decay"], {name_of[p] for p in group["params"]}) for group in groups]


def test_decay_takes_matrices_and_leaves_biases_norms_and_slopes():
    model = net(depth=1)
    decayed, rest = names(parameter_groups(model, OptimizerConfig(name="adamw", weight_decay=0.1)), model)
    assert decayed == ("adamw", 0.1, {"encoder.weight", "blocks.0.linear.weight", "head.weight"})
    assert rest[:2] == ("adamw", 0.0)
    assert rest[2] == {name for name, _ in model.named_parameters()} - decayed[2]


def test_a_matrix_of_biases_is_not_decayed():
    assert not is_decayed("encoder.bias", torch.zeros(3, 4))  # one bias vector per feature


def test_one_group_serves_where_nothing_or_all_decays():
    model = net()
    assert len(parameter_groups(model, OptimizerConfig())) == 1
    assert len(parameter_groups(model, OptimizerConfig(weight_decay=0.1, decay_bias_and_norm=True))) == 1


def test_muon_takes_hidden_matrices_only_whatever_holds_the_model():
    model = nn.ModuleDict({"mlp": net()})
    groups = {rule: members for rule, _, members in names(parameter_groups(model, OptimizerConfig(name="muon")), model)}
    assert groups["muon"] == {"mlp.blocks.0.linear.weight", "mlp.blocks.1.linear.weight"}
    assert groups["adamw"] == {name for name, _ in model.named_parameters()} - groups["muon"]


def test_frozen_parameters_are_left_out():
    model = net()
    model.encoder.requires_grad_(False)
    frozen = {"encoder.weight", "encoder.bias"}
    ((_, _, members),) = names(parameter_groups(model, OptimizerConfig()), model)
    assert members == {name for name, _ in model.named_parameters()} - frozen


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_every_optimizer_learns_and_resumes_bit_identically(name: str, weight_decay: float):
    config = OptimizerConfig(name=name, lr=0.01, weight_decay=weight_decay)
    whole = net()
    x = torch.randn(64, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(99))
    before = whole(x).sin().square().mean().item()
    train(whole, build_optimizer(whole, config), range(20))
    assert whole(x).sin().square().mean().item() < before

    first = net()
    optimizer = build_optimizer(first, config)
    train(first, optimizer, range(10))
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = net()
    second.load_state_dict(saved["model"])
    optimizer = build_optimizer(second, config)
    optimizer.load_state_dict(saved["optimizer"])
    train(second, optimizer, range(10, 20))
    assert_equal_weights(second, whole)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_fused_step_gives_the_same_weights(name: str):
    config = OptimizerConfig(name=name, lr=0.01, weight_decay=0.1)
    fused, plain = net(), net()
    train(fused, build_optimizer(fused, config), range(10))
    train(plain, build_optimizer(plain, config, fused=False), range(10))
    assert_equal_weights(fused, plain, tolerance=1e-12)


def test_loading_a_state_keeps_the_configured_hyperparameters():
    model = net()
    saved = build_optimizer(model, OptimizerConfig(name="adamw", lr=0.5, weight_decay=0.3))
    train(model, saved, range(2))
    config = OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.1, betas=(0.5, 0.6))
    optimizer = build_optimizer(model, config, fused=False)
    optimizer.load_state_dict(saved.state_dict())
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.01]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert all(group["betas"] == (0.5, 0.6) and not group["fused"] for group in optimizer.param_groups)
    for parameter in model.parameters():
        assert torch.equal(optimizer.state[parameter]["exp_avg"], saved.state[parameter]["exp_avg"])


@pytest.mark.parametrize("other", [OptimizerConfig(name="adamw"), OptimizerConfig(name="adam", weight_decay=0.1)])
def test_loading_the_state_of_other_rules_or_groups_is_refused(other: OptimizerConfig):
    saved = build_optimizer(net(), OptimizerConfig(name="adam")).state_dict()
    with pytest.raises(UserError, match=r"^model\.optimizer: the checkpoint's state of \['adam'\] does not fit"):
        build_optimizer(net(), other).load_state_dict(saved)


def test_a_config_survives_plain_values():
    config = OptimizerConfig(name="adamw", betas=(0.8, 0.9))
    assert OptimizerConfig(**{**asdict(config), "betas": [0.8, 0.9]}) == config
    assert OptimizerConfig(**{**asdict(OptimizerConfig(name="sgd")), "betas": [0.9, 0.999]}).name == "sgd"


def test_defaults_of_momentum_belong_to_the_optimizer():
    assert OptimizerConfig(name="sgd").effective_momentum == 0.0
    assert not OptimizerConfig(name="sgd", momentum=0.9).effective_nesterov
    assert OptimizerConfig(name="muon").effective_momentum == 0.95
    assert OptimizerConfig(name="muon").effective_nesterov
    assert not OptimizerConfig(name="muon", momentum=0.0).effective_nesterov


MISTAKES = [
    ({"name": "adma"}, "model.optimizer.name: 'adma' is unknown (did you mean 'adam'?); accepted: sgd, adam, adamw"),
    ({"lr": -1.0}, "model.optimizer.lr: -1.0 is out of range; accepted: a finite number > 0"),
    ({"lr": 0.0}, "model.optimizer.lr: 0.0"),
    ({"lr": float("nan")}, "model.optimizer.lr: nan"),
    ({"lr": float("inf")}, "model.optimizer.lr: inf"),
    ({"weight_decay": -0.1}, "model.optimizer.weight_decay: -0.1 is out of range; accepted: a finite number >= 0"),
    ({"betas": (0.9, 1.0)}, "model.optimizer.betas: (0.9, 1.0) is out of range; accepted: two numbers in [0, 1)"),
    ({"betas": (0.9,)}, "model.optimizer.betas: (0.9,)"),
    ({"eps": 0.0}, "model.optimizer.eps: 0.0"),
    ({"name": "rmsprop", "alpha": 1.0}, "model.optimizer.alpha: 1.0 is out of range; accepted: a number in [0, 1)"),
    ({"name": "sgd", "momentum": 1.0}, "model.optimizer.momentum: 1.0 is out of range"),
    (
        {"name": "sgd", "nesterov": True},
        "model.optimizer.nesterov: True is out of range; accepted: false, or true with",
    ),
    ({"momentum": 0.9}, "model.optimizer.momentum: 0.9 has no effect on 'adam'; it belongs to sgd, rmsprop, muon"),
    ({"name": "sgd", "betas": (0.8, 0.9)}, "model.optimizer.betas: (0.8, 0.9) has no effect on 'sgd'; it belongs to"),
    ({"name": "rmsprop", "nesterov": True}, "model.optimizer.nesterov: True has no effect on 'rmsprop'"),
    ({"alpha": 0.5}, "model.optimizer.alpha: 0.5 has no effect on 'adam'; it belongs to rmsprop"),
]


@pytest.mark.parametrize(("settings", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_mistakes_name_the_key_and_what_would_do(settings: dict, message: str):
    with pytest.raises(UserError) as error:
        OptimizerConfig(**settings)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_muon_needs_hidden_layers():
    with pytest.raises(UserError, match=r"model\.optimizer\.name: 'muon'.*model\.depth is 0"):
        build_optimizer(net(depth=0), OptimizerConfig(name="muon"))


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "muon"])
def test_eps_that_is_zero_in_the_type_of_the_weights_is_refused(name: str) -> None:
    mlp = MLP(4, 2, depth=1, width=3).half()
    with pytest.raises(UserError, match=r"optimizer\.eps: 1e-08 is 0 in float16, .* --model\.optimizer\.eps 1e-4"):
        build_optimizer(mlp, OptimizerConfig(name=name))
    build_optimizer(mlp, OptimizerConfig(name=name, eps=1e-4))
    build_optimizer(mlp.bfloat16(), OptimizerConfig(name=name))
    build_optimizer(mlp.half(), OptimizerConfig(name="sgd"))
