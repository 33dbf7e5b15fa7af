"""What a model must know of the data."""

import json
from dataclasses import FrozenInstanceError

import pytest
import yaml

from mlp_lab.data.spec import TASK_NAMES, DataSpec
from mlp_lab.errors import UserError

FULL = DataSpec(
    task="regression",
    numeric=("age", "income"),
    categorical=("city",),
    cardinalities=(4,),
    bin_edges=((0.0, 1.0), (0.0, 0.5, 1.0)),
    targets=("price", "rent"),
    target_mean=(1.5, 2.0),
    target_std=(0.5, 1.0),
    rows=(80, 10, 10),
    fingerprint="0123456789abcdef",
)


@pytest.mark.parametrize(
    "carry", [lambda x: x, lambda x: json.loads(json.dumps(x)), lambda x: yaml.safe_load(yaml.safe_dump(x))]
)
def test_a_spec_survives_plain_types_json_and_yaml(carry) -> None:
    assert DataSpec.from_dict(carry(FULL.to_dict())) == FULL


def test_fields_of_a_later_version_are_passed_over() -> None:
    assert DataSpec.from_dict({**FULL.to_dict(), "added_later": 1}) == FULL


@pytest.mark.parametrize(
    ("values", "given"), [(FULL, "DataSpec"), ({"inputs": 5, "outputs": 2}, "keys inputs, outputs"), (5, "int")]
)
def test_from_dict_without_a_task_names_what_is_accepted(values, given: str) -> None:
    with pytest.raises(UserError, match=f"^spec: {given} is no description of data; use a DataSpec, or the spec_dict"):
        DataSpec.from_dict(values)


@pytest.mark.parametrize(
    ("task", "names", "expected"),
    [
        ("regression", {"targets": ("a", "b"), "target_mean": (0.0, 0.0), "target_std": (1.0, 1.0)}, 2),
        ("binary", {"classes": ("no", "yes"), "targets": ("t",)}, 1),
        ("multiclass", {"classes": ("a", "b", "c"), "targets": ("t",)}, 3),
        ("multilabel", {"classes": ("a", "b", "c"), "targets": ("a", "b", "c")}, 3),
    ],
)
def test_out_features_of_every_task(task, names, expected) -> None:
    assert DataSpec(task=task, **names).out_features == expected
    assert task in TASK_NAMES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "ranking"}, "task must be one of regression, binary, multiclass, multilabel, not 'ranking'"),
        ({"cardinalities": ()}, "cardinalities and categorical differ in length: 0 and 1"),
        ({"target_std": (1.0,)}, "target_mean and target_std differ in length: 2 and 1"),
        ({"bin_edges": ((0.0, 1.0),)}, "bin_edges has 1 columns for 2 numeric ones"),
    ],
)
def test_contradictions_are_refused(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        DataSpec.from_dict({**FULL.to_dict(), **change})


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        FULL.task = "binary"
