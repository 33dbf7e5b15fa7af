"""The public names."""

import pytest

import mlp_lab


@pytest.mark.parametrize("name", mlp_lab.__all__)
def test_public_names_lead_to_their_classes(name: str) -> None:
    found = getattr(mlp_lab, name)
    assert found.__name__ == name
    assert found.__module__.startswith("mlp_lab.")
    assert name in dir(mlp_lab)


def test_every_home_is_public() -> None:
    assert sorted(mlp_lab._HOMES) == sorted(mlp_lab.__all__)


def test_version_is_the_installed_one() -> None:
    assert mlp_lab.__version__.count(".") == 2


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'MPL'"):
        mlp_lab.MPL  # noqa: B018
