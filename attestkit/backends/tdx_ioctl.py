"""Backend for a TDX guest without configfs-tsm: TD reports by ioctl, quotes from the host's QGS.

Quotes come from the QGS over vsock, at the port in /etc/tdx-attest.conf; or, if an option selects
the generation of an out-of-tree driver, from its ioctl GET_QUOTE. One is never a fallback for the
other, because that would hide the error.

attestkit's names of the driver generations: "C" is Intel's driver (DCAP 1.18 and later), "C'" the
one that Intel's library calls V3, "D" that of Google's kernels, "D'" that of some patch series for
Linux. All take the address and length of a buffer with this header:

| Offset | Size | Field |
|---:|---:|---|
| 0 | 8 | version, 1 |
| 8 | 8 | status, set by the host |
| 16 | 4 | length of the request, at 24 |
| 20 | 4 | length of the response, at 24; set by the host |

C and C' exchange QGS messages with length prefix, D and D' the plain TD report and quote. The
emulator has ioctl numbers of its own: `emulator.tdx_driver.DRIVERS`.
"""

import errno
import os
import time
from collections.abc import Callable, Mapping
from mmap import PAGESIZE, mmap
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

from attestkit.backends.environment import find_kernel_paths
from attestkit.backends.linux.device_errors import Meaning, busy, failed, no_quote, unavailable
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.linux.syscalls import REAL_CALLS, DeviceCalls, address_of, ior, iowr
from attestkit.backends.tdx.device import MEANINGS, Command, TdxDevice
from attestkit.backends.tdx.qgs import (
    SHORTEST_QUOTE,
    Address,
    Deadlines,
    Endpoint,
    check_transport,
    frame,
    get_quote,
    host_endpoint,
    malformed,
    parse_endpoint,
    parse_frame,
    parse_quote_response,
    quote_request,
    read_configured_port,
    too_short,
)
from attestkit.backends.tdx.rtmr import TdGuest
from attestkit.errors import BackendUnavailableError, UsageError

__all__ = ["TdxIoctl"]

_ARGUMENT: Final = Struct("=QQ")  # address and length of the buffer
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

_BUFFER_SIZE: Final = 16 << 10  # bytes; expected by these drivers
_DEADLINE: Final = 30.0  # seconds that a request may stay in flight
_POLL: Final = 0.01  # seconds between reads of the status


class Generation(NamedTuple):
    """A generation of out-of-tree drivers, by their ioctl GET_QUOTE."""

    number: int  # of its ioctl
    framed: bool  # request and response are QGS messages


GENERATIONS: Final[Mapping[str, Generation]] = {
    "C": Generation(ior("T", 4, _ARGUMENT.size), framed=True),
    "C'": Generation(iowr("T", 4, _ARGUMENT.size), framed=True),
    "D": Generation(iowr("T", 2, _ARGUMENT.size), framed=False),
    "D'": Generation(ior("T", 2, _ARGUMENT.size), framed=False),
}

_NO_QGS: Final = "the host has no working quoting service; check its QGS (qgsd)"
_LATE: Final = "the host's quoting service did not respond in time; check its QGS (qgsd)"
_OTHER: Final = "the driver has no such command; use another generation, or configfs_tsm"
_QUOTE_MEANINGS: Final[Mapping[int, Meaning]] = {
    **MEANINGS,
    errno.EBUSY: (busy, "request_in_flight", "another request is in flight; retry later"),
    errno.EINVAL: (failed, "io_error", "request rejected; check the option generation"),
    errno.EIO: (no_quote, "quoting_service", _NO_QGS),
    errno.ETIMEDOUT: (no_quote, "timed_out", _LATE),
    errno.ENOTTY: (unavailable, "unsupported_kernel", _OTHER),
}


def parse_generation(name: object) -> Generation:
    """Return the driver generation with this name: "C", "C'", "D" or "D'".

    Raises:
        UsageError: If `name` is none of these.
    """
    if isinstance(name, str) and (generation := GENERATIONS.get(name)) is not None:
        return generation
    known = ", ".join(GENERATIONS)
    raise UsageError(f"generation: must be one of {known}, not {name!r}", reason="unknown_name")


