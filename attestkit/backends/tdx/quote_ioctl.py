"""Quotes by an ioctl of drivers that never came into Linux, only where somebody names the driver.

Generations, as attestkit calls them: "C" is Intel's out-of-tree driver (DCAP 1.18 and later), "C'"
the one that Intel's library knows as V3, "D" that of Google's kernels, "D'" that of some series
posted for Linux. All take the address and length of a buffer, which begins with a header:

| Offset | Size | Field |
|---:|---:|---|
| 0 | 8 | version, 1 |
| 8 | 8 | status, the host's |
| 16 | 4 | bytes of the request, at 24 |
| 20 | 4 | bytes of the answer, at 24: the host's |

C and C' exchange framed QGS messages in it, D and D' the bare TD report and the bare quote.
"""

import errno
import time
from collections.abc import Callable, Mapping
from mmap import PAGESIZE, mmap
from struct import Struct
from typing import Final, NamedTuple

from attestkit.backends.linux.syscalls import address_of, ior, iowr
from attestkit.backends.tdx.device import MEANINGS, Command, Meaning, TdxDevice
from attestkit.backends.tdx.qgs import (
    SHORTEST_QUOTE,
    frame,
    parse_frame,
    parse_quote_response,
    quote_request,
)
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UsageError,
)

__all__ = ["GENERATIONS", "Generation", "parse_generation", "quote_by_ioctl"]

_ARGUMENT: Final = Struct("=QQ")  # where the buffer is, and how many bytes it has
_HEADER: Final = Struct("<QQII")
_VERSION: Final = 1
_STATUS: Final = Struct("<Q")
_STATUS_AT: Final = 8
_OUT_LENGTH: Final = Struct("<I")
_OUT_LENGTH_AT: Final = 20

SUCCESS: Final = 0
IN_FLIGHT: Final = 0xFFFFFFFFFFFFFFFF
FAILED: Final = 0x8000000000000000
NO_SERVICE: Final = 0x8000000000000001

_BUFFER_SIZE: Final = 16 << 10  # bytes, as these drivers expect it
_DEADLINE: Final = 30.0  # seconds that a request may stay in flight
_POLL: Final = 0.01  # seconds between two looks at the status


class Generation(NamedTuple):
    """A driver that makes quotes."""

    number: int  # of its ioctl
    framed: bool  # request and answer are QGS messages


GENERATIONS: Final[Mapping[str, Generation]] = {
    "C": Generation(ior("T", 4, _ARGUMENT.size), framed=True),
    "C'": Generation(iowr("T", 4, _ARGUMENT.size), framed=True),
    "D": Generation(iowr("T", 2, _ARGUMENT.size), framed=False),
    "D'": Generation(ior("T", 2, _ARGUMENT.size), framed=False),
}

_QUOTE_MEANINGS: Final[Mapping[int, Meaning]] = {
    **MEANINGS,
    errno.EBUSY: (BackendBusyError, "another request for a quote is on its way: try again later"),
    errno.EINVAL: (
        BackendError,
        "the driver does not take this request: is it another generation?",
    ),
    errno.EIO: (QuoteUnavailableError, "the host refused: it has no working quoting service"),
    errno.ETIMEDOUT: (QuoteUnavailableError, "the host's quoting service did not answer in time"),
    errno.ENOTTY: (
        BackendUnavailableError,
        "the driver has no such command: it is another generation's, or Linux' (configfs_tsm)",
    ),
}


def parse_generation(name: object) -> Generation:
    """Return the generation called `name`.

    Raises:
        UsageError: None is called so.
    """
    if isinstance(name, str) and (generation := GENERATIONS.get(name)) is not None:
        return generation
    known = ", ".join(GENERATIONS)
    raise UsageError(f"no generation of drivers is called {name!r}; there are: {known}")


def quote_by_ioctl(
    device: TdxDevice,
    generation: Generation,
    report: bytes,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bytes:
    """Return the quote that the host makes of a TD report, 1024 bytes.

    Raises:
        BackendUnavailableError: The device is not there, not ours, or of another generation.
        BackendBusyError: Another request is on its way.
        QuoteUnavailableError: The host has no quoting service, or it failed, or not in time.
        BackendError: The answer breaks its format.
    """
    request = frame(quote_request(report)) if generation.framed else report
    needed = _HEADER.size + len(request)
    size = max(_BUFFER_SIZE, -(-needed // PAGESIZE) * PAGESIZE)
    until = clock() + _DEADLINE
    with mmap(-1, size) as pages, device.opened() as fd:

        def argument() -> bytearray:
            pages[:needed] = _HEADER.pack(_VERSION, SUCCESS, len(request), 0) + request
            return bytearray(_ARGUMENT.pack(address_of(pages), size))

        # An interrupted request may still be on its way, so it is made again only once.
        command = Command("GET_QUOTE", generation.number, _QUOTE_MEANINGS, interruptions=1)
        device.command(fd, command, argument)
        while _status(pages) == IN_FLIGHT and clock() < until:  # a driver that does not wait itself
            sleep(_POLL)
        _check_status(_status(pages), device)
        answer = _answer(pages, device)
    said_by = f"the host behind {device.path}"
    return _unframed(answer, said_by) if generation.framed else _whole(answer, said_by)


def _status(pages: mmap) -> int:
    return int(_STATUS.unpack_from(pages, _STATUS_AT)[0])


def _check_status(status: int, device: TdxDevice) -> None:
    if status == IN_FLIGHT:
        raise QuoteUnavailableError(
            f"GET_QUOTE on {device.path}: still in flight after {_DEADLINE:g} s; the device may be "
            "busy until the host answers"
        )
    if status == FAILED:
        raise QuoteUnavailableError(
            f"GET_QUOTE on {device.path}: the host's quoting service failed; its log tells why"
        )
    if status == NO_SERVICE:
        raise QuoteUnavailableError(
            f"GET_QUOTE on {device.path}: the host has no quoting service; start its QGS (qgsd)"
        )
    if status != SUCCESS:
        raise BackendError(f"GET_QUOTE on {device.path}: unknown status {status:#018x} (byte 8)")


def _answer(pages: mmap, device: TdxDevice) -> bytes:
    length = _OUT_LENGTH.unpack_from(pages, _OUT_LENGTH_AT)[0]
    if length > len(pages) - _HEADER.size:
        raise BackendError(
            f"GET_QUOTE on {device.path}: the host claims an answer of {length} bytes (byte 20) in "
            f"a buffer of {len(pages)}"
        )
    if not length:
        raise QuoteUnavailableError(
            f"GET_QUOTE on {device.path}: the host answered nothing, so its quoting service failed"
        )
    return pages[_HEADER.size : _HEADER.size + length]


def _unframed(answer: bytes, said_by: str) -> bytes:
    if len(answer) < 4:
        raise BackendError(f"{said_by} sent {len(answer)} bytes, less than a length")
    length = parse_frame(answer[:4], said_by)
    if length != len(answer) - 4:
        raise BackendError(
            f"{said_by} announced a message of {length} bytes and sent {len(answer) - 4}"
        )
    return parse_quote_response(answer[4:], said_by)


def _whole(answer: bytes, said_by: str) -> bytes:
    if len(answer) < SHORTEST_QUOTE:
        raise QuoteUnavailableError(
            f"{said_by} gave {len(answer)} bytes, the shortest quote has {SHORTEST_QUOTE}"
        )
    return answer
