"""TOML of people's files, with bounds on what its parser would take long or deep for."""

import re
import sys
from typing import Any, Final

from attestkit._sanitize import one_line
from attestkit.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["LARGEST", "decode"]

LARGEST: Final = 1 << 20
"""Bytes of a file that is read: 1 MiB."""

_LONGEST: Final = 200  # characters of what the parser says
_DEEPEST: Final = 16  # brackets in brackets; our files have three
_MOST_DOTS: Final = 16  # in a line, outside of text; our keys have three
# Dots and opening brackets of a file, outside of text. Each may make a table, and what the parser
# notes of it, about a KiB; our largest files have some hundred.
_MOST_TABLES: Final = 16_384
# Text and comments, which may hold anything, and the marks that count.
_MARKS: Final = re.compile(
    # The last two quotes may be text. A backslash may be the file's last character: where a text
    # could fail at its end, each of many that begin would be read to there. As none can, runs of
    # plain characters are no risk, and a repetition that remembers each of them takes much memory.
    r'"""(?:[^\\"]+|\\(?:.|\Z)|"(?!""))*(?:"{3,5}|\Z)'
    r"|'''(?:[^']+|'(?!''))*(?:'{3,5}|\Z)"
    r'|"(?:[^"\\\n]+|\\.)*"?'
    r"|'[^'\n]*'?"
    r"|\#[^\n]*"
    r"|[\[{\]}.\n]",
    re.DOTALL,
)


def decode(text: str | bytes) -> dict[str, Any]:
    """Return what TOML of at most 1 MiB says.

    Raises:
        ConfigError: It is no TOML, or longer, or nests too deeply; the text shows no value.
    """
    if len(text) > LARGEST:
        raise ConfigError(f"longer than {LARGEST} bytes")
    try:
        text = text.decode() if isinstance(text, bytes) else text
        _check_nesting(text)
        return tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise ConfigError("not UTF-8 text") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, and numbers of many digits
        # Keys, of any length, may be in the first part; the second is their place.
        told, at, place = str(error).rpartition(" (at ")
        raise ConfigError(f"not TOML: {one_line(told, _LONGEST)}{at}{place}") from error


def _check_nesting(text: str) -> None:
    """Bound what the parser calls itself for, and what it takes much time and memory for.

    Raises:
        ConfigError: Brackets nest too deeply, a key has too many dots, or the file too many tables.
    """
    depth = dots = tables = 0
    for mark in _MARKS.finditer(text):
        first = mark[0][0]
        tables += first in "[{."
        if first in "[{":
            depth += 1
        elif first in "]}":
            depth = max(0, depth - 1)
        elif first == ".":
            dots += 1
        elif first == "\n":
            dots = 0
        if depth > _DEEPEST:
            raise ConfigError(f"brackets nest deeper than {_DEEPEST} levels")
        if dots > _MOST_DOTS:
            raise ConfigError(f"a line has more than {_MOST_DOTS} dots")
        if tables > _MOST_TABLES:
            raise ConfigError(f"more than {_MOST_TABLES} dots and opening brackets")
