from __future__ import annotations

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from mlp_lab.sweep.facts import Counts, count_trials, params_of


def test_what_was_cut_off_is_not_finished() -> None:
    study = optuna.create_study()
    for state, attributes in (
        (TrialState.PRUNED, {}),
        (TrialState.FAIL, {"error": "out of memory"}),
        (TrialState.FAIL, {"lost": "its worker died"}),
        (TrialState.RUNNING, {}),
        (TrialState.WAITING, {}),
        (TrialState.WAITING, {}),
    ):
        study.add_trial(optuna.create_trial(state=state, user_attrs=attributes))
    study.add_trial(optuna.create_trial(state=TrialState.COMPLETE, value=1.0))
    assert count_trials(study) == Counts(finished=3, running=1, waiting=2)


def test_a_point_is_whole_before_all_of_it_was_asked() -> None:
    trial = optuna.create_trial(
        state=TrialState.RUNNING,
        params={"x": 0.5},
        distributions={"x": FloatDistribution(0, 1)},
        system_attrs={"fixed_params": {"x": 0.25, "y": 2.0}},
    )
    assert params_of(trial) == {"x": 0.5, "y": 2.0}
