"""Scalings against scikit-learn in float64, codes and imputation by hand, and state that survives a checkpoint."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.preprocessing import MinMaxScaler, QuantileTransformer, RobustScaler, StandardScaler

from mlp_lab.data.columns import infer_columns
from mlp_lab.data.preprocessing import SCALINGS, Preprocessor, quantile_edges
from mlp_lab.errors import UserError

TOLERANCE = 1e-12  # float64 on both sides, sums of some hundred terms of order one


@pytest.fixture
def values() -> np.ndarray:
    """Normal, skewed, tied and gappy columns, (N, D) float64."""
    generator = np.random.default_rng(0)
    normal = generator.normal(50, 20, size=400)
    skewed = np.exp(generator.normal(0, 2, size=400))
    tied = generator.integers(0, 6, size=400).astype(float)
    gappy = np.where(generator.random(400) < 0.2, np.nan, generator.normal(size=400))
    return np.stack([normal, skewed, tied, gappy], axis=1)


def _ours(name: str, train: np.ndarray, values: np.ndarray) -> np.ndarray:
    scaling = SCALINGS[name]
    return scaling.apply(values, scaling.fit(train))


@pytest.mark.parametrize(
    ("name", "theirs"), [("standard", StandardScaler()), ("robust", RobustScaler()), ("minmax", MinMaxScaler())]
)
def test_affine_scalings_equal_scikit_learns(
    values: np.ndarray, name: str, theirs: StandardScaler | RobustScaler | MinMaxScaler
) -> None:
    fresh = np.nan_to_num(values[::-1]) * 1.5
    expected = theirs.fit(values).transform(fresh)
    np.testing.assert_allclose(_ours(name, values, fresh), expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_quantile_scaling_equals_scikit_learns_inside(values: np.ndarray) -> None:
    """Between the extremes; there scikit-learn jumps to 5.2 and ours goes on (see `apply_quantile`)."""
    train = values[:, :3]
    theirs = QuantileTransformer(n_quantiles=400, subsample=None, output_distribution="normal").fit(train)
    fresh = np.concatenate([train, train + 0.01, np.linspace(-9, 99, 50)[:, None].repeat(3, axis=1)])
    edge = float(torch.special.ndtri(torch.tensor(1 - 0.5 / 399, dtype=torch.float64)))
    inside = (fresh > train.min(axis=0)) & (fresh < train.max(axis=0))
    expected, actual = theirs.transform(fresh).clip(-edge, edge), _ours("quantile", train, fresh)
    assert inside.mean() > 0.7
    np.testing.assert_allclose(actual[inside], expected[inside], rtol=1e-9, atol=1e-9)  # two inverse normals
    assert np.abs(actual).max() <= edge + 1e-12


def test_quantile_scaling_puts_ties_in_the_middle_of_their_ranks() -> None:
    train = np.array([0.0] * 60 + list(range(1, 41)))[:, None]
    scaled = _ours("quantile", train, np.array([[0.0], [-5.0], [40.0]]))
    middle = float(torch.special.ndtri(torch.tensor(0.5 * 59 / 99)))
    assert scaled[0].item() == pytest.approx(middle, abs=0.02)  # the tie's last quantile may round up by one step
    assert scaled[2] > scaled[0] > scaled[1]


def test_quantile_scaling_makes_a_skewed_column_normal(values: np.ndarray) -> None:
    scaled = _ours("quantile", values[:, 1:2], values[:, 1:2])
    assert abs(scaled.mean()) < 0.01
    assert abs(scaled.std() - 1) < 0.02  # the clipped tails miss about 1 %


def test_smooth_scaling_is_robust_within_and_bounded_without(values: np.ndarray) -> None:
    train = values[:, :1]
    near = np.array([[np.median(train) + 0.01]])
    np.testing.assert_allclose(_ours("smooth", train, near), _ours("robust", train, near), rtol=1e-5)
    assert 2.99 < _ours("smooth", train, np.array([[1e9]])).item() <= 3


@pytest.mark.parametrize("name", list(SCALINGS))
def test_every_scaling_is_finite_and_monotone(values: np.ndarray, name: str) -> None:
    """Also for a column with one value, and for one where three quarters are equal."""
    spike = np.where(np.arange(400) < 300, 0.0, np.arange(400))
    train = np.concatenate([values, np.full((400, 1), 7.0), spike[:, None]], axis=1)
    fresh = np.linspace(-1e4, 1e4, 300)[:, None].repeat(6, axis=1)
    scaled = _ours(name, train, fresh)
    assert np.isfinite(scaled).all()
    assert (np.diff(scaled, axis=0) >= 0).all()
    if name not in ("none", "minmax"):  # else a spread-out tail is the whole point
        assert np.abs(_ours(name, train[:, 5:], train[:, 5:])).max() < 10


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "size": [1.0, np.nan, 3.0, 10.0],
            "day": pd.Series(["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04"], dtype="str"),
            "age": [20, 30, 40, 50],
            "colour": pd.Series(["red", "blue", None, "red"], dtype="str"),
        }
    )


def _fit(frame: pd.DataFrame, scaling: str = "standard") -> Preprocessor:
    return Preprocessor.fit(frame, infer_columns(frame), scaling=scaling)


def test_missing_numbers_become_the_median_with_an_indicator(frame: pd.DataFrame) -> None:
    numeric, _ = _fit(frame, "none").transform(frame)
    features = ("size", "day", "age", "day: day", "day: weekday", "size is missing")
    assert _fit(frame).numeric_features == features
    assert numeric[:, 0].tolist() == [1.0, 3.0, 3.0, 10.0]
    assert numeric[:, 5].tolist() == [0.0, 1.0, 0.0, 0.0]


def test_dates_have_parts_that_vary(frame: pd.DataFrame) -> None:
    numeric, _ = _fit(frame, "none").transform(frame)
    assert numeric[:, 3:5].tolist() == [[1.0, 0.0], [2.0, 1.0], [3.0, 2.0], [4.0, 3.0]]  # from Monday, 2024-01-01
    wide = pd.DataFrame({"day": pd.Series(["2023-05-06 10:00", "9999-12-31 11:00"], dtype="str")})
    assert _fit(wide).date_parts == tuple(("day", part) for part in ("year", "month", "day", "weekday", "hour"))
    gap = _fit(frame, "none").transform(frame.assign(day=["2024-01-01", None, "2024-01-03", None]))[0]
    assert gap[:, 3].tolist() == [1.0, 2.5, 3.0, 2.5]


def test_a_gap_that_training_never_had_becomes_the_median(frame: pd.DataFrame) -> None:
    preprocessor = _fit(frame, "none")
    numeric, _ = preprocessor.transform(frame.assign(age=[np.nan, 30, 40, 50]))
    assert numeric.shape == (4, 6)
    assert numeric[0, 2] == 35


def test_missing_and_unseen_categories_share_code_zero(frame: pd.DataFrame) -> None:
    preprocessor = _fit(frame)
    fresh = frame.assign(colour=["red", "blue", None, "violet"])
    codes = preprocessor.transform(fresh)[1]
    assert preprocessor.levels == (("blue", "red"),)
    assert preprocessor.cardinalities == (3,)
    assert codes is not None
    assert codes.dtype == torch.int64
    assert codes[:, 0].tolist() == [2, 1, 0, 0]


def test_dates_keep_their_precision_in_float32(frame: pd.DataFrame) -> None:
    numeric, _ = _fit(frame).transform(frame)
    expected = np.array([-1.5, -0.5, 0.5, 1.5]) / np.std([0, 1, 2, 3])
    np.testing.assert_allclose(numeric[:, 1].numpy(), expected, rtol=1e-6)  # float32


def test_tables_of_one_kind_only(frame: pd.DataFrame) -> None:
    numeric, codes = _fit(frame[["age"]]).transform(frame)
    assert numeric.shape == (4, 1)
    assert codes is None
    numeric, codes = _fit(frame[["colour"]]).transform(frame)
    assert numeric.shape == (4, 0)
    assert codes is not None


def test_a_column_that_is_gone_is_named(frame: pd.DataFrame) -> None:
    with pytest.raises(UserError, match=r"the table lacks column.* 'size', 'colour', which the model was trained on"):
        _fit(frame).transform(frame[["age", "day"]])


def test_an_unknown_scaling_is_refused(frame: pd.DataFrame) -> None:
    with pytest.raises(UserError, match=r"data\.scaling: 'standart' is unknown \(did you mean 'standard'\?\)"):
        _fit(frame, "standart")


@pytest.mark.parametrize("scaling", list(SCALINGS))
def test_the_state_survives_a_checkpoint_without_pickled_classes(
    frame: pd.DataFrame, tmp_path: Path, scaling: str
) -> None:
    preprocessor = _fit(frame, scaling)
    buffer = io.BytesIO()
    torch.save(preprocessor.to_state(), buffer)
    buffer.seek(0)
    restored = Preprocessor.from_state(torch.load(buffer, weights_only=True))
    for ours, theirs in zip(preprocessor.transform(frame), restored.transform(frame), strict=True):
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours, theirs)
    assert restored.levels == preprocessor.levels
    assert restored.numeric_features == preprocessor.numeric_features


def test_state_keeps_the_notation_of_every_column() -> None:
    frame = pd.DataFrame({"price": ["1.234,5", "7,25"], "when": ["31.12.2024", "01.02.2024"]}, dtype="str")
    preprocessor = Preprocessor.from_state(_fit(frame, "none").to_state())
    assert preprocessor.written == ("price", "when")
    new = pd.DataFrame({"price": ["1.234", "0,5"], "when": ["03.04.2024", "05.06.2024 12:00"]}, dtype="str")
    assert preprocessor.numbers(new).tolist() == [[1234.0, 1712102400.0], [0.5, 1717588800.0]]


def test_state_of_an_older_checkpoint_loads_and_gives_what_it_gave(frame: pd.DataFrame) -> None:
    state = _fit(frame.assign(version=["3.1", "3.9", "3.1", "3.9"])[["size", "age", "colour"]]).to_state()
    for name in ("forms", "notations", "date_parts", "ranges", "complete"):
        del state[name]
    state |= {"categorical": ("colour", "version"), "levels": (("blue", "red"), ("3.1", "True"))}
    old = Preprocessor.from_state(state)
    codes = old.transform(frame.assign(version=["3.10", "TRUE", "3.9", "True"]))[1]
    assert codes is not None
    assert codes[:, 1].tolist() == [1, 2, 0, 2]
    assert old.numeric_features == ("size", "age", "size is missing")
    assert all("no training row" not in line for line in old.news(frame.assign(version="3.1", age=None)))


def test_news_says_per_column_what_training_never_saw(frame: pd.DataFrame) -> None:
    preprocessor = _fit(frame)
    assert preprocessor.news(frame) == ()
    new = frame.assign(colour=["violet", "red", None, "red"], age=[None, 900, 30, 30], day="2031-01-01")
    assert preprocessor.news(new) == (
        "colour: 25% of the rows have a value that no training row has, such as 'violet'; training had 'blue', 'red'",
        "day: 100% of the rows are outside of the training rows' 2024-01-01 … 2024-01-04",
        "age: 25% of the rows are outside of the training rows' 20 … 50",
        "age: missing in 25% of the rows, and in no training row",
    )


def test_edges_are_quantiles_without_repetition() -> None:
    features = torch.stack([torch.arange(101.0), torch.arange(101.0).clamp(max=10), torch.zeros(101)], dim=1)
    smooth, tied, constant = quantile_edges(features, 4)
    assert smooth == (0.0, 25.0, 50.0, 75.0, 100.0)
    assert tied == (0.0, 10.0)
    assert constant == (0.0, 1.0)
