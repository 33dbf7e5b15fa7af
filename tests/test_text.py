from __future__ import annotations

import pytest

from mlp_lab.text import printable, safe_cell, without_passwords


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("größe 中 👩‍🔬", "größe 中 👩‍🔬"),  # joined by U+200D
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\u202eb\u2066c", "a\\u202eb\\u2066c"),
        ("a\r\nb\tc\x9bd", "a\\r\\nb\\tc\\x9bd"),
        ("a\u2028b\U000e0041", "a\\u2028b\\U000e0041"),
    ],
)
def test_printable_shows_hidden_characters_as_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_printable_keeps_the_lines_of_a_message() -> None:
    assert printable("one\ntwo\x07", keep="\n") == "one\ntwo\\x07"


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "@SUM(A1)", "+a", "- b", "\t=1", "\r=1", "-2+3"])
def test_safe_cell_quotes_what_a_spreadsheet_calculates(text: str) -> None:
    assert safe_cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["a", "-1.5", "+3e-4", "-inf", "", "a=b"])
def test_safe_cell_keeps_numbers_and_words(text: str) -> None:
    assert safe_cell(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me@host/db"),
        ("postgresql://me:sec@ret@host:x/db", "postgresql://me@host:x/db"),
        ("postgresql://host/db?user=me&password=secret", "postgresql://host/db?user=me&password=***"),
        (
            "--storage=mysql+pymysql://me:secret@h/d?sslpassword=secret",
            "--storage=mysql+pymysql://me@h/d?sslpassword=***",
        ),
        ("uri: https://me:secret@host\nname: a@b", "uri: https://me@host\nname: a@b"),
        ("http://host:8080/x?y=1", "http://host:8080/x?y=1"),
        ("C:\\data me:you@here", "C:\\data me:you@here"),
    ],
)
def test_without_passwords_hides_those_of_urls(text: str, shown: str) -> None:
    assert without_passwords(text) == shown
