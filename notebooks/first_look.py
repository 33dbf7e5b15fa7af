# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # A first look
#
# Two runs of `fit` on the handwritten digits that come with scikit-learn, and what their `metrics.csv` says: a network
# that learns (`configs/digits.yaml`), and one built to fail (`configs/sigmoid_deep.yaml`: eight sigmoid layers)
# beside the same depth with ReLU and He initialisation. The figure is the one in the README.

# %%
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from mlp_lab.cli.main import main

HERE = Path(__file__).resolve().parent if "__file__" in globals() else Path.cwd()
CONFIGS = HERE.parent / "configs"


# %%
def fit(config: str, *flags: str) -> pd.DataFrame:
    """Runs `python -m mlp_lab fit` and returns its metrics.csv, one row for each time something was logged."""
    with TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        assert main(["fit", "--config", str(CONFIGS / config), "--run.dir", str(run), *flags]) == 0
        return pd.read_csv(run / "metrics.csv")


# %%
def draw(digits: pd.DataFrame, failing: pd.DataFrame, mended: pd.DataFrame) -> Figure:
    """Draws losses over steps, and the validation accuracy of the two deep networks over epochs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for name, colour in {"train/loss": "#7a7a7a", "val/loss": "#0b6e99"}.items():
        rows = digits.dropna(subset=[name])
        left.plot(rows["step"], rows[name], label=name, color=colour)
    best = digits.loc[digits["val/loss"].idxmin()]
    note = f"kept: validation accuracy {best['val/accuracy']:.3f}"
    left.plot(best["step"], best["val/loss"], "o", color="#0b6e99", label=note)
    left.set(title="digits.yaml learns", xlabel="optimizer step", ylabel="cross-entropy", yscale="log")
    left.legend(frameon=False)
    for rows, label, colour in (
        (mended, "ReLU, He initialisation", "#0b6e99"),
        (failing, "sigmoid, default initialisation", "#c0392b"),
    ):
        passes = rows.dropna(subset=["val/accuracy"])
        right.plot(passes["epoch"] + 1, passes["val/accuracy"], label=label, color=colour)
    right.axhline(0.1, color="#7a7a7a", linestyle=":", label="guessing")
    right.set(title="eight hidden layers, SGD", xlabel="epoch", ylabel="validation accuracy", ylim=(0, 1.02))
    right.legend(frameon=False, loc="center right")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


# %%
figure = draw(
    fit("digits.yaml"),
    fit("sigmoid_deep.yaml"),
    fit("sigmoid_deep.yaml", "--model.activation", "relu", "--model.init", "he"),
)
if "--save" in sys.argv:
    figure.savefig(HERE / "first_look.png", dpi=150)
