"""Evidence through a checkpoint and back, and what a long run lets go of."""

from __future__ import annotations

import io
import math

import torch

from mlp_lab.diagnostics.evidence import Evidence, Facts, Measured
from mlp_lab.diagnostics.history import FIRST_KEPT, pack, thin_, unpack


def measured(step: int, **values: float) -> Measured:
    return Measured(step=step, epoch=step // 10, values=values or {"a": float(step)})


def test_a_checkpoint_brings_everything_back() -> None:
    evidence = Evidence(facts=Facts(depth=2, widths=(4, 5), activation="relu", frozen_layers=(1,), lr=0.1))
    evidence.steps = [measured(1, a=1.0, b=math.inf), measured(2, b=1 / 3), measured(3, a=math.nan, c=math.nan)]
    evidence.epochs = [measured(20, loss=0.5)]
    file = io.BytesIO()
    torch.save(pack(evidence), file)
    file.seek(0)
    back = unpack(torch.load(file, weights_only=True))
    assert repr(back.facts) == repr(evidence.facts)
    assert back.steps == [*evidence.steps[:2], Measured(step=3, epoch=0, values={})]
    assert back.epochs == evidence.epochs


def test_packing_twice_gives_the_same() -> None:
    evidence = Evidence(steps=[measured(1, z=1.0, a=math.nan), measured(2, b=2.0)])
    once, twice = pack(evidence)["steps"], pack(unpack(pack(evidence)))["steps"]
    assert once["keys"] == twice["keys"] == ["b", "z"]
    assert torch.equal(once["values"].isnan(), twice["values"].isnan())


def test_an_empty_evidence() -> None:
    assert unpack(pack(Evidence())).steps == []


def test_a_long_run_keeps_its_beginning_and_its_newest_part() -> None:
    records: list[Measured] = []
    for step in range(1, 5001):
        records.append(measured(step))
        thin_(records, limit=200)
        assert len(records) <= 200
    steps = [one.step for one in records]
    assert steps[:FIRST_KEPT] == list(range(1, FIRST_KEPT + 1))
    assert steps[-100:] == list(range(4901, 5001))
    assert steps == sorted(steps)


def test_a_short_run_keeps_all() -> None:
    records = [measured(step) for step in range(200)]
    thin_(records, limit=200)
    assert len(records) == 200
