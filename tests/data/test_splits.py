"""Splits: exact sizes, class shares against scikit-learn's, and every refusal."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split

from mlp_lab.data.splits import (
    TEST,
    TRAIN,
    VAL,
    check_ratios,
    count_duplicates,
    split_from_column,
    split_hash,
    split_rows,
    training_subset,
)
from mlp_lab.errors import UserError

RATIOS = (0.7, 0.2, 0.1)


def skewed_labels(rows: int, seed: int) -> torch.Tensor:
    chances = torch.tensor([0.5, 0.3, 0.15, 0.05])
    drawn = torch.multinomial(chances, rows, replacement=True, generator=torch.Generator().manual_seed(seed))
    return torch.cat([drawn, torch.arange(4).repeat(2)])  # every class has at least two rows


def class_counts(labels: torch.Tensor, codes: torch.Tensor) -> np.ndarray:
    return np.stack([np.bincount(labels[codes == part], minlength=4) for part in (TRAIN, VAL, TEST)])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rows", [40, 317, 2000])
def test_class_shares_are_scikit_learns_within_one(rows: int, seed: int) -> None:
    labels = skewed_labels(rows, seed)
    ours = class_counts(labels, split_rows(len(labels), RATIOS, seed=seed, labels=labels))
    val, test = ours[VAL].sum(), ours[TEST].sum()
    index = np.arange(len(labels))
    rest, tests = train_test_split(index, test_size=int(test), stratify=labels, random_state=seed)
    train, vals = train_test_split(rest, test_size=int(val), stratify=labels[rest], random_state=seed)
    theirs = np.stack([np.bincount(labels[part], minlength=4) for part in (train, vals, tests)])
    # Train is what two roundings leave, so it may differ by both.
    assert np.abs(ours - theirs)[[VAL, TEST]].max() <= 1
    assert np.abs(ours - theirs)[TRAIN].max() <= 2


@pytest.mark.parametrize("seed", range(5))
def test_sizes_are_exact_and_class_shares_rounded(seed: int) -> None:
    labels = skewed_labels(900, seed)
    codes = split_rows(len(labels), RATIOS, seed=seed, labels=labels)
    assert codes.dtype == torch.uint8
    sizes = np.bincount(labels)
    for part in (VAL, TEST):
        assert int((codes == part).sum()) == round(len(labels) * RATIOS[part])
        counts = class_counts(labels, codes)[part]
        assert (np.abs(counts - sizes * RATIOS[part]) < 1).all()


def test_same_seed_same_split_and_another_seed_another() -> None:
    labels = skewed_labels(200, 0)
    one, two, other = (split_rows(len(labels), RATIOS, seed=seed, labels=labels) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert split_hash(one) == split_hash(two) != split_hash(other)


def test_split_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    split_rows(100, RATIOS, seed=0)
    assert torch.equal(torch.rand(1), expected)


def test_unstratified_split_has_exact_sizes() -> None:
    codes = split_rows(1003, RATIOS, seed=0)
    assert torch.bincount(codes).tolist() == [1003 - 201 - 100, 201, 100]


def test_every_class_keeps_a_training_row() -> None:
    labels = torch.tensor([0, 0, 1, 1] + [2] * 6)
    for seed in range(20):
        codes = split_rows(10, (0.2, 0.4, 0.4), seed=seed, labels=labels)
        assert set(labels[codes == TRAIN].tolist()) == {0, 1, 2}


def test_parts_have_exact_sizes_when_every_class_has_two_rows() -> None:
    labels = torch.arange(30).repeat_interleave(2)
    codes = split_rows(60, (0.8, 0.1, 0.1), seed=0, labels=labels)
    assert torch.bincount(codes).tolist() == [48, 6, 6]
    assert set(labels[codes == TRAIN].tolist()) == set(range(30))


def test_all_rows_may_train() -> None:
    assert split_rows(5, (1.0, 0.0, 0.0), seed=0, labels=torch.tensor([0, 0, 0, 0, 1])).tolist() == [TRAIN] * 5


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ([0.8, 0.1], "data.split: [0.8, 0.1] must be three shares, of train, val and test, such as [0.8, 0.1, 0.1]"),
        ([0.8, 0.1, 0.2], "data.split: [0.8, 0.1, 0.2] sums to 1.1, not to 1"),
        ([1.1, -0.1, 0.0], "data.split: [1.1, -0.1, 0.0] has a share outside 0 to 1"),
        ([float("nan"), 0.5, 0.5], "data.split: [nan, 0.5, 0.5] has a share outside 0 to 1"),
        ([0.0, 0.5, 0.5], "data.split: [0.0, 0.5, 0.5] leaves no training rows; the first share must be positive"),
    ],
)
def test_wrong_ratios_are_refused(ratios: list[float], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_ratios(ratios)
    assert str(caught.value) == message


def test_ratios_may_carry_rounding_errors() -> None:
    assert check_ratios([1 - 0.1 - 0.2, 0.1, 0.2]) == (1 - 0.1 - 0.2, 0.1, 0.2)


def test_split_rows_of_a_class_per_row_says_that_it_cannot_be_predicted() -> None:
    with pytest.raises(UserError, match=r"^data\.target: 50 classes in 50 rows are too many to learn"):
        split_rows(50, RATIOS, seed=0, labels=torch.arange(50))


def test_class_with_one_row_is_named() -> None:
    with pytest.raises(UserError, match=r"^data\.split: class 'owl' has one row, which cannot be both trained on and"):
        split_rows(5, RATIOS, seed=0, labels=torch.tensor([0, 0, 0, 0, 1]), classes=("cat", "owl"))


def test_part_that_would_be_empty_is_named() -> None:
    with pytest.raises(UserError, match=r"^data\.split: \[0\.9, 0\.05, 0\.05\] of 6 rows leaves none for val"):
        split_rows(6, (0.9, 0.05, 0.05), seed=0)


def test_split_column_takes_the_usual_spellings() -> None:
    values = ["train", "Training", " VAL ", "valid", "Validation", "dev", "test", "TESTING", "holdout"]
    assert split_from_column(values, column="fold").tolist() == [TRAIN] * 2 + [VAL] * 4 + [TEST] * 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["train", "val", "tset"], "data.split_column: 'fold' has 'tset' in row 3; accepted: train, training, "),
        (["train", None, "val"], "data.split_column: 'fold' has None in row 2; accepted: train, "),
        (["train", "test"], "data.split_column: 'fold' has no validation rows; mark some with 'val'"),
        (["val", "test"], "data.split_column: 'fold' has no training rows; mark some with 'train'"),
    ],
)
def test_wrong_split_columns_are_refused(values: list[object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        split_from_column(values, column="fold")
    assert str(caught.value).startswith(message)


def test_duplicates_are_counted_like_a_double_loop() -> None:
    generator = np.random.default_rng(0)
    keys = generator.integers(0, 60, size=100).astype(np.uint64)
    codes = torch.from_numpy(generator.integers(0, 3, size=100).astype(np.uint8))
    rows = list(zip(keys.tolist(), codes.tolist(), strict=True))
    val = sum(any(k == key and c == TRAIN for k, c in rows) for key, code in rows if code == VAL)
    test = sum(any(k == key and c != TEST for k, c in rows) for key, code in rows if code == TEST)
    assert count_duplicates(keys, codes) == (val, test)
    assert val > 0
    assert test > 0


def test_hash_is_sha256_of_the_codes() -> None:
    assert split_hash(torch.tensor([0, 1, 2], dtype=torch.uint8)) == hashlib.sha256(b"\x00\x01\x02").hexdigest()[:16]


@pytest.mark.parametrize("seed", range(3))
def test_training_subsets_are_nested_and_hold_each_class_by_its_share(seed: int) -> None:
    labels = skewed_labels(300, seed)
    rows, sizes = len(labels), torch.bincount(labels, minlength=4)
    before = torch.zeros(rows, dtype=torch.bool)
    for keep in (4, 5, 17, 60, 150, 299, rows):
        kept = training_subset(rows, keep, seed=seed, labels=labels)
        assert int(kept.sum()) == keep
        assert bool((kept | before).equal(kept))
        counts = torch.bincount(labels[kept], minlength=4)
        assert counts.min() >= 1
        assert (counts - sizes * keep / rows).abs().max() <= 2  # one for rounding, one for the first row of each class
        before = kept


def test_training_subset_without_classes_is_a_draw_of_the_seed() -> None:
    first, same, other = (training_subset(100, 30, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not first[:30].all()


def test_training_subset_counts_only_classes_that_have_rows() -> None:
    labels = torch.tensor([0, 0, 3, 3, 3])
    assert sorted(labels[training_subset(5, 2, seed=0, labels=labels)].tolist()) == [0, 3]
    with pytest.raises(UserError, match=r"^data\.train_rows: 1 is fewer than the 2 classes; use at least 2$"):
        training_subset(5, 1, seed=0, labels=labels)
    with pytest.raises(UserError, match=r"^data\.train_rows: 6 is more than the 5 training rows; use at most 5, or"):
        training_subset(5, 6, seed=0)
