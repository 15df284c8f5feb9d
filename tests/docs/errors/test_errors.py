"""docs/errors.md describes every exception: bases, exit code, status, attributes, a message."""

import importlib
import inspect
import pkgutil
import re
from typing import Final

import attestkit
from attestkit import errors
from attestkit.cli.exit_codes import exit_code
from attestkit.errors import AttestKitError
from attestkit.serve.rpc.error_responses import status_of
from tests.docs.blocks import ROOT
from tests.runner.cases import every_case

TEXT: Final = (ROOT / "docs" / "errors.md").read_text()
SECTIONS: Final = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
ROWS: Final = re.findall(
    r"^\| \[`(\w+)`\]\(#(\w+)\) \| (.+?) \| (\d) \| (\d+) \|$", TEXT, re.MULTILINE
)


def test_every_error_is_documented() -> None:
    """Every error is once in the table and has one section; removed errors have none."""
    assert sorted(row[0] for row in ROWS) == sorted(errors.__all__)
    assert sorted(SECTIONS) == sorted([*errors.__all__, "Elsewhere"])
    assert [row[0] for row in ROWS] == [name for name in SECTIONS if name != "Elsewhere"]


def test_every_other_error_of_the_package_is_named() -> None:
    """Public errors that modules define themselves are named, too."""
    for module in pkgutil.walk_packages(attestkit.__path__, "attestkit."):
        if module.name.split(".")[-1] not in {"__main__", "plugin"}:
            importlib.import_module(module.name)
    left, found = [AttestKitError], set()
    while left:
        kind = left.pop()
        left += kind.__subclasses__()
        if kind.__module__.startswith("attestkit.") and not kind.__name__.startswith("_"):
            found.add(kind.__name__)
    assert found - set(errors.__all__) == set(
        re.findall(r"^\* `(\w+)`", SECTIONS["Elsewhere"], re.MULTILINE)
    )


@every_case("row", ROWS, ids=lambda row: row[0])
def test_table_row_matches_class(row: tuple[str, ...]) -> None:
    """Bases, exit code and HTTP status of a row are those of the class."""
    name, anchor, bases, code, status = row
    kind = getattr(errors, name)
    assert anchor == name.lower()
    assert re.findall(r"`(\w+)`", bases) == [base.__name__ for base in kind.__bases__]
    error = kind("", reason="")
    assert (int(code), int(status)) == (exit_code(error), status_of(error))


@every_case("name", errors.__all__)
def test_section_names_every_attribute(name: str) -> None:
    """Every public attribute of an error of the class, own or inherited, is named."""
    kind = getattr(errors, name)
    [listed] = re.findall(
        r"^\* \*\*Attributes:\*\* (.*?)(?=^\*)", SECTIONS[name], re.MULTILINE | re.DOTALL
    )
    attributes = {word for word in vars(kind("", reason="")) if word != "_reason"} | {"reason"}
    documented = set(re.findall(r"`(\w+)`", listed))
    for base in re.findall(r"\(#(\w+)\)", listed):
        [section] = [text for title, text in SECTIONS.items() if title.lower() == base]
        documented |= set(re.findall(r"`(\w+)`", section))
    assert attributes - documented == set()
    assert inspect.getdoc(kind)


@every_case("name", errors.__all__)
def test_section_lists_every_reason(name: str) -> None:
    """The table of a class has each of its reasons once, except those of its subclasses."""
    kind = getattr(errors, name)
    listed = re.findall(r"^\| `(\w+)` \|", SECTIONS[name], re.MULTILINE)
    assert len(listed) == len(set(listed))
    narrower = [
        getattr(errors, other)
        for other in errors.__all__
        if other != name and issubclass(getattr(errors, other), kind)
    ]
    inherited = frozenset().union(*(other.reasons() for other in narrower))
    assert set(listed) <= kind.reasons()
    assert kind.reasons() - set(listed) <= inherited
