"""Which exceptions are the user's to mend, and the one line that says so."""

from __future__ import annotations

import re

from mlp_lab.errors import UserError


def one_line(error: BaseException) -> str | None:
    """Returns the line for an exception that means 'your input', or None for a defect of the program.

    Files that are missing or unreadable, weights of another architecture, too little memory, and settings that
    Lightning refuses are the user's; anything else keeps its traceback.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    text = " ".join(str(error).split())
    if "any of the Union subtypes" in text and isinstance(error.__cause__ or error.__context__, UserError):
        return str(error.__cause__ or error.__context__)  # jsonargparse tries a class among other types
    if isinstance(error, RuntimeError) and "loading state_dict" in text:
        return _architecture(text)
    if isinstance(error, MisconfigurationException):
        return f"trainer: {_first_sentence(text)}"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "out of memory" in text):
        return f"out of memory: {_first_sentence(text)}; lower data.batch_size, data.eval_batch_size or model.width"
    if isinstance(error, OSError):
        place = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or text}{place}"
    return None


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
