"""From a table and its split to parts and their description."""

import pandas as pd
import pytest
import torch

from mlp_lab.data.columns import infer_columns
from mlp_lab.data.parts import describe_parts, row_ids, split_parts, take_rows
from mlp_lab.data.preprocessing import Preprocessor
from mlp_lab.data.sources import Source
from mlp_lab.data.splits import TEST, TRAIN, VAL
from mlp_lab.data.targets import fit_target

FRAME = pd.DataFrame(
    {"size": [1.0, 2.0, 3.0, 4.0, 50.0], "kind": ["a", "b", "a", "b", "c"], "price": [1.0, 3.0, 5.0, 7.0, 9.0]}
)
CODES = torch.tensor([TRAIN, TRAIN, VAL, TRAIN, 255], dtype=torch.uint8)


def prepared():
    train = take_rows(FRAME, CODES, TRAIN)
    columns = infer_columns(train.drop(columns="price"))
    preprocessor = Preprocessor.fit(train, columns, scaling="standard")
    target = fit_target(train, ("price",), "regression")
    return preprocessor, target, split_parts(FRAME, CODES, preprocessor, target)


def test_rows_go_where_their_code_says_and_keep_their_numbers() -> None:
    _, _, parts = prepared()
    assert {name: part.ids.tolist() for name, part in parts.items()} == {"train": [0, 1, 3], "val": [2]}
    assert take_rows(FRAME, CODES, TEST).empty
    assert row_ids(FRAME.iloc[[4, 2]]).tolist() == [4, 2]


def test_the_description_counts_rows_and_carries_the_training_scale() -> None:
    preprocessor, target, parts = prepared()
    source = Source(label="t.csv", frames=(FRAME,), fingerprints=("abc",))
    spec = describe_parts(source, preprocessor, target, parts, bins=2)
    assert spec.rows == (3, 1, 0)
    assert spec.fingerprint == "abc"
    assert spec.target_mean == pytest.approx((11 / 3,), abs=1e-12)  # float64 all the way
    assert spec.numeric == ("size",)
    assert spec.categorical == ("kind",)
    assert len(spec.bin_edges) == 1
    assert describe_parts(source, preprocessor, target, parts, bins=None).bin_edges == ()
