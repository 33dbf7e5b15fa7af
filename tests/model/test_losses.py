"""Every loss against NumPy, scikit-learn and finite differences, in float64."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from sklearn.metrics import brier_score_loss, log_loss

from mlp_lab.data.spec import TASK_NAMES
from mlp_lab.model.losses import LOSSES

B, C = 7, 4


def sample(task: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(B, 1 if task == "binary" else C, generator=generator, dtype=torch.float64) * 2
    if task == "regression":
        return logits, torch.randn(B, C, generator=generator, dtype=torch.float64)
    if task == "multilabel":
        return logits, torch.randint(2, (B, C), generator=generator).double()
    return logits, torch.randint(2 if task == "binary" else C, (B,), generator=generator)


def one_hot(target: np.ndarray, smoothing: float) -> np.ndarray:
    return np.eye(C)[target] * (1 - smoothing) + smoothing / C


def smooth(target: np.ndarray, smoothing: float) -> np.ndarray:
    return target * (1 - smoothing) + smoothing / 2


def log_likelihood(logits: np.ndarray, y: np.ndarray, weight: float = 1.0) -> np.ndarray:
    return (-weight * y * np.log(expit(logits)) - (1 - y) * np.log(expit(-logits))).mean(1)


REFERENCES = {
    ("mse", "regression"): lambda z, y: ((z - y) ** 2).mean(1),
    ("mae", "regression"): lambda z, y: np.abs(z - y).mean(1),
    ("huber", "regression"): lambda z, y: np.where(np.abs(z - y) <= 1, (z - y) ** 2 / 2, np.abs(z - y) - 0.5).mean(1),
    ("bce", "binary"): lambda z, y, label_smoothing=0.0, pos_weight=1.0: log_likelihood(
        z, smooth(y[:, None], label_smoothing), pos_weight
    ),
    ("bce", "multilabel"): lambda z, y, label_smoothing=0.0, pos_weight=1.0: log_likelihood(
        z, smooth(y, label_smoothing), pos_weight
    ),
    ("cross_entropy", "multiclass"): lambda z, y, label_smoothing=0.0: (
        -(one_hot(y, label_smoothing) * np.log(softmax(z, axis=1))).sum(1)
    ),
    ("brier", "binary"): lambda z, y, label_smoothing=0.0: ((expit(z) - smooth(y[:, None], label_smoothing)) ** 2).mean(
        1
    ),
    ("brier", "multilabel"): lambda z, y, label_smoothing=0.0: ((expit(z) - smooth(y, label_smoothing)) ** 2).mean(1),
    ("brier", "multiclass"): lambda z, y, label_smoothing=0.0: (
        (softmax(z, axis=1) - one_hot(y, label_smoothing)) ** 2
    ).sum(1),
}
VALUES = {"label_smoothing": 0.3, "pos_weight": 2.5}
CASES = [
    (name, task, options)
    for name, task in REFERENCES
    for options in [
        {},
        *({key: VALUES[key]} for key in LOSSES[name].options),
        {k: VALUES[k] for k in LOSSES[name].options},
    ]
]


def test_the_references_cover_the_registry():
    assert set(REFERENCES) == {(name, task) for name, loss in LOSSES.items() for task in loss.tasks}
    assert {task for _, task in REFERENCES} == set(TASK_NAMES)
    assert all(loss.name == name for name, loss in LOSSES.items())


@pytest.mark.parametrize(("name", "task", "options"), CASES)
def test_value_per_sample(name, task, options):
    logits, target = sample(task)
    losses = LOSSES[name].function(logits, target, **options)
    assert losses.shape == (B,)
    np.testing.assert_allclose(losses, REFERENCES[name, task](logits.numpy(), target.numpy(), **options), rtol=1e-12)


@pytest.mark.parametrize(("name", "task", "options"), CASES)
def test_gradient_by_finite_differences(name, task, options):
    logits, target = sample(task)  # every error keeps 0.06 from the kinks of mae and huber
    function = LOSSES[name].function
    assert torch.autograd.gradcheck(lambda z: function(z, target, **options), (logits.requires_grad_(),))


def test_means_are_what_scikit_learn_reports():
    logits, target = sample("multiclass")
    p = logits.softmax(1).numpy()
    expected = log_loss(target, p, labels=range(C))
    assert LOSSES["cross_entropy"].function(logits, target).mean().item() == pytest.approx(expected, rel=1e-12)
    expected = brier_score_loss(target, p, labels=range(C))
    assert LOSSES["brier"].function(logits, target).mean().item() == pytest.approx(expected, rel=1e-12)
    logits, target = sample("binary")
    p = logits.sigmoid().flatten().numpy()
    assert LOSSES["bce"].function(logits, target).mean().item() == pytest.approx(log_loss(target, p), rel=1e-12)
    assert LOSSES["brier"].function(logits, target).mean().item() == pytest.approx(brier_score_loss(target, p))


def test_certain_and_wrong_stays_finite():
    """log p is computed from logits, so that p = 0 in float64 costs its logit and not infinity."""
    logits, target = torch.tensor([[-2000.0]]), torch.tensor([1])
    assert LOSSES["bce"].function(logits, target).item() == 2000.0
    logits, target = torch.tensor([[2000.0, 0.0]]), torch.tensor([1])
    assert LOSSES["cross_entropy"].function(logits, target).item() == 2000.0


def test_brier_gradient_vanishes_where_cross_entropy_pushes_hardest():
    gradients = {}
    for name in ("brier", "bce"):
        logits = torch.tensor([[-20.0]], requires_grad=True)
        LOSSES[name].function(logits, torch.tensor([1])).sum().backward()
        gradients[name] = abs(logits.grad.item())
    assert gradients["bce"] == pytest.approx(1)
    assert gradients["brier"] == pytest.approx(2 * math.exp(-20), rel=1e-3)
