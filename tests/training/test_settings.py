import math
from dataclasses import dataclass

import pytest

from mlp_lab.errors import UserError
from mlp_lab.training.settings import check, check_numbers, refuse_unused

USES = {"circle": ("radius",), "square": ("side",), "cube": ("side", "height")}


@dataclass(frozen=True, kw_only=True)
class Shape:
    name: str = "circle"
    radius: float = 1.0
    side: float = 2.0
    height: float = 3.0
    colour: str = "red"


def test_settings_that_the_choice_reads_or_that_all_read_may_change():
    refuse_unused("shape", Shape(radius=7.0, colour="blue"), USES)
    refuse_unused("shape", Shape(name="cube", side=5.0, height=5.0), USES)


def test_a_default_is_no_mistake_even_when_written_out():
    refuse_unused("shape", Shape(name="circle", side=2.0), USES)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (Shape(side=5.0), "shape.side: 5.0 has no effect on 'circle'; it belongs to square, cube"),
        (Shape(name="square", height=1.0), "shape.height: 1.0 has no effect on 'square'; it belongs to cube"),
    ],
)
def test_a_setting_without_effect_is_refused_with_its_users(shape: Shape, message: str):
    with pytest.raises(UserError) as error:
        refuse_unused("shape", shape, USES)
    assert str(error.value) == message


def test_check_names_key_value_and_what_would_do():
    check("a.b", 1, True, "a number")
    with pytest.raises(UserError, match=r"^a\.b: -1 is out of range; accepted: a number > 0$"):
        check("a.b", -1, False, "a number > 0")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"mixup": math.inf}, "mixup: inf is not accepted; use a finite number"),
        ({"model": {"optimizer": {"betas": (0.9, math.nan)}}}, "model.optimizer.betas: nan is not accepted; use a"),
        ({"model": {"width": [8, 2**63]}}, "model.width: 9223372036854775808 is too large; use an integer of at most"),
        ({"model": {"width": -(10**400)}}, r"model.width: -100000000… \(402 digits\) is too large"),
        ({"data": {"class_path": "mlp_lab.A", "init_args": {"bins": math.inf}}}, "data.bins: inf is not accepted"),
    ],
)
def test_check_numbers_value_not_representable_names_the_key(setting: object, message: str):
    with pytest.raises(UserError, match=f"^{message}"):
        check_numbers("", setting)


def test_check_numbers_arguments_of_a_foreign_class_pass():
    check_numbers("", {"data": {"class_path": "mine.Data", "init_args": {"limit": math.inf}}, "seed": 2**63 - 1})
