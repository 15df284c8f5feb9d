"""The clock of the machine, which callers may replace by an argument."""

from datetime import datetime, timezone


def current_time() -> float:
    """Return the Unix time in seconds, with fractions."""
    return datetime.now(timezone.utc).timestamp()
