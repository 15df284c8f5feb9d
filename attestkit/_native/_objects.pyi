# Types of the module that quote_object.c makes, in the same library as cffi's.

from collections.abc import Callable
from typing import Any, TypeVar

_Q = TypeVar("_Q", bound=QuoteBase)

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
