"""Batches against a plain, slow twin: NumPy indexing of the whole order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from mlp_lab.data.loader import Batch, TensorLoader, epoch_order, rank_bounds
from mlp_lab.errors import UserError

ROWS = 23


def loader(*, rows: int = ROWS, batch_size: int = 5, shuffle: bool = True, **options: int | bool) -> TensorLoader:
    """Row i holds i in every tensor."""
    number = torch.arange(rows)
    numeric = torch.stack([number.float(), -number.float()], dim=1)
    return TensorLoader(numeric, number[:, None], number, batch_size=batch_size, shuffle=shuffle, **options)  # type: ignore[arg-type]


def visited(batches: list[Batch]) -> list[list[int]]:
    for batch in batches:
        assert batch.categorical is not None
        assert batch.target is not None
        assert torch.equal(batch.numeric[:, 0], batch.target.float())
        assert torch.equal(batch.numeric[:, 1], -batch.target.float())
        assert torch.equal(batch.categorical[:, 0], batch.target)
    return [batch.target.tolist() for batch in batches if batch.target is not None]


def slow_epoch(*, epoch: int, seed: int = 0, rows: int = ROWS, batch_size: int = 5) -> list[list[int]]:
    order = epoch_order(rows, seed=seed, epoch=epoch).numpy()
    return [part.tolist() for part in np.split(order, range(batch_size, rows, batch_size))]


def test_each_epoch_visits_its_own_permutation() -> None:
    batches = loader(seed=3)
    for epoch in range(3):
        assert visited(list(batches)) == slow_epoch(epoch=epoch, seed=3)


def test_order_depends_on_seed_and_epoch_and_nothing_else() -> None:
    torch.manual_seed(0)
    orders = {(seed, epoch): epoch_order(50, seed=seed, epoch=epoch) for seed in range(4) for epoch in range(4)}
    torch.manual_seed(1)
    torch.rand(3)
    for (seed, epoch), order in orders.items():
        assert torch.equal(order, epoch_order(50, seed=seed, epoch=epoch))
        assert sorted(order.tolist()) == list(range(50))
    assert len({tuple(order.tolist()) for order in orders.values()}) == len(orders)


def test_order_does_not_touch_the_global_generator() -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    list(loader())
    assert torch.equal(torch.rand(2), expected)


def test_first_places_are_uniform() -> None:
    """1,000 epochs over 10 rows: each comes first about 100 times; 5 standard deviations are 47."""
    firsts = [int(epoch_order(10, seed=0, epoch=epoch)[0]) for epoch in range(1000)]
    counts = np.bincount(firsts, minlength=10)
    assert np.abs(counts - 100).max() < 5 * np.sqrt(1000 * 0.1 * 0.9)


def test_unshuffled_batches_are_views() -> None:
    numeric = torch.rand(10, 3)
    batches = list(TensorLoader(numeric, None, None, batch_size=4, shuffle=False))
    assert [batch.count for batch in batches] == [4, 4, 2]
    for index, batch in enumerate(batches):
        assert batch.numeric.data_ptr() == numeric[4 * index :].data_ptr()
        assert batch.categorical is None
        assert batch.target is None


def test_full_batch_is_a_view_though_shuffled() -> None:
    numeric = torch.rand(10, 3)
    (batch,) = TensorLoader(numeric, None, None, batch_size=10, shuffle=True)
    assert batch.numeric.data_ptr() == numeric.data_ptr()


def test_cpu_copies_nothing() -> None:
    numeric = torch.rand(10, 3)
    batches = TensorLoader(numeric, None, None, batch_size=4, shuffle=False, device=torch.device("cpu"))
    assert next(iter(batches)).numeric.data_ptr() == numeric.data_ptr()


@pytest.mark.parametrize(("rows", "batch_size"), [(23, 5), (20, 5), (3, 5), (1, 1), (23, 23)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_length_counts_batches(rows: int, batch_size: int, drop_last: bool) -> None:
    batches = loader(rows=rows, batch_size=batch_size, drop_last=drop_last)
    given = visited(list(batches))
    assert len(batches) == len(given)
    assert sum(map(len, given)) == (rows - rows % batch_size if drop_last else rows)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("shuffle", [False, True])
def test_ranks_share_each_global_batch_without_loss_or_doubling(world_size: int, shuffle: bool) -> None:
    alone = loader(shuffle=shuffle)
    ranks = [loader(shuffle=shuffle, rank=rank, world_size=world_size) for rank in range(world_size)]
    for _ in range(2):
        together = [list(batches) for batches in ranks]
        for index, whole in enumerate(visited(list(alone))):
            parts = [visited([batches[index]])[0] for batches in together]
            assert list(itertools.chain(*parts)) == whole
            assert {batches[index].count for batches in together} == {len(whole)}
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_rank_may_have_no_row_of_a_batch() -> None:
    assert [rank_bounds(10, 12, rank=rank, world_size=3) for rank in range(3)] == [(10, 10), (10, 11), (11, 12)]
    part = list(loader(rows=11, batch_size=10, rank=0, world_size=2))[-1]
    assert part.numeric.shape == (0, 2)
    assert part.count == 1


def test_repeated_order_is_the_first_epochs() -> None:
    batches = loader(reshuffle=False)
    assert visited(list(batches)) == visited(list(batches)) == slow_epoch(epoch=0)


def test_iter_alone_begins_no_epoch() -> None:
    batches = loader()
    iter(batches)
    iter(batches)
    assert visited(list(batches)) == slow_epoch(epoch=0)


def test_epoch_that_is_cut_short_counts() -> None:
    batches = loader()
    list(itertools.islice(batches, 2))
    assert visited(list(batches)) == slow_epoch(epoch=1)


@pytest.mark.parametrize("given", [0, 1, 4, 5])
@pytest.mark.parametrize("epochs", [0, 2])
def test_state_resumes_the_rest_of_the_epoch_and_all_after(epochs: int, given: int) -> None:
    old = loader()
    for _ in range(epochs):
        list(old)
    running = iter(old)
    for _ in range(given):
        next(running)
    new = loader()
    new.load_state_dict(old.state_dict())
    rest = visited(list(new))
    if given:
        assert rest == slow_epoch(epoch=epochs)[given:]
    else:  # the epoch had not begun: nothing of it is lost; the one before was over
        assert rest == ([] if epochs else slow_epoch(epoch=0))
    following = epochs + 1 if given or not epochs else epochs
    assert visited(list(new)) == slow_epoch(epoch=following)


def test_state_is_plain_and_names_the_batch_in_use() -> None:
    batches = loader(seed=2)
    next(iter(batches))
    expected = {"epoch": 0, "batches": 1, "rows": ROWS, "batch_size": 5, "seed": 2, "drop_last": False}
    assert batches.state_dict() == expected


def test_iterator_after_an_unused_resumed_one_begins_the_next_epoch() -> None:
    old = loader()
    list(old)
    new = loader()
    new.load_state_dict(old.state_dict())
    iter(new)
    assert visited(list(new)) == slow_epoch(epoch=1)


def test_progress_tells_that_the_saved_epoch_was_over() -> None:
    old = loader()
    list(itertools.islice(old, 3))
    number = torch.arange(ROWS)
    new = TensorLoader(number[:, None].float(), None, number, batch_size=5, shuffle=True, progress=lambda: (0, 3))
    new.load_state_dict(old.state_dict())
    targets = [batch.target.tolist() for batch in new if batch.target is not None]
    assert targets == slow_epoch(epoch=1)[:3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 4}, "data.batch_size: 4 cannot go on inside an epoch that began with 5; keep that"),
        ({"seed": 9}, "data.seed: 9 cannot go on inside an epoch that began with 0; keep that"),
        ({"drop_last": True}, "data.drop_last: True cannot go on inside an epoch that began with False; keep that"),
        ({"rows": 22}, "data: training rows: 22 cannot go on inside an epoch that began with 23; keep that"),
    ],
)
def test_state_of_other_batches_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(UserError) as caught:
        loader(**change).load_state_dict(loader().state_dict())
    assert str(caught.value) == message


@pytest.mark.gpu
@pytest.mark.parametrize("share", [0.5, 0.0])
@pytest.mark.parametrize("shuffle", [False, True])
def test_cuda_batches_equal_cpu_batches(share: float, shuffle: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlp_lab.data.loader.RESIDENT_SHARE", share)  # 0: pinned host memory
    device = torch.device("cuda", 0)
    numeric: Tensor = torch.rand(50, 3)
    there = TensorLoader(numeric, None, numeric, batch_size=8, shuffle=shuffle, device=device)
    for ours, theirs in zip(TensorLoader(numeric, None, numeric, batch_size=8, shuffle=shuffle), there, strict=True):
        assert theirs.numeric.device == device
        assert torch.equal(ours.numeric, theirs.numeric.cpu())
