from __future__ import annotations

from pathlib import Path

import pytest

from mlp_lab.errors import UserError
from mlp_lab.paths import expand_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("~/a.db", "/home/me/a.db"),
        ("$STORE/a.db", "/srv/a b/a.db"),
        ("${STORE}/~/a.db", "/srv/a b/~/a.db"),
        ("a/b.db", "a/b.db"),
        ("a~b$.db", "a~b$.db"),
    ],
)
def test_expand_path_replaces_home_and_variables(text: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("STORE", "/srv/a b")
    assert expand_path("key", text) == Path(expected)


def test_expand_path_of_an_existing_file_is_literal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("usd", "euro")
    assert expand_path("key", "price$usd.csv") == Path("priceeuro.csv")
    Path("price$usd.csv").touch()
    assert expand_path("key", "price$usd.csv") == Path("price$usd.csv")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "$UNSET_VARIABLE/a",
            "key: '$UNSET_VARIABLE/a' names the environment variable UNSET_VARIABLE, which",
        ),
        (
            "${UNSET_VARIABLE}/a",
            "key: '${UNSET_VARIABLE}/a' names the environment variable UNSET_VARIABLE, ",
        ),
        ("~nobody_of_this_name/a", "key: '~nobody_of_this_name/a' begins with a home directory that is unknown"),
    ],
)
def test_expand_path_with_an_unknown_name_is_refused(text: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        expand_path("key", text)
    assert str(caught.value).startswith(line)
