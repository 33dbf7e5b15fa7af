"""Named tables: bundled, from the data folder, from OpenML, or a line that says where to put the file."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pandas as pd
import pytest
import sklearn.datasets

from mlp_lab.data.origins import place_of, row_numbers
from mlp_lab.data.sources import NAMED_TABLES, data_root, read_source
from mlp_lab.errors import UserError

BUNDLED = [name for name, record in NAMED_TABLES.items() if record.bundled]
PUBLIC = [name for name, record in NAMED_TABLES.items() if record.openml]
REAL = Path(os.environ.get("MLP_LAB_DATA", "absent")) / "tabular"


def test_a_named_table_is_either_bundled_or_public() -> None:
    assert sorted(BUNDLED + PUBLIC) == sorted(NAMED_TABLES)


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_tables_are_scikit_learns(name: str) -> None:
    record = NAMED_TABLES[name]
    features, answers = getattr(sklearn.datasets, record.bundled)(return_X_y=True)
    source = read_source(dataset=name)
    frame = source.frames[0]
    np.testing.assert_array_equal(frame.drop(columns=record.target).to_numpy(), features)
    assert frame[record.target].nunique() == len(np.unique(answers))
    assert source.fingerprints == read_source(dataset=name).fingerprints


def test_digits_is_the_default() -> None:
    source = read_source()
    assert source.label == "digits"
    assert source.frames[0].shape == (1797, 65)
    assert source.remarks == ("no table is named, so the digits are used; name your own with --data.path FILE",)
    assert read_source(dataset="digits").remarks == ()


@pytest.mark.parametrize("name", PUBLIC)
def test_real_public_tables_have_their_target(name: str) -> None:
    if not (REAL / f"{name}.csv").is_file():
        pytest.skip(f"{name}.csv is not in $MLP_LAB_DATA/tabular")
    source = read_source(dataset=name)
    record = NAMED_TABLES[name]
    assert {record.target, *record.drop} <= set(source.frames[0].columns)


def test_a_public_table_is_read_with_its_test_file(tmp_path: Path) -> None:
    folder = tmp_path / "tabular"
    folder.mkdir()
    (folder / "adult.csv").write_text("age,income\n1,a\n2,b\n")
    assert len(read_source(dataset="adult", root=str(tmp_path)).frames) == 1
    (folder / "adult-test.csv").write_text("age,income\n3,a\n")
    source = read_source(dataset="adult", root=str(tmp_path))
    assert [len(frame) for frame in source.frames] == [2, 1]
    assert len(set(source.fingerprints)) == 2


def test_joined_rows_keep_their_numbers_and_become_plain(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("n,w,x\n1,2,0\n3,4,0\n")
    (tmp_path / "b.csv").write_text("w,n\nword,5\n")
    source = read_source(path=str(tmp_path / "a.csv"), test_path=str(tmp_path / "b.csv"))
    frame = source.joined(["n", "w"])
    assert row_numbers(frame).tolist() == [0, 1, 0]
    assert place_of(frame, 2) == f"line 2 of {tmp_path / 'b.csv'}"
    assert frame["n"].tolist() == [1, 3, 5]
    assert frame["w"].tolist() == ["2", "4", "word"]
    with pytest.raises(UserError, match=r"data\.test_path: .*b\.csv lacks column\(s\) 'x'"):
        source.joined(["n", "x"])


def test_columns_that_are_not_asked_for_may_hold_anything(tmp_path: Path) -> None:
    frame = pd.DataFrame({"n": [1, 2], "tags": [[1], [2, 3]], "blob": [b"x", b"y"], "unused": [{"a": 1}, {"a": 2}]})
    frame.to_parquet(tmp_path / "t.parquet")
    source = read_source(path=str(tmp_path / "t.parquet"))
    assert source.joined(["n"])["n"].tolist() == [1, 2]
    with pytest.raises(
        UserError, match=r"'tags' \(list\), 'blob' \(bytes\); .* --data\.drop '\[unused, tags, blob\]'$"
    ):
        source.joined(["n", "tags", "blob"], ["unused"])


def test_own_missing_values_hold_for_a_test_file_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("w\nNA\n-\n")
    (tmp_path / "b.csv").write_text("w\n-\nNA\n")
    source = read_source(path=str(tmp_path / "a.csv"), test_path=str(tmp_path / "b.csv"), missing_values=["-"])
    assert source.joined(["w"])["w"].isna().tolist() == [False, True, True, False]


def test_an_absent_table_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fetch(**settings: object) -> SimpleNamespace:
        calls.append(settings["data_id"])
        letters = pd.Categorical(["A", "'B '"])
        return SimpleNamespace(frame=pd.DataFrame({"x-box": [1, 2], "width": [3, 4], "class": letters}))

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch)
    for _ in range(2):
        source = read_source(dataset="letter", root=str(tmp_path))
        frame = source.joined(list(source.frames[0].columns))
    assert calls == [6]
    assert list(frame.columns) == ["x.box", "width", "lettr"]
    assert frame["lettr"].tolist() == ["A", "B"]
    assert [file.name for file in (tmp_path / "tabular").iterdir()] == ["letter.csv"]


def test_without_network_the_error_says_where_the_file_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(**_: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch)
    with pytest.raises(UserError) as caught:
        read_source(dataset="telco", root=str(tmp_path))
    message = str(caught.value)
    assert str(tmp_path / "tabular" / "telco.csv") in message
    assert "no network" in message
    assert "'Churn'" in message
    assert "\n" not in message


def test_a_path_wins_over_a_name(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("a,b\n1,2\n")
    source = read_source(path=str(tmp_path / "mine.csv"), dataset="adult")
    assert source.named is None
    assert source.frames[0].shape == (1, 2)


def test_wrong_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.dataset: 'adlt' is unknown \(did you mean 'adult'\?\)"):
        read_source(dataset="adlt")
    with pytest.raises(UserError, match=r"data\.test_path: 'x\.csv' does not go with the bundled table 'digits'"):
        read_source(test_path="x.csv")
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"data\.test_path: .* does not exist"):
        read_source(path=str(tmp_path / "a.csv"), test_path=str(tmp_path / "zzz.csv"))


def test_the_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLP_LAB_DATA", "/elsewhere")
    assert data_root("here") == Path("here")
    assert data_root(None) == Path("/elsewhere")
    monkeypatch.delenv("MLP_LAB_DATA")
    assert data_root(None) == Path("data")
