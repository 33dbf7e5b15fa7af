"""Which cases of a parametrised test run by default, and which in the slow part."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """Marks all cases as slow but those that are named, which must exist."""
    listed = list(cases)
    assert all(case in listed for case in quick), f"{quick} are not all among {listed}"
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in listed]
