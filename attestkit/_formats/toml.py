"""TOML decoder with limits on size, depth and number of tables."""

import re
import sys
from typing import Any, Final

from attestkit._sanitize import one_line
from attestkit.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LARGEST: Final = 1 << 20
"""Largest size of a file in bytes (1 MiB)."""

_LONGEST: Final = 200  # characters of the parser's message in an error
_DEEPEST: Final = 16  # nested brackets; attestkit's files have three
_MOST_DOTS: Final = 16  # in a line, outside of strings; attestkit's keys have three
# Dots and opening brackets in a file, outside of strings. Each can create a table, for which the
# parser needs about 1 KiB; the largest real files have some hundred.
_MOST_TABLES: Final = 16_384
# Strings and comments, which are skipped, and the characters that count.
_TOKENS: Final = re.compile(
    # Up to two quotes may precede the closing three. Every alternative matches to its end, also in
    # an unterminated string or after a final backslash: with a failure there, each of many opening
    # quotes would be scanned to the end of the file, in quadratic time. Runs of plain characters
    # are one repetition each, because the regex engine stores a state for every repetition.
    r'"""(?:[^\\"]+|\\(?:.|\Z)|"(?!""))*(?:"{3,5}|\Z)'
    r"|'''(?:[^']+|'(?!''))*(?:'{3,5}|\Z)"
    r'|"(?:[^"\\\n]+|\\.)*"?'
    r"|'[^'\n]*'?"
    r"|\#[^\n]*"
    r"|[\[{\]}.\n]",
    re.DOTALL,
)


def decode(text: str | bytes) -> dict[str, Any]:
    """Decode TOML of at most 1 MiB; return its top-level table.

    Raises:
        ConfigError: If the document is malformed or exceeds a limit. The text contains neither a
            value nor the name of the file, which the caller adds.
    """
    if len(text) > LARGEST:
        raise ConfigError(f"longer than {LARGEST} bytes", reason="too_large")
    try:
        text = text.decode() if isinstance(text, bytes) else text
        _check_nesting(text)
        return tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise ConfigError("not UTF-8 text", reason="encoding") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError; int() of too many digits
        # The first part may contain a key of any length, the second is its line and column.
        problem, at, place = str(error).rpartition(" (at ")
        message = f"not TOML: {one_line(problem, _LONGEST)}{at}{place}"
        raise ConfigError(message, reason="syntax") from error


def _check_nesting(text: str) -> None:
    """Check nesting and number of tables in TOML, to limit the parser's recursion, time and memory.

    Raises:
        ConfigError: If brackets nest too deeply, a key has too many dots, or the file has too many
            tables.
    """
    depth = dots = tables = 0
    for token in _TOKENS.finditer(text):
        first = token[0][0]
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
            raise ConfigError(f"brackets nest deeper than {_DEEPEST} levels", reason="too_deep")
        if dots > _MOST_DOTS:
            raise ConfigError(f"more than {_MOST_DOTS} unquoted dots in a line", reason="too_deep")
        if tables > _MOST_TABLES:
            raise ConfigError(f"over {_MOST_TABLES} dots and opening brackets", reason="too_many")
