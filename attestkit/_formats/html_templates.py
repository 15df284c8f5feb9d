"""Jinja templates of HTML pages: autoescaped, and strict about undefined names.

Import this module lazily: Jinja is slow to import.
"""

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup


def templates(package: str) -> Environment:
    """Return the environment for the templates in directory `templates` of an imported package."""
    return Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )


def style(package: str, name: str) -> Markup:
    """Return the style sheet in file `name` of the directory `templates` of a package.

    It is inserted into pages, whose Content-Security-Policy contains its hash.
    """
    return filled(templates(package).get_template(name))


def filled(template: Template, **values: object) -> Markup:
    """Render a template as markup that other templates include without escaping it again."""
    return template.make_module(values).__html__()
