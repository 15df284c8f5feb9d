"""Environment variables set by several owners."""

import os

import pytest

from attestkit.testing import environment

NAME = "ATTESTKIT_TEST_OF_LAYERS"


@pytest.fixture(autouse=True)
def _put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variable for the test, and restore it."""
    monkeypatch.setenv(NAME, "before")


def _set_by(owner: object, value: str) -> None:
    environment.setenv(owner, NAME, value)


@pytest.mark.parametrize("foreign", ["foreign", None])
@pytest.mark.parametrize("order", [(2, 1), (1, 2)])
def test_restore_keeps_foreign_value(foreign: str | None, order: tuple[int, int]) -> None:
    """A value set between two owners is visible again, and stays."""
    _set_by(1, "a")
    os.environ.pop(NAME)
    if foreign is not None:
        os.environ[NAME] = foreign
    _set_by(2, "b")
    environment.restore(order[0])
    assert os.environ[NAME] == "b" if order[0] == 1 else os.environ.get(NAME) == foreign
    environment.restore(order[1])
    assert os.environ.get(NAME) == foreign
    assert NAME not in environment._variables


def test_restore_after_foreign_value_was_removed() -> None:
    """The previous values are restored in order."""
    _set_by(1, "a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(NAME, "foreign")
        _set_by(2, "b")
        environment.restore(2)
    assert os.environ[NAME] == "a"
    environment.restore(1)
    assert os.environ[NAME] == "before"
    assert NAME not in environment._variables
