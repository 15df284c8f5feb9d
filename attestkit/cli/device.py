"""The options of every command that asks a TEE, and the TEE that they mean.

Options of a backend come as text, and become what the backend's own signature says they are.
"""

import contextlib
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Literal,
    NamedTuple,
    Union,
    get_args,
    get_origin,
)

import click

from attestkit._shown import without_hex
from attestkit.cli.complete import complete_backend, complete_option
from attestkit.cli.exit_codes import complain
from attestkit.cli.parameters import PATH, gathered, read_hex
from attestkit.cli.read_input import read_file
from attestkit.cli.write_output import check_output
from attestkit.errors import BackendUnavailableError, ConfigError, FormatError, UsageError

if TYPE_CHECKING:
    from attestkit.attester import Attester
    from attestkit.backends.base import Backend

__all__ = ["DEVICE_EXIT_CODES", "Device", "device_options", "option_types"]

DEVICE_EXIT_CODES: Final = "Exit codes: 0 good, 1 usage, 3 the device, 5 unreadable input."
_WORDS: Final = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


class Device(NamedTuple):
    """Which TEE a command asks."""

    backend: str | None  # None: what the environment names, else the first that can run here
    given: dict[str, str]  # its own options, as they were written
    record: Path | None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files that options name: nothing may be written over them."""
        return tuple(Path(text[1:]) for text in self.given.values() if text.startswith("@"))

    @contextlib.contextmanager
    def open(self) -> "Iterator[Attester]":
        """Open it, say so if it is simulated, and close it.

        Raises:
            UsageError: No backend is called so, or an option is not one of its.
            ConfigError: The file that an option names cannot be read.
            BackendUnavailableError: It is not here, or nothing is.
            BackendError: Anything else that went wrong.
        """
        import attestkit  # late, as all below: --help asks nobody
        from attestkit import backends

        check_output("--record", self.record, self.inputs)
        name = self.backend or backends.named_by_environment()
        try:
            cls = backends.detect() if name is None else backends.load(name)
        except BackendUnavailableError as error:
            raise _nothing_here() from error
        options: dict[str, object] = _converted(cls, self.given)
        opened = cls.name if name is None else name
        if self.record is not None:
            options = {"path": self.record, "of": opened, "options": options}
            opened = "recording"
        with attestkit.open(opened, **options) as attester:
            self._warn(attester)
            yield attester

    def _warn(self, attester: "Attester") -> None:
        """Say what nobody should take for hardware's."""
        if not attester.simulated:
            return
        text = "SIMULATED: proves nothing about hardware"
        if attester.backend.name == "simulator" and "state_dir" not in self.given:
            text += "; --option state_dir=DIR would keep this TD"
        complain(text)


def _nothing_here() -> BackendUnavailableError:
    return BackendUnavailableError(
        "no TEE can be used here: attestkit doctor says what is missing, and what to do about it; "
        "for development there is --backend simulator"
    )


def _device(*, backend: str | None, given: tuple[str, ...], record: Path | None) -> Device:
    if backend == "":
        raise UsageError("--backend: the value is empty")
    return Device(backend, _split(given), record)


device_options: Final = gathered(
    "device",
    (
        click.option(
            "--backend",
            metavar="NAME",
            shell_complete=complete_backend,
            help="The backend to ask, one that attestkit doctor lists; else $ATTESTKIT_BACKEND, "
            "else the hardware that is found.",
        ),
        click.option(
            "--option",
            "given",
            metavar="NAME=VALUE",
            multiple=True,
            shell_complete=complete_option,
            help="An argument of the backend; may be repeated. Bytes are hex, or @FILE.",
        ),
        click.option(
            "--record",
            metavar="FILE",
            type=PATH,
            help="Keep what the backend answers, for --backend recording --option path=FILE.",
        ),
    ),
    _device,
)


def _split(given: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:  # the text is not repeated: it may be a secret
            raise UsageError("--option takes NAME=VALUE")
        if name in found:
            raise UsageError(f"--option {name} is given twice")
        if not value:
            raise UsageError(f"--option {name}: the value is empty")
        found[name] = value
    return found


def _converted(cls: "type[Backend]", given: dict[str, str]) -> dict[str, object]:
    """Return options as values of the types that the backend's signature names."""
    if not given:
        return {}
    wanted = option_types(cls)
    for name in given:
        if name not in wanted:
            known = ", ".join(wanted) or "none"
            text = f"--option {name}: backend {cls.name} has no such option; there are: {known}"
            raise UsageError(text)
    return {name: _value(name, text, wanted[name]) for name, text in given.items()}


def option_types(cls: "type[Backend]") -> dict[str, tuple[object, ...]]:
    """Return the options of a backend that a text can give, each with the types it can become."""
    from inspect import Parameter, signature  # slow to import, so only whoever has options pays

    try:
        parameters = signature(cls, eval_str=True).parameters
    except (NameError, TypeError, ValueError, SyntaxError):  # a plugin that names no types
        parameters = signature(cls).parameters
    found = {}
    for name, parameter in parameters.items():
        if parameter.kind not in {Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD}:
            continue
        untyped = parameter.annotation is Parameter.empty or isinstance(parameter.annotation, str)
        if kinds := (str,) if untyped else _kinds(parameter.annotation):
            found[name] = kinds
    return found


def _members(annotation: object) -> tuple[object, ...]:
    """Return the types that a union is of, or the one that it is."""
    if get_origin(annotation) in {Union, types.UnionType}:
        return get_args(annotation)
    return (annotation,)


def _kinds(annotation: object) -> tuple[object, ...]:
    """Return the types among them that a text can become."""
    return tuple(one for one in _members(annotation) if one in _READERS or _literals(one))


def _literals(annotation: object) -> dict[str, object]:
    """Return the values of a Literal by their text."""
    if get_origin(annotation) is not Literal:
        return {}
    return {str(value): value for value in get_args(annotation)}


def _value(name: str, text: str, kinds: tuple[object, ...]) -> object:
    """Return what a text means where a value of these types is wanted."""
    failures = []
    for kind in kinds:
        literals = _literals(kind)
        try:
            return literals[text] if literals else _READERS[kind](text)
        except KeyError:
            failures.append(f"one of {', '.join(literals)}")
        except FormatError as error:
            raise ConfigError(f"--option {name} {without_hex(str(error))}") from error
        except ValueError as error:
            failures.append(str(error))
    raise UsageError(f"--option {name} is {' or '.join(failures)}")


def _bytes(text: str) -> bytes:
    if text.startswith("@"):
        return read_file(Path(text[1:]))
    try:
        return read_hex("it", text)
    except UsageError:
        raise ValueError("bytes in hex, or @FILE") from None


def _number(text: str, kind: Callable[[str], object], what: str) -> object:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(what) from None


def _bool(text: str) -> bool:
    try:
        return _WORDS[text.lower()]
    except KeyError:
        raise ValueError("true or false") from None


# By the type that is wanted; text itself last, so that a union of text and something goes on.
_READERS: Final[dict[object, Callable[[str], object]]] = {
    bytes: _bytes,
    bool: _bool,
    int: lambda text: _number(text, int, "a whole number"),
    float: lambda text: _number(text, float, "a number"),
    Path: Path,
    str: str,
    object: str,
    Any: str,
}
