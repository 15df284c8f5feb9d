"""Jinja templates of HTML pages: autoescaped, and strict about undefined names.

Import this module lazily: Jinja is slow to import.
"""

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup


def templates(package: str) -> Environment:
    """Return the environment for the templates in the directory `templates` of a package."""
    return Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )


def style(package: str, name: str) -> Markup:
    """Return a style sheet from the directory `templates`; the CSP of a page contains its hash."""
    return filled(templates(package).get_template(name))


def filled(template: Template, **values: object) -> Markup:
    """Render a template as markup that other templates include without escaping it again."""
    return template.make_module(values).__html__()
