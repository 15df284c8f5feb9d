"""Types and escaping that terminal and plain output share."""

from typing import NamedTuple

__all__ = ["Check", "printable"]


class Check(NamedTuple):
    """One line of a diagnosis or comparison."""

    mark: str  # ok, !! (problem), -- (absent), or two blanks (neutral)
    name: str
    text: str


def printable(value: object) -> str:
    """Escape control characters, so that untrusted text cannot drive the terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(value))
