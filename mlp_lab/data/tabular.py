"""Any table as a LightningDataModule: read, split, prepared, and described on one printed page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlp_lab.data.columns import Column, infer_columns, read_cells
from mlp_lab.data.description import Description, print_columns, print_description, print_fitted
from mlp_lab.data.module import Loaded, Part, TensorDataModule, check_train_rows
from mlp_lab.data.notation import NotationSettings
from mlp_lab.data.origins import place_of, table_of
from mlp_lab.data.parts import class_codes, describe_parts, row_ids, split_parts, take_rows, with_cells
from mlp_lab.data.preprocessing import SCALINGS, Preprocessor
from mlp_lab.data.readings import ColumnReading, read_columns
from mlp_lab.data.roles import Roles, check_names
from mlp_lab.data.sources import NAMED_TABLES, Source, data_root, read_source
from mlp_lab.data.spec import DataSpec, TaskName
from mlp_lab.data.splits import (
    TEST,
    TRAIN,
    UNUSED,
    check_ratios,
    count_duplicates,
    file_shares,
    split_from_column,
    split_rows,
    training_subset,
)
from mlp_lab.data.tables import MISSING_VALUES
from mlp_lab.data.targets import (
    Target,
    check_present,
    check_task,
    explain_task,
    fit_target,
    infer_task,
    target_remarks,
    written_notations,
)
from mlp_lab.errors import UserError, unknown


class TabularDataModule(TensorDataModule):
    """A table from a file, or one with a name; whatever is fitted is fitted to its training rows.

    Args:
        path: Table file: .csv, .tsv or .txt (also .gz, .bz2, .xz, .zip) or .parquet.
        dataset: Instead of a path, a table with a name: digits (the default), iris, wine, breast_cancer, diabetes,
            or adult, california, telco, letter (`<root>/tabular/NAME.csv`, downloaded from OpenML where absent).
        target: Column to predict, or a list of several; null is the target of a named table.
        task: What is predicted: regression, binary, multiclass, multilabel, or auto to infer it from the target.
        drop: Name of a column to leave out, or a list of several.
        numeric: Columns to read as numbers; by default this is inferred from the cells.
        categorical: Columns to read as categories, or a target whose classes are names; by default this is inferred
            from the cells.
        missing_values: Texts that mean 'missing', besides empty and blank cells; by default ?, NA, NaN, null ...
        decimal: Decimal character of numbers in text, `.` or `,`; by default what most cells of a column show.
        thousands: Character that groups digits (`,`, `.`, `'`, a space, or empty for none); by default found too.
        date_format: Format of dates in text, as in `strptime` (%d.%m.%Y), or ISO8601; by default found too.
        drop_missing_target: Leave out rows without a target instead of refusing them.
        split: Shares of training, validation and test rows, which sum to 1; by default 0.8, 0.1, 0.1. Where a file
            holds the test rows, the table is divided in the proportion of the first two.
        train_rows: Number of training rows to use, at least 1: a fixed, seeded draw, stratified by class, that
            contains every smaller one. Validation and test rows stay.
        split_column: Column that says train, val or test of each row, instead of shares.
        test_path: File with the test rows; `adult` has its own.
        scaling: Scaling of numeric columns: standard, robust, smooth, quantile, minmax or none.
        bins: Bins per numeric column for model.encoder.numeric: piecewise_linear, at least 1; null makes none.
        root: Folder of data files; by default $MLP_LAB_DATA, else data.
        verbose: Print what was read and how it is used, column by column.
        batch_size: Rows of a training batch over all processes, at least 1; more means all training rows.
        eval_batch_size: Rows of a batch for validation, test and prediction over all processes, at least 1.
        seed: Seed of split and shuffling, at least 0; by default the run's `seed_everything`, else 0.
        drop_last: Leave out the last training batch of an epoch if it is not full.
        fitted: Checkpoint from which spec, split and preprocessing are taken instead of being fitted.
    """

    def __init__(
        self,
        path: str | None = None,
        dataset: str | None = None,
        target: list[str] | str | None = None,
        task: str = "auto",
        *,
        drop: list[str] | str | None = None,
        numeric: list[str] | str | None = None,
        categorical: list[str] | str | None = None,
        missing_values: list[str] | str | None = None,
        decimal: str | None = None,
        thousands: str | None = None,
        date_format: str | None = None,
        drop_missing_target: bool = False,
        split: list[float] | None = None,
        train_rows: int | None = None,
        split_column: list[str] | str | None = None,
        test_path: str | None = None,
        scaling: str = "standard",
        bins: int | None = None,
        root: str | None = None,
        verbose: bool = True,
        batch_size: int = 128,
        eval_batch_size: int = 4096,
        seed: int | None = None,
        drop_last: bool = False,
        fitted: str | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed, drop_last=drop_last, fitted=fitted
        )
        check_task(task)
        if scaling not in SCALINGS:
            raise unknown("data.scaling", scaling, SCALINGS)
        if bins is not None and bins < 1:
            raise UserError(f"data.bins: {bins} must be 1 or more")
        check_train_rows(train_rows)
        if path and dataset and not fitted:
            raise UserError(f"data.dataset: {dataset!r} and data.path: {path!r} are both given; leave one out")
        self.path, self.dataset, self.test_path = path, dataset, test_path
        record = NAMED_TABLES.get(dataset or "")
        self.root = root if record is None or record.bundled else str(data_root(root))
        self.target = _listed(target)
        self.task = task
        self.drop, self.numeric, self.categorical = _listed(drop), _listed(numeric), _listed(categorical)
        self.missing_values = MISSING_VALUES if missing_values is None else tuple(_listed(missing_values))
        self.notation = NotationSettings(decimal=decimal, thousands=thousands, date_format=date_format)
        self.drop_missing_target = drop_missing_target
        self.split = check_ratios([0.8, 0.1, 0.1] if split is None else split)
        columns = _listed(split_column)
        if len(columns) > 1:
            raise UserError(f"data.split_column: {columns} are {len(columns)} columns; name one")
        self.split_column = columns[0] if columns else None
        self.train_rows = train_rows
        self.scaling, self.bins, self.verbose = scaling, bins, verbose
        self._no_target = ""
        self._inferred = ""
        self._names: tuple[str, ...] | None = None  # columns that name the rows; None where no cells are kept

    def keep_cells(self, columns: Sequence[str]) -> None:
        """Keeps the cells of the target and of other columns beside the rows; see `TensorDataModule.keep_cells`."""
        self._names = tuple(dict.fromkeys(columns))
        if self._loaded is not None:
            self._loaded, self.verbose = None, False  # what is read is the same, and described already

    def part(self, name: str) -> Part:
        """Returns the train, val, test or predict rows; where the table has no usable target, says why.

        Raises:
            UserError: If there are none.
        """
        if name in ("val", "test") and name not in self.loaded.parts and self._no_target:
            raise UserError(self._no_target)
        return super().part(name)

    def _load(self) -> Loaded:
        state = self.fitted_state
        return self._fit() if state is None else self._apply(state)

    def _read(self, text: Sequence[str]) -> Source:
        return read_source(
            path=self.path,
            dataset=self.dataset,
            test_path=self.test_path,
            root=self.root,
            missing_values=self.missing_values,
            text=text,
        )

    def _fit(self) -> Loaded:
        """Reads the table, splits it, and fits everything else to its training rows."""
        source = self._read([*self.categorical, *(self.target or []), *(self._names or ())])
        roles = Roles.settle(
            source,
            target=self.target,
            drop=self.drop,
            numeric=self.numeric,
            categorical=self.categorical,
            split_column=self.split_column,
        )
        roles.check_task(self.task)
        wanted = [name for name in roles.features if name not in roles.drop]
        frame = source.joined([*wanted, *roles.target], roles.drop)
        readings = read_columns(
            frame.reset_index(drop=True),
            self.notation,
            numeric=[*roles.numeric, *(roles.target if self.task == "regression" else ())],
            categorical=roles.categorical,
        )
        task, codes = self._split(frame, source, roles, readings)
        available = int((codes == TRAIN).sum())
        codes = self._subset(frame, codes, roles, task)
        train = take_rows(frame, codes, TRAIN)
        target = fit_target(
            train, roles.target, task, exact=roles.target_is_text, notations=written_notations(readings, roles.target)
        )
        columns = infer_columns(
            frame.drop(columns=list(roles.target)),
            numeric=roles.numeric,
            categorical=roles.categorical,
            drop=roles.drop,
            keep_constant=bool(source.named and source.named.image_shape),
            readings=readings,
            training=(codes == TRAIN).numpy(),
        )
        if self.verbose:  # before anything that a column's kind may make impossible
            dropped = [Column(name=name, kind="dropped", note="by data.drop") for name in roles.drop]
            shape = source.named.image_shape if source.named else ()
            print_columns(source.label, [*columns, *dropped], shape)
        frame = read_cells(frame, columns, readings)
        preprocessor = Preprocessor.fit(take_rows(frame, codes, TRAIN), columns, scaling=self.scaling)
        if not preprocessor.numeric_features and not preprocessor.categorical:
            raise UserError(f"{table_of(frame)} has no column to predict {', '.join(roles.target)} from")
        parts = self._with_cells(split_parts(frame, codes, preprocessor, target), source, codes, target)
        spec = describe_parts(source, preprocessor, target, parts, self.bins)
        if self.verbose:
            remarks = [*target_remarks(target, readings), *(line for column in columns for line in column.remarks)]
            self._describe(source, spec, frame, codes, available, [*source.remarks, *remarks])
        state = {
            "preprocessor": preprocessor.to_state(),
            "target": target.to_state(),
            "split": codes,
            "files": list(source.fingerprints),
            "file_rows": [len(table) for table in source.frames],
        }
        return Loaded(spec=spec, parts=parts, state=state, source=source.label)

    def _with_cells(
        self, parts: dict[str, Part], source: Source, codes: Tensor | None, target: Target, index: int = 0
    ) -> dict[str, Part]:
        """Adds the cells that `keep_cells` asks for; without `codes` the parts hold rows of table `index` alone."""
        if self._names is None:
            return parts
        tables = range(len(source.frames)) if codes is not None else [index]
        header = source.frames[index].columns
        for table in tables:
            check_names({"id": self._names}, [str(name) for name in source.frames[table].columns], "the table")
        columns = list(dict.fromkeys([*self._names, *(name for name in target.columns if name in header)]))
        cells = pd.concat([source.plain(table, columns) for table in tables])
        return with_cells(parts, cells, codes, self._names, target)

    def _split(
        self, frame: pd.DataFrame, source: Source, roles: Roles, readings: Mapping[str, ColumnReading]
    ) -> tuple[TaskName, Tensor]:
        """Returns the task and the split, (N,) uint8; rows of a test file are test rows.

        The task is inferred from the rows that may train: all of the first file's, or those that the split column says.
        """
        if not self.drop_missing_target:
            check_present(frame, roles.target)
        usable = frame[list(roles.target)].notna().all(axis=1).to_numpy()  # (N,)
        if not usable.any():
            raise UserError(f"data.target: no row of {source.label} has a value in {', '.join(roles.target)}")
        table = source.frames[0]
        codes = np.full(len(frame), TEST, dtype=np.uint8)
        open_rows = np.flatnonzero(usable & (np.arange(len(frame)) < len(table)))  # rows that ratios may split
        if self.split_column is not None:
            column = table[self.split_column]
            given = split_from_column(
                column.tolist(),
                column=self.split_column,
                place=lambda row: place_of(column, row),
            )
            codes[: len(table)] = given.numpy()
            basis = take_rows(frame, torch.from_numpy(np.where(usable, codes, UNUSED)), TRAIN)
            task = self._task(basis, source, roles, readings)
        else:
            basis = frame.iloc[open_rows]
            task = self._task(basis, source, roles, readings)
            codes[open_rows] = self._draw(basis, roles, task, ratios=file_shares(self.split, len(source.frames)))
        codes[~usable] = UNUSED
        return task, torch.from_numpy(codes)

    def _subset(self, frame: pd.DataFrame, codes: Tensor, roles: Roles, task: TaskName) -> Tensor:
        """Returns the split, (N,) uint8, with as many training rows as `train_rows` asks for."""
        if self.train_rows is None:
            return codes
        labels, _ = class_codes(take_rows(frame, codes, TRAIN), roles, task)
        places = (codes == TRAIN).nonzero().flatten()  # (M,)
        kept = training_subset(len(places), self.train_rows, seed=self.resolved_seed, labels=labels)
        codes = codes.clone()
        codes[places[~kept]] = UNUSED
        return codes

    def _task(
        self, rows: pd.DataFrame, source: Source, roles: Roles, readings: Mapping[str, ColumnReading]
    ) -> TaskName:
        if self.task != "auto":
            return cast(TaskName, self.task)  # checked in __init__
        if source.named and roles.target == (source.named.target,):
            return source.named.task
        targets = rows[list(roles.target)]
        task: TaskName = "regression" if roles.target_is_number else infer_task(targets, readings)
        self._inferred = "" if roles.target_is_number else explain_task(targets, readings, task)
        return task

    def _draw(self, rows: pd.DataFrame, roles: Roles, task: TaskName, *, ratios: Sequence[float]) -> NDArray[np.uint8]:
        """Draws a seeded split, stratified by class where there are classes."""
        labels, classes = class_codes(rows, roles, task)
        try:
            drawn = split_rows(len(rows), ratios, seed=self.resolved_seed, labels=labels, classes=classes)
        except UserError as error:
            if labels is None or not self._inferred:
                raise
            raise UserError(f"{error}; {self._inferred}") from error
        return drawn.numpy()

    def _describe(
        self,
        source: Source,
        spec: DataSpec,
        frame: pd.DataFrame,
        codes: Tensor,
        available: int,
        remarks: Sequence[str],
    ) -> None:
        used = (codes != UNUSED).numpy()
        hashes = np.asarray(pd.util.hash_pandas_object(frame[used], index=False), dtype=np.uint64)
        how = "stratified by class" if spec.task in ("binary", "multiclass") else "at random"
        drawn = f"by column {self.split_column!r}" if self.split_column else f"{how}, seed {self.resolved_seed}"
        left_out = available - spec.rows[TRAIN]
        print_description(
            Description(
                spec=spec,
                inferred=self.task == "auto" and source.named is None,
                scaling=f"{self.scaling}: {SCALINGS[self.scaling].words}" if spec.numeric else "",
                split=drawn + ("; test rows from their own file" if len(source.frames) > 1 else ""),
                left_out=left_out,
                duplicates=count_duplicates(hashes, codes[torch.from_numpy(used)]),
                unused=int((~used).sum()) - left_out,
                batch_size=self.batch_size,
                remarks=[*filter(None, [self._inferred]), *remarks],
            )
        )

    def _apply(self, state: Mapping[str, Any]) -> Loaded:
        """Prepares rows as a checkpoint says: the stored split of a known file, else all rows of the new one."""
        preprocessor, target = Preprocessor.from_state(state["preprocessor"]), Target.from_state(state["target"])
        source = self._read([*preprocessor.written, *target.columns, *(self._names or ())])
        known = dict(zip(state["files"], state["split"].split(state["file_rows"]), strict=True))
        new = [index for index, fingerprint in enumerate(source.fingerprints) if fingerprint not in known]
        news: tuple[str, ...] = ()
        if not new:
            frame = source.joined([*preprocessor.numeric, *preprocessor.categorical, *target.columns])
            codes = torch.cat([known[fingerprint] for fingerprint in source.fingerprints])
            parts = self._with_cells(split_parts(frame, codes, preprocessor, target), source, codes, target)
            label = source.label
        else:
            parts = self._with_cells(self._serve(source, new[0], preprocessor, target), source, None, target, new[0])
            label = self.test_path if new[0] and self.test_path else source.label
            if self.verbose:
                news = preprocessor.news(source.plain(new[0], [*preprocessor.numeric, *preprocessor.categorical]))
        if self.verbose:
            rows = {name: part.rows for name, part in parts.items()}
            print_fitted(label, rows, self._no_target, news=news)
        return Loaded(spec=self.spec, parts=parts, state=state, source=label, is_new=bool(new))

    def _serve(self, source: Source, index: int, preprocessor: Preprocessor, target: Target) -> dict[str, Part]:
        """Returns all rows of a new table, to be predicted, and to be tested where they have their target."""
        columns = source.frames[index].columns
        needed = [*preprocessor.numeric, *preprocessor.categorical, *target.columns]
        frame = source.plain(index, [name for name in needed if name in columns])
        numeric, categorical = preprocessor.transform(frame)
        rows = Part(numeric=numeric, categorical=categorical, ids=row_ids(frame))
        try:
            return {"predict": rows} | dict.fromkeys(("val", "test"), self._judged(frame, rows, target))
        except UserError as error:  # the rows can still be predicted; `part` tells whoever wants more
            self._no_target = str(error)
            return {"predict": rows}

    def _judged(self, frame: pd.DataFrame, rows: Part, target: Target) -> Part:
        """Returns the rows of a new table with their targets; without those that lack it, where that is wished."""
        absent = [name for name in target.columns if name not in frame.columns]
        if absent:
            table = table_of(frame, key="data.target")
            raise UserError(f"{table} has no column {absent[0]!r}; without it only predict works")
        usable = frame[list(target.columns)].notna().all(axis=1).to_numpy()  # (N,)
        if not self.drop_missing_target or usable.all():
            return replace(rows, target=target.encode(frame))
        if not usable.any():
            raise UserError(f"{table_of(frame, key='data.target')} has no value in {', '.join(target.columns)}")
        kept = torch.tensor(usable)  # (N,) bool
        return Part(
            numeric=rows.numeric[kept],
            categorical=None if rows.categorical is None else rows.categorical[kept],
            target=target.encode(frame[usable]),
            ids=None if rows.ids is None else rows.ids[kept],
        )


def _listed(value: list[str] | str | None) -> list[str]:
    """Returns what may be one name or several as a list."""
    return [value] if isinstance(value, str) else list(value or [])
