"""Which code a run directory may name: the program's own classes always, other code only if this user agreed to it.

A run directory may come from another person, and a config can name code by a dotted path: a data module, an activation,
a callback. `fit` records the configs that this user trained, and `--trust` those that this user has read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mlp_lab.errors import UserError
from mlp_lab.text import printable

RECORD = "trusted"
"""File of the state folder; a line is a digest, and the names that it stands for."""
OWN_CLASSES = (
    "mlp_lab.data.mnist.MNISTDataModule",
    "mlp_lab.data.tabular.TabularDataModule",
    "mlp_lab.training.weights_and_biases.WandbRun",
)
OWN = frozenset(
    form for path in OWN_CLASSES for name in [path.rpartition(".")[2]] for form in (path, name, f"mlp_lab.{name}")
)
OF_COMMAND = ("config", "ckpt_path", "weights_only", "verbose", "output", "id", "safe_cells", "return_predictions")
"""Keys that only the command line gives: they name files to read and to write."""
MEASURING = ("accelerator", "devices", "num_nodes", "precision", "deterministic", "benchmark", "inference_mode")
"""Keys of `trainer` that an evaluation takes from a run; they hold words and numbers."""
EXTENSIONS = tuple(
    f"trainer.{key}" for key in ("callbacks", "logger", "plugins", "profiler", "strategy", "accelerator", "precision")
)
WORDS = re.compile(r"auto|cpu|gpu|cuda|mps|tpu|ddp\w*|fsdp|simple|advanced|(16|32|64|bf16)(-\w+)?|transformer-engine.*")
"""Values of these keys that name no code."""
DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


def admitted(
    content: Mapping[str, Any], command: str, *, place: str, arguments: Sequence[str], trust: bool
) -> dict[str, Any]:
    """Returns the part of a run's configuration that a command uses.

    `fit` takes all of it. The other commands only evaluate: they use no callbacks, loggers, plugins, profilers and
    strategies of a run, and no limits on its batches.

    Args:
        content: The configuration of the run directory.
        command: The command.
        place: The flag and the directory as the user gave them, for messages.
        arguments: The words of the command line, the content of other config files included.
        trust: The user gave `--trust`, which is recorded.

    Raises:
        UserError: The configuration names code that this user has not trusted; nothing was imported.
    """
    config = {key: value for key, value in content.items() if key.partition(".")[0] not in OF_COMMAND}
    if command != "fit":
        config = {key: value for key, value in config.items() if not key.startswith("trainer")}
        config["trainer"] = _measuring(content.get("trainer") or {}, plain=command == "summary")
    given = set(_given(arguments))
    names = [name for name in code_names(config) if name not in given]
    if not names:
        return config
    if trust:
        _record([_digest(content, names, _content)], names)
    elif not _recorded([_digest(content, code_names(content), _place), _digest(content, names, _content)]):
        origins = ", ".join(f"{printable(name)} (from {printable(str(locate(name) or 'nowhere'))})" for name in names)
        raise UserError(f"{place}: its config names code to import: {origins}; read this code, then add --trust")
    return config


def remember(config: Mapping[str, Any]) -> None:
    """Records a configuration that this user trains, so that `--run` and `--resume` take its names without a question.

    Later changes of the code are this user's own as long as the file stays in its place.
    """
    if names := code_names(config):
        _record([_digest(config, names, _place)], names)


def code_names(config: Mapping[str, Any]) -> list[str]:
    """Returns the names in a configuration that the parser or the model would import, without the program's own.

    >>> code_names({"data": {"class_path": "TabularDataModule"}, "model": {"activation": "my_module.square"}})
    ['my_module.square']
    """
    return list(dict.fromkeys(value for path, value in _leaves(config) if _is_code(path, value)))


def _is_code(path: str, value: str) -> bool:
    if path.rpartition(".")[2].startswith("class_path") or path in ("data", "data.init_args"):  # text may name a file
        return value not in OWN
    if path.startswith("model.activation"):
        return "." in value
    if path.startswith(EXTENSIONS):
        return bool(DOTTED.fullmatch(value)) or ("_args" not in path and not WORDS.fullmatch(value))
    return False


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yields the text in a configuration with its dotted key, however its keys are nested or joined."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item, path)
    elif isinstance(value, str):
        yield path, value


def locate(name: str) -> Path | None:
    """Returns the file that the import of a dotted name would run last, without importing anything.

    >>> locate("json.decoder.JSONDecoder").name
    'decoder.py'
    """
    parts, found, folders = name.split("."), None, None
    for end in range(1, len(parts) + 1):
        try:
            spec = _find(".".join(parts[:end]), folders)
        except (ImportError, LookupError, ValueError, AttributeError):
            break
        if spec is None:
            break
        if spec.has_location and spec.origin:
            found = Path(spec.origin).absolute()
        if spec.submodule_search_locations is None:
            break
        folders = spec.submodule_search_locations
    return found


def _find(module: str, folders: Any) -> Any:
    finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
    return next((spec for find in finders if find is not None and (spec := find(module, folders)) is not None), None)


def state_folder() -> Path:
    """Returns the folder for what this program remembers of its user: `$XDG_STATE_HOME/mlp_lab`."""
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".local" / "state") / "mlp_lab"


def _measuring(trainer: Any, *, plain: bool) -> dict[str, Any]:
    """Returns the keys of `trainer` that an evaluation uses; `plain` also keeps every number, which a summary shows."""
    if not isinstance(trainer, Mapping):
        return {}
    simple = {key: value for key, value in trainer.items() if value is None or isinstance(value, bool | int | float)}
    kept = {key: value for key, value in trainer.items() if key in MEASURING and not isinstance(value, Mapping)}
    return {**simple, **kept} if plain else kept


def _given(arguments: Sequence[str]) -> Iterable[str]:
    """Yields the words of a command line, and the text in those that hold YAML."""
    for word in arguments:
        for text in (word, word.partition("=")[2]):
            yield text
            try:
                yield from (value for _, value in _leaves(yaml.safe_load(text)))
            except yaml.YAMLError:
                continue


def _place(file: Path) -> str:
    return str(file)


def _content(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return "unreadable"


def _digest(config: Mapping[str, Any], names: Sequence[str], of_file: Any) -> str:
    files = [[name, of_file(file) if (file := locate(name)) else None] for name in sorted(names)]
    text = json.dumps([of_file.__name__, config, files], default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _recorded(digests: Sequence[str]) -> bool:
    try:
        lines = (state_folder() / RECORD).read_text("utf-8", errors="replace").splitlines()
    except (OSError, RuntimeError):  # none yet, or no home directory
        return False
    return not {line.partition(" ")[0] for line in lines}.isdisjoint(digests)


def _record(digests: Sequence[str], names: Sequence[str]) -> None:
    """Appends digests in one write; where the folder cannot be written, the user is asked again."""
    if _recorded(digests):
        return
    lines = "".join(f"{digest} {printable(' '.join(names))}\n" for digest in digests)
    try:
        state_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        with (state_folder() / RECORD).open("a", encoding="utf-8") as file:
            file.write(lines)
    except (OSError, RuntimeError):
        return
