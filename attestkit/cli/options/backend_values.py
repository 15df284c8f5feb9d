"""Conversion of backend options from text to the types of the backend's signature."""

import builtins
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Union, get_args, get_origin

from attestkit._sanitize import without_hex
from attestkit.cli.input.read_input import read_file
from attestkit.cli.options.click_types import read_hex
from attestkit.errors import ConfigError, FormatError, UsageError

if TYPE_CHECKING:
    from attestkit.backends.base import Backend

_TRUE: Final = {"true", "yes", "on", "1"}
_FALSE: Final = {"false", "no", "off", "0"}


def convert_options(cls: "type[Backend]", given: dict[str, str]) -> dict[str, object]:
    """Return backend options, converted to the types of the backend's signature."""
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
    """Return the backend options that can be given as text, each with its possible types."""
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
    """Names in annotations of a class; one that is imported for type checkers only is `object`."""

    def __init__(self, cls: type) -> None:
        super().__init__()
        module = sys.modules.get(cls.__module__)
        self._known = {**vars(builtins), **({} if module is None else vars(module))}

    def __missing__(self, name: str) -> object:
        return self._known.get(name, object)


def _members(annotation: object) -> tuple[object, ...]:
    """Return the members of a union, or the annotation itself."""
    if get_origin(annotation) in {Union, types.UnionType}:
        return get_args(annotation)
    return (annotation,)


def _kinds(annotation: object) -> tuple[object, ...]:
    """Return the members of an annotation that can be converted from text."""
    return tuple(one for one in _members(annotation) if one in _READERS or _literals(one))


def _literals(annotation: object) -> dict[str, object]:
    """Return the values of a Literal by their text; empty for other annotations."""
    if get_origin(annotation) is not Literal:
        return {}
    return {str(value): value for value in get_args(annotation)}


def _value(name: str, text: str, kinds: tuple[object, ...]) -> object:
    """Convert text to the first of these types that accepts it."""
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
