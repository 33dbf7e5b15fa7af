"""Every tensor of every member has its place, and no two share one."""

from __future__ import annotations

import pytest
import torch

from mlp_lab.model.mlp import MLP
from mlp_lab.population.pieces import Piece
from mlp_lab.population.stack import Population


@pytest.mark.parametrize("bucket", [1, 16])
@pytest.mark.parametrize("norm", ["none", "batch", "rms"])
def test_every_tensor_has_a_place_of_its_own(norm: str, bucket: int) -> None:
    mlps = [
        MLP(5, 3, depth=depth, width=4 + depth, norm=norm, activation="prelu" if depth % 2 else "relu")
        for depth in (0, 3, 1, 2, 3)
    ]
    population = Population.stack(mlps, bucket=bucket)
    tensors = dict(population.named_parameters()) | dict(population.named_buffers())
    for tensor in tensors.values():
        tensor.data.zero_()
    for mlp, pieces in zip(mlps, population.pieces, strict=True):
        state = dict(mlp.named_parameters()) | dict(mlp.named_buffers())
        assert pieces.keys() == state.keys()
        for name, piece in pieces.items():
            view = piece.of(tensors[piece.tensor].data)
            assert view.shape == state[name].shape
            view += 1
    placed = {piece.tensor for pieces in population.pieces for piece in pieces.values()}
    of_all = {"slope_rows", "mask", "places", "going", "row_counts", "order", "passing"}
    assert {name.rpartition(".")[2] for name in tensors.keys() - placed} <= of_all
    for name in placed:
        assert int(tensors[name].max()) == 1, name
        if bucket == 1:
            assert int(tensors[name].min()) == 1, name


def test_a_piece_is_the_corner_of_its_block() -> None:
    piece = Piece(tensor="weight", start=2, stored=(2, 3), shape=(1, 2))
    assert piece.size == 6
    assert piece.of(torch.arange(10)).tolist() == [[2, 3]]
