"""Cures, as flags to paste behind the command; each is computed from the run's own settings and measurements.

A cure changes as little as it can: what is asked for is what the evidence speaks of, and no more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from mlp_lab import flags
from mlp_lab.diagnostics.evidence import Facts
from mlp_lab.model.activations import ACTIVATIONS, find
from mlp_lab.model.criticality import critical_point

TARGET_RATIO = 1e-2
"""First-step ‖ΔW‖/‖W‖ that a new learning rate aims at. 1e-3 is a good average over a whole run (Karpathy, CS231n), but
steps begin larger: in 75 healthy runs of five optimizers the first step's largest ratio had a median of 0.016."""
LARGEST_RATIO = 0.1
"""First-step ratio that no layer should exceed for a fix: in those 75 runs the largest was 0.16."""
USUAL_RATE = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3, "rmsprop": 1e-3, "muon": 0.02}
"""Rates that each optimizer is commonly begun with: those of its paper or of its reference code; no upper bounds."""
DEEP = 5  # hidden layers from which a smooth activation needs its critical initialisation, not just a good one


def flag(key: str, value: object) -> str:
    """Returns one flag, a number with six digits.

    >>> flag("model.optimizer.lr", 0.003), flag("model.dropout", 0.1 + 0.2)
    ('--model.optimizer.lr 0.003', '--model.dropout 0.3')
    """
    return flags.flag(key, float(f"{value:.6g}") if isinstance(value, float) else value)


def rounded(value: float) -> float:
    """Rounds to one significant digit of 1, 2, 3 or 5: a rate that a person would write.

    >>> [rounded(value) for value in (0.00123, 0.0027, 0.44, 8.0)]
    [0.001, 0.003, 0.5, 10.0]
    """
    power = 10.0 ** math.floor(math.log10(value))
    nearest = min((1, 2, 3, 5, 10), key=lambda digit: abs(math.log10(value / power / digit)))
    return float(f"{nearest * power:.1e}")


def learning_rate(facts: Facts, factor: float) -> list[str]:
    """Returns the flag that multiplies the learning rate, or nothing where the rate is unknown."""
    if not (facts.lr > 0 and factor > 0 and math.isfinite(factor)):
        return []
    return [flag("model.optimizer.lr", rounded(facts.lr * factor))]


def safe_rate(facts: Facts, ratio: float = 0.0) -> list[str]:
    """Returns the flag for a rate that does not overflow: a tenth, or less where a tenth is still far too much.

    Less by what the first step's ‖ΔW‖/‖W‖ asks for, if it was measured; and never above the optimizer's usual rate,
    which momentum μ divides by 1 / (1 - μ), the length that it gives to steps in the long run.

    >>> safe_rate(Facts(optimizer="sgd", lr=1e6, momentum=0.9)), safe_rate(Facts(optimizer="adam", lr=0.005))
    (['--model.optimizer.lr 0.01'], ['--model.optimizer.lr 0.0005'])
    """
    factor = min(0.1, TARGET_RATIO / ratio if ratio > 0 else 0.1)
    usual = USUAL_RATE.get(facts.optimizer, math.inf)
    if facts.optimizer == "sgd":
        usual *= 1 - facts.momentum
    return learning_rate(facts, min(factor, usual / facts.lr)) if facts.lr > 0 else []


def best_init(facts: Facts) -> str:
    """Returns the initialisation that carries a signal through this activation at this depth."""
    record = find(facts.activation)
    if record is None:
        return "he"
    piecewise_linear = record.init == "he" and not record.saturates and facts.activation.endswith("relu")
    if facts.depth > DEEP and not piecewise_linear and facts.activation != "selu":
        theory = ACTIVATIONS["tanh"] if facts.activation == "sigmoid" else record
        if critical_point(theory) is not None:
            return "critical"
    return record.init


def initialisation(facts: Facts) -> list[str]:
    """Returns the flag for weights of the right scale."""
    return [flag("model.init", best_init(facts))]


