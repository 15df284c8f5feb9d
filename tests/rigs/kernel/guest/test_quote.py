"""Quotes through the real configfs-tsm and driver, and what the driver makes of a failing host.

The host's quoting service signs as the simulator does, so that evidence can be verified to its end.
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
from tests.dcap import judge
from tests.rigs.kernel.guest.machine import (
    LINUX,
    REPORTS,
    MadeUpTd,
    QuotingProcess,
    descriptors,
    entries,
    errno_of,
    service_in_this_process,
)

ASKED = bytes(range(64))
IN_FLIGHT = 0xFFFFFFFFFFFFFFFF
FAILED = 0x8000000000000000
NO_SERVICE = 0x8000000000000001

# Before 7.1 the driver passes a failure on as a quote without a byte.
HOST_FAILED = "0 bytes" if LINUX < (7, 1) else "EIO"


@pytest.fixture
def service(lonely_td: MadeUpTd) -> QuotingProcess:
    """Return the quoting service of `lonely_td`'s host."""
    return lonely_td.start_service()


@pytest.fixture
def interrupt(lonely_td: MadeUpTd) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Return what interrupts this thread once its request is in flight, by a handler."""
    before = signal.getsignal(signal.SIGUSR1)
    main = threading.main_thread().ident
    assert main is not None

    def when_asked() -> None:
        while not lonely_td.get("quote_calls"):
            time.sleep(0.01)
        signal.pthread_kill(main, signal.SIGUSR1)

    def arm(handler: Callable[[], None]) -> None:
        signal.signal(signal.SIGUSR1, lambda *_: handler())
        threading.Thread(target=when_asked, daemon=True).start()

    yield arm
    signal.signal(signal.SIGUSR1, before)


def test_a_quote_is_over_what_was_asked_and_verifies(td: MadeUpTd) -> None:
    """It has our 64 bytes and the hardware's registers, and a verifier believes its signatures."""
    backend = ConfigfsTsm()
    assert isinstance(backend, ConfigfsTdx)
    quote = Quote.parse(backend.get_quote(ASKED))
    assert quote.report_data == ASKED
    assert quote.rtmrs == td.registers()
    now = int(time.clock_gettime(time.CLOCK_REALTIME))
    verdict = judge(quote.raw, td.pki.collateral(now), td.pki.root_der, now)
    assert verdict.status == "UpToDate", verdict.text
    assert td.get("quote_calls") == 1
    backend.close()


def test_nothing_is_left_of_a_request(td: MadeUpTd) -> None:
    """Neither an entry nor a descriptor, also after requests that failed."""
    backend = ConfigfsTsm()
    backend.get_quote(ASKED)
    before = descriptors()
    for number in range(10):
        td.set(quote_status=FAILED if number % 2 else 0)
        try:
            backend.get_quote(ASKED)
        except QuoteUnavailableError:
            assert number % 2
    assert entries() == []
    assert descriptors() == before


