"""Public names that the examples use: those of blocks that run, and of docs/examples.

A name is used if it is imported from its module, or is an attribute of the imported module. A word
alone does not count: `load` and `Machine` are names of several modules.
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from tests.docs.blocks import ROOT, read_blocks
from tests.docs.public_api import LISTING

_NAME: Final = re.compile(r"  (?:class |async def |def )?(\w+)")
_ALIAS: Final = re.compile(r"  (\w+) = (attestkit[\w.]*)\.(\w+)")
_FROM: Final = re.compile(r"^\s*from (attestkit[\w.]*) import (\([^)]*\)|[^\n]*)", re.MULTILINE)
_IMPORT: Final = re.compile(r"^\s*import (attestkit[\w.]*)$", re.MULTILINE)
_COMMENT: Final = re.compile(r"#.*")


class PublicName(NamedTuple):
    """A name of the public interface."""

    module: str
    name: str


def public_names() -> set[PublicName]:
    """Return the names of docs/reference/public-api.txt, without those of classes."""
    return {
        PublicName(module, match[1])
        for module, lines in _sections()
        for line in lines
        if (match := _NAME.match(line))
    }


def _sections() -> Iterator[tuple[str, list[str]]]:
    for section in LISTING.read_text("utf-8").split("\n\n"):
        module, *lines = section.splitlines()
        yield module, lines


def used_names() -> set[PublicName]:
    """Return the names in examples; one that `attestkit` has, too, counts in both modules."""
    modules = {module for module, _ in _sections()}
    found = {name for text in _examples() for name in _names_of(text, modules)}
    for module, lines in _sections():
        for match in filter(None, map(_ALIAS.match, lines)):
            if PublicName(module, match[1]) in found:
                found.add(PublicName(match[2], match[3]))
    return found


def _examples() -> Iterator[str]:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = ""
        for block in read_blocks(page.read_text("utf-8")):
            if block.is_run or block.is_test:
                text = block.text if "continued" not in block.marks else text + block.text
                yield text
    for program in (ROOT / "docs" / "examples").rglob("*.py"):
        yield program.read_text("utf-8")


def _names_of(text: str, modules: set[str]) -> Iterator[PublicName]:
    imported = {path: path for path in _IMPORT.findall(text)}  # modules by the name in the text
    for module, names in _FROM.findall(text):
        for part in _COMMENT.sub("", names).strip("()").split(","):
            name, _, other = part.strip().partition(" as ")
            yield PublicName(module, name)
            if f"{module}.{name}" in modules:
                imported[other or name] = f"{module}.{name}"
    for shown, path in imported.items():
        for attributes in re.findall(rf"(?<![\w.]){re.escape(shown)}((?:\.\w+)+)", text):
            module = path
            for name in attributes[1:].split("."):
                yield PublicName(module, name)
                module = f"{module}.{name}"
