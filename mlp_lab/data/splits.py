"""Which rows train, validate and test: pure functions of labels, ratios and a seed.

A split is one uint8 code per row, (N,): 0 train, 1 val, 2 test, 255 none. It is saved with the run, so that a later
`test` reads the very rows that training never saw, and hashed, so that two runs can be compared.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlp_lab.errors import UserError

TRAIN, VAL, TEST = 0, 1, 2
MANY_CLASSES = 20
"""Above so many classes, a target with fewer than two rows per class is taken for a wrong choice."""
PARTS: tuple[str, ...] = ("train", "val", "test")
UNUSED = 255
"""Code of a row that is in no part: its target is missing, or `data.train_rows` leaves it out."""

# What people write in a split column, in lower case.
SPELLINGS: dict[str, int] = {
    "train": TRAIN,
    "training": TRAIN,
    "fit": TRAIN,
    "val": VAL,
    "valid": VAL,
    "validate": VAL,
    "validation": VAL,
    "dev": VAL,
    "test": TEST,
    "testing": TEST,
    "holdout": TEST,
}


def check_ratios(ratios: Sequence[float], *, key: str = "data.split") -> tuple[float, float, float]:
    """Returns the shares of train, val and test.

    Args:
        ratios: Three shares, each >= 0, that sum to 1 (to 1e-6); the first is positive.
        key: The config key to blame.

    Raises:
        UserError: If they are anything else.
    """
    shown = list(ratios)
    if len(shown) != len(PARTS):
        raise UserError(f"{key}: {shown} must be three shares, of train, val and test, such as [0.8, 0.1, 0.1]")
    if any(not 0 <= ratio <= 1 for ratio in shown):
        raise UserError(f"{key}: {shown} has a share outside 0 to 1")
    if not math.isclose(sum(shown), 1, abs_tol=1e-6):
        raise UserError(f"{key}: {shown} sums to {sum(shown):g}, not to 1")
    if shown[TRAIN] == 0:
        raise UserError(f"{key}: {shown} leaves no training rows; the first share must be positive")
    return shown[0], shown[1], shown[2]


def file_shares(split: Sequence[float], files: int) -> tuple[float, float, float]:
    """Returns the ratios of the first file's rows; where a second file holds the test rows, train and val share it."""
    train, val, test = split
    return (train, val, test) if files == 1 else (train / (train + val), val / (train + val), 0.0)


def split_rows(
    rows: int,
    ratios: Sequence[float],
    *,
    seed: int,
    labels: Tensor | None = None,
    classes: Sequence[str] | None = None,
    key: str = "data.split",
) -> Tensor:
    """Draws a seeded split, stratified where labels are given.

    Val and test get `round(N * ratio)` rows, and of each class its share rounded up or down; every class keeps a row to
    train on.

    Args:
        rows: Number of rows, N.
        ratios: Shares of train, val and test (see `check_ratios`).
        seed: Seed of the draw, >= 0.
        labels: Class codes, (N,) int64, >= 0; None for an unstratified split.
        classes: Class names for the error text; by default the codes.
        key: The config key to blame.

    Returns:
        Codes, (N,) uint8.

    Raises:
        UserError: If the ratios are wrong, if a part with a positive ratio would be empty, or if a class has one row.
    """
    shares = check_ratios(ratios, key=key)
    strata = torch.zeros(rows, dtype=torch.int64) if labels is None else labels  # (N,)
    sizes = torch.bincount(strata)  # (C,)
    if labels is not None and shares[TRAIN] < 1:
        _check_class_sizes(sizes, classes, key=key)
    val = _quotas(sizes, shares[VAL], room=sizes - 1)  # (C,)
    quotas = torch.stack([val, _quotas(sizes, shares[TEST], room=sizes - 1 - val)])  # (2, C)
    for part, quota in zip((VAL, TEST), quotas, strict=True):
        if shares[part] > 0 and quota.sum() == 0:
            raise UserError(
                f"{key}: {list(ratios)} of {rows} rows leaves none for {PARTS[part]}; give it a larger share"
            )
    return _assign(strata, sizes, quotas, seed=seed)


def _check_class_sizes(sizes: Tensor, classes: Sequence[str] | None, *, key: str) -> None:
    lonely = (sizes == 1).nonzero().flatten().tolist()
    rows = int(sizes.sum())
    if lonely and len(sizes) > max(rows / 2, MANY_CLASSES):
        raise UserError(
            f"data.target: {len(sizes):,} classes in {rows:,} rows are too many to learn; a column of names, dates or "
            "free text cannot be predicted"
        )
    if lonely:
        name = classes[lonely[0]] if classes is not None else lonely[0]
        raise UserError(
            f"{key}: class {name!r} has one row, which cannot be both trained on and tested; "
            "add rows, drop that row, or give data.split_column"
        )


def _quotas(sizes: Tensor, share: float, *, room: Tensor) -> Tensor:
    """Returns how many rows of each class make up `share` of all rows, (C,).

    Largest remainders: each class's share is rounded down, then up where the fraction is largest until the sum is the
    rounded share of the whole. No class gives more rows than it has room for, (C,).
    """
    room = room.clamp(min=0)
    exact = sizes.double() * share  # (C,)
    quotas = torch.minimum(exact.floor().long(), room)
    missing = round(share * int(sizes.sum())) - int(quotas.sum())
    fractions = torch.where(quotas < room, exact - quotas, -1.0)
    winners = fractions.argsort(descending=True, stable=True)[: max(missing, 0)]
    quotas[winners[fractions[winners] > 0]] += 1
    return quotas


