"""Config files: which ones a command reads, in which order, and every mistake in one told with its file and line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from mlp_lab.errors import UserError, nearest
from mlp_lab.paths import expand_path

# Keys that hold further keys.
SECTIONS = ("run", "data", "model", "trainer", "checkpoint", "early_stopping", "diagnostics")
PACKAGED = ("configs", "sweeps")  # folders of the checkout that an installed package has inside


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


def load_configs(arguments: Sequence[str]) -> list[str]:
    """Replaces every `--config FILE` of the arguments (see `config_first`) by `--config=TEXT`, the file's content.

    The parser takes either. Each file is read here, once, as UTF-8: it may be a pipe, and the locale does not matter.

    Raises:
        UserError: A file is missing, unreadable, empty, no YAML mapping, or says a key twice.
    """
    words: list[str] = []
    remaining = iter(arguments)
    for word in remaining:
        if word == "--config":
            name = next(remaining)
            text, content = read_config(name)
            _check_config(name, content)
            if sys.getfilesystemencoding() == "ascii":  # the parser first asks whether the text names a file
                text = yaml.safe_dump(content)
            words.append(f"--config={text}")
        else:
            words.append(word)
    return words


def find_config(name: str) -> Path:
    """Returns the file that `--config NAME` means: NAME itself, or else the package's own `configs/` or `sweeps/` file.

    Raises:
        UserError: There is no such file.
    """
    path = expand_path("--config", name)
    if path.is_dir():
        raise UserError(f"--config: {name} is a directory; give a YAML file")
    packaged = packaged_file(path)
    if path.exists() or packaged is None:
        folder = path.parent
    else:
        path, folder = packaged, packaged.parent
    if path.exists():  # a file or a pipe
        return path
    guess = nearest(path.name, [item.name for item in folder.glob("*.y*ml")] if folder.is_dir() else [])
    hint = f"did you mean {Path(name).parent / guess}?" if guess else f"looked from {Path.cwd()}"
    raise UserError(f"--config: there is no file {name} ({hint})")


def packaged_file(path: Path) -> Path | None:
    """Returns where the installed package, or the checkout, keeps `configs/NAME` or `sweeps/NAME`; None for others."""
    if len(path.parts) != 2 or path.parts[0] not in PACKAGED:
        return None
    package = Path(__file__).resolve().parents[1]
    inside = package / path
    return inside if inside.parent.is_dir() else package.parent / path


def depth_of_widths(arguments: Sequence[str]) -> list[str]:
    """Returns `--model.depth null` where a list of widths comes after the depth that it replaces, else nothing.

    Later sources win: a list for `model.width` in a later file or in a flag sets the number of layers, whatever an
    earlier file says of `model.depth`. Where one source gives both, they must agree.

    Args:
        arguments: files first, as `load_configs` returns them.
    """
    files = [yaml.safe_load(word.partition("=")[2]) for word in arguments if word.startswith("--config=")]
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
    """Returns `configs/<name>.yaml` of the installed package or of the checkout.

    Raises:
        UserError: The installation lacks it.
    """
    path = packaged_file(Path("configs", f"{name}.yaml"))
    if path is None or not path.is_file():
        raise UserError(f"--config: {name}.yaml is missing from this installation; name a config file")
    return path


def _value(word: str | None) -> str:
    if not word or word.startswith("--"):
        raise UserError("--config: give a YAML file, such as configs/digits.yaml")
    return word


def _check_config(name: str, content: Any) -> None:
    if content is None:
        raise UserError(f"--config: {name} is empty; it should hold keys such as `model:`")
    if not isinstance(content, dict):
        raise UserError(f"--config: {name} holds no keys; it should begin with one such as `model:`")
    for section_name in SECTIONS:
        section = content.get(section_name, {})
        if section is None:
            raise UserError(f"{section_name}: it has no keys in {name}; write them below it, indented, or leave it out")
        if not isinstance(section, dict) and not (section_name == "data" and isinstance(section, str)):
            raise UserError(
                f"{section_name}: {section!r} in {name} is not a group of keys; write them below it, indented"
            )


def read_config(name: str) -> tuple[str, Any]:
    """Reads a YAML file (see `find_config`), or standard input where the name is `-`; a pipe can be read only once.

    Returns:
        The text and its content.

    Raises:
        UserError: It is missing, unreadable, no YAML, or says a key twice.
    """
    try:
        data = sys.stdin.buffer.read() if name == "-" else find_config(name).read_bytes()
        text = data.decode("utf-8-sig")
        return text, yaml.load(text, _StrictLoader)
    except UnicodeDecodeError as error:
        raise UserError(f"--config: {name} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise UserError(f"--config: {name} cannot be read ({error.strerror})") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"--config: {name}{place} is not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UserError(f"--config: {name} is not YAML: {' '.join(str(error).split())}") from error


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
