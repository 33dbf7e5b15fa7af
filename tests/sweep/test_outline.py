from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from mlp_lab.sweep.outline import outline
from mlp_lab.sweep.settings import SweepSettings

SWEEP: dict[str, Any] = {
    "base": "configs/digits.yaml",
    "diagnosis": {"prune": ["nonfinite", "dead_units"]},
    "trials": 64,
    "study": {
        "name": "a",
        "storage": "postgresql://me:secret@host/db",
        "sampler": {"name": "tpe", "n_ei_candidates": 9},
    },
    "space": {
        "model.depth": {"type": "int", "low": 1, "high": 6},
        "model.optimizer.lr": {"type": "float", "low": 1e-4, "high": 0.1, "log": True},
        "model.norm": {"type": "categorical", "choices": ["none", None, True], "when": {"model.depth": [1, 2]}},
        "model.width": {"type": "int", "low": 1, "high": 9, "step": 2, "per_layer": True},
    },
}


def test_outline_tells_the_whole_search_without_a_password() -> None:
    assert outline(SweepSettings.read(SWEEP), Path("runs")) == [
        "study   a: val/loss",
        "base    configs/digits.yaml",
        "space   model.depth         1 to 6",
        "        model.optimizer.lr  0.0001 to 0.1, log scale",
        "        model.norm          none, null, true, when model.depth is 1 or 2",
        "        model.width         1 to 9 in steps of 2, for each layer",
        "budget  64 trials, up to 16 trained together",
        "search  sampler tpe n_ei_candidates=9, seed 0",
        "        pruner asha ends trials that fall behind (pruned)",
        "        verdicts end a trial (diagnosed): nonfinite, dead_units",
        "storage postgresql://me@host/db",
    ]


def test_outline_of_a_cluster_names_its_workers() -> None:
    changes = {"backend": "slurm", "cluster": {"workers": 4}, "seeds": 3, "enqueue": [{"model.depth": 1}]}
    study = {"name": "a", "direction": "minimize"}
    lines = outline(SweepSettings.read({**SWEEP, **changes, "study": study}), Path("runs"))
    assert lines[0] == "study   a: minimize val/loss"
    assert lines[6] == (
        "budget  64 trials, up to 16 trained together, 3 seeds each, 1 given points first, 4 workers on slurm"
    )
    assert lines[-1] == "storage runs/study.db"


def test_outline_needs_no_heavy_import() -> None:
    code = "import sys, mlp_lab.sweep.outline; print({'torch', 'optuna', 'numpy', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
