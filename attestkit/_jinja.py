"""Templates of pages: all that they show is escaped, and a name that nobody gave is an error.

The library is slow to import, so whoever shows a page imports this when it does.
"""

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

__all__ = ["filled", "style", "templates"]


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


def style(package: str, name: str) -> Markup:
    """Return a style sheet of that folder, a template without holes; pages name its hash."""
    return filled(templates(package).get_template(name))


def filled(template: Template, **values: object) -> Markup:
    """Return what a template makes of values, for another one: it is escaped already."""
    return template.make_module(values).__html__()
