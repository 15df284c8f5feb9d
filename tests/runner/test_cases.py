"""Tests of the decorator that runs a test over all rows of a table."""

from pathlib import Path

import pytest

from tests.runner.cases import every_case
from tests.untyped import untyped


def test_every_case_is_run_with_fixtures(tmp_path: Path) -> None:
    """The test is called with each row's values, and with its fixtures."""
    seen = []

    @every_case("size,name", [(1, "a"), pytest.param(2, "b", id="second")])
    @every_case("flag", [False, True])
    def check(size: int, name: str, flag: bool, tmp_path: Path) -> None:
        seen.append((size, name, flag, tmp_path))

    check(tmp_path=tmp_path)
    rows = [(1, "a"), (2, "b")]
    assert seen == [(*row, flag, tmp_path) for row in rows for flag in (False, True)]


def test_every_case_reports_each_failed_case_by_name() -> None:
    """No failure hides another one, whether it is an assertion, an error or a failure."""

    @every_case("size", [0, pytest.param(1, id="one"), 2, 3])
    def check(size: int) -> None:
        if size == 1:
            assert size == 5
        elif size == 2:
            raise KeyError(size)
        elif size == 3:
            with pytest.raises(ValueError, match="missing"):
                pass

    with pytest.raises(AssertionError) as caught:
        check()
    first, *failed = str(caught.value).splitlines()
    assert first.startswith("3 of 4 cases failed")
    starts = [line.partition(" line")[0] for line in failed if line.startswith("[")]
    assert starts == ["[1: one]", "[2: 2]", "[3: 3]"]
    assert isinstance(caught.value.__cause__, AssertionError)


@pytest.mark.parametrize("ids", [lambda value: f"<{value}>", ["<a>-<b>"]])
def test_every_case_is_named_by_its_id(ids: object) -> None:
    """An id is that of a function for each value, or that of the list."""

    @every_case("one,other", [("a", "b")], ids=untyped(ids))
    def check(one: str, other: str) -> None:
        assert one == other

    with pytest.raises(AssertionError, match=r"\[0: <a>-<b>\] line \d+: AssertionError"):
        check()


@pytest.mark.parametrize("failing", [False, True])
def test_skipped_case_hides_no_other(failing: bool) -> None:
    """The rows after it are run, and a failure is a failure."""
    seen = []

    @every_case("size", [0, 1, 2])
    def check(size: int) -> None:
        seen.append(size)
        if size == 0:
            pytest.skip("not here")
        assert size < 2 or not failing

    if failing:
        with pytest.raises(AssertionError, match="1 of 3 cases failed"):
            check()
    else:
        with pytest.raises(pytest.skip.Exception, match="1 of 3 cases: not here"):
            check()
    assert seen == [0, 1, 2]


def test_table_without_rows_skips() -> None:
    """Without the shared vectors, a table is empty."""

    @every_case("one", [])
    def check(one: str) -> None:
        raise AssertionError(one)

    with pytest.raises(pytest.skip.Exception):
        check()


def test_rows_with_marks_are_refused() -> None:
    """A mark applies to an item, but a row is only a part of one."""
    with pytest.raises(AssertionError, match="row 1 has marks"):
        every_case("one", [0, pytest.param(1, marks=pytest.mark.slow)])


def test_names_must_be_arguments_of_the_test() -> None:
    """A name that the test does not take would be an error in each row only."""
    with pytest.raises(AssertionError, match="other"):

        @every_case("other", [1])
        def check(one: int) -> None:
            raise AssertionError(one)
