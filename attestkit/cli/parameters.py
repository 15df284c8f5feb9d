"""What arguments and options of several commands are: paths, hex, and the one for machines."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from attestkit.errors import UsageError

__all__ = ["PATH", "json_option", "read_hex"]

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


def read_hex(what: str, text: str) -> bytes:
    """Return the bytes that a text writes in hex, `0x` may lead; UsageError if it is not hex."""
    try:
        return bytes.fromhex(text[2:] if text[:2] in {"0x", "0X"} else text)
    except ValueError:
        raise UsageError(f"{what} is not hex") from None  # the cause tells of a secret's digits
