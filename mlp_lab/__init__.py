"""mlp_lab: a research bench for multilayer perceptrons on PyTorch Lightning.

The public names are imported on first use, so that `import mlp_lab` and the help of the command line need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlp_lab.data.mnist import MNISTDataModule as MNISTDataModule
    from mlp_lab.data.spec import DataSpec as DataSpec
    from mlp_lab.data.tabular import TabularDataModule as TabularDataModule
    from mlp_lab.diagnostics.callback import Diagnostics as Diagnostics
    from mlp_lab.diagnostics.verdicts import Verdict as Verdict
    from mlp_lab.model.mlp import MLP as MLP
    from mlp_lab.population.diagnosis import PopulationDiagnostics as PopulationDiagnostics
    from mlp_lab.population.module import PopulationModule as PopulationModule
    from mlp_lab.population.stack import Population as Population
    from mlp_lab.sweep.search import run_sweep as run_sweep
    from mlp_lab.training.module import MLPModule as MLPModule

_HOMES = {
    "DataSpec": "mlp_lab.data.spec",
    "Diagnostics": "mlp_lab.diagnostics.callback",
    "MLP": "mlp_lab.model.mlp",
    "MLPModule": "mlp_lab.training.module",
    "MNISTDataModule": "mlp_lab.data.mnist",
    "Population": "mlp_lab.population.stack",
    "PopulationDiagnostics": "mlp_lab.population.diagnosis",
    "PopulationModule": "mlp_lab.population.module",
    "TabularDataModule": "mlp_lab.data.tabular",
    "Verdict": "mlp_lab.diagnostics.verdicts",
    "run_sweep": "mlp_lab.sweep.search",
}
__all__ = [
    "MLP",
    "DataSpec",
    "Diagnostics",
    "MLPModule",
    "MNISTDataModule",
    "Population",
    "PopulationDiagnostics",
    "PopulationModule",
    "TabularDataModule",
    "Verdict",
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
