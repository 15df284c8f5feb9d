"""What to do about evidence that leads to another root than the trusted one, on any platform."""

from typing import Final

__all__ = ["ANOTHER_ROOT"]

ANOTHER_ROOT: Final = (
    "evidence of a simulator needs the simulator's root as trust anchor, evidence of hardware "
    "needs none"
)
"""For the end of a sentence that says which root is trusted, and did not sign."""
