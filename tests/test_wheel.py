"""The wheel, installed away from the checkout: its configs and sweeps come with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what installing the wheel, without its dependencies, puts on the path."""
    if (uv := shutil.which("uv")) is None:
        pytest.skip("needs uv, which builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    command = [uv, "build", "--wheel", "--out-dir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        pytest.skip(f"the wheel cannot be built here: {built.stderr[-300:]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def mlp_lab(site: Path, folder: Path, words: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from mlp_lab.cli.main import main; sys.exit(main())"
    environment = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, "-c", code, *words.split()],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_wheel_holds_every_config_and_sweep(site: Path) -> None:
    for folder in ("configs", "sweeps"):
        packaged = {path.name for path in (site / "mlp_lab" / folder).iterdir()}
        assert packaged == {path.name for path in (ROOT / folder).glob("*.yaml")}


@pytest.mark.parametrize(
    "words",
    [
        "summary --config configs/sigmoid_deep.yaml",
        "fit --config configs/digits.yaml --config configs/debug.yaml --run.dir run",
        "sweep --config sweeps/digits.yaml --trials 1 --population 1 --trainer.max_epochs 1 --run.dir sweep",
    ],
)
def test_installed_package_finds_its_own_files_in_an_empty_folder(words: str, site: Path, tmp_path: Path) -> None:
    answer = mlp_lab(site, tmp_path, words)
    assert answer.returncode == 0, answer.stderr
    where = subprocess.run(
        [sys.executable, "-c", "import mlp_lab; print(mlp_lab.__file__)"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(site)
