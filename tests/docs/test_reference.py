"""The reference documents every public name once."""

import inspect
import re
from importlib import import_module
from typing import Final

import attestkit
from tests.docs.blocks import ROOT
from tests.docs.public_api import LISTING, REFERENCE, documented_modules, list_interface
from tests.docs.used_names import PublicName, public_names, used_names

MODULES: Final = documented_modules()
WITHOUT_EXAMPLE: Final = {
    PublicName("attestkit.errors", "NotFoundError"): "of servers, which answer it as status 404",
}
"""Public names that no example uses, with the reason."""


def _top_modules() -> set[str]:
    """Return the public modules of the package."""
    folder = ROOT / "attestkit"
    names = {path.stem for path in folder.glob("*.py")}
    names |= {path.parent.name for path in folder.glob("*/__init__.py")}
    return {f"attestkit.{name}" for name in names if not name.startswith("_")}


def test_every_module_has_a_page() -> None:
    """Each public module but the command line (docs/cli.md) has a page, removed ones none."""
    assert _top_modules() - {"attestkit.cli"} <= MODULES.keys()
    for name, page in MODULES.items():
        assert import_module(name).__name__ == name
        assert page.removesuffix(".md") in name.split(".")


def test_every_public_name_is_documented_once() -> None:
    """An object exported by two modules is documented once; `attestkit` names always are."""
    places: dict[int, set[str]] = {}
    for module in MODULES:
        for name in import_module(module).__all__:
            places.setdefault(id(getattr(import_module(module), name)), set()).add(module)
    classes = [
        (name, places[id(value)])
        for module in MODULES
        for name, value in vars(import_module(module)).items()
        if id(value) in places and (inspect.isclass(value) or inspect.isfunction(value))
    ]
    assert [(name, found) for name, found in classes if len(found) > 1] == []
    for name in attestkit.__all__:
        value = getattr(attestkit, name)
        assert value.__name__ in MODULES if inspect.ismodule(value) else id(value) in places, name


def test_index_has_every_name() -> None:
    """All names are listed in order, each with a link to its documentation."""
    rows = re.findall(
        r"^\| \[`(\w+)`\]\(\w+/(\w+)\.md(?:#([\w.]+))?\)",
        (REFERENCE / "index.md").read_text(),
        re.MULTILINE,
    )
    assert [row[0] for row in rows] == attestkit.__all__
    for name, page, anchor in rows:
        if not anchor:
            assert inspect.ismodule(getattr(attestkit, name))
            continue
        assert anchor == f"attestkit.{page}.{name}"
        assert getattr(import_module(f"attestkit.{page}"), name) is getattr(attestkit, name)


def test_listing_is_the_public_interface() -> None:
    """A change of a public name or signature shows in docs/reference/public-api.txt."""
    listed = LISTING.read_text(encoding="utf-8")
    assert listed == list_interface(), "run python -m tests.docs.public_api, and see its diff"


def test_every_public_name_has_an_example() -> None:
    """Each name is used in a block of the pages that runs, or in docs/examples."""
    names = public_names()
    assert len(names) > 350
    assert names - used_names() == WITHOUT_EXAMPLE.keys()
