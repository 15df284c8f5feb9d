"""Quotes on the real configfs-tsm and driver, and errors of the host.

The host's quote generation service signs like the simulator, so that evidence can be verified.
"""

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from attestkit.backends.configfs_tsm import ConfigfsTdx, ConfigfsTsm
from attestkit.backends.linux.syscalls import read
from attestkit.errors import BackendBusyError, BackendError, QuoteUnavailableError
from attestkit.quote import Quote
from tests.clients.python_dcap_qvl import verify_with_dcap_qvl
from tests.raising import raises
from tests.rigs.kernel.guest.machine import (
    LINUX,
    REPORTS,
    QuotingProcess,
    SimulatedTd,
    count_descriptors,
    errno_of,
    list_entries,
    service_in_this_process,
)

REPORT_DATA = bytes(range(64))
IN_FLIGHT = 0xFFFFFFFFFFFFFFFF
FAILED = 0x8000000000000000
NO_SERVICE = 0x8000000000000001

# Before 7.1 the driver reports a failure as an empty quote.
HOST_FAILED = "empty" if LINUX < (7, 1) else "quoting_service"


@pytest.fixture
def service(td_without_qgs: SimulatedTd) -> QuotingProcess:
    """Return the quote generation service of `td_without_qgs`'s host."""
    return td_without_qgs.start_service()


@pytest.fixture
def interrupt(td_without_qgs: SimulatedTd) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Return a function that interrupts this thread with a handler during its request."""
    before = signal.getsignal(signal.SIGUSR1)
    main = threading.main_thread().ident
    assert main is not None

    def when_asked() -> None:
        while not td_without_qgs.get("quote_calls"):
            time.sleep(0.01)
        signal.pthread_kill(main, signal.SIGUSR1)

    def arm(handler: Callable[[], None]) -> None:
        signal.signal(signal.SIGUSR1, lambda *_: handler())
        threading.Thread(target=when_asked, daemon=True).start()

    yield arm
    signal.signal(signal.SIGUSR1, before)


def test_kernel_quote_verifies(td: SimulatedTd) -> None:
    """It has the report data and the hardware's registers."""
    backend = ConfigfsTsm()
    assert isinstance(backend, ConfigfsTdx)
    quote = Quote.parse(backend.get_quote(REPORT_DATA))
    assert quote.report_data == REPORT_DATA
    assert quote.rtmrs == td.registers()
    now = int(time.clock_gettime(time.CLOCK_REALTIME))
    verdict = verify_with_dcap_qvl(quote.raw, td.pki.collateral(now), td.pki.root_der, now)
    assert verdict.status == "UpToDate", verdict.text
    assert td.get("quote_calls") == 1
    backend.close()


def test_kernel_request_leaves_no_resources(td: SimulatedTd) -> None:
    """No entry or descriptor is left, even by failed requests."""
    backend = ConfigfsTsm()
    backend.get_quote(REPORT_DATA)
    before = count_descriptors()
    for number in range(10):
        td.set(quote_status=FAILED if number % 2 else 0)
        try:
            backend.get_quote(REPORT_DATA)
        except QuoteUnavailableError:
            assert number % 2
    assert list_entries() == []
    assert count_descriptors() == before


