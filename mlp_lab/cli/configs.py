"""Config files: which ones a command reads, in which order, and every mistake in one told with its file and line."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from mlp_lab.errors import UserError, nearest

# Keys that hold further keys.
SECTIONS = ("run", "data", "model", "trainer", "checkpoint", "early_stopping", "diagnostics")


def config_first(arguments: Sequence[str]) -> list[str]:
    """Moves `--config FILE` to the front (after the command), so that flags win over files wherever they stand.

    >>> config_first(["fit", "--model.depth", "4", "--config", "a.yaml"])
    ['fit', '--config', 'a.yaml', '--model.depth', '4']

    Raises:
        UserError: `--config` has no value.
    """
    configs: list[str] = []
    others: list[str] = []
    words = iter(arguments)
    for word in words:
        if word in ("--config", "-c"):
            configs += ["--config", _value(next(words, None))]
        elif word.startswith(("--config=", "-c=")):
            configs += ["--config", _value(word.split("=", 1)[1])]
        else:
            others.append(word)
    command = others[:1] if others and not others[0].startswith("-") else []
    return [*command, *configs, *others[len(command) :]]


def check_configs(arguments: Sequence[str]) -> None:
    """Reads every `--config FILE` of the arguments (see `config_first`) once, to refuse what is no config.

    Raises:
        UserError: A file is missing, unreadable, empty, no YAML mapping, or says a key twice.
    """
    for flag, value in pairwise(arguments):
        if flag == "--config":
            _check_config(Path(value))


def depth_of_widths(arguments: Sequence[str]) -> list[str]:
    """Returns `--model.depth null` where a list of widths comes after the depth that it replaces, else nothing.

    Later sources win: a list for `model.width` in a later file or in a flag sets the number of layers, whatever an
    earlier file says of `model.depth`. Where one source gives both, they must agree.

    Args:
        arguments: files first, as `config_first` returns them; the files are those that `check_configs` has read.
    """
    files = [read_yaml(Path(value)) for flag, value in pairwise(arguments) if flag == "--config"]
    widths_decide = False
    for source in (*(content.get("model") for content in files), _model_flags(arguments)):
        if not isinstance(source, dict):
            continue
        if "depth" in source:
            widths_decide = False
        elif "width" in source:
            widths_decide = isinstance(source["width"], list)
    return ["--model.depth", "null"] if widths_decide else []


def _model_flags(arguments: Sequence[str]) -> dict[str, Any]:
    """Returns the depth and the width that the flags give."""
    given: dict[str, Any] = {}
    for flag, following in pairwise([*arguments, ""]):
        name, equals, value = flag.partition("=")
        if name in ("--model.depth", "--model.width"):
            given[name.removeprefix("--model.")] = _yaml_or_text(value if equals else following)
    return given


def _yaml_or_text(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text  # the parser says what is wrong with it


def default_config(name: str) -> Path:
    """Returns `configs/<name>.yaml` of the installed package or of the checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise UserError(f"--config: {name}.yaml is missing from this installation; name a config file")


def _value(word: str | None) -> str:
    if not word or word.startswith("--"):
        raise UserError("--config: give a YAML file, such as configs/digits.yaml")
    return word


def _check_config(path: Path) -> None:
    content = read_yaml(path)
    if content is None:
        raise UserError(f"--config: {path} is empty; it should hold keys such as `model:`")
    if not isinstance(content, dict):
        raise UserError(f"--config: {path} holds no keys; it should begin with one such as `model:`")
    for name in SECTIONS:
        section = content.get(name, {})
        if section is None:
            raise UserError(f"{name}: it has no keys in {path}; write them below it, indented, or leave it out")
        if not isinstance(section, dict) and not (name == "data" and isinstance(section, str)):
            raise UserError(f"{name}: {section!r} in {path} is not a group of keys; write them below it, indented")


def read_yaml(path: Path) -> Any:
    """Returns the content of a YAML file.

    Raises:
        UserError: It is missing, unreadable, no YAML, or says a key twice.
    """
    if path.is_dir():
        raise UserError(f"--config: {path} is a directory; give a YAML file")
    if not path.is_file():
        siblings = [item.name for item in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        guess = nearest(path.name, siblings)
        hint = f"did you mean {path.parent / guess}?" if guess else f"looked from {Path.cwd()}"
        raise UserError(f"--config: there is no file {path} ({hint})")
    try:
        return yaml.load(path.read_text("utf-8"), _StrictLoader)
    except UnicodeDecodeError as error:
        raise UserError(f"--config: {path} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise UserError(f"--config: {path} cannot be read ({error.strerror})") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"--config: {path}{place} is not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UserError(f"--config: {path} is not YAML: {' '.join(str(error).split())}") from error


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses a mapping that says a key twice (YAML lets the last one win)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Builds a mapping whose keys are distinct."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is repeated", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)
