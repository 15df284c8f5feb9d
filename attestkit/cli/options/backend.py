"""Options that select the backend of a command.

Backend options are text and are converted by the signature of the backend's class.
"""

import builtins
import contextlib
import sys
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Union, get_args, get_origin

import click

from attestkit._sanitize import without_hex
from attestkit.cli.exit_codes import print_error
from attestkit.cli.input.read_input import read_file
from attestkit.cli.options import option
from attestkit.cli.options.option import read_hex
from attestkit.cli.options.shell_values import complete_words, scenarios, words_of
from attestkit.cli.output.write_output import check_output
from attestkit.errors import (
    AttestKitError,
    BackendUnavailableError,
    ConfigError,
    FormatError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click.shell_completion import CompletionItem

    from attestkit.attester import Attester
    from attestkit.backends.base import Backend

_TRUE: Final = {"true", "yes", "on", "1"}
_FALSE: Final = {"false", "no", "off", "0"}


def convert_options(cls: "type[Backend]", given: dict[str, str]) -> dict[str, object]:
    """Return backend options by name, converted to the types of the backend's signature.

    `given` has the texts of the command line by name. Bytes are in hex, or `@FILE` with raw bytes.

    Raises:
        UsageError: If an option is unknown, or its value is invalid.
        ConfigError: If a file `@FILE` cannot be read.
    """
    if not given:
        return {}
    types_by_name = option_types(cls)
    for name in given:
        if name not in types_by_name:
            known = ", ".join(types_by_name) or "none"
            text = f"--option {name}: unknown option of backend {cls.name}; known options: {known}"
            raise UsageError(text, reason="unknown_name")
    return {name: _value(name, text, types_by_name[name]) for name, text in given.items()}


def option_types(cls: "type[Backend]") -> dict[str, tuple[object, ...]]:
    """Return the names of backend options that can be given as text, with their possible types."""
    from inspect import Parameter, signature  # lazy: slow to import

    try:
        parameters = signature(cls, eval_str=True, locals=_Names(cls)).parameters
    except (NameError, TypeError, ValueError, SyntaxError):  # unresolvable annotations
        parameters = signature(cls).parameters
    found = {}
    for name, parameter in parameters.items():
        if parameter.kind not in {Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD}:
            continue
        untyped = parameter.annotation is Parameter.empty or isinstance(parameter.annotation, str)
        if kinds := (str,) if untyped else _kinds(parameter.annotation):
            found[name] = kinds
    return found


class _Names(dict[str, object]):
    """Namespace of a class's annotations; a name that only type checkers import is `object`."""

    def __init__(self, cls: type) -> None:
        super().__init__()
        module = sys.modules.get(cls.__module__)
        self._known = {**vars(builtins), **({} if module is None else vars(module))}

    def __missing__(self, name: str) -> object:
        return self._known.get(name, object)


def _kinds(annotation: object) -> tuple[object, ...]:
    """Return the types of an annotation, several for a union, to which text can be converted.

    Empty if there are none.
    """
    members: tuple[object, ...] = (annotation,)
    if get_origin(annotation) in {Union, types.UnionType}:
        members = get_args(annotation)
    return tuple(one for one in members if one in _READERS or _literals(one))


def _literals(annotation: object) -> dict[str, object]:
    """Return the values of a Literal by their text; empty for other annotations."""
    if get_origin(annotation) is not Literal:
        return {}
    return {str(value): value for value in get_args(annotation)}


def _value(name: str, text: str, kinds: tuple[object, ...]) -> object:
    """Return the text of option `name`, converted to the first type that accepts it.

    `kinds` are the types, of which one may be a Literal.

    Raises:
        UsageError: If no type accepts it.
        ConfigError: If a file `@FILE` cannot be read.
    """
    failures = []
    for kind in kinds:
        literals = _literals(kind)
        try:
            return literals[text] if literals else _READERS[kind](text)
        except KeyError:
            failures.append(f"one of {', '.join(literals)}")
        except FormatError as error:
            raise ConfigError(
                f"--option {name}: {without_hex(str(error))}", reason="wrong_value"
            ) from error
        except ValueError as error:
            failures.append(str(error))
    raise UsageError(f"--option {name}: must be {' or '.join(failures)}", reason="wrong_value")


def _bytes(text: str) -> bytes:
    if text.startswith("@"):
        return read_file(Path(text[1:]))
    try:
        return read_hex("bytes", text)
    except UsageError:
        raise ValueError("bytes in hex, or @FILE") from None


def _number(text: str, kind: Callable[[str], object], description: str) -> object:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(description) from None


def _bool(text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise ValueError("true or false")
    return text.lower() in _TRUE


# By target type. Text comes last, so that a union with str tries the other types first.
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


_SIMULATOR_VALUES: Final[dict[str, Callable[[], Iterable[str]]]] = {
    "platform": words_of("backends.simulator.platforms", "PLATFORMS"),
    "quote_version": lambda: ("4", "5"),
    "scenario": scenarios,
    "faults": words_of("backends.simulator.faults.injection", "fault_names"),
    "tpm": lambda: ("model", "swtpm"),
}


def _complete_option(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    """Complete `incomplete`: NAME= of a backend option, then NAME=VALUE if its values are known."""
    # Lazy: --help needs no backend.
    from attestkit import backends
    from attestkit.backends.environment import backend_from_environment

    backend = ctx.params.get("backend") or backend_from_environment() or "simulator"
    try:
        known = option_types(backends.load(backend))
    except AttestKitError:
        return []
    words = [f"{name}=" for name in known]
    name = incomplete.partition("=")[0]
    if incomplete != name:
        values = _SIMULATOR_VALUES.get(name, tuple) if backend == "simulator" else tuple
        words = [f"{name}={value}" for value in values()]
    return complete_words(lambda: words)(ctx, param, incomplete)


class Device(NamedTuple):
    """The backend that a command uses, with its options.

    Attributes:
        backend: Name of the backend; None: from $ATTESTKIT_BACKEND, else detected.
        given: Texts of the backend's options by name.
        record: File to which responses are recorded; None: no recording.
    """

    backend: str | None  # None: from $ATTESTKIT_BACKEND, else detected
    given: dict[str, str]  # text of the backend's options by name
    record: Path | None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The input files that options name; outputs must not overwrite them."""
        return tuple(Path(text[1:]) for text in self.given.values() if text.startswith("@"))

    @contextlib.contextmanager
    def open(self) -> "Iterator[Attester]":
        """Context manager: open the backend, warn if it is simulated, and close it on exit.

        Raises:
            UsageError: If the backend or one of its options is unknown.
            ConfigError: If a file that an option names cannot be read.
            BackendUnavailableError: If the backend, or every backend, is unavailable.
            BackendError: If the backend fails.
        """
        import attestkit  # lazy, like the imports below: --help needs no backend
        from attestkit import backends
        from attestkit.backends.environment import backend_from_environment

        check_output("--record", self.record, self.inputs)
        name = self.backend or backend_from_environment()
        try:
            cls = backends.detect() if name is None else backends.load(name)
        except BackendUnavailableError as error:
            message = (
                "no usable TEE found; run attestkit doctor for what is missing, or use --backend "
                "simulator for development"
            )
            raise BackendUnavailableError(message, reason="no_backend") from error
        options: dict[str, object] = convert_options(cls, self.given)
        opened = cls.name if name is None else name
        if self.record is not None:
            options = {"path": self.record, "of": opened, "options": options}
            opened = "recording"
        with attestkit.open(opened, **options) as attester:
            self._warn(attester)
            yield attester

    def _warn(self, attester: "Attester") -> None:
        """Print a warning if the evidence is simulated."""
        if not attester.simulated:
            return
        from attestkit.backends.base import EvidenceCollector

        text = "SIMULATED: proves nothing about hardware"
        keeps_state = not isinstance(attester.backend, EvidenceCollector)  # clouds keep none
        if attester.backend.name == "simulator" and keeps_state and "state_dir" not in self.given:
            text += "; --option state_dir=DIR keeps the state of this TD"
        print_error(text)


def _device(*, backend: str | None, given: tuple[str, ...], record: Path | None) -> Device:
    if backend == "":
        raise UsageError("--backend: the value is empty", reason="missing")
    return Device(backend, _split(given), record)


device_options: Final = option.group(
    "device",
    option.section(
        "Backend",
        option.value(
            "--backend",
            "NAME",
            "Name; else $ATTESTKIT_BACKEND, else detected.",
            shell_complete=complete_words(words_of("backends", "names")),
        ),
        option.value(
            "--option",
            "NAME=VALUE",
            "Option of the backend; bytes are hex or @FILE.",
            many=True,
            parameter="given",
            shell_complete=_complete_option,
        ),
        option.file("--record", "Record the responses, for --backend recording."),
    ),
    _device,
)


def _split(given: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:  # the text may be a secret and is not repeated
            raise UsageError("--option: must be NAME=VALUE", reason="encoding")
        if name in found:
            raise UsageError(f"--option {name}: given twice", reason="conflict")
        if not value:
            raise UsageError(f"--option {name}: the value is empty", reason="missing")
        found[name] = value
    return found
