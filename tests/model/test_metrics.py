"""Metrics against scikit-learn over uneven batches, and where they are undefined."""

import copy
import pickle

import pytest
import sklearn.metrics as sk
import torch

from mlp_lab.model.metrics import BinaryAreaPR, BinaryAreaROC, MultilabelAreaROC, RegressionScores

SIZES = (1, 5, 2, 30, 12)


def filled(metric, one, other):
    for part in zip(one.split(SIZES), other.split(SIZES), strict=True):
        metric.update(*part)
    return metric


@pytest.mark.parametrize("targets", [1, 3])
def test_regression_scores_in_the_targets_own_units(targets):
    torch.manual_seed(0)
    unit = torch.tensor([1e4, 3.0, 1e-4][:targets])
    mean = torch.tensor([2e6, -7.0, 1e-3][:targets])
    target = torch.randn(50, targets)
    prediction = target + 0.5 * torch.randn(50, targets)
    scores = filled(RegressionScores(unit.tolist()), prediction, target).compute()
    y, p = (target.double() * unit + mean), (prediction.double() * unit + mean)
    # float32 sums of 50 values of order 1
    assert scores["rmse"].item() == pytest.approx(sk.root_mean_squared_error(y, p), rel=1e-5)
    assert scores["mae"].item() == pytest.approx(sk.mean_absolute_error(y, p), rel=1e-5)
    assert scores["r2"].item() == pytest.approx(sk.r2_score(y, p), rel=1e-5)


@pytest.mark.parametrize("rows", [1, 4])
def test_r2_is_undefined_where_the_target_does_not_vary(rows):
    scores = RegressionScores([2.0])
    scores.update(torch.zeros(rows, 1), torch.full((rows, 1), 0.3))
    values = scores.compute()
    assert values["r2"].isnan()
    assert values["rmse"].item() == pytest.approx(0.6)


def test_areas_against_scikit_learn():
    torch.manual_seed(0)
    scores, target = torch.rand(50), torch.randint(2, (50,))
    scores[::3] = 0.5  # ties
    roc = filled(BinaryAreaROC(validate_args=False), scores, target).compute()
    precision = filled(BinaryAreaPR(validate_args=False), scores, target).compute()
    assert roc.item() == pytest.approx(sk.roc_auc_score(target, scores), rel=1e-6)
    assert precision.item() == pytest.approx(sk.average_precision_score(target, scores), rel=1e-6)


@pytest.mark.parametrize("present", [0, 1])
@pytest.mark.parametrize("metric", [BinaryAreaROC, BinaryAreaPR])
def test_areas_are_undefined_without_both_classes(metric, present):
    area = metric(validate_args=False)
    area.update(torch.rand(5), torch.full((5,), present))
    assert area.compute().isnan()


def test_multilabel_area_leaves_out_the_labels_that_do_not_vary():
    torch.manual_seed(0)
    scores, target = torch.rand(50, 4), torch.randint(2, (50, 4))
    target[:, 1] = 0
    area = filled(MultilabelAreaROC(4, validate_args=False), scores, target).compute()
    kept = [0, 2, 3]
    assert area.item() == pytest.approx(sk.roc_auc_score(target[:, kept], scores[:, kept]), rel=1e-6)
    constant = MultilabelAreaROC(4, validate_args=False)
    constant.update(scores, torch.ones(50, 4, dtype=torch.int64))
    assert constant.compute().isnan()


def test_reset_copy_and_pickle():
    metric = RegressionScores([2.0])
    metric.update(torch.ones(3, 1), torch.tensor([[1.0], [2.0], [4.0]]))
    expected = metric.compute()
    for twin in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert twin.compute() == expected
    metric.reset()
    assert metric.rows == 0
    assert not metric.squares.any()
