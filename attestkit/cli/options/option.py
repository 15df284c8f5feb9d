"""Commands with sections of options and exit codes, and the options that several commands have.

Modules of options and commands use it by its name, as `option.file` and `option.group`.
"""

import functools
import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, cast

import click

from attestkit.cli.exit_codes import MEANINGS
from attestkit.errors import UsageError

TEXT_HINT: Final = "; text goes with --text"

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Option: TypeAlias = Callable[[Any], Any]

_SECTION: Final = "section"  # attribute of a parameter
_ALL: Final = "attestkit.help_all"  # in `Context.meta`

if TYPE_CHECKING:
    _Base = click.Path[Path]
else:
    _Base = click.Path  # not subscriptable in older releases


class _Path(_Base):
    """A path. The empty path, often an unset variable, is refused, not the current folder."""

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Return `value`, the text of the command line, as a path; fail if it is empty.

        The other arguments are those of click, for errors.
        """
        if value == "":
            self.fail("the path is empty", param, ctx)
        return super().convert(cast("str", value), param, ctx)


class FiniteRange(click.FloatRange):
    """A range of numbers, without NaN, which passes comparisons with the limits."""

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return `value`, the text of the command line, as a number; fail outside of the range.

        The other arguments are those of click, for errors.
        """
        found = float(super().convert(cast("float", value), param, ctx))
        if not math.isfinite(found):
            self.fail(f"{found} is not in the range {self._describe_range()}.", param, ctx)
        return found


PATH: Final = _Path(path_type=Path)
PATH.name = "FILE"  # in the help


class Command(click.Command):
    """A command whose help has options in sections, an example, and the exit codes.

    Args:
        name: Name of the command; None: click takes it from the function.
        example: Words of a call, without `attestkit`; or a paragraph of click, kept as it is.
        codes: The exit codes, each a digit, such as `0125`.
        meanings: What codes mean, where the command says more than `exit_codes.MEANINGS`.
        rare: Options that only --help-all lists, which the command then has.
        settings: As for `click.Command`.
    """

    def __init__(
        self,
        name: str | None,
        *,
        example: str,
        codes: str,
        meanings: Mapping[int, str] | None = None,
        rare: Collection[str] = (),
        **settings: Any,
    ) -> None:
        self.exit_codes: dict[int, str] = {int(code): MEANINGS[int(code)] for code in codes}
        self.exit_codes.update(meanings or {})
        texts = ", ".join(f"{code} {text}" for code, text in self.exit_codes.items())
        first = example if example.startswith("\b") else f"Example: attestkit {example}"
        super().__init__(name, epilog=f"{first}\n\nExit codes: {texts}.", **settings)
        self._rare = rare
        if rare:
            show = flag(
                "--help-all",
                text="List all options, and exit.",
                is_eager=True,
                expose_value=False,
                callback=_show_all,
            )
            self.params.extend(show(lambda: None).__click_params__)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under the titles of their sections, which `group` sets."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if parameter.opts[0] in self._rare and _ALL not in ctx.meta:
                continue
            if record is not None and isinstance(parameter, click.Option):
                title = getattr(parameter, _SECTION, "Options")
                sections.setdefault(title, []).append(record)
        formatter.write_paragraph()
        for title, records in sections.items():
            formatter.write_heading(title)
            with formatter.indentation():
                formatter.write_dl(records)


