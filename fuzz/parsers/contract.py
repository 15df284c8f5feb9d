"""What every parser promises of bytes that nobody meant to send, and the check of it.

It accepts them or refuses them; a refusal is one of the errors that its docstring names, tells in
one printable line of bounded length what is wrong, and an offset only inside the input. The same
bytes get the same answer again. What else holds of an accepted value, a target says itself.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar
from zlib import crc32

from attestkit.errors import AttestKitError, FormatError

__all__ = [
    "LONGEST",
    "BrokenContractError",
    "Contract",
    "ParserTarget",
    "check",
    "check_error",
    "check_same",
    "obeys",
    "short",
    "tried",
]

T = TypeVar("T")
Refusals = tuple[type[AttestKitError], ...]

LONGEST: Final = 1000
"""Characters of an error's text: so much of a stranger's input may get into a line of a log."""

_SOME: Final = 7  # of eight refusals one is asked for again, by a checksum of the input


class BrokenContractError(Exception):
    """A parser did what it promises not to do."""


@dataclass(frozen=True)
class ParserTarget:
    """One parser as a fuzzer calls it.

    Attributes:
        name: Of the target.
        run: Gives bytes to the parser; raises whatever breaks the contract.
        seeds: What to start from, each at most `max_len` long.
        dictionary: A file of `fuzz/dictionaries`.
        max_len: Bytes of an input.
    """

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    dictionary: str | None = None
    max_len: int = 4096


def short(seeds: Callable[[], list[bytes]], most: int = 4096) -> Callable[[], list[bytes]]:
    """Return the same seeds without those that are longer than `most` bytes."""
    return lambda: [seed for seed in dict.fromkeys(seeds()) if len(seed) <= most]


@dataclass(frozen=True)
class Contract(Generic[T]):
    """Holds a parser to what it promises; called with an input, raises where it does otherwise.

    Attributes:
        read: The parser.
        refusals: The errors that its docstring names.
        accepted: Checks a value that it accepted, with the input.
        said: What of a value is compared with that of a second call.
        grows: The parser unpacks the input, so that an offset may be behind its end.
        longest: Characters of an error's text.
        secret: What in an input no error may have in it, nor in the errors that led to it.
    """

    read: Callable[[bytes], T]
    refusals: Refusals
    accepted: Callable[[bytes, T], object] = lambda _data, _value: None
    said: Callable[[T], object] = lambda value: value
    grows: bool = False
    longest: int = LONGEST
    secret: Callable[[bytes], list[str]] = lambda _data: []

    def __call__(self, data: bytes) -> None:
        """Give an input to the parser, twice."""
        first = self.answer(data)
        if first[0] or not crc32(data) & _SOME:
            check_same("a second call", self.answer(data), first)

    def answer(self, data: bytes) -> tuple[object, ...]:
        """Return whether the parser accepts an input, and what it says, after a look at it."""
        try:
            value = self.read(data)
        except self.refusals as error:
            check_error(error, None if self.grows else len(data), self.longest)
            _check_secret(error, self.secret(data))
            offset, reason = getattr(error, "offset", None), getattr(error, "reason", "")
            return False, type(error), str(error), offset, reason
        self.accepted(data, value)
        return True, self.said(value)


def obeys(
    read: Callable[[bytes], T],
    *refusals: type[AttestKitError],
    **more: Any,
) -> Contract[T]:
    """Return the contract of a parser that refuses by these errors; see `Contract`."""
    return Contract(read, refusals, **more)


def tried(call: Callable[[], object], size: int | None, *refusals: type[AttestKitError]) -> bool:
    """Call what may refuse; tell whether it did not, after a look at the error.

    Args:
        call: What is called.
        size: Bytes of the input; None where an offset may be behind it.
        refusals: What it may raise.
    """
    try:
        call()
    except refusals as error:
        check_error(error, size)
        return False
    return True


def check_error(error: AttestKitError, size: int | None, longest: int = LONGEST) -> None:
    """Refuse an error that is no short line, or whose offset is not within `size` bytes.

    Raises:
        BrokenContractError: It is none.
    """
    text = str(error)
    if not 0 < len(text) <= longest:
        raise BrokenContractError(f"the error has {len(text)} characters: {text[:200]!a}")
    if not text.isprintable():
        raise BrokenContractError(f"the error is not one printable line: {text[:400]!a}")
    if error.reason not in type(error).reasons():
        raise BrokenContractError(f"{error.reason!a} is not a reason of {type(error).__name__}")
    if not isinstance(error, FormatError):
        return
    if error.offset is not None and not 0 <= error.offset <= (
        error.offset if size is None else size
    ):
        raise BrokenContractError(f"offset {error.offset} of {size} bytes: {text}")


def check(what: str, holds: object) -> None:
    """Refuse what does not hold.

    Raises:
        BrokenContractError: It does not.
    """
    if not holds:
        raise BrokenContractError(f"{what}: it does not hold")


def check_same(what: str, found: object, wanted: object) -> None:
    """Refuse a difference.

    Raises:
        BrokenContractError: The two are not equal.
    """
    if found != wanted:
        raise BrokenContractError(f"{what}: {found!a:.400} is not {wanted!a:.400}")


def _check_secret(error: BaseException, secrets: list[str]) -> None:
    """Refuse an error that a secret is in, or in what led to it, also where no text shows it."""
    for one in _chain(error) if secrets else ():
        shown = f"{one!a} {one.args!a} {vars(one)!a} {getattr(one, 'doc', '')!a}"
        for attribute in ("object", "pattern"):
            shown += ascii(getattr(one, attribute, ""))
        if any(secret in shown for secret in secrets):
            raise BrokenContractError(f"a secret is in {type(one).__name__}: {shown[:200]}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came of, however that is told."""
    left, seen = [error], set()
    while left:
        one = left.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            left += [one.__cause__, one.__context__]