def test_kernel_shared_entry_is_used_and_stays(
    td: SimulatedTd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its generation advances."""
    entry = REPORTS / "shared"
    entry.mkdir()
    monkeypatch.setenv("DCAP_TDX_QUOTE_CONFIGFS_PATH", str(entry))
    for expected in (1, 2):
        assert Quote.parse(ConfigfsTsm().get_quote(REPORT_DATA)).report_data == REPORT_DATA
        assert int((entry / "generation").read_bytes()) == expected
    assert list_entries() == ["shared"]
    entry.rmdir()
    del td


# -- a host that fails -----------------------------------------------------------------------------


def test_kernel_quote_without_qgs_is_unavailable(td_without_qgs: SimulatedTd) -> None:
    """The error names the QGS."""
    with raises(QuoteUnavailableError, HOST_FAILED, part="QGS"):
        ConfigfsTsm().get_quote(REPORT_DATA)
    assert td_without_qgs.get("quote_calls") == 1


@pytest.mark.parametrize("status", [FAILED, NO_SERVICE])
def test_kernel_failed_status_is_unavailable(td: SimulatedTd, status: int) -> None:
    """The next request succeeds."""
    backend = ConfigfsTsm()
    td.set(quote_status=status)
    with raises(QuoteUnavailableError, HOST_FAILED):
        backend.get_quote(REPORT_DATA)
    td.set(quote_status=0)
    assert Quote.parse(backend.get_quote(REPORT_DATA)).report_data == REPORT_DATA


@pytest.mark.parametrize("size", [0, 1, 1019])
def test_kernel_short_quote_is_unavailable(td: SimulatedTd, size: int) -> None:
    """The kernel returns it unchanged in each release."""
    td.set(quote_len=size)
    with raises(QuoteUnavailableError, "too_short" if size else "empty"):
        ConfigfsTsm().get_quote(REPORT_DATA)


def test_kernel_oversized_quote_is_rejected(td: SimulatedTd) -> None:
    """The host cannot make this kernel read beyond its buffer (CVE-2026-31470)."""
    td.set(quote_len=1 << 20)
    with raises(BackendError, "too_large"):
        ConfigfsTsm().get_quote(REPORT_DATA)


def test_kernel_failed_hypercall_is_unavailable(td: SimulatedTd) -> None:
    """EIO in each release."""
    td.set(quote_err=0x8000000000000000)
    with raises(QuoteUnavailableError, "quoting_service"):
        ConfigfsTsm().get_quote(REPORT_DATA)


def test_kernel_busy_tdx_module_is_retried(td: SimulatedTd) -> None:
    """The third attempt succeeds."""
    td.set(report_err=-errno.EBUSY, fault_times=2)
    assert Quote.parse(ConfigfsTsm().get_quote(REPORT_DATA)).report_data == REPORT_DATA


# -- delayed responses of the host -----------------------------------------------------------------


def test_kernel_polls_request_in_flight(td: SimulatedTd) -> None:
    """The host completes the request while the driver polls."""
    td.set(quote_wait_ms=0)
    assert Quote.parse(ConfigfsTsm().get_quote(REPORT_DATA)).report_data == REPORT_DATA
    assert td.get("quote_calls") == 1


def test_kernel_returns_eintr_then_ebusy(
    td_without_qgs: SimulatedTd, service: QuotingProcess, interrupt: Callable[..., None]
) -> None:
    """A signal ends the wait and not the request, as the backend assumes."""
    td_without_qgs.set(quote_wait_ms=0)
    service.pause()
    entry = REPORTS / "signal"
    entry.mkdir()
    (entry / "inblob").write_bytes(REPORT_DATA)
    fd = os.open(entry / "outblob", os.O_RDONLY)
    try:
        interrupt(lambda: None)
        for number in (errno.EINTR, errno.EBUSY):
            assert errno_of(lambda: read(fd, 100)) == number
        service.resume()
        ConfigfsTsm().get_quote(REPORT_DATA)  # waits for the request in flight
        assert REPORT_DATA in b"".join(iter(lambda: read(fd, 1 << 14), b""))
    finally:
        os.close(fd)
        entry.rmdir()


def test_interrupted_request_is_repeated(
    td_without_qgs: SimulatedTd, service: QuotingProcess, interrupt: Callable[..., None]
) -> None:
    """The backend waits for the old request, and makes another."""
    td_without_qgs.set(quote_wait_ms=0)
    service.pause()
    interrupt(lambda: threading.Timer(0.3, service.resume).start())
    assert Quote.parse(ConfigfsTsm().get_quote(REPORT_DATA)).report_data == REPORT_DATA
    assert td_without_qgs.get("quote_calls") == 2


def test_kernel_request_releases_the_gil(td_without_qgs: SimulatedTd) -> None:
    """The service is a thread of this process."""
    with service_in_this_process(td_without_qgs.quoter.quote):
        assert Quote.parse(ConfigfsTsm().get_quote(REPORT_DATA)).report_data == REPORT_DATA


def test_kernel_request_in_flight_times_out(
    td_without_qgs: SimulatedTd, monkeypatch: pytest.MonkeyPatch, interrupt: Callable[..., None]
) -> None:
    """The buffer stays with the host, so the error is BackendBusyError."""
    monkeypatch.setattr("attestkit.backends.tsm.report._MAX_WAIT", 0.5)
    td_without_qgs.set(quote_status=IN_FLIGHT)
    interrupt(lambda: None)
    with raises(BackendBusyError, "request_in_flight"):
        ConfigfsTsm().get_quote(REPORT_DATA)
