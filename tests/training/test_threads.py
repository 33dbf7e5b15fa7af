"""The rule for the number of threads, and what it leaves behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mlp_lab.model.mlp import MLP
from mlp_lab.training.threads import (
    VARIABLE,
    WORK_PER_THREAD,
    computing_with,
    multiplications,
    one_process_threads,
    threads_for,
)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("work", "limit", "expected"),
    [
        (0, 8, 1),
        (2 * WORK_PER_THREAD - 1, 8, 1),
        (2 * WORK_PER_THREAD, 8, 2),
        (100 * WORK_PER_THREAD, 8, 8),
        (100 * WORK_PER_THREAD, 1, 1),
    ],
)
def test_threads_grow_with_the_work_up_to_the_limit(work: int, limit: int, expected: int) -> None:
    assert threads_for(work, limit) == expected


def test_multiplications_are_those_of_all_linear_layers_and_rows() -> None:
    networks = [MLP(4, 3, depth=1, width=5), MLP(4, 3, depth=2, width=[5, 6])]
    assert multiplications(networks, 10) == 10 * (4 * 5 + 5 * 3 + 4 * 5 + 5 * 6 + 6 * 3)


@pytest.mark.parametrize("variable", [None, "7"])
def test_number_and_variable_hold_inside_and_come_back(variable: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, variable) if variable else monkeypatch.delenv(VARIABLE, raising=False)
    with computing_with(2):
        assert (torch.get_num_threads(), os.environ[VARIABLE]) == (2, "2")
    assert (torch.get_num_threads(), os.environ.get(VARIABLE)) == (3, variable)
    with computing_with(None):
        assert (torch.get_num_threads(), os.environ.get(VARIABLE)) == (3, variable)


@pytest.mark.parametrize(("device", "expected"), [("cpu", 3), ("cuda", None)])
def test_one_process_threads_are_those_of_the_rule_on_the_cpu(device: str, expected: int | None) -> None:
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    assert one_process_threads(trainer, [MLP(2048, 2048, depth=1, width=2048)], 4096) == expected