def test_a_named_entry_is_used_and_stays(td: MadeUpTd, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that the environment names is shared: its generation moves, and it is not ours."""
    entry = REPORTS / "shared"
    entry.mkdir()
    monkeypatch.setenv("DCAP_TDX_QUOTE_CONFIGFS_PATH", str(entry))
    for expected in (1, 2):
        assert Quote.parse(ConfigfsTsm().get_quote(ASKED)).report_data == ASKED
        assert int((entry / "generation").read_bytes()) == expected
    assert entries() == ["shared"]
    entry.rmdir()
    del td


# -- a host that fails -----------------------------------------------------------------------------


def test_no_quoting_service_means_no_quote(lonely_td: MadeUpTd) -> None:
    """A host without a service is named as the reason."""
    with pytest.raises(QuoteUnavailableError, match=HOST_FAILED) as caught:
        ConfigfsTsm().get_quote(ASKED)
    assert "QGS" in str(caught.value)
    assert lonely_td.get("quote_calls") == 1


@pytest.mark.parametrize("status", [FAILED, NO_SERVICE])
def test_a_failed_request_is_no_quote(td: MadeUpTd, status: int) -> None:
    """Both statuses of a failure; afterwards everything works again."""
    backend = ConfigfsTsm()
    td.set(quote_status=status)
    with pytest.raises(QuoteUnavailableError, match=HOST_FAILED):
        backend.get_quote(ASKED)
    td.set(quote_status=0)
    assert Quote.parse(backend.get_quote(ASKED)).report_data == ASKED


@pytest.mark.parametrize("size", [0, 1, 1019])
def test_too_few_bytes_are_no_quote(td: MadeUpTd, size: int) -> None:
    """A success without a quote: the kernel shows it as it is, on every release."""
    td.set(quote_len=size)
    with pytest.raises(QuoteUnavailableError, match=f"{size} bytes"):
        ConfigfsTsm().get_quote(ASKED)


def test_a_quote_that_claims_too_much_is_refused(td: MadeUpTd) -> None:
    """A host cannot make this kernel read beyond its buffer (CVE-2026-31470)."""
    td.set(quote_len=1 << 20)
    with pytest.raises(BackendError, match="EFBIG"):
        ConfigfsTsm().get_quote(ASKED)


def test_a_refused_hypercall_is_no_quote(td: MadeUpTd) -> None:
    """EIO, on every release."""
    td.set(quote_err=0x8000000000000000)
    with pytest.raises(QuoteUnavailableError, match="EIO"):
        ConfigfsTsm().get_quote(ASKED)


def test_a_module_that_is_busy_is_waited_for(td: MadeUpTd) -> None:
    """EBUSY twice, and the third attempt has a quote."""
    td.set(report_err=-errno.EBUSY, fault_times=2)
    assert Quote.parse(ConfigfsTsm().get_quote(ASKED)).report_data == ASKED


# -- a host that takes its time --------------------------------------------------------------------


def test_a_quote_may_come_later(td: MadeUpTd) -> None:
    """A request that is in flight at first is completed by the host while the driver polls."""
    td.set(quote_wait_ms=0)
    assert Quote.parse(ConfigfsTsm().get_quote(ASKED)).report_data == ASKED
    assert td.get("quote_calls") == 1


def test_the_kernel_says_eintr_and_then_ebusy(
    lonely_td: MadeUpTd, service: QuotingProcess, interrupt: Callable[..., None]
) -> None:
    """What the backend's patience rests on: a signal ends the wait and not the request."""
    lonely_td.set(quote_wait_ms=0)
    service.pause()
    entry = REPORTS / "signal"
    entry.mkdir()
    (entry / "inblob").write_bytes(ASKED)
    fd = os.open(entry / "outblob", os.O_RDONLY)
    try:
        interrupt(lambda: None)
        for number in (errno.EINTR, errno.EBUSY):
            assert errno_of(lambda: read(fd, 100)) == number
        service.go_on()
        ConfigfsTsm().get_quote(ASKED)  # waits for the one in flight
        assert ASKED in b"".join(iter(lambda: read(fd, 1 << 14), b""))
    finally:
        os.close(fd)
        entry.rmdir()


def test_a_signal_costs_patience_and_no_quote(
    lonely_td: MadeUpTd, service: QuotingProcess, interrupt: Callable[..., None]
) -> None:
    """Interrupted in its wait, the backend sees the old request out and makes another."""
    lonely_td.set(quote_wait_ms=0)
    service.pause()
    interrupt(lambda: threading.Timer(0.3, service.go_on).start())
    assert Quote.parse(ConfigfsTsm().get_quote(ASKED)).report_data == ASKED
    assert lonely_td.get("quote_calls") == 2


def test_other_threads_run_while_the_host_works(lonely_td: MadeUpTd) -> None:
    """The service is a thread of this very process: it can answer only if the GIL is free."""
    with service_in_this_process(lonely_td.quoter.quote):
        assert Quote.parse(ConfigfsTsm().get_quote(ASKED)).report_data == ASKED


def test_a_request_that_stays_in_flight_is_somebody_elses(
    lonely_td: MadeUpTd, monkeypatch: pytest.MonkeyPatch, interrupt: Callable[..., None]
) -> None:
    """While the buffer is with a host that never answers, patience ends in BackendBusyError."""
    monkeypatch.setattr("attestkit.backends.tsm.report._PATIENCE", 0.5)
    lonely_td.set(quote_status=IN_FLIGHT)
    interrupt(lambda: None)
    with pytest.raises(BackendBusyError, match="EBUSY"):
        ConfigfsTsm().get_quote(ASKED)
