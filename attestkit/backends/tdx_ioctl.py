"""Backend for a TDX guest without configfs-tsm: TD reports by ioctl, quotes from the host's QGS.

Quotes come from the QGS over vsock, at the port in /etc/tdx-attest.conf; or, if an option selects
the generation of an out-of-tree driver, from its ioctl. One is never a fallback for the other,
because that would hide the error.
"""

import os
import time
from collections.abc import Callable

from attestkit.backends import find_kernel_paths
from attestkit.backends.linux.paths import KernelPaths
from attestkit.backends.linux.syscalls import REAL_CALLS, DeviceCalls
from attestkit.backends.tdx.device import TdxDevice
from attestkit.backends.tdx.guest import TdGuest
from attestkit.backends.tdx.qgs import (
    Address,
    Deadlines,
    Endpoint,
    check_transport,
    get_quote,
    host_endpoint,
    parse_endpoint,
    read_configured_port,
)
from attestkit.backends.tdx.quote_ioctl import Generation, parse_generation, quote_by_ioctl
from attestkit.errors import BackendUnavailableError, UsageError

__all__ = ["TdxIoctl"]


class TdxIoctl(TdGuest):
    """A TDX guest by /dev/tdx_guest, with quotes from the host's QGS.

    Args:
        root: The directory to use in place of `/`; None: `backends.find_kernel_paths()`.
        paths: The kernel's paths; overrides `root`.
        generation: The generation of an out-of-tree driver with the ioctl GET_QUOTE: "C", "C'",
            "D" or "D'", see quote_ioctl. None: use the QGS.
        qgs: The address of the QGS: ("vsock", cid, port) or the path of a UNIX socket. None: the
            host, at the port in /etc/tdx-attest.conf.
        deadlines: The timeouts of the QGS.
        calls: The system calls.
        clock: Returns monotonic seconds.
        sleep: Sleeps for the given number of seconds.

    Raises:
        UsageError: If an option is invalid, or both `generation` and `qgs` are given.
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
            raise UsageError("qgs and generation: mutually exclusive", reason="conflict")
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
