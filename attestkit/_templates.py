"""Templates of pages: all that they show is escaped, and a name that nobody gave is an error.

The library is slow to import, so whoever shows a page imports this when it does.
"""

from jinja2 import Environment, PackageLoader, StrictUndefined

__all__ = ["templates"]


def templates(package: str) -> Environment:
    """Return the templates in a package's folder `templates`."""
    return Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
