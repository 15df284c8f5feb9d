"""What arguments and options of several commands are: paths, and the one for machines."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

__all__ = ["PATH", "json_option"]

if TYPE_CHECKING:
    _Base = click.Path[Path]
else:
    _Base = click.Path  # which older releases do not take apart


class _Path(_Base):
    """A path in words; an empty one, often a variable that is not set, would be this folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:  # noqa: ANN401 - as click has it
        """Return the path, or refuse it as click does."""
        if value == "":
            self.fail("the path is empty", param, ctx)
        path: Path = super().convert(value, param, ctx)
        return path


PATH: Final = _Path(path_type=Path)

json_option: Final = click.option(
    "--json", "as_json", is_flag=True, help="Machine output on stdout."
)
