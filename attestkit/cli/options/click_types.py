"""Parameter types and option helpers of several commands: paths, hex, --json, option groups."""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import click

from attestkit.errors import UsageError

TEXT_HINT: Final = "; text goes with --text"

_Command = TypeVar("_Command", bound=Callable[..., Any])

if TYPE_CHECKING:
    _Base = click.Path[Path]
else:
    _Base = click.Path  # not subscriptable in older releases


class _Path(_Base):
    """A path. The empty path, often an unset variable, is refused, not the current folder."""

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Return the path, or fail if it is empty."""
        if value == "":
            self.fail("the path is empty", param, ctx)
        return super().convert(cast("str", value), param, ctx)


class FiniteRange(click.FloatRange):
    """A range of numbers, without NaN, which passes comparisons with the limits."""

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number, or fail if it is not in the range."""
        found = float(super().convert(cast("float", value), param, ctx))
        if not math.isfinite(found):
            self.fail(f"{found} is not in the range {self._describe_range()}.", param, ctx)
        return found


PATH: Final = _Path(path_type=Path)
PATH.name = "FILE"  # in the help


def output_option(text: str, *, required: bool = False) -> Callable[[_Command], _Command]:
    """Return the option -o, with its help text."""
    return click.option("-o", "--output", type=PATH, required=required, help=text)


json_option: Final = click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")


def read_hex(name: str, text: str, hint: str = "") -> bytes:
    """Decode hex, with or without `0x`.

    Raises:
        UsageError: If the text is not hex; the error has `name` and `hint`, and not the text.
    """
    try:
        return bytes.fromhex(text[2:] if text[:2] in {"0x", "0X"} else text)
    except ValueError:
        # The cause has digits of the text, which may be a secret.
        raise UsageError(f"{name}: not hex{hint}", reason="encoding") from None


def read_text(name: str, text: str) -> bytes:
    """Encode text as UTF-8; raise UsageError if that is not possible."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{name}: not UTF-8", reason="encoding") from error


def group_options(
    name: str,
    options: Sequence[Callable[[Any], Any]],
    gather: Callable[..., object],
    given_as: type | None = None,
) -> Callable[[_Command], _Command]:
    """Return a decorator that adds options to a command and passes them as one value.

    Args:
        name: Parameter of the command for that value.
        options: Click decorators, in the order of the help.
        gather: Builds the value; its parameters have the names of the options.
        given_as: A NamedTuple whose fields have those names, which `gather` receives instead.
    """
    option_names = tuple(inspect.signature(given_as or gather).parameters)

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command)
        def with_group(**given: Any) -> object:
            own = {one: given.pop(one) for one in option_names}
            value = gather(**own) if given_as is None else gather(given_as(**own))
            return command(**{name: value}, **given)

        wrapped: Any = with_group
        for option in reversed(options):
            wrapped = option(wrapped)
        decorated: _Command = wrapped
        return decorated

    return decorate
