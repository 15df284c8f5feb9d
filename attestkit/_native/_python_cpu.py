"""The CPU as plain Python sees it: not at all."""

__all__ = ["cpuid"]


def cpuid(leaf: int, subleaf: int) -> None:
    """Return None: a CPUID leaf cannot be read from plain Python."""
