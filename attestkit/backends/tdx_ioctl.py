"""A TDX guest by its device alone: reports by ioctl, quotes through the host's QGS.

Kernels from before configfs-tsm have this way only. The quote comes from the QGS over vsock that
/etc/tdx-attest.conf names; or, if an option names the driver's generation, by the ioctl of that
driver. One way is chosen, and what it says is final: another would only hide the reason.
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
    configured_port,
    get_quote,
    host_endpoint,
    parse_endpoint,
)
from attestkit.backends.tdx.quote_ioctl import Generation, parse_generation, quote_by_ioctl
from attestkit.errors import BackendUnavailableError, UsageError

__all__ = ["TdxIoctl"]


class TdxIoctl(TdGuest):
    """A TDX guest through /dev/tdx_guest, with quotes from the host's QGS.

    Args:
        root: A folder to look below in place of /.
        paths: Where the kernel has its files; wins over `root`. None for both: as the environment
            says.
        generation: The generation of an out-of-tree driver whose GET_QUOTE ioctl makes the quotes:
            "C", "C'", "D" or "D'", see quote_ioctl. None: none is tried.
        qgs: Where the QGS listens: ("vsock", cid, port), or the path of a UNIX socket. None: at the
            host, on the port that /etc/tdx-attest.conf names.
        deadlines: How long the QGS may take.
        calls: The system calls.
        clock: Monotonic seconds.
        sleep: Waits so many seconds.

    Raises:
        UsageError: An option is not one of the above, or both ways to a quote were chosen.
        BackendUnavailableError: There is no device, or no way to a quote; the text says what to do.
        BackendError: The device cannot be opened for another reason.
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
        self._way = _chosen_way(generation, qgs)
        _check(self._device, chosen, self._way, calls)
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
        """Look if a backend with these options could run: the device, and a way to a quote.

        Nothing is asked for, so a QGS that does not answer is not seen.

        Raises:
            UsageError: As the constructor.
            BackendUnavailableError: Something is missing; the text names the file or the option.
            BackendError: The device cannot be opened for another reason.
        """
        paths = find_kernel_paths() if paths is None else paths
        way = _chosen_way(generation, qgs)
        _check(TdxDevice(paths.tdx_guest, paths.old_nodes), paths, way, REAL_CALLS)

    def get_quote(self, report_data: bytes) -> bytes:
        """Return a raw quote over `report_data`, exactly 64 bytes.

        Raises:
            UsageError: `report_data` is not 64 bytes.
            BackendUnavailableError: The device or the way to the QGS is not there, or not ours.
            QuoteUnavailableError: They are, and the host gave no quote, or none in time.
            BackendBusyError: The device is busy.
            BackendError: Anything else that went wrong.
        """
        report = self._device.get_report(report_data)
        way = self._way or _configured_way(self._paths, self._calls)  # a correction counts
        if isinstance(way, Endpoint):
            return get_quote(way, report, deadlines=self._deadlines, clock=self._clock)
        return quote_by_ioctl(self._device, way, report, clock=self._clock, sleep=self._sleep)


def _chosen_way(generation: object, qgs: object) -> Endpoint | Generation | None:
    if generation is not None:
        if qgs is not None:
            raise UsageError("name the QGS or the driver's generation, not both")
        return parse_generation(generation)
    return None if qgs is None else parse_endpoint(qgs)


def _check(
    device: TdxDevice, paths: KernelPaths, way: Endpoint | Generation | None, calls: DeviceCalls
) -> None:
    """Look for the device, then for a way to a quote; nobody is asked for one."""
    with device.opened():
        pass
    if way is None:
        way = _configured_way(paths, calls)
    if isinstance(way, Endpoint):
        check_transport(way)


def _configured_way(paths: KernelPaths, calls: DeviceCalls) -> Endpoint:
    try:
        return host_endpoint(configured_port(paths.tdx_attest_conf, calls=calls))
    except BackendUnavailableError as error:
        raise BackendUnavailableError(
            f"no way to a quote: {error}; write `port = 4050` into {paths.tdx_attest_conf}, or "
            "name the QGS by the option qgs, or an out-of-tree driver by the option generation"
        ) from error
