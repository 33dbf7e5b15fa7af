"""The data module for tables, end to end: what is fitted, what is served, and every mistake in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mlp_lab.data.module import Part
from mlp_lab.data.parts import is_fitted_by_older_version
from mlp_lab.data.preprocessing import SCALINGS
from mlp_lab.data.splits import UNUSED
from mlp_lab.data.tabular import TabularDataModule
from mlp_lab.errors import UserError

REAL = os.environ.get("MLP_LAB_DATA", "")


def _table(rows: int = 200, seed: int = 0) -> pd.DataFrame:
    """Numbers with gaps, words with gaps, dates, an identifier; targets of every kind."""
    generator = np.random.default_rng(seed)
    size = generator.normal(10, 3, rows)
    days = pd.Timestamp("2024-01-01") + pd.to_timedelta(generator.integers(0, 300, rows), unit="D")
    return pd.DataFrame(
        {
            "size": np.where(generator.random(rows) < 0.1, np.nan, size),
            "count": generator.integers(0, 50, rows),
            "colour": generator.choice(["red", "green", "blue", None], rows),
            "day": days.astype(str),
            "id": [f"row {index}" for index in range(rows)],
            "kind": generator.choice(["a", "b", "c"], rows, p=[0.6, 0.3, 0.1]),
            "price": size * 100 + generator.normal(size=rows),
            "flag": generator.integers(0, 2, rows),
            "other": generator.integers(0, 2, rows),
        }
    )


TARGETS = ["kind", "price", "flag", "other"]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def _write(frame: pd.DataFrame, name: str = "table.csv") -> str:
        frame.to_csv(tmp_path / name, index=False)
        return str(tmp_path / name)

    return _write


def _module(path: str, target: str | list[str] = "kind", **settings: Any) -> TabularDataModule:
    rest = [name for name in TARGETS if name not in target]
    settings = {"drop": rest, "verbose": False, "seed": 0} | settings
    return TabularDataModule(path=path, target=target, **settings)


def _checkpoint(module: TabularDataModule, folder: Path) -> str:
    """Writes what Lightning keeps of a data module, under the key that it uses."""
    path = folder / "best.ckpt"
    torch.save({type(module).__qualname__: module.state_dict()}, path)
    return str(path)


def _same(one: Part, other: Part) -> bool:
    def equal(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
        return a is None if b is None else a is not None and torch.equal(a, b)

    return all(equal(getattr(one, name), getattr(other, name)) for name in ("numeric", "categorical", "target", "ids"))


def _plain(value: Any) -> Any:
    """Makes nested state comparable with ==."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


@pytest.mark.parametrize("scaling", list(SCALINGS))
@pytest.mark.parametrize("target", ["kind", "price"])
def test_other_rows_change_nothing_that_is_fitted(write: Callable[..., str], target: str, scaling: str) -> None:
    """Validation and test rows may be anything, unseen classes of features and wild numbers included."""
    frame = _table()
    frame["part"] = np.resize(["train", "train", "train", "val", "test"], len(frame))
    wild = frame.copy()
    held_out = wild["part"] != "train"
    wild.loc[held_out, "size"] = 1e6
    wild.loc[held_out, "count"] = np.nan
    wild.loc[held_out, "colour"] = "violet"
    wild.loc[held_out, "day"] = "1999-12-31"
    wild.loc[held_out, "price"] = -1e6
    wild.loc[held_out, "kind"] = "c"
    settings: dict[str, Any] = {"split_column": "part", "scaling": scaling, "bins": 5}
    one = _module(write(frame), target, **settings)
    other = _module(write(wild, "wild.csv"), target, **settings)
    for name in ("preprocessor", "target", "split"):
        assert _plain(one.loaded.state[name]) == _plain(other.loaded.state[name])
    assert {**one.spec_dict, "fingerprint": ""} == {**other.spec_dict, "fingerprint": ""}
    assert _same(one.part("train"), other.part("train"))
    assert not _same(one.part("test"), other.part("test"))


