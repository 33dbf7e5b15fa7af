"""The form of a verdict: one finding about a run, with its evidence and its cure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

Severity = Literal["info", "warning", "critical"]
SEVERITIES: tuple[str, ...] = get_args(Severity)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Why a network does not learn, or what is worth knowing of one that does."""

    code: str
    """A key of `CODES`."""
    severity: Severity
    """critical: the run will fail, or has; warning: it learns, but worse than it could; info: worth knowing."""
    layer: int | None = None
    """The layer where it shows most, from 1 at the input; None where it is not one layer's."""
    step: int = 0
    """Optimizer steps after which it could be told."""
    evidence: dict[str, float] = field(default_factory=dict)
    """The numbers behind it, by the keys of the log or a plain name."""
    message: str = ""
    """What happens, the number that shows it, and why: for a student."""
    fix: list[str] = field(default_factory=list)
    """Flags that cure it when they are pasted together behind the command, or one line of Python where no flag can."""
    consequence_of: str | None = None
    """The code of the verdict that explains this one."""

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"severity must be one of {', '.join(SEVERITIES)}, not {self.severity!r}")

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain values, for JSON."""
        return asdict(self)
