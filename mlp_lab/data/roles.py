"""Which column plays which part: target, feature, or left out; every wrong name told in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlp_lab.data.sources import Source
from mlp_lab.errors import UserError, nearest
from mlp_lab.flags import flag


@dataclass(frozen=True, kw_only=True)
class Roles:
    """The parts that columns play, checked against the table."""

    target: tuple[str, ...]
    """What is predicted."""
    features: tuple[str, ...]
    """All other columns in the table's order, those in `drop` too."""
    drop: tuple[str, ...] = ()
    """Features to leave out."""
    numeric: tuple[str, ...] = ()
    """Columns declared to be numbers, the target too."""
    categorical: tuple[str, ...] = ()
    """Columns declared to be categories, the target too."""

    @property
    def target_is_text(self) -> bool:
        """Whether a target is declared categorical: its classes are names, spelled as in the table."""
        return bool({*self.target} & {*self.categorical})

    @property
    def target_is_number(self) -> bool:
        """Whether every target is declared numeric."""
        return {*self.target} <= {*self.numeric}

    def check_task(self, task: str) -> None:
        """Refuses a declaration of the target that contradicts `data.task`.

        Raises:
            UserError: A target is declared categorical and the task is regression.
        """
        if task == "regression" and self.target_is_text:
            name = next(name for name in self.target if name in self.categorical)
            raise UserError(
                f"data.categorical: {name!r} is the target of a regression; leave it out, or set data.task: multiclass"
            )

    @classmethod
    def settle(
        cls,
        source: Source,
        *,
        target: Sequence[str] | None = None,
        drop: Sequence[str] = (),
        numeric: Sequence[str] = (),
        categorical: Sequence[str] = (),
        split_column: str | None = None,
    ) -> Roles:
        """Checks the names that the user gave and fills in what a named table knows.

        Raises:
            UserError: If a name is not a column, plays two parts, or no target is given.
        """
        columns = [str(name) for name in source.frames[0].columns]
        if source.named:
            target = target or [source.named.target]
            drop = [*drop, *(name for name in source.named.drop if name in columns and name not in drop)]
        if not target:
            example = flag("data.target", columns[-1])
            raise UserError(
                f"data.target: name the column of {source.label} to predict, such as {example}; "
                f"it has {_listed(columns)}"
            )
        given = {
            "data.target": tuple(target),
            "data.split_column": (split_column,) if split_column is not None else (),
            "data.drop": tuple(drop),
            "data.numeric": tuple(numeric),
            "data.categorical": tuple(categorical),
        }
        check_names(given, columns, source.label)
        taken = {*given["data.target"], *given["data.split_column"]}
        return cls(
            target=given["data.target"],
            features=tuple(name for name in columns if name not in taken),
            drop=given["data.drop"],
            numeric=given["data.numeric"],
            categorical=given["data.categorical"],
        )


def check_names(given: Mapping[str, tuple[object, ...]], columns: Sequence[str], label: str) -> None:
    """Refuses names that are no column, and columns that are named twice."""
    first_key: dict[str, str] = {}
    for key, names in given.items():
        for name in names:
            if not isinstance(name, str):
                raise UserError(
                    f"{key}: {name} is not a column name; YAML reads no, yes, on and off as booleans: quote it"
                )
            if name not in columns:
                guess = nearest(str(name), columns)
                several = [part.strip() for part in name.split(",")]
                if len(several) > 1 and set(several) <= set(columns):
                    hint = f" (did you mean {flag(key, several)}?)"
                else:
                    hint = f" (did you mean {guess!r}?)" if guess else ""
                raise UserError(f"{key}: {label} has no column {name!r}{hint}; it has {_listed(columns)}")
            is_typed_target = first_key.get(name) == "data.target" and key in ("data.numeric", "data.categorical")
            if name in first_key and not is_typed_target:
                raise UserError(f"{key}: {name!r} is already in {first_key[name]}; a column plays one part")
            first_key[name] = key


def _listed(names: Sequence[str], limit: int = 30) -> str:
    return ", ".join(names[:limit]) + (f", … ({len(names)} columns)" if len(names) > limit else "")
