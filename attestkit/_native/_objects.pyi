# Types of the module of objects.c, which is in the same library as cffi's.

from collections.abc import Callable
from typing import Any, Generic, Literal, TypeAlias, TypeVar, overload

from attestkit._native import CcelWalk, QuoteRows, TpmWalk

_Q = TypeVar("_Q", bound=QuoteBase)
_C_co = TypeVar("_C_co", covariant=True)
_Four: TypeAlias = tuple[memoryview, memoryview, memoryview, memoryview]

class QuoteBase:
    _data: bytes
    _made: dict[str, Any] | None
    @property
    def version(self) -> int: ...
    @property
    def tee_type(self) -> int: ...
    @property
    def padding(self) -> int: ...
    @property
    def mrtd(self) -> bytes: ...
    @property
    def rtmrs(self) -> tuple[bytes, bytes, bytes, bytes]: ...
    @property
    def report_data(self) -> bytes: ...

def quote_parsers(
    quote: type[_Q], enclave: type[_Q], /
) -> tuple[Callable[[object], _Q | None], Callable[[tuple[object, ...]], list[_Q]]]: ...
def log_walkers(refuse: Callable[[int, int], Exception], /) -> tuple[CcelWalk, TpmWalk]: ...
def quote_checker(
    refuse_one: Callable[[int, int, int], Exception], /
) -> Callable[[bytes, bytes | None], QuoteRows]: ...

class Column(Generic[_C_co]):
    @overload
    def __new__(cls, at: int, width: int, /) -> Column[memoryview]: ...
    @overload
    def __new__(cls, at: int, width: Literal[48], count: Literal[4], /) -> Column[_Four]: ...
    def __get__(self, owner: object, _: type | None = None, /) -> _C_co: ...
