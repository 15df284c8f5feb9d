"""Environment variables in a file of the user: lines NAME=VALUE, or a JSON object."""

from typing import Final

from attestkit._formats.strict_json import read_object
from attestkit.errors import FormatError

MAX_FILE: Final = 16 << 20
"""Bytes of such a file; names and values have at most 1 MiB in all."""


def read_variables(data: bytes, name: str) -> list[tuple[str, str]]:
    """Return names and values in order.

    A file that begins with `{` is a JSON object of strings. In lines, a value is all that follows
    the first `=`, also quotes and spaces; empty lines and lines that begin with `#` are skipped.

    Args:
        data: Content of the file.
        name: Name of the file, for errors, which contain no value.

    Raises:
        FormatError: If the file is not UTF-8 text, a line has no `=`, or a value is not a string.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        message, offset = f"{name}: not UTF-8 text", error.start
    else:
        if text.lstrip(" \t\r\n").startswith("{"):
            return _read_json(text, name)
        return _read_lines(text, name)
    # Outside of the handler, because that error holds the values.
    raise FormatError(message, reason="encoding", offset=offset)


def _read_json(text: str, name: str) -> list[tuple[str, str]]:
    found = read_object(text, name)
    if not all(isinstance(value, str) for value in found.values()):
        raise FormatError(f"{name}: every value must be a string", reason="wrong_type")
    return list(found.items())


def _read_lines(text: str, name: str) -> list[tuple[str, str]]:
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        variable, equals, value = line.removesuffix("\r").partition("=")
        if not line.strip() or line.startswith("#"):
            continue
        if not equals:
            raise FormatError(f"{name}: line {number}: must be NAME=VALUE", reason="syntax")
        found.append((variable, value))
    return found
