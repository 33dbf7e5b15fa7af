"""Series and layers of measurements; a value that is NaN counts as not measured."""

import math

from mlp_lab.diagnostics.evidence import Evidence, Measured, per_layer


def measured(step: int, **values: float) -> Measured:
    return Measured(step=step, epoch=0, values={key.replace("__", "/"): value for key, value in values.items()})


def test_a_series_leaves_out_what_was_not_measured():
    evidence = Evidence(steps=[measured(1, loss=2.0), measured(2), measured(3, loss=math.nan), measured(4, loss=1.0)])
    assert evidence.series("loss") == [(1, 2.0), (4, 1.0)]
    assert evidence.series("other") == []


def test_steps_and_passes_are_kept_apart():
    evidence = Evidence(steps=[measured(1, loss=2.0)], epochs=[measured(45, loss=1.5)])
    assert evidence.series("loss") == [(1, 2.0)]
    assert evidence.epoch_series("loss") == [(45, 1.5)]


def test_the_last_step_is_the_later_of_both():
    assert Evidence().step == 0
    assert Evidence(steps=[measured(100)], epochs=[measured(45)]).step == 100
    assert Evidence(steps=[measured(10)], epochs=[measured(45)]).step == 45


def test_layers_are_sorted_by_number_and_other_keys_are_not_layers():
    values = {
        "grad/norm/10": 1.0,
        "grad/norm/2": 2.0,
        "grad/norm": 3.0,
        "grad/norm/3": math.nan,
        "grad/norm_clipped": 1,
    }
    assert per_layer(values, "grad/norm") == {2: 2.0, 10: 1.0}
    assert list(per_layer(values, "grad/norm")) == [2, 10]