def input_scaling(facts: Facts, ratios: Sequence[float] = ()) -> list[str]:
    """Returns the flags that bring inputs to unit scale, or nothing for a user's own data.

    The first layer's plain gradients are as large as its inputs, so where the other layers crawl, the first has carried
    the run, and scaling takes that away. The rate then rises by what the slowest of them asks for, 2 to 10 times, as
    long as the fastest stays below `LARGEST_RATIO`.

    Args:
        facts: the run.
        ratios: the first step's ‖ΔW‖/‖W‖ of the layers behind the first, those that began as 0 left out.
    """
    if facts.data not in ("MNISTDataModule", "TabularDataModule"):
        return []
    scaled = flag("data.normalize", True) if facts.data == "MNISTDataModule" else flag("data.scaling", "standard")
    if facts.optimizer != "sgd" or facts.input_rms < 1 or not ratios or not 0 < min(ratios) < TARGET_RATIO / 2:
        return [scaled]
    factor = min(TARGET_RATIO / min(ratios), LARGEST_RATIO / max(ratios), 10.0)
    return [scaled, *(learning_rate(facts, factor) if factor >= 2 else [])]


def class_balance(facts: Facts, ratio: float) -> list[str]:
    """Returns the flags that let every class count alike, with faster steps where none was large.

    With balanced weights the rows of the rare classes carry the gradient, and they are few: a rate of plain gradients
    that just sufficed for the frequent class is too slow for them. It rises up to 10 times, as long as no step exceeds
    `LARGEST_RATIO`.

    Args:
        facts: the run.
        ratio: the largest ‖ΔW‖/‖W‖ of any layer at any measurement; 0 where unknown.
    """
    slow = facts.optimizer == "sgd" and 0 < ratio < TARGET_RATIO
    rate = learning_rate(facts, min(LARGEST_RATIO / ratio, 10.0)) if slow else []
    return [flag("model.class_weights", "balanced"), *rate]


def other_activation(facts: Facts) -> list[str]:
    """Returns the flags for an activation whose derivative does not shrink gradients, with its initialisation."""
    return [flag("model.activation", "relu"), flag("model.init", "he")]


def signal_flow(facts: Facts, *, weights: bool, activation: bool) -> list[str]:
    """Returns what lets a gradient through.

    Args:
        facts: the run.
        weights: whether the weights shrink (or grow) it.
        activation: whether the activation's derivative does.
    """
    record = find(facts.activation)
    if activation and record is not None and record.saturates:
        return other_activation(facts)
    if weights and facts.init != best_init(facts):
        return initialisation(facts)
    if facts.norm == "none":
        return [flag("model.norm", "layer")]  # Ba et al. (2016)
    return [flag("model.residual", True)]  # He et al. (2016)


def revival(facts: Facts) -> list[str]:
    """Returns what keeps units alive: a bias that is not negative, else a slope on both sides and smaller steps."""
    if facts.bias is not None and facts.bias < 0:
        return [flag("model.bias", 0)]
    if facts.activation == "leaky_relu":
        return learning_rate(facts, 0.1)
    return [flag("model.activation", "leaky_relu"), flag("model.init", "he"), *learning_rate(facts, 0.1)]


def more_capacity(facts: Facts) -> list[str]:
    """Returns a hidden layer's width that is no bottleneck: a power of two, several units per class."""
    width = max(64, 2 ** math.ceil(math.log2(max(4 * facts.classes, 1))), *(4 * one for one in facts.widths[:1]))
    return [flag("model.depth", max(facts.depth, 1)), flag("model.width", width)]


def regularisation(facts: Facts) -> list[str]:
    """Returns dropout (Srivastava et al. 2014), or more of it, and weight decay that counts within the run.

    Decoupled decay shrinks a weight by exp(-lr · decay · steps) over a run (Loshchilov & Hutter 2019): to 1/e is aimed
    at, by a decay of 3 at most. As an L2 penalty in the loss, no more than 0.01.
    """
    flags = [flag("model.dropout", 0.5 if facts.dropout < 0.5 else min(0.8, facts.dropout + 0.15))]
    if facts.optimizer == "adam":
        flags.append(flag("model.optimizer.name", "adamw"))
    if facts.lr > 0 and facts.planned_steps:
        most = 3.0 if facts.optimizer in ("adam", "adamw", "muon") else 0.01
        decay = rounded(1 / (facts.lr * facts.planned_steps))
        flags.append(flag("model.optimizer.weight_decay", min(max(decay, 2 * facts.weight_decay, 0.001), most)))
    return flags


def without(facts: Facts, names: Iterable[str]) -> list[str]:
    """Returns flags that turn these settings of the run off."""
    off = {"dropout": "model.dropout", "weight_decay": "model.optimizer.weight_decay", "mixup": "model.mixup"}
    return [flag(off[name], 0) for name in names]