def test_what_the_model_gets(write: Callable[..., str]) -> None:
    module = _module(write(_table()))
    spec, train = module.spec, module.part("train")
    parts = ("day: month", "day: day", "day: weekday")  # all in one year
    assert spec.numeric == ("size", "count", "day", *parts, "size is missing")
    assert (spec.categorical, spec.cardinalities) == (("colour",), (4,))
    assert (spec.task, spec.classes, spec.targets) == ("multiclass", ("a", "b", "c"), ("kind",))
    assert spec.rows == (160, 20, 20)
    assert sum(spec.class_counts) == 160
    assert (train.numeric.dtype, train.numeric.shape) == (torch.float32, (160, 7))
    np.testing.assert_allclose(train.numeric[:, 1].mean(), 0, atol=1e-6)  # float32
    assert train.target is not None
    assert torch.bincount(train.target).tolist() == list(spec.class_counts)


def test_ids_are_row_numbers_of_the_source(write: Callable[..., str]) -> None:
    frame = _table()
    module = _module(write(frame))
    ids = []
    for name in ("train", "val", "test"):
        part = module.part(name)
        assert part.ids is not None
        assert part.target is not None
        kinds = [module.spec.classes[code] for code in part.target.tolist()]
        assert kinds == frame["kind"].iloc[part.ids.numpy()].tolist()
        ids += part.ids.tolist()
    assert sorted(ids) == list(range(200))


@pytest.mark.parametrize(
    ("target", "task"),
    [("kind", "multiclass"), ("flag", "binary"), ("price", "regression"), (["flag", "other"], "multilabel")],
)
def test_every_task(write: Callable[..., str], target: str | list[str], task: str) -> None:
    module = _module(write(_table()), target)
    answers = module.part("train").target
    assert module.spec.task == task
    assert answers is not None
    columns = {"regression": (1,), "multilabel": (2,)}.get(task, ())
    assert answers.shape == (160, *columns)
    assert answers.dtype == (torch.float32 if columns else torch.int64)


def test_the_task_can_be_overridden(write: Callable[..., str]) -> None:
    path = write(_table())
    assert _module(path, "flag", task="regression").spec.task == "regression"
    assert _module(path, "flag", task="multiclass").spec.out_features == 2
    assert _module(path, ["price", "flag"]).spec.out_features == 2


