"""Every notebook runs from its first cell to its last."""

import runpy
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mpl.use("agg")
    monkeypatch.setattr("sys.argv", [str(path)])
    names = runpy.run_path(str(path))
    assert isinstance(names["figure"], Figure)


def test_there_is_one_to_begin_with() -> None:
    assert "first_look" in {path.stem for path in NOTEBOOKS}
