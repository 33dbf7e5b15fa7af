"""mlp_lab: a research bench for multilayer perceptrons on PyTorch Lightning.

The public names are imported on first use, so that `import mlp_lab` and the help of the command line need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlp_lab.cli.trial import TrialBuilder as TrialBuilder
    from mlp_lab.cli.trial import build_backend as build_backend
    from mlp_lab.data.arrays import ArrayDataModule as ArrayDataModule
    from mlp_lab.data.mnist import MNISTDataModule as MNISTDataModule
    from mlp_lab.data.spec import DataSpec as DataSpec
    from mlp_lab.data.tabular import TabularDataModule as TabularDataModule
    from mlp_lab.diagnostics.callback import Diagnostics as Diagnostics
    from mlp_lab.diagnostics.verdicts import Verdict as Verdict
    from mlp_lab.model.mlp import MLP as MLP
    from mlp_lab.population.diagnosis import PopulationDiagnostics as PopulationDiagnostics
    from mlp_lab.population.module import PopulationModule as PopulationModule
    from mlp_lab.population.stack import Population as Population
    from mlp_lab.sweep.runs import Backend as Backend
    from mlp_lab.sweep.runs import Judge as Judge
    from mlp_lab.sweep.runs import Outcome as Outcome
    from mlp_lab.sweep.runs import Point as Point
    from mlp_lab.sweep.search import run_sweep as run_sweep
    from mlp_lab.sweep.settings import Choice as Choice
    from mlp_lab.sweep.settings import ClusterSettings as ClusterSettings
    from mlp_lab.sweep.settings import DiagnosisSettings as DiagnosisSettings
    from mlp_lab.sweep.settings import StudySettings as StudySettings
    from mlp_lab.sweep.settings import SweepSettings as SweepSettings
    from mlp_lab.sweep.settings import WandbSettings as WandbSettings
    from mlp_lab.sweep.space import Space as Space
    from mlp_lab.training.module import MLPModule as MLPModule

_HOMES = {
    "ArrayDataModule": "mlp_lab.data.arrays",
    "Backend": "mlp_lab.sweep.runs",
    "Choice": "mlp_lab.sweep.settings",
    "ClusterSettings": "mlp_lab.sweep.settings",
    "DataSpec": "mlp_lab.data.spec",
    "DiagnosisSettings": "mlp_lab.sweep.settings",
    "Diagnostics": "mlp_lab.diagnostics.callback",
    "Judge": "mlp_lab.sweep.runs",
    "MLP": "mlp_lab.model.mlp",
    "MLPModule": "mlp_lab.training.module",
    "MNISTDataModule": "mlp_lab.data.mnist",
    "Outcome": "mlp_lab.sweep.runs",
    "Point": "mlp_lab.sweep.runs",
    "Population": "mlp_lab.population.stack",
    "PopulationDiagnostics": "mlp_lab.population.diagnosis",
    "PopulationModule": "mlp_lab.population.module",
    "Space": "mlp_lab.sweep.space",
    "StudySettings": "mlp_lab.sweep.settings",
    "SweepSettings": "mlp_lab.sweep.settings",
    "TabularDataModule": "mlp_lab.data.tabular",
    "TrialBuilder": "mlp_lab.cli.trial",
    "Verdict": "mlp_lab.diagnostics.verdicts",
    "WandbSettings": "mlp_lab.sweep.settings",
    "build_backend": "mlp_lab.cli.trial",
    "run_sweep": "mlp_lab.sweep.search",
}
__all__ = [
    "MLP",
    "ArrayDataModule",
    "Backend",
    "Choice",
    "ClusterSettings",
    "DataSpec",
    "DiagnosisSettings",
    "Diagnostics",
    "Judge",
    "MLPModule",
    "MNISTDataModule",
    "Outcome",
    "Point",
    "Population",
    "PopulationDiagnostics",
    "PopulationModule",
    "Space",
    "StudySettings",
    "SweepSettings",
    "TabularDataModule",
    "TrialBuilder",
    "Verdict",
    "WandbSettings",
    "build_backend",
    "run_sweep",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module("importlib.metadata").version("mlp_lab")
    if name not in _HOMES:
        raise AttributeError(f"module 'mlp_lab' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, "__version__"])
