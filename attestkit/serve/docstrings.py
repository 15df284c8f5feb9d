"""Texts of docstrings that users see: in --help, and in the API documents."""

import re
from inspect import cleandoc
from typing import Final

_ATTRIBUTE: Final = re.compile(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


def describe_attributes(kind: type) -> dict[str, str]:
    """Return the descriptions in the section Attributes of a class's docstring, by attribute.

    Each is one line; the result is empty without that section, as with `python -OO`.
    """
    _, _, attributes = cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    return {name: " ".join(words.split()) for name, words in _ATTRIBUTE.findall(attributes)}
