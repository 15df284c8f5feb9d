"""Variables that several set one over the other."""

import os

import pytest

from attestkit.testing import environment

NAME = "ATTESTKIT_TEST_OF_LAYERS"


@pytest.fixture(autouse=True)
def _put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have it be something before, and again afterwards."""
    monkeypatch.setenv(NAME, "before")


def _set_by(owner: object, value: str) -> None:
    environment.setenv(owner, NAME, value)


@pytest.mark.parametrize("theirs", ["theirs", None])
@pytest.mark.parametrize("order", [(2, 1), (1, 2)])
def test_what_another_set_between_is_left(theirs: str | None, order: tuple[int, int]) -> None:
    """It is there again when what was set over it is taken back, and stays."""
    _set_by(1, "a")
    os.environ.pop(NAME)
    if theirs is not None:
        os.environ[NAME] = theirs
    _set_by(2, "b")
    environment.restore(order[0])
    assert os.environ[NAME] == "b" if order[0] == 1 else os.environ.get(NAME) == theirs
    environment.restore(order[1])
    assert os.environ.get(NAME) == theirs
    assert NAME not in environment._variables


def test_what_another_set_between_and_took_back() -> None:
    """What was below it is taken back then as ever."""
    _set_by(1, "a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(NAME, "theirs")
        _set_by(2, "b")
        environment.restore(2)
    assert os.environ[NAME] == "a"
    environment.restore(1)
    assert os.environ[NAME] == "before"
    assert NAME not in environment._variables


def test_an_owner_that_sets_it_again_leaves_what_another_set() -> None:
    """Its first value is below theirs, and does not come back."""
    _set_by(1, "a")
    os.environ[NAME] = "theirs"
    _set_by(1, "b")
    environment.restore(1)
    assert os.environ[NAME] == "theirs"