def _assign(strata: Tensor, sizes: Tensor, quotas: Tensor, *, seed: int) -> Tensor:
    """Shuffles the rows and gives each class's first ones to val, its next ones to test, and the rest to train."""
    order = torch.randperm(len(strata), generator=torch.Generator().manual_seed(seed))  # (N,)
    order, place = _ranks(order, strata, sizes)  # (N,) each
    val, test = quotas[:, strata[order]]  # (N,) each
    codes = torch.empty(len(strata), dtype=torch.uint8)
    codes[order] = torch.where(place < val, VAL, torch.where(place < val + test, TEST, TRAIN)).to(torch.uint8)
    return codes


def training_subset(
    rows: int, keep: int, *, seed: int, labels: Tensor | None = None, key: str = "data.train_rows"
) -> Tensor:
    """Draws which training rows a smaller training set keeps.

    The rows are put in one order, of which any number of first rows is kept, so that a larger subset contains every
    smaller one. With labels, the first rows are one of each class; then each class is spread evenly over the order, so
    that `keep` rows hold its share of them, rounded up or down.

    Args:
        rows: Number of training rows, M.
        keep: How many of them to keep, at least one and one of each class.
        seed: Seed of the draw, >= 0.
        labels: Class codes, (M,) int64, >= 0; None for a draw without classes.
        key: The config key to blame.

    Returns:
        Whether each row is kept, (M,) bool.

    Raises:
        UserError: If there are fewer rows than that, or more classes.
    """
    if keep > rows:
        raise UserError(f"{key}: {keep} is more than the {rows} training rows; use at most {rows}, or leave it out")
    strata = torch.zeros(rows, dtype=torch.int64) if labels is None else labels  # (M,)
    sizes = torch.bincount(strata)  # (C,)
    if keep < (classes := int((sizes > 0).sum())):
        raise UserError(f"{key}: {keep} is fewer than the {classes} classes; use at least {classes}")
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))  # (M,)
    grouped, rank = _ranks(order, strata, sizes)  # (M,) each
    position = (rank + 0.5) / sizes[strata[grouped]]  # (M,) within 0 .. 1
    position[rank == 0] = 0
    shuffled = torch.empty(rows, dtype=torch.int64)
    shuffled[order] = torch.arange(rows)  # ties between classes are in the order of the draw
    first = grouped[torch.from_numpy(np.lexsort((shuffled[grouped].numpy(), position.numpy())))]
    kept = torch.zeros(rows, dtype=torch.bool)
    kept[first[:keep]] = True
    return kept


def _ranks(order: Tensor, strata: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Groups shuffled rows by class and numbers them within it.

    Args:
        order: Rows in a drawn order, (N,).
        strata: Class of each row, (N,).
        sizes: Rows of each class, (C,).

    Returns:
        The rows grouped by class, in the drawn order within, (N,), and the rank of each within its class, (N,).
    """
    grouped = order[strata[order].argsort(stable=True)]  # (N,)
    starts = sizes.cumsum(0) - sizes  # (C,)
    return grouped, torch.arange(len(order)) - starts[strata[grouped]]


def split_from_column(
    values: Sequence[object], *, column: str, place: Callable[[int], str] = lambda row: f"row {row + 1}"
) -> Tensor:
    """Reads the split from a column of the table.

    Args:
        values: What the column says of each row, (N,): `train`, `val` or `test`, in a usual spelling and any case.
        column: The column's name, for the error text.
        place: What the error text calls a row, by its number from 0.

    Returns:
        Codes, (N,) uint8.

    Raises:
        UserError: If a value is none of these, or if no row is for training or none for validation.
    """
    codes = np.empty(len(values), dtype=np.uint8)
    for row, value in enumerate(values):
        code = SPELLINGS.get(str(value).strip().lower())
        if code is None:
            raise UserError(
                f"data.split_column: {column!r} has {value!r} in {place(row)}; accepted: {', '.join(SPELLINGS)}"
            )
        codes[row] = code
    for part, name in ((TRAIN, "training"), (VAL, "validation")):
        if not (codes == part).any():
            raise UserError(f"data.split_column: {column!r} has no {name} rows; mark some with {PARTS[part]!r}")
    return torch.from_numpy(codes)


class Duplicates(NamedTuple):
    """Rows that are exact copies of rows of an earlier part."""

    val: int  # validation rows that training has too
    test: int  # test rows that training or validation has too


def count_duplicates(keys: NDArray[np.uint64], codes: Tensor) -> Duplicates:
    """Counts exact copies across parts.

    Args:
        keys: A 64-bit hash of each row, (N,), equal where the rows are.
        codes: The split, (N,) uint8.

    Example:
        >>> codes = torch.tensor([0, 0, 1, 2, 2], dtype=torch.uint8)
        >>> count_duplicates(np.array([7, 8, 8, 7, 9], dtype=np.uint64), codes)
        Duplicates(val=1, test=1)
    """
    parts = codes.numpy()
    seen_by_test = keys[parts != TEST]
    val = np.isin(keys[parts == VAL], keys[parts == TRAIN])
    test = np.isin(keys[parts == TEST], seen_by_test)
    return Duplicates(int(val.sum()), int(test.sum()))


def split_hash(codes: Tensor) -> str:
    """Returns the first 16 hexadecimal digits of the SHA-256 of the codes, (N,) uint8; equal splits hash equal."""
    return hashlib.sha256(codes.to(torch.uint8).contiguous().numpy().tobytes()).hexdigest()[:16]
