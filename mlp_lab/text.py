r"""Text from data, files and configs, made safe for a terminal and for a spreadsheet.

A terminal obeys escape codes in what it is shown: a column's name could clear the screen, retitle the window or turn
the reading direction. A spreadsheet calculates cells that begin like a formula.
"""

from __future__ import annotations

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