class Group(click.Group):
    """A group of commands; its help ends with example and exit codes of its first command."""

    command_class: type[click.Command] | None = Command

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write example and exit codes."""
        next(iter(self.commands.values())).format_epilog(ctx, formatter)


def value(
    name: str, metavar: str, text: str, *, many: bool = False, parameter: str = "", **settings: Any
) -> _Option:
    """Return an option that takes a value, as a decorator for commands.

    Args:
        name: Name of the option, such as `--crl`.
        metavar: Placeholder of the value in --help, such as `FILE`.
        text: Description in --help.
        many: Allow the option more than once; the command gets a tuple of the values.
        parameter: Name of the command's parameter; default: the option's, in plural with `many`.
        settings: Other arguments of `click.option`.
    """
    if many:
        text = f"{text.removesuffix('.')}; repeatable."
        parameter = parameter or f"{name.lstrip('-').replace('-', '_')}s"
    names = [name, parameter] if parameter else [name]
    return click.option(*names, metavar=metavar, multiple=many, help=text, **settings)


def file(name: str, text: str, *, metavar: str = "FILE", **settings: Any) -> _Option:
    """Return an option whose value is a path, as a decorator for commands.

    Args:
        name: Name of the option, such as `--crl`.
        text: Description in --help.
        metavar: Placeholder of the value in --help.
        settings: Other arguments of `value`.
    """
    return value(name, metavar, text, type=PATH, **settings)


def flag(*names: str, text: str, **settings: Any) -> _Option:
    """Return an option without a value, as a decorator.

    Args:
        names: Name of the option, such as `--json`, and optionally that of the parameter.
        text: Description in --help.
        settings: Other arguments of `click.option`.
    """
    return click.option(*names, is_flag=True, help=text, **settings)


def _show_all(ctx: click.Context, _: click.Parameter, given: bool) -> None:  # noqa: FBT001 - click
    if given:
        ctx.meta[_ALL] = True
        click.echo(ctx.get_help())
        ctx.exit()


def output(text: str, *, required: bool = False) -> _Option:
    """Return the option -o as a decorator; `text` is its description in --help.

    If it is not `required`, the command gets None without it.
    """
    return click.option("-o", "--output", type=PATH, required=required, help=text)


def at(text: str) -> _Option:
    """Return the option --at as a decorator; `text` is its description in --help."""
    return value("--at", "TIME", text)


def read_instant(text: str, *words: str) -> datetime:
    """Return the time in `text`, the value of `--at`, as an aware datetime.

    It is ISO 8601 (UTC without a zone), or seconds since 1970. The error also lists `words` as
    valid values.

    Raises:
        UsageError: If `text` is not a time, or not in the years 1970 to 9998.
    """
    try:
        if text.replace(".", "", 1).isdecimal() and text.isascii():
            moment = datetime.fromtimestamp(float(text), timezone.utc)
        else:  # datetime of Python 3.10 does not accept Z
            moment = datetime.fromisoformat(text.upper().replace("Z", "+00:00"))
    except (ValueError, OverflowError, OSError) as error:
        others = "".join(f", or {word}" for word in words)
        raise UsageError(
            f"--at: not a valid time: {text}; use ISO 8601, seconds since 1970{others}",
            reason="encoding",
        ) from error
    moment = moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment
    if not 1970 <= moment.year <= 9998:  # in any zone it can be compared with X.509 times
        raise UsageError(f"--at: must be in the years 1970 to 9998: {text}", reason="out_of_range")
    return moment


json: Final = flag("--json", "as_json", text="Write JSON to stdout.")


def read_hex(name: str, text: str, hint: str = "") -> bytes:
    """Decode hex, with or without `0x`.

    Raises:
        UsageError: If the text is not hex; the error has `name`, that of the option, and `hint`, a
            remedy, and not the text.
    """
    try:
        return bytes.fromhex(text[2:] if text[:2] in {"0x", "0X"} else text)
    except ValueError:
        # The cause has digits of the text, which may be a secret.
        raise UsageError(f"{name}: not hex{hint}", reason="encoding") from None


def read_text(name: str, text: str) -> bytes:
    """Encode `text` as UTF-8; raise UsageError about the option `name` if that is not possible."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{name}: must be UTF-8 text", reason="encoding") from error


def section(title: str, *options: _Option) -> tuple[_Option, ...]:
    """Return the options, which --help then lists under the heading `title`."""

    def add_title(option: _Option) -> _Option:
        def decorate(command: Callable[..., object]) -> object:
            decorated = option(command)
            setattr(decorated.__click_params__[-1], _SECTION, title)
            return decorated

        return decorate

    return tuple(map(add_title, options))


def add(*options: _Option) -> Callable[[_Command], _Command]:
    """Return a decorator that adds options to a command, in the order of the help."""
    return lambda command: functools.reduce(lambda one, add: add(one), options[::-1], command)


def group(
    name: str, options: Sequence[_Option], gather: Callable[..., object], fields: type | None = None
) -> Callable[[_Command], _Command]:
    """Return a decorator that adds options to a command and passes them as one value.

    Args:
        name: Parameter of the command for that value.
        options: Click decorators, in the order of the help.
        gather: Builds the value; its parameters have the names of the options, or `**` takes all
            others.
        fields: A NamedTuple whose fields have those names, which `gather` receives instead.
    """
    parameters = inspect.signature(fields or gather).parameters.values()
    option_names = [one.name for one in parameters if one.kind is not one.VAR_KEYWORD]
    if len(option_names) < len(parameters):
        declared: Any = add(*options)(lambda: None)
        option_names = [one.name for one in declared.__click_params__]

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command)
        def with_group(**given: Any) -> object:
            own = {one: given.pop(one) for one in option_names}
            value = gather(**own) if fields is None else gather(fields(**own))
            return command(**{name: value}, **given)

        decorated: Any = add(*options)(with_group)
        return cast("_Command", decorated)

    return decorate
