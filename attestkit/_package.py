"""The package itself: its installed version, and public names imported on first use (PEP 562)."""

import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import import_module


@cache
def own_version() -> str:
    """Return the installed version; "0+unknown" if the files were copied and not installed."""
    # Lazy: importing it takes as long as half a start.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("attestkit")
    except PackageNotFoundError:
        return "0+unknown"


def lazy_names(
    package: str, names: Mapping[str, Iterable[str]]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return the functions `__getattr__` and `__dir__` of a package.

    Define them only where type checkers do not see them, which would otherwise accept any name.

    Args:
        package: Full name of the package, such as `attestkit.gpu`.
        names: Public names by the submodule that defines them. The name of a submodule is
            relative to the package, unless it begins with `attestkit.`. A public name equal to
            that of its submodule is the submodule itself.
    """
    homes = {name: module for module, found in names.items() for name in found}
    attributes = vars(sys.modules[package])

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        module = import_module(home if home.startswith("attestkit.") else f"{package}.{home}")
        value: object = module if name == homes[name] else getattr(module, name)
        attributes[name] = value
        return value

    return get, lambda: sorted({*attributes, *homes})
