"""What arguments and options of several commands are: paths, hex, and the one for machines."""

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import click

from attestkit.errors import UsageError

__all__ = ["PATH", "gathered", "json_option", "read_hex"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

if TYPE_CHECKING:
    _Base = click.Path[Path]
else:
    _Base = click.Path  # which older releases do not take apart


class _Path(_Base):
    """A path in words; an empty one, often a variable that is not set, would be this folder."""

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Return the path, or refuse it as click does."""
        if value == "":
            self.fail("the path is empty", param, ctx)
        return super().convert(cast("str", value), param, ctx)


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


def gathered(
    name: str, options: Sequence[Callable[[Any], Any]], gather: Callable[..., object]
) -> Callable[[_Command], _Command]:
    """Return a decorator that gives a command options, and hands it what they mean together.

    Args:
        name: The command's argument for that.
        options: Decorators of click's, in the order of the help.
        gather: Makes it of the options, by its arguments' names.
    """
    wanted = tuple(inspect.signature(gather).parameters)

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command)
        def asking(**given: Any) -> object:
            own = {one: given.pop(one) for one in wanted}
            return command(**{name: gather(**own)}, **given)

        wrapped: Any = asking
        for option in reversed(options):
            wrapped = option(wrapped)
        decorated: _Command = wrapped
        return decorated

    return decorate
