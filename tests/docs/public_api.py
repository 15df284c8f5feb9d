"""The public interface as text: each name of each documented module, with its signature.

`python -m tests.docs.public_api` writes docs/reference/public-api.txt, which a test compares.
"""

import re
from collections.abc import Iterator
from typing import Final

import griffe

from tests.docs.blocks import ROOT

REFERENCE: Final = ROOT / "docs" / "reference"
LISTING: Final = REFERENCE / "public-api.txt"
# Methods with two underscores that callers use by syntax.
_SYNTAX: Final = frozenset(
    {"__call__", "__getitem__", "__iter__", "__len__", "__enter__", "__aenter__", "__await__"}
)
_LONGEST: Final = 40  # characters of a shown value
# As in docs/site/constructors.py.
griffe.stdlib_decorators["attestkit._system.fork_safety.unlocked_property"] = {"property"}


def documented_modules() -> dict[str, str]:
    """Return the documented modules, each with its page in docs/reference."""
    return {
        name: page.name
        for page in sorted(REFERENCE.rglob("*.md"))
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    }


def list_interface() -> str:
    """Return the listing, from the sources; nothing is imported."""
    package = griffe.load("attestkit", search_paths=[ROOT], resolve_aliases=True)
    modules = ["attestkit", *sorted(documented_modules())]
    return "\n\n".join("\n".join(_list_module(package, name)) for name in modules) + "\n"


def _list_module(package: "griffe.Object | griffe.Alias", name: str) -> Iterator[str]:
    yield name
    module = package[name.removeprefix("attestkit.")] if "." in name else package
    for export in sorted(map(str, module.exports or ())):
        found = module.members[export]
        if found.is_alias and name == "attestkit":
            assert isinstance(found, griffe.Alias)
            yield f"  {export} = {found.target_path}"
        else:
            yield from _list_object(export, found)


def _list_object(name: str, found: "griffe.Object | griffe.Alias") -> Iterator[str]:
    if found.is_alias:
        assert isinstance(found, griffe.Alias)
        found = found.final_target
    if isinstance(found, griffe.Function):
        yield from _signatures(name, found, "  ")
    elif isinstance(found, griffe.Class):
        yield f"  class {name}{_bases(found)}"
        in_order = "NamedTuple" in _bases(found)  # of the fields, which have positions
        members = found.members.items() if in_order else sorted(found.members.items())
        for member_name, member in members:
            if member.is_alias or not _is_public(member_name):
                continue
            if isinstance(member, griffe.Function):
                yield from _signatures(member_name, member, "    ")
            elif isinstance(member, griffe.Attribute):
                yield f"    {_attribute(member)}"
    elif isinstance(found, griffe.Attribute):
        yield f"  {_attribute(found)}"
    else:
        yield f"  {name}: module"


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name in {"__init__", "__new__"} | _SYNTAX


def _bases(found: griffe.Class) -> str:
    bases = ", ".join(str(base) for base in found.bases)
    return f"({bases})" if bases else ""


def _signatures(name: str, found: griffe.Function, indent: str) -> Iterator[str]:
    if "property" in found.labels:
        yield f"{indent}{name}: {found.returns}"
        return
    kind = "async def" if "async" in found.labels else "def"
    for label in ("classmethod", "staticmethod"):
        kind = f"{label} {kind}" if label in found.labels else kind
    for one in found.overloads or [found]:
        yield f"{indent}{kind} {name}{one.signature()[len(one.name) :]}"


def _attribute(found: griffe.Attribute) -> str:
    kind = "" if found.annotation is None else f": {found.annotation}"
    value = "" if found.value is None or len(str(found.value)) > _LONGEST else f" = {found.value}"
    return f"{found.name}{kind}{value}"


if __name__ == "__main__":
    LISTING.write_text(list_interface(), encoding="utf-8")
