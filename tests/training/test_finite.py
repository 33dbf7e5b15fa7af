"""Finite or not: by sums, and entry by entry where a sum overflows."""

import pytest
import torch

from mlp_lab.training.finite import all_finite, first_bad, is_finite

NAN, INF = float("nan"), float("inf")


def test_a_sum_that_overflows_is_no_finding() -> None:
    assert all_finite([torch.full((4,), 3e38), torch.full((4,), -3e38)])
    assert not all_finite([torch.full((4,), 3e38), torch.tensor([INF])])
    assert not all_finite([torch.tensor([INF]), torch.tensor([-INF])])
    assert all_finite([])
    assert all_finite([torch.tensor([1, 2]), torch.tensor([True])])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_one_entry_in_a_thousand_is_found(dtype: torch.dtype, value: float) -> None:
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(10, 100, generator=generator).to(dtype)
    assert is_finite(tensor)
    assert all_finite([tensor])
    tensor[7, 42] = value
    assert not is_finite(tensor)
    assert not all_finite([torch.ones(3), tensor])


def test_a_checkpoint_is_judged_by_its_weights_and_its_optimizers() -> None:
    weights = {"model.head.weight": torch.ones(2, 2), "model.norm.num_batches_tracked": torch.tensor(3)}
    state = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
    checkpoint = {"state_dict": weights, "optimizer_states": [state], "callbacks": {"best": torch.tensor(NAN)}}
    assert first_bad(checkpoint) is None
    state["state"][0]["exp_avg"][1] = INF  # type: ignore[index]
    assert first_bad(checkpoint) == "optimizer_states[0].state.0.exp_avg"
    weights["model.head.weight"][0, 1] = NAN
    assert first_bad(checkpoint) == "state_dict.model.head.weight"
    assert first_bad({}) is None