def quote_by_ioctl(
    device: TdxDevice,
    generation: Generation,
    report: bytes,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bytes:
    """Request a quote for a TD report, 1024 bytes, by the ioctl of a driver; return the raw quote.

    Args:
        device: The device.
        generation: Generation of its driver.
        report: The TD report.
        clock: Returns monotonic seconds.
        sleep: Sleeps for the given number of seconds.

    Raises:
        BackendUnavailableError: If the device is missing or not accessible, or its driver does not
            have the ioctl of this generation.
        BackendBusyError: If another request is in flight.
        QuoteUnavailableError: If the host's quoting service is missing, too slow, or failed.
        BackendError: If the response is malformed, or the ioctl failed for another reason.
    """
    request = frame(quote_request(report)) if generation.framed else report
    needed = _HEADER.size + len(request)
    size = max(_BUFFER_SIZE, -(-needed // PAGESIZE) * PAGESIZE)
    until = clock() + _DEADLINE
    with mmap(-1, size) as pages, device.open() as fd:

        def argument() -> bytearray:
            pages[:needed] = _HEADER.pack(_VERSION, SUCCESS, len(request), 0) + request
            return bytearray(_ARGUMENT.pack(address_of(pages), size))

        # An interrupted request may still be in flight at the host, so it is retried only once.
        command = Command("GET_QUOTE", generation.number, _QUOTE_MEANINGS, interruptions=1)
        device.command(fd, command, argument)
        while _status(pages) == IN_FLIGHT and clock() < until:  # the driver did not wait
            sleep(_POLL)
        _check_status(_status(pages), device.path)
        response = _response(pages, device.path)
    parse = _parse_message if generation.framed else _check_size
    return parse(response, device.path)


def _status(pages: mmap) -> int:
    return int(_STATUS.unpack_from(pages, _STATUS_AT)[0])


_IN_FLIGHT: Final = (
    f"no response after {_DEADLINE:g} s; the driver may be busy until the host responds"
)
_NO_SERVICE: Final = "the host has no quoting service; start its QGS (qgsd)"
_STATUSES: Final[Mapping[int, Meaning]] = {
    IN_FLIGHT: (no_quote, "timed_out", _IN_FLIGHT),
    FAILED: (no_quote, "quoting_service", "the host's quoting service failed; see its log"),
    NO_SERVICE: (no_quote, "cannot_connect", _NO_SERVICE),
}


def _check_status(status: int, path: Path) -> None:
    if status == SUCCESS:
        return
    if (meaning := _STATUSES.get(status)) is None:
        text = f"GET_QUOTE: unknown status (byte 8): {status:#018x}"
        raise failed(path, text, "malformed_response")
    make, reason, text = meaning
    raise make(path, f"GET_QUOTE: {text}", reason)


def _response(pages: mmap, path: Path) -> bytes:
    length = _OUT_LENGTH.unpack_from(pages, _OUT_LENGTH_AT)[0]
    if length > len(pages) - _HEADER.size:
        raise malformed(path, f"length (byte 20) {length} in a buffer of {len(pages)} bytes")
    if not length:
        text = "GET_QUOTE: empty response; see the log of the host's quoting service"
        raise no_quote(path, text, "empty")
    return pages[_HEADER.size : _HEADER.size + length]


def _parse_message(response: bytes, path: Path) -> bytes:
    if len(response) < 4:
        text = f"response truncated: {len(response)} bytes, expected at least 4"
        raise failed(path, text, "truncated")
    length = parse_frame(response[:4], path)
    if length != len(response) - 4:
        raise malformed(path, f"length {length}, but {len(response) - 4} bytes follow")
    return parse_quote_response(response[4:], path)


def _check_size(quote: bytes, path: Path) -> bytes:
    if len(quote) < SHORTEST_QUOTE:
        raise too_short(path, len(quote))
    return quote


class TdxIoctl(TdGuest):
    """A TDX guest by /dev/tdx_guest, with quotes from the host's QGS.

    Args:
        root: The directory to use in place of `/`; None: `backends.find_kernel_paths()`.
        paths: The kernel's paths; overrides `root`.
        generation: The generation of an out-of-tree driver with the ioctl GET_QUOTE: "C", "C'",
            "D" or "D'", described in this module's docstring. None: use the QGS.
        qgs: The QGS to connect to: ("vsock", cid, port) or the path of a UNIX socket. None: over
            vsock to the host, at the port in /etc/tdx-attest.conf.
        deadlines: The timeouts of the QGS; None: 5 s to connect and 30 s for the response.
        calls: The system calls.
        clock: Returns monotonic seconds.
        sleep: Sleeps for the given number of seconds.

    Raises:
        UsageError: If an option or an environment variable is invalid, or both `generation` and
            `qgs` are given.
        BackendUnavailableError: If the device is missing or not accessible, or no QGS is
            configured.
        BackendError: If the device cannot be opened for another reason.
    """

    name = "tdx_ioctl"
    simulated = False
    blocking = True

    def __init__(
        self,
        *,
        root: str | os.PathLike[str] | None = None,
        paths: KernelPaths | None = None,
        generation: str | None = None,
        qgs: Address | None = None,
        deadlines: Deadlines | None = None,
        calls: DeviceCalls = REAL_CALLS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        chosen = find_kernel_paths(root) if paths is None else paths
        super().__init__(chosen, calls=calls, sleep=sleep)
        self._quote_source = _selected_source(generation, qgs)
        _check(self._device, chosen, self._quote_source, calls)
        self._deadlines = deadlines
        self._clock = clock
        self._sleep = sleep

    @classmethod
    def probe(
        cls,
        paths: KernelPaths | None = None,
        *,
        generation: str | None = None,
        qgs: Address | None = None,
    ) -> None:
        """Check the device and the configuration of the QGS, without connecting to the QGS.

        Args:
            paths: The kernel's paths; None: `backends.find_kernel_paths()`.
            generation: Generation of an out-of-tree driver, "C", "C'", "D" or "D'", whose ioctl
                returns quotes. None: the QGS is used.
            qgs: The QGS: ("vsock", cid, port) or the path of a UNIX socket. None: over vsock to the
                host, at the port in /etc/tdx-attest.conf.

        Raises:
            UsageError: As the constructor.
            BackendUnavailableError: As the constructor.
            BackendError: If the device cannot be opened for another reason.
        """
        paths = find_kernel_paths() if paths is None else paths
        source = _selected_source(generation, qgs)
        _check(TdxDevice(paths.tdx_guest, paths.old_nodes), paths, source, REAL_CALLS)

    def get_quote(self, report_data: bytes) -> bytes:
        """Return a raw quote over `report_data`, exactly 64 bytes.

        Raises:
            UsageError: If `report_data` is not 64 bytes.
            BackendUnavailableError: If device, configuration or vsock is missing or not accessible.
            QuoteUnavailableError: If the QGS is down, too slow, or returned an error.
            BackendBusyError: If the device or the QGS is busy.
            BackendError: If the request failed for another reason.
        """
        report = self._device.get_report(report_data)
        source = self._quote_source or _configured_qgs(self._paths, self._calls)
        if isinstance(source, Endpoint):
            return get_quote(source, report, deadlines=self._deadlines, clock=self._clock)
        return quote_by_ioctl(self._device, source, report, clock=self._clock, sleep=self._sleep)


def _selected_source(generation: object, qgs: object) -> Endpoint | Generation | None:
    if generation is not None:
        if qgs is not None:
            raise UsageError("qgs, generation: both given; give only one", reason="conflict")
        return parse_generation(generation)
    return None if qgs is None else parse_endpoint(qgs)


def _check(
    device: TdxDevice, paths: KernelPaths, source: Endpoint | Generation | None, calls: DeviceCalls
) -> None:
    with device.open():
        pass
    if source is None:
        source = _configured_qgs(paths, calls)
    if isinstance(source, Endpoint):
        check_transport(source)


def _configured_qgs(paths: KernelPaths, calls: DeviceCalls) -> Endpoint:
    try:
        return host_endpoint(read_configured_port(paths.tdx_attest_conf, calls=calls))
    except BackendUnavailableError as error:
        raise BackendUnavailableError(
            f"{error}; write `port = 4050` into {paths.tdx_attest_conf}, or use the option qgs "
            "(address of the QGS) or generation (of an out-of-tree driver)",
            reason=error.reason,
            path=error.path,
        ) from error
