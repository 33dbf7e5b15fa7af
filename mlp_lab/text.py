r"""Text from data, files and configs, made safe for a terminal, for a spreadsheet and for other readers.

A terminal obeys escape codes in what it is shown: a column's name could clear the screen, retitle the window or turn
the reading direction. A spreadsheet calculates cells that begin like a formula.
"""

from __future__ import annotations

import re
import unicodedata

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""
ORDINARY = "\u200c\u200d"  # joiners, which many scripts and emoji are written with


def printable(text: str, keep: str = "") -> str:
    r"""Returns text with control and format characters, such as escape codes and bidirectional marks, as escapes.

    Args:
        text: Any text.
        keep: Control characters that stay.

    >>> print(printable("a\x1b[2Jb\u202ec"))
    a\x1b[2Jb\u202ec
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(one) if _is_hidden(one) and one not in keep else one for one in text)


def _is_hidden(character: str) -> bool:
    """Says whether a character is a control, a format or a line separator; a lone surrogate is a byte of a path."""
    return character not in ORDINARY and unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


_URL = re.compile(r"([A-Za-z][\w+.-]*://[^\s:/@?#]*):\S*@")  # a password may hold an @
_QUERY = re.compile(r"(?i)([?&](?:\w*password|passwd|pwd|secret|token|api_?key)=)[^&\s#'\"]+")


def without_passwords(text: str) -> str:
    """Returns text in which the URLs have no password, neither before the host nor in the query.

    >>> without_passwords("--storage=postgresql://me:secret@host/db")
    '--storage=postgresql://me@host/db'
    >>> without_passwords("postgresql://me@host/db?password=secret&sslmode=require")
    'postgresql://me@host/db?password=***&sslmode=require'
    """
    return _QUERY.sub(r"\1***", _URL.sub(r"\1@", text)) if "://" in text else text


def safe_cell(text: str) -> str:
    """Returns a cell that a spreadsheet shows as text: with a quote before it where it begins like a formula.

    >>> safe_cell("=1+1"), safe_cell("-1.5"), safe_cell("- none")
    ("'=1+1", '-1.5', "'- none")
    """
    return f"'{text}" if text.startswith(FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
