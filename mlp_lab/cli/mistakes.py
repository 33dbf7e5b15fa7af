"""Which exceptions are the user's to mend, and the one line that says so."""

from __future__ import annotations

import re
import sys
from traceback import walk_tb

from mlp_lab.errors import UserError, causes

# Packages of Lightning whose classes a config names, and the key that names them.
EXTENSIONS = {
    "callbacks": "trainer.callbacks",
    "loggers": "trainer.logger",
    "profilers": "trainer.profiler",
    "strategies": "trainer.strategy",
    "plugins": "trainer.plugins",
}
_TOO_MUCH_MEMORY = re.compile(r"out of memory|can't allocate memory|Storage size calculation overflowed")
OBSERVERS = ("lightning.pytorch.callbacks.", "lightning.pytorch.loggers.", "lightning.pytorch.profilers.")


def one_line(error: BaseException) -> str | None:
    """Returns the line for an exception that means 'your input', or None for a defect of the program.

    Files that are missing or unreadable, weights of another architecture, too little memory, packages that are not
    installed, settings that Lightning refuses, and callbacks, loggers and profilers of Lightning that fail are the
    user's; anything else keeps its traceback, and so does a failure of the user's own class.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    text = " ".join(str(error).split())
    if isinstance(error, ValueError) and isinstance(root := _root(error), UserError):
        return str(root)
    if isinstance(error, ValueError) and (built := re.search(r"class_path[ =]'([\w.]+)'", text)):
        return _not_built(built[1], text, _root(error))
    if isinstance(error, RuntimeError) and "loading state_dict" in text:
        return _architecture(text)
    if isinstance(error, MisconfigurationException) and "No supported gpu backend" in text:
        return "trainer.accelerator: 'gpu' needs a GPU that PyTorch can use, and there is none here; use auto or cpu"
    if isinstance(error, MisconfigurationException):
        return f"trainer: {_first_sentence(text)}"
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("mlp_lab"):
        return f"trainer: {_missing_package(text)}"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _TOO_MUCH_MEMORY.search(text)):
        what = f"{_first_sentence(text)}; " if text else ""
        return f"out of memory: {what}lower data.batch_size, data.eval_batch_size or model.width"
    if isinstance(error, UnicodeEncodeError) and error.encoding == sys.getfilesystemencoding():
        return f"{error.object!r}: the locale's encoding, {error.encoding}, has no such file name; set PYTHONUTF8=1"
    if isinstance(error, OSError):
        place = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or text}{place}"
    if is_database_full(error):
        return "study.storage: the disk of the database is full; free some space, then go on with the same command"
    if (failed := _failed_observer(error)) is not None:
        return f"{_extension_key(failed.__module__)}: {failed.__name__}: {text or type(error).__name__}"
    return None


def is_database_full(error: BaseException) -> bool:
    """Returns whether SQLite had no space left; Optuna wraps its error."""
    return any("database or disk is full" in str(cause) for cause in causes(error))


def _root(error: BaseException) -> BaseException:
    """Returns the exception that all others followed from; jsonargparse tries a class among other types of a key."""
    for cause in causes(error):
        error = cause
        if isinstance(cause, UserError):
            break
    return error


def _not_built(path: str, text: str, reason: BaseException) -> str:
    """Says why a class of the config cannot be built: the first error that jsonargparse lists, else the root."""
    first = re.search(r"Errors: - (?!Problem with given class_path)(.*?)(?= - |$)", text)
    why = " ".join(str(reason).split()) if first is None else first[1]
    if "pip install" in text or isinstance(reason, ModuleNotFoundError):
        why = _missing_package(text if "pip install" in text else why)
    return f"{_extension_key(path)}: {path.rpartition('.')[2]}: {why}"


def _missing_package(text: str) -> str:
    """Names the package that an import did not find, and how to install it."""
    requirement = re.findall(r"pip install -U '([^']+)'", text) or re.findall(r"No module named '(\w+)", text)
    if not requirement:
        return text
    name = re.split(r"[<>=!~ ]", requirement[-1])[0]
    return f"the package {name} is not installed; install it with: pip install '{requirement[-1]}'"


def _failed_observer(error: BaseException) -> type | None:
    """Returns the callback, logger or profiler of Lightning whose code raised; None where it is this program's code."""
    found = None
    for frame, _ in walk_tb(error.__traceback__):
        owner = type(frame.f_locals.get("self"))
        if frame.f_globals.get("__name__", "").startswith("mlp_lab."):
            found = None
        elif owner.__module__.startswith(OBSERVERS):
            found = owner
    return found


def _extension_key(path: str) -> str:
    """Returns the key that names a class.

    >>> _extension_key("lightning.pytorch.loggers.MLFlowLogger")
    'trainer.logger'
    """
    return next((EXTENSIONS[part] for part in path.split(".") if part in EXTENSIONS), "trainer")


def _architecture(text: str) -> str:
    """Names the first tensor that does not fit, and both its shapes."""
    match = re.search(
        r"size mismatch for ([\w.]+): copying a param with shape torch\.Size\((\[[\d, ]*\])\) from checkpoint, "
        r"the shape in current model is torch\.Size\((\[[\d, ]*\])\)",
        text,
    )
    if match:
        what = f"{match[1]} has shape {match[2]} in the checkpoint and {match[3]} in this config's model"
    else:
        match = re.search(r"(Missing|Unexpected) key\(s\) in state_dict: \"([\w.]+)\"", text)
        lacking = {"Missing": "the checkpoint", "Unexpected": "this config's model"}
        what = f"{lacking[match[1]]} has no {match[2]}" if match else "its weights have other names or shapes"
    return f"ckpt_path: the checkpoint is of another architecture ({what}); use the config of the run that wrote it"


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0].rstrip(".")
