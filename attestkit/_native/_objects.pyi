# Types of the module of objects.c, which is in the same library as cffi's.

from collections.abc import Callable
from typing import Any, TypeVar

from attestkit._native import CcelWalk, TpmWalk

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
def log_walkers(refuse: Callable[[int, int], Exception], /) -> tuple[CcelWalk, TpmWalk]: ...
