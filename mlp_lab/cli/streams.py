"""Standard output and error in any encoding: a character that the terminal does not have never stops a command.

This is a process-wide change: `any_encoding` sets the error handler of both streams, and restores it.
"""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

HANDLER = "mlp_lab.similar"
SIMILAR = {"×": "x", "·": "|", "±": "+/-", "–": "-", "−": "-", "…": "~", "→": ">", "≥": ">=", "≤": "<="}


@contextmanager
def any_encoding() -> Iterator[None]:
    r"""Lets both streams write what their encoding lacks: as similar ASCII, or as an escape such as `\u4e2d`."""
    codecs.register_error(HANDLER, similar)
    with ExitStack() as restore:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a notebook's streams take every character
                restore.callback(_set_errors, stream, stream.errors or "strict")
                _set_errors(stream, HANDLER)
        yield


def _set_errors(stream: io.TextIOWrapper, errors: str) -> None:
    if not stream.closed:
        stream.reconfigure(errors=errors)


def similar(error: UnicodeError) -> tuple[str | bytes, int]:
    r"""Replaces the characters that an encoding lacks: an error handler for `codecs.register_error`.

    >>> codecs.register_error(HANDLER, similar)
    >>> "8 × 8, größe, 中".encode("ascii", HANDLER)
    b'8 x 8, gr\\xf6\\xdfe, \\u4e2d'
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(SIMILAR.get(one, one.encode("ascii", "backslashreplace").decode()) for one in lacking), error.end