def test_the_seed_draws_the_split(write: Callable[..., str]) -> None:
    path = write(_table())
    prints = [_module(path, seed=seed).split_fingerprint for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


def test_a_test_file_leaves_the_table_to_train_and_validate(write: Callable[..., str]) -> None:
    module = _module(write(_table()), test_path=write(_table(50, seed=1), "test.csv"))
    assert module.spec.rows == (178, 22, 50)
    ids = module.part("test").ids
    assert ids is not None
    assert ids.tolist() == list(range(50))


def test_rows_without_a_target_are_left_out_on_request(write: Callable[..., str]) -> None:
    frame = _table()
    frame.loc[[3, 5], "kind"] = None
    module = _module(write(frame), drop_missing_target=True)
    assert sum(module.spec.rows) == 198
    assert (module.loaded.state["split"] == UNUSED).nonzero().flatten().tolist() == [3, 5]


def test_a_checkpoint_brings_spec_split_and_preprocessing(write: Callable[..., str], tmp_path: Path) -> None:
    path = write(_table())
    module = _module(path)
    again = TabularDataModule(path=path, fitted=_checkpoint(module, tmp_path), seed=9, verbose=False)
    assert again.spec == module.spec
    assert again.split_fingerprint == module.split_fingerprint
    for name in ("train", "val", "test"):
        assert _same(again.part(name), module.part(name))
    assert len(list(again.predict_dataloader())) == 1


def test_a_new_table_is_served_whole_by_the_old_rules(write: Callable[..., str], tmp_path: Path) -> None:
    frame = _table()
    module = _module(write(frame))
    assert module.part("test").ids is not None
    rows = module.part("test").ids.numpy()  # type: ignore[union-attr]
    new = write(frame.iloc[rows][["id", "day", "colour", "count", "size"]], "new.csv")  # no target, another order
    fitted = TabularDataModule(path=new, fitted=_checkpoint(module, tmp_path), verbose=False)
    predict = fitted.part("predict")
    assert predict.target is None
    assert torch.equal(predict.numeric, module.part("test").numeric)
    assert torch.equal(predict.categorical, module.part("test").categorical)  # type: ignore[arg-type]
    with pytest.raises(
        UserError, match=r"data\.target: .*new\.csv has no column 'kind'; without it only predict works"
    ):
        fitted.test_dataloader()


def test_a_new_table_with_its_target_can_be_tested(write: Callable[..., str], tmp_path: Path) -> None:
    module = _module(write(_table()))
    checkpoint = _checkpoint(module, tmp_path)
    new = TabularDataModule(path=write(_table(30, seed=2), "new.csv"), fitted=checkpoint, verbose=False)
    assert {name: part.rows for name, part in new.loaded.parts.items()} == {"predict": 30, "val": 30, "test": 30}
    odd = _table(30, seed=2)
    odd.loc[7, "kind"] = "z"
    strange = TabularDataModule(path=write(odd, "odd.csv"), fitted=checkpoint, verbose=False)
    assert strange.part("predict").rows == 30
    with pytest.raises(UserError, match=r"odd\.csv, column 'kind', line 9: 'z' is the class of no training row"):
        strange.test_dataloader()


def test_a_new_test_file_is_the_test_and_training_rows_are_not(write: Callable[..., str], tmp_path: Path) -> None:
    path, test = write(_table()), write(_table(50, seed=1), "test.csv")
    checkpoint = _checkpoint(_module(path, test_path=test), tmp_path)
    same = TabularDataModule(path=path, test_path=test, fitted=checkpoint, verbose=False)
    assert {name: part.rows for name, part in same.loaded.parts.items()} == {"train": 178, "val": 22, "test": 50}
    alone = TabularDataModule(path=path, fitted=checkpoint, verbose=False)
    assert {name: part.rows for name, part in alone.loaded.parts.items()} == {"train": 178, "val": 22}
    new = write(_table(40, seed=5), "new.csv")
    for settings in ({"path": path, "test_path": new}, {"path": new, "test_path": test}, {"path": new}):
        fitted = TabularDataModule(**settings, fitted=checkpoint, verbose=False)
        assert fitted.part("test").rows == 40


def test_codes_survive_a_gap_in_a_declared_category(write: Callable[..., str], tmp_path: Path) -> None:
    """0 and 1 turn into 0.0 and 1.0 when pandas meets a gap; the categories stay the same."""
    frame = _table()
    module = _module(write(frame), drop=["price", "other"], categorical=["flag"])
    gappy = frame.assign(flag=frame["flag"].astype(float).mask(frame.index == 0))
    fitted = TabularDataModule(path=write(gappy, "new.csv"), fitted=_checkpoint(module, tmp_path), verbose=False)
    assert module.loaded.state["preprocessor"]["levels"][1] == ("0", "1")
    codes = fitted.part("predict").categorical
    assert codes is not None
    assert codes[:, 1].tolist() == [0, *(frame["flag"].iloc[1:] + 1).tolist()]


@pytest.mark.parametrize("seed", range(6))
def test_one_odd_cell_does_not_depend_on_the_split(write: Callable[..., str], seed: int) -> None:
    frame = _table()
    frame["size"] = frame["size"].round(3).astype(str).mask(frame.index == 17, "n.a.")
    module = _module(write(frame), seed=seed)
    assert module.spec.numeric[0] == "size"
    assert module.loaded.state["preprocessor"]["stray"] == ("size",)


def test_a_new_file_is_read_in_the_notation_of_training(write: Callable[..., str], tmp_path: Path) -> None:
    frame = _table()
    german = frame.assign(
        size=[f"{value * 1000:,.2f}".translate({44: ".", 46: ","}) for value in frame["size"].fillna(10)],
        count=frame["count"].astype(str) + "%",
        day=pd.to_datetime(frame["day"]).dt.strftime("%d.%m.%Y"),
        price=[f"{value:,.3f}".translate({44: ".", 46: ","}) for value in frame["price"]],
    )
    module = _module(write(german), "price")
    plain = _module(
        write(frame.assign(size=frame["size"].fillna(10) * 1000, price=frame["price"].round(3)), "plain.csv"), "price"
    )
    torch.testing.assert_close(module.part("train").numeric, plain.part("train").numeric, rtol=0, atol=1e-4)
    torch.testing.assert_close(module.part("test").target, plain.part("test").target)
    few = german.iloc[:3].assign(size=["1.234", "12.345", "9.876"], count="5%", price="1.000")
    new = TabularDataModule(path=write(few, "few.csv"), fitted=_checkpoint(module, tmp_path), verbose=False)
    thousands = TabularDataModule(
        path=write(few.assign(size=["1.234,00", "12.345,00", "9.876,00"], price="1.000,0"), "same.csv"),
        fitted=_checkpoint(module, tmp_path),
        verbose=False,
    )
    assert _same(new.part("test"), thousands.part("test"))


def test_what_a_new_file_brings_is_printed_per_column(
    write: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = _module(write(_table()))
    new = write(_table(40).assign(colour="rouge").drop(columns="kind"), "new.csv")
    _ = TabularDataModule(path=new, fitted=_checkpoint(module, tmp_path)).loaded
    printed = " ".join(capsys.readouterr().out.split())
    assert "colour: 100% of the rows have a value that no training row has, such as 'rouge'" in printed


def test_a_declared_target_keeps_its_spelling(write: Callable[..., str]) -> None:
    versions = np.resize(["3.1", "3.10", "3.9", "3.90"], 200)
    declared = _module(write(_changed(kind=versions)), categorical=["kind"])
    assert (declared.spec.task, declared.spec.classes) == ("multiclass", ("3.1", "3.10", "3.9", "3.90"))
    assert _module(write(_changed(kind=versions)), task="multiclass").spec.classes == declared.spec.classes
    codes = _module(write(_changed(kind=np.resize(["1", "2", "3"], 200))), numeric=["kind"])
    assert codes.spec.task == "regression"


def test_an_inferred_task_is_explained_where_it_is_refused(write: Callable[..., str]) -> None:
    frame = _changed(kind=[7, *np.resize([1, 2, 3], 199)])
    with pytest.raises(UserError, match=r"class '7' has one row.*multiclass is inferred from 4 distinct whole numbers"):
        _ = _module(write(frame)).loaded


def test_is_fitted_by_older_version(write: Callable[..., str], tmp_path: Path) -> None:
    checkpoint = Path(_checkpoint(_module(write(_table())), tmp_path))
    assert not is_fitted_by_older_version(checkpoint)
    saved = torch.load(checkpoint, weights_only=True)
    del saved["TabularDataModule"]["state"]["preprocessor"]["forms"]
    torch.save(saved, checkpoint)
    assert is_fitted_by_older_version(checkpoint)
    assert not is_fitted_by_older_version(tmp_path / "none.ckpt")


def test_the_page_is_printed_once(write: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    module = _module(write(_table()), verbose=True)
    for _ in range(2):
        module.setup("fit")
    printed = capsys.readouterr().out
    assert printed.count("kind: multiclass, 3 classes (inferred; data.task overrides)") == 1
    assert "identifier" in printed


@pytest.mark.parametrize(("target", "drop"), [("kind", ["price"]), ("price", ["kind"])])
def test_fewer_training_rows_are_nested_and_leave_the_rest_as_it_is(
    write: Callable[..., str], target: str, drop: list[str]
) -> None:
    path = write(_table(400)[["count", "day", "kind", "price"]])
    whole = _module(path, target, drop=drop)
    kept: list[set[int]] = []
    for rows in (3, 40, 41, 200, 320):
        module = _module(path, target, drop=drop, train_rows=rows)
        train = module.part("train")
        assert train.ids is not None
        kept.append(set(train.ids.tolist()))
        assert (train.rows, module.spec.rows) == (rows, (rows, *whole.spec.rows[1:]))
        for name in ("val", "test"):
            assert torch.equal(module.part(name).ids, whole.part(name).ids)  # type: ignore[arg-type]
        assert (module.split_fingerprint == whole.split_fingerprint) is (rows == 320)
    assert all(smaller < larger for smaller, larger in pairwise(kept))
    assert kept[-1] == set(whole.part("train").ids.tolist())  # type: ignore[union-attr]


def test_fewer_training_rows_are_those_of_the_seed_and_of_the_checkpoint(
    write: Callable[..., str], tmp_path: Path
) -> None:
    path = write(_table())
    module, again, other = (_module(path, train_rows=50, seed=seed) for seed in (0, 0, 1))
    assert _same(module.part("train"), again.part("train"))
    assert module.split_fingerprint != other.split_fingerprint
    fitted = TabularDataModule(path=path, fitted=_checkpoint(module, tmp_path), verbose=False)
    assert _same(fitted.part("train"), module.part("train"))


def test_page_of_the_columns_comes_before_a_refusal_that_rests_on_it(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="inf is infinite"):
        _module(write(_changed(count=[np.inf, *range(199)])), verbose=True).setup("fit")
    assert "count   numeric" in capsys.readouterr().out


def test_error_in_the_test_file_names_its_key_and_line(write: Callable[..., str]) -> None:
    test = write(_table(50).assign(count="many"), "test.csv")
    with pytest.raises(
        UserError, match=r"^data\.test_path: .*test\.csv, column 'count', line 2: 'many' is not a number"
    ):
        _module(write(_table()), numeric=["count"], test_path=test).setup("fit")


def test_rows_of_a_new_table_without_target_are_left_out_of_the_test_where_wished(
    write: Callable[..., str], tmp_path: Path
) -> None:
    checkpoint = _checkpoint(_module(write(_table())), tmp_path)
    frame = _table(30, seed=2)
    frame.loc[[4, 9], "kind"] = None
    path = write(frame, "new.csv")
    with pytest.raises(UserError, match=r"'kind' is missing in 2 of 30 rows, first in line 6 of .*new\.csv; .* true$"):
        TabularDataModule(path=path, fitted=checkpoint, verbose=False).part("test")
    module = TabularDataModule(path=path, fitted=checkpoint, verbose=False, drop_missing_target=True)
    assert {name: part.rows for name, part in module.loaded.parts.items()} == {"predict": 30, "val": 28, "test": 28}
    assert module.part("test").ids.tolist() == [row for row in range(30) if row not in (4, 9)]  # type: ignore[union-attr]


def test_one_name_is_a_list_of_one(write: Callable[..., str]) -> None:
    path = write(_table()[["size", "count", "colour", "kind"]])
    settings: dict[str, Any] = {"drop": "size", "numeric": "count", "categorical": "colour", "missing_values": "none"}
    lists = {name: [value] for name, value in settings.items()}
    assert _module(path, **settings).spec == _module(path, **lists).spec


def test_digits_by_default() -> None:
    module = TabularDataModule(verbose=False, seed=0)
    assert (module.spec.image_shape, len(module.spec.numeric), module.spec.rows) == ((8, 8), 64, (1437, 180, 180))
    assert module.spec.classes == tuple("0123456789")


@pytest.mark.skipif(not (Path(REAL) / "tabular").is_dir(), reason="the real tables are not in $MLP_LAB_DATA/tabular")
@pytest.mark.parametrize(
    ("name", "features", "rows"),
    [("adult", (6, 8), 48842), ("california", (9, 1), 20640), ("telco", (5, 15), 7043), ("letter", (16, 0), 20000)],
)
def test_the_real_tables(name: str, features: tuple[int, int], rows: int) -> None:
    module = TabularDataModule(dataset=name, verbose=False, seed=0)
    assert (len(module.spec.numeric), len(module.spec.categorical)) == features
    assert sum(module.spec.rows) == rows
    assert all(torch.isfinite(module.part(part).numeric).all() for part in ("train", "val", "test"))


def _changed(**columns: Any) -> pd.DataFrame:
    return _table().assign(**columns)


def _lonely() -> pd.DataFrame:
    frame = _table()
    frame.loc[0, "kind"] = "alone"
    return frame


MISTAKES: dict[str, tuple[pd.DataFrame, dict[str, Any], str]] = {
    "no such target": (_table(), {"target": "kinds"}, "has no column 'kinds' (did you mean 'kind'?)"),
    "constant target": (_changed(kind="a"), {}, "data.target: 'kind' is a in every training row"),
    "class with one row": (_lonely(), {}, "class 'alone' has one row"),
    "gap in the target": (
        _changed(price=[None, *range(199)]),
        {"target": "price"},
        "in 1 of 200 rows, first in line 2 of ",
    ),
    "no target at all": (_changed(price=np.nan), {"target": "price", "drop_missing_target": True}, "no row of"),
    "text target in regression": (_table(), {"task": "regression"}, "is not a number"),
    "binary with three classes": (_table(), {"task": "binary"}, "'kind' has 3 (a, b, c); use --data.task multiclass"),
    "target dropped too": (_table(), {"drop": ["kind"]}, "data.drop: 'kind' is already in data.target"),
    "text in a numeric column": (_table(), {"numeric": ["colour"]}, "column 'colour', line 2: 'red' is not a number"),
    "infinite value": (_changed(count=[np.inf, *range(199)]), {}, "column 'count', line 2: inf is infinite"),
    "column without values": (_changed(size=np.nan), {}, "--data.drop '[price, flag, other, size]'"),
    "class called NA": (_changed(kind=["NA", "EU"] * 100), {}, "('NA' is one of data.missing_values); fill"),
    "no features": (_table()[["id", "kind"]], {"drop": ["id"]}, "has no column to predict kind from"),
    "ratios": (_table(), {"split": [0.8, 0.1, 0.2]}, "data.split"),
    "split column": (_changed(part="nowhere"), {"split_column": "part"}, "data.split_column: 'part' has 'nowhere'"),
    "no validation rows": (_changed(part="train"), {"split_column": "part"}, "has no validation rows"),
    "scaling": (_table(), {"scaling": "standart"}, "did you mean 'standard'?"),
    "task": (_table(), {"task": "classify"}, "data.task: 'classify' is unknown"),
    "decimal": (_table(), {"decimal": ";"}, "data.decimal: ';' is not accepted; use one of '.', ','"),
    "regression of a declared category": (
        _table(),
        {"target": "price", "task": "regression", "categorical": ["price"]},
        "data.categorical: 'price' is the target of a regression; leave it out",
    ),
    "bins": (_table(), {"bins": 0}, "data.bins: 0 must be 1 or more"),
    "two tables": (_table(), {"dataset": "iris"}, "are both given; leave one out"),
    "no training rows kept": (_table(), {"train_rows": 0}, "data.train_rows: 0 must be 1 or more"),
    "fewer rows than classes": (_table(), {"train_rows": 2}, "data.train_rows: 2 is fewer than the 3 classes; use at"),
    "more rows than there are": (_table(), {"train_rows": 161}, "data.train_rows: 161 is more than the 160 training"),
}


@pytest.mark.parametrize(("frame", "settings", "words"), list(MISTAKES.values()), ids=list(MISTAKES))
def test_every_mistake_is_told_in_one_line(
    write: Callable[..., str], frame: pd.DataFrame, settings: dict[str, Any], words: str
) -> None:
    settings = {"target": "kind"} | settings
    drop = [name for name in TARGETS if name in frame.columns and name != settings["target"]]
    with pytest.raises(UserError) as caught:
        _module(write(frame), **{"drop": drop} | settings).train_dataloader()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_test_file_must_have_the_columns(write: Callable[..., str]) -> None:
    test = write(_table(50).drop(columns=["size", "kind"]), "test.csv")
    with pytest.raises(UserError, match=r"data\.test_path: .*test\.csv lacks column\(s\) 'size', 'kind'"):
        _module(write(_table()), test_path=test).setup("fit")


def test_prediction_needs_the_features(write: Callable[..., str], tmp_path: Path) -> None:
    checkpoint = _checkpoint(_module(write(_table())), tmp_path)
    new = write(_table().drop(columns=["count"]), "new.csv")
    with pytest.raises(UserError, match=r"new\.csv lacks column\(s\) 'count', which the model was trained on"):
        TabularDataModule(path=new, fitted=checkpoint, verbose=False).setup("predict")
