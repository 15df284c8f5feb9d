"""Findings of checkers are rarely suppressed, and never without a reason."""

import sys

import pytest

from tests.suppressions import ROOT, exceptions, inline, suppressions_in

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST = 29  # suppressing comments in the whole tree


def test_suppressions_are_few() -> None:
    """The number of suppressing comments in the tree does not grow."""
    found = inline()
    assert len(found) <= MOST, "\n".join(map(str, found))


def test_suppression_has_reason() -> None:
    """The reason is in the comment itself, or in the one that follows it."""
    silent = [one for one in inline() if not one.reason]
    assert silent == [], "\n".join(map(str, silent))


def test_disabled_rule_has_reason() -> None:
    """Each rule disabled in pyproject.toml has a reason on its line or above; none is missed."""
    text = (ROOT / "pyproject.toml").read_text()
    found = exceptions(text)
    assert [one for one in found if not one.reason] == []
    tool = tomllib.loads(text)["tool"]
    lint = tool["ruff"]["lint"]
    files = {"everywhere": lint["ignore"], **lint["per-file-ignores"]}
    expected: list[tuple[str, str]] = [
        (where, rule) for where, every in files.items() for rule in every
    ]
    expected += [("mypy", "override")] * len(tool["mypy"].get("overrides", ()))
    pyright = tool.get("pyright", {}).items()
    expected += [("pyright", rule) for rule, level in pyright if level is False or level == "none"]
    assert sorted((one.place, one.what) for one in found) == sorted(expected)


@pytest.mark.parametrize(
    ("name", "line", "found"),
    [
        ("a.py", "x = 1  # noqa: S101 - as it must be", [("noqa: S101", "as it must be")]),
        (
            "a.py",
            "x = 1  # noqa: S101, E501 - as it must be",
            [("noqa: S101, E501", "as it must be")],
        ),
        ("a.py", "x = 1  # noqa", [("noqa", "")]),
        ("a.py", "x = 1  # noqa: S101", [("noqa: S101", "")]),
        ("a.py", "x = 1  # type: ignore[misc]  # as said", [("type: ignore[misc]", "as said")]),
        ("a.pyi", "x: int  # pyright: ignore[r] - both", [("pyright: ignore[r]", "both")]),
        (
            "a.py",
            "x = 1  # type: ignore[misc]  # noqa: B018 - both",
            [("noqa: B018", "both"), ("type: ignore[misc]", "both")],
        ),
        ("a.py", "# mypy: ignore-errors", [("mypy: ignore-errors", "")]),
        ("a.py", "x = [  # fmt: skip", [("fmt: skip", "")]),
        ("a.py", "x = 1  # pragma: no cover", [("pragma: no cover", "")]),
        ("a.py", "x = '# noqa: S101'", []),
        ("a.py", "x = 1  # how noqa is written", []),
        ("a.c", "/* clang-format off: a table */", [("clang-format off", ": a table")]),
        ("a.inc", "int x; /* NOLINT(misc) - a table */", [("NOLINT(misc)", "a table")]),
        (
            "a.md",
            "<!-- codespell:ignore teh - its name -->",
            [("codespell:ignore teh", "its name")],
        ),
        ("a.md", "`# noqa: S101` is one of them", []),
        ("a.toml", 'a = "teh"  # codespell:ignore teh', [("codespell:ignore teh", "")]),
    ],
)
def test_suppressing_comment_is_found(name: str, line: str, found: list[tuple[str, str]]) -> None:
    """Comments of each checker are found in each kind of file; strings and prose are not."""
    text = line + "\n]\n" if line.endswith("fmt: skip") else line + "\n"
    assert [(one.what, one.reason) for one in suppressions_in(name, text)] == found


def test_rule_without_reason_is_found() -> None:
    """A comment applies to its own line, or to the lines below it up to the next comment."""
    text = """
[tool.ruff.lint]
ignore = [
  "A001", "A004",  # contract
  "EM",
]

[tool.ruff.lint.per-file-ignores]
# Programs.
"a/*" = ["T201"]
"b/*" = ["T201", "INP001"]  # they print
"c/*" = ["S101"]

[tool.pyright]
strict = ["a"]
reportA = false  # it cannot know
reportB = "none"
"""
    reasons = [(one.place, one.what, one.reason) for one in exceptions(text)]
    assert reasons == [
        ("everywhere", "A001", "contract"),
        ("everywhere", "A004", "contract"),
        ("everywhere", "EM", ""),
        ("a/*", "T201", "Programs."),
        ("b/*", "T201", "they print"),
        ("b/*", "INP001", "they print"),
        ("c/*", "S101", ""),
        ("pyright", "reportA", "it cannot know"),
        ("pyright", "reportB", ""),
    ]
