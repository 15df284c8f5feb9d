"""What parsers of JSON leave open: how deep it may nest, and that no key occurs twice.

The depth is to be asked for before any parser sees the text.

Python's parsers recurse in C up to the interpreter's recursion limit. That limit is the process's,
and libraries raise it (one that Ethereum tools import does, to 100,000), after which two hundred
thousand brackets overflow the C stack and end the process.
"""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, Final, NoReturn

from attestkit._native import json_depth
from attestkit.errors import FormatError

__all__ = ["MAX_DEPTH", "check_depth", "decode_at", "decode_strictly"]

MAX_DEPTH: Final = 200  # levels; the deepest real document has nine


def check_depth(text: str | bytes) -> None:
    """Refuse text whose brackets nest deeper than 200 levels; it need not be JSON.

    It takes time in proportion to the text, whatever that is: quotes that do not close included.

    Raises:
        FormatError: It nests deeper; the offset is one in bytes, also of a `str`, as in UTF-8.
    """
    if len(text) <= MAX_DEPTH:
        return
    if isinstance(text, str):
        text = text.encode(errors="surrogatepass")  # lone ones are no JSON; that comes out later
    if (offset := json_depth(text, MAX_DEPTH)) >= 0:
        raise FormatError(f"JSON nests deeper than {MAX_DEPTH} levels", offset=offset)


def decode_strictly(text: str | bytes, told: Collection[str] | None = None) -> object:
    """Return what JSON says, if it says it once and in the words of RFC 8259.

    Python's parser takes the last of several members with one name, where others take the first or
    refuse, and knows numbers that JSON has not, NaN and Infinity.

    Args:
        text: The document.
        told: Names of members that an error may tell; None: any. In a file of secrets a name that
            nobody knows may be one, put where it does not belong.

    Raises:
        FormatError: It is no such JSON, or nests too deeply; the text shows no value, and the error
            has no part of the document in its cause.
    """
    check_depth(text)
    problem, offset = "", None
    try:
        text = text.decode() if isinstance(text, bytes) else text
        return json.loads(
            text, object_pairs_hook=partial(_unique, told), parse_constant=_no_constant
        )
    except UnicodeDecodeError as error:
        problem, offset = "not UTF-8 text", error.start
    except json.JSONDecodeError as error:
        problem = f"not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
    except (_TwiceError, _ConstantError) as error:
        problem = str(error)
    except (ValueError, RecursionError):  # numbers of thousands of digits
        problem = "not JSON that can be read"
    raise FormatError(problem, offset=offset)  # here, because those errors carry the whole text


def decode_at(text: str, at: int) -> tuple[object, int]:
    """Return the value that begins at a character of JSON, and the character behind it.

    Args:
        text: What `check_depth` has passed.
        at: Where the value begins; nothing may be before it there, blanks included.

    Raises:
        FormatError: It is none, as `decode_strictly` reads them; the offset is one in bytes.
    """
    problem, place = "", at
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        problem, place = f"not JSON: {error.msg}", error.pos
    except (_TwiceError, _ConstantError) as error:
        problem = str(error)
    except (ValueError, RecursionError):  # numbers of thousands of digits
        problem = "not JSON that can be read"
    raise FormatError(problem, offset=len(text[:place].encode(errors="surrogatepass")))


class _TwiceError(ValueError):
    pass


class _ConstantError(ValueError):
    pass


def _unique(told: Collection[str] | None, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        known = told is None or twice in told
        name = ascii(twice[:64])[1:-1] if known else "an unknown name"
        raise _TwiceError(f"{name}: occurs twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise _ConstantError(f"not JSON: {name} is no number")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=partial(_unique, None), parse_constant=_no_constant
)
