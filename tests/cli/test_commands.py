from __future__ import annotations

import logging
import re
import warnings

import pytest

from mlp_lab.cli.commands import FOREIGN_WARNINGS, quieten


def test_only_listed_warnings_are_silenced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "level", logging.INFO)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quieten()
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated", stacklevel=1)
        with pytest.raises(UserWarning, match="of the user's concern"):
            warnings.warn("of the user's concern", stacklevel=1)
    assert logging.getLogger("lightning.pytorch").level == logging.WARNING


@pytest.mark.parametrize("pattern", FOREIGN_WARNINGS)
def test_no_entry_silences_everything(pattern: str) -> None:
    assert not re.match(pattern, "a warning of another kind")
