"""Losses, probabilities and metrics as each task combines them, against scikit-learn."""

import copy
import pickle

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from sklearn.utils.class_weight import compute_class_weight

from mlp_lab.data.spec import TASK_NAMES, DataSpec
from mlp_lab.errors import UserError
from mlp_lab.model.losses import LOSSES
from mlp_lab.model.tasks import (
    DEFAULT_LOSS,
    SCORES,
    build_loss,
    metrics,
    probabilities,
    resolve_class_weights,
    resolve_loss,
)

CLASSES = ("a", "b", "c")
SPECS = {
    "regression": DataSpec(task="regression", targets=("y", "z"), target_mean=(5.0, -1.0), target_std=(20.0, 0.1)),
    "binary": DataSpec(task="binary", classes=("no", "yes"), class_counts=(30, 10)),
    "multiclass": DataSpec(task="multiclass", classes=CLASSES, class_counts=(10, 20, 30)),
    "multilabel": DataSpec(task="multilabel", classes=CLASSES, class_counts=(5, 6, 7)),
}
ROWS = 60


def sample(task: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that all lie within [0, 1] in the first rows, where torchmetrics would take them for probabilities."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(ROWS, SPECS[task].out_features, generator=generator)
    logits[:20] = torch.rand(logits[:20].shape, generator=generator)
    if task == "regression":
        return logits, logits + torch.randn(logits.shape, generator=generator)
    if task == "multilabel":
        return logits, (torch.rand(logits.shape, generator=generator) < 0.4).float()
    return logits, torch.randint(len(SPECS[task].classes), (ROWS,), generator=generator)


def expected(task: str, logits: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
    """The same metrics from scikit-learn, on all rows at once."""
    if task == "regression":
        std, mean = np.array(SPECS[task].target_std), np.array(SPECS[task].target_mean)
        y, prediction = target.numpy() * std + mean, logits.numpy() * std + mean
        errors = {"rmse": sk.root_mean_squared_error, "mae": sk.mean_absolute_error, "r2": sk.r2_score}
        return {name: score(y, prediction) for name, score in errors.items()}
    if task == "multiclass":
        classes = logits.argmax(1)
        return {"accuracy": sk.accuracy_score(target, classes), "f1": sk.f1_score(target, classes, average="macro")}
    hits = ((logits > 0) == target.view(logits.shape).bool()).float().mean().item()
    scores = {"accuracy": hits, "auroc": sk.roc_auc_score(target, logits)}
    return scores | ({"auprc": sk.average_precision_score(target, logits)} if task == "binary" else {})


def values(collection) -> dict[str, float]:
    return {name: value.item() for name, value in collection.compute().items()}


@pytest.mark.parametrize("task", TASK_NAMES)
def test_metrics_over_uneven_batches(task):
    logits, target = sample(task)
    scores = metrics(SPECS[task])
    for part in zip(logits.split([7, 1, 12, 40]), target.split([7, 1, 12, 40]), strict=True):
        scores.update(*part)
    assert values(scores) == pytest.approx(expected(task, logits, target), rel=1e-5)  # float32 sums
    assert sorted(values(scores)) == sorted(SCORES[task])
    scores.reset()
    scores.update(logits[:30], target[:30])
    assert values(scores) == pytest.approx(expected(task, logits[:30], target[:30]), rel=1e-5)


@pytest.mark.parametrize("task", TASK_NAMES)
def test_metrics_of_two_processes_merge_exactly(task):
    """Merging states is what torchmetrics does under DDP: each state by its own reduction, here with uneven shares."""
    logits, target = sample(task)
    ranks = [metrics(SPECS[task]) for _ in range(2)]
    ranks[0].update(logits[:13], target[:13])
    ranks[1].update(logits[13:], target[13:])
    merged = {}
    for name, metric in ranks[0].items():
        metric.merge_state(ranks[1][name])
        value = metric.compute()
        merged |= value if isinstance(value, dict) else {name: value}
    assert {name: value.item() for name, value in merged.items()} == pytest.approx(
        expected(task, logits, target), rel=1e-5
    )


@pytest.mark.parametrize("task", TASK_NAMES)
def test_metrics_copy_pickle_and_answer_per_batch(task):
    logits, target = sample(task)
    scores = metrics(SPECS[task])
    per_batch = {name: value.item() for name, value in scores(logits, target).items()}
    assert per_batch == pytest.approx(expected(task, logits, target), rel=1e-5)
    for twin in (copy.deepcopy(scores), pickle.loads(pickle.dumps(scores))):
        assert values(twin) == values(scores)
    assert not scores.state_dict()  # nothing of it belongs into a checkpoint


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_probabilities(task):
    logits, _ = sample(task)
    z = logits.double().numpy()
    by_hand = np.exp(z) / np.exp(z).sum(1, keepdims=True) if task == "multiclass" else 1 / (1 + np.exp(-z))
    np.testing.assert_allclose(probabilities(task, logits), by_hand, rtol=1e-5)


def test_regression_has_no_probabilities():
    with pytest.raises(ValueError, match="values, not probabilities"):
        probabilities("regression", torch.zeros(1, 1))


@pytest.mark.parametrize("task", TASK_NAMES)
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_fits_or_is_refused_in_one_line_with_what_fits(task, name):
    fitting = [loss.name for loss in LOSSES.values() if task in loss.tasks]
    if name in fitting:
        logits, target = sample(task)
        assert torch.equal(build_loss(SPECS[task], name)(logits, target), LOSSES[name].function(logits, target))
        return
    with pytest.raises(UserError) as error:
        resolve_loss(task, name)
    text = str(error.value)
    assert text.startswith(f"model.loss: '{name}' does not fit the {task} task: ")
    assert text.endswith(f"; accepted: auto, {', '.join(fitting)}")
    assert "\n" not in text


def test_squared_error_on_classes_points_to_brier():
    with pytest.raises(UserError, match="use cross_entropy; to study squared error on probabilities name it 'brier'"):
        resolve_loss("multiclass", "mse")


@pytest.mark.parametrize("task", TASK_NAMES)
def test_auto_is_the_tasks_own_loss(task):
    assert resolve_loss(task).name == resolve_loss(task, "auto").name == DEFAULT_LOSS[task]
    assert DEFAULT_LOSS[task] != "brier"


@pytest.mark.parametrize("task", ["binary", "multiclass"])
@pytest.mark.parametrize("name", ["auto", "brier"])
def test_balanced_weights_multiply_each_sample(task, name):
    spec, (logits, target) = SPECS[task], sample(task)
    codes = np.repeat(np.arange(len(spec.class_counts)), spec.class_counts)
    weights = compute_class_weight("balanced", classes=np.unique(codes), y=codes)
    assert resolve_class_weights(spec, "balanced") == pytest.approx(weights)
    assert weights[codes].mean() == pytest.approx(1)
    losses = build_loss(spec, name, class_weights="balanced")(logits, target)
    plain = build_loss(spec, name)(logits, target)
    torch.testing.assert_close(losses, plain * torch.tensor(weights, dtype=torch.float32)[target])


def test_class_weights_agree_with_torchs_cross_entropy():
    logits, target = sample("multiclass")
    losses = build_loss(SPECS["multiclass"], class_weights=[1.0, 2.0, 3.0])(logits, target)
    mean = (1 * 10 + 2 * 20 + 3 * 30) / 60
    theirs = torch.nn.functional.cross_entropy(logits, target, torch.tensor([1.0, 2.0, 3.0]) / mean, reduction="none")
    torch.testing.assert_close(losses, theirs)


def test_options_reach_the_loss():
    logits, target = sample("binary")
    loss = build_loss(SPECS["binary"], label_smoothing=0.2, pos_weight=3.0)
    assert torch.equal(
        loss(logits, target), LOSSES["bce"].function(logits, target, label_smoothing=0.2, pos_weight=3.0)
    )
    assert not build_loss(SPECS["multiclass"], class_weights="balanced").state_dict()


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        (
            "multiclass",
            {"name": "crossentropy"},
            r"model.loss: 'crossentropy' is unknown \(did you mean 'cross_",
        ),
        (
            "multiclass",
            {"label_smoothing": 1.0},
            "model.label_smoothing: 1.0 is out of range; accepted: at least 0",
        ),
        ("multiclass", {"label_smoothing": -0.1}, "model.label_smoothing: -0.1 is out of range"),
        (
            "regression",
            {"label_smoothing": 0.1},
            "model.label_smoothing: 0.1 does not apply to model.loss: mse; it",
        ),
        (
            "multiclass",
            {"pos_weight": 2.0},
            "model.pos_weight: 2.0 does not apply to model.loss: cross_entropy;",
        ),
        ("binary", {"pos_weight": 0.0}, "model.pos_weight: 0.0 is not a weight; accepted: a number above 0"),
        (
            "binary",
            {"pos_weight": 2.0, "class_weights": "balanced"},
            "model.pos_weight: 2.0 and model.class_weights",
        ),
        (
            "binary",
            {"class_weights": "balance"},
            r"model.class_weights: 'balance' is unknown \(did you mean 'bal",
        ),
        ("binary", {"class_weights": [1.0]}, r"model.class_weights: \[1.0\] has 1 weights for 2 classes"),
        ("binary", {"class_weights": [1.0, -1.0]}, r"model.class_weights: \[1.0, -1.0\] are no weights"),
        ("binary", {"class_weights": [0.0, 0.0]}, r"model.class_weights: \[0.0, 0.0\] are no weights"),
        (
            "multilabel",
            {"class_weights": "balanced"},
            "model.class_weights: 'balanced' does not fit the multilabel",
        ),
        (
            "regression",
            {"class_weights": "balanced"},
            "model.class_weights: 'balanced' does not fit the regression",
        ),
    ],
)
def test_user_mistakes(task, settings, message):
    with pytest.raises(UserError, match=f"^{message}"):
        build_loss(SPECS[task], **settings)


def test_balanced_weights_need_rows_of_every_class():
    spec = DataSpec(task="multiclass", classes=CLASSES, class_counts=(5, 0, 5))
    with pytest.raises(UserError, match=r"'balanced' needs training rows of every class; none of \['b'\]"):
        build_loss(spec, class_weights="balanced")
