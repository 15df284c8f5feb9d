"""Which release of this package is installed."""

__all__ = ["UNKNOWN", "own_version"]

UNKNOWN = "0+unknown"
"""The version of files that were copied and not installed."""


def own_version() -> str:
    """Return it; looked up only when asked for, since that takes as long as half a start."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("attestkit")
    except PackageNotFoundError:
        return UNKNOWN
