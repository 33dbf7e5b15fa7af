"""Config files: which ones a command reads, in which order, and every mistake in one told with its file and line."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from mlp_lab.cli.yaml_text import DEEPEST, read_yaml
from mlp_lab.errors import UserError, nearest
from mlp_lab.paths import expand_path

# Keys that hold further keys.
SECTIONS = ("run", "data", "model", "trainer", "checkpoint", "early_stopping", "diagnostics")
PATIENCE = 4.0  # seconds for which a pipe without a writer is read
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
    others = _join_dashes(others)
    command = others[:1] if others and not others[0].startswith("-") else []
    return [*command, *configs, *others[len(command) :]]


def _join_dashes(words: Sequence[str]) -> list[str]:
    """Joins a flag and its value where the value begins with a dash, which the parser would take for a flag.

    >>> _join_dashes(["--data.path", "-x.csv", "--model.bias", "-1e-3", "-h"])
    ['--data.path=-x.csv', '--model.bias=-1e-3', '-h']
    """
    joined: list[str] = []
    for word in words:
        is_value = word.startswith("-") and not word.startswith("--") and word != "-h"
        if is_value and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


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
            _check_bounds(word)
            words.append(word)
    return words


def _check_bounds(word: str) -> None:
    """Refuses a flag's value that would fill the memory or the stack of the parser; other mistakes are left to it."""
    flag, equals, value = word.partition("=")
    text = value if equals and flag.startswith("--") else word
    if len(text) < DEEPEST:  # neither deep nor an alias of much
        return
    try:
        read_yaml(text)
    except yaml.composer.ComposerError as error:
        raise UserError(f"{text[:40]}…: {error.problem}") from error
    except yaml.YAMLError:
        return


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
    files = [read_yaml(word.partition("=")[2]) for word in arguments if word.startswith("--config=")]
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
        return read_yaml(text)
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


def _read_bytes(path: Path) -> bytes:
    """Returns the content of a file, or of a pipe to which another process writes.

    Raises:
        UserError: No process opens the pipe to write.
    """
    if not path.is_fifo():
        return path.read_bytes()
    end = time.monotonic() + PATIENCE
    pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # without the flag, it waits for a writer for ever
    with open(pipe, "rb", buffering=0) as stream:
        while time.monotonic() < end:
            try:
                start = os.read(pipe, 1)
            except BlockingIOError:  # a writer has opened it and takes its time
                start = None
            if start != b"":
                os.set_blocking(pipe, True)
                return (start or b"") + stream.readall()
            time.sleep(0.02)
    raise UserError(f"--config: {path} is a pipe to which nothing is written; name a file, or start its writer first")


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
        data = sys.stdin.buffer.read() if name == "-" else _read_bytes(find_config(name))
        text = data.decode("utf-8-sig")
        return text, read_yaml(text)
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
