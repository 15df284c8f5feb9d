"""What commands print, before it is laid out for a terminal or a pipe."""

from typing import NamedTuple

__all__ = ["Check", "printable"]


class Check(NamedTuple):
    """One thing that was looked at."""

    mark: str  # ok in order, !! broken, -- not there, or two blanks: neither
    name: str
    text: str


def printable(value: object) -> str:
    """Return text in which no control character of a hostile file reaches the terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(value))
