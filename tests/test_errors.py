import pytest

from mlp_lab.errors import UserError, causes, nearest, unknown


def test_user_errors_are_value_errors_so_that_libraries_may_catch_them() -> None:
    assert issubclass(UserError, ValueError)


@pytest.mark.parametrize(
    ("name", "expected"), [("rellu", "relu"), ("tnah", "tanh"), ("relu", "relu"), ("qqqq", None), ("", None)]
)
def test_nearest_is_what_was_meant_or_nothing(name: str, expected: str | None) -> None:
    assert nearest(name, ["relu", "tanh", "sigmoid"]) == expected


def test_nearest_reads_an_iterator_once() -> None:
    assert nearest("rellu", iter(["tanh", "relu"])) == "relu"


def test_unknown_names_key_value_and_all_that_is_accepted() -> None:
    message = str(unknown("model.activation", "rellu", iter(["relu", "tanh"])))
    assert message == "model.activation: 'rellu' is unknown (did you mean 'relu'?); accepted: relu, tanh"


def test_unknown_guesses_nothing_far_fetched() -> None:
    assert str(unknown("model.loss", 3, ["mse", "mae"])) == "model.loss: 3 is unknown; accepted: mse, mae"


def test_causes_of_a_circle_ends() -> None:
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__context__ = second, first
    assert list(causes(first)) == [first, second]
    assert list(causes(None)) == []
