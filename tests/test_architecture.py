"""The house rules of the package, read from its source: floors, circles, sizes, tests for every module, light imports.

Imports run only downwards or inside one folder. Imports within functions and under TYPE_CHECKING count too: a circle
that is only deferred is still a circle.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "errors": 0,
    "flags": 0,
    "files": 0,
    "text": 0,
    "archive": 1,
    "paths": 1,
    "program": 1,
    "data": 2,
    "model": 2,
    "training": 3,
    "diagnostics": 4,
    "evaluation": 4,
    "population": 5,
    "report": 5,
    "sweep": 6,
    "cli": 7,
    "__main__": 8,
    "": 8,  # mlp_lab/__init__.py exports the public names of all floors
}
ACROSS = {("model", "mlp_lab.data.spec")}  # the one way from a folder to another on its floor
HEAVY = {"torch", "torchvision", "torchmetrics", "lightning", "pandas", "numpy", "sklearn", "wandb", "optuna"}
LONGEST_FILE, LONGEST_FUNCTION = 400, 60


def sources(package: Path) -> dict[str, str]:
    """Returns module name -> source; `a/__init__.py` is module `a`."""
    return {module_name(path, package): path.read_text("utf-8") for path in sorted(package.rglob("*.py"))}


def module_name(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(module: str, modules: Mapping[str, str], packages: set[str]) -> Iterator[str]:
    """Yields the package's own modules that `module` imports anywhere in its source."""
    top = module.split(".")[0]
    for node in ast.walk(ast.parse(modules[module])):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: None if module in packages else -1]
            stem = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (stem, node.module) if part)
            found = [f"{base}.{alias.name}" for alias in node.names]
            is_version = base == top and [alias.name for alias in node.names] == ["__version__"]
            names = [] if is_version else [name if name in modules else base for name in found]
        yield from (name for name in names if name.split(".")[0] == top)


def graph(modules: Mapping[str, str]) -> dict[str, set[str]]:
    packages = {name for name in modules if any(other.startswith(f"{name}.") for other in modules)}
    return {module: set(imports(module, modules, packages)) - {module} for module in modules}


def folder(module: str) -> str:
    """Returns the room of a module: `mlp_lab.data.spec` -> `data`; the package itself -> ``."""
    return module.partition(".")[2].partition(".")[0]


def upward(edges: Mapping[str, set[str]]) -> list[str]:
    """Returns every import that leaves its folder and does not go down."""
    wrong = []
    for module, targets in edges.items():
        here = folder(module)
        for target in sorted(targets):
            there = folder(target)
            allowed = here == there or FLOORS[there] < FLOORS[here] or (here, target) in ACROSS
            if not allowed:
                wrong.append(f"{module} (floor {FLOORS[here]}) imports {target} (floor {FLOORS[there]})")
    return wrong


def circle(edges: Mapping[str, set[str]]) -> list[str]:
    """Returns the modules of one import circle, or nothing."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def long_functions(source: str) -> list[tuple[str, int]]:
    """Returns (name, lines) of the functions over the limit, counted from `def` to the last line."""
    functions = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    sized = ((function.name, (function.end_lineno or 0) - function.lineno + 1) for function in functions)
    return [(name, lines) for name, lines in sized if lines > LONGEST_FUNCTION]


def path_of_tests(module: str) -> Path:
    *rooms, name = module.split(".")[1:]
    return Path("tests", *rooms, f"test_{name}.py")


MODULES = sources(ROOT / "mlp_lab")
EDGES = graph(MODULES)
TESTED = sorted(name for name in MODULES if not (ROOT.joinpath(*name.split(".")).is_dir() or name.endswith("__main__")))


def test_every_folder_has_a_floor():
    assert {folder(module) for module in MODULES} <= set(FLOORS)


def test_imports_run_only_downwards():
    assert upward(EDGES) == []


def test_imports_have_no_circle():
    assert circle(EDGES) == []


@pytest.mark.parametrize("module", TESTED)
def test_module_has_its_test_file(module: str):
    assert (ROOT / path_of_tests(module)).is_file(), f"{path_of_tests(module)} is missing"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_module_and_its_functions_are_short(module: str):
    assert MODULES[module].count("\n") <= LONGEST_FILE
    assert long_functions(MODULES[module]) == []


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


@pytest.mark.parametrize("module", ["mlp_lab", "mlp_lab.cli", "mlp_lab.cli.main", "mlp_lab.errors"])
def test_help_and_errors_need_no_heavy_import(module: str):
    loaded = python(f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})").split()
    assert "mlp_lab" in loaded
    assert HEAVY.intersection(loaded) == set()


# The rules themselves, on small packages that break them.


def violations(**files: str) -> tuple[list[str], list[str]]:
    modules = {"mlp_lab": "", **{name.replace("__", "."): source for name, source in files.items()}}
    edges = graph({f"mlp_lab.{name}" if name != "mlp_lab" else name: source for name, source in modules.items()})
    return upward(edges), circle(edges)


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("data__loader", "from mlp_lab.model.mlp import MLP"),
        ("data__loader", "from mlp_lab.model import mlp"),
        ("data__loader", "import mlp_lab.training.module"),
        ("data__loader", "from ..model import mlp"),
        ("model__mlp", "from mlp_lab.data.loader import Batch"),
        ("model__mlp", "def late():\n    from mlp_lab.training.module import MLPModule"),
        ("model__mlp", "if TYPE_CHECKING:\n    from mlp_lab.cli.main import main"),
        ("diagnostics__units", "from mlp_lab.evaluation import scores"),
        ("errors", "from mlp_lab.data import spec"),
        ("training__module", "from mlp_lab import MLP"),
    ],
)
def test_an_upward_or_sideways_import_is_found(module: str, statement: str):
    others = ("data", "model__mlp", "data__loader", "data__spec", "training__module", "evaluation__scores", "cli__main")
    wrong, _ = violations(**{**dict.fromkeys(others, ""), module: statement})
    assert len(wrong) == 1
    assert wrong[0].startswith(f"mlp_lab.{module.replace('__', '.')} ")


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("model__mlp", "from mlp_lab.data.spec import DataSpec"),
        ("model__mlp", "from mlp_lab.data import spec"),
        ("training__module", "from mlp_lab.model.mlp import MLP\nfrom mlp_lab.errors import UserError\nimport torch"),
        ("data__loader", "from . import spec"),
        ("cli__main", "from mlp_lab import __version__"),
    ],
)
def test_an_import_downwards_or_at_home_is_fine(module: str, statement: str):
    others = ("errors", "data", "data__spec", "model__mlp", "cli")
    assert violations(**{**dict.fromkeys(others, ""), module: statement}) == ([], [])


def test_a_circle_is_found_even_when_deferred():
    late = "def late():\n    from mlp_lab.data import splits"
    _, found = violations(data="", data__splits="from mlp_lab.data.loader import Batch", data__loader=late)
    assert set(found) == {"mlp_lab.data.splits", "mlp_lab.data.loader"}


def test_a_long_function_is_found():
    body = "    x = 1\n" * LONGEST_FUNCTION
    assert long_functions(f"class C:\n  def fits(self):\n{body[10:]}") == []
    assert long_functions(f"def long():\n{body}") == [("long", LONGEST_FUNCTION + 1)]
